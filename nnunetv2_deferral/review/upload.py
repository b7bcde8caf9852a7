"""Uploaded masks, drawn in other programs such as ITK-SNAP or 3D Slicer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import MAX_DISPLACEMENT_VOXELS, displacement_voxels, orientation_of
from nnunetv2_deferral.image_files import itk_header, read_values
from nnunetv2_deferral.review.edits import RefusedError
from nnunetv2_deferral.review.study import ReviewedCase


def read_uploaded_mask(body: bytes, file_name: str, case: ReviewedCase, files: DatasetFiles) -> np.ndarray:
    """The mask in an uploaded file, int64 (Z, Y, X) in the browser's orientation.

    The order and direction of its axes may differ from those of the model's mask, provided that the voxels coincide in
    space.

    Args:
        body: The content of the file.
        file_name: The name of the file; only its ending is used.
        case: The case that the mask answers.
        files: The files of the dataset.

    Raises:
        RefusedError: If the file cannot be read, or its shape or geometry differs from the model's mask.
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
        raise RefusedError(422, "The file contains values that are not whole numbers.")
    try:
        orientation = orientation_of(properties, mask.shape)
    except InputError as error:
        raise RefusedError(422, str(error)) from error
    turned = orientation.to_canonical(mask)
    if turned.shape != case.model.shape:
        raise RefusedError(422, f"The file has shape {_by(turned.shape)}, but the case has {_by(case.model.shape)}.")
    apart = displacement_voxels(orientation, case.orientation, case.model.shape)
    if not apart <= MAX_DISPLACEMENT_VOXELS:  # true for NaN
        raise RefusedError(
            422, f"Spacing, origin or direction of the file differ: its voxels are displaced by {apart:.3g} voxels."
        )
    return turned


def _check_size(file: Path, expected: int) -> None:
    """Refuse compressed files that would expand to a larger volume than expected, by their header alone."""
    try:
        size = itk_header(file).GetSize()
    except RuntimeError:
        return  # reading the file reports the fault
    if int(np.prod(size, dtype=object)) != expected:
        raise RefusedError(422, f"The file has {_by(size)} voxels; {expected} in total were expected.")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
