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
_MOST_VOXELS, _LARGEST_SHARE = 10**6, 0.1
_DTYPES = ("uint32", "int16", "float32", "float32", "uint8")  # of the arrays of KeptGains


def are_few(gains: np.ndarray) -> bool:
    """Whether gains are worth keeping, real (J, *S): at most a tenth of them positive, or a million voxels.

    Of a volume in which asking is expected to help nearly everywhere, they would take more space than all maps
    together, and half of the time of the decision. It is estimated by every k-th voxel.
    """
    flat = gains.reshape(len(gains), -1)
    size = flat.shape[1]
    positive = (_every_kth(flat) > 0).any(axis=0)
    return bool(positive.mean() * size <= max(_LARGEST_SHARE * size, _MOST_VOXELS)) if size else True


class KeptGains(NamedTuple):
    """Expected gains of J experts at the n voxels where that of any expert is positive.

    Attributes:
        distances: uint32 (n,), from one of these voxels to the next in C order, of the first from index -1. They
            compress better than indices.
        steps: int16 (J, n), the square roots of the gains as shares of `largest`, in steps of 1 / 32767 and with the
            sign of the gain, not below -32767; a positive gain has at least one step, and -32768 is -inf. A voxel of a
            large structure may be worth 10^-6 of one of a small structure: in steps of the gain itself, all of the
            large structure would be worth the same.
        largest: float32 of shape (), the largest gain; 0 if there is none.
        elsewhere: float32 (J,), for each expert what stands for the gain at all other voxels: the median of those that
            are finite, by every k-th voxel of a large image. It matters where gaps between voxels are to be closed, so
            that regions have a smallest size.
        nobody: uint8 (ceil(N / 8),), the voxels of the N in C order about which nobody can be asked, as
            `numpy.packbits`, because nothing was predicted there; empty if there are none.
    """

    distances: np.ndarray
    steps: np.ndarray
    largest: np.ndarray
    elsewhere: np.ndarray
    nobody: np.ndarray

    @classmethod
    def of(cls, gains: np.ndarray) -> KeptGains:
        """Keep gains.

        Args:
            gains: Real (J, *S), -inf where an expert cannot be asked.

        Example:
            >>> kept = KeptGains.of(np.array([[0, 0.2, -1, 0], [0, -0.1, 0.1, -0.4]], dtype=np.float32))
            >>> kept.distances, kept.steps.tolist(), kept.elsewhere
            (array([2, 1], dtype=uint32), [[32767, -32767], [-23170, 23170]], array([ 0. , -0.2], dtype=float32))
            >>> kept.gains((4,)).round(4)
            array([[ 0. ,  0.2, -0.2,  0. ],
                   [-0.2, -0.1,  0.1, -0.2]], dtype=float32)
        """
        flat = gains.reshape(len(gains), -1)
        found, unknown = [np.empty(0, dtype=np.int64)], np.empty(flat.shape[1], dtype=bool)
        for part in chunks_of(flat.shape[1], len(flat)):
            best = flat[:, part].max(axis=0)
            found.append(part.start + np.flatnonzero(best > 0))
            np.isneginf(best, out=unknown[part])
        voxels = np.concatenate(found)
        largest = flat.max(initial=0).astype(np.float32)
        steps = np.empty((len(flat), voxels.size), dtype=np.int16)
        for of_expert, values in zip(steps, flat, strict=True):  # one by one, because there may be 10^8 voxels
            of_expert[:] = _to_steps(values[voxels].astype(np.float32), largest)
        sample = _every_kth(flat)
        sample = sample[:, (sample <= 0).all(axis=0)]
        finite = [each[np.isfinite(each)] for each in sample]
        elsewhere = np.array([np.median(each) if each.size else -np.inf for each in finite], dtype=np.float32)
        distances = np.diff(voxels, prepend=-1).astype(np.uint32)
        nobody = np.packbits(unknown) if unknown.any() else np.empty(0, dtype=np.uint8)
        return cls(distances, steps, np.asarray(largest), elsewhere, nobody)

    def gains(self, shape: Sequence[int]) -> np.ndarray:
        """The gains as float32 (J, *S).

        Args:
            shape: S, that of the maps.

        Raises:
            InputError: If these cannot be gains of a map of that shape.
        """
        size = int(np.prod(shape, dtype=np.int64))
        number = len(self.steps) if self.steps.ndim else 0
        bits = -(-size // 8) if self.nobody.size else 0
        shapes = ((self.distances.size,), (number, self.distances.size), (), (number,), (bits,))
        if [each.dtype.name for each in self] != list(_DTYPES) or tuple(each.shape for each in self) != shapes:
            raise InputError(f"the arrays are not those of kept gains of a map of shape {tuple(shape)}")
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
        if bits:
            gains[:, np.unpackbits(self.nobody, count=size).view(bool)] = -np.inf
        for of_expert, steps in zip(gains, self.steps, strict=True):
            roots = steps / np.float32(_STEPS)
            of_expert[voxels] = np.where(steps == _NOBODY, -np.inf, roots * np.abs(roots) * self.largest)
        return gains.reshape(number, *shape)


def _every_kth(flat: np.ndarray) -> np.ndarray:
    """A sample of the voxels of gains (J, N), all of them in a small image."""
    return flat[:, :: max(flat.shape[1] // _SAMPLE, 1)]


def _to_steps(gains: np.ndarray, largest: np.float32) -> np.ndarray:
    """The steps of gains, float32 (n,), see :class:`KeptGains`; float32 (n,) of whole numbers."""
    shares = np.maximum(gains, -largest) / (largest or 1)
    steps: np.ndarray = np.rint(np.copysign(np.sqrt(np.abs(shares)), shares) * np.float32(_STEPS))
    steps[(gains > 0) & (steps == 0)] = 1
    steps[np.isneginf(gains)] = _NOBODY
    return steps
