import json

import pytest

from nnunetv2_deferral.expert_sim.error_models import ERROR_MODELS
from nnunetv2_deferral.expert_sim.profiles import (
    ERROR_MODEL_NAMES,
    EXPERT_SETS,
    ExpertProfile,
    default_expert_set,
    expert_set,
)


def make(**changes):
    return ExpertProfile(**{"name": "ann", "foreground": 0.9, "background": 0.8, "boundary": 0.7, **changes})


def triplets(name, num_experts):
    band = "boundary" if name == "standard" else "edge_boost"
    return [(p.foreground, p.background, getattr(p, band)) for p in expert_set(name, num_experts)]


@pytest.mark.parametrize("field", ["foreground", "background", "boundary"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), "0.9", True])
def test_a_probability_outside_zero_and_one_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"'ann'.*{field}.*{value!r}"):
        make(**{field: value})


@pytest.mark.parametrize("value", [-1.5, 1.5])
def test_an_edge_boost_beyond_one_is_refused(value):
    with pytest.raises(ValueError, match=f"'ann'.*edge_boost.*{value}"):
        make(boundary=None, edge_boost=value)


@pytest.mark.parametrize("band", [{"boundary": 0.9, "edge_boost": 0.05}, {"boundary": None, "edge_boost": None}])
def test_boundary_and_edge_boost_exclude_each_other_and_one_is_needed(band):
    with pytest.raises(ValueError, match="'ann'.*exactly one of boundary and edge_boost"):
        make(**band)


def test_an_unknown_error_model_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'ann'.*independent, correlated.*'drunk'"):
        make(error_model="drunk")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", 3])
def test_a_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ValueError, match="expert profile: .* is not a valid name of an expert"):
        make(name=name)


def test_every_error_model_a_profile_may_name_exists():
    assert set(ERROR_MODELS) == set(ERROR_MODEL_NAMES)


@pytest.mark.parametrize(
    ("band", "expected"),
    [({"boundary": 0.7}, 0.7), ({"edge_boost": 0.05}, 0.95), ({"edge_boost": 0.3}, 1.0), ({"edge_boost": -0.95}, 0.0)],
)
def test_the_accuracy_in_the_band_is_absolute_or_boosted_and_clipped(band, expected):
    assert make(**{"boundary": None, **band}).band_accuracy(0.9) == pytest.approx(expected)


@pytest.mark.parametrize("name", EXPERT_SETS)
def test_profiles_survive_json(name):
    for profile in expert_set(name, 3):
        data = json.loads(json.dumps(profile.to_json()))
        assert None not in data.values()
        assert ExpertProfile.from_dict(data) == profile


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"unknown keys \['accuracy', 'cost'\]"):
        ExpertProfile.from_dict({**make().to_json(), "cost": 1, "accuracy": 0.9})
    with pytest.raises(ValueError, match=r"'ann'.*missing keys \['background', 'foreground'\]"):
        ExpertProfile.from_dict({"name": "ann", "boundary": 0.9})


def test_the_standard_set_is_table_2():
    assert triplets("standard", 1) == [(0.92, 0.98, 0.98)]
    assert triplets("standard", 3) == [(0.92, 0.98, 0.98), (0.85, 0.99, 0.94), (0.75, 0.95, 0.90)]


def test_the_scalability_set_is_table_d9_and_two_experts_are_its_second_and_third():
    e1, e2, e3, e4, e5 = triplets("scalability", 5)
    assert (e1, e4, e5) == ((0.92, 0.98, 0.05), (0.90, 0.97, 0.10), (0.94, 0.99, 0.06))
    assert triplets("scalability", 1) == [e1]
    assert triplets("scalability", 2) == [e2, e3]
    assert triplets("scalability", 4) == [e2, e3, e4, e5]


def test_the_complementary_set_is_table_e11_and_two_experts_are_its_first_and_sixth():
    rows = triplets("complementary", 7)
    assert rows[2] == (0.88, 0.90, 0.12)
    assert rows[6] == (0.97, 0.99, 0.03)
    assert triplets("complementary", 2) == [rows[0], rows[5]]
    assert all(triplets("complementary", j) == rows[:j] for j in (1, 3, 4, 5, 6))


def test_experts_are_named_by_their_place_in_the_set():
    assert [profile.name for profile in expert_set("scalability", 2)] == ["expert1", "expert2"]


def test_unknown_sets_and_sizes_are_refused_with_what_exists():
    with pytest.raises(ValueError, match="'fancy'.*standard, scalability, complementary"):
        expert_set("fancy", 2)
    with pytest.raises(ValueError, match="expert set 'standard' is defined for 1 to 3 experts, not for 4"):
        expert_set("standard", 4)
    with pytest.raises(ValueError, match="not for 0"):
        expert_set("complementary", 0)


def test_the_default_set_has_any_number_of_experts_up_to_five():
    assert [default_expert_set(j) for j in range(1, 6)] == ["standard"] * 3 + ["scalability"] * 2
    assert all(len(expert_set(default_expert_set(j), j)) == j for j in range(1, 6))
