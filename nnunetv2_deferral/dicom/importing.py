"""Images for nnU-Net from DICOM series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import SimpleITK as sitk

from nnunetv2_deferral.defaults import DICOM_ENDINGS, DICOM_PREFIX
from nnunetv2_deferral.dicom.case_map import PREFIX_PATTERN, case_name, write_map
from nnunetv2_deferral.dicom.planes import decoding, read_object
from nnunetv2_deferral.dicom.series import Series, find_series, opened, read_series
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import new_folder
from nnunetv2_deferral.image_files import reason_of, write_itk

_MOST_REFUSALS = 20  # in one message


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was imported.

    Attributes:
        cases: The series of each case.
        left_out: How many files were no images of a volume, by what they are.
        refused: Why series are no volumes, if these were to be skipped.
    """

    cases: Mapping[str, Series]
    left_out: Mapping[str, int]
    refused: tuple[str, ...] = ()


def import_series(
    source: Path,
    output: Path,
    *,
    wanted: Sequence[str] = (),
    prefix: str = DICOM_PREFIX,
    file_ending: str = ".nii.gz",
    skip_refused: bool = False,
) -> Imported:
    """Write the series of a folder as images for nnU-Net, `<case>_0000<file_ending>`, and dicom.json.

    Args:
        source: A folder with one series, or with a subfolder for each; or a zip file of such a folder.
        output: The output folder; it must not exist or be empty.
        wanted: SeriesInstanceUIDs of the series to import; empty for all.
        prefix: First part of the names of cases, see :func:`.case_name`.
        file_ending: One of :data:`.defaults.DICOM_ENDINGS`.
        skip_refused: Import the others if some series are no volumes.

    Raises:
        InputError: If the prefix or ending is invalid, series cannot be found (:func:`.find_series`) or are no volumes
            (:func:`.read_series`; all are named), or the output folder is not empty. Nothing is left in it then.
    """
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise InputError(f"the prefix of cases must consist of letters, digits, - and _, got {prefix!r}")
    if file_ending not in DICOM_ENDINGS:
        raise InputError(f"the file ending must be one of {', '.join(DICOM_ENDINGS)}, got {file_ending!r}")
    with opened(source) as folder:
        found = find_series(folder, wanted)
        read: list[Series] = []
        refused: list[str] = []
        for uid, files in found.files.items():
            try:
                read.append(read_series(uid, files))
            except InputError as error:
                refused.append(str(error))
        if refused and not (skip_refused and read):
            _refuse(refused, len(found.files))
        cases = {case_name(prefix, series.uid): series for series in read}
        if len(cases) < len(read):
            raise InputError(f"{source} has series whose cases would have the same name; choose some of them (-series)")
        with new_folder(output) as scratch:
            for case, series in cases.items():
                write_itk(read_volume(series), scratch / f"{case}_0000{file_ending}")
            write_map(cases, scratch)
    return Imported(cases=cases, left_out=found.left_out, refused=tuple(refused))


def _refuse(refused: Sequence[str], of: int) -> NoReturn:
    if len(refused) == 1:
        raise InputError(refused[0])
    more = f"; and {len(refused) - _MOST_REFUSALS} more" if len(refused) > _MOST_REFUSALS else ""
    raise InputError(f"{len(refused)} of {of} series are refused: {'; '.join(refused[:_MOST_REFUSALS])}{more}")


def read_volume(series: Series) -> sitk.Image:
    """The volume of a series in real values (such as Hounsfield units), without any metadata but its geometry.

    Raises:
        InputError: If pixels cannot be decoded; the message names the file.
    """
    image = _read_frames(series) if series.is_multi_frame else _read_slices(series)
    geometry = series.properties["sitk_stuff"]
    limits = np.iinfo(np.int16)
    if image.dtype.kind in "iu" and limits.min <= image.min() and image.max() <= limits.max:
        image = image.astype(np.int16)
    volume = sitk.GetImageFromArray(image)
    volume.SetSpacing(geometry["spacing"])
    volume.SetOrigin(geometry["origin"])
    volume.SetDirection(geometry["direction"])
    return volume


def _read_slices(series: Series) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series.files])
    # ITK takes the type from the first slice; in PET, for example, each has its own slope.
    if not series.stored_alike:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise InputError(f"series {series.uid} cannot be read: {reason_of(error)}") from error
    if image.shape != series.shape:
        raise InputError(f"series {series.uid} is read with shape {image.shape} instead of {series.shape}")
    return image.astype(np.float32) if image.dtype == np.float64 else image


def _read_frames(series: Series) -> np.ndarray:
    """From pydicom, because ITK takes the frames of a multi-frame object for sorted."""
    file = series.files[0]
    dataset = read_object(file)
    with decoding(file):
        frames = dataset.pixel_array.reshape(series.shape)
    image = np.stack([frames[plane.frame - 1] for plane in series.planes])
    slopes, intercepts = (
        np.array([plane.rescale[place] for plane in series.planes]).reshape(-1, 1, 1) for place in (0, 1)
    )
    values = image * slopes + intercepts
    whole = values.astype(np.int32)
    return whole if np.array_equal(whole, values) else values.astype(np.float32)
