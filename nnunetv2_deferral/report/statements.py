"""What the numbers of an evaluation say, in sentences: the headline, who answered, how sure, and what nobody knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2_deferral.evaluation.evaluation import ENTROPY, LEARNED, MAX_SOFTMAX, ORACLE, PROBABILITY, RANDOM
from nnunetv2_deferral.report.tables import DASH, ratio, score_text, share_text, signed_text

FEW_GROUPS = 20
COLLAPSED = 0.9
_NO_DIFFERENCE = 0.0005  # of Dice: 0.000 on the page

RANKING_NAMES = {
    LEARNED: "learned: expected gain (this model)",
    PROBABILITY: "probability map (this model)",
    MAX_SOFTMAX: "model's uncertainty (1 − max softmax)",
    ENTROPY: "model's uncertainty (entropy)",
    RANDOM: "random",
    ORACLE: "oracle",
}

_OTHERS = {MAX_SOFTMAX: "ranking by the model's own uncertainty", RANDOM: "choosing at random"}
_ERROR_MODELS = {
    "independent": "each voxel by itself",
    "correlated": "in spatially correlated patches",
    "boundary_bias": "by drawing borders too wide or too tight",
    "missed_components": "by missing whole components",
}

DEFINITIONS = (
    ("model", "The network's own segmentation, without asking anyone."),
    ("expert", "Someone who can be asked: a rater whose labels were read, or a simulated one."),
    ("system", "Model and experts together: the asked expert's label where the model defers, its own elsewhere."),
    ("deferred", "Handed to an expert instead of answered by the model; the rate is the share of all voxels."),
    ("matched budget", "Different rules for what to defer, compared at the same share of voxels deferred."),
    ("oracle", "Asks whoever is right where the model is wrong: a bound that needs the reference, no method."),
    ("recovered gain", "The part of the oracle's gain in Dice that a rule reaches with the same budget."),
    ("made worse", "The model was right, and the expert who was asked was wrong."),
    ("unanswered", "The expert who was asked has no label there, so the model's answer stands."),
    ("Dice", "Overlap with the reference from 0 to 1, a mean over cases; – where there is nothing to overlap."),
)


def interval_text(found: Mapping[str, float], *, signed: bool = False) -> str:
    """An estimate with its interval, as `0.900 [0.879, 0.920]`; without the interval where there is none."""
    text = signed_text if signed else score_text
    estimate, low, high = (text(found[key]) for key in ("estimate", "low", "high"))
    return estimate if DASH in (low, high) else f"{estimate} [{low}, {high}]"


def headline(summary: Mapping[str, Any]) -> str:
    """Whether deferring helped, plainly."""
    dice, rate = summary["intervals"]["Dice"], summary["deferral"]["rate"]
    model, system = dice["model_everywhere"], dice["system"]
    change = dice["system - model_everywhere"]
    if rate == 0:
        return (
            f"The model deferred nothing: the system is the model alone, with a Dice of {interval_text(model)}. "
            "No gain shown."
        )
    if math.isnan(change["estimate"]):
        return f"{_share_deferred(rate)}; Dice is undefined in all cases, so no gain can be shown."
    how = f"from {score_text(model['estimate'])} to {score_text(system['estimate'])}"
    change_text = interval_text(change, signed=True)
    if math.isnan(change["low"]):
        return (
            f"{_share_deferred(rate)}: Dice went {how} ({change_text}). With a single case or group there is no "
            "interval: no gain shown."
        )
    if change["low"] > 0:
        return f"{_share_deferred(rate)}: this raised Dice by {change_text}, {how}."
    if change["high"] < 0:
        return f"{_share_deferred(rate)}: this lowered Dice by {change_text}, {how}. Deferring did harm."
    return f"{_share_deferred(rate)}. Deferring changed Dice by {change_text}, {how}: no gain shown."


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What should be known with the headline: other rules at the same budget, the best expert, a collapse."""
    found = (_who(summary), _against_rankings(summary), _against_experts(summary), _collapse(summary))
    return [text for text in found if text]


def experts_text(summary: Mapping[str, Any]) -> str:
    """Who the experts were."""
    who = summary["experts"]
    raters = [expert for expert in who["experts"] if isinstance(expert, str)]
    simulated = [expert for expert in who["experts"] if not isinstance(expert, str)]
    sentences = []
    if raters:
        sentences.append(f"Raters, whose labels were read from files: {', '.join(raters)}.")
    if simulated:
        sentences.append(
            f"Simulated from the reference with seed {who['seed']}: "
            f"{'; '.join(_profile_text(expert) for expert in simulated)}. Border means within {who['boundary_width']} "
            "voxels of a change of label."
        )
    return " ".join(sentences)


def intervals_text(summary: Mapping[str, Any]) -> str:
    """How the intervals were drawn."""
    how, num_cases = summary["intervals"], len(summary["deferred"]["per_case"])
    if how["num_groups"] == num_cases:
        drawn = f"the {num_cases} cases, each by itself; if a patient has several, give groups, or they are too narrow"
    else:
        drawn = f"the {how['num_groups']} groups (such as patients) that the {num_cases} cases belong to"
    return (
        f"Numbers in brackets are {how['level']:.0%} intervals".replace("%", " %")
        + f" of a percentile bootstrap: {how['num_resamples']} resamples (seed {how['seed']}) of {drawn}. Differences "
        "are paired: both sides are drawn together. Intervals tell how much the choice of cases matters, and nothing "
        "of how much another training or other experts would change; they are not corrected for the number of "
        "comparisons."
    )


def limits(summary: Mapping[str, Any]) -> list[str]:
    """What this evaluation cannot tell."""
    who = summary["experts"]["experts"]
    found = []
    if summary["intervals"]["num_groups"] < FEW_GROUPS:
        found.append(
            f"Only {_counted(summary['intervals']['num_groups'], 'case')} or groups: intervals from so few are rough, "
            "and tend to be too narrow."
        )
    if any(not isinstance(expert, str) for expert in who):
        found.append(
            "Simulated experts err as they are told, independently of each other and of how hard the image is to "
            "read, unlike people. They show that routing works, not what radiologists would gain."
        )
    if any(isinstance(expert, str) for expert in who):
        found.append(
            "If the reference was made from these raters' own labels, they are right partly by construction; this "
            "page cannot know."
        )
    found += [
        "An expert alone would have labelled every voxel of every image: a reference, not an alternative at the same "
        "effort. A share of voxels is not a measure of working time either.",
        "The budgets rank the voxels of all cases together, as if all cases were at hand before anything is asked.",
        "If these are validation cases on which training, settings or thresholds were chosen, all numbers are "
        "optimistic.",
    ]
    undefined = summary["model_everywhere"]["mean"]
    if any(scores["n_undefined"] for scores in undefined.values()):
        numbers = ", ".join(f"{region}: {scores['n_undefined']}" for region, scores in undefined.items())
        found.append(f"Cases left out of the model's mean because Dice is undefined, by label: {numbers}.")
    return found


def model_text(summary: Mapping[str, Any]) -> str:
    """Which model, and which versions."""
    model, versions = summary["model_identity"], summary["versions"]
    return (
        f"Dataset {model['dataset']}, trainer {model['trainer'] or DASH}, plans {model['plans']}, configuration "
        f"{model['configuration']}; evaluated with "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + "."
    )


def reference_row(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The row of a ranking at the model's own rate, or where it deferred nothing at the budget closest to 1 %."""
    rows = summary["budgets"].get(name, [])
    own = next((row for row in rows if row["own_rate"] and row["budget"] > 0), None)
    others = [row for row in rows if row["budget"] > 0]
    return own or min(others, key=lambda row: abs(math.log(row["budget"] / 0.01)), default=None)


def _who(summary: Mapping[str, Any]) -> str:
    """That the experts are simulated, if they are: no gain with them is one with people."""
    who = summary["experts"]["experts"]
    simulated = sum(not isinstance(expert, str) for expert in who)
    if not simulated:
        return ""
    some = "The experts" if simulated == len(who) else f"{simulated} of the {len(who)} experts"
    verb = "is" if simulated == 1 and len(who) > 1 else "are"
    if len(who) == 1:
        some, verb = "The expert", "is"
    return f"{some} {verb} simulated: this shows whether routing works, not what asking people would gain."


def _against_rankings(summary: Mapping[str, Any]) -> str:
    """How the learned ranking does against the model's uncertainty and chance at one budget."""
    learned = reference_row(summary, LEARNED)
    if learned is None or math.isnan(learned["Dice"]):
        return ""
    others = [name for name in _OTHERS if name in summary["budgets"]]
    parts = []
    for name in others:
        row = reference_row(summary, name)
        if row is not None:
            verdict = _verdict(row["learned_minus_this"])
            parts.append(
                f"{verdict} {_OTHERS[name]} ({score_text(row['Dice'])}; difference "
                f"{interval_text(row['learned_minus_this'], signed=True)})"
            )
    nothing = summary["deferral"]["rate"] == 0
    budget = f"Had {share_text(learned['budget'])} been deferred" if nothing else "With the same share deferred"
    reaches = "would have reached" if nothing else "reaches"
    return (
        f"{budget}, ranking voxels by the expected gain {reaches} a Dice of {score_text(learned['Dice'])}: "
        f"{', and '.join(parts)}. The learned ranking recovers {_recovered(learned)} of the oracle's gain."
    )


def _against_experts(summary: Mapping[str, Any]) -> str:
    dice = summary["intervals"]["Dice"]
    alone = {name: dice[name]["estimate"] for name in summary["expert_everywhere"] if name in dice}
    defined = {name: value for name, value in alone.items() if not math.isnan(value)}
    if not defined:
        return ""
    best = max(defined, key=lambda name: defined[name])
    return (
        f"The best expert alone, labelling everything, is {best} with a Dice of {interval_text(dice[best])}; system "
        f"less {best}: {interval_text(dice[f'system - {best}'], signed=True)}."
    )


def _collapse(summary: Mapping[str, Any]) -> str:
    """A warning where nearly everything is deferred, or nearly all of it goes to one of several experts."""
    rate, experts = summary["deferral"]["rate"], summary["deferred"]["experts"]
    total = summary["deferred"]["total"]["deferred"]
    shares = {name: ratio(counts["deferred"], total) for name, counts in experts.items()}
    texts = []
    if rate >= COLLAPSED:
        texts.append(f"{share_text(rate)} of the voxels were deferred: the model hardly answers itself.")
    most = max(shares, key=lambda name: shares[name])
    if total and len(shares) > 1 and shares[most] >= COLLAPSED:
        texts.append(
            f"Of what was deferred, {share_text(shares[most])} went to one of {len(shares)} experts, {most}: routing "
            "has collapsed, unless the others are of no use there."
        )
    return " ".join(texts)


def _verdict(difference: Mapping[str, float]) -> str:
    if abs(difference["estimate"]) < _NO_DIFFERENCE:
        return "no different from"
    if difference["low"] > 0:
        return "better than"
    return "worse than" if difference["high"] < 0 else "not shown to differ from"


def _recovered(row: Mapping[str, Any]) -> str:
    return DASH if math.isnan(row["recovered"]) else f"{row['recovered']:.0%}".replace("%", " %").replace("-", "−")


def _share_deferred(rate: float) -> str:
    return "All voxels were deferred" if rate == 1 else f"{share_text(rate)} of the voxels were deferred"


def _profile_text(expert: Mapping[str, Any]) -> str:
    accuracies = f"{expert['foreground']:.0%} of the foreground, {expert['background']:.0%} of the background"
    if "boundary" in expert:
        border = f"{expert['boundary']:.0%} of borders"
    else:
        border = f"{100 * expert['edge_boost']:+.0f} points at borders".replace("-", "−")
    how = _ERROR_MODELS.get(expert["error_model"], expert["error_model"])
    return f"{expert['name']}, right in {accuracies} and {border}, erring {how}".replace("%", " %")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
