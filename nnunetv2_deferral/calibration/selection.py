"""Selection of a calibrator by cross-validation."""

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
INDIFFERENT = 1e-4  # relative difference of log losses below which the simpler calibrator is preferred


@dataclass(frozen=True)
class Selection:
    """The selected calibrator and the cross-validated losses.

    Attributes:
        calibrator: The calibrator, fitted on all voxels.
        log_loss: Held-out log loss by kind of calibrator, in nats per voxel.
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
    """Fit calibrators to probabilities of being right and select the best on held-out cases.

    The selection is described in :func:`select_by_statistics`.

    Args:
        probabilities: For each case a floating-point array in [0, 1]: the predicted probability that the model, or an
            expert, is right at each voxel. The network must not have been trained on these cases.
        right: For each case a bool array of the same shape: whether the model, or the expert, is right.
        groups: For each case its group, such as its patient, which is held out as a whole; None for each case by
            itself.
        valid: For each case a bool array of the same shape, the voxels that count; None for all.
        folds: The number of folds, at least 2; reduced to the number of groups if there are fewer.

    Returns:
        The calibrator (:class:`.Identity`, :class:`.Temperature` or :class:`.Isotonic`) and the held-out log losses.

    Raises:
        InputError: If there are fewer than two groups or folds, numbers of cases or shapes differ, or a dtype or
            probability is not as above.

    Example:
        A model that is right in 73 % (sigmoid of 1) of the voxels with a predicted probability of 88 % (sigmoid of 2):

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
            raise InputError(f"probabilities has {number} cases, but {what} has {len(found)}")
    statistics = HeadStatistics()
    for name, said, was_right, counted in zip(names, probabilities, right, masks, strict=True):
        statistics.update(name, said, was_right, counted)
    return select_by_statistics(statistics, folds=folds)


def select_by_statistics(statistics: HeadStatistics, *, folds: int = 5) -> Selection:
    """Select a calibrator by cross-validation over groups.

    Groups are assigned to folds in turn, in the order of their names. Among the kinds of calibrators within a relative
    difference `INDIFFERENT` of the lowest held-out log loss, the simplest is selected.

    Args:
        statistics: Statistics of one head, on cases on which the network was not trained.
        folds: The number of folds, at least 2; reduced to the number of groups if there are fewer.

    Raises:
        InputError: If there are fewer than two groups or folds.
    """
    groups = statistics.groups
    if len(groups) < 2:
        got = ", ".join(groups) or "none"
        raise InputError(
            f"calibration requires labels in at least two cases (patients) for cross-validation, got {got}; more folds "
            "(-f) or predictions (-i) have more"
        )
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
    return IDENTITY, _fitted_temperature(bins), fit_isotonic(bins)


def _loss(bins: Bins, calibration: Calibrator) -> float:
    """The sum of all voxels' log losses, in nats."""
    logits = calibration.on_logits(bins.logits)
    wrong = bins.voxels - bins.right
    return float(np.sum(bins.right * np.logaddexp(0, -logits) + wrong * np.logaddexp(0, logits)))


def _fitted_temperature(bins: Bins) -> Temperature:
    """The T in the range `TEMPERATURES` with the lowest log loss, which is convex in 1 / T."""
    logits = bins.logits

    def slope(inverse: float) -> float:
        return float(np.sum(logits * (bins.voxels * expit(logits * inverse) - bins.right)))

    coldest, hottest = TEMPERATURES
    if slope(1 / hottest) >= 0:
        return Temperature(hottest)
    if slope(1 / coldest) <= 0:
        return Temperature(coldest)
    return Temperature(1 / float(brentq(slope, 1 / hottest, 1 / coldest)))


def fit_isotonic(bins: Bins) -> Isotonic:
    """The isotonic regression of some voxels, at least one."""
    blocks = _pooled(bins)
    # Half a right and half a wrong voxel are added to blocks that are all right or all wrong, to keep logits finite.
    # Small blocks may then be out of order, so pooling is repeated.
    pure = (blocks.right == 0) | (blocks.right == blocks.voxels)
    logit_sum = blocks.logit_sum + pure * blocks.logits
    blocks = _pooled(Bins(blocks.voxels + pure, blocks.right + pure / 2, logit_sum))
    while blocks.voxels.size > MAX_KNOTS:
        # Merge the two neighbours whose merger increases the log loss least.
        together = Bins(*(row[1:] + row[:-1] for row in blocks))
        least, apart = _least_loss(together), _least_loss(blocks)
        first = int(np.argmin(least - apart[1:] - apart[:-1]))
        blocks = _joined(blocks, np.arange(blocks.voxels.size) - (np.arange(blocks.voxels.size) > first))
    return Isotonic(tuple(blocks.logits.tolist()), tuple((blocks.right / blocks.voxels).tolist()))


def _pooled(bins: Bins) -> Bins:
    """Merge neighbouring bins until the share of right voxels is strictly increasing."""
    from sklearn.isotonic import isotonic_regression  # imported here because it is slow to import

    fitted = isotonic_regression(bins.right / bins.voxels, sample_weight=bins.voxels)
    return _joined(bins, np.concatenate(([0], np.cumsum(np.diff(fitted) > 0))))


def _joined(bins: Bins, block: np.ndarray) -> Bins:
    """Sum the bins of each block; blocks are numbered in order."""
    return Bins(*(np.bincount(block, row) for row in bins))


def _least_loss(blocks: Bins) -> np.ndarray:
    """The log loss of each block in nats, with its share of right voxels as the probability; float64 (B,)."""
    share = blocks.right / blocks.voxels
    return -xlogy(blocks.right, share) - xlogy(blocks.voxels - blocks.right, 1 - share)
