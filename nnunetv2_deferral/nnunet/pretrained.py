"""Loading weights: a stock network taken over whole, and checkpoints that must fit the experts."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.settings import PLANS_KEY, DeferralSettings, resolve_settings

# What must agree between two plans for a network of one to see the data it was trained on under the other.
_PLANS_KEYS = ("transpose_forward", "foreground_intensity_properties_per_channel")
_CONFIGURATION_KEYS = ("spacing", "normalization_schemes", "use_mask_for_norm", "architecture")


def load_stock_network(network: nn.Module, filename: str, plans: dict[str, Any], configuration: str) -> None:
    """Load all weights of a stock nnU-Net checkpoint, its segmentation layers included, into a deferral network.

    Args:
        network: A network with a deferral head, unwrapped.
        filename: Path of a checkpoint written by a stock trainer.
        plans: The plans of the deferral training.
        configuration: Its configuration, such as `"2d"`.

    Raises:
        InputError: If the checkpoint is of another configuration or of plans that feed the network other data, or if
            its weights do not fit; the message names the file and what differs.
    """
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    _check_same_plans(checkpoint["init_args"], plans, configuration, filename)
    weights = dict(checkpoint["network_weights"])
    last = f"decoder.seg_layers.{len(network.decoder.seg_layers) - 1}."  # type: ignore[union-attr,arg-type]
    for key in [key for key in weights if key.startswith(last)]:
        weights[f"{last}segmentation.{key.removeprefix(last)}"] = weights.pop(key)
    own = network.state_dict()
    added = {name for name in own if name.startswith(last) and not name.startswith(f"{last}segmentation.")}
    problems = [f"{name} is missing" for name in own if name not in weights and name not in added]
    problems += [f"{name} is not expected" for name in weights if name not in own or name in added]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise InputError(f"{filename} does not fit this network: {'; '.join(problems[:5])}")
    network.load_state_dict({name: weights.get(name, own[name]) for name in own})


def check_same_experts(
    filename_or_checkpoint: dict[str, Any] | str, settings: DeferralSettings, *, device: torch.device
) -> None:
    """Refuse to resume a training that had other experts.

    Raises:
        InputError: Naming the experts of both.
    """
    checkpoint = filename_or_checkpoint
    if isinstance(checkpoint, str):
        checkpoint = torch.load(checkpoint, map_location=device, weights_only=False)
    block = checkpoint["init_args"]["plans"].get(PLANS_KEY)
    trained = "none" if block is None else ", ".join(resolve_settings(block).expert_names)
    if trained != ", ".join(settings.expert_names):
        raise InputError(
            f"the checkpoint {filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else ''} was trained "
            f"with other experts ({trained}) than this trainer, its plans and its dataset have "
            f"({', '.join(settings.expert_names)})"
        )


def _check_same_plans(init_args: dict[str, Any], plans: dict[str, Any], configuration: str, filename: str) -> None:
    theirs, their_configuration = init_args["plans"], init_args["configuration"]
    if their_configuration != configuration:
        raise InputError(f"{filename} was trained in {their_configuration}, not in {configuration}")
    differing = [key for key in _PLANS_KEYS if theirs.get(key) != plans.get(key)]
    # The managers resolve configurations that inherit from others.
    ours_here, theirs_here = (
        PlansManager(each).get_configuration(configuration).configuration for each in (plans, theirs)
    )
    differing += [key for key in _CONFIGURATION_KEYS if ours_here.get(key) != theirs_here.get(key)]
    if differing:
        raise InputError(
            f"{filename} is of other plans ({theirs.get('dataset_name')}, {theirs.get('plans_name')}) than this "
            f"training ({plans.get('dataset_name')}, {plans.get('plans_name')}): they differ in {', '.join(differing)}"
        )
