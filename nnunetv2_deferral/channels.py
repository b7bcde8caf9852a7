"""Which output channel of a deferral network is what, and how a routing decision is read off it.

A deferral network has K + J + 2 output channels: K segmentation heads as nnU-Net plans them, J + 1 routing logits
(route 0 is the model itself, route j is expert j) and one aggregated deferral logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


class DeferralOutput(NamedTuple):
    """The parts of a network output, each with its channels along the axis that was split."""

    segmentation: Tensor
    routing: Tensor
    aggregated: Tensor


@dataclass(frozen=True)
class ChannelLayout:
    """The order of the output channels: segmentation, routing, aggregated.

    Attributes:
        num_segmentation_heads: K, as nnU-Net's label manager counts them (classes with background, or regions).
        num_experts: J.
    """

    num_segmentation_heads: int
    num_experts: int

    @property
    def num_routes(self) -> int:
        """J + 1: the model and the experts."""
        return self.num_experts + 1

    @property
    def total(self) -> int:
        """K + J + 2, all output channels."""
        return self.num_segmentation_heads + self.num_routes + 1

    def split(self, output: Tensor, dim: int = 1) -> DeferralOutput:
        """Split a network output of K + J + 2 channels along `dim` into its parts (views).

        Raises:
            ValueError: If the axis does not hold K + J + 2 channels.
        """
        if output.shape[dim] != self.total:
            raise ValueError(
                f"expected {self.total} channels ({self.num_segmentation_heads} segmentation, {self.num_routes} "
                f"routing, 1 aggregated), got {output.shape[dim]}"
            )
        return DeferralOutput(*output.split((self.num_segmentation_heads, self.num_routes, 1), dim=dim))


# How far below the model a closed route is: its probability is nothing then. Finite, as nnU-Net adds up logits in
# float16 when it averages tiles.
_NEVER = -100.0


def close_routes(routing: Tensor, open_to: Tensor) -> Tensor:
    """Routing logits with which no voxel goes to an expert who is not there; those experts get no gradient.

    Args:
        routing: Logits (B, J + 1, *S).
        open_to: Bool, broadcastable to (B, J, *S): where each expert can be asked.
    """
    model = routing[:, :1]
    experts = torch.where(open_to, routing[:, 1:], (model.detach() + _NEVER).clamp(max=_NEVER))
    return torch.cat((model, experts), dim=1)


def routing_log_probabilities(routing: Tensor, dim: int = 1) -> Tensor:
    """log M_j, the log-softmax of the routing logits (Eq. 5), always in float32.

    Args:
        routing: Routing logits with J + 1 channels along `dim`, any floating dtype.

    Returns:
        float32 of the same shape, finite for finite logits.
    """
    return torch.log_softmax(routing.float(), dim=dim)


def routing_decision(routing: Array, axis: int = 1) -> Array:
    """The highest of the channels along an axis, such as the route of every voxel (Sec. 4.2.1).

    Ties go to the lower channel, so that the model keeps what nobody does better.

    Returns:
        Integers, without the channel axis.
    """
    # On a CPU torch's max along an axis is ten times faster than its argmax; both have the first of equals.
    return routing.argmax(axis) if isinstance(routing, np.ndarray) else routing.max(axis).indices
