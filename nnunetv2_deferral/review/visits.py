"""The regions of a person: their readers, their numbers, their description."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.decision.regions import describe_regions

MAX_REGIONS = np.iinfo(np.uint16).max


def second_reader(case: str, region: int, first: int, available: Sequence[int]) -> int:
    """Who reads a region beside the expert to whom the model routes it.

    The others take turns, starting at a place that depends on the case, so that all get about as many.

    Args:
        case: The case identifier.
        region: The number of the region in the case.
        first: The number of the first reader.
        available: The numbers of the experts who can be asked; at least one other than `first`.
    """
    others = [number for number in available if number != first]
    return others[(zlib.crc32(case.encode()) + region) % len(others)]


def numbered_by_gain(regions: np.ndarray, gain: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Number some regions of a case in descending order of expected gain.

    Args:
        regions: int (V,), the number of the region of each voxel, from 1 in the order of first voxels.
        gain: Real (V,), the expected gain of each voxel.
        wanted: The numbers of the regions that are asked about.

    Returns:
        uint16 (V,): the new number of the region, 0 for voxels of other regions. Ties are broken by first voxel.
        Regions beyond the largest uint16 share the last number.
    """
    gains = np.bincount(regions, weights=gain, minlength=1)
    return numbered(regions, sorted(wanted, key=lambda number: (-gains[number], number)))


def numbered(regions: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Number some regions of a case in a given order.

    Args:
        regions: int (V,), the number of the region of each voxel, from 1.
        order: The numbers of the regions in their new order.

    Returns:
        uint16 (V,): the place of the region in `order`, from 1, or 0; those beyond the largest uint16 share the last.
    """
    place = np.zeros(regions.max(initial=0) + 1, dtype=np.uint16)
    place[list(order)] = np.minimum(np.arange(1, len(order) + 1), MAX_REGIONS)
    return place[regions]


def describe_visits(
    voxels: np.ndarray, numbers: np.ndarray, gain: np.ndarray, shape: Sequence[int], *, spacing_mm: Sequence[float]
) -> list[dict[str, Any]]:
    """The description of each region for the page.

    Args:
        voxels: int64 (V,), the indices of the voxels of all regions in the flat volume, ascending.
        numbers: uint16 (V,), the number of the region of each, from 1 without gaps.
        gain: Real (V,), the expected gain of each.
        shape: (Z, Y, X) of the volume.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        For each region its `number`, its size in `voxels`, its expected `gain` (sum over its voxels), its `centre`
        [z, y, x] as in :class:`.Region`, and the corners of its bounding `box` (the second is the last voxel inside).
    """
    if not voxels.size:
        return []
    # Measured in the box of all regions, which is small beside the volume.
    places = np.stack(np.unravel_index(voxels, tuple(shape)))
    corner = places.min(axis=1)
    inside = np.zeros(places.max(axis=1) - corner + 1, dtype=np.uint16)
    inside[tuple(places - corner[:, None])] = numbers
    gains = np.bincount(numbers, weights=gain)
    return [
        {
            "number": number,
            "voxels": region.voxels,
            "gain": float(gains[number]),
            "centre": (corner + region.centre).tolist(),
            "box": (corner + np.transpose(region.box) - [[0], [1]]).tolist(),
        }
        for number, region in enumerate(
            describe_regions(inside, (inside > 0).view(np.uint8), spacing_mm=spacing_mm), start=1
        )
    ]
