"""Risk-coverage curves: the remaining risk when the least certain items are deferred."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.risk_coverage import RiskCoverage, RiskCoverageArea, RiskCoverageCurve
from nnunetv2_deferral.report.style import (
    FONT_SIZE,
    INK,
    PALE,
    RANKINGS,
    LineStyle,
    expert_line,
    new_figure,
    plain,
    set_title,
    tidy,
)

GENERALISED, SELECTIVE = "generalised", "selective"
_AREAS = {GENERALISED: "AUGRC", SELECTIVE: "AURC"}
_OPTIMUM = LineStyle(colour=PALE, dashes=(0, (1, 1.2)), width=1.4)
_RANDOM = LineStyle(colour=PALE, dashes=(0, (6, 3)), width=1.0)


def draw_coverage(found: Mapping[str, RiskCoverage], *, risk: str = GENERALISED) -> Figure:
    """A risk-coverage curve for each score, with those of the optimum and of a random score; areas in the legend.

    Args:
        found: The risk and coverage of each score by name, all for the same items.
        risk: `"generalised"` (sum of the losses of covered items / number of all items) or `"selective"` (mean loss of
            covered items).

    Raises:
        InputError: If there is no score or no item, or `risk` is unknown.
    """
    if risk not in _AREAS:
        raise InputError(f"risk must be one of {', '.join(_AREAS)}, got {risk!r}")
    if not found or not all(each.by_score.items.size for each in found.values()):
        raise InputError("a risk-coverage curve requires at least one score and one item")
    figure = new_figure(7.6, 4.4)
    axes = figure.add_axes((0.1, 0.13, 0.5, 0.75))

    def draw(name: str, area: float, coverage: ArrayLike, risks: ArrayLike, style: LineStyle, order: int) -> None:
        axes.plot(
            coverage, risks, color=style.colour, linestyle=style.dashes, linewidth=style.width, zorder=order,
            label=f"{plain(name, longest=22)}: {_AREAS[risk]} {area:.4g}",
        )  # fmt: skip

    for place, (name, each) in enumerate(found.items()):
        curve = each.curve()
        style = RANKINGS.get(name) or expert_line(place)
        draw(name, _area(each, risk).area, curve.coverage, _risks(curve, risk), style, 4)
    some = next(iter(found.values()))
    best, worth = RiskCoverage(some.by_loss, some.by_loss).curve(), _area(some, risk)
    mean = float(best.generalised_risk[-1])
    draw("random", worth.random, (0, 1), (0 if risk == GENERALISED else mean, mean), _RANDOM, 3)
    draw("optimum", worth.optimum, best.coverage, _risks(best, risk), _OPTIMUM, 3)

    tidy(axes)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("coverage", fontsize=FONT_SIZE, color=INK)
    axes.set_ylabel(f"{risk} risk", fontsize=FONT_SIZE, color=INK)
    set_title(axes, f"{risk.capitalize()} risk against coverage")
    legend = figure.legend(
        loc="upper left", bbox_to_anchor=(0.61, 0.89), frameon=False, fontsize=FONT_SIZE - 1, handlelength=2.6
    )
    for text in legend.get_texts():
        text.set_color(INK)
    return figure


def _area(found: RiskCoverage, risk: str) -> RiskCoverageArea:
    return found.augrc() if risk == GENERALISED else found.aurc()


def _risks(curve: RiskCoverageCurve, risk: str) -> np.ndarray:
    return curve.generalised_risk if risk == GENERALISED else curve.selective_risk
