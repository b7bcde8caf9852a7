"""A folder of predicted masks with their deferral maps, opened for reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral import maps
from nnunetv2_deferral.dataset import DatasetFiles, read_dataset_json
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.text import listed


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
            InputError: If there are no masks, no deferral maps (a stock model), or maps of some masks are missing; all
                that is missing is listed.
        """
        index = maps.index_file(folder)
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
        if not index.is_file():
            raise InputError(
                f"{folder} has no deferral maps ({index} is missing): were its masks predicted by a stock model?"
            )
        entries = _read_index(index)
        candidates = [folder / "dataset.json", folder.parent.parent / "dataset.json"]
        found = dataset_json or next((file for file in candidates if file.is_file()), None)
        if found is None:
            raise InputError(f"there is no dataset.json in {folder}; give it with -djfile")
        ending = read_dataset_json(found)["file_ending"]
        masks = (file for file in sorted(folder.glob(f"*{ending}")) if file.is_file() and file.name[0] != ".")
        example = next(masks, None)
        if example is None:
            raise InputError(f"{folder} has no masks with the file ending {ending!r} of {found}")
        files = DatasetFiles.of(found, example)
        cases = tuple(files.cases(folder))
        files_of_maps = (path(folder, case, ending) for case in cases for path in maps.MAP_FILES)
        if missing := [str(file) for file in files_of_maps if not file.is_file()]:
            raise InputError(f"deferral maps are missing ({len(missing)}): {listed(missing, 10)}")
        return cls(folder=folder, files=files, experts=tuple(entries["model"]["experts"]), cases=cases, index=entries)

    @property
    def index_file(self) -> Path:
        """The deferral.json of the folder."""
        return maps.index_file(self.folder)

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
            InputError: If it names an expert that deferral.json does not.
        """
        file = maps.route_file(self.folder, case, self.files.file_ending)
        route = self.files.read(file)[0]
        if route.max(initial=0) > len(self.experts):
            raise InputError(
                f"{file} routes voxels to expert {route.max()}, but {self.index_file} names {len(self.experts)} experts"
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
            InputError: If the file cannot be read.
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
            InputError: If the file cannot be read.
        """
        return _read_probabilities(self.softmax_file(case))

    def expert(self, case: str) -> np.ndarray:
        """uint8 of shape S: whom to ask, in [1, J], if a voxel were deferred."""
        return self.files.read(maps.expert_file(self.folder, case, self.files.file_ending))[0].astype(np.uint8)


def _read_probabilities(file: Path) -> np.ndarray:
    try:
        return np.load(file)["probabilities"].astype(np.float32)
    except Exception as error:  # a zip that was cut short fails in several ways
        raise InputError(f"{file} cannot be read: {error}") from error


def _read_index(index: Path) -> dict[str, Any]:
    content = read_json(index)
    try:
        experts = content["model"]["experts"]
        cases = content["cases"].values()
        is_complete = all(set(experts) <= set(case["share"]) and "largest_gain" in case for case in cases)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{index} cannot be read: {error!r}") from error
    if not isinstance(experts, list) or not experts or not is_complete:
        raise InputError(f"{index} does not name the experts, their shares of every case and its largest gain")
    return content
