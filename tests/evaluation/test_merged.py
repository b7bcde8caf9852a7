"""Evaluations of parts of the cases, merged, are the evaluation of all cases."""

import pickle
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from close_to import assert_close
from square_cases import CASES, DOMAINS

from nnunetv2_deferral.decision.calibrators import Temperature
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.labels import MISSING

BUDGETS = (0.02, 0.1)


def evaluated(places, *, domains=True, predicted=True):
    evaluation = Evaluation((1,), ("ann", "bob"), calibration=[Temperature(2.0)] * 3)
    for place in places:
        dice = {"1": 0.5 + place / 10} if predicted else None
        evaluation.update(CASES[place], DOMAINS[place] if domains else None, predicted_dice=dice)
    return evaluation


def summary(evaluation):
    groups = {case.name: number // 2 for number, case in enumerate(CASES)}
    return evaluation.summary(budgets=BUDGETS, groups=groups, num_resamples=20)


NAMES = [case.name for case in CASES]


@pytest.mark.parametrize(
    ("parts", "domains"),
    [([[0, 2, 4], [1, 3]], False), ([[4], [], [0, 3], [1, 2]], True), ([[0, 1, 2, 3, 4], []], True)],
)
def test_merged_parts_are_all_cases_up_to_rounding(parts, domains):
    # As they come from other processes or files.
    found = [pickle.loads(pickle.dumps(evaluated(part, domains=domains))) for part in parts]
    expected = summary(evaluated(range(5), domains=domains))
    assert expected["reliability"]["gain"]["voxels"] > 0
    one_by_one = summary(reduce(lambda first, second: Evaluation.merged([first, second], NAMES), found))
    assert_close(one_by_one, expected)
    assert [row["case"] for row in one_by_one["system"]["metric_per_case"]] == NAMES


def test_parts_without_any_case_have_nothing_to_evaluate():
    with pytest.raises(InputError, match="there are no cases to evaluate"):
        summary(Evaluation.merged([evaluated([]), evaluated([])], []))


def test_a_part_without_routing_probabilities_is_refused():
    stripped = Evaluation((1,), ("ann", "bob"))
    case = CASES[1]
    stripped.update(
        type(case)(prediction=case.prediction.without("routing"), reference=case.reference, answers=case.answers)
    )
    with pytest.raises(InputError, match="cases case_0 and case_1 do not have the same"):
        Evaluation.merged([evaluated([0], domains=False), stripped], NAMES)


def test_who_cannot_be_asked_answers_neither_rankings_nor_the_oracle():
    def found(*, bob_answers=True, **options):
        evaluation = Evaluation((1,), ("ann", "bob"), **options)
        for case in CASES:
            bob = case.reference if bob_answers else np.full_like(case.reference, MISSING)
            evaluation.update(replace(case, answers=np.stack([case.answers[0], bob])))
        return evaluation

    without = found(unavailable=["bob"])
    budgets = summary(without)["budgets"]
    assert "learned, always ann" in budgets
    assert not any("bob" in name for name in budgets)
    alone = summary(found(bob_answers=False))["budgets"]["oracle"]
    everybody = summary(found())["budgets"]["oracle"]
    for place in range(len(BUDGETS)):
        assert budgets["oracle"][place]["Dice"] == pytest.approx(alone[place]["Dice"])
    assert budgets["oracle"][-2]["Dice"] < everybody[-2]["Dice"]
    assert_close(summary(Evaluation.merged([without], NAMES))["budgets"], budgets)
