"""The choice between the heads, the model's confidence and both combined, on patients held back.

After few epochs heads may rank voxels worse than the model's confidence does. Combined with it by logistic regression
they are about as good as the better of both. They stay as they are unless something else recovers clearly more.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from nnunetv2_deferral.arrays import highest, of_experts, to_logits
from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.evidence_fitting import predicted_gains
from nnunetv2_deferral.calibration.regression import logistic_weights, sample_voxels
from nnunetv2_deferral.calibration.selection import fit_isotonic
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.calibrators import IDENTITY, Calibrator
from nnunetv2_deferral.decision.combination import (
    HEADS,
    RANKINGS,
    UNCHANGED,
    Combination,
    confidence_logits,
)
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.evaluation.budgets import BudgetStatistics, recovered_gain
from nnunetv2_deferral.evaluation.head_statistics import HeadStatistics
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.uncertainty import one_minus_max

AT = (0.005, 0.01, 0.02, 0.05)  # budgets, as shares of the voxels
CLEARLY = 0.02  # of the oracle's gain, in the mean over budgets
_MOST = {"wrong": 4096, "unsure": 4096, "others": 1024}  # voxels of a case for each head
_SURE = 6.0  # logits
_RIDGE = 1e-5
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # features (n, 2), whether right, weight


def rows_of(case: EvaluatedCase, *, has_regions: bool) -> list[Rows]:
    """For each head what a combination is fitted on, the same at any order of cases."""
    generator = np.random.default_rng(zlib.crc32(case.name.encode()))
    prediction, right = case.prediction, case.right
    confidence = confidence_logits(one_minus_max(prediction.softmax, has_regions=has_regions))
    found = []
    for head, known in enumerate(case.known & prediction.predicted):
        features = np.stack([to_logits(prediction.routing[head][known]), confidence[known]], axis=1)
        was_right = right[head][known]
        unsure = was_right & (features.min(1) < _SURE)
        strata = zip((~was_right, unsure, was_right & ~unsure), _MOST.values(), strict=True)
        where, weight = sample_voxels(list(strata), generator)
        found.append((features[where].astype(np.float32), was_right[where], weight.astype(np.float32)))
    return found


def fit_combined(
    rows: Sequence[Sequence[Rows]], can_be_asked: Sequence[bool], *, has_regions: bool, confidence_only: bool = False
) -> tuple[Combination, list[Calibrator]]:
    """Fit a combination, and isotonic regressions of what it gives, to which all is left that is not linear.

    Args:
        rows: For each case what they are fitted on.
        can_be_asked: For each head whether it is that of the model or of an expert who can be asked; the others stay.
        has_regions: Whether the model's probabilities are those of regions.
        confidence_only: Whether the heads are left out.

    Returns:
        The combination and the calibrators of all heads.
    """
    weights: list[tuple[float, float, float]] = []
    calibrators: list[Calibrator] = []
    for can, every in zip(can_be_asked, zip(*rows, strict=True), strict=True):
        features, right, weight = (np.concatenate(parts) for parts in zip(*every, strict=True))
        if not can or not right.size:
            weights.append(UNCHANGED)
            calibrators.append(IDENTITY)
            continue
        if confidence_only:
            features[:, 0] = 0  # whose weight is then 0
        constant, own, other = logistic_weights(features, right, weight, ridge=_RIDGE, otherwise=UNCHANGED)
        statistics = HeadStatistics()
        combined = expit(constant + features @ np.array([own, other]))
        statistics.update("all", combined, right, weights=weight)
        weights.append((constant, own, other))
        calibrators.append(fit_isotonic(statistics.bins()))
    return Combination(weights=tuple(weights), has_regions=has_regions), calibrators


def choose_ranking(
    cases: CalibrationCases, fitted: Sequence[Mapping[str, ModelCalibration]], parts: Sequence[set[str]]
) -> dict[str, Any]:
    """The ranking that recovers most in the mean over budgets, or an earlier one of :data:`RANKINGS` close to it.

    Args:
        cases: The cases.
        fitted: For each part of the groups the calibrations for all of :data:`RANKINGS`, fitted on the others.
        parts: The groups of each part.

    Returns:
        `chosen`, its name, and `budgets`, a row for each with the share of the oracle's gain that each ranking recovers
        on patients held back. JSON-ready, but for NaN where the oracle gains nothing.
    """
    found = cases.in_pieces(partial(_rank, fitted, parts), "Comparing rankings")
    names = cases.names
    every = {kind: BudgetStatistics.merged([rankings[kind] for rankings, _ in found], names) for kind in RANKINGS}
    at = {kind: statistics.at((0.0, *AT)) for kind, statistics in every.items()}
    rows: list[dict[str, float]] = []
    for place, oracle in enumerate(OracleStatistics.merged([each for _, each in found], names).at(AT), 1):
        dice = {kind: (of_kind[place].foreground_mean, of_kind[0].foreground_mean) for kind, of_kind in at.items()}
        recovered = {kind: recovered_gain(*pair, oracle.foreground_mean) for kind, pair in dice.items()}
        rows.append({"budget": oracle.budget, **recovered})
    told = [row for row in rows if not np.isnan([*row.values()]).any()]  # where the oracle gains anything
    means = {kind: float(np.mean([row[kind] for row in told])) if told else np.nan for kind in RANKINGS}
    enough = max(means.values()) - CLEARLY
    return {"chosen": next((kind for kind in RANKINGS if means[kind] >= enough), HEADS), "budgets": rows}


def _rank(
    fitted: Sequence[Mapping[str, ModelCalibration]], parts: Sequence[set[str]], cases: CalibrationCases
) -> tuple[dict[str, BudgetStatistics], OracleStatistics]:
    """What each ranking and the oracle gain in these cases."""
    regions, rule = cases.files.regions, cases.settings.rule
    rankings = {kind: BudgetStatistics(regions, positive_only=True) for kind in RANKINGS}
    oracle = OracleStatistics(regions)
    for case in cases:
        (part,) = (place for place, held_back in enumerate(parts) if cases.group(case.name) in held_back)
        truth = {"reference": case.reference, "model": case.model, "valid": case.valid}
        for kind, statistics in rankings.items():
            gains = predicted_gains(cases, case.prediction, fitted[part][kind])
            answer = of_experts(case.answers, 1 + highest(gains))
            statistics.update(case.name, np.maximum(gains.max(0), 0), answer=answer, **truth)
        answers = [answer for answer, can in zip(case.answers, rule.available, strict=True) if can]
        oracle.update(case.name, answers=np.stack(answers), **truth)
    return rankings, oracle
