"""The losses of trainings with several raters.

The modules are called as nnU-Net calls its own losses. Their target is a list: nnU-Net's targets, finest first, then
the raters' label maps at full resolution, integer (B, K, *S), `MISSING` where a rater has no label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, autocast, nn
from torch.nn import functional

from nnunetv2_deferral.labels import LabelSpace
from nnunetv2_deferral.losses.reduction import mean_over_voxels
from nnunetv2_deferral.multi_rater.ordinal import count_raters, majority_logit, ranked_probability_score
from nnunetv2_deferral.multi_rater.ordinal_head import OrdinalChannels

Outputs = Tensor | Sequence[Tensor]

RPS_WEIGHT = 0.8


def structures_of(labels: LabelSpace) -> tuple[tuple[int, ...], ...]:
    """The labels of each foreground class or region, in the order of nnU-Net's channels."""
    if labels.regions is not None:
        return labels.regions
    return tuple((label,) for label in range(1, labels.num_segmentation_heads))


def multi_rater_loss(
    levels: Tensor,
    marks: Tensor,
    seen: Tensor,
    *,
    valid: Tensor | None = None,
    weight: float = RPS_WEIGHT,
) -> Tensor:
    """The paper's loss: binary cross-entropy of the majority, and the ranked probability score.

    L = BCE(p_fg, [c >= K/2]) + 0.8 RPS, averaged over the voxels and structures that any rater saw. The trainer has
    nnU-Net's loss in place of the first term.

    Args:
        levels: See :func:`.ranked_probability_score`.
        marks: See :func:`.ranked_probability_score`.
        seen: See :func:`.ranked_probability_score`.
        valid: Bool (B, *S), the voxels that count (not ignored), or None for all.
        weight: The weight of the ranked probability score.

    Returns:
        A scalar; 0 if no voxel counts.

    Example:
        Two of four raters mark a voxel. The loss is lower where the network expects that:

        >>> import torch
        >>> from nnunetv2_deferral import multi_rater_loss
        >>> marks, seen = torch.tensor([[[2]]]), torch.tensor([[[4]]])
        >>> for peak in (0, 2, 4):
        ...     levels = torch.zeros(1, 1, 5, 1)
        ...     levels[0, 0, peak] = 5.0
        ...     print(peak, round(multi_rater_loss(levels, marks, seen).item(), 3))
        0 4.233
        2 0.013
        4 0.319
    """
    seen = seen.expand_as(marks)
    logit = majority_logit(levels, 2)
    cross_entropy = functional.binary_cross_entropy_with_logits(
        logit, (2 * marks >= seen).to(logit.dtype), reduction="none"
    )
    values = cross_entropy + weight * ranked_probability_score(levels, marks, seen)
    counts = seen > 0
    return mean_over_voxels(values, counts if valid is None else counts & valid.unsqueeze(1))


def levels_loss(levels: Tensor, masks: Tensor, structures: Sequence[Sequence[int]], valid: Tensor | None) -> Tensor:
    """The ranked probability score of levels against raters' label maps, computed in float32 under autocast, too.

    Args:
        levels: Logits (B, F, K + 1, *S).
        masks: The raters' label maps, integer (B, K, *S), `MISSING` where a rater has no label.
        structures: For each of the F structures its labels.
        valid: Bool (B, *S), the voxels that count, or None for all.

    Returns:
        A scalar, the mean over structures and voxels. Voxels without a score count as 0, so that its weight relative to
        nnU-Net's loss is the same in each of them.
    """
    with autocast(levels.device.type, enabled=False):
        score = ranked_probability_score(levels, *count_raters(masks, structures))
        return mean_over_voxels(score.mean(1), valid)


class OrdinalObjective(nn.Module):
    """nnU-Net's loss at every scale, and the ranked probability score of the levels at full resolution.

    Args:
        labels: The label space of the segmentation channels.
        num_raters: The number K of raters.
        segmentation_loss: nnU-Net's loss, called with lists (one entry per scale) if the network's output is one.
        weight: The weight of the ranked probability score.
    """

    def __init__(
        self,
        labels: LabelSpace,
        num_raters: int,
        segmentation_loss: Callable[..., Tensor],
        weight: float = RPS_WEIGHT,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.channels = OrdinalChannels(labels.num_segmentation_heads, labels.regions is not None, num_raters)
        self.segmentation_loss = segmentation_loss
        self.weight = weight

    def forward(self, output: Outputs, target: Sequence[Tensor]) -> Tensor:
        """The loss of a batch.

        Args:
            output: (B, H + F (K + 1), *S), or with deep supervision a list of this and coarser segmentation logits.
            target: See above.

        Returns:
            A scalar.
        """
        *targets, masks = target
        full, *coarser = _as_list(output)
        parts = self.channels.split(full)
        if isinstance(output, Tensor):
            segmentation = self.segmentation_loss(parts.segmentation, targets[0])
        else:
            segmentation = self.segmentation_loss([parts.segmentation, *coarser], targets)
        _, valid = self.labels.reference(targets[0])
        return segmentation + self.weight * levels_loss(parts.levels, masks, structures_of(self.labels), valid)


class MeanLabelLoss(nn.Module):
    """Cross-entropy against the raters' mean label, at every scale.

    With classes the target is the share of raters for each class, of those who saw the voxel; with regions that for
    each region. Where nobody saw the voxel it is nnU-Net's target. At coarser scales raters' labels are averaged.

    Args:
        labels: The label space.
        scale_weights: The weight of each scale, finest first; None without deep supervision.
    """

    def __init__(self, labels: LabelSpace, scale_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.labels = labels
        self.scale_weights = (1.0,) if scale_weights is None else tuple(scale_weights)
        background = () if labels.regions is not None else ((0,),)
        self.heads = (*background, *structures_of(labels))

    def forward(self, output: Outputs, target: Sequence[Tensor]) -> Tensor:
        """The loss of a batch: (B, H, *S) or a list with one entry per scale, and the target as above."""
        *targets, masks = target
        outputs = _as_list(output)
        _, valid = self.labels.reference(targets[0])
        marks, seen = (found.float() for found in count_raters(masks, self.heads))
        if valid is not None:
            marks, seen = marks * valid.unsqueeze(1), seen * valid.unsqueeze(1)
        total = outputs[0].new_zeros(())
        for logits, scaled, weight in zip(outputs, targets, self.scale_weights, strict=False):
            if weight:
                shares = self._shares(marks, seen, scaled, logits.shape[2:])
                total = total + weight * self._cross_entropy(logits, shares, self.labels.reference(scaled)[1])
        return total

    def _shares(self, marks: Tensor, seen: Tensor, target: Tensor, shape: torch.Size) -> Tensor:
        """The target of one scale, float32 (B, H, *shape)."""
        if shape != marks.shape[2:]:
            marks, seen = (functional.interpolate(each, shape, mode="area") for each in (marks, seen))
        stock = self.labels.one_hot(self.labels.reference(target)[0]).float()
        return torch.where(seen > 0, marks / seen.clamp(min=1e-6), stock)

    def _cross_entropy(self, logits: Tensor, shares: Tensor, valid: Tensor | None) -> Tensor:
        logits = logits.float()
        if self.labels.regions is None:
            values = -(shares * torch.log_softmax(logits, 1)).sum(1)
        else:
            values = functional.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(1)
        return mean_over_voxels(values, valid)


def _as_list(output: Outputs) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)
