"""The regions of an expert, numbered in descending order of expected gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.decision.regions import describe_regions, region_labels

MAX_REGIONS = np.iinfo(np.uint16).max


def regions_by_gain(mask: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Number the regions that an expert is asked about in descending order of expected gain.

    Args:
        mask: Bool (Z, Y, X), the V voxels that the expert is asked about.
        gain: Real (V,), their expected gains, in the order of the flat volume.

    Returns:
        uint16 (Z, Y, X): the number of the region, 0 outside the mask. Ties are broken by first voxel. Regions beyond
        the largest uint16 share the last number.
    """
    labels = region_labels(mask.view(np.uint8))
    inside = labels[mask]
    gains = np.bincount(inside, weights=gain, minlength=1)[1:]
    place = np.zeros(gains.size + 1, dtype=np.uint16)
    place[1 + np.argsort(-gains, kind="stable")] = np.minimum(np.arange(1, gains.size + 1), MAX_REGIONS)
    return place[labels]


def describe_visits(numbers: np.ndarray, gain: np.ndarray, *, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
    """The description of each region for the page.

    Args:
        numbers: uint16 (Z, Y, X): the number of the region, from 1 without gaps, or 0.
        gain: Real (V,), the expected gains of the V voxels of all regions, in the order of the flat volume.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        For each region its `number`, its size in `voxels`, its expected `gain` (sum over its voxels), its `centre`
        [z, y, x] as in :class:`.Region`, and the corners of its bounding `box` (the second is the last voxel inside).
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
