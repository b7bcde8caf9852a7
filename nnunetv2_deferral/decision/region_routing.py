"""Deferral of pieces of a minimum size instead of single voxels.

Voxel-wise decisions leave many specks of one voxel, while people look at regions. Here connected pieces of a minimum
size are deferred, each to one expert, within the same limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from nnunetv2_deferral.decision.gains import expected_gain
from nnunetv2_deferral.decision.limits import check_budget
from nnunetv2_deferral.decision.regions import check_spacing, diameter_mm, most_central
from nnunetv2_deferral.errors import InputError


def route_regions(
    gains: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    budget: float | None,
    min_diameter_mm: float,
    capacities: Sequence[float | None] | None = None,
) -> np.ndarray:
    """Defer the pieces with the highest expected gain per voxel that fit in the budget.

    Candidates are the voxels with a positive gain, and gaps between them of up to about the minimum diameter where the
    smoothed gain (Gaussian, sigma a quarter of that diameter) is positive. A watershed of the smoothed gain
    (`skimage.segmentation.watershed`) splits them into connected pieces of at least the minimum size. Pairs of piece
    and expert are selected by gain per voxel, as in the greedy heuristic for knapsacks (Dantzig 1957); a piece that
    does not fit is reduced to its core. Because parts of many pieces may have a higher gain than a few whole ones, this
    is tried with all candidates and with the best only (as many as the budget allows, twice as many, and so few that
    the gaps should fit as well), and the route with the highest gain is taken. Finally holes below the minimum size are
    filled. Larger holes stay with the model: often only the border of an object is uncertain, and redrawing its inside
    would harm.

    Args:
        gains: Real (J, *S), S being (Z, Y, X), (1, Y, X) or (Y, X): expected gain of asking expert j over the model,
            negative where it harms, -inf where the expert cannot be asked.
        spacing_mm: Size of a voxel along each axis of S.
        budget: The share in [0, 1] of the voxels of S that may be deferred, including filled gaps and holes; None for
            no limit. It is never exceeded; the remainder may be too small for another piece.
        min_diameter_mm: The minimum size of a piece: the volume of the sphere of this diameter, in (Y, X) and (1, Y, X)
            the area of the circle. 0 for no minimum; then there is no smoothing and gaps are not closed.
        capacities: The share in [0, 1] for each expert, None for no limit; None for no capacities.

    Returns:
        uint8 of shape S: 0 the model, j expert j. All 0 if no gain is positive. Each connected component of an expert's
        voxels (full connectivity) has the minimum size and a positive total gain, and no hole below the minimum size
        that could be filled within budget and capacity with a total gain still positive. Voxels in holes that are
        routed to other experts stay with them.

    Raises:
        InputError: If the shape is not as above, a gain is NaN or +inf, the spacing is not one positive number per
            axis, the minimum diameter is negative or not finite, there is not one capacity per expert, or a share is
            outside [0, 1].
    """
    if gains.ndim not in (3, 4) or not 1 <= len(gains) <= 255:
        raise InputError(f"gains must have shape (J, Z, Y, X) or (J, Y, X) with J in [1, 255], got {gains.shape}")
    spacing = check_spacing(spacing_mm, gains.ndim - 1)
    if not 0 <= min_diameter_mm < math.inf:
        raise InputError(f"min_diameter_mm must be finite and at least 0, got {min_diameter_mm}")
    shape = gains.shape[1:]
    room = _room(math.prod(shape), len(gains), budget, capacities)
    if gains.ndim == 4 and gains.shape[1] == 1:
        gains, spacing = gains[:, 0], spacing[1:]
    best = gains.max(axis=0).astype(np.float32, copy=False)
    if best.size and not best.max() < math.inf:  # NaN propagates through both maxima
        raise InputError(f"gains must be finite or -inf, got {best.max()}")
    smallest = _smallest_number_of_voxels(min_diameter_mm, spacing)
    if (full := room[1:] < smallest).any():  # without room for a piece, the others take the places of an expert
        gains = np.where(full.reshape(-1, *[1] * best.ndim), -np.inf, gains)
        best = gains.max(axis=0).astype(np.float32, copy=False)
    sigma = np.where(np.array(best.shape) > 1, min_diameter_mm / 4 / np.array(spacing), 0)

    chosen, left, highest = np.zeros(best.shape, dtype=np.uint8), room, 0.0
    values, number = best[best > 0], int(min(room[0], room[1:].sum()))
    trials = [values.size] if number else []
    trials += [many for many in (2 * number, number) if 0 < many < values.size]
    for many in trials:
        pieces, level = _pieces(best, _price(values, many), sigma, smallest)
        route, rest = _take(gains, pieces, level, room, smallest, spacing)
        if (gain := expected_gain(gains, route)) > highest:
            chosen, left, highest = route, rest, gain
        if many == number and (with_gaps := np.count_nonzero(pieces)) > number:
            trials.append(number**2 // with_gaps)  # so few that the gaps should fit as well
    while _fill_holes(chosen, gains, left, smallest):  # filling one may allow filling another
        pass
    return chosen.reshape(shape)


def _price(values: np.ndarray, number: int) -> float:
    """The approximate lower bound of the highest `number` of positive gains; 0 if there are no more than that."""
    place = values.size - number
    return float(np.partition(values, place)[place]) if 0 < place < values.size else 0.0


def _pieces(best: np.ndarray, price: float, sigma: np.ndarray, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of voxels with gains above the price, int32 of shape S, numbered from 1, and their smoothed gain."""
    pieces, level = np.zeros(best.shape, dtype=np.int32), np.zeros(best.shape, dtype=np.float32)
    reach = np.minimum(2 * sigma, best.shape).astype(int)
    margin = np.ceil(4 * sigma).astype(int) + 1  # voxels further away have no influence
    highest = 0
    for voxels in _clusters(best > price, reach):
        low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
        if np.prod(high - low) < smallest:
            continue
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, best.shape)
        box = tuple(slice(*each) for each in zip(low, high, strict=True))
        gain = best[box]
        candidates = np.zeros(gain.shape, dtype=bool)
        candidates[tuple((voxels - low).T)] = True
        mean = ndimage.gaussian_filter(np.nan_to_num(gain, neginf=-float(gain.max())), sigma, mode="nearest")
        candidates |= _closed(candidates, reach) & (mean > price)
        found = _split(candidates, mean, smallest)
        inside = found > 0
        pieces[box][inside] = found[inside] + highest
        level[box][inside] = mean[inside]
        highest += int(found.max())
    return pieces, level


def _clusters(candidates: np.ndarray, reach: np.ndarray) -> list[np.ndarray]:
    """The candidates' indices (n, axes) in groups that closing cannot connect, since candidates are sparse in a CT."""
    voxels = np.argwhere(candidates)
    tile = np.maximum(2 * reach + 1, 4)
    tiles = tuple((voxels // tile).T)
    occupied = np.zeros(np.array(candidates.shape) // tile + 1, dtype=bool)
    occupied[tiles] = True
    cluster = label(occupied, connectivity=occupied.ndim)[tiles]
    order = np.argsort(cluster, kind="stable")
    return np.split(voxels[order], 1 + np.flatnonzero(np.diff(cluster[order]))) if len(voxels) else []


def _closed(mask: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Closing with a box of 2 `reach` + 1 voxels, which is separable and hence much faster than with a ball."""
    padded = np.pad(mask, [(each, each) for each in reach]).view(np.uint8)
    closed = ndimage.grey_closing(padded, size=tuple(2 * reach + 1))
    return closed[tuple(slice(each, each + length) for each, length in zip(reach, mask.shape, strict=True))] > 0


def _split(candidates: np.ndarray, level: np.ndarray, smallest: int) -> np.ndarray:
    """Split candidates into connected pieces of at least `smallest` voxels at maxima of `level`: integer, 0 none."""
    components = label(candidates, connectivity=level.ndim)
    candidates = candidates & (np.bincount(components.ravel()) >= smallest)[components]
    # Padded, because an image of one plateau would have no maximum.
    padded = np.pad(np.where(candidates, level, -np.inf), 1, constant_values=-np.inf)
    peaks = local_maxima(padded, connectivity=level.ndim)
    markers = label(peaks[(slice(1, -1),) * level.ndim] & candidates, connectivity=level.ndim)
    pieces = watershed(-level, markers, connectivity=level.ndim, mask=candidates)
    enough = np.bincount(pieces.ravel()) >= smallest
    if enough[1:].all():
        return pieces
    # Pieces that are too small are merged with neighbours; a component of only such pieces becomes one piece.
    pieces = watershed(-level, np.where(enough[markers], markers, 0), connectivity=level.ndim, mask=candidates)
    whole = label(candidates & (pieces == 0), connectivity=level.ndim)
    return np.where(whole > 0, whole + pieces.max(), pieces)


def _take(
    gains: np.ndarray, pieces: np.ndarray, level: np.ndarray, room: np.ndarray, smallest: int, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Select pairs of piece and expert by gain per voxel; the route, uint8 of shape S, and the remaining room."""
    route, room = np.zeros(pieces.shape, dtype=np.uint8), room.copy()
    inside = pieces > 0
    numbers = pieces[inside]
    sizes = np.bincount(numbers, minlength=1)
    mean, top = np.zeros((len(gains), len(sizes))), np.zeros((len(gains), len(sizes)))
    for expert, values in enumerate(gain[inside] for gain in gains):
        np.maximum.at(top[expert], numbers, values)
        # Voxels where an expert harms more than they help anywhere in the piece are excluded.
        asked = values > -top[expert][numbers]
        total = np.bincount(numbers[asked], values[asked], len(sizes))
        mean[expert] = total / np.maximum(np.bincount(numbers[asked], minlength=len(sizes)), 1)
    boxes = ndimage.find_objects(pieces)
    for pair in np.argsort(-mean, axis=None, kind="stable")[: np.count_nonzero(mean > 0)]:
        expert, number = divmod(int(pair), len(sizes))
        allowed = int(min(room[0], room[expert + 1]))
        if allowed < smallest:
            continue
        box = boxes[number - 1]
        gain = gains[expert][box]
        # Voxels already routed to another expert are excluded.
        taken = (pieces[box] == number) & (route[box] == 0) & (gain > -top[expert, number])
        size = np.count_nonzero(taken)
        if size >= smallest and not size == sizes[number] <= allowed:
            taken = _core(taken, level[box], allowed, spacing)
            size = np.count_nonzero(taken)
        if size >= smallest and gain[taken].sum(dtype=np.float64) > 0:
            route[box][taken] = expert + 1
            room[[0, expert + 1]] -= size
    return route, room


def _core(piece: np.ndarray, level: np.ndarray, number: int, spacing: Sequence[float]) -> np.ndarray:
    """At most `number` connected voxels of a piece nearest to its maximum: bool of its shape, never empty."""
    voxels, levels = np.argwhere(piece), level[piece]
    peak = most_central(voxels[levels == levels.max()], spacing)
    distance = np.linalg.norm((voxels - peak) * spacing, axis=1)
    core = np.zeros_like(piece)
    core[tuple(voxels[np.argsort(distance, kind="stable")[:number]].T)] = True
    components = label(core, connectivity=piece.ndim)
    return components == components[tuple(peak)]


def _fill_holes(route: np.ndarray, gains: np.ndarray, room: np.ndarray, smallest: int) -> bool:
    """Fill small holes of pieces in place, the least harmful first, as room and gain allow; whether any was filled."""
    before = room[0]
    regions = _components(route)
    for number, box in enumerate(_boxes(regions) if before else [], start=1):
        region = regions[box] == number
        if min(region.shape) < 3:
            continue
        # Padded, so that the outside is the first component.
        apart = label(np.pad(~region, 1, constant_values=True), connectivity=1)[(slice(1, -1),) * region.ndim]
        holes = np.where((apart > 1) & (route[box] == 0), apart, 0)
        expert = int(route[box][region][0])
        gain = gains[expert - 1][box]
        total = gain[region].sum(dtype=np.float64)
        sizes, added = np.bincount(holes.ravel()), np.bincount(holes.ravel(), gain.ravel())
        inner = ndimage.find_objects(holes)
        for hole in np.argsort(-added, kind="stable"):
            if hole and 0 < sizes[hole] <= min(room[0], room[expert], smallest - 1) and total + added[hole] > 0:
                route[box][inner[hole - 1]][holes[inner[hole - 1]] == hole] = expert
                room[[0, expert]] -= sizes[hole]
                total += added[hole]
    return bool(room[0] < before)


def _components(route: np.ndarray) -> np.ndarray:
    """The connected components of each expert's voxels, int32 of shape S, numbered from 1."""
    components = np.zeros(route.shape, dtype=np.int32)
    for box in _boxes((route != 0).view(np.uint8)):  # one, or none where nothing is deferred
        components[box] = label(route[box], background=0, connectivity=route.ndim)
    return components


def _boxes(labels: np.ndarray) -> list[tuple[slice, ...]]:
    return ndimage.find_objects(labels) if labels.size else []


def _room(voxels: int, experts: int, budget: float | None, capacities: Sequence[float | None] | None) -> np.ndarray:
    """The number of voxels that may be deferred: int64 (J + 1,), in total, then to each expert."""
    shares = [None] * experts if capacities is None else list(capacities)
    if len(shares) != experts:
        raise InputError(f"there must be one capacity per expert, got {len(shares)} for {experts} experts")
    names = ["a budget", *(f"the capacity of expert {expert}" for expert in range(1, experts + 1))]
    named = zip([budget, *shares], names, strict=True)
    return np.array([voxels if each is None else int(check_budget(each, name) * voxels) for each, name in named])


def _smallest_number_of_voxels(smallest_mm: float, spacing: Sequence[float]) -> int:
    number = max(1, int((smallest_mm / diameter_mm(1, spacing)) ** len(spacing)) - 1)
    while diameter_mm(number, spacing) < smallest_mm:
        number += 1
    return number
