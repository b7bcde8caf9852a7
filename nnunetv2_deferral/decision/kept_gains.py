"""The gains of all experts where asking helps, small enough to keep beside the maps: other limits need no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import chunks_of
from nnunetv2_deferral.errors import InputError

_STEPS = np.iinfo(np.uint16).max


class KeptGains(NamedTuple):
    """Expected gains of J experts at the n voxels where that of any expert is positive.

    Attributes:
        distances: uint32 (n,), from one of these voxels to the next in C order, of the first from index -1. They
            compress better than indices.
        steps: uint16 (J, n), the gains, 0 where they are not positive, in steps of `largest` / 65535; a positive gain
            has at least one step.
        largest: float32 of shape (), the largest gain; 0 if there is none.
    """

    distances: np.ndarray
    steps: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, gains: np.ndarray) -> KeptGains:
        """Keep gains.

        Args:
            gains: Real (J, *S), finite.

        Example:
            >>> kept = KeptGains.of(np.array([[0, 0.2, -1, 0], [0, -0.1, 0.1, 0]], dtype=np.float32))
            >>> kept.distances, kept.steps
            (array([2, 1], dtype=uint32), array([[65535,     0],
                   [    0, 32768]], dtype=uint16))
            >>> kept.gains((4,)).round(4)
            array([[0. , 0.2, 0. , 0. ],
                   [0. , 0. , 0.1, 0. ]], dtype=float32)
        """
        flat = gains.reshape(len(gains), -1)
        chunks = chunks_of(flat.shape[1], len(flat))
        found = [part.start + np.flatnonzero((flat[:, part] > 0).any(axis=0)) for part in chunks]
        voxels = np.concatenate([np.empty(0, dtype=np.int64), *found])
        values = np.maximum(flat[:, voxels], 0).astype(np.float32)
        largest = values.max(initial=np.float32(0))
        steps = np.rint(values * (_STEPS / (largest or 1)))
        steps[(values > 0) & (steps == 0)] = 1
        return cls(np.diff(voxels, prepend=-1).astype(np.uint32), steps.astype(np.uint16), np.asarray(largest))

    def gains(self, shape: Sequence[int]) -> np.ndarray:
        """The gains as float32 (J, *S), 0 where none was kept.

        Args:
            shape: S, that of the maps.

        Raises:
            InputError: If these cannot be gains of a map of that shape.
        """
        size = int(np.prod(shape, dtype=np.int64))
        fits = (
            (self.distances.dtype, self.steps.dtype, self.largest.dtype) == (np.uint32, np.uint16, np.float32)
            and self.largest.shape == ()
            and self.distances.ndim == 1
            and self.steps.shape[1:] == self.distances.shape
        )
        if not fits:
            raise InputError("the arrays are not those of kept gains")
        if not 0 <= self.largest < np.inf:
            raise InputError(f"the largest gain is {self.largest}, but must be finite and not negative")
        voxels = np.cumsum(self.distances, dtype=np.int64) - 1
        if voxels.size and ((self.distances == 0).any() or voxels[-1] >= size):
            raise InputError(f"voxels are not within {tuple(shape)}")
        gains = np.zeros((len(self.steps), size), dtype=np.float32)
        gains[:, voxels] = self.steps * np.float32(self.largest / _STEPS)
        return gains.reshape(len(self.steps), *shape)
