"""A case to be drawn, the selection of slice and crop, and kinds of errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseView:
    """A case with the data needed to draw it.

    Attributes:
        case: The case, with arrays of shape (Y, X), (Z, Y, X) or, as in nnU-Net for 2D, (1, Y, X). Voxels that do not
            count are shown without masks.
        image: One channel of the image, any real type, same shape.
        model_dice: Dice of the model's mask, NaN if undefined.
        system_dice: Dice of the fused mask, NaN if undefined.
    """

    case: EvaluatedCase
    image: np.ndarray
    model_dice: float
    system_dice: float

    def __post_init__(self) -> None:
        shape, spacing = self.case.reference.shape, self.case.prediction.spacing
        if self.image.shape != shape or len(spacing) != len(shape):
            raise InputError(
                f"case {self.case.name}: masks of shape {shape} do not match an image of shape {self.image.shape} with "
                f"a spacing of length {len(spacing)}"
            )
        if len(shape) not in (2, 3):
            raise InputError(f"case {self.case.name}: only 2D and 3D cases can be drawn, got shape {shape}")

    @property
    def counted_route(self) -> np.ndarray:
        """The route of the voxels that count, as a 1D array."""
        return self.case.route[self.case.valid]


def fullest_slice(*marked: np.ndarray) -> int:
    """Select the slice along the first axis to show.

    Args:
        marked: Arrays of shape (Z, Y, X) in order of priority, for example the route and the errors of the model.

    Returns:
        Index of the slice with the most nonzero voxels in the first array that has any; the middle slice if none has.
    """
    for each in marked:
        numbers = np.count_nonzero(each.reshape(each.shape[0], -1), axis=1)
        if numbers.any():
            return int(numbers.argmax())
    return marked[0].shape[0] // 2


def telling_part(*marked: np.ndarray, margin: float = 0.35, smallest: int = 40) -> tuple[slice, slice]:
    """A crop of an image (Y, X) that contains all nonzero pixels of `marked`, with a margin.

    Args:
        marked: Arrays of shape (Y, X).
        margin: Margin on each side, as a fraction of the longer side of the bounding box of nonzero pixels.
        smallest: Minimum side of the crop in pixels, limited by the image.

    Returns:
        Rows and columns; the whole image if all arrays are zero or the crop would exceed three quarters of each side.
    """
    whole = (slice(0, marked[0].shape[0]), slice(0, marked[0].shape[1]))
    found = np.logical_or.reduce([each != 0 for each in marked])
    if not found.any():
        return whole
    ranges = [np.flatnonzero(found.any(1 - axis))[[0, -1]] for axis in (0, 1)]
    side = max(smallest, round((1 + 2 * margin) * max(last + 1 - first for first, last in ranges)))
    part = []
    for (first, last), size in zip(ranges, marked[0].shape, strict=True):
        begin = max(0, min((first + last + 1 - side) // 2, size - side))
        part.append(slice(int(begin), int(min(size, begin + side))))
    if all(4 * side > 3 * size for size in marked[0].shape):
        return whole
    return part[0], part[1]


def error_kinds(reference: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """The errors of a mask by kind.

    Returns:
        Bool masks of the shape of `reference`: `added` (background in the reference), `missed` (background in the
        answer) and `confused` (two different foreground labels).
    """
    wrong = reference != answer
    added, missed = wrong & (reference == 0), wrong & (answer == 0)
    return {"added": added, "missed": missed, "confused": wrong & ~added & ~missed}
