"""Predictions as DICOM objects in the studies of their images.

OUT/<case>/mask.dcm          the model's mask, a segment for each label
OUT/<case>/review.dcm        a segment for each region that somebody is asked about
OUT/<case>/probability.dcm   the deferral probability as a parametric map
OUT/<case>/gain.dcm          the expected gain as a parametric map
OUT/mitk_tasks.json          for MITK: the masks to correct, as OUT/answers/<expert>/<case>.dcm
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import same_cases
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.decision.gains import gain_text
from nnunetv2_deferral.defaults import DICOM_KINDS, DICOM_OBJECTS, MEASURED_BY
from nnunetv2_deferral.dicom.case_map import CaseMap
from nnunetv2_deferral.dicom.codes import Codes
from nnunetv2_deferral.dicom.objects import QUANTITIES, Content, Segment, Source, region_segment
from nnunetv2_deferral.dicom.segments import route_name
from nnunetv2_deferral.dicom.series import Series, find_series, load_headers, opened, read_series
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import new_folder, write_json
from nnunetv2_deferral.geometry import MAX_DISPLACEMENT_VOXELS, displacement_voxels
from nnunetv2_deferral.predictions import PredictionFolder, absent_text
from nnunetv2_deferral.worklist.items import ListedRegion, choose, find_items, reason, region_masks
from nnunetv2_deferral.worklist.viewers import TASKS_NAME, Task, mitk_task_list, task_name

_FIRST_SERIES_NUMBER = 9001  # beyond those of scanners
_CONTENTS = {
    "mask": Content(label="MASK", text="nnU-Net mask", number=_FIRST_SERIES_NUMBER),
    "review": Content(label="REVIEW", text="Regions to ask experts about", number=_FIRST_SERIES_NUMBER + 1),
    "probability": Content(label="DEFERRAL_PROB", text="Deferral probability", number=_FIRST_SERIES_NUMBER + 2),
    "gain in Dice": Content(label="DEFERRAL_GAIN", text="Expected gain in Dice", number=_FIRST_SERIES_NUMBER + 3),
    "gain in score": Content(label="DEFERRAL_GAIN", text="Gain, a score", number=_FIRST_SERIES_NUMBER + 3),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was exported.

    Attributes:
        files: The files of each case, relative to the output folder.
        unasked: Cases without regions, which have no review.dcm.
        other_masks: Cases of :meth:`.PredictionFolder.has_other_mask`.
    """

    files: Mapping[str, tuple[str, ...]]
    unasked: tuple[str, ...]
    other_masks: tuple[str, ...]


def export_predictions(
    predictions: Path,
    case_map: Path,
    source: Path,
    output: Path,
    *,
    what: Sequence[str] = DICOM_OBJECTS,
    kind: str = "binary",
    codes: Path | None = None,
    dataset_json: Path | None = None,
    time: WorkTime | None = None,
) -> Written:
    """Write masks, regions and maps of predictions as DICOM objects.

    Args:
        predictions: A folder of predictions by a deferral model on imported images.
        case_map: The dicom.json of the import, or its folder.
        source: The folder or zip file that was imported.
        output: The output folder; it must not exist or be empty.
        what: Which of :data:`.defaults.DICOM_OBJECTS` to write.
        kind: Of the mask's segmentation, one of :data:`.defaults.DICOM_KINDS`; a fractional one has the network's
            probabilities.
        codes: See :meth:`.Codes.read`.
        dataset_json: See :meth:`.PredictionFolder.open`.
        time: Working time of regions, for their ranks; None for the defaults.

    Raises:
        InputError: If a case is not in dicom.json, its series is not in the source or differs from it, the geometry of
            a mask is not that of its series, codes of labels are missing, labels overlap in a label map, there are no
            probabilities for a fractional segmentation, or the output folder is not empty. Nothing is left in it then.
    """
    if unknown := [each for each in what if each not in DICOM_OBJECTS]:
        raise InputError(f"unknown objects {', '.join(unknown)}; known are {', '.join(DICOM_OBJECTS)}")
    if kind not in DICOM_KINDS:
        raise InputError(f"the type of the segmentation must be one of {', '.join(DICOM_KINDS)}, got {kind!r}")
    folder = PredictionFolder.open(predictions, dataset_json, needed=MEASURED_BY)
    origins = CaseMap.read(case_map)
    same_cases(f"cases that are not in {origins.file}", folder.cases, list(origins.cases))
    segments = _mask_segments(folder, codes, kind) if "mask" in what else []
    listed = _regions(folder, time or WorkTime()) if "review" in what else {}
    files: dict[str, tuple[str, ...]] = {}
    first: dict[str, Path] = {}
    with opened(source) as images, new_folder(output) as scratch:
        for case, series in _sources(folder.cases, origins, images):
            source_of = Source(series=series, headers=load_headers(series), model=folder.index["model"])
            predicted = _Aligned(folder.case(case), series)
            route = route_name(predicted.case.route)
            objects: dict[str, Dataset] = {}
            if "mask" in what:
                volume = predicted(_mask_volume(folder, predicted.case, kind))
                tracked = [replace(each, tracking=f"{route}/{each.label}") for each in segments]
                objects["mask"] = source_of.segmentation(volume, tracked, kind, _CONTENTS["mask"])
            if "review" in what and case in listed:
                regions = listed[case]
                numbers = predicted(_numbered(predicted.case, regions))
                asked = [_region(each, folder, route) for each in regions]
                objects["review"] = source_of.segmentation(numbers, asked, "binary", _CONTENTS["review"])
            for name, kept in (("probability", "probability"), ("gain", f"gain in {folder.gain_unit}")):
                if name in what:
                    values = predicted(getattr(predicted.case, name))
                    objects[name] = source_of.parametric_map(values, QUANTITIES[kept], _CONTENTS[kept])
            (scratch / case).mkdir()
            for name, dataset in objects.items():
                dataset.save_as(scratch / case / f"{name}.dcm")
            files[case] = tuple(f"{case}/{name}.dcm" for name in objects)
            first[case] = series.files[0].resolve()
        if source.is_dir() and {"mask", "review"} <= set(what):
            write_json(mitk_task_list(_tasks(folder, listed, first)), scratch / TASKS_NAME)
    unasked = tuple(case for case in folder.cases if "review" in what and case not in listed)
    others = tuple(filter(folder.has_other_mask, folder.cases))
    return Written(files=files, unasked=unasked, other_masks=others)


def _sources(cases: Sequence[str], origins: CaseMap, images: Path) -> Iterator[tuple[str, Series]]:
    """The series of each case, whose slices must be those that were imported."""
    found = find_series(images, [origins.cases[case]["series"] for case in cases]).files
    for case in cases:
        origin = origins.cases[case]
        series = read_series(origin["series"], found[origin["series"]])
        instances = list(dict.fromkeys(plane.instance for plane in series.planes))
        frames = [plane.frame for plane in series.planes] if series.is_multi_frame else None
        for name, there, here in (
            ("StudyInstanceUID", series.study, origin["study"]),
            ("FrameOfReferenceUID", series.frame_of_reference, origin["frame_of_reference"]),
            ("instances", instances, origin["instances"]),
            ("order of frames", frames, origin.get("frames")),
        ):
            if there != here:
                raise InputError(
                    f"series {series.uid} in {images} is not the one of case {case} in {origins.file}: its {name} "
                    f"{_differing(there, here)}"
                )
        yield case, series


def _differing(there: Any, here: Any) -> str:
    if isinstance(there, list) and isinstance(here, list) and len(there) != len(here):
        return f"are {len(there)} instead of {len(here)}"
    return "differ" if isinstance(there, list) else f"is {there} instead of {here}"


class _Aligned:
    """Turns arrays of a predicted case to the order of its series."""

    def __init__(self, case: PredictedCase, series: Series) -> None:
        """Check that the mask has the geometry of the series.

        Raises:
            InputError: Naming the case, and its shape and the series' or the displacement.
        """
        self.case = case
        self._ours, self._theirs = case.orientation, series.orientation
        turned = self._ours.to_canonical(case.model)
        shape = self._theirs.to_canonical(np.empty(series.shape, dtype=bool)).shape
        if turned.shape != shape:
            raise InputError(
                f"the mask of case {case.name} has {turned.shape} voxels along z, y, x of the patient, but its series "
                f"has {shape}"
            )
        apart = displacement_voxels(self._ours, self._theirs, shape)
        if not apart <= MAX_DISPLACEMENT_VOXELS:
            raise InputError(
                f"the mask of case {case.name} does not lie on the voxels of its series: corners are up to "
                f"{apart:.3g} voxels apart"
            )

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array (Z, Y, X), or (C, Z, Y, X) to (Z, Y, X, C), in the order of the series."""
        turned = self._theirs.to_file(self._ours.to_canonical(array))
        return turned if turned.ndim == 3 else np.moveaxis(turned, 0, -1)


def _mask_segments(folder: PredictionFolder, codes: Path | None, kind: str) -> list[Segment]:
    names = folder.files.class_names
    if kind == "labelmap" and folder.files.label_manager.has_regions:
        raise InputError(
            f"the labels {', '.join(names)} overlap (region-based training), which a label map cannot represent; write "
            "a binary segmentation"
        )
    if kind == "fractional" and (missing := [case for case in folder.cases if not folder.case(case).has("softmax")]):
        raise InputError(
            f"a fractional segmentation needs the network's probabilities, but "
            f"{absent_text(folder.softmax_file(missing[0]))}. Predict with --save_probabilities"
        )
    known = Codes.read(folder.files.content, names, dataset="dataset.json", file=codes)
    return [Segment(label=name, codes=known.labels[name]) for name in names]


def _mask_volume(folder: PredictionFolder, case: PredictedCase, kind: str) -> np.ndarray:
    """By file: uint16 numbers of segments (Z, Y, X), or for overlapping or fractional ones (segments, Z, Y, X)."""
    classes = folder.files.regions
    if kind == "fractional":
        softmax = case.softmax
        return np.clip(softmax if folder.files.label_manager.has_regions else softmax[classes], 0, 1)
    if folder.files.label_manager.has_regions:
        return np.stack([np.isin(case.model, label) for label in classes])
    numbers = np.zeros(case.model.shape, dtype=np.uint16)
    for number, label in enumerate(classes, start=1):
        numbers[case.model == label] = number
    return numbers


def _regions(folder: PredictionFolder, time: WorkTime) -> dict[str, list[ListedRegion]]:
    """The regions of each case by rank, as an unlimited worklist has them."""
    items = [item for case in folder.cases for item in find_items(folder.case(case), time, unit=folder.files.unit)]
    found: dict[str, list[ListedRegion]] = {}
    for each in choose(items):
        found.setdefault(each.item.case, []).append(each)
    return found


def _numbered(case: PredictedCase, regions: Sequence[ListedRegion]) -> np.ndarray:
    """uint16 (Z, Y, X): the place of the region in the list of the case, from 1."""
    numbers = np.zeros(case.route.shape, dtype=np.uint16)
    for expert, mask in region_masks(case.route, regions).items():
        of_expert = [0, *(place for place, each in enumerate(regions, start=1) if each.item.region.expert == expert)]
        numbers = np.maximum(numbers, np.array(of_expert, dtype=np.uint16)[mask])
    return numbers


def _tasks(
    folder: PredictionFolder, listed: Mapping[str, Sequence[ListedRegion]], images: Mapping[str, Path]
) -> list[Task]:
    """A task for each expert and case, in the order of their first regions."""
    groups: dict[tuple[str, str], list[ListedRegion]] = {}
    for each in sorted((each for regions in listed.values() for each in regions), key=lambda each: each.rank):
        groups.setdefault((each.item.case, folder.experts[each.item.region.expert - 1]), []).append(each)
    return [
        Task(
            name=task_name(case, expert, [each.rank for each in regions]),
            description="\n".join(f"{each.rank}. {_reason(each, folder)}" for each in regions),
            image=str(images[case]),
            segmentation=f"{case}/mask.dcm",
            result=f"answers/{expert}/{case}.dcm",
        )
        for (case, expert), regions in groups.items()
    ]


def _reason(each: ListedRegion, folder: PredictionFolder) -> str:
    expert = folder.experts[each.item.region.expert - 1]
    return reason(each.item, expert, folder.files.label_names, folder.settings.objective)


def _region(each: ListedRegion, folder: PredictionFolder, route: str) -> Segment:
    item, expert = each.item, folder.experts[each.item.region.expert - 1]
    names = folder.files.label_names
    label, share = next(iter(item.labels.items()))
    gain = gain_text(item.expected_gain, folder.gain_unit)
    return region_segment(
        expert,
        f"{names.get(label, f'label {label}')} {share:.0%}, p {item.probability:.2f}",
        each.rank,
        description=f"{_reason(each, folder)} {gain[0].upper()}{gain[1:]} in {item.minutes:.1f} minutes.",
        tracking=f"{route}/{expert}/{item.number}",
    )
