import json
from dataclasses import replace

import pytest

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import expert_set
from nnunetv2_deferral.experts import Rater
from nnunetv2_deferral.settings import check_place, resolve_settings


def test_without_a_word_on_the_experts_they_are_the_three_of_the_paper_with_its_weights():
    settings = resolve_settings(None)
    assert settings.experts == expert_set("standard", 3)
    assert (settings.lambda_coherence, settings.lambda_balance) == (1.0, 5.0)
    assert (settings.beta_consistency, settings.beta_rate) == (0.5, 0.1)
    assert settings.upper == (0.35, 0.25, 0.30)
    assert settings.lower == (0.15, 0.10, 0.10)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4, 5])
def test_the_written_block_is_read_back_unchanged(num_experts):
    settings = resolve_settings({"lambda_coherence": 0.3, "warmup": 0.2}, num_experts=num_experts)
    assert resolve_settings(json.loads(json.dumps(settings.to_dict()))) == settings


def test_for_one_expert_there_is_no_load_to_balance():
    settings = resolve_settings(None, num_experts=1)
    assert (settings.lower, settings.upper) == ((0.0,), (1.0,))


def test_what_the_trainer_fixes_wins_over_the_plans():
    assert resolve_settings({"lambda_coherence": 2.0}, overrides={"lambda_coherence": 0.0}).lambda_coherence == 0.0


@pytest.mark.parametrize(
    ("block", "num_experts", "message"),
    [
        ({"num_experts": 3}, 1, 'the trainer says 1, but "num_experts" in the plans.* says 3'),
        (
            {"experts": [e.to_json() for e in expert_set("standard", 2)]},
            3,
            'trainer says 3, but the list "experts".* 2',
        ),
        ({"experts": [expert_set("standard", 1)[0].to_json()] * 2}, None, "same name"),
        ({"experts": "nobody"}, None, "nobody.*standard"),
        ({"experts": "standard"}, 5, "standard.*5|5.*standard"),
        ({"lambda_sc": 1}, None, "unknown keys: lambda_sc. Known keys: .*lambda_coherence"),
        ({"lower": [0.5, 0.1, 0.1]}, None, "lower bound 0.5 of expert 1 is above its upper bound 0.35"),
        ({"lower": [0.4] * 3, "upper": [1] * 3}, None, r"lower bounds \[0.4, 0.4, 0.4\] sum to more than 1"),
        ({"upper": [0.5, 0.5]}, None, "upper has 2 bounds .* for 3 experts"),
    ],
)
def test_what_cannot_be_is_refused_and_named(block, num_experts, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(block, num_experts=num_experts)


NAN, INF, HUGE = float("nan"), float("inf"), 10**5000
NUMBERS = ("lambda_coherence", "lambda_balance", "beta_consistency", "beta_rate", "head_learning_rate", "warmup")
OUT_OF_RANGE = {
    **dict.fromkeys(NUMBERS, (NAN, INF, -INF, -1, "0.1", None, True, [0.1], HUGE)),
    "head_learning_rate": (0, NAN, INF, "fast", None, False),
    "warmup": (1, 1.0, -0.1, NAN, "0.1", None),
    "budget": (-0.1, 1.1, NAN, INF, "0.1", True),
    "min_region_mm": (-1, NAN, INF, "4", True),
    "boundary_width": (0.5, -1, 3.0, True, None, "2", NAN, HUGE),
    "expert_voxel_mm": (0, -1, NAN, INF, "1", True),
    "head_channels": (0, 1.5, INF, True, None, "8", 10**9),
    "evaluation_seed": (0.5, -1, None, True, "0", HUGE),
    "coherence_trains_routing": ("false", 0, 1, None, "true"),
    "routing_trains_decoder": ("false", 0, 1, None, []),
    "objective": ("dc", None, 1, ["one_vs_all"]),
    "segmentation_loss": ("dice", None, True),
    "segmentation_layer": (3, True, ["out"]),
    "features_from": (3, True, ["out"]),
    "head_initialization": ("zero", None, True),
    "head_sees_confidence": ("false", 0, 1, None),
    "optimizer": ("sgd", None, True),
    "schedule": ("poly", None, True),
    "patience": (0, 1.5, "50", True),
    "final_weights": ("ema", None, True),
    "budget_over": ("scan", None, 0),
    "num_experts": (0, -3, 2.0, True, "3"),
    "lower": (None, 0.1, "abc", [0.1, 0.1, NAN], [0.1, 0.1, "0"], [0.1, 0.1, True], {}),
    "upper": (None, [1.5, 1, 1], [1, 1, INF], [1, 1, None]),
    "costs": (None, 0.1, [0, 0, "a"], [0, 0, NAN], [0, 0, -0.1], [0, 0, 1.1], [0, 0, True]),
    "capacities": (0.1, "0.1", [0.1, 0.1, 7], [0.1, None, NAN], [0.1, 0.1, True]),
    "unavailable": (None, "expert1", [1], [None]),
    "experts": ([], [3], {"name": "ann"}, 3, True, [None], [["ann"]]),
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in OUT_OF_RANGE.items() for value in values],
    ids=lambda value: str(value)[:20] if value is not HUGE else "huge",
)
def test_a_value_of_another_type_or_out_of_range_is_refused_naming_key_and_value(key, value):
    with pytest.raises(InputError) as refused:
        resolve_settings({key: value})
    message = str(refused.value)
    assert message.startswith(f'the "deferral" block of the plans: {key}')
    assert " must " in message or " should " in message
    shown = value[2] if isinstance(value, list) and len(value) > 2 else value
    assert (
        value in ([], [3], [1], [None], [["ann"]])
        or ("a very large number" if shown is HUGE else f"got {shown!r}") in message
    )


@pytest.mark.parametrize("block", [3, "experts", [], True])
def test_a_block_that_is_no_object_is_refused(block):
    with pytest.raises(InputError, match='the "deferral" block of the plans: the content must be an object'):
        resolve_settings(block)


def test_a_segmentation_layer_and_features_exclude_each_other():
    with pytest.raises(InputError, match='"segmentation_layer" .out. and "features_from" .up. are mutually exclusive'):
        resolve_settings({"segmentation_layer": "out", "features_from": "up"})


def test_settings_are_checked_whoever_makes_them():
    with pytest.raises(InputError, match="deferral settings: lambda_coherence must be a finite number, got nan"):
        replace(resolve_settings(None), lambda_coherence=NAN)
    with pytest.raises(InputError, match="deferral settings: routing_trains_decoder must be a boolean, got 'false'"):
        resolve_settings(None, overrides={"routing_trains_decoder": "false"})


PROFILE = {"name": "sim", "foreground": 0.9, "background": 0.8, "boundary": 0.7}
RATERS = ("ann", "bob", "eve")


class TestRaters:
    def test_without_a_word_in_the_plans_the_experts_are_the_datasets_raters_in_its_order(self):
        settings = resolve_settings(None, raters=["eve", "ann"])
        assert settings.experts == (Rater("eve"), Rater("ann"))
        assert settings.raters == settings.expert_names == ("eve", "ann")
        assert settings.profiles == ()
        assert (len(settings.lower), len(settings.upper)) == (2, 2)

    def test_a_dataset_without_raters_has_the_three_of_the_paper(self):
        assert resolve_settings(None, raters=[]) == resolve_settings(None)

    def test_a_named_set_in_the_plans_simulates_them_though_the_dataset_has_raters(self):
        settings = resolve_settings({"experts": "complementary"}, raters=RATERS)
        assert settings.raters == ()
        assert settings.num_experts == 3

    def test_a_list_in_the_plans_chooses_among_the_datasets_raters(self):
        assert resolve_settings({"experts": ["eve", "ann"]}, raters=RATERS, num_experts=2).raters == ("eve", "ann")

    def test_a_list_may_mix_raters_and_simulated_experts_and_keeps_its_order(self):
        settings = resolve_settings({"experts": ["eve", PROFILE, "ann"]}, raters=RATERS)
        assert settings.expert_names == ("eve", "sim", "ann")
        assert settings.raters == ("eve", "ann")
        assert [profile.foreground for profile in settings.profiles] == [0.9]
        assert settings.available == (True, True, True)

    def test_where_the_dataset_is_not_at_hand_the_plans_are_believed(self):
        assert resolve_settings({"experts": ["someone", PROFILE]}).raters == ("someone",)

    @pytest.mark.parametrize(
        "block",
        [
            {"experts": ["eve", PROFILE, "ann"]},
            {"experts": ["eve", PROFILE], "costs": [0.2, 0.1], "unavailable": ["sim"]},
            {},
        ],
    )
    def test_the_written_block_is_read_back_unchanged(self, block):
        settings = resolve_settings(block, raters=RATERS)
        written = json.loads(json.dumps(settings.to_dict()))
        assert written["experts"][0] == settings.expert_names[0]
        assert resolve_settings(written) == resolve_settings(written, raters=RATERS) == settings

    @pytest.mark.parametrize(
        ("block", "how", "sides"),
        [
            ({}, {"num_experts": 2}, ["the trainer says 2", '"experts" in dataset.json (ann, bob, eve) says 3']),
            (
                {"num_experts": 5},
                {},
                ['"num_experts" in the plans\' "deferral" block says 5', '"experts" in dataset.json (ann, bob, eve)'],
            ),
            (
                {"experts": ["ann", "bob"]},
                {"num_experts": 3},
                ["the trainer says 3", 'the list "experts" in the plans\' "deferral" block says 2'],
            ),
            (
                {"experts": ["ann", PROFILE], "num_experts": 4},
                {"num_experts": 1},
                ["the trainer says 1", '"num_experts" in the plans\' "deferral" block says 4', "says 2"],
            ),
        ],
    )
    def test_a_conflict_names_both_sides(self, block, how, sides):
        with pytest.raises(ValueError, match="conflicting numbers of experts") as refused:
            resolve_settings(block, raters=RATERS, **how)
        assert all(side in str(refused.value) for side in sides)

    def test_the_advice_against_a_conflict_with_the_dataset_can_be_followed(self):
        with pytest.raises(ValueError, match='"experts" in .* to a list of raters.* named set such as "standard"'):
            resolve_settings(None, raters=RATERS, num_experts=2)
        assert resolve_settings({"experts": ["ann", "bob"]}, raters=RATERS, num_experts=2).num_experts == 2
        assert resolve_settings({"experts": "standard"}, raters=RATERS, num_experts=2).num_experts == 2

    @pytest.mark.parametrize(
        ("raters", "message"),
        [
            (RATERS, "names the raters 'joe', 'moe', but dataset.json declares ann, bob, eve"),
            ((), "names the raters 'joe', 'moe', 'ann', but dataset.json declares no experts"),
        ],
    )
    def test_raters_whom_the_dataset_does_not_declare_are_refused(self, raters, message):
        with pytest.raises(ValueError, match=message):
            resolve_settings({"experts": ["joe", "moe", "ann"]}, raters=raters)

    @pytest.mark.parametrize("experts", [["ann", "ann"], ["sim", PROFILE]])
    def test_two_experts_of_one_name_are_refused(self, experts):
        with pytest.raises(ValueError, match="two experts have the same name, '(ann|sim)'"):
            resolve_settings({"experts": experts})


class TestCosts:
    def test_asking_a_simulated_expert_costs_nothing_and_asking_a_rater_a_little(self):
        assert resolve_settings(None).costs == (0.0, 0.0, 0.0)
        assert resolve_settings({"experts": ["ann", PROFILE, "bob"]}).costs == (0.05, 0.0, 0.05)

    def test_a_person_may_set_them(self):
        settings = resolve_settings({"experts": ["ann", PROFILE], "costs": [0, 1]})
        assert settings.costs == (0, 1)

    @pytest.mark.parametrize("costs", [[0.1], [0.1, 0.2, 0.3], []])
    def test_other_than_one_an_expert_are_refused(self, costs):
        with pytest.raises(InputError, match=f"costs has {len(costs)} numbers for 2 experts"):
            resolve_settings({"experts": ["ann", PROFILE], "costs": costs})


class TestUnavailable:
    def test_everyone_is_available_unless_the_plans_say_otherwise(self):
        assert resolve_settings(None).available == (True, True, True)
        settings = resolve_settings({"experts": ["ann", PROFILE, "bob"], "unavailable": ["bob", "sim"]})
        assert settings.available == (True, False, False)
        assert settings.num_experts == 3

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["eve", "joe", "ann"], "unavailable names eve, joe, but the experts are ann, bob"),
            (["ann", "bob"], "all experts .ann, bob. are unavailable"),
        ],
    )
    def test_strangers_and_everyone_are_refused(self, names, message):
        with pytest.raises(ValueError, match=message):
            resolve_settings({"experts": ["ann", "bob"], "unavailable": names})


@pytest.mark.parametrize("name", ["system", "model", "model_everywhere"])
def test_an_expert_may_not_be_called_what_means_something_else_in_summaries(name):
    profile = {"name": name, "foreground": 1, "background": 1, "boundary": 1}
    with pytest.raises(ValueError, match=f"'{name}' is not a valid name of an expert"):
        resolve_settings({"experts": [profile]})
    with pytest.raises(ValueError, match=f"'{name}' is not a valid name of an expert"):
        resolve_settings({"experts": [name]})


def test_load_balancing_cannot_be_left_out_where_there_is_none():
    """Plans that say one-vs-all and a trainer ..._noLB: the name would promise an ablation that is none."""
    without = {"lambda_balance": 0.0}
    with pytest.raises(ValueError, match="load balancing, which the one-vs-all objective does not have.*_DC_noLB"):
        resolve_settings({"objective": "one_vs_all"}, overrides=without)
    settings = resolve_settings({"objective": "one_vs_all"}, overrides=without | {"objective": "collaboration"})
    assert (settings.objective, settings.lambda_balance) == ("collaboration", 0.0)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"experts": ["ann"]}, "requires at least two .* but the experts are ann"),
        ({"experts": "standard"}, r"no simulated expert, but the experts are .* \(simulated: "),
        ({"experts": ["ann", "bob"], "features_from": "decoder"}, r"replaces the segmentation layer .* \(decoder\)"),
    ],
)
def test_agreement_is_learned_from_two_raters_with_the_segmentation_layer(block, message):
    with pytest.raises(InputError, match=message):
        resolve_settings(block | {"multi_rater": True})


def test_a_training_says_that_simulated_experts_have_no_border_band_at_its_spacing():
    settings = resolve_settings({"expert_voxel_mm": 0.2})
    assert "a band of 2 voxels (boundary_width) of 0.2 mm (expert_voxel_mm)" in settings.remark_on_band((5.0, 1.0, 1.0))
    assert not settings.remark_on_band((5.0, 0.8, 1.0))
    for without in ({"boundary_width": 0}, {"experts": ["ann"]}, {"expert_voxel_mm": None}):
        assert not resolve_settings({"expert_voxel_mm": 0.2} | without).remark_on_band((5.0, 5.0))


def test_a_block_that_would_be_ignored_is_refused():
    kept = {"deferral_model": {}, "deferral_calibration": {}, "deferral_of_stock": {}, "plans_name": "x"}
    check_place(kept | {"deferral": {}, "configurations": {"2d": {}}})
    for key in ("Deferral", "deferal", "defferral", "deferrals"):
        with pytest.raises(InputError, match=f'the key "{key}", which is ignored: it must be "deferral"'):
            check_place(kept | {key: {}})
    with pytest.raises(InputError, match='in the configuration 2d of the plans.*beside "configurations"'):
        check_place(kept | {"configurations": {"2d": {"deferral": {}}}})
