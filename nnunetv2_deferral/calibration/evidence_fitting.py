"""Fitting of an evidence model on cases with references and experts' labels."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nnunetv2_deferral.calibration.regression import logistic_weights, sample_voxels
from nnunetv2_deferral.calibration.validation_cases import ValidationCases
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.decision.area import structure_weights
from nnunetv2_deferral.decision.assignment import route_by_thresholds, thresholds_within_limits
from nnunetv2_deferral.decision.gains import evidence_gains, image_gains
from nnunetv2_deferral.decision.model_calibration import FittedEvidence, ModelCalibration
from nnunetv2_deferral.evaluation.answered_cases import AnsweredCase
from nnunetv2_deferral.evaluation.bootstrap import mean_over_cases
from nnunetv2_deferral.evidence.answer_tables import AnswerTables, fit_tables, zones
from nnunetv2_deferral.evidence.posterior import CERTAIN, OWN_EVIDENCE, Candidates, EvidenceModel
from nnunetv2_deferral.evidence.prior import SMOOTHING, Prior, smoothed_logits
from nnunetv2_deferral.evidence.questions import ONE_ROUND, Policy, ask, best_at, cut_at
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.experts import experts_to_json
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.labels import MISSING

GATE_BUDGETS = (0.005, 0.01, 0.02, 0.05)  # shares of the voxels
TOLERANCE = 0.001  # Dice
EVIDENCE, REPLACED = "evidence", "replaced"
_PARTS = 3
FITTED_AT = (0.005, 0.02)  # budgets, as shares of the voxels
_PASSES = 2
_LATER = Policy(rounds=4, most=2)
_RIDGE_PRIOR, _RIDGE_NEIGHBOURHOOD = 1e-5, 1e-4  # per voxel
_EASY = 6.0  # logits beyond which a right prediction is easy
_MAX_EASY, _MAX_HARD = 40_000, 2_000_000  # voxels that the prior is fitted on
_Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, whether inside, weight
_UNCHANGED = (0.0, 1.0, *[0.0] * (len(SMOOTHING) - 1))  # the prior is the model's probability


def fit_prior(
    cases: Iterable[EvaluatedCase], number: int, structures: Structures, *, voxel_size: float, seed: int = 0
) -> Prior:
    """Fit the prior by logistic regression on all hard voxels and a weighted sample of the easy ones.

    Args:
        cases: The cases, with saved probabilities; read once.
        number: How many there are.
        structures: The structures.
        voxel_size: The size of a voxel, in the unit of spacings.
        seed: Seed of the samples.
    """
    return _prior_of([_prior_rows(case, number, structures, voxel_size, seed) for case in cases], voxel_size)


def _prior_rows(
    case: EvaluatedCase, number: int, structures: Structures, voxel_size: float, seed: int = 0
) -> list[_Rows]:
    """For each structure what the prior is fitted on in a case, the same at any order of cases."""
    generator = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    inside, truth = structures.probabilities(case.prediction.softmax), structures.contain(case.reference)
    rows = []
    for structure in range(len(structures.members)):
        smoothed = smoothed_logits(inside[structure], case.prediction.spacing, voxel_size)
        features = np.stack([each[case.valid] for each in smoothed], axis=1)
        rows.append(_sample(features, truth[structure][case.valid], number, generator))
    return rows


def _prior_of(rows: Sequence[Sequence[_Rows]], voxel_size: float) -> Prior:
    """The prior, given for each case and structure what it is fitted on."""
    weights = []
    for found in zip(*rows, strict=True):
        features, truth, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
        weights.append(logistic_weights(features, truth, weight, ridge=_RIDGE_PRIOR, otherwise=_UNCHANGED))
    return Prior(tuple(weights), voxel_size)


def fit_answer_tables(cases: Sequence[AnsweredCase], structures: Structures, *, exchangeable: bool) -> AnswerTables:
    """Count the experts' answers at the voxels where a structure's prior is not certain."""
    answers = np.concatenate([case.answers for case in cases], axis=1)
    priors = np.concatenate([case.candidates.prior for case in cases], axis=1)
    truth = structures.contain(np.concatenate([case.truth for case in cases]))
    inside, answered = structures.contain(answers), answers != MISSING
    tables = []
    for structure, prior in enumerate(priors):
        at = np.abs(prior) < CERTAIN
        tables.append(
            fit_tables(
                zones(prior[at]),
                truth[structure, at],
                inside[structure][:, at],
                answered[:, at],
                exchangeable=exchangeable,
            )
        )
    return AnswerTables(np.stack(tables))


def fit_neighbourhood(model: EvidenceModel, cases: Sequence[AnsweredCase], policy: Policy) -> EvidenceModel:
    """Fit how the answers around count, on the voxels that this very policy asks about in all of its rounds."""
    voxels = sum(case.num_voxels for case in cases)
    given = [(case.candidates, case.answers) for case in cases]
    for _ in range(_PASSES):
        features: list[np.ndarray] = []
        truth: list[np.ndarray] = []
        for share in FITTED_AT:
            for asked in ask(model, given, policy, budget=int(share * voxels))[0]:
                for case, questions in zip(cases, asked, strict=True):
                    answered = (questions & (case.answers != MISSING)).any(0)
                    features.append(model.features(case.candidates, case.answers, questions)[:, 1:, answered])
                    truth.append(model.structures.contain(case.truth)[:, answered])
        each, inside = np.concatenate(features, axis=2), np.concatenate(truth, axis=1)
        weights = [
            logistic_weights(rows.T, known, None, ridge=_RIDGE_NEIGHBOURHOOD, otherwise=OWN_EVIDENCE)
            for rows, known in zip(each, inside, strict=True)
        ]
        model = replace(model, neighbourhood=tuple(weights))
    return model


def fit_evidence(
    cases: Sequence[AnsweredCase],
    prior: Prior,
    structures: Structures,
    experts: Sequence[str],
    *,
    exchangeable: bool = False,
) -> EvidenceModel:
    """Fit answer tables and neighbourhoods, for one round and for several, to cases with a fitted prior."""
    model = EvidenceModel(
        structures=structures,
        experts=tuple(experts),
        prior=prior,
        tables=fit_answer_tables(cases, structures, exchangeable=exchangeable),
    )
    if exchangeable:  # every reader takes every place
        cases = [
            replace(case, answers=np.roll(case.answers, -shift, axis=0))
            for case in cases
            for shift in range(len(experts))
        ]
    later = Policy(rounds=_LATER.rounds, most=min(_LATER.most, len(experts)))
    return replace(
        fit_neighbourhood(model, cases, ONE_ROUND), later=fit_neighbourhood(model, cases, later).neighbourhood
    )


def fit_gated_evidence(
    cases: ValidationCases, rule: ModelCalibration, *, exchangeable: bool = False
) -> tuple[FittedEvidence | None, dict[str, Any]]:
    """Fit an evidence model, and keep it if it does not do worse than replacement on patients held back.

    Groups of cases are held back in `_PARTS` parts. Everything, including the thresholds with which a budget is kept,
    is fitted on the others; at each budget of `GATE_BUDGETS` the system's mean Dice must not be more than `TOLERANCE`
    below that of the rule whose answers replace the model's labels.

    Args:
        cases: The cases to fit on.
        rule: The calibration of the heads, without evidence.
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
        model, seen = _fit_on(cases, others, structures, rule, finest, exchangeable=exchangeable)
        unseen = _answered_cases(cases, own, structures, model.prior, rule)
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
        report["reason"] = f"at {', '.join(worse)} it was worse on patients held back"
        return None, report
    model, _ = _fit_on(cases, cases.cases, structures, rule, finest, exchangeable=exchangeable)
    return FittedEvidence(model=model, answered_by=tuple(experts_to_json(cases.experts.experts))), report


def structures_of(files: DatasetFiles) -> Structures:
    """The structures of a dataset."""
    manager = files.label_manager
    if not manager.has_regions:
        return Structures(files.label_values)
    regions = tuple(tuple(each) if isinstance(each, list | tuple) else (each,) for each in files.regions)
    return Structures(files.label_values, regions, tuple(manager.regions_class_order))


def predicted_gains(cases: ValidationCases, prediction: PredictedCase, calibration: ModelCalibration) -> np.ndarray:
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
    cases: ValidationCases,
    pairs: Sequence[tuple[int, str]],
    structures: Structures,
    rule: ModelCalibration,
    finest: Mapping[tuple[int, str], float],
    *,
    exchangeable: bool,
) -> tuple[EvidenceModel, list[_Answered]]:
    """Fit a model on some of the cases, given the smallest edge of a voxel of each; also returns these cases."""
    size = float(np.median([finest[pair] for pair in pairs]))
    rows = cases.map(partial(_read_prior_rows, cases, len(pairs), structures, size), "Evidence: prior", pairs)
    prior = _prior_of([*rows], size)
    seen = _answered_cases(cases, pairs, structures, prior, rule)
    names = cases.experts.names
    model = fit_evidence([case for case, _ in seen], prior, structures, names, exchangeable=exchangeable)
    return model, seen


def _finest(cases: ValidationCases, pair: tuple[int, str]) -> float:
    return min(cases.prediction(*pair).spacing)


def _read_prior_rows(
    cases: ValidationCases, number: int, structures: Structures, voxel_size: float, pair: tuple[int, str]
) -> list[_Rows]:
    return _prior_rows(cases.read(*pair), number, structures, voxel_size)


def _answered_cases(
    cases: ValidationCases,
    pairs: Sequence[tuple[int, str]],
    structures: Structures,
    prior: Prior,
    rule: ModelCalibration,
) -> list[_Answered]:
    return [*cases.map(partial(_answered, cases, structures, prior, rule), "Evidence: answers", pairs)]


def _answered(
    cases: ValidationCases, structures: Structures, prior: Prior, rule: ModelCalibration, pair: tuple[int, str]
) -> _Answered:
    case = cases.read(*pair)
    gains = predicted_gains(cases, case.prediction, rule)
    candidates = candidates_of(case, structures, prior, including=(gains > 0).any(0) & case.valid)
    return AnsweredCase.of(case, candidates, cases.files.regions), candidates.take(gains)


def candidates_of(
    case: EvaluatedCase, structures: Structures, prior: Prior, including: np.ndarray | None = None
) -> Candidates:
    """The valid voxels of a case with saved probabilities that experts may be asked about."""
    inside = structures.probabilities(case.prediction.softmax)
    found = prior.map_of(inside, case.prediction.spacing)
    weights = structure_weights(found, structures)
    found.logits[:, ~case.valid] = -np.inf  # ignored voxels are no candidates
    return Candidates.of(found.logits, case.prediction.spacing, structures, weights, including=including)


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


def _sample(
    features: np.ndarray, truth: np.ndarray, number: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hard voxels of a case, and some of the easy ones with the weight of all."""
    easy = (np.abs(features).min(1) > _EASY) & (truth == (features[:, 0] > 0))
    strata = [(~easy, max(_MAX_HARD // number, 1)), (easy, max(_MAX_EASY // number, 1))]
    where, weights = sample_voxels(strata, generator)
    return features[where], truth[where], weights
