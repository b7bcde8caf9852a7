"""Masks that were drawn in another program, such as ITK-SNAP or 3D Slicer."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import displacement_voxels, orientation_of
from nnunetv2_deferral.review.edits import RefusedError
from nnunetv2_deferral.review.study import ReviewedCase

MAX_DISPLACEMENT_VOXELS = 0.05
"""Other programs store directions as rounded quaternions; more than rounding is another geometry."""

MAX_BYTES_PER_VOXEL = 8
MAX_HEADER_BYTES = 2**20


def read_uploaded_mask(body: bytes, file_name: str, case: ReviewedCase, files: DatasetFiles) -> np.ndarray:
    """The mask in an uploaded file, int64 (Z, Y, X) in the browser's orientation.

    It may count its axes in another order or direction than the model's mask, as long as each voxel lies where one of
    the mask's lies.

    Args:
        body: The content of the file.
        file_name: Its name, of which the ending alone matters.
        case: The case it shall answer.
        files: The dataset's reader.

    Raises:
        RefusedError: If it cannot be read, has another shape or lies elsewhere.
    """
    endings = [ending for ending in files.reader.supported_file_endings if file_name.lower().endswith(ending)]
    if not endings:
        raise RefusedError(422, f"The file must be one of {', '.join(files.reader.supported_file_endings)}.")
    with tempfile.TemporaryDirectory(prefix="review_upload_") as folder:
        file = Path(folder) / f"mask{max(endings, key=len)}"
        file.write_bytes(body)
        _check_size(file, case.model.size)
        if file.name.endswith(".gz"):
            _check_complete(file, case.model.size)
        try:
            values, properties = files.reader.read_seg(str(file))
        except Exception as error:  # readers fail in their own ways on a file that is cut short or of another kind
            raise RefusedError(422, f"The file cannot be read; is it complete? ({_first_line(error)})") from error
    if values.ndim != 4 or values.shape[0] != 1:
        raise RefusedError(422, f"The file is no label map of one channel, it has shape {_by(values.shape)}.")
    mask = np.rint(values[0]).astype(np.int64)
    if not np.array_equal(mask, values[0]):
        raise RefusedError(422, "The file holds values that are no whole numbers.")
    try:
        orientation = orientation_of(properties, mask.shape)
    except InputError as error:
        raise RefusedError(422, str(error)) from error
    turned = orientation.to_canonical(mask)
    if turned.shape != case.model.shape:
        raise RefusedError(422, f"The file has shape {_by(turned.shape)}, the case {_by(case.model.shape)}.")
    apart = displacement_voxels(orientation, case.orientation, case.model.shape)
    if apart > MAX_DISPLACEMENT_VOXELS:
        raise RefusedError(
            422, f"The file lies elsewhere in the patient: spacing, origin or direction are off by {apart:.3g} voxels."
        )
    return turned


def _check_size(file: Path, expected: int) -> None:
    """Look at the header alone first, so that a small file cannot unfold into a huge volume."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise RefusedError(422, f"The file cannot be read; is it complete? ({_first_line(error)})") from error
    if int(np.prod(reader.GetSize())) != expected:
        raise RefusedError(422, f"The file has {_by(reader.GetSize())} voxels, {expected} voxels in all were expected.")


def _check_complete(file: Path, voxels: int) -> None:
    """Readers are content with a compressed file whose end, with the checksum, is missing; a review is not."""
    most = voxels * MAX_BYTES_PER_VOXEL + MAX_HEADER_BYTES
    length = 0
    try:
        with gzip.open(file) as stream:
            while (chunk := stream.read(2**20)) and length <= most:
                length += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise RefusedError(422, f"The file cannot be read; is it complete? ({_first_line(error)})") from error
    if length > most:
        raise RefusedError(422, "The file holds more than the volume.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
