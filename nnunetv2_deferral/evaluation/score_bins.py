"""Voxels sorted by a score, in memory that does not grow with their number.

A score is rounded up to 13 significant bits of its float32 form, and what has become equal is one *bin*. Bins stand in
the order of the scores, 0 has a bin of its own, neighbouring bins differ by at most 1/4096 of the score, and the 256
values of a .png map keep apart, whole or divided by 255. Everything that ranks voxels counts by bin and takes the
voxels of one bin for a tie. Probabilities that crowd just below 1 are better handed over as odds
p / max(1 - p, 2**-24), which have the same order and full resolution there.
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
        scores: Any shape, finite and not negative; real floating point, integer or bool. They are taken as float32.

    Returns:
        int32 of the same shape, in [0, `NUM_BINS`), never falling where scores rise; 0 where, and only where, a score
        is 0 in float32. Empty for no scores.

    Raises:
        InputError: If a score is negative, not finite or not a real number.
    """
    if scores.dtype.kind not in "fiub":
        raise InputError(f"scores must be real numbers, got dtype {scores.dtype}")
    if scores.size:
        for extreme in (scores.min(), scores.max()):  # NaN is both
            if not 0 <= extreme <= np.finfo(np.float32).max:
                raise InputError(f"scores must be finite and not negative, got {extreme}")
    # As integers, the bits of floats without a sign have the order of the floats. abs takes the sign off -0.
    bits = np.abs(np.ascontiguousarray(scores, dtype=np.float32)).view(np.uint32)
    return ((bits + np.uint32(2**_DROPPED_BITS - 1)) >> np.uint32(_DROPPED_BITS)).astype(np.int32).reshape(scores.shape)


class ScoreHistogram:
    """How many voxels there are of each score, and how many of them are wrong. 16 MiB.

    Attributes:
        voxels: int64 (`NUM_BINS`,), the number of voxels in each bin of :func:`score_bins`.
        errors: int64 (`NUM_BINS`,), how many of them are wrong.
    """

    def __init__(self) -> None:
        self.voxels = np.zeros(NUM_BINS, dtype=np.int64)
        self.errors = np.zeros(NUM_BINS, dtype=np.int64)

    def update(self, scores: np.ndarray, wrong: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Add voxels.

        Args:
            scores: Shape S, as :func:`score_bins` wants them where `valid` is True, anything elsewhere.
            wrong: Bool of shape S.
            valid: Bool of shape S, the voxels to add, or None for all.

        Raises:
            InputError: If the shapes differ or a score or dtype is not as above; nothing is added then.
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
