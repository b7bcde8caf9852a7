"""The deferral head and its attachment to nnU-Net's networks.

In the U-Nets of `dynamic_network_architectures` the last decoder features are used by exactly one module,
`decoder.seg_layers[-1]`. The head replaces this module, keeps it as its segmentation layer and appends the J + 2
deferral channels to its output; the rest of the network is unchanged, including deep supervision. Because the keys of
the head contain `.seg_layers.`, nnU-Net's `-pretrained_weights` loads stock checkpoints into such a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.routing import close_routes
from nnunetv2_deferral.settings import DeferralSettings


class DeferralHead(nn.Module):
    """Segmentation layer, routing predictor and aggregated deferral predictor on the last decoder features.

    The routing predictor takes the decoder features and the segmentation's confidence (probabilities and margin)
    through a 3x3 convolution, ReLU and a 1x1 convolution. The aggregated predictor is the paper's (Sec. 4.3), with the
    same layers on the features alone. One convolution computes both hidden layers from the features. The confidence
    has a convolution of its own, whose output is added; this equals one convolution of the concatenation, without
    copying.

    Args:
        segmentation: nnU-Net's 1x1 convolution, kept with its weights.
        available: Whether each of the J experts can be asked. No voxel is routed to the others.
        hidden_channels: Width of each of the two hidden layers.
        has_regions: Whether the segmentation channels are overlapping regions (sigmoid) or classes (softmax).
        initial_logit: Initial value of the routing logits.
        trains_decoder: Whether gradients of the deferral channels reach the decoder features. The segmentation
            logits that enter the confidence are always detached.
    """

    available: Tensor

    def __init__(
        self,
        segmentation: nn.Conv2d | nn.Conv3d,
        *,
        available: Sequence[bool],
        hidden_channels: int,
        has_regions: bool,
        trains_decoder: bool,
        initial_logit: float = 0.0,
    ) -> None:
        super().__init__()
        convolution = type(segmentation)
        in_channels, num_heads = segmentation.in_channels, segmentation.out_channels
        self.segmentation = segmentation
        self.hidden_channels = hidden_channels
        self.has_regions = has_regions
        self.trains_decoder = trains_decoder
        self.hidden_features = convolution(in_channels, 2 * hidden_channels, 3, padding=1)
        self.hidden_confidence = convolution(num_heads + 1, hidden_channels, 3, padding=1, bias=False)
        self.routing = convolution(hidden_channels, len(available) + 1, 1)
        self.aggregated = convolution(hidden_channels, 1, 1)
        for layer in (self.hidden_features, self.hidden_confidence, self.routing, self.aggregated):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        # Routing starts uniform. Where everyone is right the optimum is nearly uniform too, and the decision depends on
        # differences of hundredths, which a random initialisation of the last layer would mask for hundreds of steps.
        nn.init.zeros_(self.routing.weight)
        if self.routing.bias is not None:
            nn.init.constant_(self.routing.bias, initial_logit)
        # Not saved in checkpoints: availability is a setting of the plans, which may be edited after training.
        open_to = torch.ones(1, len(available), *[1] * (self.routing.weight.ndim - 2), dtype=torch.bool)
        self.register_buffer("available", open_to, persistent=False)
        self.set_available(available)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F, *S) to segmentation, routing and aggregated logits (B, K + J + 2, *S)."""
        segmentation = self.segmentation(features)
        seen = features if self.trains_decoder else features.detach()
        from_features = self.hidden_features(seen)
        from_confidence = self.hidden_confidence(confidence(segmentation.detach(), has_regions=self.has_regions))
        routing_hidden, aggregated_hidden = from_features.split(self.hidden_channels, dim=1)
        routing = self.routing(torch.relu(routing_hidden + from_confidence))
        if not self.all_available:
            routing = close_routes(routing, self.available)
        aggregated = self.aggregated(torch.relu(aggregated_hidden))
        return torch.cat((segmentation, routing, aggregated), dim=1)

    def set_available(self, available: Sequence[bool]) -> None:
        """Set whether each of the J experts can be asked."""
        self.available.copy_(torch.tensor(available).view_as(self.available))
        self.all_available = all(available)

    def deferral_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the head adds to the network, i.e. all except the segmentation layer's."""
        for name, parameter in self.named_parameters():
            if not name.startswith("segmentation."):
                yield parameter


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


def add_deferral_head(network: nn.Module, settings: DeferralSettings, *, has_regions: bool) -> nn.Module:
    """Replace the last segmentation layer of a network by a :class:`DeferralHead`, in place.

    Returns:
        The same network, now with K + J + 2 output channels at full resolution.

    Raises:
        InputError: If the network has no decoder with segmentation layers.
    """
    layers = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0 or not isinstance(layers[-1], (nn.Conv2d, nn.Conv3d)):
        raise InputError(
            f"cannot add a deferral head to the architecture {type(network).__name__} of these plans: its decoder has "
            "no `seg_layers`. Supported are the U-Nets of dynamic_network_architectures, such as PlainConvUNet "
            "(nnUNetPlans) and ResidualEncoderUNet (nnUNetResEncUNet{M,L,XL}Plans)"
        )
    layers[-1] = DeferralHead(
        layers[-1],
        available=settings.available,
        hidden_channels=settings.head_channels,
        has_regions=has_regions,
        trains_decoder=settings.routing_trains_decoder,
        initial_logit=settings.rule.initial_logit,
    )
    return network


def deferral_head(network: nn.Module) -> DeferralHead:
    """The deferral head of an (unwrapped) network.

    Raises:
        InputError: If the network has none.
    """
    layers = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if layers is None or not isinstance(layers[-1], DeferralHead):
        raise InputError(f"this {type(network).__name__} has no deferral head")
    return layers[-1]
