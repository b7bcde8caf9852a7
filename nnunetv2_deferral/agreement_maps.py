"""Layout and writing of the maps of a model that learned from several raters, beside a folder of predicted masks.

    <folder>/<case>.nii.gz                           the mask, written by nnU-Net
    <folder>/deferral/agreement/<case>.nii.gz        in [0, 1]: expected share of raters who mark the structure
    <folder>/deferral/disagreement/<case>.nii.gz     in [0, 1]: probability that raters do not agree about it
    <folder>/deferral/levels/<case>.npz              with --save_probabilities or --npz: for each structure, the
                                                     probabilities that 0, ..., K raters mark it
    <folder>/deferral/multi_rater.json               model with raters, structures, how it predicted, versions

With several foreground classes or regions each has a folder of its maps, such as `agreement/1/<case>.nii.gz`, with
numbers as in multi_rater.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.predicted_by import differing_predictions
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json, written_whole
from nnunetv2_deferral.image_files import MaskWriter, write_values
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.schema import Text, read_validated_json

AGREEMENT, DISAGREEMENT = "agreement", "disagreement"


@dataclass(frozen=True, kw_only=True)
class MultiRaterModel:
    """Identifies the model behind the maps of a folder, with its raters."""

    dataset: str
    plans: str
    configuration: str
    trainer: str | None
    raters: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The model as in multi_rater.json."""
        return asdict(self) | {"raters": list(self.raters)}


class _Model(TypedDict):
    dataset: Text
    plans: Text
    configuration: Text
    trainer: Text | None
    raters: list[Text]


class _Index(TypedDict):
    model: _Model
    prediction: NotRequired[dict[Text, Any]]  # not in those of earlier versions, nor beside maps of deferral


def index_file(folder: Path) -> Path:
    """The multi_rater.json of a folder."""
    return folder / maps.FOLDER / "multi_rater.json"


def levels_file(folder: Path, case: str) -> Path:
    """The probabilities of the levels of a case, key `probabilities`, float32 (F, K + 1, *S)."""
    return folder / maps.FOLDER / "levels" / f"{case}.npz"


def map_file(folder: Path, kind: str, case: str, file_ending: str, structure: int | None = None) -> Path:
    """A map of a case.

    Args:
        folder: The folder of the masks.
        kind: `AGREEMENT` or `DISAGREEMENT`.
        case: The case identifier.
        file_ending: The dataset's file ending.
        structure: The number of the structure, from 1, if there are several.
    """
    inner = folder / maps.FOLDER / kind
    return (inner if structure is None else inner / str(structure)) / f"{case}{file_ending}"


def map_files(folder: Path, kind: str, case: str, file_ending: str, num_structures: int) -> list[Path]:
    """The maps of a case, one for each structure; arguments as of :func:`map_file`."""
    numbers = [None] if num_structures == 1 else range(1, num_structures + 1)
    return [map_file(folder, kind, case, file_ending, number) for number in numbers]


def files_of_case(folder: Path, case: str, file_ending: str, num_structures: int) -> list[Path]:
    """The files that belong to the maps of a case, whether they exist or not."""
    of_maps = (map_files(folder, kind, case, file_ending, num_structures) for kind in (AGREEMENT, DISAGREEMENT))
    return [*(file for files in of_maps for file in files), levels_file(folder, case)]


def check_folder(folder: Path, model: MultiRaterModel | None, *, beside_deferral: bool = False) -> None:
    """Refuse a folder that contains maps of another model.

    Args:
        folder: The folder of the masks.
        model: The model that will write there; None for one without maps of agreement.
        beside_deferral: Whether the model writes deferral maps, too.

    Raises:
        InputError: Naming the folder and the difference.
    """
    file = index_file(folder)
    remedy = f"Use another folder, or remove {file.parent}"
    if model is not None and not beside_deferral and maps.index_file(folder).is_file():
        raise InputError(f"{folder} already contains the deferral maps of another model. {remedy}")
    if not file.is_file():
        return
    if model is None:
        raise InputError(f"{folder} already contains the agreement maps of another model. {remedy}")
    theirs, ours = read_model(folder), model.to_dict()
    differing = [f"{key}: {theirs[key]} there, {value} now" for key, value in ours.items() if theirs[key] != value]
    if differing:
        raise InputError(
            f"{folder} already contains the agreement maps of another model ({'; '.join(differing)}). {remedy}"
        )


def check_prediction(folder: Path, prediction: Mapping[str, Any]) -> None:
    """Refuse a folder whose cases the same model predicted in another manner, see :func:`.maps.check_prediction`.

    Raises:
        InputError: Naming the folder and the difference.
    """
    file = index_file(folder)
    if not file.is_file():
        return
    if differing := differing_predictions(read_validated_json(file, _Index).get("prediction"), prediction):
        raise maps.in_another_manner(folder, differing)


def read_model(folder: Path) -> dict[str, Any]:
    """The model behind the maps of a folder, as in its multi_rater.json.

    Raises:
        InputError: If the file is missing, cannot be read, or is not as :class:`_Index`.
    """
    model: dict[str, Any] = read_validated_json(index_file(folder), _Index)["model"]
    return model


@dataclass(frozen=True, kw_only=True)
class AgreementFolder:
    """Writes the maps of a folder of masks; several processes may write to the same folder.

    Attributes:
        folder: The folder of the masks.
        file_ending: The dataset's file ending, such as `.nii.gz`.
        writer: nnU-Net's reader-writer for this dataset.
        model: The model behind the maps.
        structures: The names of the F foreground classes or regions.
        prediction: How the cases are predicted, see :func:`check_prediction`; empty if that is not known, or noted with
            the maps of deferral.
    """

    folder: Path
    file_ending: str
    writer: MaskWriter
    model: MultiRaterModel
    structures: Sequence[str]
    prediction: Mapping[str, Any] = field(default_factory=dict)

    def write(
        self,
        case: str,
        found: Mapping[str, np.ndarray],
        properties: dict[str, Any],
        levels: np.ndarray | None = None,
    ) -> None:
        """Write the maps of a case.

        Args:
            case: The case identifier.
            found: For `AGREEMENT` and `DISAGREEMENT`, float32 (F, *S) in the axis order of nnU-Net's writers.
            properties: nnU-Net's properties of the case, including its geometry.
            levels: The probabilities of the levels, float32 (F, K + 1, *S), to be saved; None to save none.
        """
        if levels is not None:
            file = levels_file(self.folder, case)
            with written_whole(file.parent) as scratch:
                np.savez_compressed(scratch / file.name, probabilities=levels)
        for kind, channels in found.items():
            files = map_files(self.folder, kind, case, self.file_ending, len(self.structures))
            for file, values in zip(files, channels, strict=True):
                write_values(values, 1, file, self.writer, properties)
        self._enter()

    def _enter(self) -> None:
        file = index_file(self.folder)
        content: dict[str, Any] = {
            "model": self.model.to_dict(),
            "structures": {str(number): name for number, name in enumerate(self.structures, 1)},
            "versions": versions("torch"),
        }
        content = json.loads(json.dumps(content))  # to compare
        there = read_json(file) if file.is_file() else {}
        content |= maps.noted_prediction(there, self.prediction)
        if there == content:
            return
        with FileLock(file.with_name(".multi_rater.json.lock")):
            check_prediction(self.folder, self.prediction)
            write_json(content, file)
