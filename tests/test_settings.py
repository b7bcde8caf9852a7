import json

import pytest

from nnunetv2_deferral.expert_sim.profiles import expert_set
from nnunetv2_deferral.settings import resolve_settings


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
            {"experts": [e.to_dict() for e in expert_set("standard", 2)]},
            3,
            'trainer says 3, but the list "experts".* 2',
        ),
        ({"experts": [expert_set("standard", 1)[0].to_dict()] * 2}, None, "same name"),
        ({"experts": "nobody"}, None, "nobody.*standard"),
        ({"experts": "standard"}, 5, "standard.*5|5.*standard"),
        ({"lambda_sc": 1}, None, "unknown keys: lambda_sc. Known keys: .*lambda_coherence"),
        ({"lambda_balance": -1}, None, "lambda_balance must not be negative, got -1"),
        ({"lower": [0.5, 0.1, 0.1]}, None, "lower bound 0.5 of expert 1 is above its upper bound 0.35"),
        ({"lower": [0.4] * 3, "upper": [1] * 3}, None, r"lower bounds \[0.4, 0.4, 0.4\] sum to more than 1"),
        ({"upper": [0.5, 0.5]}, None, "upper has 2 bounds .* for 3 experts"),
        ({"upper": [1.5, 1, 1]}, None, r"upper bounds must lie in \[0, 1\]"),
        ({"warmup": 1.0}, None, r"warmup is a share of the epochs in \[0, 1\), got 1.0"),
        ({"segmentation_loss": "dice"}, None, "segmentation_loss is 'dice'.*nnunet, cross_entropy"),
        ({"head_channels": 0}, None, "head_channels must be at least 1, got 0"),
        ({"head_learning_rate": 0}, None, "head_learning_rate must be positive, got 0"),
        ({"boundary_width": -1}, None, "boundary_width must not be negative, got -1"),
    ],
)
def test_what_cannot_be_is_refused_and_named(block, num_experts, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(block, num_experts=num_experts)
