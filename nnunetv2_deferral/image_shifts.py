"""Images as another scanner or protocol might have taken them: synthetic shifts, for tests of what depends on images.

Level 1 is about what nnU-Net's augmentation shows a network in training, levels 2 and 3 are beyond it. Real images of
another domain show more; synthetic shifts are repeatable and there is no end of them. A shuffled image is no shift but
a check: what a model still does there does not come from the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from scipy import ndimage
from torch.nn.functional import interpolate

from nnunetv2_deferral.defaults import SHUFFLE
from nnunetv2_deferral.errors import InputError

LEVELS = (1, 2, 3)
_Shift = Callable[[np.ndarray, int, Sequence[float], np.random.Generator], np.ndarray]

_NOISE = (0.15, 0.35, 0.7)  # standard deviations of the image
_BLUR = (1.0, 2.0, 3.0)  # standard deviation of the Gaussian, in voxels along the finest axis
_RESOLUTION = (0.5, 0.35, 0.2)  # of the original's
_GAMMA = (1.5, 2.2, 3.2)
_BIAS = (0.3, 0.6, 1.0)  # largest coefficient of the polynomial
_BIAS_ORDER = 3
_GHOSTS, _GHOST_INTENSITY = 4, (0.3, 0.6, 0.9)
_KEPT_CENTRE = 0.02  # share of the lines of k-space, in its centre, without ghosts
_BLOCKS = (4, 16, None)  # along each axis; None for single voxels
_THICK, _FEW = 2.0, 4  # axes with voxels larger than so many times the smallest, or so few, keep their resolution


def shift_image(
    image: np.ndarray, kind: str, level: int, *, spacing: Sequence[float], generator: np.random.Generator
) -> np.ndarray:
    """Shift an image.

    Args:
        image: float32 (C, *S), with one or more channels of two or three dimensions; not changed.
        kind: One of :data:`SHIFTS`.
        level: 1, 2 or 3.
        spacing: Size of a voxel along each axis of S.
        generator: The source of all randomness.

    Returns:
        float32 of the same shape. An image of one value stays as it is, except for noise, which there is none of, too.

    Raises:
        InputError: If kind or level is unknown, or the shape has neither two nor three dimensions.
    """
    if kind not in SHIFTS:
        raise InputError(f"unknown shift {kind!r}; known are {', '.join(SHIFTS)}")
    if level not in LEVELS:
        raise InputError(f"the level of a shift must be one of {', '.join(map(str, LEVELS))}, got {level}")
    if image.ndim not in (3, 4) or len(spacing) != image.ndim - 1:
        raise InputError(f"an image must have shape (C, *S) and a spacing for S, got {image.shape} and {list(spacing)}")
    found = SHIFTS[kind](image.astype(np.float32), level - 1, spacing, generator)
    return np.asarray(found, dtype=np.float32)


def _noise(image: np.ndarray, level: int, _spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    axes = tuple(range(1, image.ndim))
    deviation = image.std(axes, keepdims=True)
    return image + _NOISE[level] * deviation * generator.standard_normal(image.shape, dtype=np.float32)


def _blur(image: np.ndarray, level: int, spacing: Sequence[float], _: np.random.Generator) -> np.ndarray:
    sigma = [_BLUR[level] * min(spacing) / size for size in spacing]
    return np.stack([ndimage.gaussian_filter(channel, sigma) for channel in image])


def _downsample(image: np.ndarray, level: int, spacing: Sequence[float], _: np.random.Generator) -> np.ndarray:
    """Means over coarse voxels, interpolated; along axes with thick slices the resolution is kept."""
    sizes = list(zip(spacing, image.shape[1:], strict=True))
    keeps = [step > _THICK * min(spacing) or size < _FEW for step, size in sizes]
    coarse = [
        size if keep else max(2, round(size * _RESOLUTION[level])) for keep, (_, size) in zip(keeps, sizes, strict=True)
    ]
    averaged = interpolate(torch.from_numpy(image)[None], coarse, mode="area")
    linear = "bilinear" if image.ndim == 3 else "trilinear"
    return interpolate(averaged, image.shape[1:], mode=linear, align_corners=False)[0].numpy()


def _gamma(image: np.ndarray, level: int, _spacing: Sequence[float], _: np.random.Generator) -> np.ndarray:
    transform = GammaTransform(
        (_GAMMA[level], _GAMMA[level]), p_invert_image=0, synchronize_channels=True, p_per_channel=1, p_retain_stats=1
    )
    return transform(image=torch.from_numpy(image.copy()))["image"].numpy()


def _bias_field(image: np.ndarray, level: int, _spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Times exp(p), with a polynomial p in the normalized position (as in TorchIO), of what lies above the minimum."""
    shape = image.shape[1:]
    grids = np.ix_(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape))
    field = np.zeros(shape, dtype=np.float32)
    for powers in product(range(_BIAS_ORDER + 1), repeat=len(shape)):
        if 0 < sum(powers) <= _BIAS_ORDER:
            coefficient = np.float32(generator.uniform(-_BIAS[level], _BIAS[level]))
            field += coefficient * np.prod(
                np.broadcast_arrays(*(grid**power for grid, power in zip(grids, powers, strict=True))), axis=0
            )
    lowest = image.min(tuple(range(1, image.ndim)), keepdims=True)
    return lowest + (image - lowest) * np.exp(field)


def _ghosting(image: np.ndarray, level: int, _spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Every few lines of k-space along an axis are weakened, as by periodic motion, but those in the centre."""
    sizes = image.shape[1:]
    long_axes = [axis for axis, size in enumerate(sizes, start=1) if size >= 2 * _GHOSTS]
    if not long_axes:
        return image
    axis = int(generator.choice(long_axes))
    frequencies = np.abs(np.fft.fftfreq(image.shape[axis]))
    weakened = (np.arange(frequencies.size) % _GHOSTS == 0) & (frequencies > _KEPT_CENTRE / 2)
    factors = np.where(weakened, 1 - _GHOST_INTENSITY[level], 1.0)
    spectrum = np.fft.fft(image, axis=axis)
    along = [factors.size if place == axis else 1 for place in range(image.ndim)]
    return np.fft.ifft(spectrum * factors.reshape(along), axis=axis).real


def _shuffle(image: np.ndarray, level: int, _spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Blocks change places, with all their channels; what is left over at the ends of the axes stays."""
    numbers = [min(size, _BLOCKS[level] or size) for size in image.shape[1:]]
    edges = [size // number for size, number in zip(image.shape[1:], numbers, strict=True)]
    whole = (slice(None), *(slice(number * edge) for number, edge in zip(numbers, edges, strict=True)))
    found, axes = image.copy(), len(numbers)
    split = [length for pair in zip(numbers, edges, strict=True) for length in pair]
    order = [*range(1, 2 * axes, 2), 0, *range(2, 2 * axes + 1, 2)]  # (C, n, e, n, e, ...) to (n, n, ..., C, e, e, ...)
    blocks = found[whole].reshape(-1, *split).transpose(order)
    moved = generator.permutation(blocks.reshape(-1, *blocks.shape[axes:])).reshape(blocks.shape)
    found[whole] = moved.transpose(np.argsort(order)).reshape(found[whole].shape)
    return found


SHIFTS: dict[str, _Shift] = {
    "bias_field": _bias_field,
    "noise": _noise,
    "ghosting": _ghosting,
    "blur": _blur,
    "downsample": _downsample,
    "gamma": _gamma,
    SHUFFLE: _shuffle,
}
