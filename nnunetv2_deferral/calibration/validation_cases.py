"""The validation cases of a trained model, for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_deferral.answers import ExpertAnswers, experts_of_set, trained_with
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import FOLDER
from nnunetv2_deferral.settings import resolve_settings


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
        """Find the cases and check that all files exist.

        Args:
            experiment: Dataset, configuration and folds.
            method: Trainer and plans.
            experts: The name of a set of simulated experts, or None for those that the model was trained with; raters'
                masks are read from `expertsTr` of the raw dataset.
            groups: For each case its group, such as its patient; None for each case by itself.

        Raises:
            InputError: If the model is not a deferral model, a fold has no validation or the maps of another model, or
                a case has no saved probabilities or no group.
        """
        self.experiment, self.model = experiment, experiment.model(method)
        plans = read_json(self.model / "plans.json")
        if "deferral" not in plans:
            raise InputError(f"{self.model} is not a deferral model: its plans.json has no deferral block")
        self.settings = resolve_settings(plans["deferral"])
        self._folders = {fold: self._open(experiment.validation(method, fold), method) for fold in experiment.folds}
        self.cases = [(fold, case) for fold, names in experiment.cases().items() for case in names]
        for fold, case in self.cases:
            folder = self._folders[fold]
            for file in (folder.mask_file(case), folder.routing_file(case), folder.softmax_file(case)):
                if not file.is_file():
                    raise InputError(
                        f"{file} is missing: calibration requires the masks and probabilities of all validation cases. "
                        f"Write them with nnUNetv2_train {experiment.dataset} {experiment.configuration} {fold} "
                        f"-tr {method.trainer} -p {method.plans} --val --npz"
                    )
        names = [case for _, case in self.cases]
        if lacking := [] if groups is None else sorted(set(names) - set(groups)):
            raise InputError(f"cases without a group: {', '.join(lacking)}")
        self._groups = {case: case for case in names} if groups is None else groups
        opened = next(iter(self._folders.values()))
        asked = trained_with(opened) if experts is None else experts_of_set(opened, experts)
        self.experts = ExpertAnswers.of_model(opened, asked, masks=experiment.raw / FOLDER)
        self.files = opened.files

    def __iter__(self) -> Iterator[EvaluatedCase]:
        for fold, case in self.cases:
            yield self.read(fold, case)

    def read(self, fold: int, case: str) -> EvaluatedCase:
        """Read a case.

        Raises:
            InputError: If a file cannot be read or does not match the prediction.
        """
        prediction = self.prediction(fold, case)
        reference = self.files.read_like(self.experiment.reference(case), prediction.model, prediction.properties)
        return EvaluatedCase(
            prediction=prediction,
            reference=reference,
            answers=self.experts.answers(case, reference, prediction.properties),
            ignore_label=self.files.label_manager.ignore_label,
        )

    def prediction(self, fold: int, case: str) -> PredictedCase:
        """The model's prediction for a case."""
        return self._folders[fold].case(case)

    def group(self, case: str) -> str:
        """The group of a case, such as its patient."""
        return str(self._groups[case])

    def voxel_weight(self, prediction: PredictedCase) -> np.ndarray:
        """The weight of voxels in a prediction, float32 that broadcasts to S, see :func:`.dice_weight`."""
        softmax = prediction.softmax
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
            raise InputError(f"{folder} contains the deferral maps of another model ({'; '.join(differing)})")
        return opened
