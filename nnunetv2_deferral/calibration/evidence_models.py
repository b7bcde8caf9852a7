"""Fitting of an evidence model on cases with references and experts' labels, wherever these come from."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from nnunetv2_deferral.arrays import highest
from nnunetv2_deferral.calibration.regression import logistic_weights, sample_voxels
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.answered_cases import AnsweredCase
from nnunetv2_deferral.evidence.answer_tables import AnswerTables, fit_tables, zones
from nnunetv2_deferral.evidence.posterior import CERTAIN, OWN_EVIDENCE, Candidates, EvidenceModel
from nnunetv2_deferral.evidence.prior import SMOOTHING, Prior, smoothed_logits
from nnunetv2_deferral.evidence.questions import ONE_ROUND, Policy, ask
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.labels import MISSING, unknown_labels
from nnunetv2_deferral.names import check_expert_names

FITTED_AT = (0.005, 0.02)  # budgets, as shares of the voxels
_PASSES = 2
_LATER = Policy(rounds=4, most=2)
_RIDGE_PRIOR, _RIDGE_NEIGHBOURHOOD = 1e-5, 1e-4  # per voxel
_EASY = 6.0  # logits beyond which a right prediction is easy
_MAX_EASY, _MAX_HARD = 40_000, 2_000_000  # voxels that the prior is fitted on
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, whether inside, weight
_UNCHANGED = (0.0, 1.0, *[0.0] * (len(SMOOTHING) - 1))  # the prior is the model's probability


def fit_evidence_model(
    probabilities: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    *,
    experts: Sequence[str],
    spacing_mm: Sequence[Sequence[float]] | None = None,
    exchangeable: bool = False,
) -> EvidenceModel:
    """Fit how answers are read as evidence, from arrays.

    The network must not have been trained on these cases. Whether evidence is better than replacing labels must be
    checked on other cases; `nnUNetv2_deferral_calibrate` does all of this on the validation cases of a model.

    Args:
        probabilities: For each case the model's probabilities of K classes, float32 (K, *S), summing to 1.
        references: For each case the reference, integer of shape S in [0, K).
        answers: For each case the experts' label maps, integer (J, *S), :data:`.labels.MISSING` where there is none.
        experts: The names of the J experts.
        spacing_mm: For each case the size of a voxel along each axis of S; None for 1 along each.
        exchangeable: Whether the experts are anonymous readers, so that a name is a slot and not a person.

    Returns:
        The model.

    Raises:
        InputError: If there are no cases, numbers of cases, classes or experts or shapes differ, names are not valid
            or not distinct, probabilities are not in [0, 1], or a reference or an answer has a label of no class.

    Example:
        Discs whose border the model does not see well, and an expert who is right in nine of ten voxels:

        >>> import numpy as np
        >>> from nnunetv2_deferral import fit_evidence_model
        >>> random = np.random.default_rng(0)
        >>> distance = np.hypot(*(np.indices((40, 40)) - 20))
        >>> truths = [(distance < radius).astype(int) for radius in (8, 9, 10, 11)]
        >>> foreground = 1 / (1 + np.exp(distance - 9.5))
        >>> said = [np.stack([1 - foreground, foreground]).astype(np.float32)] * 4
        >>> answers = [np.where(random.random(each.shape) < 0.9, each, 1 - each)[None] for each in truths]
        >>> model = fit_evidence_model(said, truths, answers, experts=("ann",))
        >>> model.tables.joint[0, 2].round(1)  # of "outside" and "inside" by truth, where the prior is 0.2 to 0.5
        array([[0.9, 0.1],
               [0.1, 0.9]])
    """
    names = check_expert_names([experts] if isinstance(experts, str) else list(experts), "the experts")
    number = len(probabilities)
    for what, found in (("references", references), ("answers", answers), ("spacing_mm", spacing_mm)):
        if found is not None and len(found) != number:
            raise InputError(f"probabilities has {number} cases, but {what} has {len(found)}")
    if not number:
        raise InputError("there are no cases to fit on")
    structures = Structures(tuple(range(len(probabilities[0]))))
    cases = []
    for place, (said, reference, given) in enumerate(zip(probabilities, references, answers, strict=True)):
        shape = (len(structures.labels), *reference.shape)
        if said.shape != shape or given.shape != (len(experts), *reference.shape):
            raise InputError(
                f"case {place}: probabilities must have shape {shape} and answers {(len(experts), *reference.shape)}, "
                f"got {said.shape} and {given.shape}"
            )
        if not (said.min(initial=0) >= 0 and said.max(initial=0) <= 1):  # false for NaN
            raise InputError(f"case {place}: probabilities must be numbers in [0, 1]")
        if reference.min(initial=0) < 0 or reference.max(initial=0) >= len(said):
            raise InputError(f"case {place}: the reference has labels that are not among the {len(said)} classes")
        if unknown := unknown_labels(given, (*structures.labels, MISSING)):
            raise InputError(f"case {place}: answers have labels that are not among the {len(said)} classes: {unknown}")
        spacing = [1.0] * reference.ndim if spacing_mm is None else list(spacing_mm[place])
        prediction = PredictedCase(f"case {place}", model=highest(said), softmax=said, properties={"spacing": spacing})
        cases.append(EvaluatedCase(prediction=prediction, reference=reference, answers=given))
    voxel_size = float(np.median([min(case.prediction.spacing) for case in cases]))
    prior = fit_prior(cases, number, structures, voxel_size=voxel_size)
    seen = [AnsweredCase.of(case, candidates_of(case, structures, prior), structures.labels[1:]) for case in cases]
    return fit_evidence(seen, prior, structures, names, exchangeable=exchangeable)


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
    return prior_of([prior_rows(case, number, structures, voxel_size, seed) for case in cases], voxel_size)


def prior_rows(
    case: EvaluatedCase, number: int, structures: Structures, voxel_size: float, seed: int = 0
) -> list[Rows]:
    """For each structure what the prior is fitted on in a case, the same at any order of cases."""
    generator = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    inside, truth = structures.probabilities(case.prediction.softmax), structures.contain(case.reference)
    rows = []
    for structure in range(len(structures.members)):
        smoothed = smoothed_logits(inside[structure], case.prediction.spacing, voxel_size)
        features = np.stack([each[case.valid] for each in smoothed], axis=1)
        rows.append(_sample(features, truth[structure][case.valid], number, generator))
    return rows


def prior_of(rows: Sequence[Sequence[Rows]], voxel_size: float) -> Prior:
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
    before = {id(case): model.values(case, answers, _nobody(answers), most=policy.most) for case, answers in given}

    def score(case: Candidates, answers: np.ndarray, asked: np.ndarray, most: int) -> np.ndarray:
        return model.values(case, answers, asked, most=most) if asked.any() else before[id(case)]

    for _ in range(_PASSES if policy.rounds > 1 else 1):  # what is asked first does not depend on the answers
        features: list[np.ndarray] = []
        truth: list[np.ndarray] = []
        for share in FITTED_AT:
            for asked in ask(model, given, policy, budget=int(share * voxels), score=score)[0]:
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
    in_rounds: bool = True,
) -> EvidenceModel:
    """Fit answer tables and neighbourhoods, for one round and for several, to cases with a fitted prior.

    Without `in_rounds` for one only, in a small part of the time.
    """
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
    fitted = fit_neighbourhood(model, cases, ONE_ROUND)
    if not in_rounds:
        return fitted
    later = Policy(rounds=_LATER.rounds, most=min(_LATER.most, len(experts)))
    return replace(fitted, later=fit_neighbourhood(model, cases, later).neighbourhood)


def _nobody(answers: np.ndarray) -> np.ndarray:
    return np.zeros(answers.shape, dtype=bool)


def candidates_of(
    case: EvaluatedCase, structures: Structures, prior: Prior, including: np.ndarray | None = None
) -> Candidates:
    """The valid voxels of a case with saved probabilities that experts may be asked about."""
    inside = structures.probabilities(case.prediction.softmax)
    found = prior.map_of(inside, case.prediction.spacing)
    return Candidates.of(found, case.prediction.spacing, structures, where=case.valid, including=including)


def _sample(
    features: np.ndarray, truth: np.ndarray, number: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hard voxels of a case, and some of the easy ones with the weight of all."""
    easy = (np.abs(features).min(1) > _EASY) & (truth == (features[:, 0] > 0))
    strata = [(~easy, max(_MAX_HARD // number, 1)), (easy, max(_MAX_EASY // number, 1))]
    where, weights = sample_voxels(strata, generator)
    return features[where], truth[where], weights
