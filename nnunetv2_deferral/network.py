"""The deferral head and its attachment to a network.

The head takes the last features of a network and appends J + 2 deferral channels to its output. Where the network ends
with a segmentation layer (:mod:`.head_place`), the head replaces it and keeps it inside; names and values of all other
weights stay as they are, and so does deep supervision. Elsewhere the head takes the output of a named module. Because
in U-Nets the keys of the head contain `.seg_layers.`, nnU-Net's `-pretrained_weights` leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d, interpolate

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.head_place import Convolution, HeadPlace, replace_module
from nnunetv2_deferral.multi_rater.ordinal import agreement, disagreement
from nnunetv2_deferral.multi_rater.ordinal_head import OrdinalChannels, OrdinalHead, add_ordinal_head
from nnunetv2_deferral.routing import close_routes
from nnunetv2_deferral.settings import DeferralSettings


class DeferralHead(nn.Module):
    """Routing predictor and aggregated deferral predictor on the last features of a network.

    The routing predictor takes the features and the segmentation's confidence (probabilities and margin) through a 3x3
    convolution, ReLU and a 1x1 convolution. The aggregated predictor is the paper's (Sec. 4.3), with the same layers on
    the features alone. One convolution computes both hidden layers from the features. The confidence has a convolution
    of its own, whose output is added; this equals one convolution of the concatenation, without copying. Features of a
    lower resolution than the segmentation are interpolated behind their convolution.

    The aggregated predictor is trained by the spatial-coherence loss alone; without it, its channel is 0. Predictions
    that do not need it set `shows_aggregated` to False: it is then not computed, and its channel left out.

    Behind an ordinal head the confidence also has the expected agreement and disagreement of the raters.

    Args:
        in_channels: The number F of feature channels.
        num_heads: The number K of segmentation heads.
        dimension: 2 or 3, the number of spatial axes.
        available: Whether each of the J experts can be asked. No voxel is routed to the others.
        hidden_channels: Width of each of the two hidden layers.
        has_regions: Whether the segmentation channels are overlapping regions (sigmoid) or classes (softmax).
        initial_logit: Initial value of the routing logits; None for random weights of their layer.
        trains_decoder: Whether gradients of the deferral channels reach the decoder features. The segmentation
            logits that enter the confidence are always detached.
        with_aggregated: Whether there is an aggregated predictor.
        sees_confidence: Whether the routing predictor sees the confidence besides the features.
        ordinal: The channels of an ordinal head (:mod:`.multi_rater`) behind which this one is; None without one.
    """

    available: Tensor
    shows_aggregated: bool = True

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        dimension: int,
        *,
        available: Sequence[bool],
        hidden_channels: int,
        has_regions: bool,
        trains_decoder: bool,
        initial_logit: float | None = 0.0,
        with_aggregated: bool = True,
        sees_confidence: bool = True,
        ordinal: OrdinalChannels | None = None,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimension == 2 else nn.Conv3d
        self.hidden_channels = hidden_channels
        self.has_regions = has_regions
        self.num_heads = num_heads
        self.ordinal = ordinal
        self.trains_decoder = trains_decoder
        self.hidden_features = convolution(in_channels, (1 + with_aggregated) * hidden_channels, 3, padding=1)
        of_confidence = num_heads + 1 + (0 if ordinal is None else 2 * ordinal.num_structures)
        self.hidden_confidence = (
            convolution(of_confidence, hidden_channels, 3, padding=1, bias=False) if sees_confidence else None
        )
        self.routing = convolution(hidden_channels, len(available) + 1, 1)
        self.aggregated = convolution(hidden_channels, 1, 1) if with_aggregated else None
        for layer in (self.hidden_features, self.hidden_confidence, self.routing, self.aggregated):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # Routing starts uniform. Where everyone is right the optimum is nearly uniform too, and the decision depends on
        # differences of hundredths, which a random initialisation of the last layer would mask for hundreds of steps.
        if initial_logit is not None:
            nn.init.zeros_(self.routing.weight)
            if self.routing.bias is not None:
                nn.init.constant_(self.routing.bias, initial_logit)
        # Not saved in checkpoints: availability is a setting of the plans, which may be edited after training.
        open_to = torch.ones(1, len(available), *[1] * (self.routing.weight.ndim - 2), dtype=torch.bool)
        self.register_buffer("available", open_to, persistent=False)
        self.set_available(available)

    def append(self, features: Tensor, segmentation: Tensor) -> Tensor:
        """Append routing and aggregated logits to the segmentation's.

        Args:
            features: (B, F, *S) or at a lower resolution.
            segmentation: Logits (B, K, *S), or with levels (B, K + L, *S).

        Returns:
            (B, K + L + J + 2, *S); the first K channels are the segmentation. One less without the aggregated channel.
        """
        seen = features if self.trains_decoder else features.detach()
        from_features = self._hidden_of(seen)
        if from_features.shape[2:] != segmentation.shape[2:]:
            mode = "bilinear" if segmentation.ndim == 4 else "trilinear"
            from_features = interpolate(from_features, segmentation.shape[2:], mode=mode)
        routing_hidden = from_features[:, : self.hidden_channels]
        if self.hidden_confidence is not None:
            routing_hidden = routing_hidden + self.hidden_confidence(self._confidence(segmentation.detach()))
        routing = self.routing(torch.relu(routing_hidden))
        if not self.all_available:
            routing = close_routes(routing, self.available)
        if not self.shows_aggregated:
            return torch.cat((segmentation, routing), dim=1)
        if self.aggregated is None:
            aggregated = torch.zeros_like(routing[:, :1])
        else:
            aggregated = self.aggregated(torch.relu(from_features[:, self.hidden_channels :]))
        return torch.cat((segmentation, routing, aggregated), dim=1)

    def _hidden_of(self, features: Tensor) -> Tensor:
        """The hidden layers of both predictors from the features, or of the routing predictor alone."""
        layer = self.hidden_features
        if self.shows_aggregated or self.aggregated is None:
            return layer(features)
        weight, bias = (parameter[: self.hidden_channels] for parameter in layer.parameters())
        return (conv2d if features.ndim == 4 else conv3d)(features, weight, bias, padding=1)

    def _confidence(self, segmentation: Tensor) -> Tensor:
        found = confidence(segmentation[:, : self.num_heads], has_regions=self.has_regions)
        if self.ordinal is None:
            return found
        levels = torch.softmax(self.ordinal.split(segmentation).levels, 2)
        return torch.cat((found, agreement(levels, 2), disagreement(levels, 2)), dim=1)

    def set_available(self, available: Sequence[bool]) -> None:
        """Set whether each of the J experts can be asked."""
        self.available.copy_(torch.tensor(available).view_as(self.available))
        self.all_available = all(available)

    def deferral_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the head adds to the network, i.e. all except the segmentation layer's."""
        for name, parameter in self.named_parameters():
            if not name.startswith("segmentation."):
                yield parameter

    @contextmanager
    def removed_from(self, network: nn.Module) -> Iterator[None]:
        """A context in which the network has the modules and names of the weights that it has without the head."""
        raise NotImplementedError


class HeadInPlace(DeferralHead):
    """A head in the place of the segmentation layer, which it contains.

    Args:
        segmentation: The segmentation layer, kept with its weights. If it is a transposed convolution, the features
            have a lower resolution than its output.
        num_heads: See :class:`DeferralHead`.
        dimension: See :class:`DeferralHead`.
        **options: Of :class:`DeferralHead`.
    """

    def __init__(self, segmentation: Convolution | OrdinalHead, num_heads: int, dimension: int, **options: Any) -> None:
        super().__init__(segmentation.in_channels, num_heads, dimension, **options)
        self.segmentation = segmentation

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F, *S) to segmentation, levels, routing and aggregated logits (B, K + L + J + 2, *S)."""
        return self.append(features, self.segmentation(features))

    @contextmanager
    def removed_from(self, network: nn.Module) -> Iterator[None]:
        """See :meth:`DeferralHead.removed_from`."""
        replace_module(network, self, self.segmentation)
        try:
            yield
        finally:
            replace_module(network, self.segmentation, self)


class HeadBehind(DeferralHead):
    """A head behind a network without a segmentation layer, on the output of one of its modules.

    Hooks leave the network's class and the names of its weights as they are, which a module around it would not.
    """

    _NAME = "deferral_head"
    _features: Tensor | None = None

    def attach(self, network: nn.Module, features_from: str) -> None:
        """Make this head a module of the network, and let it extend its (finest) output."""
        network.get_submodule(features_from).register_forward_hook(self._keep)
        network.register_forward_hook(self._extend)
        network.add_module(self._NAME, self)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._features = output

    def _extend(self, _network: nn.Module, _inputs: Any, output: Any) -> Any:
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("the network did not apply the module with the features of the deferral head")
        if isinstance(output, (list, tuple)):
            return [self.append(features, output[0]), *output[1:]]
        return self.append(features, output)

    @contextmanager
    def removed_from(self, network: nn.Module) -> Iterator[None]:
        """See :meth:`DeferralHead.removed_from`."""
        delattr(network, self._NAME)
        try:
            yield
        finally:
            network.add_module(self._NAME, self)


def confidence(segmentation: Tensor, *, has_regions: bool) -> Tensor:
    """Confidence of a segmentation, the second input of the routing predictor.

    Args:
        segmentation: Logits (B, K, *S).
        has_regions: Regions (sigmoid) or classes (softmax).

    Returns:
        (B, K + 1, *S): the probabilities and log(1 + margin). The margin is the difference of the two highest logits
        (classes) or the smallest absolute logit (regions).
    """
    if has_regions:
        probabilities = torch.sigmoid(segmentation)
        margin = segmentation.abs().amin(1, keepdim=True)
    else:
        probabilities = torch.softmax(segmentation, 1)
        largest, second = _two_largest(segmentation)
        margin = largest - second
    return torch.cat((probabilities, torch.log1p(margin)), dim=1)


def _two_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the second largest of K >= 2 channels, each (B, 1, *S), as `topk(2, 1)` but many times faster."""
    channels = logits.split(1, dim=1)
    largest, second = torch.maximum(*channels[:2]), torch.minimum(*channels[:2])
    for channel in channels[2:]:
        second = torch.maximum(second, torch.minimum(largest, channel))
        largest = torch.maximum(largest, channel)
    return largest, second


def add_deferral_head(
    network: nn.Module,
    place: HeadPlace,
    settings: DeferralSettings,
    *,
    num_heads: int,
    dimension: int,
    has_regions: bool,
) -> nn.Module:
    """Add a :class:`DeferralHead` to a network, in place.

    Args:
        network: The network, with K output channels.
        place: Where the head belongs, see :func:`.find_head_place`.
        settings: The experts and the form of the head.
        num_heads: The number K of segmentation heads.
        dimension: 2 or 3, the number of spatial axes.
        has_regions: Whether the heads are overlapping regions or classes.

    Returns:
        The same network, now with K + L + J + 2 output channels at full resolution.

    Raises:
        InputError: If the network has no such place.
    """
    ordinal = settings.ordinal_channels(num_heads, has_regions=has_regions)
    try:
        module: Any = network.get_submodule(place.module)
    except AttributeError as error:
        raise InputError(
            f"the plans of this model place the deferral head at {place.module}, which {type(network).__name__} does "
            "not have. Was the network changed after the training?"
        ) from error
    options: dict[str, Any] = {
        "available": settings.available,
        "hidden_channels": settings.head_channels,
        "has_regions": has_regions,
        "trains_decoder": settings.routing_trains_decoder,
        "initial_logit": settings.rule.initial_logit if settings.head_initialization == "undecided" else None,
        "with_aggregated": settings.has_aggregated,
        "sees_confidence": settings.head_sees_confidence,
        "ordinal": ordinal,
    }
    if ordinal is not None:
        add_ordinal_head(network, place.module, ordinal)
        module = network.get_submodule(place.module)
    if place.feature_channels is None:
        replace_module(network, module, HeadInPlace(module, num_heads, dimension, **options))
    else:
        HeadBehind(place.feature_channels, num_heads, dimension, **options).attach(network, place.module)
    return network


def deferral_head(network: nn.Module) -> DeferralHead:
    """The deferral head of an (unwrapped) network.

    Raises:
        InputError: If the network has none.
    """
    for module in network.modules():
        if isinstance(module, DeferralHead):
            return module
    raise InputError(f"this {type(network).__name__} has no deferral head")
