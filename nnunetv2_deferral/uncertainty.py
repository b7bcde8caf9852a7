"""Voxel-wise uncertainty from the probabilities that nnU-Net saves with `--save_probabilities` (`--npz`)."""

from __future__ import annotations

import numpy as np
from scipy.special import entr


def one_minus_max(probabilities: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """1 - the largest softmax probability; with regions, min(p, 1 - p) of the least certain region.

    Args:
        probabilities: Floating (K, *S): of classes, summing to 1, or of regions, each in [0, 1].
        has_regions: Whether the probabilities are those of regions.

    Returns:
        float32 of shape S, in [0, 1).
    """
    if has_regions:
        return np.minimum(probabilities, 1 - probabilities).max(0).astype(np.float32)
    return np.clip(1 - probabilities.max(0), 0, 1).astype(np.float32)


def entropy(probabilities: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """Entropy of the softmax in nats; with regions, the sum of the binary entropies of all regions.

    Args:
        probabilities: See :func:`one_minus_max`.
        has_regions: See :func:`one_minus_max`.

    Returns:
        float32 of shape S, not negative.
    """
    total = entr(probabilities).sum(0)
    if has_regions:
        total = total + entr(1 - probabilities).sum(0)
    return np.maximum(total, 0).astype(np.float32)
