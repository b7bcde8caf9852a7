from dataclasses import replace

import numpy as np
import pytest

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.summary import cautions, summarize_deferral
from nnunetv2_deferral.labels import MISSING


def make_case(name="a"):
    model, route = np.array([1, 0, 0, 0, 1, 0]), np.array([0, 1, 2, 0, 1, 0], dtype=np.uint8)
    return EvaluatedCase(
        prediction=PredictedCase(name, model=model, route=route),
        reference=np.array([1, 1, 1, 0, 0, 0]),
        answers=np.array([[0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
    )


def test_system_expert_and_model_are_scored_where_each_answers():
    summary = summarize_deferral([make_case()], [1], ["ann", "bob"])
    assert summary["system"]["foreground_mean"]["Dice"] == 1
    assert summary["expert"]["mean"]["1"]["TP"] == 2
    assert summary["expert"]["mean"]["1"]["TN"] == 1
    assert summary["model"]["mean"]["1"]["TP"] == 1
    assert summary["model"]["foreground_mean"]["Dice"] == 1
    assert summary["model_everywhere"]["foreground_mean"]["Dice"] == pytest.approx(2 / 5)
    assert summary["expert_everywhere"]["bob"]["foreground_mean"]["Sensitivity"] == 1
    assert summary["deferral"]["rate"] == pytest.approx(3 / 6)
    assert summary["deferral"]["share"] == pytest.approx({"ann": 2 / 6, "bob": 1 / 6})


def test_ignored_voxels_count_in_no_score_and_in_no_rate():
    case = make_case()
    ignored = replace(case, reference=np.where(np.arange(6) == 4, 9, case.reference), ignore_label=9)
    summary = summarize_deferral([ignored], [1], ["ann", "bob"])
    assert summary["model_everywhere"]["mean"]["1"]["FP"] == 0
    assert summary["deferral"]["rate"] == pytest.approx(2 / 5)


def test_the_rate_is_over_all_voxels_of_all_cases():
    ones = np.ones(2, int)
    predicted = PredictedCase("b", model=ones, route=np.zeros(2, np.uint8))
    small = EvaluatedCase(prediction=predicted, reference=ones, answers=np.stack([ones, ones]))
    summary = summarize_deferral([make_case(), small], [1], ["ann", "bob"])
    assert summary["deferral"]["rate"] == pytest.approx(3 / 8)
    assert summary["deferral"]["per_case"]["b"]["deferral_rate"] == 0


def test_in_a_single_round_the_questions_are_the_deferred_voxels_whatever_their_number():
    for size in range(3, 60):
        for to_bob in range(1, size - 1):
            route = np.zeros(size, np.uint8)
            route[:1], route[1 : 1 + to_bob] = 1, 2
            predicted = PredictedCase("a", model=np.ones(size, int), route=route)
            case = EvaluatedCase(prediction=predicted, reference=np.ones(size, int), answers=np.ones((2, size), int))
            found = summarize_deferral([case], [1], ["ann", "bob"])["deferral"]
            assert found["questions"] == found["rate"] == (1 + to_bob) / size


@pytest.mark.parametrize(
    ("model", "route", "said"),
    [
        ([1, 1, 0, 0], [0, 0, 1, 0], []),
        ([1, 1, 0, 0], [0, 0, 0, 0], ["Nothing was deferred"]),
        ([1, 1, 0, 0], [1, 1, 2, 1], ["All voxels were deferred: the model answers nothing itself"]),
        ([0, 0, 1, 0], [0, 0, 1, 0], ["The model segments hardly anything correctly (Dice 0.000)"]),
        ([0, 0, 0, 0], [0, 0, 0, 0], ["The model segments hardly anything correctly", "Nothing was deferred"]),
    ],
)
def test_results_that_say_little_about_deferral_are_cautioned_about(model, route, said):
    reference = np.array([1, 1, 0, 0])
    predicted = PredictedCase("a", model=np.array(model), route=np.array(route, np.uint8))
    case = EvaluatedCase(prediction=predicted, reference=reference, answers=np.stack([reference, reference]))
    found = cautions(summarize_deferral([case], [1], ["ann", "bob"]))
    assert len(found) == len(said)
    assert all(text.startswith(words) for text, words in zip(found, said, strict=True))


def test_the_system_is_compared_with_an_expert_where_the_expert_has_labels():
    """An expert who labelled the harder case alone, and half of it, and of whom the system has all labels."""
    easy, hard = np.array([[0, 1, 1, 1, 0, 0, 0, 0]]), np.array([[0, 1, 1, 0, 1, 1, 0, 0]])
    reference = np.array([[0, 1, 1, 1, 0, 0, 0, 0]])
    labels = {"easy": np.full((1, 8), MISSING), "hard": np.array([[0, 1, 0, 1, *[MISSING] * 4]])}
    cases = [
        EvaluatedCase(
            prediction=PredictedCase(
                name,
                model=model,
                **dict.fromkeys(("gain", "probability"), np.zeros((1, 8), np.float32)),
                expert=np.ones((1, 8), np.uint8),
                route=(labels[name] != MISSING).astype(np.uint8),
            ),
            reference=reference,
            answers=np.stack([labels[name], reference]),
        )
        for name, model in (("easy", easy), ("hard", hard))
    ]
    evaluation = Evaluation([1], ["ann", "bob"])
    for case in cases:
        evaluation.update(case)
    parts = [Evaluation([1], ["ann", "bob"]) for _ in cases]
    for part, case in zip(parts, cases, strict=True):
        part.update(case)
    for found in (evaluation, Evaluation.merged(parts, ["easy", "hard"])):
        dice = found.summary(num_resamples=10)["intervals"]["Dice"]
        assert dice["ann"]["estimate"] == pytest.approx(4 / 5)
        assert dice["system - ann"]["estimate"] == 0
        assert dice["system - bob"]["estimate"] == pytest.approx(dice["system"]["estimate"] - 1)
