"""Where the frames of DICOM objects are in the patient, for single-frame and multi-frame objects alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.image_files import reason_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """A frame and its place.

    Attributes:
        instance: The SOPInstanceUID of its object.
        frame: Its number in the object, from 1.
        position: Centre of the first pixel, float64 (3,), LPS in mm.
        right: Step from a column to the next, float64 (3,), in mm.
        down: Step from a row to the next, float64 (3,), in mm.
        shape: Numbers of rows and columns.
        thickness: Distance to the next frame or, if the object has none, its thickness, in mm; None if it has neither.
        rescale: Slope and intercept from stored to real values.
    """

    instance: str
    frame: int
    position: np.ndarray
    right: np.ndarray
    down: np.ndarray
    shape: tuple[int, int]
    thickness: float | None
    rescale: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """The unit vector at right angles to the plane, right-handed with `right` and `down`."""
        vector: np.ndarray = np.cross(self.right, self.down)
        return vector / np.linalg.norm(vector)

    @property
    def cosines(self) -> np.ndarray:
        """The six direction cosines of ImageOrientationPatient."""
        return np.concatenate([each / np.linalg.norm(each) for each in (self.right, self.down)])


def planes_of(dataset: Dataset, where: str) -> list[Plane]:
    """The frames of an object in their order, of a single-frame object its only one.

    Args:
        dataset: The object; pixels are not needed.
        where: Its origin, such as the file; messages begin with it.

    Raises:
        InputError: If the place of a frame is missing or not valid; the message names the attribute and its value.
    """
    if not frame_groups(dataset):
        return [_plane(dataset, 1, where, [dataset])]
    number = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    return [_plane(dataset, frame, where, frame_groups(dataset, frame)) for frame in range(1, number + 1)]


def frame_groups(dataset: Dataset, frame: int | None = None) -> list[Dataset]:
    """The functional groups of a frame and those that all frames share; empty for a single-frame object."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    return [*([] if frame is None else [own[frame - 1]]), *(dataset.get("SharedFunctionalGroupsSequence") or ())]


def read_object(file: Path, **options: Any) -> Dataset:
    """A DICOM object.

    Args:
        file: The file.
        **options: Those of `pydicom.dcmread`.

    Raises:
        InputError: If it cannot be read as DICOM; the message names it.
    """
    with decoding(file):
        return pydicom.dcmread(file, **options)


@contextmanager
def decoding(file: Path) -> Iterator[None]:
    """Convert errors of pydicom, which has no common class of them, to :class:`InputError`.

    Raises:
        InputError: Naming the file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} cannot be read as DICOM: {reason_of(error)}") from error


def numbers(values: Sequence[float] | np.ndarray) -> str:
    """Numbers for a message: `(1, 0.5, 0)`."""
    return "(" + ", ".join(f"{round(float(value), 4) + 0:g}" for value in values) + ")"


def _plane(dataset: Dataset, frame: int, where: str, groups: Sequence[Dataset]) -> Plane:
    where = where if len(groups) == 1 and groups[0] is dataset else f"{where}, frame {frame}"

    def found(sequence: str, keyword: str, length: int) -> np.ndarray:
        value = _value(dataset, groups, sequence, keyword)
        try:
            values = np.array([float(each) for each in value], dtype=float)
        except TypeError:
            values = np.empty(0)
        if values.size != length or not np.isfinite(values).all():
            raise InputError(f"{where}: {keyword} must be {length} numbers, got {value}")
        return values

    position = found("PlanePositionSequence", "ImagePositionPatient", 3)
    cosines = found("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = found("PixelMeasuresSequence", "PixelSpacing", 2)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > 1e-3 or abs(cosines[0] @ cosines[1]) > 1e-3:
        raise InputError(f"{where}: ImageOrientationPatient is not two unit vectors at right angles: {cosines.ravel()}")
    if (spacing <= 0).any():
        raise InputError(f"{where}: PixelSpacing must be positive, got {numbers(spacing)}")
    right, down = cosines / lengths[:, None]
    apart = [
        _value(dataset, groups, "PixelMeasuresSequence", key) for key in ("SpacingBetweenSlices", "SliceThickness")
    ]
    values = ("RescaleSlope", "RescaleIntercept")
    slope, intercept = (_value(dataset, groups, "PixelValueTransformationSequence", key) for key in values)
    return Plane(
        instance=str(dataset.SOPInstanceUID),
        frame=frame,
        position=position,
        right=right * spacing[1],  # PixelSpacing: first the distance between rows
        down=down * spacing[0],
        shape=(int(dataset.Rows), int(dataset.Columns)),
        thickness=next((abs(float(each)) for each in apart if each), None),
        rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
    )


def _value(dataset: Dataset, groups: Sequence[Dataset], sequence: str, keyword: str) -> Any:
    for group in groups:
        holders = [group] if group is dataset else group.get(sequence) or ()
        for holder in holders:
            if holder.get(keyword) is not None:
                return holder[keyword].value
    return None
