r"""Whom to ask about which voxel, within a budget and the experts' capacities, so that the most is gained.

With gains g_ij of asking expert j about voxel i, at most B voxels may be deferred and at most c_j to expert j:

.. math:: \max_{x \ge 0} \sum_{ij} g_{ij} x_{ij}, \quad
          \sum_j x_{ij} \le 1, \quad \sum_i x_{ij} \le c_j, \quad \sum_{ij} x_{ij} \le B

This transportation problem has whole solutions: routes. In its dual the budget has a price p >= 0, and p with the price
of expert j's capacity is their threshold t_j >= p. The best p is min_j t_j if the c_j add up to more than B, else 0:

.. math:: f(t) = \sum_j c_j t_j - \max(0, \sum_j c_j - B) \min_j t_j + \sum_i \max(0, \max_j (g_{ij} - t_j))

Experts are substitutes, so f is L-natural-convex: among integers, t is a minimum if f is no lower with the thresholds
of any set of experts all higher by 1 or all lower by 1, and where that holds for steps of s, some minimum is within
J s. So f is descended with steps that are halved again and again, without the voxels whose route is the same all over
that reach. Then a voxel goes where g_ij - t_j is highest; a flow between the kinds of ties meets the limits exactly.

Sources: Shapley & Shubik 1971, "The assignment game I" (the dual); Murota 2003, "Discrete Convex Analysis", chapters 7
and 10 (local minima, proximity, scaling of L-natural-convex functions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nnunetv2_deferral.decision.limits import check_budget
from nnunetv2_deferral.errors import InputError

Capacities = Sequence[float | None] | None  # shares of the voxels, one an expert

MOST_EXPERTS = 12  # steps are compared for all 2^J sets of experts
_MANY = 1 << 14  # more voxels are descended from the thresholds of every eighth


def route_within_limits(gains: np.ndarray, *, budget: float | None, capacities: Capacities) -> np.ndarray:
    """The routes that gain the most of all that the budget and the capacities allow.

    Only positive gains are deferred. Of equal gains the voxels that come first are taken, and the experts of lower
    index; where capacities bind, of the voxels that tie between the same routes. With a budget alone these are the
    voxels with the highest gains.

    Args:
        gains: Real (J, *S), what asking expert j gains, in any unit; -inf where they cannot be asked.
        budget: The share in [0, 1] of the voxels of S that may be deferred, or None. It is never exceeded.
        capacities: The same for each expert, or None for no capacities.

    Returns:
        uint8 of shape S: 0 the model, j expert j. Empty if S is. Optimal for gains rounded as in `_as_integers`.

    Raises:
        InputError: If a limit is not as above, a gain NaN or inf, or J not in [1, `MOST_EXPERTS`].
    """
    gains = _checked(gains)
    flat = gains.reshape(len(gains), math.prod(gains.shape[1:]))
    return _route(flat, *_limits(budget, capacities, *flat.shape)).reshape(gains.shape[1:])


def thresholds_within_limits(
    gains: np.ndarray, *, num_voxels: int, budget: float | None, capacities: Capacities
) -> np.ndarray:
    """What has to be gained by asking an expert, for the limits to be met on average: the dual solution.

    On the same gains, `route_by_thresholds` repeats `route_within_limits`, but for ties: those with the model stay
    there, and those between experts go to the lower index even where that exceeds a capacity.

    Args:
        gains: Real (J, m), the gains at the voxels that matter, of all cases. Those without positive gains do not.
        num_voxels: The number of all voxels, at least m, which the shares refer to.
        budget: As above.
        capacities: As above.

    Returns:
        float64 (J,), at least 0, in units of the gains. A limit that does not bind adds nothing, so that without
        limits or without voxels that matter all are 0. inf for experts whose limits are less than one voxel.

    Raises:
        InputError: As above, and if `gains` is not (J, m) with m <= `num_voxels`.
    """
    gains = _checked(gains)
    if gains.ndim != 2 or num_voxels < gains.shape[1]:
        raise InputError(f"gains of shape (J, m) are needed, with m <= {num_voxels} voxels, got {gains.shape}")
    total, each = _limits(budget, capacities, len(gains), max(num_voxels, 1))
    thresholds, asked = np.full(len(gains), np.inf), each > 0
    if asked.any():
        route = np.append(0, np.cumsum(asked))[_route(gains, total, each)]
        thresholds[asked] = _between(gains[asked].astype(np.float64), route, total, each[asked])
    return thresholds


def route_by_thresholds(gains: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Defer each voxel to the expert whose gain exceeds their threshold the most, if any does.

    Args:
        gains: Real (J, *S), as above.
        thresholds: Real (J,), at least 0; inf for experts who are never asked.

    Returns:
        uint8 of shape S: 0 the model, j expert j; of equal experts the lower index. Empty if S is.

    Raises:
        InputError: If a shape or value is not as above.
    """
    gains, thresholds = _checked(gains), np.asarray(thresholds, dtype=np.float64)
    if thresholds.shape != gains.shape[:1] or not (thresholds >= 0).all():
        raise InputError(f"{len(gains)} thresholds >= 0 are needed, got {thresholds.tolist()}")
    route, most = np.zeros(gains.shape[1:], dtype=np.uint8), np.zeros(gains.shape[1:])
    for index, threshold in enumerate(thresholds):
        surplus = np.asarray(np.subtract(gains[index], threshold, dtype=np.float64))
        route[surplus > most] = index + 1
        most = np.maximum(most, surplus)
    return route


def check_capacities(
    capacities: Capacities, num_experts: int, available: Sequence[bool] | None = None, named: str = "capacities"
) -> tuple[float | None, ...]:
    """The capacities, one an expert; 0 for who is not available, None where there is none or for all of None.

    Raises:
        InputError: If there are not as many as experts, or one is not a share in [0, 1]; `named` says where they stand.
    """
    each = (None,) * num_experts if capacities is None else tuple(capacities)
    can = (True,) * num_experts if available is None else tuple(available)
    if len(each) != num_experts or len(can) != num_experts:
        raise InputError(f"{named} need one entry for each of {num_experts} experts, got {each}, available {can}")
    for index, share in enumerate(each):
        if share is not None:
            check_budget(share, named=f"{named}[{index}]")
    return tuple(share if asked else 0.0 for share, asked in zip(each, can, strict=True))


def _checked(gains: np.ndarray) -> np.ndarray:
    gains = np.asarray(gains)
    if not gains.ndim or not 1 <= len(gains) <= MOST_EXPERTS:
        raise InputError(f"gains of 1 to {MOST_EXPERTS} experts are needed, shape (J, ...), got {gains.shape}")
    if gains.size and not (highest := gains.max()) < np.inf:
        raise InputError(f"gains must be finite or -inf, got {highest}")
    return gains


def _limits(budget: float | None, capacities: Capacities, num_experts: int, num_voxels: int) -> tuple[int, np.ndarray]:
    """The limits in voxels: of all together, and int64 (J,) of each expert, which is no more than that."""
    shares = [1.0 if share is None else share for share in check_capacities(capacities, num_experts)]
    total = math.floor((1.0 if budget is None else check_budget(budget)) * num_voxels)
    return total, np.array([min(total, math.floor(share * num_voxels)) for share in shares], dtype=np.int64)


def _route(gains: np.ndarray, total: int, each: np.ndarray) -> np.ndarray:
    """Optimal routes, uint8 (n,), for gains (J, n) and limits in voxels."""
    route = np.zeros(gains.shape[1], dtype=np.uint8)
    experts = np.flatnonzero(each)
    if not (experts.size and route.size):
        return route
    # The optimum without capacities is the optimum with them if it happens to respect them.
    chosen = _highest(gains[experts].max(axis=0), total)
    asked = experts[gains[np.ix_(experts, chosen)].argmax(axis=0)]
    if (np.bincount(asked, minlength=each.size) <= each).all():
        route[chosen] = asked + 1
        return route
    # Whoever is not among the `most` best of an expert could be replaced by one of these that is not deferred.
    most, matters = min(total, int(each.sum())), np.zeros(route.size, dtype=bool)
    for index in experts:
        matters[_highest(gains[index], most)] = True
    candidates = np.flatnonzero(matters)
    integers, bits = _as_integers(gains[np.ix_(experts, candidates)])
    # So that no product of limits and prices overflows; a limit of all candidates does not bind.
    total, each = min(total, candidates.size), np.minimum(each[experts], candidates.size)
    thresholds = _dual(integers, total, each, bits)
    route[candidates] = np.append(0, experts + 1)[_primal(integers, total, each, thresholds)]
    return route


def _highest(values: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of the positive among the `number` >= 1 highest values; of equal ones the first."""
    positive = np.flatnonzero(values > 0)
    if positive.size <= number:
        return positive
    values = values[positive]
    lowest = np.partition(values, -number)[-number]
    taken = values > lowest
    taken[np.flatnonzero(values == lowest)[: number - np.count_nonzero(taken)]] = True
    return positive[taken]


def _as_integers(gains: np.ndarray) -> tuple[np.ndarray, int]:
    """Gains as multiples of a power of two, int64 in [1, 2^bits], -1 where not positive, and the bits.

    As many bits as the sums leave, at most 40; float32 has 24, so that those near the highest are exact.
    """
    bits = min(40, 59 - math.ceil(math.log2(gains.size)))
    scaled = np.ldexp(np.maximum(gains, 0).astype(np.float64), bits - math.frexp(gains.max())[1])
    return np.where(gains > 0, np.maximum(np.rint(scaled).astype(np.int64), 1), -1), bits


def _dual(gains: np.ndarray, total: int, each: np.ndarray, bits: int, finest: int = 1) -> np.ndarray:
    """Thresholds int64 (J,) of least f for integer gains (J, m), in multiples of `finest`: 1 unless for a start."""
    experts, number = gains.shape
    thresholds, step = np.zeros(experts, dtype=np.int64), 1 << bits
    if number > _MANY:
        # Of the order of a quantile's standard error, so that few steps lead from the sample's minimum to that of all.
        step = max(finest, step >> (number.bit_length() // 2 - 3))
        thresholds = _dual(gains[:, ::8], max(1, total // 8), np.maximum(1, each // 8), bits, step)
    lowest, highest = np.zeros_like(thresholds), np.full_like(thresholds, 1 << bits)
    sets = (np.arange(1 << experts)[:, None] >> np.arange(experts) & 1).astype(np.int64)
    excess, free = max(0, int(each.sum()) - total), each.copy()
    while True:
        while True:
            moved = thresholds + np.concatenate((sets, -sets)) * step
            change = _surplus_changes(gains, thresholds, step) + (moved - thresholds) @ free
            change -= excess * (moved.min(axis=1) - thresholds.min())
            change[((moved < lowest) | (moved > highest)).any(axis=1)] = 0
            if change.min() == 0:
                break
            thresholds = moved[change.argmin()]
        if step == finest:
            return thresholds
        lowest = np.maximum(lowest, thresholds - experts * step)
        highest = np.minimum(highest, thresholds + experts * step)
        # A route is settled if no other reaches its lowest surplus; the model's is 0.
        settled_at = np.maximum((gains - highest[:, None]).max(axis=0), 0)
        reaching = gains - lowest[:, None] >= settled_at
        settled = np.count_nonzero(reaching, axis=0) + (settled_at == 0) == 1
        free -= np.count_nonzero(reaching & settled, axis=1)
        gains, step = gains[:, ~settled], step >> 1


def _surplus_changes(gains: np.ndarray, thresholds: np.ndarray, step: int) -> np.ndarray:
    """How much f's sum over voxels changes with the thresholds of a set of experts higher, then lower, by `step`.

    int64 (2^J + 2^J,); expert j is in the sets whose number has bit j - 1.
    """
    sets = 1 << len(gains)
    changes = np.zeros((2, sets), dtype=np.int64)
    width = (1 << 18) // sets
    for start in range(0, gains.shape[1], width):
        surplus = gains[:, start : start + width] - thresholds[:, None]
        # The highest surplus within each set; read backwards, within the experts who are not in it.
        within = np.full((sets, surplus.shape[1]), -1 << 60, dtype=np.int64)
        for index, of_expert in enumerate(surplus):
            np.maximum(within[: 1 << index], of_expert, out=within[1 << index : 2 << index])
        others = np.maximum(within[::-1], 0)
        changes[0] += np.maximum(others, within - step).sum(axis=1) - others[0].sum()
        changes[1] += np.maximum(others, within + step).sum(axis=1) - others[0].sum()
    return changes.ravel()


def _primal(gains: np.ndarray, total: int, each: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Optimal routes, integers (m,) in [0, J], from optimal thresholds: of the ties so many each way as limits ask."""
    experts, number = gains.shape
    surplus = np.vstack((np.zeros_like(gains[:1]), gains - thresholds[:, None]))
    # The routes that tie at a voxel as bits, the model's the lowest.
    kind = ((surplus == surplus.max(axis=0)) << np.arange(experts + 1)[:, None]).sum(axis=0, dtype=np.int16)
    may = np.arange(2 << experts)[:, None] >> np.arange(experts + 1) & 1
    flow = np.zeros_like(may)
    flow[np.arange(len(may)), may.argmax(axis=1)] = np.bincount(kind, minlength=len(may))
    # Limits with a price are used up.
    price = thresholds.min() if each.sum() > total else 0
    upper = np.append(number - total if price else number, each)
    lower = np.append(number - total, np.where(thresholds > price, each, 0))
    for bound in (upper, lower):
        while _balance(flow, may, bound):
            pass
    first = np.append(np.arange(1, experts + 1), 0)
    route = np.empty(number, dtype=np.int64)
    route[np.argsort(kind, kind="stable")] = np.repeat(np.tile(first, len(may)), flow[:, first].ravel())
    return route


def _balance(flow: np.ndarray, may: np.ndarray, bound: np.ndarray) -> bool:
    """Move voxels along a shortest path from a route above its bound (J + 1,) to one below; whether there was one.

    `flow` counts the voxels of a kind that go each route, int64 (K, J + 1), and is changed; `may` is 1 where they may.
    """
    spare, movable = bound - flow.sum(axis=0), flow.T @ may
    paths = [[start] for start in np.flatnonzero(spare < 0).tolist()]
    seen = {path[0] for path in paths}
    for path in paths:
        if spare[path[-1]] > 0:
            pairs = list(pairwise(path))
            amount = min(-spare[path[0]], spare[path[-1]], *(movable[pair] for pair in pairs))
            for source, target in pairs:
                there = flow[:, source] * may[:, target]
                moved = np.clip(amount + there - np.cumsum(there), 0, there)
                flow[:, source] -= moved
                flow[:, target] += moved
            return True
        further = set(np.flatnonzero(movable[path[-1]]).tolist()) - seen
        seen |= further
        paths += [[*path, target] for target in sorted(further)]
    return False


def _between(gains: np.ndarray, route: np.ndarray, total: int, each: np.ndarray) -> np.ndarray:
    """Thresholds, float64 (J,), that lie between what optimal routes defer and what they keep; limits of at least 1.

    With t_0 = 0 for the model and t_(J + 1) = p for the budget, they solve the dual if t_b - t_a >= w_ab for all a, b,
    what a voxel that goes to a gains more at b, at most. The lowest such t are the longest paths from the model.
    """
    weights = np.full((len(gains) + 2, len(gains) + 2), -np.inf)
    counts = np.bincount(route, minlength=len(gains) + 1)[1:]
    for index in np.unique(route):
        here = gains[:, route == index]
        own = here[index - 1] if index else np.zeros(1)
        weights[index, 0], weights[index, 1:-1] = -own.min(), (here - own).max(axis=1)
    # No price is negative, and limits that are not used up have none; nor have others that can do without.
    weights[0, -1] = weights[-1, 1:-1] = 0
    weights[1:-1, -1][(counts < each) | (each >= total)] = 0
    weights[-1, 0] = 0 if counts.sum() < total else -np.inf
    lowest = _longest_paths(weights)[0]
    weights[1:-1, -1][lowest[1:-1] <= lowest[-1]] = 0
    weights[-1, 0] = 0 if lowest[-1] <= 0 else weights[-1, 0]
    # The mean of the J + 2 solutions that are the highest with t_a = 0 for one a has this share of every slack.
    pairs = weights[:-1, :-1]
    slack = -_longest_paths(weights)[:-1, :-1].T - pairs
    pairs += np.where(np.isfinite(pairs), np.maximum(slack, 0) / len(weights), 0)
    return _longest_paths(weights)[0, 1:-1]


def _longest_paths(weights: np.ndarray) -> np.ndarray:
    """The length of the longest path from node to node; no cycle is longer than 0."""
    lengths = weights.copy()
    for via in range(len(lengths)):
        lengths = np.maximum(lengths, lengths[:, via, None] + lengths[via])
    return lengths
