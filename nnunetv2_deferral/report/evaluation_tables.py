"""The tables of an evaluation report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2_deferral.evaluation.failure import FOLD_DISAGREEMENT, MUTUAL_INFORMATION
from nnunetv2_deferral.evaluation.rankings import LEARNED, MAX_SOFTMAX
from nnunetv2_deferral.evaluation.summary import REPLACED
from nnunetv2_deferral.maps import PREDICTED_DICE
from nnunetv2_deferral.readings import OUTCOMES
from nnunetv2_deferral.report.outcomes import unchanged
from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.report.reliability_figure import bias_text, error_text
from nnunetv2_deferral.report.statements import RANKING_NAMES, interval_text
from nnunetv2_deferral.report.tables import DASH, SYSTEM, per_cent_text, ratio, score_text, share_text, signed_text

_HOW_CASES_ARE_SCORED = {
    "mean": "mean over all voxels",
    "foreground": "mean over predicted foreground",
    "off_boundary": "mean outside a band around predicted borders",
    "highest_box": "highest mean over a box",
}

_CASE_SCORES = {
    FOLD_DISAGREEMENT: "disagreement between {members}",
    MUTUAL_INFORMATION: "mutual information of {members}",
    PREDICTED_DICE: "1 − predicted Dice",
}


def ranking_name(name: str) -> str:
    """The displayed name of a ranking."""
    if name == f"{LEARNED}, replaced":
        return "learned, answers replace labels"
    return RANKING_NAMES.get(name, name).replace(f"{MAX_SOFTMAX},", "model uncertainty,")


def scores_table(summary: Mapping[str, Any]) -> Table:
    """Scores of the model, the system and each expert alone."""
    dice, num_cases = summary["intervals"]["Dice"], len(summary["deferred"]["per_case"])
    parts = {"model alone": ("model_everywhere", summary["model_everywhere"]), SYSTEM: ("system", summary["system"])}
    if REPLACED in summary:
        parts["system, answers replace labels"] = (REPLACED, summary[REPLACED])
    parts |= {f"{name} alone": (name, part) for name, part in summary["expert_everywhere"].items()}
    tolerance = summary.get("surface_tolerance")
    surfaces = [] if tolerance is None else ["HD95", "NSD"]
    rows = []
    for who, (key, part) in parts.items():
        mean = part["foreground_mean"]
        less = interval_text(dice[f"system - {key}"], signed=True) if key != "system" else ""
        seen = len(part["metric_per_case"])
        rows.append(
            [
                who,
                interval_text(dice[key]),
                less,
                *(score_text(mean[score]) for score in ("IoU", "Sensitivity")),
                *(_distance_text(mean[score]) if score == "HD95" else score_text(mean[score]) for score in surfaces),
                str(seen) if seen == num_cases else f"{seen} of {num_cases}",
            ]
        )
    return Table(
        caption="Overlap with the reference, mean over cases and labels, with 95 % intervals; that of an expert, and "
        "system − this, over the cases and voxels that the expert labelled",
        head=["source", "Dice", "system − this", "IoU", "sensitivity", *surfaces, "cases"],
        rows=rows,
        highlighted=SYSTEM,
    )


def _distance_text(distance: float) -> str:
    return DASH if math.isnan(distance) else f"{distance:.2f}"


def regions_table(summary: Mapping[str, Any]) -> Table | None:
    """Dice by label; None if there is only one."""
    regions = list(summary["system"]["mean"])
    if len(regions) < 2:
        return None
    parts = {"model alone": summary["model_everywhere"], "system": summary["system"], **summary["expert_everywhere"]}
    rows = [
        [
            f"label {region}",
            *(score_text(part["mean"].get(region, {}).get("Dice", math.nan)) for part in parts.values()),
        ]
        for region in regions
    ]
    return Table(caption="Dice by label, mean over cases", head=["", *parts], rows=rows)


def budgets_table(summary: Mapping[str, Any]) -> Table:
    """Dice and recovered gain of all rankings at matched budgets."""
    rows = []
    for name, found in summary["budgets"].items():
        cells = [
            _with_interval(row["Dice"], row["low"], row["high"]) + f"\n{per_cent_text(row['recovered'])}"
            for row in found
        ]
        rows.append([ranking_name(name), *cells])
    return Table(
        caption="Matched budgets: Dice of the system, 95 % interval, recovered gain",
        head=["ranking", *_budget_heads(summary)],
        rows=rows,
        highlighted=ranking_name(LEARNED),
    )


def differences_table(summary: Mapping[str, Any]) -> Table:
    """Differences between the learned ranking and the others at matched budgets."""
    rows = []
    for name, found in summary["budgets"].items():
        if name == LEARNED:
            continue
        cells = [
            _with_interval(row["learned_minus_this"]["estimate"], row["learned_minus_this"]["low"],
                           row["learned_minus_this"]["high"], signed=True)
            for row in found
        ]  # fmt: skip
        rows.append([ranking_name(name), *cells])
    return Table(
        caption="Matched budgets: paired differences in Dice, learned − other ranking, with 95 % intervals",
        head=["learned −", *_budget_heads(summary)],
        rows=rows,
    )


def load_table(summary: Mapping[str, Any]) -> Table:
    """Load and effect of each expert."""
    counts = summary["deferred"]
    voxels, deferred = counts["total"]["voxels"], counts["total"]["deferred"]
    rows = []
    for name, found in {**counts["experts"], "all": counts["total"]}.items():
        asked = found["deferred"]
        kinds = (found["deferred_model_wrong"], found["fixed"], unchanged(found), found["worsened"],
                 found["unanswered"])  # fmt: skip
        rows.append(
            [name, f"{asked:,}\n{share_text(ratio(asked, voxels))}", share_text(ratio(asked, deferred)),
             *(f"{number:,}\n{share_text(ratio(number, asked))}" for number in kinds),
             _signed(found["fixed"] - found["worsened"])]
        )  # fmt: skip
    return Table(
        caption="Load and effect as numbers of voxels. Below each number is its share: for routed voxels, of all "
        "voxels; otherwise, of the voxels routed to this expert",
        head=["expert", "routed", "share of\ndeferred", "model\nwrong", "fixed", "no change", "worsened",
              "unanswered", "fixed −\nworsened"],
        rows=rows,
        highlighted="all",
    )  # fmt: skip


def effort_table(summary: Mapping[str, Any]) -> Table | None:
    """The experts' effort on the review page; None if the answers were not given there."""
    if not summary.get("review"):
        return None
    return Table(
        caption="Effort on the review page: submitted cases, answered regions and voxels, number of regions by stated "
        "confidence, and working time",
        head=["expert", "cases", "regions", "voxels", "changed", "cannot tell", "confidence", "minutes",
              "minutes per case"],
        rows=[
            [name, str(effort["cases"]), str(effort["regions"]), f"{effort['voxels']:,}",
             f"{effort['changed_voxels']:,}\n{share_text(ratio(effort['changed_voxels'], effort['voxels']))}",
             f"{effort.get('cannot_tell_voxels', 0):,}", _confidence_text(effort), f"{effort['minutes']:.1f}",
             f"{effort['minutes'] / effort['cases']:.1f}" if effort["cases"] else DASH]
            for name, effort in summary["review"].items()
        ],
    )  # fmt: skip


def _confidence_text(effort: Mapping[str, Any]) -> str:
    stated = [f"{number} {confidence}" for confidence, number in effort.get("confidence", {}).items() if number]
    return "\n".join(stated) or DASH


def readings_table(summary: Mapping[str, Any]) -> Table | None:
    """What became of the regions that two experts read; None if one expert reads each."""
    found = summary.get("readings")
    if not found:
        return None
    rules = found["rules"]
    measure = "1 − Dice" if rules["measure"] == "dice" else "of the voxels"
    decides = "they stay open" if rules["adjudicator"] is None else f"{rules['adjudicator']} decides"
    rows = [(" and ".join(each["readers"]), each) for each in found["pairs"]] + [("all", found["all"])]
    return Table(
        caption="Regions that two experts read without seeing each other. Agreed: they differ by at most "
        f"{rules['max_difference']:g} ({measure}); where they differ by more, {decides}. Single: only one has "
        "answered. Mean Dice and Cohen's kappa of the regions that both answered",
        head=["readers", "regions", *OUTCOMES, "disputed", "Dice", "kappa"],
        rows=[
            [name, str(sum(of["outcomes"].values())), *(str(of["outcomes"][each]) for each in OUTCOMES),
             str(of["disputed"]), _two_decimals(of["dice"]), _two_decimals(of["kappa"])]
            for name, of in rows
        ],
    )  # fmt: skip


def flags_table(summary: Mapping[str, Any]) -> Table | None:
    """The places that experts flagged on the review page; None if there are none."""
    rows = [
        [flag["case"], ", ".join(map(str, flag["voxel"])), name, flag["comment"] or DASH]
        for name, effort in (summary.get("review") or {}).items()
        for flag in effort.get("flags", ())
    ]
    if not rows:
        return None
    return Table(
        caption="Places that experts flagged outside of their regions on the review page, with the voxel (x, y, z)",
        head=["case", "voxel", "expert", "comment"],
        rows=rows,
    )


def errors_table(summary: Mapping[str, Any]) -> Table:
    """How well scores rank the model's errors, by voxel."""
    rows = [
        [
            ranking_name(name),
            *(_thousandfold(found[area][key]) for area in ("AUGRC", "AURC") for key in ("area", "optimum", "random")),
        ]
        for name, found in summary["risk_coverage"].items()
    ]
    return Table(
        caption="Ranking of the model's errors: areas under risk-coverage curves over voxels, times 1000; lower is "
        "better",
        head=["score", "AUGRC", "optimum", "random", "AURC", "optimum", "random"],
        rows=rows,
    )


def predicted_dice_text(summary: Mapping[str, Any]) -> str | None:
    """How well the predicted Dice agrees with the true one; None if it was not predicted."""
    found = summary["failure_detection"].get(PREDICTED_DICE)
    if found is None or "pearson" not in found:
        return None

    def shown(name: str) -> str:
        each = found[name]
        interval = f" ({score_text(each['low'])} to {score_text(each['high'])})"
        return f"{score_text(each['estimate'])}{interval}"

    return (
        f"The predicted Dice is wrong by {shown('mean_absolute_error')} on average; its correlation with the Dice of "
        f"the model is {shown('pearson')} (Pearson) and {shown('spearman')} (Spearman)."
    )


def cases_table(summary: Mapping[str, Any]) -> Table:
    """How well scores of cases rank the cases by the model's Dice."""
    rows = []
    for name, found in summary["failure_detection"].items():
        score, _, how = name.partition(", ")
        label = _CASE_SCORES.get(score, ranking_name(score)).format(members=summary.get("members") or "folds")
        if how in _HOW_CASES_ARE_SCORED:
            label = f"{label}, {_HOW_CASES_ARE_SCORED[how]}"
        areas = [score_text(found["AUGRC"][key]) for key in ("area", "optimum", "random")]
        rows.append([label, *areas, score_text(found["AURC"]["normalised"]), str(found["num_cases"])])
    return Table(
        caption="Area under the generalised risk-coverage curve (AUGRC) over cases, loss 1 − Dice of the model; lower "
        "is better. Normalised AURC: 0 for a perfect order of the cases, 1 for a random one",
        head=["score of the case", "AUGRC", "optimum", "random", "normalised\nAURC", "cases"],
        rows=rows,
    )


def reliability_table(summary: Mapping[str, Any]) -> Table | None:
    """Calibration error and bias of the probabilities of being right; None without reliability."""
    reliability = summary.get("reliability")
    if reliability is None:
        return None
    times = ["before", "after"] if all(each["all"]["after"] for each in reliability["heads"].values()) else ["before"]
    parts = {"least_certain": "least certain", "all": "all voxels"}
    cells = [(part, score, time) for part in parts for score in ("ece", "bias") for time in times]
    texts = {"ece": error_text, "bias": bias_text}
    return Table(
        caption="Probabilities of being right: expected calibration error (ECE, lower is better) and bias (mean "
        "probability − observed frequency; positive: overconfident), over the least certain and over all voxels",
        head=[
            "source",
            *(
                "\n".join(
                    [parts[part], score.upper() if score == "ece" else score, *([time] if len(times) > 1 else [])]
                )
                for part, score, time in cells
            ),
        ],
        rows=[
            [name, *(texts[score](head[part][time][score]) for part, score, time in cells)]
            for name, head in reliability["heads"].items()
        ],
    )


def _budget_heads(summary: Mapping[str, Any]) -> list[str]:
    rows = summary["budgets"][LEARNED]
    return [
        f"{share_text(row['budget'])}\n(own rate)" if row["own_rate"] else f"{100 * row['budget']:g} %" for row in rows
    ]


def _with_interval(estimate: float, low: float, high: float, *, signed: bool = False) -> str:
    text = signed_text if signed else score_text
    return text(estimate) if math.isnan(low) else f"{text(estimate)}\n[{text(low)},\N{NO-BREAK SPACE}{text(high)}]"


def _signed(number: int) -> str:
    return f"{number:+,}".replace("-", "−") if number else "0"


def _two_decimals(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _thousandfold(value: float) -> str:
    return DASH if math.isnan(value) else f"{1000 * value:.3g}"
