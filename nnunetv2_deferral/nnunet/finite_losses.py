"""Stopping a training whose losses are no longer finite."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Iterations in a row without a finite loss before a training in mixed precision is stopped.
PATIENCE = 10


class FiniteLosses:
    """Watches the losses of a training and stops it when it cannot recover.

    Without a gradient scaler a single loss that is not finite makes all weights NaN, so the training is stopped at
    once, before the step. In mixed precision the forward pass may overflow for a batch, and the gradient scaler then
    leaves the step out: weights stay as they are, and only a series of such iterations stops the training.
    The scaler's own overflows do not count: it scales a copy of the loss and the gradients, not the losses seen here.

    Args:
        scaled: Whether there is a gradient scaler.
    """

    def __init__(self, *, scaled: bool) -> None:
        self._allowed = PATIENCE - 1 if scaled else 0
        self._in_a_row = 0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start to count the iterations of an epoch; a series goes on."""
        self._iterations = self._left_out = 0

    def check(self, losses: Mapping[str, np.ndarray], epoch: int) -> None:
        """Count an iteration.

        Args:
            losses: The total loss, `"loss"`, and its terms, each a scalar.
            epoch: The epoch, for the message.

        Raises:
            RuntimeError: If the total is not finite and the training cannot recover; the message gives epoch and
                iteration, counted from 0 as in nnU-Net's log, and the terms.
        """
        iteration, self._iterations = self._iterations, self._iterations + 1
        if np.isfinite(losses["loss"]):
            self._in_a_row = 0
            return
        self._left_out += 1
        self._in_a_row += 1
        if self._in_a_row <= self._allowed:
            return
        wrong = [name for name, value in losses.items() if name != "loss" and not np.isfinite(value)] or ["total"]
        values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items() if name != "loss")
        series = f" for {self._in_a_row} iterations in a row" if self._allowed else ""
        raise RuntimeError(
            f"training stopped in epoch {epoch}, iteration {iteration}: losses that are not finite{series}: "
            f"{', '.join(wrong)} ({values}). Possible causes are images with NaN or infinite voxels and learning rates "
            "that are too high. Checkpoints written before are not affected"
        )

    def summary(self) -> str:
        """A warning about iterations of this epoch that were left out; empty if there were none."""
        if not self._left_out:
            return ""
        return (
            f"WARNING: in {self._left_out} of {self._iterations} iterations of this epoch the loss was not finite; the "
            "gradient scaler has skipped these steps, but the mean losses of the epoch are not finite"
        )
