"""Fitting of the rule that asks by the model's own confidence, as a fair baseline for evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.confidence import ConfidenceRule
from nnunetv2_deferral.evaluation.budgets import BudgetStatistics
from nnunetv2_deferral.evaluation.rankings import CURVE_BUDGETS
from nnunetv2_deferral.uncertainty import one_minus_max


class ConfidenceFit:
    """Accumulates, case by case, what the rule is chosen by."""

    def __init__(self, cases: CalibrationCases) -> None:
        """Start without cases; those to come are of these, with saved probabilities and answers of all experts."""
        self._has_regions = cases.files.label_manager.has_regions
        self._every = {
            name: BudgetStatistics(cases.files.regions) if can else None
            for name, can in zip(cases.experts.names, cases.settings.available, strict=True)
        }

    def update(self, case: EvaluatedCase) -> None:
        """Add a case."""
        scores = one_minus_max(case.prediction.softmax, has_regions=self._has_regions)
        for statistics, answer in zip(self._every.values(), case.answers, strict=True):
            if statistics is not None:
                statistics.update(
                    case.name, scores, reference=case.reference, model=case.model, answer=answer, valid=case.valid
                )

    @classmethod
    def merged(cls, parts: Sequence[ConfidenceFit], cases: Sequence[str]) -> ConfidenceFit:
        """What was accumulated over the cases of all parts, which are these, in this order."""
        merged = copy(parts[0])
        if len(parts) > 1:
            every: dict[str, list[Any]] = {name: [part._every[name] for part in parts] for name in merged._every}
            merged._every = {
                name: None if found[0] is None else BudgetStatistics.merged(found, cases)
                for name, found in every.items()
            }
        return merged

    def rule(self) -> ConfidenceRule:
        """The expert and the share of voxels with the highest mean Dice.

        Returns:
            The rule; its share is one of :data:`.CURVE_BUDGETS`, or 0 if asking by confidence gains nothing.
        """
        found = {
            (name, result.budget): result.foreground_mean
            for name, statistics in self._every.items()
            if statistics is not None
            for result in statistics.at((0.0, *CURVE_BUDGETS))
        }
        # Of equals the first, so that nothing is spent without a gain.
        expert, most = max(found, key=lambda each: -math.inf if math.isnan(found[each]) else found[each])
        return ConfidenceRule(expert=expert, most=most)
