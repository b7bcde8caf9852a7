"""From the logits of a case to its mask and its deferral maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits as stock_export
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_deferral import agreement_maps as agreement_folder
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.decision.assignment import check_capacities
from nnunetv2_deferral.decision.decide import Decision, decide
from nnunetv2_deferral.decision.limits import (
    DATASET,
    Limits,
    limits_of_environment,
    warn_of_full_budget,
)
from nnunetv2_deferral.decision.predicted_by import PredictedBy
from nnunetv2_deferral.defaults import AGGREGATED
from nnunetv2_deferral.environment import ENVIRONMENT_CAPACITIES, maps_wanted
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.maps import (
    PREDICTED_DICE,
    DeferralFolder,
    ModelIdentity,
    check_folder,
    check_kinds,
    save_routing,
)
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.fold_export import FoldsConfiguration, stock_plans, write_folds
from nnunetv2_deferral.nnunet.managers import DeferralLabelManager, DeferralPlansManager, configuration_name
from nnunetv2_deferral.nnunet.multi_rater_export import agreement_model, write_agreement
from nnunetv2_deferral.nnunet.multi_rater_plans import MultiRaterPlansManager
from nnunetv2_deferral.settings import DeferralSettings
from nnunetv2_deferral.text import named_folds


def export_prediction_from_logits(
    predicted_array_or_file: np.ndarray | Tensor,
    properties_dict: dict[str, Any],
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: dict[str, Any] | str,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """nnU-Net's export, with the same signature; for our models also writes the maps of deferral or of agreement.

    With `save_probabilities` the routing probabilities are saved beside the maps. If the folds of the case were
    recorded (:mod:`.fold_export`), their masks are written, too, for any model.

    Masks and npz files are written by nnU-Net's own function from the first K channels. Maps are written first, because
    nnU-Net treats a case with a mask as done when a prediction is continued.

    Raises:
        InputError: If the folder contains the maps of another model.
    """
    segmentation, file = predicted_array_or_file, Path(output_file_truncated)
    folder: DeferralFolder | None = None
    dataset_json: dict[str, Any] = (
        load_json(dataset_json_dict_or_file)
        if isinstance(dataset_json_dict_or_file, str)
        else dataset_json_dict_or_file
    )
    if isinstance(configuration_manager, FoldsConfiguration):
        write_folds(
            configuration_manager.stored,
            CaseGeometry(properties_dict, configuration_manager, stock_plans(plans_manager)),
            dataset_json,
            file,
            with_probabilities=save_probabilities,
            num_threads=num_threads_torch,
        )
    if isinstance(plans_manager, MultiRaterPlansManager):
        of_raters = plans_manager.model(configuration_manager)
        agreement_folder.check_folder(file.parent, of_raters)
        geometry, stock = CaseGeometry(properties_dict, configuration_manager, plans_manager), plans_manager.stock()
        channels = plans_manager.channels(stock.get_label_manager(dataset_json))
        segmentation, levels = channels.split(torch.as_tensor(predicted_array_or_file), dim=0)
        write_agreement(
            levels,
            geometry,
            stock,
            dataset_json,
            file,
            model=of_raters,
            with_levels=save_probabilities,
            prediction=plans_manager.prediction,
        )
        plans_manager = stock
    if isinstance(plans_manager, DeferralPlansManager):
        model = model_identity(plans_manager, configuration_manager)
        check_folder(file.parent, model)
        kinds = maps_wanted(plans_manager.settings.maps, plans_manager.settings.known_maps)
        check_kinds(file.parent, kinds)
        if AGGREGATED in kinds and not plans_manager.with_aggregated:
            raise InputError(
                f"this predictor was used without the map {AGGREGATED}, which is asked for now: initialize it again"
            )
        raters = agreement_model(plans_manager, configuration_manager)
        agreement_folder.check_folder(file.parent, raters, beside_deferral=True)
        labels = plans_manager.get_label_manager(dataset_json)
        parts = labels.layout.split(torch.as_tensor(predicted_array_or_file), dim=0)
        geometry = CaseGeometry(properties_dict, configuration_manager, plans_manager)
        # Resampled once, for nnU-Net's export too.
        segmentation, configuration_manager = geometry.resampled(parts.segmentation), geometry.without_resampling()
        probabilities, decision = decide_case(
            segmentation, parts.routing, labels, geometry, plans_manager, keep_probabilities=save_probabilities
        )
        ordinal = labels.ordinal
        if raters is not None and ordinal is not None:
            write_agreement(
                ordinal.by_structure(parts.levels, 0),
                geometry,
                plans_manager.stock(),
                dataset_json,
                file,
                model=raters,
                with_levels=save_probabilities,
            )
        if probabilities is not None:
            save_routing(file.parent, file.name, probabilities)
        del probabilities  # while maps are written
        folder = DeferralFolder(
            folder=file.parent,
            file_ending=dataset_json["file_ending"],
            writer=plans_manager.image_reader_writer_class(),
            model=model,
            settings=plans_manager.settings,
            calibration=plans_manager.calibration,
            kinds=kinds,
            prediction=plans_manager.prediction,
        )
        folder.write(
            file.name,
            decision.maps,
            properties_dict,
            decision.statistics,
            gains=decision.gains,
            prior=decision.prior,
            aggregated=aggregated_in_image(parts.aggregated, geometry) if AGGREGATED in kinds else None,
        )
        plans_manager = plans_manager.stock()
    stock_export(
        segmentation,
        properties_dict,
        configuration_manager,
        plans_manager,
        dataset_json,
        output_file_truncated,
        save_probabilities,
        num_threads_torch,
    )
    if folder is not None:
        folder.note_mask(file.name, with_probabilities=save_probabilities)


def decide_case(
    segmentation: np.ndarray,
    routing: Tensor,
    labels: DeferralLabelManager,
    geometry: CaseGeometry,
    plans_manager: DeferralPlansManager,
    limits: Limits | None = None,
    *,
    keep_probabilities: bool = False,
) -> tuple[np.ndarray | None, Decision]:
    """Compute the deferral decision for a case from its logits.

    Args:
        segmentation: The segmentation logits, float32 (K, *S), resampled to the image before cropping was undone.
        routing: The routing logits of the preprocessed case, channels first.
        labels: The model's label manager.
        geometry: The geometry of the preprocessed case.
        plans_manager: The model's plans, with settings and calibration.
        limits: The limits on deferral; None for those of the environment or the model's settings.
        keep_probabilities: Whether to return the routing probabilities, which take more than a GiB of a large CT.

    Returns:
        The routing probabilities in the image, float32 (J + 1, *S), before calibration and NaN where nothing was
        predicted, or None; and the decision.
    """
    rule, calibration = plans_manager.settings.rule, plans_manager.calibration
    softmax = probabilities_in_image(segmentation, labels, geometry)
    weight = dice_weight(softmax, has_regions=labels.has_regions)
    expected = {}
    if calibration is not None and calibration.forecast is not None:
        expected[PREDICTED_DICE] = calibration.forecast.predict(softmax, has_regions=labels.has_regions)
    # Mostly of no further use, so that memory is freed.
    kept = softmax if calibration is not None and calibration.reads_softmax else None
    del softmax
    resampled = geometry.resampled_fast(rule.probabilities(routing, dim=0))
    probabilities = geometry.in_image(resampled, [np.nan] * len(resampled))
    limits = effective_limits(plans_manager.settings) if limits is None else limits
    decision = decide(
        probabilities,
        weight,
        rule=rule,
        limits=limits.of_case,
        spacing_mm=geometry.spacing_mm,
        calibration=calibration,
        softmax=kept,
        overwrite=not keep_probabilities,
    )
    told = {} if limits.minutes is None else {"limits": limits.to_dict()}  # kept by hooks.py, after the last case
    decision = decision._replace(statistics=decision.statistics | told | expected)
    return probabilities if keep_probabilities else None, decision


def probabilities_in_image(
    segmentation: np.ndarray, labels: DeferralLabelManager, geometry: CaseGeometry
) -> np.ndarray:
    """The probabilities of classes or regions in the image, float32 (K, *S), as nnU-Net saves them.

    They are formed of resampled logits; where the image was cropped, all is background.
    """
    probabilities = np.asarray(labels.apply_inference_nonlin(torch.from_numpy(segmentation)), dtype=np.float32)
    outside = [0.0] * len(probabilities)
    if not labels.has_regions:
        outside[0] = 1.0
    return geometry.in_image(probabilities, outside)


def aggregated_in_image(logit: Tensor, geometry: CaseGeometry) -> np.ndarray:
    """The probability of the aggregated predictor in the image, float32 of shape S; 0 where nothing was predicted.

    Args:
        logit: Of the preprocessed case, (1, *S).
        geometry: The geometry of the preprocessed case.
    """
    found: np.ndarray = geometry.in_image(geometry.resampled_fast(torch.sigmoid(logit)), [0.0])[0]
    return found


def effective_limits(settings: DeferralSettings) -> Limits:
    """The limits of a model's settings, overridden by environment variables.

    Raises:
        InputError: If an environment variable is invalid; the message names it.
    """
    limits = limits_of_environment(settings.limits)
    check_capacities(limits.capacities, settings.num_experts, named=ENVIRONMENT_CAPACITIES)
    return limits


def check_limits(plans_manager: DeferralPlansManager, limits: Limits | None = None) -> None:
    """Refuse limits that a prediction cannot meet, and warn of a budget of 1, which limits nothing.

    Args:
        plans_manager: The model's plans.
        limits: The limits on deferral; None for those of the environment or the model's settings.

    Raises:
        InputError: If limits are over a dataset and no thresholds were fitted for them, or there is not one capacity
            per expert.
    """
    if limits is None:
        limits = effective_limits(plans_manager.settings)
    if limits.budget == 1:
        warn_of_full_budget()
    check_capacities(limits.capacities, plans_manager.settings.num_experts, named="limits")
    if limits.over == DATASET:
        if plans_manager.calibration is None:
            raise InputError(
                "a budget over a dataset requires thresholds fitted on validation cases, which this model does not "
                "have. Fit them: nnUNetv2_deferral_calibrate ... -budgets"
            )
        plans_manager.calibration.thresholds_for(limits)


def remarks_on_calibration(
    plans_manager: DeferralPlansManager, num_networks: int, unusual: Sequence[str] = ()
) -> list[str]:
    """What is to be known of the calibration before a prediction with the effective limits.

    Args:
        plans_manager: The model's plans; its `prediction` is how the model is used now.
        num_networks: The number of networks (folds) whose predictions are averaged.
        unusual: How the prediction differs from the final validation of a training, see :func:`.unlike_validation`.

    Returns:
        Lines for the terminal: that other networks predict than those that were calibrated, or in another manner; that
        heads are combined with the model's confidence; and whether the model's certificate holds.
    """
    calibration = plans_manager.calibration
    if calibration is None:
        return []
    fitted_on = PredictedBy.noted(calibration.report)
    remarks = [
        f"the calibration was fitted on {difference} agree less well with observed frequencies, and budgets over a "
        "dataset are met less closely"
        for difference in _differences(fitted_on, plans_manager.prediction, num_networks, unusual)
    ]
    if calibration.combination is not None and calibration.ranking_statement is not None:
        remarks.append(calibration.ranking_statement)
    if (certificate := calibration.certificate) is not None:
        limits, how = effective_limits(plans_manager.settings), plans_manager.prediction
        statement = certificate.statement_for(limits, how, ensemble=num_networks > 1)
        if unusual and certificate.predicted_by.prediction is None and statement == certificate.statement:
            statement = f"only if the validations were predicted in the same way: {statement}"
        remarks.append(statement)
    return remarks


def _differences(
    fitted_on: PredictedBy, prediction: Mapping[str, Any], num_networks: int, unusual: Sequence[str]
) -> list[str]:
    """How a prediction differs from those that a calibration was fitted on: on what it was, and whose probabilities."""
    if fitted_on.prediction is not None:
        unlike = fitted_on.unlike(prediction)
        return [f"predictions by {fitted_on.networks}: the probabilities of {unlike}"] if unlike else []
    found = []
    if num_networks > 1:
        found.append(f"predictions of single networks: the probabilities of an ensemble of {num_networks}")
    if others := fitted_on.others(prediction.get("folds", ())):
        found.append(
            f"predictions of {named_folds(fitted_on.folds)}, not of {named_folds(others)}: the probabilities of "
            f"{'another network' if len(others) == 1 else 'other networks'}"
        )
    if unusual:
        found.append(f"final validations: unless these were also predicted {' and '.join(unusual)}, the probabilities")
    return found


def model_identity(plans_manager: DeferralPlansManager, configuration_manager: ConfigurationManager) -> ModelIdentity:
    """The identity of the model that a plans manager belongs to."""
    return ModelIdentity(
        dataset=plans_manager.dataset_name,
        plans=plans_manager.plans_name,
        configuration=configuration_name(plans_manager, configuration_manager),
        trainer=plans_manager.trainer_name,
        experts=plans_manager.settings.expert_names,
        unavailable=plans_manager.settings.unavailable,
        calibration=None if (found := plans_manager.calibration) is None else found.fingerprint,
    )
