"""Domains: each is scored as if it were evaluated by itself, and together they are what they were."""

import numpy as np
import pytest
from close_to import assert_close
from square_cases import CASES, DOMAINS, make_case

from nnunetv2_deferral.evaluation.domains import domains_in_order
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.prior_errors import MASK_ONLY, PRIOR_MAP
from nnunetv2_deferral.evaluation.rankings import BEST_EXPERT, LEARNED, ORACLE
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE

BUDGETS = (0.02, 0.1)


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
    assert_close({key: value for key, value in summary.items() if key != "domains"}, without)


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
    # Both cases of a domain may be in one fold; all four are not.
    assert {PRIOR_MAP, MASK_ONLY} <= set(summary["budgets"])
    assert {PRIOR_MAP, MASK_ONLY} & set(found["budgets"]) == {PRIOR_MAP, MASK_ONLY} & set(alone["budgets"])
    assert not any("always" in ranking for ranking in found["budgets"])
    for ranking, rows in found["budgets"].items():
        for row, expected in zip(rows, alone["budgets"][ranking], strict=False):
            assert row["budget"] == expected["budget"]
            assert row["Dice"] == pytest.approx(expected["Dice"])
            assert row["recovered"] == pytest.approx(expected["recovered"], nan_ok=True)


def test_with_the_models_confidence_the_best_expert_of_each_budget_is_asked():
    found = evaluated([make_case(number, 0.1, confident=0.8) for number in range(2)], ["ID", "ID"])
    always = [found["budgets"][f"max_softmax, always {name}"][: len(BUDGETS)] for name in ("ann", "bob")]
    best = [max(row["Dice"] for row in rows) for rows in zip(*always, strict=True)]
    assert [row["Dice"] for row in found["domains"]["ID"]["budgets"][BEST_EXPERT]] == pytest.approx(best)


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
