"""The numbers of a report: who scores what, and what deferring did, as plain data, Markdown and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.text import markdown_table

SCORES = ("Dice", "IoU", "Sensitivity")
DASH = "–"
SYSTEM = "system (model + experts asked)"


def result_table(
    summary: Mapping[str, Any], effect: Mapping[str, int], *, stock: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The numbers of a report.

    Args:
        summary: From :func:`nnunetv2_deferral.evaluation.summary.summarize_deferral`.
        effect: The `total` of :func:`nnunetv2_deferral.evaluation.deferred.add_counts`, for the same cases.
        stock: Scores of a stock nnU-Net on the same cases, from :func:`nnunetv2_deferral.evaluation.overlap.summarize`.

    Returns:
        `{"rows": [{"who", "Dice", "IoU", "Sensitivity"}, ...], "deferral": {"rate", "share", **effect}}`, scores being
        means over the foreground, NaN where undefined.
    """
    parts = {} if stock is None else {"stock nnU-Net": stock}
    parts |= {"model alone": summary["model_everywhere"], SYSTEM: summary["system"]}
    parts |= {f"{name} alone": part for name, part in summary["expert_everywhere"].items()}
    rows = [{"who": who} | {score: part["foreground_mean"][score] for score in SCORES} for who, part in parts.items()]
    deferral = {"rate": summary["deferral"]["rate"], "share": dict(summary["deferral"]["share"])}
    return {"rows": rows, "deferral": deferral | dict(effect)}


def score_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The scores as text, one row for each who answers, headings first."""
    body = [[row["who"], *(score_text(row[score]) for score in SCORES)] for row in table["rows"]]
    return [["who answers", *SCORES], *body]


def deferral_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """What was deferred and what came of it, as pairs of words and numbers."""
    found = table["deferral"]
    deferred = found["deferred"]
    rows = [["voxels deferred", percent_text(found["rate"])]]
    rows += [[f"asked of {name}", percent_text(share)] for name, share in found["share"].items()]
    wrong = "of the deferred voxels, the model had wrong"
    if found["unanswered"]:
        rows.append(["of the deferred voxels, no answer", percent_text(ratio(found["unanswered"], deferred))])
    return [
        *rows,
        [wrong, percent_text(ratio(found["deferred_model_wrong"], deferred))],
        ["of the deferred voxels, deferring fixed", percent_text(ratio(found["fixed"], deferred))],
        ["of the deferred voxels, deferring made wrong", percent_text(ratio(found["worsened"], deferred))],
        ["of the model's errors, deferring fixed", percent_text(ratio(found["fixed"], found["model_wrong"]))],
    ]


def result_tables(table: Mapping[str, Any]) -> list[Table]:
    """Both as tables of a page."""
    head, *rows = score_rows(table)
    return [
        Table(caption="Overlap with the reference, mean over the cases", head=head, rows=rows, highlighted=SYSTEM),
        Table(caption="What was deferred, and what came of it", rows=deferral_rows(table)),
    ]


def markdown_tables(table: Mapping[str, Any]) -> str:
    """Both tables in Markdown."""
    return "\n\n".join(
        markdown_table(rows) for rows in (score_rows(table), [["deferral", "value"], *deferral_rows(table)])
    )


def dice_by_case(part: Mapping[str, Any]) -> dict[str, float]:
    """Foreground Dice of every case in a part of a summary: the mean over labels, NaN where none is defined."""
    found = {}
    for row in part["metric_per_case"]:
        defined = [scores["Dice"] for scores in row["metrics"].values() if not math.isnan(scores["Dice"])]
        found[row["case"]] = float(np.mean(defined)) if defined else float("nan")
    return found


def telling_order(model: Mapping[str, float], system: Mapping[str, float]) -> list[tuple[str, str]]:
    """All cases, the ones that tell most first.

    Args:
        model: Dice of the model by case.
        system: Dice of the system, for the same cases. NaN is looked at last.

    Returns:
        Pairs of case and why it is shown, in the order: the most improved and the most harmed (where asking changed
        any), the worst and the median of the system, then the others by name with an empty reason. A case appears
        once, with all its reasons.
    """
    defined = sorted((case for case in system if not math.isnan(system[case])), key=lambda case: (system[case], case))
    gains = {case: system[case] - model[case] for case in defined if not math.isnan(model[case])}
    reasons: dict[str, list[str]] = {}
    if gains:
        best, worst = max(gains, key=lambda case: gains[case]), min(gains, key=lambda case: gains[case])
        if gains[best] > 0:
            reasons.setdefault(best, []).append("most improved by asking")
        if gains[worst] < 0:
            reasons.setdefault(worst, []).append("most harmed by asking")
    if defined:
        reasons.setdefault(defined[0], []).append("worst result of the system")
        reasons.setdefault(defined[len(defined) // 2], []).append("median result of the system")
    rest = [(case, "") for case in sorted(system) if case not in reasons]
    return [(case, ", ".join(why)) for case, why in reasons.items()] + rest


def score_text(value: float) -> str:
    """Three decimals, a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.3f}"


def signed_text(value: float) -> str:
    """Three decimals with their sign, a dash for NaN; no sign where it rounds to zero."""
    if math.isnan(value):
        return DASH
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0.000"


def percent_text(value: float) -> str:
    """Per cent with two decimals, a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.2%}".replace("%", " %")


def share_text(value: float) -> str:
    """Per cent with as many decimals as it needs to be told from none and from all, a dash for NaN."""
    if math.isnan(value) or value in (0, 1):
        return DASH if math.isnan(value) else f"{value:.0%}".replace("%", " %")
    if value < 1e-6:
        return "< 0.0001 %"
    if 0.995 <= value < 1:
        return f"{min(value, 0.9999):.2%}".replace("%", " %")
    decimals = 1 if abs(value) >= 0.1 else max(1, 1 - math.floor(math.log10(abs(value) * 100)))
    return f"{100 * value:.{decimals}f} %"


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, NaN for a denominator of zero."""
    return numerator / denominator if denominator else float("nan")
