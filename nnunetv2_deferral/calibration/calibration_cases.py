"""The cases that a model is calibrated on: final validations, or predictions of cases with a reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tqdm import tqdm

from nnunetv2_deferral.answers import ExpertAnswers, experts_of_set
from nnunetv2_deferral.calibration.calibrated_model import CalibratedModel
from nnunetv2_deferral.calibration.unseen import check_unseen, warn_of_chosen_networks, warn_of_newer_networks
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.decision.area import VoxelWeight, dice_weight
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, ModelCalibration
from nnunetv2_deferral.decision.predicted_by import PredictedBy
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.inputs import open_inputs
from nnunetv2_deferral.files import state_of
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.parts import pieces
from nnunetv2_deferral.predictions import PredictionFolder, StockFolder, absent_text
from nnunetv2_deferral.processes import Workers
from nnunetv2_deferral.raters import FOLDER

Found = TypeVar("Found")
Pair: TypeAlias = tuple[str, str]  # fold (or folds, of an ensemble) and name of a case


class CalibrationCases:
    """Cases that a model's networks predicted and were not trained on, read one at a time.

    Attributes:
        dataset: The full name of the dataset.
        model: The model's folder.
        is_stock: Whether the model is a stock network.
        settings: The settings of the deferral network, or of the experts of a stock network.
        predicted_by: The networks that predicted the cases.
        cases: The fold and name of each case; for an ensemble, in place of the fold all of its folds.
        experts: The experts' answers.
        files: File format and labels.
        workers: The processes that read cases.
    """

    def __init__(
        self,
        model: CalibratedModel,
        folders: Mapping[str, PredictionFolder | StockFolder],
        cases: Mapping[str, Sequence[str]],
        *,
        predicted_by: PredictedBy,
        references: Path,
        experts: ExpertAnswers,
        groups: Mapping[str, Any] | None,
        workers: Workers | None,
    ) -> None:
        """Check that everything exists that is read of the cases; see :meth:`of_validations`, :meth:`of_predictions`.

        Args:
            model: The model.
            folders: For each fold the folder of its predictions.
            cases: For each fold the names of its cases.
            predicted_by: The networks that predicted the cases.
            references: The folder of the references.
            experts: The experts' answers.
            groups: For each case its group, such as its patient; None for each case by itself.
            workers: The processes that read cases; None for this one.
        """
        self.dataset, self.model, self.is_stock = model.experiment.dataset, model.folder, model.is_stock
        self.settings, self.predicted_by, self.experts = model.settings, predicted_by, experts
        self._calibration, self._folders = model.plans.get(CALIBRATION_KEY), dict(folders)
        self.cases: list[Pair] = [(fold, case) for fold, names in cases.items() for case in names]
        for fold, case in self.cases:
            folder = self._folders[fold]
            found = {
                folder.mask_file(case): folder.mask_file(case).is_file(),
                folder.routing_file(case): folder.has_routing(case),
                folder.softmax_file(case): folder.has_softmax(case),
            }
            if absent := [file for file, there in found.items() if not there]:
                raise InputError(
                    f"{absent_text(absent[0])}: calibration requires the masks and probabilities of all cases. "
                    f"{_how_to_write(model, fold, predicted_by)}"
                )
        if lacking := [] if groups is None else sorted(set(self.names) - set(groups)):
            raise InputError(f"cases without a group: {', '.join(lacking)}")
        self._groups = {case: case for case in self.names} if groups is None else groups
        self._references, self.files = references, next(iter(self._folders.values())).files
        self.workers, self._doing = workers or Workers(), ""

    @classmethod
    def of_validations(
        cls,
        experiment: Experiment,
        method: Method,
        *,
        experts: str | None = None,
        groups: Mapping[str, Any] | None = None,
        workers: Workers | None = None,
    ) -> CalibrationCases:
        """The cases of the final validations of folds, each predicted by the network of its fold.

        The model may also be a stock network; its experts are then the raters of the dataset or a set of simulated
        experts, see :class:`.StockFolder`.

        Args:
            experiment: Dataset, configuration and folds.
            method: Trainer and plans.
            experts: The name of a set of simulated experts, or None for those that the model was trained with; raters'
                masks are read from `expertsTr` of the raw dataset.
            groups: For each case its group, such as its patient; None for each case by itself.
            workers: The processes that read cases; None for this one.

        Raises:
            InputError: If a fold has no validation or the maps of another model, a case has no saved probabilities or
                no group, or there is nobody to ask about the predictions of a stock network.
        """
        experiment.check_validated(method)
        model = CalibratedModel.of(experiment, method, experts)
        folders = {str(fold): model.validation(fold) for fold in experiment.folds}
        asked = model.settings.experts if experts is None else experts_of_set(model.settings, experts)
        return cls(
            model,
            folders,
            {str(fold): names for fold, names in experiment.cases().items()},
            predicted_by=PredictedBy(folds=tuple(folders)),
            references=experiment.references,
            experts=ExpertAnswers.of_model(next(iter(folders.values())), asked, masks=experiment.raw / FOLDER),
            groups=groups,
            workers=workers,
        )

    @classmethod
    def of_predictions(
        cls,
        experiment: Experiment,
        method: Method,
        predictions: Path,
        references: Path,
        *,
        experts: str | None = None,
        groups_file: Path | None = None,
        workers: Workers | None = None,
    ) -> CalibrationCases:
        """Cases of a folder that `nnUNetv2_predict --save_probabilities` wrote, with any folds, also with all of them.

        Args:
            experiment: Dataset and configuration; its folds do not matter.
            method: Trainer and plans.
            predictions: The folder.
            references: The folder of the references, with the same file names.
            experts: A folder of masks `<expert>/<case>`, the name of a set of simulated experts, or None for the
                simulated experts that the model was trained with.
            groups_file: A JSON file that maps each case to its group, such as its patient; None for each case by
                itself. If it has the cases of the training, too, their patients are recognised.
            workers: As in :meth:`of_validations`.

        Raises:
            InputError: If the folder is of a stock network or another model, does not note which folds predicted it, or
                contains cases or patients of their training; if a case lacks saved probabilities, a reference or an
                expert's mask; or if answers are those of a review, which are of what was asked only.
        """
        experiment.check_trained(method)
        model = CalibratedModel.of(experiment, method, may_be_stock=False)
        inputs = open_inputs(
            predictions, references, experts=experts, dataset_json=model.dataset_json, evidence=False, needed=()
        )
        folder, answers = inputs.predictions, inputs.experts
        model.check_made(folder)
        folds = tuple(map(str, folder.prediction.get("folds", ())))
        if not folds:
            raise InputError(
                f"{folder.index_file} does not record which folds made the predictions, so it is not known whether "
                "they were trained on these cases: predict again"
            )
        folder.check_masks("Calibrate on predictions as they were made")
        trained_on = {fold: experiment.training_cases(fold) for fold in folds}
        groups = None
        if groups_file is not None:
            groups = read_groups(groups_file, folder.cases, also={*chain.from_iterable(trained_on.values())})
        for fold, cases in trained_on.items():
            check_unseen(folder, fold, cases, groups or {})
        if answers.masks is not None and answers.masks.is_review:
            raise InputError(
                f"{answers.masks.folder} has the answers of a review, which cover only what the model asked: "
                "calibration requires labels of whole cases"
            )
        warn_of_newer_networks(model, folder)
        warn_of_chosen_networks(experiment, folder)
        together = ", ".join(folds)
        return cls(
            model,
            {together: folder},
            {together: folder.cases},
            predicted_by=PredictedBy(folds=folds, prediction=folder.prediction),
            references=references,
            experts=answers,
            groups=groups,
            workers=workers,
        )

    def __iter__(self) -> Iterator[EvaluatedCase]:
        for fold, case in tqdm(self.cases, desc=self._doing, unit="case", disable=not self._doing):
            yield self.read(fold, case)

    def map(self, work: Callable[[Pair], Found], doing: str, pairs: Sequence[Pair] | None = None) -> Iterator[Found]:
        """What is found in each of the cases by itself, in their order and in several processes.

        Args:
            work: Applied to fold and name of each case; pickled.
            doing: The label of the progress bar.
            pairs: Some of the cases; None for all.
        """
        return self.workers.map(work, self.cases if pairs is None else pairs, description=doing)

    def in_pieces(self, work: Callable[[CalibrationCases], Found], doing: str) -> list[Found]:
        """What is found in pieces of the cases, in several processes; in one, there is one piece.

        Args:
            work: Applied to each piece; pickled.
            doing: The label of the progress bar.
        """
        found = [self.of_cases(piece) for piece in pieces(self.cases, self.workers.number)]
        if len(found) == 1:
            found[0]._doing = doing
            return [work(found[0])]
        for piece in found:  # each of which stays in one process
            piece.workers = Workers()
        return list(self.workers.map(work, found, description=doing, size=lambda piece: len(piece.cases)))

    def read(self, fold: str, case: str) -> EvaluatedCase:
        """Read a case.

        Raises:
            InputError: If a file cannot be read or does not match the prediction.
        """
        prediction = self.prediction(fold, case)
        reference = self.files.read_like(self._reference(case), prediction.model, prediction.properties)
        return EvaluatedCase(
            prediction=prediction,
            reference=reference,
            answers=self.experts.answers(case, reference, prediction.properties),
            ignore_label=self.files.label_manager.ignore_label,
        )

    def of_groups(self, groups: Collection[str]) -> CalibrationCases:
        """The cases of these groups only."""
        return self.of_cases([(fold, case) for fold, case in self.cases if self.group(case) in groups])

    def of_cases(self, pairs: Sequence[Pair]) -> CalibrationCases:
        """These cases only, by fold and name."""
        found = copy.copy(self)
        found.cases = list(pairs)
        return found

    @property
    def names(self) -> list[str]:
        """The names of the cases."""
        return [case for _, case in self.cases]

    def prediction(self, fold: str, case: str) -> PredictedCase:
        """The model's prediction for a case."""
        return self._folders[fold].case(case)

    def group(self, case: str) -> str:
        """The group of a case, such as its patient."""
        return str(self._groups[case])

    @property
    def calibration(self) -> ModelCalibration | None:
        """The calibration that the model has, or None.

        Raises:
            InputError: If it belongs to another model or cannot be read.
        """
        content = self._calibration
        return None if content is None else ModelCalibration.from_dict(content, self.settings.expert_names)

    @property
    def attempted(self) -> dict[str, Any]:
        """For the report of a further calibration, the `attempts` at a certificate on some `cases`, the last first.

        As `attempted`; empty without any, or if the model's calibration cannot be read and is about to be replaced.
        """
        try:
            current = self.calibration
        except InputError:
            return {}
        report = {} if current is None else current.report
        found: list[dict[str, Any]] = []
        for each in (report.get("certification"), *report.get("attempted", ())):
            if each and not any({*each.get("cases", ())} <= {*later["cases"]} for later in found):
                found.append({"attempts": each.get("attempts", 1), "cases": each.get("cases", [])})
        return {"attempted": found} if found else {}

    @property
    def decided(self) -> dict[str, Any]:
        """What the deferral folders of the folds say of their cases; nothing for a stock network."""
        return {
            fold: folder.index["cases"]
            for fold, folder in self._folders.items()
            if isinstance(folder, PredictionFolder)
        }

    @property
    def state(self) -> str:
        """A hash of the states of all files that are read, see :func:`.state_of`."""
        files: list[Path] = []
        for fold, case in self.cases:
            folder = self._folders[fold]
            files += [folder.mask_file(case), folder.routing_file(case), folder.softmax_file(case)]
            files.append(self._reference(case))
            if (masks := self.experts.masks) is not None:
                files += [masks.file(name, case) for name in masks.experts]
        return state_of(files)

    def voxel_weight(self, prediction: PredictedCase) -> VoxelWeight:
        """The weights of the voxels in a prediction, see :func:`.dice_weight`."""
        return dice_weight(prediction.softmax, has_regions=self.files.label_manager.has_regions)

    def _reference(self, case: str) -> Path:
        return self._references / f"{case}{self.files.file_ending}"


def _how_to_write(model: CalibratedModel, fold: str, predicted_by: PredictedBy) -> str:
    """What to do about missing masks or probabilities."""
    if predicted_by.prediction is not None:
        return "Predict with --save_probabilities"
    return (
        f"Write them with nnUNetv2_train {model.experiment.dataset} {model.experiment.configuration} {fold} "
        f"-tr {model.method.trainer} -p {model.method.plans} --val --npz"
    )
