"""Fitting of an evidence model on a model's validation cases, and whether it is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases, Pair
from nnunetv2_deferral.calibration.evidence_models import Rows, candidates_of, fit_evidence, prior_of, prior_rows
from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.decision.assignment import route_by_thresholds, thresholds_within_limits
from nnunetv2_deferral.decision.gains import evidence_gains, image_gains
from nnunetv2_deferral.decision.model_calibration import FittedEvidence, ModelCalibration
from nnunetv2_deferral.evaluation.answered_cases import AnsweredCase
from nnunetv2_deferral.evaluation.bootstrap import mean_over_cases
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.evidence.prior import Prior
from nnunetv2_deferral.evidence.questions import best_at, cut_at
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.experts import experts_to_json
from nnunetv2_deferral.fusion import fuse_masks

GATE_BUDGETS = (0.005, 0.01, 0.02, 0.05)  # shares of the voxels
TOLERANCE = 0.001  # Dice
EVIDENCE, REPLACED = "evidence", "replaced"
_PARTS = 3


def fit_gated_evidence(
    cases: CalibrationCases,
    rule: ModelCalibration,
    rule_without: Callable[[Collection[str]], ModelCalibration],
    *,
    exchangeable: bool = False,
) -> tuple[FittedEvidence | None, dict[str, Any]]:
    """Fit an evidence model, and keep it if it does not do worse than replacement on patients held back.

    Groups of cases are held back in `_PARTS` parts. Everything, including the thresholds with which a budget is kept,
    is fitted on the others; at each budget of `GATE_BUDGETS` the system's mean Dice must not be more than `TOLERANCE`
    below that of the rule whose answers replace the model's labels.

    Args:
        cases: The cases to fit on.
        rule: The calibration of the heads, without evidence.
        rule_without: Given groups that are held back, the same fitted on the others.
        exchangeable: See :func:`.fit_tables`.

    Returns:
        The model fitted on all cases or None, and a report: `kept`, `reason` and, for each budget, the Dice of
        `evidence` and `replaced` and the rates of both.
    """
    groups = sorted({cases.group(case) for _, case in cases.cases})
    structures = structures_of(cases.files)
    if len(groups) < 2 * _PARTS:
        reason = f"it requires at least {2 * _PARTS} cases (patients), got {len(groups)}"
        return None, {"kept": False, "reason": reason, "budgets": []}
    finest = dict(zip(cases.cases, cases.map(partial(_finest, cases), "Evidence: sizes of voxels"), strict=True))
    dice: dict[tuple[str, float], list[float]] = {}
    asked: dict[tuple[str, float], int] = {}
    voxels = 0
    for part in range(_PARTS):
        held_back = set(groups[part::_PARTS])
        others = [pair for pair in cases.cases if cases.group(pair[1]) not in held_back]
        own = [pair for pair in cases.cases if cases.group(pair[1]) in held_back]
        of_others = rule_without(held_back)
        model, seen = _fit_on(cases, others, structures, of_others, finest, exchangeable=exchangeable, in_rounds=False)
        unseen = _answered_cases(cases, own, structures, model.prior, of_others)
        voxels += sum(case.num_voxels for case, _ in unseen)
        available = np.array(cases.settings.available)
        values = [[_values(model, case, available) for case, _ in each] for each in (seen, unseen)]
        for budget in GATE_BUDGETS:
            cut = cut_at(values[0], int(budget * sum(case.num_voxels for case, _ in seen)))
            for name, found in (
                (EVIDENCE, _ask_as_evidence(model, unseen, values[1], cut)),
                (REPLACED, _ask_by_rule(seen, unseen, budget)),
            ):
                for (case, _), (questions, labels) in zip(unseen, found, strict=True):
                    dice.setdefault((name, budget), []).append(mean_over_cases(case.dice(labels)))
                    asked[name, budget] = asked.get((name, budget), 0) + questions
    rows = [
        {
            "budget": budget,
            **{name: mean_over_cases(np.array(dice[name, budget])) for name in (EVIDENCE, REPLACED)},
            **{f"rate_{name}": asked[name, budget] / max(voxels, 1) for name in (EVIDENCE, REPLACED)},
        }
        for budget in GATE_BUDGETS
    ]
    worse = [f"{row['budget']:.1%}" for row in rows if row[EVIDENCE] < row[REPLACED] - TOLERANCE]
    report = {"kept": not worse, "reason": "", "budgets": rows}
    if worse:
        report["reason"] = f"at {', '.join(worse)} it was worse on held-out patients"
        return None, report
    model, _ = _fit_on(cases, cases.cases, structures, rule, finest, exchangeable=exchangeable, in_rounds=True)
    return FittedEvidence(model=model, answered_by=tuple(experts_to_json(cases.experts.identities))), report


def structures_of(files: DatasetFiles) -> Structures:
    """The structures of a dataset."""
    manager = files.label_manager
    if not manager.has_regions:
        return Structures(files.label_values)
    regions = tuple(tuple(each) if isinstance(each, list | tuple) else (each,) for each in files.regions)
    return Structures(files.label_values, regions, tuple(manager.regions_class_order))


def predicted_gains(cases: CalibrationCases, prediction: PredictedCase, calibration: ModelCalibration) -> np.ndarray:
    """The expected gains of asking in a case, float32 (J, *S), as in a prediction with this calibration."""
    unknown, weight, rule = ~prediction.predicted, cases.voxel_weight(prediction), cases.settings.rule
    evidence = calibration.evidence
    if evidence is None:
        known = calibration.apply(np.where(unknown, 0, prediction.routing), prediction.softmax)
        return image_gains(known, unknown, weight, rule)
    return evidence_gains(
        evidence.model,
        evidence.model.prior_of(prediction.softmax, prediction.spacing),
        unknown,
        weight,
        rule,
        prediction.spacing,
    )


_Answered = tuple[AnsweredCase, np.ndarray]  # with the rule's gains (J, n)
_Found = list[tuple[int, np.ndarray]]  # for each case the number of questions and the system's labels (n,)


def _fit_on(
    cases: CalibrationCases,
    pairs: Sequence[Pair],
    structures: Structures,
    rule: ModelCalibration,
    finest: Mapping[Pair, float],
    *,
    exchangeable: bool,
    in_rounds: bool,
) -> tuple[EvidenceModel, list[_Answered]]:
    """Fit a model on some of the cases, given the smallest edge of a voxel of each; also returns these cases."""
    size = float(np.median([finest[pair] for pair in pairs]))
    rows = cases.map(partial(_read_prior_rows, cases, len(pairs), structures, size), "Evidence: prior", pairs)
    prior = prior_of([*rows], size)
    seen = _answered_cases(cases, pairs, structures, prior, rule)
    names = cases.experts.names
    answered = [case for case, _ in seen]
    model = fit_evidence(answered, prior, structures, names, exchangeable=exchangeable, in_rounds=in_rounds)
    return model, seen


def _finest(cases: CalibrationCases, pair: Pair) -> float:
    return min(cases.prediction(*pair).spacing)


def _read_prior_rows(
    cases: CalibrationCases, number: int, structures: Structures, voxel_size: float, pair: Pair
) -> list[Rows]:
    return prior_rows(cases.read(*pair), number, structures, voxel_size)


def _answered_cases(
    cases: CalibrationCases,
    pairs: Sequence[Pair],
    structures: Structures,
    prior: Prior,
    rule: ModelCalibration,
) -> list[_Answered]:
    return [*cases.map(partial(_answered, cases, structures, prior, rule), "Evidence: answers", pairs)]


def _answered(
    cases: CalibrationCases, structures: Structures, prior: Prior, rule: ModelCalibration, pair: Pair
) -> _Answered:
    case = cases.read(*pair)
    gains = predicted_gains(cases, case.prediction, rule)
    candidates = candidates_of(case, structures, prior, including=(gains > 0).any(0) & case.valid)
    return AnsweredCase.of(case, candidates, cases.files.regions), candidates.take(gains)


def _values(model: EvidenceModel, case: AnsweredCase, available: np.ndarray) -> np.ndarray:
    """The value of asking each expert in the first round, (J, n)."""
    nobody = np.zeros(case.answers.shape, dtype=bool)
    return model.values(case.candidates, case.answers, nobody, available=available)


def _ask_as_evidence(
    model: EvidenceModel, cases: Sequence[_Answered], values: Sequence[np.ndarray], cut: float
) -> _Found:
    """Ask what is worth at least the cut."""
    asked = [best_at(each, cut) for each in values]
    return [(int(each.sum()), case.fused(model, each)) for (case, _), each in zip(cases, asked, strict=True)]


def _ask_by_rule(seen: Sequence[_Answered], unseen: Sequence[_Answered], budget: float) -> _Found:
    """Ask by the rule, with the thresholds that keep the budget on the seen cases; answers replace labels."""
    gains = np.concatenate([gains for _, gains in seen], axis=1)
    thresholds = thresholds_within_limits(
        gains, num_voxels=sum(case.num_voxels for case, _ in seen), budget=budget, capacities=None
    )
    found = []
    for case, own in unseen:
        route = route_by_thresholds(own, thresholds)
        found.append((int(np.count_nonzero(route)), fuse_masks(case.model, case.answers, route)))
    return found
