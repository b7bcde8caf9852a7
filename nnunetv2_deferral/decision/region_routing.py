"""Regions instead of specks: deferral decided piece by piece, since experts are people and look at regions.

Decided voxel by voxel, deferral crumbles into specks of one voxel. Here whole pieces of a minimum size are deferred,
each to one expert, within the same budget.
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
    """Defer the regions with the highest expected gain per voxel, as many as the budget allows.

    Candidates are the voxels where somebody is expected to help, and gaps between them of up to about the minimum
    diameter where the mean gain around (Gaussian, sigma a quarter of that diameter) is positive. A watershed of this
    mean (`skimage.segmentation.watershed`) splits them into pieces of at least the minimum size. Pairs of piece and
    expert are taken by gain per voxel, as for a knapsack (Dantzig 1957); where there is no room for a piece, its core.
    That is tried for all candidates and for the best of them only, as many as the budget allows, twice as many, or so
    few that the gaps fit in, too, for parts of many regions may gain more than a few regions as a whole; what gains
    most stays. Small holes are filled last. What is larger than the smallest region is no hole but the model's: often
    only the border of an object is in doubt, and to have its inside redrawn would harm.

    Args:
        gains: Real (J, *S), S being (Z, Y, X), (1, Y, X) or (Y, X): what asking expert j is expected to gain over the
            model's answer, negative where it harms, -inf where the expert cannot be asked.
        spacing_mm: The distance of neighbouring voxels along each axis of S.
        budget: The share in [0, 1] of the voxels of S that may be deferred, filled gaps and holes included; None for no
            limit. It is never exceeded; what is left of it may be too little for a region.
        min_diameter_mm: No region is smaller than the sphere of this diameter by volume, in (Y, X) and (1, Y, X) than
            the circle by area. 0 for no minimum: nothing is smoothed and no gap is closed.
        capacities: Such shares for each expert, None for no limit.

    Returns:
        uint8 of shape S: 0 the model, j expert j. All 0 where nobody is expected to help. Each connected component of
        an expert (full connectivity) has the minimum size, a positive summed gain, and no hole below the minimum size
        that could be filled within budget and capacity with its gain still positive. What goes to others in a hole
        stays with them.

    Raises:
        InputError: If the shape is another, a gain is NaN or +inf, the spacing does not fit or is not positive, the
            minimum diameter is negative or not finite, or a budget or capacity is outside [0, 1].
    """
    if gains.ndim not in (3, 4) or not 1 <= len(gains) <= 255:
        raise InputError(f"gains are (J, Z, Y, X) or (J, Y, X) with J in [1, 255], got the shape {gains.shape}")
    spacing = check_spacing(spacing_mm, gains.ndim - 1)
    if not 0 <= min_diameter_mm < math.inf:
        raise InputError(f"min_diameter_mm must be finite and at least 0, got {min_diameter_mm}")
    shape = gains.shape[1:]
    room = _room(math.prod(shape), len(gains), budget, capacities)
    if gains.ndim == 4 and gains.shape[1] == 1:
        gains, spacing = gains[:, 0], spacing[1:]
    best = gains.max(axis=0).astype(np.float32, copy=False)
    if best.size and not best.max() < math.inf:  # NaN spreads through both maxima
        raise InputError(f"gains must be finite or -inf, got {best.max()}")
    smallest = _smallest_number_of_voxels(min_diameter_mm, spacing)
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
            trials.append(number**2 // with_gaps)  # so few that there should be room for the gaps, too
    while _fill_holes(chosen, gains, left, smallest):  # one filled may make another worth it
        pass
    return chosen.reshape(shape)


def _price(values: np.ndarray, number: int) -> float:
    """What the highest `number` of some positive gains are above, roughly: 0 where these are all."""
    place = values.size - number
    return float(np.partition(values, place)[place]) if 0 < place < values.size else 0.0


def _pieces(best: np.ndarray, price: float, sigma: np.ndarray, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of what is above the price, int32 of shape S, numbered from 1, and the smoothed gain in them."""
    pieces, level = np.zeros(best.shape, dtype=np.int32), np.zeros(best.shape, dtype=np.float32)
    reach = np.minimum(2 * sigma, best.shape).astype(int)
    margin = np.ceil(4 * sigma).astype(int) + 1  # nothing further away has any influence
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
    """The candidates' indices (n, axes) in groups that closing cannot connect: of a whole CT, little is candidate."""
    voxels = np.argwhere(candidates)
    tile = np.maximum(2 * reach + 1, 4)
    tiles = tuple((voxels // tile).T)
    occupied = np.zeros(np.array(candidates.shape) // tile + 1, dtype=bool)
    occupied[tiles] = True
    cluster = label(occupied, connectivity=occupied.ndim)[tiles]
    order = np.argsort(cluster, kind="stable")
    return np.split(voxels[order], 1 + np.flatnonzero(np.diff(cluster[order]))) if len(voxels) else []


def _closed(mask: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Closed by a box of 2 `reach` + 1 voxels: no ball, since a box is separable and a ball is slow."""
    padded = np.pad(mask, [(each, each) for each in reach]).view(np.uint8)
    closed = ndimage.grey_closing(padded, size=tuple(2 * reach + 1))
    return closed[tuple(slice(each, each + length) for each, length in zip(reach, mask.shape, strict=True))] > 0


def _split(candidates: np.ndarray, level: np.ndarray, smallest: int) -> np.ndarray:
    """Candidates in connected pieces of at least `smallest` voxels around the maxima of `level`: integer, 0 none."""
    components = label(candidates, connectivity=level.ndim)
    candidates = candidates & (np.bincount(components.ravel()) >= smallest)[components]
    # Padded, since an image that is one plateau would have no maximum.
    padded = np.pad(np.where(candidates, level, -np.inf), 1, constant_values=-np.inf)
    peaks = local_maxima(padded, connectivity=level.ndim)
    markers = label(peaks[(slice(1, -1),) * level.ndim] & candidates, connectivity=level.ndim)
    pieces = watershed(-level, markers, connectivity=level.ndim, mask=candidates)
    enough = np.bincount(pieces.ravel()) >= smallest
    if enough[1:].all():
        return pieces
    # Those too small go to their neighbours; where all of a component are, it is one piece.
    pieces = watershed(-level, np.where(enough[markers], markers, 0), connectivity=level.ndim, mask=candidates)
    whole = label(candidates & (pieces == 0), connectivity=level.ndim)
    return np.where(whole > 0, whole + pieces.max(), pieces)


def _take(
    gains: np.ndarray, pieces: np.ndarray, level: np.ndarray, room: np.ndarray, smallest: int, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The route, uint8 of shape S, that takes pairs of piece and expert by gain per voxel, and the room it leaves."""
    route, room = np.zeros(pieces.shape, dtype=np.uint8), room.copy()
    inside = pieces > 0
    numbers = pieces[inside]
    sizes = np.bincount(numbers, minlength=1)
    mean, top = np.zeros((len(gains), len(sizes))), np.zeros((len(gains), len(sizes)))
    for expert, values in enumerate(gain[inside] for gain in gains):
        np.maximum.at(top[expert], numbers, values)
        # Where an expert harms more than they help anywhere in the piece is left out, or it might cost the piece.
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
        # Another expert may have taken some of it already.
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
    """At most `number` voxels of a piece that lie nearest to its highest, connected: bool of its shape, never empty."""
    voxels, levels = np.argwhere(piece), level[piece]
    peak = most_central(voxels[levels == levels.max()], spacing)
    distance = np.linalg.norm((voxels - peak) * spacing, axis=1)
    core = np.zeros_like(piece)
    core[tuple(voxels[np.argsort(distance, kind="stable")[:number]].T)] = True
    components = label(core, connectivity=piece.ndim)
    return components == components[tuple(peak)]


def _fill_holes(route: np.ndarray, gains: np.ndarray, room: np.ndarray, smallest: int) -> bool:
    """Fill the pieces' small holes in place, the least harmful first, where room and gain allow; whether any was."""
    before = room[0]
    regions = _components(route)
    for number, box in enumerate(_boxes(regions) if before else [], start=1):
        region = regions[box] == number
        if min(region.shape) < 3:
            continue
        # Padded, so that what is outside is the first component.
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
    """How many voxels may be deferred: int64 (J + 1,), in total first, then to each expert."""
    shares = [None] * experts if capacities is None else list(capacities)
    if len(shares) != experts:
        raise InputError(f"capacities are one an expert, got {len(shares)} for {experts} experts")
    names = ["a budget", *(f"the capacity of expert {expert}" for expert in range(1, experts + 1))]
    named = zip([budget, *shares], names, strict=True)
    return np.array([voxels if each is None else int(check_budget(each, name) * voxels) for each, name in named])


def _smallest_number_of_voxels(smallest_mm: float, spacing: Sequence[float]) -> int:
    number = max(1, int((smallest_mm / diameter_mm(1, spacing)) ** len(spacing)) - 1)
    while diameter_mm(number, spacing) < smallest_mm:
        number += 1
    return number
