"""`nnUNetv2_deferral_plan_experiment`: plan deferral networks and preprocess data that does not exist yet.

nnU-Net's planning command finds only planners inside nnunetv2; this one passes ours to the same function. The result is
an ordinary plans file, which all stock commands can read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)
from nnunetv2.paths import nnUNet_extTrainer, nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_dataset_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS
from nnunetv2_deferral.installed import trainers_folder
from nnunetv2_deferral.nnunet.experiment import full_dataset_name
from nnunetv2_deferral.planners import PLANNERS
from nnunetv2_deferral.planners.deferral import DeferralBlock, settle_deferral_block
from nnunetv2_deferral.raters import declared_raters, undeclared_raters

COMMAND = "nnUNetv2_deferral_plan_experiment"
DEFAULT_PLANNER = "nnUNetPlannerDeferral"
# nnU-Net's default numbers of preprocessing processes, here limited to nnUNet_def_n_proc.
_NUM_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
_STOCK_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


@dataclass(frozen=True, kw_only=True)
class PlannedExperiment:
    """Plans of a deferral experiment, before or after they are written.

    Attributes:
        dataset_name: Full name of the dataset, `DatasetXXX_Name`.
        plans_file: The plans file; its stem is the name of the plans.
        deferral: The `"deferral"` block, and its differences from the defaults if an existing one was kept.
    """

    dataset_name: str
    plans_file: Path
    deferral: DeferralBlock

    @property
    def plans_name(self) -> str:
        """The plans' name for `-p` and `-plans_name`."""
        return self.plans_file.stem


class ConfigurationData(NamedTuple):
    """The preprocessed data of a planned configuration.

    Attributes:
        configuration: Name of the configuration.
        shape: Its patch and batch size, as text.
        folder: The folder of its preprocessed data; it need not exist.
        num_cases: Number of training cases of the dataset.
        num_missing: How many of them have no complete files in the folder.
    """

    configuration: str
    shape: str
    folder: Path
    num_cases: int
    num_missing: int


def check_request(
    dataset_name_or_id: str | int,
    *,
    planner: str = DEFAULT_PLANNER,
    plans_name: str | None = None,
    num_experts: int | None = None,
    experts: str | Sequence[str] | None = None,
    overwrite_deferral: bool = False,
) -> PlannedExperiment:
    """Check a request before anything is computed or written; arguments as in :func:`plan_deferral_experiment`.

    Raises:
        InputError: For an unknown planner, for nnUNet_n_proc_DA below 1 (nnU-Net cannot plan then), and as in
            :func:`nnunetv2_deferral.planners.deferral.settle_deferral_block`.
        RuntimeError: Raised by nnU-Net for an unknown dataset id.
    """
    if planner not in PLANNERS:
        raise InputError(f"unknown planner {planner!r}; known planners: {', '.join(PLANNERS)}")
    if get_allowed_n_proc_DA() < 1:
        raise InputError(
            f"nnUNet_n_proc_DA is {get_allowed_n_proc_DA()}, but nnU-Net's planning requires at least 1. Set it for "
            f"this command: nnUNet_n_proc_DA=1 {COMMAND} ..."
        )
    dataset_name = full_dataset_name(dataset_name_or_id)
    plans_file = Path(nnUNet_preprocessed, dataset_name, f"{plans_name or PLANNERS[planner].default_plans_name}.json")
    block = settle_deferral_block(
        plans_file,
        num_experts=num_experts,
        experts=experts,
        raters=declared_raters(read_dataset_json(Path(nnUNet_raw, dataset_name, "dataset.json"))),
        overwrite=overwrite_deferral,
    )
    return PlannedExperiment(dataset_name=dataset_name, plans_file=plans_file, deferral=block)


def plan_deferral_experiment(
    dataset_name_or_id: str | int,
    *,
    planner: str = DEFAULT_PLANNER,
    plans_name: str | None = None,
    num_experts: int | None = None,
    experts: str | Sequence[str] | None = None,
    overwrite_deferral: bool = False,
    gpu_memory_target_in_gb: float | None = None,
    overwrite_target_spacing: Sequence[float] | None = None,
) -> PlannedExperiment:
    """Plan a deferral experiment; extracts the dataset's fingerprint first if there is none.

    Args:
        dataset_name_or_id: A dataset in nnUNet_raw.
        planner: Name of a planner in :data:`nnunetv2_deferral.planners.PLANNERS`.
        plans_name: Name of the plans; None for the planner's default.
        num_experts: Number of experts J; None for that of existing plans of this name, else the number of the
            dataset's raters, else 3.
        experts: Name of a set of simulated experts, or a list of the dataset's raters; None for all raters of the
            dataset, or if it has none, for the default set of that size.
        overwrite_deferral: Replace an existing `"deferral"` block by the defaults instead of keeping it.
        gpu_memory_target_in_gb: GPU memory to plan for in GB; None for the planner's default.
        overwrite_target_spacing: Target spacing of 3d_fullres, three floats; None for nnU-Net's choice.

    Raises:
        InputError: See :func:`check_request`.
    """
    asked: dict[str, Any] = {"num_experts": num_experts, "experts": experts, "overwrite_deferral": overwrite_deferral}
    planned = check_request(dataset_name_or_id, planner=planner, plans_name=plans_name, **asked)
    if not (planned.plans_file.parent / "dataset_fingerprint.json").is_file():
        extract_fingerprint_dataset(convert_dataset_name_to_id(planned.dataset_name), clean=False, verbose=False)
    plan_experiment_dataset(
        planned.dataset_name,
        partial(PLANNERS[planner], **asked),
        gpu_memory_target_in_gb=gpu_memory_target_in_gb,
        overwrite_target_spacing=overwrite_target_spacing,
        overwrite_plans_name=planned.plans_name,
    )
    return planned


def configuration_data(planned: PlannedExperiment) -> list[ConfigurationData]:
    """The configurations of the plans and the state of their preprocessed data."""
    plans = PlansManager(str(planned.plans_file))
    raw = Path(nnUNet_raw, planned.dataset_name)
    cases = get_filenames_of_train_images_and_targets(str(raw), read_dataset_json(raw / "dataset.json"))
    found = []
    for name in plans.available_configurations:
        configuration = plans.get_configuration(name)
        folder = planned.plans_file.parent / configuration.data_identifier
        shape = f"patch {'x'.join(map(str, configuration.patch_size))}, batch {configuration.batch_size}"
        num_missing = sum(not _is_preprocessed(folder, case) for case in cases)
        found.append(ConfigurationData(name, shape, folder, len(cases), num_missing))
    return found


def preprocess_missing(
    planned: PlannedExperiment,
    *,
    configurations: Sequence[str] | None = None,
    num_processes: Sequence[int] | None = None,
) -> list[str]:
    """Preprocess the configurations whose data is missing or incomplete, with nnU-Net's function.

    Args:
        planned: The plans.
        configurations: The configurations; None for all. As in nnU-Net, standard ones that the plans lack are skipped.
        num_processes: One number, or one for each of `configurations`; None for nnU-Net's default (8, or 4 for
            3d_fullres), limited to nnUNet_def_n_proc.

    Returns:
        The configurations that were preprocessed.

    Raises:
        InputError: For a configuration unknown to both the plans and nnU-Net, or an invalid number of processes.
    """
    available = [data.configuration for data in configuration_data(planned)]
    wanted = available if configurations is None else list(configurations)
    unknown = [name for name in wanted if name not in (*available, *_STOCK_CONFIGURATIONS)]
    if unknown:
        raise InputError(
            f"{planned.plans_name} has no configuration {', '.join(unknown)}; available: {', '.join(available)}"
        )
    dataset_id = convert_dataset_name_to_id(planned.dataset_name)
    done = []
    for name, processes in zip(wanted, _processes(wanted, num_processes), strict=True):
        # Checked again each time, because configurations may share a folder.
        data = {data.configuration: data for data in configuration_data(planned)}.get(name)
        if data is not None and data.num_missing:
            preprocess_dataset(dataset_id, planned.plans_name, [name], [processes])
            done.append(name)
    return done


def summary(planned: PlannedExperiment) -> str:
    """A summary of the plans and the next commands, for the terminal."""
    experts = planned.deferral.settings.expert_names
    lines = [
        f"{planned.dataset_name}: {planned.plans_name} for {len(experts)} expert(s): {', '.join(experts)}",
        f"  objective {planned.deferral.settings.objective}",
        f"  written to {planned.plans_file}",
    ]
    if planned.deferral.kept:
        lines.append('  kept the existing "deferral" block (--overwrite_deferral replaces it by the defaults):')
        lines.extend(f"    {difference}" for difference in planned.deferral.kept)
    configurations = configuration_data(planned)
    for data in configurations:
        state = f"{data.num_cases} cases ready"
        if data.num_missing:
            state = f"{data.num_missing} of {data.num_cases} cases not yet preprocessed"
        lines.append(f"  {data.configuration}: {data.shape}; data in {data.folder.name}, {state}")
    raw = Path(nnUNet_raw, planned.dataset_name)
    if remark := undeclared_raters(raw, declared_raters(read_dataset_json(raw / "dataset.json"))):
        lines.append(f"  WARNING: {remark}")
    lines.append("Next:")
    lines.extend(f"  {command}" for command in _next_commands(planned, configurations))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.plan_experiment()
    given = parser.parse_args(arguments)
    if not given.preprocess and (given.c or given.np):
        parser.error("-c and -np require --preprocess")
    asked: dict[str, Any] = {"planner": given.pl, "plans_name": given.overwrite_plans_name}
    asked |= {key: getattr(given, key) for key in ("num_experts", "experts", "overwrite_deferral")}
    if given.experts is not None and len(given.experts) == 1 and given.experts[0] in EXPERT_SETS:
        asked["experts"] = given.experts[0]
    try:
        for dataset in given.d:
            check_request(dataset, **asked)
        if given.preprocess:
            _processes(given.c or _STOCK_CONFIGURATIONS, given.np)
    except InputError as error:
        parser.error(str(error))
    summaries = []
    for dataset in given.d:
        planned = plan_deferral_experiment(
            dataset,
            **asked,
            gpu_memory_target_in_gb=given.gpu_memory_target,
            overwrite_target_spacing=given.overwrite_target_spacing,
        )
        if given.preprocess:
            preprocess_missing(planned, configurations=given.c, num_processes=given.np)
        summaries.append(summary(planned))
    print("\n" + "\n\n".join(summaries))


def _is_preprocessed(folder: Path, case: str) -> bool:
    """Whether a case's files are complete. The pickle is written last; old versions wrote npz instead of b2nd."""
    is_blosc2 = (folder / f"{case}.b2nd").is_file() and (folder / f"{case}_seg.b2nd").is_file()
    return (folder / f"{case}.pkl").is_file() and (is_blosc2 or (folder / f"{case}.npz").is_file())


def _processes(configurations: Sequence[str], given: Sequence[int] | None) -> list[int]:
    if given is None:
        return [max(1, min(_NUM_PROCESSES.get(name, 4), default_num_processes)) for name in configurations]
    if any(number < 1 for number in given):
        raise InputError(f"the number of processes (-np) must be at least 1, got {list(given)}")
    if len(given) not in (1, len(configurations)):
        raise InputError(f"-np has {len(given)} values for {len(configurations)} configurations (-c)")
    return list(given) * (len(configurations) if len(given) == 1 else 1)


def _next_commands(planned: PlannedExperiment, configurations: Sequence[ConfigurationData]) -> list[str]:
    dataset_id = convert_dataset_name_to_id(planned.dataset_name)
    commands = []
    folders: dict[Path, str] = {}
    for data in configurations:
        if data.num_missing:
            folders.setdefault(data.folder, data.configuration)
    if folders:
        missing = " ".join(folders.values())
        commands.append(f"nnUNetv2_preprocess -d {dataset_id} -plans_name {planned.plans_name} -c {missing}")
    trainers = str(trainers_folder())
    if trainers not in (nnUNet_extTrainer.get() or "").split(os.pathsep):
        commands.append(f"export nnUNet_extTrainer={trainers}")
    names = [data.configuration for data in configurations]
    device = "" if torch.cuda.is_available() else " -device cpu"
    name = "3d_fullres" if "3d_fullres" in names else names[0]
    commands.append(f"nnUNetv2_train {dataset_id} {name} 0 -tr nnUNetTrainerDeferral -p {planned.plans_name}{device}")
    return commands
