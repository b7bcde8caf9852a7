"""Layout, writing and reading of the masks of single folds beside the masks of their ensemble.

    <folder>/<case>.nii.gz                               the ensemble's mask, written by nnU-Net
    <folder>/deferral/folds/<fold>/<case>.nii.gz         the mask that this fold predicts alone; of a single fold,
                                                         <fold> is `unmirrored`, `mirrored_0`, `mirrored_0_1`, ...: the
                                                         mask of its prediction mirrored along these axes
    <folder>/deferral/mutual_information/<case>.nii.gz   in [0, 1]: how much the folds' probabilities contradict each
                                                         other, see :class:`.MutualInformation`
    <folder>/deferral/folds.json                         the folds, their model, how it predicted, versions

The model may be any of nnU-Net's. The folds' probabilities are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.predicted_by import differing_predictions
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json
from nnunetv2_deferral.image_files import MaskWriter, write_labels, write_values
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.schema import Text, read_validated_json
from nnunetv2_deferral.text import differences

_UNMIRRORED = "unmirrored"
_NAMES = rf"^(all|[0-9]+|{_UNMIRRORED}|mirrored(_[0-9])+)$"


@dataclass(frozen=True, kw_only=True)
class EnsembleIdentity:
    """Identifies the ensemble behind the masks of a folder.

    Attributes:
        folds: The names of its folds in nnU-Net's order, or of the mirrored predictions of a single fold.
        prediction: How it predicted, see :func:`.maps.check_prediction`.
    """

    dataset: str
    plans: str
    configuration: str
    trainer: str | None
    folds: tuple[str, ...]
    prediction: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The ensemble as in folds.json, where `prediction` is an entry of its own."""
        return {key: value for key, value in asdict(self).items() if key != "prediction"} | {"folds": list(self.folds)}


class _Ensemble(TypedDict):
    dataset: Text
    plans: Text
    configuration: Text
    trainer: Text | None
    folds: Annotated[list[Annotated[str, Field(pattern=_NAMES)]], Field(min_length=2)]


class _Index(TypedDict):
    ensemble: _Ensemble
    prediction: NotRequired[dict[Text, Any]]  # not in those of earlier versions


def mirrored_name(axes: Sequence[int]) -> str:
    """The name, in place of a fold's, of the prediction mirrored along some axes of the preprocessed image."""
    return "_".join(("mirrored", *map(str, axes))) if axes else _UNMIRRORED


def are_mirrored(folders: Iterable[str | Path]) -> bool:
    """Whether masks in these folders, each of a fold, are of mirrored predictions."""
    return any(Path(folder).name == _UNMIRRORED for folder in folders)


def index_file(folder: Path) -> Path:
    """The folds.json of a folder of masks."""
    return folder / maps.FOLDER / "folds.json"


def fold_folder(folder: Path, fold: str) -> Path:
    """The folder of the masks of a fold."""
    return folder / maps.FOLDER / "folds" / fold


def fold_mask_file(folder: Path, fold: str, case: str, file_ending: str) -> Path:
    """The mask of a case that a fold predicts alone."""
    return fold_folder(folder, fold) / f"{case}{file_ending}"


def information_file(folder: Path, case: str, file_ending: str) -> Path:
    """The mutual information of a case."""
    return folder / maps.FOLDER / "mutual_information" / f"{case}{file_ending}"


def files_of_case(folder: Path, folds: Iterable[str], case: str, file_ending: str) -> list[Path]:
    """The files that are written for a case."""
    return [
        *(fold_mask_file(folder, fold, case, file_ending) for fold in folds),
        information_file(folder, case, file_ending),
    ]


def read_folds(folder: Path) -> tuple[str, ...]:
    """The names of the folds of which a folder has the masks; empty if it has none.

    Raises:
        InputError: If folds.json cannot be read or is not as written by :class:`FoldsFolder`; the message names it.
    """
    file = index_file(folder)
    if not file.is_file():
        return ()
    content: Mapping[str, Any] = read_validated_json(file, _Index)
    return tuple(content["ensemble"]["folds"])


def folds_of_all_cases(folder: Path, cases: Sequence[str], file_ending: str) -> tuple[str, ...]:
    """The names of the folds if their masks and the mutual information are there for all cases; otherwise empty.

    Raises:
        InputError: See :func:`read_folds`.
    """
    folds = read_folds(folder)
    complete = all(file.is_file() for case in cases for file in files_of_case(folder, folds, case, file_ending))
    return folds if complete else ()


def is_of_one_fold(folder: Path) -> bool:
    """Whether this is the folder of the masks of a fold, inside of that of an ensemble."""
    found = folder.absolute()
    outer = found.parents[min(2, len(found.parents) - 1)]
    return fold_folder(outer, found.name) == found and index_file(outer).is_file()


def check_folder(folder: Path, ensemble: EnsembleIdentity | None) -> None:
    """Refuse a folder that contains the masks of other folds, or of the same predicted in another manner.

    Args:
        folder: The folder of the masks.
        ensemble: The ensemble that will write there; None for a prediction without masks of folds.

    Raises:
        InputError: Naming the folder and the difference, or folds.json if it cannot be read.
    """
    file = index_file(folder)
    if not file.is_file():
        return
    theirs = read_validated_json(file, _Index)
    differing = ["these are predicted without"]
    if ensemble is not None:
        differing = differences(theirs["ensemble"], ensemble.to_dict())
        differing += differing_predictions(theirs.get("prediction"), ensemble.prediction)
    if differing:
        raise InputError(
            f"{folder} already contains the masks of folds of another prediction ({'; '.join(differing)}). Use another "
            f"folder, or remove {file}, {file.parent / 'folds'} and {file.parent / 'mutual_information'}"
        )


@dataclass(frozen=True, kw_only=True)
class FoldsFolder:
    """Writes the masks of folds beside the ensemble's; several processes may write to the same folder.

    Attributes:
        folder: The folder of the ensemble's masks.
        file_ending: The dataset's file ending, such as `.nii.gz`.
        writer: nnU-Net's reader-writer for this dataset.
        ensemble: The ensemble.
    """

    folder: Path
    file_ending: str
    writer: MaskWriter
    ensemble: EnsembleIdentity

    def enter(self) -> None:
        """Write folds.json, before the first case."""
        content = json.loads(json.dumps({"ensemble": self.ensemble.to_dict(), "versions": versions("torch")}))
        file = index_file(self.folder)
        there = read_json(file) if file.is_file() else {}
        content |= maps.noted_prediction(there, self.ensemble.prediction)
        if there != content:
            write_json(content, file)

    def write_mask(self, case: str, fold: str, mask: np.ndarray, properties: dict[str, Any]) -> None:
        """Write the mask of a fold.

        Args:
            case: The case identifier.
            fold: The fold.
            mask: uint8 or uint16, in the axis order of nnU-Net's writers: (Z, Y, X) or (1, Y, X).
            properties: nnU-Net's properties of the case, including its geometry.
        """
        write_labels(mask, fold_mask_file(self.folder, fold, case, self.file_ending), self.writer, properties)

    def write_information(self, case: str, information: np.ndarray, properties: dict[str, Any]) -> None:
        """Write the mutual information of a case, float32 in [0, 1]; otherwise as :meth:`write_mask`."""
        file = information_file(self.folder, case, self.file_ending)
        write_values(information, 1, file, self.writer, properties)
