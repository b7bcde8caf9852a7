"""AMOS22: 15 abdominal organs in CT (task 1) or in CT and MRI (task 2).

Expected files:

    dataset.json                      "labels", "training", "validation", "test"
    imagesTr/amos_0001.nii.gz ...     labelsTr/amos_0001.nii.gz ...
    imagesVa/ ...                     labelsVa/ ...
    imagesTs/ ...                     without labels

Sources: the readme of the published data (Zenodo records 7155725 and 7262581) and nnU-Net's own
`Dataset218_Amos2022_task1.py` and `Dataset219_Amos2022_task2.py`. As in these, dataset.json lists the cases as
`{"image": "./imagesTr/amos_0001.nii.gz", ...}`, validation cases are added to the training set, numbers up to 500 are
CT ("less than 500" in the readme), labels have their published names, and the reader is nnU-Net's with reorientation.

Assumed without access to the data: labels of test cases were not published; if `labelsTs` exists, it is converted too.
nnU-Net's script for task 1 stops at number 410 in the training and 409 in the validation set, which is equivalent if no
MRI case has a number up to 500.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, raise_faults, require_folder
from nnunetv2_deferral.dataset_conversion.volumes import FILE_ENDING, VolumeCase
from nnunetv2_deferral.defaults import AMOS22_TASKS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json

logger = logging.getLogger(__name__)

LAST_CT = 500

_FOLDERS = {"training": "Tr", "validation": "Va", "test": "Ts"}
_CASE = re.compile(r"amos_(\d{4})\.nii\.gz")
_INFO = DatasetInfo(
    name="",
    channel_names={},
    labels={},
    file_ending=FILE_ENDING,
    reference="https://zenodo.org/records/7262581",
    licence="see https://zenodo.org/records/7262581",
    num_published=0,
    reader="NibabelIOWithReorient",
)
_TASK_INFO: dict[int, dict[str, Any]] = {
    1: {"name": "AMOS22Task1", "channel_names": {"0": "CT"}, "num_published": 300},
    2: {"name": "AMOS22Task2", "channel_names": {"0": "either_CT_or_MR"}, "num_published": 360},
}


def find_amos22(
    folder: Path, *, task: int = 2, ignore_label_geometry: bool = False
) -> tuple[DatasetInfo, list[VolumeCase]]:
    """Find the cases listed in the published dataset.json.

    Args:
        folder: The folder with dataset.json, `amos22` in the archive.
        task: 1 for CT only, 2 for CT and MRI.
        ignore_label_geometry: See :class:`.VolumeCase`.

    Raises:
        InputError: If the folder or dataset.json does not exist or is invalid, there are no training cases of this
            task, the task is unknown, or listed files are missing; the message lists all missing files.
    """
    if task not in AMOS22_TASKS:
        raise InputError(f"the task of AMOS22 must be {' or '.join(map(str, AMOS22_TASKS))}, got {task}")
    require_folder(folder)
    content = _read_dataset_json(folder / "dataset.json")
    labels = _labels(content, folder / "dataset.json")
    faults: list[str] = []
    cases: dict[str, VolumeCase] = {}
    for key, suffix in _FOLDERS.items():
        for entry in content.get(key, []):
            match = _CASE.fullmatch(Path(str(entry.get("image", ""))).name) if isinstance(entry, dict) else None
            if match is None:
                faults.append(f'"{key}" of {folder / "dataset.json"} lists {entry!r}, which is not an image of a case')
            elif task == 2 or int(match[1]) <= LAST_CT:
                case = _case(folder, match[0], suffix, tuple(labels.values()), ignore_label_geometry)
                faults += _missing(case, folder / f"labels{suffix}")
                if cases.setdefault(case.name, case) is not case:
                    faults.append(f"{folder / 'dataset.json'} lists {case.name} twice")
        _warn_of_unlisted(folder / f"images{suffix}", content.get(key, []))
    raise_faults(faults)
    if not any(case.split == "Tr" for case in cases.values()):
        raise InputError(f"{folder / 'dataset.json'} lists no training cases for task {task}")
    return replace(_INFO, labels=labels, **_TASK_INFO[task]), list(cases.values())


def _read_dataset_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}, the dataset.json of AMOS22, is missing")
    content = read_json(path)
    if not isinstance(content, dict) or not {"labels", "training"} <= content.keys():
        raise InputError(f'{path} lacks "labels" or "training". Is it the dataset.json of AMOS22?')
    return content


def _labels(content: dict[str, Any], path: Path) -> dict[str, int]:
    """Label values by name; the published file has names by value."""
    try:
        labels = {str(name): int(value) for value, name in content["labels"].items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f'"labels" of {path} must map values to names, got {content["labels"]!r}') from error
    values = sorted(labels.values())
    if values != list(range(len(content["labels"]))) or len(values) < 2 or labels.get("background") != 0:
        raise InputError(f'"labels" of {path} must be consecutive from 0 (background), got {content["labels"]!r}')
    return labels


def _case(folder: Path, file: str, suffix: str, values: tuple[int, ...], ignore_label_geometry: bool) -> VolumeCase:
    label = folder / f"labels{suffix}" / file
    return VolumeCase(
        name=file.removesuffix(FILE_ENDING),
        split="Ts" if suffix == "Ts" else "Tr",
        image=folder / f"images{suffix}" / file,
        label=label if label.is_file() else None,
        label_values=values,
        ignore_label_geometry=ignore_label_geometry,
    )


def _missing(case: VolumeCase, labels: Path) -> list[str]:
    faults = [] if case.image.is_file() else [f"{case.image} is missing"]
    if case.split == "Tr" and case.label is None:
        faults.append(f"{case.image} has no label in {labels}")
    return faults


def _warn_of_unlisted(images: Path, entries: list[Any]) -> None:
    listed = {Path(str(entry["image"])).name for entry in entries if isinstance(entry, dict) and "image" in entry}
    unlisted = sorted(file.name for file in images.glob("amos_*.nii.gz") if file.name not in listed)
    if unlisted:
        logger.warning(
            "%d images in %s are not listed in dataset.json, such as %s.", len(unlisted), images, unlisted[0]
        )
