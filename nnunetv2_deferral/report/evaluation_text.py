"""The terminal output and the CSV rows of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2_deferral.decision.combination import HEADS, choice_text
from nnunetv2_deferral.decision.limits import WITHOUT_LIMITS
from nnunetv2_deferral.evaluation.kept_errors import outcome
from nnunetv2_deferral.evaluation.summary import REPLACED, cautions
from nnunetv2_deferral.maps import PREDICTED_DICE
from nnunetv2_deferral.report.domain_tables import domains_text
from nnunetv2_deferral.report.statements import review_text, sanity
from nnunetv2_deferral.report.tables import share_text
from nnunetv2_deferral.text import plural, rate_text


def evaluation_text(summary: Mapping[str, Any]) -> str:
    """The main results as text for the terminal."""
    intervals, deferral = summary["intervals"]["Dice"], summary["deferral"]
    total = summary["deferred"]["total"]
    lines = [f"  {_named(name):<34} {_interval(found)}" for name, found in intervals.items()]
    if summary.get("surface_tolerance") is not None:
        tolerance = f"{summary['surface_tolerance']:g} {summary['unit']}"
        lines.append(f"  HD95 in {summary['unit']}, normalised surface distance at a tolerance of {tolerance}:")
        scored = {name: summary[name] for name in ("model_everywhere", "system")} | summary["expert_everywhere"]
        for name, part in scored.items():
            mean = part["foreground_mean"]
            lines.append(f"    {_named(name):<32} {_number(mean['HD95'], '.2f')}, {_number(mean['NSD'], '.4f')}")
    rounds = f", {rate_text(deferral['questions'])} in all rounds" if deferral["questions"] > deferral["rate"] else ""
    lines += [
        f"  deferred {rate_text(deferral['rate'])} of the voxels{rounds}; of these the model had "
        f"{_share(total['deferred_model_wrong'], total['deferred'])} wrong, experts fixed "
        f"{_share(total['fixed'], total['deferred'])} and worsened {_share(total['worsened'], total['deferred'])}",
    ]
    lines += [f"  {limits}" for limits in summary.get("limits", ()) if limits != WITHOUT_LIMITS]
    for name, effort in (summary["review"] or {}).items():
        answered = f"{plural(effort['regions'], 'region')} of {plural(effort['cases'], 'case')}"
        lines.append(
            f"  {name} answered {answered} in {effort['minutes']:.1f} minutes and changed {effort['changed_voxels']} "
            f"of {plural(effort['voxels'], 'voxel')}"
        )
        if effort.get("flags"):
            lines.append(
                f"  {name} flagged {plural(len(effort['flags']), 'place')} outside of the regions, see the report"
            )
    if (readings := summary.get("readings")) is not None:
        read = readings["all"]
        numbers = ", ".join(f"{number} {outcome}" for outcome, number in read["outcomes"].items())
        agreement = "" if read["dice"] is None else f"; mean Dice of two readers {read['dice']:.2f}"
        lines.append(f"  regions with two readers: {numbers}{agreement}")
    if total["unanswered"]:
        lines.append(f"  {_share(total['unanswered'], total['deferred'])} of the deferred voxels had no answer")
    if (choice := summary.get("ranking")) is not None and choice["chosen"] != HEADS:
        lines.append(f"  {choice_text(choice)}")
    if (certificate := summary.get("certificate")) is not None:
        lines += [f"  {certificate['statement']}", f"    {outcome(certificate)}"]
    for name, domain in (summary.get("domains") or {}).items():
        dice = domain["Dice"]
        gain = _interval(dice["system - model_everywhere"])
        lines.append(
            f"  {name}: {plural(domain['cases'], 'case')}, model "
            f"{_number(dice['model_everywhere']['estimate'], '.3f')}, system - model {gain}, deferred "
            f"{rate_text(domain['rate'])}, kept error {_number(domain['kept_error'], '.3f')}"
        )
    if summary.get("domains"):
        lines.append(f"  {domains_text(summary)}")
    if (predicted := summary["failure_detection"].get(PREDICTED_DICE)) is not None:
        lines.append(
            f"  predicted Dice: wrong by {_interval(predicted['mean_absolute_error'])} on average, Spearman "
            f"{_interval(predicted['spearman'])}"
        )
    lines += _reliability_lines(summary["reliability"], evidence=REPLACED in summary)
    lines += [f"  {text}" for text in (sanity(summary),) if text]
    lines += [f"  {text}" for text in (review_text(summary),) if text]
    lines.append("  System Dice (recovered fraction of the oracle's gain) at matched budgets:")
    budgets = [row["budget"] for row in summary["budgets"]["learned"]]
    lines.append("    " + "".join(f"{rate_text(budget):>16}" for budget in budgets))
    for name, rows in summary["budgets"].items():
        cells = (f"{_number(row['Dice'], '.3f')} ({_number(row['recovered'], '.2f')})" for row in rows)
        lines.append("    " + "".join(f"{cell:>16}" for cell in cells) + f"  {name}")
    head = [f"CAUTION: {caution}." for caution in cautions(summary)]
    return "\n".join([*head, "Dice, mean over foreground, with 95 % intervals", *lines])


def case_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `cases.csv`, one per case: deferral rates, scores and counts of deferred voxels."""
    parts = {"model": summary["model_everywhere"], "system": summary["system"], **summary["expert_everywhere"]}
    surfaces = [] if summary.get("surface_tolerance") is None else ["HD95", "NSD"]
    rows = []
    for case, rates in summary["deferral"]["per_case"].items():
        row: dict[str, Any] = {"case": case, "deferral_rate": rates["deferral_rate"]}
        row |= {f"share_{name}": share for name, share in rates["share"].items()}
        for name, part in parts.items():
            metrics: Mapping[str, Any] = next(
                (each["metrics"] for each in part["metric_per_case"] if each["case"] == case), {}
            )
            for region in summary["system"]["mean"]:
                for score in ("Dice", "IoU", "Sensitivity", *surfaces):
                    row[f"{score}_{name}_{region}"] = metrics.get(region, {}).get(score, math.nan)
        rows.append(row | summary["deferred"]["per_case"][case])
    return rows


def budget_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `budgets.csv`, one per ranking and budget."""
    keys = ("budget", "own_rate", "rate", "Dice", "low", "high", "recovered")
    return [
        {"ranking": name} | {key: row[key] for key in keys} | {f"Dice_{key}": v for key, v in row["per_region"].items()}
        for name, found in summary["budgets"].items()
        for row in found
    ]


def _reliability_lines(reliability: Mapping[str, Any] | None, *, evidence: bool) -> list[str]:
    """One line per head over the least certain voxels, and one about the gain; empty without reliability."""
    if reliability is None:
        return []
    is_calibrated = all(head["all"]["after"] is not None for head in reliability["heads"].values())
    lines = [
        "  ECE of the probabilities of being right over the least certain voxels "
        f"({share_text(_or_nan(reliability['least_certain']['share']))}"
        f"{'; before -> after calibration' if is_calibrated else ''}):"
    ]
    for name, head in reliability["heads"].items():
        found = head["least_certain"]
        errors = (_number(_or_nan(each["ece"]), ".4f") for each in found.values() if each is not None)
        lines.append(f"    {name:<32} {' -> '.join(errors)}")
    gain = reliability["gain"]
    if gain["voxels"]:
        replaced = " by answers that replace labels" if evidence else ""
        lines.append(
            f"  fixed minus worsened{replaced} among the deferred voxels with an answer: predicted "
            f"{rate_text(gain['promised'])}, observed {rate_text(gain['kept'])}"
        )
    return lines


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _named(name: str) -> str:
    return name.replace("model_everywhere", "model alone").replace(REPLACED, "answers replace labels")


def _interval(found: Mapping[str, float]) -> str:
    low, high = (_number(found[key], ".3f") for key in ("low", "high"))
    return f"{_number(found['estimate'], '.3f'):>7}  [{low}, {high}]"


def _number(value: float, how: str) -> str:
    return "–" if math.isnan(value) else format(value, how)


def _share(part: int, whole: int) -> str:
    return share_text(part / whole if whole else math.nan)
