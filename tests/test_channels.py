import numpy as np
import pytest
import torch

from nnunetv2_deferral.channels import ChannelLayout, routing_decision, routing_log_probabilities


def test_the_parts_of_an_output_are_segmentation_routing_and_aggregated():
    layout = ChannelLayout(num_segmentation_heads=3, num_experts=2)
    assert layout.total == 7
    parts = layout.split(torch.arange(7).view(1, 7, 1, 1))
    assert parts.segmentation.flatten().tolist() == [0, 1, 2]
    assert parts.routing.flatten().tolist() == [3, 4, 5]
    assert parts.aggregated.flatten().tolist() == [6]


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
