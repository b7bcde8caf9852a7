"""The figures of a benchmark report: differences from the first method, and load of the experts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from nnunetv2_deferral.benchmark.comparison import FOREGROUND, Resampling, values
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.bootstrap import Interval, bootstrap_difference, mean_over_cases
from nnunetv2_deferral.report.style import (
    FONT_SIZE,
    INK,
    PALE,
    WIDTH,
    expert_fill,
    new_figure,
    plain,
    set_title,
    tidy,
)
from nnunetv2_deferral.report.tables import DASH, ratio, share_text, signed_text

SCORE = "Dice"
EXPERT = "expert alone"
PARTS = {"model_everywhere": "model alone", "system": "system"}

# Marker and colour by kind; the marker alone distinguishes them.
_MARKS = {"model_everywhere": ("s", INK), "system": ("D", "#0072B2"), EXPERT: ("^", "#B07800")}
_MOST_PANELS = 3  # side by side
_LABELS = 2.0  # inches
_LINE = 0.25  # inches
_LEAST_SPAN = 0.005  # in Dice on either side of zero, so that negligible differences do not look large
_NEAR = 0.05  # in Dice; experts within this distance of zero are always on the scale


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the forest plot.

    Attributes:
        label: Label of the line.
        kind: `"model_everywhere"`, `"system"` or `EXPERT`.
        differences: For each region `{"estimate", "low", "high"}` of the difference in Dice, NaN if undefined.
    """

    label: str
    kind: str
    differences: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines under a common heading."""

    heading: str
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Expert:
    """An expert alone, labelling whole images.

    Attributes:
        label: Displayed name.
        part: Scores by case, from the `summary` of a method.
        scores: Means with intervals, from the `scores` of a method.
    """

    label: str
    part: Mapping[str, Any]
    scores: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of the experts of a method.

    Attributes:
        label: Displayed name of the method.
        rate: Deferral rate, as a share of all voxels.
        shares: Share of all voxels routed to each expert, in routing order.
    """

    label: str
    rate: float
    shares: Mapping[str, float]


def method_lines(method: Mapping[str, Any]) -> list[Line]:
    """The differences of a method from the first; empty for the first itself."""
    return [
        Line(label=word, kind=part, differences={region: found[SCORE] for region, found in less.items()})
        for part, word in PARTS.items()
        if (less := method["minus_first"].get(part))
    ]


def experts_alone(methods: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Expert]:
    """All distinct experts with scores of their own.

    Args:
        methods: Methods of the results.
        labels: Displayed names of the methods, to distinguish experts of the same name with different answers.
    """
    found: dict[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = {}
    for method, label in zip(methods, labels, strict=True):
        for name, part in method["summary"].get("expert_everywhere", {}).items():
            scores = method["scores"][f"{name} alone"]
            found.setdefault(json.dumps([name, part]), (name, label, part, scores))
    names = [name for name, *_ in found.values()]
    return [
        Expert(label=f"{name} alone" if names.count(name) == 1 else f"{name} alone ({label})", part=part, scores=scores)
        for name, label, part, scores in found.values()
    ]


def expert_line(expert: Expert, results: Mapping[str, Any], resampling: Resampling | None) -> Line:
    """The difference between an expert alone and the mask of the first method, over the cases labelled by the expert.

    It is not part of benchmark.json and is computed from the scores by case.

    Args:
        expert: The expert.
        results: From :func:`nnunetv2_deferral.benchmark.comparison.compare`.
        resampling: The resampling of the other intervals; None if unknown, for a line without intervals.
    """
    labelled = {row["case"] for row in expert.part["metric_per_case"]}
    cases = [case for fold in results["cases"].values() for case in fold if case in labelled]
    first, differences = results["methods"][0]["summary"]["model_everywhere"], {}
    for region in (FOREGROUND, *results["regions"]):
        chosen = list(results["regions"]) if region == FOREGROUND else [region]
        ours, theirs = values(expert.part, cases, chosen, SCORE), values(first, cases, chosen, SCORE)
        if resampling is None:
            found = Interval(mean_over_cases(ours) - mean_over_cases(theirs), math.nan, math.nan)
        else:
            found = bootstrap_difference(ours, theirs, **resampling.options(cases))
        differences[region] = found.to_dict()
    return Line(label=expert.label, kind=EXPERT, differences=differences)


def draw_forest(blocks: Sequence[Block], regions: Mapping[str, str]) -> Figure:
    """Forest plot of the differences in Dice from the first method, with one panel per region on a common scale.

    The scale fits models and systems; experts outside it are drawn as an arrow with a number.

    Args:
        blocks: The lines to show, from top to bottom.
        regions: Titles of the panels by region.

    Raises:
        InputError: If there are no lines or no regions.
    """
    lines = [line for block in blocks for line in (None, *block.lines)]
    if not lines or not regions:
        raise InputError(f"a forest plot requires lines and regions, got {len(lines)} and {len(regions)}")
    names, columns = list(regions), min(len(regions), _MOST_PANELS)
    stacked = math.ceil(len(names) / columns)
    tall = len(lines) * _LINE
    height = stacked * (tall + 1.0) + 0.35
    figure = new_figure(WIDTH, height)
    wide = (WIDTH - _LABELS - 0.2) / columns
    span = _span(blocks, names)
    for place, region in enumerate(names):
        row, column = divmod(place, columns)
        top = height - 0.4 - row * (tall + 1.0)
        box = ((_LABELS + column * wide) / WIDTH, (top - tall) / height, (wide - 0.25) / WIDTH, tall / height)
        axes = figure.add_axes(box, facecolor="none")
        _draw_panel(axes, lines, region, span)
        set_title(axes, _plain(regions[region], 40))
        if column == 0:
            _draw_labels(figure, blocks, top)
    kinds = {line.kind: None for block in blocks for line in block.lines}
    words = PARTS | {EXPERT: "expert alone, whole image"}
    handles = [
        Line2D([], [], marker=_MARKS[kind][0], color=_MARKS[kind][1], markersize=6, linewidth=1.6, label=words[kind])
        for kind in kinds
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=FONT_SIZE - 1, labelcolor=INK
    )  # fmt: skip
    return figure


def draw_loads(loads: Sequence[Load]) -> Figure:
    """A bar for each method: the distribution of its deferred voxels among the experts.

    Raises:
        InputError: If there is no method.
    """
    if not loads:
        raise InputError("a figure of loads requires at least one method, got none")
    most = max(len(load.shares) for load in loads)
    columns = min(most, 4)
    above, below = 0.1, 0.75 + 0.24 * math.ceil(most / columns)
    height = above + 0.58 * len(loads) + below
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.02, below / height, 0.73, 0.58 * len(loads) / height))
    tidy(axes, grid="x")
    for place, load in enumerate(loads):
        axes.text(0, place - 0.27, _plain(load.label, 90), fontsize=FONT_SIZE - 1, color=INK, va="bottom")
        axes.text(
            1.02, place, f"{share_text(load.rate)} of all voxels deferred", fontsize=FONT_SIZE - 1, color=INK,
            va="center",
        )  # fmt: skip
        _draw_load(axes, place, load)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(loads) - 0.68, -0.68)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("share of the deferred voxels")
    handles = []
    for place in range(most):
        called = dict.fromkeys(list(load.shares)[place] for load in loads if len(load.shares) > place)
        fill, hatch = expert_fill(place)
        label = _plain(" / ".join(called), 34)
        handles.append(Patch(facecolor=fill, hatch=hatch, edgecolor=INK, linewidth=0.6, label=label))
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=FONT_SIZE - 1, labelcolor=INK
    )  # fmt: skip
    return figure


def _draw_panel(axes: Axes, lines: Sequence[Line | None], region: str, span: tuple[float, float]) -> None:
    tidy(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, linewidth=1, zorder=1.5)
    axes.set_xlim(*span)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4g}".replace("-", "−") if value else "0"))
    axes.set_xlabel("difference in Dice (positive is better)")
    for place, line in enumerate(lines):
        if line is None:
            continue
        found, (marker, colour) = line.differences[region], _MARKS[line.kind]
        estimate, low, high = found["estimate"], found["low"], found["high"]
        if math.isnan(estimate):
            axes.text(0, place, f" {DASH} undefined", va="center", fontsize=FONT_SIZE - 2, color=PALE)
        elif not span[0] <= estimate <= span[1]:
            _draw_beyond(axes, place, estimate, span, colour)
        else:
            if not math.isnan(low):
                axes.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt", zorder=2)
            hollow = math.isnan(low)
            axes.plot(
                estimate, place, marker=marker, markersize=6.5, color="white" if hollow else colour,
                markeredgecolor=colour if hollow else "white", markeredgewidth=1.2 if hollow else 0.6, zorder=3,
            )  # fmt: skip


def _draw_beyond(axes: Axes, place: int, estimate: float, span: tuple[float, float], colour: str) -> None:
    """An arrow at the edge of the axes, with the value outside them."""
    left = estimate < span[0]
    for text, points, shade, size in (("◀" if left else "▶", 2, colour, 1), (signed_text(estimate), 14, INK, 2)):
        axes.annotate(
            text, (0 if left else 1, place), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            xytext=(points if left else -points, 0), ha="left" if left else "right", va="center", color=shade,
            fontsize=FONT_SIZE - size, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _draw_labels(figure: Figure, blocks: Sequence[Block], top: float) -> None:
    """Headings across the whole width, on lines without data, so that long names fit; labels beside the panels."""
    width, height = figure.get_size_inches()
    where = top - 0.5 * _LINE
    for block in blocks:
        figure.text(
            0.1 / width, where / height, _plain(block.heading, 100), va="center",
            fontsize=FONT_SIZE - 1, color=INK, fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
        where -= _LINE
        for line in block.lines:
            figure.text(
                0.25 / width, where / height, _plain(line.label, 26), va="center", fontsize=FONT_SIZE - 1,
                color=INK,
            )  # fmt: skip
            where -= _LINE


def _draw_load(axes: Axes, place: int, load: Load) -> None:
    begin = 0.0
    for number, share in enumerate(load.shares.values()):
        part = ratio(share, load.rate)
        if math.isnan(part) or not part:
            continue
        colour, hatch = expert_fill(number)
        axes.barh(place, part, 0.42, left=begin, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6)
        if part >= 0.09:
            axes.text(
                begin + part / 2, place, share_text(part), ha="center", va="center", fontsize=FONT_SIZE - 2, color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
            )  # fmt: skip
        begin += part
    if not load.rate:
        axes.text(0.01, place, "nothing was deferred", va="center", fontsize=FONT_SIZE - 1, color=PALE, style="italic")


def _span(blocks: Sequence[Block], regions: Sequence[str]) -> tuple[float, float]:
    """The scale, containing zero, models and systems with their intervals, and experts close to them."""
    lines = [line for block in blocks for line in block.lines]
    telling = [line for line in lines if line.kind != EXPERT] or lines
    numbers = [number for line in telling for number in _finite(line, regions)]
    reach = max([_NEAR, *map(abs, numbers)])
    numbers += [number for line in lines for number in _finite(line, regions) if abs(number) <= reach]
    low, high = min([-_LEAST_SPAN, *numbers]), max([_LEAST_SPAN, *numbers])
    margin = 0.07 * (high - low)
    return low - margin, high + margin


def _finite(line: Line, regions: Sequence[str]) -> list[float]:
    return [number for region in regions for number in line.differences[region].values() if math.isfinite(number)]


def _plain(name: str, longest: int) -> str:
    """A name for matplotlib, shortened in the middle if too long, because names of trainers differ at their ends."""
    end = longest // 2
    short = name if len(name) <= longest else f"{name[: longest - end - 1]}…{name[-end:]}"
    return plain(short, longest=longest)
