"""Experts' answers in edited DICOM segmentations, as masks `<expert>/<case><file_ending>`.

An edited mask answers all regions of its expert, with the labels that its segments have there.

An edited review segmentation has regions and, drawn by the expert, segments of labels. A voxel of a region that lies in
a segment of a label has that label; one that was removed from its region without another is background; what is left
of the regions is not answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.dicom.case_map import CaseMap
from nnunetv2_deferral.dicom.codes import KEY, Codes
from nnunetv2_deferral.dicom.segments import FoundSegment, SegmentationFile, route_name
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json
from nnunetv2_deferral.image_files import write_labels
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.text import listed

REPORT_NAME = "dicom_answers.json"  # in the folder of the experts' masks


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an expert answered about a case.

    Attributes:
        segmentation: The SOPInstanceUID of the edited segmentation.
        edited: `"mask"` or `"review"`, what was edited.
        regions: The number of the expert's regions.
        voxels: The number of their voxels.
        answered_voxels: How many of them have an answer.
        changed_voxels: How many answers are other labels than the model's.
        changed_outside: How many voxels outside of the regions were changed; these changes are left out.
        tracked: Whether any segment has the tracking ID with which it was exported. Without, as some programs save,
            nothing tells whether it was edited from these predictions.
    """

    segmentation: str
    edited: str
    regions: int
    voxels: int
    answered_voxels: int
    changed_voxels: int
    changed_outside: int
    tracked: bool


def read_answers(
    predictions: Path,
    case_map: Path,
    segmentations: Sequence[Path],
    expert: str,
    output: Path,
    *,
    codes: Path | None = None,
    dataset_json: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Answer]:
    """Write what an expert changed in exported segmentations as the expert's masks, and a report.

    Voxels that are not answered have the dataset's ignore label, or without one the model's label, as in a review.

    Args:
        predictions: The folder of predictions that were exported.
        case_map: The dicom.json of the import, or its folder.
        segmentations: Files and folders of edited segmentations, one for each case.
        expert: The expert who answered.
        output: The folder of all experts' masks, such as expertsTr.
        codes: See :meth:`.Codes.read`; only for segments whose names are no labels.
        dataset_json: See :meth:`.PredictionFolder.open`.
        overwrite: Replace answers of the expert that are there.

    Returns:
        The answer about each case.

    Raises:
        InputError: If the expert is unknown, there are no segmentations, one cannot be read, is of no case or of one
            that another is of, is of another study, frame of reference or other instances than its case, was exported
            with other regions, has segments that are no labels or overlap, or does not lie on the voxels of its case,
            the expert has no regions in a case or answered none of them, or answers exist. Nothing is written then.
    """
    folder = PredictionFolder.open(predictions, dataset_json)
    if expert not in folder.experts:
        raise InputError(f"{expert!r} is not one of the model's experts: {', '.join(folder.experts)}")
    origins = CaseMap.read(case_map)
    labels = _Labels.of(folder, codes)
    files: dict[str, SegmentationFile] = {}
    for file in _files(segmentations):
        found = SegmentationFile.read(file)
        case = _case_of(found, origins, folder)
        if case in files:
            raise InputError(f"{files[case].file} and {file} are both segmentations of case {case}")
        files[case] = found
    targets = {case: output / expert / f"{case}{folder.files.file_ending}" for case in files}
    if not overwrite and (there := [str(file) for file in targets.values() if file.exists()]):
        raise InputError(f"answers exist: {listed(there)}. Replace them with --overwrite")
    masks: dict[str, np.ndarray] = {}
    answers: dict[str, Answer] = {}
    for case, found in sorted(files.items()):
        masks[case], answers[case] = _answer(folder, folder.case(case), found, expert, labels)
    for case, mask in masks.items():
        write_labels(mask, targets[case], folder.files.reader, folder.case(case).properties)
    _write_report(output / REPORT_NAME, expert, answers)
    return answers


def _files(given: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        inside = sorted(each for each in path.rglob("*.dcm") if each.is_file() and not each.name.startswith("."))
        if path.is_dir() and not inside:
            raise InputError(f"{path} has no .dcm files")
        found += inside if path.is_dir() else [path]
    return found


def _case_of(found: SegmentationFile, origins: CaseMap, folder: PredictionFolder) -> str:
    cases = {case for series in found.sources if (case := origins.case_of(series)) is not None}
    if len(cases) != 1:
        series = listed(found.sources) or "none"
        raise InputError(f"{found.file} refers to the series {series}, not to exactly one of {origins.file}")
    (case,) = cases
    if case not in folder.cases:
        raise InputError(f"{found.file} is of case {case}, which {folder.folder} does not have")
    origin = origins.cases[case]
    for name, there, here in (
        ("StudyInstanceUID", found.study, origin["study"]),
        ("FrameOfReferenceUID", found.frame_of_reference, origin["frame_of_reference"]),
    ):
        if there != here:
            raise InputError(f"{found.file}: its {name} is {there or 'missing'}, that of case {case} is {here}")
    if foreign := sorted(set(found.sources[origin["series"]]) - set(origin["instances"])):
        raise InputError(f"{found.file} refers to instances that case {case} was not made of: {listed(foreign)}")
    return case


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """The classes of a dataset: how segments name them, and the labels that they become."""

    names: tuple[str, ...]
    codes: Codes | None
    values: Mapping[str, int]  # in region-based training in the order in which classes replace others
    overlap: bool

    @classmethod
    def of(cls, folder: PredictionFolder, file: Path | None) -> _Labels:
        files, manager = folder.files, folder.files.label_manager
        names = files.class_names
        codes = None
        if file is not None or KEY in files.content:
            codes = Codes.read(files.content, names, dataset="dataset.json", file=file)
        order = manager.regions_class_order if manager.has_regions else manager.foreground_labels
        values = {name: int(label) for name, label in zip(names, order, strict=True)}
        return cls(names=names, codes=codes, values=values, overlap=bool(manager.has_regions))

    def name_of(self, segment: FoundSegment) -> str | None:
        """The class of a segment by its name, or else by its codes."""
        named = {name.casefold(): name for name in self.names}
        name = named.get(segment.label.casefold())
        if name is None and self.codes is not None:
            name = self.codes.label_of(segment.category, segment.kind, segment.modifier)
        return name

    def merged(self, found: SegmentationFile, masks: Mapping[int, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """The label map of the segments that are no regions, int16 with 0 elsewhere.

        Raises:
            InputError: If a segment is no label, or segments overlap.
        """
        by_name: dict[str, np.ndarray] = {}
        for number, segment in found.segments.items():
            if segment.is_region:
                continue
            name = self.name_of(segment)
            if name is None:
                raise InputError(
                    f"{found.file}: segment {number} {segment.label!r} is not one of the labels {', '.join(self.names)}"
                )
            mask = masks.get(number, np.zeros(shape, dtype=bool))
            by_name[name] = by_name[name] | mask if name in by_name else mask
        labels = np.zeros(shape, dtype=np.int16)
        for name, value in self.values.items():
            mask = by_name.get(name, np.zeros(shape, dtype=bool))
            if not self.overlap and (both := int((mask & (labels > 0)).sum())):
                raise InputError(f"{found.file}: {both} voxels of {name!r} are also in segments of other labels")
            labels[mask] = value
        return labels


def _answer(
    folder: PredictionFolder, case: PredictedCase, found: SegmentationFile, expert: str, labels: _Labels
) -> tuple[np.ndarray, Answer]:
    number = folder.experts.index(expert) + 1
    asked = case.route == number
    if not asked.any():
        raise InputError(f"{found.file} is of case {case.name}, in which {expert} has no regions")
    if not found.segments:
        raise InputError(f"{found.file} has no segments")
    if unknown := sorted(set(masks := found.masks(case.orientation, case.model.shape)) - set(found.segments)):
        raise InputError(f"{found.file} has voxels of segments that it does not describe: {listed(map(str, unknown))}")
    routes = {segment.route for segment in found.segments.values()} - {None}
    if routes - {route_name(case.route)}:
        raise InputError(
            f"{found.file} was exported when other regions of case {case.name} were asked about than in "
            f"{folder.folder}. Give the predictions that were exported, or export these and edit again"
        )
    drawn = labels.merged(found, masks, case.model.shape)
    left = np.zeros_like(asked)
    is_review = any(segment.is_region for segment in found.segments.values())
    for each, segment in found.segments.items():
        if segment.is_region and each in masks:
            left |= masks[each]
    if unknown_voxels := int((left & (case.route == 0)).sum()):
        raise InputError(
            f"{found.file}: {unknown_voxels} voxels of its regions are in no region of {folder.folder}. Was it "
            "exported from other predictions? Answers are drawn in segments of labels, not of regions"
        )
    answered = asked & ~(left & (drawn == 0))
    if not answered.any():
        raise InputError(
            f"{found.file} answers none of the regions of {expert} in case {case.name}: nothing was drawn or removed "
            "in them"
        )
    differs = drawn != case.model
    changed_outside = differs & ~asked & ((drawn > 0) if is_review else True)
    ignore = folder.files.label_manager.ignore_label
    base: Any = case.model if ignore is None else ignore
    mask = np.where(answered, drawn, base).astype(np.int16)
    return mask, Answer(
        segmentation=found.instance,
        edited="review" if is_review else "mask",
        regions=len(np.unique(region_labels(case.route)[asked])),
        voxels=int(asked.sum()),
        answered_voxels=int(answered.sum()),
        changed_voxels=int((answered & differs).sum()),
        changed_outside=int(np.sum(changed_outside)),
        tracked=bool(routes),
    )


def _write_report(file: Path, expert: str, answers: Mapping[str, Answer]) -> None:
    content: dict[str, Any] = read_json(file) if file.is_file() else {"cases": {}}
    for case, answer in answers.items():
        content["cases"].setdefault(case, {})[expert] = dict(vars(answer))
    content["cases"] = dict(sorted(content["cases"].items()))
    write_json(content, file)
