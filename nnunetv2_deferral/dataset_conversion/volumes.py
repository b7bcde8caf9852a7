"""Checking of volumes and their segmentations, and conversion to compressed NIfTI.

Spacing, origin and direction of an image are kept, and its segmentation is written with exactly the same. If those of
the segmentation differ by more than rounding, the case is refused, because voxels with equal indices may not
correspond. If it is known that only the headers are wrong (see `lits.py`), the check can be switched off.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, raise_faults, require_folder
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import MAX_DISPLACEMENT_VOXELS, corner_displacement
from nnunetv2_deferral.image_files import check_file, itk_header, read_itk, reason_of, write_itk
from nnunetv2_deferral.labels import unknown_labels

FILE_ENDING = ".nii.gz"

_PROPERTIES = ("Size", "Spacing", "Origin", "Direction")


class FoundVolume(NamedTuple):
    """The file of an image or a segmentation of a case."""

    case: str
    split: str
    is_label: bool
    file: Path


@dataclass(frozen=True, kw_only=True)
class VolumeCase:
    """An image and its segmentation, which may be absent in the test set.

    Attributes:
        name: Case identifier.
        split: `"Tr"` or `"Ts"`.
        image: The image, in a format that SimpleITK reads.
        label: The segmentation, or None.
        label_values: The values that the segmentation may contain.
        ignore_label_geometry: Ignore the segmentation's geometry, except for the number of voxels.
    """

    name: str
    split: str
    image: Path
    label: Path | None
    label_values: tuple[int, ...]
    ignore_label_geometry: bool = False

    def faults(self) -> list[str]:
        """All problems of headers and labels.

        Raises:
            InputError: If a file cannot be read.
        """
        header = _read_header(self.image)
        faults = _shape_faults(self.image, header.GetSize(), header.GetNumberOfComponents())
        if faults or self.label is None:
            return faults
        label = read_itk(self.label)
        faults = _shape_faults(self.label, label.GetSize(), label.GetNumberOfComponentsPerPixel())
        return faults or [*self._geometry_faults(header, label), *self._value_faults(label)]

    def write(self, folder: Path) -> None:
        """Write `images{Tr,Ts}/<name>_0000.nii.gz` and `labels{Tr,Ts}/<name>.nii.gz`, labels as uint8."""
        target = folder / f"images{self.split}" / f"{self.name}_0000{FILE_ENDING}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.image.name.endswith(FILE_ENDING):
            check_file(self.image)
            shutil.copyfile(self.image, target)
        else:
            write_itk(read_itk(self.image), target)
        if self.label is not None:
            target = folder / f"labels{self.split}" / f"{self.name}{FILE_ENDING}"
            target.parent.mkdir(parents=True, exist_ok=True)
            label, header = sitk.Cast(read_itk(self.label), sitk.sitkUInt8), _read_header(self.image)
            label.SetSpacing(header.GetSpacing())
            label.SetOrigin(header.GetOrigin())
            label.SetDirection(header.GetDirection())
            write_itk(label, target)

    def _geometry_faults(self, image: sitk.ImageFileReader, label: sitk.Image) -> list[str]:
        same_size = image.GetSize() == label.GetSize()
        if same_size:
            displacement = corner_displacement(_position(label), _position(image), image.GetSize())
            if self.ignore_label_geometry or displacement <= MAX_DISPLACEMENT_VOXELS:
                return []
        different = []
        for name in _PROPERTIES:
            of_label, of_image = (_listed(getattr(header, f"Get{name}")()) for header in (label, image))
            if of_label != of_image:
                different.append(f"{name.lower()} {of_label} instead of {of_image}")
        hint = " (ignore_label_geometry switches off this check)" if same_size else ""
        return [f"{self.label} is not on the grid of {self.image.name}: {', '.join(different)}{hint}"]

    def _value_faults(self, label: sitk.Image) -> list[str]:
        unknown = unknown_labels(sitk.GetArrayViewFromImage(label), self.label_values)
        return [f"{self.label} contains unexpected labels: {unknown}"] if unknown else []


def pair_volumes(
    found: Iterable[FoundVolume], label_values: tuple[int, ...], *, ignore_label_geometry: bool = False
) -> list[VolumeCase]:
    """Pair images and segmentations to cases, in the order of the images.

    Raises:
        InputError: If a training image has no segmentation, a segmentation has no image, or two files are the same part
            of a case; the message lists all of them.
    """
    images: dict[tuple[str, str], Path] = {}
    labels: dict[tuple[str, str], Path] = {}
    faults = []
    for case, split, is_label, file in found:
        known = labels if is_label else images
        other = known.setdefault((split, case), file)
        if other != file:
            faults.append(f"{other} and {file} are the same part of the same case")
    faults += [f"{file} has no image" for key, file in labels.items() if key not in images]
    faults += [f"{file} has no segmentation" for key, file in images.items() if key[0] == "Tr" and key not in labels]
    raise_faults(faults)
    return [
        VolumeCase(
            name=case,
            split=split,
            image=file,
            label=labels.get((split, case)),
            label_values=label_values,
            ignore_label_geometry=ignore_label_geometry,
        )
        for (split, case), file in images.items()
    ]


def find_volumes(
    info: DatasetInfo,
    folder: Path,
    found: Callable[[Path], Iterable[FoundVolume]],
    *,
    example: str,
    ignore_label_geometry: bool = False,
) -> tuple[DatasetInfo, list[VolumeCase]]:
    """Find the cases of a dataset by their file names.

    Args:
        info: The dataset.
        folder: The folder with its unpacked archives.
        found: Finds the files of the dataset below a folder.
        example: A file name of the training set, for messages.
        ignore_label_geometry: See :class:`VolumeCase`.

    Raises:
        InputError: If the folder does not exist or contains no training cases, or images and segmentations cannot be
            paired, see :func:`pair_volumes`.
    """
    require_folder(folder)
    values = tuple(info.labels.values())
    cases = pair_volumes(found(folder), values, ignore_label_geometry=ignore_label_geometry)
    if not any(case.split == "Tr" for case in cases):
        raise InputError(f"there are no training cases of {info.name} ({example}, ...) in {folder}")
    return info, cases


def _position(header: Any) -> tuple[np.ndarray, np.ndarray]:
    """Steps along the axes of an image, or image file, as columns in mm, and the position of its first voxel."""
    return np.reshape(header.GetDirection(), (3, 3)) * header.GetSpacing(), np.array(header.GetOrigin())


def _shape_faults(file: Path, size: Sequence[int], num_channels: int) -> list[str]:
    if len(size) == 3 and num_channels == 1:
        return []
    return [f"{file} is not a volume with one channel: size {_listed(size)}, {num_channels} channel(s)"]


def _listed(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _read_header(file: Path) -> sitk.ImageFileReader:
    try:
        return itk_header(file)
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from error
