"""Losses that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_deferral.nnunet.finite_losses import PATIENCE, FiniteLosses


def losses(**values: float) -> dict[str, np.ndarray]:
    terms = {"segmentation": 0.5, "routing": 0.25, "coherence": 0.0, "balance": 0.0} | values
    return {name: np.array(value, np.float32) for name, value in ({"loss": sum(terms.values())} | terms).items()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_without_a_gradient_scaler_the_first_one_stops_the_training(value: float) -> None:
    watch = FiniteLosses(scaled=False)
    watch.check(losses(), epoch=3)
    with pytest.raises(RuntimeError, match=r"epoch 3, iteration 1: .* not finite: routing \(segmentation 0\.5, rout"):
        watch.check(losses(routing=value), epoch=3)


def test_every_term_that_is_not_finite_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"iteration 0: losses that are not finite: segmentation, balance \("):
        FiniteLosses(scaled=False).check(losses(segmentation=np.nan, balance=np.inf), epoch=0)


def test_an_overflow_of_the_total_alone_is_named_too() -> None:
    with pytest.raises(RuntimeError, match=r"not finite: total \(segmentation 0\.5"):
        FiniteLosses(scaled=False).check(losses() | {"loss": np.array(np.inf)}, epoch=0)


def test_with_a_gradient_scaler_only_a_series_stops_it() -> None:
    watch = FiniteLosses(scaled=True)
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            watch.check(losses(segmentation=np.inf), epoch=0)
        watch.check(losses(), epoch=0)
    for _ in range(PATIENCE - 1):
        watch.check(losses(segmentation=np.inf), epoch=0)
    with pytest.raises(RuntimeError, match=f"for {PATIENCE} iterations in a row: segmentation"):
        watch.check(losses(segmentation=np.nan), epoch=0)


def test_a_series_goes_on_in_the_next_epoch_and_iterations_are_counted_anew() -> None:
    watch = FiniteLosses(scaled=True)
    for _ in range(PATIENCE - 1):
        watch.check(losses(routing=np.nan), epoch=0)
    watch.start_epoch()
    with pytest.raises(RuntimeError, match="epoch 1, iteration 0: "):
        watch.check(losses(routing=np.nan), epoch=1)


def test_the_steps_left_out_in_an_epoch_are_reported() -> None:
    watch = FiniteLosses(scaled=True)
    watch.check(losses(), epoch=0)
    assert watch.summary() == ""
    watch.check(losses(routing=np.inf), epoch=0)
    assert watch.summary().startswith("WARNING: in 1 of 2 iterations of this epoch the loss was not finite")
    watch.start_epoch()
    assert watch.summary() == ""
