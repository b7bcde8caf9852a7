"""Fitting of the rule that asks by the model's own confidence, as a fair baseline for evaluations."""

from __future__ import annotations

import math

from tqdm import tqdm

from nnunetv2_deferral.calibration.validation_cases import ValidationCases
from nnunetv2_deferral.decision.confidence import ConfidenceRule
from nnunetv2_deferral.evaluation.budgets import BudgetStatistics
from nnunetv2_deferral.evaluation.evaluation import CURVE_BUDGETS
from nnunetv2_deferral.uncertainty import one_minus_max


def fit_confidence_rule(cases: ValidationCases) -> ConfidenceRule:
    """Choose the expert and the share of voxels with the highest mean Dice of the validation cases.

    Args:
        cases: Cases with saved probabilities and answers of all experts.

    Returns:
        The rule; its share is one of :data:`.CURVE_BUDGETS`, or 0 if asking by confidence gains nothing.
    """
    has_regions = cases.files.label_manager.has_regions
    names = [name for name, can in zip(cases.experts.names, cases.settings.available, strict=True) if can]
    every = {name: BudgetStatistics(cases.files.regions) for name in names}
    for case in tqdm(cases, total=len(cases.cases), desc="Confidence", unit="case"):
        scores = one_minus_max(case.prediction.softmax, has_regions=has_regions)
        for name, answer in zip(cases.experts.names, case.answers, strict=True):
            if name in every:
                every[name].update(
                    case.name, scores, reference=case.reference, model=case.model, answer=answer, valid=case.valid
                )
    found = {
        (name, result.budget): result.foreground_mean
        for name, statistics in every.items()
        for result in statistics.at((0.0, *CURVE_BUDGETS))
    }
    # Of equals the first, so that nothing is spent without a gain.
    expert, most = max(found, key=lambda each: -math.inf if math.isnan(found[each]) else found[each])
    return ConfidenceRule(expert=expert, most=most)
