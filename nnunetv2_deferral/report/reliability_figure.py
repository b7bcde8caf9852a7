"""Reliability diagrams of model and experts, and a summary in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nnunetv2_deferral.evaluation.reliability import MODEL
from nnunetv2_deferral.evaluation.summary import REPLACED
from nnunetv2_deferral.report.style import (
    FONT_SIZE,
    INK,
    PALE,
    WIDTH,
    LineStyle,
    expert_line,
    new_figure,
    plain,
    set_title,
    tidy,
)
from nnunetv2_deferral.report.tables import DASH, share_text

_LARGEST = 62.0  # area of a marker in square points
_SMALLEST = 12.0
_MOST_IN_A_ROW = 4
_SIDE = 2.75  # maximum side of a panel in inches
_LEFT, _GAP, _RIGHT, _ABOVE, _BELOW, _LEGEND = 0.76, 0.52, 0.2, 0.62, 0.58, 0.42  # inches
_NARROWEST = 0.2  # minimum range of an axis, so that small deviations do not look large


def draw_reliability(summary: Mapping[str, Any], *, part: str = "least_certain") -> Figure:
    """Reliability diagrams of the model and each expert, over the least certain or over all voxels.

    The observed frequency of being right against the predicted probability: open markers and dashed lines before
    calibration, filled markers and solid lines after it. The area of a marker grows with the number of voxels. Each
    panel has its own axes, because the probabilities of experts often lie in a narrow range.

    Args:
        summary: As :meth:`nnunetv2_deferral.evaluation.evaluation.Evaluation.summary` returns it, with `reliability`.
        part: `"least_certain"` or `"all"` voxels.
    """
    heads = {name: head[part] for name, head in summary["reliability"]["heads"].items()}
    rows = math.ceil(len(heads) / _MOST_IN_A_ROW)
    columns = math.ceil(len(heads) / rows)
    room = WIDTH - _LEFT - _RIGHT - (columns - 1) * _GAP
    side = min(_SIDE, room / columns)
    left = _LEFT + (room - columns * side) / 2
    tall = _ABOVE + side + _BELOW
    figure = new_figure(WIDTH, rows * tall + _LEGEND)
    height = figure.get_figheight()
    for place, (name, head) in enumerate(heads.items()):
        row, column = divmod(place, columns)
        bottom = height - (row + 1) * tall + _BELOW
        axes = figure.add_axes(
            ((left + column * (side + _GAP)) / WIDTH, bottom / height, side / WIDTH, side / height), label=name
        )
        style = LineStyle(colour=INK, marker="o") if name == MODEL else expert_line(place - 1)
        _draw_panel(axes, head, style)
        set_title(axes, f"{plain(name, longest=22)}\nECE {_change(head)}")
        if column == 0:
            axes.set_ylabel("observed frequency", fontsize=FONT_SIZE, color=INK)
    _add_legend(figure, has_after=any(head["after"] is not None for head in heads.values()))
    return figure


def reliability_texts(summary: Mapping[str, Any]) -> list[str]:
    """The reliability over the least certain voxels and that of the gain, in sentences; may be empty.

    Args:
        summary: As :meth:`nnunetv2_deferral.evaluation.evaluation.Evaluation.summary` returns it, with `reliability`.
    """
    reliability = summary["reliability"]
    chosen, gain = reliability["least_certain"], reliability["gain"]
    found = {name: head["least_certain"] for name, head in reliability["heads"].items()}
    texts = []
    said = [_said(name, head) for name, head in found.items() if head["before"]["voxels"]]
    if said:
        texts.append(
            f"Over the {share_text(chosen['share'])} of voxels where the model is least certain (predicted probability "
            f"of being right below {share_text(chosen['below'])}): {'; '.join(said)}."
        )
    if gain["voxels"]:
        voxels = f"{gain['voxels']:,} voxels" if gain["voxels"] > 1 else "one voxel"
        # With evidence the system's label need not be the answer.
        replaced = " by answers that replace labels" if REPLACED in summary else ""
        texts.append(
            f"Of the {voxels} deferred and answered, the share fixed minus the share worsened{replaced} was predicted "
            f"to be {_points(gain['promised'])} and observed to be {_points(gain['kept'])}."
        )
    return texts


def error_text(value: float | None) -> str:
    """Four decimals, a dash for None; small positive values are given as an upper bound instead of 0."""
    if value is None:
        return DASH
    return "< 0.0001" if 0 < value < 0.00005 else f"{value:.4f}"


def bias_text(value: float | None) -> str:
    """Four decimals with a sign, a dash for None; no sign if the value rounds to zero."""
    if value is None:
        return DASH
    return f"{value:+.4f}".replace("-", "−") if abs(value) >= 0.00005 else "0.0000"


def _draw_panel(axes: Axes, head: Mapping[str, Any], style: LineStyle) -> None:
    low, high = _limits([each for each in head.values() if each is not None])
    tidy(axes)
    axes.grid(axis="x", color="#EDEDED", linewidth=0.7)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.plot([low, high], [low, high], color=PALE, linewidth=1, zorder=2, label="diagonal")
    for text, x, y, across, up in (
        ("underconfident", 0.04, 0.96, "left", "top"),
        ("overconfident", 0.96, 0.04, "right", "bottom"),
    ):
        axes.text(
            x, y, text, transform=axes.transAxes, ha=across, va=up, fontsize=FONT_SIZE - 2, color=PALE, style="italic"
        )
    for when, filled in (("before", False), ("after", True)):
        bins = head[when]
        if bins is None or not bins["voxels"]:
            continue
        voxels = np.array(bins["voxels"], dtype=float)
        axes.plot(
            bins["probability"], bins["right"], color=style.colour, linewidth=1.5 if filled else 1.1,
            linestyle="-" if filled else (0, (4, 2)), zorder=4 if filled else 3, label=f"{when}, line",
        )  # fmt: skip
        axes.scatter(
            bins["probability"], bins["right"], np.maximum(_LARGEST * voxels / voxels.max(), _SMALLEST),
            marker=style.marker, facecolor=style.colour if filled else "white", edgecolor=style.colour, linewidth=1.2,
            zorder=5 if filled else 4.5, clip_on=False, label=when,
        )  # fmt: skip
    if not head["before"]["voxels"]:
        axes.text(
            0.5, 0.5, "no answers", transform=axes.transAxes, ha="center", va="center", fontsize=FONT_SIZE,
            color=PALE, style="italic", bbox={"facecolor": "white", "edgecolor": "none", "pad": 3},
        )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("predicted probability", fontsize=FONT_SIZE, color=INK)


def _limits(found: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The limits of both axes, containing all points; [0, 1] without points."""
    values = [value for bins in found for key in ("probability", "right") for value in bins[key]]
    if not values:
        return 0.0, 1.0
    margin = 0.04 * (max(values) - min(values))
    low, high = max(min(values) - margin, 0.0), min(max(values) + margin, 1.0)
    wide = max(high - low, _NARROWEST)
    low = min(max((low + high - wide) / 2, 0.0), 1.0 - wide)
    return low, low + wide


def _add_legend(figure: Figure, *, has_after: bool) -> None:
    before = "before calibration" if has_after else "not calibrated"
    looks: list[tuple[Any, float, str, str]] = [
        ((0, (4, 2)), 1.1, "white", before),
        ("-", 1.5, INK, "after calibration"),
    ]
    entries = [
        Line2D(
            [], [], color=INK, linestyle=dashes, linewidth=width, marker="o", markersize=6, markerfacecolor=face,
            label=label,
        )
        for dashes, width, face, label in (looks if has_after else looks[:1])
    ]  # fmt: skip
    entries.append(Line2D([], [], color=PALE, linewidth=1, label="perfect calibration"))
    legend = figure.legend(
        handles=entries, loc="lower center", ncols=len(entries), frameon=False, fontsize=FONT_SIZE - 1, handlelength=3
    )
    for text in legend.get_texts():
        text.set_color(INK)


def _change(head: Mapping[str, Any]) -> str:
    return " → ".join(error_text(each["ece"]) for each in head.values() if each is not None)


def _said(name: str, head: Mapping[str, Any]) -> str:
    """`expert1 is right in 93.2 % (predicted: 95.1 %; 96.3 % before calibration)`."""
    who = "the model" if name == MODEL else name
    right, before = (_mean(head["before"], key) for key in ("right", "probability"))
    if head["after"] is None:
        return f"{who} is right in {share_text(right)} (predicted: {share_text(before)})"
    after, was = share_text(_mean(head["after"], "probability")), share_text(before)
    changed = f"; {was} before calibration" if was != after else ""
    return f"{who} is right in {share_text(right)} (predicted: {after}{changed})"


def _mean(bins: Mapping[str, Any], key: str) -> float:
    return float(np.average(bins[key], weights=bins["voxels"]))


def _points(share: float) -> str:
    return f"{100 * share:.1f} %".replace("-", "−")
