"""Predictions of one or several folds for the same cases, with saved probabilities, averaged case by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles, same_cases
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.folds import is_of_one_fold
from nnunetv2_deferral.predictions import MaskFolder, files_of_masks, read_probabilities
from nnunetv2_deferral.text import listed

_ROUNDING = 1e-3  # of probabilities in half precision


@dataclass(frozen=True)
class EnsembleCase:
    """A case as an ensemble predicts it.

    Attributes:
        prediction: Mask, of several folders that of their mean, and geometry.
        probabilities: float32 (K, *S): the mean over the folders.
    """

    prediction: PredictedCase
    probabilities: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Folders of predictions of the same cases.

    Attributes:
        folders: The folders, at least one.
        files: File format and labels of the dataset.
        cases: The cases, sorted.
    """

    folders: tuple[MaskFolder, ...]
    files: DatasetFiles
    cases: tuple[str, ...]

    @classmethod
    def open(cls, folders: Sequence[Path], dataset_json: Path | None = None) -> Ensemble:
        """Open folders of `nnUNetv2_predict --save_probabilities`, one per fold, and check that they are complete.

        Args:
            folders: The folders.
            dataset_json: The dataset.json of the model; None for the one in the first folder.

        Raises:
            InputError: If a folder is missing or given twice, the cases of two folders differ, probabilities are
                missing (also in the folders of folds of one prediction), or the dataset has no foreground.
        """
        if len({folder.resolve() for folder in folders}) != len(folders) or not folders:
            raise InputError(f"folders of folds must be distinct, got {', '.join(map(str, folders)) or 'none'}")
        opened = []
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"the folder {folder} does not exist")
            if is_of_one_fold(folder):
                raise InputError(
                    f"{folder} has the masks of a fold only: a prediction of all folds does not keep the probabilities "
                    "of each. Predict with each fold separately (-f) and --save_probabilities"
                )
            files = files_of_masks(folder, dataset_json_of(folders[0], dataset_json))
            opened.append(MaskFolder(folder=folder, files=files, cases=tuple(files.cases(folder))))
        first = opened[0]
        for other in opened[1:]:
            same_cases(f"cases of {first.folder} that are not in {other.folder}", first.cases, other.cases)
            same_cases(f"cases of {other.folder} that are not in {first.folder}", other.cases, first.cases)
        missing = [str(file) for each in opened for file in map(each.softmax_file, each.cases) if not file.is_file()]
        if missing:
            raise InputError(
                f"probabilities are missing ({len(missing)}): {listed(missing)}. Predict with --save_probabilities"
            )
        if not first.files.class_names:
            raise InputError(
                f"the dataset of {first.folder} has no class but the background, so there is nothing to ask"
            )
        return cls(folders=tuple(opened), files=first.files, cases=first.cases)

    def read(self, case: str) -> EnsembleCase:
        """The mean prediction for a case.

        Raises:
            InputError: If a file cannot be read, or has another shape or number of classes than the mask and the
                labels; the message names it.
        """
        first = self.folders[0]
        mask, properties = self.files.read(first.mask_file(case))
        heads = self.files.label_manager.num_segmentation_heads
        total = np.zeros((heads, *mask.shape), dtype=np.float32)
        for folder in self.folders:
            file = folder.softmax_file(case)
            found = read_probabilities(file)
            if found.shape != total.shape:
                raise InputError(
                    f"{file} has shape {found.shape}, but {heads} classes of the image of {case} need {total.shape}"
                )
            lowest, highest = float(found.min()), float(found.max())
            if not (lowest >= -_ROUNDING and highest <= 1 + _ROUNDING):  # also for NaN
                raise InputError(f"{file}: probabilities must lie in [0, 1], got {lowest:g} to {highest:g}")
            total += np.clip(found, 0, 1)
        total /= len(self.folders)
        if len(self.folders) > 1:
            mask = self.files.mask_of(total).astype(mask.dtype)
        return EnsembleCase(PredictedCase(case, model=mask, properties=properties), total)


def dataset_json_of(folder: Path, given: Path | None = None) -> Path:
    """The dataset.json that is given, or the one that nnU-Net writes to the folder of a prediction.

    Raises:
        InputError: If there is none.
    """
    found = folder / "dataset.json" if given is None else given
    if not found.is_file():
        raise InputError(f"there is no dataset.json in {folder}; specify it with -djfile")
    return found


def foreground(probabilities: np.ndarray, files: DatasetFiles) -> np.ndarray:
    """The channels (C, *S) of the classes of :attr:`.DatasetFiles.class_names`."""
    return probabilities if files.label_manager.has_regions else probabilities[1:]
