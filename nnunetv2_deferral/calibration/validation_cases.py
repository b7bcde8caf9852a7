"""The validation cases of a trained model, as calibration reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_deferral.answers import ExpertAnswers, experts_of_set, trained_with
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import FOLDER
from nnunetv2_deferral.settings import resolve_settings


@dataclass(frozen=True, kw_only=True)
class ValidationCase:
    """What a validation case tells.

    Attributes:
        name: The case.
        group: What it is held back with, such as its patient.
        reference: Label map, int64 of shape S.
        labels: int64 (J + 1, *S), the model's and the experts', `MISSING` where an expert has none.
        probabilities: float32 (J + 1, *S), of the model and the experts before calibration, NaN where nothing was
            predicted.
        valid: Bool of shape S, the voxels that were predicted and are not ignored.
        spacing_mm: Size of a voxel along each axis of S.
    """

    name: str
    group: str
    reference: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    valid: np.ndarray
    spacing_mm: tuple[float, ...]

    @property
    def right(self) -> np.ndarray:
        """Bool (J + 1, *S), whether model and experts are right."""
        return self.labels == self.reference

    @property
    def known(self) -> np.ndarray:
        """Bool (J + 1, *S), where that is known."""
        return self.valid & (self.labels != MISSING)


class ValidationCases:
    """The validation cases of the folds of a model, read one at a time."""

    def __init__(
        self,
        experiment: Experiment,
        method: Method,
        *,
        experts: str | None = None,
        groups: Mapping[str, Any] | None = None,
    ) -> None:
        """Find them, and refuse before anything is computed.

        Args:
            experiment: Dataset, configuration and folds.
            method: Trainer and plans.
            experts: The name of a set of simulated experts, or None for those that the model was trained with; the
                masks of raters are read from `expertsTr` of the raw dataset.
            groups: For each case its group, such as its patient; None for each by itself.

        Raises:
            InputError: For a model that is no deferral model, a fold without validation, maps of another model, or
                cases without saved probabilities.
        """
        self.experiment, self.model = experiment, experiment.model(method)
        plans = read_json(self.model / "plans.json")
        if "deferral" not in plans:
            raise InputError(f"{self.model} is no deferral model: its plans.json has no deferral block")
        self.settings = resolve_settings(plans["deferral"])
        self._folders = {fold: self._open(experiment.validation(method, fold), method) for fold in experiment.folds}
        self.cases = [(fold, case) for fold, names in experiment.cases().items() for case in names]
        for fold, case in self.cases:
            folder = self._folders[fold]
            for file in (folder.mask_file(case), folder.routing_file(case), folder.softmax_file(case)):
                if not file.is_file():
                    raise InputError(
                        f"{file} is missing: calibration needs the masks and probabilities of all validation cases. "
                        f"nnUNetv2_train {experiment.dataset} {experiment.configuration} {fold} -tr {method.trainer} "
                        f"-p {method.plans} --val --npz writes them"
                    )
        names = [case for _, case in self.cases]
        if lacking := [] if groups is None else sorted(set(names) - set(groups)):
            raise InputError(f"cases without a group: {', '.join(lacking)}")
        self._groups = {case: case for case in names} if groups is None else groups
        opened = next(iter(self._folders.values()))
        asked = trained_with(opened) if experts is None else experts_of_set(opened, experts)
        self.experts = ExpertAnswers.of_model(opened, asked, masks=experiment.raw / FOLDER)
        self.files = opened.files

    def __iter__(self) -> Iterator[ValidationCase]:
        for fold, case in self.cases:
            yield self.read(fold, case)

    def read(self, fold: int, case: str) -> ValidationCase:
        """Read a case.

        Raises:
            InputError: If a file cannot be read or does not fit.
        """
        folder = self._folders[fold]
        model, properties = folder.model(case)
        reference = self.files.read_like(self.experiment.reference(case), model, properties)
        answers = self.experts.answers(case, reference, properties)
        probabilities = self.routing(fold, case)
        if probabilities.shape != (len(answers) + 1, *model.shape):
            raise InputError(
                f"{folder.routing_file(case)} has shape {probabilities.shape} for {len(answers)} experts and a mask of "
                f"shape {model.shape}"
            )
        ignored = self.files.label_manager.ignore_label
        valid = ~np.isnan(probabilities[0])
        if ignored is not None:
            valid &= reference != ignored
        return ValidationCase(
            name=case,
            group=str(self._groups[case]),
            reference=reference,
            labels=np.concatenate((model[None], answers)),
            probabilities=probabilities,
            valid=valid,
            spacing_mm=tuple(float(size) for size in properties["spacing"]),
        )

    def routing(self, fold: int, case: str) -> np.ndarray:
        """The probabilities of model and experts before calibration, float32 (J + 1, *S), NaN where not predicted."""
        return self._folders[fold].routing(case)

    def softmax(self, fold: int, case: str) -> np.ndarray:
        """The model's probabilities, float32 (K, *S), of classes or regions."""
        return self._folders[fold].softmax(case)

    def voxel_weight(self, fold: int, case: str) -> np.ndarray:
        """What a voxel is worth in a prediction, float32 that broadcasts to S."""
        softmax = self.softmax(fold, case)
        foreground = softmax if self.files.label_manager.has_regions else softmax[1:]
        return dice_weight(torch.from_numpy(foreground)).numpy()[0]

    def _open(self, folder: Path, method: Method) -> PredictionFolder:
        opened = PredictionFolder.open(folder, self.model / "dataset.json")
        identity = opened.index["model"]
        expected = {
            "dataset": self.experiment.dataset,
            "plans": method.plans,
            "configuration": self.experiment.configuration,
            "trainer": method.trainer,
            "experts": list(self.settings.expert_names),
        }
        differing = [f"{key}: {identity.get(key)}" for key, value in expected.items() if identity.get(key) != value]
        if differing:
            raise InputError(f"{folder} holds the deferral maps of another model ({'; '.join(differing)})")
        return opened
