"""A round of queries on disk: the boxes to annotate, in `query.json`, as numbered masks, and as questions to experts.

`masks/<case><file_ending>` is 0 outside of the boxes, and the `label` of a box inside. For `questions`, see
:mod:`.deferred_boxes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import new_folder, read_json, write_json
from nnunetv2_deferral.parts import is_part
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.query.deferred_boxes import QUESTIONS, write_questions
from nnunetv2_deferral.query.patches import Box
from nnunetv2_deferral.schema import Count, Text, read_validated_json, validate
from nnunetv2_deferral.worklist.items import to_world
from nnunetv2_deferral.worklist.writing import write_numbered_mask

JSON_NAME, MASKS = "query.json", "masks"


class _Region(TypedDict):
    case: Text
    box: list[list[Count]]
    label: Count


class _Round(TypedDict):
    regions: list[_Region]
    round: NotRequired[Count]


class _Files(TypedDict):
    files: list[Text]


@dataclass(frozen=True, kw_only=True)
class QueryRound:
    """The boxes of a round.

    Attributes:
        folder: The folder of the round.
        boxes: For each case with boxes, its boxes.
    """

    folder: Path
    boxes: Mapping[str, tuple[Box, ...]]

    @classmethod
    def read(cls, folder: Path) -> QueryRound:
        """Read the query.json of a folder.

        Raises:
            InputError: If it is missing, invalid, or has a box that is no box.
        """
        file = folder / JSON_NAME
        content = read_validated_json(file, _Round)
        boxes: dict[str, list[Box]] = {}
        for place, region in enumerate(content["regions"]):
            ends = region["box"]
            if len(ends) != 3 or any(len(each) != 2 or each[0] >= each[1] for each in ends):
                raise InputError(f"{file}: regions[{place}].box must be three pairs start < stop, got {ends}")
            starts, stops = zip(*ends, strict=True)
            boxes.setdefault(region["case"], []).append(Box(tuple(starts), tuple(stops)))
        return cls(folder=folder, boxes={case: tuple(found) for case, found in boxes.items()})

    def mask(self, case: str, shape: Sequence[int]) -> np.ndarray:
        """Where the boxes of a case are, bool of shape S; nowhere if it has none.

        Raises:
            InputError: If a box is not within the image.
        """
        where = np.zeros(tuple(shape), dtype=bool)
        for box in self.boxes.get(case, ()):
            if len(shape) != 3 or any(stop > length for stop, length in zip(box.stops, shape, strict=True)):
                raise InputError(
                    f"{self.folder / JSON_NAME}: the box {_ends(box)} is not within the image of {case}, {tuple(shape)}"
                )
            where[box.slices] = True
        return where


def boxes_of_rounds(rounds: Iterable[QueryRound], case: str) -> tuple[Box, ...]:
    """All boxes of a case in several rounds."""
    return tuple(box for each in rounds for box in each.boxes.get(case, ()))


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a round cannot be written to; what parts found there is replaced by the round.

    Raises:
        InputError: If the folder has files and `overwrite` is not set, or has files that are not of a round.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file; choose another folder (-o)")
    present = sorted(file for file in output.rglob("*") if not file.is_dir() and not is_part(file, output))
    if present and not overwrite:
        raise InputError(f"{output} is not empty; choose another folder (-o) or replace the round (--overwrite)")
    if present:
        old = output / JSON_NAME
        if not old.is_file():
            raise InputError(f"{output} has files but no {JSON_NAME}, so it is not a round and is not replaced")
        content = read_json(old)
        validate(content, _Files, f"{old} is not a valid round and is not replaced")
        own = {old, *(output / name for name in content["files"])}
        if others := [str(file) for file in present if file not in own]:
            raise InputError(f"{output} has files that do not belong to a round: {', '.join(others[:5])}")


def write_round(
    content: Mapping[str, Any],
    regions: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, PredictedCase],
    files: DatasetFiles,
    output: Path,
    *,
    annotator: str,
    model: PredictionFolder | None = None,
) -> dict[str, Any]:
    """Write a round whole or not at all.

    Args:
        content: What query.json says besides regions and files.
        regions: The boxes in their order, with at least `case`, `box`, `label` and `score`.
        predictions: Mask and geometry of each case with boxes.
        files: The dataset.
        output: The folder, see :func:`check_output`.
        annotator: See :func:`.write_questions`.
        model: Likewise.

    Returns:
        The content of query.json.

    Raises:
        InputError: If a file cannot be written.
    """
    written = dict(content)
    with new_folder(output, replaced=True) as scratch:
        for case, prediction in predictions.items():
            numbers = np.zeros(prediction.model.shape, dtype=np.uint32)
            for region in regions:
                if region["case"] == case:
                    numbers[tuple(slice(*ends) for ends in region["box"])] = region["label"]
            file = scratch / MASKS / f"{case}{files.file_ending}"
            write_numbered_mask(files, numbers, file, prediction.properties, fewer="ask for fewer (-n)")
        write_questions(regions, predictions, files, scratch / QUESTIONS, annotator=annotator, model=model)
        write_json(with_reader(files), scratch / QUESTIONS / "dataset.json")
        # By which the masks are read, by the reader that the boxes are in the axis order of.
        write_json(with_reader(files), scratch / "dataset.json")
        written["files"] = sorted(str(file.relative_to(scratch)) for file in scratch.rglob("*") if file.is_file())
        written["regions"] = [dict(region) for region in regions]
        write_json(written, scratch / JSON_NAME)
    return written


def with_reader(files: DatasetFiles) -> dict[str, Any]:
    """The content of a dataset.json that has nnU-Net use the same reader-writer."""
    return dict(files.content) | {"overwrite_image_reader_writer": type(files.reader).__name__}


def place_of(box: Box, prediction: PredictedCase) -> dict[str, Any]:
    """Where a box is, as entries of query.json.

    Returns:
        `box`, (start, stop) in voxels along each axis of the array that nnU-Net reads, (z, y, x); `box_world`, lowest
        and highest x, y and z of the centres of its corner voxels, and `centre_world`, in LPS mm, or in pixels if the
        file has no physical units; rounded to four decimals.
    """
    corners = to_world([*product(*((start, stop - 1) for start, stop in zip(*box, strict=True)))], prediction)
    low, high = corners.min(0), corners.max(0)
    return {
        "box": _ends(box),
        "box_world": [[round(float(a), 4), round(float(b), 4)] for a, b in zip(low, high, strict=True)],
        "centre_world": [round(float(each), 4) for each in corners.mean(0)],
    }


def _ends(box: Box) -> list[list[int]]:
    return [[start, stop] for start, stop in zip(*box, strict=True)]
