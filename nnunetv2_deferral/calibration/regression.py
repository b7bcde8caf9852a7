"""Logistic regression on a sample of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_voxels(
    strata: Sequence[tuple[np.ndarray, int]], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw voxels of strata, and weigh them so that they stand for all.

    Args:
        strata: For each stratum its voxels, bool (n,), and the most that are drawn of it.
        generator: The source of randomness.

    Returns:
        The indices of the voxels, int64 (m,), by stratum, and their weights, float64 (m,).
    """
    places, weights = [], []
    for inside, most in strata:
        voxels = np.flatnonzero(inside)
        size = min(voxels.size, most)
        places.append(generator.choice(voxels, size, replace=False) if size < voxels.size else voxels)
        weights.append(np.full(size, voxels.size / max(size, 1)))
    return np.concatenate(places), np.concatenate(weights)


def logistic_weights(
    features: np.ndarray, truth: np.ndarray, weight: np.ndarray | None, *, ridge: float, otherwise: Sequence[float]
) -> tuple[float, ...]:
    """Intercept and coefficients of a logistic regression.

    Args:
        features: Real (n, F).
        truth: Bool (n,).
        weight: Real (n,), the weights of the voxels; None for 1 each.
        ridge: Times the sum of weights penalises half the squared coefficients.
        otherwise: The result if `truth` is the same everywhere.
    """
    from sklearn.linear_model import LogisticRegression  # imported here because it is slow to import

    if truth.all() or not truth.any():
        return tuple(otherwise)
    total = float(truth.size if weight is None else weight.sum())
    fitted = LogisticRegression(C=1 / (ridge * total), solver="newton-cholesky", max_iter=200)
    fitted.fit(features.astype(np.float64), truth, sample_weight=weight)
    return (float(fitted.intercept_[0]), *map(float, fitted.coef_[0]))
