import numpy as np
import pytest
import torch

from nnunetv2_deferral.channels import ChannelLayout
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.routing import (
    OneVsAllRule,
    SoftmaxRule,
    close_routes,
    routing_decision,
    routing_log_probabilities,
)


def test_the_parts_of_an_output_are_segmentation_routing_and_aggregated():
    layout = ChannelLayout(num_segmentation_heads=3, num_experts=2)
    assert layout.total == 7
    parts = layout.split(torch.arange(7).view(1, 7, 1, 1))
    assert parts.segmentation.flatten().tolist() == [0, 1, 2]
    assert parts.routing.flatten().tolist() == [3, 4, 5]
    assert parts.aggregated.flatten().tolist() == [6]


def test_an_output_without_the_aggregated_channel_has_one_less():
    layout = ChannelLayout(num_segmentation_heads=3, num_experts=2, with_aggregated=False)
    parts = layout.split(torch.arange(6).view(1, 6, 1, 1))
    assert parts.routing.flatten().tolist() == [3, 4, 5]
    assert parts.aggregated.shape == (1, 0, 1, 1)
    with pytest.raises(InputError, match="expected 6 channels .*0 aggregated.*, got 7"):
        layout.split(torch.arange(7).view(1, 7, 1, 1))


def test_levels_of_an_ordinal_head_are_behind_the_segmentation():
    parts = ChannelLayout(3, 2, num_levels=4).split(torch.arange(11).view(11, 1), dim=0)
    assert parts.segmentation.flatten().tolist() == [0, 1, 2]
    assert parts.levels.flatten().tolist() == [3, 4, 5, 6]
    assert parts.routing.flatten().tolist() == [7, 8, 9]
    assert parts.aggregated.flatten().tolist() == [10]


def test_an_output_with_other_channels_is_refused():
    with pytest.raises(ValueError, match="expected 7 channels .* got 8"):
        ChannelLayout(3, 2).split(torch.zeros(1, 8, 2, 2))


def test_ties_stay_with_the_model():
    assert routing_decision(np.array([[0.5, 0.2], [0.5, 0.8]]), axis=0).tolist() == [0, 1]
    assert routing_decision(torch.zeros(1, 4, 2, 2)).sum() == 0


def test_log_probabilities_are_float32_and_sum_to_one():
    log_probabilities = routing_log_probabilities(torch.randn(2, 4, 3, 3).half() * 100)
    assert log_probabilities.dtype == torch.float32
    assert log_probabilities.exp().sum(1) == pytest.approx(torch.ones(2, 3, 3), abs=1e-5)


def random_routing(shape=(2, 4, 5, 6), scale=4.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_no_voxel_goes_by_a_closed_route_and_the_open_ones_keep_their_logits():
    routing = random_routing()
    open_to = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    closed = close_routes(routing, open_to)
    assert closed.shape == routing.shape
    assert torch.equal(closed[:, 0], routing[:, 0])
    assert torch.equal(closed[:, 1:][open_to], routing[:, 1:][open_to])
    decision = routing_decision(closed)
    assert (decision != routing_decision(routing)).any()
    for expert in (1, 2, 3):
        assert open_to[:, expert - 1][decision == expert].all()
    probability = routing_log_probabilities(closed).exp()
    assert probability[:, 1:][~open_to].max() < 1e-30
    # The others share what is left as they would without the closed ones.
    left = torch.where(torch.cat((torch.ones(2, 1, 5, 6).bool(), open_to), 1), routing, -torch.inf)
    assert torch.allclose(probability, torch.softmax(left, 1), atol=1e-6)


def test_with_all_routes_closed_everything_is_the_models():
    closed = close_routes(random_routing(), torch.zeros(1, 3, 1, 1, dtype=torch.bool))
    assert (routing_decision(closed) == 0).all()
    assert torch.allclose(routing_log_probabilities(closed)[:, 0], torch.zeros(()), atol=1e-6)


def test_one_answer_for_every_voxel_closes_a_route_everywhere():
    closed = close_routes(random_routing(), torch.tensor([True, False, True]).view(1, 3, 1, 1))
    decided = set(routing_decision(closed).unique().tolist())
    assert decided == {0, 1, 3}


def test_a_closed_route_has_no_gradient():
    routing = random_routing().requires_grad_()
    open_to = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    log_probabilities = routing_log_probabilities(close_routes(routing, open_to))
    (log_probabilities * torch.randn(2, 4, 5, 6)).sum().backward()
    assert (routing.grad[:, 1:][~open_to] == 0).all()
    assert (routing.grad[:, 1:][open_to] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_closing_a_route_keeps_the_dtype_and_is_finite(dtype):
    closed = close_routes(random_routing().to(dtype), torch.zeros(1, 3, 1, 1, dtype=torch.bool))
    assert closed.dtype == dtype
    # nnU-Net adds up the logits of overlapping tiles in half precision, each weighted by up to 10.
    assert torch.isfinite(8 * 10 * closed.half()).all()


ALL = (True, True, True)


@pytest.mark.parametrize(
    ("rule", "level"),
    [
        (SoftmaxRule(ALL), -300.0),
        *(
            (rule, level)
            for rule in (SoftmaxRule(ALL), OneVsAllRule((0.0, 0.0, 0.0), ALL))
            for level in (-30.0, 0.0, 300.0)
        ),
    ],
)
def test_a_closed_route_is_not_taken_whatever_the_level_of_the_logits(rule, level):
    """With a softmax only differences of logits mean anything, so nothing holds their level."""
    closed = close_routes(random_routing() + level, torch.tensor([True, False, True]).view(1, 3, 1, 1))
    probabilities = rule.probabilities(closed)
    assert 2 not in rule.decision(probabilities)
    assert probabilities[:, 2].max() < 1e-13
