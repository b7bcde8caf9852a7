"""Binning of voxels by score, with memory independent of the number of voxels.

Scores are rounded up to 13 significant bits of float32; scores that are then equal form a *bin*. Bins are ordered like
the scores, 0 has its own bin, neighbouring bins differ by at most 1/4096 of the score, and the 256 values of an 8-bit
map remain distinct, also divided by 255. All rankings of voxels count by bin and treat the voxels of a bin as ties.
Probabilities close to 1 should be converted to odds p / max(1 - p, 2**-24), which have the same order and full
resolution there.
"""

from __future__ import annotations

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape, in_chunks
from nnunetv2_deferral.errors import InputError

_DROPPED_BITS = 11  # of the 23 of a float32's mantissa
_INFINITY_BITS = 0x7F800000
NUM_BINS = (_INFINITY_BITS >> _DROPPED_BITS) + 1


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


class ScoreHistogram:
    """Numbers of voxels and of errors by score. 16 MiB.

    Attributes:
        voxels: int64 (`NUM_BINS`,), the number of voxels in each bin of :func:`score_bins`.
        errors: int64 (`NUM_BINS`,), the number of wrong voxels in each bin.
    """

    def __init__(self) -> None:
        self.voxels = np.zeros(NUM_BINS, dtype=np.int64)
        self.errors = np.zeros(NUM_BINS, dtype=np.int64)

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
        voxels, errors = np.zeros_like(self.voxels), np.zeros_like(self.errors)
        for some_scores, some_wrong, where in in_chunks(scores, wrong, valid):
            bins = score_bins(some_scores[where])
            voxels += np.bincount(bins, minlength=NUM_BINS)
            errors += np.bincount(bins[some_wrong[where]], minlength=NUM_BINS)
        self.voxels += voxels
        self.errors += errors
