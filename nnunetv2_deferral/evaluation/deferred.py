"""Numbers of deferred voxels, and of errors corrected and introduced by deferral.

A deferred voxel is fixed where the system is right and the model wrong, and worsened the other way round. Where the
asked expert has no label (:data:`MISSING`), the system keeps the model's: the voxel is deferred and unanswered, neither
fixed nor worsened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np

from nnunetv2_deferral.arrays import check_bool, check_same_shape
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.labels import MISSING

EXPERT_KEYS = ("deferred", "deferred_model_wrong", "fixed", "worsened", "unanswered")
TOTAL_KEYS = ("voxels", "model_wrong", *EXPERT_KEYS)


class DeferralCounts(TypedDict):
    """Numbers of voxels of one or more cases.

    `total` has the keys `TOTAL_KEYS`; `experts` has `EXPERT_KEYS` for each expert (the voxels routed to that expert):

        voxels                 valid voxels
        model_wrong            of these, voxels with a wrong label of the model, deferred or not
        deferred               valid voxels routed to an expert
        deferred_model_wrong   of these, voxels with a wrong label of the model
        fixed                  of these, voxels with a right label of the system
        worsened               deferred voxels with a right label of the model and a wrong one of the system
        unanswered             deferred voxels without a label of the expert
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
    system: np.ndarray | None = None,
) -> DeferralCounts:
    """Count deferred voxels and the effect of deferral in one case. A label is right if it equals the reference's.

    Args:
        reference: Label map, integer of shape S.
        model: The model's label map, of the same shape.
        experts: The experts' label maps, integer (J, *S), :data:`MISSING` where an expert has no label.
        route: Integers in [0, J] of shape S: 0 the model, j expert j.
        names: The J experts in routing order.
        valid: Bool of shape S, the voxels that count, or None for all.
        system: The label map of model and experts; None if the asked expert's label replaces the model's, see
            :func:`.fuse_masks`.

    Returns:
        The numbers; all 0 if no voxel counts.

    Raises:
        InputError: If shapes differ, `valid` is not bool, there are not J distinct names, or a route is outside [0, J].
    """
    _validate(reference, model, experts, route, names, valid)
    where = np.ones(route.shape, dtype=bool) if valid is None else valid
    wrong = model != reference
    fused = fuse_masks(model, experts, route) if system is None else system
    check_same_shape(model=model, system=fused)
    by_expert = {}
    for number, (name, labels) in enumerate(zip(names, experts, strict=True), start=1):
        asked = where & (route == number)
        right = fused[asked] == reference[asked]
        was_wrong = wrong[asked]
        by_expert[name] = _count(
            deferred=np.ones(right.shape, dtype=bool),
            deferred_model_wrong=was_wrong,
            fixed=was_wrong & right,
            worsened=~was_wrong & ~right,
            unanswered=labels[asked] == MISSING,
        )
    total = _count(voxels=where, model_wrong=where & wrong)
    total |= {key: sum(counted[key] for counted in by_expert.values()) for key in EXPERT_KEYS}
    return {"total": total, "experts": by_expert}


def add_counts(cases: Iterable[DeferralCounts], names: Sequence[str]) -> DeferralCounts:
    """Sum the numbers of cases; all 0 without cases.

    Args:
        cases: From :func:`count_deferred` or this function, all for the same experts.
        names: The names of the experts.

    Raises:
        InputError: If a case has other experts.
    """
    summed: DeferralCounts = {
        "total": dict.fromkeys(TOTAL_KEYS, 0),
        "experts": {name: dict.fromkeys(EXPERT_KEYS, 0) for name in names},
    }
    for case in cases:
        if case["experts"].keys() != summed["experts"].keys():
            raise InputError(f"the counts are for the experts {list(case['experts'])}, not {list(names)}")
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
        raise InputError(f"names must be {len(experts)} distinct names, one per expert, got {list(names)}")
    labels = experts[0] if len(experts) else None
    check_same_shape(reference=reference, model=model, experts=labels, route=route, valid=valid)
    check_bool(valid=valid)
    if route.size and not 0 <= route.min() <= route.max() <= len(experts):
        raise InputError(
            f"routes must lie in [0, {len(experts)}] for {len(experts)} experts, got {route.min()} to {route.max()}"
        )


def _count(**masks: np.ndarray) -> dict[str, int]:
    return {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}


def _add(summed: dict[str, int], more: dict[str, int]) -> None:
    for key in summed:
        summed[key] += more[key]
