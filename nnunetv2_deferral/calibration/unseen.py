"""Checks that networks were not trained on, or chosen by, the predictions that they are calibrated on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from nnunetv2_deferral.calibration.calibrated_model import CalibratedModel
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Experiment
from nnunetv2_deferral.nnunet.fold_export import BEST_CHECKPOINT, FINAL_CHECKPOINT
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.text import listed

logger = logging.getLogger(__name__)


def check_unseen(
    predictions: PredictionFolder, fold: str, trained_on: Collection[str], groups: Mapping[str, Any]
) -> None:
    """Refuse predictions of cases, or of the groups of cases, that the network of a fold was trained on.

    Raises:
        InputError: Naming the folder, the fold and the cases.
    """
    if seen := sorted({*predictions.cases} & {*trained_on}):
        raise InputError(
            f"{predictions.folder} contains cases that the network of fold {fold} was trained on ({len(seen)}): "
            f"{listed(seen)}. Calibrate on other cases"
        )
    patients = {str(groups[case]) for case in trained_on if case in groups}
    if seen := [case for case in predictions.cases if case in groups and str(groups[case]) in patients]:
        raise InputError(
            f"{predictions.folder} contains cases of groups (patients) that the network of fold {fold} was trained on "
            f"({len(seen)}): {listed(f'{case} of {groups[case]}' for case in seen)}. Calibrate on other cases"
        )


def warn_of_newer_networks(model: CalibratedModel, predictions: PredictionFolder) -> None:
    """Say if a network was written after it is said to have predicted."""
    name = predictions.prediction.get("checkpoint", FINAL_CHECKPOINT)
    made = min(predictions.mask_file(case).stat().st_mtime for case in predictions.cases)
    for fold in predictions.prediction["folds"]:
        checkpoint = model.folder / f"fold_{fold}" / name
        if checkpoint.is_file() and checkpoint.stat().st_mtime > made:
            logger.warning(
                "%s is newer than predictions in %s: if the fold was trained again since, predict again",
                checkpoint,
                predictions.folder,
            )


def warn_of_chosen_networks(experiment: Experiment, predictions: PredictionFolder) -> None:
    """Say if a network was chosen by how it does on some of the cases."""
    if predictions.prediction.get("checkpoint") != BEST_CHECKPOINT:
        return
    for fold in predictions.prediction["folds"]:
        if fold != "all" and (seen := sorted({*predictions.cases} & {*experiment.validation_cases(fold)})):
            logger.warning(
                "%s of fold %s was chosen as the best one on validation cases that are in %s (%d: %s): expect more "
                "errors in others, and certify on others only",
                BEST_CHECKPOINT,
                fold,
                predictions.folder,
                len(seen),
                listed(seen),
            )
