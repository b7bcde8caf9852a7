"""The zones of an expert's accuracies: foreground, background and the band around label boundaries.

All functions work on label maps of shape (X, Y) or (X, Y, Z) on the CPU, and are fast enough
for the data loader.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch

from nnunetv2_deferral.defaults import BOUNDARY_WIDTH
from nnunetv2_deferral.errors import InputError

_INT16 = torch.iinfo(torch.int16)


def check_label_map(labels: torch.Tensor) -> None:
    """Refuse what is not an integer label map (X, Y) or (X, Y, Z) on the CPU.

    Raises:
        InputError: With what it is.
    """
    if labels.ndim not in (2, 3) or labels.numel() == 0:
        raise InputError(f"a label map must have shape (X, Y) or (X, Y, Z) and not be empty, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"a label map must have an integer dtype, got {labels.dtype}")
    if labels.device.type != "cpu":
        raise InputError(f"experts are simulated on the CPU, got a label map on {labels.device}")


def _window_max(values: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """The maximum in a box around each voxel, restricted to the image; same shape and dtype.

    Args:
        values: (N, X, Y) or (N, X, Y, Z), a batch of N images, unsigned.
        widths: By axis, in voxels to each side.
    """
    # With zero padding a shift along any axis is a shift in flat memory, which is fast for small images too.
    reach = [0, *(min(width, size - 1) for width, size in zip(widths, values.shape[1:], strict=True))]
    padded = np.zeros([size + 2 * margin for size, margin in zip(values.shape, reach, strict=True)], values.dtype)
    inside = tuple(slice(margin, margin + size) for size, margin in zip(values.shape, reach, strict=True))
    padded[inside] = values
    flat = padded.reshape(-1)
    for margin, stride in zip(reach[1:], padded.strides[1:], strict=True):
        widened = flat.copy()
        step = stride // values.itemsize
        for shift in range(step, margin * step + 1, step):
            np.maximum(widened[:-shift], flat[shift:], out=widened[:-shift])
            np.maximum(widened[shift:], flat[:-shift], out=widened[shift:])
        flat = widened
    return flat.reshape(padded.shape)[inside]


def widths_in_voxels(width: int, spacing: Sequence[float]) -> tuple[int, ...]:
    """A width in voxels by axis, given the spacing by axis in the unit of the width.

    Halves are rounded up, with a tolerance, because the spacing in a file's header has few digits.
    """
    return tuple(math.floor(width / each + 0.5 + 1e-4) for each in spacing)


def spacing_in_voxels_of(voxel_mm: float | None, spacing_mm: Sequence[float]) -> tuple[float, ...] | None:
    """A spacing by axis in voxels of an edge in mm; None without one, with which the unit is the voxel itself."""
    return None if voxel_mm is None else tuple(float(each) / voxel_mm for each in spacing_mm)


def remark_on_band(width: int, voxel_mm: float | None, spacing_mm: Sequence[float]) -> str:
    """A sentence if the band of an image is narrower than half a voxel along each axis, so that there is none.

    Args:
        width: Depth of the band on each side, in voxels of `voxel_mm`; with 0 no band is asked for.
        voxel_mm: Edge of these voxels; None for those of the image.
        spacing_mm: Spacing of the image by axis.

    Returns:
        The sentence, the same for every such image; empty if there is a band.
    """
    spacing = spacing_in_voxels_of(voxel_mm, spacing_mm)
    if spacing is None or voxel_mm is None or width == 0 or max(widths_in_voxels(width, spacing)) > 0:
        return ""
    return (
        f"simulated experts have no border zone where voxels are larger than {2 * width * voxel_mm:g} mm along each "
        f"axis: a band of {width} voxels (boundary_width) of {voxel_mm:g} mm (expert_voxel_mm) is less than half a "
        "voxel there"
    )


@cache
def warn_once(remark: str) -> None:
    """Log a warning, once in a process; nothing if it is empty."""
    if remark:
        logging.getLogger(__name__).warning(remark)


def boundary_band(labels: torch.Tensor, width: int | Sequence[int], *, ignore_label: int | None = None) -> torch.Tensor:
    """The voxels within `width` voxels of a label change, on both sides of it.

    A voxel is in the band if a voxel of another label lies within Chebyshev distance `width`; the band is thus `width`
    voxels deep on each side of a boundary. The image border is not a boundary.

    Args:
        labels: Integer label map of shape (X, Y) or (X, Y, Z), any number of labels.
        width: Depth of the band on each side, in voxels, also by axis. 0 gives an empty band.
        ignore_label: Voxels of this label are not in the band and do not form a boundary with their neighbours. None
            if there is no such label.

    Returns:
        Bool tensor of the same shape. All False if there is only one label.

    Raises:
        InputError: If `width` is negative, or `labels` is not an integer label map within int16.
    """
    check_label_map(labels)
    widths = [width] * labels.ndim if isinstance(width, int) else list(width)
    if min(widths) < 0:
        raise InputError(f"the width of the boundary band must be at least 0 voxels, got {width}")
    lowest, highest = (int(value) for value in labels.aminmax())
    if lowest <= _INT16.min or highest > _INT16.max:
        raise InputError(f"labels must lie within int16, got {lowest} to {highest}")
    if max(widths) == 0 or lowest == highest:
        return torch.zeros(labels.shape, dtype=torch.bool)
    # Height above the lowest label and depth below the highest, both from 1, so that 0 is below any.
    values, spread = labels.numpy(), highest - lowest
    heights = np.empty((2, *values.shape), np.min_scalar_type(spread + 2))
    np.subtract(values, lowest - 1, out=heights[0], casting="unsafe", dtype=np.int32)
    np.subtract(spread + 2, heights[0], out=heights[1])
    ignored = None if ignore_label is None else values == ignore_label
    if ignored is not None:  # never the maximum or minimum of a window that contains another label
        heights[:, ignored] = 0
    is_not_highest, is_not_lowest = _window_max(heights, widths) != heights
    band = is_not_highest | is_not_lowest
    if ignored is not None:
        band &= ~ignored
    return torch.from_numpy(band)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference and its zones for one image, shared by all experts; made by :meth:`from_labels`.

    Attributes:
        labels: Contiguous int16 label map, (X, Y) or (X, Y, Z), with 0 at ignored voxels.
        valid: Bool tensor of the same shape, False at ignored voxels; None if there are none.
        band: Contiguous bool tensor of the same shape, the boundary band; False where not valid.
        boundary_width: Depth of the band on each side, in the unit of the spacing.
        spacing: Spacing of the voxels by axis; 1 if the unit is the voxel.
        label_values: The labels an expert may answer, ascending, at least two, the first of them 0.
        ignore_label: The ignore label in the original label map, or None.
    """

    labels: torch.Tensor
    valid: torch.Tensor | None
    band: torch.Tensor
    boundary_width: int
    spacing: tuple[float, ...]
    label_values: tuple[int, ...]
    ignore_label: int | None

    @cached_property
    def is_foreground(self) -> np.ndarray:
        """Bool array of the image's shape: every label but 0."""
        return self.labels.numpy() != 0

    @cached_property
    def beyond(self) -> tuple[np.ndarray, np.ndarray]:
        """Foreground and background among valid voxels outside the band: bool arrays."""
        beyond = ~self.band.numpy()
        if self.valid is not None:
            beyond &= self.valid.numpy()
        return beyond & self.is_foreground, beyond & ~self.is_foreground

    @classmethod
    def from_labels(
        cls,
        labels: torch.Tensor,
        label_values: Sequence[int],
        *,
        boundary_width: int = BOUNDARY_WIDTH,
        spacing: Sequence[float] | None = None,
        ignore_label: int | None = None,
    ) -> Reference:
        """Check a label map and compute its zones.

        Args:
            labels: Integer label map, (X, Y) or (X, Y, Z). It may contain one label only.
            label_values: The labels of the dataset, without the ignore label; 0 and at least one other.
            boundary_width: Depth of the boundary band on each side, in the unit of the spacing.
            spacing: Spacing of the voxels by axis; None for 1, with which the unit is the voxel.
            ignore_label: The label of voxels without a reference, or None.

        Raises:
            InputError: If `labels` is not an integer label map on the CPU, there are fewer than two label values or no
                background label 0, the ignore label is among them, or `labels` contains other values (the message
                names them).
        """
        check_label_map(labels)
        values = tuple(sorted({int(value) for value in label_values}))
        if not values or values[0] != 0:
            raise InputError(f"the label values must begin with the background label 0, got {list(values)}")
        if len(values) < 2:
            raise InputError(f"simulated experts need at least two label values, got {list(values)}")
        if values[-1] > _INT16.max:
            raise InputError(f"label values must lie within int16, got {values[-1]}")
        if ignore_label is not None and ignore_label in values:
            raise InputError(f"the ignore label {ignore_label} is among the label values {list(values)}")
        if boundary_width < 0:
            raise InputError(f"the width of the boundary band must be at least 0 voxels, got {boundary_width}")
        spacing = (1.0,) * labels.ndim if spacing is None else tuple(spacing)
        band = boundary_band(labels, widths_in_voxels(boundary_width, spacing), ignore_label=ignore_label)
        ignored = None if ignore_label is None else labels == ignore_label
        if ignored is not None and not bool(ignored.any()):
            ignored = None
        known = labels if ignored is None else labels.masked_fill(ignored, 0)
        check_values(known, values)
        return cls(
            labels=known.to(torch.int16).contiguous(),
            valid=None if ignored is None else ~ignored,
            band=band.contiguous(),
            boundary_width=boundary_width,
            spacing=spacing,
            label_values=values,
            ignore_label=ignore_label,
        )


def check_values(labels: torch.Tensor, values: tuple[int, ...]) -> None:
    """Refuse labels that are not among `values` (ascending); fast if the values are consecutive.

    Raises:
        InputError: With the labels.
    """
    lowest, highest = (int(value) for value in labels.aminmax())
    has_gaps = values[-1] - values[0] != len(values) - 1
    if not has_gaps and values[0] <= lowest and highest <= values[-1]:
        return
    unknown = sorted(set(labels.unique().tolist()) - set(values))
    if unknown:
        raise InputError(f"the label map contains {unknown}, which are not among the label values {list(values)}")
