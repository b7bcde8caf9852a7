"""Binning of voxels by score, with memory independent of the number of voxels.

Scores are rounded up to 13 significant bits of float32; scores that are then equal form a *bin*. Bins are ordered like
the scores, 0 has its own bin, neighbouring bins differ by at most 1/4096 of the score, and the 256 values of an 8-bit
map remain distinct, also divided by 255. All rankings of voxels count by bin and treat the voxels of a bin as ties.
Probabilities close to 1 should be converted to odds p / max(1 - p, 2**-24), which have the same order and full
resolution there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape, in_chunks
from nnunetv2_deferral.errors import InputError

_DROPPED_BITS = 11  # of the 23 of a float32's mantissa
_INFINITY_BITS = 0x7F800000
NUM_BINS = (_INFINITY_BITS >> _DROPPED_BITS) + 1
_FEW = 2**16  # voxels up to which sorting them takes less time than going through all bins


def score_bins(scores: np.ndarray) -> np.ndarray:
    """The bin of each score.

    Args:
        scores: Any shape, finite and not negative; real floating point, integer or bool. Converted to float32.

    Returns:
        int32 of the same shape, in [0, `NUM_BINS`), monotonic in the scores; 0 if and only if a score is 0 in float32.

    Raises:
        InputError: If a score is negative, not finite or not a real number.
    """
    if scores.dtype.kind not in "fiub":
        raise InputError(f"scores must be real numbers, got dtype {scores.dtype}")
    if scores.size:
        for extreme in (scores.min(), scores.max()):  # NaN propagates to both
            if not 0 <= extreme <= np.finfo(np.float32).max:
                raise InputError(f"scores must be finite and not negative, got {extreme}")
    # The bits of non-negative floats, read as integers, have the order of the floats. abs removes the sign of -0.
    bits = np.abs(np.ascontiguousarray(scores, dtype=np.float32)).view(np.uint32)
    return ((bits + np.uint32(2**_DROPPED_BITS - 1)) >> np.uint32(_DROPPED_BITS)).astype(np.int32).reshape(scores.shape)


class Occupied(NamedTuple):
    """Counts by bin without the bins that have none, for pickles, which few cases fill little of."""

    bins: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Occupied:
        """Of counts of all bins (`NUM_BINS`,)."""
        bins = np.flatnonzero(counts)
        return cls(bins, counts[bins])

    def in_all_bins(self) -> np.ndarray:
        """The counts of all bins, int64 (`NUM_BINS`,)."""
        found = np.zeros(NUM_BINS, dtype=np.int64)
        found[self.bins] = self.counts
        return found


class BinCounter:
    """Counts voxels by bin, in time and memory that depend on the voxels, if these are few.

    Args:
        most: The largest number of voxels that will be added.
    """

    def __init__(self, most: int) -> None:
        self._all = np.zeros(NUM_BINS, dtype=np.int64) if most > _FEW else None
        self._few: list[np.ndarray] = []

    def add(self, bins: np.ndarray) -> None:
        """Count voxels with these bins, int32 (n,)."""
        if self._all is None:
            self._few.append(bins)
        else:
            self._all += np.bincount(bins, minlength=NUM_BINS)

    def add_to(self, counts: np.ndarray) -> None:
        """Add the numbers of voxels to `counts`, int64 (`NUM_BINS`,), in place."""
        if self._all is not None:
            counts += self._all
        elif self._few:
            occurring, numbers = np.unique(np.concatenate(self._few), return_counts=True)
            counts[occurring] += numbers


class ScoreHistogram:
    """Numbers of voxels and of errors by score. 16 MiB.

    Attributes:
        voxels: int64 (`NUM_BINS`,), the number of voxels in each bin of :func:`score_bins`.
        errors: int64 (`NUM_BINS`,), the number of wrong voxels in each bin.
    """

    def __init__(self) -> None:
        self.voxels = np.zeros(NUM_BINS, dtype=np.int64)
        self.errors = np.zeros(NUM_BINS, dtype=np.int64)

    def __getstate__(self) -> tuple[Occupied, Occupied]:
        return Occupied.of(self.voxels), Occupied.of(self.errors)

    def __setstate__(self, state: tuple[Occupied, Occupied]) -> None:
        self.voxels, self.errors = (each.in_all_bins() for each in state)

    def update(self, scores: np.ndarray, wrong: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Add voxels.

        Args:
            scores: Shape S, as for :func:`score_bins` where `valid` is True, arbitrary elsewhere.
            wrong: Bool of shape S.
            valid: Bool of shape S, the voxels to add, or None for all.

        Raises:
            InputError: If the shapes differ, a mask is not bool, or a score is invalid, see :func:`score_bins`; the
                histogram is then unchanged.
        """
        check_same_shape(scores=scores, wrong=wrong, valid=valid)
        check_bool(wrong=wrong, valid=valid)
        voxels, errors = BinCounter(scores.size), BinCounter(scores.size)
        for some_scores, some_wrong, where in in_chunks(scores, wrong, valid):
            bins = score_bins(some_scores[where])
            voxels.add(bins)
            errors.add(bins[some_wrong[where]])
        voxels.add_to(self.voxels)
        errors.add_to(self.errors)

    @classmethod
    def merged(cls, parts: Iterable[ScoreHistogram]) -> ScoreHistogram:
        """The histogram of the voxels of all parts."""
        merged = cls()
        for part in parts:
            merged.voxels += part.voxels
            merged.errors += part.errors
        return merged
