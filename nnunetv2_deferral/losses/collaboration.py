"""The deferral collaboration loss (DC), Eq. (4) of DeferredSeg, without its segmentation term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunetv2_deferral.losses.reduction import mean_over_voxels

# For a wrong expert the loss is + log M_j, which falls without bound as M_j goes to 0; the floor ends the reward.
LOG_FLOOR = math.log(1e-8)


def collaboration_loss(
    log_routing: Tensor, expert_right: Tensor, model_right: Tensor, counts: Tensor | None = None
) -> Tensor:
    r"""Reward routing to those who are right, punish routing to experts who are wrong.

    .. math:: \frac{1}{N} \sum_i \sum_{j=1}^{J} (1 - 2 [m_j = y]) \log M_j - [\hat y = y] \log M_0

    No gradient flows through the indicators. Log-probabilities are floored at `LOG_FLOOR`, below which their gradient
    is 0.

    Args:
        log_routing: log M, float32 (B, J + 1, *S), from `routing_log_probabilities`.
        expert_right: Bool (B, J, *S), where each expert's label equals the reference.
        model_right: Bool (B, *S), where the model's does.
        counts: Bool (B, *S), the voxels that count (not ignored), or None for all.

    Returns:
        A scalar; 0 where no voxel counts.
    """
    floored = log_routing.clamp(min=LOG_FLOOR)
    experts = torch.where(expert_right, -floored[:, 1:], floored[:, 1:]).sum(1)
    model = torch.where(model_right, floored[:, 0], 0)
    return mean_over_voxels(experts - model, counts)
