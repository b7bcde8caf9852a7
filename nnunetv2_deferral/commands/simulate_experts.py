"""``nnUNetv2_deferral_simulate_experts``: write what simulated experts answer for every case of a label folder.

The answers are those that all methods under comparison are given at evaluation. They depend on the labels, the
profiles, the band's width and (seed, case, expert) alone. With more than one process, cases are shared out among
spawned workers, each of which holds one label map and its answers at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import (
    ERROR_MODEL_NAMES,
    EXPERT_SETS,
    ExpertProfile,
    default_expert_set,
    expert_set,
)
from nnunetv2_deferral.expert_sim.simulate import simulate_case
from nnunetv2_deferral.expert_sim.zones import DEFAULT_BOUNDARY_WIDTH
from nnunetv2_deferral.experts import experts_to_json, names_of
from nnunetv2_deferral.files import read_json, written_whole
from nnunetv2_deferral.labels import unknown_labels
from nnunetv2_deferral.names import check_expert_names
from nnunetv2_deferral.processes import map_cases

logger = logging.getLogger(__name__)

RECORD_NAME = "simulation.json"
"""The file in the output folder that says how the answers beside it were made."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is the same for all cases; goes to the workers by pickle."""

    reader: type[BaseReaderWriter]
    file_ending: str
    label_values: tuple[int, ...]
    ignore_label: int | None
    profiles: tuple[ExpertProfile, ...]
    seed: int
    boundary_width: int
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
    boundary_width: int = DEFAULT_BOUNDARY_WIDTH,
    error_model: str | None = None,
    num_processes: int = 1,
    overwrite: bool = False,
) -> list[Path]:
    """Simulate experts for every label file of a folder and write their answers as ``output_folder/<expert>/<case>``.

    Files are read and written by nnU-Net's own reader, so any format it knows will do and the geometry is kept. An
    answer appears under its name only when it is complete. Region-based labels are answered voxel by voxel with the
    integers of the label files; ignored voxels keep the ignore label. Beside the answers, ``simulation.json`` records
    profiles, seed and width.

    Args:
        labels_folder: the reference label files, ``<case><file_ending>``.
        dataset_json: path of the dataset.json they belong to (nnU-Net's format; labels, file ending).
        output_folder: made if need be.
        experts: name of a set of the paper, profiles of one's own (then ``num_experts`` is not looked at), or None for
            :func:`~nnunetv2_deferral.expert_sim.profiles.default_expert_set`.
        num_experts: J, the number of experts of a named set.
        seed: with the names of case and expert, the only source of chance.
        boundary_width: depth of the boundary band on each side of a label change, in voxels.
        error_model: let all experts err in this manner instead of their profiles'.
        num_processes: worker processes; 1 works in this process.
        overwrite: replace answers that are there already.

    Returns:
        The files written, sorted.

    Raises:
        InputError: the label folder or dataset.json is missing.
        InputError: answers for these cases, or answers made in another way, are there already.
        InputError: no label files, an unusable dataset.json or expert set, or a label file with values that
            dataset.json does not know (the message names file and values). Cases done before it stay written.
    """
    if num_processes < 1:
        raise InputError(f"There must be at least one process, got {num_processes}.")
    if boundary_width < 0:
        raise InputError(f"The width of the boundary band must be at least 0 voxels, got {boundary_width}.")
    profiles = _choose_profiles(experts, num_experts, error_model)
    content = _read_dataset_json(Path(dataset_json))
    label_files = _find_label_files(Path(labels_folder), content["file_ending"])
    label_values, ignore_label = _read_label_values(content, Path(dataset_json))
    job = _Job(
        reader=_find_reader(content, label_files[0]),
        file_ending=content["file_ending"],
        label_values=label_values,
        ignore_label=ignore_label,
        profiles=profiles,
        seed=seed,
        boundary_width=boundary_width,
        output_folder=Path(output_folder),
    )
    _check_targets(job, label_files, overwrite=overwrite)
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
    (job.output_folder / RECORD_NAME).write_text(json.dumps(_record(job), indent=2) + "\n")
    logger.info("Wrote the answers of %d experts for %d cases.", len(profiles), len(label_files))
    return sorted(written)


def _choose_profiles(
    experts: str | Sequence[ExpertProfile] | None, num_experts: int, error_model: str | None
) -> tuple[ExpertProfile, ...]:
    if experts is None or isinstance(experts, str):
        profiles = expert_set(default_expert_set(num_experts) if experts is None else experts, num_experts)
    else:
        profiles = tuple(experts)
    if not profiles:
        raise InputError("there must be at least one expert to simulate")
    check_expert_names(names_of(profiles), "experts to simulate")
    if error_model is not None:
        profiles = tuple(replace(profile, error_model=error_model) for profile in profiles)
    return profiles


def _read_dataset_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no dataset.json at {path}.")
    try:
        content = read_json(path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    missing = [key for key in ("labels", "file_ending") if key not in content]
    if missing:
        raise InputError(f"{path} has no {' and no '.join(missing)}; is it a dataset.json of nnU-Net v2?")
    return content


def _read_label_values(content: dict[str, Any], path: Path) -> tuple[tuple[int, ...], int | None]:
    """The integers of the label files without the ignore label, ascending, and the ignore label or None."""
    try:
        manager = LabelManager(content["labels"], content.get("regions_class_order"))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"nnU-Net does not accept the labels of {path}: {error}") from error
    values = tuple(int(value) for value in manager.all_labels)
    if all(value == 0 for value in values):
        raise InputError(f"The labels of {path} have no foreground, so an expert has nothing to tell apart.")
    return values, manager.ignore_label


def _find_label_files(folder: Path, file_ending: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"There is no label folder at {folder}.")
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(file_ending))
    if not files:
        raise InputError(f"There are no files with ending {file_ending} in {folder}.")
    return files


def _find_reader(content: dict[str, Any], example: Path) -> type[BaseReaderWriter]:
    """nnU-Net's reader for these files; it tries readers out and prints the failures, which are kept from the user."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(content, str(example), verbose=False)
    except RuntimeError as error:
        raise InputError(f"nnU-Net has no reader for {example}.") from error


def _record(job: _Job) -> dict[str, Any]:
    experts = experts_to_json(job.profiles)
    return {"experts": experts, "seed": job.seed, "boundary_width": job.boundary_width}


def _check_targets(job: _Job, label_files: list[Path], *, overwrite: bool) -> None:
    """Refuse to write over references, and, unless asked to, over earlier answers or among answers of another kind."""
    targets = [job.target(file, profile) for file in label_files for profile in job.profiles]
    inputs = {file.resolve() for file in label_files}
    clash = next((target for target in targets if target.resolve() in inputs), None)
    if clash is not None:
        raise InputError(f"The answers would replace the labels they are made from: {clash}.")
    if overwrite:
        return
    existing = [target for target in targets if target.exists()]
    if existing:
        raise InputError(
            f"{len(existing)} of {len(targets)} files exist already, the first is {existing[0]}; "
            "ask for overwriting (--overwrite) or choose another output folder."
        )
    record = job.output_folder / RECORD_NAME
    if record.is_file() and read_json(record) != _record(job):
        raise InputError(f"{record} tells of answers made in another way; choose another output folder.")


def _simulate_case(job: _Job, label_file: Path) -> list[Path]:
    """Write all experts' answers for one case; returns the files."""
    reader = job.reader()
    segmentation, properties = reader.read_seg(str(label_file))
    if segmentation.ndim != 4 or segmentation.shape[0] != 1:
        raise InputError(f"{label_file} is no label map of one channel: nnU-Net reads shape {segmentation.shape}.")
    if unknown := unknown_labels(segmentation, (*job.label_values, job.ignore_label)):
        raise InputError(f"{label_file} holds labels that are not in dataset.json: {unknown}.")
    case = label_file.name.removesuffix(job.file_ending)
    answers = simulate_case(
        torch.from_numpy(segmentation[0].astype(np.int16)),
        job.profiles,
        job.label_values,
        seed=job.seed,
        case=case,
        boundary_width=job.boundary_width,
        ignore_label=job.ignore_label,
    )
    targets = [job.target(label_file, profile) for profile in job.profiles]
    for answer, target in zip(answers.numpy(), targets, strict=True):
        with written_whole(target.parent) as scratch:
            reader.write_seg(answer, str(scratch / target.name), properties)
    return targets


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Simulate experts for a folder of reference labels. Writes OUT/expert1/<case>, OUT/expert2/<case>, "
        "... in the format of the labels. The same call gives the same answers, whatever the number of processes."
    )
    parser.add_argument("-i", metavar="LABELS", required=True, help="folder with the reference label files")
    parser.add_argument("-djfile", metavar="DATASET_JSON", required=True, help="the dataset.json they belong to")
    parser.add_argument("-o", metavar="OUT", required=True, help="output folder, for instance expertsTr of the dataset")
    sets = f"set of expert profiles: {', '.join(EXPERT_SETS)}. Default: standard up to 3 experts, else scalability"
    parser.add_argument("-experts", metavar="SET", help=sets)
    parser.add_argument("-num_experts", metavar="J", type=int, default=3, help="number of experts. Default: 3")
    parser.add_argument("-seed", type=int, default=0, help="another seed gives other errors. Default: 0")
    parser.add_argument("-np", metavar="N", type=int, default=1, help="number of processes. Default: 1")
    width = f"depth of the boundary band on each side of a label change. Default: {DEFAULT_BOUNDARY_WIDTH}"
    parser.add_argument("-boundary_width", metavar="VOXELS", type=int, default=DEFAULT_BOUNDARY_WIDTH, help=width)
    manner = "manner in which all experts err. Default: independent"
    parser.add_argument("-error_model", choices=ERROR_MODEL_NAMES, help=manner)
    parser.add_argument("--overwrite", action="store_true", help="replace answers that are there already")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends with one line on stderr and exit code 2."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        chosen = vars(options)
        folders = chosen.pop("i"), chosen.pop("djfile"), chosen.pop("o")
        simulate_experts_for_folder(*folders, num_processes=chosen.pop("np"), **chosen)
    except InputError as error:
        parser.error(str(error))
