"""A guarantee on the errors that nobody is asked about, for cases like those it was tested on.

The kept error of a group of cases (a patient) is the number of wrong voxels that the model keeps, divided by the
number of foreground voxels of the reference. A certificate says: with confidence 1 - delta, at most a share alpha of
groups has a kept error above a given one, at a budget.

Budgets are tested from large to small. At each, the null hypothesis that more than alpha of groups exceed the kept
error is rejected if P(Bin(n, alpha) <= violations) <= delta; the walk ends at the first that is not rejected, so that
all tests together err with probability delta at most, whatever the distribution of errors. The groups must be
independent of everything that was fitted, and new cases exchangeable with them.

Source: Angelopoulos et al. 2021, "Learn then Test" (fixed sequence testing, exact binomial p-values).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.predicted_by import NotedPrediction, PredictedBy
from nnunetv2_deferral.defaults import CONFIDENCE
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.schema import Boolean, Count, Integer, NonNegative, Share, Text, validate


class _Stored(TypedDict):
    kept_error: Share
    alpha: Share
    confidence: Share
    budget: Share
    over: Text
    groups: Count
    violations: Count
    grouped: Boolean
    median_foreground: NonNegative
    folds: list[Integer | Text]
    prediction: NotRequired[NotedPrediction]
    scores: list[NonNegative]


_KEYS = tuple(key for key in _Stored.__annotations__ if key not in ("folds", "prediction"))


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is guaranteed, and what it was tested on.

    Attributes:
        kept_error: The kept error that is rarely exceeded.
        alpha: The share of groups that exceeds it, at most.
        confidence: Of the guarantee.
        budget: The smallest budget for which it holds; it holds for larger ones too.
        over: Whether the budget is of each case or over a dataset, as in :class:`.Limits`.
        groups: The number of groups that it was tested on.
        violations: How many of them exceed the kept error at this budget.
        grouped: Whether groups of cases (patients) were given; otherwise each case is a group.
        median_foreground: The median number of foreground voxels of a group with any, by which the wrong voxels of a
            group without are divided.
        predicted_by: The networks that predicted these cases.
        scores: For each group the mean score of its cases, see :func:`.kept_errors.case_score`, with which new cases
            are compared.
    """

    kept_error: float
    alpha: float
    confidence: float
    budget: float
    over: str
    groups: int
    violations: int
    grouped: bool
    median_foreground: float
    predicted_by: PredictedBy
    scores: tuple[float, ...]

    def covers(self, limits: Limits) -> bool:
        """Whether the guarantee holds for predictions with these limits."""
        return (
            limits.budget is not None
            and limits.budget >= self.budget
            and limits.over == self.over
            and limits.capacities is None
            and limits.min_region_mm is None
            and limits.minutes is None
        )

    @property
    def unit(self) -> str:
        """What is counted: `groups` or `cases`."""
        return "groups" if self.grouped else "cases"

    @property
    def statement(self) -> str:
        """The guarantee in a sentence."""
        return (
            f"certified: with {_percent(self.confidence)} confidence, at most {_percent(self.alpha)} of {self.unit} "
            f"like those tested have a kept error above {self.kept_error:g}, at a budget of at least "
            f"{_percent(self.budget)} over {'each case' if self.over == 'case' else 'a dataset'} ({self.violations} of "
            f"{self.groups} {self.unit} did, held out from {self.predicted_by.networks} and from calibration)"
        )

    def statement_for(
        self, limits: Limits, prediction: Mapping[str, Any] | None = None, *, ensemble: bool = False
    ) -> str:
        """The guarantee in a sentence, if it holds for these predictions; else that it does not.

        Args:
            limits: Their limits.
            prediction: How they were made, as far as it is known, see :meth:`.PredictedBy.unlike`.
            ensemble: Whether they are those of an ensemble, even if `prediction` has no folds.
        """
        untested = self.predicted_by.unlike(prediction or {}, ensemble=ensemble)
        statement = self.statement if self.covers(limits) else f"not for these limits: {self.statement}"
        return f"not tested for {untested}: {statement}" if untested else statement

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON-ready data."""
        values = {key: getattr(self, key) for key in _KEYS} | {"scores": list(self.scores)}
        return values | self.predicted_by.to_dict()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Certificate:
        """Restore the data of :meth:`to_dict`.

        Raises:
            InputError: Naming `where`, if a value is missing, of another type or out of range.
        """
        validate(content, _Stored, where)
        values = {key: content[key] for key in _KEYS}
        return cls(**values | {"scores": tuple(content["scores"])}, predicted_by=PredictedBy.noted(content))


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def is_certified(violations: int, groups: int, *, alpha: float, confidence: float) -> bool:
    """Whether so few violations reject that more than `alpha` of groups are violations.

    Example:
        >>> is_certified(0, 22, alpha=0.1, confidence=0.9), is_certified(1, 22, alpha=0.1, confidence=0.9)
        (True, False)
    """
    from scipy.stats import binom  # imported here because it is slow to import

    return bool(binom.cdf(violations, groups, alpha) <= 1 - confidence)


def last_certified(violations: Sequence[int], groups: int, *, alpha: float, confidence: float) -> int | None:
    """The place of the last hypothesis that is rejected in a walk which ends at the first that is not.

    Args:
        violations: Of each hypothesis, in the order of the walk, which must not depend on them.
        groups: The number of groups.
        alpha: See :class:`Certificate`.
        confidence: See :class:`Certificate`.

    Returns:
        The place, or None if not even the first is rejected.
    """
    place = None
    for number, found in enumerate(violations):
        if not is_certified(found, groups, alpha=alpha, confidence=confidence):
            break
        place = number
    return place


def certified_budget(
    kept_errors: np.ndarray,
    budgets: Sequence[float],
    *,
    kept_error: float,
    alpha: float,
    confidence: float = CONFIDENCE,
) -> float | None:
    """The smallest budget at which kept errors are certified to be rarely large, from arrays.

    Args:
        kept_errors: Real (G, B), for each of G groups (patients) and each budget the wrong voxels that no expert is
            asked about, divided by the foreground voxels of the reference. Nothing may have been fitted on these
            groups.
        budgets: The B budgets, from large to small, chosen without looking at the errors.
        kept_error: The kept error that should rarely be exceeded, in (0, 1).
        alpha: The share of groups that may exceed it, in (0, 1).
        confidence: Of the guarantee, in (0, 1).

    Returns:
        The last budget of a walk that ends at the first that cannot be certified, or None if not even the first can;
        :func:`groups_needed` then tells how many groups are needed.

    Raises:
        InputError: If the shape is not (G, B), budgets do not fall, or a value is outside its range.

    Example:
        Forty patients. At 1 % of the voxels two of them keep too many errors, which certifies that at most 15 % of
        patients do; at 0.5 % it is five, which is too many:

        >>> import numpy as np
        >>> from nnunetv2_deferral import certified_budget
        >>> errors = np.full((40, 3), 0.02)
        >>> errors[:2, 1], errors[:5, 2] = 0.3, 0.3
        >>> certified_budget(errors, (0.02, 0.01, 0.005), kept_error=0.1, alpha=0.15, confidence=0.9)
        0.01
    """
    check_risk(kept_error, alpha, confidence)
    kept_errors = np.asarray(kept_errors)
    if not np.isfinite(kept_errors).all() or kept_errors.min(initial=0) < 0:
        raise InputError("kept errors must be finite and at least 0; for an empty reference, divide by the median size")
    if not all(0 <= budget <= 1 for budget in budgets):
        raise InputError(f"budgets must be shares of the voxels in [0, 1], got {list(budgets)}")
    if kept_errors.ndim != 2 or kept_errors.shape[1] != len(budgets):
        raise InputError(f"kept errors must have shape (G, {len(budgets)}), got {kept_errors.shape}")
    if any(first <= second for first, second in pairwise(budgets)):
        raise InputError(f"budgets must fall from large to small, got {list(budgets)}")
    violations = [int(number) for number in np.count_nonzero(kept_errors > kept_error, axis=0)]
    place = last_certified(violations, len(kept_errors), alpha=alpha, confidence=confidence)
    return None if place is None else float(budgets[place])


def groups_needed(violations: int, *, alpha: float, confidence: float) -> int:
    """The smallest number of groups with which a certificate allows this number of violations.

    Args:
        violations: How many groups may exceed the kept error.
        alpha: The share of groups that may exceed it, in (0, 1).
        confidence: Of the guarantee, in (0, 1).

    Raises:
        InputError: If a value is outside its range.

    Example:
        >>> from nnunetv2_deferral import groups_needed
        >>> [groups_needed(violations, alpha=0.1, confidence=0.9) for violations in (0, 1, 2, 5)]
        [22, 38, 52, 91]
    """
    _check_share("share", alpha)
    _check_share("confidence", confidence)
    if violations < 0:
        raise InputError(f"the number of violations must be at least 0, got {violations}")
    groups = violations + 1
    while not is_certified(violations, groups, alpha=alpha, confidence=confidence):
        groups += 1
    return groups


def check_risk(kept_error: float, alpha: float, confidence: float) -> None:
    """Refuse values outside (0, 1).

    Raises:
        InputError: Naming the value.
    """
    for name, value in (("kept error", kept_error), ("share", alpha), ("confidence", confidence)):
        _check_share(name, value)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"the {name} of a certificate must be in (0, 1), got {value:g}")
