"""Predictions of any nnU-Net model and the masks of several raters, read and compared case by case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral.agreement_maps import AGREEMENT, index_file, map_file, read_model
from nnunetv2_deferral.dataset import read_plans_json, same_cases
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.rater_calibration import RaterCalibration
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.nnunet.managers import MODEL_KEY
from nnunetv2_deferral.nnunet.multi_rater_plans import MULTI_RATER_KEY
from nnunetv2_deferral.predictions import MaskFolder, open_masks
from nnunetv2_deferral.raters import ExpertMasks, expert_folders
from nnunetv2_deferral.readings import ReadingRules
from nnunetv2_deferral.settings import PLANS_KEY
from nnunetv2_deferral.text import listed

PROBABILITY = "probability"


@dataclass(frozen=True, kw_only=True)
class RaterInputs:
    """The inputs of an evaluation against raters.

    Attributes:
        predictions: The predictions.
        masks: The raters' masks.
        references: The folder of the references, or None.
        has_agreement: Whether there are maps of agreement.
    """

    predictions: MaskFolder
    masks: ExpertMasks
    references: Path | None = None
    has_agreement: bool = False

    @classmethod
    def open(
        cls, folder: Path, raters: Path, *, references: Path | None = None, dataset_json: Path | None = None
    ) -> RaterInputs:
        """Find all inputs and check them before anything is computed.

        Args:
            folder: The folder of masks with npz files.
            raters: The folder of the raters' masks; every folder in it is a rater.
            references: The folder of the references, or None.
            dataset_json: See :meth:`.PredictionFolder.open`.

        Raises:
            InputError: If there are no probabilities or raters, cases without a reference or any rater's mask, files
                that would not be used, or maps of agreement of another model than the masks.
        """
        predictions = open_masks(folder, dataset_json)
        predictions.check_softmax()
        cases, files = predictions.cases, predictions.files
        if not raters.is_dir():
            raise InputError(f"the folder of raters {raters} does not exist")
        rules = ReadingRules.of(raters)
        names = [name for name in expert_folders(raters) if rules is None or name != rules.adjudicator]
        masks = ExpertMasks.of(raters, names, files)
        if unused := masks.unused(cases):
            raise InputError(f"raters' files that would not be used ({len(unused)}): {listed(unused, 10)}")
        rated = [case for case in cases if any(masks.file(name, case).is_file() for name in names)]
        same_cases(f"predicted cases without any rater's mask in {raters}", cases, rated)
        if references is not None:
            if not references.is_dir():
                raise InputError(f"the folder of references {references} does not exist")
            same_cases(f"predicted cases without a reference in {references}", cases, files.cases(references))
        found = cls(
            predictions=predictions,
            masks=masks,
            references=references,
            has_agreement=index_file(folder).is_file(),
        )
        if found.has_agreement:
            _check_same_model(folder)
            wanted = [str(file) for case in cases for file in found.agreement_files(case)]
            missing = [file for file in wanted if not Path(file).is_file()]
            if missing:
                raise InputError(f"maps of agreement are missing ({len(missing)}): {listed(missing, 10)}")
        return found

    def agreement_files(self, case: str) -> list[Path]:
        """The files of the maps of agreement of a case, one for each structure."""
        files = self.predictions.files
        number = len(files.regions)
        numbers: list[int | None] = [None] if number == 1 else [*range(1, number + 1)]
        return [map_file(self.predictions.folder, AGREEMENT, case, files.file_ending, each) for each in numbers]

    def add_to(self, statistics: RaterCalibration, name: str) -> None:
        """Read a case and add it.

        Raises:
            InputError: If a file cannot be read, or its shape or geometry differs from the prediction's.
        """
        files, case = self.predictions.files, self.predictions.with_softmax(name)
        first = 0 if files.label_manager.has_regions else 1
        readings = {PROBABILITY: case.softmax[first:].clip(0, 1)}
        if self.has_agreement:
            readings[AGREEMENT] = np.stack([files.read_shares(file) for file in self.agreement_files(name)])
        reference = valid = None
        if self.references is not None:
            file = self.references / self.predictions.mask_file(name).name
            reference = files.read_like(file, case.model, case.properties)
            if files.label_manager.ignore_label is not None:
                valid = reference != files.label_manager.ignore_label
        statistics.update(
            name,
            readings,
            self.masks.answers(name, case.model.shape, case.properties, as_settled=False),
            model=case.model,
            reference=reference,
            valid=valid,
        )


def _check_same_model(folder: Path) -> None:
    """Refuse maps of agreement that an earlier prediction with another model left in a folder."""
    plans = folder / "plans.json"  # written by nnUNetv2_predict
    if not plans.is_file():
        return
    trainer, maps_of = _trainer_of(read_plans_json(plans)), read_model(folder)
    if trainer != maps_of["trainer"]:
        raise InputError(
            f"{folder}: the maps of agreement are of {maps_of['trainer']}, but the masks, according to plans.json, of "
            f"{trainer or 'a model without such maps'}. Predict into a folder of its own"
        )


def _trainer_of(plans: Mapping[str, Any]) -> str | None:
    """The trainer of a model that writes maps of agreement, alone or besides those of deferral; None of another."""
    block: Mapping[str, Any] = plans.get(MULTI_RATER_KEY, {})
    if plans.get(PLANS_KEY, {}).get("multi_rater"):
        block = plans.get(MODEL_KEY, block)
    return block.get("trainer")


def evaluate_raters(
    *inputs: RaterInputs, groups: Mapping[str, Any] | None = None, bootstrap_seed: int = 0
) -> dict[str, Any]:
    """Evaluate all cases, with one case in memory at a time.

    Args:
        inputs: The inputs, one or one for each fold, of the same dataset and raters.
        groups: For each case its group; None for each case by itself.
        bootstrap_seed: Seed of the intervals.

    Returns:
        The content of `rater_calibration.json`, see docs/reference/evaluation.md.
    """
    statistics = RaterCalibration(inputs[0].predictions.files.regions, inputs[0].masks.experts)
    cases = [(each, name) for each in inputs for name in each.predictions.cases]
    for each, name in tqdm(cases, desc="Evaluating", unit="case"):
        each.add_to(statistics, name)
    return statistics.summary(groups=groups, seed=bootstrap_seed) | {"versions": versions()}
