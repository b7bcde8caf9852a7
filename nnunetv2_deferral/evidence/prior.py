r"""The prior: the probability of being inside a structure that takes a voxel's surroundings into account.

.. math:: L = b_0 + b_1 l_0 + b_2 l_{1.5} + b_3 l_4

l_s is the logit, clipped to +-8, of the model's probability smoothed by a Gaussian with a standard deviation of s
voxels. The smoothed probabilities find missed objects that the probability of a single voxel does not: where the model
is nearly certain of background, but less so all around.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.special import logit

LARGEST_LOGIT = 8.0
SMOOTHING = (0.0, 1.5, 4.0)  # standard deviations in voxels
NUM_WEIGHTS = 1 + len(SMOOTHING)
_STEPS = np.iinfo(np.int16).max


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
            (:func:`to_steps`). Needs memory for three arrays of the shape besides.
        """
        found = np.empty(probabilities.shape, dtype=np.float32)
        for weights, inside, out in zip(self.weights, probabilities, found, strict=True):
            out[...] = weights[0]
            for weight, feature in zip(weights[1:], smoothed_logits(inside, spacing, self.voxel_size), strict=True):
                feature *= np.float32(weight)
                out += feature
            out[...] = from_steps(to_steps(out))
        return found


def smoothed_logits(probabilities: np.ndarray, spacing: Sequence[float], voxel_size: float) -> Iterator[np.ndarray]:
    """l_s for each s in `SMOOTHING`, float32 of the shape of `probabilities`, each a new array."""
    for scale in SMOOTHING:
        sigmas = in_voxels(scale * voxel_size, probabilities.shape, spacing)
        smooth = probabilities.astype(np.float32)
        if any(sigmas):
            smooth = ndimage.gaussian_filter(smooth, sigmas, mode="nearest", truncate=3.0, output=np.float32)
        lowest = np.float32(1 / (1 + np.exp(LARGEST_LOGIT)))
        np.clip(smooth, lowest, 1 - lowest, out=smooth)
        yield np.clip(logit(smooth), -LARGEST_LOGIT, LARGEST_LOGIT)


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
