"""A small generated dataset with partly hidden borders.

Each case is a bright blob on a cloudy background. On part of its circumference a veil replaces the border by a smooth
transition from bright to dark. There the reference border is displaced inwards or outwards at random, independently of
the image. The image shows where the border is uncertain, but not where it lies, so no model can predict it. Experts
simulated from the reference can. This is an idealised model of borders that raters determine with information from
outside the image, such as other sequences or the patient's history.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.io import imsave

from nnunetv2_deferral.errors import InputError

DATASET_NAME = "Dataset501_HiddenBorders"
FILE_ENDING = ".png"
SIZE = 64
"""Height and width of the images in pixels."""

_HARMONICS = 3
_MOST_DISPLACED, _LEAST_DISPLACED = 0.5, 0.3
_VEIL_MARGIN = 0.15
_VEIL_FADE = 0.15  # radians


@dataclass(frozen=True, kw_only=True)
class Blob:
    """The visible shape of a case: a border in polar coordinates, and its hidden part.

    Attributes:
        center: Row and column of the centre in pixels.
        radius: Mean radius in pixels.
        amplitudes: Amplitudes of the harmonics of the border relative to the radius, shape (3,).
        phases: Phases of the harmonics in radians, shape (3,).
        hidden_direction: Direction of the middle of the hidden part in radians.
        hidden_half_width: Half the opening angle of the hidden part in radians.
    """

    center: tuple[float, float]
    radius: float
    amplitudes: np.ndarray
    phases: np.ndarray
    hidden_direction: float
    hidden_half_width: float


def draw_blob(generator: np.random.Generator) -> Blob:
    """A random blob that lies inside the image, including its hidden border."""
    row, column = generator.uniform(SIZE / 2 - 4, SIZE / 2 + 4, size=2)
    return Blob(
        center=(float(row), float(column)),
        radius=float(generator.uniform(12, 16)),
        amplitudes=generator.uniform(-0.06, 0.06, _HARMONICS),
        phases=generator.uniform(0, 2 * np.pi, _HARMONICS),
        hidden_direction=float(generator.uniform(0, 2 * np.pi)),
        hidden_half_width=float(np.deg2rad(generator.uniform(30, 65))),
    )


def draw_displacement(generator: np.random.Generator) -> float:
    """A random displacement of the hidden border relative to the radius, inwards or outwards with equal probability."""
    return float(generator.choice([-1, 1]) * generator.uniform(_LEAST_DISPLACED, _MOST_DISPLACED))


def render_image(blob: Blob, generator: np.random.Generator) -> np.ndarray:
    """The image of a blob, independent of the displacement.

    Args:
        blob: The visible shape.
        generator: Random generator for texture and noise.

    Returns:
        uint8 of shape (SIZE, SIZE).
    """
    distance, _, border = _polar(blob)
    inside = gaussian_filter((distance <= border).astype(float), 0.7)
    slope = np.clip(0.5 - (distance / border - 1) / (2 * (_MOST_DISPLACED + _VEIL_MARGIN)), 0, 1)
    veil = _veil(blob)
    cloud = gaussian_filter(generator.standard_normal((SIZE, SIZE)), 5)
    image = 60 + 11 * cloud / cloud.std() + 100 * ((1 - veil) * inside + veil * slope)
    return np.clip(image + generator.normal(0, 7, image.shape), 0, 255).astype(np.uint8)


def draw_reference(blob: Blob, displacement: float) -> np.ndarray:
    """The reference label map of a blob with a displaced hidden border.

    Args:
        blob: The visible shape.
        displacement: Displacement of the hidden border relative to the radius, positive outwards.

    Returns:
        uint8 of shape (SIZE, SIZE), 0 background and 1 blob.

    Raises:
        InputError: If the displaced border would leave the veil.
    """
    if abs(displacement) > _MOST_DISPLACED:
        raise InputError(f"the displacement must be at most {_MOST_DISPLACED} to stay in the veil, got {displacement}")
    distance, angle, border = _polar(blob)
    # Full displacement in the middle, decreasing to zero at the ends of the veil, so that the border is continuous.
    edge = (blob.hidden_half_width - angle) / (0.35 * blob.hidden_half_width)
    return (distance <= border * (1 + displacement * _smooth_step(edge))).astype(np.uint8)


def make_case(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and reference of a case, reproducible from seed and index."""
    visible, hidden = (np.random.default_rng([seed, index, part]) for part in (0, 1))
    blob = draw_blob(visible)
    return render_image(blob, visible), draw_reference(blob, draw_displacement(hidden))


def write_dataset(raw: Path, *, num_training: int, num_test: int, seed: int) -> Path:
    """Write the dataset in nnU-Net's format, including labels of the test cases.

    Args:
        raw: The nnUNet_raw folder.
        num_training: Number of training cases.
        num_test: Number of test cases, written to imagesTs and labelsTs.
        seed: Random seed.

    Returns:
        The folder of the dataset.

    Raises:
        InputError: For fewer than five training cases (nnU-Net uses five folds) or no test case.
    """
    if num_training < 5 or num_test < 1:
        raise InputError(f"at least 5 training cases and 1 test case are required, got {num_training} and {num_test}")
    folder = raw / DATASET_NAME
    for part, first, number in (("Tr", 0, num_training), ("Ts", num_training, num_test)):
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        images.mkdir(parents=True)
        labels.mkdir()
        for index in range(first, first + number):
            image, reference = make_case(seed, index)
            imsave(images / f"blob_{index:03d}_0000{FILE_ENDING}", image, check_contrast=False)
            imsave(labels / f"blob_{index:03d}{FILE_ENDING}", reference, check_contrast=False)
    content = {
        "channel_names": {"0": "generated"},
        "labels": {"background": 0, "blob": 1},
        "numTraining": num_training,
        "file_ending": FILE_ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n")
    return folder


def _polar(blob: Blob) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the centre, angle to the hidden direction in [0, pi] and radius of the visible border by pixel."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    rows, columns = rows - blob.center[0], columns - blob.center[1]
    direction = np.arctan2(rows, columns)
    orders = np.arange(2, _HARMONICS + 2)[:, None, None]
    waves = blob.amplitudes[:, None, None] * np.cos(orders * direction + blob.phases[:, None, None])
    off = np.abs(np.angle(np.exp(1j * (direction - blob.hidden_direction))))
    return np.hypot(rows, columns), off, blob.radius * (1 + waves.sum(0))


def _veil(blob: Blob) -> np.ndarray:
    """Opacity of the veil in [0, 1]; 1 wherever the visible or a displaced border of the hidden part can lie."""
    distance, angle, border = _polar(blob)
    depth = (_MOST_DISPLACED + _VEIL_MARGIN) - np.abs(distance / border - 1)
    across = blob.hidden_half_width + _VEIL_FADE - angle
    return _smooth_step(depth / _VEIL_MARGIN) * _smooth_step(across / _VEIL_FADE)


def _smooth_step(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)
