"""Domains: each is scored as if it were evaluated by itself, and together they are what they were."""

import numpy as np
import pytest

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.evaluation.domains import domains_in_order
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.rankings import LEARNED, ORACLE
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE

BUDGETS = (0.02, 0.1)


def make_case(number, errors):
    """A square that the model draws with this share of errors, most of which the score finds."""
    generator = np.random.default_rng(number)
    reference = np.zeros((1, 24, 24), dtype=int)
    reference[:, 6:16, 7:17] = 1
    model = np.where(generator.random(reference.shape) < errors, 1 - reference, reference)
    answers = np.stack([np.where(generator.random(reference.shape) < 0.05, 1 - reference, reference)] * 2)
    score = np.clip(0.5 * (model != reference) + 0.4 * generator.random(reference.shape), 0, 1).astype(np.float32)
    right = np.concatenate((model[None], answers)) == reference
    prediction = PredictedCase(
        f"case_{number}",
        model=model,
        route=(score > 0.45).astype(np.uint8),
        probability=score,
        gain=score,
        expert=np.ones(reference.shape, dtype=np.uint8),
        properties={"spacing": (1.0, 1.0, 1.0)},
        routing=np.where(right, 0.9, 0.6).astype(np.float32),
    )
    return EvaluatedCase(prediction=prediction, reference=reference, answers=answers)


CASES = [make_case(number, errors) for number, errors in enumerate((0.02, 0.2, 0.03, 0.25, 0.04))]
DOMAINS = ["ID", "far", "ID", "far", "near"]


def evaluated(cases, domains=None):
    evaluation = Evaluation((1,), ("ann", "bob"))
    for case, domain in zip(cases, domains or [None] * len(cases), strict=True):
        evaluation.update(case, domain)
    return evaluation.summary(budgets=BUDGETS, num_resamples=100)


@pytest.fixture(scope="module")
def summary():
    return evaluated(CASES, DOMAINS)


def test_all_else_is_as_without_domains(summary):
    without = evaluated(CASES)
    assert without.pop("domains") is None
    np.testing.assert_equal({key: value for key, value in summary.items() if key != "domains"}, without)


@pytest.mark.parametrize("name", ["ID", "far"])
def test_a_domain_is_as_its_cases_by_themselves(summary, name):
    found = summary["domains"][name]
    alone = evaluated([case for case, domain in zip(CASES, DOMAINS, strict=True) if domain == name])
    assert found["cases"] == 2
    assert found["rate"] == alone["deferral"]["rate"]
    for part in ("model_everywhere", "system", "system - model_everywhere"):
        assert found["Dice"][part] == alone["intervals"]["Dice"][part]
    heads = alone["reliability"]["heads"]
    assert found["ECE"] == {each: heads[each]["least_certain"]["before"]["ece"] for each in ("model", "ann", "bob")}
    assert {LEARNED, ORACLE, NEAR_BORDER, NEAR_CENTRE, "random"} <= set(found["budgets"])
    assert not any("always" in ranking for ranking in found["budgets"])
    for ranking, rows in found["budgets"].items():
        for row, expected in zip(rows, alone["budgets"][ranking], strict=False):
            assert row["budget"] == expected["budget"]
            assert row["Dice"] == pytest.approx(expected["Dice"])
            assert row["recovered"] == pytest.approx(expected["recovered"], nan_ok=True)


def test_the_kept_error_is_of_voxels_that_nobody_was_asked_about(summary):
    wrong = sum(int(((case.model != case.reference) & (case.route == 0)).sum()) for case in (CASES[1], CASES[3]))
    assert summary["domains"]["far"]["kept_error"] == wrong / (2 * 100)


def test_a_single_case_has_no_interval(summary):
    assert np.isnan(summary["domains"]["near"]["Dice"]["system"]["low"])


def test_the_trainings_own_domain_comes_first_and_the_one_with_the_smallest_gain_last(summary):
    gains = {name: found["Dice"]["system - model_everywhere"]["estimate"] for name, found in summary["domains"].items()}
    assert gains["far"] > gains["near"]
    assert domains_in_order(summary["domains"]) == ["ID", "far", "near"]
    assert domains_in_order(summary["domains"], own="near") == ["near", "far", "ID"]
