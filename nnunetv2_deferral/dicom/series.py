"""DICOM series: finding those of a folder, and checking that each is one evenly spaced volume."""

from __future__ import annotations

import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from nnunetv2_deferral.dicom.planes import Plane, decoding, numbers, planes_of, read_object
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import Orientation, orientation_of
from nnunetv2_deferral.text import counted, listed

TOLERANCE = 0.1
"""Largest distance between a slice and its place in an evenly spaced volume: of the distance of slices along the
normal, and of a pixel in the plane."""

# Classes of images whose frames form a volume. Others, such as segmentations and reports, are left out.
IMAGES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
}
_STORED = ("BitsStored", "PixelRepresentation")
_TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription")


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """The series of images below a folder.

    Attributes:
        files: For each SeriesInstanceUID its files, in the order of their paths.
        left_out: How many files are no images of a volume, by what they are.
    """

    files: Mapping[str, tuple[Path, ...]]
    left_out: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """A series that is one evenly spaced volume.

    Attributes:
        uid: The SeriesInstanceUID.
        study: The StudyInstanceUID.
        frame_of_reference: The FrameOfReferenceUID.
        modality: Such as CT.
        planes: The slices in the order of the volume: ascending along the normal, which is right-handed with rows and
            columns.
        files: The file of each slice; that of a multi-frame object repeatedly.
        step: From a slice to the next, float64 (3,), in mm.
        acquisitions: How many values of AcquisitionNumber its files have.
        stored_alike: Whether its files have one slope, intercept, number of bits and sign.
    """

    uid: str
    study: str
    frame_of_reference: str
    modality: str
    planes: tuple[Plane, ...]
    files: tuple[Path, ...]
    step: np.ndarray
    acquisitions: int
    stored_alike: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        return (len(self.planes), *self.planes[0].shape)

    @property
    def is_multi_frame(self) -> bool:
        """Whether all slices are frames of one object."""
        return len(self.planes) > 1 and len(set(self.files)) == 1

    @property
    def properties(self) -> dict[str, Any]:
        """The geometry as nnU-Net's SimpleITK reader gives it."""
        first = self.planes[0]
        steps = np.stack([first.right, first.down, self.step], axis=1)
        spacing = np.linalg.norm(steps, axis=0)
        direction = steps / spacing
        return {
            "sitk_stuff": {
                "spacing": tuple(spacing.tolist()),
                "origin": tuple(first.position.tolist()),
                "direction": tuple(direction.ravel().tolist()),
            },
            "spacing": spacing[::-1].tolist(),
        }

    @property
    def orientation(self) -> Orientation:
        """The orientation of the volume in the patient."""
        return orientation_of(self.properties, self.shape)


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The folder itself, or a temporary folder with the content of a zip file.

    Raises:
        InputError: If it is neither, or the zip file is damaged or encrypted.
    """
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise InputError(f"{source} does not exist")
    if not zipfile.is_zipfile(source):
        raise InputError(f"{source} is neither a folder nor a zip file")
    with tempfile.TemporaryDirectory() as name:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(name)  # which keeps paths below the folder
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise InputError(f"{source} cannot be unpacked: {error}") from error
        yield Path(name)


def find_series(folder: Path, wanted: Sequence[str] = ()) -> FoundSeries:
    """Find the series of images in a folder and its subfolders; only the headers' UIDs and words for them are read.

    Args:
        folder: A folder with a subfolder for each series, or with one series.
        wanted: The SeriesInstanceUIDs to find, wherever they are; empty for all, which must then be one in a folder.

    Raises:
        InputError: If there is no series, a wanted one is missing, a folder has files of several, or a series is in
            several folders.
    """
    files: dict[str, list[Path]] = {}
    left_out: Counter[str] = Counter()
    words: dict[str, str] = {}
    for file in sorted(each for each in folder.rglob("*") if each.is_file() and not each.name.startswith(".")):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        except (InvalidDicomError, EOFError):
            left_out["not DICOM"] += 1
            continue
        except Exception as error:  # pydicom has no common class of errors
            raise InputError(f"{file} cannot be read as DICOM: {error}") from error
        kind = str(header.get("SOPClassUID", ""))
        if kind not in IMAGES:
            left_out[UID(kind).name if kind else "no image"] += 1
        elif not wanted or str(header.get("SeriesInstanceUID")) in wanted:
            uid = str(header.SeriesInstanceUID)
            files.setdefault(uid, []).append(file)
            words.setdefault(uid, f"{header.get('Modality', '')} {header.get('SeriesDescription', '')}".strip())
        else:
            left_out["of another series"] += 1
    if missing := sorted(set(wanted) - set(files)):
        raise InputError(f"{folder} has no series {listed(missing)}")
    if not files:
        raise InputError(f"{folder} has no series of CT, MR or PET images ({counted(left_out) or 'it is empty'})")
    folders: dict[Path, set[str]] = {}
    for uid, paths in files.items():
        places = sorted({path.parent for path in paths})
        if len(places) > 1:
            raise InputError(f"series {uid} is in several folders: {listed(map(str, places))}")
        folders.setdefault(places[0], set()).add(uid)
    for place, uids in folders.items():
        if len(uids) > 1 and not wanted:
            each = [f"{uid} ({words[uid]}, {len(files[uid])} files)" for uid in sorted(uids)]
            raise InputError(
                f"{place} has the files of {len(uids)} series, where one is expected: {listed(each, 20)}. Choose some "
                "of them (-series), or put each in a folder of its own"
            )
    return FoundSeries(files={uid: tuple(files[uid]) for uid in sorted(files)}, left_out=dict(left_out))


def read_series(uid: str, files: Sequence[Path]) -> Series:
    """Read the headers of a series, sort its slices, and check that they are one evenly spaced volume.

    Args:
        uid: The SeriesInstanceUID, for messages.
        files: Its files.

    Raises:
        InputError: If files are damaged or lack attributes, or the slices differ in size, orientation, pixel spacing or
            frame of reference, several are at one place, one is missing, or they are sheared (gantry tilt); the message
            names the series and the values.
    """
    where, headers = f"series {uid}", [read_object(file, stop_before_pixels=True) for file in files]
    slices: list[tuple[Plane, Path]] = []
    for file, header in zip(files, headers, strict=True):
        with decoding(file):
            slices += [(plane, file) for plane in planes_of(header, str(file))]
        colour = str(header.get("PhotometricInterpretation"))
        if colour != "MONOCHROME2":
            raise InputError(f"{file}: PhotometricInterpretation must be MONOCHROME2, got {colour}")
        if "ModalityLUTSequence" in header:
            raise InputError(f"{file}: real values by a table (ModalityLUTSequence), not a slope, are not supported")
    if not slices:
        raise InputError(f"{where} has no frames")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        _one_value(where, keyword, [str(header.get(keyword) or "") for header in headers])
    if len(headers) > 1 and len(slices) > len(headers):
        raise InputError(f"{where} has {len(headers)} multi-frame objects, where one is expected")
    _check_alike(where, [plane for plane, _ in slices])
    normal = slices[0][0].normal
    slices.sort(key=lambda each: float(each[0].position @ normal))
    planes = tuple(plane for plane, _ in slices)
    first = headers[0]
    return Series(
        uid=uid,
        study=str(first.StudyInstanceUID),
        frame_of_reference=str(first.FrameOfReferenceUID),
        modality=str(first.get("Modality", "")),
        planes=planes,
        files=tuple(file for _, file in slices),
        step=_step(where, planes),
        acquisitions=len({header.get("AcquisitionNumber") for header in headers}),
        stored_alike=len({plane.rescale for plane in planes}) == 1
        and len({tuple(header.get(keyword) for keyword in _STORED) for header in headers}) == 1,
    )


def load_headers(series: Series) -> list[Dataset]:
    """The whole headers of a series in the order of the volume, of a multi-frame object once; without pixels."""
    return [read_object(file, stop_before_pixels=True) for file in dict.fromkeys(series.files)]


def _one_value(where: str, keyword: str, values: Sequence[str]) -> None:
    if len(different := sorted(set(values))) > 1:
        raise InputError(f"{where} has several values of {keyword}: {listed(different)}")
    if not different[0]:
        raise InputError(f"{where} has no {keyword}")


def _check_alike(where: str, planes: Sequence[Plane]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        if plane.shape != first.shape:
            raise InputError(f"{where} has slices of different sizes: {first.shape} and {plane.shape} pixels")
        extent = max(*plane.shape)
        if np.abs(plane.cosines - first.cosines).max() * extent > TOLERANCE:
            raise InputError(
                f"{where} has slices of different orientations (ImageOrientationPatient): {numbers(first.cosines)} "
                f"and {numbers(plane.cosines)}"
            )
        spacings = [np.linalg.norm((each.down, each.right), axis=1) for each in (first, plane)]
        if np.abs(spacings[1] / spacings[0] - 1).max() * extent > TOLERANCE:
            raise InputError(
                f"{where} has slices of different PixelSpacing: {numbers(spacings[0])} and {numbers(spacings[1])}"
            )


def _step(where: str, planes: Sequence[Plane]) -> np.ndarray:
    """The step from a slice to the next, at right angles to them."""
    first, normal = planes[0], planes[0].normal
    if len(planes) == 1:
        return normal * (first.thickness or 1.0)
    offsets = np.array([plane.position - first.position for plane in planes])
    along = offsets @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    same = int((gaps < TOLERANCE * usual).sum()) if usual > 0 else len(planes)
    if usual <= 0 or same:
        place = next(n for n, gap in enumerate(gaps) if usual <= 0 or gap < TOLERANCE * usual)
        raise InputError(
            f"{where} has several slices at one position (ImagePositionPatient {numbers(planes[place].position)}): "
            f"instances {planes[place].instance}, frame {planes[place].frame}, and {planes[place + 1].instance}, frame "
            f"{planes[place + 1].frame}. A series of several times or contrasts must be split"
        )
    widest = int(gaps.argmax())
    if gaps[widest] > 1.5 * usual:
        raise InputError(
            f"{where} lacks slices: between those at {numbers(planes[widest].position)} and "
            f"{numbers(planes[widest + 1].position)} there are {gaps[widest]:.4g} mm, otherwise {usual:.4g} mm, so "
            f"about {round(gaps[widest] / usual) - 1} are missing"
        )
    step = float(along[-1]) / (len(planes) - 1)
    sheared = np.linalg.norm(offsets - along[:, None] * normal, axis=1).max()
    if sheared > TOLERANCE * min(np.linalg.norm(first.right), np.linalg.norm(first.down)):
        degrees = float(np.degrees(np.arctan2(sheared, abs(along[-1]))))
        raise InputError(
            f"{where} is sheared, as by a gantry tilt: its slices are displaced in their plane by up to "
            f"{sheared:.4g} mm, {degrees:.3g} degrees. Resample it to an upright volume first"
        )
    uneven = float(np.abs(along - np.arange(len(planes)) * step).max())
    if uneven > TOLERANCE * step:
        raise InputError(
            f"{where} is not evenly spaced: slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart, and up to "
            f"{uneven:.4g} mm from their places in an even volume"
        )
    return normal * step
