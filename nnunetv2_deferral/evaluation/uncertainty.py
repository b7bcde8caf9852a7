"""How unsure a model is at a voxel, from the probabilities that nnU-Net saves with `--save_probabilities` (`--npz`)."""

from __future__ import annotations

import numpy as np
from scipy.special import entr


def one_minus_max(probabilities: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """1 - the largest softmax probability; with regions, that of the region that is least sure.

    Args:
        probabilities: Floating (K, *S): of classes, adding up to 1, or of regions, each in [0, 1].
        has_regions: Which of the two.

    Returns:
        float32 of shape S, in [0, 1).
    """
    if has_regions:
        return np.minimum(probabilities, 1 - probabilities).max(0).astype(np.float32)
    return np.clip(1 - probabilities.max(0), 0, 1).astype(np.float32)


def entropy(probabilities: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """Entropy of the softmax in nats; with regions, the sum of the entropies of all regions. Arguments as above."""
    total = entr(probabilities).sum(0)
    if has_regions:
        total = total + entr(1 - probabilities).sum(0)
    return np.maximum(total, 0).astype(np.float32)
