r"""The number of raters who mark a structure as an ordinal target (Galdran et al. 2026, arXiv 2605.02437).

K raters mark a structure at a voxel c times, c in {0, ..., K}. A network predicts K + 1 logits z, one for each level,
with p = softmax(z). From these follow

- the probability that at least half of the raters mark it, :math:`\sum_{k \ge K/2} p_k` (:func:`majority_logit`),
- the expected share of raters who mark it, E[c]/K (:func:`agreement`),
- the probability that they do not agree, 1 - p_0 - p_K (:func:`disagreement`).

Only the second can be calibrated to raters: at a voxel that one of four marks, the first should be 0, the second 1/4.

All functions take the levels of one structure along one axis; arrays of several structures have an axis before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING


def majority_level(num_raters: int) -> int:
    """The lowest number of raters that is at least half of them.

    Raises:
        InputError: If there is no rater.

    Example:
        >>> [majority_level(number) for number in (1, 2, 3, 4, 5)]
        [1, 1, 2, 2, 3]
    """
    if num_raters < 1:
        raise InputError(f"there must be at least one rater, got {num_raters}")
    return (num_raters + 1) // 2


def majority_logit(levels: Tensor, dim: int = 1) -> Tensor:
    r"""The log-odds that at least half of the raters mark the structure.

    .. math:: \log \sum_{k \ge K/2} e^{z_k} - \log \sum_{k < K/2} e^{z_k}

    Args:
        levels: Logits z with K + 1 entries along `dim`, any floating dtype; computed in float32 at least.
        dim: The axis of the levels.

    Returns:
        Without the axis; its sigmoid is the probability.
    """
    levels = _at_least_float32(levels)
    first = majority_level(levels.shape[dim] - 1)
    below, above = levels.split([first, levels.shape[dim] - first], dim)
    return torch.logsumexp(above, dim) - torch.logsumexp(below, dim)


def agreement(probabilities: Tensor, dim: int = 1) -> Tensor:
    """The expected share E[c]/K of raters who mark the structure, in [0, 1].

    Args:
        probabilities: Of the levels, K + 1 along `dim`, summing to 1.
        dim: The axis of the levels.

    Returns:
        Without the axis.
    """
    number = probabilities.shape[dim]
    shares = torch.linspace(0, 1, number, dtype=probabilities.dtype, device=probabilities.device)
    return torch.tensordot(probabilities.movedim(dim, -1), shares, dims=1).clamp(0, 1)


def disagreement(probabilities: Tensor, dim: int = 1) -> Tensor:
    """The probability 1 - p_0 - p_K that some raters mark the structure and others do not, in [0, 1].

    Args:
        probabilities: See :func:`agreement`.
        dim: The axis of the levels.

    Returns:
        Without the axis.
    """
    # A sum of what remains instead of a difference from 1, which would have the rounding of numbers close to 1.
    return probabilities.narrow(dim, 1, probabilities.shape[dim] - 2).sum(dim)


def count_raters(masks: Tensor, structures: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Count the raters who mark each structure, and those who saw the voxel.

    Args:
        masks: The raters' label maps, integer (B, K, *S), `MISSING` where a rater has no label.
        structures: For each of the F structures its labels.

    Returns:
        The marks c, int64 (B, F, *S), and the number K_v of raters with a label, int64 (B, 1, *S).
    """
    seen = (masks != MISSING).sum(1, keepdim=True)
    marks = [
        torch.isin(masks, torch.tensor(tuple(labels), dtype=masks.dtype, device=masks.device)).sum(1)
        for labels in structures
    ]
    return torch.stack(marks, 1), seen


def ranked_probability_score(levels: Tensor, marks: Tensor, seen: Tensor) -> Tensor:
    r"""The ranked probability score of each voxel and structure.

    .. math:: \frac{1}{K + 1} \sum_{j=0}^{K} (F_j - P_j)^2,
        \quad F_j = [c / K_v \le j / K], \quad P_j = p_0 + \dots + p_j

    Where all raters saw the voxel, K_v = K and F_j = [c <= j]. Where fewer than two did, c says nothing of agreement,
    and the score is 0, unless there is only one rater at all.

    Args:
        levels: Logits z, (B, F, K + 1, *S), any floating dtype; computed in float32 at least.
        marks: The number c of raters who mark the structure, integer (B, F, *S).
        seen: The number K_v of raters who saw the voxel, integer (B, F, *S) or (B, 1, *S).

    Returns:
        (B, F, *S), in [0, K/(K + 1)]; differentiable with respect to the levels.
    """
    number = levels.shape[2] - 1
    cumulative = torch.softmax(_at_least_float32(levels), 2).cumsum(2)
    reached = torch.arange(number + 1, device=levels.device).view(-1, *[1] * (levels.ndim - 3))
    # In whole numbers, because c / K_v <= j / K in floating point would depend on rounding.
    ideal = number * marks.unsqueeze(2) <= reached * seen.unsqueeze(2)
    score = (ideal.to(cumulative.dtype) - cumulative).square().sum(2) / (number + 1)
    return torch.where(seen >= min(2, number), score, 0)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
