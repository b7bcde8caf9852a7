"""Domains compared in tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2_deferral.evaluation.domains import domains_in_order
from nnunetv2_deferral.evaluation.prior_errors import MASK_ONLY, PRIOR_MAP
from nnunetv2_deferral.evaluation.rankings import (
    BEST_EXPERT,
    CONFIDENCE,
    ENTROPY,
    ENTROPY_TIMES_DOUBT,
    LEARNED,
    MAX_SOFTMAX,
    ORACLE,
    RANDOM,
)
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE
from nnunetv2_deferral.report.evaluation_tables import ranking_name
from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.report.statements import interval_text
from nnunetv2_deferral.report.tables import DASH, per_cent_text, score_text, share_text, signed_text

# Rankings that a learned one has to beat: they need no training for deferral.
SIMPLE = (MAX_SOFTMAX, CONFIDENCE, ENTROPY, MASK_ONLY, NEAR_BORDER, PRIOR_MAP, NEAR_CENTRE)
# The first needs the learned heads, the second knows afterwards who was best: shown, but no measure of the learned one.
_SHOWN = (LEARNED, *SIMPLE, ENTROPY_TIMES_DOUBT, BEST_EXPERT, RANDOM, ORACLE)
_AT = 0.01  # the budget of the table, or the nearest one


def domains_table(summary: Mapping[str, Any]) -> Table:
    """Model, system and deferral in each domain, the worst last."""
    found = summary["domains"]
    rows = []
    for name in domains_in_order(found):
        each = found[name]
        dice, wanted = each["Dice"], each.get("budget")
        errors = [error for error in (each["ECE"] or {}).values() if error is not None]
        rows.append(
            [
                name,
                str(each["cases"]),
                interval_text(dice["model_everywhere"]),
                interval_text(dice["system"]),
                interval_text(dice["system - model_everywhere"], signed=True),
                share_text(each["rate"]) + (f"\nof {share_text(wanted)}" if wanted is not None else ""),
                score_text(each["kept_error"]),
                f"{max(errors):.3f}" if errors else DASH,
            ]
        )
    return Table(
        caption="Domains, the one with the smallest gain last, with 95 % intervals. Deferred: share of the voxels, and "
        "the budget if there was one. Kept error: wrong voxels that no expert was asked about, divided by the "
        "foreground. ECE: largest calibration error of model and experts on the least certain voxels",
        head=["domain", "cases", "model", "system", "system − model", "deferred", "kept\nerror", "ECE"],
        rows=rows,
    )


def rankings_table(summary: Mapping[str, Any]) -> Table:
    """What rankings gain in each domain at one budget."""
    found = summary["domains"]
    names = domains_in_order(found)
    rankings = [each for each in _SHOWN if each in found[names[0]]["budgets"]]
    budget = _budget(summary)
    rows = []
    for ranking in rankings:
        cells = []
        for name in names:
            row = _row(found[name], ranking, budget)
            gain = row["gain"]
            interval = "" if math.isnan(gain["low"]) else f"\n[{signed_text(gain['low'])}, {signed_text(gain['high'])}]"
            cells.append(f"{signed_text(gain['estimate'])}{interval}\n{per_cent_text(row['recovered'])}")
        rows.append([ranking_name(ranking), *cells])
    return Table(
        caption=f"Gain in Dice over the model alone if {share_text(budget)} of the voxels of each domain are deferred, "
        "with 95 % intervals, and the fraction of the oracle's gain that is recovered",
        head=["ranking", *names],
        rows=rows,
        highlighted=ranking_name(LEARNED),
    )


def domains_text(summary: Mapping[str, Any]) -> str:
    """In which domains the learned ranking gains no more than one that needs no training for deferral."""
    found, budget = summary["domains"], _budget(summary)
    beaten = []
    for name in domains_in_order(found):
        learned = _row(found[name], LEARNED, budget)["Dice"]
        others = {each: _row(found[name], each, budget)["Dice"] for each in SIMPLE if each in found[name]["budgets"]}
        defined = {each: dice for each, dice in others.items() if not math.isnan(dice)}
        best = max(defined, key=lambda each: defined[each], default=None)
        if best is not None and not learned > defined[best]:
            beaten.append(f"{name} ({score_text(learned)}; {ranking_name(best)}: {score_text(defined[best])})")
    at = f"At {share_text(budget)} of the voxels of each domain"
    if not beaten:
        return (
            f"{at}, the learned ranking has a higher Dice than all rankings that need no training, in every domain. "
            "These are means, whose differences have no intervals."
        )
    return (
        f"{at}, the learned ranking has no higher Dice than the best one that needs no training in {', '.join(beaten)}."
    )


def _budget(summary: Mapping[str, Any]) -> float:
    """The budget nearest to 1 %, in ratio."""
    rows = next(iter(summary["domains"].values()))["budgets"][LEARNED]
    budgets = [row["budget"] for row in rows if row["budget"] > 0] or [row["budget"] for row in rows]
    return float(min(budgets, key=lambda budget: abs(math.log(max(budget, 1e-9) / _AT))))


def _row(domain: Mapping[str, Any], ranking: str, budget: float) -> Mapping[str, Any]:
    row: Mapping[str, Any] = next(row for row in domain["budgets"][ranking] if row["budget"] == budget)
    return row
