"""The output channels of a deferral network.

A deferral network has K + J + 2 output channels: K segmentation heads as nnU-Net plans them, J + 1 routing logits
(route 0 is the model itself, route j is expert j) and one aggregated deferral logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nnunetv2_deferral.errors import InputError


class DeferralOutput(NamedTuple):
    """The parts of a network output, with the channels on the same axis as in the output."""

    segmentation: Tensor
    routing: Tensor
    aggregated: Tensor


@dataclass(frozen=True)
class ChannelLayout:
    """The order of the output channels: segmentation, routing, aggregated.

    Attributes:
        num_segmentation_heads: K, as counted by nnU-Net's label manager (classes including background, or regions).
        num_experts: The number J of experts.
    """

    num_segmentation_heads: int
    num_experts: int

    @property
    def num_routes(self) -> int:
        """J + 1: the model and the experts."""
        return self.num_experts + 1

    @property
    def total(self) -> int:
        """K + J + 2, the number of output channels."""
        return self.num_segmentation_heads + self.num_routes + 1

    def split(self, output: Tensor, dim: int = 1) -> DeferralOutput:
        """Split a network output of K + J + 2 channels along `dim` into its parts (views).

        Raises:
            InputError: If the length of the axis is not K + J + 2.
        """
        if output.shape[dim] != self.total:
            raise InputError(
                f"expected {self.total} channels ({self.num_segmentation_heads} segmentation, {self.num_routes} "
                f"routing, 1 aggregated), got {output.shape[dim]}"
            )
        return DeferralOutput(*output.split((self.num_segmentation_heads, self.num_routes, 1), dim=dim))
