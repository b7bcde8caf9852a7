r"""Calibration of a segmentation's probabilities to several raters.

Raters disagree, so there is no single label that a probability p(v) could be the probability of. Here it is compared
with all of them: every voxel counts once for each rater r who saw it, with that rater's label y_r(v) in {0, 1}, and

.. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} \left| \frac{1}{n_b} \sum_{(v, r) \in b} p(v)
    - \frac{1}{n_b} \sum_{(v, r) \in b} y_r(v) \right|

over bins b of p, with n_b of N pairs. It is 0 for the share of raters who mark the voxel. It is computed over whole
images, most of which is background that nobody doubts, and in the joint box of all raters' foreground. A second form is
for each rater by itself in this box, averaged over raters and cases, which the share of raters does not bring to 0. The
challenge CURVAS averages so, too, but compares the highest probability of all classes with whether that class is the
rater's. For a single structure that is at most as large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_probabilities, check_same_shape
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.bootstrap import Interval, bootstrap_interval, mean_over_cases
from nnunetv2_deferral.evaluation.overlap import Region, overlap, region_key, region_mask
from nnunetv2_deferral.labels import MISSING

BINS = 15
CURVAS_BINS = 50
IMAGE, BOX = "image", "box"
_ECE, _BRIER = "ece", "brier"


def multi_rater_ece(
    probabilities: np.ndarray,
    marks: np.ndarray,
    seen: np.ndarray,
    *,
    num_bins: int = BINS,
) -> float:
    """The expected calibration error over all pairs of a voxel and a rater.

    Args:
        probabilities: Of a structure, real floating point in [0, 1], any shape.
        marks: The number of raters who mark it, integer of the same shape.
        seen: The number of raters with a label, integer of the same shape, not below `marks`.
        num_bins: The number of bins of equal width.

    Returns:
        The error in [0, 1]; NaN without any pair.

    Raises:
        InputError: If shapes differ or a value is out of range.

    Example:
        Two of four raters mark a voxel:

        >>> import numpy as np
        >>> from nnunetv2_deferral import multi_rater_ece
        >>> two, four = np.array([2]), np.array([4])
        >>> multi_rater_ece(np.array([0.5]), two, four), multi_rater_ece(np.array([0.9]), two, four)
        (0.0, 0.4)
    """
    return round(_ece(_tally(probabilities, marks, seen, num_bins)), 15)


def joint_box(masks: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that contains the structure of every rater.

    Args:
        masks: Where each rater marks it, bool (J, *S).

    Returns:
        A slice for each axis of S; None if nobody marks anything.
    """
    anywhere = np.asarray(masks.any(0))
    if not anywhere.any():
        return None
    found = []
    for axis in range(anywhere.ndim):
        (index,) = np.nonzero(anywhere.any(tuple(other for other in range(anywhere.ndim) if other != axis)))
        found.append(slice(int(index[0]), int(index[-1]) + 1))
    return tuple(found)


class RaterCalibration:
    """Accumulates, case by case, how well probabilities are calibrated to raters, and the overlap with them.

    Memory does not grow with the number of voxels.
    """

    def __init__(self, structures: Sequence[Region], raters: Sequence[str]) -> None:
        """Start without cases.

        Args:
            structures: The F foreground labels or regions.
            raters: The names of the J raters.

        Raises:
            InputError: If either is empty.
        """
        if not structures or not raters:
            raise InputError(f"there must be structures and raters, got {list(structures)} and {list(raters)}")
        self.structures = tuple(structures)
        self.raters = tuple(raters)
        self.cases: list[str] = []
        self._given: tuple[str, ...] | None = None
        self._labelled = dict.fromkeys(self.raters, 0)
        # By structure, reading and place a tally for each case; None where there is no box.
        self._tallies: dict[tuple[str, str, str], list[np.ndarray | None]] = defaultdict(list)
        self._curvas: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._dice: dict[tuple[str, str], list[float]] = defaultdict(list)

    def update(
        self,
        case: str,
        readings: Mapping[str, np.ndarray],
        masks: np.ndarray,
        *,
        model: np.ndarray,
        reference: np.ndarray | None = None,
        valid: np.ndarray | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: The case identifier.
            readings: By name, probabilities of the structures, real floating point (F, *S) in [0, 1]; for every case
                the same names.
            masks: The raters' label maps, integer (J, *S), `MISSING` where a rater has no label.
            model: The predicted label map, integer of shape S.
            reference: The reference label map, integer of shape S; None, then for all cases, if there is none.
            valid: Bool of shape S, the voxels that count, or None for all.

        Raises:
            InputError: If shapes differ, a probability is out of range, or other things are given than for other cases;
                the message names the case.
        """
        try:
            check_same_shape(model=model, reference=reference, valid=valid, masks=masks[0])
            check_bool(valid=valid)
            given = (*readings, *(() if reference is None else ("reference",)))
            self._given = given if self._given is None else self._given
            if given != self._given:
                raise InputError(f"got {', '.join(given)}, but for other cases {', '.join(self._given)}")
            if len(masks) != len(self.raters):
                raise InputError(f"got masks of {len(masks)} raters instead of {len(self.raters)}")
            for name, probabilities in readings.items():
                if probabilities.shape != (len(self.structures), *model.shape):
                    raise InputError(
                        f"{name} must have shape {(len(self.structures), *model.shape)}, got {probabilities.shape}"
                    )
                check_probabilities(probabilities)
        except InputError as error:
            raise InputError(f"case {case}: {error}") from error
        self.cases.append(case)
        seen = masks != MISSING
        if valid is not None:
            seen &= valid
        for name, saw in zip(self.raters, seen, strict=True):
            self._labelled[name] += bool(saw.any())
        for index, structure in enumerate(self.structures):
            marked = np.stack([region_mask(mask, structure) for mask in masks]) & seen
            self._add(region_key(structure), {name: each[index] for name, each in readings.items()}, marked, seen)
            self._add_dice(structure, model, masks, seen, reference, valid)

    def summary(
        self, *, groups: Mapping[str, Hashable] | None = None, seed: int = 0, num_resamples: int = 2000
    ) -> dict[str, Any]:
        """What was found, as JSON-ready data.

        Args:
            groups: For each case its group, such as its patient; None for each case by itself.
            seed: Seed of the bootstrap.
            num_resamples: The number of resamples.

        Returns:
            The entries of `rater_calibration.json`, see docs/reference/evaluation.md.
        """
        by_case = None if groups is None else [groups[case] for case in self.cases]

        def interval(values: Any, statistic: Callable[[np.ndarray], float] = mean_over_cases) -> dict[str, float]:
            generator = np.random.default_rng(seed)
            found = bootstrap_interval(
                np.asarray(values), statistic, generator=generator, groups=by_case, num_resamples=num_resamples
            )
            # A percentile interval is widened about the estimate, and no error is below 0 or above 1.
            return Interval(found.estimate, max(found.low, 0.0), min(found.high, 1.0)).to_dict()

        calibration: dict[str, Any] = {}
        for (structure, reading, place), tallies in self._tallies.items():
            entry = calibration.setdefault(structure, {}).setdefault(reading, {})
            rows = np.stack([np.full((BINS + 1, 3), np.nan) if each is None else each for each in tallies])
            entry[place] = {
                _ECE: interval(rows, lambda some: _ece(np.nansum(some, 0))),
                _BRIER: interval(rows, lambda some: _brier(np.nansum(some, 0))),
                "bins": _bins(np.nansum(rows, 0)),
                "cases": sum(each is not None for each in tallies),
            }
        for (structure, reading), values in self._curvas.items():
            calibration[structure][reading]["curvas_ece"] = interval(values)
        dice: dict[str, Any] = {}
        for (structure, whom), values in self._dice.items():
            dice.setdefault(structure, {})[whom] = interval(values)
        return {
            "cases": len(self.cases),
            "raters": dict(self._labelled),
            "groups": None if by_case is None else len(set(by_case)),
            "bins": {"ece": BINS, "curvas_ece": CURVAS_BINS},
            "calibration": calibration,
            "dice": dice,
            "per_case": self._per_case(),
        }

    def _add(self, structure: str, readings: Mapping[str, np.ndarray], marked: np.ndarray, seen: np.ndarray) -> None:
        marks, number = marked.sum(0), seen.sum(0)
        box = joint_box(marked)
        for name, probabilities in readings.items():
            self._tallies[structure, name, IMAGE].append(_tally(probabilities, marks, number, BINS))
            if box is None:
                self._tallies[structure, name, BOX].append(None)
                self._curvas[structure, name].append(float("nan"))
                continue
            inside = probabilities[box]
            self._tallies[structure, name, BOX].append(_tally(inside, marks[box], number[box], BINS))
            each = [
                _ece(_tally(inside, mine[box].astype(np.int64), saw[box].astype(np.int64), CURVAS_BINS))
                for mine, saw in zip(marked, seen, strict=True)
                if saw[box].any()
            ]
            self._curvas[structure, name].append(float(np.mean(each)))

    def _add_dice(
        self,
        structure: Region,
        model: np.ndarray,
        masks: np.ndarray,
        seen: np.ndarray,
        reference: np.ndarray | None,
        valid: np.ndarray | None,
    ) -> None:
        key = region_key(structure)
        each = [
            overlap(mask, model, [structure], saw)[key]["Dice"]
            for mask, saw in zip(masks, seen, strict=True)
            if saw.any()
        ]
        defined = [value for value in each if not np.isnan(value)]
        self._dice[key, "raters"].append(float(np.mean(defined)) if defined else float("nan"))
        if reference is not None:
            self._dice[key, "reference"].append(overlap(reference, model, [structure], valid)[key]["Dice"])

    def _per_case(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for index, case in enumerate(self.cases):
            rows: dict[str, Any] = {}
            for (structure, reading, place), tallies in self._tallies.items():
                tally = tallies[index]
                rows.setdefault(structure, {})[f"{_ECE}_{place}_{reading}"] = (
                    float("nan") if tally is None else _ece(tally)
                )
            for (structure, reading), values in self._curvas.items():
                rows[structure][f"curvas_ece_{reading}"] = values[index]
            for (structure, whom), values in self._dice.items():
                rows.setdefault(structure, {})[f"Dice_{whom}"] = values[index]
            found[case] = rows
        return found


def _tally(probabilities: np.ndarray, marks: np.ndarray, seen: np.ndarray, num_bins: int) -> np.ndarray:
    """For each bin the number of pairs, the sum of p and that of labels, float64 (num_bins + 1, 3).

    The last row has the number of pairs, and the sums of p² and of p y.

    Raises:
        InputError: If shapes differ or a value is out of range.
    """
    check_same_shape(probabilities=probabilities, marks=marks, seen=seen)
    check_probabilities(probabilities)
    p = probabilities.reshape(-1).astype(np.float64)
    y, n = marks.reshape(-1).astype(np.float64), seen.reshape(-1).astype(np.float64)
    if ((y < 0) | (y > n)).any():
        raise InputError("the number of raters who mark a voxel must lie between 0 and the number who saw it")
    where = np.minimum((p * num_bins).astype(np.int64), num_bins - 1)
    columns = [np.bincount(where, weights=each, minlength=num_bins) for each in (n, n * p, y)]
    return np.vstack((np.stack(columns, 1), [n.sum(), (n * p * p).sum(), (p * y).sum()]))


def _ece(tally: np.ndarray) -> float:
    bins = tally[:-1]
    number = bins[:, 0].sum()
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / number) if number else float("nan")


def _brier(tally: np.ndarray) -> float:
    """The mean over pairs of (p - y)², which for y in {0, 1} is p² - 2 p y + y."""
    number, squares, products = tally[-1]
    return float((squares - 2 * products + tally[:-1, 2].sum()) / number) if number else float("nan")


def _bins(tally: np.ndarray) -> list[dict[str, float]]:
    """The bins with any pair: their number of pairs, mean probability and share of labels."""
    return [
        {"pairs": int(number), "probability": float(p / number), "marked": float(y / number)}
        for number, p, y in tally[:-1]
        if number
    ]
