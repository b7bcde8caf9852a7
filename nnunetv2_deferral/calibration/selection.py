"""The calibration map that does best on groups it was not fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, xlogy
from sklearn.isotonic import isotonic_regression

from nnunetv2_deferral.decision.calibrators import IDENTITY, KINDS, MAX_KNOTS, Calibrator, Isotonic, Temperature
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.head_statistics import Bins, HeadStatistics

TEMPERATURES = (0.05, 20.0)
INDIFFERENT = 1e-4  # a relative difference of log losses that is not worth a more complex map


@dataclass(frozen=True)
class Fit:
    """A map and why it was chosen.

    Attributes:
        map: Fitted on all voxels.
        log_loss: By kind, in nats a voxel, the mean over all voxels of the loss of a map that was fitted without their
            group.
    """

    map: Calibrator
    log_loss: dict[str, float]


def fit(statistics: HeadStatistics, *, folds: int = 5) -> Fit:
    """The map that does best on groups it was not fitted on.

    In the order of their names, groups are dealt to the parts in turn, which are held back one after the other. Of
    several kinds within a relative `INDIFFERENT` of the least held-back log loss, the simplest is taken.

    Args:
        statistics: Of one head, on cases the network was not trained on.
        folds: The number of parts, at least 2; there are never more than groups.

    Raises:
        InputError: If there are fewer than two groups or folds.
    """
    groups = statistics.groups
    if len(groups) < 2:
        got = ", ".join(groups) or "none"
        raise InputError(f"calibration needs at least two cases (patients), to hold some back, got {got}")
    if folds < 2:
        raise InputError(f"folds must be at least 2, got {folds}")
    total = dict.fromkeys((each.kind for each in KINDS), 0.0)
    for part in range(min(folds, len(groups))):
        held_back = groups[part::folds]
        unseen = statistics.bins(held_back)
        for candidate in _candidates(statistics.bins([group for group in groups if group not in held_back])):
            total[candidate.kind] += _loss(unseen, candidate)
    every = statistics.bins()
    losses = {kind: loss / float(every.voxels.sum()) for kind, loss in total.items()}
    good = min(losses.values()) * (1 + INDIFFERENT)
    return Fit(next(each for each in _candidates(every) if losses[each.kind] <= good), losses)


def _candidates(bins: Bins) -> tuple[Calibrator, ...]:
    """One map of each kind, in the order of `KINDS`, fitted on these voxels."""
    return IDENTITY, _fitted_temperature(bins), _fitted_isotonic(bins)


def _loss(bins: Bins, calibration: Calibrator) -> float:
    """The sum of all voxels' log losses, in nats."""
    logits = calibration.on_logits(bins.logits)
    wrong = bins.voxels - bins.right
    return float(np.sum(bins.right * np.logaddexp(0, -logits) + wrong * np.logaddexp(0, logits)))


def _fitted_temperature(bins: Bins) -> Temperature:
    """The T in `TEMPERATURES` of least log loss, which is convex in 1 / T."""
    logits = bins.logits

    def slope(inverse: float) -> float:
        return float(np.sum(logits * (bins.voxels * expit(logits * inverse) - bins.right)))

    coldest, hottest = TEMPERATURES
    if slope(1 / hottest) >= 0:
        return Temperature(hottest)
    if slope(1 / coldest) <= 0:
        return Temperature(coldest)
    return Temperature(1 / float(brentq(slope, 1 / hottest, 1 / coldest)))


def _fitted_isotonic(bins: Bins) -> Isotonic:
    blocks = _pooled(bins)
    # A block that is all right or all wrong gets half a voxel of either kind, or its logit would be infinite. That may
    # bring a small one out of order again.
    pure = (blocks.right == 0) | (blocks.right == blocks.voxels)
    logit_sum = blocks.logit_sum + pure * blocks.logits
    blocks = _pooled(Bins(blocks.voxels + pure, blocks.right + pure / 2, logit_sum))
    while blocks.voxels.size > MAX_KNOTS:
        # The two neighbours that differ least, in the log loss that one value instead of two costs.
        together = Bins(*(row[1:] + row[:-1] for row in blocks))
        least, apart = _least_loss(together), _least_loss(blocks)
        first = int(np.argmin(least - apart[1:] - apart[:-1]))
        blocks = _joined(blocks, np.arange(blocks.voxels.size) - (np.arange(blocks.voxels.size) > first))
    return Isotonic(tuple(blocks.logits.tolist()), tuple((blocks.right / blocks.voxels).tolist()))


def _pooled(bins: Bins) -> Bins:
    """Neighbours joined until the share that is right rises strictly."""
    fitted = isotonic_regression(bins.right / bins.voxels, sample_weight=bins.voxels)
    return _joined(bins, np.concatenate(([0], np.cumsum(np.diff(fitted) > 0))))


def _joined(bins: Bins, block: np.ndarray) -> Bins:
    """The bins of each block added; blocks are numbered in order."""
    return Bins(*(np.bincount(block, row) for row in bins))


def _least_loss(blocks: Bins) -> np.ndarray:
    """The log loss of each block, in nats, if its probability is the share that is right; float64 (B,)."""
    share = blocks.right / blocks.voxels
    return -xlogy(blocks.right, share) - xlogy(blocks.voxels - blocks.right, 1 - share)
