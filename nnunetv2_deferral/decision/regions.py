"""Definition of regions, shared by decisions, worklists and the review page.

A region consists of pieces that are routed to one expert in one case and at most 2 `REACH_VOXELS` voxels apart, so that
specks do not count as separate regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunetv2_deferral.errors import InputError

REACH_VOXELS = 2
"""Pieces are dilated by this many voxels (Chebyshev); those that are then connected form one region."""


@dataclass(frozen=True)
class Region:
    """A region that is deferred to one expert.

    Attributes:
        expert: The expert, in [1, J].
        voxels: The number of voxels.
        box: Bounding box, (start, stop) in voxels along each axis of S.
        centre: A voxel of the region: in its largest slice along the first axis, the voxel nearest to that slice's
            centroid (in mm).
        size_mm: The extent of the box along each axis.
        diameter_mm: Diameter of the sphere of equal volume, or for S = (Y, X) or (1, Y, X) of the circle of equal area.
    """

    expert: int
    voxels: int
    box: tuple[tuple[int, int], ...]
    centre: tuple[int, ...]
    size_mm: tuple[float, ...]
    diameter_mm: float


def region_labels(route: np.ndarray) -> np.ndarray:
    """Label the regions of a route.

    Args:
        route: Integer of shape S = (Z, Y, X), (1, Y, X) or (Y, X): 0 the model, j expert j.

    Returns:
        int32 of shape S: 0 the model, i the i-th region in the order of first voxels, counted from 1.

    Raises:
        InputError: If S has neither two nor three axes.
    """
    if route.ndim not in (2, 3):
        raise InputError(f"a route must have shape (Z, Y, X) or (Y, X), got {route.shape}")
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
    """Measure the regions of a route.

    Args:
        labels: Integer of shape S, regions numbered from 1 without gaps, as from :func:`region_labels`.
        route: Integer of shape S, constant within a region.
        spacing_mm: Size of a voxel along each axis of S.

    Returns:
        The regions in the order of their numbers; empty if nothing is deferred.

    Raises:
        InputError: If the spacing is not one positive number per axis of S.
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
    """The one of the voxels (n, axes) that is nearest to their centroid in mm."""
    return voxels[np.linalg.norm((voxels - voxels.mean(axis=0)) * spacing, axis=1).argmin()]


def diameter_mm(voxels: int, spacing: Sequence[float]) -> float:
    """Diameter of the circle (two axes) or sphere (three axes) with the size of so many voxels."""
    size = voxels * math.prod(spacing)
    return math.sqrt(4 * size / math.pi) if len(spacing) == 2 else (6 * size / math.pi) ** (1 / 3)


def check_spacing(spacing_mm: Sequence[float], axes: int) -> tuple[float, ...]:
    """Return the spacing as floats.

    Raises:
        InputError: If it is not one positive, finite number per axis.
    """
    spacing = tuple(float(each) for each in spacing_mm)
    if len(spacing) != axes or not all(0 < each < math.inf for each in spacing):
        raise InputError(f"spacing_mm must be {axes} positive numbers, one per axis, got {spacing}")
    return spacing
