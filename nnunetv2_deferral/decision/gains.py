r"""Expected gains of voxels and of routes.

With a_0 and a_j the probabilities that model and expert j are right, and the weights of a voxel
(:class:`.area.VoxelWeight`), asking expert j about it is expected to gain

.. math:: g_j = (1 - a_0) a_j w_\text{right} - a_0 (1 - a_j) w_\text{wrong}

which is (a_j - a_0) w if both weights are w. The cost of an expert is a share of a corrected voxel. Routing
probabilities of the paper's objective are not probabilities of being right; what takes the place of the gain is then a
score without a unit (:func:`gain_unit`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunetv2_deferral.arrays import chunks_of
from nnunetv2_deferral.decision.area import VoxelWeight
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import Candidates, EvidenceModel
from nnunetv2_deferral.evidence.prior import PriorMap
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.routing import ONE_VS_ALL, RoutingRule

DICE, SCORE = "Dice", "score"


def gain_unit(objective: str, *, evidence: bool) -> str:
    """What gains are in.

    Args:
        objective: The objective that the model was trained with.
        evidence: Whether answers are read as evidence.

    Returns:
        `"Dice"`, or with the paper's objective `"score"`, unless a calibration reads answers as evidence: the score
        ranks voxels, but does not say how much is gained.
    """
    return DICE if evidence or objective == ONE_VS_ALL else SCORE


def gain_text(gain: float, unit: str) -> str:
    """A gain in words, such as `expected gain 0.0123 Dice` or `score 0.0123`."""
    return f"expected gain {gain:.4f} {DICE}" if unit == DICE else f"{unit} {gain:.4f}"


def image_gains(
    probabilities: np.ndarray, unknown: np.ndarray, voxel_weight: VoxelWeight, rule: RoutingRule
) -> np.ndarray:
    """The expected gain in mean Dice from asking each expert about each voxel.

    Args:
        probabilities: float32 (J + 1, *S), calibrated; arbitrary in [0, 1] where nothing was predicted.
        unknown: Bool of shape S, True where nothing was predicted.
        voxel_weight: The weights of the voxels.
        rule: The routing rule.

    Returns:
        float32 (J, *S), -inf where nothing was predicted and for unavailable experts.
    """
    gains = rule.gains(probabilities, axis=0)
    if all(rule.available) and not unknown.any():
        worthwhile = np.multiply(gains, voxel_weight.right, dtype=np.float32)
    else:
        worthwhile = np.full(gains.shape, -np.inf, dtype=np.float32)
        # Unavailable experts have -inf, which times a weight of 0 would be NaN.
        np.multiply(gains, voxel_weight.right, out=worthwhile, where=~unknown & np.isfinite(gains))
    if voxel_weight.wrong is not voxel_weight.right:
        worthwhile -= rule.harm(probabilities, axis=0) * (voxel_weight.wrong - voxel_weight.right)
    return worthwhile


def evidence_gains(
    model: EvidenceModel,
    prior: PriorMap,
    unknown: np.ndarray,
    voxel_weight: VoxelWeight,
    rule: RoutingRule,
    spacing_mm: Sequence[float],
) -> np.ndarray:
    """The value of asking each expert about each voxel when answers are read as evidence.

    Args:
        model: The evidence model.
        prior: The prior of the case.
        unknown: Bool, True where nothing was predicted.
        voxel_weight: The weights of the voxels, by which the experts' costs count.
        rule: The routing rule, with costs and available experts.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        float32 (J, *shape), as :func:`image_gains`; 0 or less where no answer would change the label.
    """
    case = _candidates(model, prior, unknown, spacing_mm)
    nobody = np.full((len(model.experts), case.index.size), MISSING, dtype=np.int16)
    available = np.array(rule.available)
    values = model.values(case, nobody, np.zeros(nobody.shape, dtype=bool), available=available)
    gains = case.put(values, 0)
    for expert, surcharge in enumerate(rule.surcharges):
        if surcharge:
            gains[expert] -= np.float32(surcharge) * (voxel_weight.right if available[expert] else np.float32(1))
        gains[expert][unknown] = -np.inf
    return gains


def find_candidates(
    model: EvidenceModel, probabilities: np.ndarray, *, spacing_mm: Sequence[float] | None = None
) -> Candidates:
    """The voxels of a case that experts may be asked about, with their prior.

    Args:
        model: The evidence model.
        probabilities: The model's probabilities of classes or regions, float32 (K, *S).
        spacing_mm: Size of a voxel along each axis of S; None for 1 along each.

    Returns:
        The candidates: those where the prior is not certain. `candidates.index` are their flat indices, and
        `candidates.take` takes the values of an array there.

    Raises:
        InputError: If probabilities are not in [0, 1], or not of the model's structures.

    Example:
        An expert who is right in 90 % of all voxels is worth asking where the model is least sure:

        >>> import numpy as np
        >>> from nnunetv2_deferral import EvidenceModel, find_candidates
        >>> model = EvidenceModel.simple({"ann": 0.9})
        >>> foreground = np.array([[0.0, 0.3, 0.45, 0.6, 1.0]], dtype=np.float32)
        >>> case = find_candidates(model, np.stack([1 - foreground, foreground]))
        >>> case.index, case.prior.round(2)
        (array([1, 2, 3]), array([[-0.85, -0.2 ,  0.41]], dtype=float32))
        >>> nobody = np.zeros((1, 3), dtype=bool)
        >>> model.values(case, np.zeros((1, 3), dtype=int), nobody).round(3)  # expected gains in Dice
        array([[0.014, 0.015, 0.009]], dtype=float32)
    """
    if not (probabilities.min(initial=0) >= 0 and probabilities.max(initial=0) <= 1):  # false for NaN
        raise InputError("probabilities must be numbers in [0, 1]")
    if len(probabilities) != (number := model.structures.num_channels):
        raise InputError(f"the model is of {number} classes or regions, got probabilities {probabilities.shape}")
    shape = probabilities.shape[1:]
    spacing = (1.0,) * len(shape) if spacing_mm is None else tuple(spacing_mm)
    return _candidates(model, model.prior_of(probabilities, spacing), np.zeros(shape, dtype=bool), spacing)


def _candidates(model: EvidenceModel, prior: PriorMap, unknown: np.ndarray, spacing_mm: Sequence[float]) -> Candidates:
    """The candidates of a case where something was predicted."""
    return Candidates.of(prior, spacing_mm, model.structures, where=~unknown)


def expected_gain(gains: np.ndarray, route: np.ndarray) -> float:
    """The expected gain of a route over the model, in the unit of `gains`.

    Args:
        gains: Real (J, *S), as in :func:`.route_regions`.
        route: Shape S, integers in [0, J].

    Returns:
        The sum over deferred voxels of the asked expert's gain; 0 if nothing is deferred.

    Raises:
        InputError: If the shapes differ or a route is outside [0, J].
    """
    if gains.shape[1:] != route.shape:
        raise InputError(f"shapes differ: gains {gains.shape[1:]}, route {route.shape}")
    if route.size and not 0 <= route.min() <= route.max() <= len(gains):
        raise InputError(f"routes must lie in [0, {len(gains)}], got {route.min()} to {route.max()}")
    flat, asked, total = gains.reshape(len(gains), -1), route.reshape(-1), 0.0
    for part in chunks_of(asked.size):
        deferred = np.flatnonzero(asked[part])
        total += flat[asked[part][deferred] - 1, part.start + deferred].sum(dtype=np.float64)
    return float(total)
