"""A dataset as nnU-Net keeps it: dataset.json, label files and images, their names and units, and groups of cases."""

from __future__ import annotations

import contextlib
import glob
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from pydantic import Field, Strict
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.geometry import geometry_differences
from nnunetv2_deferral.image_files import integer_scale, read_image, read_labels, read_values
from nnunetv2_deferral.schema import Boolean, Integer, Number, Text, read_validated_json, validate
from nnunetv2_deferral.text import listed

_CASES_LISTED = 10


Label = Annotated[int, Strict(), Field(ge=0, lt=2**15)]


class _ListedCase(TypedDict):
    images: NotRequired[list[Text]]
    label: NotRequired[Text]


class DatasetJson(TypedDict):
    """Types and ranges of what is used of a dataset.json; other keys are ignored."""

    labels: Annotated[dict[Text, Label | list[Label]], Field(min_length=1)]
    file_ending: Annotated[str, Strict(), Field(pattern=r"^\.")]
    regions_class_order: NotRequired[list[Label] | None]
    experts: NotRequired[list[Text]]
    channel_names: NotRequired[dict[Text, Any]]
    windows: NotRequired[dict[Text, dict[Text, Annotated[list[Number], Field(min_length=2, max_length=2)]]]]
    dataset: NotRequired[dict[Text, _ListedCase]]


class PlansJson(TypedDict):
    """Types of what is used of a plans file; other keys are ignored, and the settings are checked on their own."""

    plans_name: NotRequired[Text]
    dataset_name: NotRequired[Text]
    image_reader_writer: NotRequired[Text | None]
    configurations: NotRequired[dict[Text, dict[Text, Any]]]
    deferral: NotRequired[dict[Text, Any] | None]


_Groups = dict[Text, Text | Integer | Number | Boolean]


def read_dataset_json(file: Path) -> dict[str, Any]:
    """The content of a dataset.json.

    Raises:
        InputError: If the file is missing, cannot be read, or is not as :class:`DatasetJson`.
    """
    return cast(dict[str, Any], read_validated_json(file, DatasetJson))


def read_plans_json(file: Path) -> dict[str, Any]:
    """The content of a plans file.

    Raises:
        InputError: If the file is missing, cannot be read, or is not as :class:`PlansJson`.
    """
    return cast(dict[str, Any], read_validated_json(file, PlansJson))


def label_manager(content: Mapping[str, Any], where: str) -> LabelManager:
    """nnU-Net's (stock) label manager for the labels of a dataset.json.

    Args:
        content: The content of the dataset.json.
        where: Its origin, such as the file; the message begins with it.

    Raises:
        InputError: If nnU-Net does not accept the labels.
    """
    try:
        return LabelManager(content["labels"], content.get("regions_class_order"))
    except Exception as error:  # nnU-Net refuses labels by assertions and by stumbling over them
        reason = str(error) or repr(error)
        raise InputError(f"{where}: nnU-Net does not accept these labels: {reason}") from error


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """How the files of a dataset are read, and what its labels are called.

    Attributes:
        file_ending: Such as `.nii.gz`.
        reader: nnU-Net's reader-writer for them.
        label_manager: nnU-Net's (stock) label manager.
        content: The whole dataset.json.
    """

    file_ending: str
    reader: BaseReaderWriter
    label_manager: LabelManager
    content: Mapping[str, Any]

    @classmethod
    def of(cls, dataset_json: Path, example: Path) -> DatasetFiles:
        """Read a dataset.json and choose the reader of its files.

        Args:
            dataset_json: The file. If there is a plans.json beside it, as in folders of models and predictions, its
                reader is taken, because nnU-Net may have fallen back from its first choice when planning.
            example: A label file, from which nnU-Net chooses a reader if there are no plans.

        Raises:
            InputError: If either cannot be used; the message names the file.
        """
        content = read_dataset_json(dataset_json)
        manager = label_manager(content, str(dataset_json))
        reader = _planned_reader(dataset_json.with_name("plans.json")) or _chosen_reader(content, example)
        return cls(file_ending=content["file_ending"], reader=reader(), label_manager=manager, content=content)

    @property
    def regions(self) -> list[int] | list[tuple[int, ...]]:
        """The foreground labels, or with region-based training the regions."""
        manager = self.label_manager
        return manager.foreground_regions if manager.has_regions else manager.foreground_labels

    @property
    def label_values(self) -> tuple[int, ...]:
        """All labels with background, without the ignore label."""
        return tuple(int(value) for value in self.label_manager.all_labels)

    def mask_of(self, probabilities: np.ndarray) -> np.ndarray:
        """The label map that nnU-Net makes of a model's probabilities.

        Args:
            probabilities: Of K classes or regions, float (K, *S).

        Returns:
            Integer of shape S.

        Raises:
            InputError: If the dataset has another number of classes or regions.
        """
        expected = self.label_manager.num_segmentation_heads
        if len(probabilities) != expected:
            raise InputError(f"probabilities of {len(probabilities)} classes or regions instead of {expected}")
        return np.asarray(self.label_manager.convert_probabilities_to_segmentation(probabilities))

    @property
    def unit(self) -> str:
        """The unit of spacings: `"mm"`, or `"pixels"` for .png, .tif and .bmp, which have no physical size."""
        return "pixels" if isinstance(self.reader, NaturalImage2DIO) else "mm"

    @property
    def label_names(self) -> dict[int, str]:
        """The name of each label value, background included; with region-based training, the regions it lies in."""
        named: Mapping[str, int | Sequence[int]] = self.content["labels"]
        names = {}
        for label in self.label_values:
            # dataset.json may write a region of one label as a number or as a list.
            within = [
                name
                for name, value in named.items()
                if label in (value if isinstance(value, list | tuple) else [value])
            ]
            names[label] = " + ".join(within) or f"label {label}"
        return names

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the foreground labels, or with region-based training of the regions, in channel order."""
        if not self.label_manager.has_regions:
            return tuple(self.label_names[label] for label in self.label_manager.foreground_labels)
        # nnU-Net's order: all of them in that of dataset.json, without background and ignore label.
        return tuple(
            name for name, value in self.content["labels"].items() if name != "ignore" and value not in (0, [0])
        )

    def cases(self, folder: Path) -> list[str]:
        """The cases with a file in a folder, sorted."""
        files = (file for file in folder.glob(f"*{self.file_ending}") if not file.name.startswith("."))
        return sorted(file.name.removesuffix(self.file_ending) for file in files)

    def read(self, file: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """A label map of the dataset in the axis order of nnU-Net's readers, and its properties.

        Raises:
            InputError: See :func:`.read_labels`.
        """
        return read_labels(file, self.reader, (*self.label_values, self.label_manager.ignore_label))

    def read_values(self, file: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """A map of any finite numbers, in nnU-Net's dtype (float32), and its properties.

        Raises:
            InputError: See :func:`.read_values`.
        """
        return read_values(file, self.reader)

    def read_shares(self, file: Path) -> np.ndarray:
        """A map of shares or probabilities, float32, in [0, 1] as :func:`.write_values` writes it.

        Raises:
            InputError: See :func:`.read_values`.
        """
        values = self.read_values(file)[0]
        scale = integer_scale(self.file_ending, values.shape)
        return (values if scale is None else values / scale).astype(np.float32, copy=False)

    def read_like(
        self, file: Path, mask: np.ndarray, properties: Mapping[str, Any], *, of_dataset: bool = True
    ) -> np.ndarray:
        """A label map that must have the shape and the geometry of another.

        Args:
            file: The file.
            mask: The other map.
            properties: nnU-Net's properties of the other.
            of_dataset: Whether only labels of the dataset may occur, or any whole numbers.

        Raises:
            InputError: See :meth:`read`, and naming the file and all differences.
        """
        if of_dataset:
            labels, found = self.read(file)
        else:
            values, found = self.read_values(file)
            labels = values.astype(np.int64)
            if not np.array_equal(labels, values):
                raise InputError(f"{file} contains numbers that are not whole")
        differences = geometry_differences(found, properties, labels.shape)
        if labels.shape != mask.shape:
            differences.insert(0, f"shape {labels.shape} instead of {mask.shape}")
        if differences:
            raise InputError(f"{file} does not match its prediction: {'; '.join(differences)}")
        return labels

    def image_file(self, folder: Path, case: str, channel: int = 0) -> Path:
        """The file of one channel of a case's image, `<case>_0000<file_ending>`; RGB pictures have only that."""
        return folder / f"{case}_{channel:04d}{self.file_ending}"

    def image_files(self, folder: Path, case: str) -> list[Path]:
        """The files of a case's image in channel order, `<case>_0000<file_ending>` and so on; empty if there are none.

        Raises:
            InputError: If a channel before others is missing; the message names its file.
        """
        pattern = f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{self.file_ending}"
        return self._in_order(folder, case, folder.glob(pattern))

    def images(self, folder: Path, cases: Iterable[str]) -> dict[str, list[Path]]:
        """:meth:`image_files` of many cases, for which the folder is listed once.

        Raises:
            InputError: See :meth:`image_files`.
        """
        found: dict[str, list[Path]] = {case: [] for case in cases}
        length = len("_0000") + len(self.file_ending)
        for file in folder.iterdir():
            channel = file.name[-length : len(file.name) - len(self.file_ending)]
            case = file.name[:-length]
            if case in found and re.fullmatch("_[0-9]{4}", channel) and file.name.endswith(self.file_ending):
                found[case].append(file)
        return {case: self._in_order(folder, case, files) for case, files in found.items()}

    def _in_order(self, folder: Path, case: str, files: Iterable[Path]) -> list[Path]:
        found = {int(file.name.removesuffix(self.file_ending)[-4:]): file for file in files}
        missing = sorted(set(range(max(found, default=-1))) - set(found))
        if missing:
            raise InputError(f"{self.image_file(folder, case, missing[0])} is missing, but later channels exist")
        return [found[channel] for channel in sorted(found)]

    def check_images(self, folder: Path, cases: Sequence[str]) -> None:
        """Refuse a folder that lacks the image of any case.

        Raises:
            InputError: Naming the folder and the cases.
        """
        present = [case for case in cases if self.image_file(folder, case).is_file()]
        same_cases(f"cases without an image <case>_0000{self.file_ending} in {folder}", cases, present)

    def read_image(self, files: Sequence[Path]) -> np.ndarray:
        """The image, float32 (C, *S), of these files, one per channel.

        Raises:
            InputError: See :func:`.read_image`.
        """
        return read_image(files, self.reader)


def _planned_reader(plans_file: Path) -> type[BaseReaderWriter] | None:
    """The reader named in the plans; None without plans or without a name in them.

    Raises:
        InputError: If nnU-Net has no reader of that name.
    """
    name = read_plans_json(plans_file).get("image_reader_writer") if plans_file.is_file() else None
    if name is None:
        return None
    try:
        return recursive_find_reader_writer_by_name(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f'{plans_file}: nnU-Net has no "image_reader_writer" {name!r}') from error


def _chosen_reader(content: dict[str, Any], example: Path) -> type[BaseReaderWriter]:
    try:
        # nnU-Net tries its readers and prints their failures.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(content, str(example), verbose=False)
    except RuntimeError as error:
        raise InputError(f"nnU-Net has no reader for {example}") from error


def same_cases(what: str, cases: Sequence[str], others: Sequence[str]) -> None:
    """Refuse cases that are not among others.

    Raises:
        InputError: `what`, and all cases that are missing.
    """
    missing = sorted(set(cases) - set(others))
    if missing:
        raise InputError(f"{what} ({len(missing)}): {listed(missing, _CASES_LISTED)}")


def read_groups(file: Path, cases: Sequence[str], *, kind: str = "group", also: Collection[str] = ()) -> dict[str, Any]:
    """A JSON file that maps each case to its group, such as its patient.

    Args:
        file: The file.
        cases: The cases that must have a group.
        kind: What a group is called in messages.
        also: Cases whose groups are returned, too, where the file has them.

    Raises:
        InputError: If it is not such a file or lacks cases.
    """
    groups = read_json(file)
    if not isinstance(groups, dict):
        raise InputError(f"{file} must map cases to {kind}s, got a {type(groups).__name__}")
    validate(groups, _Groups, str(file))
    same_cases(f"cases without a {kind} in {file}", cases, list(groups))
    return {case: groups[case] for case in [*cases, *(case for case in also if case in groups)]}
