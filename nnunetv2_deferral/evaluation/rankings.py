"""All rankings of voxels that an evaluation compares at matched budgets: :class:`Rankings`.

By the learned expected gain (where positive), by the probability map and that of the aggregated predictor, by the
model's 1 - max softmax and entropy (if its probabilities were saved), by entropy times the calibrated probability that
the model is wrong (if routing probabilities were saved, too), by scores that know nothing of the image (:mod:`sanity`
and :mod:`prior_errors`), and at random, each with the expert in the expert map; by the gain and by 1 - max softmax with
always the same expert; by 1 - max softmax with the expert and the stopping point that were fitted, if they were; and
the oracle, an upper bound of these. If answers are read as evidence, those of the learned ranking are, and the ranking
is also scored with answers that replace labels (`learned, replaced`) and 1 - max softmax with answers read as evidence
(`max_softmax, as evidence`), and questions in two rounds with up to two experts a voxel (`two rounds`). After earlier
rounds of questions, all rankings start from their answers, and there is no `two rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np

from nnunetv2_deferral.arrays import of_experts
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.confidence import ConfidenceRule
from nnunetv2_deferral.evaluation.answered_cases import EvidenceBudgets, Questioned, RoundsBudgets
from nnunetv2_deferral.evaluation.budgets import BudgetResult, BudgetStatistics
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.evaluation.overlap import Region
from nnunetv2_deferral.evaluation.prior_errors import MASK_ONLY, PRIOR_MAP, PriorErrors, mask_cells, position_cells
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram
from nnunetv2_deferral.evidence.questions import Policy

LEARNED, PROBABILITY, RANDOM, ORACLE = "learned", "probability", "random", "oracle"
MAX_SOFTMAX, ENTROPY, ENTROPY_TIMES_DOUBT = "max_softmax", "entropy", "entropy_times_doubt"
IN_ROUNDS, _ROUNDS = "two rounds", Policy(rounds=2, most=2)
CONFIDENCE, BEST_EXPERT = f"{MAX_SOFTMAX}, fitted", f"{MAX_SOFTMAX}, best expert"
Found = TypeVar("Found")
# Along a curve of Dice over budget, for the report.
CURVE_BUDGETS = tuple(round(float(budget), 5) for budget in np.geomspace(0.001, 0.5, 28))


class Rankings:
    """Statistics of all rankings, accumulated over cases one at a time."""

    def __init__(
        self,
        regions: Sequence[Region],
        experts: Sequence[str],
        *,
        unavailable: Sequence[str] = (),
        confidence: ConfidenceRule | None = None,
    ) -> None:
        """Start without cases.

        Args:
            regions: The foreground labels or regions to score.
            experts: The names of the J experts in routing order.
            unavailable: Those who cannot be asked, whatever their labels; neither can the oracle.
            confidence: The rule that asks by the model's own confidence, fitted on other cases; or None.
        """
        self._regions = tuple(regions)
        self._experts = tuple(experts)
        self._unavailable = tuple(unavailable)
        self._confidence = confidence
        self._found: dict[str, Any] = {}

    def update(self, case: EvaluatedCase, scores: dict[str, np.ndarray], group: str | None = None) -> None:
        """Add a case.

        Args:
            case: The case.
            scores: By name, of the shape of the case, all scores but gain, random, oracle and those by errors of other
                cases. Those that need nothing but the mask are taken out, for memory.
            group: The group of the case, such as its patient, without whose errors it is scored; None for the case by
                itself.
        """
        gain, expert = case.prediction.gain, case.prediction.expert
        asked = of_experts(case.answers, expert)
        learned = LEARNED if case.evidence is None else f"{LEARNED}, replaced"
        if case.evidence is not None:
            read = {LEARNED: gain}
            if MAX_SOFTMAX in scores:
                read[f"{MAX_SOFTMAX}, as evidence"] = scores[MAX_SOFTMAX]
            questioned = Questioned.of(case, case.evidence, self._regions)
            for name, values in read.items():
                self._of(name, EvidenceBudgets, case.evidence).update(questioned, values, expert)
            if not questioned.has_earlier:
                available = np.array([name not in self._unavailable for name in self._experts])
                self._of(IN_ROUNDS, RoundsBudgets, case.evidence, _ROUNDS, available).update(questioned)
        self._rank(case, {learned: (gain, asked)} | {name: (values, asked) for name, values in scores.items()})
        scores.pop(NEAR_CENTRE)
        cells = mask_cells(case.model, scores.pop(NEAR_BORDER))
        self._of(MASK_ONLY, PriorErrors, self._regions).update(case, cells, asked, group or case.name)
        del cells
        cells = position_cells(case.model.shape)
        self._of(PRIOR_MAP, PriorErrors, self._regions).update(case, cells, asked, group or case.name)
        del cells
        rankings = {RANDOM: (np.ones(case.route.shape, np.uint8), asked)}
        can = {
            name: labels
            for name, labels in zip(self._experts, case.answers, strict=True)
            if name not in self._unavailable
        }
        for name, labels in can.items():
            rankings[f"{LEARNED}, always {name}"] = (gain, labels)
            if MAX_SOFTMAX in scores:
                rankings[f"{MAX_SOFTMAX}, always {name}"] = (scores[MAX_SOFTMAX], labels)
        self._rank(case, rankings)
        self._of(ORACLE, OracleStatistics, self._regions).update(
            case.name,
            reference=case.reference,
            model=case.before,
            answers=case.answers if len(can) == len(case.answers) else np.stack([*can.values()]),
            valid=case.valid,
        )

    def _rank(self, case: EvaluatedCase, rankings: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Add a case to rankings by scores of voxels, with the labels of those who would be asked."""
        for name, (values, answer) in rankings.items():
            # Voxels without a gain would never be deferred.
            statistics = self._of(name, BudgetStatistics, self._regions, positive_only=name.startswith(LEARNED))
            statistics.update(
                case.name, values, reference=case.reference, model=case.before, answer=answer, valid=case.valid
            )

    def _of(self, name: str, kind: Callable[..., Found], *arguments: Any, **options: Any) -> Found:
        """The statistics of a ranking, made for the first case only, since they are large."""
        if name not in self._found:
            self._found[name] = kind(*arguments, **options)
        return cast(Found, self._found[name])

    def risk_histograms(self) -> dict[str, ScoreHistogram]:
        """Numbers of voxels and of errors by score, of the rankings by errors of other cases."""
        found = {name: each for name, each in self._found.items() if isinstance(each, PriorErrors)}
        return {name: each.histogram() for name, each in found.items() if each.is_defined}

    def at(self, budgets: Sequence[float]) -> dict[str, list[BudgetResult]]:
        """All rankings at budgets, also that of the confidence rule, which spends no more than its share.

        Without those by errors of other cases, if there are no cases of other groups, and without rounds.
        """
        found = {
            name: statistics.at(budgets)
            for name, statistics in self._found.items()
            if not isinstance(statistics, RoundsBudgets)
            and (not isinstance(statistics, PriorErrors) or statistics.is_defined)
        }
        rule = self._confidence
        if rule is not None and (always := f"{MAX_SOFTMAX}, always {rule.expert}") in found:
            spent = self._found[always].at([min(budget, rule.most) for budget in budgets])
            found[CONFIDENCE] = [replace(each, budget=budget) for each, budget in zip(spent, budgets, strict=True)]
        return found

    def in_rounds(self, budgets: Sequence[float]) -> dict[str, list[BudgetResult]]:
        """Questions in rounds at budgets, of which each takes as long as many of :meth:`at`; empty without evidence."""
        return {IN_ROUNDS: self._found[IN_ROUNDS].at(budgets)} if IN_ROUNDS in self._found else {}

    @classmethod
    def merged(cls, parts: Sequence[Rankings], cases: Sequence[str]) -> Rankings:
        """The rankings of all cases of several parts, in the order of `cases`, which must be these cases."""
        first = parts[0]
        if len(parts) == 1:
            return first
        merged = cls(first._regions, first._experts, unavailable=first._unavailable, confidence=first._confidence)
        for name, statistics in first._found.items():
            of_parts: list[Any] = [part._found[name] for part in parts]
            merged._found[name] = type(statistics).merged(of_parts, cases)
        return merged
