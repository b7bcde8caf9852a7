"""What was fitted on validation cases: kept in the plans, read back, and refused where it does not fit."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from nnunetv2_deferral.decision.calibrators import IDENTITY, Isotonic, Temperature
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import (
    CALIBRATION_KEY,
    FittedThresholds,
    ModelCalibration,
    calibration_of_other_folds,
)
from nnunetv2_deferral.errors import InputError

EXPERTS = ("ann", "bob")
FITTED = ModelCalibration(
    experts=EXPERTS,
    heads=(Temperature(1.7), Isotonic((-1.0, 0.5, 3.0), (0.2, 0.6, 0.95)), IDENTITY),
    thresholds=(
        FittedThresholds(0.01, None, (0.25, 0.25), 0.0099),
        FittedThresholds(None, (0.1, 0.0), (1e-7, math.inf), 0.08),
        FittedThresholds(0.2, (None, 0.05), (0.0, 0.125), 0.2),
        FittedThresholds(0.01, (0.005, None), (0.5, 0.25), 0.01),
        FittedThresholds(0.01, None, (0.375, 0.375), 0.0098, 5.0),
    ),
    report={"folds": [0, 2], "cases": ["x"], "heads": {"model": {"ece": None}}},
)


def as_json(**changes):
    """The entry as the plans hold it, with other values for some keys."""
    return json.loads(json.dumps(FITTED.to_dict(), allow_nan=False)) | changes


def without(key):
    return {name: value for name, value in as_json().items() if name != key}


class TestInThePlans:
    def test_what_was_fitted_is_read_back_as_it_was(self):
        assert ModelCalibration.from_dict(as_json(), EXPERTS) == FITTED

    def test_an_expert_who_is_never_asked_has_no_number_in_json(self):
        written = as_json()["thresholds"][1]
        assert written == {"budget": None, "capacities": [0.1, 0.0], "thresholds": [1e-7, None], "rate": 0.08}
        assert FittedThresholds.from_dict(written).thresholds == (1e-7, math.inf)

    def test_thresholds_without_regions_are_written_and_read_as_before_there_were_regions(self):
        *earlier, of_regions = as_json()["thresholds"]
        assert all("min_region_mm" not in each for each in earlier)
        assert of_regions["min_region_mm"] == 5
        assert [FittedThresholds.from_dict(each).min_region_mm for each in earlier] == [None] * 4

    def test_what_is_read_back_calibrates_alike(self):
        generator = np.random.default_rng(0)
        probabilities = generator.random((3, 5, 7), dtype=np.float32)
        read = ModelCalibration.from_dict(as_json(), EXPERTS)
        calibrated = read.apply(probabilities)
        assert np.array_equal(calibrated, FITTED.apply(probabilities))
        assert calibrated.dtype == np.float32
        for head, before, after in zip(FITTED.heads, probabilities, calibrated, strict=True):
            assert np.array_equal(after, head(before))
        assert not np.allclose(calibrated[0], probabilities[0], atol=0.01)
        assert np.array_equal(calibrated[2], probabilities[2])


class TestThresholds:
    @pytest.mark.parametrize(
        ("limits", "expected"),
        [
            ({"budget": 0.01}, (0.25, 0.25)),
            ({"capacities": (0.1, 0.0)}, (1e-7, math.inf)),
            ({"budget": 0.2, "capacities": (None, 0.05)}, (0.0, 0.125)),
            ({"budget": 0.01, "capacities": (0.005, None)}, (0.5, 0.25)),
            ({"budget": 0.01, "min_region_mm": 5}, (0.375, 0.375)),
        ],
    )
    def test_are_those_of_budget_capacities_and_regions(self, limits, expected):
        found = FITTED.thresholds_for(Limits(**limits, over="dataset"))
        assert found.dtype == np.float64
        assert found.tolist() == list(expected)

    @pytest.mark.parametrize(
        ("limits", "asked"),
        [
            ({"budget": 0.02}, "a budget of 0.02 over a dataset"),
            ({"budget": 0.01, "min_region_mm": 4}, "a budget of 0.01 in regions of 4 mm over a dataset"),
            ({"budget": 0.2, "min_region_mm": 5}, "a budget of 0.2 in regions of 5 mm over a dataset"),
            ({"capacities": (0.1, None)}, "capacities of 0.1, none over a dataset"),
            (
                {"budget": 0.01, "capacities": (0.1, None)},
                "a budget of 0.01 with capacities of 0.1, none over a dataset",
            ),
        ],
    )
    def test_that_were_not_fitted_are_refused_and_those_that_were_are_listed(self, limits, asked):
        with pytest.raises(InputError) as refused:
            FITTED.thresholds_for(Limits(**limits, over="dataset"))
        message = str(refused.value)
        assert message.startswith("no thresholds were fitted for ")
        assert f"{asked} (fitted: " in message
        assert (
            "(fitted: a budget of 0.01; capacities of 0.1, 0; a budget of 0.2 with capacities of none, 0.05; "
            "a budget of 0.01 with capacities of 0.005, none; a budget of 0.01 in regions of 5 mm)" in message
        )
        assert "nnUNetv2_deferral_calibrate ... -budgets" in message
        assert message.endswith("-min_region_mm") == ("min_region_mm" in limits)

    def test_of_a_model_without_any_are_refused(self):
        none = ModelCalibration(experts=EXPERTS, heads=(IDENTITY,) * 3)
        with pytest.raises(ValueError, match=r"budget of 0.1 over a dataset \(fitted: none\)"):
            none.thresholds_for(Limits(budget=0.1, over="dataset"))


def test_the_fingerprint_is_that_of_what_was_fitted_and_not_of_the_report():
    again = ModelCalibration.from_dict(as_json(), EXPERTS)
    assert again.fingerprint == FITTED.fingerprint
    assert replace(FITTED, report={"cases": 5}).fingerprint == FITTED.fingerprint
    assert replace(FITTED, thresholds=()).fingerprint != FITTED.fingerprint
    assert replace(FITTED, heads=(IDENTITY,) * 3).fingerprint != FITTED.fingerprint


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "experts", "words"),
        [
            (
                as_json(),
                ("ann", "bob", "cat"),
                ["3 probabilities for the experts ann, bob", "experts are ann, bob, cat"],
            ),
            (as_json(), ("ann",), ["experts ann, bob", "experts are ann"]),
            (as_json(), ("bob", "ann"), ["experts ann, bob", "experts are bob, ann"]),
            (as_json(), ("ann", "eve"), ["experts ann, bob", "experts are ann, eve"]),
            (as_json(heads=as_json()["heads"][:2]), EXPERTS, ["2 probabilities for the experts ann, bob"]),
            (as_json(experts=[]), EXPERTS, ["another model", "experts are ann, bob"]),
        ],
    )
    def test_what_was_fitted_for_another_model(self, content, experts, words):
        with pytest.raises(ValueError, match=f'"{CALIBRATION_KEY}" entry .* belongs to another model') as refused:
            ModelCalibration.from_dict(content, experts)
        for word in words:
            assert word in str(refused.value)

    @pytest.mark.parametrize("number", [0, 1, 3])
    def test_another_number_of_thresholds_than_experts(self, number):
        content = as_json()
        content["thresholds"][2]["thresholds"] = [0.1] * number
        message = f'"{CALIBRATION_KEY}" entry of the plans has {number} thresholds for the budget 0.2, but .* 2 experts'
        with pytest.raises(ValueError, match=message):
            ModelCalibration.from_dict(content, EXPERTS)

    @pytest.mark.parametrize(
        "content",
        [
            *([], "calibrated", 5, [1, 2], {}),
            *(without(key) for key in ("experts", "heads", "thresholds", "report")),
            *(as_json(**{key: 5}) for key in ("experts", "heads", "thresholds")),
            *(as_json(**{key: None}) for key in ("experts", "heads", "thresholds")),
            as_json(thresholds=[5]),
            as_json(thresholds=[{"budget": 0.1, "capacities": None, "rate": 0.1}]),
            as_json(thresholds=[{"budget": 0.1, "capacities": None, "thresholds": [[0.1], 0.1], "rate": 0.1}]),
            as_json(thresholds=[{"budget": 0.1, "capacities": 5, "thresholds": [0.1, 0.1], "rate": 0.1}]),
            as_json(thresholds=[{"budget": 0.1, "capacities": None, "thresholds": [0.1, 0.1], "rate": None}]),
        ],
        ids=lambda content: json.dumps(content)[:60],
    )
    def test_what_is_no_calibration_names_the_key(self, content):
        with pytest.raises(ValueError, match=re.escape(f'"{CALIBRATION_KEY}" entry of the plans')):
            ModelCalibration.from_dict(content, EXPERTS)

    @pytest.mark.parametrize(
        "content",
        [
            as_json(heads=[{"kind": "spline"}] * 3),
            as_json(heads=[5, 5, 5]),
            as_json(heads=[{"kind": "temperature", "temperature": -1.0}] * 3),
            as_json(thresholds=[{"budget": 0.1, "capacities": None, "thresholds": ["low", 0.1], "rate": 0.1}]),
        ],
        ids=["kind", "number", "temperature", "threshold"],
    )
    def test_a_value_that_cannot_be_names_the_key(self, content):
        with pytest.raises(ValueError, match=CALIBRATION_KEY):
            ModelCalibration.from_dict(content, EXPERTS)

    @pytest.mark.parametrize("threshold", [-0.1, math.nan])
    def test_a_threshold_that_no_fit_writes(self, threshold):
        content = as_json(thresholds=[{"budget": 0.1, "capacities": None, "thresholds": [threshold, 0.1], "rate": 0.1}])
        with pytest.raises(ValueError, match=CALIBRATION_KEY):
            ModelCalibration.from_dict(content, EXPERTS)

    def test_more_or_fewer_probabilities_than_maps(self):
        for channels in (2, 4):
            with pytest.raises(ValueError, match="3 maps"):
                FITTED.apply(np.full((channels, 4), 0.5, dtype=np.float32))


class TestBeforeAFoldIsTrainedAnew:
    @pytest.fixture
    def plans_file(self, tmp_path):
        file = tmp_path / "plans.json"
        file.write_text(json.dumps({"plans_name": "nnUNetPlans", CALIBRATION_KEY: as_json()}))
        return file

    @pytest.mark.parametrize("fold", [1, 3, "all"])
    def test_what_was_fitted_on_other_folds_is_kept(self, plans_file, fold):
        kept = calibration_of_other_folds(plans_file, fold)
        assert kept == as_json()
        assert ModelCalibration.from_dict(kept, EXPERTS) == FITTED

    @pytest.mark.parametrize("fold", [0, 2])
    def test_what_was_fitted_on_this_fold_is_dropped(self, plans_file, fold):
        assert calibration_of_other_folds(plans_file, fold) is None

    def test_there_is_nothing_to_keep_where_nothing_was_fitted(self, tmp_path):
        assert calibration_of_other_folds(tmp_path / "plans.json", 0) is None
        (tmp_path / "plans.json").write_text(json.dumps({"plans_name": "nnUNetPlans"}))
        assert calibration_of_other_folds(tmp_path / "plans.json", 0) is None

    def test_there_is_nothing_to_keep_in_plans_that_were_cut_short(self, plans_file):
        plans_file.write_text(plans_file.read_text()[:100])
        assert calibration_of_other_folds(plans_file, 0) is None
