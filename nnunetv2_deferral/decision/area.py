"""What a voxel is worth: Dice rewards a voxel put right in a small object more than one in a large object."""

from __future__ import annotations

import torch
from torch import Tensor

# A case in which nothing is predicted has an expected area near 0; what is gained there is bounded by the Dice of an
# object of this many voxels.
SMALLEST_AREA = 10.0
_SLICES_AT_ONCE = 16


def dice_weight(probabilities: Tensor, *, num_voxels: int | None = None) -> Tensor:
    r"""About how much mean foreground Dice rises for each voxel that is put right.

    .. math:: w = \frac{1}{K} \sum_k \frac{q_k}{2 \max(A_k, 10)}, \quad
              q_k = \frac{p_k (1 - p_k)}{\sum_l p_l (1 - p_l)}, \quad A_k = \sum p_k

    A_k is the area that class k is expected to have, and q_k how much the doubt at a voxel is about class k. One more
    voxel that was missed adds (2 - Dice) / (A_k + B_k) to the Dice with a reference of area B_k, one less that was too
    many Dice / (A_k + B_k). Both are about 1 / (2 A_k) for a mask that is about right.

    Args:
        probabilities: (K, *S), floating, of the K >= 1 foreground classes or regions.
        num_voxels: The number of voxels of S at the resolution that Dice is computed at, if that is another.

    Returns:
        float32: (1, *S), or (1, 1, ..., 1) for one class, where all voxels are worth the same.
    """
    scale = 1.0 if num_voxels is None else num_voxels / max(probabilities[0].numel(), 1)
    classes = len(probabilities)
    area = probabilities.sum(dim=tuple(range(1, probabilities.ndim)), dtype=torch.float64) * scale
    voxel_weight = (0.5 / (classes * area.clamp(min=SMALLEST_AREA))).float()
    if classes == 1:
        return voxel_weight.view(1, *[1] * (probabilities.ndim - 1))
    pieces = []
    for part in probabilities.split(_SLICES_AT_ONCE, dim=1):
        # Where all are sure the doubt is about all alike.
        doubt = (part.float() * (1 - part.float())).clamp(min=1e-12)
        pieces.append(torch.einsum("k...,k->...", doubt, voxel_weight) / doubt.sum(0))
    return torch.cat(pieces).unsqueeze(0)
