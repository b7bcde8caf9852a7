"""Two optimizers with the interface of one.

By default the segmentation network keeps nnU-Net's optimizer and schedule, and the deferral parameters have their own
Adam with a cosine schedule. Gradients are clipped separately, so that a large deferral loss does not reduce the steps
of the segmentation network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A shorter memory of squared gradients than Adam's default: the load-balancing penalty is either 0 or up to fifty times
# as strong as the other terms, and one such step must not slow down the head for a thousand steps.
ADAM_BETAS = (0.9, 0.99)

# The paper's AdamW (Sec. 5.2.3).
PAPER_RATE, PAPER_WEIGHT_DECAY = 1e-4, 0.01


class _Sides:
    """Something for the segmentation network and for the deferral parameters, saved in checkpoints as one."""

    segmentation: Any
    deferral: Any

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"segmentation": self.segmentation.state_dict(), "deferral": self.deferral.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the states of both."""
        self.segmentation.load_state_dict(state["segmentation"])
        self.deferral.load_state_dict(state["deferral"])


class JointOptimizer(_Sides):
    """Combines nnU-Net's optimizer for the segmentation network and Adam for the deferral parameters.

    It implements the part of the optimizer interface that nnU-Net's trainer and checkpoints use. The
    first parameter group is nnU-Net's, whose learning rate nnU-Net logs.

    Args:
        segmentation: nnU-Net's optimizer.
        deferral: The optimizer of the deferral parameters.
        clip_norm: The norm at which the gradients of each are clipped.
    """

    def __init__(
        self, segmentation: torch.optim.Optimizer, deferral: torch.optim.Optimizer, *, clip_norm: float
    ) -> None:
        self.segmentation = segmentation
        self.deferral = deferral
        self.clip_norm = clip_norm

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both, nnU-Net's first."""
        return [*self.segmentation.param_groups, *self.deferral.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both."""
        self.segmentation.zero_grad(set_to_none)
        self.deferral.zero_grad(set_to_none)

    def clip_gradients(self) -> None:
        """Clip the gradient norms of the two optimizers separately."""
        for optimizer in (self.segmentation, self.deferral):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def step(self) -> None:
        """Step both."""
        self.segmentation.step()
        self.deferral.step()


class JointScaler(_Sides):
    """Gradient scalers for mixed precision, one for each side of a :class:`JointOptimizer`.

    With one for both, an overflow in the head would leave out a step of the segmentation network and lower its scale.

    Args:
        segmentation: nnU-Net's scaler.
        shared: Whether it is used for both sides, because the losses of both reach the same parameters.
    """

    def __init__(self, segmentation: torch.amp.GradScaler, *, shared: bool) -> None:
        self.segmentation = segmentation
        self.deferral = segmentation if shared else torch.amp.GradScaler(segmentation._device)

    def backward(self, segmentation: Tensor, deferral: Tensor) -> None:
        """Compute scaled gradients of the losses of both sides, each a scalar."""
        (self.segmentation.scale(segmentation) + self.deferral.scale(deferral)).backward()

    def step(self, optimizer: JointOptimizer) -> None:
        """Undo the scaling, clip, and step each side whose gradients are finite; adapt the scales."""
        sides = [
            (scaler, side)
            for scaler, side in ((self.segmentation, optimizer.segmentation), (self.deferral, optimizer.deferral))
            # A frozen network has no gradients, which a scaler refuses.
            if any(parameter.grad is not None for group in side.param_groups for parameter in group["params"])
        ]
        for scaler, side in sides:
            scaler.unscale_(side)
        optimizer.clip_gradients()
        for scaler, side in sides:
            scaler.step(side)
        for scaler in dict.fromkeys(scaler for scaler, _ in sides):
            scaler.update()


class CosineSchedule:
    """A cosine from the initial rate to 0."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_rate: float, num_epochs: int) -> None:
        self.optimizer = optimizer
        self.initial_rate = initial_rate
        self.num_epochs = num_epochs

    def step(self, epoch: int) -> None:
        """Set the learning rate of `epoch`, counted from 0."""
        _set_rate(self.optimizer, self.initial_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.num_epochs)))


class StepSchedule:
    """The paper's schedule (Sec. 5.2.3): a factor of 0.8 every 2 epochs.

    As `torch.optim.lr_scheduler.StepLR`, of which nnU-Net's way of giving the epoch is deprecated.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_rate: float) -> None:
        self.optimizer = optimizer
        self.initial_rate = initial_rate

    def step(self, epoch: int) -> None:
        """Set the learning rate of `epoch`, counted from 0."""
        _set_rate(self.optimizer, self.initial_rate * 0.8 ** (epoch // 2))


class JointSchedule:
    """A schedule for each side of a :class:`JointOptimizer`, with `step(epoch)` as nnU-Net's schedules have it."""

    def __init__(self, segmentation: Any, deferral: CosineSchedule | StepSchedule) -> None:
        self.segmentation = segmentation
        self.deferral = deferral

    def step(self, epoch: int) -> None:
        """Set the learning rates of `epoch`, counted from 0."""
        self.segmentation.step(epoch)
        self.deferral.step(epoch)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def without_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Remove `parameters` in place from an optimizer that has not stepped them yet."""
    excluded = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in excluded]
    return optimizer
