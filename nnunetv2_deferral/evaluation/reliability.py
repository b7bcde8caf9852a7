"""Reliability of a one-vs-all network's probabilities of being right, before and after calibration.

Nearly everywhere model and experts are right, so means over all voxels say little about the least certain voxels, among
which deferral is decided. These are known only after the last case, and cases are read once. Therefore voxels are
counted in coarse bins of the logit of the model's uncalibrated probability, and the lowest bins are taken as a whole.
Calibration is monotonic and does not change their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.special import expit, logit

from nnunetv2_deferral.arrays import SMALLEST, check_bool, check_same_shape, in_chunks
from nnunetv2_deferral.decision.calibrators import IDENTITY, Calibrator
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.head_statistics import BIN_WIDTH, NUM_BINS, HeadStatistics
from nnunetv2_deferral.files import without_nan

LEAST_CERTAIN = 0.02
MODEL = "model"
# At most 162 groups of 40 KB per head; between 0.9 and 0.95 there are about four bins.
_COARSE_WIDTH = 0.2
_NUM_COARSE = round(NUM_BINS * BIN_WIDTH / _COARSE_WIDTH)
_LOWEST = -_NUM_COARSE * _COARSE_WIDTH / 2


class ReliabilityStatistics:
    """Accumulates, case by case, the statistics for the reliability of the heads of a one-vs-all network.

    Memory does not grow with the number of voxels or cases: at most 6 MiB per head.

    Attributes:
        names: The names of the J + 1 heads.
        heads: Their calibrators, or None.
    """

    def __init__(self, names: Sequence[str], heads: Sequence[Calibrator] | None = None) -> None:
        """Start without cases.

        Args:
            names: The names of the J + 1 heads: the model's, then those of the experts in routing order.
            heads: One calibrator per head, or None for no calibration.

        Raises:
            InputError: If there are no names, two names are equal, or there is not one calibrator per head.
        """
        self.names = tuple(names)
        self.heads = None if heads is None else tuple(heads)
        if not self.names or len(set(self.names)) != len(self.names):
            raise InputError(f"the names of heads must be distinct and not empty, got {list(self.names)}")
        if self.heads is not None and len(self.heads) != len(self.names):
            raise InputError(f"got {len(self.heads)} calibrators for the heads {', '.join(self.names)}")
        self._counted = [HeadStatistics() for _ in self.names]
        self._asked, self._promised, self._kept = 0, 0.0, 0

    def update(
        self,
        case: str,
        probabilities: np.ndarray,
        right: np.ndarray,
        known: np.ndarray,
        route: np.ndarray,
        *,
        uncalibrated: np.ndarray | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: The case identifier, for messages.
            probabilities: Real floating point (J + 1, *S) before calibration, in [0, 1], or NaN where nothing was
                predicted; these voxels are excluded.
            right: Bool (J + 1, *S), whether the model, and each expert, is right.
            known: Bool (J + 1, *S), the voxels to count: those with a label of the expert and a valid reference.
            route: Integers in [0, J] of shape S: 0 the model, j expert j.
            uncalibrated: Of shape S, the model's probability by which the least certain voxels are chosen; None for
                that of `probabilities`, which is right if these are not calibrated.

        Raises:
            InputError: If shapes differ, `right` or `known` is not bool, a probability is outside [0, 1], or a route is
                outside [0, J]; the message names the case.
        """
        num_heads = len(self.names)
        try:
            check_same_shape(probabilities=probabilities, right=right, known=known)
            check_same_shape(route=route, uncalibrated=uncalibrated)
            check_bool(right=right, known=known)
            if probabilities.shape != (num_heads, *route.shape):
                raise InputError(
                    f"probabilities must have shape {(num_heads, *route.shape)} for {num_heads} heads and a route of "
                    f"shape {route.shape}, got {probabilities.shape}"
                )
            if route.size and not 0 <= route.min() <= route.max() < num_heads:
                raise InputError(f"routes must lie in [0, {num_heads - 1}], got {route.min()} to {route.max()}")
            order = probabilities[0] if uncalibrated is None else uncalibrated
            for some in in_chunks(*probabilities, *right, *known, route, order):
                inside = ~np.isnan(some[0])
                said, was_right = some[:num_heads], some[num_heads : 2 * num_heads]
                is_known = [each & inside for each in some[2 * num_heads : -2]]
                self._count(said, was_right, is_known, np.flatnonzero(inside), some[-1])
                self._compare(said, was_right, is_known, some[-2])
        except InputError as error:
            raise InputError(f"case {case}: {error}") from error

    @classmethod
    def merged(cls, parts: Sequence[ReliabilityStatistics]) -> ReliabilityStatistics:
        """The statistics of the cases of several parts, equal up to rounding to those of all cases."""
        if len(parts) == 1:
            return parts[0]
        merged = cls(parts[0].names, parts[0].heads)
        merged._counted = [
            HeadStatistics.merged(heads) for heads in zip(*(part._counted for part in parts), strict=True)
        ]
        merged._asked = sum(part._asked for part in parts)
        merged._promised = sum(part._promised for part in parts)
        merged._kept = sum(part._kept for part in parts)
        return merged

    def summary(self) -> dict[str, Any]:
        """The reliability of the heads as JSON-ready data; None where undefined because there are no voxels.

        Returns:
            `least_certain`: the intended share of the voxels (`wanted`), the `share` taken, which is larger because
            bins are taken whole, and the upper bound of the model's probability (`below`).

            `heads`: by name `all` and `least_certain`, each with `before` and `after` calibration (None without one) as
            from :meth:`.Reliability.to_dict`: ece, bias, and the bins as lists (probability, right, voxels).

            `gain`: over the voxels that were deferred and answered, the mean difference between the calibrated
            probabilities of expert and model (`promised`), the difference between their frequencies of being right
            (`kept`), and the number of `voxels`.
        """
        groups, chosen = self._least_certain()
        heads = {}
        for place, (name, statistics) in enumerate(zip(self.names, self._counted, strict=True)):
            parts = {"all": statistics, "least_certain": statistics.of_groups(groups)}
            heads[name] = {part: self._before_and_after(place, found) for part, found in parts.items()}
        asked = self._asked or math.nan
        gain = {"promised": self._promised / asked, "kept": self._kept / asked, "voxels": self._asked}
        return without_nan({"least_certain": chosen, "heads": heads, "gain": gain})

    def _count(
        self,
        said: Sequence[np.ndarray],
        right: Sequence[np.ndarray],
        known: Sequence[np.ndarray],
        inside: np.ndarray,
        order: np.ndarray,
    ) -> None:
        """Add the voxels with indices `inside` of all heads (n,), by coarse bin of the logit of `order` (n,)."""
        bins = _coarse_bins(order[inside])
        by_bin = inside[np.argsort(bins, kind="stable")]
        ends = np.cumsum(np.bincount(bins, minlength=_NUM_COARSE))
        for statistics, *arrays in zip(self._counted, said, right, known, strict=True):
            pieces = zip(*(np.split(array[by_bin], ends[:-1]) for array in arrays), strict=True)
            for number, piece in enumerate(pieces):
                if piece[0].size:
                    statistics.update(_group(number), *piece)

    def _compare(
        self, said: Sequence[np.ndarray], right: Sequence[np.ndarray], known: Sequence[np.ndarray], route: np.ndarray
    ) -> None:
        """Add the promised and observed gain where an expert was asked and answered."""
        for expert in range(1, len(self.names)):
            where = (route == expert) & known[0] & known[expert]
            promised = self._map(expert)(said[expert][where]) - self._map(0)(said[0][where])
            self._asked += int(np.count_nonzero(where))
            self._promised += float(promised.sum(dtype=np.float64))
            self._kept += int(np.count_nonzero(right[expert][where])) - int(np.count_nonzero(right[0][where]))

    def _least_certain(self) -> tuple[list[str], dict[str, Any]]:
        """The groups of the least certain voxels, and their description in the summary."""
        model = self._counted[0]
        voxels = np.array([model.bins([group]).voxels.sum() for group in model.groups])
        chosen: dict[str, Any] = {"wanted": LEAST_CERTAIN, "share": math.nan, "below": math.nan}
        if not voxels.size:
            return [], chosen
        reached = np.cumsum(voxels) / voxels.sum()
        # The tolerance avoids an additional bin by rounding if a bin ends exactly at the share.
        last = int(np.searchsorted(reached, LEAST_CERTAIN - 1e-12))
        groups = list(model.groups[: last + 1])
        edge = _LOWEST + (int(groups[-1]) + 1) * _COARSE_WIDTH
        return groups, chosen | {"share": float(reached[last]), "below": float(expit(edge))}

    def _before_and_after(self, head: int, statistics: HeadStatistics) -> dict[str, Any]:
        before = reliability(statistics).to_dict()
        return {
            "before": before,
            "after": None if self.heads is None else reliability(statistics, self.heads[head]).to_dict(),
        }

    def _map(self, head: int) -> Calibrator:
        return IDENTITY if self.heads is None else self.heads[head]


def _coarse_bins(probabilities: np.ndarray) -> np.ndarray:
    """Coarse bins, uint8 in [0, `_NUM_COARSE`), monotonic in the probability; uint8 is sorted in linear time."""
    logits = logit(np.clip(probabilities, SMALLEST, 1 - SMALLEST, dtype=np.float64))
    return ((logits - _LOWEST) / _COARSE_WIDTH).astype(np.uint8)


def _group(number: int) -> str:
    """The group name of a coarse bin; names sort like the numbers."""
    return f"{number:03d}"


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities and observed frequencies in bins with similar numbers of voxels, (B,) each.

    Attributes:
        probability: float64, the mean calibrated probability in each bin, ascending.
        right: float64, the share of the bin's voxels that are right.
        voxels: int64, the number of voxels in each bin, never 0.
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
        """Mean probability minus observed frequency over all voxels: positive if overconfident; NaN if empty."""
        return self._mean(self.probability - self.right)

    def to_dict(self) -> dict[str, Any]:
        """Bins, ece and bias as JSON-ready data, except that values may be NaN."""
        bins = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {**bins, "ece": self.ece, "bias": self.bias}

    def _mean(self, values: np.ndarray) -> float:
        return float(np.average(values, weights=self.voxels)) if self.voxels.size else math.nan


def reliability(statistics: HeadStatistics, calibration: Calibrator = IDENTITY, *, num_bins: int = 15) -> Reliability:
    """The reliability of a head after calibration.

    Args:
        statistics: Statistics of the head before calibration.
        calibration: The head's calibrator.
        num_bins: The maximum number of bins. There are fewer if many voxels have nearly the same probability (logits
            within `BIN_WIDTH`), because these are not split, and none without voxels.

    Raises:
        InputError: If `num_bins` is less than 1.
    """
    if num_bins < 1:
        raise InputError(f"num_bins must be at least 1, got {num_bins}")
    voxels, right, _ = bins = statistics.bins()
    if not voxels.size:
        return Reliability(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
    # A fine bin cannot be split and is assigned by its middle voxel.
    middle = (np.cumsum(voxels) - voxels / 2) / voxels.sum()
    _, bin_of = np.unique((middle * num_bins).astype(np.int64), return_inverse=True)
    probability = expit(calibration.on_logits(bins.logits))
    number, happened, promised = (np.bincount(bin_of, each) for each in (voxels, right, voxels * probability))
    return Reliability(promised / number, happened / number, number.astype(np.int64))
