"""The learning objective, Eq. (10): L = segmentation + DC + lambda_1 SC + lambda_2 LB.

The one-vs-all objective replaces DC by its own loss and has no LB, because its probabilities are those of being right,
not of being asked.

A network that learns how far raters agree has the ranked probability score of its levels besides the segmentation loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_deferral.labels import MISSING, LabelSpace, is_right
from nnunetv2_deferral.losses.balance import balance_loss, routing_ratio
from nnunetv2_deferral.losses.coherence import coherence_loss
from nnunetv2_deferral.losses.collaboration import collaboration_loss
from nnunetv2_deferral.losses.one_vs_all import one_vs_all_loss
from nnunetv2_deferral.losses.several_raters import RPS_WEIGHT, levels_loss, structures_of
from nnunetv2_deferral.routing import ONE_VS_ALL, close_routes, routing_log_probabilities
from nnunetv2_deferral.settings import DeferralSettings, resolve_settings


class ObjectiveTerms(NamedTuple):
    """The objective, its part besides the segmentation loss, and its unweighted terms, each a scalar tensor.

    `routing` is DC or the one-vs-all loss. A term of weight 0 in the settings is not computed and given as 0.
    """

    total: Tensor
    deferral: Tensor
    segmentation: Tensor
    routing: Tensor
    coherence: Tensor
    balance: Tensor


class DeferralObjective(nn.Module):
    """Segmentation loss at every scale, deferral losses at full resolution.

    Args:
        settings: Weights and bounds.
        labels: The label space of the segmentation channels.
        segmentation_loss: nnU-Net's loss, called with segmentation logits and targets as nnU-Net does: both lists (one
            entry per scale, finest first) with deep supervision, else both tensors.

    Example:
        Two classes and one expert, thus 2 + 1 + 2 channels, for two images of 8 x 8 voxels:

        >>> import torch
        >>> from nnunetv2_deferral import DeferralObjective
        >>> def cross_entropy(logits, target):
        ...     return torch.nn.functional.cross_entropy(logits, target[:, 0])
        >>> objective = DeferralObjective.for_classes(2, 1, cross_entropy, objective="one_vs_all")
        >>> output = torch.zeros(2, 5, 8, 8, requires_grad=True)
        >>> target = torch.zeros(2, 1, 8, 8, dtype=torch.long)
        >>> terms = objective(output, target, experts=target)
        >>> round(terms.segmentation.item(), 3), round(terms.routing.item(), 3)
        (0.693, 1.386)
        >>> terms.total.backward()
    """

    lower: Tensor
    upper: Tensor
    available: Tensor
    costs: Tensor

    def __init__(
        self, settings: DeferralSettings, labels: LabelSpace, segmentation_loss: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.labels = labels
        self.segmentation_loss = segmentation_loss
        heads, has_regions = labels.num_segmentation_heads, labels.regions is not None
        self.layout = settings.layout(heads, has_regions=has_regions)
        self.ordinal = settings.ordinal_channels(heads, has_regions=has_regions)
        self.register_buffer("lower", torch.tensor(settings.lower))
        self.register_buffer("upper", torch.tensor(settings.upper))
        self.register_buffer("available", torch.tensor(settings.available))
        self.register_buffer("costs", torch.tensor(settings.costs))

    @classmethod
    def for_classes(
        cls, num_classes: int, num_experts: int, segmentation_loss: Callable[..., Tensor], **settings: Any
    ) -> DeferralObjective:
        """Make the objective for a number of classes and experts.

        Args:
            num_classes: The number K of classes including background.
            num_experts: The number J of experts.
            segmentation_loss: Called with logits (B, K, *S) and a target (B, 1, *S).
            settings: Settings of the `"deferral"` block of the plans, such as `objective="one_vs_all"`, or
                `experts=["ann", "bob"]` for raters who have not labelled every voxel. Defaults are those of
                :func:`.resolve_settings`.

        Raises:
            InputError: If a setting is unknown or out of range.
        """
        return cls(resolve_settings(settings, num_experts=num_experts), LabelSpace(num_classes), segmentation_loss)

    def forward(
        self,
        output: Tensor | list[Tensor],
        target: Tensor | list[Tensor],
        experts: Tensor,
        deferral_weight: float = 1.0,
    ) -> ObjectiveTerms:
        """Evaluate the objective on one batch.

        Args:
            output: (B, K + L + J + 2, *S), or with deep supervision a list of this and further entries with K channels
                at coarser scales.
            target: nnU-Net's target, (B, 1, *S) or regions, or with deep supervision a list with one per scale.
            experts: The experts' label maps at full resolution, integer (B, J, *S). Where an expert's label is
                `MISSING`, the expert is treated as unavailable and has no loss term.
            deferral_weight: Factor of all deferral losses; 0 during warm-up, when their terms are still reported.
        """
        full, *coarser = output if isinstance(output, (list, tuple)) else [output]
        parts = self.layout.split(full)
        if isinstance(output, (list, tuple)):
            segmentation = self.segmentation_loss([parts.segmentation, *coarser], target)
        else:
            segmentation = self.segmentation_loss(parts.segmentation, target)

        finest = target[0] if isinstance(target, (list, tuple)) else target
        if self.ordinal is not None:
            _, valid = self.labels.reference(finest)
            levels = self.ordinal.by_structure(parts.levels)
            segmentation = segmentation + RPS_WEIGHT * levels_loss(levels, experts, structures_of(self.labels), valid)
        routing_loss, coherence, balance = self._deferral_terms(full, finest, experts)
        settings = self.settings
        # During warm-up the terms stay in the sum, so that their parameters have a (zero) gradient, which DDP requires.
        weighted = routing_loss + settings.lambda_coherence * coherence + settings.lambda_balance * balance
        deferral = deferral_weight * weighted
        return ObjectiveTerms(segmentation + deferral, deferral, segmentation, routing_loss, coherence, balance)

    def compile_deferral_terms(self) -> None:
        """Compile all but the segmentation loss, for a fraction of the memory traffic."""
        self._deferral_terms = torch.compile(self._deferral_terms)  # type: ignore[method-assign]

    def _deferral_terms(self, output: Tensor, target: Tensor, experts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """DC or the one-vs-all loss, SC and LB, of the finest output and target."""
        parts = self.layout.split(output)
        reference, valid = self.labels.reference(target)
        model_right = is_right(self.labels.answer(parts.segmentation), reference)
        expert_right = is_right(self.labels.encode(experts), reference).transpose(0, 1)

        settings = self.settings
        known = self._known(experts)
        routing = parts.routing if known is None else close_routes(parts.routing, known)
        routing_loss, balance = self._routing_terms(routing, expert_right, model_right, valid, known)
        coherence = torch.zeros_like(routing_loss)
        if settings.lambda_coherence:
            probabilities = settings.rule.probabilities(routing)
            coherence = coherence_loss(
                parts.aggregated,
                settings.rule.decision(probabilities.detach()) != 0,
                settings.rule.score(probabilities),
                beta_consistency=settings.beta_consistency,
                beta_rate=settings.beta_rate,
                trains_routing=settings.coherence_trains_routing,
                valid=valid,
            )
        return routing_loss, coherence, balance

    def _known(self, experts: Tensor) -> Tensor | None:
        """Where each expert can be asked, bool (B, J, *S); None for everywhere. Simulated experts answer everywhere."""
        if not self.settings.raters and all(self.settings.available):
            return None
        return (experts != MISSING) & self.available.view(1, -1, *[1] * (experts.ndim - 2))

    def _routing_terms(
        self,
        routing: Tensor,
        expert_right: Tensor,
        model_right: Tensor,
        valid: Tensor | None,
        known: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """DC and LB, or the one-vs-all loss and 0."""
        if self.settings.objective == ONE_VS_ALL:
            loss = one_vs_all_loss(routing, expert_right, model_right, valid=valid, known=known)
            return loss, torch.zeros_like(loss)
        log_routing = routing_log_probabilities(routing)
        collaboration = collaboration_loss(
            log_routing, expert_right, model_right, valid=valid, known=known, costs=self.costs
        )
        if not self.settings.lambda_balance:
            return collaboration, torch.zeros_like(collaboration)
        return collaboration, balance_loss(routing_ratio(log_routing, valid, known), self.lower, self.upper)
