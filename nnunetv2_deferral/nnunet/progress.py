"""Progress of a deferral training: the logged keys and `deferral_progress.png`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.settings import DeferralSettings

TERMS = ("segmentation", "routing", "coherence", "balance")
PHASES = ("train", "val")
KEYS = (
    *(f"{phase}_loss_{term}" for phase in PHASES for term in TERMS),
    "mean_fg_dice_system",
    "deferral_rate",
    "deferral_share",
)
_TITLES = {
    "segmentation": "segmentation loss",
    "routing": "routing loss (DC or one-vs-all)",
    "coherence": "spatial-coherence loss (SC)",
    "balance": "load-balancing penalty (LB)",
}


def epochs_since_best(values: Sequence[float], *, lowest: bool = False) -> int:
    """The number of epochs since the first with the highest (or lowest) value; NaN is never the best.

    Args:
        values: One value for each epoch, at least one.
        lowest: Whether lower is better.
    """
    ranked = [-math.inf if math.isnan(value) else -value if lowest else value for value in values]
    return len(ranked) - 1 - ranked.index(max(ranked))


def plot_progress(log: dict[str, list[Any]], settings: DeferralSettings, output_folder: str) -> None:
    """Draw the log as `deferral_progress.png` beside nnU-Net's `progress.png`.

    Args:
        log: nnU-Net's local log with one entry per epoch for each of `KEYS` and for `mean_fg_dice`.
        settings: The settings, for the names of the experts.
        output_folder: The folder of the fold.
    """
    # nnU-Net changes the global style for its own, much larger figure.
    with rc_context(rcParamsDefault), written_whole(Path(output_folder)) as scratch:
        figure = _draw(log, settings)
        FigureCanvasAgg(figure)
        figure.savefig(scratch / "deferral_progress.png", dpi=100)


def _draw(log: dict[str, list[Any]], settings: DeferralSettings) -> Figure:
    number = min(len(log[key]) for key in (*KEYS, "mean_fg_dice"))
    epochs = range(1, number + 1)
    marker = "o" if number == 1 else None
    # Terms that are not part of the objective are 0 throughout.
    terms = [term for term in TERMS if any(map(any, (log[f"{phase}_loss_{term}"][:number] for phase in PHASES)))]
    rows = math.ceil(len(terms) / 2) + 1
    figure = Figure(figsize=(11, 3 * rows), layout="constrained")
    *losses, dice, load = figure.subplots(rows, 2, sharex=True).flat
    for axes in losses[len(terms) :]:
        axes.remove()
    for axes, term in zip(losses, terms, strict=False):
        axes.plot(epochs, log[f"train_loss_{term}"][:number], "-", marker=marker, color="tab:blue", label="training")
        axes.plot(epochs, log[f"val_loss_{term}"][:number], "--", marker=marker, color="tab:red", label="validation")
        _finish(axes, _TITLES[term])
    dice.plot(epochs, log["mean_fg_dice"][:number], "--", marker=marker, color="0.35", label="model")
    dice.plot(epochs, log["mean_fg_dice_system"][:number], "-", marker=marker, color="tab:green", label="system")
    _finish(dice, "pseudo Dice")
    load.plot(epochs, [100 * rate for rate in log["deferral_rate"][:number]], "k-", marker=marker, label="all experts")
    for index, name in enumerate(settings.expert_names):
        shares = [100 * share[index] for share in log["deferral_share"][:number]]
        load.plot(epochs, shares, "--", marker=marker, label=name)
    _finish(load, "voxels deferred [%]")
    for axes in (dice, load):
        axes.set_xlabel("epoch")
    if number == 1:
        dice.set_xlim(0.5, 1.5)  # of all, which share it
    return figure


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
