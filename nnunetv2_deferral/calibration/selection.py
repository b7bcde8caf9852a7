"""The calibrator that does best on groups it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, xlogy

from nnunetv2_deferral.decision.calibrators import IDENTITY, KINDS, MAX_KNOTS, Calibrator, Isotonic, Temperature
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.head_statistics import Bins, HeadStatistics

TEMPERATURES = (0.05, 20.0)
INDIFFERENT = 1e-4  # a relative difference of log losses that is not worth a more complex calibrator


@dataclass(frozen=True)
class Selection:
    """A calibrator and why it was chosen.

    Attributes:
        calibrator: Fitted on all voxels.
        log_loss: By kind, in nats a voxel, the mean over all voxels of the loss of a calibrator that was fitted without
            their group.
    """

    calibrator: Calibrator
    log_loss: dict[str, float]


def select_calibrator(
    probabilities: Sequence[np.ndarray],
    right: Sequence[np.ndarray],
    *,
    groups: Sequence[str] | None = None,
    valid: Sequence[np.ndarray] | None = None,
    folds: int = 5,
) -> Selection:
    """Fit calibrators to the probabilities of being right, and choose the one that does best on unseen cases.

    See :func:`select_by_statistics` for how it is chosen.

    Args:
        probabilities: For each case a floating-point array in [0, 1]: how likely the model, or an expert, is to be
            right at each voxel. The cases are not those that the network was trained on.
        right: For each case a bool array of the same shape: whether that was so.
        groups: For each case what it is held out with, such as its patient; None for each case by itself.
        valid: For each case a bool array of the same shape, the voxels that count; None for all.
        folds: The number of parts that are held out in turn, at least 2; there are never more than groups.

    Returns:
        The calibrator (:class:`.Identity`, :class:`.Temperature` or :class:`.Isotonic`) and the held-out log losses.

    Raises:
        InputError: If there are fewer than two groups or folds, or arrays that do not go together.

    Example:
        A model that is right in 73 % (sigmoid of 1) of the voxels of which it says 88 % (sigmoid of 2):

        >>> import numpy as np
        >>> from nnunetv2_deferral import select_calibrator
        >>> random = np.random.default_rng(0)
        >>> logits = [random.normal(1, 1, 10_000) for case in range(4)]
        >>> right = [random.random(10_000) < 1 / (1 + np.exp(-each)) for each in logits]
        >>> said = [1 / (1 + np.exp(-2 * each)) for each in logits]
        >>> calibrator = select_calibrator(said, right).calibrator
        >>> calibrator.kind, round(calibrator.temperature, 1)
        ('temperature', 2.0)
        >>> calibrator(np.array([0.5, 0.88])).round(2)
        array([0.5 , 0.73], dtype=float32)
    """
    number = len(probabilities)
    names = [f"case {place}" for place in range(number)] if groups is None else [str(group) for group in groups]
    masks = [None] * number if valid is None else list(valid)
    for what, found in (("right", right), ("groups", names), ("valid", masks)):
        if len(found) != number:
            raise InputError(f"probabilities are of {number} cases, but {what} of {len(found)}")
    statistics = HeadStatistics()
    for name, said, was_right, counted in zip(names, probabilities, right, masks, strict=True):
        statistics.update(name, said, was_right, counted)
    return select_by_statistics(statistics, folds=folds)


def select_by_statistics(statistics: HeadStatistics, *, folds: int = 5) -> Selection:
    """The calibrator that does best on groups it was not fitted on.

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
    return Selection(next(each for each in _candidates(every) if losses[each.kind] <= good), losses)


def _candidates(bins: Bins) -> tuple[Calibrator, ...]:
    """One calibrator of each kind, in the order of `KINDS`, fitted on these voxels."""
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
    from sklearn.isotonic import isotonic_regression  # which takes longer to import than all else here

    fitted = isotonic_regression(bins.right / bins.voxels, sample_weight=bins.voxels)
    return _joined(bins, np.concatenate(([0], np.cumsum(np.diff(fitted) > 0))))


def _joined(bins: Bins, block: np.ndarray) -> Bins:
    """The bins of each block added; blocks are numbered in order."""
    return Bins(*(np.bincount(block, row) for row in bins))


def _least_loss(blocks: Bins) -> np.ndarray:
    """The log loss of each block, in nats, if its probability is the share that is right; float64 (B,)."""
    share = blocks.right / blocks.voxels
    return -xlogy(blocks.right, share) - xlogy(blocks.voxels - blocks.right, 1 - share)
