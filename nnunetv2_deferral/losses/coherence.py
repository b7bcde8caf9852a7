"""The spatial-coherence loss (SC), Eq. (7) of DeferredSeg."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_deferral.losses.reduction import mean_over_voxels


def coherence_loss(
    aggregated: Tensor,
    deferred: Tensor,
    soft_deferred: Tensor,
    *,
    beta_consistency: float,
    beta_rate: float,
    trains_routing: bool,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Fit the aggregated deferral predictor to the routing decisions, with a penalty on the deferral rate.

    .. math:: \frac{1}{N} \sum_i \mathrm{BCE}(A, \bar M) + \beta_1 (A - \sum_{j>0} M_j)^2 + \beta_2 A

    with A = sigmoid(aggregated) and the target M-bar = [argmax_j M_j != 0] of Eq. (6), which has no gradient. With the
    one-vs-all objective, M-bar is that rule's decision, and the sum is replaced by its score.

    Args:
        aggregated: Aggregated deferral logit (B, 1, *S), any floating dtype.
        deferred: M-bar, bool (B, *S).
        soft_deferred: The sum over the experts' M_j, float32 (B, *S).
        beta_consistency: beta_1, the weight of the squared difference.
        beta_rate: beta_2, the weight of the deferral rate.
        trains_routing: True for the paper's form, in which the squared term has a gradient in the routing logits too.
        valid: Bool (B, *S), the voxels that count, or None for all.

    Returns:
        A scalar; 0 if no voxel counts.

    Example:
        >>> import torch
        >>> from nnunetv2_deferral import coherence_loss
        >>> routing = torch.tensor([[[0.3, 0.9], [0.7, 0.1]]])  # of the model, of one expert, at two voxels
        >>> deferred, soft_deferred = routing.argmax(1) != 0, routing[:, 1:].sum(1)
        >>> weights = {"beta_consistency": 0.5, "beta_rate": 0.1, "trains_routing": False}
        >>> for logit in ([0.0, 0.0], [3.0, -3.0]):
        ...     print(round(coherence_loss(torch.tensor([[logit]]), deferred, soft_deferred, **weights).item(), 3))
        0.793
        0.115
    """
    logit = aggregated[:, 0].float()
    probability = torch.sigmoid(logit)
    if not trains_routing:
        soft_deferred = soft_deferred.detach()
    values = functional.binary_cross_entropy_with_logits(logit, deferred.float(), reduction="none")
    values = values + beta_consistency * (probability - soft_deferred).square() + beta_rate * probability
    return mean_over_voxels(values, valid)
