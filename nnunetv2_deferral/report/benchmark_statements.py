"""What a benchmark says, in sentences: the headline, each method's verdict, and what should be known with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_deferral.benchmark.comparison import FOREGROUND
from nnunetv2_deferral.report.benchmark_figures import SCORE
from nnunetv2_deferral.report.statements import COLLAPSED, FEW_GROUPS, interval_text
from nnunetv2_deferral.report.tables import share_text

MOST_IN_HEADLINE = 3
_SAME = 0.0005  # of Dice: 0.000 on the page


def headline(results: Mapping[str, Any], verdicts: Sequence[tuple[str, str]]) -> str:
    """What came out of every method, or where there are many of how many."""
    methods = results["methods"]
    first, name = methods[0], method_names(methods)[0]
    found = interval_text(first["scores"]["model_everywhere"][FOREGROUND][SCORE])
    if first["deferral_model"]:
        system = interval_text(first["scores"]["system"][FOREGROUND][SCORE])
        found += f", as a system {system} with {share_text(first['deferral']['rate'])} of the voxels deferred"
    if not verdicts:
        return f"Nothing is compared: only {name} was given. Its mask has a Dice of {found}."
    texts = [f"Dice against {name}, whose mask has {found}."]
    if len(verdicts) <= MOST_IN_HEADLINE:
        texts += [f"{name}: {said[0].lower()}{said[1:]}" for name, said in verdicts]
    else:
        for part, what in (("model_everywhere", "masks"), ("system", "systems")):
            signs = [_sign(method["minus_first"][part][FOREGROUND][SCORE]) for method in methods[1:]
                     if part in method["minus_first"]]  # fmt: skip
            if signs:
                texts.append(
                    f"Of {len(signs)} {what}, {signs.count(1)} are shown to be better and {signs.count(-1)} to be "
                    f"worse; of the other {signs.count(0)} neither is shown."
                )
    if not any(method["deferral_model"] for method in methods):
        texts.append("There is no deferral model among them.")
    return " ".join(texts)


def verdict(results: Mapping[str, Any], place: int) -> str:
    """Whether the mask is as good as the first method's, and whether the system is better."""
    method, few = results["methods"][place], results["intervals"]["num_groups"] < FEW_GROUPS
    found = method["minus_first"]["model_everywhere"][FOREGROUND][SCORE]
    number, sign = interval_text(found, signed=True), _sign(found)
    if math.isnan(found["low"]):
        text = f"Of its mask nothing is shown ({number}, without an interval)"
    elif max(abs(found["low"]), abs(found["high"])) < _SAME:
        text = f"Its mask scores the same ({number})"
    elif sign:
        text = f"Its mask is {'better' if sign > 0 else 'worse'} ({number})"
    elif few:
        text = f"Its mask is shown neither to be as good nor to be worse ({number})"
    else:
        text = f"Its mask is not shown to differ ({number}), and no worse by more than {max(-found['low'], 0.001):.3f}"
    if not method["deferral_model"]:
        return f"{text}."
    rate = method["deferral"]["rate"]
    if not rate:
        return f"{text}; it deferred nothing, so its system is its mask."
    found = method["minus_first"]["system"][FOREGROUND][SCORE]
    word = {1: "is better", -1: "is worse", 0: "is not shown to be better"}[_sign(found)]
    number = interval_text(found, signed=True) + (", without an interval" if math.isnan(found["low"]) else "")
    return f"{text}; its system, with {share_text(rate)} of the voxels deferred, {word} ({number})."


def remarks(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What should be known with the headline: how many cases, who the experts were, whether routing collapsed."""
    folds, number, drawn = results["folds"], results["num_cases"], results["intervals"]["num_groups"]
    text = (
        f"{number} validation case{'' if number == 1 else 's'} of fold{'' if len(folds) == 1 else 's'} "
        f"{', '.join(map(str, folds))}, each counted once"
    )
    text += "." if drawn == number else f", in {drawn} groups (such as patients)."
    if drawn < FEW_GROUPS:
        text += f" Only {drawn} cases or groups: intervals from so few are rough, and tend to be too narrow."
    texts = [text]
    if any(not isinstance(expert, str) for panel in panels(results) for expert in panel["experts"]):
        texts.append("Experts are simulated: this shows whether routing works, not what asking people would gain.")
    busy, collapsed = [], []
    for name, method in zip(names, results["methods"], strict=True):
        rate, shares = method["deferral"].get("rate", 0), method["deferral"].get("share", {})
        if rate >= COLLAPSED:
            busy.append(f"{name} ({share_text(rate)})")
        most = max(shares, key=lambda expert: shares[expert], default="")
        if len(shares) > 1 and rate and shares[most] / rate >= COLLAPSED:
            collapsed.append(f"{name} ({share_text(shares[most] / rate)} to {most})")
    if busy:
        texts.append(f"Nearly all voxels were deferred, so that the model hardly answers itself: {'; '.join(busy)}.")
    if collapsed:
        texts.append(
            "Nearly all that was deferred went to one of several experts, so that routing has collapsed unless the "
            f"others are of no use there: {'; '.join(collapsed)}."
        )
    return texts


def panels(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Who answered, each once."""
    found = [method["answered_by"] for method in results["methods"] if method["deferral_model"]]
    return list({json.dumps(panel, sort_keys=True): panel for panel in found}.values())


def method_names(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """The trainers, with their plans where they are not those of all."""
    differ = len({method["plans"] for method in methods}) > 1
    return [f"{method['trainer']} ({method['plans']})" if differ else method["trainer"] for method in methods]


def _sign(found: Mapping[str, float]) -> int:
    """1 or -1 if the whole interval is above or below zero, else 0."""
    return int(found["low"] > 0) - int(found["high"] < 0)
