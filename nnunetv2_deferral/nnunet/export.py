"""From the logits of a case to its mask and its deferral maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits as stock_export
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_deferral.budget import budget_of_environment, route_within_budget
from nnunetv2_deferral.maps import ModelIdentity, check_folder, write_maps
from nnunetv2_deferral.nnunet.managers import DeferralPlansManager
from nnunetv2_deferral.rules import RoutingRule
from nnunetv2_deferral.settings import DeferralSettings


def export_prediction_from_logits(
    predicted_array_or_file: np.ndarray | Tensor,
    properties_dict: dict,
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: dict | str,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """nnU-Net's export, with the same signature; for a deferral model it also writes the deferral maps.

    Masks and npz files are written by nnU-Net's own function from the first K channels. The maps come first: a mask
    that exists tells a continued prediction that its case is done.

    Raises:
        ValueError: If the folder holds the maps of another model.
    """
    segmentation = predicted_array_or_file
    if isinstance(plans_manager, DeferralPlansManager):
        dataset_json: dict = (
            load_json(dataset_json_dict_or_file)
            if isinstance(dataset_json_dict_or_file, str)
            else dataset_json_dict_or_file
        )
        file, model = Path(output_file_truncated), model_identity(plans_manager, configuration_manager)
        check_folder(file.parent, model)
        logits = torch.as_tensor(predicted_array_or_file)
        parts = plans_manager.get_label_manager(dataset_json).layout.split(logits, dim=0)
        settings = plans_manager.settings
        budget = effective_budget(settings)
        routing_maps = maps_from_routing(
            parts.routing, settings.rule, properties_dict, configuration_manager, plans_manager, budget=budget
        )
        write_maps(
            file.parent,
            file.name,
            dataset_json["file_ending"],
            *routing_maps,
            writer=plans_manager.image_reader_writer_class(),
            properties=properties_dict,
            model=model,
            settings=settings,
            budget=budget,
        )
        segmentation, plans_manager = parts.segmentation, plans_manager.stock()
    stock_export(
        segmentation,
        properties_dict,
        configuration_manager,
        plans_manager,
        dataset_json_dict_or_file,
        output_file_truncated,
        save_probabilities,
        num_threads_torch,
    )


class RoutingMaps(NamedTuple):
    """The deferral maps of a case, in the axis order of nnU-Net's writers.

    Attributes:
        route: uint8, 0 the model, j expert j.
        probability: float32 in [0, 1], the score of the model's rule: the probability 1 - M_0 that the voxel is
            deferred, or with one-vs-all the probability that deferring it helps.
        expert: uint8 in [1, J], the expert whom the rule prefers, whether the voxel is deferred or not.
    """

    route: np.ndarray
    probability: np.ndarray
    expert: np.ndarray


def maps_from_routing(
    routing: Tensor,
    rule: RoutingRule,
    properties: dict[str, Any],
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    *,
    budget: float | None = None,
) -> RoutingMaps:
    """Routing logits of a preprocessed case as maps in the geometry of its image.

    Resampling, cropping and axis order are undone as nnU-Net undoes them for probabilities. What was cropped away
    stays the model's: route 0, probability 0, and the first expert who is available for want of a better one.

    Args:
        routing: Logits (J + 1, *S) in the shape of the preprocessed case.
        rule: What they mean.
        properties: nnU-Net's properties of the case.
        configuration_manager: The configuration that was predicted with.
        plans_manager: Its plans.
        budget: Share of the image's voxels that may be deferred, or None to leave it to the rule.

    """
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    target = list(configuration_manager.spacing)
    predicted_spacing = target if len(target) == len(shape) else [spacing[0], *target]
    predicted = rule.probabilities(routing, dim=0)
    probabilities: np.ndarray = np.asarray(
        configuration_manager.resampling_fn_probabilities(predicted, shape, predicted_spacing, spacing)
    )

    def in_image(cropped: np.ndarray, outside: int = 0) -> np.ndarray:
        whole = np.full(properties["shape_before_cropping"], outside, dtype=cropped.dtype)
        whole = insert_crop_into_image(whole, cropped, properties["bbox_used_for_cropping"])
        return whole.transpose(plans_manager.transpose_backward)

    score = in_image(np.clip(rule.score(probabilities, axis=0), 0, 1, dtype=np.float32))
    expert = in_image(rule.expert(probabilities, axis=0).astype(np.uint8), outside=1 + rule.available.index(True))
    if budget is None:
        return RoutingMaps(in_image(rule.decision(probabilities, axis=0).astype(np.uint8)), score, expert)
    worthwhile = in_image(rule.worthwhile(probabilities, axis=0))
    return RoutingMaps(route_within_budget(score, expert, worthwhile, budget), score, expert)


def effective_budget(settings: DeferralSettings) -> float | None:
    """The budget that the environment asks for, else that of the settings, else None."""
    asked = budget_of_environment()
    return settings.budget if asked is None else asked


def model_identity(plans_manager: DeferralPlansManager, configuration_manager: ConfigurationManager) -> ModelIdentity:
    """Which model a plans manager belongs to."""
    names = [
        name
        for name in plans_manager.available_configurations
        if plans_manager.get_configuration(name).configuration == configuration_manager.configuration
    ]
    return ModelIdentity(
        dataset=plans_manager.dataset_name,
        plans=plans_manager.plans_name,
        configuration=names[0] if names else "unknown",
        trainer=plans_manager.trainer_name,
        experts=plans_manager.settings.expert_names,
        unavailable=plans_manager.settings.unavailable,
    )
