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
        found = []
        for budget in limits:
            dice, used = bound.within(budget * num_voxels)
            found.append(
                BudgetResult(
                    budget=float(budget),
                    rate=float(used / max(num_voxels, 1)),
                    cases=tuple(self._cases),
                    regions=tuple(region_key(region) for region in self.regions),
                    dice=dice,
                )
            )
        return found

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
    """A choice of voxels: its value less its price, Dice (N, R), NaN where undefined, and number of voxels."""

    value: float
    dice: np.ndarray
    voxels: float


class _Cases(NamedTuple):
    """The n cases with a reference of a region, in the shapes that broadcast to (E, n, L + 1, L).

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
        self._known: dict[float, _Choice] = {}
        self._with_reference = [self._of_cases(region) for region in range(own.shape[2])]

    def within(self, most: float) -> tuple[np.ndarray, float]:
        """Dice (N, R), of which the mean is the bound for `most` voxels, and the number of voxels that are used."""
        if most >= self._all.voxels:
            return self._all.dice, self._all.voxels
        low, high = math.log(_LOWEST_PRICE), math.log(4.0 * self._areas.shape[1] + 1)
        if self._at(low).voxels <= most:  # what is left helps no Dice
            return self._all.dice, most
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._at(middle).voxels > most:
                low = middle
            else:
                high = middle
        more, less = self._at(low), self._at(high)
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
        return _Choice(math.nan, dice, float((self._missed_costs[..., -1] + self._false_costs[..., -1]).sum()))

    def _at(self, log_price: float) -> _Choice:
        """The best choice at a price."""
        if log_price not in self._known:
            price = math.exp(log_price)
            choices = [self._without(self._absent[:number], price) for number in range(len(self._absent) + 1)]
            self._known[log_price] = max(choices, key=lambda choice: choice.value)
        return self._known[log_price]

    def _without(self, removed: Sequence[int], price: float) -> _Choice:
        """The best choice with which some regions without references are removed everywhere."""
        dice: np.ndarray = np.full(self._areas.shape, np.nan)
        value, voxels = 0.0, 0.0
        regions = self._num_regions - len(removed)
        if not regions:  # no Dice would be left
            return _Choice(-math.inf, dice, 0.0)
        for region in range(self._areas.shape[1]):
            if region in removed:
                cost = float(self._false_costs[:, region, -1].sum())
                value, voxels = value - price * cost, voxels + cost
            elif self._defined[:, region].any():
                of_region = self._of_region(region, price, regions)
                value, voxels = value + of_region.value, voxels + of_region.voxels
                dice[:, region] = of_region.dice
        return _Choice(value, dice, voxels)

    def _of_region(self, region: int, price: float, regions: int) -> _Choice:
        """The best choice for a region, Dice (N,)."""
        present, defined = self._present[:, region], self._defined[:, region]
        dice = np.where(defined, 0.0, np.nan)
        if not present.any():
            return _Choice(0.0, dice, 0.0)
        # e = 0, 1, ... cases without a reference are left out of the mean.
        removable = np.flatnonzero(self._removable[:, region])
        removable = removable[np.argsort(self._false_costs[removable, region, -1], kind="stable")]
        paid = np.append(0.0, np.cumsum(self._false_costs[removable, region, -1]))
        weights = 1 / (regions * (defined.sum() - np.arange(paid.size)))
        values, found, voxels = self._respond(region, price, weights)
        totals = values.sum(1) - price * paid
        best = int(totals.argmax())
        dice[present] = found[best]
        dice[removable[:best]] = np.nan
        return _Choice(float(totals[best]), dice, float(voxels[best].sum() + paid[best]))

    def _of_cases(self, region: int) -> _Cases:
        """What :meth:`_respond` needs of the cases with a reference, found once because it is called for each price."""
        where = self._present[:, region]
        removed, removal = (each[where, region][None, :, :, None] for each in (self._false, self._false_costs))
        recovered, recovery = (each[where, region][None, :, None] for each in (self._missed, self._missed_costs))
        hits, areas = (each[where, region][None, :, None, None] for each in (self._hits, self._areas))
        return _Cases(hits, areas - removed, removal, recovered, recovery)

    def _respond(self, region: int, price: float, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best choice in each of n cases with a reference for each of E weights: value, Dice, voxels, (E, n)."""
        hits, left, removal, recovered, recovery = self._with_reference[region]
        weight = weights[:, None, None, None]
        if self._costs.size:
            # The derivative of f by x is 2 (A + B - z - TP) / (A + B - z + x)^2.
            best = np.sqrt(2 * weight * (left - hits) / (price * self._costs)) - left
            chosen = np.minimum(np.maximum(best, recovered[..., :-1]), recovered[..., 1:])
            cost = removal + recovery[..., :-1] + (chosen - recovered[..., :-1]) * self._costs
        else:
            chosen = cost = np.zeros(np.broadcast_shapes(left.shape, weight.shape))
        dice = 2 * (hits + chosen) / (left + chosen)
        value = (weight * dice - price * cost).reshape(weights.size, hits.shape[1], -1)
        place = (*np.indices(value.shape[:2], sparse=True), value.argmax(-1))
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
