"""Limits on deferral, set by the plans or by environment variables."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from nnunetv2_deferral.environment import (
    ENVIRONMENT,
    ENVIRONMENT_CAPACITIES,
    ENVIRONMENT_MINUTES,
    ENVIRONMENT_OVER,
    ENVIRONMENT_REGION,
    check_names,
)
from nnunetv2_deferral.errors import InputError

CASE, DATASET = "case", "dataset"
OVER = (CASE, DATASET)
_NO_LIMIT = "none"
WITHOUT_LIMITS = "without limits"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the amount and the region size of deferral. Without limits the rule alone decides.

    Attributes:
        budget: The share in [0, 1] of the voxels that may be deferred; None for no limit.
        capacities: The share in [0, 1] of the voxels that may go to each expert, None for an expert without a limit;
            None for no limits.
        over: `"case"`: shares of the voxels of each case, never exceeded. `"dataset"`: shares of the voxels of all
            cases, met on average by thresholds fitted on validation cases (`nnUNetv2_deferral_calibrate`).
        min_region_mm: Equivalent diameter of the smallest connected piece that is deferred to one expert. None decides
            voxel by voxel.
        minutes: Working time for the regions of all cases together; None for no limit. Decisions for single cases do
            not apply it; :func:`.keep_minutes` does once all cases are decided.

    Raises:
        InputError: If a value is out of range, the budget exceeds the sum of the capacities, or limits are over a
            dataset without a budget or capacities.

    Example:
        At most 2 % of the voxels of each case, of which at most half go to the first of two experts:

        >>> from nnunetv2_deferral import Limits
        >>> Limits(budget=0.02, capacities=(0.01, None)).to_dict()
        {'budget': 0.02, 'capacities': [0.01, None], 'over': 'case'}
        >>> Limits(budget=2)
        Traceback (most recent call last):
        nnunetv2_deferral.errors.InputError: a budget must be a share of the voxels in [0, 1], got 2
    """

    budget: float | None = None
    capacities: tuple[float | None, ...] | None = None
    over: str = CASE
    min_region_mm: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget(self.budget)
        for capacity in self.capacities or ():
            if capacity is not None:
                check_budget(capacity, named="a capacity")
        if self.over not in OVER:
            raise InputError(f"a budget must be over a {' or a '.join(OVER)}, got {self.over!r}")
        if self.budget is not None and self.budget > _most(self.capacities):
            raise InputError(
                f"the budget {self.budget} exceeds the sum {_most(self.capacities):g} of the experts' capacities "
                f"{list(self.capacities or ())}"
            )
        if self.over == DATASET and not self.limits_amount:
            raise InputError("limits over a dataset require a budget or capacities")
        if self.min_region_mm is not None and not 0 <= self.min_region_mm < math.inf:
            raise InputError(f"min_region_mm must be a finite diameter >= 0 in mm, got {self.min_region_mm}")
        if self.minutes is not None and not 0 <= self.minutes < math.inf:
            raise InputError(f"minutes must be finite and at least 0, got {self.minutes}")

    @property
    def of_case(self) -> Limits:
        """The limits without minutes, which decisions for single cases keep."""
        return replace(self, minutes=None)

    @property
    def limits_amount(self) -> bool:
        """Whether there is a budget or a capacity."""
        return self.budget is not None or any(capacity is not None for capacity in self.capacities or ())

    def to_dict(self) -> dict[str, Any]:
        """The limits that are set, as JSON-ready data; empty if there are none."""
        found = {key: value for key, value in asdict(self).items() if value is not None}
        if self.capacities is not None:
            found["capacities"] = list(self.capacities)
        if not self.limits_amount:
            del found["over"]
        return found


def limits_text(limits: Limits, experts: Sequence[str]) -> str:
    """The limits in words, such as `at most 2 % of the voxels of each case; no region smaller than 5 mm`."""
    found = []
    where = "each case" if limits.over == CASE else "all cases together, on average"
    if limits.budget is not None:
        found.append(f"at most {100 * limits.budget:.4g} % of the voxels of {where}")
    for name, capacity in zip(experts, limits.capacities or (), strict=False):
        if capacity is not None:
            found.append(f"{name} at most {100 * capacity:.4g} % of the voxels of {where}")
    if limits.min_region_mm is not None:
        found.append(f"no region smaller than {limits.min_region_mm:.4g} mm")
    if limits.minutes is not None:
        found.append(f"at most {limits.minutes:.4g} minutes of work for all cases together")
    return "; ".join(found) or WITHOUT_LIMITS


def limits_of_environment(limits: Limits, environment: Mapping[str, str] = os.environ) -> Limits:
    """Override limits by environment variables.

    The variables are `nnUNet_deferral_budget`, `nnUNet_deferral_capacities` (shares separated by commas, one per
    expert, `none` for no limit), `nnUNet_deferral_budget_over` (`case` or `dataset`),
    `nnUNet_deferral_min_region_mm` and `nnUNet_deferral_minutes`.

    Raises:
        InputError: If a value is invalid, or a variable is misspelt; the message names it.
    """
    check_names(environment)
    asked: dict[str, Any] = {}
    if text := environment.get(ENVIRONMENT, "").strip():
        asked["budget"] = _share(text, ENVIRONMENT)
    if text := environment.get(ENVIRONMENT_CAPACITIES, "").strip():
        asked["capacities"] = tuple(
            None if each.strip() == _NO_LIMIT else _share(each, ENVIRONMENT_CAPACITIES) for each in text.split(",")
        )
    if text := environment.get(ENVIRONMENT_OVER, "").strip():
        asked["over"] = text
        if text not in OVER:
            raise InputError(f"{ENVIRONMENT_OVER} must be one of {', '.join(OVER)}, got {text!r}")
    if text := environment.get(ENVIRONMENT_REGION, "").strip():
        try:
            asked["min_region_mm"] = float(text)
        except ValueError:
            raise InputError(f"{ENVIRONMENT_REGION} must be a diameter in mm, got {text!r}") from None
    if (minutes := minutes_of_environment(environment)) is not None:
        asked["minutes"] = minutes
    return replace(limits, **asked)


def minutes_of_environment(environment: Mapping[str, str] = os.environ) -> float | None:
    """The limit of minutes that is set by the environment variable, or None.

    Raises:
        InputError: If the value is invalid; the message names the variable.
    """
    text = environment.get(ENVIRONMENT_MINUTES, "").strip()
    try:
        return Limits(minutes=float(text)).minutes if text else None
    except ValueError:
        raise InputError(f"{ENVIRONMENT_MINUTES} must be a number of minutes, got {text!r}") from None


def refuse_minutes(limits: Limits) -> None:
    """Refuse a limit of minutes where not all cases are predicted by one call of `nnUNetv2_predict`.

    Raises:
        InputError: If there is one; the message says what to do.
    """
    if limits.minutes is not None:
        raise InputError(
            f"a limit of minutes ({ENVIRONMENT_MINUTES}) requires all cases at once, predicted by one call of "
            "nnUNetv2_predict into a folder of their own. Otherwise, and for training, unset it, predict with "
            f"--save_probabilities, and choose with nnUNetv2_deferral_route -minutes {limits.minutes:g}"
        )


def limit(text: str) -> float | None:
    """A limit on the command line, such as a capacity: a number, or `none` for no limit.

    Raises:
        ValueError: If it is neither.
    """
    return None if text.strip() == _NO_LIMIT else float(text)


def check_budget(budget: float, named: str = "a budget") -> float:
    """Return the budget if it is valid.

    Raises:
        InputError: If it is not a share in [0, 1]; `named` is its name in the message.
    """
    if not 0 <= budget <= 1:
        raise InputError(f"{named} must be a share of the voxels in [0, 1], got {budget}")
    return budget


@cache
def warn_of_full_budget() -> None:
    """Warn, once in a process, that a budget of 1 limits nothing; a percentage was probably meant."""
    logging.getLogger(__name__).warning(
        "a budget of 1 is a share of 100 % and allows every voxel to be deferred; for 1 % give 0.01"
    )


def _most(capacities: Sequence[float | None] | None) -> float:
    """The sum of the capacities, as a share of the voxels."""
    total = sum(1.0 if capacity is None else capacity for capacity in capacities or (None,))
    return total + 1e-9  # so that 0.1 + 0.2 allows a budget of 0.3


def _share(text: str, variable: str) -> float:
    try:
        return check_budget(float(text))
    except ValueError:
        raise InputError(f"{variable} must be a share of the voxels in [0, 1], got {text.strip()!r}") from None
