"""Answers become training data: a dataset with the ignore label wherever nobody answered.

nnU-Net trains on the voxels that are annotated and evaluates on these only. The dataset has images, labels,
dataset.json, and provenance.json, which says for each case who answered how much; its splits are made such that rare
classes are in several folds.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from tqdm import tqdm

from nnunetv2_deferral.arrays import count_values
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.dataset_conversion.common import check_target
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import new_folder, write_json
from nnunetv2_deferral.image_files import write_labels
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.query.answered import AnsweredQuestions, Answers
from nnunetv2_deferral.query.rounds import with_reader
from nnunetv2_deferral.query.splits import folds_with, splits_with_classes
from nnunetv2_deferral.raters import DATASET_KEY
from nnunetv2_deferral.text import listed

PROVENANCE, SPLITS = "provenance.json", "splits_final.json"
_NAME = re.compile(r"Dataset(\d{3})_\w+")
_LISTING = "dataset"  # the key under which a dataset.json may list its files


@dataclass(frozen=True, kw_only=True)
class NnunetFolders:
    """nnU-Net's folders of raw and preprocessed datasets."""

    raw: Path
    preprocessed: Path


@dataclass(frozen=True, kw_only=True)
class BaseDataset:
    """A dataset whose cases are taken over.

    Attributes:
        folder: The dataset in nnUNet_raw.
        files: Its files.
        cases: Its training cases.
    """

    folder: Path
    files: DatasetFiles
    cases: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> BaseDataset:
        """Open a dataset.

        Raises:
            InputError: If it has no labels, lacks images, or lists its files in dataset.json.
        """
        description = folder / "dataset.json"
        example = next((file for file in sorted((folder / "labelsTr").glob("*")) if file.is_file()), None)
        if example is None:
            raise InputError(f"{folder / 'labelsTr'} has no labels")
        files = DatasetFiles.of(description, example)
        if _LISTING in files.content:
            raise InputError(f'{description} lists its files under "{_LISTING}"; only folders imagesTr and labelsTr')
        cases = tuple(files.cases(folder / "labelsTr"))
        files.check_images(folder / "imagesTr", cases)
        return cls(folder=folder, files=files, cases=cases)


def write_next_dataset(
    name: str,
    answers: Answers,
    images: Path,
    folders: NnunetFolders,
    *,
    base: BaseDataset | None = None,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the dataset of what is answered, and its splits.

    Args:
        name: `DatasetXXX_Name`.
        answers: The questions and answers.
        images: The folder of the images.
        folders: nnU-Net's folders.
        base: A dataset whose cases are taken over; where its cases were asked about, answers replace its labels.
        groups: For each case its group, see :func:`.splits_with_classes`.

    Returns:
        The content of provenance.json.

    Raises:
        InputError: If the dataset exists, nothing was answered, an image is missing, there are fewer than two cases, or
            files do not match.
    """
    check_new_dataset(name, folders)
    files = answers.files
    if base is not None:
        _check_base(base, files)
        # Of all labels the axis order is that of the answers.
        base = replace(base, files=replace(base.files, reader=files.reader))
    files.check_images(images, answers.cases)
    image_files = {case: files.image_files(images, case) for case in answers.cases}
    _check_channels(files, image_files)
    content, ignore = _dataset_json(files, name)
    cases: dict[str, Any] = {}
    classes: dict[str, list[str]] = {}
    silent = []
    with new_folder(folders.raw / name) as scratch:
        for part in ("imagesTr", "labelsTr"):
            (scratch / part).mkdir()
        for case in tqdm(answers.cases, desc="Answers", unit="case"):
            found = answers.read(case)
            if not (found.labels != MISSING).any():
                silent.append(case)
                continue
            labels, replaced = _with_base(found, base, case, ignore)
            write_labels(labels, scratch / "labelsTr" / f"{case}{files.file_ending}", files.reader, found.properties)
            for file in image_files[case]:
                shutil.copyfile(file, scratch / "imagesTr" / file.name)
            classes[case] = _classes_in(labels, files)
            cases[case] = _provenance(found, replaced)
        if not cases:
            raise InputError(f"nothing was answered of {listed(answers.cases)}, so there is nothing to train on")
        if base is not None:
            for case in tqdm([case for case in base.cases if case not in cases], desc="Base", unit="case"):
                classes[case] = _copy_of_base(base, case, scratch)
                cases[case] = {"base": True}
        splits = splits_with_classes(classes, groups)
        written = {
            "dataset": name,
            "base": None if base is None else base.folder.name,
            "versions": versions(),
            "ignore_label": ignore,
            "not_answered": silent,
            "classes": {
                each: {"cases": sum(each in found for found in classes.values()), "folds": number}
                for each, number in (dict.fromkeys(files.class_names, 0) | folds_with(splits, classes)).items()
            },
            "cases": dict(sorted(cases.items())),
        }
        content |= {"numTraining": len(cases)}
        write_json(content, scratch / "dataset.json")
        write_json(written, scratch / PROVENANCE)
        # Before the dataset appears, because nnU-Net makes splits of its own if there are none. Its planner puts
        # dataset.json there, too; with it the plans of the last round can be used instead of new ones.
        write_json(content, folders.preprocessed / name / "dataset.json")
        write_json(splits, folders.preprocessed / name / SPLITS)
    return written


def check_new_dataset(name: str, folders: NnunetFolders) -> None:
    """Refuse a name that nnU-Net does not accept, and a dataset that exists.

    Raises:
        InputError: Naming both.
    """
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise InputError(f"the dataset must be called DatasetXXX_Name with three digits, got {name!r}")
    check_target(folders.raw, int(matched[1]))
    if (folders.preprocessed / name).exists():
        raise InputError(f"{folders.preprocessed / name} already exists")


def _check_base(base: BaseDataset, files: DatasetFiles) -> None:
    for key in ("file_ending", "channel_names", "regions_class_order"):
        if base.files.content.get(key) != files.content.get(key):
            raise InputError(
                f"{key} of {base.folder} is {base.files.content.get(key)}, that of the questions "
                f"{files.content.get(key)}"
            )
    theirs, ours = ({k: v for k, v in each.content["labels"].items() if k != "ignore"} for each in (base.files, files))
    if theirs != ours:
        raise InputError(f"the labels of {base.folder} are {theirs}, those of the questions {ours}")


def _check_channels(files: DatasetFiles, images: Mapping[str, Sequence[Path]]) -> None:
    names = files.content.get("channel_names", {})
    if isinstance(files.reader, NaturalImage2DIO) or not names:  # all channels may be in one picture
        return
    for case, found in images.items():
        if len(found) != len(names):
            raise InputError(f"{case} has {len(found)} images, but dataset.json has {len(names)} channels")


def _dataset_json(files: DatasetFiles, name: str) -> tuple[dict[str, Any], int]:
    """The dataset.json with an ignore label, and this label."""
    ignore = files.label_manager.ignore_label
    value = max(files.label_values) + 1 if ignore is None else int(ignore)
    content = with_reader(files)
    # The experts' masks are not part of the new dataset.
    for key in (DATASET_KEY, _LISTING):
        content.pop(key, None)
    return content | {"name": name, "labels": dict(content["labels"]) | {"ignore": value}}, value


def _with_base(found: AnsweredQuestions, base: BaseDataset | None, case: str, ignore: int) -> tuple[np.ndarray, int]:
    """The labels of a case with the ignore label elsewhere, and how many labels of the base were replaced by others."""
    answered = found.labels != MISSING
    if base is None or case not in base.cases:
        return np.where(answered, found.labels, ignore), 0
    before = base.files.read_like(_label_file(base, case), found.labels, found.properties)
    before = np.where(before == base.files.label_manager.ignore_label, ignore, before)
    return np.where(answered, found.labels, before), int(
        (answered & (before != ignore) & (before != found.labels)).sum()
    )


def _copy_of_base(base: BaseDataset, case: str, scratch: Path) -> list[str]:
    """Take a case over as it is; returns its classes."""
    labels, _ = base.files.read(_label_file(base, case))
    shutil.copyfile(_label_file(base, case), scratch / "labelsTr" / _label_file(base, case).name)
    for file in base.files.image_files(base.folder / "imagesTr", case):
        shutil.copyfile(file, scratch / "imagesTr" / file.name)
    return _classes_in(labels, base.files)


def _label_file(base: BaseDataset, case: str) -> Path:
    return base.folder / "labelsTr" / f"{case}{base.files.file_ending}"


def _classes_in(labels: np.ndarray, files: DatasetFiles) -> list[str]:
    """The names of the foreground classes or regions that are annotated."""
    counts = count_values(labels, int(labels.max(initial=0)) + 1)
    found = []
    for name, region in zip(files.class_names, files.regions, strict=True):
        values = region if isinstance(region, tuple) else (region,)
        if any(value < len(counts) and counts[value] for value in values):
            found.append(name)
    return found


def _provenance(found: AnsweredQuestions, replaced: int) -> dict[str, Any]:
    answered = found.labels[found.labels != MISSING]
    values, numbers = np.unique(answered, return_counts=True)
    return {
        "base": False,
        "from": list(found.sources),
        "asked_voxels": found.asked,
        "answered_voxels": int(answered.size),
        "contradicted_voxels": found.contradicted,
        "replaced_voxels_of_base": replaced,
        "voxels_of_label": {str(value): int(number) for value, number in zip(values, numbers, strict=True)},
        "voxels_of_expert": found.by,
    }
