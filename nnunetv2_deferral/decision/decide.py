"""The deferral decision for an image: from routing probabilities to maps, within limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import chunks_of, highest, of_experts
from nnunetv2_deferral.decision.area import VoxelWeight
from nnunetv2_deferral.decision.assignment import route_within_limits
from nnunetv2_deferral.decision.gains import evidence_gains, expected_gain, image_gains
from nnunetv2_deferral.decision.limits import DATASET, Limits
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.decision.region_routing import route_regions
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.prior import PriorMap
from nnunetv2_deferral.routing import RoutingRule

_NO_LIMITS = Limits()


class RoutingMaps(NamedTuple):
    """The deferral maps of a case, all of shape S.

    Attributes:
        route: uint8, 0 the model, j expert j.
        probability: float32 in [0, 1], the rule's score: 1 - M_0, the probability that the voxel is deferred, or with
            one-vs-all the probability that deferring it helps.
        expert: uint8 in [1, J], the rule's preferred expert, whether the voxel is deferred or not.
        gain: float32, not negative: expected gain in the mean Dice of the case from asking that expert.
    """

    route: np.ndarray
    probability: np.ndarray
    expert: np.ndarray
    gain: np.ndarray


class Decision(NamedTuple):
    """The decision for a case.

    Attributes:
        maps: The maps.
        statistics: `expected_gain`, the sum of the gains of the deferred voxels; `limits`, if there are any; and with a
            minimum region size `lost_by_regions`, the gain lost relative to the best choice of single voxels within the
            same limits (net of costs or thresholds where these are applied).
        prior: If answers are read as evidence, the prior of which the posterior is formed; else None.
        gains: float32 (J, *S), the expected gain from asking each expert, negative where asking harms, -inf where the
            expert cannot be asked.
    """

    maps: RoutingMaps
    statistics: dict[str, Any]
    prior: PriorMap | None
    gains: np.ndarray


def decide(
    probabilities: np.ndarray,
    voxel_weight: VoxelWeight | np.ndarray | float = 1.0,
    *,
    rule: RoutingRule,
    limits: Limits = _NO_LIMITS,
    spacing_mm: Sequence[float] | None = None,
    calibration: ModelCalibration | None = None,
    softmax: np.ndarray | None = None,
    overwrite: bool = False,
) -> Decision:
    """Compute the route and the other deferral maps of a case.

    Voxels without a prediction stay with the model: route, probability and gain are 0, and expert is the first
    available one.

    If the calibration has an evidence model, gain, expert and route follow the value of information
    (:mod:`nnunetv2_deferral.evidence`), and the probability map still the rule.

    Args:
        probabilities: float32 (J + 1, *S), from the rule, before calibration; NaN where nothing was predicted.
        voxel_weight: The weights of the voxels (:func:`.area.dice_weight`), or one weight for corrected and worsened
            voxels alike, float32 that broadcasts to S. With 1, gains are in corrected voxels.
        rule: The routing rule.
        limits: The limits on deferral.
        spacing_mm: Size of a voxel along each axis of S; None for 1 mm along each.
        calibration: The model's calibration, or None.
        softmax: The model's probabilities of classes or regions, float32 (K, *S); required by a calibration with an
            evidence model or a combination, otherwise ignored.
        overwrite: Whether score and gains may take the place of `probabilities` in memory, if these are needed no
            more.

    Raises:
        InputError: If the limits are over a dataset and the calibration has no thresholds for them, `softmax` is
            missing, or there is a limit of minutes, which requires all cases. Without a calibration, limits over a
            dataset are ignored, as in the validation on which thresholds are fitted.

    Example:
        Four voxels and two experts; a is the probability that the model, and each expert, is right:

        >>> import numpy as np
        >>> from nnunetv2_deferral import Limits, decide, routing_rule
        >>> a = np.array([[0.9, 0.5, 0.3, 0.8], [0.8, 0.9, 0.6, 0.9], [0.8, 0.6, 0.9, 0.7]], dtype=np.float32)
        >>> rule = routing_rule("one_vs_all", costs=(0.0, 0.0))
        >>> decide(a, rule=rule).maps.route
        array([0, 1, 2, 1], dtype=uint8)
        >>> decision = decide(a, rule=rule, limits=Limits(budget=0.25))
        >>> decision.maps.route, round(decision.statistics["expected_gain"], 2)
        (array([0, 0, 2, 0], dtype=uint8), 0.6)
    """
    if limits.minutes is not None:
        raise InputError("minutes are for all cases together: choose among their regions (choose_regions)")
    weight = VoxelWeight.of(voxel_weight)
    if spacing_mm is None:
        spacing_mm = (1.0,) * (probabilities.ndim - 1)
    unknown = np.isnan(probabilities[0])
    evidence = None if calibration is None else calibration.evidence
    prior, gains = None, None
    if calibration is not None and calibration.reads_softmax and softmax is None:
        raise InputError(
            "this calibration reads answers as evidence, or combines the heads with the model's confidence, which "
            "requires the model's probabilities"
        )
    if evidence is not None and softmax is not None:
        prior = evidence.model.prior_of(softmax, spacing_mm)
        gains = evidence_gains(evidence.model, prior, unknown, weight, rule, spacing_mm)
    route, score, expert, gains = _by_rule(
        rule, probabilities, unknown, weight, calibration, softmax, gains, overwrite=overwrite
    )
    if limits.over == DATASET and calibration is None:
        limits = Limits(min_region_mm=limits.min_region_mm)
    if limits == _NO_LIMITS and prior is None:
        statistics: dict[str, Any] = {"expected_gain": expected_gain(gains, route)}
    else:
        # Costs are subtracted in full only without a budget or capacities.
        priced = gains if limits.limits_amount or not rule.cheapest else gains - rule.cheapest * weight.right
        route, statistics = _route_within(gains, priced.astype(np.float32, copy=False), limits, calibration, spacing_mm)
    # Costs weigh with a corrected voxel, so the expert whom the rule prefers need not have the highest gain.
    gain = of_experts(gains, expert)
    return Decision(RoutingMaps(route, score, expert, np.maximum(gain, 0, out=gain)), statistics, prior, gains)


def decide_again(
    earlier: RoutingMaps,
    num_experts: int,
    *,
    limits: Limits,
    spacing_mm: Sequence[float],
    calibration: ModelCalibration | None = None,
    gains: np.ndarray | None = None,
) -> Decision:
    """Decide within other limits from the maps of an earlier decision and the gains that were kept with it.

    Args:
        earlier: The maps; what they say about deferral (`route`) is not used.
        num_experts: The number J of experts.
        limits: The new limits, with a budget or capacities.
        spacing_mm: Size of a voxel along each axis of S.
        calibration: The model's calibration, for thresholds of limits over a dataset; or None.
        gains: The gains of all experts, float32 (J, *S), exact where any is positive; None for those of the maps, which
            have the gain of one expert per voxel: enough for a budget, and if there is one expert only.

    Returns:
        The decision: `route` is new, the other maps stay.

    Raises:
        InputError: If there is neither a budget nor capacities, gains are missing, or limits are over a dataset and the
            calibration has no thresholds for them.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import Limits
        >>> score, expert = np.full(4, 0.5, np.float32), np.array([1, 1, 2, 2], np.uint8)
        >>> maps = RoutingMaps(np.ones(4, np.uint8), score, expert, np.array([0.1, 0.4, 0.3, 0.2], np.float32))
        >>> decide_again(maps, 2, limits=Limits(budget=0.5), spacing_mm=(1.0,)).maps.route
        array([0, 1, 2, 0], dtype=uint8)
    """
    if not limits.limits_amount:
        raise InputError("without a budget or capacities, a decision requires routing probabilities")
    if limits.over == DATASET and calibration is None:
        raise InputError("a budget over a dataset requires the thresholds of a calibration")
    if gains is None:
        if limits.capacities is not None and num_experts > 1:
            raise InputError("capacities require the gains of all experts")
        gains = np.zeros((num_experts, *earlier.gain.shape), dtype=np.float32)
        np.put_along_axis(gains, earlier.expert[None].astype(np.int64) - 1, earlier.gain[None], axis=0)
    route, statistics = _route_within(gains, gains, limits, calibration, spacing_mm)
    return Decision(earlier._replace(route=route), statistics, None, gains)


def _by_rule(
    rule: RoutingRule,
    probabilities: np.ndarray,
    unknown: np.ndarray,
    weight: VoxelWeight,
    calibration: ModelCalibration | None,
    softmax: np.ndarray | None,
    gains: np.ndarray | None,
    *,
    overwrite: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Route, score and expert, each of shape S, and gains (J, *S), by the rule.

    Done in chunks, because it takes several temporary arrays of the size of the probabilities. Gains that are given
    take the place of the rule's, whose expert is then only preferred where no answer would help.
    """
    number, *shape = probabilities.shape
    flat, nothing = probabilities.reshape(number, -1), unknown.reshape(-1)
    size = nothing.size
    route, expert = np.empty(size, np.uint8), np.empty(size, np.uint8)
    # Score and gains may take the place of the probabilities: each chunk is written after it was read.
    in_place = overwrite and flat.dtype == np.float32
    found = flat if in_place else np.empty((number if gains is None else 1, size), np.float32)
    score, gained = found[0], found[1:] if gains is None else gains.reshape(number - 1, -1)
    weights = weight.flat(shape)
    confidence = None if softmax is None else softmax.reshape(len(softmax), -1)
    # Placeholder where nothing was predicted: the model is right and no expert is.
    certain = np.eye(number, 1, dtype=np.float32)
    for part in chunks_of(size, number):
        some_unknown = nothing[part].any()
        known = np.where(nothing[part], certain, flat[:, part]) if some_unknown else flat[:, part]
        if calibration is not None:
            known = calibration.apply(known, None if confidence is None else confidence[:, part])
        some_score = np.clip(rule.score(known, axis=0), 0, 1)
        route[part], expert[part] = rule.decision(known, axis=0), rule.expert(known, axis=0)
        if gains is None:
            gained[:, part] = image_gains(known, nothing[part], weights.at(part), rule)
        else:
            best = gained[:, part]
            expert[part] = np.where(best.max(0) > 0, 1 + highest(best), expert[part])
        score[part] = some_score
        if some_unknown:
            score[part][nothing[part]] = route[part][nothing[part]] = 0
            expert[part][nothing[part]] = 1 + rule.available.index(True)
    return route.reshape(shape), score.reshape(shape), expert.reshape(shape), gained.reshape(number - 1, *shape)


def _route_within(
    gains: np.ndarray,
    priced: np.ndarray,
    limits: Limits,
    calibration: ModelCalibration | None,
    spacing_mm: Sequence[float],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The route for gains net of prices, real (J, *S), and its statistics."""
    budget, capacities = limits.budget, limits.capacities
    if limits.over == DATASET and calibration is not None:
        budget = capacities = None
        thresholds = calibration.thresholds_for(limits)  # float64, to separate neighbouring float32 gains
        priced = priced - thresholds.reshape(-1, *[1] * (priced.ndim - 1))
    route = route_within_limits(priced, budget=budget, capacities=capacities)
    statistics: dict[str, Any] = {} if limits == _NO_LIMITS else {"limits": limits.to_dict()}
    if limits.min_region_mm is not None:
        by_voxel = route
        route = route_regions(
            priced, spacing_mm=spacing_mm, budget=budget, min_diameter_mm=limits.min_region_mm, capacities=capacities
        )
        lost = expected_gain(priced, by_voxel) - expected_gain(priced, route)
        statistics["lost_by_regions"] = max(lost, 0.0)  # rounding may give a value just below 0
    return route, statistics | {"expected_gain": expected_gain(gains, route)}
