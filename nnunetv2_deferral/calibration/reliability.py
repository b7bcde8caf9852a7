"""How far calibrated probabilities are from what happens."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.special import expit

from nnunetv2_deferral.calibration.maps import IDENTITY, CalibrationMap
from nnunetv2_deferral.calibration.statistics import HeadStatistics


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are from what happens, in bins of about the same number of voxels, (B,) each.

    Attributes:
        probability: float64, the mean calibrated probability in each bin, ascending.
        right: float64, the share of its voxels that are right.
        voxels: int64, their number, never 0.
    """

    probability: np.ndarray
    right: np.ndarray
    voxels: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, sum_b n_b / n |probability_b - right_b| (Naeini et al. 2015); NaN if empty."""
        return self._mean(np.abs(self.probability - self.right))

    @property
    def bias(self) -> float:
        """Mean probability - share right, over all voxels: positive for a head that is too sure; NaN if empty."""
        return self._mean(self.probability - self.right)

    def to_dict(self) -> dict[str, Any]:
        """Bins, ece and bias, in JSON's types but for NaN."""
        bins = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {**bins, "ece": self.ece, "bias": self.bias}

    def _mean(self, values: np.ndarray) -> float:
        return float(np.average(values, weights=self.voxels)) if self.voxels.size else math.nan


def reliability(
    statistics: HeadStatistics, calibration: CalibrationMap = IDENTITY, *, num_bins: int = 15
) -> Reliability:
    """How well a calibrated head keeps its word.

    Args:
        statistics: Of the head before calibration.
        calibration: Its map.
        num_bins: At most so many bins. There are fewer where many voxels have nearly the same probability (logits
            within `BIN_WIDTH`), as these stay together. Without voxels there are none.

    Raises:
        ValueError: If `num_bins` is less than 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    voxels, right, _ = bins = statistics.bins()
    if not voxels.size:
        return Reliability(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
    # A fine bin cannot be split, so it goes where its middle voxel belongs.
    middle = (np.cumsum(voxels) - voxels / 2) / voxels.sum()
    _, bin_of = np.unique((middle * num_bins).astype(np.int64), return_inverse=True)
    probability = expit(calibration.on_logits(bins.logits))
    number, happened, promised = (np.bincount(bin_of, each) for each in (voxels, right, voxels * probability))
    return Reliability(promised / number, happened / number, number.astype(np.int64))
