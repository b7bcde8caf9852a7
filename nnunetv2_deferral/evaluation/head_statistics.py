"""Probabilities that mean what they say: of the voxels where someone is right with 0.9, 90 % are right.

A head of a one-vs-all network says for every voxel how probable it is that the model, or an expert, is right there. A
calibration map corrects one head, and is fitted on cases the network was not trained on. Nearly all voxels are right,
so that everything happens in logits, log(p / (1 - p)), where there is room next to 1. No voxel is kept: the voxels of a
group, which is a case or all cases of a patient, are counted in bins of the logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape, in_chunks, to_logits

BIN_WIDTH = 0.02
NUM_BINS = 1620
_LOWEST = -NUM_BINS * BIN_WIDTH / 2


class Bins(NamedTuple):
    """Voxels counted by logit, float64 (B,) each, the logits ascending; whole numbers up to 2**53 are exact.

    Attributes:
        voxels: Their number.
        right: How many of them are right.
        logit_sum: The sum of their logits.
    """

    voxels: np.ndarray
    right: np.ndarray
    logit_sum: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        """The mean logit of each bin that is not empty; a bin's centre would bias what is fitted."""
        return self.logit_sum / self.voxels


class HeadStatistics:
    """All that is kept of one head: per group, 40 KB whatever the number of voxels."""

    def __init__(self) -> None:
        self._counted: dict[str, np.ndarray] = {}

    def update(self, group: str, probabilities: np.ndarray, right: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Add voxels.

        Args:
            group: What stays together when something is held back, such as a patient. May come again.
            probabilities: Real floating point of shape S, in [0, 1] where `valid` is True, anything elsewhere.
            right: Bool of shape S, whether the model, or the expert, is right.
            valid: Bool of shape S, the voxels where that is known, or None for all. A group without any is no group.

        Raises:
            InputError: If the shapes differ, or a dtype or probability is not as above; nothing is added then.
        """
        check_same_shape(probabilities=probabilities, right=right, valid=valid)
        check_bool(right=right, valid=valid)
        added = np.zeros((3, NUM_BINS))
        for some, some_right, where in in_chunks(probabilities, right, valid):
            logits = to_logits(some[where])
            bins = ((logits - _LOWEST) / BIN_WIDTH).astype(np.int64)
            for row, weights in zip(added, (None, some_right[where], logits), strict=True):
                row += np.bincount(bins, weights, minlength=NUM_BINS)
        if added[0].any():
            self._counted[group] = self._counted.get(group, 0) + added

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have voxels, sorted."""
        return tuple(sorted(self._counted))

    def bins(self, groups: Sequence[str] | None = None) -> Bins:
        """The bins that have voxels, of these groups together or of all; none (B = 0) without voxels."""
        added = np.zeros((3, NUM_BINS))
        for group in self.groups if groups is None else groups:
            added += self._counted[group]
        return Bins(*added[:, added[0] > 0])
