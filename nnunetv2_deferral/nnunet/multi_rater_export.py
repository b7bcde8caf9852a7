"""From the logits of a case to its mask and its maps of agreement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_deferral.agreement_maps import AGREEMENT, DISAGREEMENT, AgreementFolder, MultiRaterModel
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.multi_rater.ordinal import agreement, disagreement
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.managers import DeferralPlansManager, configuration_name
from nnunetv2_deferral.nnunet.multi_rater_plans import MultiRaterPlansManager


def agreement_model(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> MultiRaterModel | None:
    """The identity of a model that writes maps of agreement, alone or besides those of deferral; None of another."""
    if isinstance(plans_manager, MultiRaterPlansManager):
        return plans_manager.model(configuration_manager)
    if isinstance(plans_manager, DeferralPlansManager) and plans_manager.settings.multi_rater:
        return MultiRaterModel(
            dataset=plans_manager.dataset_name,
            plans=plans_manager.plans_name,
            configuration=configuration_name(plans_manager, configuration_manager),
            trainer=plans_manager.trainer_name,
            raters=plans_manager.settings.expert_names,
        )
    return None


def write_agreement(
    levels: Tensor,
    geometry: CaseGeometry,
    plans_manager: PlansManager,
    dataset_json: dict[str, Any],
    file: Path,
    *,
    model: MultiRaterModel,
    with_levels: bool,
    prediction: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the maps of agreement of a case.

    Args:
        levels: The logits of the levels for the preprocessed case, (F, K + 1, *S).
        geometry: Its geometry.
        plans_manager: A stock manager of the model's plans.
        dataset_json: The content of its dataset.json.
        file: The file of the mask, without its ending.
        model: From :func:`agreement_model`.
        with_levels: Whether the probabilities of the levels are written, too.
        prediction: See :class:`.AgreementFolder`.
    """
    found, probabilities = agreement_maps(levels, geometry, with_levels=with_levels)
    files = DatasetFiles(
        file_ending=dataset_json["file_ending"],
        reader=plans_manager.image_reader_writer_class(),
        label_manager=plans_manager.get_label_manager(dataset_json),
        content=dataset_json,
    )
    folder = AgreementFolder(
        folder=file.parent,
        file_ending=files.file_ending,
        writer=files.reader,
        model=model,
        structures=files.class_names,
        prediction=prediction,
    )
    folder.write(file.name, found, geometry.properties, probabilities)


def agreement_maps(
    levels: Tensor, geometry: CaseGeometry, *, with_levels: bool
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The maps of a case in its image, and if wanted the probabilities of the levels.

    Probabilities of the preprocessed case are resampled, and where the image was cropped nobody marks anything.

    Args:
        levels: The logits of the preprocessed case, (F, K + 1, *S).
        geometry: Its geometry.
        with_levels: Whether the probabilities of the levels are wanted.

    Returns:
        By kind, float32 (F, *S) in the image; and float32 (F, K + 1, *S), or None.
    """
    probabilities = torch.softmax(levels.float(), 1)
    number, size = probabilities.shape[:2]
    if with_levels:
        resampled = geometry.resampled_fast(probabilities.flatten(0, 1))
        outside = [1.0, *[0.0] * (size - 1)] * number
        saved = geometry.in_image(resampled, outside).clip(0, 1)
        saved = saved.reshape(number, size, *saved.shape[1:])
        inside = torch.from_numpy(saved)
        return {AGREEMENT: agreement(inside).numpy(), DISAGREEMENT: disagreement(inside).numpy()}, saved
    both = torch.cat((agreement(probabilities), disagreement(probabilities)))
    found = geometry.in_image(geometry.resampled_fast(both), [0.0] * len(both)).clip(0, 1)
    return {AGREEMENT: found[:number], DISAGREEMENT: found[number:]}, None
