"""Deferral within a budget: at most so many voxels of a case, the ones with the highest score."""

from __future__ import annotations

import os

import numpy as np

ENVIRONMENT = "nnUNet_deferral_budget"


def route_within_budget(score: np.ndarray, expert: np.ndarray, worthwhile: np.ndarray, budget: float) -> np.ndarray:
    """Defer the voxels of a case with the highest scores, as many as the budget allows.

    Args:
        score: Real, any shape S.
        expert: Integers in [1, J] of shape S, whom to ask about a voxel.
        worthwhile: Bool of shape S; only these voxels may be deferred.
        budget: The share in [0, 1] of the voxels of S that may be deferred. It is never exceeded; of equal scores the
            voxels that come first are taken.

    Returns:
        uint8 of shape S: 0 the model, j expert j.

    Raises:
        ValueError: If the budget is outside [0, 1].
    """
    check_budget(budget)
    route = np.zeros(score.shape, dtype=np.uint8)
    candidates = np.flatnonzero(worthwhile)
    number = min(int(np.floor(budget * score.size)), candidates.size)
    if number:
        order = np.argsort(-score.ravel()[candidates], kind="stable")
        chosen = candidates[order[:number]]
        route.ravel()[chosen] = expert.ravel()[chosen]
    return route


def check_budget(budget: float, named: str = "a budget") -> float:
    """The budget, if it is one.

    Raises:
        ValueError: If it is not a share in [0, 1]; `named` says where it stands.
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"{named} is a share of the voxels in [0, 1], got {budget}")
    return budget


def budget_of_environment() -> float | None:
    """The budget that the environment variable `nnUNet_deferral_budget` asks for, or None if it is not set.

    Raises:
        ValueError: If its value is not a share in [0, 1].
    """
    value = os.environ.get(ENVIRONMENT, "").strip()
    if not value:
        return None
    try:
        return check_budget(float(value), named=ENVIRONMENT)
    except ValueError as error:
        raise ValueError(f"{ENVIRONMENT} is a share of the voxels in [0, 1], got {value!r}") from error
