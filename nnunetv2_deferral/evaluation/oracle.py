r"""The oracle: an upper bound of the mean Dice that deferral of a number of voxels can reach.

The oracle knows the reference and all answers. At a voxel it helps a region if the model is wrong about the region and
some expert is right. In one case and region, with true positives TP and areas A and B of model and reference, x
recovered and z removed voxels give

.. math:: f(x, z) = \frac{2 (TP + x)}{A + B + x - z}

f is concave in x and convex in z. A convex part is worth most if it is taken as a whole, which may cost more than there
is room for, so that no order of the voxels is best at all budgets. With a price p per voxel, however, cases and regions
are independent: x follows from the derivative, and z is nothing or all. With the weight w of a case and region in the
mean, the bound for a budget of n voxels is

.. math:: \min_{p \ge 0} \; p n + \max_{x, z} \sum \big( w f(x, z) - p \cdot \text{voxels} \big)

No choice of n voxels has a higher mean Dice (Lagrangian duality; Everett 1963). The bound is the mean of two choices,
one below and one above the budget, that use n voxels on average; where a choice uses up the budget exactly, it is
reached. Regions share voxels, of whose price each that is helped bears an equal part, but each chooses voxels and
experts by itself; so with several regions the bound is somewhat too high. Fractions of voxels are allowed, as in
:mod:`budgets`.

A Dice is undefined and left out of the mean if neither reference nor system has the region. Removing all voxels of a
region that the reference does not have therefore raises the mean to that of the other cases. All numbers of such cases
are tried, those with the fewest voxels first; and likewise for regions that no reference has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape, in_chunks
from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.budgets import BudgetResult, check_budgets
from nnunetv2_deferral.evaluation.overlap import Region, overlap, region_key, region_mask
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.parts import in_order

# Of the interval of log prices, to about 1e-9. What this changes in the bound is of the order of its square.
_HALVINGS = 36
_LOWEST_PRICE = 1e-30
_MOST_ELEMENTS = 2**14  # of an array for several prices at once, 128 KiB, which caches hold


@dataclass(frozen=True)
class _Case:
    """The statistics of a case.

    Attributes:
        own: int64 (3, R), for each region the model's true positives, its predicted voxels and the reference's voxels.
        missed: int64 (R, R), for each region the voxels that it misses and an expert recovers, by the number of regions
            that are helped there, from R down to 1.
        false: int64 (R, R), likewise those that are removed.
        num_voxels: The number of valid voxels.
    """

    own: np.ndarray
    missed: np.ndarray
    false: np.ndarray
    num_voxels: int


class OracleStatistics:
    """Accumulates, case by case, what the oracle needs at any budget. Independent of the number of voxels."""

    def __init__(self, regions: Sequence[Region]) -> None:
        """Start without cases.

        Args:
            regions: The foreground labels, or tuples of labels, to score.

        Raises:
            InputError: If there are no regions.
        """
        if not regions:
            raise InputError(f"at least one region is required, got {regions}")
        self.regions = tuple(regions)
        self._cases: dict[str, _Case] = {}

    def update(
        self,
        case: str,
        *,
        reference: np.ndarray,
        model: np.ndarray,
        answers: np.ndarray,
        valid: np.ndarray | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: The case identifier.
            reference: Label map, integer of shape S.
            model: The model's label map, of the same shape.
            answers: The labels of all experts who may be asked, integer (J, *S), :data:`.labels.MISSING` where there is
                none.
            valid: Bool of shape S, the voxels that count, or None for all.

        Raises:
            InputError: If the shapes differ, `valid` is not bool, or the case was already added; the statistics are
                then unchanged.
        """
        if case in self._cases:
            raise InputError(f"case {case} was already added")
        for answer in answers:
            check_same_shape(reference=reference, model=model, answer=answer, valid=valid)
        check_bool(valid=valid)
        number = len(self.regions)
        own, num_voxels = np.zeros((3, number), dtype=np.int64), 0
        missed, false = np.zeros((2, number, number), dtype=np.int64)
        for truth, labels, where, *said in in_chunks(reference, model, valid, *answers):
            scores = overlap(truth, labels, self.regions, where).values()
            own += np.array([[each[key] for each in scores] for key in ("TP", "n_pred", "n_ref")], dtype=np.int64)
            num_voxels += np.count_nonzero(where)
            place = np.flatnonzero(where & (labels != truth) & np.any([each != labels for each in said], axis=0))
            inside, helped = self._helped(truth[place], labels[place], [each[place] for each in said])
            shared = number - helped.sum(0)
            for region, (within, helps) in enumerate(zip(inside, helped, strict=True)):
                missed[region] += np.bincount(shared[helps & within], minlength=number)
                false[region] += np.bincount(shared[helps & ~within], minlength=number)
        self._cases[case] = _Case(own, missed, false, num_voxels)

    def at(self, budgets: Iterable[float] = BUDGETS) -> list[BudgetResult]:
        """The oracle at each budget, see :meth:`.BudgetStatistics.at`.

        The Dice of cases and regions are those of the best choices, of which the mean is the bound.

        Raises:
            InputError: If a budget is outside [0, 1] or there are no cases.
        """
        limits = check_budgets(budgets)
        if not self._cases:
            raise InputError("no cases were added")
        bound, num_voxels = _Bound(list(self._cases.values())), sum(case.num_voxels for case in self._cases.values())
        return [
            BudgetResult(
                budget=float(budget),
                rate=float(used / max(num_voxels, 1)),
                cases=tuple(self._cases),
                regions=tuple(region_key(region) for region in self.regions),
                dice=dice,
            )
            for budget, (dice, used) in zip(limits, bound.within([each * num_voxels for each in limits]), strict=True)
        ]

    @classmethod
    def merged(cls, parts: Sequence[OracleStatistics], cases: Sequence[str]) -> OracleStatistics:
        """The statistics of all cases of several parts, in the order of `cases`, which must be these cases."""
        merged = cls(parts[0].regions)
        merged._cases = in_order([part._cases for part in parts], cases)
        return merged

    def _helped(
        self, truth: np.ndarray, labels: np.ndarray, answers: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bool (R, n), the regions of the reference, and where some expert is right about one and the model wrong."""
        inside = np.stack([region_mask(truth, region) for region in self.regions])
        wrong = inside != np.stack([region_mask(labels, region) for region in self.regions])
        right = np.zeros(inside.shape, dtype=bool)
        for answer in answers:
            said = np.stack([region_mask(answer, region) for region in self.regions])
            right |= (said == inside) & (answer != MISSING)
        return inside, wrong & right


class _Choice(NamedTuple):
    """A choice of voxels: Dice (N, R), NaN where undefined, and number of voxels."""

    dice: np.ndarray
    voxels: float


class _Choices(NamedTuple):
    """A choice for each of P prices: value less price (P,), Dice (P, N, R) or (P, N), and numbers of voxels (P,)."""

    values: np.ndarray
    dice: np.ndarray
    voxels: np.ndarray


class _Cases(NamedTuple):
    """The n cases with a reference of a region, in the shapes that broadcast to (P, E, n, L + 1, L).

    Attributes:
        hits: True positives, (1, n, 1, 1).
        left: The area of model and reference after each number of removed voxels, (1, n, L + 1, 1).
        removal: What these numbers cost, (1, n, L + 1, 1).
        recovered: The numbers of recovered voxels between levels, (1, n, 1, L + 1).
        recovery: What these numbers cost, (1, n, 1, L + 1).
    """

    hits: np.ndarray
    left: np.ndarray
    removal: np.ndarray
    recovered: np.ndarray
    recovery: np.ndarray


class _Bound:
    """The bound for N cases and R regions.

    Voxels are of L levels, by the number of regions that they help. In the order of their price, these give L + 1
    numbers of removed voxels that may be best, and L intervals of recovered ones.
    """

    def __init__(self, cases: Sequence[_Case]) -> None:
        own = np.stack([case.own for case in cases]).astype(np.float64)
        missed, false = (np.stack([getattr(case, key) for case in cases]) for key in ("missed", "false"))
        levels = np.flatnonzero((missed + false).any((0, 1)))
        self._costs = 1 / (missed.shape[-1] - levels)  # per voxel, for each region that it helps; ascending
        self._hits, self._areas = own[:, 0], own[:, 1] + own[:, 2]
        self._missed, self._missed_costs = self._totals(missed[..., levels])
        self._false, self._false_costs = self._totals(false[..., levels])
        self._present = own[:, 2] > 0
        self._defined = self._areas > 0
        # Cases of regions without a reference whose predicted voxels can all be removed.
        self._removable = self._defined & ~self._present & (self._false[..., -1] == own[:, 1])
        absent = self._defined.any(0) & ~self._present.any(0)
        can = absent & (self._removable == self._defined).all(0)
        price = np.where(self._removable, self._false_costs[..., -1], 0).sum(0)
        self._absent = [int(region) for region in np.argsort(price, kind="stable") if can[region]]
        self._num_regions = int(self._defined.any(0).sum())
        self._all = self._everything()
        self._with_reference = [self._of_cases(region) for region in range(own.shape[2])]
        numbers = (self._removable.sum(0) + 1) * self._present.sum(0)  # E n, of each region
        self._at_once = int(_MOST_ELEMENTS // max(numbers.max() * levels.size * (levels.size + 1), 1)) or 1

    def within(self, limits: Sequence[float]) -> list[tuple[np.ndarray, float]]:
        """For each number of voxels the Dice (N, R), of which the mean is the bound, and how many voxels are used."""
        rest = [most for most in limits if most < self._all.voxels]
        low, high = math.log(_LOWEST_PRICE), math.log(4.0 * self._areas.shape[1] + 1)
        most_voxels, least_voxels = self._at([low, high]) if rest else (self._all, self._all)
        # Of all budgets together, since most of the time goes into steps of small arrays.
        searches = {most: (low, high, most_voxels, least_voxels) for most in rest if most < most_voxels.voxels}
        for _ in range(_HALVINGS if searches else 0):
            middles = sorted({(low + high) / 2 for low, high, _, _ in searches.values()})
            choices = dict(zip(middles, self._at(middles), strict=True))
            for most, (low, high, more, less) in searches.items():
                middle = (low + high) / 2
                choice = choices[middle]
                found = (middle, high, choice, less) if choice.voxels > most else (low, middle, more, choice)
                searches[most] = found
        return [self._between(most, *searches[most][2:]) if most in searches else self._most(most) for most in limits]

    def _most(self, most: float) -> tuple[np.ndarray, float]:
        """The choice of all voxels that help; others, which help no Dice, are used up to `most`."""
        return self._all.dice, min(most, self._all.voxels)

    def _between(self, most: float, more: _Choice, less: _Choice) -> tuple[np.ndarray, float]:
        """The mean of two choices that uses `most` voxels."""
        share = (most - less.voxels) / (more.voxels - less.voxels)
        return _mixed(less.dice, more.dice, share), most

    def _totals(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of voxels from the cheapest on, and their costs, float64 (N, R, L + 1), from numbers (N, R, L)."""
        padded = np.pad(counts, ((0, 0), (0, 0), (1, 0)))
        costs = np.pad(counts * self._costs, ((0, 0), (0, 0), (1, 0)))
        return padded.cumsum(-1).astype(np.float64), costs.cumsum(-1)

    def _everything(self) -> _Choice:
        """The choice of all voxels that help."""
        total = self._areas + self._missed[..., -1] - self._false[..., -1]
        hits = self._hits + self._missed[..., -1]
        dice = np.divide(2 * hits, total, out=np.full(total.shape, np.nan), where=total > 0)
        return _Choice(dice, float((self._missed_costs[..., -1] + self._false_costs[..., -1]).sum()))

    def _at(self, log_prices: Sequence[float]) -> list[_Choice]:
        """The best choice at each price."""
        found = []
        for start in range(0, len(log_prices), self._at_once):
            prices = np.array([math.exp(price) for price in log_prices[start : start + self._at_once]])
            choices = [self._without(self._absent[:number], prices) for number in range(len(self._absent) + 1)]
            best = np.stack([each.values for each in choices]).argmax(0)
            found += [
                _Choice(choices[which].dice[place], float(choices[which].voxels[place]))
                for place, which in enumerate(best)
            ]
        return found

    def _without(self, removed: Sequence[int], prices: np.ndarray) -> _Choices:
        """The best choices with which some regions without references are removed everywhere."""
        dice: np.ndarray = np.full((prices.size, *self._areas.shape), np.nan)
        values, voxels = np.zeros((2, prices.size))
        regions = self._num_regions - len(removed)
        if not regions:  # no Dice would be left
            return _Choices(values - math.inf, dice, voxels)
        for region in range(self._areas.shape[1]):
            if region in removed:
                cost = float(self._false_costs[:, region, -1].sum())
                values, voxels = values - prices * cost, voxels + cost
            elif self._defined[:, region].any():
                of_region = self._of_region(region, prices, regions)
                values, voxels = values + of_region.values, voxels + of_region.voxels
                dice[:, :, region] = of_region.dice
        return _Choices(values, dice, voxels)

    def _of_region(self, region: int, prices: np.ndarray, regions: int) -> _Choices:
        """The best choices for a region, Dice (P, N)."""
        present, defined = self._present[:, region], self._defined[:, region]
        dice = np.tile(np.where(defined, 0.0, np.nan), (prices.size, 1))
        if not present.any():
            return _Choices(np.zeros(prices.size), dice, np.zeros(prices.size))
        # e = 0, 1, ... cases without a reference are left out of the mean.
        removable = np.flatnonzero(self._removable[:, region])
        removable = removable[np.argsort(self._false_costs[removable, region, -1], kind="stable")]
        paid = np.append(0.0, np.cumsum(self._false_costs[removable, region, -1]))
        weights = 1 / (regions * (defined.sum() - np.arange(paid.size)))
        values, found, voxels = self._respond(region, prices, weights)
        totals = values.sum(-1) - prices[:, None] * paid
        best = totals.argmax(-1)
        each = np.arange(prices.size)
        dice[:, present] = found[each, best]
        for place, number in enumerate(best):
            dice[place, removable[:number]] = np.nan
        return _Choices(totals[each, best], dice, voxels[each, best].sum(-1) + paid[best])

    def _of_cases(self, region: int) -> _Cases:
        """What :meth:`_respond` needs of the cases with a reference, found once because it is called many times."""
        where = self._present[:, region]
        removed, removal = (each[where, region][None, :, :, None] for each in (self._false, self._false_costs))
        recovered, recovery = (each[where, region][None, :, None] for each in (self._missed, self._missed_costs))
        hits, areas = (each[where, region][None, :, None, None] for each in (self._hits, self._areas))
        return _Cases(hits, areas - removed, removal, recovered, recovery)

    def _respond(
        self, region: int, prices: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best choice in each of n cases with a reference: value, Dice, voxels, (P, E, n), for E weights."""
        hits, left, removal, recovered, recovery = self._with_reference[region]
        weight, price = weights[:, None, None, None], prices[:, None, None, None, None]
        if self._costs.size:
            # The derivative of f by x is 2 (A + B - z - TP) / (A + B - z + x)^2.
            best = np.sqrt(2 * weight * (left - hits) / (price * self._costs)) - left
            chosen = np.minimum(np.maximum(best, recovered[..., :-1]), recovered[..., 1:])
            cost = removal + recovery[..., :-1] + (chosen - recovered[..., :-1]) * self._costs
        else:
            chosen = cost = np.zeros(np.broadcast_shapes(left.shape, weight.shape, price.shape))
        dice = 2 * (hits + chosen) / (left + chosen)
        shape = (prices.size, weights.size, hits.shape[1])
        value = (weight * dice - price * cost).reshape(*shape, -1)
        place = (*np.indices(shape, sparse=True), value.argmax(-1))
        return value[place], dice.reshape(value.shape)[place], cost.reshape(value.shape)[place]


def _mixed(less: np.ndarray, more: np.ndarray, share: float) -> np.ndarray:
    """Dice (N, R) whose mean is that of two choices; undefined where both are.

    In one of them an undefined Dice is replaced by the mean, which is the same as leaving it out.
    """
    undefined = np.isnan(less) & np.isnan(more)
    return np.where(undefined, np.nan, (1 - share) * _filled(less) + share * _filled(more))


def _filled(dice: np.ndarray) -> np.ndarray:
    """Dice (N, R) without NaN and with the same mean."""
    defined = ~np.isnan(dice)
    number = defined.sum(0)
    means = np.divide(np.where(defined, dice, 0).sum(0), number, out=np.full(number.shape, np.nan), where=number > 0)
    if (number > 0).any():
        means[number == 0] = means[number > 0].mean()
    return np.where(defined, dice, means)
