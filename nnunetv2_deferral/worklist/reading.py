"""Reading a worklist, and checking that it belongs to the given predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, Strict
from typing_extensions import TypedDict

from nnunetv2_deferral.dataset import same_cases
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.schema import Number, Text, read_validated_json
from nnunetv2_deferral.worklist.items import JSON_NAME, mask_name

_FromOne = Annotated[int, Strict(), Field(ge=1, lt=2**63)]


class _Row(TypedDict):
    case: Text
    expert: Text
    label: _FromOne
    rank: _FromOne
    voxels: _FromOne
    expected_gain: Number


class WorklistJson(TypedDict):
    """Types and ranges of what is read of a worklist.json; other keys are ignored."""

    model: dict[Text, Any]
    regions: list[_Row]


class Listed(NamedTuple):
    """A listed region: its value in the mask, its rank, its size in voxels and its expected gain."""

    label: int
    rank: int
    voxels: int
    expected_gain: float


@dataclass(frozen=True, kw_only=True)
class Worklist:
    """A worklist written by `nnUNetv2_deferral_worklist`.

    Attributes:
        folder: The folder of the worklist.
        predictions: The predictions that it belongs to.
        rows: The listed regions by case and expert, in the order of their labels 1, 2, ... and of their ranks.
    """

    folder: Path
    predictions: PredictionFolder
    rows: Mapping[tuple[str, str], tuple[Listed, ...]]

    @classmethod
    def open(cls, folder: Path, predictions: PredictionFolder) -> Worklist:
        """Read the list; the masks are read later, case by case.

        Raises:
            InputError: If there is no list, it cannot be read, or it belongs to another model or other cases; the
                message names the file and the differences.
        """
        file = folder / JSON_NAME
        if not file.is_file():
            raise InputError(f"{folder} is not a worklist: {file} does not exist")
        rows: dict[tuple[str, str], list[Listed]] = {}
        content = read_validated_json(file, WorklistJson)
        for row in content["regions"]:
            listed = Listed(*(row[key] for key in Listed._fields))
            rows.setdefault((row["case"], row["expert"]), []).append(listed)
        _check_model(file, content["model"], predictions)
        same_cases(
            f"{file} lists cases that are not in {predictions.folder}", [of for of, _ in rows], predictions.cases
        )
        same_cases(f"{file} lists unknown experts", [name for _, name in rows], predictions.experts)
        ordered = {of: tuple(sorted(found)) for of, found in rows.items()}
        for (case, expert), found in ordered.items():
            ranks = [each.rank for each in found]
            if [each.label for each in found] != list(range(1, len(found) + 1)) or ranks != sorted(set(ranks)):
                numbers = [(each.label, each.rank) for each in found[:5]]
                raise InputError(f"{file} does not number the regions of {expert} in {case} by rank: {numbers}")
        return cls(folder=folder, predictions=predictions, rows=ordered)

    def labels(self, case: str, route: np.ndarray, properties: Mapping[str, Any]) -> np.ndarray:
        """The listed regions of a case.

        Args:
            case: The case identifier.
            route: Its route, uint8 of shape S in the orientation of the file.
            properties: nnU-Net's properties of the model's mask.

        Returns:
            int64 of shape S: the label of the listed region of the expert to whom the voxel is routed, or 0.

        Raises:
            InputError: If a mask is missing or cannot be read, its shape, geometry or regions differ, or it has voxels
                that are not routed to its expert; the message names the file.
        """
        labels = np.zeros(route.shape, dtype=np.int64)
        for number, expert in enumerate(self.predictions.experts, start=1):
            rows = self.rows.get((case, expert))
            if rows is None:
                continue
            file = self.folder / mask_name(expert, self.predictions.mask_file(case).name)
            mask = self.predictions.files.read_like(file, route, properties, of_dataset=False)
            listed = mask != 0
            if outside := int((listed & (route != number)).sum()):
                raise InputError(
                    f"{file} lists {outside} voxels that {self.predictions.folder} does not route to {expert}. Does "
                    "the worklist belong to other predictions?"
                )
            values, sizes = np.unique(mask[listed], return_counts=True)
            expected, found = {row.label: row.voxels for row in rows}, dict(zip(values.tolist(), sizes, strict=True))
            for label in sorted(expected.keys() | found.keys()):
                if expected.get(label, 0) != found.get(label, 0):
                    raise InputError(
                        f"{file} has {found.get(label, 0)} voxels of region {label}, but {self.folder / JSON_NAME} "
                        f"lists {expected.get(label, 0)}"
                    )
            labels[listed] = mask[listed]
        return labels


def _check_model(file: Path, model: Mapping[str, Any], predictions: PredictionFolder) -> None:
    ours = predictions.index["model"]
    differences = [
        f"{key} {model.get(key)!r} instead of {ours.get(key)!r}"
        for key in dict.fromkeys([*ours, *model])
        if model.get(key) != ours.get(key)
    ]
    if differences:
        raise InputError(f"{file} is not a worklist of {predictions.folder}: {'; '.join(differences)}")
