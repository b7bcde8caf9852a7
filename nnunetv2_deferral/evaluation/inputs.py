"""What an evaluation reads: predictions, references and the experts' answers, found and checked beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_deferral import folds
from nnunetv2_deferral.answers import ExpertAnswers, evidence_of, experts_of_set, trained_with
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.dataset import same_cases
from nnunetv2_deferral.defaults import MAPS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS, with_error_model
from nnunetv2_deferral.experts import Rater, profiles_of, raters_of
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.routing import ONE_VS_ALL


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """The inputs of an evaluation.

    Attributes:
        predictions: The predictions.
        references: The folder of the references, with the same file names as the predictions.
        experts: The experts' answers.
        has_probabilities: Whether the model's probabilities (npz) exist for all cases.
        fold_folders: Folders with the masks of single folds; may be empty.
        has_information: Whether the mutual information of the folds exists for all cases.
        has_routing: Whether routing probabilities of a one-vs-all model exist for all cases, and the model's where
            these are combined with them.
        evidence: How answers are read as evidence; None if they replace the model's labels.
    """

    predictions: PredictionFolder
    references: Path
    experts: ExpertAnswers
    has_probabilities: bool
    fold_folders: tuple[Path, ...] = ()
    has_information: bool = False
    has_routing: bool = False
    evidence: EvidenceModel | None = None

    def read(self, case: str) -> EvaluatedCase:
        """Read a case.

        Raises:
            InputError: If a file is missing or cannot be read, or its shape or geometry differs from the prediction's.
        """
        saved = {"softmax": self.has_probabilities, "routing": self.has_routing}
        prediction = self.predictions.case(case).without(*(what for what, of_all in saved.items() if not of_all))
        calibration = self.predictions.calibration
        if calibration is not None and calibration.combination is not None and self.has_routing:
            prediction = prediction.combined(calibration.combination)
        reference, *fold_masks = (
            self._read_like(folder, prediction) for folder in (self.references, *self.fold_folders)
        )
        answers = self.experts.answers(case, reference, prediction.properties)
        return EvaluatedCase(
            prediction=prediction,
            reference=reference,
            answers=self._only_where_asked(answers, prediction.route),
            ignore_label=self.predictions.files.label_manager.ignore_label,
            fold_masks=np.stack(fold_masks) if fold_masks else None,
            mutual_information=self._information(prediction.name) if self.has_information else None,
            evidence=self.evidence,
        )

    def _only_where_asked(self, answers: np.ndarray, route: np.ndarray) -> np.ndarray:
        """The answers without the labels in masks of a review that are the model's, where nobody was asked."""
        masks = self.experts.masks
        if masks is None or not masks.is_review:
            return answers
        for number, (expert, labels) in enumerate(zip(self.experts.experts, answers, strict=True), start=1):
            if isinstance(expert, Rater):
                # All have what two readers settled.
                labels[route != number if masks.rules is None else route == 0] = MISSING
        return answers

    def _information(self, case: str) -> np.ndarray:
        files = self.predictions.files
        return files.read_shares(folds.information_file(self.predictions.folder, case, files.file_ending))

    def _read_like(self, folder: Path, prediction: PredictedCase) -> np.ndarray:
        """The label map of a predicted case in another folder."""
        file = folder / self.predictions.mask_file(prediction.name).name
        return self.predictions.files.read_like(file, prediction.model, prediction.properties)


def open_inputs(
    predictions: Path,
    references: Path,
    *,
    experts: str | None = None,
    seed: int | None = None,
    error_model: str | None = None,
    simulated: Sequence[str] = (),
    dataset_json: Path | None = None,
    fold_folders: Sequence[Path] = (),
    evidence: bool | None = None,
    needed: Sequence[str] = MAPS,
) -> EvaluationInputs:
    """Find all inputs of an evaluation and check them before anything is computed.

    Args:
        predictions: A folder of predictions by a deferral model.
        references: The folder of reference label files.
        experts: A folder `<expert>/<case>`, the name of a set of simulated experts, or None for the simulated experts
            that the model was trained with.
        seed: Seed of simulated experts; None for that of the model's settings.
        error_model: Error model of all simulated experts; None for those of their profiles.
        simulated: With a folder of masks, the experts of the training who are simulated nevertheless.
        dataset_json: See :meth:`.PredictionFolder.open`.
        fold_folders: Folders with the masks predicted by single folds, one per fold; none for those that were
            predicted with the ensemble, if all cases have them.
        evidence: Whether answers are read as evidence or replace the model's labels; None for the default, see
            :func:`.evidence_of`.
        needed: Maps that are read, besides the route.

    Raises:
        InputError: For predictions without maps, cases without a reference or any expert's mask, or experts that do
            not match the model's.
    """
    folder = PredictionFolder.open(predictions, dataset_json, needed=needed)
    if not references.is_dir():
        raise InputError(f"the folder of references {references} does not exist")
    same_cases(f"predicted cases without a reference in {references}", folder.cases, folder.files.cases(references))
    for each in fold_folders:
        same_cases(f"predicted cases without a mask in {each}", folder.cases, folder.files.cases(each))
    own = folds.folds_of_all_cases(predictions, folder.cases, folder.files.file_ending)
    has_probabilities = [folder.has_softmax(case) for case in folder.cases]
    has_routing = [folder.has_routing(case) for case in folder.cases]
    calibration = folder.calibration
    if calibration is not None and calibration.combination is not None and not all(has_probabilities):
        has_routing = [False]
    answering = _answering(folder, experts, simulated, seed, error_model)
    return EvaluationInputs(
        predictions=folder,
        references=references,
        experts=answering,
        evidence=evidence_of(
            folder,
            None if answering.masks is None else answering.masks.folder,
            answering.identities,
            wanted=evidence,
        ),
        has_probabilities=all(has_probabilities),
        fold_folders=tuple(fold_folders) or tuple(folds.fold_folder(predictions, fold) for fold in own),
        has_information=bool(own),
        # The other objective gives probabilities of routes, which have no observable frequency.
        has_routing=all(has_routing) and folder.settings.objective == ONE_VS_ALL,
    )


def _answering(
    folder: PredictionFolder, experts: str | None, simulated: Sequence[str], seed: int | None, error_model: str | None
) -> ExpertAnswers:
    if experts is not None and experts not in EXPERT_SETS:
        return _experts_of_folder(folder, Path(experts), simulated, seed, error_model)
    if simulated:
        raise InputError("-simulated requires a folder of masks (-experts), in addition to which experts are simulated")
    profiles = trained_with(folder) if experts is None else experts_of_set(folder.settings, experts)
    if raters_of(profiles):
        raise InputError(
            f"this model was trained with raters ({', '.join(folder.experts)}); specify the folder of their masks with "
            "-experts"
        )
    return ExpertAnswers.of_model(folder, with_error_model(profiles_of(profiles), error_model), seed=seed)


def _experts_of_folder(
    folder: PredictionFolder, experts: Path, simulated: Sequence[str], seed: int | None, error_model: str | None
) -> ExpertAnswers:
    """The experts with masks in a folder; nobody is simulated who is not named."""
    if not experts.is_dir():
        raise InputError(f"{experts} is neither a folder nor a set of simulated experts ({', '.join(EXPERT_SETS)})")
    if error_model is not None and not simulated:
        raise InputError(f"-error_model {error_model} is for simulated experts, but those in {experts} are not")
    profiles = {profile.name: profile for profile in profiles_of(trained_with(folder))}
    if strangers := [name for name in simulated if name not in profiles]:
        raise InputError(
            f"cannot simulate {', '.join(strangers)}: the simulated experts of the training are "
            f"{', '.join(profiles) or 'none'}"
        )
    chosen = with_error_model([profiles[name] for name in folder.experts if name in simulated], error_model)
    by_name = {profile.name: profile for profile in chosen}
    answering = tuple(by_name.get(name) or Rater(name) for name in folder.experts)
    masks = ExpertMasks.of(experts, raters_of(answering), folder.files)
    if doubled := [name for name in simulated if ExpertMasks.of(experts, (name,), folder.files).cases(name)]:
        raise InputError(f"{', '.join(doubled)} cannot be simulated: there are masks in {experts}")
    asked = {case: [name for name in folder.asked(case) if name in masks.experts] for case in folder.cases}
    try:
        masks.check_answers(asked)
    except InputError as error:
        known = [name for name in profiles if name not in simulated]
        hint = f" (experts without masks can be simulated with -simulated: {', '.join(known)})" if known else ""
        raise InputError(f"{error}{hint}") from error
    if not by_name:
        answered = [case for case in asked if any(masks.file(name, case).is_file() for name in masks.experts)]
        routed = [case for case, names in asked.items() if names]
        same_cases(f"cases with deferred voxels but without any expert's mask in {experts}", routed, answered)
    return ExpertAnswers.of_model(folder, answering, masks=experts, seed=seed)
