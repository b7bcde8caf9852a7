"""Training targets from several raters: the majority, a random rater."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.multi_rater.ordinal import count_raters


def majority_label(reference: Tensor, masks: Tensor, labels: Sequence[int]) -> Tensor:
    """The label map of the majority of raters.

    A foreground label needs half of those who saw the voxel, background too; between the two, foreground wins. Where
    two foreground labels have half each, the reference's counts if it is one of them, else the first. Where no label
    has half, and where nobody saw the voxel, the reference is kept.

    Args:
        reference: Integer (1, *S).
        masks: The raters' label maps, integer (K, *S), `MISSING` where a rater has no label.
        labels: The foreground labels.

    Returns:
        Of the shape and dtype of the reference.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[0, 1, 1, 0], [1, 2, 0, 0], [1, 3, 2, 0], [0, 2, 2, 1]])
        >>> majority_label(torch.tensor([[3, 3, 3, 3]]), masks, (1, 2, 3)).tolist()
        [[1, 2, 2, 0]]
    """
    marks, seen = (found[0] for found in count_raters(masks[None], [(label,) for label in (0, *labels)]))
    has_half = (2 * marks >= seen) & (seen > 0)
    values = torch.tensor((0, *labels), dtype=reference.dtype, device=reference.device)
    foreground = has_half[1:]
    first = values[1:][foreground.to(torch.uint8).argmax(0)]
    is_reference = reference == values[1:].view(-1, *[1] * (reference.ndim - 1))
    first = torch.where((foreground & is_reference).any(0), reference[0], first)
    without = torch.where(has_half[0], torch.zeros_like(reference[0]), reference[0])
    return torch.where(foreground.any(0), first, without)[None]


def majority_of_regions(reference: Tensor, masks: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """The regions of the majority of raters: at least half of those who saw the voxel.

    Args:
        reference: The reference's regions, bool or 0 and 1, (F, *S).
        masks: See :func:`majority_label`.
        regions: For each region its labels.

    Returns:
        Of the shape and dtype of the reference, which is kept where nobody saw the voxel.
    """
    marks, seen = (found[0] for found in count_raters(masks[None], regions))
    return torch.where(seen > 0, (2 * marks >= seen).to(reference.dtype), reference)


def random_rater(masks: Tensor, generator: np.random.Generator) -> Tensor:
    """The label map of a random one of the raters who labelled any voxel.

    Args:
        masks: See :func:`majority_label`.
        generator: The source of randomness.

    Returns:
        (1, *S), `MISSING` everywhere if nobody labelled a voxel.
    """
    there = np.flatnonzero((masks != MISSING).flatten(1).any(1).numpy())
    chosen = int(generator.choice(there)) if len(there) else 0
    return masks[chosen : chosen + 1]
