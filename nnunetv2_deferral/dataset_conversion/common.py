"""Writing of published datasets in nnU-Net's format, checked beforehand and atomic.

Each converter finds the files of its dataset and describes them as cases. All cases are checked before anything is
written, with one error for all problems; then they are written to a temporary folder in nnUNet_raw, which is renamed
when it is complete. Cases may be processed in parallel, each process holding one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import SimpleITK as sitk
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.processes import check_processes, map_cases

logger = logging.getLogger(__name__)

_FAULTS_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of a dataset's dataset.json.

    Attributes:
        name: Last part of the folder's name, `DatasetXXX_<name>`.
        channel_names: Names by channel index, which determine nnU-Net's intensity normalisation.
        labels: Values by name, including background.
        file_ending: File ending of images and labels.
        reference: Source of the dataset.
        licence: Its licence.
        num_published: Number of training cases in the complete dataset.
        experts: Names of the folders in expertsTr; `"experts"` is omitted if empty.
        reader: Name of nnU-Net's reader; None for nnU-Net's choice by file ending.
    """

    name: str
    channel_names: Mapping[str, str]
    labels: Mapping[str, int]
    file_ending: str
    reference: str
    licence: str
    num_published: int
    experts: tuple[str, ...] = ()
    reader: str | None = None


class Case(Protocol):
    """A case to be converted; pickled for worker processes."""

    @property
    def split(self) -> str:
        """`"Tr"` or `"Ts"`."""

    def faults(self) -> list[str]:
        """All problems of the case's files, each naming file and value; may raise an InputError instead."""

    def write(self, folder: Path) -> None:
        """Write the case's files to a dataset's folder."""


def write_dataset(
    info: DatasetInfo, cases: Sequence[Case], nnunet_raw: Path, dataset_id: int, *, num_processes: int = 1
) -> Path:
    """Check all cases, then write them and dataset.json.

    Args:
        info: The content of dataset.json.
        cases: Training and test cases, with distinct names within each split.
        nnunet_raw: Folder of raw datasets, created if necessary.
        dataset_id: From 1 to 999.
        num_processes: Worker processes; 1 runs in this process.

    Returns:
        The dataset's folder.

    Raises:
        InputError: If a dataset with this id exists (nothing is overwritten), the id or the number of processes is out
            of range, or cases have problems; the message lists the problems.
    """
    check_processes(num_processes)
    check_target(nnunet_raw, dataset_id)
    num_training = sum(case.split == "Tr" for case in cases)
    if num_training != info.num_published:
        logger.warning("Found %d training cases, but %d are published.", num_training, info.num_published)
    folder_name = f"Dataset{dataset_id:03d}_{info.name}"
    _for_all(_faults_of, cases, num_processes, "Checking")
    with written_whole(nnunet_raw) as scratch:
        folder = scratch / folder_name
        folder.mkdir()
        _for_all(partial(_write, folder=folder), cases, num_processes, "Converting")
        generate_dataset_json(
            str(folder),
            channel_names=dict(info.channel_names),
            labels=dict(info.labels),
            num_training_cases=num_training,
            file_ending=info.file_ending,
            dataset_name=info.name,
            reference=info.reference,
            license=info.licence,
            converted_by="nnunetv2_deferral",
            overwrite_image_reader_writer=info.reader,
            **({"experts": list(info.experts)} if info.experts else {}),
        )
    logger.info("Wrote %d training and %d test cases.", num_training, len(cases) - num_training)
    return nnunet_raw / folder_name


def raise_faults(faults: Sequence[str]) -> None:
    """Raise an error that lists the problems, if there are any.

    Raises:
        InputError: If there are problems; at most 20 are listed.
    """
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        more = f"; and {len(faults) - _FAULTS_LISTED} more" if len(faults) > _FAULTS_LISTED else ""
        raise InputError(f"{len(faults)} problems: {'; '.join(faults[:_FAULTS_LISTED])}{more}")


def require_folder(folder: Path) -> None:
    """Refuse a path that is not a folder.

    Raises:
        InputError: Naming the path.
    """
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist")


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, except hidden files and those that macOS adds to archives (`__MACOSX`)."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield file


def check_target(nnunet_raw: Path, dataset_id: int) -> None:
    """Refuse the id of a dataset that exists.

    Raises:
        InputError: If it does, or the id is not between 1 and 999.
    """
    if not 1 <= dataset_id <= 999:
        raise InputError(f"the dataset id must be between 1 and 999, got {dataset_id}")
    # nnU-Net finds datasets by id, so a second dataset with the same id would make both unusable.
    existing = sorted(nnunet_raw.glob(f"Dataset{dataset_id:03d}*"))
    if existing:
        raise InputError(f"a dataset with id {dataset_id} already exists: {existing[0]}")


def _for_all(work: Callable[[Case], list[str]], cases: Sequence[Case], num_processes: int, description: str) -> None:
    """Apply a function to every case, and raise all reported problems in one error."""
    found = map_cases(work, cases, num_processes, description=description, initializer=_use_one_thread)
    faults = [fault for of_case in found for fault in of_case]
    raise_faults(faults)


def _faults_of(case: Case) -> list[str]:
    try:
        return case.faults()
    except InputError as error:
        return [str(error)]


def _write(case: Case, folder: Path) -> list[str]:
    try:
        case.write(folder)
    except InputError as error:  # the file has changed, or its header can be read but not its pixels
        return [str(error)]
    return []


def _use_one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
