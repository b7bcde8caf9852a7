"""From the logits of a case to its mask and its maps of agreement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from torch import Tensor

from nnunetv2_deferral.multi_rater.agreement_maps import AGREEMENT, DISAGREEMENT, AgreementFolder, check_folder
from nnunetv2_deferral.multi_rater.ordinal import agreement, disagreement
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.multi_rater_plans import MultiRaterPlansManager


def export_with_agreement(
    stock_export: Callable[..., None],
    predicted_array_or_file: np.ndarray | Tensor,
    properties_dict: dict[str, Any],
    configuration_manager: Any,
    plans_manager: MultiRaterPlansManager,
    dataset_json_dict_or_file: dict[str, Any] | str,
    output_file_truncated: str,
    save_probabilities: bool,
    num_threads_torch: int,
) -> None:
    """nnU-Net's export of the segmentation channels, after the maps of agreement were written.

    Raises:
        InputError: If the folder contains the maps of another model.
    """
    dataset_json: dict[str, Any] = (
        load_json(dataset_json_dict_or_file)
        if isinstance(dataset_json_dict_or_file, str)
        else dataset_json_dict_or_file
    )
    file, model = Path(output_file_truncated), plans_manager.model(configuration_manager)
    check_folder(file.parent, model)
    stock_plans = plans_manager.stock()
    labels = stock_plans.get_label_manager(dataset_json)
    parts = plans_manager.channels(labels).split(torch.as_tensor(predicted_array_or_file), dim=0)
    geometry = CaseGeometry(properties_dict, configuration_manager, plans_manager)
    found, levels = agreement_maps(parts.levels, geometry, with_levels=save_probabilities)
    folder = AgreementFolder(
        folder=file.parent,
        file_ending=dataset_json["file_ending"],
        writer=plans_manager.image_reader_writer_class(),
        model=model,
        structures=structure_names(dataset_json, labels.has_regions),
    )
    folder.write(file.name, found, properties_dict, levels)
    stock_export(
        parts.segmentation,
        properties_dict,
        configuration_manager,
        stock_plans,
        dataset_json_dict_or_file,
        output_file_truncated,
        save_probabilities,
        num_threads_torch,
    )


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


def structure_names(dataset_json: dict[str, Any], has_regions: bool) -> tuple[str, ...]:
    """The names of the foreground classes or regions, in the order of nnU-Net's channels."""
    labels: dict[str, Any] = dataset_json["labels"]
    if has_regions:
        # As nnU-Net's label manager: in the order of dataset.json, without background and ignore label.
        return tuple(name for name, value in labels.items() if name != "ignore" and not _is_background(value))
    ordered = sorted((int(value), name) for name, value in labels.items() if name != "ignore")
    return tuple(name for value, name in ordered if value != 0)


def _is_background(value: Any) -> bool:
    return value == 0 or (isinstance(value, (list, tuple)) and list(value) == [0])
