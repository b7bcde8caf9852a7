"""The style of all figures: colours of Okabe and Ito, combined with hatching, dashes or markers for print in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#222222"
PALE = "#6E6E6E"
RULE = "#D9D9D9"
FONT_SIZE = 10.0
WIDTH = 10.8  # inches; figures are about 980 pixels wide on a page

_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#56B4E9")
_HATCHES = ("", "////", "....", "xxxx", "----", "++++", "\\\\\\\\")
_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (7, 2, 1, 2)),
    (0, (3, 3)),
    (0, (8, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
)
_MARKERS = "s^vDPX<>"

# Outcomes of deferred voxels: colour, hatching and label.
OUTCOMES = {
    "fixed": ("#009E73", "", "fixed: the model was wrong, the system right"),
    "unchanged": ("#E2E2E2", "", "no change: both right, or both wrong"),
    "unanswered": ("#FFFFFF", "....", "unanswered: the expert has no label"),
    "worsened": ("#D55E00", "////", "worsened: the model was right, the system wrong"),
}


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """The style of a line."""

    colour: str
    dashes: str | tuple[int, tuple[float, ...]] = "-"
    marker: str = ""
    width: float = 1.5


RANKINGS = {
    "learned": LineStyle(colour="#0072B2", marker="o", width=2.4),
    "max_softmax": LineStyle(colour="#D55E00", dashes=(0, (5, 1.5)), marker="s"),
    "entropy": LineStyle(colour="#B07800", dashes=(0, (7, 2, 1, 2)), marker="^"),
    "random": LineStyle(colour=PALE, dashes=(0, (1, 1.2)), width=1.8),
    "oracle": LineStyle(colour="#009E73", marker="D", width=1.2),
}


def expert_fill(place: int) -> tuple[str, str]:
    """Colour and hatching of the expert with index `place` in routing order, from 0; the first 49 are distinct."""
    turn = place // len(_COLOURS)
    return _COLOURS[place % len(_COLOURS)], _HATCHES[(place + turn) % len(_HATCHES)]


def expert_line(place: int) -> LineStyle:
    """Line style of the expert with index `place` in routing order, from 0."""
    turn = place // len(_DASHES)
    return LineStyle(
        colour=_COLOURS[place % len(_COLOURS)]
        if place % len(_COLOURS) != 4
        else "#8F8600",  # yellow lines are hard to see
        dashes=_DASHES[(place + turn) % len(_DASHES)],
        marker=_MARKERS[place % len(_MARKERS)],
        width=1.4,
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, without a window."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def plain(name: str, *, longest: int = 28) -> str:
    """A name as literal text for matplotlib (no mathematics), truncated to `longest` characters."""
    short = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return short.replace("$", r"\$")


def tidy(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Format axes: no frame at the top and right, pale lines, dark text."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=FONT_SIZE - 1, length=3)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=RULE, linewidth=0.7)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_fontsize(FONT_SIZE)
        text.set_color(INK)


def set_title(axes: Axes, title: str) -> None:
    """Set a left-aligned title."""
    axes.set_title(title, loc="left", fontsize=FONT_SIZE + 0.5, color=INK, fontweight="bold", pad=9)


def spread(heights: Sequence[float], *, apart: float, low: float, high: float) -> list[float]:
    """Move heights apart so that labels do not overlap.

    Args:
        heights: Heights in any order and unit.
        apart: Minimum distance; reduced if the labels would not fit between `low` and `high`.
        low: Lowest allowed height.
        high: Highest allowed height.

    Returns:
        The new heights in the given order.
    """
    if len(heights) > 1:
        apart = min(apart, (high - low) / (len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    found = [min(max(height, low), high) for height in heights]
    for below, place in pairwise(order):
        found[place] = max(found[place], found[below] + apart)
    ceiling = high
    for place in reversed(order):
        found[place] = min(found[place], ceiling)
        ceiling = found[place] - apart
    return found
