"""The ordinal head of a network, which predicts how many raters mark each structure.

The head takes the place of the segmentation layer (:mod:`.head_place`). It appends the logits of the levels to the
segmentation logits that follow from them, so that nnU-Net sees a segmentation network with further channels. With
exclusive classes the background's logit is 0 and each other one the log-odds that at least half of the raters mark the
class. Their softmax is the probability of each class given that no two have a majority: of independent events with
these odds, the probability that exactly this one, or none, happens, given that at most one does. For one class it is
the sigmoid of its log-odds.

The layer gives for each structure the log-odds l of a majority, and K + 1 logits that say how large it is: levels of at
least half are normalised among themselves and raised by l, the others among themselves. Every distribution of levels
can be written so. With the levels' logits taken from the layer as they are, nnU-Net's loss, which knows the majority
alone, would raise each of its levels in proportion to their probability. The one that happens to lead at first would
win, and the ranked probability score, whose gradient is proportional to the others, could hardly bring them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.head_place import Convolution, find_segmentation_layer, replace_module
from nnunetv2_deferral.multi_rater.ordinal import majority_level

# nnU-Net's, of leaky ReLU.
_NEGATIVE_SLOPE = 1e-2
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
# The levels within a majority are learned from the ranked probability score alone, which is averaged over all voxels,
# of which few are foreground; nnU-Net's Dice is not. Outputs times 4 are learned 16 times as fast by gradient descent.
_LEVEL_SCALE = 4.0
# The difference of two logits of a softmax starts with twice the variance of one, and is learned twice as fast.
_MAJORITY_SCALE = 2**0.5


class OrdinalOutput(NamedTuple):
    """The parts of a network output: segmentation logits (..., H, *S) and logits of the levels (..., F, K + 1, *S)."""

    segmentation: Tensor
    levels: Tensor


@dataclass(frozen=True)
class OrdinalChannels:
    """The order of the output channels: segmentation, then the levels of each structure.

    Attributes:
        num_segmentation_heads: H, as counted by nnU-Net's label manager (classes including background, or regions).
        has_regions: Whether the heads are regions.
        num_raters: The number K of raters.
    """

    num_segmentation_heads: int
    has_regions: bool
    num_raters: int

    @property
    def num_structures(self) -> int:
        """The number F of foreground classes or regions."""
        return self.num_segmentation_heads - (not self.has_regions)

    @property
    def num_levels(self) -> int:
        """The channels of the levels of all structures, F (K + 1)."""
        return self.num_structures * (self.num_raters + 1)

    @property
    def total(self) -> int:
        """H + F (K + 1), the number of output channels."""
        return self.num_segmentation_heads + self.num_levels

    def split(self, output: Tensor, dim: int = 1) -> OrdinalOutput:
        """Split a network output along its axis of channels into its parts (views).

        Raises:
            InputError: If the length of the axis is not H + F (K + 1).
        """
        if output.shape[dim] != self.total:
            raise InputError(
                f"expected {self.total} channels ({self.num_segmentation_heads} segmentation, {self.num_levels} for "
                f"{self.num_raters} raters), got {output.shape[dim]}"
            )
        segmentation, levels = output.split((self.num_segmentation_heads, self.num_levels), dim)
        return OrdinalOutput(segmentation, self.by_structure(levels, dim))

    def by_structure(self, levels: Tensor, dim: int = 1) -> Tensor:
        """Give the F (K + 1) channels of the levels, along `dim`, an axis for structures and one for levels."""
        return levels.unflatten(dim, (self.num_structures, self.num_raters + 1))


class OrdinalHead(nn.Module):
    """A layer for majority and levels of all structures, in the place of a segmentation layer.

    Args:
        replaced: The segmentation layer, whose kind, kernel and input the new layer has.
        channels: The output channels.
    """

    def __init__(self, replaced: Convolution, channels: OrdinalChannels) -> None:
        super().__init__()
        self.channels = channels
        kind: Any = type(replaced)
        self.layer = kind(
            replaced.in_channels,
            channels.num_structures * (channels.num_raters + 2),
            replaced.kernel_size,
            replaced.stride,
            replaced.padding,
        )
        weight, bias = self.layer.weight, self.layer.bias
        nn.init.kaiming_normal_(weight, a=_NEGATIVE_SLOPE)
        nn.init.zeros_(bias)
        # Levels start equally probable on each side. Transposed convolutions have their outputs on the second axis.
        by_output = weight.transpose(0, 1) if isinstance(replaced, _TRANSPOSED) else weight
        with torch.no_grad():
            by_output.unflatten(0, (channels.num_structures, -1))[:, 1:] = 0

    @property
    def in_channels(self) -> int:
        """The number C of feature channels."""
        return int(self.layer.in_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, *S) to segmentation logits and levels, (B, H + F (K + 1), *S)."""
        found = self.layer(features).float().unflatten(1, (self.channels.num_structures, -1))
        first = majority_level(self.channels.num_raters)
        majority, below, above = found.split([1, first, self.channels.num_raters + 1 - first], 2)
        if not self.channels.has_regions:
            majority = _MAJORITY_SCALE * majority
        below, above = (torch.log_softmax(_LEVEL_SCALE * side, 2) for side in (below, above))
        levels = torch.cat((below, above + majority), 2)
        logits = majority[:, :, 0]
        if not self.channels.has_regions:
            logits = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
        return torch.cat((logits, levels.flatten(1, 2)), 1)


def find_ordinal_place(network: nn.Module, input_shape: tuple[int, ...], num_heads: int) -> str:
    """The name of the segmentation layer of a network.

    Raises:
        InputError: If it has none, because its output is not that of a convolution.
    """
    try:
        return find_segmentation_layer(network, input_shape, num_heads)
    except InputError as error:
        raise InputError(
            f"cannot learn from several raters with {type(network).__name__}: the output of the network must be that "
            "of one convolution, which is replaced by one for the numbers of raters"
        ) from error


def add_ordinal_head(network: nn.Module, place: str, channels: OrdinalChannels) -> nn.Module:
    """Replace the segmentation layer of a network by an :class:`OrdinalHead`, in place.

    Args:
        network: The network, with H output channels.
        place: The name of its segmentation layer.
        channels: The output channels.

    Returns:
        The same network, with H + F (K + 1) output channels at full resolution, and at others H as before.

    Raises:
        InputError: If the network has no module of that name.
    """
    try:
        layer: Any = network.get_submodule(place)
    except AttributeError as error:
        raise InputError(
            f"the plans of this model place the ordinal head at {place}, which {type(network).__name__} does not have. "
            "Was the network changed after the training?"
        ) from error
    replace_module(network, layer, OrdinalHead(layer, channels))
    return network
