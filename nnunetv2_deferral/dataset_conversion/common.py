"""Writing a published dataset as an nnU-Net dataset: everything is looked at first, and all or nothing appears.

Each converter finds the files of its dataset and describes them as cases. Here all cases are checked before anything
is written, with one error for all their faults; then they are written into a scratch folder inside nnUNet_raw, which
takes the dataset's name when it is complete. Several processes share out the cases, each holding one at a time.
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
from nnunetv2_deferral.processes import map_cases

logger = logging.getLogger(__name__)

_FAULTS_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What dataset.json says of a dataset.

    Attributes:
        name: Last part of the folder's name, `DatasetXXX_<name>`.
        channel_names: By channel index; they choose nnU-Net's intensity normalisation.
        labels: Values by name, with background.
        file_ending: Of images and labels.
        reference: Where the dataset is published.
        licence: Its licence.
        num_published: Training cases of the complete dataset.
        experts: Names of the folders in expertsTr; none leaves `"experts"` out.
        reader: Name of nnU-Net's reader, None for its choice by file ending.
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
    """A case to be converted; goes to the worker processes by pickle."""

    @property
    def split(self) -> str:
        """`"Tr"` or `"Ts"`."""

    def faults(self) -> list[str]:
        """All that is wrong with the case's files, each naming file and value; may raise an InputError instead."""

    def write(self, folder: Path) -> None:
        """Write the case's files into a dataset's folder."""


def write_dataset(
    info: DatasetInfo, cases: Sequence[Case], nnunet_raw: Path, dataset_id: int, *, num_processes: int = 1
) -> Path:
    """Check all cases, then write them and dataset.json.

    Args:
        info: What dataset.json shall say.
        cases: Training and test cases, all with different names within their split.
        nnunet_raw: Folder of raw datasets, made if need be.
        dataset_id: From 1 to 999.
        num_processes: Worker processes; 1 works in this process.

    Returns:
        The dataset's folder.

    Raises:
        InputError: If there is a dataset with this id; nothing is overwritten.
        InputError: For an impossible id or number of processes, and for faulty cases; names all their faults.
    """
    if num_processes < 1:
        raise InputError(f"there must be at least one process, got {num_processes}")
    _check_target(nnunet_raw, dataset_id)
    num_training = sum(case.split == "Tr" for case in cases)
    if num_training != info.num_published:
        logger.warning("%d training cases were found, %d are published.", num_training, info.num_published)
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
    """Raise an error that lists the faults, if there are any.

    Raises:
        InputError: If there are faults.
    """
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        more = f"; and {len(faults) - _FAULTS_LISTED} more" if len(faults) > _FAULTS_LISTED else ""
        raise InputError(f"{len(faults)} faults: {'; '.join(faults[:_FAULTS_LISTED])}{more}")


def require_folder(folder: Path) -> None:
    """Refuse what is not a folder.

    Raises:
        InputError: If there is none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, without hidden ones and what macOS puts into archives (`__MACOSX`, `._x`)."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield file


def _check_target(nnunet_raw: Path, dataset_id: int) -> None:
    if not 1 <= dataset_id <= 999:
        raise InputError(f"the dataset id must be between 1 and 999, got {dataset_id}")
    # nnU-Net finds datasets by their id, so a second one with another name would make both unusable.
    existing = sorted(nnunet_raw.glob(f"Dataset{dataset_id:03d}*"))
    if existing:
        raise InputError(f"there is a dataset with id {dataset_id} already: {existing[0]}")


def _for_all(work: Callable[[Case], list[str]], cases: Sequence[Case], num_processes: int, description: str) -> None:
    """Do some work for every case, in the order of the cases; raises all faults it reports together."""
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
    except InputError as error:  # a file that has changed, or pixels that cannot be read although the header can
        return [str(error)]
    return []


def _use_one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
