"""The curves of an evaluation: Dice of the system against the share of voxels deferred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nnunetv2_deferral.evaluation.rankings import ENTROPY, LEARNED, MAX_SOFTMAX, ORACLE, RANDOM
from nnunetv2_deferral.report.style import (
    FONT_SIZE,
    INK,
    PALE,
    RANKINGS,
    WIDTH,
    LineStyle,
    expert_line,
    new_figure,
    plain,
    set_title,
    spread,
    tidy,
)
from nnunetv2_deferral.report.tables import score_text, share_text

SHORT_NAMES = {
    LEARNED: "learned",
    MAX_SOFTMAX: "max softmax",
    ENTROPY: "entropy",
    RANDOM: "random",
    ORACLE: "oracle",
}
_TICKS = [digit * 10.0**power for power in range(-6, 1) for digit in (1, 2, 5)]
_SAME = 0.002  # in Dice
_CLOSE = 0.1  # largest share shown in the right panel


@dataclass(frozen=True)
class _Label:
    """A label beside a panel, at the height of the curve or level that it names."""

    text: str
    height: float
    colour: str


def draw_curves(summary: Mapping[str, Any]) -> Figure:
    """Two panels: comparison of rankings, and choice of expert.

    Both show the mean foreground Dice of the system against the share of voxels deferred (logarithmic axis), with the
    95 % intervals of the learned ranking at the budgets, the model alone as a line, and the operating point. The left
    panel has all rankings, the right one the learned ranking with the chosen or always the same expert, and each expert
    alone.

    Args:
        summary: As :meth:`nnunetv2_deferral.evaluation.evaluation.Evaluation.summary` returns it.
    """
    figure = new_figure(WIDTH, 5.1)
    left = figure.add_axes((0.062, 0.2, 0.318, 0.7))
    right = figure.add_axes((0.562, 0.2, 0.278, 0.7))
    names = {name: SHORT_NAMES[name] for name in RANKINGS if name in summary["curve"]["Dice"]}
    if MAX_SOFTMAX in names and ENTROPY in names and same_curve(summary, MAX_SOFTMAX, ENTROPY):
        del names[ENTROPY]
        names[MAX_SOFTMAX] = "max softmax, entropy"
    _draw_panel(left, summary, {name: RANKINGS[name] for name in names}, names, closer=False)
    set_title(left, "Ranking of voxels")
    left.set_ylabel("Dice of the system, mean over cases")
    experts = list(summary["deferral"]["share"])
    always = {f"{LEARNED}, always {name}": expert_line(place) for place, name in enumerate(experts)}
    names = {LEARNED: "chosen expert"} | {
        f"{LEARNED}, always {name}": f"always {plain(name, longest=18)}" for name in experts
    }
    _draw_panel(right, summary, {LEARNED: RANKINGS[LEARNED]} | always, names, closer=True)
    set_title(right, "Choice of expert")
    _add_legend(figure, summary)
    return figure


def curve_points(summary: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Shares deferred (above 0, ascending) and Dice of a ranking, from both its curve and its budgets."""
    curve = summary["curve"]
    found = dict(zip(curve["budget"], curve["Dice"][name], strict=True))
    found |= {row["budget"]: row["Dice"] for row in summary["budgets"][name]}
    points = sorted((budget, dice) for budget, dice in found.items() if budget > 0)
    return [budget for budget, _ in points], [dice for _, dice in points]


def same_curve(summary: Mapping[str, Any], first: str, second: str) -> bool:
    """Whether two rankings are indistinguishable in a figure, as max softmax and entropy are for two classes."""
    pairs = zip(curve_points(summary, first)[1], curve_points(summary, second)[1], strict=True)
    return all(abs(one - other) < _SAME or (math.isnan(one) and math.isnan(other)) for one, other in pairs)


def band_points(summary: Mapping[str, Any]) -> list[dict[str, float]]:
    """The budgets above 0, ascending, at which the learned ranking has an interval."""
    rows = [row for row in summary["budgets"][LEARNED] if row["budget"] > 0 and not math.isnan(row["low"])]
    return sorted(rows, key=lambda row: row["budget"])


def _draw_panel(
    axes: Axes, summary: Mapping[str, Any], styles: Mapping[str, LineStyle], names: Mapping[str, str], *, closer: bool
) -> None:
    rate, dice = summary["deferral"]["rate"], summary["intervals"]["Dice"]
    furthest = _CLOSE if closer and rate <= _CLOSE else math.inf
    labels, heights = [], []
    shares: list[float] = []
    for name, style in styles.items():
        points = [point for point in zip(*curve_points(summary, name), strict=True) if point[0] <= furthest * 1.001]
        if not any(math.isfinite(height) for _, height in points):
            continue
        x, y = ([point[axis] for point in points] for axis in (0, 1))
        axes.plot(
            x, y, color=style.colour, linestyle=style.dashes, linewidth=style.width, marker=style.marker,
            markevery=(2 if style.marker != "o" else 0, 5), markersize=4.5, label=name,
            markerfacecolor="white" if name != LEARNED else style.colour,
            zorder=4 if name == LEARNED else 3,
        )  # fmt: skip
        labels.append(_Label(names[name], next(h for h in reversed(y) if math.isfinite(h)), style.colour))
        heights += y
        shares += x
    band = [row for row in band_points(summary) if row["budget"] <= furthest * 1.001]
    _draw_band(axes, band)
    alone = {"model alone": dice["model_everywhere"]["estimate"]}
    if closer and not summary.get("review"):  # where nobody segmented whole images
        alone |= {
            f"{plain(name, longest=18)} alone": dice[name]["estimate"]
            for name in summary["deferral"]["share"]
            if name in dice
        }
    intervals = [row[key] for row in (*band, dice["system"]) for key in ("low", "high")]
    low, high = _limits([*heights, *intervals, alone["model alone"]])
    _draw_alone(axes, alone, labels, low, high)
    _set_shares(axes, shares, rate)
    axes.set_ylim(low, high)
    _draw_operating_point(axes, rate, dice["system"])
    _draw_labels(axes, labels, low, high)


def _draw_band(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    if not rows:
        return
    x = [row["budget"] for row in rows]
    below = [row["Dice"] - row["low"] for row in rows]
    above = [row["high"] - row["Dice"] for row in rows]
    colour = RANKINGS[LEARNED].colour
    axes.fill_between(
        x, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.14, linewidth=0, zorder=1
    )
    axes.errorbar(
        x, [row["Dice"] for row in rows], [below, above],
        fmt="none", ecolor=colour, elinewidth=0.9, capsize=3, alpha=0.8, zorder=2, label="interval",
    )  # fmt: skip


def _draw_alone(axes: Axes, alone: Mapping[str, float], labels: list[_Label], low: float, high: float) -> None:
    """A horizontal line for the model and each expert alone; values outside the axes are given at the edge."""
    for name, height in alone.items():
        if math.isnan(height):
            continue
        if not low <= height <= high:
            arrow = "↓" if height < low else "↑"
            labels.append(_Label(f"{arrow} {name}: {score_text(height)}", height, INK))
            continue
        is_model = name == "model alone"
        axes.axhline(
            height, color=INK if is_model else PALE, linewidth=1.3 if is_model else 0.8,
            linestyle=(0, (9, 3)) if is_model else "-", zorder=2, label=name,
        )  # fmt: skip
        labels.append(_Label(name, height, INK))


def _draw_operating_point(axes: Axes, rate: float, system: Mapping[str, float]) -> None:
    if math.isnan(system["estimate"]):
        return
    left, right = axes.get_xlim()
    place = min(max(rate, left), right)
    error = None
    if not math.isnan(system["low"]):
        error = [[system["estimate"] - system["low"]], [system["high"] - system["estimate"]]]
    axes.errorbar(
        [place], [system["estimate"]], error, fmt="D", markersize=8, color=INK, markeredgecolor="white",
        ecolor=INK, elinewidth=1.4, capsize=4, zorder=6, clip_on=False, label="operating point",
    )  # fmt: skip


def _limits(heights: Sequence[float]) -> tuple[float, float]:
    defined = [height for height in heights if math.isfinite(height)] or [0.0, 1.0]
    low, high = min(defined), max(defined)
    margin = max(0.06 * (high - low), 0.004)
    return low - margin, high + margin


def _set_shares(axes: Axes, shares: Sequence[float], rate: float) -> None:
    tidy(axes)
    low, high = min(shares, default=0.001), max(shares, default=0.5)
    if rate > 0:
        low, high = min(low, rate), max(high, rate)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _ticks(low, high) if low * 0.999 <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_xlabel("share of all voxels deferred")


def _ticks(low: float, high: float) -> list[float]:
    """Ticks at 1, 2 and 5 of each decade, or at the decades only for a wide range."""
    return _TICKS if high / low < 200 else _TICKS[::3]


def _draw_labels(axes: Axes, labels: Sequence[_Label], low: float, high: float) -> None:
    """Labels to the right of a panel, spread to avoid overlap, each with a thin leader line."""
    apart = (high - low) * 0.052
    places = spread([label.height for label in labels], apart=apart, low=low, high=high)
    across = axes.get_yaxis_transform()
    for label, place in zip(labels, places, strict=True):
        axes.plot(
            [1.0, 1.03, 1.05], [min(max(label.height, low), high), place, place],
            transform=across, color=label.colour, linewidth=0.8, clip_on=False,
        )  # fmt: skip
        axes.text(1.062, place, label.text, transform=across, va="center", ha="left", fontsize=FONT_SIZE - 1, color=INK)


def _add_legend(figure: Figure, summary: Mapping[str, Any]) -> None:
    rate, learned = summary["deferral"]["rate"], RANKINGS[LEARNED]
    where = f"the model's own decision: {share_text(rate)} deferred"
    if rate == 0:
        where += " (drawn at the left edge)"
    entries = [
        Line2D([], [], color=INK, marker="D", markersize=8, markeredgecolor="white", linestyle="", label=where),
    ]
    if band_points(summary):
        entries.append(
            Line2D([], [], color=learned.colour, linewidth=9, alpha=0.25, label="learned ranking, 95 % interval")
        )
    entries.append(Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (9, 3)), label="model alone"))
    legend = figure.legend(
        handles=entries, loc="lower center", ncols=len(entries), frameon=False, fontsize=FONT_SIZE - 1, handlelength=2.6
    )
    for text in legend.get_texts():
        text.set_color(INK)
