import copy
import json

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.head_place import HeadPlace, find_head_place, find_segmentation_layer
from nnunetv2_deferral.multi_rater.ordinal_head import add_ordinal_head
from nnunetv2_deferral.network import HeadInPlace, add_deferral_head, confidence, deferral_head
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


def with_head(network, settings, *, shape=None, **place):
    """The network with a head where `place` says, or where one is found on an image of one channel."""
    dimension = next(p.ndim for p in network.parameters() if p.ndim > 3) - 2
    found = find_head_place(network, shape or (1, *[16] * dimension), 3, **place)
    return add_deferral_head(network, found, settings, num_heads=3, dimension=dimension, has_regions=False)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_the_head_adds_its_channels_at_full_resolution_only(kind, dimension):
    network = with_head(make_unet(kind, dimension), resolve_settings(None, num_experts=2))
    full, half = network(torch.randn(1, 1, *[16] * dimension))
    assert full.shape[1] == 3 + 2 + 2
    assert half.shape[1] == 3


def test_the_segmentation_channels_are_those_of_the_network_without_the_head():
    network, image = make_unet(PlainConvUNet, 2, deep_supervision=False), torch.randn(2, 1, 16, 16)
    stock = network(image)
    extended = with_head(network, resolve_settings(None))(image)
    assert torch.equal(extended[:, :3], stock)


@pytest.mark.parametrize("trains_decoder", [False, True])
def test_routing_reaches_the_decoder_only_if_asked_to_and_never_the_segmentation_layer(trains_decoder):
    settings = resolve_settings({"routing_trains_decoder": trains_decoder})
    network = with_head(make_unet(PlainConvUNet, 2, deep_supervision=False), settings)
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
    network = with_head(make_unet(PlainConvUNet, 2, deep_supervision=False), resolve_settings(None))
    routing = network(torch.randn(1, 1, 16, 16))[:, 3:7]
    assert (routing.argmax(1) == 0).all()


def test_an_expert_can_become_unavailable_and_available_again():
    network = with_head(make_unet(PlainConvUNet, 2, deep_supervision=False), resolve_settings(None))
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
    own = with_head(make_unet(PlainConvUNet, 2), resolve_settings(None)).state_dict()
    assert all(".seg_layers." in key for key in set(own) - set(stock))


def test_behind_an_ordinal_head_the_segmentation_and_its_levels_are_as_without_deferral():
    settings = resolve_settings({"experts": ["ann", "bob", "eve"], "multi_rater": True})
    ordinal = settings.ordinal_channels(3, has_regions=False)
    network, image = make_unet(PlainConvUNet, 2, deep_supervision=False), torch.randn(2, 1, 16, 16)
    place = find_head_place(network, (1, 16, 16), 3)
    alone = add_ordinal_head(copy.deepcopy(network), place.module, ordinal)
    nn.init.normal_(alone.get_submodule(place.module).layer.weight)
    both = with_head(network, settings)
    with deferral_head(both).removed_from(both):
        both.load_state_dict(alone.state_dict())
    found, expected = both(image), alone(image)
    layout = settings.layout(3, has_regions=False)
    assert found.shape[1] == layout.total == 3 + 2 * 4 + 4 + 1
    assert torch.equal(found[:, : ordinal.total], expected)


def test_behind_an_ordinal_head_the_routing_sees_how_far_raters_agree():
    settings = resolve_settings({"experts": ["ann", "bob"], "multi_rater": True, "head_initialization": "random"})
    network = with_head(make_unet(PlainConvUNet, 2, deep_supervision=False), settings)
    head, image = deferral_head(network), torch.randn(1, 1, 16, 16)
    head.segmentation.layer.bias.data[1] += 9.0  # nobody in place of one of two: of class 1, below a majority alone
    nn.init.zeros_(head.hidden_confidence.weight[:, :4])  # probabilities and margin
    layout = settings.layout(3, has_regions=False)
    before = layout.split(network(image))
    head.segmentation.layer.bias.data[2] += 9.0  # both in place of one of two
    after = layout.split(network(image))
    assert torch.equal(before.segmentation, after.segmentation)
    assert not torch.equal(before.routing, after.routing)


class Einsum(nn.Module):
    """A decoder as SAM's: masks are products of tokens and upscaled features, and no convolution gives them."""

    def __init__(self, dimension=2, *, with_list=False):
        super().__init__()
        convolution, transposed = (nn.Conv2d, nn.ConvTranspose2d) if dimension == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.encoder = convolution(1, 8, 2, stride=2)
        self.upscaling = nn.Sequential(transposed(8, 6, 2, stride=2), nn.GELU())
        self.tokens = nn.Parameter(torch.randn(3, 6))
        self.coarse = convolution(8, 3, 1)
        self.with_list = with_list

    def forward(self, image):
        features = self.encoder(image)
        masks = torch.einsum("kf,bf...->bk...", self.tokens, self.upscaling(features))
        return [masks, self.coarse(features)] if self.with_list else masks


class Edges(nn.Module):
    """As CENet: further outputs for edges, with as many channels, join the features of the last layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.edges = nn.ModuleList(nn.Conv2d(8, 3, 1) for _ in range(2))
        self.fuse = nn.Conv2d(8 + 6, 8, 3, padding=1)
        self.out = nn.ModuleDict({"conv": nn.Sequential(nn.ReLU(), nn.Conv2d(8, 3, 1))})

    def forward(self, image):
        features = self.stem(image)
        edges = [edge(features) for edge in self.edges]
        return self.out["conv"](self.fuse(torch.cat((features, *edges), 1)))


class Shared(nn.Module):
    """One convolution for two outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 1)

    def forward(self, image):
        return [self.layer(image), self.layer(image[..., ::2, ::2])]


class Resized(nn.Module):
    """The output of the last convolution is interpolated."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, image):
        return nn.functional.interpolate(self.last(self.down(image)), scale_factor=2)


def make_primus():
    return Primus(1, 24, (8, 8, 8), 3, eva_depth=1, eva_numheads=2, input_shape=(16, 16, 16))


NETWORKS = {
    "plain": (lambda: make_unet(PlainConvUNet, 2), (1, 16, 16), {}, "decoder.seg_layers.1"),
    "residual": (lambda: make_unet(ResidualEncoderUNet, 3), (1, 16, 16, 16), {}, "decoder.seg_layers.1"),
    "Primus": (make_primus, (1, 16, 16, 16), {}, "up_projection.decode.2"),
    "edges": (Edges, (1, 16, 16), {}, "out.conv.1"),
    "named": (Edges, (1, 16, 16), {"segmentation_layer": "out.conv.1"}, "out.conv.1"),
    "einsum": (Einsum, (1, 16, 16), {"features_from": "upscaling"}, "upscaling"),
    "einsum in 3D": (lambda: Einsum(3), (1, 16, 16, 16), {"features_from": "upscaling"}, "upscaling"),
    "einsum with scales": (lambda: Einsum(with_list=True), (1, 16, 16), {"features_from": "encoder"}, "encoder"),
    "resized": (Resized, (1, 16, 16), {"features_from": "down"}, "down"),
}


def finest(output):
    return output[0] if isinstance(output, (list, tuple)) else output


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_keeps_its_segmentation_bit_for_bit_and_its_weights_in_their_places(name):
    make, shape, given, place = NETWORKS[name]
    torch.manual_seed(0)
    stock = make().eval()
    image = torch.randn(2, *shape)
    before = {key: value.clone() for key, value in stock.state_dict().items()}
    expected = stock(image)
    assert find_head_place(stock, shape, 3, **given).module == place
    network = with_head(stock, resolve_settings(None), shape=shape, **given)
    output = network(image)
    assert type(network) is type(stock)
    assert finest(output).shape[1] == 3 + 4 + 1
    assert torch.equal(finest(output)[:, :3], finest(expected))
    if isinstance(expected, list):
        assert all(torch.equal(*pair) for pair in zip(output[1:], expected[1:], strict=True))
    head = deferral_head(network)
    names = set(network.state_dict())
    with head.removed_from(network):
        assert network.state_dict().keys() == before.keys()
        assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert set(network.state_dict()) == names
    nn.init.normal_(head.routing.weight)
    finest(network(image))[:, 3:].square().sum().backward()
    assert all(p.grad is not None for p in head.deferral_parameters())


@pytest.mark.parametrize("name", ["plain", "Primus", "einsum"])
def test_a_copied_or_compiled_network_has_the_same_output(name):
    make, shape, given, _ = NETWORKS[name]
    network = with_head(make().eval(), resolve_settings(None), shape=shape, **given)
    image = torch.randn(2, *shape)
    with torch.no_grad():
        expected = finest(network(image))
        assert torch.equal(finest(copy.deepcopy(network)(image)), expected)
        compiled = torch.compile(network, backend="eager", fullgraph=name != "Primus")
        assert torch.equal(finest(compiled(image)), expected)


@pytest.mark.parametrize("name", ["plain", "Primus", "einsum"])
@pytest.mark.parametrize("block", [None, {"lambda_coherence": 0.0}])
def test_without_the_aggregated_channel_the_others_are_the_same(name, block):
    make, shape, given, _ = NETWORKS[name]
    network = with_head(make().eval(), resolve_settings(block), shape=shape, **given)
    head = deferral_head(network)
    for parameter in head.deferral_parameters():
        nn.init.normal_(parameter)
    weights = set(network.state_dict())
    image = torch.randn(2, *shape)
    with torch.no_grad():
        expected = finest(network(image))
        head.shows_aggregated = False
        found = finest(network(image))
        compiled = torch.compile(network, backend="eager", fullgraph=name != "Primus")
        assert torch.equal(finest(compiled(image)), found)
    assert torch.allclose(found, expected[:, :-1], atol=1e-4, rtol=1e-5)
    assert torch.equal(found[:, :3], expected[:, :3])
    assert set(network.state_dict()) == weights


def test_searching_leaves_weights_statistics_modes_and_random_numbers_as_they_are():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 3, 1))
    network[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.random.get_rng_state()
    assert find_segmentation_layer(network, (1, 8, 8), 3) == "3"
    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        (Einsum(), {}, 'Einsum: no convolution .* 3 output channels are: coarse. .*"features_from"'),
        (Resized(), {}, "Resized: no convolution gives the network's output. .* are: last"),
        (Shared(), {}, "Shared: layer, which gives the network's output, is applied 2 times"),
        (Edges(), {"segmentation_layer": "out.cnv"}, "'out.cnv', but Edges has no such module. .*out.conv.1"),
        (
            Edges(),
            {"segmentation_layer": "stem"},
            "'stem', which is not a convolution of Edges with 3 .* edges.0, edges.1, out.c",
        ),
        (Edges(), {"features_from": "nothing"}, "'nothing', but Edges has no such module"),
        (Edges(), {"features_from": "edges"}, "edges of Edges must return one tensor .* returned nothing"),
        (Shared(), {"features_from": "layer"}, r"layer of Shared .* returned \(1, 3, 8, 8\), \(1, 3, 4, 4\)"),
    ],
)
def test_a_network_without_a_place_for_the_head_is_refused_with_its_candidates(network, given, message):
    with pytest.raises(InputError, match=message):
        find_head_place(network, (1, 8, 8), 3, **given)


def test_a_network_changed_after_the_training_is_refused_by_the_place_in_the_plans():
    with pytest.raises(InputError, match="place the deferral head at decoder.seg_layers.1, which Edges does not have"):
        add_deferral_head(
            Edges(),
            HeadPlace("decoder.seg_layers.1"),
            resolve_settings(None),
            num_heads=3,
            dimension=2,
            has_regions=False,
        )
    with pytest.raises(InputError, match="has no deferral head"):
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
    layer = nn.Conv2d(4, 2, 1)
    head = HeadInPlace(layer, 2, 2, available=(True,), hidden_channels=3, has_regions=False, trains_decoder=False)
    nn.init.normal_(head.routing.weight)
    features = torch.randn(1, 4, 8, 8)
    joined = nn.Conv2d(4 + 3, 3, 3, padding=1)
    joined.weight.data = torch.cat((head.hidden_features.weight[:3], head.hidden_confidence.weight), 1)
    joined.bias.data = head.hidden_features.bias[:3]
    seen = torch.cat((features, confidence(head.segmentation(features), has_regions=False)), 1)
    expected = head.routing(torch.relu(joined(seen)))
    assert torch.allclose(head(features)[:, 2:4], expected, atol=1e-5)


def test_without_spatial_coherence_there_is_no_aggregated_predictor_and_every_weight_of_the_head_is_trained():
    settings = resolve_settings({"lambda_coherence": 0.0})
    network = with_head(make_unet(PlainConvUNet, 2, deep_supervision=False), settings)
    head = deferral_head(network)
    nn.init.normal_(head.routing.weight)
    output = network(torch.randn(2, 1, 16, 16))
    assert output.shape[1] == 3 + 4 + 1
    assert (output[:, -1] == 0).all()
    output.sum().backward()
    assert all(p.grad is not None for p in head.deferral_parameters())
    assert head.hidden_features.out_channels == head.hidden_channels


def test_the_papers_head_sees_the_features_alone_and_starts_at_random():
    settings = resolve_settings({"head_sees_confidence": False, "head_initialization": "random"})
    network = with_head(make_unet(PlainConvUNet, 2, deep_supervision=False), settings)
    head, image = deferral_head(network), torch.randn(2, 1, 16, 16)
    before = network(image)
    assert before[:, 3:7].std(1).mean() > 0
    nn.init.normal_(head.segmentation.weight)
    after = network(image)
    assert not torch.equal(after[:, :3], before[:, :3])
    assert torch.equal(after[:, 3:], before[:, 3:])


UNAVAILABLE = resolve_settings({"unavailable": ["expert2"]})


def eager_network(dimension, settings):
    """A network whose head sends voxels everywhere, and most of them to the second expert."""
    torch.manual_seed(0)
    network = with_head(make_unet(PlainConvUNet, dimension, deep_supervision=False), settings)
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
