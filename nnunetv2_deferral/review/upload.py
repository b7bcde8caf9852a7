"""Masks that were drawn in another program, such as ITK-SNAP or 3D Slicer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import MAX_DISPLACEMENT_VOXELS, displacement_voxels, orientation_of
from nnunetv2_deferral.image_files import read_values
from nnunetv2_deferral.review.edits import RefusedError
from nnunetv2_deferral.review.study import ReviewedCase


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
        try:
            _check_size(file, case.model.size)
            values, properties = read_values(file, files.reader)
        except InputError as error:
            raise RefusedError(422, str(error).replace(str(file), "The file")) from error
    mask = np.rint(values).astype(np.int64)
    if not np.array_equal(mask, values):
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
    """Refuse a small file that would expand to a large volume, by its header alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return  # which reading it explains
    if int(np.prod(reader.GetSize(), dtype=object)) != expected:
        raise RefusedError(422, f"The file has {_by(reader.GetSize())} voxels, {expected} voxels in all were expected.")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
