"""Voxels sorted by a score, in memory that does not grow with their number.

A score is rounded up to 13 significant bits of its float32 form, and what has become equal is one *bin*. Bins stand in
the order of the scores, 0 has a bin of its own, neighbouring bins differ by at most 1/4096 of the score, and the 256
values of a .png map keep apart, whole or divided by 255. Everything that ranks voxels counts by bin and takes the
voxels of one bin for a tie. Probabilities that crowd just below 1 are better handed over as odds
p / max(1 - p, 2**-24), which have the same order and full resolution there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_DROPPED_BITS = 11  # of the 23 of a float32's mantissa
_INFINITY_BITS = 0x7F800000
NUM_BINS = (_INFINITY_BITS >> _DROPPED_BITS) + 1
CHUNK_VOXELS = 2**22  # at once, so that temporary arrays stay below 100 MiB


def score_bins(scores: np.ndarray) -> np.ndarray:
    """The bin of each score.

    Args:
        scores: Any shape, finite and not negative; real floating point, integer or bool. They are taken as float32.

    Returns:
        int32 of the same shape, in [0, `NUM_BINS`), never falling where scores rise; 0 where, and only where, a score
        is 0 in float32. Empty for no scores.

    Raises:
        ValueError: If a score is negative, not finite or not a real number.
    """
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"scores must be real numbers, got dtype {scores.dtype}")
    if scores.size:
        for extreme in (scores.min(), scores.max()):  # NaN is both
            if not 0 <= extreme <= np.finfo(np.float32).max:
                raise ValueError(f"scores must be finite and not negative, got {extreme}")
    # As integers, the bits of floats without a sign have the order of the floats. abs takes the sign off -0.
    bits = np.abs(np.ascontiguousarray(scores, dtype=np.float32)).view(np.uint32)
    return ((bits + np.uint32(2**_DROPPED_BITS - 1)) >> np.uint32(_DROPPED_BITS)).astype(np.int32).reshape(scores.shape)


def check_same_shape(**arrays: np.ndarray | None) -> None:
    """Refuse arrays of different shapes; None has any.

    Raises:
        ValueError: Naming the arrays and their shapes.
    """
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def check_bool(**masks: np.ndarray | None) -> None:
    """Refuse masks that are not bool; None passes.

    Raises:
        ValueError: Naming the mask and its dtype.
    """
    for name, mask in masks.items():
        if mask is not None and mask.dtype != bool:
            raise ValueError(f"{name} must be bool, got dtype {mask.dtype}")


def in_chunks(*arrays: np.ndarray | None) -> Iterator[tuple[np.ndarray, ...]]:
    """Flat pieces of arrays of one shape S, at most `CHUNK_VOXELS` long; for None, which stands for a mask, all True.

    Nothing is copied unless an array is not contiguous. Without voxels there are no pieces.
    """
    flat = [None if array is None else array.reshape(-1) for array in arrays]
    size = next((array.size for array in flat if array is not None), 0)
    for start in range(0, size, CHUNK_VOXELS):
        length = min(CHUNK_VOXELS, size - start)
        yield tuple(np.ones(length, bool) if array is None else array[start : start + length] for array in flat)


class ScoreHistogram:
    """How many voxels there are of each score, and how many of them are wrong. 16 MiB.

    Attributes:
        voxels: int64 (`NUM_BINS`,), the number of voxels in each bin of :func:`score_bins`.
        errors: int64 (`NUM_BINS`,), how many of them are wrong.
    """

    def __init__(self) -> None:
        self.voxels = np.zeros(NUM_BINS, dtype=np.int64)
        self.errors = np.zeros(NUM_BINS, dtype=np.int64)

    def update(self, scores: np.ndarray, wrong: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Add voxels.

        Args:
            scores: Shape S, as :func:`score_bins` wants them where `counts` is True, anything elsewhere.
            wrong: Bool of shape S.
            counts: Bool of shape S, the voxels to add, or None for all.

        Raises:
            ValueError: If the shapes differ or a score or dtype is not as above; nothing is added then.
        """
        check_same_shape(scores=scores, wrong=wrong, counts=counts)
        check_bool(wrong=wrong, counts=counts)
        voxels, errors = np.zeros_like(self.voxels), np.zeros_like(self.errors)
        for some_scores, some_wrong, where in in_chunks(scores, wrong, counts):
            bins = score_bins(some_scores[where])
            voxels += np.bincount(bins, minlength=NUM_BINS)
            errors += np.bincount(bins[some_wrong[where]], minlength=NUM_BINS)
        self.voxels += voxels
        self.errors += errors

    def merge(self, other: ScoreHistogram) -> None:
        """Add the voxels of another histogram, as if :meth:`update` had seen them here."""
        self.voxels += other.voxels
        self.errors += other.errors
