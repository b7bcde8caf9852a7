"""What may limit a prediction, and what is refused."""

import re

import pytest

from nnunetv2_deferral.decision.limits import Limits, limits_of_environment, limits_text, minutes_of_environment
from nnunetv2_deferral.environment import (
    ENVIRONMENT,
    ENVIRONMENT_CAPACITIES,
    ENVIRONMENT_MINUTES,
    ENVIRONMENT_OVER,
    ENVIRONMENT_REGION,
)
from nnunetv2_deferral.settings import resolve_settings


def test_without_limits_there_is_nothing_to_say():
    assert resolve_settings(None).limits == Limits()
    assert Limits().to_dict() == {}
    assert not Limits().limits_amount
    assert not Limits(capacities=(None, None), min_region_mm=3).limits_amount


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, "without limits"),
        ({"budget": 0.02}, "at most 2 % of the voxels of each case"),
        (
            {"capacities": (None, 0.005), "over": "dataset", "min_region_mm": 5},
            "bob at most 0.5 % of the voxels of all cases together, on average; no region smaller than 5 mm",
        ),
        ({"minutes": 30}, "at most 30 minutes of work for all cases together"),
    ],
)
def test_limits_are_told_in_words(limits, text):
    assert limits_text(Limits(**limits), ("ann", "bob")) == text


def test_the_plans_set_limits_and_keep_them():
    block = {"budget": 0.02, "capacities": [0.01, None, 0.0], "budget_over": "dataset", "min_region_mm": 4}
    settings = resolve_settings(block)
    assert settings.limits == Limits(budget=0.02, capacities=(0.01, None, 0.0), over="dataset", min_region_mm=4)
    assert resolve_settings(settings.to_dict()) == settings
    assert settings.limits.to_dict() == {
        "budget": 0.02, "capacities": [0.01, None, 0.0], "over": "dataset", "min_region_mm": 4,
    }  # fmt: skip


def test_the_environment_wins_over_the_plans_where_it_says_something():
    planned = Limits(budget=0.02, min_region_mm=4)
    assert limits_of_environment(planned, {}) == planned
    asked = {ENVIRONMENT: "0.05", ENVIRONMENT_CAPACITIES: "0.1, none,0", ENVIRONMENT_OVER: "dataset"}
    assert limits_of_environment(planned, asked) == Limits(
        budget=0.05, capacities=(0.1, None, 0.0), over="dataset", min_region_mm=4
    )
    assert limits_of_environment(planned, {ENVIRONMENT_REGION: "0"}) == Limits(budget=0.02, min_region_mm=0)
    asked_for_time = limits_of_environment(planned, {ENVIRONMENT_MINUTES: "30"})
    assert asked_for_time.to_dict() == {"budget": 0.02, "over": "case", "min_region_mm": 4, "minutes": 30}
    assert asked_for_time.of_case == planned
    # What the plans add to the environment is not known everywhere.
    assert minutes_of_environment({ENVIRONMENT_OVER: "dataset"}) is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (ENVIRONMENT, "2", r"must be a share of the voxels in \[0, 1\], got '2'"),
        (ENVIRONMENT, "-1", "got '-1'"),
        (ENVIRONMENT, "one percent", "got 'one percent'"),
        (ENVIRONMENT, "nan", "got 'nan'"),
        (ENVIRONMENT_CAPACITIES, "0.1,1.1,0", "got '1.1'"),
        (ENVIRONMENT_CAPACITIES, "0.1,,0", "got ''"),
        (ENVIRONMENT_OVER, "patient", "one of case, dataset, got 'patient'"),
        (ENVIRONMENT_REGION, "big", "a diameter in mm, got 'big'"),
        (ENVIRONMENT_MINUTES, "long", "a number of minutes, got 'long'"),
        (ENVIRONMENT_MINUTES, "-3", "got '-3'"),
        (ENVIRONMENT_MINUTES, "nan", "got 'nan'"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(variable, value, message):
    with pytest.raises(ValueError, match=f"{variable} .*{message}"):
        limits_of_environment(Limits(), {variable: value})


@pytest.mark.parametrize("misspelt", ["nnUNet_deferral_budgets", "nnunet_deferral_budget", "NNUNET_DEFERRAL_BUDGET"])
def test_a_misspelt_variable_is_refused(misspelt):
    with pytest.raises(ValueError, match=f"unknown environment variable {misspelt}; known are nnUNet_deferral_b"):
        limits_of_environment(Limits(), {misspelt: "0.1", "nnUNet_def_n_proc": "1"})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"capacities": [0.1, 0.1]}, "deferral settings: capacities.* 3 experts"),
        (
            {"budget": 0.5, "capacities": [0.1, 0.2, 0.1]},
            r"budget 0.5 exceeds the sum 0.4 of",
        ),
        ({"budget_over": "dataset"}, "over a dataset require a budget or capacities"),
    ],
)
def test_limits_that_cannot_be_are_refused_before_a_training(block, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(block)


def test_a_budget_that_one_expert_without_limit_can_take_is_met():
    assert Limits(budget=0.5, capacities=(0.1, None)).budget == 0.5
    assert Limits(budget=0.3, capacities=(0.1, 0.2)).budget == 0.3
    with pytest.raises(ValueError, match=re.escape("the budget 0.31 exceeds the sum 0.3 of")):
        Limits(budget=0.31, capacities=(0.1, 0.2))
