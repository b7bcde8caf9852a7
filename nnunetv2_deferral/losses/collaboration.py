"""The deferral collaboration loss (DC), Eq. (4) of DeferredSeg, without its segmentation term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunetv2_deferral.losses.reduction import mean_over_voxels

# For a wrong expert the loss is + log M_j, which is unbounded below as M_j goes to 0; the floor limits it.
LOG_FLOOR = math.log(1e-8)


def collaboration_loss(
    log_routing: Tensor,
    expert_right: Tensor,
    model_right: Tensor,
    *,
    valid: Tensor | None = None,
    known: Tensor | None = None,
    costs: Tensor | None = None,
) -> Tensor:
    r"""Reward routing to a right model or expert and penalise routing to experts who are wrong.

    .. math:: \frac{1}{N} \sum_i \sum_{j=1}^{J} (1 - (2 - c_j) [m_j = y]) \log M_j - [\hat y = y] \log M_0

    With costs c_j = 0 this is the paper's loss. A cost reduces the reward for routing to an expert who is right, so
    that an expert must be better than the model by the cost. The indicators have no gradient. Log-probabilities are
    clamped from below at `LOG_FLOOR`, where their gradient is 0.

    Args:
        log_routing: log M, float32 (B, J + 1, *S), from `routing_log_probabilities`.
        expert_right: Bool (B, J, *S), where each expert's label equals the reference.
        model_right: Bool (B, *S), where the model's label equals the reference.
        valid: Bool (B, *S), the voxels that count (not ignored), or None for all.
        known: Bool (B, J, *S), where each expert has a label, or None for everywhere. Elsewhere the expert has no term.
        costs: float32 (J,), c_j in [0, 1], or None for 0.

    Returns:
        A scalar; 0 if no voxel counts.

    Example:
        One expert, two voxels: the expert is right at the first, the model at the second. Correct routing lowers the
        loss:

        >>> import torch
        >>> from nnunetv2_deferral import collaboration_loss
        >>> expert_right, model_right = torch.tensor([[[True, False]]]), torch.tensor([[False, True]])
        >>> for logits in ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [2.0, 0.0]]):  # of the model, of the expert
        ...     log_routing = torch.log_softmax(torch.tensor([logits]), dim=1)
        ...     print(round(collaboration_loss(log_routing, expert_right, model_right).item(), 3))
        0.347
        -0.937
    """
    floored = log_routing.clamp(min=LOG_FLOOR)
    reward = 1.0 if costs is None else (1 - costs).view(1, -1, *[1] * (floored.ndim - 2))
    experts = torch.where(expert_right, -reward * floored[:, 1:], floored[:, 1:])
    if known is not None:
        experts = torch.where(known, experts, 0)
    model = torch.where(model_right, floored[:, 0], 0)
    return mean_over_voxels(experts.sum(1) - model, valid)
