"""Answers read as evidence at matched budgets, also if they are asked for in rounds."""

from functools import cache

import numpy as np
import pytest

from nnunetv2_deferral.calibration.evidence_models import fit_evidence_model
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.evaluation.answered_cases import EvidenceBudgets, Questioned, RoundsBudgets
from nnunetv2_deferral.evaluation.rankings import IN_ROUNDS, LEARNED, Rankings
from nnunetv2_deferral.evaluation.sanity import sanity_scores
from nnunetv2_deferral.evidence.posterior import Candidates, EarlierAnswers
from nnunetv2_deferral.evidence.questions import Policy
from nnunetv2_deferral.labels import MISSING

BOTH, BUDGETS, SHAPE = np.array([True, True]), (0, 0.02, 0.1, 0.5), (1, 24, 24)


def draw(number):
    """Reference, probabilities and answers: a disc whose border the model does not know, and experts who err alone."""
    generator = np.random.default_rng(number)
    distance = np.hypot(*(np.indices(SHAPE)[1:] - 12))
    radius = generator.uniform(5, 9)
    inside = 1 / (1 + np.exp(0.8 * (distance - generator.normal(radius, 1.5))))
    # No two voxels are worth the same.
    inside = np.clip(inside + generator.normal(0, 0.01, SHAPE), 1e-4, 1 - 1e-4).astype(np.float32)
    reference = (distance < radius).astype(int)
    wrong = generator.random((2, *SHAPE)) > np.reshape([0.9, 0.8], (2, 1, 1, 1))
    return reference, np.stack([1 - inside, inside]), np.where(wrong, 1 - reference, reference)


@cache
def fitted():
    references, probabilities, answers = zip(*(draw(number) for number in range(10, 18)), strict=True)
    return fit_evidence_model(probabilities, references, answers, experts=("ann", "bob"))


def make_case(number, answered=None):
    model, (reference, softmax, answers) = fitted(), draw(number)
    prior = model.prior_of(softmax, (1.0, 1.0, 1.0))
    candidates = Candidates.of(prior, (1.0, 1.0, 1.0), model.structures)
    nobody = np.full((2, candidates.index.size), MISSING, dtype=np.int16)
    values = candidates.put(model.values(candidates, nobody, nobody != MISSING), 0)
    prediction = PredictedCase(
        f"case_{number}",
        model=softmax.argmax(0),
        route=np.zeros(SHAPE, dtype=np.uint8),
        probability=np.zeros(SHAPE, dtype=np.float32),
        gain=np.maximum(values.max(0), 0),
        expert=(1 + values.argmax(0)).astype(np.uint8),
        prior=prior,
        answered=answered,
        num_experts=2,
    )
    return EvaluatedCase(prediction=prediction, reference=reference, answers=answers, evidence=model)


def in_rounds(cases, policy=Policy(rounds=2, most=2), available=BOTH):  # noqa: B008 (not changed)
    statistics = RoundsBudgets(fitted(), policy, available)
    for case in cases:
        statistics.update(Questioned.of(case, fitted(), (1,)))
    return statistics


def test_one_round_is_the_ranking_by_the_value_of_information():
    cases = [make_case(number) for number in range(3)]
    ranked = EvidenceBudgets(fitted())
    for case in cases:
        ranked.update(Questioned.of(case, fitted(), (1,)), case.prediction.gain, case.prediction.expert)
    one_round = in_rounds(cases, Policy()).at(BUDGETS)
    for found, expected in zip(one_round, ranked.at(BUDGETS), strict=True):
        assert found.rate == pytest.approx(expected.rate)
        assert np.allclose(found.dice, expected.dice)


def test_rounds_keep_the_budget_and_with_several_experts_gain_more():
    cases = [make_case(number) for number in range(6)]
    one, two = (in_rounds(cases, policy).at(BUDGETS) for policy in (Policy(), Policy(rounds=2, most=2)))
    for found in two:
        assert found.rate <= found.budget
    assert two[0].foreground_mean == one[0].foreground_mean  # the model alone
    assert two[3].foreground_mean > one[3].foreground_mean + 0.05


def test_nobody_is_asked_who_has_no_label_or_cannot_be_asked():
    case = make_case(0)
    once, twice = (
        in_rounds([case], Policy(rounds=2, most=most), np.array([True, False])).at(BUDGETS) for most in (1, 2)
    )
    for found, expected in zip(twice, once, strict=True):
        assert found.rate == expected.rate
        assert np.array_equal(found.dice, expected.dice)
    (of_both,) = in_rounds([case]).at([1])
    case.answers[1] = MISSING
    (of_ann,) = in_rounds([case]).at([1])
    assert of_both.rate > of_ann.rate > 0
    case.answers[:] = MISSING
    assert [found.rate for found in in_rounds([case]).at(BUDGETS)] == [0, 0, 0, 0]


def rankings(cases):
    found = Rankings((1,), ("ann", "bob"))
    for case in cases:
        found.update(case, sanity_scores(case.model, (1.0, 1.0, 1.0)))
    return found


def test_parts_give_what_all_cases_give():
    cases = [make_case(number) for number in range(3)]
    merged = Rankings.merged([rankings(cases[:1]), rankings(cases[1:])], [case.name for case in cases])
    whole = rankings(cases)
    assert IN_ROUNDS not in whole.at(BUDGETS)
    for found, expected in zip(merged.in_rounds(BUDGETS)[IN_ROUNDS], whole.in_rounds(BUDGETS)[IN_ROUNDS], strict=True):
        assert np.array_equal(found.dice, expected.dice)


def test_there_are_no_rounds_after_earlier_questions_or_without_evidence():
    earlier = EarlierAnswers(np.array([300]), np.array([[True], [False]]), np.array([[1], [MISSING]], dtype=np.int16))
    asked_before = rankings([make_case(0, answered=earlier)])
    assert asked_before.in_rounds(BUDGETS) == {}
    assert LEARNED in asked_before.at(BUDGETS)
    case = make_case(0)
    without = rankings([EvaluatedCase(prediction=case.prediction, reference=case.reference, answers=case.answers)])
    assert without.in_rounds(BUDGETS) == {}
