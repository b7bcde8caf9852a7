"""Scores of methods from their validation masks, over the same cases and with the same experts.

Cases are read once: the reference and the experts' answers of a case are shared by all methods with the same experts.
One case is held in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral.answers import ExpertAnswers, experts_of_set, trained_with
from nnunetv2_deferral.benchmark.state import read_summary
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.defaults import MAPS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.overlap import CaseMetrics, overlap, summarize
from nnunetv2_deferral.evaluation.summary import SummaryStatistics
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS
from nnunetv2_deferral.experts import Rater
from nnunetv2_deferral.nnunet.experiment import Experiment, Method, is_deferral_model
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import FOLDER
from nnunetv2_deferral.text import differences, listed

_COUNTS = ("TP", "FP", "FN")


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """The scores of a method over all cases of all folds.

    Attributes:
        method: The method.
        experts: The names of its experts; empty for a stock model.
        summary: For a deferral model the result of :func:`.summarize_deferral`; for a stock model only
            `model_everywhere`.
        answered_by: The experts who answered, see :meth:`.ExpertAnswers.to_dict`; None for a stock model.
    """

    method: Method
    experts: tuple[str, ...]
    summary: Mapping[str, Any]
    answered_by: Mapping[str, Any] | None = None


@dataclass(kw_only=True)
class _Scoring:
    """A method during scoring."""

    method: Method
    validations: Mapping[int, Path]
    written: Mapping[int, Mapping[str, Any]]
    predictions: Mapping[int, PredictionFolder] = field(default_factory=dict)
    answers: ExpertAnswers | None = None
    statistics: SummaryStatistics | None = None
    model: dict[str, CaseMetrics] = field(default_factory=dict)

    def finish(self) -> MethodScores:
        if self.statistics is None or self.answers is None:
            return MethodScores(method=self.method, experts=(), summary={"model_everywhere": summarize(self.model)})
        return MethodScores(
            method=self.method,
            experts=self.answers.names,
            summary=self.statistics.summary(),
            answered_by=self.answers.to_dict(),
        )


def score_methods(
    experiment: Experiment,
    methods: Sequence[Method],
    *,
    experts: str | None = None,
    seed: int | None = None,
    tables: Sequence[Sequence[Method]] | None = None,
) -> list[MethodScores]:
    """Score methods that have been verified.

    Args:
        experiment: Dataset, configuration and folds.
        methods: The methods.
        experts: A folder of experts' masks `<expert>/<case>` or the name of a set of simulated experts, for all
            deferral models; None for each model's own experts, with raters' masks read from `expertsTr` of the raw
            dataset.
        seed: Seed of simulated experts; None for `evaluation_seed` of each model's settings.
        tables: Groups of methods to be compared; None for one group of all. Within a group, methods with the same
            number of experts must be answered by the same experts.

    Raises:
        InputError: Listing all problems: files that cannot be read or do not match, scores that differ from nnU-Net's
            summary.json, folds with different experts or settings, and methods with the same number of experts that
            would be answered by different experts.
    """
    cases = experiment.cases()
    first = experiment.reference(next(case for names in cases.values() for case in names))
    files = DatasetFiles.of(experiment.preprocessed / "dataset.json", first)
    faults: list[str] = []
    scorings = []
    for method in methods:
        try:
            scorings.append(_open(experiment, method, files, experts, seed))
        except (KeyError, TypeError, InputError) as error:
            faults.append(f"{method}: {error}")
    for table in [methods] if tables is None else tables:
        faults += _differing_experts([scoring for scoring in scorings if scoring.method in table])
    if not faults:
        bar = tqdm(total=sum(map(len, cases.values())), desc="Scoring", unit="case")
        with bar:
            for fold, names in cases.items():
                for case in names:
                    faults += _score_case(experiment, scorings, files, fold, case)
                    bar.update()
    if faults:
        raise InputError(f"{len(faults)} problem(s), nothing was compared:\n  " + "\n  ".join(faults))
    return [scoring.finish() for scoring in scorings]


def _open(
    experiment: Experiment, method: Method, files: DatasetFiles, experts: str | None, seed: int | None
) -> _Scoring:
    validations = {fold: experiment.validation(method, fold) for fold in experiment.folds}
    written = {fold: read_summary(folder, files.file_ending) for fold, folder in validations.items()}
    scoring = _Scoring(method=method, validations=validations, written=written)
    if not is_deferral_model(experiment.model(method)):
        return scoring
    model_json = experiment.model(method) / "dataset.json"
    scoring.predictions = {
        fold: PredictionFolder.open(folder, model_json, needed=MAPS) for fold, folder in validations.items()
    }
    fold, opened = next(iter(scoring.predictions.items()))
    for other, prediction in scoring.predictions.items():
        if differing := differences(prediction.index["settings"], opened.index["settings"]):
            raise InputError(f"the settings of fold {other} differ from those of fold {fold}: {'; '.join(differing)}")
    scoring.answers = _answers_of(experiment, opened, experts, seed)
    scoring.statistics = SummaryStatistics(files.regions, scoring.answers.names)
    return scoring


def _answers_of(
    experiment: Experiment, folder: PredictionFolder, experts: str | None, seed: int | None
) -> ExpertAnswers:
    """The experts who answer in place of a model's experts."""
    if experts is None:
        return ExpertAnswers.of_model(folder, trained_with(folder), masks=experiment.raw / FOLDER, seed=seed)
    if experts in EXPERT_SETS:
        return ExpertAnswers.of_model(folder, experts_of_set(folder.settings, experts), seed=seed)
    if not Path(experts).is_dir():
        sets = ", ".join(EXPERT_SETS)
        raise InputError(f"{experts} is neither a folder of experts' masks nor a set of simulated experts ({sets})")
    return ExpertAnswers.of_model(folder, tuple(map(Rater, folder.experts)), masks=Path(experts), seed=seed)


def _differing_experts(scorings: Sequence[_Scoring]) -> list[str]:
    """Methods with the same number of experts as an earlier method that would be answered by different experts."""
    faults: list[str] = []
    first: dict[int, tuple[Method, dict[str, Any]]] = {}
    for scoring in scorings:
        if scoring.answers is None:
            continue
        answering = scoring.answers.to_dict()
        method, before = first.setdefault(len(scoring.answers.experts), (scoring.method, answering))
        if differing := differences(answering, before):
            faults.append(
                f"{scoring.method} and {method} would be answered by different experts ({'; '.join(differing)}). "
                "Specify the experts for the comparison (-experts, -seed)"
            )
    return faults


def _score_case(
    experiment: Experiment, scorings: Sequence[_Scoring], files: DatasetFiles, fold: int, case: str
) -> list[str]:
    """Add a case to all methods; returns the problems."""
    try:
        reference, properties = files.read(experiment.reference(case))
    except InputError as error:
        return [str(error)]
    faults: list[str] = []
    answers: dict[str, np.ndarray] = {}
    for scoring in scorings:
        try:
            _score(scoring, files, fold, case, reference, properties, answers)
        except InputError as error:
            faults.append(str(error))
    return faults


def _score(
    scoring: _Scoring,
    files: DatasetFiles,
    fold: int,
    case: str,
    reference: np.ndarray,
    properties: Mapping[str, Any],
    answers: dict[str, np.ndarray],
) -> None:
    ignored = files.label_manager.ignore_label
    folder, deferral = scoring.validations[fold], scoring.predictions.get(fold)
    file = folder / f"{case}{files.file_ending}"
    prediction = None if deferral is None else deferral.case(case)
    model = files.read(file)[0] if prediction is None else prediction.model
    if model.shape != reference.shape:
        raise InputError(f"{file} has shape {model.shape}, but its reference has {reference.shape}")
    found = overlap(reference, model, files.regions, None if ignored is None else reference != ignored)
    _check_counts(folder, case, found, scoring.written[fold][case])
    scoring.model[case] = found
    if prediction is None or scoring.statistics is None or scoring.answers is None:
        return
    key = json.dumps(scoring.answers.to_dict(), sort_keys=True)
    if key not in answers:
        answers[key] = scoring.answers.answers(case, reference, properties)
    scoring.statistics.update(
        EvaluatedCase(prediction=prediction, reference=reference, answers=answers[key], ignore_label=ignored)
    )


def _check_counts(folder: Path, case: str, found: CaseMetrics, written: Mapping[str, Any]) -> None:
    """Refuse a mask and a reference whose counts differ from nnU-Net's summary.json."""
    differing = [
        f"{key} of {region} is {found[region][key]:g}, not {written.get(region, {}).get(key)}"
        for region in found
        for key in _COUNTS
        if found[region][key] != written.get(region, {}).get(key)
    ]
    if differing:
        raise InputError(
            f"{folder / 'summary.json'} does not match the mask and the reference of {case} ({listed(differing, 3)}): "
            "the references were changed, or a validation was interrupted (repeat it with nnUNetv2_train ... --val)"
        )
