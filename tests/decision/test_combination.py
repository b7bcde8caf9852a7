"""Heads combined with the model's confidence: the formula, the decision that follows, and what is kept of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from nnunetv2_deferral import routing_rule
from nnunetv2_deferral.decision.calibrators import IDENTITY, Temperature
from nnunetv2_deferral.decision.combination import Combination, choice_text
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.errors import InputError

EXPERTS = ("ann", "bob")
COMBINATION = Combination(weights=((0.5, 0.25, 1.0), (0.0, 1.0, 0.0), (-1.0, 2.0, 0.5)), has_regions=False)
FITTED = ModelCalibration(experts=EXPERTS, heads=(Temperature(2.0), IDENTITY, IDENTITY), combination=COMBINATION)
CHOICE = {
    "chosen": "combined",
    "budgets": [
        {"budget": 0.005, "heads": 0.1, "combined": 0.2, "confidence": 0.3},
        {"budget": 0.01, "heads": 0.516, "combined": 0.634, "confidence": None},
    ],
}


def made_up(classes=3, shape=(5, 6)):
    generator = np.random.default_rng(0)
    softmax = generator.dirichlet(np.ones(classes), shape).astype(np.float32)
    return generator.random((3, *shape), dtype=np.float32), np.moveaxis(softmax, -1, 0)


def slowly(weights, heads, confidence):
    constant, own, other = weights
    return [
        expit(constant + own * logit(a) + other * np.clip(logit(c), -8, 8))
        for a, c in zip(heads, confidence, strict=True)
    ]


def test_each_head_is_combined_with_the_largest_probability():
    heads, softmax = made_up()
    found = COMBINATION(heads, softmax)
    assert found.dtype == np.float32
    for weights, before, after in zip(COMBINATION.weights, heads, found, strict=True):
        expected = slowly(weights, before.ravel().astype(float), softmax.max(0).ravel().astype(float))
        np.testing.assert_allclose(after.ravel(), expected, atol=1e-5)


def test_of_regions_the_least_certain_counts():
    heads, softmax = made_up(classes=2)
    found = replace(COMBINATION, has_regions=True)(heads, softmax)
    confidence = np.maximum(softmax, 1 - softmax).min(0)
    expected = slowly(COMBINATION.weights[0], heads[0].ravel().astype(float), confidence.ravel().astype(float))
    np.testing.assert_allclose(found[0].ravel(), expected, atol=1e-5)


def test_nothing_stays_nothing_and_certainty_is_finite():
    heads, softmax = made_up()
    heads[:, 0] = np.nan
    softmax[:, 1] = np.eye(3, dtype=np.float32)[:, [0] * 6]
    found = COMBINATION(heads, softmax)
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1:]).all()


def test_a_decision_is_that_of_probabilities_combined_before():
    heads, softmax = made_up(shape=(20, 30))
    rule = routing_rule("one_vs_all", costs=(0.0, 0.0))
    found = decide(heads, rule=rule, calibration=FITTED, softmax=softmax)
    before = decide(COMBINATION(heads, softmax), rule=rule, calibration=replace(FITTED, combination=None))
    assert 0 < np.count_nonzero(found.maps.route) < found.maps.route.size
    for ours, theirs in zip(found.maps, before.maps, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found.statistics == before.statistics
    with pytest.raises(InputError, match="combines the heads with the model's confidence"):
        decide(heads, rule=rule, calibration=FITTED)


def test_it_is_kept_in_the_calibration_and_changes_its_fingerprint():
    content = json.loads(json.dumps(FITTED.to_dict()))
    assert ModelCalibration.from_dict(content, EXPERTS) == FITTED
    without = replace(FITTED, combination=None)
    assert without.fingerprint != FITTED.fingerprint
    assert "combination" not in without.to_dict()  # as in earlier versions, which had the same fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": [[0, 1, 0]] * 2, "has_regions": False}, "weights must be of 3 heads, got 2"),
        ({"weights": [[0, 1]] * 3, "has_regions": False}, r"combination: weights\[0\].2 is missing"),
        ({"weights": [[0, 1, float("nan")]] * 3, "has_regions": False}, "must be a finite number"),
        ({"weights": [[0, 1, 0]] * 3}, "has_regions is missing"),
    ],
)
def test_what_is_no_combination_is_refused(content, words):
    with pytest.raises(InputError, match=words):
        ModelCalibration.from_dict(FITTED.to_dict() | {"combination": content}, EXPERTS)


def test_heads_and_probabilities_must_belong_together():
    heads, softmax = made_up()
    with pytest.raises(InputError, match="3 heads to combine"):
        COMBINATION(heads[:2], softmax)
    with pytest.raises(InputError, match="shapes differ"):
        COMBINATION(heads, softmax[:, :4])


def test_it_is_said_what_was_found_and_done():
    assert choice_text(CHOICE) == (
        "on held-out patients, ranking by the heads recovers 0.52 of the oracle's gain at 1%, ranking by the model's "
        "confidence -, and by both combined 0.63: both are combined"
    )
    assert replace(FITTED, report={"ranking": CHOICE}).ranking_statement == choice_text(CHOICE)
    assert FITTED.ranking_statement is None
