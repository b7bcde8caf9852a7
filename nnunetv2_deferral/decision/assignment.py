r"""Assignment of voxels to experts with maximal total gain within a budget and the experts' capacities.

With the gain g_ij of asking expert j about voxel i, at most B voxels deferred, and at most c_j to expert j:

.. math:: \max_{x \ge 0} \sum_{ij} g_{ij} x_{ij}, \quad
          \sum_j x_{ij} \le 1, \quad \sum_i x_{ij} \le c_j, \quad \sum_{ij} x_{ij} \le B

This transportation problem has integral optimal solutions, i.e. routes. In its dual the budget has a price p >= 0; the
threshold t_j >= p of expert j is p plus the price of the expert's capacity. The optimal p is min_j t_j if
sum_j c_j > B, else 0:

.. math:: f(t) = \sum_j c_j t_j - \max(0, \sum_j c_j - B) \min_j t_j + \sum_i \max(0, \max_j (g_{ij} - t_j))

Experts are substitutes, so f is L-natural-convex: an integer t is a minimum if f does not decrease when the thresholds
of any set of experts are all raised or all lowered by 1; if that holds for steps of s, a minimum lies within J s. f is
therefore minimised by descent with step sizes halved repeatedly, excluding voxels whose route is constant within that
distance. A voxel then goes to the expert with the highest g_ij - t_j; a flow between groups of tied voxels meets the
limits exactly.

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

Capacities = Sequence[float | None] | None  # shares of the voxels, one per expert

MOST_EXPERTS = 12  # steps are compared for all 2^J sets of experts
_MANY = 1 << 14  # with more voxels the descent starts from the thresholds of every eighth voxel


def route_within_limits(gains: np.ndarray, *, budget: float | None, capacities: Capacities) -> np.ndarray:
    """The route with the highest total gain within the budget and the capacities.

    Only voxels with a positive gain are deferred. With a budget only, these are the voxels with the highest gains. Ties
    go to the voxels that come first and to the expert with the lower index; if capacities bind, this holds among voxels
    with the same tied routes.

    Args:
        gains: Real (J, *S), the gain from asking expert j, in any unit; -inf where the expert cannot be asked.
        budget: The share in [0, 1] of the voxels of S that may be deferred, or None. It is never exceeded.
        capacities: The share in [0, 1] for each expert, None for no limit; or None for no capacities.

    Returns:
        uint8 of shape S: 0 the model, j expert j. Empty if S is. Optimal for gains rounded as in `_as_integers`.

    Raises:
        InputError: If a share is outside [0, 1], there is not one capacity per expert, a gain is NaN or inf, or J is
            not in [1, `MOST_EXPERTS`].
    """
    gains = _checked(gains)
    flat = gains.reshape(len(gains), math.prod(gains.shape[1:]))
    return _route(flat, *_limits(budget, capacities, *flat.shape)).reshape(gains.shape[1:])


def thresholds_within_limits(
    gains: np.ndarray, *, num_voxels: int, budget: float | None, capacities: Capacities
) -> np.ndarray:
    """The minimum gain for asking each expert with which the limits are met on average: the dual solution.

    On the same gains, `route_by_thresholds` reproduces `route_within_limits` except for ties: ties with the model stay
    with the model, and ties between experts go to the lower index even if that exceeds a capacity.

    Args:
        gains: Real (J, m), the gains at m voxels of all cases; voxels without positive gains may be omitted.
        num_voxels: The number of all voxels, at least m, to which the shares refer.
        budget: See :func:`route_within_limits`.
        capacities: See :func:`route_within_limits`.

    Returns:
        float64 (J,), at least 0, in units of the gains. 0 where no limit binds, and for m = 0; inf for experts whose
        limits are less than one voxel.

    Raises:
        InputError: See :func:`route_within_limits`; also if `gains` is not (J, m) with m <= `num_voxels`.
    """
    gains = _checked(gains)
    if gains.ndim != 2 or num_voxels < gains.shape[1]:
        raise InputError(f"gains must have shape (J, m) with m <= {num_voxels} voxels, got {gains.shape}")
    total, each = _limits(budget, capacities, len(gains), max(num_voxels, 1))
    thresholds, asked = np.full(len(gains), np.inf), each > 0
    if asked.any():
        route = np.append(0, np.cumsum(asked))[_route(gains, total, each)]
        thresholds[asked] = _between(gains[asked].astype(np.float64), route, total, each[asked])
    return thresholds


def route_by_thresholds(gains: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Defer each voxel to the expert whose gain exceeds the expert's threshold the most, if any does.

    Args:
        gains: Real (J, *S), see :func:`route_within_limits`.
        thresholds: Real (J,), at least 0; inf for experts who are never asked.

    Returns:
        uint8 of shape S: 0 the model, j expert j; ties go to the lower index. Empty if S is.

    Raises:
        InputError: If there is not one threshold per expert, a threshold is negative or NaN, or the gains are invalid,
            see :func:`route_within_limits`.
    """
    gains, thresholds = _checked(gains), np.asarray(thresholds, dtype=np.float64)
    if thresholds.shape != gains.shape[:1] or not (thresholds >= 0).all():
        raise InputError(f"thresholds must be {len(gains)} numbers >= 0, got {thresholds.tolist()}")
    route, most = np.zeros(gains.shape[1:], dtype=np.uint8), np.zeros(gains.shape[1:])
    for index, threshold in enumerate(thresholds):
        surplus = np.asarray(np.subtract(gains[index], threshold, dtype=np.float64))
        route[surplus > most] = index + 1
        most = np.maximum(most, surplus)
    return route


def check_capacities(
    capacities: Capacities, num_experts: int, available: Sequence[bool] | None = None, named: str = "capacities"
) -> tuple[float | None, ...]:
    """Check the capacities and return them, one per expert: 0 for unavailable experts, None for no limit.

    Args:
        capacities: Shares in [0, 1] or None, one per expert; None for no limits.
        num_experts: The number J of experts.
        available: Whether each expert can be asked; None for all.
        named: Name of the capacities in messages.

    Raises:
        InputError: If there is not one capacity per expert, or one is outside [0, 1].
    """
    each = (None,) * num_experts if capacities is None else tuple(capacities)
    can = (True,) * num_experts if available is None else tuple(available)
    for what, entries in ((named, each), ("available", can)):
        if len(entries) != num_experts:
            raise InputError(f"{what} must have one entry for each of {num_experts} experts, got {entries}")
    for index, share in enumerate(each):
        if share is not None:
            check_budget(share, named=f"{named}[{index}]")
    return tuple(share if asked else 0.0 for share, asked in zip(each, can, strict=True))


def _checked(gains: np.ndarray) -> np.ndarray:
    gains = np.asarray(gains)
    if not gains.ndim or not 1 <= len(gains) <= MOST_EXPERTS:
        raise InputError(f"gains must have shape (J, ...) with J from 1 to {MOST_EXPERTS} experts, got {gains.shape}")
    if gains.size and not (highest := gains.max()) < np.inf:
        raise InputError(f"gains must be finite or -inf, got {highest}")
    return gains


def _limits(budget: float | None, capacities: Capacities, num_experts: int, num_voxels: int) -> tuple[int, np.ndarray]:
    """The limits in voxels: in total, and per expert, int64 (J,), at most the total."""
    shares = [1.0 if share is None else share for share in check_capacities(capacities, num_experts)]
    total = math.floor((1.0 if budget is None else check_budget(budget)) * num_voxels)
    return total, np.array([min(total, math.floor(share * num_voxels)) for share in shares], dtype=np.int64)


def _route(gains: np.ndarray, total: int, each: np.ndarray) -> np.ndarray:
    """Optimal routes, uint8 (n,), for gains (J, n) and limits in voxels."""
    route = np.zeros(gains.shape[1], dtype=np.uint8)
    experts = np.flatnonzero(each)
    if not (experts.size and route.size):
        return route
    # The optimum without capacities is also optimal with them if it respects them.
    best = gains[experts[0]].copy()
    for index in experts[1:]:
        np.maximum(best, gains[index], out=best)
    chosen = _highest(best, total)
    asked = experts[gains[np.ix_(experts, chosen)].argmax(axis=0)]
    if (np.bincount(asked, minlength=each.size) <= each).all():
        route[chosen] = asked + 1
        return route
    # A voxel that is not among the `most` best of an expert can be replaced by one of these that is not deferred.
    most, matters = min(total, int(each.sum())), np.zeros(route.size, dtype=bool)
    for index in experts:
        matters[_highest(gains[index], most)] = True
    candidates = np.flatnonzero(matters)
    integers, bits = _as_integers(gains[np.ix_(experts, candidates)])
    # Avoids overflow in products of limits and prices; a limit of all candidates does not bind.
    total, each = min(total, candidates.size), np.minimum(each[experts], candidates.size)
    thresholds = _dual(integers, total, each, bits)
    route[candidates] = np.append(0, experts + 1)[_primal(integers, total, each, thresholds)]
    return route


def _highest(values: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of the positive values among the `number` >= 1 highest; ties go to the first."""
    # Without the indices of all positive values, which take 8 bytes each.
    positive = values[values > 0]
    if positive.size <= number:
        return np.flatnonzero(values > 0)
    positive.partition(positive.size - number)
    lowest = positive[positive.size - number]
    higher = np.flatnonzero(values > lowest)
    return np.sort(np.append(higher, np.flatnonzero(values == lowest)[: number - higher.size]))


def _as_integers(gains: np.ndarray) -> tuple[np.ndarray, int]:
    """Gains as multiples of a power of two, int64 in [1, 2^bits], -1 where not positive, and the number of bits.

    There are as many bits as sums allow without overflow, at most 40. float32 has 24, so gains near the highest are
    exact.
    """
    bits = min(40, 59 - math.ceil(math.log2(gains.size)))
    scaled = np.ldexp(np.maximum(gains, 0).astype(np.float64), bits - math.frexp(gains.max())[1])
    return np.where(gains > 0, np.maximum(np.rint(scaled).astype(np.int64), 1), -1), bits


def _dual(gains: np.ndarray, total: int, each: np.ndarray, bits: int, finest: int = 1) -> np.ndarray:
    """Thresholds int64 (J,) that minimise f for integer gains (J, m), in multiples of `finest`."""
    experts, number = gains.shape
    thresholds, step = np.zeros(experts, dtype=np.int64), 1 << bits
    if number > _MANY:
        # Of the order of a quantile's standard error, so that the sample's minimum is few steps from the overall one.
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
        # A route is settled if no other can reach its lowest surplus; the model's surplus is 0.
        settled_at = np.maximum((gains - highest[:, None]).max(axis=0), 0)
        reaching = gains - lowest[:, None] >= settled_at
        settled = np.count_nonzero(reaching, axis=0) + (settled_at == 0) == 1
        free -= np.count_nonzero(reaching & settled, axis=1)
        gains, step = gains[:, ~settled], step >> 1


def _surplus_changes(gains: np.ndarray, thresholds: np.ndarray, step: int) -> np.ndarray:
    """Change of f's sum over voxels if the thresholds of a set of experts are raised, then lowered, by `step`.

    Returns:
        int64 (2^J + 2^J,); expert j is in the sets whose number has bit j - 1.
    """
    sets = 1 << len(gains)
    changes = np.zeros((2, sets), dtype=np.int64)
    width = (1 << 18) // sets
    for start in range(0, gains.shape[1], width):
        surplus = gains[:, start : start + width] - thresholds[:, None]
        # The highest surplus within each set; in reverse order, within its complement.
        within = np.full((sets, surplus.shape[1]), -1 << 60, dtype=np.int64)
        for index, of_expert in enumerate(surplus):
            np.maximum(within[: 1 << index], of_expert, out=within[1 << index : 2 << index])
        others = np.maximum(within[::-1], 0)
        changes[0] += np.maximum(others, within - step).sum(axis=1) - others[0].sum()
        changes[1] += np.maximum(others, within + step).sum(axis=1) - others[0].sum()
    return changes.ravel()


def _primal(gains: np.ndarray, total: int, each: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Optimal routes, integers (m,) in [0, J], from optimal thresholds; ties are split so that the limits are met."""
    experts, number = gains.shape
    surplus = np.vstack((np.zeros_like(gains[:1]), gains - thresholds[:, None]))
    # The tied routes of a voxel as bits, the model's lowest.
    kind = ((surplus == surplus.max(axis=0)) << np.arange(experts + 1)[:, None]).sum(axis=0, dtype=np.int16)
    may = np.arange(2 << experts)[:, None] >> np.arange(experts + 1) & 1
    flow = np.zeros_like(may)
    flow[np.arange(len(may)), may.argmax(axis=1)] = np.bincount(kind, minlength=len(may))
    # Limits with a positive price are exhausted.
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
    """Move voxels along a shortest path from a route above its bound to one below.

    Args:
        flow: int64 (K, J + 1), the number of voxels of each kind on each route; changed in place.
        may: (K, J + 1), 1 where voxels of a kind may take a route.
        bound: (J + 1,), the target for the number of voxels on each route.

    Returns:
        Whether there was such a path.
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
    """Thresholds, float64 (J,), that separate the gains of deferred and kept voxels; limits must be at least 1.

    With t_0 = 0 for the model and t_(J + 1) = p for the budget, they solve the dual if t_b - t_a >= w_ab for all a, b,
    where w_ab is the largest additional gain at b of a voxel routed to a. The lowest such t are the longest paths from
    the model.
    """
    weights = np.full((len(gains) + 2, len(gains) + 2), -np.inf)
    counts = np.bincount(route, minlength=len(gains) + 1)[1:]
    for index in np.unique(route):
        here = gains[:, route == index]
        own = here[index - 1] if index else np.zeros(1)
        weights[index, 0], weights[index, 1:-1] = -own.min(), (here - own).max(axis=1)
    # Prices are not negative. They are 0 for limits that are not exhausted, and for others where possible.
    weights[0, -1] = weights[-1, 1:-1] = 0
    weights[1:-1, -1][(counts < each) | (each >= total)] = 0
    weights[-1, 0] = 0 if counts.sum() < total else -np.inf
    lowest = _longest_paths(weights)[0]
    weights[1:-1, -1][lowest[1:-1] <= lowest[-1]] = 0
    weights[-1, 0] = 0 if lowest[-1] <= 0 else weights[-1, 0]
    # The mean of the J + 2 solutions that are highest with t_a = 0 for one a has this share of every slack.
    pairs = weights[:-1, :-1]
    slack = -_longest_paths(weights)[:-1, :-1].T - pairs
    pairs += np.where(np.isfinite(pairs), np.maximum(slack, 0) / len(weights), 0)
    return _longest_paths(weights)[0, 1:-1]


def _longest_paths(weights: np.ndarray) -> np.ndarray:
    """The lengths of the longest paths between all nodes; no cycle is longer than 0."""
    lengths = weights.copy()
    for via in range(len(lengths)):
        lengths = np.maximum(lengths, lengths[:, via, None] + lengths[via])
    return lengths
