"""What was deferred, and what came of it, as numbers of voxels.

Where the expert who is asked has no label (:data:`MISSING`), the model's answer stands, as in
:func:`nnunetv2_deferral.fusion.fuse_masks`: the voxel is deferred and unanswered, neither fixed nor worsened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING

EXPERT_KEYS = ("deferred", "deferred_model_wrong", "fixed", "worsened", "unanswered")
TOTAL_KEYS = ("voxels", "model_wrong", *EXPERT_KEYS)


class DeferralCounts(TypedDict):
    """Numbers of voxels of one case or of many.

    `total` has the keys `TOTAL_KEYS`, `experts` for each expert `EXPERT_KEYS` (the voxels that expert is asked):

        voxels                 that count
        model_wrong            of these, those the model has wrong, deferred or not
        deferred               routed to an expert
        deferred_model_wrong   of these, those the model has wrong
        fixed                  of these, those the expert has right
        worsened               of the deferred, those the model has right and the expert wrong
        unanswered             of the deferred, those where the expert has no label
    """

    total: dict[str, int]
    experts: dict[str, dict[str, int]]


def count_deferred(
    reference: np.ndarray,
    model: np.ndarray,
    experts: np.ndarray,
    route: np.ndarray,
    names: Sequence[str],
    valid: np.ndarray | None = None,
) -> DeferralCounts:
    """Count what asking the experts changed in one case. A label is right if it equals the reference's.

    Args:
        reference: Label map, integer of shape S.
        model: The model's label map, of the same shape.
        experts: The experts' label maps, integer (J, *S), :data:`MISSING` where an expert has no label.
        route: Integers in [0, J] of shape S: 0 the model, j expert j.
        names: The J experts in routing order.
        valid: Bool of shape S, the voxels that count, or None for all.

    Returns:
        The numbers; all 0 where no voxel counts.

    Raises:
        InputError: If shapes differ, `valid` is not bool, or the number of experts differs from that of the names or
            is exceeded by a route.
    """
    _validate(reference, model, experts, route, names, valid)
    where = np.ones(route.shape, dtype=bool) if valid is None else valid
    wrong = model != reference
    by_expert = {}
    for number, (name, labels) in enumerate(zip(names, experts, strict=True), start=1):
        asked = where & (route == number)
        right, answered = labels[asked] == reference[asked], labels[asked] != MISSING
        was_wrong = wrong[asked]
        by_expert[name] = _count(
            deferred=np.ones(right.shape, dtype=bool),
            deferred_model_wrong=was_wrong,
            fixed=was_wrong & right,
            worsened=~was_wrong & answered & ~right,
            unanswered=~answered,
        )
    total = _count(voxels=where, model_wrong=where & wrong)
    total |= {key: sum(counted[key] for counted in by_expert.values()) for key in EXPERT_KEYS}
    return {"total": total, "experts": by_expert}


def add_counts(cases: Iterable[DeferralCounts], names: Sequence[str]) -> DeferralCounts:
    """The sums over cases, or over sums of cases; all 0 without any.

    Args:
        cases: From :func:`count_deferred`, all for the same experts.
        names: These experts.

    Raises:
        InputError: If a case has other experts.
    """
    summed: DeferralCounts = {
        "total": dict.fromkeys(TOTAL_KEYS, 0),
        "experts": {name: dict.fromkeys(EXPERT_KEYS, 0) for name in names},
    }
    for case in cases:
        if case["experts"].keys() != summed["experts"].keys():
            raise InputError(f"counts are of the experts {list(case['experts'])}, not of {list(names)}")
        _add(summed["total"], case["total"])
        for name in names:
            _add(summed["experts"][name], case["experts"][name])
    return summed


def _validate(
    reference: np.ndarray,
    model: np.ndarray,
    experts: np.ndarray,
    route: np.ndarray,
    names: Sequence[str],
    valid: np.ndarray | None,
) -> None:
    if len(experts) != len(names) or len(set(names)) != len(names):
        raise InputError(f"{len(experts)} experts need as many names, each its own, got {list(names)}")
    labels = experts[0] if len(experts) else None
    check_same_shape(reference=reference, model=model, experts=labels, route=route, valid=valid)
    check_bool(valid=valid)
    if route.size and not 0 <= route.min() <= route.max() <= len(experts):
        raise InputError(
            f"routes lie in [0, {len(experts)}] for {len(experts)} experts, got {route.min()} to {route.max()}"
        )


def _count(**masks: np.ndarray) -> dict[str, int]:
    return {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}


def _add(summed: dict[str, int], more: dict[str, int]) -> None:
    for key in summed:
        summed[key] += more[key]
