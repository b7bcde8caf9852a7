r"""Working time: what a region takes, and which regions fit in the time that there is.

A region is looked at, and where the model is wrong its border is drawn anew:

.. math:: \text{minutes} = t_\text{region} + P(\text{edit}) \cdot t_\text{cm} \cdot \text{border length in cm}

The length that is redrawn is what editing times follow (r = 0.69 for added path length, 0.25 for Dice: Kiser et al.
2021). A look takes about 8 s and an edit 124 s (Veiga-Canuto et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from nnunetv2_deferral.decision.regions import check_spacing
from nnunetv2_deferral.defaults import MINUTES_PER_CM, MINUTES_PER_REGION, TYPICAL_BORDER_CM
from nnunetv2_deferral.errors import InputError

_ROUNDING = 1e-9  # tolerance in minutes for rounding errors of sums of decimal fractions

Numbers = TypeVar("Numbers", float, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class WorkTime:
    """The estimated working time of a region: a look at it, and the expected length of border to draw.

    The defaults are rules of thumb; replace them with your own figures.

    Attributes:
        minutes_per_region: Minutes for a look at a region, positive.
        minutes_per_cm: Minutes for drawing a cm of border, not negative.

    Raises:
        InputError: If either is out of range or not finite.
    """

    minutes_per_region: float = MINUTES_PER_REGION
    minutes_per_cm: float = MINUTES_PER_CM

    def __post_init__(self) -> None:
        if not 0 < self.minutes_per_region < math.inf:
            raise InputError(f"minutes_per_region must be positive and finite, got {self.minutes_per_region}")
        if not 0 <= self.minutes_per_cm < math.inf:
            raise InputError(f"minutes_per_cm must be finite and at least 0, got {self.minutes_per_cm}")

    def minutes(self, edit_cm: Numbers) -> Numbers:
        """Minutes for a region of which this length of border in cm is expected to be drawn, see :func:`edit_cm`."""
        return self.minutes_per_region + self.minutes_per_cm * edit_cm


def edit_cm(probability: Numbers, border_mm: Numbers | float | None) -> Numbers:
    """The length of border in cm that is expected to be drawn.

    Args:
        probability: The mean deferral probability of a region, as that of an edit.
        border_mm: The length of its border; None if the size of voxels is unknown, which takes that of a typical edit.
    """
    return probability * (TYPICAL_BORDER_CM if border_mm is None else border_mm / 10)


class Measured(NamedTuple):
    """What N regions of a case take and give, in the order of their numbers.

    Attributes:
        voxels: int64 (N,).
        expected_gain: float64 (N,), the sums of the gain map.
        probability: float64 (N,), the means of the probability map.
        border_mm: float64 (N,), the lengths of their borders; None if the size of voxels is unknown.
        minutes: float64 (N,), the working times.
    """

    voxels: np.ndarray
    expected_gain: np.ndarray
    probability: np.ndarray
    border_mm: np.ndarray | None
    minutes: np.ndarray


def measure(
    labels: np.ndarray,
    gain: np.ndarray,
    probability: np.ndarray,
    time: WorkTime,
    *,
    spacing_mm: Sequence[float] | None,
) -> Measured:
    """Measure the regions of a case.

    Args:
        labels: Integer (Z, Y, X), from :func:`.region_labels`.
        gain: Real (Z, Y, X), the gain map.
        probability: Real (Z, Y, X), the probability map.
        time: Working time of regions.
        spacing_mm: Size of a voxel along each axis; None if it is unknown.
    """
    where = labels > 0
    numbers = labels[where]
    voxels = np.bincount(numbers)[1:]
    gains = np.bincount(numbers, weights=gain[where])[1:]
    means = np.bincount(numbers, weights=probability[where])[1:] / voxels
    border = None if spacing_mm is None else border_lengths_mm(labels, spacing_mm)
    return Measured(voxels, gains, means, border, time.minutes(edit_cm(means, border)))


class MapsOfCase(Protocol):
    """What is measured of a case; maps are read from files when they are first used."""

    @property
    def gain(self) -> np.ndarray:
        """The expected gain of each voxel."""

    @property
    def probability(self) -> np.ndarray:
        """The deferral score of each voxel."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """The size of a voxel."""


def measure_case(case: MapsOfCase, labels: np.ndarray, time: WorkTime, *, unit: str) -> Measured:
    """Measure the regions of a case; its gain and probability are read only if it has any.

    Args:
        case: The case, with arrays of three axes.
        labels: Integer (Z, Y, X), its regions, from :func:`.region_labels`.
        time: Working time of regions.
        unit: Unit of its spacing, `"mm"` or `"pixels"`.
    """
    gain, probability = (case.gain, case.probability) if labels.any() else (labels, labels)
    return measure(labels, gain, probability, time, spacing_mm=case.spacing if unit == "mm" else None)


def border_lengths_mm(labels: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The length of the border of each region, summed over the slices that it spans.

    By Crofton's formula: lines in a direction cross a border the more often, the longer it is. Of each slice along the
    first axis the lines through voxels are taken along both axes and both diagonals, each direction for the angles
    nearest to it. Unlike a sum of voxel edges this hardly depends on the orientation of the border. Beyond the image
    there is no region.

    Args:
        labels: Integer (Z, Y, X), regions numbered from 1 without gaps.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        float64 (N,), in mm, in the order of their numbers.

    Raises:
        InputError: If the spacing is not one positive number per axis.
    """
    _, dy, dx = check_spacing(spacing_mm, labels.ndim)
    diagonal = math.atan2(dy, dx)
    size = int(labels.max(initial=0)) + 1
    # A step in voxels, and the angle for which it stands.
    steps = ((0, 1, diagonal), (1, 0, math.pi / 2 - diagonal), (1, 1, math.pi / 4), (1, -1, math.pi / 4))
    lengths = np.zeros(size)
    for plane in filter(np.any, labels):
        rows, columns = plane.shape
        padded = np.pad(plane, 1)
        for down, right, angle in steps:
            next_one = padded[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
            left = np.bincount(plane[plane != next_one], minlength=size)  # how often lines leave each region
            lengths += left * (angle * dy * dx / math.hypot(down * dy, right * dx))
    return lengths[1:]


def best_within_limits(
    rates: np.ndarray, minutes: np.ndarray, *, max_regions: int | None, max_minutes: float | None
) -> list[int]:
    """Which regions to look at.

    Args:
        rates: float64 (N,), expected gain per minute.
        minutes: float64 (N,), working time.
        max_regions: Maximum number of regions; None for no limit.
        max_minutes: Maximum total working time; None for no limit. A region that would exceed it is skipped, and
            shorter ones after it may still be chosen.

    Returns:
        Their indices in descending order of `rates`, ties in ascending order.

    Raises:
        InputError: If a limit is negative, or not finite.
    """
    check_work_limits(max_regions, max_minutes)
    order = np.argsort(-rates, kind="stable")
    if max_minutes is None:
        return order[:max_regions].tolist()
    chosen: list[int] = []
    spent = 0.0
    for place, more in zip(order.tolist(), minutes[order].tolist(), strict=True):
        if max_regions is not None and len(chosen) >= max_regions:
            break
        if spent + more <= max_minutes + _ROUNDING:
            spent += more
            chosen.append(place)
    return chosen


def check_work_limits(max_regions: int | None, max_minutes: float | None) -> None:
    """Check the limits of a choice of regions.

    Raises:
        InputError: If a limit is negative or not finite.
    """
    if max_regions is not None and max_regions < 0:
        raise InputError(f"max_regions must be at least 0, got {max_regions}")
    if max_minutes is not None and not 0 <= max_minutes < math.inf:
        raise InputError(f"max_minutes must be finite and at least 0, got {max_minutes}")
