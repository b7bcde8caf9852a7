"""`nnUNetv2_deferral_simulate_experts`: write the answers of simulated experts for all cases of a label folder.

The evaluation gives the same answers to all methods. They depend only on the labels, the profiles, the width of the
boundary band and (seed, case, expert). With more than one process, cases are distributed among spawned workers, each of
which holds one label map and its answers at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from typing_extensions import TypedDict

from nnunetv2_deferral.answers import SIMULATION_NAME
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import DatasetFiles, read_dataset_json
from nnunetv2_deferral.defaults import BOUNDARY_WIDTH
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import (
    ExpertProfile,
    default_expert_set,
    expert_set,
    with_error_model,
)
from nnunetv2_deferral.expert_sim.simulate import simulate_case
from nnunetv2_deferral.expert_sim.zones import remark_on_band, spacing_in_voxels_of, warn_once
from nnunetv2_deferral.experts import experts_to_json, names_of
from nnunetv2_deferral.files import read_json, write_json
from nnunetv2_deferral.image_files import write_labels
from nnunetv2_deferral.names import check_expert_names
from nnunetv2_deferral.parts import Part
from nnunetv2_deferral.processes import check_processes, map_cases
from nnunetv2_deferral.schema import Text, read_validated_json

logger = logging.getLogger(__name__)


class _Profiles(TypedDict):
    experts: list[dict[Text, Any]]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Parameters common to all cases, pickled for the workers."""

    files: DatasetFiles
    profiles: tuple[ExpertProfile, ...]
    seed: int
    boundary_width: int
    expert_voxel_mm: float | None
    output_folder: Path

    def target(self, label_file: Path, profile: ExpertProfile) -> Path:
        return self.output_folder / profile.name / label_file.name


def simulate_experts_for_folder(
    labels_folder: str | Path,
    dataset_json: str | Path,
    output_folder: str | Path,
    *,
    experts: str | Sequence[ExpertProfile] | None = None,
    num_experts: int = 3,
    seed: int = 0,
    boundary_width: int = BOUNDARY_WIDTH,
    expert_voxel_mm: float | None = None,
    error_model: str | None = None,
    num_processes: int = 1,
    part: Part = Part(),  # noqa: B008 - cannot be changed
    overwrite: bool = False,
) -> list[Path]:
    """Simulate experts for every label file of a folder and write their answers as `output_folder/<expert>/<case>`.

    Files are read and written by nnU-Net's readers, so all its formats are supported and the geometry is kept. Answers
    are written atomically. Region-based labels are answered voxel by voxel with the integers of the label files;
    ignored voxels keep the ignore label. `simulation.json` in the output folder records profiles, seed and width.

    Args:
        labels_folder: Folder of the reference label files, `<case><file_ending>`.
        dataset_json: Path of the corresponding dataset.json (nnU-Net's format; labels, file ending).
        output_folder: Output folder; created if necessary.
        experts: Name of a set of the paper, your own profiles, a JSON file `{"experts": [...]}` of profiles as in the
            plans (its name ends with .json), or None for
            :func:`~nnunetv2_deferral.expert_sim.profiles.default_expert_set`.
        num_experts: J, the number of experts of a named set; ignored for profiles.
        seed: Random seed; together with the names of case and expert it determines the errors.
        boundary_width: Depth of the boundary band on each side of a label change, in voxels.
        expert_voxel_mm: Edge of these voxels, in which the correlation length of errors is measured, too; None for
            those of the label files.
        error_model: Error model of all experts; None for those of their profiles.
        num_processes: Number of worker processes; 1 runs in this process.
        part: The part of the cases to simulate; parts may be simulated at the same time and need not be merged.
        overwrite: Replace existing answers.

    Returns:
        The files written, sorted.

    Raises:
        InputError: If the label folder or dataset.json is missing.
        InputError: If answers for these cases, or answers simulated with other parameters, exist in the output folder.
        InputError: If there are no label files, dataset.json or the expert set is invalid, or a label file has values
            that are not in dataset.json (the message names file and values). Answers of earlier cases are kept.
    """
    check_processes(num_processes)
    if boundary_width < 0:
        raise InputError(f"the width of the boundary band must be at least 0 voxels, got {boundary_width}")
    if expert_voxel_mm is not None and not 0 < expert_voxel_mm < math.inf:
        raise InputError(f"the edge of the experts' voxels must be above 0 mm, got {expert_voxel_mm}")
    profiles = _choose_profiles(experts, num_experts, error_model)
    file_ending = read_dataset_json(Path(dataset_json))["file_ending"]
    label_files = _find_label_files(Path(labels_folder), file_ending)
    files = DatasetFiles.of(Path(dataset_json), label_files[0])
    label_files = list(part.cases(label_files))
    if not any(files.label_values):
        raise InputError(f"the labels of {dataset_json} have no foreground, so experts cannot be simulated")
    job = _Job(
        files=files,
        profiles=profiles,
        seed=seed,
        boundary_width=boundary_width,
        expert_voxel_mm=expert_voxel_mm,
        output_folder=Path(output_folder),
    )
    _check_targets(job, label_files, overwrite=overwrite)
    # First, so that a call that is killed can be repeated, see `_check_targets`.
    write_json(_record(job), job.output_folder / SIMULATION_NAME)
    for profile in profiles:
        (job.output_folder / profile.name).mkdir(parents=True, exist_ok=True)
    found = map_cases(
        partial(_simulate_case, job),
        label_files,
        num_processes,
        description="Simulating experts",
        initializer=partial(torch.set_num_threads, 1),
    )
    written = [target for targets in found for target in targets]
    logger.info("Wrote the answers of %d experts for %d cases.", len(profiles), len(label_files))
    return sorted(written)


def _choose_profiles(
    experts: str | Sequence[ExpertProfile] | None, num_experts: int, error_model: str | None
) -> tuple[ExpertProfile, ...]:
    if isinstance(experts, str) and experts.endswith(".json"):
        profiles = _read_profiles(Path(experts))
    elif experts is None or isinstance(experts, str):
        profiles = expert_set(default_expert_set(num_experts) if experts is None else experts, num_experts)
    else:
        profiles = tuple(experts)
    if not profiles:
        raise InputError("the number of experts to simulate must be at least 1, got 0")
    check_expert_names(names_of(profiles), "experts to simulate")
    return with_error_model(profiles, error_model)


def _read_profiles(file: Path) -> tuple[ExpertProfile, ...]:
    content = cast(_Profiles, read_validated_json(file, _Profiles))
    if not content["experts"]:
        raise InputError(f"{file} has no experts")
    try:
        return tuple(map(ExpertProfile.from_dict, content["experts"]))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _find_label_files(folder: Path, file_ending: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"the folder of labels {folder} does not exist")
    files = sorted(file for file in folder.glob(f"*{file_ending}") if file.is_file() and file.name[0] != ".")
    if not files:
        raise InputError(f"{folder} has no files with the ending {file_ending}")
    return files


def _record(job: _Job) -> dict[str, Any]:
    experts = experts_to_json(job.profiles)
    voxel = {} if job.expert_voxel_mm is None else {"expert_voxel_mm": job.expert_voxel_mm}
    return {"experts": experts, "seed": job.seed, "boundary_width": job.boundary_width, **voxel}


def _check_targets(job: _Job, label_files: list[Path], *, overwrite: bool) -> None:
    """Refuse to overwrite references and, without `overwrite`, existing answers, or to mix answers of two kinds."""
    targets = [job.target(file, profile) for file in label_files for profile in job.profiles]
    inputs = {file.resolve() for file in label_files}
    clash = next((target for target in targets if target.resolve() in inputs), None)
    if clash is not None:
        raise InputError(f"the answers would overwrite the labels they are simulated from: {clash}")
    if overwrite:
        return
    existing = [target for target in targets if target.exists()]
    record = job.output_folder / SIMULATION_NAME
    is_recorded = record.is_file()
    is_ours = is_recorded and read_json(record) == _record(job)
    if existing and not (is_ours and len(existing) < len(targets)):  # of a call that was killed
        raise InputError(
            f"{len(existing)} of {len(targets)} files already exist, the first being {existing[0]}; "
            "replace them (--overwrite) or choose another output folder (-o)"
        )
    if is_recorded and not is_ours:
        raise InputError(f"{record} records answers simulated with other parameters; choose another output folder (-o)")


def _simulate_case(job: _Job, label_file: Path) -> list[Path]:
    """Write the answers of all experts for a case; returns the files."""
    labels, properties = job.files.read(label_file)
    case = label_file.name.removesuffix(job.files.file_ending)
    warn_once(remark_on_band(job.boundary_width, job.expert_voxel_mm, properties["spacing"]))
    answers = simulate_case(
        torch.from_numpy(labels.astype(np.int16)),
        job.profiles,
        job.files.label_values,
        seed=job.seed,
        case=case,
        boundary_width=job.boundary_width,
        spacing=spacing_in_voxels_of(job.expert_voxel_mm, properties["spacing"]),
        ignore_label=job.files.label_manager.ignore_label,
    )
    targets = [job.target(label_file, profile) for profile in job.profiles]
    for answer, target in zip(answers.numpy(), targets, strict=True):
        write_labels(answer, target, job.files.reader, properties)
    return targets


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.simulate_experts()
    options = parser.parse_args(arguments)
    try:
        chosen = vars(options)
        folders = chosen.pop("i"), chosen.pop("djfile"), chosen.pop("o")
        part = Part(number=chosen.pop("part_id"), of=chosen.pop("num_parts"))
        simulate_experts_for_folder(*folders, part=part, num_processes=chosen.pop("np"), **chosen)
    except InputError as error:
        parser.error(str(error))
