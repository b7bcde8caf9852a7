"""Thresholds for limits over a dataset if whole regions are deferred.

Regions include gaps and leave out specks, so that thresholds with which single voxels keep a budget defer another share
in regions. The validation cases are therefore routed as in a prediction, with thresholds that single voxels would need
for the limits times a factor, and the highest factor with which the regions keep the limits is searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.decision.assignment import thresholds_within_limits
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.region_routing import route_regions

_PASSES, _STEPS = 5, 4  # the interval of factors shrinks to 1 / `_STEPS` in each pass
_ENOUGH = 0.99  # of a budget
_GROWTH = 4.0  # of a factor with which the limits are kept, to find one with which they are not


class Trial(NamedTuple):
    """Thresholds to be tried.

    Attributes:
        thresholds: float64 (J,).
        min_region_mm: The smallest region that is deferred.
    """

    thresholds: np.ndarray
    min_region_mm: float


CountVoxels = Callable[[Sequence[Trial]], np.ndarray]


def routed_voxels(gains: np.ndarray, spacing: Sequence[float], trials: Sequence[Trial]) -> np.ndarray:
    """How many voxels of a case go to each expert, as a prediction routes them, with each of the thresholds.

    Args:
        gains: Real (J, *S).
        spacing: Size of a voxel along each axis of S.
        trials: The T trials.

    Returns:
        int64 (T, J).
    """
    counts = np.zeros((len(trials), len(gains)), dtype=np.int64)
    for found, (thresholds, min_region_mm) in zip(counts, trials, strict=True):
        route = route_regions(
            gains - thresholds.reshape(-1, *[1] * (gains.ndim - 1)),
            spacing_mm=spacing,
            budget=None,
            min_diameter_mm=min_region_mm,
        )
        found += np.bincount(route.ravel(), minlength=len(gains) + 1)[1:]
    return counts


class _Search:
    """The search for the factor of one set of limits."""

    def __init__(self, limits: Limits, gains: np.ndarray, num_voxels: int) -> None:
        self._limits, self._gains, self._num_voxels = limits, gains, num_voxels
        self.low, self.high = 0.0, 2.0  # the limits are kept with the first, and perhaps with the second
        self.thresholds, self.deferred = np.full(len(gains), math.inf), 0
        self._exceeded = self.done = False
        self._factors: list[float] = []
        self.trials: list[Trial] = []

    def start_pass(self) -> None:
        """Choose factors to try."""
        factors = np.linspace(self.low, self.high, _STEPS + 1)[1 : _STEPS if self._exceeded else _STEPS + 1]
        self._factors = [float(each) for each in factors]
        size = self._limits.min_region_mm or 0.0
        self.trials = [Trial(self._by_voxel(each), size) for each in factors]

    def end_pass(self, counted: np.ndarray) -> None:
        """Keep the highest factor with which the limits are kept, given the voxels (T, J) of each trial."""
        for factor, (thresholds, _), counts in zip(self._factors, self.trials, counted, strict=True):
            if self._keeps(counts):
                self.low, self.thresholds, self.deferred = factor, thresholds, int(counts.sum())
        above = [factor for factor in self._factors if factor > self.low]
        self._exceeded |= bool(above)
        self.high = min(above) if above else self.high if self._exceeded else _GROWTH * self.low
        room = self._shares(1.0)[0]
        used_up = room is not None and self.deferred >= _ENOUGH * math.floor(room * self._num_voxels)
        self.done = used_up or not self.thresholds.any()

    def _shares(self, factor: float) -> tuple[float | None, list[float | None] | None]:
        """Budget and capacities times a factor."""

        def scaled(share: float | None) -> float | None:
            return None if share is None else min(factor * share, 1.0)

        capacities = self._limits.capacities
        return scaled(self._limits.budget), None if capacities is None else [scaled(each) for each in capacities]

    def _by_voxel(self, factor: float) -> np.ndarray:
        budget, capacities = self._shares(factor)
        return thresholds_within_limits(self._gains, num_voxels=self._num_voxels, budget=budget, capacities=capacities)

    def _keeps(self, counts: np.ndarray) -> bool:
        budget, capacities = self._shares(1.0)
        found = [counts.sum(), *counts]
        shares = [budget, *([None] * len(counts) if capacities is None else capacities)]
        return all(
            share is None or count <= math.floor(share * self._num_voxels)
            for count, share in zip(found, shares, strict=True)
        )


def thresholds_for_regions(
    count: CountVoxels, limits: Sequence[Limits], gains: np.ndarray, num_voxels: int
) -> list[tuple[np.ndarray, float]]:
    """Thresholds with which regions keep limits over all cases.

    Args:
        count: Gives the sums of :func:`routed_voxels` over all cases. It is called several times, so that one case at a
            time is in memory.
        limits: Limits with a minimum size of regions.
        gains: Real (J, m), the gains of all cases at voxels where one is positive.
        num_voxels: The number of all voxels.

    Returns:
        For each of the limits the thresholds, float64 (J,), and the share of the voxels that is deferred with them,
        which never exceeds the budget. All are inf if no factor is low enough.
    """
    searches = [_Search(each, gains, num_voxels) for each in limits]
    for _ in range(_PASSES):
        going_on = [search for search in searches if not search.done]
        if not going_on:
            break
        for search in going_on:
            search.start_pass()
        counted = count([trial for search in going_on for trial in search.trials])
        ends = np.cumsum([len(search.trials) for search in going_on])[:-1]
        for search, found in zip(going_on, np.split(counted, ends), strict=True):
            search.end_pass(found)
    return [(search.thresholds, search.deferred / max(num_voxels, 1)) for search in searches]
