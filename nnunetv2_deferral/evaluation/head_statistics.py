"""Sufficient statistics of a head for calibration and reliability.

A head of a one-vs-all network predicts for every voxel the probability that the model, or an expert, is right. Nearly
all voxels are right, so statistics are in terms of logits, log(p / (1 - p)), which resolve probabilities close to 1.
Voxels are not stored, but counted in bins of the logit, separately for each group (a case, or all cases of a patient).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape, in_chunks, to_logits

BIN_WIDTH = 0.02
NUM_BINS = 1620
_LOWEST = -NUM_BINS * BIN_WIDTH / 2


class Bins(NamedTuple):
    """Voxels counted by logit, float64 (B,) each, with ascending logits; counts up to 2**53 are exact.

    Attributes:
        voxels: The number of voxels.
        right: The number of voxels that are right.
        logit_sum: The sum of their logits.
    """

    voxels: np.ndarray
    right: np.ndarray
    logit_sum: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        """The mean logit of each non-empty bin; the centres of bins would bias fits."""
        return self.logit_sum / self.voxels


class HeadStatistics:
    """The statistics of one head: 40 KB per group, regardless of the number of voxels."""

    def __init__(self) -> None:
        self._counted: dict[str, np.ndarray] = {}

    def update(
        self,
        group: str,
        probabilities: np.ndarray,
        right: np.ndarray,
        valid: np.ndarray | None = None,
        *,
        weights: np.ndarray | None = None,
    ) -> None:
        """Add voxels.

        Args:
            group: The unit of cross-validation, such as a patient. Voxels may be added to a group several times.
            probabilities: Real floating point of shape S, in [0, 1] where `valid` is True, arbitrary elsewhere.
            right: Bool of shape S, whether the model, or the expert, is right.
            valid: Bool of shape S, the voxels to count, or None for all. Groups without any are ignored.
            weights: Real of shape S, for how many voxels each stands; None for 1.

        Raises:
            InputError: If the shapes differ, `right` or `valid` is not bool, or `probabilities` is not floating point
                in [0, 1]; the statistics are then unchanged.
        """
        check_same_shape(probabilities=probabilities, right=right, valid=valid, weights=weights)
        check_bool(right=right, valid=valid)
        added = np.zeros((3, NUM_BINS))
        for some, some_right, where, some_weights in in_chunks(probabilities, right, valid, weights):
            logits, weight = to_logits(some[where]), some_weights[where]
            bins = ((logits - _LOWEST) / BIN_WIDTH).astype(np.int64)
            for row, values in zip(added, (weight, some_right[where] * weight, logits * weight), strict=True):
                row += np.bincount(bins, values, minlength=NUM_BINS)
        if added[0].any():
            self._counted[group] = self._counted.get(group, 0) + added

    @classmethod
    def merged(cls, parts: Iterable[HeadStatistics]) -> HeadStatistics:
        """The statistics of the voxels of all parts; sums of logits are equal up to rounding."""
        merged = cls()
        for part in parts:
            for group, counted in part._counted.items():
                merged._counted[group] = merged._counted.get(group, 0) + counted
        return merged

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups with voxels, sorted."""
        return tuple(sorted(self._counted))

    def of_groups(self, groups: Collection[str]) -> HeadStatistics:
        """The statistics of some of the groups."""
        found = HeadStatistics()
        found._counted = {group: counted for group, counted in self._counted.items() if group in groups}
        return found

    def bins(self, groups: Sequence[str] | None = None) -> Bins:
        """The non-empty bins of the sum over these groups, or over all; B = 0 without voxels."""
        added = np.zeros((3, NUM_BINS))
        for group in self.groups if groups is None else groups:
            added += self._counted[group]
        return Bins(*added[:, added[0] > 0])
