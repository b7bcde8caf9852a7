"""Location of deferred voxels and of errors: by distance to the border of the reference, and by score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunetv2_deferral.arrays import in_chunks

DISTANCES_MM = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, np.inf)
NUM_SCORE_BINS = 20
_SLAB_VOXELS = 2**24
_ROUNDING_MM = 1e-4  # of distances in single precision, which are not to fall behind a limit that they equal


def border_distance_mm(labels: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance of each voxel to the nearest voxel of another label, centre to centre.

    Args:
        labels: Label map, integer of shape S, of two or three axes.
        spacing_mm: Size of a voxel along each axis of S.

    Returns:
        float32 of shape S in mm, infinite if all voxels have one label.
    """
    distance = np.full(labels.shape, np.inf, dtype=np.float32)
    lowest = int(labels.min())
    if (labels == lowest).all():
        return distance
    numbers = labels.astype(np.int32)
    numbers -= lowest - 1
    for value, box in enumerate(ndimage.find_objects(numbers), start=lowest):
        if box is None:
            continue
        # Wherever the nearest voxel of another label is, one that is not farther lies in this box.
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        others = sitk.GetImageFromArray((labels[around] != value).view(np.uint8))
        others.SetSpacing([float(step) for step in reversed(spacing_mm)])
        transform = sitk.SignedMaurerDistanceMapImageFilter()
        transform.SetSquaredDistance(False)
        transform.SetUseImageSpacing(True)
        transform.SetNumberOfThreads(1)  # cases are distributed among processes
        of_label = sitk.GetArrayFromImage(transform.Execute(others))
        np.copyto(distance[around], of_label, where=of_label > 0)  # not so in other labels
    return distance


def distances_in_slabs(labels: np.ndarray, spacing_mm: Sequence[float]) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs along the first axis and their :func:`border_distance_mm`, exact up to the largest finite limit of a band.

    A distance transform takes about 20 bytes per voxel. All voxels within that limit of a slab are in the margin that
    is computed with it; where the true distance is larger, that in the slab is larger, too, or infinite.

    Args:
        labels: Label map, integer of shape S.
        spacing_mm: Size of a voxel along each axis of S.

    Yields:
        The indices of a slab along the first axis, and its distances, float32.
    """
    margins = [math.ceil(DISTANCES_MM[-2] / step) for step in spacing_mm]
    depth = max(margins[0], _SLAB_VOXELS // max(1, math.prod(labels.shape[1:])), 1)
    for start in range(0, len(labels), depth):
        first, end = max(0, start - margins[0]), start + depth
        distance = _near_borders(labels[first : end + margins[0]], spacing_mm, margins)
        yield slice(start, end), distance[start - first :][:depth]


def _near_borders(labels: np.ndarray, spacing_mm: Sequence[float], margins: Sequence[int]) -> np.ndarray:
    """The distances in a box around all that differs from the first voxel's label, and infinity elsewhere."""
    distance = np.full(labels.shape, np.inf, dtype=np.float32)
    differs = labels != labels.flat[0]
    box = []
    for axis, margin in enumerate(margins):
        places = np.flatnonzero(differs.any(tuple(other for other in range(labels.ndim) if other != axis)))
        if not places.size:
            return distance
        box.append(slice(max(0, int(places[0]) - margin - 1), int(places[-1]) + margin + 2))
    distance[tuple(box)] = border_distance_mm(labels[tuple(box)], spacing_mm)
    return distance


class LocationStatistics:
    """Numbers of voxels, deferred voxels and errors by distance and by score, summed over cases."""

    def __init__(self) -> None:
        self._by_distance = np.zeros((3, len(DISTANCES_MM) - 1), dtype=np.int64)
        self._by_score = np.zeros((2, NUM_SCORE_BINS), dtype=np.int64)

    def update(
        self,
        scores: np.ndarray,
        *,
        reference: np.ndarray,
        wrong: np.ndarray,
        deferred: np.ndarray,
        valid: np.ndarray,
        spacing_mm: Sequence[float],
    ) -> None:
        """Add a case.

        Args:
            scores: The probability map in [0, 1], shape S.
            reference: Label map, integer of shape S.
            wrong: Bool of shape S, where the model is wrong.
            deferred: Bool of shape S.
            valid: Bool of shape S, the voxels that count.
            spacing_mm: Size of a voxel along each axis of S.
        """
        limits = np.array(DISTANCES_MM[1:-1], dtype=np.float32) + np.float32(_ROUNDING_MM)
        for slab, distance in distances_in_slabs(reference, spacing_mm):
            counted = valid[slab]
            place = np.digitize(distance[counted], limits, right=True)
            for row, weights in enumerate((None, deferred[slab][counted], wrong[slab][counted])):
                self._by_distance[row] += np.bincount(place, weights, len(DISTANCES_MM) - 1).astype(np.int64)
        for some_scores, some_wrong, where in in_chunks(scores, wrong, valid):
            place = np.minimum((some_scores[where] * NUM_SCORE_BINS).astype(np.int64), NUM_SCORE_BINS - 1)
            for row, counted in enumerate((place, place[some_wrong[where]])):
                self._by_score[row] += np.bincount(counted, minlength=NUM_SCORE_BINS)

    @classmethod
    def merged(cls, parts: Iterable[LocationStatistics]) -> LocationStatistics:
        """The statistics of the cases of all parts."""
        merged = cls()
        for part in parts:
            merged._by_distance += part._by_distance
            merged._by_score += part._by_score
        return merged

    def summary(self) -> dict[str, list[dict[str, Any]]]:
        """The counts as JSON-ready data.

        Returns:
            `by_distance`: for each band (`above_mm`, `up_to_mm`; None for infinity) the numbers of `voxels`, `deferred`
            and `model_wrong`. `by_score`: for each interval of the score `voxels` and `model_wrong`.
        """
        bands = zip(DISTANCES_MM[:-1], DISTANCES_MM[1:], self._by_distance.T, strict=True)
        edges = np.linspace(0, 1, NUM_SCORE_BINS + 1)
        return {
            "by_distance": [
                {
                    "above_mm": low,
                    "up_to_mm": None if np.isinf(high) else high,
                    "voxels": int(voxels),
                    "deferred": int(deferred),
                    "model_wrong": int(wrong),
                }
                for low, high, (voxels, deferred, wrong) in bands
            ],
            "by_score": [
                {"from": round(float(low), 4), "to": round(float(high), 4), "voxels": int(n), "model_wrong": int(wrong)}
                for low, high, (n, wrong) in zip(edges[:-1], edges[1:], self._by_score.T, strict=True)
            ],
        }
