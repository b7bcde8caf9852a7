"""Checks of arrays, and work on them in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import logit

from nnunetv2_deferral.errors import InputError

CHUNK_VOXELS = 2**22  # at once, so that temporary arrays stay below 100 MiB


def check_same_shape(**arrays: np.ndarray | None) -> None:
    """Refuse arrays of different shapes; None has any.

    Raises:
        InputError: Naming the arrays and their shapes.
    """
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise InputError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def check_bool(**masks: np.ndarray | None) -> None:
    """Refuse masks that are not bool; None passes.

    Raises:
        InputError: Naming the mask and its dtype.
    """
    for name, mask in masks.items():
        if mask is not None and mask.dtype != bool:
            raise InputError(f"{name} must be bool, got dtype {mask.dtype}")


def in_chunks(*arrays: np.ndarray | None) -> Iterator[tuple[np.ndarray, ...]]:
    """Flat pieces of arrays of one shape S, at most `CHUNK_VOXELS` long; for None, which stands for a mask, all True.

    Nothing is copied unless an array is not contiguous. Without voxels there are no pieces.
    """
    flat = [None if array is None else array.reshape(-1) for array in arrays]
    size = next((array.size for array in flat if array is not None), 0)
    for start in range(0, size, CHUNK_VOXELS):
        length = min(CHUNK_VOXELS, size - start)
        yield tuple(np.ones(length, bool) if array is None else array[start : start + length] for array in flat)


SMALLEST = 1e-7  # probabilities are taken as at least this, and at most 1 minus this: logits within +-16.12


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """float64 logits, finite."""
    check_probabilities(probabilities)
    logits: np.ndarray = logit(np.clip(probabilities, SMALLEST, 1 - SMALLEST, dtype=np.float64))
    return logits


def check_probabilities(probabilities: np.ndarray) -> None:
    """Refuse an array that does not hold probabilities.

    Raises:
        InputError: If the dtype is not floating point or a value is outside [0, 1].
    """
    if probabilities.dtype.kind != "f":
        raise InputError(f"probabilities must be real floating point, got dtype {probabilities.dtype}")
    for extreme in (probabilities.min(), probabilities.max()) if probabilities.size else ():  # NaN is both
        if not 0 <= extreme <= 1:
            raise InputError(f"probabilities must lie in [0, 1], got {extreme}")
