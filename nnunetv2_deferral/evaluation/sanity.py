"""Scores of voxels that know nothing of the image.

A ranking that is no better than these has learned nothing about the image: that errors lie near the predicted border,
and objects near the centre, is known beforehand. All scores are whole numbers from 0 to 255, so that they need little
memory; what is equal is in random order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunetv2_deferral.evaluation.location import DISTANCES_MM, distances_in_slabs

NEAR_BORDER, NEAR_CENTRE = "near_border", "near_centre"
_MOST = 255
_ROUNDING = 1e-3  # of distances in single precision


def sanity_scores(model: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, np.ndarray]:
    """The scores of a case, uint8 of its shape S, by name.

    Args:
        model: The model's label map, integer of shape S.
        spacing_mm: Size of a voxel along each axis of S.
    """
    return {NEAR_BORDER: near_border(model, spacing_mm), NEAR_CENTRE: near_centre(model.shape, spacing_mm)}


def near_border(model: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """How near a voxel is to a border of the predicted labels: from 255 down to 0 at 10 mm and beyond.

    Args:
        model: The model's label map, integer of shape S.
        spacing_mm: Size of a voxel along each axis of S.

    Returns:
        uint8 of shape S; 0 everywhere if there is one label only.
    """
    reach = DISTANCES_MM[-2]
    scores = np.zeros(model.shape, dtype=np.uint8)
    for slab, distance in distances_in_slabs(model, spacing_mm):
        scores[slab] = np.ceil(_MOST * (1 - np.minimum(distance, reach) / reach) - _ROUNDING)
    return scores


def near_centre(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """How near a voxel is to the centre of the image: from 255 at the centre down to 0 in the corners.

    Args:
        shape: The shape S of the case.
        spacing_mm: Size of a voxel along each axis of S.

    Returns:
        uint8 of shape S.
    """
    squares = [
        (((np.arange(size) - (size - 1) / 2) * step) ** 2).astype(np.float32)
        for size, step in zip(shape, spacing_mm, strict=True)
    ]
    farthest = float(np.sqrt(sum(each[0] for each in squares))) or 1.0
    scores = np.empty(shape, dtype=np.uint8)
    in_slice = sum(np.ix_(*squares[1:])) if len(squares) > 1 else np.float32(0)
    for place, square in enumerate(squares[0]):  # one slice at a time, for memory
        scores[place] = np.rint(_MOST * (1 - np.sqrt(in_slice + square) / farthest))
    return scores
