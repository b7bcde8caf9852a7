"""A folder of predicted masks with their deferral maps, opened for reading."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_deferral import maps
from nnunetv2_deferral.calibration.model import ModelCalibration
from nnunetv2_deferral.raters import geometry_differences


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """How the label files of a dataset are read and what is in them.

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
        """What a dataset.json says, and the reader that can read `example`.

        Raises:
            ValueError: If either is of no use; the message names the file.
        """
        try:
            content = json.loads(dataset_json.read_text())
            manager = LabelManager(content["labels"], content.get("regions_class_order"))
            ending = content["file_ending"]
        except (OSError, KeyError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{dataset_json} is no usable dataset.json: {error!r}") from error
        try:
            # nnU-Net tries its readers out and prints their failures.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader = determine_reader_writer_from_dataset_json(content, str(example), verbose=False)
        except RuntimeError as error:
            raise ValueError(f"nnU-Net has no reader for {example}") from error
        return cls(file_ending=ending, reader=reader(), label_manager=manager, content=content)

    @property
    def regions(self) -> list[int] | list[tuple[int, ...]]:
        """The foreground labels, or with region-based training the regions."""
        manager = self.label_manager
        return manager.foreground_regions if manager.has_regions else manager.foreground_labels

    @property
    def label_values(self) -> tuple[int, ...]:
        """All labels with background, without the ignore label."""
        return tuple(int(value) for value in self.label_manager.all_labels)

    def cases(self, folder: Path) -> list[str]:
        """The cases whose files lie in a folder, sorted."""
        files = (file for file in folder.glob(f"*{self.file_ending}") if not file.name.startswith("."))
        return sorted(file.name.removesuffix(self.file_ending) for file in files)

    def read(self, file: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """A label map, int64 in the axis order of nnU-Net's readers, and its properties.

        Raises:
            ValueError: See :meth:`read_values`.
        """
        values, properties = self.read_values(file)
        return np.rint(values).astype(np.int64), properties

    def read_values(self, file: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """:meth:`read` for a map of any numbers, in nnU-Net's dtype (float32).

        Raises:
            ValueError: If the file is missing, cannot be read, or has more than one channel.
        """
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        try:
            values, properties = self.reader.read_seg(str(file))
        except Exception as error:  # readers fail in their own ways on a file that is cut short or of another kind
            raise ValueError(f"{file} cannot be read: {error}") from error
        if values.shape[0] != 1:
            raise ValueError(f"{file} is no label map of one channel: nnU-Net reads shape {values.shape}")
        return values[0], properties

    def read_like(self, file: Path, mask: np.ndarray, properties: Mapping[str, Any]) -> np.ndarray:
        """A label map that must have the shape and the geometry of another.

        Raises:
            ValueError: See :meth:`read`, and naming the file and all in which it differs.
        """
        labels, found = self.read(file)
        differences = geometry_differences(found, properties)
        if labels.shape != mask.shape:
            differences.insert(0, f"shape {labels.shape} instead of {mask.shape}")
        if differences:
            raise ValueError(f"{file} does not fit its prediction: {'; '.join(differences)}")
        return labels


@dataclass(frozen=True, kw_only=True)
class PredictionFolder:
    """Masks and deferral maps of a model.

    Attributes:
        folder: The folder of the masks.
        files: How they are read.
        experts: The names of the experts in routing order.
        cases: The cases with a mask, sorted.
        index: The content of deferral.json.
    """

    folder: Path
    files: DatasetFiles
    experts: tuple[str, ...]
    cases: tuple[str, ...]
    index: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, dataset_json: Path | None = None) -> PredictionFolder:
        """Open a folder that nnUNetv2_predict or a final validation has written.

        Args:
            folder: The folder of the masks.
            dataset_json: The dataset.json of the model; None takes the one that nnU-Net puts into the folder of a
                prediction, or into the model folder above a validation.

        Raises:
            ValueError: If there are no masks, no deferral maps (a stock model), or maps of some masks are missing; all
                that is missing is listed.
        """
        index = maps.index_file(folder)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        if not index.is_file():
            raise ValueError(
                f"{folder} has no deferral maps ({index} is missing): were its masks predicted by a stock model?"
            )
        entries = _read_index(index)
        candidates = [folder / "dataset.json", folder.parent.parent / "dataset.json"]
        found = dataset_json or next((file for file in candidates if file.is_file()), None)
        if found is None:
            raise ValueError(f"there is no dataset.json in {folder}; give it with -djfile")
        ending = _file_ending(found)
        masks = (file for file in sorted(folder.glob(f"*{ending}")) if file.is_file() and file.name[0] != ".")
        example = next(masks, None)
        if not ending or example is None:
            raise ValueError(f"{folder} has no masks with the file ending {ending!r} of {found}")
        files = DatasetFiles.of(found, example)
        cases = tuple(files.cases(folder))
        files_of_maps = (path(folder, case, ending) for case in cases for path in maps.MAP_FILES)
        if missing := [str(file) for file in files_of_maps if not file.is_file()]:
            raise ValueError(_list("deferral maps are missing", missing))
        return cls(folder=folder, files=files, experts=tuple(entries["model"]["experts"]), cases=cases, index=entries)

    def asked(self, case: str | None = None) -> tuple[str, ...]:
        """The experts whom any voxel of a case, or of all cases, was routed to, as deferral.json has it."""
        cases = self.cases if case is None else (case,)
        shares = [entry["share"] for name, entry in self.index["cases"].items() if name in cases]
        return tuple(expert for expert in self.experts if any(share[expert] > 0 for share in shares))

    def mask_file(self, case: str) -> Path:
        """The model's mask."""
        return self.folder / f"{case}{self.files.file_ending}"

    def model(self, case: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The model's label map, int64 of shape S, and nnU-Net's properties of its file."""
        return self.files.read(self.mask_file(case))

    def route(self, case: str) -> np.ndarray:
        """uint8 of shape S: 0 the model, j expert j.

        Raises:
            ValueError: If it names an expert that deferral.json does not.
        """
        file = maps.route_file(self.folder, case, self.files.file_ending)
        route = self.files.read(file)[0]
        if route.max(initial=0) > len(self.experts):
            raise ValueError(
                f"{file} routes voxels to expert {route.max()}, but {maps.index_file(self.folder)} names "
                f"{len(self.experts)} experts"
            )
        return route.astype(np.uint8)

    def probability(self, case: str) -> np.ndarray:
        """float32 of shape S in [0, 1]: the probability that a voxel is deferred."""
        values, _ = self.files.read_values(maps.probability_file(self.folder, case, self.files.file_ending))
        return (values / (maps.full_scale(self.files.file_ending, values.shape) or 1)).astype(np.float32)

    def gain(self, case: str) -> np.ndarray:
        """float32 of shape S, not negative: what asking the expert of a voxel is expected to add to the case's Dice."""
        values, _ = self.files.read_values(maps.gain_file(self.folder, case, self.files.file_ending))
        scale = maps.full_scale(self.files.file_ending, values.shape)
        if scale is None:
            return values.astype(np.float32)
        return (values * (self.index["cases"][case]["largest_gain"] / scale)).astype(np.float32)

    def routing_file(self, case: str) -> Path:
        """The routing probabilities, which are saved with the model's (`--save_probabilities`, `--npz`)."""
        return maps.routing_file(self.folder, case)

    def routing(self, case: str) -> np.ndarray:
        """The J + 1 routing probabilities before calibration, float32 (J + 1, *S), NaN where nothing was predicted.

        Raises:
            ValueError: If the file cannot be read.
        """
        return _read_probabilities(self.routing_file(case))

    @property
    def calibration(self) -> ModelCalibration | None:
        """What the maps were calibrated with."""
        content = self.index.get("calibration")
        return None if content is None else ModelCalibration.from_dict(content, self.experts)

    def softmax_file(self, case: str) -> Path:
        """The model's probabilities, which nnU-Net saves when it is asked to (`--save_probabilities`, `--npz`)."""
        return self.folder / f"{case}.npz"

    def softmax(self, case: str) -> np.ndarray:
        """The model's probabilities (K, *S), float32: of classes, or with region-based training of regions.

        Raises:
            ValueError: If the file cannot be read.
        """
        return _read_probabilities(self.softmax_file(case))

    def expert(self, case: str) -> np.ndarray:
        """uint8 of shape S: whom to ask, in [1, J], if a voxel were deferred."""
        return self.files.read(maps.expert_file(self.folder, case, self.files.file_ending))[0].astype(np.uint8)


def same_cases(what: str, cases: Sequence[str], others: Sequence[str]) -> None:
    """Refuse cases that are not among others.

    Raises:
        ValueError: `what`, and all cases that are missing.
    """
    missing = sorted(set(cases) - set(others))
    if missing:
        raise ValueError(_list(what, missing))


def read_groups(file: Path, cases: Sequence[str]) -> dict[str, Any]:
    """A JSON file that maps each case to its group, such as its patient.

    Raises:
        ValueError: If it is not such a file or lacks cases.
    """
    try:
        groups = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(groups, dict):
        raise ValueError(f"{file} must map cases to groups, got a {type(groups).__name__}")
    same_cases(f"cases without a group in {file}", cases, list(groups))
    return {case: groups[case] for case in cases}


def _read_probabilities(file: Path) -> np.ndarray:
    try:
        return np.load(file)["probabilities"].astype(np.float32)
    except Exception as error:  # a zip that was cut short fails in several ways
        raise ValueError(f"{file} cannot be read: {error}") from error


def _read_index(index: Path) -> dict[str, Any]:
    try:
        content = json.loads(index.read_text())
        experts = content["model"]["experts"]
        cases = content["cases"].values()
        is_complete = all(set(experts) <= set(case["share"]) and "largest_gain" in case for case in cases)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index} cannot be read: {error!r}") from error
    if not isinstance(experts, list) or not experts or not is_complete:
        raise ValueError(f"{index} does not name the experts, their shares of every case and its largest gain")
    return content


def _file_ending(dataset_json: Path) -> str:
    try:
        return json.loads(dataset_json.read_text())["file_ending"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{dataset_json} is no usable dataset.json: {error!r}") from error


def _list(what: str, items: Sequence[str]) -> str:
    more = f" and {len(items) - 10} more" if len(items) > 10 else ""
    return f"{what} ({len(items)}): {', '.join(items[:10])}{more}"
