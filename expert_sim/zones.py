"""Where an expert's accuracy changes: foreground, background and the band around label boundaries.

Everything here works on label maps of shape (X, Y) or (X, Y, Z) on the CPU, with distances in voxels, and is meant to
be cheap enough for the data loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nnunetv2_deferral.errors import InputError

DEFAULT_BOUNDARY_WIDTH = 2
"""Half the width of the boundary band, in voxels: so many on either side of a label change."""

_INT16 = torch.iinfo(torch.int16)


def _check_label_map(labels: torch.Tensor) -> None:
    if labels.ndim not in (2, 3) or labels.numel() == 0:
        raise InputError(f"a label map has shape (X, Y) or (X, Y, Z) and is not empty, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"a label map has an integer dtype, got {labels.dtype}")
    if labels.device.type != "cpu":
        raise InputError(f"experts are simulated on the CPU, got a label map on {labels.device}")


def _window_max(values: np.ndarray, width: int) -> np.ndarray:
    """The largest value within `width` voxels (Chebyshev) that are in the image; same shape and dtype.

    Args:
        values: (N, X, Y) or (N, X, Y, Z), N images at once, unsigned.
        width: In voxels.
    """
    # With a margin of zeros, a step along any axis is a step in flat memory, which is fast in small images too.
    reach = [0, *(min(width, size - 1) for size in values.shape[1:])]
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


def boundary_band(labels: torch.Tensor, width: int, *, ignore_label: int | None = None) -> torch.Tensor:
    """The voxels within `width` voxels of a label change, on both of its sides.

    A voxel is in the band when a voxel of another label lies within Chebyshev distance `width` of it; so the band
    is `width` voxels deep on each side of a boundary. The image border is no boundary.

    Args:
        labels: Integer label map of shape (X, Y) or (X, Y, Z), any number of labels.
        width: Depth of the band on each side, in voxels. 0 gives an empty band.
        ignore_label: Voxels of this label are in no band and make no boundary with their neighbours.

    Returns:
        Bool tensor of the same shape. All False where there is only one label.

    Raises:
        InputError: If `width` is negative, or `labels` is no integer label map within int16.
    """
    _check_label_map(labels)
    if width < 0:
        raise InputError(f"the width of the boundary band must be at least 0 voxels, got {width}")
    lowest, highest = (int(value) for value in labels.aminmax())
    if lowest <= _INT16.min or highest > _INT16.max:
        raise InputError(f"labels must lie within int16, got {lowest} to {highest}")
    if width == 0 or lowest == highest:
        return torch.zeros(labels.shape, dtype=torch.bool)
    # How far above the lowest label, and below the highest: from 1, so that 0 is less than any.
    values, spread = labels.numpy(), highest - lowest
    heights = np.empty((2, *values.shape), np.min_scalar_type(spread + 2))
    np.subtract(values, lowest - 1, out=heights[0], casting="unsafe", dtype=np.int32)
    np.subtract(spread + 2, heights[0], out=heights[1])
    ignored = None if ignore_label is None else values == ignore_label
    if ignored is not None:  # neither the largest nor the smallest label of any window that holds another
        heights[:, ignored] = 0
    is_not_highest, is_not_lowest = _window_max(heights, width) != heights
    band = is_not_highest | is_not_lowest
    if ignored is not None:
        band &= ~ignored
    return torch.from_numpy(band)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the error models need to know of one image; made once for all experts by :meth:`from_labels`.

    Attributes:
        labels: Contiguous int16 label map, (X, Y) or (X, Y, Z), with 0 where the reference says "ignore".
        valid: Bool tensor of the same shape, False where the reference says "ignore"; None when it never does.
        band: Contiguous bool tensor of the same shape, the boundary band; False where not valid.
        boundary_width: Depth of the band on each side, in voxels.
        label_values: The labels an expert may answer, ascending, at least two, the first of them 0.
        ignore_label: The value that stands for "ignore" in the label map this was made from, or None.
    """

    labels: torch.Tensor
    valid: torch.Tensor | None
    band: torch.Tensor
    boundary_width: int
    label_values: tuple[int, ...]
    ignore_label: int | None

    @cached_property
    def is_foreground(self) -> np.ndarray:
        """Bool array of the image's shape: every label but 0."""
        return self.labels.numpy() != 0

    @cached_property
    def beyond(self) -> tuple[np.ndarray, np.ndarray]:
        """Foreground and background outside of the band and where the reference is valid: bool arrays."""
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
        boundary_width: int = DEFAULT_BOUNDARY_WIDTH,
        ignore_label: int | None = None,
    ) -> Reference:
        """Check a label map and work out its regions.

        Args:
            labels: Integer label map, (X, Y) or (X, Y, Z). It may hold one label only.
            label_values: The real labels of the dataset, without the ignore label; with 0 and at least one other.
            boundary_width: Depth of the boundary band on each side, in voxels.
            ignore_label: The value of voxels without a reference, or None.

        Raises:
            InputError: For no integer label map on the CPU, fewer than two labels to answer, no background label 0, an
                ignore label that is also a real one, or values in `labels` that are neither (the message names them).
        """
        _check_label_map(labels)
        values = tuple(sorted({int(value) for value in label_values}))
        if not values or values[0] != 0:
            raise InputError(f"the label values must begin with the background label 0, got {list(values)}")
        if len(values) < 2:
            raise InputError(f"an expert who errs needs another label to answer: got only {list(values)}")
        if values[-1] > _INT16.max:
            raise InputError(f"label values must lie within int16, got {values[-1]}")
        if ignore_label is not None and ignore_label in values:
            raise InputError(f"the ignore label {ignore_label} is also among the label values {list(values)}")
        band = boundary_band(labels, boundary_width, ignore_label=ignore_label)
        ignored = None if ignore_label is None else labels == ignore_label
        if ignored is not None and not bool(ignored.any()):
            ignored = None
        known = labels if ignored is None else labels.masked_fill(ignored, 0)
        _check_values(known, values)
        return cls(
            labels=known.to(torch.int16).contiguous(),
            valid=None if ignored is None else ~ignored,
            band=band.contiguous(),
            boundary_width=boundary_width,
            label_values=values,
            ignore_label=ignore_label,
        )


def _check_values(labels: torch.Tensor, values: tuple[int, ...]) -> None:
    """Refuse labels that are not among `values` (ascending); cheap when the values have no gaps."""
    lowest, highest = (int(value) for value in labels.aminmax())
    has_gaps = values[-1] - values[0] != len(values) - 1
    if not has_gaps and values[0] <= lowest and highest <= values[-1]:
        return
    unknown = sorted(set(labels.unique().tolist()) - set(values))
    if unknown:
        raise InputError(f"the label map holds {unknown}, which are not among the label values {list(values)}")
