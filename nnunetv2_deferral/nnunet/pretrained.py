"""Loading weights of a stock network, and checking that checkpoints belong to the same experts and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.experts import Expert
from nnunetv2_deferral.network import deferral_head
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import PLANS_KEY, DeferralSettings, resolve_settings
from nnunetv2_deferral.text import differences

# Entries that must agree between the plans of a stock network and those of a deferral training on it.
_PLANS_KEYS = ("transpose_forward", "foreground_intensity_properties_per_channel")
_CONFIGURATION_KEYS = ("spacing", "normalization_schemes", "use_mask_for_norm", "architecture")
# Settings that a resumed training may change: what predictions do with it, and when it ends. Experts are compared one
# by one.
_MAY_CHANGE = {
    *("experts", "unavailable", "budget", "capacities", "budget_over", "min_region_mm", "maps", "evaluation_seed"),
    *("patience", "final_weights", "head_initialization"),
}
# Those without effect on a training by the one-vs-all objective, and on one without simulated experts.
_OF_COLLABORATION = {"costs", "lower", "upper", "lambda_balance"}
_OF_SIMULATED = {"boundary_width", "expert_voxel_mm"}


class StockTraining(NamedTuple):
    """How a stock network was trained.

    Attributes:
        trainer: The name of its trainer.
        mirroring: The axes along which its predictions are mirrored, or None for no mirroring.
    """

    trainer: str
    mirroring: tuple[int, ...] | None


def load_stock_network(network: nn.Module, filename: str, plans: dict[str, Any], configuration: str) -> StockTraining:
    """Load all weights of a stock nnU-Net checkpoint, including segmentation layers, into a deferral network.

    Args:
        network: A network with a deferral head, unwrapped.
        filename: Path of a checkpoint written by a stock trainer.
        plans: The plans of the deferral training.
        configuration: Its configuration, such as `"2d"`.

    Returns:
        How it was trained.

    Raises:
        InputError: If the configuration, or plans that affect the network's input, or the shapes of weights differ; the
            message names the file and the differences.
    """
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    _check_same_plans(checkpoint["init_args"], plans, configuration, filename)
    weights = checkpoint["network_weights"]
    head = deferral_head(network)
    with head.removed_from(network):
        own = network.state_dict()
        problems = [f"{name} is missing" for name in own if name not in weights]
        problems += [f"{name} is unexpected" for name in weights if name not in own]
        problems += [
            f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
        if problems:
            remedy = ""
            if head.ordinal is not None:
                remedy = ". With _MR the segmentation network is one of nnUNetTrainerMultiRater, for the same raters"
            raise InputError(f"the weights in {filename} do not match this network: {'; '.join(problems[:5])}{remedy}")
        network.load_state_dict(weights)
    # As in nnU-Net's prediction, a checkpoint without the entry means no mirroring.
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    return StockTraining(checkpoint["trainer_name"], None if axes is None else tuple(int(axis) for axis in axes))


def check_same_training(
    filename_or_checkpoint: dict[str, Any] | str, settings: DeferralSettings, *, device: torch.device
) -> None:
    """Refuse to resume a training with other experts, or with other settings of what is trained.

    Raises:
        InputError: Naming the experts of both, or the settings that differ with the values of both.
    """
    checkpoint = filename_or_checkpoint
    if isinstance(checkpoint, str):
        checkpoint = torch.load(checkpoint, map_location=device, weights_only=False)
    block = checkpoint["init_args"]["plans"].get(PLANS_KEY)
    trained = None if block is None else resolve_settings(block)
    named = f"the checkpoint {filename_or_checkpoint}" if isinstance(filename_or_checkpoint, str) else "the checkpoint"
    if trained is None or trained.expert_names != settings.expert_names:
        raise InputError(
            f"{named} was trained with other experts ({'none' if trained is None else ', '.join(trained.expert_names)})"
            f" than those of this trainer, its plans and its dataset ({', '.join(settings.expert_names)})"
        )
    if differing := _differing(trained, settings):
        raise InputError(
            f"{named} was trained with other settings than those of this trainer and its plans: "
            f'{"; ".join(differing)}. Change the "{PLANS_KEY}" block of the plans back, or start a new training with '
            "plans of another name"
        )


def other_trained_folds(model: Path, fold: int | str) -> list[str]:
    """The names of the folders of other folds of a model that have a checkpoint, sorted."""
    found = {file.parent.name for file in model.glob("fold_*/checkpoint_*.pth")}
    return sorted(found - {f"fold_{fold}"})


def check_same_model(model: Path, fold: int | str, settings: DeferralSettings) -> None:
    """Refuse to train a fold beside others that were trained with other experts or settings.

    A model has one plans.json, which the training of a fold writes anew: predictions with its other folds would name
    the experts of this training and read their routing by its rule.

    Args:
        model: The model folder.
        fold: The fold that is about to be trained.
        settings: Its settings.

    Raises:
        InputError: Naming the other folds, and the experts of both or the settings that differ.
    """
    others = other_trained_folds(model, fold)
    try:
        block = read_plans_json(model / "plans.json").get(PLANS_KEY)
    except InputError:
        return  # missing, or another training is writing it
    if not others or block is None:
        return
    trained = resolve_settings(block)
    if trained.expert_names != settings.expert_names:
        differing = [f"experts are {', '.join(trained.expert_names)}, not {', '.join(settings.expert_names)}"]
    else:
        differing = _differing(trained, settings)
    if differing:
        raise InputError(
            f"other folds of {model} ({', '.join(others)}) were trained with other settings than those of this "
            f"trainer, its plans and its dataset: {'; '.join(differing)}. Folds of one model share its plans.json; "
            "train with plans of another name, or move the folder away"
        )


def _differing(trained: DeferralSettings, settings: DeferralSettings) -> list[str]:
    """One phrase for each setting of a training that differs, and for each property of an expert."""
    found = []
    for there, here in zip(trained.experts, settings.experts, strict=True):
        found += [f"{there.name}: {each}" for each in differences(*(_as_mapping(each) for each in (there, here)))]
    ignored = set(_MAY_CHANGE)
    if trained.objective == settings.objective == ONE_VS_ALL:
        ignored |= _OF_COLLABORATION
    if not settings.profiles:
        ignored |= _OF_SIMULATED
    blocks = (
        {key: value for key, value in each.to_dict().items() if key not in ignored} for each in (trained, settings)
    )
    return found + differences(*blocks)


def _as_mapping(expert: Expert) -> dict[str, Any]:
    content = expert.to_json()
    return {"masks": "of a rater"} if isinstance(content, str) else {"masks": "simulated"} | content


def _check_same_plans(init_args: dict[str, Any], plans: dict[str, Any], configuration: str, filename: str) -> None:
    theirs, their_configuration = init_args["plans"], init_args["configuration"]
    if their_configuration != configuration:
        raise InputError(f"{filename} was trained with configuration {their_configuration}, not {configuration}")
    differing = [key for key in _PLANS_KEYS if theirs.get(key) != plans.get(key)]
    # The managers resolve configurations that inherit from others.
    ours_here, theirs_here = (
        PlansManager(each).get_configuration(configuration).configuration for each in (plans, theirs)
    )
    differing += [key for key in _CONFIGURATION_KEYS if ours_here.get(key) != theirs_here.get(key)]
    if differing:
        raise InputError(
            f"the plans of {filename} ({theirs.get('dataset_name')}, {theirs.get('plans_name')}) and of this training "
            f"({plans.get('dataset_name')}, {plans.get('plans_name')}) differ in {', '.join(differing)}"
        )
