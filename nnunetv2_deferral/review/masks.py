"""Masks in the dataset's format, oriented as its images."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.image_files import check_file, read_values
from nnunetv2_deferral.review.study import ReviewedCase


def write_mask(mask: np.ndarray, case: ReviewedCase, file: Path, files: DatasetFiles) -> np.ndarray:
    """Write a mask and return it as it was written.

    Args:
        mask: Label map (Z, Y, X) as the page shows the case.
        case: The case.
        file: The file.
        files: Their format.

    Raises:
        OSError: If the file is not complete; not all writers report a full disk, and some as a RuntimeError.
    """
    turned = case.orientation.to_file(mask)
    try:
        files.reader.write_seg(turned, str(file), case.properties)
        check_file(file)
    except (InputError, RuntimeError) as error:
        raise _incomplete(file) from error
    return turned


def write_answers(mask: np.ndarray, case: ReviewedCase, file: Path, files: DatasetFiles) -> None:
    """:func:`write_mask` of answers that are to be submitted, which are read again.

    Raises:
        OSError: If the file is not complete, or holds anything else.
    """
    turned = write_mask(mask, case, file, files)
    try:
        found, _ = read_values(file, files.reader)
    except InputError as error:
        raise _incomplete(file) from error
    if not np.array_equal(found, turned):
        raise _incomplete(file)


def _incomplete(file: Path) -> OSError:
    return OSError(errno.ENOSPC, f"{file.name} could not be written completely")
