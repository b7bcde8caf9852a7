"""The summary of a set of cases: system, experts and model, with what was deferred to whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_deferral.evaluation.overlap import CaseMetrics, Region, overlap, summarize
from nnunetv2_deferral.fusion import fuse_masks, unanswered
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.maps import deferral_rates

_PARTS = ("system", "expert", "model", "model_everywhere")


@dataclass(frozen=True)
class Case:
    """One case, all arrays of one shape S.

    Attributes:
        name: The case identifier.
        reference: Reference label map, integer.
        model: The model's label map.
        experts: The experts' label maps, (J, *S), `MISSING` where an expert has none.
        route: uint8, 0 the model, j expert j.
    """

    name: str
    reference: np.ndarray
    model: np.ndarray
    experts: np.ndarray
    route: np.ndarray


class SummaryStatistics:
    """The scores of system, experts and model, gathered case by case."""

    def __init__(self, regions: Sequence[Region], experts: Sequence[str], ignore_label: int | None = None) -> None:
        """Start without cases; arguments as in :func:`summarize_deferral`."""
        self.regions = tuple(regions)
        self.experts = tuple(experts)
        self.ignore_label = ignore_label
        self._scores: dict[str, dict[str, CaseMetrics]] = {part: {} for part in (*_PARTS, *experts)}
        self._per_case: dict[str, dict[str, Any]] = {}
        self._routed = np.zeros(len(experts) + 1, dtype=np.int64)
        self._num_unanswered = 0

    def update(self, case: Case) -> None:
        """Add a case.

        Raises:
            InputError: If shapes differ or a route names an expert that there is not.
        """
        ignored = self.ignore_label
        valid = np.ones(case.route.shape, bool) if ignored is None else case.reference != ignored
        system = fuse_masks(case.model, case.experts, case.route)
        without_answer = unanswered(case.experts, case.route)
        answered = (case.route > 0) & ~without_answer
        scored = {
            "system": (system, valid),
            "expert": (system, valid & answered),
            "model": (case.model, valid & ~answered),
            "model_everywhere": (case.model, valid),
        } | {
            name: (mask, valid & (mask != MISSING))
            for name, mask in zip(self.experts, case.experts, strict=True)
            if (mask != MISSING).any()
        }
        for part, (prediction, where) in scored.items():
            self._scores[part][case.name] = overlap(case.reference, prediction, self.regions, where)
        routed = np.bincount(case.route[valid].ravel(), minlength=len(self.experts) + 1)
        missed = int((without_answer & valid).sum())
        self._per_case[case.name] = deferral_rates(case.route[valid], self.experts) | {
            "unanswered": missed / max(int(routed[1:].sum()), 1)
        }
        self._num_unanswered += missed
        self._routed += routed

    def summary(self) -> dict[str, Any]:
        """See :func:`summarize_deferral`."""
        summaries = {part: summarize(metrics) for part, metrics in self._scores.items()}
        share = self._routed / max(self._routed.sum(), 1)
        return {
            **{part: summaries[part] for part in _PARTS},
            "expert_everywhere": {name: summaries[name] for name in self.experts if self._scores[name]},
            "deferral": {
                "rate": float(share[1:].sum()),
                "share": {name: float(value) for name, value in zip(self.experts, share[1:], strict=True)},
                "unanswered": self._num_unanswered / max(int(self._routed[1:].sum()), 1),
                "per_case": self._per_case,
            },
        }


def summarize_deferral(
    cases: Iterable[Case], regions: Sequence[Region], experts: Sequence[str], ignore_label: int | None = None
) -> dict[str, Any]:
    """Score a deferral system.

    Args:
        cases: The cases; held one at a time.
        regions: The foreground labels or regions to score.
        experts: The names of the J experts in routing order.
        ignore_label: The reference label whose voxels count nowhere, or None.

    Returns:
        A dictionary with, in the nesting of nnU-Net's summary.json: `system` (the fused mask over the whole image),
        `expert` (the experts' labels over the voxels routed to them), `model` (the model's over those it keeps),
        `model_everywhere`, and `expert_everywhere` (one entry an expert); and `deferral` with the rate over all
        voxels, the share of each expert, the share of the deferred voxels that the asked expert has no label for
        (there the model's stays, and counts as the model's), all over the voxels that count, and the same for every
        case. An expert alone is scored on the cases and voxels that the expert has labelled, and has no entry without
        any.
    """
    statistics = SummaryStatistics(regions, experts, ignore_label)
    for case in cases:
        statistics.update(case)
    return statistics.summary()
