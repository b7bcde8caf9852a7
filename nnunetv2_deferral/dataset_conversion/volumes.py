"""Volumes and their segmentations: on the same grid, with the labels they should have, as compressed NIfTI.

Spacing, origin and direction of an image are kept, and a segmentation gets exactly those of its image. Where its own
differ by more than rounding, the case is refused: the voxels may belong to other places than their indices say. Where
it is known that only the headers are wrong (see `lits.py`), they can be ignored on request.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, raise_faults, require_folder
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import unknown_labels

FILE_ENDING = ".nii.gz"

_LARGEST_SHIFT = 0.1
"""How far a corner of a segmentation may lie from its image's, in voxels of the finest spacing."""
_PROPERTIES = ("Size", "Spacing", "Origin", "Direction")


class FoundVolume(NamedTuple):
    """A file that holds an image or a segmentation of a case."""

    case: str
    split: str
    is_label: bool
    file: Path


@dataclass(frozen=True, kw_only=True)
class VolumeCase:
    """An image and, in the training set at least, its segmentation.

    Attributes:
        name: Case identifier.
        split: `"Tr"` or `"Ts"`.
        image: A file that SimpleITK reads.
        label: Likewise; None if there is none.
        label_values: The values the segmentation may hold.
        ignore_label_geometry: Take only the number of voxels of the segmentation's header to be true.
    """

    name: str
    split: str
    image: Path
    label: Path | None
    label_values: tuple[int, ...]
    ignore_label_geometry: bool = False

    def faults(self) -> list[str]:
        """What is wrong with the headers and the labels."""
        header = _read_header(self.image)
        faults = _shape_faults(self.image, header.GetSize(), header.GetNumberOfComponents())
        if faults or self.label is None:
            return faults
        label = _read(self.label)
        faults = _shape_faults(self.label, label.GetSize(), label.GetNumberOfComponentsPerPixel())
        return faults or [*self._geometry_faults(header, label), *self._value_faults(label)]

    def write(self, folder: Path) -> None:
        """Write `images{Tr,Ts}/<name>_0000.nii.gz` and `labels{Tr,Ts}/<name>.nii.gz`, labels as uint8."""
        target = folder / f"images{self.split}" / f"{self.name}_0000{FILE_ENDING}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.image.name.endswith(FILE_ENDING):
            shutil.copyfile(self.image, target)
        else:
            _write(_read(self.image), target)
        if self.label is not None:
            target = folder / f"labels{self.split}" / f"{self.name}{FILE_ENDING}"
            target.parent.mkdir(parents=True, exist_ok=True)
            label, header = sitk.Cast(_read(self.label), sitk.sitkUInt8), _read_header(self.image)
            label.SetSpacing(header.GetSpacing())
            label.SetOrigin(header.GetOrigin())
            label.SetDirection(header.GetDirection())
            _write(label, target)

    def _geometry_faults(self, image: sitk.ImageFileReader, label: sitk.Image) -> list[str]:
        same_size = image.GetSize() == label.GetSize()
        if same_size:
            shift = np.abs(_corners(image) - _corners(label)).max()
            if self.ignore_label_geometry or shift <= _LARGEST_SHIFT * min(image.GetSpacing()):
                return []
        different = []
        for name in _PROPERTIES:
            of_label, of_image = (_listed(getattr(header, f"Get{name}")()) for header in (label, image))
            if of_label != of_image:
                different.append(f"{name.lower()} {of_label} against {of_image}")
        hint = " (ignore_label_geometry goes by the voxels alone)" if same_size else ""
        return [f"{self.label} is not on the grid of {self.image.name}: {', '.join(different)}{hint}"]

    def _value_faults(self, label: sitk.Image) -> list[str]:
        unknown = unknown_labels(sitk.GetArrayViewFromImage(label), self.label_values)
        return [f"{self.label} holds unexpected labels: {unknown}"] if unknown else []


def pair_volumes(
    found: Iterable[FoundVolume], label_values: tuple[int, ...], *, ignore_label_geometry: bool = False
) -> list[VolumeCase]:
    """Cases of the images and segmentations found, in the order of their images.

    Raises:
        InputError: For a training image without segmentation, a segmentation without image and two files that are the
            same part of a case; names all of them.
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
    """The cases below a folder whose files tell by their names what they are.

    Args:
        info: The dataset.
        folder: Where its archives were unpacked.
        found: Finds the files of the dataset below a folder.
        example: A file of the training set, for the message that there is none.
        ignore_label_geometry: See :class:`VolumeCase`.

    Raises:
        InputError: If there is no folder, or no training case in it.
        InputError: If images and segmentations do not pair up; names all of them.
    """
    require_folder(folder)
    values = tuple(info.labels.values())
    cases = pair_volumes(found(folder), values, ignore_label_geometry=ignore_label_geometry)
    if not any(case.split == "Tr" for case in cases):
        raise InputError(f"there are no training cases of {info.name} ({example}, ...) in {folder}")
    return info, cases


def _corners(header: Any) -> np.ndarray:
    """Where the centres of the eight corner voxels of an image, or of an image file, lie: (8, 3) in mm."""
    steps = np.reshape(header.GetDirection(), (3, 3)) * header.GetSpacing()
    indices = np.array(list(product(*((0, size - 1) for size in header.GetSize()))))
    return np.array(header.GetOrigin()) + indices @ steps.T


def _shape_faults(file: Path, size: Sequence[int], num_channels: int) -> list[str]:
    if len(size) == 3 and num_channels == 1:
        return []
    return [f"{file} is no volume of one channel: size {_listed(size)}, {num_channels} channel(s)"]


def _listed(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _read_header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read: {_last_line(error)}") from error
    return reader


def _read(file: Path) -> sitk.Image:
    try:
        return sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read: {_last_line(error)}") from error


def _write(image: sitk.Image, file: Path) -> None:
    try:
        sitk.WriteImage(image, str(file), True)
    except RuntimeError as error:
        raise OSError(f"{file} cannot be written: {_last_line(error)}") from error


def _last_line(error: RuntimeError) -> str:
    """What SimpleITK has to say; before it come source files and line numbers."""
    return str(error).strip().splitlines()[-1].strip()
