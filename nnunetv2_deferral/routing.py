"""What the J + 1 routing logits of a voxel mean, and when it is deferred to whom.

Two objectives, two rules. Either turns logits into J + 1 probabilities, which may be averaged and resampled, and reads
decision, score, preferred expert and expected gains off these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nnunetv2_deferral.errors import InputError

COLLABORATION, ONE_VS_ALL = "collaboration", "one_vs_all"


class RoutingRule(Protocol):
    """How routes are decided."""

    @property
    def available(self) -> tuple[bool, ...]:
        """Who can be asked, one an expert."""

    @property
    def cheapest(self) -> float:
        """The lowest cost of an expert who can be asked."""

    @property
    def initial_logit(self) -> float:
        """What the routing logits are before anything is learned."""

    def probabilities(self, routing: Tensor, dim: int = 1) -> Tensor:
        """float32 probabilities in [0, 1] from routing logits, J + 1 along `dim`."""

    def decision(self, probabilities: Array, axis: int = 1) -> Array:
        """The route of every voxel, integers in [0, J], without the channel axis."""

    def score(self, probabilities: Array, axis: int = 1) -> Array:
        """How much speaks for deferring a voxel, in [0, 1], without the channel axis."""

    def gains(self, probabilities: Array, axis: int = 1) -> Array:
        """What is expected to be gained by asking each expert, in voxels put right: J along `axis`.

        Negative where asking is expected to harm, -inf for experts who cannot be asked. Costs count as far as an expert
        costs more than the cheapest: a level that all have in common is what a budget replaces.
        """

    def expert(self, probabilities: Array, axis: int = 1) -> Array:
        """Whom to ask if a voxel were deferred, integers in [1, J], without the channel axis.

        Only experts who are available, whatever the probabilities say.
        """


@dataclass(frozen=True)
class SoftmaxRule:
    """DeferredSeg's: M = softmax over the model and the experts, argmax decides (Eq. 5, Sec. 4.2.1).

    The score is the probability 1 - M_0 that the voxel is deferred. Where all are right M is nearly uniform, so that it
    is high there too; M_j - M_0 is not, and stands for the expected gain.

    Attributes:
        available: Who can be asked, one an expert.
    """

    available: tuple[bool, ...]
    cheapest: float = 0.0
    initial_logit: float = 0.0

    def probabilities(self, routing: Tensor, dim: int = 1) -> Tensor:
        """M, the softmax of the routing logits."""
        return routing_log_probabilities(routing, dim).exp()

    def decision(self, probabilities: Array, axis: int = 1) -> Array:
        """The channel of the highest M."""
        return routing_decision(probabilities, axis)

    def score(self, probabilities: Array, axis: int = 1) -> Array:
        """1 - M_0."""
        return 1 - _channel(probabilities, 0, axis)

    def gains(self, probabilities: Array, axis: int = 1) -> Array:
        """M_j - M_0 of each available expert."""
        return _lead(_less(_experts(probabilities, axis), _never(self.available), axis), probabilities, axis)

    def expert(self, probabilities: Array, axis: int = 1) -> Array:
        """The available expert of the highest M_j."""
        return 1 + routing_decision(_less(_experts(probabilities, axis), _never(self.available), axis), axis)


@dataclass(frozen=True)
class OneVsAllRule:
    """a_0 = P(the model is right here) and a_j = P(expert j is right here), each for itself (Verma & Nalisnick 2022).

    Deferred to the expert of the highest a_j - c_j where that exceeds a_0; ties stay with the model. The score is the
    probability that deferring helps, (1 - a_0) a_j for that expert: that the model is wrong and the expert right, if
    both err independently of each other given the image. The expected gain a_j - a_0 needs no such assumption.

    Attributes:
        costs: c_j, one an expert.
        available: Who can be asked, one an expert.
    """

    costs: tuple[float, ...]
    available: tuple[bool, ...]
    # Nearly every voxel is right, whoever answers. Starting there leaves the gradient to those that are not.
    initial_logit: float = 4.0

    def probabilities(self, routing: Tensor, dim: int = 1) -> Tensor:
        """a, the sigmoid of the routing logits."""
        return torch.sigmoid(routing.float())

    def decision(self, probabilities: Array, axis: int = 1) -> Array:
        """The expert of the highest a_j - c_j where that exceeds a_0, else 0."""
        return routing_decision(_less(probabilities, (0.0, *self._costs), axis), axis)

    def score(self, probabilities: Array, axis: int = 1) -> Array:
        """(1 - a_0) a_j of the preferred expert."""
        preferred = self.expert(probabilities, axis)
        if isinstance(probabilities, Tensor):
            asked = probabilities.gather(axis, preferred.unsqueeze(axis)).squeeze(axis)
        else:
            asked = np.take_along_axis(probabilities, np.expand_dims(preferred, axis), axis).squeeze(axis)
        return (1 - _channel(probabilities, 0, axis)) * asked

    def gains(self, probabilities: Array, axis: int = 1) -> Array:
        """a_j - a_0, less what the expert costs more than the cheapest."""
        beyond = tuple(cost - self.cheapest for cost in self._costs)
        return _lead(_less(_experts(probabilities, axis), beyond, axis), probabilities, axis)

    def expert(self, probabilities: Array, axis: int = 1) -> Array:
        """The available expert of the highest a_j - c_j."""
        return 1 + routing_decision(_less(_experts(probabilities, axis), self._costs, axis), axis)

    @property
    def cheapest(self) -> float:
        """The lowest c_j of an available expert."""
        return min(self._costs)

    @property
    def _costs(self) -> tuple[float, ...]:
        """The costs, beyond reach for whoever cannot be asked."""
        return tuple(max(pair) for pair in zip(self.costs, _never(self.available), strict=True))


def routing_rule(
    objective: str, costs: tuple[float, ...], available: tuple[bool, ...] | None = None
) -> OneVsAllRule | SoftmaxRule:
    """The rule that goes with an objective.

    Args:
        objective: `"collaboration"` or `"one_vs_all"`.
        costs: What asking each expert costs, in [0, 1]; with `"collaboration"`, costs take effect in training alone.
        available: Who can be asked, one an expert; None for all.

    Raises:
        InputError: If there is no such objective, or not one entry for each expert.

    Example:
        An expert who costs 0.1 is asked where that expert is more than 0.1 likelier to be right than the model:

        >>> import numpy as np
        >>> from nnunetv2_deferral import routing_rule
        >>> rule = routing_rule("one_vs_all", costs=(0.1,))
        >>> right = np.array([[0.90, 0.85, 0.5], [0.95, 0.97, 0.9]])
        >>> rule.decision(right, axis=0)
        array([0, 1, 1])
        >>> rule.score(right, axis=0).round(3)
        array([0.095, 0.146, 0.45 ])
    """
    if objective not in (COLLABORATION, ONE_VS_ALL):
        raise InputError(f'the objective is "{COLLABORATION}" or "{ONE_VS_ALL}", got {objective!r}')
    if available is None:
        available = (True,) * len(costs)
    if len(costs) != len(available):
        raise InputError(f"costs are of {len(costs)} experts, but availability of {len(available)}")
    return OneVsAllRule(costs, available) if objective == ONE_VS_ALL else SoftmaxRule(available)


def _never(available: tuple[bool, ...]) -> tuple[float, ...]:
    """What takes those who cannot be asked out of any comparison when it is subtracted."""
    return tuple(0.0 if each else math.inf for each in available)


def _less(values: Array, costs: tuple[float, ...], axis: int) -> Array:
    shape = [1] * values.ndim
    shape[axis] = -1
    subtracted = np.array(costs, dtype=np.float32).reshape(shape)
    if isinstance(values, Tensor):
        return values - torch.from_numpy(subtracted).to(values.device)
    return values - subtracted


def _lead(experts: Array, probabilities: Array, axis: int) -> Array:
    """By how much each expert's channel exceeds the model's."""
    return experts - probabilities[(slice(None),) * axis + (slice(0, 1),)]


def _channel(values: Array, channel: int, axis: int) -> Array:
    return values[(slice(None),) * axis + (channel,)]


def _experts(values: Array, axis: int) -> Array:
    return values[(slice(None),) * axis + (slice(1, None),)]


Array = TypeVar("Array", Tensor, np.ndarray)


# How far below the model a closed route is: its probability is nothing then. Finite, as nnU-Net adds up logits in
# float16 when it averages tiles.
_NEVER = -100.0


def close_routes(routing: Tensor, open_to: Tensor) -> Tensor:
    """Routing logits with which no voxel goes to an expert who is not there; those experts get no gradient.

    Args:
        routing: Logits (B, J + 1, *S).
        open_to: Bool, broadcastable to (B, J, *S): where each expert can be asked.
    """
    model = routing[:, :1]
    experts = torch.where(open_to, routing[:, 1:], (model.detach() + _NEVER).clamp(max=_NEVER))
    return torch.cat((model, experts), dim=1)


def routing_log_probabilities(routing: Tensor, dim: int = 1) -> Tensor:
    """The log-softmax of the routing logits, log M_j (Eq. 5), always in float32.

    Args:
        routing: Routing logits with J + 1 channels along `dim`, any floating dtype.
        dim: The channel axis.

    Returns:
        float32 of the same shape, finite for finite logits.
    """
    return torch.log_softmax(routing.float(), dim=dim)


def routing_decision(routing: Array, axis: int = 1) -> Array:
    """The highest of the channels along an axis, such as the route of every voxel (Sec. 4.2.1).

    Ties go to the lower channel, so that the model keeps what nobody does better.

    Returns:
        Integers, without the channel axis.
    """
    # On a CPU torch's max along an axis is ten times faster than its argmax; both have the first of equals.
    return routing.argmax(axis) if isinstance(routing, np.ndarray) else routing.max(axis).indices
