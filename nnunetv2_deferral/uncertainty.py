"""Voxel-wise uncertainty from the probabilities that nnU-Net saves with `--save_probabilities` (`--npz`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr

from nnunetv2_deferral.arrays import in_chunks


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


def times_doubt(
    uncertainty: np.ndarray, right: np.ndarray, calibrator: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """An uncertainty u times 1 - c, with the confidence c of a head that predicts whether the model is right.

    Args:
        uncertainty: Floating, shape S.
        right: Probability that the model is right, floating of shape S in [0, 1], or NaN where nothing was predicted.
        calibrator: Maps these probabilities to calibrated ones; None for none.

    Returns:
        float32 of shape S, u (1 - c); 0 where nothing was predicted.
    """
    found, start = np.empty(uncertainty.size, dtype=np.float32), 0
    for some, said in in_chunks(uncertainty, right):
        confidence = np.clip(np.nan_to_num(said, nan=1.0), 0, 1)
        doubt = 1 - (confidence if calibrator is None else calibrator(confidence))
        found[start : start + some.size] = np.where(np.isnan(said), 0, some * doubt)
        start += some.size
    return found.reshape(uncertainty.shape)
