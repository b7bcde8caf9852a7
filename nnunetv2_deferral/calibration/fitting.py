"""Fitting a model's probabilities and budget thresholds on its validation cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunetv2_deferral.benchmark.experiment import Experiment, Method, read_json
from nnunetv2_deferral.calibration.fit import Fit, fit
from nnunetv2_deferral.calibration.maps import IDENTITY, CalibrationMap, apply
from nnunetv2_deferral.calibration.model import CALIBRATION_KEY, FittedThresholds, ModelCalibration
from nnunetv2_deferral.calibration.statistics import HeadStatistics
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.decision.assignment import thresholds_within_limits
from nnunetv2_deferral.decision.decide import image_gains
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.evaluation.reliability import ReliabilityStatistics
from nnunetv2_deferral.files import without_nan, write_json
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.panel import Panel, experts_of_set, trained_with
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import FOLDER
from nnunetv2_deferral.rules import ONE_VS_ALL
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
        counts: Bool of shape S, the voxels that were predicted and are not ignored.
        spacing_mm: Size of a voxel along each axis of S.
    """

    name: str
    group: str
    reference: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    counts: np.ndarray
    spacing_mm: tuple[float, ...]

    @property
    def right(self) -> np.ndarray:
        """Bool (J + 1, *S), whether model and experts are right."""
        return self.labels == self.reference

    @property
    def known(self) -> np.ndarray:
        """Bool (J + 1, *S), where that is known."""
        return self.counts & (self.labels != MISSING)


class ValidationCases:
    """The validation cases of the folds of a model, read one at a time."""

    def __init__(
        self,
        experiment: Experiment,
        method: Method,
        *,
        panel: str | None = None,
        groups: Mapping[str, Any] | None = None,
    ) -> None:
        """Find them, and refuse before anything is computed.

        Args:
            experiment: Dataset, configuration and folds.
            method: Trainer and plans.
            panel: The name of a set of simulated experts, or None for those that the model was trained with; the masks
                of raters are read from `expertsTr` of the raw dataset.
            groups: For each case its group, such as its patient; None for each by itself.

        Raises:
            ValueError: For a model that is no deferral model, a fold without validation, maps of another model, or
                cases without saved probabilities.
        """
        self.experiment, self.model = experiment, experiment.model(method)
        plans = read_json(self.model / "plans.json")
        if "deferral" not in plans:
            raise ValueError(f"{self.model} is no deferral model: its plans.json has no deferral block")
        self.settings = resolve_settings(plans["deferral"])
        self._folders = {fold: self._open(experiment.validation(method, fold), method) for fold in experiment.folds}
        self.cases = [(fold, case) for fold, names in experiment.cases().items() for case in names]
        for fold, case in self.cases:
            folder = self._folders[fold]
            for file in (folder.mask_file(case), folder.routing_file(case), folder.softmax_file(case)):
                if not file.is_file():
                    raise ValueError(
                        f"{file} is missing: calibration needs the masks and probabilities of all validation cases. "
                        f"nnUNetv2_train {experiment.dataset} {experiment.configuration} {fold} -tr {method.trainer} "
                        f"-p {method.plans} --val --npz writes them"
                    )
        names = [case for _, case in self.cases]
        if lacking := [] if groups is None else sorted(set(names) - set(groups)):
            raise ValueError(f"cases without a group: {', '.join(lacking)}")
        self._groups = {case: case for case in names} if groups is None else groups
        opened = next(iter(self._folders.values()))
        experts = trained_with(opened) if panel is None else experts_of_set(opened, panel)
        self.panel = Panel.of_model(opened, experts, masks=experiment.raw / FOLDER)
        self.files = opened.files

    def __iter__(self) -> Iterator[ValidationCase]:
        for fold, case in self.cases:
            yield self.read(fold, case)

    def read(self, fold: int, case: str) -> ValidationCase:
        """Read a case.

        Raises:
            ValueError: If a file cannot be read or does not fit.
        """
        folder = self._folders[fold]
        model, properties = folder.model(case)
        reference = self.files.read_like(self.experiment.reference(case), model, properties)
        answers = self.panel.answers(case, reference, properties)
        probabilities = self.routing(fold, case)
        if probabilities.shape != (len(answers) + 1, *model.shape):
            raise ValueError(
                f"{folder.routing_file(case)} has shape {probabilities.shape} for {len(answers)} experts and a mask of "
                f"shape {model.shape}"
            )
        ignored = self.files.label_manager.ignore_label
        counts = ~np.isnan(probabilities[0])
        if ignored is not None:
            counts &= reference != ignored
        return ValidationCase(
            name=case,
            group=str(self._groups[case]),
            reference=reference,
            labels=np.concatenate((model[None], answers)),
            probabilities=probabilities,
            counts=counts,
            spacing_mm=tuple(float(size) for size in properties["spacing"]),
        )

    def routing(self, fold: int, case: str) -> np.ndarray:
        """The probabilities of model and experts before calibration, float32 (J + 1, *S), NaN where not predicted."""
        return self._folders[fold].routing(case)

    def softmax(self, fold: int, case: str) -> np.ndarray:
        """The model's probabilities, float32 (K, *S), of classes or regions."""
        return self._folders[fold].softmax(case)

    def worth(self, fold: int, case: str) -> np.ndarray:
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
            raise ValueError(f"{folder} holds the deferral maps of another model ({'; '.join(differing)})")
        return opened


def calibrate(cases: ValidationCases, limits: Sequence[Limits] = (), *, maps: bool = True) -> ModelCalibration:
    """Fit calibration maps, then thresholds for limits over the dataset.

    Args:
        cases: To fit on.
        limits: The limits to fit thresholds for.
        maps: Whether to fit calibration maps; without, probabilities stay as they are.

    Returns:
        What was fitted. Its report has for each head the map, held-back log losses, and bias and expected calibration
        error before and after, over all voxels and over the least certain.

    Raises:
        ValueError: If model or an expert is known in fewer than two groups of cases, or the objective has no
            probabilities to calibrate.
    """
    if maps and cases.settings.objective != ONE_VS_ALL:
        raise ValueError(
            f'the probabilities of the objective "{cases.settings.objective}" are those of routes, not of being right, '
            "so there is nothing to calibrate them by. Train with one-vs-all (_OvA), or fit thresholds alone: "
            "--thresholds_only -budgets ..."
        )
    names = ("model", *cases.settings.expert_names)
    every = [HeadStatistics() for _ in names]
    for case in tqdm(cases, total=len(cases.cases), desc="Reading", unit="case"):
        right, known = case.right, case.known
        for head, statistics in enumerate(every):
            statistics.update(case.group, case.probabilities[head], right[head], known[head])
    fits = [_fit(name, found) if maps else Fit(IDENTITY, {}) for name, found in zip(names, every, strict=True)]
    heads = tuple(each.map for each in fits)
    report: dict[str, Any] = {
        "dataset": cases.experiment.dataset,
        "folds": list(cases.experiment.folds),
        "cases": [case for _, case in cases.cases],
        "experts": cases.panel.to_dict(),
        "heads": {},
    }
    if maps:
        kept = ReliabilityStatistics(names, heads)
        for case in tqdm(cases, total=len(cases.cases), desc="Checking", unit="case"):
            nobody = np.zeros(case.reference.shape, dtype=np.uint8)
            kept.update(case.name, case.probabilities, case.right, case.known, nobody)
        found = kept.summary()["heads"]
        report["heads"] = {
            name: {
                "map": fits[head].map.to_dict(),
                "log_loss": fits[head].log_loss,
                **{part: _errors(found[name][part]) for part in ("all", "least_certain")},
            }
            for head, name in enumerate(names)
        }
    thresholds = _fit_thresholds(cases, heads, limits) if limits else ()
    return ModelCalibration(
        experts=cases.settings.expert_names, heads=heads, thresholds=thresholds, report=without_nan(report)
    )


def write_calibration(calibration: ModelCalibration, model: Path) -> Path:
    """Write what was fitted into the plans of a model folder, whole or not at all; returns the file."""
    file = model / "plans.json"
    write_json(read_json(file) | {CALIBRATION_KEY: calibration.to_dict()}, file)
    return file


def _fit(name: str, statistics: HeadStatistics) -> Fit:
    try:
        return fit(statistics)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def case_gains(cases: ValidationCases, fold: int, case: str, heads: Sequence[CalibrationMap]) -> np.ndarray:
    """What is expected to be gained in a case, float32 (J, n) for its n voxels, as a prediction ranks them."""
    found = cases.routing(fold, case)
    unknown = np.isnan(found[0])
    known = apply(heads, np.where(unknown, 0, found))
    gains = image_gains(known, unknown, cases.worth(fold, case), cases.settings.rule)
    return gains.reshape(len(gains), -1)


def _fit_thresholds(
    cases: ValidationCases, heads: Sequence[CalibrationMap], limits: Sequence[Limits]
) -> tuple[FittedThresholds, ...]:
    found, voxels = [], 0
    for fold, case in tqdm(cases.cases, desc="Ranking", unit="case"):
        gained = case_gains(cases, fold, case, heads)
        found.append(gained[:, (gained > 0).any(0)])
        voxels += gained[0].size
    gains = np.concatenate(found, axis=1)
    fitted = []
    for limit in limits:
        thresholds = thresholds_within_limits(
            gains, num_voxels=voxels, budget=limit.budget, capacities=limit.capacities
        )
        deferred = np.count_nonzero((gains > thresholds[:, None]).any(0))
        fitted.append(
            FittedThresholds(limit.budget, limit.capacities, tuple(map(float, thresholds)), deferred / max(voxels, 1))
        )
    return tuple(fitted)


def _errors(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without the bins, which the report of an evaluation draws."""
    return {when: {key: each[key] for key in ("ece", "bias")} for when, each in found.items()}
