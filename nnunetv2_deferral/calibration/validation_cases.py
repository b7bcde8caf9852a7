"""The validation cases of a trained model, for calibration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunetv2_deferral.answers import ExpertAnswers, experts_of_set
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.decision.area import VoxelWeight, dice_weight
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import state_of
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.nnunet.managers import MODEL_KEY
from nnunetv2_deferral.parts import pieces
from nnunetv2_deferral.predictions import PredictionFolder, StockFolder, absent_text
from nnunetv2_deferral.processes import Workers
from nnunetv2_deferral.raters import FOLDER, declared_raters
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import PLANS_KEY, DeferralSettings, resolve_settings

Found = TypeVar("Found")


class ValidationCases:
    """The validation cases of the folds of a model, read one at a time.

    The model may also be a stock network; its experts are then the raters of the dataset or a set of simulated experts,
    see :class:`.StockFolder`.
    """

    def __init__(
        self,
        experiment: Experiment,
        method: Method,
        *,
        experts: str | None = None,
        groups: Mapping[str, Any] | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Find the cases and check that all files exist.

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
        self.experiment, self.model = experiment, experiment.model(method)
        self.workers, self._doing = workers or Workers(), ""
        experiment.check_validated(method)
        plans = read_plans_json(self.model / "plans.json")
        self.is_stock = MODEL_KEY not in plans  # which may have been trained with the plans of a deferral network
        self._calibration = plans.get(CALIBRATION_KEY)
        self.settings = self._stock_settings(experts) if self.is_stock else resolve_settings(plans[PLANS_KEY])
        self._folders = {fold: self._open(experiment.validation(method, fold), method) for fold in experiment.folds}
        self.cases = [(fold, case) for fold, names in experiment.cases().items() for case in names]
        for fold, case in self.cases:
            folder = self._folders[fold]
            found = {
                folder.mask_file(case): folder.mask_file(case).is_file(),
                folder.routing_file(case): folder.has_routing(case),
                folder.softmax_file(case): folder.has_softmax(case),
            }
            if absent := [file for file, there in found.items() if not there]:
                raise InputError(
                    f"{absent_text(absent[0])}: calibration requires the masks and probabilities of all validation "
                    f"cases. Write them with nnUNetv2_train {experiment.dataset} {experiment.configuration} {fold} "
                    f"-tr {method.trainer} -p {method.plans} --val --npz"
                )
        names = [case for _, case in self.cases]
        if lacking := [] if groups is None else sorted(set(names) - set(groups)):
            raise InputError(f"cases without a group: {', '.join(lacking)}")
        self._groups = {case: case for case in names} if groups is None else groups
        opened = next(iter(self._folders.values()))
        asked = self.settings.experts if experts is None else experts_of_set(self.settings, experts)
        self.experts = ExpertAnswers.of_model(opened, asked, masks=experiment.raw / FOLDER)
        self.files = opened.files

    def __iter__(self) -> Iterator[EvaluatedCase]:
        for fold, case in tqdm(self.cases, desc=self._doing, unit="case", disable=not self._doing):
            yield self.read(fold, case)

    def map(
        self, work: Callable[[tuple[int, str]], Found], doing: str, pairs: Sequence[tuple[int, str]] | None = None
    ) -> Iterator[Found]:
        """What is found in each of the cases by itself, in their order and in several processes.

        Args:
            work: Applied to fold and name of each case; pickled.
            doing: The label of the progress bar.
            pairs: Some of the cases; None for all.
        """
        return self.workers.map(work, self.cases if pairs is None else pairs, description=doing)

    def in_pieces(self, work: Callable[[ValidationCases], Found], doing: str) -> list[Found]:
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

    def of_groups(self, groups: Collection[str]) -> ValidationCases:
        """The cases of these groups only."""
        return self.of_cases([(fold, case) for fold, case in self.cases if self.group(case) in groups])

    def of_cases(self, pairs: Sequence[tuple[int, str]]) -> ValidationCases:
        """These cases only, by fold and name."""
        found = copy.copy(self)
        found.cases = list(pairs)
        return found

    @property
    def names(self) -> list[str]:
        """The names of the cases."""
        return [case for _, case in self.cases]

    def prediction(self, fold: int, case: str) -> PredictedCase:
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
        """For the report of a further calibration, the `attempts` at a certificate, and on which `cases`.

        As `attempted`; empty without any, or if the model's calibration cannot be read and is about to be replaced.
        """
        try:
            current = self.calibration
        except InputError:
            return {}
        report = {} if current is None else current.report
        found = report.get("certification") or report.get("attempted")
        return {"attempted": {"attempts": found.get("attempts", 1), "cases": found.get("cases", [])}} if found else {}

    @property
    def decided(self) -> dict[str, Any]:
        """What the deferral folders of the folds say of their cases; nothing for a stock network."""
        return {
            str(fold): folder.index["cases"]
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
            files.append(self.experiment.reference(case))
            if (masks := self.experts.masks) is not None:
                files += [masks.file(name, case) for name in masks.experts]
        return state_of(files)

    def voxel_weight(self, prediction: PredictedCase) -> VoxelWeight:
        """The weights of the voxels in a prediction, see :func:`.dice_weight`."""
        return dice_weight(prediction.softmax, has_regions=self.files.label_manager.has_regions)

    def _stock_settings(self, experts: str | None) -> DeferralSettings:
        raters = declared_raters(self.experiment.dataset_json)
        if experts is None and not raters:
            raise InputError(
                f"{self.model} is a stock network, and the dataset.json of {self.experiment.dataset} declares no "
                "experts: declare raters with masks in expertsTr, or name a set of simulated experts (-experts)"
            )
        block = {"objective": ONE_VS_ALL, **({} if experts is None else {"experts": experts})}
        return resolve_settings(block, raters=raters)

    def _open(self, folder: Path, method: Method) -> PredictionFolder | StockFolder:
        if self.is_stock:
            return StockFolder.open(folder, self.model / "dataset.json", self.settings)
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
