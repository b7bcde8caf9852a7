"""Routing rules: the interpretation of the J + 1 routing logits of a voxel.

Each of the two objectives has its rule. It converts logits to J + 1 probabilities, which may be averaged and resampled,
and computes decision, score, preferred expert and expected gains from these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nnunetv2_deferral.arrays import highest, of_experts
from nnunetv2_deferral.errors import InputError

COLLABORATION, ONE_VS_ALL = "collaboration", "one_vs_all"


class RoutingRule(Protocol):
    """Interface of routing rules."""

    @property
    def available(self) -> tuple[bool, ...]:
        """Whether each of the J experts can be asked."""

    @property
    def cheapest(self) -> float:
        """The lowest cost of an available expert."""

    @property
    def surcharges(self) -> tuple[float, ...]:
        """The cost of each expert beyond that of the cheapest, inf for unavailable experts."""

    @property
    def initial_logit(self) -> float:
        """Initial value of the routing logits in training."""

    def probabilities(self, routing: Tensor, dim: int = 1) -> Tensor:
        """float32 probabilities in [0, 1] from routing logits, J + 1 along `dim`."""

    def decision(self, probabilities: Array, axis: int = 1) -> Array:
        """The route of every voxel, integers in [0, J], without the channel axis."""

    def score(self, probabilities: Array, axis: int = 1) -> Array:
        """The deferral score of every voxel, in [0, 1], without the channel axis."""

    def gains(self, probabilities: Array, axis: int = 1) -> Array:
        """Expected gain from asking each expert, in corrected voxels: J along `axis`.

        Negative where asking is expected to harm, -inf for unavailable experts. The cost of an expert counts only as
        far as it exceeds that of the cheapest; a budget takes the place of the common part.
        """

    def harm(self, probabilities: Array, axis: int = 1) -> Array:
        """The part of :meth:`gains` that is lost where the model is right and the expert wrong, not negative.

        J along `axis`, in voxels. The other part is gained where the model is wrong and the expert right.
        """

    def expert(self, probabilities: Array, axis: int = 1) -> Array:
        """The preferred available expert for every voxel, integers in [1, J], without the channel axis."""


@dataclass(frozen=True)
class SoftmaxRule:
    """DeferredSeg's rule: M = softmax over the model and the experts, decision by argmax (Eq. 5, Sec. 4.2.1).

    The score is the probability 1 - M_0 that the voxel is deferred. It is also high where all are right, because M is
    nearly uniform there. M_j - M_0 is not, and serves as the expected gain.

    Attributes:
        available: Whether each of the J experts can be asked.
    """

    available: tuple[bool, ...]
    cheapest: float = 0.0
    initial_logit: float = 0.0

    @property
    def surcharges(self) -> tuple[float, ...]:
        """0 for available experts: costs take effect in training only."""
        return _never(self.available)

    def probabilities(self, routing: Tensor, dim: int = 1) -> Tensor:
        """M, the softmax of the routing logits."""
        return routing_log_probabilities(routing, dim).exp()

    def decision(self, probabilities: Array, axis: int = 1) -> Array:
        """The argmax of M."""
        return routing_decision(probabilities, axis)

    def score(self, probabilities: Array, axis: int = 1) -> Array:
        """1 - M_0."""
        return 1 - _channel(probabilities, 0, axis)

    def gains(self, probabilities: Array, axis: int = 1) -> Array:
        """M_j - M_0 of each available expert."""
        return _lead(_less(_experts(probabilities, axis), _never(self.available), axis), probabilities, axis)

    def harm(self, probabilities: Array, axis: int = 1) -> Array:
        """0: M is not the probability of being right, and does not tell the two parts apart."""
        return _experts(probabilities, axis) * 0

    def expert(self, probabilities: Array, axis: int = 1) -> Array:
        """The available expert with the highest M_j."""
        return 1 + routing_decision(_less(_experts(probabilities, axis), _never(self.available), axis), axis)


@dataclass(frozen=True)
class OneVsAllRule:
    """One sigmoid each for a_0 = P(model is right) and a_j = P(expert j is right) (Verma & Nalisnick 2022).

    A voxel is deferred to the expert with the highest a_j - c_j if that exceeds a_0; ties stay with the model. The
    score is (1 - a_0) a_j for that expert: the probability that the model is wrong and the expert right, if the two err
    independently given the image. The expected gain a_j - a_0 needs no such assumption.

    Attributes:
        costs: c_j, one per expert.
        available: Whether each of the J experts can be asked.
    """

    costs: tuple[float, ...]
    available: tuple[bool, ...]
    # Nearly every answer is right. Starting there leaves the gradient to the voxels where one is wrong.
    initial_logit: float = 4.0

    def probabilities(self, routing: Tensor, dim: int = 1) -> Tensor:
        """a, the sigmoid of the routing logits."""
        return torch.sigmoid(routing.float())

    def decision(self, probabilities: Array, axis: int = 1) -> Array:
        """The available expert with the highest a_j - c_j where that exceeds a_0, else 0."""
        return routing_decision(_less(probabilities, (0.0, *self._costs), axis), axis)

    def score(self, probabilities: Array, axis: int = 1) -> Array:
        """(1 - a_0) a_j of the preferred expert."""
        preferred = self.expert(probabilities, axis)
        if isinstance(probabilities, Tensor):
            asked = probabilities.gather(axis, preferred.unsqueeze(axis)).squeeze(axis)
        else:
            asked = of_experts(np.moveaxis(_experts(probabilities, axis), axis, 0), preferred)
        return (1 - _channel(probabilities, 0, axis)) * asked

    def gains(self, probabilities: Array, axis: int = 1) -> Array:
        """a_j - a_0, minus the expert's cost beyond the cheapest's."""
        return _lead(_less(_experts(probabilities, axis), self.surcharges, axis), probabilities, axis)

    def harm(self, probabilities: Array, axis: int = 1) -> Array:
        """a_0 (1 - a_j), with the assumption of the score."""
        return (1 - _experts(probabilities, axis)) * probabilities[(slice(None),) * axis + (slice(0, 1),)]

    def expert(self, probabilities: Array, axis: int = 1) -> Array:
        """The available expert with the highest a_j - c_j."""
        return 1 + routing_decision(_less(_experts(probabilities, axis), self._costs, axis), axis)

    @property
    def cheapest(self) -> float:
        """The lowest c_j of an available expert."""
        return min(self._costs)

    @property
    def surcharges(self) -> tuple[float, ...]:
        """c_j less the lowest c_j of an available expert; inf for unavailable experts."""
        return tuple(cost - self.cheapest for cost in self._costs)

    @property
    def _costs(self) -> tuple[float, ...]:
        """The costs, infinite for unavailable experts."""
        return tuple(max(pair) for pair in zip(self.costs, _never(self.available), strict=True))


def routing_rule(
    objective: str, costs: tuple[float, ...], available: tuple[bool, ...] | None = None
) -> OneVsAllRule | SoftmaxRule:
    """The routing rule of an objective.

    Args:
        objective: `"collaboration"` or `"one_vs_all"`.
        costs: The cost of each expert, in [0, 1]; with `"collaboration"` costs take effect in training only.
        available: Whether each expert can be asked; None for all.

    Raises:
        InputError: If the objective is unknown, or `costs` and `available` differ in length.

    Example:
        An expert with a cost of 0.1 is asked where the expert's probability of being right exceeds the model's by more
        than 0.1:

        >>> import numpy as np
        >>> from nnunetv2_deferral import routing_rule
        >>> rule = routing_rule("one_vs_all", costs=(0.1,))
        >>> right = np.array([[0.90, 0.85, 0.5], [0.95, 0.97, 0.9]])
        >>> rule.decision(right, axis=0)
        array([0, 1, 1], dtype=uint8)
        >>> rule.score(right, axis=0).round(3)
        array([0.095, 0.146, 0.45 ])
    """
    if objective not in (COLLABORATION, ONE_VS_ALL):
        raise InputError(f'the objective must be "{COLLABORATION}" or "{ONE_VS_ALL}", got {objective!r}')
    if available is None:
        available = (True,) * len(costs)
    if len(costs) != len(available):
        raise InputError(f"costs has {len(costs)} entries, but available has {len(available)}")
    return OneVsAllRule(costs, available) if objective == ONE_VS_ALL else SoftmaxRule(available)


def _never(available: tuple[bool, ...]) -> tuple[float, ...]:
    """Subtrahends that exclude unavailable experts from a comparison: inf for these, 0 for the others."""
    return tuple(0.0 if each else math.inf for each in available)


def _less(values: Array, costs: tuple[float, ...], axis: int) -> Array:
    """The values minus the costs along an axis; the values themselves if nothing costs anything."""
    if not any(costs):
        return values
    shape = [1] * values.ndim
    shape[axis] = -1
    subtracted = np.array(costs, dtype=np.float32).reshape(shape)
    if isinstance(values, Tensor):
        return values - torch.from_numpy(subtracted).to(values.device)
    return values - subtracted


def _lead(experts: Array, probabilities: Array, axis: int) -> Array:
    """The experts' channels minus the model's."""
    return experts - probabilities[(slice(None),) * axis + (slice(0, 1),)]


def _channel(values: Array, channel: int, axis: int) -> Array:
    return values[(slice(None),) * axis + (channel,)]


def _experts(values: Array, axis: int) -> Array:
    return values[(slice(None),) * axis + (slice(1, None),)]


Array = TypeVar("Array", Tensor, np.ndarray)


# Logit of a closed route relative to the model's, for a probability of practically 0. Finite, because nnU-Net sums
# logits in float16 when it averages tiles.
_NEVER = -100.0


def close_routes(routing: Tensor, open_to: Tensor) -> Tensor:
    """Set the logits of unavailable experts so low that no voxel is routed to them; they receive no gradient.

    Args:
        routing: Logits (B, J + 1, *S).
        open_to: Bool, broadcastable to (B, J, *S): where each expert can be asked.

    Returns:
        Logits (B, J + 1, *S).
    """
    model = routing[:, :1]
    experts = torch.where(open_to, routing[:, 1:], (model.detach() + _NEVER).clamp(max=_NEVER))
    return torch.cat((model, experts), dim=1)


def routing_log_probabilities(routing: Tensor, dim: int = 1) -> Tensor:
    """The log-softmax of the routing logits, log M_j (Eq. 5), in float32.

    Args:
        routing: Routing logits with J + 1 channels along `dim`, any floating dtype.
        dim: The channel axis.

    Returns:
        float32 of the same shape, finite for finite logits.
    """
    return torch.log_softmax(routing.float(), dim=dim)


def routing_decision(routing: Array, axis: int = 1) -> Array:
    """The argmax along an axis, such as the route of every voxel (Sec. 4.2.1).

    Ties go to the lower channel, and hence to the model.

    Returns:
        Integers, without the channel axis.
    """
    # On CPUs torch's max along an axis is ten times faster than its argmax; both return the first of equal values.
    return highest(routing, axis) if isinstance(routing, np.ndarray) else routing.max(axis).indices
