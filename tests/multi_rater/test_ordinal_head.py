"""The ordinal head in networks."""

import pytest
import torch
from torch import nn

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.multi_rater.ordinal import majority_logit
from nnunetv2_deferral.multi_rater.ordinal_head import (
    OrdinalChannels,
    OrdinalHead,
    add_ordinal_head,
    find_ordinal_place,
)


def network_with(layer):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), layer)


def make_head(layer, channels):
    """A head as if it were trained."""
    head = OrdinalHead(layer, channels)
    nn.init.normal_(head.layer.weight, generator=torch.Generator().manual_seed(0))
    return head


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 2, 1), nn.ConvTranspose2d(8, 2, 2, stride=2), nn.Conv2d(4, 4, 1)])
def test_levels_start_equally_probable_on_each_side(layer):
    channels = OrdinalChannels(layer.out_channels, has_regions=True, num_raters=4)
    parts = channels.split(OrdinalHead(layer, channels)(torch.randn(1, layer.in_channels, 4, 4)))
    p = torch.softmax(parts.levels, 2)
    torch.testing.assert_close(p[:, :, :2], p[:, :, :1].expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(p[:, :, 2:], p[:, :, 2:3].expand(-1, -1, 3, -1, -1))
    assert parts.segmentation.std() > 0


@pytest.mark.parametrize("num_raters", [2, 3, 8])
def test_the_segmentation_logits_give_the_probability_of_the_majority(num_raters):
    channels = OrdinalChannels(2, has_regions=False, num_raters=num_raters)
    network = add_ordinal_head(network_with(nn.Conv2d(8, 2, 1)), "2", channels)
    nn.init.normal_(network[2].layer.weight)
    output = network(torch.randn(2, 1, 6, 6))
    assert output.shape == (2, channels.total, 6, 6)
    parts = channels.split(output)
    assert parts.levels.shape == (2, 1, num_raters + 1, 6, 6)
    p = torch.softmax(parts.levels, 2)[:, 0]
    majority = sum(p[:, k] for k in range(num_raters + 1) if 2 * k >= num_raters)
    torch.testing.assert_close(torch.softmax(parts.segmentation, 1)[:, 1], majority)


def test_the_loss_of_the_majority_leaves_the_levels_within_it_alone():
    channels = OrdinalChannels(2, has_regions=False, num_raters=4)
    head = make_head(nn.Conv2d(8, 2, 1), channels)
    features = torch.randn(1, 8, 4, 4)
    parts = channels.split(head(features))
    torch.testing.assert_close(majority_logit(parts.levels, 2), parts.segmentation[:, 1:])
    parts.segmentation.sum().backward()
    gradient = head.layer.weight.grad
    assert (gradient[0] != 0).any()
    assert (gradient[1:] == 0).all()


def test_one_class_is_learned_as_fast_as_by_the_two_logits_of_a_stock_layer():
    stock, channels = nn.Conv2d(8, 2, 1), OrdinalChannels(2, has_regions=False, num_raters=4)
    head, features = make_head(stock, channels), torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        head.layer.weight[0] = (stock.weight[1] - stock.weight[0]) / 2**0.5
        head.layer.bias[0] = (stock.bias[1] - stock.bias[0]) / 2**0.5
    target = torch.randint(0, 2, (3, 4, 4))
    for module in (stock, head):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(features)[:, :2], target).backward()
            optimizer.step()
    expected = stock(features)[:, 1] - stock(features)[:, 0]
    torch.testing.assert_close(head(features)[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_several_classes_have_the_probabilities_of_independent_majorities_of_which_at_most_one_holds():
    channels = OrdinalChannels(3, has_regions=False, num_raters=4)
    parts = channels.split(make_head(nn.Conv2d(8, 3, 1), channels)(torch.randn(1, 8, 4, 4)))
    first, second = torch.softmax(parts.levels, 2)[:, :, 2:].sum(2).unbind(1)
    joint = torch.stack(((1 - first) * (1 - second), first * (1 - second), second * (1 - first)), 1)
    torch.testing.assert_close(torch.softmax(parts.segmentation, 1), joint / joint.sum(1, keepdim=True))


def test_regions_are_independent():
    channels = OrdinalChannels(2, has_regions=True, num_raters=3)
    parts = channels.split(make_head(nn.Conv3d(8, 2, 1), channels)(torch.randn(1, 8, 4, 4, 4)))
    majority = torch.softmax(parts.levels, 2)[:, :, 2:].sum(2)
    torch.testing.assert_close(torch.sigmoid(parts.segmentation), majority)


def test_the_layer_is_of_the_kind_that_it_replaces():
    channels = OrdinalChannels(2, has_regions=False, num_raters=2)
    head = OrdinalHead(nn.ConvTranspose3d(8, 2, 2, stride=2), channels)
    assert head(torch.randn(1, 8, 2, 2, 2)).shape == (1, channels.total, 4, 4, 4)


def test_the_place_is_found_and_other_networks_are_refused():
    assert find_ordinal_place(network_with(nn.Conv2d(8, 2, 1)), (1, 8, 8), 2) == "2"
    ends_otherwise = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid())
    with pytest.raises(InputError, match="several raters with Sequential: .* that of one convolution"):
        find_ordinal_place(ends_otherwise, (1, 8, 8), 2)
    channels = OrdinalChannels(2, has_regions=False, num_raters=2)
    with pytest.raises(InputError, match="ordinal head at decoder.last, which Sequential does not have"):
        add_ordinal_head(ends_otherwise, "decoder.last", channels)
    with pytest.raises(InputError, match=r"expected 5 channels \(2 segmentation, 3 for 2 raters\), got 4"):
        channels.split(torch.zeros(1, 4, 2, 2))
