"""Matched budgets: the Dice of the system if a given fraction of the voxels may be deferred.

A *ranking* determines the order of deferral: the voxels deferred at a budget are those with the highest scores in the
whole dataset, each answered by the expert who would be asked there. Rankings differ in the score:

    learned         the probability of deferral, or the expected gain
    max-softmax     1 - the largest softmax probability
    entropy         of the softmax
    random          a constant, so that all voxels are one tie

None is better than the oracle of :mod:`oracle`.

Voxels are not stored. For each case and score bin (:mod:`score_bins`) in which expert and model differ, the change in
true positives and predicted voxels of each region is stored that results from deferring the bin's voxels. For R regions
this takes 8 (2 R + 1) bytes per bin and case, at most 8 (2 R + 1) min(voxels where they differ, cases x occupied bins),
plus 8 MiB for the dataset.

In the bin that crosses the budget a fraction of the voxels is deferred. Counts are then expectations over a random
choice of these voxels, linear in the fraction, and Dice is computed from expected counts. For the random ranking this
applies to all voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape, in_chunks
from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.overlap import Region, overlap, region_key, region_mask, summarize
from nnunetv2_deferral.evaluation.score_bins import NUM_BINS, BinCounter, Occupied, score_bins
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.parts import in_order

_LEAST_GAIN = 0.0005  # of the oracle, in Dice


def dice_at_budgets(
    scores: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    models: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    budgets: Iterable[float] = BUDGETS,
    *,
    regions: Sequence[Region] | None = None,
    valid: Sequence[np.ndarray] | None = None,
    positive_only: bool = False,
) -> list[BudgetResult]:
    """Dice of the system if a share of all voxels may be deferred, those with the highest scores first.

    Each argument has one array per case; a budget is a share of the voxels of all cases.

    Args:
        scores: Finite and not negative (:func:`score_bins`); high scores are deferred first.
        references: Label maps, integer, of the shapes of the scores.
        models: The model's label maps, integer.
        answers: The labels of the expert who would be asked at each voxel, integer, :data:`MISSING` where there is
            none.
        budgets: Shares in [0, 1]; 0 is the model alone.
        regions: The foreground labels, or tuples of labels, to score; None for all labels above 0 in the references.
        valid: Bool, the voxels that count; None for all.
        positive_only: Never defer voxels with score 0, so that a budget is an upper limit.

    Returns:
        A result for each budget, with `foreground_mean`, `rate`, and `dice` for each case and region.

    Raises:
        InputError: If numbers of cases or shapes differ, there are no cases or regions, a score is negative or not
            finite, `valid` is not bool, or a budget is outside [0, 1].

    Example:
        Two voxels are wrong; the expert corrects both and is asked about the most uncertain first:

        >>> import numpy as np
        >>> from nnunetv2_deferral import dice_at_budgets
        >>> reference = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
        >>> model = np.array([[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]])
        >>> uncertainty = np.array([[0.1, 0.2, 0.9, 0.6, 0.5, 0, 0, 0, 0, 0]])
        >>> results = dice_at_budgets(uncertainty, reference, model, reference, budgets=(0, 0.1, 0.2))
        >>> [round(each.foreground_mean, 3) for each in results]
        [0.667, 0.857, 1.0]
    """
    number = len(scores)
    masks = [None] * number if valid is None else list(valid)
    for what, found in (("references", references), ("models", models), ("answers", answers), ("valid", masks)):
        if len(found) != number:
            raise InputError(f"scores has {number} cases, but {what} has {len(found)}")
    if regions is None:
        regions = sorted({int(label) for reference in references for label in np.unique(reference) if label > 0})
    statistics = BudgetStatistics(regions, positive_only=positive_only)
    for place, (score, reference, model, answer, counted) in enumerate(
        zip(scores, references, models, answers, masks, strict=True)
    ):
        statistics.update(f"case {place}", score, reference=reference, model=model, answer=answer, valid=counted)
    return statistics.at(budgets)


def recovered_gain(dice: float, dice_without: float, dice_oracle: float) -> float:
    """The fraction of the oracle's gain that a ranking recovers at the same budget.

    Args:
        dice: Dice of the ranking at the budget.
        dice_without: Dice of the model alone (budget 0).
        dice_oracle: Dice of the oracle at the budget.

    Returns:
        (dice - dice_without) / (dice_oracle - dice_without): negative if deferral harms, NaN if a Dice is NaN or the
        oracle gains less than 0.0005, which is shown as 0.000 and of which a fraction means nothing.
    """
    gain = dice_oracle - dice_without
    return (dice - dice_without) / gain if gain >= _LEAST_GAIN else float("nan")


def check_budgets(budgets: Iterable[float]) -> np.ndarray:
    """The budgets as float64 (M,).

    Raises:
        InputError: If one is outside [0, 1].
    """
    limits = np.array(list(budgets), dtype=np.float64)
    for budget in limits:
        if not 0 <= budget <= 1:
            raise InputError(f"a budget must be a fraction in [0, 1], got {budget}")
    return limits


@dataclass(frozen=True)
class BudgetResult:
    """The system at one budget.

    Attributes:
        budget: The fraction of all counted voxels that may be deferred.
        rate: The fraction that is deferred, lower than the budget if fewer voxels can be deferred.
        cases: The N cases.
        regions: The R regions, named as in nnU-Net's summaries.
        dice: float64 (N, R), NaN where neither reference nor system has the region.
    """

    budget: float
    rate: float
    cases: tuple[str, ...]
    regions: tuple[str, ...]
    dice: np.ndarray

    @property
    def foreground_mean(self) -> float:
        """Mean over regions of the mean over cases, as in nnU-Net: NaN is ignored; NaN if nothing is defined."""
        return self.summary()["foreground_mean"]["Dice"]

    def summary(self) -> dict[str, Any]:
        """`budget`, `rate` and the scores in the nesting of :func:`overlap.summarize`, with Dice only."""
        metrics = {
            case: {region: {"Dice": float(dice)} for region, dice in zip(self.regions, row, strict=True)}
            for case, row in zip(self.cases, self.dice, strict=True)
        }
        return {"budget": self.budget, "rate": self.rate, **summarize(metrics)}


@dataclass(frozen=True)
class _Case:
    """The statistics of a case.

    Attributes:
        own: int64 (3, R), for each region the model's true positives, its predicted voxels and the reference's voxels.
        bins: int64 (B,), the bins in which expert and model differ, ascending.
        changes: int64 (2 R, B), for each bin the change in true positives of each region, then in predicted voxels.
    """

    own: np.ndarray
    bins: np.ndarray
    changes: np.ndarray

    def dice(self, crossing_bins: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """Dice (M, R) at M budgets.

        Args:
            crossing_bins: int64 (M,), the bins that cross the budgets; all voxels in higher bins are deferred.
            fractions: float64 (M,), the fraction of the voxels of the crossing bin that is deferred.
        """
        from_top = np.zeros((len(self.changes), self.bins.size + 1), dtype=np.int64)
        from_top[:, :-1] = np.cumsum(self.changes[:, ::-1], axis=1)[:, ::-1]
        including = from_top[:, np.searchsorted(self.bins, crossing_bins)]
        above = from_top[:, np.searchsorted(self.bins, crossing_bins + 1)]
        gained = (above + fractions * (including - above)).reshape(2, -1, fractions.size)
        true_positives, predicted = self.own[:2, :, None] + gained
        total = predicted + self.own[2, :, None]
        return np.divide(2 * true_positives, total, out=np.full(total.shape, np.nan), where=total > 0).T


class BudgetStatistics:
    """Accumulates, case by case, the statistics for scoring one ranking at any budget."""

    def __init__(self, regions: Sequence[Region], *, positive_only: bool = False) -> None:
        """Start without cases.

        Args:
            regions: The foreground labels, or tuples of labels, to score.
            positive_only: Never defer voxels with score 0; a budget is then an upper limit.

        Raises:
            InputError: If there are no regions.
        """
        if not regions:
            raise InputError(f"at least one region is required, got {regions}")
        self.regions = tuple(regions)
        self.positive_only = positive_only
        self._num_voxels = 0
        self._deferrable = np.zeros(NUM_BINS, dtype=np.int64)
        self._cases: dict[str, _Case] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_deferrable": Occupied.of(self._deferrable)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_deferrable": state["_deferrable"].in_all_bins()})

    def update(
        self,
        case: str,
        scores: np.ndarray,
        *,
        reference: np.ndarray,
        model: np.ndarray,
        answer: np.ndarray,
        valid: np.ndarray | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: The case identifier.
            scores: Shape S, finite and not negative (:func:`score_bins`) at valid voxels with an answer, arbitrary
                elsewhere. High scores are deferred first.
            reference: Label map, integer of shape S.
            model: The model's label map, of the same shape.
            answer: The labels of the expert who would be asked, of the same shape, :data:`MISSING` where there is none;
                such voxels count, but are never deferred.
            valid: Bool of shape S, the voxels that count, or None for all.

        Raises:
            InputError: If the shapes differ, `valid` is not bool, a score is negative or not finite, or the case was
                already added; the statistics are then unchanged.
        """
        if case in self._cases:
            raise InputError(f"case {case} was already added")
        check_same_shape(scores=scores, reference=reference, model=model, answer=answer, valid=valid)
        check_bool(valid=valid)
        own, num_voxels = self._count_own(reference, model, valid)
        bins, changes, deferrable = self._count_changes(scores, reference, model, answer, valid)
        self._cases[case] = _Case(own, bins, changes)
        self._num_voxels += num_voxels
        deferrable.add_to(self._deferrable)

    def at(self, budgets: Iterable[float] = BUDGETS) -> list[BudgetResult]:
        """The system at each budget; budget 0 is the model alone.

        Args:
            budgets: Fractions of all counted voxels, each in [0, 1].

        Raises:
            InputError: If a budget is outside [0, 1] or there are no cases.
        """
        if not self._cases:
            raise InputError("no cases were added")
        limits = check_budgets(budgets)
        num_deferred, crossing_bins, fractions = self._fill(limits * self._num_voxels)
        dice = np.stack([case.dice(crossing_bins, fractions) for case in self._cases.values()])
        return [
            BudgetResult(
                budget=float(budget),
                rate=float(number / max(self._num_voxels, 1)),
                cases=tuple(self._cases),
                regions=tuple(region_key(region) for region in self.regions),
                dice=dice[:, place],
            )
            for place, (budget, number) in enumerate(zip(limits, num_deferred, strict=True))
        ]

    @classmethod
    def merged(cls, parts: Sequence[BudgetStatistics], cases: Sequence[str]) -> BudgetStatistics:
        """The statistics of all cases of several parts, in the order of `cases`, which must be these cases."""
        merged = cls(parts[0].regions, positive_only=parts[0].positive_only)
        merged._cases = in_order([part._cases for part in parts], cases)
        merged._num_voxels = sum(part._num_voxels for part in parts)
        merged._deferrable = np.sum([part._deferrable for part in parts], axis=0)
        return merged

    def rescored(self, scores: np.ndarray) -> BudgetStatistics:
        """The statistics of another ranking, if the scores so far are whole numbers that stand for other scores.

        Args:
            scores: (n,), as for :meth:`update`: those that 0, ..., n - 1 stand for, n at most 8192 so that each has a
                bin of its own.
        """
        before, after = score_bins(np.arange(scores.size)), score_bins(scores)
        found = type(self)(self.regions, positive_only=self.positive_only)
        found._num_voxels = self._num_voxels
        np.add.at(found._deferrable, after, self._deferrable[before])
        for name, case in self._cases.items():
            found._cases[name] = _Case(case.own, *_sum_by_bin(after[np.searchsorted(before, case.bins)], case.changes))
        return found

    def _fill(self, most: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For limits (M,) in voxels: the number of deferred voxels, the lowest deferred bin, and its fraction."""
        from_top = np.cumsum(self._deferrable[::-1])
        num_deferred = np.minimum(most, from_top[-1])
        place = np.searchsorted(from_top, num_deferred)
        crossing_bins = NUM_BINS - 1 - place
        inside = self._deferrable[crossing_bins]
        above = from_top[place] - inside
        fractions = np.divide(num_deferred - above, inside, out=np.zeros(most.shape), where=inside > 0)
        return num_deferred, crossing_bins, fractions

    def _count_own(self, reference: np.ndarray, model: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, int]:
        """`own` of :class:`_Case`, and the number of valid voxels."""
        own, num_voxels = np.zeros((3, len(self.regions)), dtype=np.int64), 0
        for truth, labels, where in in_chunks(reference, model, valid):
            metrics = overlap(truth, labels, self.regions, where).values()
            own += np.array([[scores[key] for scores in metrics] for key in ("TP", "n_pred", "n_ref")], dtype=np.int64)
            num_voxels += np.count_nonzero(where)
        return own, num_voxels

    def _count_changes(
        self,
        scores: np.ndarray,
        reference: np.ndarray,
        model: np.ndarray,
        answer: np.ndarray,
        valid: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, BinCounter]:
        """`bins` and `changes` of :class:`_Case`, and the number of deferrable voxels in each bin."""
        deferrable = BinCounter(scores.size)
        pieces = [(np.zeros(0, dtype=np.int64), np.zeros((2 * len(self.regions), 0), dtype=np.int64))]
        for ranked, truth, own, asked, where in in_chunks(scores, reference, model, answer, valid):
            open_to = where & (asked != MISSING)
            if self.positive_only:
                open_to &= ranked != 0
            bins = score_bins(ranked[open_to])
            deferrable.add(bins)
            differ = open_to & (own != asked)
            truth, own, asked = truth[differ], own[differ], asked[differ]
            gains = self._hits(truth, asked).astype(np.int8) - self._hits(truth, own)
            pieces.append(_sum_by_bin(bins[differ[open_to]], gains))
        bins, changes = (np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True))
        return *_sum_by_bin(bins, changes), deferrable

    def _hits(self, reference: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Bool (2 R, n): true positives of each region in `labels`, then all its voxels."""
        has = np.stack([region_mask(labels, region) for region in self.regions])
        truly = np.stack([region_mask(reference, region) for region in self.regions])
        return np.concatenate([has & truly, has])


def _sum_by_bin(bins: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unique bins (B,) among (n,), ascending, and the sums (V, B) of the values (V, n) of each, int64."""
    occurring, index = np.unique(bins, return_inverse=True)
    sums = [np.bincount(index, weights=row, minlength=occurring.size) for row in values]
    return occurring.astype(np.int64), np.stack(sums).astype(np.int64)
