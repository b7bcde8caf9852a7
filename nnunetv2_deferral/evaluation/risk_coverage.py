r"""Risk-coverage curves and their areas: how well a score ranks items by their loss.

A *high* score means uncertain: such items are deferred first. At coverage c the fraction c of the items with the lowest
scores is kept. With n items in total, the generalised risk is the sum of the losses kept divided by n, the selective
risk this sum divided by c n, i.e. the mean loss. AUGRC and AURC are the areas under the two for coverages from 0 to 1.

Ties. A curve has points only where the score changes. Between two points a part of a group with equal scores is kept;
the generalised risk G, as the expectation over random orders of the group, is linear in c. Both areas are exact
integrals of this piecewise linear G, and hence expected areas over all orders of ties:

.. math:: AUGRC = \int_0^1 G(c)\, dc, \qquad AURC = \int_0^1 G(c) / c \; dc

The first is given by the trapezoidal rule. For the second, selective risk follows a hyperbola between points (Traub et
al., "non-linear interpolation") and is constant up to the first point, at the mean loss of the first group. The known
closed forms then hold for every n, not only in the limit: with the mean loss e, a constant score has AUGRC e / 2 and
AURC e, and for losses of 0 and 1 the best score has e^2 / 2 and e + (1 - e) ln(1 - e). The mean of the selective risk
over the n coverages (Geifman & El-Yaniv) and its trapezoidal integral (fd-shifts' default) differ by O(ln n / n).

Sources: Traub et al. 2024, "Overcoming common flaws in the evaluation of selective classification systems" (AUGRC);
Geifman & El-Yaniv 2017 and Jaeger et al. 2023, fd-shifts (AURC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import check_same_shape
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram

_ROUNDING = 1e-9  # of areas


@dataclass(frozen=True)
class RiskCoverageArea:
    """An area under a risk-coverage curve, in units of the loss, with values for comparison.

    Attributes:
        area: The area for the score; lower is better.
        optimum: The area for the best possible score, which sorts by the loss itself.
        random: The area for a constant score, equal to the expected area for a random score.
    """

    area: float
    optimum: float
    random: float

    @property
    def excess(self) -> float:
        """The difference from the optimum."""
        return self.area - self.optimum

    @property
    def normalised(self) -> float:
        """The difference from the optimum as a share of that of a random score; NaN if all scores are as good."""
        largest = self.random - self.optimum
        return self.excess / largest if largest > _ROUNDING * self.random else float("nan")

    def to_dict(self) -> dict[str, float]:
        """`area`, `optimum`, `random`, `excess` and `normalised`."""
        return {
            "area": self.area,
            "optimum": self.optimum,
            "random": self.random,
            "excess": self.excess,
            "normalised": self.normalised,
        }


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Points of a risk-coverage curve, float64 (P,) each.

    Attributes:
        coverage: Fraction of the items kept, ascending from 0 to 1.
        generalised_risk: Sum of the losses kept divided by the number of all items; starts with 0.
        selective_risk: Mean of the losses kept; at coverage 0 the value of the next point.
    """

    coverage: np.ndarray
    generalised_risk: np.ndarray
    selective_risk: np.ndarray


class Groups(NamedTuple):
    """Items in ordered groups, none of them empty.

    Attributes:
        items: int64 (G,), the number of items in each group.
        losses: int64 or float64 (G,), the sum of their losses.
    """

    items: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class RiskCoverage:
    """The sufficient statistics of curves and areas: n items, sorted by score and by loss.

    Attributes:
        by_score: Groups of equal score, the lowest score first.
        by_loss: Groups of equal loss, the lowest loss first, as sorted by the best possible score.
    """

    by_score: Groups
    by_loss: Groups

    def augrc(self) -> RiskCoverageArea:
        """Area under the generalised risk-coverage curve; NaN without items."""
        return RiskCoverageArea(_augrc(self.by_score), _augrc(self.by_loss), random=_mean_loss(self.by_score) / 2)

    def aurc(self) -> RiskCoverageArea:
        """Area under the selective risk-coverage curve; NaN without items."""
        return RiskCoverageArea(_aurc(self.by_score), _aurc(self.by_loss), random=_mean_loss(self.by_score))

    def curve(self, max_points: int = 1000) -> RiskCoverageCurve:
        """The curve for plotting, thinned to points that are evenly spaced along it.

        Args:
            max_points: The maximum number of points, at least 2. Areas do not depend on it.

        Returns:
            The points, including the first (coverage 0) and the last (coverage 1); all if there are at most
            `max_points`. No points without items.

        Raises:
            InputError: If `max_points` is less than 2.
        """
        if max_points < 2:
            raise InputError(f"max_points must be at least 2, got {max_points}")
        if not self.by_score.items.size:
            return RiskCoverageCurve(np.zeros(0), np.zeros(0), np.zeros(0))
        coverage, risk = _generalised_risk(self.by_score)
        selective = risk.copy()
        selective[1:] /= coverage[1:]
        selective[0] = selective[1]
        chosen = _evenly_along(coverage + risk / (risk[-1] or 1), max_points)
        return RiskCoverageCurve(coverage[chosen], risk[chosen], selective[chosen])


def risk_coverage_of_voxels(histogram: ScoreHistogram) -> RiskCoverage:
    """Risk and coverage of voxels with loss 1 where the label is wrong and 0 elsewhere.

    Args:
        histogram: Scores and errors of the voxels. Voxels in the same bin are tied.
    """
    occurring = histogram.voxels > 0
    by_score = Groups(histogram.voxels[occurring], histogram.errors[occurring])
    number, wrong = int(by_score.items.sum()), int(by_score.losses.sum())
    items, losses = np.array([number - wrong, wrong]), np.array([0, wrong])
    return RiskCoverage(by_score, Groups(items[items > 0], losses[items > 0]))


def risk_coverage_of_cases(scores: np.ndarray, losses: np.ndarray) -> RiskCoverage:
    """Risk and coverage of items in memory, such as cases; only equal scores are tied.

    Args:
        scores: (n,), finite; high means uncertain.
        losses: (n,), finite and not negative, such as 1 - Dice.

    Raises:
        InputError: If the shapes differ, a value is not finite, or a loss is negative.
    """
    scores, losses = np.asarray(scores), np.asarray(losses, dtype=np.float64)
    check_same_shape(scores=scores, losses=losses)
    if scores.ndim != 1:
        raise InputError(f"scores must have shape (n,), got {scores.shape}")
    for name, values, right in (
        ("scores must be finite", scores, np.isfinite(scores)),
        ("losses must be finite and not negative", losses, np.isfinite(losses) & (losses >= 0)),
    ):
        if not right.all():
            raise InputError(f"{name}, got {values[~right][0]}")
    return RiskCoverage(_grouped(scores, losses), _grouped(losses, losses))


def aurc(scores: np.ndarray, losses: np.ndarray) -> RiskCoverageArea:
    """Area under the selective risk-coverage curve: the mean loss of the items kept, over all coverages.

    Args:
        scores: Any shape, finite; items with high scores are uncertain and deferred first.
        losses: Of the same shape, finite and not negative: False for right and True for wrong voxels, 1 - Dice for
            cases.

    Returns:
        The areas for the scores, for the best possible score and for a random score; NaN without items.

    Raises:
        InputError: If the shapes differ, a value is not finite, or a loss is negative.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import aurc
        >>> found = aurc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, False]))
        >>> round(found.area, 3), round(found.optimum, 3), found.random
        (0.119, 0.034, 0.25)
    """
    return _risk_coverage_of_arrays(scores, losses).aurc()


def augrc(scores: np.ndarray, losses: np.ndarray) -> RiskCoverageArea:
    """Area under the generalised risk-coverage curve: the sum of the losses kept divided by the number of all items.

    Args:
        scores: Any shape, finite; items with high scores are uncertain and deferred first.
        losses: Of the same shape, finite and not negative, as for :func:`aurc`.

    Returns:
        The areas for the scores, for the best possible score and for a random score; NaN without items.

    Raises:
        InputError: If the shapes differ, a value is not finite, or a loss is negative.

    Example:
        For the error rate e the area is e / 2 for a constant score and e^2 / 2 for a perfect one:

        >>> import numpy as np
        >>> from nnunetv2_deferral import augrc
        >>> wrong = np.array([False, False, False, True])
        >>> augrc(np.zeros(4), wrong).area, augrc(wrong, wrong).area
        (0.125, 0.03125)
    """
    return _risk_coverage_of_arrays(scores, losses).augrc()


def _risk_coverage_of_arrays(scores: np.ndarray, losses: np.ndarray) -> RiskCoverage:
    check_same_shape(scores=np.asarray(scores), losses=np.asarray(losses))
    return risk_coverage_of_cases(np.ravel(scores), np.ravel(losses))


def _grouped(keys: np.ndarray, losses: np.ndarray) -> Groups:
    """Groups of items with equal keys, the keys ascending."""
    _, group, items = np.unique(keys, return_inverse=True, return_counts=True)
    return Groups(items, np.bincount(group, weights=losses, minlength=items.size))


def _mean_loss(groups: Groups) -> float:
    return float(groups.losses.sum() / groups.items.sum()) if groups.items.size else float("nan")


def _generalised_risk(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and generalised risk at the ends of the groups, float64 (G + 1,), both starting with 0."""
    number = groups.items.sum()
    coverage, risk = np.zeros(groups.items.size + 1), np.zeros(groups.items.size + 1)
    coverage[1:], risk[1:] = np.cumsum(groups.items) / number, np.cumsum(groups.losses) / number
    return coverage, risk


def _augrc(groups: Groups) -> float:
    """The integral of G(c), where G is linear between the groups' ends."""
    if not groups.items.size:
        return float("nan")
    coverage, risk = _generalised_risk(groups)
    return float(np.sum(np.diff(coverage) * (risk[1:] + risk[:-1]) / 2))


def _aurc(groups: Groups) -> float:
    """The integral of G(c) / c, where G is linear between the groups' ends.

    In a group with mean loss b that begins at (c0, G0), G(c) / c = b + (G0 - b c0) / c. The first terms of all groups
    sum to the mean loss; the second term of the first group is 0.
    """
    if not groups.items.size:
        return float("nan")
    coverage, risk = _generalised_risk(groups)
    start, width = coverage[1:-1], np.diff(coverage)[1:]
    hyperbolas = (risk[1:-1] - (groups.losses / groups.items)[1:] * start) * np.log1p(width / start)
    return float(risk[-1] + np.sum(hyperbolas))


def _evenly_along(position: np.ndarray, max_points: int) -> np.ndarray:
    """Indices of at most `max_points` ascending positions: the first, the last and evenly spaced ones between."""
    if position.size <= max_points:
        return np.arange(position.size)
    inner = np.searchsorted(position, np.linspace(position[0], position[-1], max_points)[1:-1])
    return np.unique(np.concatenate(([0], inner, [position.size - 1])))
