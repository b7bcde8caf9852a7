"""The gains of all experts where asking helps, small enough to keep beside the maps: other limits need no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import chunks_of
from nnunetv2_deferral.errors import InputError

_STEPS = np.iinfo(np.int16).max
_NOBODY = np.iinfo(np.int16).min  # in place of -inf
_SAMPLE = 100_000
_DTYPES = ("uint32", "int16", "float32", "float32")  # of the arrays of KeptGains


class KeptGains(NamedTuple):
    """Expected gains of J experts at the n voxels where that of any expert is positive.

    Attributes:
        distances: uint32 (n,), from one of these voxels to the next in C order, of the first from index -1. They
            compress better than indices.
        steps: int16 (J, n), the gains in steps of `largest` / 32767, not below -32767; a positive gain has at least one
            step, and -32768 is -inf.
        largest: float32 of shape (), the largest gain; 0 if there is none.
        elsewhere: float32 (J,), for each expert what stands for the gain at all other voxels: the median of those that
            are finite, by every k-th voxel of a large image. It matters where gaps between voxels are to be closed, so
            that regions have a smallest size.
    """

    distances: np.ndarray
    steps: np.ndarray
    largest: np.ndarray
    elsewhere: np.ndarray

    @classmethod
    def of(cls, gains: np.ndarray) -> KeptGains:
        """Keep gains.

        Args:
            gains: Real (J, *S), -inf where an expert cannot be asked.

        Example:
            >>> kept = KeptGains.of(np.array([[0, 0.2, -1, 0], [0, -0.1, 0.1, -0.4]], dtype=np.float32))
            >>> kept.distances, kept.steps.tolist(), kept.elsewhere
            (array([2, 1], dtype=uint32), [[32767, -32767], [-16384, 16384]], array([ 0. , -0.2], dtype=float32))
            >>> kept.gains((4,)).round(4)
            array([[ 0. ,  0.2, -0.2,  0. ],
                   [-0.2, -0.1,  0.1, -0.2]], dtype=float32)
        """
        flat = gains.reshape(len(gains), -1)
        chunks = chunks_of(flat.shape[1], len(flat))
        found = [part.start + np.flatnonzero((flat[:, part] > 0).any(axis=0)) for part in chunks]
        voxels = np.concatenate([np.empty(0, dtype=np.int64), *found])
        values = flat[:, voxels].astype(np.float32)
        largest = values.max(initial=np.float32(0))
        steps = np.rint(np.maximum(values, -largest) / (largest or 1) * _STEPS)
        steps[(values > 0) & (steps == 0)] = 1
        steps[np.isneginf(values)] = _NOBODY
        sample = flat[:, :: max(flat.shape[1] // _SAMPLE, 1)]
        sample = sample[:, (sample <= 0).all(axis=0)]
        finite = [each[np.isfinite(each)] for each in sample]
        elsewhere = np.array([np.median(each) if each.size else -np.inf for each in finite], dtype=np.float32)
        distances = np.diff(voxels, prepend=-1).astype(np.uint32)
        return cls(distances, steps.astype(np.int16), np.asarray(largest), elsewhere)

    def gains(self, shape: Sequence[int]) -> np.ndarray:
        """The gains as float32 (J, *S).

        Args:
            shape: S, that of the maps.

        Raises:
            InputError: If these cannot be gains of a map of that shape.
        """
        size = int(np.prod(shape, dtype=np.int64))
        number = len(self.steps) if self.steps.ndim else 0
        shapes = ((self.distances.size,), (number, self.distances.size), (), (number,))
        if [each.dtype.name for each in self] != list(_DTYPES) or tuple(each.shape for each in self) != shapes:
            raise InputError("the arrays are not those of kept gains")
        if not 0 <= self.largest < np.inf or not (self.elsewhere <= 0).all():
            raise InputError(
                f"the largest gain must be finite and not negative, and others not positive, got {self.largest} and "
                f"{self.elsewhere.tolist()}"
            )
        voxels = np.cumsum(self.distances, dtype=np.int64) - 1
        if voxels.size and ((self.distances == 0).any() or voxels[-1] >= size):
            raise InputError(f"voxels are not within {tuple(shape)}")
        gains = np.empty((number, size), dtype=np.float32)
        gains[:] = self.elsewhere[:, None]
        shares = self.steps / np.float32(_STEPS)
        gains[:, voxels] = np.where(self.steps == _NOBODY, -np.inf, shares * self.largest)
        return gains.reshape(number, *shape)
