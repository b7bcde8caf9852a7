"""The load-balancing penalty (LB), Eqs. (8) and (9) of DeferredSeg."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce


def routing_ratio(log_routing: Tensor, valid: Tensor | None = None, known: Tensor | None = None) -> Tensor:
    """rho_j, the mean routing probability of each expert over batch and voxels (Eq. 8).

    In distributed training it is the mean over the batches of all processes, with gradients accordingly.

    Args:
        log_routing: log M, float32 (B, J + 1, *S).
        valid: Bool (B, *S), the voxels that count, or None for all.
        known: Bool (B, J, *S), where each expert has a label, or None for everywhere. An expert's mean is over the
            voxels with a label of that expert.

    Returns:
        float32 (J,), each in [0, 1]; 0 if no voxel counts.
    """
    probabilities = log_routing[:, 1:].exp()
    weights = None if valid is None else valid.unsqueeze(1).expand_as(probabilities)
    if known is not None:
        weights = known if weights is None else weights & known
    if weights is None:
        number = probabilities.new_full((probabilities.shape[1],), probabilities[:, 0].numel())
    else:
        probabilities = probabilities * weights
        number = weights.transpose(0, 1).flatten(1).sum(1).to(probabilities.dtype)
    load = probabilities.transpose(0, 1).flatten(1).sum(1)
    if distributed.is_available() and distributed.is_initialized():
        load, number = all_reduce(load), all_reduce(number)
    return load / number.clamp(min=1)


def balance_loss(ratio: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    r"""Penalise experts that are over- or under-used (Eq. 9).

    .. math:: \sum_{j=1}^{J} \max(\rho_j - u_j, 0) + \max(l_j - \rho_j, 0)

    The bounds apply to the mean routing probability, not to the share of voxels that the argmax routes to an expert.

    Args:
        ratio: rho, float32 (J,), from :func:`routing_ratio`.
        lower: l, float32 (J,).
        upper: u, float32 (J,).

    Returns:
        A scalar.

    Example:
        The first expert's ratio is 0.15 above its upper bound, the second's 0.08 below its lower bound:

        >>> import torch
        >>> from nnunetv2_deferral import balance_loss
        >>> ratio = torch.tensor([0.50, 0.02])
        >>> round(balance_loss(ratio, torch.tensor([0.15, 0.10]), torch.tensor([0.35, 0.25])).item(), 3)
        0.23
    """
    return (torch.relu(ratio - upper) + torch.relu(lower - ratio)).sum()
