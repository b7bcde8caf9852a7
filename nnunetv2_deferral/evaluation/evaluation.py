"""The complete evaluation of a deferral system, accumulated case by case: :class:`Evaluation`.

- :mod:`summary`: scores of model, experts and system
- :mod:`deferred`: numbers of deferred, corrected and worsened voxels
- :mod:`rankings`: rankings of voxels compared at matched budgets
- :mod:`risk_coverage`: rankings of voxels as rankings of errors
- :mod:`failure`: detection of failed cases
- :mod:`reliability`: calibration of the routing probabilities
- :mod:`domains`: all of this where images differ from those of the training
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.calibrators import Calibrator
from nnunetv2_deferral.decision.confidence import ConfidenceRule
from nnunetv2_deferral.defaults import AGGREGATED, BUDGETS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation import failure
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference, bootstrap_interval
from nnunetv2_deferral.evaluation.budgets import BudgetResult, recovered_gain
from nnunetv2_deferral.evaluation.deferred import DeferralCounts, add_counts, count_deferred
from nnunetv2_deferral.evaluation.domains import Domain, summarize_domain
from nnunetv2_deferral.evaluation.location import LocationStatistics
from nnunetv2_deferral.evaluation.overlap import CaseMetrics, Region
from nnunetv2_deferral.evaluation.rankings import (
    CURVE_BUDGETS,
    ENTROPY,
    ENTROPY_TIMES_DOUBT,
    LEARNED,
    MAX_SOFTMAX,
    ORACLE,
    PROBABILITY,
    Rankings,
)
from nnunetv2_deferral.evaluation.reliability import MODEL, ReliabilityStatistics
from nnunetv2_deferral.evaluation.risk_coverage import risk_coverage_of_voxels
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE, sanity_scores
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram
from nnunetv2_deferral.evaluation.summary import REPLACED, SummaryStatistics
from nnunetv2_deferral.maps import PREDICTED_DICE
from nnunetv2_deferral.parts import in_order
from nnunetv2_deferral.uncertainty import entropy, one_minus_max, times_doubt


class Evaluation:
    """Scores of a deferral system, accumulated over cases one at a time."""

    def __init__(
        self,
        regions: Sequence[Region],
        experts: Sequence[str],
        *,
        unavailable: Sequence[str] = (),
        has_regions: bool = False,
        calibration: Sequence[Calibrator] | None = None,
        confidence: ConfidenceRule | None = None,
        surface_tolerance: float | None = None,
    ) -> None:
        """Start without cases.

        Args:
            regions: The foreground labels or regions to score.
            experts: The names of the J experts in routing order.
            unavailable: Those who cannot be asked.
            has_regions: Whether the model's probabilities are those of regions.
            calibration: The J + 1 calibrators that the route was computed with, the model's first, or None.
            confidence: The rule that asks by the model's own confidence, fitted on other cases; or None.
            surface_tolerance: See :func:`.summarize_deferral`.

        Raises:
            InputError: If the names of experts are not distinct, or there are not J + 1 calibrators.
        """
        self.experts = tuple(experts)
        self.regions = tuple(regions)
        self.has_regions = has_regions
        self._unavailable = tuple(unavailable)
        self._confidence = confidence
        self._summary = SummaryStatistics(regions, experts, surface_tolerance=surface_tolerance)
        self._deferred: dict[str, DeferralCounts] = {}
        self._domains: dict[str | None, Domain] = {}
        self._histograms: dict[str, ScoreHistogram] = {}
        self._case_scores: dict[str, dict[str, float]] = {}
        self._predicted_dice: dict[str, float] = {}
        self._location = LocationStatistics()
        self._heads = None if calibration is None else tuple(calibration)
        self._has_routing: bool | None = None

    def update(
        self,
        case: EvaluatedCase,
        domain: str | None = None,
        *,
        group: str | None = None,
        predicted_dice: Mapping[str, float] | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: The case.
            domain: The domain that it belongs to, such as a hospital or a scanner; None if domains are not compared.
            group: Its group, such as its patient, see :meth:`.Rankings.update`; None for the case by itself.
            predicted_dice: The Dice that was predicted for each of its classes, or None.

        Raises:
            InputError: If shapes differ, or the case has optional arrays that earlier cases lack or the other way
                round.
        """
        if predicted_dice:
            self._predicted_dice[case.name] = float(np.mean(list(predicted_dice.values())))
        prediction, valid = case.prediction, case.valid
        # First, because distances take most memory, while few of the case's arrays are read.
        wrong = case.model != case.reference
        self._location.update(
            prediction.probability,
            reference=case.reference,
            wrong=wrong,
            deferred=case.route > 0,
            valid=valid,
            spacing_mm=prediction.spacing,
        )
        self._summary.update(case)
        self._deferred[case.name] = count_deferred(
            case.reference, case.model, case.answers, case.route, self.experts, valid, case.system
        )
        scores = self._scores(prediction)
        ranked = scores | self._doubted(prediction, scores) | sanity_scores(case.model, prediction.spacing)
        for name, values in ranked.items():
            if name not in self._histograms:
                self._histograms[name] = ScoreHistogram()
            self._histograms[name].update(values, wrong, valid)
        self._update_cases(case, scores)
        if domain not in self._domains:
            self._domains[domain] = self._new_domain()
        found = self._domains[domain]
        found.rankings.update(case, ranked, group)
        found.cases[case.name] = int(np.count_nonzero(valid & (case.reference > 0)))
        self._update_reliability(case, found.reliability)

    @classmethod
    def merged(cls, parts: Sequence[Evaluation], cases: Sequence[str]) -> Evaluation:
        """The evaluation of all cases of several parts, equal up to rounding to one that all cases were added to.

        Args:
            parts: Evaluations with the same regions, experts and calibration, each of other cases.
            cases: Their cases, in the order that they shall have.

        Raises:
            InputError: If a part has optional arrays that another lacks.
        """
        parts = [part for part in parts if part._deferred] or parts[:1]
        first = parts[0]
        merged = cls(
            first.regions,
            first.experts,
            unavailable=first._unavailable,
            has_regions=first.has_regions,
            calibration=first._heads,
            confidence=first._confidence,
        )
        for part in parts:
            if (part._histograms.keys(), part._has_routing) != (first._histograms.keys(), first._has_routing):
                raise InputError(
                    f"cases {next(iter(first._deferred))} and {next(iter(part._deferred))} do not have the same "
                    "probabilities (--save_probabilities) or routing probabilities"
                )
        merged._has_routing = first._has_routing
        merged._summary = SummaryStatistics.merged([part._summary for part in parts], cases)
        merged._deferred = in_order([part._deferred for part in parts], cases)
        merged._predicted_dice = in_order([part._predicted_dice for part in parts], cases)
        merged._location = LocationStatistics.merged(part._location for part in parts)
        for name in first._histograms:
            merged._histograms[name] = ScoreHistogram.merged(part._histograms[name] for part in parts)
        for name in first._case_scores:
            merged._case_scores[name] = in_order([part._case_scores[name] for part in parts], cases)
        for domain in dict.fromkeys(name for part in parts for name in part._domains):
            found = [part._domains[domain] for part in parts if domain in part._domains]
            merged._domains[domain] = Domain.merged(found, cases)
        return merged

    def summary(
        self,
        *,
        budgets: Iterable[float] = BUDGETS,
        groups: Mapping[str, Any] | None = None,
        seed: int = 0,
        num_resamples: int = 2000,
    ) -> dict[str, Any]:
        """All scores, as in `deferral_summary.json`.

        Args:
            budgets: The budgets at which rankings are compared, in addition to the model's own rate.
            groups: For each case its group in the bootstrap, such as its patient; None for each case by itself.
            seed: Seed of the bootstrap.
            num_resamples: Number of resamples in the bootstrap.

        Returns:
            The result of :func:`.summary.summarize_deferral`, and `intervals`, `deferred`, `budgets`, `curve`,
            `risk_coverage`, `failure_detection`, `location`, `reliability` (None without routing probabilities) and
            `domains` (None if cases were added without), see docs/reference/evaluation.md.

        Raises:
            InputError: If there are no cases, a case has no group, or a budget is outside [0, 1].
        """
        summary = self._summary.summary()
        cases = list(self._deferred)
        if not cases:
            raise InputError("there are no cases to evaluate")
        group = None if groups is None else [_group_of(case, groups) for case in cases]
        draw = {"groups": group, "num_resamples": num_resamples}
        parts = ("model_everywhere", "system", REPLACED)
        dice = {part: self._dice(summary[part]) for part in parts if part in summary}
        dice |= {name: self._dice(part) for name, part in summary["expert_everywhere"].items()}
        deferred = add_counts(self._deferred.values(), self.experts)
        own_rate = summary["deferral"]["rate"]
        budgets = list(budgets)
        everywhere = Domain.merged(list(self._domains.values()), cases)
        histograms = self._histograms | everywhere.rankings.risk_histograms()
        rows = [0.0, *budgets, own_rate]
        at = everywhere.rankings.at([*rows, *CURVE_BUDGETS])
        first = len(rows)
        at_rows = {name: found[:first] for name, found in at.items()}
        at_rows = {LEARNED: at_rows[LEARNED], **everywhere.rankings.in_rounds(rows), **at_rows}
        return {
            **summary,
            "intervals": _intervals(dice, self._system_beside(dice), seed, draw)
            | {"num_groups": len(set(group or cases)), "level": 0.95, "num_resamples": num_resamples, "seed": seed},
            "deferred": dict(deferred) | {"per_case": {name: found["total"] for name, found in self._deferred.items()}},
            "budgets": self._budget_rows(at_rows, seed, draw),
            "curve": self._curve({name: [found[0], *found[first:]] for name, found in at.items()}),
            "risk_coverage": {
                name: {"AURC": found.aurc().to_dict(), "AUGRC": found.augrc().to_dict()}
                for name, found in ((name, risk_coverage_of_voxels(h)) for name, h in histograms.items())
            },
            "failure_detection": self._failure_detection(
                dict(zip(cases, _row_means(dice["model_everywhere"]), strict=True)), seed, draw
            ),
            "location": self._location.summary(),
            "reliability": everywhere.reliability.summary() if self._has_routing else None,
            "domains": None if None in self._domains else self._compared(dice, groups, budgets, seed, num_resamples),
        }

    def _compared(
        self,
        dice: Mapping[str, np.ndarray],
        groups: Mapping[str, Any] | None,
        budgets: Sequence[float],
        seed: int,
        num_resamples: int,
    ) -> dict[str, Any]:
        """The summaries of the domains by name, given the Dice (N, R) of parts of the summary."""
        places = {case: place for place, case in enumerate(self._deferred)}
        found = {}
        for name, domain in self._domains.items():
            where = [places[case] for case in domain.cases]
            found[str(name)] = summarize_domain(
                domain,
                dice={part: dice[part][where] for part in ("model_everywhere", "system")},
                counts=add_counts([self._deferred[case] for case in domain.cases], self.experts)["total"],
                budgets=budgets,
                has_routing=bool(self._has_routing),
                draw={
                    "groups": None if groups is None else [_group_of(case, groups) for case in domain.cases],
                    "num_resamples": num_resamples,
                },
                seed=seed,
            )
        return found

    def _scores(self, prediction: PredictedCase) -> dict[str, np.ndarray]:
        """The scores by which voxels are ranked, except for gain, random and oracle."""
        scores = {PROBABILITY: prediction.probability}
        if prediction.has(AGGREGATED):
            scores[AGGREGATED] = prediction.aggregated
        if prediction.has("softmax"):
            scores[MAX_SOFTMAX] = one_minus_max(prediction.softmax, has_regions=self.has_regions)
            scores[ENTROPY] = entropy(prediction.softmax, has_regions=self.has_regions)
        earlier = self._histograms.keys() - {ENTROPY_TIMES_DOUBT, NEAR_BORDER, NEAR_CENTRE}
        if self._histograms and scores.keys() != earlier:
            differing = sorted(scores.keys() ^ earlier)
            raise InputError(f"case {prediction.name} and earlier cases do not all have {', '.join(differing)}")
        return scores

    def _doubted(self, prediction: PredictedCase, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Entropy times the calibrated probability that the model is wrong; nothing without either of them."""
        if ENTROPY not in scores or not prediction.has("routing"):
            return {}
        calibrator = None if self._heads is None else self._heads[0]
        return {ENTROPY_TIMES_DOUBT: times_doubt(scores[ENTROPY], prediction.routing[0], calibrator)}

    def _update_cases(self, case: EvaluatedCase, scores: Mapping[str, np.ndarray]) -> None:
        if case.mutual_information is not None:
            scores = {**scores, failure.MUTUAL_INFORMATION: case.mutual_information}
        for name, values in scores.items():
            found = {
                "mean": failure.mean_score(values, case.valid),
                "foreground": failure.mean_foreground_score(values, case.model, case.valid),
                "off_boundary": failure.mean_score_off_boundary(values, case.model, case.valid),
                "highest_box": failure.highest_box_score(values, case.valid),
            }
            for how, value in found.items():
                self._case_scores.setdefault(f"{name}, {how}", {})[case.name] = value
        if case.fold_masks is not None:
            disagreement = failure.fold_disagreement(case.fold_masks, self.regions, case.valid)
            self._case_scores.setdefault(failure.FOLD_DISAGREEMENT, {})[case.name] = disagreement

    def _new_domain(self) -> Domain:
        return Domain(
            Rankings(self.regions, self.experts, unavailable=self._unavailable, confidence=self._confidence),
            ReliabilityStatistics((MODEL, *self.experts), self._heads),
        )

    def _update_reliability(self, case: EvaluatedCase, statistics: ReliabilityStatistics) -> None:
        has_routing = case.prediction.has("routing")
        if self._has_routing not in (None, has_routing):
            raise InputError(f"case {case.name} and earlier cases do not all have routing probabilities")
        self._has_routing = has_routing
        if has_routing:
            statistics.update(case.name, case.prediction.routing, case.right, case.known, case.route)

    def _dice(self, part: Mapping[str, Any]) -> np.ndarray:
        """Dice (N, R) of a part of the summary; NaN for missing cases."""
        return self._dice_of({row["case"]: row["metrics"] for row in part["metric_per_case"]})

    def _dice_of(self, metrics: Mapping[str, CaseMetrics]) -> np.ndarray:
        rows = {case: [scores["Dice"] for scores in found.values()] for case, found in metrics.items()}
        nothing = [float("nan")] * len(self.regions)
        return np.array([rows.get(case, nothing) for case in self._deferred], dtype=np.float64)

    def _system_beside(self, dice: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Dice (N, R) of the system where each of these has labels."""
        return {
            name: self._dice_of(self._summary.beside(name)) if name in self.experts else dice["system"] for name in dice
        }

    def _budget_rows(
        self, results: Mapping[str, Sequence[BudgetResult]], seed: int, draw: Mapping[str, Any]
    ) -> dict[str, Any]:
        """For each ranking one row per budget but the first, which is 0; the last is the model's own rate."""
        rows: dict[str, Any] = {}
        for name, (without, *found) in results.items():
            rows[name] = []
            for place, result in enumerate(found):
                interval = bootstrap_interval(result.dice, generator=np.random.default_rng(seed), **draw)
                learned, oracle = results[LEARNED][place + 1], results[ORACLE][place + 1]
                row = {
                    "budget": result.budget,
                    "own_rate": place == len(found) - 1,
                    "rate": result.rate,
                    "Dice": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "per_region": {key: scores["Dice"] for key, scores in result.summary()["mean"].items()},
                    "recovered": recovered_gain(interval.estimate, without.foreground_mean, oracle.foreground_mean),
                }
                if name != LEARNED:
                    difference = bootstrap_difference(
                        learned.dice, result.dice, generator=np.random.default_rng(seed), **draw
                    )
                    row["learned_minus_this"] = difference.to_dict()
                rows[name].append(row)
        return rows

    def _curve(self, results: Mapping[str, Sequence[BudgetResult]]) -> dict[str, Any]:
        """Dice of every ranking along budgets, without intervals."""
        return {
            "budget": [0.0, *CURVE_BUDGETS],
            "Dice": {name: [each.foreground_mean for each in found] for name, found in results.items()},
        }

    def _failure_detection(self, dice: Mapping[str, float], seed: int, draw: Mapping[str, Any]) -> dict[str, Any]:
        """Each score of cases as a detector of those with a low Dice; the predicted Dice also as a prediction of it."""
        found = {}
        scores = dict(self._case_scores)
        predicted = self._predicted_dice
        if predicted.keys() == dice.keys():
            scores[PREDICTED_DICE] = {case: 1 - value for case, value in predicted.items()}
        for name, of_cases in scores.items():
            detection = failure.failure_detection(of_cases, dice)
            found[name] = {
                "AURC": detection.aurc.to_dict(),
                "AUGRC": detection.augrc.to_dict(),
                "num_cases": detection.num_cases,
                "undefined": list(detection.undefined),
                "per_case": of_cases,
            }
        if PREDICTED_DICE in found:
            values = np.array([[predicted[case], dice[case]] for case in dice])
            found[PREDICTED_DICE] |= failure.agreement_intervals(values, generator=np.random.default_rng(seed), **draw)
        return found


def _intervals(
    dice: Mapping[str, np.ndarray], system: Mapping[str, np.ndarray], seed: int, draw: Mapping[str, Any]
) -> dict[str, Any]:
    """Foreground mean Dice with interval, of the model, the system and each expert, and of differences from these.

    Args:
        dice: Dice (N, R) of each.
        system: Dice (N, R) of the system where each of these has labels.
        seed: Seed of the bootstrap.
        draw: Arguments of the bootstrap.
    """
    found = {
        name: bootstrap_interval(values, generator=np.random.default_rng(seed), **draw).to_dict()
        for name, values in dice.items()
    }
    less = {
        f"system - {name}": bootstrap_difference(
            system[name], values, generator=np.random.default_rng(seed), **draw
        ).to_dict()
        for name, values in dice.items()
        if name != "system"
    }
    return {"Dice": found | less}


def _row_means(values: np.ndarray) -> list[float]:
    """The mean of each row, ignoring NaN; NaN if all values are NaN."""
    return [float(np.mean(row[~np.isnan(row)])) if (~np.isnan(row)).any() else float("nan") for row in values]


def _group_of(case: str, groups: Mapping[str, Any]) -> Any:
    if case not in groups:
        raise InputError(f"case {case} has no group")
    return groups[case]
