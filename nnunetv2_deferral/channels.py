"""The output channels of a deferral network.

A deferral network has K + J + 2 output channels: K segmentation heads as nnU-Net plans them, J + 1 routing logits
(route 0 is the model itself, route j is expert j) and one aggregated deferral logit. One that also learns how far
raters agree (:mod:`.multi_rater`) has the levels of its ordinal head behind the segmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nnunetv2_deferral.errors import InputError


class DeferralOutput(NamedTuple):
    """The parts of a network output, with the channels on the same axis as in the output."""

    segmentation: Tensor
    levels: Tensor
    routing: Tensor
    aggregated: Tensor


@dataclass(frozen=True)
class ChannelLayout:
    """The order of the output channels: segmentation, levels if there are any, routing, aggregated.

    Attributes:
        num_segmentation_heads: K, as counted by nnU-Net's label manager (classes including background, or regions).
        num_experts: The number J of experts.
        num_levels: The number L of channels of an ordinal head, F (J + 1) for F structures; 0 without one.
        with_aggregated: Whether the output has the aggregated channel; predictions that do not write it leave it out.
    """

    num_segmentation_heads: int
    num_experts: int
    num_levels: int = 0
    with_aggregated: bool = True

    @property
    def num_routes(self) -> int:
        """J + 1: the model and the experts."""
        return self.num_experts + 1

    @property
    def total(self) -> int:
        """K + L + J + 2, the number of output channels; one less without the aggregated channel."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.num_segmentation_heads, self.num_levels, self.num_routes, int(self.with_aggregated)

    def split(self, output: Tensor, dim: int = 1) -> DeferralOutput:
        """Split a network output along `dim` into its parts (views); without the aggregated channel, its part is empty.

        Raises:
            InputError: If the length of the axis is not :attr:`total`.
        """
        if output.shape[dim] != self.total:
            raise InputError(
                f"expected {self.total} channels ({self.num_segmentation_heads} segmentation, "
                + (f"{self.num_levels} levels, " if self.num_levels else "")
                + f"{self.num_routes} routing, {int(self.with_aggregated)} aggregated), got {output.shape[dim]}"
            )
        return DeferralOutput(*output.split(self._sizes, dim=dim))
