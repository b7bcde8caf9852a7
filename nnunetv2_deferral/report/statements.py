"""The results of an evaluation in sentences: headline, remarks, experts, intervals and limitations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2_deferral.decision.combination import HEADS, choice_text
from nnunetv2_deferral.defaults import AGGREGATED
from nnunetv2_deferral.evaluation.kept_errors import outcome
from nnunetv2_deferral.evaluation.prior_errors import MASK_ONLY, PRIOR_MAP
from nnunetv2_deferral.evaluation.rankings import (
    BEST_EXPERT,
    CONFIDENCE,
    ENTROPY,
    ENTROPY_TIMES_DOUBT,
    IN_ROUNDS,
    LEARNED,
    MAX_SOFTMAX,
    ORACLE,
    PROBABILITY,
    RANDOM,
)
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE
from nnunetv2_deferral.evaluation.summary import REPLACED
from nnunetv2_deferral.report.tables import DASH, per_cent_text, ratio, score_text, share_text, signed_text
from nnunetv2_deferral.text import plural

FEW_GROUPS = 20
COLLAPSED = 0.9
_NO_DIFFERENCE = 0.0005  # in Dice; shown as 0.000

RANKING_NAMES = {
    LEARNED: "learned: expected gain (this model)",
    IN_ROUNDS: "two rounds, up to two experts a voxel",
    PROBABILITY: "probability map (this model)",
    AGGREGATED: "aggregated deferral predictor (this model)",
    MAX_SOFTMAX: "model uncertainty (1 − max softmax)",
    CONFIDENCE: "model uncertainty, fitted expert and stopping point",
    BEST_EXPERT: "model uncertainty, best expert in hindsight",
    ENTROPY: "model uncertainty (entropy)",
    ENTROPY_TIMES_DOUBT: "entropy × (1 − calibrated confidence)",
    NEAR_BORDER: "distance to the predicted border alone",
    NEAR_CENTRE: "distance to the centre of the image alone",
    MASK_ONLY: "class and distance to border, errors of other cases",
    PRIOR_MAP: "position in the image, errors of other cases",
    RANDOM: "random",
    ORACLE: "oracle",
}

_OTHERS = {
    MAX_SOFTMAX: "ranking by max softmax",
    CONFIDENCE: "max softmax with the expert and the stopping point that were best on validation cases",
    NEAR_BORDER: "distance to the predicted border, without the image",
    RANDOM: "random order",
}
# A learned ranking that is no better has learned nothing about images, or nothing that the model does not say anyway.
_SANITY = {
    ENTROPY: "the model's entropy",
    MASK_ONLY: "predicted class and distance to the predicted border",
    NEAR_BORDER: "the distance to the predicted border",
}
_ERROR_MODELS = {
    "independent": "independent errors of voxels",
    "correlated": "spatially correlated errors",
    "boundary_bias": "borders drawn too wide or too tight",
    "missed_components": "missed components",
}


def definitions(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The terms of an evaluation page; they depend on whether answers replace labels or are read as evidence."""
    evidence = REPLACED in summary
    deferred = "Voxels that an expert was asked about" if evidence else "Voxels labelled by an expert, not by the model"
    who = "system" if evidence else "expert"
    return (
        ("model", "The network's segmentation, without experts."),
        ("expert", "A rater, whose labels were read from files, or a simulated expert."),
        ("system", f"Model and experts together: {system_text(summary)}."),
        ("deferred", f"{deferred}; the deferral rate is their share of all voxels."),
        ("matched budgets", "Rankings of voxels are compared at the same share of voxels deferred."),
        (
            "oracle",
            "Defers where the model is wrong to an expert who is right: an upper bound that uses the reference.",
        ),
        ("recovered gain", "The fraction of the oracle's gain in Dice that a ranking reaches at the same budget."),
        ("fixed", f"Deferred voxels where the model is wrong and the {who} right."),
        ("worsened", f"Deferred voxels where the model is right and the {who} wrong."),
        ("unanswered", "Deferred voxels where the expert has no label; the model's label is kept."),
        ("Dice", "Overlap with the reference between 0 and 1, mean over cases; – if undefined."),
        *_surfaces(summary),
    )


def _surfaces(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    tolerance = summary.get("surface_tolerance")
    if tolerance is None:
        return ()
    unit = summary.get("unit", "mm")
    missing = sum(found["n_undefined_HD95"] for found in summary["system"]["mean"].values())
    left_out = f" Left out because system or reference lacks the label, or both do: {missing}." if missing else ""
    return (
        ("HD95", f"95th percentile of the distances between the surfaces, in {unit}, mean over cases.{left_out}"),
        (
            "NSD",
            f"Normalised surface distance: share of the surfaces that lie within {tolerance:g} {unit} of each other; 0 "
            "where only one of mask and reference has a label.",
        ),
    )


def system_text(summary: Mapping[str, Any]) -> str:
    """What the labels of the system are."""
    if REPLACED in summary:
        return "where a voxel was deferred, the label that is most probable given the answers, the model's elsewhere"
    return "the expert's label where a voxel was deferred, the model's elsewhere"


def interval_text(found: Mapping[str, float], *, signed: bool = False) -> str:
    """An estimate with its interval, as in `0.900 [0.879, 0.920]`; only the estimate if there is no interval."""
    text = signed_text if signed else score_text
    estimate, low, high = (text(found[key]) for key in ("estimate", "low", "high"))
    return estimate if DASH in (low, high) else f"{estimate} [{low}, {high}]"


def headline(summary: Mapping[str, Any]) -> str:
    """The main result: whether deferral improved the Dice."""
    dice, deferral = summary["intervals"]["Dice"], summary["deferral"]
    rate = deferral["rate"]
    model, system = dice["model_everywhere"], dice["system"]
    change = dice["system - model_everywhere"]
    if rate == 0:
        return (
            f"The model deferred nothing, so the system equals the model, with a Dice of {interval_text(model)}. "
            "No gain was shown."
        )
    if math.isnan(change["estimate"]):
        return f"{_deferring(deferral)}: the Dice is undefined in all cases, so no gain can be shown."
    how = f"the Dice from {score_text(model['estimate'])} to {score_text(system['estimate'])}"
    change_text = f"difference {interval_text(change, signed=True)}"
    if math.isnan(change["low"]):
        return (
            f"{_deferring(deferral)} changed {how} ({change_text}). A single case or group has no interval, so no gain "
            "was shown."
        )
    if change["low"] > 0:
        return f"{_deferring(deferral)} raised {how} ({change_text})."
    if change["high"] < 0:
        return f"{_deferring(deferral)} lowered {how} ({change_text})."
    return f"{_deferring(deferral)} changed {how} ({change_text}): no gain was shown."


def sanity(summary: Mapping[str, Any]) -> str:
    """Whether the learned ranking beats the model's entropy and what the predicted mask alone says."""
    learned = reference_row(summary, LEARNED)
    if learned is None or math.isnan(learned["Dice"]):
        return ""
    rows = {name: reference_row(summary, name) for name in _SANITY}
    differences = {name: row["learned_minus_this"] for name, row in rows.items() if row is not None}
    beaten = [name for name, found in differences.items() if found["low"] > 0]
    open_to = {name: found for name, found in differences.items() if name not in beaten}
    if not differences:
        return ""
    at = f"At {share_text(learned['budget'])} of the voxels,"
    if not open_to:
        return f"{at} the learned ranking is better than {' and '.join(_SANITY[name] for name in beaten)}."
    against = " or ".join(
        f"{_SANITY[name]} (difference {interval_text(found, signed=True)})" for name, found in open_to.items()
    )
    also = f"; it is better than {_SANITY[beaten[0]]}" if beaten else ""
    return f"{at} the learned ranking was not shown to beat {against}{also}."


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Remarks on the headline: simulated experts, other rankings at the budget, the best expert, collapse."""
    found = (
        _who(summary),
        _against_rankings(summary),
        _against_experts(summary),
        _ranking(summary),
        _certificate(summary),
        _disagreement(summary),
        _collapse(summary),
    )
    return [text for text in found if text]


def _ranking(summary: Mapping[str, Any]) -> str:
    choice = summary.get("ranking")
    return "" if choice is None or choice["chosen"] == HEADS else f"When calibrated, {choice_text(choice)}."


def _certificate(summary: Mapping[str, Any]) -> str:
    found = summary.get("certificate")
    return "" if found is None else f"{found['statement'].capitalize()}; {outcome(found)}."


def _disagreement(summary: Mapping[str, Any]) -> str:
    found = summary["deferral"].get("disagreement")
    if found is None or None in found.values():
        return ""
    return (
        f"According to the model, raters disagree about deferred voxels with a probability of {found['deferred']:.2f} "
        f"({found['kept']:.3f} for the others). Where it is high, one answer is only one of several opinions."
    )


def experts_text(summary: Mapping[str, Any]) -> str:
    """A description of the experts."""
    who = summary["experts"]
    raters = [expert for expert in who["experts"] if isinstance(expert, str)]
    simulated = [expert for expert in who["experts"] if not isinstance(expert, str)]
    sentences = []
    if raters:
        sentences.append(f"Raters, with labels read from files: {', '.join(raters)}.")
    if simulated:
        voxel = f" of {who['expert_voxel_mm']:g} mm" if who.get("expert_voxel_mm") else ""
        sentences.append(
            f"Simulated from the reference with seed {who['seed']}: "
            f"{'; '.join(_profile_text(expert) for expert in simulated)}. Borders are the voxels within "
            f"{who['boundary_width']} voxels{voxel} of a label change."
        )
    return " ".join(sentences)


def intervals_text(summary: Mapping[str, Any]) -> str:
    """How the intervals were computed."""
    how, num_cases = summary["intervals"], len(summary["deferred"]["per_case"])
    if how["num_groups"] == num_cases:
        drawn = f"the {num_cases} cases; if patients have several cases and no groups are given, they are too narrow"
    else:
        drawn = f"the {how['num_groups']} groups (for example patients) of the {num_cases} cases"
    return (
        f"Numbers in brackets are {how['level']:.0%} bootstrap intervals, widened for few cases,".replace("%", " %")
        + f" from {how['num_resamples']} resamples (seed {how['seed']}) of {drawn}. Differences are paired. The "
        "intervals reflect the sampling of cases, not the variation between trainings or experts, and are not "
        "corrected for multiple comparisons."
    )


def limits(summary: Mapping[str, Any]) -> list[str]:
    """The limitations of this evaluation."""
    who = summary["experts"]["experts"]
    found = []
    if summary["intervals"]["num_groups"] < FEW_GROUPS:
        found.append(
            f"With only {plural(summary['intervals']['num_groups'], 'case or group', 'cases or groups')}, intervals "
            "are rough."
        )
    if any(not isinstance(expert, str) for expert in who):
        found.append(
            "Unlike people, simulated experts err independently of each other and of the difficulty of the image. "
            "They show whether routing works, not the gain with real experts."
        )
    if any(isinstance(expert, str) for expert in who):
        found.append(
            "If the reference was made from these raters' own labels, their agreement with it is partly by "
            "construction."
        )
    if review := review_text(summary):
        found.append(review)
    else:
        found.append(
            "An expert alone labels every voxel of every image: a point of comparison, not an alternative with the "
            "same effort."
        )
    found += [
        "The share of voxels does not measure working time.",
        "Matched budgets rank the voxels of all cases together, which requires all cases before any expert is asked.",
        "If training, settings or thresholds were selected on these cases, all results are optimistic.",
    ]
    if summary["deferral"]["unanswered"] and not summary.get("review"):
        found.append(
            "Rankings at matched budgets skip voxels without an answer at no cost, whereas the system asked about "
            f"them ({share_text(summary['deferral']['unanswered'])} of the deferred voxels)."
        )
    undefined = summary["model_everywhere"]["mean"]
    if any(scores["n_undefined"] for scores in undefined.values()):
        numbers = ", ".join(f"{region}: {scores['n_undefined']}" for region, scores in undefined.items())
        found.append(f"Cases excluded from the model's mean because the Dice is undefined, by label: {numbers}.")
    return found


def review_text(summary: Mapping[str, Any]) -> str:
    """What answers of the review page cannot show; empty for other answers."""
    if not summary.get("review"):
        return ""
    said = (
        "Experts answered only what they were asked about on the review page. They are scored only there. Neither the "
        "rankings nor the oracle can gain anything elsewhere: rankings are compared, and the oracle's gain is "
        "computed, within the voxels that the model itself chose."
    )
    if assumed := sum(effort["assumed_voxels"] for effort in summary["review"].values()):
        said += (
            f' In {assumed:,} of these voxels, which were not on the worklist or which an expert marked as "cannot '
            "tell\", the masks have the model's labels, because the dataset has no ignore label. They count as answers."
        )
    return said


def model_text(summary: Mapping[str, Any]) -> str:
    """The model and the software versions."""
    model, versions = summary["model_identity"], summary["versions"]
    return (
        f"Dataset {model['dataset']}, trainer {model['trainer'] or DASH}, plans {model['plans']}, configuration "
        f"{model['configuration']}; evaluated with "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + "."
    )


def reference_row(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The row of a ranking at the model's own rate, or if it deferred nothing, at the budget closest to 1 %."""
    rows = summary["budgets"].get(name, [])
    own = next((row for row in rows if row["own_rate"] and row["budget"] > 0), None)
    others = [row for row in rows if row["budget"] > 0]
    return own or min(others, key=lambda row: abs(math.log(row["budget"] / 0.01)), default=None)


def _who(summary: Mapping[str, Any]) -> str:
    """A remark if experts are simulated."""
    who = summary["experts"]["experts"]
    simulated = sum(not isinstance(expert, str) for expert in who)
    if not simulated:
        return ""
    some = "The experts" if simulated == len(who) else f"{simulated} of the {len(who)} experts"
    verb = "is" if simulated == 1 and len(who) > 1 else "are"
    if len(who) == 1:
        some, verb = "The expert", "is"
    return f"{some} {verb} simulated: this shows whether routing works, not the gain with real experts."


def _against_rankings(summary: Mapping[str, Any]) -> str:
    """The learned ranking compared with model uncertainty and random order at one budget."""
    learned = reference_row(summary, LEARNED)
    if learned is None or math.isnan(learned["Dice"]):
        return ""
    fair = CONFIDENCE in summary["budgets"]  # then the comparison with a ranking that never stops means little
    others = [name for name in _OTHERS if name in summary["budgets"] and not (fair and name == MAX_SOFTMAX)]
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
    budget = f"At a budget of {share_text(learned['budget'])}" if nothing else "At the same budget"
    recovered = per_cent_text(learned["recovered"])
    share = "" if recovered == DASH else f" It recovers {recovered} of the oracle's gain."
    return (
        f"{budget}, the ranking by expected gain reaches a Dice of {score_text(learned['Dice'])}: "
        f"{', and '.join(parts)}.{share}"
    )


def _against_experts(summary: Mapping[str, Any]) -> str:
    if summary.get("review"):  # nobody segmented alone
        return ""
    dice = summary["intervals"]["Dice"]
    alone = {name: dice[name]["estimate"] for name in summary["expert_everywhere"] if name in dice}
    defined = {name: value for name, value in alone.items() if not math.isnan(value)}
    if not defined:
        return ""
    best = max(defined, key=lambda name: defined[name])
    return (
        f"The best single expert is {best} with a Dice of {interval_text(dice[best])}; system − {best}: "
        f"{interval_text(dice[f'system - {best}'], signed=True)}."
    )


def _collapse(summary: Mapping[str, Any]) -> str:
    """A warning if nearly all deferred voxels are routed to one of several experts."""
    experts = summary["deferred"]["experts"]
    total = summary["deferred"]["total"]["deferred"]
    shares = {name: ratio(counts["deferred"], total) for name, counts in experts.items()}
    most = max(shares, key=lambda name: shares[name])
    if not total or len(shares) == 1 or shares[most] < COLLAPSED:
        return ""
    return (
        f"{share_text(shares[most])} of the deferred voxels were routed to one of {len(shares)} experts, {most}: "
        "routing may have collapsed."
    )


def _verdict(difference: Mapping[str, float]) -> str:
    if all(abs(difference[key]) < _NO_DIFFERENCE for key in ("estimate", "low", "high")):  # not without an interval
        return "equal to"
    if difference["low"] > 0:
        return "better than"
    return "worse than" if difference["high"] < 0 else "not shown to differ from"


def _deferring(deferral: Mapping[str, Any]) -> str:
    rate, questions = deferral["rate"], deferral["questions"]
    if questions > rate:
        return f"Asking about {share_text(questions)} of the voxels in several rounds"
    return "Deferring all voxels" if rate == 1 else f"Deferring {share_text(rate)} of the voxels"


def _profile_text(expert: Mapping[str, Any]) -> str:
    accuracies = f"{expert['foreground']:.0%} of the foreground, {expert['background']:.0%} of the background"
    if "boundary" in expert:
        border = f"{expert['boundary']:.0%} of borders"
    else:
        border = f"{100 * expert['edge_boost']:+.0f} points at borders".replace("-", "−")
    how = _ERROR_MODELS.get(expert["error_model"], expert["error_model"])
    return f"{expert['name']}, right in {accuracies} and {border}, {how}".replace("%", " %")
