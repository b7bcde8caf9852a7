"""Scores and effects of deferral as data, text and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.text import markdown_table, rate_text

SCORES = ("Dice", "IoU", "Sensitivity")
DASH = "–"
SYSTEM = "system (model + experts)"


def result_table(summary: Mapping[str, Any], effect: Mapping[str, int]) -> dict[str, Any]:
    """The results of a report as data.

    Args:
        summary: From :func:`nnunetv2_deferral.evaluation.summary.summarize_deferral`.
        effect: The `total` of :func:`nnunetv2_deferral.evaluation.deferred.add_counts`, for the same cases.

    Returns:
        `{"rows": [{"who", "Dice", "IoU", "Sensitivity"}, ...], "deferral": {"rate", "share", **effect}}`; scores are
        means over the foreground, NaN if undefined.
    """
    parts = {"model alone": summary["model_everywhere"], SYSTEM: summary["system"]}
    parts |= {f"{name} alone": part for name, part in summary["expert_everywhere"].items()}
    rows = [{"who": who} | {score: part["foreground_mean"][score] for score in SCORES} for who, part in parts.items()]
    deferral = {"rate": summary["deferral"]["rate"], "share": dict(summary["deferral"]["share"])}
    return {"rows": rows, "deferral": deferral | dict(effect)}


def score_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The scores as text: a row of headings, then one row per source."""
    body = [[row["who"], *(score_text(row[score]) for score in SCORES)] for row in table["rows"]]
    return [["source", *SCORES], *body]


def deferral_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """Deferral rates and effects as pairs of description and number."""
    found = table["deferral"]
    deferred = found["deferred"]
    rows = [["voxels deferred", percent_text(found["rate"])]]
    rows += [[f"routed to {name}", percent_text(share)] for name, share in found["share"].items()]
    if found["unanswered"]:
        rows.append(["deferred voxels, unanswered", percent_text(ratio(found["unanswered"], deferred))])
    return [
        *rows,
        ["deferred voxels, model wrong", percent_text(ratio(found["deferred_model_wrong"], deferred))],
        ["deferred voxels, fixed", percent_text(ratio(found["fixed"], deferred))],
        ["deferred voxels, worsened", percent_text(ratio(found["worsened"], deferred))],
        ["errors of the model, fixed", percent_text(ratio(found["fixed"], found["model_wrong"]))],
    ]


def result_tables(table: Mapping[str, Any]) -> list[Table]:
    """Scores and effects as tables of a page."""
    head, *rows = score_rows(table)
    return [
        Table(caption="Overlap with the reference, mean over the cases", head=head, rows=rows, highlighted=SYSTEM),
        Table(caption="Deferral and its effect", rows=deferral_rows(table)),
    ]


def markdown_tables(table: Mapping[str, Any]) -> str:
    """Both tables in Markdown."""
    return "\n\n".join(
        markdown_table(rows) for rows in (score_rows(table), [["deferral", "value"], *deferral_rows(table)])
    )


def dice_by_case(part: Mapping[str, Any]) -> dict[str, float]:
    """Foreground Dice of each case in a part of a summary: the mean over labels, NaN if none is defined."""
    found = {}
    for row in part["metric_per_case"]:
        defined = [scores["Dice"] for scores in row["metrics"].values() if not math.isnan(scores["Dice"])]
        found[row["case"]] = float(np.mean(defined)) if defined else float("nan")
    return found


def telling_order(model: Mapping[str, float], system: Mapping[str, float]) -> list[tuple[str, str]]:
    """All cases, the most informative first.

    Args:
        model: Dice of the model by case.
        system: Dice of the system for the same cases, NaN if undefined.

    Returns:
        Pairs of case and reason, in the order: largest improvement and largest deterioration (if any), worst and median
        result of the system, then the others by name with an empty reason. A case appears once, with all its reasons.
    """
    defined = sorted((case for case in system if not math.isnan(system[case])), key=lambda case: (system[case], case))
    gains = {case: system[case] - model[case] for case in defined if not math.isnan(model[case])}
    reasons: dict[str, list[str]] = {}
    if gains:
        best, worst = max(gains, key=lambda case: gains[case]), min(gains, key=lambda case: gains[case])
        if gains[best] > 0:
            reasons.setdefault(best, []).append("largest improvement")
        if gains[worst] < 0:
            reasons.setdefault(worst, []).append("largest deterioration")
    if defined:
        reasons.setdefault(defined[0], []).append("worst result of the system")
        reasons.setdefault(defined[len(defined) // 2], []).append("median result of the system")
    rest = [(case, "") for case in sorted(system) if case not in reasons]
    return [(case, ", ".join(why)) for case, why in reasons.items()] + rest


def score_text(value: float) -> str:
    """Three decimals, a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.3f}"


def signed_text(value: float) -> str:
    """Three decimals with a sign, a dash for NaN; no sign if the value rounds to zero."""
    if math.isnan(value):
        return DASH
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0.000"


def percent_text(value: float) -> str:
    """Per cent as :func:`.rate_text`, a dash for NaN."""
    return DASH if math.isnan(value) else rate_text(value).replace("%", " %")


def share_text(value: float) -> str:
    """Per cent with enough decimals to differ from 0 % and 100 % unless equal, a dash for NaN."""
    if math.isnan(value) or value in (0, 1):
        return DASH if math.isnan(value) else f"{value:.0%}".replace("%", " %")
    if value < 1e-6:
        return "< 0.0001 %"
    if 0.995 <= value < 1:
        return f"{min(value, 0.9999):.2%}".replace("%", " %")
    decimals = 1 if abs(value) >= 0.1 else max(1, 1 - math.floor(math.log10(abs(value) * 100)))
    return f"{100 * value:.{decimals}f} %"


def per_cent_text(value: float) -> str:
    """Whole per cent with a minus sign, unless it is zero, a dash for NaN."""
    return DASH if math.isnan(value) else f"{round(100 * value)} %".replace("-", "−")


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, NaN if the denominator is zero."""
    return numerator / denominator if denominator else float("nan")
