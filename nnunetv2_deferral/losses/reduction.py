"""The reduction shared by all losses: the mean over the voxels that count."""

from __future__ import annotations

from torch import Tensor


def mean_over_voxels(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of `values` (B, *S) over the voxels where the bool mask `valid` (B, *S) is True, or over all if None.

    Returns:
        A scalar; 0, with zero gradient, if no voxel counts.
    """
    if valid is None:
        return values.mean()
    return (values * valid).sum() / valid.sum().clamp(min=1)
