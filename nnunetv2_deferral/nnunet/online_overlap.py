"""Counts for nnU-Net's pseudo Dice in the validation of an epoch."""

from __future__ import annotations

import numpy as np
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import Tensor

from nnunetv2_deferral.labels import LabelSpace


def overlap_counts(answer: Tensor, reference: Tensor, mask: Tensor | None, labels: LabelSpace) -> list[np.ndarray]:
    """True positives, false positives and false negatives of each foreground head over a batch.

    Args:
        answer: (B, C, *S), see :mod:`.labels`.
        reference: Of the same shape.
        mask: (B, 1, *S), 1 where voxels count, or None for everywhere.
        labels: The label space.
    """
    axes = [0, *range(2, answer.ndim)]
    one_hot = labels.one_hot(answer).float()
    tp, fp, fn, _ = get_tp_fp_fn_tn(one_hot, labels.one_hot(reference).float(), axes=axes, mask=mask)
    first = 0 if labels.regions is not None else 1
    return [count.cpu().numpy()[first:] for count in (tp, fp, fn)]
