"""What may change in the settings between a training and its continuation, and between folds of a model."""

import json
import re

import pytest
import torch

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.pretrained import check_same_model, check_same_training
from nnunetv2_deferral.settings import SettingsBlock, resolve_settings

ANN = {"name": "ann", "foreground": 0.9, "background": 0.99, "boundary": 0.8}
BASE = {"experts": [ANN, "bob"], "objective": "collaboration"}


def check(trained, now):
    checkpoint = {"init_args": {"plans": {"deferral": resolve_settings(trained).to_dict()}}}
    check_same_training(checkpoint, resolve_settings(now), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"experts": [ANN | {"boundary": 0.7}, "bob"]}, "ann: boundary is 0.8, not 0.7"),
        ({"experts": ["ann", "bob"]}, "ann: background is 0.99, not null; ann: boundary is 0.8, not null; ann: error"),
        ({"expert_voxel_mm": 1.5}, "expert_voxel_mm is null, not 1.5"),
        ({"boundary_width": 3}, "boundary_width is 2, not 3"),
        ({"objective": "one_vs_all"}, 'objective is "collaboration", not "one_vs_all"'),
        ({"head_channels": 16}, "head_channels is 8, not 16"),
        ({"costs": [0.1, 0.05]}, "costs is [0.0, 0.05], not [0.1, 0.05]"),
        ({"lambda_coherence": 0, "warmup": 0.2}, "lambda_coherence is 1.0, not 0; warmup is 0.1, not 0.2"),
    ],
)
def test_a_training_is_not_resumed_with_other_experts_or_another_objective(changed, named):
    check(BASE, BASE)
    with pytest.raises(
        InputError, match=re.escape(f"with other settings than those of this trainer and its plans: {named}")
    ):
        check(BASE, BASE | changed)


def test_limits_and_what_has_no_effect_may_change_in_a_resumed_training():
    check(BASE, BASE | {"budget": 0.1, "unavailable": ["bob"], "maps": ["route"], "patience": 3, "evaluation_seed": 4})
    one_vs_all = {"experts": [ANN, "bob"], "objective": "one_vs_all"}
    check(one_vs_all, one_vs_all | {"costs": [0.2, 0.1], "lambda_balance": 1.0})
    raters = {"experts": ["ann", "bob"]}
    check(raters, raters | {"expert_voxel_mm": 1.0, "boundary_width": 5})


def test_every_other_setting_is_compared():
    others = {
        **{"lower": [0.1, 0.1], "upper": [0.5, 0.5], "lambda_balance": 1.0, "beta_consistency": 1.0, "beta_rate": 1.0},
        **{"coherence_trains_routing": True, "routing_trains_decoder": True, "segmentation_loss": "cross_entropy"},
        **{"segmentation_layer": "last", "features_from": "decoder", "head_sees_confidence": False},
        **{"head_learning_rate": 1e-3, "optimizer": "adamw", "schedule": "step", "lambda_coherence": 0.0},
        **{"expert_voxel_mm": 1.0, "boundary_width": 1, "objective": "one_vs_all", "head_channels": 4, "warmup": 0.0},
        **{"costs": [0.5, 0.5]},
    }
    free = {"num_experts", "experts", "unavailable", "budget", "capacities", "budget_over", "min_region_mm", "maps"}
    free |= {"evaluation_seed", "patience", "final_weights", "head_initialization"}
    of_raters = {"multi_rater"}
    assert set(others) | free | of_raters == set(SettingsBlock.__annotations__)
    for name, value in others.items():
        with pytest.raises(InputError, match=f": {name} is .*, not "):
            check(BASE, BASE | {name: value})
    raters = {"experts": ["ann", "bob"]}
    with pytest.raises(InputError, match=": multi_rater is false, not true"):
        check(raters, raters | {"multi_rater": True})


def train_beside_fold_0(model, trained, now, fold=1):
    (model / "fold_0").mkdir(exist_ok=True)
    (model / "fold_0" / "checkpoint_best.pth").touch()
    (model / "plans.json").write_text(json.dumps({"deferral": resolve_settings(trained).to_dict()}))
    check_same_model(model, fold, resolve_settings(now))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"experts": ["bob", ANN]}, "experts are ann, bob, not bob, ann"),
        ({"experts": [ANN]}, "experts are ann, bob, not ann"),
        ({"experts": [ANN | {"boundary": 0.7}, "bob"]}, "ann: boundary is 0.8, not 0.7"),
        ({"objective": "one_vs_all"}, 'objective is "collaboration", not "one_vs_all"'),
    ],
)
def test_a_fold_is_not_trained_beside_others_of_other_experts_or_settings(tmp_path, changed, named):
    train_beside_fold_0(tmp_path, BASE, BASE)
    with pytest.raises(InputError, match=re.escape("(fold_0) were trained with other settings") + f".*: {named}"):
        train_beside_fold_0(tmp_path, BASE, BASE | changed)


def test_a_fold_may_be_trained_anew_and_beside_others_with_other_limits(tmp_path):
    train_beside_fold_0(tmp_path, BASE, BASE | {"experts": ["bob", ANN]}, fold=0)
    train_beside_fold_0(tmp_path, BASE, BASE | {"budget": 0.1, "unavailable": ["bob"], "maps": ["route"]})


def test_plans_that_another_training_is_writing_stop_no_fold(tmp_path):
    train_beside_fold_0(tmp_path, BASE, BASE)
    (tmp_path / "plans.json").write_text('{"deferral"')
    check_same_model(tmp_path, 1, resolve_settings(BASE))
