"""The regions that an expert visits, numbered in the order in which they are worth it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

REACH_VOXELS = 2
"""Pieces of a route that lie within twice this distance are one region, so that specks are visited together."""
MAX_REGIONS = np.iinfo(np.uint16).max


def find_regions(mask: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The regions of a mask.

    Args:
        mask: Bool (Z, Y, X).
        gain: Real (V,), what each of its V voxels is expected to gain, in the order of the flat volume.

    Returns:
        uint16 (Z, Y, X): 0 outside of the mask, else the number of the region, that of the highest expected gain first;
        ties in the order of their first voxels.
    """
    numbers = np.zeros(mask.shape, dtype=np.uint16)
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return numbers
    inside = mask[box[0]]
    padded = np.pad(inside, REACH_VOXELS)
    joined = ndimage.binary_dilation(padded, np.ones((3, 3, 3)), iterations=REACH_VOXELS)
    pieces, _ = ndimage.label(joined, np.ones((3, 3, 3)))
    of_voxels = pieces[(slice(REACH_VOXELS, -REACH_VOXELS),) * 3][inside]
    _, first, of_voxels = np.unique(of_voxels, return_index=True, return_inverse=True)
    order = np.lexsort((first, -np.bincount(of_voxels, weights=gain)))
    place = np.empty_like(order)
    place[order] = np.arange(1, order.size + 1)
    # What is beyond the number that fits, the least useful specks of a very noisy route, shares the last number.
    numbers[mask] = np.minimum(place[of_voxels], MAX_REGIONS)
    return numbers


def describe_regions(numbers: np.ndarray, gain: np.ndarray) -> list[dict[str, Any]]:
    """What the page must know of each region.

    Args:
        numbers: uint16 (Z, Y, X): 0, or the number of the region, counted from 1 without gaps.
        gain: Real (V,), what each of the V voxels of all regions is expected to gain, in the order of the flat volume.

    Returns:
        For each region its number, its size in voxels, its expected gain (the sum over its voxels), a voxel [z, y, x]
        in the middle of its largest slice, and the corners of its box (the second one is the last voxel inside).
    """
    gains = np.bincount(numbers[numbers > 0], weights=gain)
    found = ndimage.find_objects(numbers)
    return [
        _describe(numbers[where] == number, where) | {"number": number, "gain": float(gains[number])}
        for number, where in enumerate(found, start=1)
    ]


def _describe(inside: np.ndarray, where: tuple[slice, slice, slice]) -> dict[str, Any]:
    per_slice = inside.sum(axis=(1, 2))
    depth = int(per_slice.argmax())
    rows, columns = np.nonzero(inside[depth])
    middle = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    low = [edge.start for edge in where]
    return {
        "voxels": int(per_slice.sum()),
        "centre": [low[0] + depth, low[1] + int(rows[middle]), low[2] + int(columns[middle])],
        "box": [low, [edge.stop - 1 for edge in where]],
    }
