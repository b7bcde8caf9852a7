r"""The prior: the probability of being inside a structure that takes a voxel's surroundings into account.

.. math:: L = b_0 + b_1 l_0 + b_2 l_{1.5} + b_3 l_4

l_s is the logit, clipped to +-8, of the model's probability smoothed by a Gaussian with a standard deviation of s
voxels. The smoothed probabilities find missed objects that the probability of a single voxel does not: where the model
is nearly certain of background, but less so all around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.special import logit

from nnunetv2_deferral.arrays import chunks_of

LARGEST_LOGIT = 8.0
SMOOTHING = (0.0, 1.5, 4.0)  # standard deviations in voxels
NUM_WEIGHTS = 1 + len(SMOOTHING)
_STEPS = np.iinfo(np.int16).max
_LOWEST = np.float32(1 / (1 + np.exp(LARGEST_LOGIT)))  # probability
_TRUNCATE = 3.0  # standard deviations


class PriorMap(NamedTuple):
    """The prior of a case, from which the posterior is formed once there are answers.

    Attributes:
        logits: float32 (S, *shape), L.
        areas: float64 (S,), the expected area of each structure in voxels, the sum of the model's probabilities.
    """

    logits: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class Prior:
    """The prior of each structure.

    Attributes:
        weights: (b_0, b_1, b_2, b_3) for each of the S structures.
        voxel_size: The size of a voxel in s, in the unit of spacings (mm, or pixels).
    """

    weights: tuple[tuple[float, ...], ...]
    voxel_size: float

    def map_of(self, probabilities: np.ndarray, spacing: Sequence[float]) -> PriorMap:
        """The prior of a case; arguments as for :meth:`logits`."""
        areas = probabilities.reshape(len(probabilities), -1).sum(1, dtype=np.float64)
        return PriorMap(self.logits(probabilities, spacing), areas)

    def logits(self, probabilities: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """L of every voxel.

        Args:
            probabilities: float32 (S, *shape) in [0, 1], the model's, of being inside each structure.
            spacing: Size of a voxel along each axis of the shape.

        Returns:
            float32 (S, *shape), clipped to +-8 and rounded to the precision with which it is stored
            (:func:`to_steps`). Needs memory for two arrays of the shape besides.
        """
        shape = probabilities.shape[1:]
        reach = [_reach(sigma) for sigma in in_voxels(max(SMOOTHING) * self.voxel_size, shape, spacing)]
        found = np.empty(probabilities.shape, dtype=np.float32)
        for weights, inside, out in zip(self.weights, probabilities, found, strict=True):
            certain, box = _certain_outside(inside, reach)
            alone = np.full((1,) * len(shape), certain, dtype=np.float32)
            out[...] = self._weighted(weights, alone, spacing)
            if box is not None:
                around = _widened(box, reach, shape)
                here = self._weighted(weights, inside[around], spacing)
                out[box] = here[
                    tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, around, strict=True))
                ]
        return found

    def _weighted(self, weights: Sequence[float], inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """L of one structure."""
        found = np.full(inside.shape, weights[0], dtype=np.float32)
        for weight, feature in zip(weights[1:], smoothed_logits(inside, spacing, self.voxel_size), strict=True):
            feature *= np.float32(weight)
            found += feature
            del feature  # before the next is made
        flat = found.reshape(-1)
        for part in chunks_of(flat.size):
            flat[part] = from_steps(to_steps(flat[part]))
        return found


_Box = tuple[slice, ...]


def _reach(sigma: float) -> int:
    """How far a Gaussian of `smoothed_logits` reaches, in voxels, as scipy cuts it off."""
    return int(_TRUNCATE * sigma + 0.5)


def _certain_outside(inside: np.ndarray, reach: Sequence[int]) -> tuple[float, _Box | None]:
    """A box outside of which all features are those of certainty, and of which certainty, 0 or 1; None for no box.

    Most of a large image is certain, and smoothing takes most of the time.
    """
    boxes = {}
    for certain, mask in ((0.0, inside > _LOWEST), (1.0, inside < 1 - _LOWEST)):
        box = _box_of(mask)
        if box is None:
            return certain, None
        boxes[certain] = _widened(box, reach, inside.shape)
    certain = min(boxes, key=lambda each: math.prod(part.stop - part.start for part in boxes[each]))
    return certain, boxes[certain]


def _box_of(mask: np.ndarray) -> _Box | None:
    """The smallest box around the voxels of a mask; None without any. Faster than `scipy.ndimage.find_objects`."""
    box = []
    for axis in range(mask.ndim):
        (places,) = mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)).nonzero()
        if not places.size:
            return None
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _widened(box: _Box, reach: Sequence[int], shape: Sequence[int]) -> _Box:
    parts = zip(box, reach, shape, strict=True)
    return tuple(slice(max(part.start - far, 0), min(part.stop + far, size)) for part, far, size in parts)


def smoothed_logits(probabilities: np.ndarray, spacing: Sequence[float], voxel_size: float) -> Iterator[np.ndarray]:
    """l_s for each s in `SMOOTHING`, float32 of the shape of `probabilities`, each a new array."""
    for scale in SMOOTHING:
        sigmas = in_voxels(scale * voxel_size, probabilities.shape, spacing)
        # In place where possible: for 10^8 voxels each array takes 400 MB.
        if any(sigmas):
            inside = probabilities.astype(np.float32, copy=False)
            smooth = ndimage.gaussian_filter(inside, sigmas, mode="nearest", truncate=_TRUNCATE, output=np.float32)
        else:
            smooth = probabilities.astype(np.float32)
        np.clip(smooth, _LOWEST, 1 - _LOWEST, out=smooth)
        logit(smooth, out=smooth)
        yield np.clip(smooth, -LARGEST_LOGIT, LARGEST_LOGIT, out=smooth)


def to_steps(logits: np.ndarray) -> np.ndarray:
    """Logits, clipped to +-8, as int16 in steps of 8 / 32767."""
    steps = np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)  # a copy
    steps *= np.float32(_STEPS / LARGEST_LOGIT)
    return np.rint(steps, out=steps).astype(np.int16)


def from_steps(steps: np.ndarray) -> np.ndarray:
    """float32 logits from the integers of :func:`to_steps`."""
    return steps.astype(np.float32) * np.float32(LARGEST_LOGIT / _STEPS)


def in_voxels(length: float, shape: Sequence[int], spacing: Sequence[float]) -> list[float]:
    """A length as a number of voxels along each axis; 0 along axes with a single voxel."""
    return [0.0 if number == 1 else length / size for number, size in zip(shape, spacing, strict=True)]
