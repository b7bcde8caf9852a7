"""The features and the forest, against slow references and scikit-learn."""

import copy
import json
from functools import cache

import numpy as np
import pytest

from nnunetv2_deferral.calibration.forecast_fitting import fit_forest, held_back
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.failure import agreement
from nnunetv2_deferral.forecast.features import case_features
from nnunetv2_deferral.forecast.forest import DiceForecast, features_of_classes


def slow_features(scores, mask):
    near = np.zeros(mask.shape, dtype=bool)
    for index in np.ndindex(mask.shape):
        around = mask[tuple(slice(max(at - 4, 0), at + 5) for at in index)]
        near[index] = around.any() and not around.all()
    means = [scores[part].mean() if part.any() else 0 for part in (near, mask & ~near, ~mask & ~near)]
    return [*means, mask.mean()]


@pytest.mark.parametrize("shape", [(1, 30, 25), (16, 14, 13)])
def test_features_are_means_near_inside_and_outside_of_the_border(shape):
    random = np.random.default_rng(0)
    scores, mask = random.random(shape), np.zeros(shape, dtype=bool)
    mask[:, :11, :12] = True
    mask[:, 12:13, 2:3] = True
    found = case_features(scores, mask)
    assert found[:4] == pytest.approx(slow_features(scores, mask))
    assert found[4] == 2


def test_an_empty_mask_has_a_background_only():
    scores = np.full((1, 6, 6), 0.3)
    assert case_features(scores, np.zeros((1, 6, 6), dtype=bool)) == pytest.approx([0, 0, 0.3, 0, 0])


@cache
def fitted():
    """A forest on few cases, not to be changed."""
    return fit_forest(*cases(12))


def cases(number=40, seed=0):
    random = np.random.default_rng(seed)
    features = random.random((number, 5)) * [1, 1, 1, 0.1, 5]
    return features, np.clip(1 - features[:, 0] + random.normal(0, 0.05, number), 0, 1)


def test_the_stored_forest_predicts_what_scikit_learn_predicts():
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.preprocessing import StandardScaler

    features, dice = cases()
    scaler = StandardScaler().fit(features)
    reference = RandomForestRegressor(random_state=0).fit(scaler.transform(features).astype(np.float32), dice)
    stored = DiceForecast.from_dict(
        json.loads(json.dumps(DiceForecast({"core": fit_forest(features, dice)}).to_dict())), "x"
    )
    others, _ = cases(seed=1)
    expected = reference.predict(scaler.transform(others).astype(np.float32))
    assert [stored.classes["core"].predict(each) for each in others] == pytest.approx(expected)


def test_the_forest_is_the_same_each_time_and_predicts_cases_that_it_has_not_seen():
    features, dice = cases()
    assert fit_forest(*cases(12)).to_dict() == fitted().to_dict()
    found = held_back(features, dice, [f"patient_{place // 2}" for place in range(len(dice))])
    assert found["cases"] == 40
    assert found["spearman"] > 0.8
    assert found["mean_absolute_error"] < 0.15


def test_fewer_than_ten_cases_are_refused():
    features, dice = cases(9)
    with pytest.raises(InputError, match="at least 10 cases, got 9"):
        fit_forest(features, dice)


def test_agreement_in_closed_form():
    found = agreement(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.3, 0.4]))
    assert found == pytest.approx({"mean_absolute_error": 0.1, "pearson": 1, "spearman": 1})
    assert np.isnan(agreement(np.array([0.1, 0.1]), np.array([0.2, 0.3]))["pearson"])


def test_the_dice_of_each_class_is_predicted():
    forecast = DiceForecast(dict.fromkeys(("rim", "core"), fitted()))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (2, 9, 8)).transpose(3, 0, 1, 2).astype(np.float32)
    found = forecast.predict(probabilities, has_regions=False)
    each = features_of_classes(probabilities, has_regions=False)
    assert found == {name: forecast.classes[name].predict(of) for name, of in zip(("rim", "core"), each, strict=True)}
    with pytest.raises(InputError, match="for 2 classes, but there are 3"):
        forecast.predict(probabilities, has_regions=True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tree: tree["left"].__setitem__(0, 0), "children of a node must be later nodes"),
        (lambda tree: tree["right"].__setitem__(0, 10**6), "children of a node must be later nodes"),
        (lambda tree: tree["right"].__setitem__(0, -1), "children of a node must be later nodes"),
        (lambda tree: tree["feature"].__setitem__(0, 5), "feature must be below 5"),
        (lambda tree: tree["value"].pop(), "must be equally long"),
        (lambda tree: tree["value"].__setitem__(0, 2.0), "must be less than or equal to 1"),
        (lambda tree: tree["threshold"].__setitem__(0, float("nan")), "must be a finite number"),
        (lambda tree: tree["feature"].__setitem__(0, "x"), "must be an integer"),
        (lambda tree: tree.pop("value"), "value is missing"),
    ],
)
def test_a_forest_that_was_tampered_with_is_refused(change, fault):
    content = copy.deepcopy(DiceForecast({"core": fitted()}).to_dict())
    change(content["classes"]["core"]["trees"][3])
    with pytest.raises(InputError, match=fault):
        DiceForecast.from_dict(content, "plans.json")
