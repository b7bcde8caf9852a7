"""`nnUNetv2_deferral_route`: decide what to ask about from maps or saved probabilities, without another prediction.

The predictions may be those of a deferral model, whose limits are to be others, or of a stock network, whose
probabilities and calibration are all that evidence needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral import maps
from nnunetv2_deferral.arrays import of_experts
from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.decision.assignment import check_capacities
from nnunetv2_deferral.decision.decide import Decision, RoutingMaps, decide, decide_again
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.decision.limits import DATASET, Limits, warn_of_full_budget
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.minutes import keep_minutes
from nnunetv2_deferral.predictions import PredictionFolder, StockFolder, absent_text, copied_predictions, noted_mask
from nnunetv2_deferral.review.work_times import chosen_time
from nnunetv2_deferral.settings import STOCK_KEY, DeferralSettings, resolve_settings
from nnunetv2_deferral.text import differences, rate_text


def route_folder(
    predictions: Path,
    output: Path,
    *,
    limits: Limits,
    model: Path | None = None,
    dataset_json: Path | None = None,
    time: WorkTime | None = None,
) -> float:
    """Decide for all cases of a folder and write their maps beside copies of the masks.

    Args:
        predictions: A folder of predictions. Without saved probabilities there must be a budget or capacities.
        output: A new folder for masks and maps.
        limits: The limits on deferral.
        model: For a stock network its model folder, with a calibration; for a deferral model None, which takes the
            settings and the calibration that the predictions were decided with.
        dataset_json: See :meth:`.PredictionFolder.open`.
        time: Working time of regions, for a limit of minutes; None for the defaults.

    Returns:
        The share of all voxels that is deferred.

    Raises:
        InputError: If probabilities are missing, the predictions are of a later round of questions, a stock network has
            no calibration, there are no thresholds for limits over a dataset, there is not one capacity per expert, or
            `output` is not empty.
    """
    folder, calibration, identity = _opened(predictions, model, dataset_json)
    has_probabilities = _has_probabilities(folder, limits, calibration)
    settings = folder.settings
    check_capacities(limits.capacities, settings.num_experts, named="-capacities")
    if limits.budget == 1:
        warn_of_full_budget()
    if limits.over == DATASET:
        if calibration is None:
            raise InputError("a budget over a dataset requires thresholds: nnUNetv2_deferral_calibrate ... -budgets")
        calibration.thresholds_for(limits)
    deferred = voxels = 0
    with copied_predictions(folder, output) as scratch:
        written = maps.DeferralFolder(
            folder=scratch,
            file_ending=folder.files.file_ending,
            writer=folder.files.reader,
            model=identity,
            settings=settings,
            calibration=calibration,
            prediction=folder.prediction if isinstance(folder, PredictionFolder) else {},
        )
        for name in tqdm(folder.cases, desc="Deciding", unit="case"):
            case = folder.case(name)
            decision = _decide(folder, case, limits.of_case, calibration, has_probabilities=has_probabilities)
            expected = _predicted_dice(folder, case, calibration)
            told = {} if limits.minutes is None else {"limits": limits.to_dict()}
            statistics = decision.statistics | told | expected | noted_mask(folder, name)
            properties = dict(case.properties)
            # Those of a gain map are of one expert per voxel.
            gains = decision.gains if has_probabilities or case.has("gains") else None
            written.write(name, decision.maps, properties, statistics, gains=gains, prior=decision.prior)
            deferred += int((decision.maps.route > 0).sum())
            voxels += decision.maps.route.size
        if limits.minutes is not None:
            kept = keep_minutes(scratch, limits.minutes, time or WorkTime())
            print(kept)
            deferred = kept.voxels
    return deferred / max(voxels, 1)


def _has_probabilities(
    folder: PredictionFolder | StockFolder, limits: Limits, calibration: ModelCalibration | None
) -> bool:
    """Whether all cases have saved probabilities. Without them, limits on the amount can be kept, by the maps.

    Raises:
        InputError: If they are missing and needed for these limits.
    """
    if not isinstance(folder, PredictionFolder):
        return True
    lacking = (
        file(case)
        for case in folder.cases
        for file, there in ((folder.routing_file, folder.has_routing), (folder.softmax_file, folder.has_softmax))
        if not there(case)
    )
    if (missing := next(lacking, None)) is None:
        return True
    advice = "predict with --save_probabilities, validate with --npz"
    if not limits.limits_amount:
        raise InputError(
            f"{absent_text(missing)}, but a decision without a budget or capacities requires probabilities: {advice}"
        )
    if limits.capacities is not None and folder.settings.num_experts > 1:
        absent = _first_missing(maps.gains_file(folder.folder, case) for case in folder.cases)
        if absent is not None:
            raise InputError(
                f"{absent} is missing (predictions before version 0.3, and volumes where asking helps nearly "
                f"everywhere, have none), but capacities require it or probabilities: {advice}"
            )
    if calibration is not None and calibration.evidence is not None:
        absent = _first_missing(map(folder.prior_file, folder.cases))
        if absent is not None:
            raise InputError(f"{absent} is missing, but is needed to read answers as evidence: {advice}")
    return False


def _first_missing(files: Iterable[Path]) -> Path | None:
    return next((file for file in files if not file.is_file()), None)


def _decide(
    folder: PredictionFolder | StockFolder,
    case: PredictedCase,
    limits: Limits,
    calibration: ModelCalibration | None,
    *,
    has_probabilities: bool,
) -> Decision:
    settings = folder.settings
    if not has_probabilities:
        decision = decide_again(
            RoutingMaps(case.route, case.probability, case.expert, case.gain),
            settings.num_experts,
            limits=limits,
            spacing_mm=case.spacing,
            calibration=calibration,
            gains=_kept_gains(folder, case) if case.has("gains") else None,
        )
        return decision._replace(prior=case.prior if case.has("prior") else None)
    return decide(
        case.routing,
        dice_weight(case.softmax, has_regions=folder.files.label_manager.has_regions),
        rule=settings.rule,
        limits=limits,
        spacing_mm=case.spacing,
        calibration=calibration,
        softmax=case.softmax,
    )


def _kept_gains(folder: PredictionFolder | StockFolder, case: PredictedCase) -> np.ndarray:
    """The kept gains of all experts, float32 (J, *S), which must be of the same decision as the maps.

    Raises:
        InputError: If they are not, as after files were copied; the message names the file.
    """
    gains = case.gains
    if not np.array_equal(of_experts(gains, case.expert) > 0, case.gain > 0):
        file = maps.gains_file(folder.folder, case.name)
        raise InputError(f"{file} belongs to another prediction: it is positive in other places than the gain map")
    return gains


def _predicted_dice(
    folder: PredictionFolder | StockFolder, case: PredictedCase, calibration: ModelCalibration | None
) -> dict[str, Any]:
    """The predicted Dice of a case for its entry: for a stock network computed, otherwise that of the prediction."""
    if isinstance(folder, PredictionFolder):
        entry = folder.index["cases"][case.name]
        return {maps.PREDICTED_DICE: entry[maps.PREDICTED_DICE]} if maps.PREDICTED_DICE in entry else {}
    if calibration is None or calibration.forecast is None:
        return {}
    has_regions = folder.files.label_manager.has_regions
    return {maps.PREDICTED_DICE: calibration.forecast.predict(case.softmax, has_regions=has_regions)}


def _opened(
    predictions: Path, model: Path | None, dataset_json: Path | None
) -> tuple[PredictionFolder | StockFolder, ModelCalibration | None, maps.ModelIdentity]:
    if model is None:
        found = PredictionFolder.open(predictions, dataset_json, undecided=True)  # all is decided anew
        if (number := found.index.get("round", 1)) != 1:
            raise InputError(
                f"{found.index_file} belongs to round {number} of questions, which follow from answers. To ask other "
                "questions in this round, repeat nnUNetv2_deferral_next_round on the previous one, with another -budget"
            )
        return found, found.calibration, found.identity
    plans_file = model / "plans.json"
    plans = read_plans_json(plans_file)
    if STOCK_KEY not in plans or CALIBRATION_KEY not in plans:
        raise InputError(f"{plans_file} has no calibration of a stock network: nnUNetv2_deferral_calibrate -tr ...")
    _check_predicted_by(plans, model, predictions)
    settings: DeferralSettings = resolve_settings(plans[STOCK_KEY])
    calibration = ModelCalibration.from_dict(plans[CALIBRATION_KEY], settings.expert_names)
    folder = StockFolder.open(predictions, dataset_json or model / "dataset.json", settings)
    trainer, plans_name, configuration = (*model.name.split("__"), "unknown", "unknown")[:3]
    identity = maps.ModelIdentity(
        dataset=str(plans.get("dataset_name")),
        plans=plans_name,
        configuration=configuration,
        trainer=trainer,
        experts=settings.expert_names,
        unavailable=settings.unavailable,
        calibration=calibration.fingerprint,
    )
    return folder, calibration, identity


def _check_predicted_by(plans: Mapping[str, Any], model: Path, predictions: Path) -> None:
    """Refuse predictions of another model than that of -m, as far as the files beside them tell.

    Raises:
        InputError: If they have maps of a deferral model, or plans of another dataset or name.
    """
    if maps.index_file(predictions).is_file():
        raise InputError(
            f"{predictions} has the maps of a deferral model, not predictions of the stock network {model} (-m). To "
            "decide on them again, leave out -m"
        )
    file = predictions / "plans.json"
    there = read_plans_json(file) if file.is_file() else plans
    named = ({key: each.get(key) for key in ("dataset_name", "plans_name")} for each in (there, plans))
    if differing := differences(*named):
        raise InputError(f"{predictions} was not predicted by {model} (-m): in {file}, {'; '.join(differing)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.route()
    given = parser.parse_args(arguments)
    try:
        limits = Limits(
            budget=given.budget,
            capacities=None if given.capacities is None else tuple(given.capacities),
            over=given.over,
            min_region_mm=given.min_region_mm,
            minutes=given.minutes,
        )
        time, fitted = chosen_time(given.times_from, given.minutes_per_region, given.minutes_per_cm)
        if fitted is not None:
            print(f"working time: {fitted}")
        rate = route_folder(given.i, given.o, limits=limits, model=given.m, dataset_json=given.djfile, time=time)
    except InputError as error:
        parser.error(str(error))
    print(f"{rate_text(rate)} of the voxels deferred\n  {given.o}")
    written = PredictionFolder.open(given.o, given.djfile)
    if written.calibration is not None and (certificate := written.calibration.certificate) is not None:
        print(f"  {certificate.statement_for(limits, written.prediction)}")
