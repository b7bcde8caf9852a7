"""Weights of voxels: a corrected voxel raises the Dice of a small object more than that of a large one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Lower bound of the expected area, which is near 0 if nothing is predicted; it bounds the weights.
SMALLEST_AREA = 10.0
_SLICES_AT_ONCE = 16


def softmax_weight(softmax: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """:func:`dice_weight` of saved probabilities of classes, background first, or of regions.

    Returns:
        float32 that broadcasts to S.
    """
    return dice_weight(torch.from_numpy(softmax if has_regions else softmax[1:])).numpy()[0]


def dice_weight(probabilities: Tensor, *, num_voxels: int | None = None) -> Tensor:
    r"""The approximate increase of mean foreground Dice per corrected voxel.

    .. math:: w = \frac{1}{K} \sum_k \frac{q_k}{2 \max(A_k, 10)}, \quad
              q_k = \frac{p_k (1 - p_k)}{\sum_l p_l (1 - p_l)}, \quad A_k = \sum p_k

    A_k is the expected area of class k, and q_k the share of class k in the uncertainty at a voxel. Adding a missed
    voxel raises the Dice with a reference of area B_k by (2 - Dice) / (A_k + B_k), removing a false positive by
    Dice / (A_k + B_k). Both are about 1 / (2 A_k) if A_k is close to B_k and Dice not far from 1.

    Args:
        probabilities: (K, *S), floating, of the K >= 1 foreground classes or regions.
        num_voxels: The number of voxels at the resolution at which Dice is computed; None if it is that of S.

    Returns:
        float32: (1, *S), or (1, 1, ..., 1) for one class, where all voxels have the same weight.
    """
    scale = 1.0 if num_voxels is None else num_voxels / max(probabilities[0].numel(), 1)
    classes = len(probabilities)
    area = probabilities.sum(dim=tuple(range(1, probabilities.ndim)), dtype=torch.float64) * scale
    voxel_weight = (0.5 / (classes * area.clamp(min=SMALLEST_AREA))).float()
    if classes == 1:
        return voxel_weight.view(1, *[1] * (probabilities.ndim - 1))
    pieces = []
    for part in probabilities.split(_SLICES_AT_ONCE, dim=1):
        # Where all classes are certain the weights are uniform.
        doubt = (part.float() * (1 - part.float())).clamp(min=1e-12)
        pieces.append(torch.einsum("k...,k->...", doubt, voxel_weight) / doubt.sum(0))
    return torch.cat(pieces).unsqueeze(0)
