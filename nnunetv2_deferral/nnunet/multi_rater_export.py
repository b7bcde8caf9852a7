"""From the logits of a case to its mask and its maps of agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.multi_rater.agreement_maps import AGREEMENT, DISAGREEMENT, AgreementFolder, check_folder
from nnunetv2_deferral.multi_rater.ordinal import agreement, disagreement
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.multi_rater_plans import MultiRaterPlansManager


def write_agreement(
    logits: Tensor,
    geometry: CaseGeometry,
    plans_manager: MultiRaterPlansManager,
    dataset_json: dict[str, Any],
    file: Path,
    *,
    with_levels: bool,
) -> Tensor:
    """Write the maps of agreement of a case.

    Args:
        logits: The network's output for the preprocessed case, (H + F (K + 1), *S).
        geometry: Its geometry.
        plans_manager: The model's plans.
        dataset_json: The content of its dataset.json.
        file: The file of the mask, without its ending.
        with_levels: Whether the probabilities of the levels are written, too.

    Returns:
        The segmentation logits (H, *S), for nnU-Net's export.

    Raises:
        InputError: If the folder contains the maps of another model.
    """
    model = plans_manager.model(geometry.configuration_manager)
    check_folder(file.parent, model)
    labels = plans_manager.stock().get_label_manager(dataset_json)
    parts = plans_manager.channels(labels).split(logits, dim=0)
    found, levels = agreement_maps(parts.levels, geometry, with_levels=with_levels)
    files = DatasetFiles(
        file_ending=dataset_json["file_ending"],
        reader=plans_manager.image_reader_writer_class(),
        label_manager=labels,
        content=dataset_json,
    )
    folder = AgreementFolder(
        folder=file.parent,
        file_ending=files.file_ending,
        writer=files.reader,
        model=model,
        structures=files.class_names,
    )
    folder.write(file.name, found, geometry.properties, levels)
    return parts.segmentation


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
