"""The one way in which losses are averaged: over the voxels that count."""

from __future__ import annotations

from torch import Tensor


def mean_over_voxels(values: Tensor, counts: Tensor | None) -> Tensor:
    """Mean of `values` (B, *S) over the voxels where the bool mask `counts` (B, *S) is true, or over all if None.

    Returns:
        A scalar; 0 (with a zero gradient) where no voxel counts.
    """
    if counts is None:
        return values.mean()
    return (values * counts).sum() / counts.sum().clamp(min=1)
