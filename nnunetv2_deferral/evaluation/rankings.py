"""All rankings of voxels that an evaluation compares at matched budgets: :class:`Rankings`.

By the learned expected gain (where positive), by the probability map, by the model's 1 - max softmax and entropy (if
its probabilities were saved), by two scores that know nothing of the image (:mod:`sanity`), and at random, each with
the expert in the expert map; by the gain and by 1 - max softmax with always the same expert; by 1 - max softmax with
the expert and the stopping point that were fitted, if they were; and the oracle, an upper bound of these. If answers
are read as evidence, those of the learned ranking are, and the ranking is also scored with answers that replace labels
(`learned, replaced`) and 1 - max softmax with answers read as evidence (`max_softmax, as evidence`). After earlier
rounds of questions, all rankings start from their answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from nnunetv2_deferral.arrays import of_experts
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.confidence import ConfidenceRule
from nnunetv2_deferral.evaluation.answered_cases import EvidenceBudgets
from nnunetv2_deferral.evaluation.budgets import BudgetResult, BudgetStatistics
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.evaluation.overlap import Region

LEARNED, PROBABILITY, RANDOM, ORACLE = "learned", "probability", "random", "oracle"
MAX_SOFTMAX, ENTROPY = "max_softmax", "entropy"
CONFIDENCE = f"{MAX_SOFTMAX}, fitted"
# Along a curve of Dice over budget, for the report.
CURVE_BUDGETS = tuple(round(float(budget), 5) for budget in np.geomspace(0.001, 0.5, 28))


class Rankings:
    """Statistics of all rankings, accumulated over cases one at a time."""

    def __init__(
        self, regions: Sequence[Region], experts: Sequence[str], *, confidence: ConfidenceRule | None = None
    ) -> None:
        """Start without cases.

        Args:
            regions: The foreground labels or regions to score.
            experts: The names of the J experts in routing order.
            confidence: The rule that asks by the model's own confidence, fitted on other cases; or None.
        """
        self._regions = tuple(regions)
        self._experts = tuple(experts)
        self._confidence = confidence
        self._found: dict[str, BudgetStatistics | EvidenceBudgets | OracleStatistics] = {}

    def update(self, case: EvaluatedCase, scores: Mapping[str, np.ndarray]) -> None:
        """Add a case.

        Args:
            case: The case.
            scores: By name, of the shape of the case, all scores but gain, random and oracle.
        """
        gain, expert = case.prediction.gain, case.prediction.expert
        asked = of_experts(case.answers, expert)
        learned = LEARNED if case.evidence is None else f"{LEARNED}, replaced"
        if case.evidence is not None:
            read = {LEARNED: gain}
            if MAX_SOFTMAX in scores:
                read[f"{MAX_SOFTMAX}, as evidence"] = scores[MAX_SOFTMAX]
            for name, values in read.items():
                found = self._found.setdefault(name, EvidenceBudgets(case.evidence, self._regions))
                cast(EvidenceBudgets, found).update(case, values, expert)
        rankings = {learned: (gain, asked)} | {name: (values, asked) for name, values in scores.items()}
        rankings[RANDOM] = (np.ones(case.route.shape, np.uint8), asked)
        for name, labels in zip(self._experts, case.answers, strict=True):
            rankings[f"{LEARNED}, always {name}"] = (gain, labels)
            if MAX_SOFTMAX in scores:
                rankings[f"{MAX_SOFTMAX}, always {name}"] = (scores[MAX_SOFTMAX], labels)
        for name, (values, answer) in rankings.items():
            # Voxels without a gain would never be deferred.
            positive_only = name.startswith(LEARNED)
            statistics = self._found.setdefault(name, BudgetStatistics(self._regions, positive_only=positive_only))
            cast(BudgetStatistics, statistics).update(
                case.name, values, reference=case.reference, model=case.before, answer=answer, valid=case.valid
            )
        oracle = self._found.setdefault(ORACLE, OracleStatistics(self._regions))
        cast(OracleStatistics, oracle).update(
            case.name, reference=case.reference, model=case.before, answers=case.answers, valid=case.valid
        )

    def at(self, budgets: Sequence[float]) -> dict[str, list[BudgetResult]]:
        """All rankings at budgets, also that of the confidence rule, which spends no more than its share."""
        found = {name: statistics.at(budgets) for name, statistics in self._found.items()}
        rule = self._confidence
        if rule is not None and (always := f"{MAX_SOFTMAX}, always {rule.expert}") in found:
            spent = self._found[always].at([min(budget, rule.most) for budget in budgets])
            found[CONFIDENCE] = [replace(each, budget=budget) for each, budget in zip(spent, budgets, strict=True)]
        return found

    @classmethod
    def merged(cls, parts: Sequence[Rankings], cases: Sequence[str]) -> Rankings:
        """The rankings of all cases of several parts, in the order of `cases`, which must be these cases."""
        first = parts[0]
        if len(parts) == 1:
            return first
        merged = cls(first._regions, first._experts, confidence=first._confidence)
        for name, statistics in first._found.items():
            of_parts: list[Any] = [part._found[name] for part in parts]
            merged._found[name] = type(statistics).merged(of_parts, cases)
        return merged
