import json

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_deferral.network import DeferralHead, add_deferral_head, confidence, deferral_head
from nnunetv2_deferral.settings import resolve_settings


def make_unet(kind, dimension, *, deep_supervision=True, num_classes=3):
    convolution = nn.Conv2d if dimension == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if dimension == 2 else nn.InstanceNorm3d
    depth = {"n_conv_per_stage": 1} if kind is PlainConvUNet else {"n_blocks_per_stage": 1}
    return kind(
        1,
        n_stages=3,
        features_per_stage=[4, 8, 8],
        conv_op=convolution,
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=num_classes,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **depth,
    )


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_the_head_adds_its_channels_at_full_resolution_only(kind, dimension):
    network = add_deferral_head(make_unet(kind, dimension), resolve_settings(None, num_experts=2), has_regions=False)
    full, half = network(torch.randn(1, 1, *[16] * dimension))
    assert full.shape[1] == 3 + 2 + 2
    assert half.shape[1] == 3


def test_the_segmentation_channels_are_those_of_the_network_without_the_head():
    network, image = make_unet(PlainConvUNet, 2, deep_supervision=False), torch.randn(2, 1, 16, 16)
    stock = network(image)
    extended = add_deferral_head(network, resolve_settings(None), has_regions=False)(image)
    assert torch.equal(extended[:, :3], stock)


@pytest.mark.parametrize("trains_decoder", [False, True])
def test_routing_reaches_the_decoder_only_if_asked_to_and_never_the_segmentation_layer(trains_decoder):
    settings = resolve_settings({"routing_trains_decoder": trains_decoder})
    network = add_deferral_head(make_unet(PlainConvUNet, 2, deep_supervision=False), settings, has_regions=False)
    nn.init.normal_(deferral_head(network).routing.weight)
    network(torch.randn(1, 1, 16, 16))[:, 3:].square().sum().backward()
    head = {id(parameter) for parameter in deferral_head(network).deferral_parameters()}
    assert all(p.grad is not None for p in network.parameters() if id(p) in head)
    segmentation_layer = deferral_head(network).segmentation

    def is_reached(parameter):
        return parameter.grad is not None and bool((parameter.grad != 0).any())

    reached = [name for name, p in network.named_parameters() if id(p) not in head and is_reached(p)]
    assert bool(reached) == trains_decoder
    assert not is_reached(segmentation_layer.weight)


def test_an_untrained_head_leaves_everything_undecided_and_hence_to_the_model():
    network = add_deferral_head(
        make_unet(PlainConvUNet, 2, deep_supervision=False), resolve_settings(None), has_regions=False
    )
    routing = network(torch.randn(1, 1, 16, 16))[:, 3:7]
    assert (routing.argmax(1) == 0).all()


def test_an_expert_can_become_unavailable_and_available_again():
    network = add_deferral_head(
        make_unet(PlainConvUNet, 2, deep_supervision=False), resolve_settings(None), has_regions=False
    )
    head, image = deferral_head(network), torch.randn(1, 1, 16, 16)
    nn.init.constant_(head.routing.bias[2:3], 50.0)
    before = network(image)[:, 3:7]
    head.set_available((True, False, True))
    closed = network(image)[:, 3:7]
    assert (before.argmax(1) == 2).all()
    assert not (closed.argmax(1) == 2).any()
    assert torch.equal(closed[:, [0, 1, 3]], before[:, [0, 1, 3]])
    head.set_available((True, True, True))
    assert torch.equal(network(image)[:, 3:7], before)


def test_a_stock_checkpoint_fits_but_for_the_keys_that_nnunet_skips():
    stock = make_unet(PlainConvUNet, 2).state_dict()
    own = add_deferral_head(make_unet(PlainConvUNet, 2), resolve_settings(None), has_regions=False).state_dict()
    assert all(".seg_layers." in key for key in set(own) - set(stock))


def test_an_architecture_without_segmentation_layers_is_refused_with_what_is_supported():
    with pytest.raises(ValueError, match="Sequential .* PlainConvUNet"):
        add_deferral_head(nn.Sequential(nn.Conv2d(1, 2, 1)), resolve_settings(None), has_regions=False)
    with pytest.raises(ValueError, match="has no deferral head"):
        deferral_head(make_unet(PlainConvUNet, 2))


def test_confidence_holds_probabilities_and_the_margin():
    classes = torch.tensor([2.0, 0.5, -1.0]).view(1, 3, 1, 1)
    seen = confidence(classes, has_regions=False).flatten()
    assert seen[:3].tolist() == pytest.approx(torch.softmax(classes, 1).flatten().tolist())
    assert seen[3].item() == pytest.approx(torch.log1p(torch.tensor(1.5)).item())
    regions = confidence(torch.tensor([2.0, -0.5]).view(1, 2, 1, 1), has_regions=True).flatten()
    assert regions[:2].tolist() == pytest.approx(torch.sigmoid(torch.tensor([2.0, -0.5])).tolist())
    assert regions[2].item() == pytest.approx(torch.log1p(torch.tensor(0.5)).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_the_margin_is_that_of_the_two_largest_logits_bit_for_bit_with_ties(num_classes, dtype):
    random = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(2, num_classes, 16, 16, generator=random).to(dtype)
    logits[:, :, :8] = logits[:, :, :8].round()
    highest = logits.topk(2, dim=1).values
    assert (highest[:, 0] == highest[:, 1]).any()
    assert torch.equal(confidence(logits, has_regions=False)[:, -1:], torch.log1p(highest[:, :1] - highest[:, 1:]))


def test_the_two_hidden_convolutions_equal_one_of_the_concatenation():
    head = DeferralHead(
        nn.Conv2d(4, 2, 1), available=(True,), hidden_channels=3, has_regions=False, trains_decoder=False
    )
    nn.init.normal_(head.routing.weight)
    features = torch.randn(1, 4, 8, 8)
    joined = nn.Conv2d(4 + 3, 3, 3, padding=1)
    joined.weight.data = torch.cat((head.hidden_features.weight[:3], head.hidden_confidence.weight), 1)
    joined.bias.data = head.hidden_features.bias[:3]
    seen = torch.cat((features, confidence(head.segmentation(features), has_regions=False)), 1)
    expected = head.routing(torch.relu(joined(seen)))
    assert torch.allclose(head(features)[:, 2:4], expected, atol=1e-5)


UNAVAILABLE = resolve_settings({"unavailable": ["expert2"]})


def eager_network(dimension, settings):
    """A network whose head sends voxels everywhere, and most of them to the second expert."""
    torch.manual_seed(0)
    network = add_deferral_head(
        make_unet(PlainConvUNet, dimension, deep_supervision=False), settings, has_regions=False
    )
    routing = deferral_head(network).routing
    nn.init.normal_(routing.weight)
    nn.init.constant_(routing.bias, 0)
    routing.bias.data[2] = 3.0
    return network


@pytest.mark.parametrize("dimension", [2, 3])
def test_no_voxel_is_routed_to_an_expert_who_is_not_available(dimension):
    image = torch.randn(2, 1, *[16] * dimension)
    everyone, without = (eager_network(dimension, settings) for settings in (resolve_settings(None), UNAVAILABLE))
    with torch.no_grad():
        asked, told = everyone(image), without(image)
    assert (asked[:, 3:7].argmax(1) == 2).any()
    assert set(told[:, 3:7].argmax(1).unique().tolist()) == {0, 1, 3}
    # All that is not that expert's is as it was.
    others = [channel for channel in range(asked.shape[1]) if channel != 5]
    assert torch.equal(asked[:, others], told[:, others])


@pytest.mark.parametrize("dimension", [2, 3])
def test_an_expert_who_is_not_available_learns_nothing(dimension):
    network = eager_network(dimension, UNAVAILABLE)
    routing = network(torch.randn(1, 1, *[16] * dimension))[:, 3:7]
    torch.log_softmax(routing, 1).square().sum().backward()
    layer = deferral_head(network).routing
    for gradient in (layer.weight.grad, layer.bias.grad):
        assert (gradient[2] == 0).all()
        assert all((gradient[route] != 0).any() for route in (0, 1, 3))


def test_who_is_available_is_not_among_the_weights():
    everyone, without = (eager_network(2, settings) for settings in (resolve_settings(None), UNAVAILABLE))
    assert everyone.state_dict().keys() == without.state_dict().keys()
    assert not [key for key in without.state_dict() if "available" in key]
    without.load_state_dict(everyone.state_dict())
    assert deferral_head(without).available.flatten().tolist() == [True, False, True]


def test_who_is_available_is_read_from_the_plans_of_a_trained_model():
    """The block beside the weights may be edited: the network of the edited block takes the same weights."""
    trained = eager_network(2, resolve_settings(None))
    block = json.loads(json.dumps(resolve_settings(None).to_dict())) | {"unavailable": ["expert1", "expert2"]}
    edited = eager_network(2, resolve_settings(block))
    edited.load_state_dict(trained.state_dict())
    with torch.no_grad():
        route = edited(torch.randn(2, 1, 16, 16))[:, 3:7].argmax(1)
    assert set(route.unique().tolist()) == {0, 3}


def test_the_buffer_of_who_is_available_goes_where_the_network_goes():
    network = eager_network(2, UNAVAILABLE).to(torch.device("meta"))
    assert deferral_head(network).available.device.type == "meta"
