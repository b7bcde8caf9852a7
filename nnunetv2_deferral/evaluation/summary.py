"""Summary of a set of cases: scores of system, experts and model, and deferral rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.arrays import count_values
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.evaluation.overlap import CaseMetrics, Region, overlap, summarize
from nnunetv2_deferral.evaluation.surfaces import surface_scores
from nnunetv2_deferral.fusion import unanswered
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.maps import deferral_rates, other_masks_text
from nnunetv2_deferral.parts import in_order
from nnunetv2_deferral.text import listed

SUMMARY_NAME = "deferral_summary.json"
REPLACED = "system_replaced"
_PARTS = ("system", "expert", "model", "model_everywhere")
_SOME_VOXELS = ("expert", "model")  # these are scored where they answered, which is no mask with a surface

# Beyond these a result calls for a caution.
HARDLY_ANY_DICE = 0.05
NEARLY_ALL = 0.9


class SummaryStatistics:
    """The scores of system, experts and model, accumulated case by case."""

    def __init__(
        self, regions: Sequence[Region], experts: Sequence[str], *, surface_tolerance: float | None = None
    ) -> None:
        """Start without cases; arguments as in :func:`summarize_deferral`."""
        self.regions = tuple(regions)
        self.experts = tuple(experts)
        self.surface_tolerance = surface_tolerance
        self._scores: dict[str, dict[str, CaseMetrics]] = {part: {} for part in (*_PARTS, REPLACED, *experts)}
        # By expert the system on the voxels that the expert labelled, in cases with others.
        self._beside: dict[str, dict[str, CaseMetrics]] = {name: {} for name in experts}
        self._per_case: dict[str, dict[str, Any]] = {}
        self._routed = np.zeros(len(experts) + 1, dtype=np.int64)
        self._num_unanswered = 0
        self._num_earlier = 0
        self._disagreement = np.zeros((2, 2))  # of kept and deferred voxels: sum and number, if the model learned it

    def update(self, case: EvaluatedCase) -> None:
        """Add a case.

        Raises:
            InputError: If shapes differ or a route exceeds J.
        """
        valid = case.valid
        system = case.system
        without_answer = unanswered(case.answers, case.route)
        answered = (case.route > 0) & ~without_answer
        scored = {
            "system": (system, valid),
            "expert": (system, valid & answered),
            "model": (case.model, valid & ~answered),
            "model_everywhere": (case.model, valid),
            **({} if case.evidence is None else {REPLACED: (case.replaced, valid)}),
        } | {
            name: (mask, valid & (mask != MISSING))
            for name, mask in zip(self.experts, case.answers, strict=True)
            if (mask != MISSING).any()
        }
        for part, (prediction, where) in scored.items():
            found = self._scores[part][case.name] = overlap(case.reference, prediction, self.regions, where)
            if self.surface_tolerance is not None and part not in _SOME_VOXELS:
                surfaces = surface_scores(
                    case.reference,
                    prediction,
                    self.regions,
                    spacing=case.prediction.spacing,
                    tolerance=self.surface_tolerance,
                    valid=where,
                )
                for region, scores in surfaces.items():
                    found[region] |= scores
        for name, mask in zip(self.experts, case.answers, strict=True):
            labelled = valid & (mask != MISSING)
            if (mask != MISSING).any() and not np.array_equal(labelled, valid):
                self._beside[name][case.name] = overlap(case.reference, system, self.regions, labelled)
        routed = count_values(case.route[valid], len(self.experts) + 1)
        missed = int((without_answer & valid).sum())
        self._per_case[case.name] = deferral_rates(case.route[valid], self.experts) | {
            "unanswered": missed / max(int(routed[1:].sum()), 1)
        }
        earlier = case.prediction.answered
        self._num_earlier += 0 if earlier is None else int(earlier.asked.sum())
        self._num_unanswered += missed
        self._routed += routed
        if (disagreement := case.prediction.disagreement) is not None:
            for place, where in enumerate((valid & (case.route == 0), valid & (case.route > 0))):
                found = disagreement[where]
                self._disagreement[place] += found.sum(dtype=np.float64), found.size

    @classmethod
    def merged(cls, parts: Sequence[SummaryStatistics], cases: Sequence[str]) -> SummaryStatistics:
        """The scores of all cases of several parts, in the order of `cases`, which must be these cases."""
        merged = cls(parts[0].regions, parts[0].experts, surface_tolerance=parts[0].surface_tolerance)
        for name in merged._scores:
            merged._scores[name] = in_order([part._scores[name] for part in parts], cases)
        for name in merged._beside:
            merged._beside[name] = in_order([part._beside[name] for part in parts], cases)
        merged._per_case = in_order([part._per_case for part in parts], cases)
        merged._routed = np.sum([part._routed for part in parts], axis=0)
        merged._num_unanswered = sum(part._num_unanswered for part in parts)
        merged._num_earlier = sum(part._num_earlier for part in parts)
        merged._disagreement = np.sum([part._disagreement for part in parts], axis=0)
        return merged

    def summary(self) -> dict[str, Any]:
        """See :func:`summarize_deferral`."""
        summaries = {part: summarize(metrics) for part, metrics in self._scores.items()}
        number, deferred = max(int(self._routed.sum()), 1), int(self._routed[1:].sum())
        share = self._routed / number
        return {
            "surface_tolerance": self.surface_tolerance,
            **{part: summaries[part] for part in (*_PARTS, REPLACED) if part in _PARTS or self._scores[part]},
            "expert_everywhere": {name: summaries[name] for name in self.experts if self._scores[name]},
            "deferral": {
                # Not the sum of the shares, whose rounding would tell it from the questions of a single round.
                "rate": deferred / number,
                "questions": (deferred + self._num_earlier) / number,
                "share": {name: float(value) for name, value in zip(self.experts, share[1:], strict=True)},
                "unanswered": self._num_unanswered / max(deferred, 1),
                "per_case": self._per_case,
                "disagreement": self._mean_disagreement(),
            },
        }

    def beside(self, expert: str) -> dict[str, CaseMetrics]:
        """The scores of the system on the cases and voxels that an expert labelled."""
        system, beside = self._scores["system"], self._beside[expert]
        return {case: beside.get(case, system[case]) for case in self._scores[expert]}

    def _mean_disagreement(self) -> dict[str, float | None] | None:
        if not self._disagreement.any():
            return None
        return {
            name: float(total / number) if number else None
            for name, (total, number) in zip(("kept", "deferred"), self._disagreement, strict=True)
        }


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on results that say little about deferral: nothing or all deferred, a model that segments nothing.

    Also if masks are not those that were predicted with the maps, or cases those of the calibration.

    Args:
        summary: See :func:`summarize_deferral` and :func:`.folders.summarize`.

    Returns:
        A sentence for each finding, with what to look at; empty for an ordinary result.
    """
    rate = summary["deferral"]["rate"]
    dice = summary["model_everywhere"]["foreground_mean"]["Dice"]
    found = []
    if dice < HARDLY_ANY_DICE:
        found.append(
            f"The model segments hardly anything correctly (Dice {dice:.3f}): it may need more epochs, or the labels "
            "may not match the images. Until this is resolved, results of deferral mean little"
        )
    if rate == 0:
        found.append(
            "Nothing was deferred: the system's masks are the model's. The head may need more epochs, or there may be "
            "nothing to gain because of limits, costs, or experts no better than the model"
        )
    if rate >= NEARLY_ALL:
        found.append(
            f"{_nearly_all(rate)} were deferred: the model answers {'' if rate == 1 else 'almost '}nothing itself, and "
            "the system is as good as its experts. Set a budget, or train for more epochs"
        )
    if others := summary.get("other_masks"):
        found.append(f"{other_masks_text(others)}. What is reported of the model refers to these masks")
    if seen := summary.get("calibrated_on"):
        found.append(
            f"The calibration was fitted on {len(seen)} of these cases ({listed(seen)}): expect worse results on others"
        )
    return found


def _nearly_all(rate: float) -> str:
    return "All voxels" if rate == 1 else f"{min(rate, 0.999):.1%}".replace("%", " %") + " of the voxels"


def summarize_deferral(
    cases: Iterable[EvaluatedCase],
    regions: Sequence[Region],
    experts: Sequence[str],
    *,
    surface_tolerance: float | None = None,
) -> dict[str, Any]:
    """Score a deferral system.

    Args:
        cases: The cases; one at a time is held in memory.
        regions: The foreground labels or regions to score.
        experts: The names of the J experts in routing order.
        surface_tolerance: The tolerance of :func:`.surface_scores`, which are then added to the scores of whole masks;
            None for none.

    Returns:
        A dictionary with `surface_tolerance`, and with scores nested as in nnU-Net's summary.json: `system` (the fused
        mask over the whole image),
        `system_replaced` (the same if answers replace labels; only if they are read as evidence),
        `expert` (the experts' labels on the voxels that were routed to them and answered), `model` (the model's labels
        on the other voxels), `model_everywhere`, and `expert_everywhere` (one entry per expert, on the cases and voxels
        that the expert labelled; no entry for an expert without labels). `deferral` has, over valid voxels in total and
        for every case, the deferral rate, the share of each expert, and the share of the deferred voxels without a
        label of the asked expert; and `disagreement`, the mean probability that raters disagree about kept and about
        deferred voxels, or None if the model did not learn it.
    """
    statistics = SummaryStatistics(regions, experts, surface_tolerance=surface_tolerance)
    for case in cases:
        statistics.update(case)
    return statistics.summary()
