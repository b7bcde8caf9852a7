"""`nnUNetv2_deferral_preprocess_experts`: check and preprocess the masks of a dataset's raters.

The first training does the same; this command finds faults earlier and can use more processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_dataset_json, read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import full_dataset_name, plans_names
from nnunetv2_deferral.nnunet.rater_data import dataset_raters, preprocess_raters, rater_masks
from nnunetv2_deferral.raters import FOLDER


def preprocess_experts(
    dataset_name_or_id: str | int,
    *,
    plans_name: str = "nnUNetPlans",
    configurations: Sequence[str] | None = None,
    num_processes: int = 1,
) -> list[str]:
    """Check and preprocess the raters' masks of a dataset.

    Args:
        dataset_name_or_id: A dataset in nnUNet_raw, planned and preprocessed.
        plans_name: Name of the plans.
        configurations: Configurations of the plans; None for all that are preprocessed.
        num_processes: Number of worker processes.

    Returns:
        Lines of text: a heading, one for each rater and one for each configuration.

    Raises:
        InputError: If the dataset declares no experts or is not preprocessed, or if masks are invalid; all faults are
            listed.
    """
    name = full_dataset_name(dataset_name_or_id)
    base = Path(nnUNet_preprocessed, name)
    plans_file = base / f"{plans_name}.json"
    if not plans_file.is_file():
        existing = plans_names(base)
        there = f"existing plans (-p): {', '.join(existing)}" if existing else "plan and preprocess it first"
        raise InputError(f"{name} has no plans {plans_name} ({plans_file} is missing); {there}")
    plans = PlansManager(read_plans_json(plans_file))
    dataset_json = read_dataset_json(base / "dataset.json")
    declared = dataset_raters(name, dataset_json)
    if not declared:
        raise InputError(
            f'dataset.json of {name} declares no experts ("experts": ["ann", ...], one folder each in {FOLDER})'
        )
    masks = rater_masks(plans, dataset_json, declared)
    unknown = sorted(set(configurations or ()) - set(plans.available_configurations))
    if unknown:
        raise InputError(f"{plans_name} of {name} has no configuration {', '.join(unknown)}")
    folders = {
        configuration: base / plans.get_configuration(configuration).data_identifier
        for configuration in configurations or plans.available_configurations
    }
    missing = [configuration for configuration, folder in folders.items() if not folder.is_dir()]
    if (configurations and missing) or len(missing) == len(folders):
        raise InputError(f"{name} is not preprocessed for {', '.join(missing)}; run nnUNetv2_preprocess first")
    lines = [f"  {expert}: {len(masks.cases(expert))} masks" for expert in declared if masks is not None]
    for configuration in (each for each in folders if each not in missing):
        done = preprocess_raters(
            masks,
            declared=declared,
            preprocessed=folders[configuration],
            plans_manager=plans,
            configuration=configuration,
            num_processes=num_processes,
        )
        lines.append(f"  {configuration}: {len(done)} cases preprocessed, the others were up to date")
    said = "match their images" if masks is not None else "are preprocessed; the raw dataset is not on this machine"
    return [f"{name}: the experts' masks {said}", *lines]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives a message on stderr and exit code 2."""
    parser = parsers.preprocess_experts()
    given = parser.parse_args(arguments)
    try:
        for dataset in given.d:
            how = {"plans_name": given.p, "configurations": given.c, "num_processes": given.np}
            print("\n".join(preprocess_experts(dataset, **how)), flush=True)
    except InputError as error:
        parser.error(str(error))
