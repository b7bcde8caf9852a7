"""What counts as an answer and when it is right: classes, regions and the ignore label.

Losses and online metrics compare answers, not logits. An *answer* is a tensor (B, C, *S): with classes C = 1 and the
value is the label; with nnU-Net's region-based training C is the number of regions and the values are memberships, so
that an answer is right only if the whole region set agrees with the reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# An expert's label where the expert gave none. nnU-Net's own -1 is another thing: what lies outside of the image.
MISSING = -2

_UNKNOWN_LISTED = 10


def unknown_labels(values: np.ndarray, known: Iterable[int | None]) -> str:
    """The values that are none of the known labels, ascending, as words for a message; empty if there are none.

    Args:
        values: Of a label map, any real dtype and shape.
        known: The labels there may be; None is passed over.
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
    """The labels of a dataset as a deferral network sees them.

    Attributes:
        num_segmentation_heads: K.
        regions: For region-based training, the labels that form each region, in head order; else None.
        ignore_label: The label whose voxels count nowhere, or None.
    """

    num_segmentation_heads: int
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore_label: int | None = None

    def answer(self, segmentation_logits: Tensor) -> Tensor:
        """The model's answer (B, C, *S) from its K segmentation logits (B, K, *S); carries no gradient."""
        logits = segmentation_logits.detach()
        # As in `channels.routing_decision`, max and not argmax.
        return logits > 0 if self.regions is not None else logits.max(1, keepdim=True).indices

    def encode(self, label_maps: Tensor) -> Tensor:
        """Label maps (B, J, *S), integer, as answers (J, B, C, *S)."""
        maps = label_maps.transpose(0, 1)
        if self.regions is None:
            return maps.unsqueeze(2)
        members = [torch.isin(maps, torch.tensor(region, device=maps.device)) for region in self.regions]
        return torch.stack(members, dim=2)

    def reference(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split nnU-Net's training target into the reference answer and the voxels that count.

        Args:
            target: With classes (B, 1, *S), integer; with regions (B, R, *S), bool, and one more channel that marks
                ignored voxels where there is an ignore label.

        Returns:
            The reference (B, C, *S) and a bool mask (B, *S) of the voxels that count, None if all do. Ignored voxels
            hold class 0.
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
        """An answer (B, C, *S) as one bool channel a head, (B, K, *S)."""
        if self.regions is not None:
            return answer
        classes = torch.arange(self.num_segmentation_heads, device=answer.device)
        return answer == classes.view(1, -1, *[1] * (answer.ndim - 2))


def is_right(answer: Tensor, reference: Tensor) -> Tensor:
    """Where an answer (..., C, *S) equals the reference (B, C, *S): bool, without the axis C.

    `answer` may have further leading axes, such as one an expert.
    """
    return (answer == reference).all(dim=answer.ndim - reference.ndim + 1)
