"""Seeing a deferral training: the logged keys and `deferral_progress.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.settings import DeferralSettings

TERMS = ("segmentation", "collaboration", "coherence", "balance")
KEYS = (
    *(f"{phase}_loss_{term}" for phase in ("train", "val") for term in TERMS),
    "mean_fg_dice_system",
    "deferral_rate",
    "deferral_share",
)


def plot_progress(log: dict[str, list[Any]], settings: DeferralSettings, output_folder: str) -> None:
    """Draw the log as `deferral_progress.png` beside nnU-Net's `progress.png`.

    Args:
        log: nnU-Net's local log with one entry an epoch for each of `KEYS` and for `mean_fg_dice`.
        settings: For the names of the experts.
        output_folder: The fold's folder.
    """
    epochs = range(1, min(len(log[key]) for key in KEYS) + 1)
    figure = Figure(figsize=(11, 10), layout="constrained")
    losses, dice, load = figure.subplots(3, 1, sharex=True)
    styles = dict(zip(TERMS, ("-", "--", "-.", ":"), strict=True))
    for term in TERMS:
        line = losses.plot(epochs, log[f"train_loss_{term}"][: len(epochs)], styles[term], label=f"{term}, training")
        losses.plot(
            epochs,
            log[f"val_loss_{term}"][: len(epochs)],
            styles[term],
            color=line[0].get_color(),
            alpha=0.45,
            label=f"{term}, validation",
        )
    _finish(losses, "loss terms (unweighted)", columns=2)
    dice.plot(epochs, log["mean_fg_dice"][: len(epochs)], "-", color="0.35", label="model")
    dice.plot(epochs, log["mean_fg_dice_system"][: len(epochs)], "-", color="tab:green", label="system")
    _finish(dice, "pseudo Dice")
    load.plot(epochs, [100 * rate for rate in log["deferral_rate"][: len(epochs)]], "k-", label="all experts")
    for index, name in enumerate(settings.expert_names):
        load.plot(epochs, [100 * share[index] for share in log["deferral_share"][: len(epochs)]], "--", label=name)
    _finish(load, "voxels deferred [%]")
    load.set_xlabel("epoch")
    FigureCanvasAgg(figure)
    with written_whole(Path(output_folder)) as scratch:
        figure.savefig(scratch / "deferral_progress.png", dpi=90)


def _finish(axes: Axes, label: str, columns: int = 1) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=columns, loc="center left", bbox_to_anchor=(1.0, 0.5))
