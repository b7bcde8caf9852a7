"""Working times of a review: what is recorded of them, and the figures of :class:`.WorkTime` fitted to them.

The page counts the time that an expert works on a case, so that each answer, an expert's mask of a case, is one
equation: minutes = regions times a look + length of border that was expected to be drawn times a cm. Both figures are
found by non-negative least squares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.decision.effort import WorkTime, border_lengths_mm, edit_cm
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.names import REVIEW_NAME
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.readings import ReadingRules
from nnunetv2_deferral.schema import Boolean, Count, NonNegative, Text, read_validated_json

FEWEST_REGIONS, FEW_ANSWERS = 30, 10
_ALIKE = 0.05  # of lengths per region: their standard deviation as a share of their mean
_NOTHING = 1e-6  # minutes, by rounding
_LOG = Path(".review") / "log.jsonl"


class Effort(TypedDict):
    """In the record of an answer: what its time may depend on.

    Attributes:
        expected_edit_cm: The length of border that was expected to be drawn, see :func:`.edit_cm`.
        edited_regions: The number of regions in which a label was changed.
    """

    expected_edit_cm: NonNegative
    edited_regions: Count


class _Record(TypedDict):
    regions: Count
    minutes: NonNegative
    effort: NotRequired[Effort]
    blind_start: NotRequired[Boolean]


class _Index(TypedDict):
    cases: dict[Text, dict[Text, _Record]]


@dataclass(frozen=True, kw_only=True)
class FittedTimes:
    """Figures of the working time that were fitted to a review.

    Attributes:
        time: The figures.
        regions: The number of regions that they are fitted to.
        answers: The number of answers, each of an expert to a case.
        r_squared: The share of the variance of the minutes of answers that they explain; None if all took as long.
        mean_error: The mean absolute error in the minutes of an answer.
        remarks: Why a figure is the default.
    """

    time: WorkTime
    regions: int
    answers: int
    r_squared: float | None
    mean_error: float
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        explained = "all took equally long" if self.r_squared is None else f"R2 {self.r_squared:.2f}"
        return "; ".join(
            [
                f"{self.time.minutes_per_region:.3g} minutes per region and {self.time.minutes_per_cm:.3g} per cm of "
                f"border, fitted to {self.regions} regions in {self.answers} answers ({explained}, mean absolute error "
                f"{self.mean_error:.2g} minutes per answer)",
                *self.remarks,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """What is known of the fit, as JSON-ready data."""
        return {
            "regions": self.regions,
            "answers": self.answers,
            "r_squared": self.r_squared,
            "mean_error_minutes": self.mean_error,
            "remarks": list(self.remarks),
        }


def effort_of(predictions: PredictionFolder, name: str, numbers: np.ndarray, edited_regions: int) -> Effort:
    """What to record of an answer.

    Args:
        predictions: The predictions.
        name: The case identifier.
        numbers: Integer (Z, Y, X) in the orientation of the file, the expert's regions numbered from 1 without gaps.
        edited_regions: The number of them in which a label was changed.
    """
    case = predictions.case(name)
    asked = numbers > 0
    means = np.bincount(numbers[asked], weights=case.probability[asked])[1:] / np.bincount(numbers[asked])[1:]
    border = border_lengths_mm(numbers, case.spacing) if predictions.files.unit == "mm" else None
    return {"expected_edit_cm": round(float(edit_cm(means, border).sum()), 2), "edited_regions": edited_regions}


def chosen_time(
    reviews: Path | None, minutes_per_region: float | None, minutes_per_cm: float | None
) -> tuple[WorkTime, FittedTimes | None]:
    """The working time by the options of a command: fitted to a review, given, or the default.

    Raises:
        InputError: If a figure is out of range or both given and to be fitted, and see :func:`fit_times`.
    """
    given = {"minutes_per_region": minutes_per_region, "minutes_per_cm": minutes_per_cm}
    figures = {name: value for name, value in given.items() if value is not None}
    if reviews is None:
        return WorkTime(**figures), None
    if figures:
        raise InputError(f"-times_from fits the working time, which -{next(iter(figures))} gives; choose one of them")
    fitted = fit_times(reviews)
    return fitted.time, fitted


def fit_times(reviews: Path) -> FittedTimes:
    """Fit the working time to the answers of a review.

    Answers that were given without sight of the model's mask, drawn in another program, or given by an adjudicator are
    other work and left out.

    Args:
        reviews: The folder of the review.

    Raises:
        InputError: If its review.json is missing or not valid, or has too few regions; the message gives their number.
    """
    index, uploaded = reviews / REVIEW_NAME, set(_uploaded(reviews / _LOG))
    usable: list[_Answer] = []
    others = {
        "of an earlier version": 0,
        "of the adjudicator": 0,
        "without sight of the model's mask": 0,
        "uploaded": 0,
    }
    rules = ReadingRules.of(reviews)
    for case, records in read_validated_json(index, _Index)["cases"].items():
        for expert, record in records.items():
            if "effort" not in record:
                others["of an earlier version"] += 1
            elif rules is not None and expert == rules.adjudicator:
                others["of the adjudicator"] += 1
            elif record.get("blind_start"):
                others["without sight of the model's mask"] += 1
            elif (expert, case) in uploaded:
                others["uploaded"] += 1
            else:
                effort = record["effort"]
                length, edited = effort["expected_edit_cm"], effort["edited_regions"]
                usable.append(_Answer(record["minutes"], record["regions"], length, edited))
    regions = sum(answer.regions for answer in usable)
    if regions < FEWEST_REGIONS:
        left_out = ", ".join(f"{number} {what}" for what, number in others.items() if number)
        raise InputError(
            f"{index}: working times require at least {FEWEST_REGIONS} answered regions, but there are {regions}"
            + (f" (answers left out: {left_out})" if left_out else "")
        )
    return _fitted([answer for answer in usable if answer.regions])


class _Answer(NamedTuple):
    minutes: float
    regions: int
    length: float
    edited: int


def _fitted(answers: list[_Answer]) -> FittedTimes:
    from scipy.optimize import nnls  # imported here because it is slow to import

    minutes, regions, length, edited = np.array(answers, dtype=np.float64).T
    # The error of a sum of so many regions grows with the root of their number.
    weight = 1 / np.sqrt(regions)
    looks, edits, spent = regions * weight, length * weight, minutes * weight

    def one(column: np.ndarray, rest: np.ndarray) -> float:
        return float(nnls(column[:, None], rest)[0][0])

    usual, remarks = WorkTime(), []
    each = length / regions
    learned = False
    if not edited.any():
        look, edit = one(looks, spent), usual.minutes_per_cm
        remarks.append("no region was edited, so the time per cm is the default")
    elif each.std() <= _ALIKE * each.mean():
        edit = usual.minutes_per_cm
        look = one(looks, spent - edit * edits)
        remarks.append("all borders are about equally long, so the time per cm is the default")
    else:
        look, edit = (float(figure) for figure in nnls(np.stack([looks, edits], axis=1), spent)[0])
        learned = True
    if look <= _NOTHING:
        look = usual.minutes_per_region
        edit = one(edits, spent - look * looks) if learned else edit
        remarks.append("the lengths explain all of the time, so the time per region is the default")
    if len(answers) < FEW_ANSWERS:
        remarks.append("with so few answers, the figures are rough")
    error = minutes - look * regions - edit * length
    spread = float(((minutes - minutes.mean()) ** 2).sum())
    return FittedTimes(
        time=WorkTime(minutes_per_region=look, minutes_per_cm=edit),
        regions=int(regions.sum()),
        answers=len(answers),
        r_squared=1 - float((error**2).sum()) / spread if spread else None,
        mean_error=float(np.abs(error).mean()),
        remarks=tuple(remarks),
    )


def _uploaded(log: Path) -> Iterator[tuple[str, str]]:
    """Expert and case of answers that were drawn in another program, if there is a log.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with log.open("rb") as lines:
            for line in lines:
                if b"uploaded" in line and line.endswith(b"\n"):
                    entry: Mapping[str, Any] = json.loads(line)
                    if entry["event"] == "uploaded":
                        yield str(entry["expert"]), str(entry["case"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{log} cannot be read: {error}") from error
