r"""What the answers around a voxel say about it.

.. math:: S(v) = \frac{\sum_{u \ne v} K(u - v) (q^+_u - q_u)}{\sum_{u \ne v} K(u - v) q_u (1 - q_u) + 1/4}

The sums are over the answered voxels u, q is their prior probability and q^+ that with their own answers. K is a
Gaussian with a standard deviation of 2.5 voxels, truncated at three of them, with K(0) = 1. S is positive where answers
around were "inside" more often than expected. (Simple kriging of residuals with independent errors of variance 1/4.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

SIGMA = 2.5  # voxels
_NOISE = 0.25


def neighbour_residuals(
    shape: Sequence[int],
    index: np.ndarray,
    answered: np.ndarray,
    prior: np.ndarray,
    updated: np.ndarray,
    sigmas: Sequence[float],
) -> np.ndarray:
    """S at voxels of a case.

    Args:
        shape: The case's shape.
        index: int64 (n,), flat indices of voxels, without repetition.
        answered: Bool (n,), whether the voxel was answered.
        prior: (n,), q.
        updated: (n,), q^+; arbitrary where not answered.
        sigmas: Standard deviation of K along each axis, in voxels; 0 for none.

    Returns:
        float32 (n,); 0 where no answered voxel is near. Needs memory for three arrays of the box around the answers.
    """
    found = np.zeros(index.shape, dtype=np.float32)
    places = np.stack(np.unravel_index(index, tuple(shape)))
    if not answered.any():
        return found
    kernels = [_kernel(sigma) for sigma in sigmas]
    reach = np.array([kernel.size // 2 for kernel in kernels])[:, None]
    low = np.maximum(places[:, answered].min(1, keepdims=True) - reach, 0)
    high = np.minimum(places[:, answered].max(1, keepdims=True) + reach, np.array(shape)[:, None] - 1)
    near = ((places >= low) & (places <= high)).all(0)
    inside = tuple((places - low)[:, near])
    size = tuple((high - low + 1)[:, 0])
    prior = prior.astype(np.float32)
    residual = np.where(answered, updated - prior, 0).astype(np.float32)
    variance = np.where(answered, prior * (1 - prior), 0).astype(np.float32)
    sums = [_around(values[near], inside, size, kernels) for values in (residual, variance)]
    found[near] = sums[0] / (np.maximum(sums[1], 0) + _NOISE)
    return found


def _around(
    values: np.ndarray, places: tuple[np.ndarray, ...], size: tuple[int, ...], kernels: Sequence[np.ndarray]
) -> np.ndarray:
    """The sums of K times the values of all other voxels, (m,)."""
    grid = np.zeros(size, dtype=np.float32)
    grid[places] = values
    for axis, kernel in enumerate(kernels):
        if kernel.size > 1:
            grid = ndimage.correlate1d(grid, kernel, axis=axis, mode="constant")
    return np.asarray(grid[places] - values)


def _kernel(sigma: float) -> np.ndarray:
    radius = int(3 * sigma + 0.5)
    return np.exp(-0.5 * (np.arange(-radius, radius + 1) / (sigma or 1)) ** 2)
