"""Certification of a calibrated model on groups of cases that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases, Pair
from nnunetv2_deferral.calibration.evidence_fitting import predicted_gains
from nnunetv2_deferral.decision.assignment import route_by_thresholds, route_within_limits
from nnunetv2_deferral.decision.certificate import (
    Certificate,
    check_risk,
    groups_needed,
    last_certified,
)
from nnunetv2_deferral.decision.limits import CASE, DATASET
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.defaults import CONFIDENCE
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.kept_errors import KeptErrors

# The budgets of the walk if none are given; they must not depend on the cases.
BUDGETS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_FEWEST = 4  # groups: two to fit, two to certify
_MOST_VIOLATIONS = 3  # for which the number of groups needed is said


def split_for_certification(cases: CalibrationCases, *, seed: int = 0) -> tuple[CalibrationCases, CalibrationCases]:
    """Split the groups of cases at random into halves: one to fit everything on, one to certify.

    Raises:
        InputError: If there are fewer than four groups.
    """
    groups = sorted({cases.group(case) for _, case in cases.cases})
    if len(groups) < _FEWEST:
        raise InputError(f"a certificate requires at least {_FEWEST} cases (patients), got {len(groups)}")
    shuffled = [groups[place] for place in np.random.default_rng(seed).permutation(len(groups))]
    half = len(groups) // 2
    return cases.of_groups(shuffled[:half]), cases.of_groups(shuffled[half:])


def certify(
    cases: CalibrationCases,
    calibration: ModelCalibration,
    *,
    kept_error: float,
    alpha: float,
    confidence: float = CONFIDENCE,
    grouped: bool = False,
) -> ModelCalibration:
    """Certify the smallest budget that a walk from large to small budgets reaches.

    The budgets are those over a dataset that the calibration has thresholds for, or without any :data:`BUDGETS` of each
    case.

    Args:
        cases: Cases that nothing in the calibration was fitted on.
        calibration: The calibration.
        kept_error: See :class:`.Certificate`, as are the following.
        alpha: The share of groups that may exceed it.
        confidence: The confidence of the guarantee.
        grouped: Whether groups of cases were given.

    Returns:
        The calibration with a certificate, or None in its place if nothing can be certified; its report has the
        `certification`: violations at each budget, how many groups it takes, and the number of `attempts` on any of
        these cases, of which only the first has the stated confidence.

    Raises:
        InputError: If a value is outside (0, 1).
    """
    check_risk(kept_error, alpha, confidence)
    thresholds = {
        each.budget: each.thresholds
        for each in calibration.thresholds
        if each.budget is not None and each.capacities is None and each.min_region_mm is None
    }
    over, budgets = (DATASET, sorted(thresholds, reverse=True)) if thresholds else (CASE, list(BUDGETS))
    at = [(budget, thresholds.get(budget)) for budget in budgets]
    errors = KeptErrors.merged(cases.map(partial(_kept_errors, cases, calibration, at), "Certifying"))
    found = errors.values(errors.median_foreground)
    violations = [int(number) for number in (found > kept_error).sum(1)]
    groups = found.shape[1]
    place = last_certified(violations, groups, alpha=alpha, confidence=confidence)
    report: dict[str, Any] = {
        "kept_error": kept_error,
        "alpha": alpha,
        "confidence": confidence,
        "over": over,
        "groups": groups,
        "attempts": 1 + _earlier_attempts(cases),
        "cases": [case for _, case in cases.cases],
        "budgets": [
            {"budget": budget, "violations": number} for budget, number in zip(budgets, violations, strict=True)
        ],
        "groups_needed": [
            groups_needed(number, alpha=alpha, confidence=confidence) for number in range(_MOST_VIOLATIONS + 1)
        ],
    }
    certificate = None
    if place is not None:
        certificate = Certificate(
            kept_error=kept_error,
            alpha=alpha,
            confidence=confidence,
            budget=budgets[place],
            over=over,
            groups=groups,
            violations=violations[place],
            grouped=grouped,
            median_foreground=errors.median_foreground,
            predicted_by=cases.predicted_by,
            scores=errors.scores,
        )
    return replace(calibration, certificate=certificate, report={**calibration.report, "certification": report})


def _kept_errors(
    cases: CalibrationCases,
    calibration: ModelCalibration,
    at: Sequence[tuple[float, Sequence[float] | None]],
    pair: Pair,
) -> KeptErrors:
    """The kept errors of a case at budgets with thresholds, or with None at budgets of each case."""
    case, found = cases.read(*pair), KeptErrors()
    gains = predicted_gains(cases, case.prediction, calibration)
    routes = [
        route_within_limits(gains, budget=budget, capacities=None)
        if thresholds is None
        else route_by_thresholds(gains, np.array(thresholds))
        for budget, thresholds in at
    ]
    found.update(cases.group(case.name), case, np.maximum(gains.max(0), 0), np.stack(routes) > 0)
    return found


def _earlier_attempts(cases: CalibrationCases) -> int:
    """How often a certificate was tried on any of these cases, according to the model's present calibration."""
    tried = cases.attempted.get("attempted", [])
    return max((int(each["attempts"]) for each in tried if {*cases.names} & {*each["cases"]}), default=0)
