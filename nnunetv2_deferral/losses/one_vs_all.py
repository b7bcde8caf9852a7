"""The one-vs-all loss: a binary problem for the model and each expert (Verma & Nalisnick 2022, Eq. 9, voxel-wise)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_deferral.losses.reduction import mean_over_voxels


def one_vs_all_loss(
    routing: Tensor,
    expert_right: Tensor,
    model_right: Tensor,
    *,
    valid: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy for the correctness of the model and of each expert.

    .. math:: \frac{1}{N} \sum_i \mathrm{BCE}(f_0, [\hat y = y]) + \sum_{j=1}^{J} \mathrm{BCE}(f_j, [m_j = y])

    This is a proper scoring rule for each of the J + 1 probabilities separately: at its minimum sigmoid(f_j) is the
    probability of being right, independently of the other heads. The indicators have no gradient.

    Args:
        routing: Logits f, (B, J + 1, *S), any floating dtype; computed in float32.
        expert_right: Bool (B, J, *S), where each expert's label equals the reference.
        model_right: Bool (B, *S), where the model's label equals the reference.
        valid: Bool (B, *S), the voxels that count (not ignored), or None for all.
        known: Bool (B, J, *S), where each expert has a label, or None for everywhere. Elsewhere the expert has no term.

    Returns:
        A scalar; 0 if no voxel counts.

    Example:
        One expert, two voxels; a head that predicts correctness has a lower loss:

        >>> import torch
        >>> from nnunetv2_deferral import one_vs_all_loss
        >>> expert_right, model_right = torch.tensor([[[True, True]]]), torch.tensor([[False, True]])
        >>> for logits in ([[0.0, 0.0], [0.0, 0.0]], [[-3.0, 3.0], [3.0, 3.0]]):  # of the model, of the expert
        ...     print(round(one_vs_all_loss(torch.tensor([logits]), expert_right, model_right).item(), 3))
        1.386
        0.097
    """
    right = torch.cat((model_right.unsqueeze(1), expert_right), dim=1).float()
    # softplus(f) - f [right] = -log sigmoid(f) or -log(1 - sigmoid(f)), finite for any logit.
    values = functional.binary_cross_entropy_with_logits(routing.float(), right, reduction="none")
    experts = values[:, 1:] if known is None else torch.where(known, values[:, 1:], 0)
    return mean_over_voxels(values[:, 0] + experts.sum(1), valid)
