"""What is expected to be gained by asking, by voxel and by route."""

from __future__ import annotations

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.routing import RoutingRule


def image_gains(
    probabilities: np.ndarray, unknown: np.ndarray, voxel_weight: np.ndarray, rule: RoutingRule
) -> np.ndarray:
    """What is expected to be gained in an image by asking each expert, in mean Dice: what voxels are ranked by.

    Args:
        probabilities: float32 (J + 1, *S), calibrated; anything in [0, 1] where nothing was predicted.
        unknown: Bool of shape S, where nothing was predicted.
        voxel_weight: What a voxel is worth, float32 that broadcasts to S.
        rule: What the probabilities mean.

    Returns:
        float32 (J, *S), -inf where nothing was predicted, and for experts who cannot be asked.
    """
    gains = rule.gains(probabilities, axis=0)
    worthwhile = np.full(gains.shape, -np.inf, dtype=np.float32)
    # Experts who cannot be asked have -inf already, which times a worth of 0 would not be a number.
    return np.multiply(gains, voxel_weight, out=worthwhile, where=~unknown & np.isfinite(gains))


def expected_gain(gains: np.ndarray, route: np.ndarray) -> float:
    """What a route is expected to gain over the model's answer, in the unit of `gains`, summed over voxels.

    Args:
        gains: Real (J, *S), as in :func:`route_regions`.
        route: Shape S, integers in [0, J].

    Returns:
        The sum of the asked experts' gains; 0 where nothing is deferred.

    Raises:
        InputError: If the shapes differ or a route names an expert without gains.
    """
    if gains.shape[1:] != route.shape:
        raise InputError(f"shapes differ: gains {gains.shape[1:]}, route {route.shape}")
    where = np.nonzero(route)
    asked = route[where].astype(np.intp)
    if asked.size and not 1 <= asked.min() <= asked.max() <= len(gains):
        raise InputError(f"routes lie in [0, {len(gains)}], got {asked.min()} to {asked.max()}")
    places = (asked - 1, *where)
    return float(gains[places].sum(dtype=np.float64))
