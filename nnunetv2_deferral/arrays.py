"""Array checks, and iteration over arrays in chunks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import logit

from nnunetv2_deferral.errors import InputError

CHUNK_VOXELS = 2**20  # larger ones are no faster
CHUNK_VALUES = 2**18  # in several channels, whose temporary arrays then mostly stay in the cache of a processor


def check_same_shape(**arrays: np.ndarray | None) -> None:
    """Refuse arrays of different shapes; None is ignored.

    Raises:
        InputError: Naming the arrays and their shapes.
    """
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise InputError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def check_bool(**masks: np.ndarray | None) -> None:
    """Refuse masks that are not bool; None is ignored.

    Raises:
        InputError: Naming the mask and its dtype.
    """
    for name, mask in masks.items():
        if mask is not None and mask.dtype != bool:
            raise InputError(f"{name} must be bool, got dtype {mask.dtype}")


def in_chunks(*arrays: np.ndarray | None) -> Iterator[tuple[np.ndarray, ...]]:
    """Iterate over arrays of one shape S in flat chunks of at most `CHUNK_VOXELS` voxels.

    None stands for a mask that is True everywhere. Contiguous arrays are not copied. Empty arrays yield nothing.
    """
    flat = [None if array is None else array.reshape(-1) for array in arrays]
    for part in chunks_of(next((array.size for array in flat if array is not None), 0)):
        yield tuple(np.ones(part.stop - part.start, bool) if array is None else array[part] for array in flat)


def chunks_of(size: int, channels: int = 1) -> Iterator[slice]:
    """Slices that cover `size` voxels, each of at most `CHUNK_VOXELS`, or `CHUNK_VALUES` in several channels."""
    length = CHUNK_VOXELS if channels <= 1 else max(CHUNK_VALUES // channels, 1)
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def highest(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """`values.argmax(axis)` of real numbers as uint8, or if that is too short a longer integer.

    Faster than `numpy.argmax` along a short axis of a large array.
    """
    first, *others = np.moveaxis(values, axis, 0)
    most, found = first.copy(), np.zeros(first.shape, dtype=np.min_scalar_type(len(others)))
    for number, each in enumerate(others, 1):
        # Without a branch per voxel, and right because numbers ascend.
        np.maximum(found, np.multiply(each > most, number, dtype=found.dtype), out=found)
        np.maximum(most, each, out=most)
    return found


def highest_in_chunks(values: np.ndarray) -> np.ndarray:
    """`values.argmax(0)` of real numbers (C, *S) as :func:`highest`, with temporary arrays of the size of a chunk.

    As with `numpy.argmax`, the first NaN of a voxel counts as its highest value.
    """
    number, *shape = values.shape
    flat = values.reshape(number, -1)
    found = np.empty(flat.shape[1], dtype=np.min_scalar_type(number - 1))
    for part in chunks_of(flat.shape[1], number):
        some = flat[:, part]
        found[part] = some.argmax(0) if np.isnan(some).any() else highest(some)
    return found.reshape(shape)


def count_values(values: np.ndarray, number: int) -> np.ndarray:
    """How often each of 0, ..., number - 1 occurs, int64 (number,); `numpy.bincount` takes 8 bytes per voxel."""
    counts = np.zeros(number, dtype=np.int64)
    for (some,) in in_chunks(values):
        counts += np.bincount(some, minlength=number)
    return counts


def of_experts(arrays: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """From each expert's array what belongs to the expert of each voxel, in less memory than an index would take.

    Args:
        arrays: (J, *S).
        experts: Integers in [1, J] of shape S.

    Returns:
        Of shape S and the dtype of `arrays`.
    """
    found = arrays[0].copy()
    for number, array in enumerate(arrays[1:], 2):
        np.copyto(found, array, where=experts == number)
    return found


SMALLEST = 1e-7  # probabilities are clipped to [SMALLEST, 1 - SMALLEST], logits thus to +-16.12


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """float64 logits of probabilities, finite because these are clipped.

    Raises:
        InputError: See :func:`check_probabilities`.
    """
    check_probabilities(probabilities)
    logits: np.ndarray = logit(np.clip(probabilities, SMALLEST, 1 - SMALLEST, dtype=np.float64))
    return logits


def check_probabilities(probabilities: np.ndarray) -> None:
    """Refuse an array whose values are not probabilities.

    Raises:
        InputError: If the dtype is not floating point or a value is outside [0, 1].
    """
    if probabilities.dtype.kind != "f":
        raise InputError(f"probabilities must be real floating point, got dtype {probabilities.dtype}")
    for extreme in (probabilities.min(), probabilities.max()) if probabilities.size else ():  # NaN propagates to both
        if not 0 <= extreme <= 1:
            raise InputError(f"probabilities must lie in [0, 1], got {extreme}")
