"""The summary of a set of cases: system, experts and model, with what was deferred to whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_deferral.evaluation.overlap import CaseMetrics, Region, overlap, summarize
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.maps import deferral_rates


@dataclass(frozen=True)
class Case:
    """One case, all arrays of one shape S.

    Attributes:
        name: The case identifier.
        reference: Reference label map, integer.
        model: The model's label map.
        experts: The experts' label maps, (J, *S).
        route: uint8, 0 the model, j expert j.
    """

    name: str
    reference: np.ndarray
    model: np.ndarray
    experts: np.ndarray
    route: np.ndarray


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
        voxels, the share of each expert, both over all voxels that count, and the same for every case.
    """
    scores: dict[str, dict[str, CaseMetrics]] = {
        part: {} for part in ("system", "expert", "model", "model_everywhere", *experts)
    }
    per_case, routed = {}, np.zeros(len(experts) + 1, dtype=np.int64)
    for case in cases:
        counts = np.ones(case.route.shape, bool) if ignore_label is None else case.reference != ignore_label
        system = fuse_masks(case.model, case.experts, case.route)
        deferred = case.route > 0
        scored = {
            "system": (system, counts),
            "expert": (system, counts & deferred),
            "model": (case.model, counts & ~deferred),
            "model_everywhere": (case.model, counts),
        } | {name: (mask, counts) for name, mask in zip(experts, case.experts, strict=True)}
        for part, (prediction, where) in scored.items():
            scores[part][case.name] = overlap(case.reference, prediction, regions, where)
        per_case[case.name] = deferral_rates(case.route[counts], experts)
        routed += np.bincount(case.route[counts].ravel(), minlength=len(experts) + 1)
    summaries = {part: summarize(metrics) for part, metrics in scores.items()}
    share = routed / max(routed.sum(), 1)
    return {
        **{part: summaries[part] for part in ("system", "expert", "model", "model_everywhere")},
        "expert_everywhere": {name: summaries[name] for name in experts},
        "deferral": {
            "rate": float(share[1:].sum()),
            "share": {name: float(value) for name, value in zip(experts, share[1:], strict=True)},
            "per_case": per_case,
        },
    }
