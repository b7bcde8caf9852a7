"""The results of a benchmark in sentences: headline, verdict on each method, and remarks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_deferral.benchmark.comparison import FOREGROUND
from nnunetv2_deferral.evaluation.summary import HARDLY_ANY_DICE, NEARLY_ALL
from nnunetv2_deferral.report.benchmark_figures import SCORE
from nnunetv2_deferral.report.statements import COLLAPSED, FEW_GROUPS, interval_text
from nnunetv2_deferral.report.tables import score_text, share_text

MOST_IN_HEADLINE = 3
_SAME = 0.0005  # in Dice; shown as 0.000


def headline(results: Mapping[str, Any], verdicts: Sequence[tuple[str, str]]) -> str:
    """The result of each method, or for many methods how many are better and worse."""
    methods = results["methods"]
    first, name = methods[0], method_names(methods)[0]
    found = interval_text(first["scores"]["model_everywhere"][FOREGROUND][SCORE])
    if first["deferral_model"]:
        system = interval_text(first["scores"]["system"][FOREGROUND][SCORE])
        found += f", its system {system} with {share_text(first['deferral']['rate'])} of the voxels deferred"
    if not verdicts:
        return f"No comparison: only {name} was given. Its mask has a Dice of {found}."
    texts = [f"Differences in Dice from {name}, whose mask has {found}."]
    if len(verdicts) <= MOST_IN_HEADLINE:
        texts += [f"{name}: {said[0].lower()}{said[1:]}" for name, said in verdicts]
    else:
        for part, what in (("model_everywhere", "masks"), ("system", "systems")):
            signs = [_sign(method["minus_first"][part][FOREGROUND][SCORE]) for method in methods[1:]
                     if part in method["minus_first"]]  # fmt: skip
            if signs:
                texts.append(
                    f"Of {len(signs)} {what}, {signs.count(1)} are better, {signs.count(-1)} worse and "
                    f"{signs.count(0)} not shown to differ."
                )
    if not any(method["deferral_model"] for method in methods):
        texts.append("There is no deferral model among the methods.")
    return " ".join(texts)


def verdict(results: Mapping[str, Any], place: int) -> str:
    """Whether the mask is as good as the first method's, and whether the system is better, in one sentence."""
    method, few = results["methods"][place], results["intervals"]["num_groups"] < FEW_GROUPS
    found = method["minus_first"]["model_everywhere"][FOREGROUND][SCORE]
    number, sign = interval_text(found, signed=True), _sign(found)
    if math.isnan(found["low"]):
        text = f"No difference is shown for its mask ({number}, without an interval)"
    elif max(abs(found["low"]), abs(found["high"])) < _SAME:
        text = f"Its mask is equally good ({number})"
    elif sign:
        text = f"Its mask is {'better' if sign > 0 else 'worse'} ({number})"
    elif few:
        text = f"Its mask is not shown to differ ({number}); there are too few cases for a conclusion"
    else:
        text = f"Its mask is not shown to differ ({number}); it is worse by at most {max(-found['low'], 0.001):.3f}"
    if not method["deferral_model"]:
        return f"{text}."
    rate = method["deferral"]["rate"]
    if not rate:
        return f"{text}; it deferred nothing, so its system equals its mask."
    found = method["minus_first"]["system"][FOREGROUND][SCORE]
    word = {1: "is better", -1: "is worse", 0: "is not shown to be better"}[_sign(found)]
    number = interval_text(found, signed=True) + (", without an interval" if math.isnan(found["low"]) else "")
    return f"{text}; its system, with {share_text(rate)} of the voxels deferred, {word} ({number})."


def cautions(results: Mapping[str, Any]) -> list[str]:
    """Sentences on methods whose results say little about deferral, as those of an evaluation."""
    methods = results["methods"]
    busy, poor = [], []
    for name, method in zip(method_names(methods), methods, strict=True):
        rate = method["deferral"].get("rate", 0)
        dice = method["scores"]["model_everywhere"][FOREGROUND][SCORE]["estimate"]
        if rate >= NEARLY_ALL:
            busy.append(f"{name} ({share_text(rate)})")
        if dice < HARDLY_ANY_DICE:
            poor.append(f"{name} (Dice {score_text(dice)})")
    found = []
    if poor:
        found.append(
            f"Hardly anything is segmented correctly: {'; '.join(poor)}. More epochs may be needed, or the labels may "
            "not match the images. Until this is resolved, results of deferral mean little."
        )
    if busy:
        found.append(
            f"Nearly all voxels were deferred: {'; '.join(busy)}. Such a system is as good as its experts. Set a "
            "budget, or train for more epochs."
        )
    return found


def remarks(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Remarks on the headline: number of cases, simulated experts, collapsed routing."""
    folds, number, drawn = results["folds"], results["num_cases"], results["intervals"]["num_groups"]
    text = (
        f"{number} validation case{'' if number == 1 else 's'} of fold{'' if len(folds) == 1 else 's'} "
        f"{', '.join(map(str, folds))}, each counted once"
    )
    text += "." if drawn == number else f", in {drawn} groups (for example patients)."
    if drawn < FEW_GROUPS:
        text += f" With only {drawn} cases or groups, intervals are rough."
    texts = [text]
    if remark := simulated_text(results):
        texts.append(remark)
    collapsed = []
    for name, method in zip(names, results["methods"], strict=True):
        rate, shares = method["deferral"].get("rate", 0), method["deferral"].get("share", {})
        most = max(shares, key=lambda expert: shares[expert], default="")
        if len(shares) > 1 and rate and shares[most] / rate >= COLLAPSED:
            collapsed.append(f"{name} ({share_text(shares[most] / rate)} to {most})")
    if collapsed:
        texts.append(
            "Nearly all deferred voxels were routed to one of several experts, so routing may have collapsed: "
            f"{'; '.join(collapsed)}."
        )
    return texts


def simulated_text(results: Mapping[str, Any]) -> str:
    """A remark if experts are simulated, else empty."""
    if all(isinstance(expert, str) for panel in panels(results) for expert in panel["experts"]):
        return ""
    return "Experts are simulated: this shows whether routing works, not the gain with real experts."


def panels(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The distinct groups of experts that answered."""
    found = [method["answered_by"] for method in results["methods"] if method["deferral_model"]]
    return list({json.dumps(panel, sort_keys=True): panel for panel in found}.values())


def method_names(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the trainers, with their plans if these differ."""
    differ = len({method["plans"] for method in methods}) > 1
    return [f"{method['trainer']} ({method['plans']})" if differ else method["trainer"] for method in methods]


def _sign(found: Mapping[str, float]) -> int:
    """1 if the interval is above zero, -1 if it is below, else 0."""
    return int(found["low"] > 0) - int(found["high"] < 0)
