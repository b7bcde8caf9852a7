"""Regions: what people look at. The one definition of them, for decisions, worklists and the review page.

A region is what one expert is asked about in one place of a case. Its pieces may lie apart: pieces with gaps of at most
2 `REACH_VOXELS` voxels between them are looked at together, so that specks do not count as visits of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunetv2_deferral.errors import InputError

REACH_VOXELS = 2
"""Every piece is widened by this many voxels along all axes (Chebyshev); pieces that then touch are one region."""


@dataclass(frozen=True)
class Region:
    """What one expert is asked about in one place.

    Attributes:
        expert: Whom to ask, in [1, J].
        voxels: How many voxels it has.
        box: (start, stop) in voxels along each axis of S.
        centre: A voxel of the region: of its largest slice along the first axis, the one nearest to that slice's
            centroid in mm.
        size_mm: The extent of the box along each axis.
        diameter_mm: Of the sphere of its volume; of the circle of its area where S is (Y, X) or (1, Y, X).
    """

    expert: int
    voxels: int
    box: tuple[tuple[int, int], ...]
    centre: tuple[int, ...]
    size_mm: tuple[float, ...]
    diameter_mm: float


def region_labels(route: np.ndarray) -> np.ndarray:
    """Where the regions of a route are.

    Args:
        route: Integer of shape S = (Z, Y, X), (1, Y, X) or (Y, X): 0 the model, j expert j.

    Returns:
        int32 of shape S: 0 the model, i the i-th region in the order of their first voxels, counted from 1.

    Raises:
        InputError: If S has neither two nor three axes.
    """
    if route.ndim not in (2, 3):
        raise InputError(f"a route is (Z, Y, X) or (Y, X), got the shape {route.shape}")
    labels = np.zeros(route.shape, dtype=np.int32)
    highest = 0
    for expert, box in enumerate(ndimage.find_objects(route) if route.size else [], start=1):
        if box is None:
            continue
        inside = route[box] == expert
        widened = ndimage.maximum_filter(np.pad(inside.view(np.uint8), REACH_VOXELS), size=2 * REACH_VOXELS + 1)
        pieces, number = ndimage.label(widened, np.ones((3,) * route.ndim), output=np.int32)
        labels[box][inside] = pieces[(slice(REACH_VOXELS, -REACH_VOXELS),) * route.ndim][inside] + highest
        highest += number
    asked = labels > 0
    _, first, place = np.unique(labels[asked], return_index=True, return_inverse=True)
    order = np.empty(first.size, dtype=np.int32)
    order[np.argsort(first)] = np.arange(1, first.size + 1)
    labels[asked] = order[place]
    return labels


def describe_regions(labels: np.ndarray, route: np.ndarray, *, spacing_mm: Sequence[float]) -> list[Region]:
    """What is to be said of the regions of a route.

    Args:
        labels: Integer of shape S, where the regions are, numbered from 1 without gaps, as by :func:`region_labels`.
        route: Integer of shape S; within a region the same everywhere.
        spacing_mm: The distance of neighbouring voxels along each axis of S.

    Returns:
        In the order of their numbers; empty where nothing is deferred.

    Raises:
        InputError: If the spacing does not fit S or is not positive.
    """
    spacing = check_spacing(spacing_mm, route.ndim)
    regions = []
    for number, box in enumerate(ndimage.find_objects(labels) if labels.size else [], start=1):
        inside = np.argwhere(labels[box] == number)
        largest = inside if route.ndim == 2 else inside[inside[:, 0] == np.bincount(inside[:, 0]).argmax()]
        nearest = most_central(largest, spacing)
        centre = tuple(int(each.start + offset) for each, offset in zip(box, nearest, strict=True))
        regions.append(
            Region(
                expert=int(route[centre]),
                voxels=len(inside),
                box=tuple((each.start, each.stop) for each in box),
                centre=centre,
                size_mm=tuple((each.stop - each.start) * mm for each, mm in zip(box, spacing, strict=True)),
                diameter_mm=diameter_mm(len(inside), spacing[1:] if route.shape[0] == 1 else spacing),
            )
        )
    return regions


def most_central(voxels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Of voxels (n, axes) the one nearest to their centroid in mm."""
    return voxels[np.linalg.norm((voxels - voxels.mean(axis=0)) * spacing, axis=1).argmin()]


def diameter_mm(voxels: int, spacing: Sequence[float]) -> float:
    """Of the circle (two axes) or the sphere (three) of so many voxels."""
    size = voxels * math.prod(spacing)
    return math.sqrt(4 * size / math.pi) if len(spacing) == 2 else (6 * size / math.pi) ** (1 / 3)


def check_spacing(spacing_mm: Sequence[float], axes: int) -> tuple[float, ...]:
    """The spacing as floats.

    Raises:
        InputError: If it is not one positive, finite number an axis.
    """
    spacing = tuple(float(each) for each in spacing_mm)
    if len(spacing) != axes or not all(0 < each < math.inf for each in spacing):
        raise InputError(f"spacing_mm must be {axes} positive numbers, one an axis, got {spacing}")
    return spacing
