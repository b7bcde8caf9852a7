"""Bar charts of the effect of deferral: load and outcome by expert, error rates by score and by distance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from nnunetv2_deferral.report.style import (
    FONT_SIZE,
    INK,
    OUTCOMES,
    PALE,
    WIDTH,
    expert_fill,
    new_figure,
    plain,
    set_title,
    tidy,
)
from nnunetv2_deferral.report.tables import ratio, share_text

FEW_VOXELS = 30
_KINDS = {"deferred": ("#0072B2", "", "deferred"), "model_wrong": ("#D55E00", "////", "model wrong")}


def unchanged(counts: Mapping[str, int]) -> int:
    """Number of deferred voxels that were answered but neither fixed nor worsened."""
    return counts["deferred"] - counts["fixed"] - counts["worsened"] - counts["unanswered"]


def draw_load(summary: Mapping[str, Any]) -> Figure:
    """Three panels with a bar for each expert: load, voxels fixed and worsened, and outcome of the routed voxels.

    Args:
        summary: As :meth:`nnunetv2_deferral.evaluation.evaluation.Evaluation.summary` returns it.
    """
    experts = summary["deferred"]["experts"]
    height = 1.75 + 0.42 * max(len(experts), 2)
    figure = new_figure(WIDTH, height)
    bottom, tall = 1.02 / height, (height - 1.5) / height
    panels = [figure.add_axes((left, bottom, wide, tall)) for left, wide in ((0.15, 0.2), (0.42, 0.24), (0.73, 0.25))]
    for axes in panels:
        tidy(axes, grid="x")
        axes.set_ylim(len(experts) - 0.4, -0.6)
        axes.set_yticks(range(len(experts)), [""] * len(experts))
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticklabels([plain(name, longest=20) for name in experts])
    total = summary["deferred"]["total"]["deferred"]
    for draw, axes in zip((_draw_shares, _draw_benefit, _draw_outcomes), panels, strict=True):
        draw(axes, list(experts.values()))
        if total == 0:
            _say_nothing_deferred(axes)
    handles = [_patch(colour, hatch, label) for colour, hatch, label in OUTCOMES.values()]
    legend = figure.legend(
        handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=FONT_SIZE - 1, columnspacing=2.5
    )
    for text in legend.get_texts():
        text.set_color(INK)
    return figure


def draw_location(summary: Mapping[str, Any], *, unit: str = "mm") -> Figure:
    """Error rate of the model by score, and deferral and error rate by distance to the border of the reference.

    Args:
        summary: As :meth:`nnunetv2_deferral.evaluation.evaluation.Evaluation.summary` returns it.
        unit: Unit of the distances, for the axis label.
    """
    figure = new_figure(WIDTH, 4.3)
    numbers = figure.add_axes((0.075, 0.75, 0.37, 0.15))
    errors = figure.add_axes((0.075, 0.16, 0.37, 0.52))
    distances = figure.add_axes((0.545, 0.16, 0.435, 0.74))
    _draw_scores(numbers, errors, summary)
    _draw_distances(distances, summary["location"]["by_distance"], unit)
    return figure


def _draw_shares(axes: Axes, experts: Sequence[Mapping[str, int]]) -> None:
    total = sum(counts["deferred"] for counts in experts)
    for place, counts in enumerate(experts):
        share = ratio(counts["deferred"], total)
        if math.isnan(share):
            continue
        colour, hatch = expert_fill(place)
        _bar(axes, place, 0, share, colour, hatch)
        axes.text(
            share + 0.025, place, share_text(share), va="center", fontsize=FONT_SIZE - 1, color=INK, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
        )  # fmt: skip
    if len(experts) > 1:
        axes.axvline(1 / len(experts), color=INK, linewidth=1, linestyle=(0, (2, 2)), label="equal shares")
        axes.text(1 / len(experts), -0.62, " equal shares", fontsize=FONT_SIZE - 2, color=INK, va="bottom")
    axes.set_xlim(0, 1.28)
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("share of the deferred voxels")
    set_title(axes, "Load\n")


def _draw_benefit(axes: Axes, experts: Sequence[Mapping[str, int]]) -> None:
    widest = max([1, *(counts[key] for counts in experts for key in ("fixed", "worsened"))])
    for place, counts in enumerate(experts):
        if not counts["deferred"]:
            continue
        for kind, sign, side in (("fixed", 1, "left"), ("worsened", -1, "right")):
            number = counts[kind]
            _bar(axes, place, 0, sign * number, *OUTCOMES[kind][:2])
            text = f"{'+' if sign > 0 else '−'}{number:,}" if number else "0"
            end = sign * (number + 0.03 * widest)
            axes.text(end, place, text, ha=side, va="center", fontsize=FONT_SIZE - 1, color=INK)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlim(-1.5 * widest, 1.5 * widest)
    axes.set_xticks([])
    axes.set_xlabel("voxels worsened  |  voxels fixed")
    set_title(axes, "Effect\n")


def _draw_outcomes(axes: Axes, experts: Sequence[Mapping[str, int]]) -> None:
    for place, counts in enumerate(experts):
        if not counts["deferred"]:
            continue
        parts = {
            "fixed": counts["fixed"],
            "unchanged": unchanged(counts),
            "unanswered": counts["unanswered"],
            "worsened": counts["worsened"],
        }
        begin = 0.0
        for kind, number in parts.items():
            share = number / counts["deferred"]
            _bar(axes, place, begin, share, *OUTCOMES[kind][:2])
            begin += share
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("share of routed voxels")
    set_title(axes, "Outcome\n")


def _draw_scores(numbers: Axes, errors: Axes, summary: Mapping[str, Any]) -> None:
    bins = [row for row in summary["location"]["by_score"] if row["voxels"]]
    for axes in (numbers, errors):
        tidy(axes)
        axes.set_xlim(
            max(0, min((row["from"] for row in bins), default=0) - 0.05),
            min(1, max((row["to"] for row in bins), default=1) + 0.05),
        )
    for row in bins:
        wide = row["to"] - row["from"]
        numbers.bar(row["from"], row["voxels"], wide, align="edge", color="#BDBDBD", edgecolor="white", linewidth=0.5)
        errors.bar(
            row["from"], row["model_wrong"] / row["voxels"], wide, align="edge", color=_KINDS["model_wrong"][0],
            edgecolor="white", linewidth=0.5, alpha=1.0 if row["voxels"] >= FEW_VOXELS else 0.35,
        )  # fmt: skip
    numbers.set_yscale("log")
    numbers.set_ylim(0.7, 3 * max([1, *(row["voxels"] for row in bins)]))
    numbers.set_xticklabels([])
    numbers.yaxis.set_major_locator(FixedLocator([1, 1e3, 1e6, 1e9]))
    numbers.yaxis.set_minor_locator(NullLocator())
    numbers.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(int(value))))
    numbers.set_ylabel("voxels")
    total = summary["deferred"]["total"]
    overall = ratio(total["model_wrong"], total["voxels"])
    if not math.isnan(overall):
        errors.axhline(overall, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="all voxels")
        errors.text(
            1.01, overall, f"all:\n{share_text(overall)}", transform=errors.get_yaxis_transform(), va="center",
            fontsize=FONT_SIZE - 2, color=INK,
        )  # fmt: skip
    errors.set_ylim(bottom=0)
    errors.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    errors.set_ylabel("error rate of the model")
    errors.set_xlabel("deferral score (probability map)")
    set_title(numbers, "Error rate by score")


def _draw_distances(axes: Axes, bands: Sequence[Mapping[str, Any]], unit: str) -> None:
    tidy(axes)
    for place, row in enumerate(bands):
        if not row["voxels"]:
            axes.text(place, 0, "–", ha="center", va="bottom", fontsize=FONT_SIZE, color=PALE)
            continue
        for shift, (key, (colour, hatch, _)) in zip((-0.2, 0.2), _KINDS.items(), strict=True):
            height = row[key] / row["voxels"]
            axes.bar(place + shift, height, 0.38, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=key)
            axes.text(
                place + shift, height, _short_share(height), ha="center", va="bottom", fontsize=FONT_SIZE - 3, color=INK
            )
    axes.set_xlim(-0.6, len(bands) - 0.4)
    axes.set_xticks(range(len(bands)), [f"{_band(row)}\n{_number(row['voxels'])}" for row in bands])
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    highest = max([1e-6, *(row[key] / row["voxels"] for row in bands if row["voxels"] for key in _KINDS)])
    axes.set_ylim(0, 1.22 * highest)  # room for the legend
    axes.set_yticks([tick for tick in MaxNLocator(6).tick_values(0, highest) if 0 <= tick <= 1])
    axes.set_xlabel(f"distance to the border of the reference ({unit}); number of voxels")
    axes.set_ylabel("share of the voxels at this distance")
    set_title(axes, "Deferral and errors by distance")
    axes.legend(
        handles=[_patch(*style, edge="white") for style in _KINDS.values()], ncols=2,
        frameon=False, fontsize=FONT_SIZE - 1, labelcolor=INK, loc="upper right",
    )  # fmt: skip


def _band(row: Mapping[str, Any]) -> str:
    return f"> {row['above_mm']:g}" if row["up_to_mm"] is None else f"{row['above_mm']:g}–{row['up_to_mm']:g}"


def _number(voxels: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if voxels >= size:
            return f"{voxels / size:.3g}{unit}"
    return str(voxels)


def _short_share(share: float) -> str:
    """Per cent with two significant digits, without the per cent sign."""
    if share == 0:
        return "0"
    return f"{100 * share:.2g}" if share < 0.0995 else f"{100 * share:.0f}"


def _bar(axes: Axes, place: int, begin: float, length: float, colour: str, hatch: str) -> None:
    axes.barh(place, length, 0.62, left=begin, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6)


def _patch(colour: str, hatch: str, label: str, *, edge: str = INK) -> Patch:
    return Patch(facecolor=colour, edgecolor=edge, hatch=hatch, linewidth=0.6, label=label)


def _say_nothing_deferred(axes: Axes) -> None:
    axes.text(
        0.5, 0.5, "nothing was deferred", transform=axes.transAxes, ha="center", va="center", fontsize=FONT_SIZE,
        color=PALE, style="italic", bbox={"facecolor": "white", "edgecolor": "none", "pad": 3},
    )  # fmt: skip
