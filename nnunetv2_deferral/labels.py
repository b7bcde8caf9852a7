"""Answers and their correctness: classes, regions and the ignore label.

Losses and online metrics compare answers, not logits. An *answer* is a tensor (B, C, *S). With classes, C = 1 and the
value is the label. With nnU-Net's region-based training, C is the number of regions and the values are memberships;
an answer is right only if all memberships agree with the reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Label of voxels that an expert did not answer. nnU-Net's -1 has another meaning: a voxel outside the image.
MISSING = -2

_UNKNOWN_LISTED = 10


def unknown_labels(values: np.ndarray, known: Iterable[int | None]) -> str:
    """List the values of a label map that are not known labels.

    Args:
        values: Label map, any real dtype and shape.
        known: The known labels; None is ignored.

    Returns:
        The unknown values, ascending and separated by commas, for a message; at most 10. Empty if there are none.
    """
    allowed = [label for label in known if label is not None]
    outside = ~np.isin(values, allowed)
    if not outside.any():
        return ""
    unknown = np.unique(values[outside])
    more = ", ..." if unknown.size > _UNKNOWN_LISTED else ""
    return ", ".join(f"{value:g}" for value in unknown[:_UNKNOWN_LISTED]) + more


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a dataset as encoded by a deferral network.

    Attributes:
        num_segmentation_heads: The number K of classes including background, or of regions.
        regions: For region-based training, the labels of each region, in head order; else None.
        ignore_label: The label of voxels excluded from training and evaluation, or None.
    """

    num_segmentation_heads: int
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore_label: int | None = None

    def answer(self, segmentation_logits: Tensor) -> Tensor:
        """The model's answer (B, C, *S) from its segmentation logits (B, K, *S); detached."""
        logits = segmentation_logits.detach()
        # max instead of argmax for speed, as in `routing.routing_decision`.
        return logits > 0 if self.regions is not None else logits.max(1, keepdim=True).indices

    def encode(self, label_maps: Tensor) -> Tensor:
        """Encode label maps (B, J, *S), integer, as answers (J, B, C, *S)."""
        maps = label_maps.transpose(0, 1)
        if self.regions is None:
            return maps.unsqueeze(2)
        members = [torch.isin(maps, torch.tensor(region, device=maps.device)) for region in self.regions]
        return torch.stack(members, dim=2)

    def reference(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split nnU-Net's training target into the reference answer and the mask of valid voxels.

        Args:
            target: With classes (B, 1, *S), integer; with regions (B, R, *S), bool, plus a last channel that marks
                ignored voxels if there is an ignore label.

        Returns:
            The reference (B, C, *S), 0 at ignored voxels, and a bool mask (B, *S) of valid voxels, or None without an
            ignore label.
        """
        if self.regions is not None:
            if self.ignore_label is None:
                return target.bool(), None
            return target[:, :-1].bool(), ~target[:, -1].bool()
        if self.ignore_label is None:
            return target.long(), None
        valid = target != self.ignore_label
        return torch.where(valid, target, 0).long(), valid[:, 0]

    def one_hot(self, answer: Tensor) -> Tensor:
        """An answer (B, C, *S) as one bool channel per head, (B, K, *S)."""
        if self.regions is not None:
            return answer
        classes = torch.arange(self.num_segmentation_heads, device=answer.device)
        return answer == classes.view(1, -1, *[1] * (answer.ndim - 2))


def is_right(answer: Tensor, reference: Tensor) -> Tensor:
    """Where an answer (..., B, C, *S) equals the reference (B, C, *S): bool (..., B, *S).

    `answer` may have further leading axes, such as one for experts.
    """
    return (answer == reference).all(dim=answer.ndim - reference.ndim + 1)
