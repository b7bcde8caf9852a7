"""Conversion between the axis order of a file and the orientation used in the browser.

The browser's arrays are (Z, Y, X) with indices increasing towards the patient's left (X), posterior (Y) and superior
(Z), i.e. LPS as in DICOM. An axial slice drawn row by row is then the radiological view, with the patient's right on
the left of the screen. Axes are only permuted and flipped, never resampled: an oblique volume is shown along its own
axes, each named after the nearest patient direction. Files without orientation (.png, .tif) are shown unchanged and
without direction names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np

from nnunetv2_deferral.errors import InputError

MAX_DISPLACEMENT_VOXELS = 0.05
"""Largest displacement of a corner voxel, in edges of the smallest voxel side, that is attributed to rounding."""

OBLIQUE_DEGREES = 1.0
"""A volume is oblique if an axis and the patient's differ by at least this angle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Orientation:
    """Orientation of a file's array in the patient.

    Attributes:
        axes: For each axis of the browser's array (Z, Y, X), the axis of the file's array.
        flips: For each axis of the browser's array, whether it is reversed in the file.
        spacing_mm: Size of a voxel along the browser's axes (Z, Y, X); in pixels for formats without a unit.
        affine: 4x4, from an index (x, y, z) of the browser's array to LPS coordinates in mm.
        named: Whether the file states its orientation.
        oblique_degrees: The largest angle between an axis and the patient axis it is named after.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    named: bool
    oblique_degrees: float

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Convert an array of the file, (..., three axes), to the browser's orientation; contiguous."""
        lead = tuple(range(array.ndim - 3))
        turned = array.transpose(*lead, *(len(lead) + axis for axis in self.axes))
        return np.ascontiguousarray(np.flip(turned, self._flipped(len(lead))))

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_canonical`; contiguous."""
        lead = tuple(range(array.ndim - 3))
        turned = np.flip(array, self._flipped(len(lead)))
        return np.ascontiguousarray(turned.transpose(*lead, *(len(lead) + axis for axis in np.argsort(self.axes))))

    def file_index(self, index: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
        """The index in the file's array of a voxel of the browser's array.

        Args:
            index: (z, y, x) in the browser's array.
            shape: (Z, Y, X) of the browser's array.
        """
        found = [0, 0, 0]
        for axis, flip, at, size in zip(self.axes, self.flips, index, shape, strict=True):
            found[axis] = size - 1 - at if flip else at
        return tuple(found)

    def position_mm(self, index: Sequence[int]) -> list[float]:
        """The LPS coordinates (x, y, z) of a voxel (z, y, x) of the browser's array, in mm to 0.01."""
        place = self.affine @ np.array([*index[::-1], 1.0])
        return [round(float(each), 2) for each in place[:3]]

    def _flipped(self, offset: int) -> tuple[int, ...]:
        return tuple(offset + axis for axis, flip in enumerate(self.flips) if flip)


def orientation_of(properties: Mapping[str, Any], shape: Sequence[int]) -> Orientation:
    """The orientation of a file, from nnU-Net's properties.

    Args:
        properties: From one of nnU-Net's readers.
        shape: Shape of the file's array, three axes.

    Raises:
        InputError: If the axis directions in `properties` are not finite and linearly independent.
    """
    vectors, origin, named = _axis_vectors_mm(properties)
    lengths = np.linalg.norm(vectors, axis=0)
    if not np.isfinite(vectors).all() or (lengths == 0).any() or abs(np.linalg.det(vectors / lengths)) < 1e-6:
        raise InputError(f"the axis directions of the volume are not linearly independent: {vectors.tolist()}")
    cosines = vectors / lengths  # [patient axis (L, P, S), file axis (x, y, z)]
    # Ties, as at 45 degrees, go to the first permutation, so that the choice is deterministic.
    chosen = max(permutations(range(3)), key=lambda order: sum(abs(cosines[world, order[world]]) for world in range(3)))
    signs = [cosines[world, chosen[world]] < 0 for world in range(3)]
    size_xyz = np.asarray(shape)[::-1]
    affine = np.eye(4)
    affine[:3, 3] = origin
    for world, axis in enumerate(chosen):
        affine[:3, world] = -vectors[:, axis] if signs[world] else vectors[:, axis]
        if signs[world]:
            affine[:3, 3] += vectors[:, axis] * (size_xyz[axis] - 1)
    angle = np.degrees(np.arccos(np.clip(min(abs(cosines[world, chosen[world]]) for world in range(3)), -1, 1)))
    z, y, x = (2 - chosen[world] for world in (2, 1, 0))
    depth, height, width = (float(lengths[chosen[world]]) for world in (2, 1, 0))
    return Orientation(
        axes=(z, y, x),
        flips=(bool(signs[2]), bool(signs[1]), bool(signs[0])),
        spacing_mm=(depth, height, width),
        affine=affine,
        named=named,
        oblique_degrees=float(angle),
    )


def displacement_voxels(first: Orientation, second: Orientation, shape: Sequence[int]) -> float:
    """:func:`corner_displacement` of two volumes in the browser's orientation.

    Args:
        first: One orientation.
        second: The other.
        shape: The shape (Z, Y, X) of both in the browser's orientation.
    """
    return corner_displacement(
        (first.affine[:3, :3], first.affine[:3, 3]), (second.affine[:3, :3], second.affine[:3, 3]), shape[::-1]
    )


def corner_displacement(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], size: Sequence[int]
) -> float:
    """The largest distance between corresponding corner voxels of two volumes, in voxel edges of the second.

    The edge is its smallest.

    Args:
        first: Steps along the axes x, y, z as the columns of a matrix (3, 3), and the position (3,) of voxel 0.
        second: The same of the other volume.
        size: The size of both along x, y, z.
    """
    corners = np.array(list(product(*((0, length - 1) for length in size))))
    apart = np.linalg.norm(corners @ (first[0] - second[0]).T + (first[1] - second[1]), axis=1).max()
    return float(apart / np.linalg.norm(second[0], axis=0).min())


def _axis_vectors_mm(properties: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Steps along the file's axes x, y, z as columns (LPS, mm), the origin, and whether the file states them."""
    if "sitk_stuff" in properties:
        sitk = properties["sitk_stuff"]
        dimension = len(sitk["spacing"])
        vectors, origin = np.eye(3), np.zeros(3)
        direction = np.reshape(sitk["direction"], (dimension, dimension)) * np.asarray(sitk["spacing"])
        kept = min(dimension, 3)  # multi-modal files have a fourth axis
        vectors[:kept, :kept] = direction[:kept, :kept]
        origin[:kept] = sitk["origin"][:kept]
        return vectors, origin, dimension >= 3
    if "nibabel_stuff" in properties:
        nibabel = properties["nibabel_stuff"]
        to_lps = np.diag([-1.0, -1.0, 1.0])
        affine = np.asarray(nibabel.get("reoriented_affine", nibabel["original_affine"]), dtype=float)
        return to_lps @ affine[:3, :3], to_lps @ affine[:3, 3], True
    return np.diag(np.asarray(properties["spacing"], dtype=float)[::-1]), np.zeros(3), False


def geometry_differences(properties: Mapping[str, Any], expected: Mapping[str, Any], shape: Sequence[int]) -> list[str]:
    """Compare where the voxels of two files are, by nnU-Net's properties of both.

    Tools round geometry differently; NIfTI, for example, may store directions as a single-precision quaternion. Two
    volumes agree if no corner voxel is displaced by more than :data:`MAX_DISPLACEMENT_VOXELS`. Where only one file has
    an origin and directions, only spacings are compared.

    Args:
        properties: Of one file.
        expected: Of the other.
        shape: The shape of both arrays in the axis order of nnU-Net's readers.

    Returns:
        One phrase per difference, such as `"origin (0, 0, 0) instead of (1, 0, 0)"`, the last with the displacement;
        empty if they agree.
    """
    ours, theirs = _geometry(properties), _geometry(expected)
    both = [name for name in ours if name in theirs]
    if both == ["spacing"]:
        properties, expected = ours, theirs
    displacement = corner_displacement(
        _axis_vectors_mm(properties)[:2], _axis_vectors_mm(expected)[:2], tuple(shape)[::-1]
    )
    if displacement <= MAX_DISPLACEMENT_VOXELS:  # false for NaN
        return []
    phrases = [f"{name} {_text(ours[name])} instead of {_text(theirs[name])}" for name in both]
    differing = [phrase for phrase, name in zip(phrases, both, strict=True) if _text(ours[name]) != _text(theirs[name])]
    differing = differing or ["geometry that differs in its last digits"]
    return [*differing[:-1], f"{differing[-1]} (corners up to {displacement:.3g} voxels apart)"]


def _geometry(properties: Mapping[str, Any]) -> dict[str, Any]:
    sitk, nibabel = properties.get("sitk_stuff", {}), properties.get("nibabel_stuff", {})
    found = {"spacing": properties["spacing"]}
    found |= {name: sitk[name] for name in ("origin", "direction") if name in sitk}
    # A reader that reorients returns voxels in the order of the reoriented affine.
    affine = nibabel.get("reoriented_affine", nibabel.get("original_affine"))
    return found | ({} if affine is None else {"affine": affine})


def _text(value: Any) -> str:
    return "(" + ", ".join(f"{number:g}" for number in np.ravel(value)) + ")"
