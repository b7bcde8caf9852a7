"""The regions that an expert visits, numbered in the order of what they are expected to gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.decision.regions import describe_regions, region_labels

MAX_REGIONS = np.iinfo(np.uint16).max


def regions_by_gain(mask: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The regions of what an expert is asked about, those with the highest expected gain first.

    Args:
        mask: Bool (Z, Y, X), what the expert is asked about.
        gain: Real (V,), what each of its V voxels is expected to gain, in the order of the flat volume.

    Returns:
        uint16 (Z, Y, X): 0 outside of the mask, else the number of the region; ties are in the order of their first
        voxels. Regions beyond the number that fits share the last one: the least useful of a very noisy route.
    """
    labels = region_labels(mask.view(np.uint8))
    inside = labels[mask]
    gains = np.bincount(inside, weights=gain, minlength=1)[1:]
    place = np.zeros(gains.size + 1, dtype=np.uint16)
    place[1 + np.argsort(-gains, kind="stable")] = np.minimum(np.arange(1, gains.size + 1), MAX_REGIONS)
    return place[labels]


def describe_visits(numbers: np.ndarray, gain: np.ndarray, *, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
    """What the page must know of each region.

    Args:
        numbers: uint16 (Z, Y, X): 0, or the number of the region, counted from 1 without gaps.
        gain: Real (V,), what each of the V voxels of all regions is expected to gain, in the order of the flat volume.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        For each region its `number`, its size in `voxels`, its expected `gain` (the sum over its voxels), its `centre`
        [z, y, x] as :class:`.Region` has it, and the corners of its `box` (the second one is the last voxel inside).
    """
    asked = numbers > 0
    gains = np.bincount(numbers[asked], weights=gain, minlength=1)
    return [
        {
            "number": number,
            "voxels": region.voxels,
            "gain": float(gains[number]),
            "centre": list(region.centre),
            "box": [[start for start, _ in region.box], [stop - 1 for _, stop in region.box]],
        }
        for number, region in enumerate(describe_regions(numbers, asked.view(np.uint8), spacing_mm=spacing_mm), start=1)
    ]
