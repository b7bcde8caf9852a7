r"""What a missed and a false voxel are worth in Dice, and the labels that follow from it.

With the predicted area A of a structure, the area B of the reference and the Dice D, recovering a missed voxel adds
M = (2 - D) / (A + B), and removing a false one F = D / (A + B). Labelling a voxel that is inside with probability q so
adds q M - (1 - q) F, which is positive from q = F / (M + F) = D / 2 on: the mask with the highest expected Dice is
larger than that of the more probable label (Lipton et al. 2014, "Optimal thresholding of classifiers to maximize F1
measure"). D is that of the resulting mask. Once experts have answered it lies between the Dice of the prior and 1, and
is taken to be halfway.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from nnunetv2_deferral.arrays import chunks_of
from nnunetv2_deferral.evidence.prior import PriorMap
from nnunetv2_deferral.evidence.structures import Structures

# Lower bound of the areas, which are near 0 if there is hardly anything; it bounds the weights.
SMALLEST_AREA = 10.0


def dice_steps(predicted: np.ndarray, expected: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a missed and a false voxel of each class are worth in the Dice of that class.

    Args:
        predicted: Real (K,), the areas A of the prediction in voxels.
        expected: Real (K,), the expected areas B of the reference.
        hit: Real (K,), the expected true positives.

    Returns:
        (2 - D) / (A + B) and D / (A + B), float64 (K,), with A + B of at least 2 `SMALLEST_AREA`.
    """
    total = np.asarray(predicted, dtype=np.float64) + expected
    dice = np.divide(2 * hit, total, out=np.zeros(total.shape), where=total > 0)
    total = np.maximum(total, 2 * SMALLEST_AREA)
    return (2 - dice) / total, dice / total


def structure_weights(prior: PriorMap, structures: Structures) -> np.ndarray:
    """What a missed and a false voxel of each structure are worth in the mean Dice of a case.

    See :func:`dice_steps`, with the labels and the Dice that the prior expects.

    Args:
        prior: The prior of the case.
        structures: Its S structures.

    Returns:
        float64 (S, 2), 0 for structures without a Dice.
    """
    flat = prior.logits.reshape(len(prior.logits), -1)
    predicted, hit = np.zeros(len(flat)), np.zeros(len(flat))
    for where in chunks_of(flat.shape[1], len(flat)):
        part = flat[:, where].astype(np.float32, copy=False)
        inside = structures.contain(structures.to_labels(part))
        predicted += inside.sum(1)
        hit += np.sum(expit(part), axis=1, dtype=np.float64, where=inside)
    # The prior may expect more in there than the model does in all.
    steps = np.stack(dice_steps(predicted, prior.areas, np.minimum(hit, prior.areas)), axis=1)
    return np.where(structures.scored[:, None], steps / max(int(structures.scored.sum()), 1), 0.0)


def thresholds(weights: np.ndarray) -> np.ndarray:
    """The probabilities above which voxels that experts have answered are best labelled as inside.

    Args:
        weights: float (S, 2), what a missed and a false voxel of each structure are worth, M and F.

    Returns:
        float64 (S,), between 1/4 and 1/2: half of the Dice halfway between that of the prior, 2 F / (M + F), and 1; 1/2
        for structures without a Dice.
    """
    total = weights.sum(1, dtype=np.float64)
    dice = np.divide(2 * weights[:, 1], total, out=np.ones(total.shape), where=total > 0)
    return np.asarray((dice + 1) / 4)


def best_labels(structures: Structures, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The labels of voxels that are expected to add most to the mean Dice of their case.

    Args:
        structures: The S structures.
        logits: Real (S, n), of being inside each structure.
        weights: See :func:`thresholds`.

    Returns:
        int64 (n,): as :meth:`.Structures.to_labels` with two labels or regions, if a voxel is inside a structure above
        its threshold t in place of 1/2. With more labels the one with the highest (q - t) (M + F), with probabilities q
        that sum to 1, background if none is positive.
    """
    least = thresholds(weights)
    if structures.regions is not None or len(structures.members) == 1:
        return structures.to_labels(logits - logit(least)[:, None])
    probability = expit(logits)
    probability /= probability.sum(0)
    gains = (probability - least[:, None]) * weights.sum(1)[:, None]
    gains[~structures.scored] = 0
    return structures.to_labels(gains)
