"""Where the deferral head belongs in a network: at its segmentation layer, or behind its last features.

Nearly every segmentation network ends with a convolution whose output is that of the network. It is found by passing
one image of zeros through the network in training, and its name is written to the plans of the model, so that
predictions need not search for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_deferral.errors import InputError

Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ADVICE = (
    'Set "segmentation_layer" in the "deferral" block of the plans to the name of the convolution whose output is that '
    'of the network, or, if there is none, "features_from" to the name of the module whose output are the last features'
)


class HeadPlace(NamedTuple):
    """The place of the head.

    Attributes:
        module: The name of a module of the network.
        feature_channels: The number of channels of its output if this is the features; None if the module is the
            segmentation layer.
    """

    module: str
    feature_channels: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The place as entries of the model's plans."""
        if self.feature_channels is None:
            return {"segmentation_layer": self.module}
        return {"features_from": self.module, "feature_channels": self.feature_channels}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> HeadPlace | None:
        """The place in the entries of a model's plans, or None if they do not have it."""
        if "segmentation_layer" in content:
            return cls(content["segmentation_layer"])
        if "features_from" in content:
            return cls(content["features_from"], content["feature_channels"])
        return None


def find_head_place(
    network: nn.Module,
    input_shape: Sequence[int],
    num_heads: int,
    *,
    segmentation_layer: str | None = None,
    features_from: str | None = None,
) -> HeadPlace:
    """The place of the head in a network.

    Args:
        network: The network, with K output channels.
        input_shape: (C, *S) of an image that it accepts.
        num_heads: The number K of segmentation heads.
        segmentation_layer: The name of the segmentation layer if it should not be searched for.
        features_from: The name of the module with the last features, for a network without a segmentation layer.

    Raises:
        InputError: If a module does not exist or is not suitable, or no segmentation layer is found.
    """
    if features_from is not None:
        _module(network, features_from, "features_from")
        return HeadPlace(features_from, _feature_channels(network, input_shape, features_from))
    if segmentation_layer is None:
        return HeadPlace(find_segmentation_layer(network, input_shape, num_heads))
    layer = _module(network, segmentation_layer, "segmentation_layer")
    if not isinstance(layer, _CONVOLUTIONS) or layer.out_channels != num_heads:
        raise InputError(
            f'"segmentation_layer" in the "deferral" block is {segmentation_layer!r}, which is not a convolution of '
            f"{type(network).__name__} with {num_heads} output channels. Those are: "
            f"{_names(_candidates(network, num_heads))}"
        )
    return HeadPlace(segmentation_layer)


def find_segmentation_layer(network: nn.Module, input_shape: Sequence[int], num_heads: int) -> str:
    """The name of the convolution whose output is the (finest) output of a network.

    Args:
        network: The network, with K output channels. Its weights, buffers and modes are not changed.
        input_shape: (C, *S) of an image that it accepts.
        num_heads: The number K of segmentation heads.

    Returns:
        The name, as in `network.named_modules()`.

    Raises:
        InputError: If there is none, or it is applied more than once; the message lists the convolutions with K output
            channels.

    Example:
        >>> from torch import nn
        >>> from nnunetv2_deferral.head_place import find_segmentation_layer
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> find_segmentation_layer(network, (1, 16, 16), num_heads=2)
        '2'
    """
    candidates = _candidates(network, num_heads)
    output, seen = _probe(network, input_shape, candidates)
    # The tensor itself: equal values do not suffice, because on zeros many layers give the same.
    found = [name for name, outputs in seen.items() if any(each is output for each in outputs)]
    listed = f"Its convolutions with {num_heads} output channels are: {_names(candidates)}"
    if not found:
        raise InputError(
            f"cannot add a deferral head to {type(network).__name__}: no convolution gives the network's output. "
            f"{listed}. {_ADVICE}"
        )
    if len(seen[found[0]]) > 1:
        raise InputError(
            f"cannot add a deferral head to {type(network).__name__}: {found[0]}, which gives the network's output, is "
            f"applied {len(seen[found[0]])} times. {listed}. {_ADVICE}"
        )
    return found[0]


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module of a network wherever it is registered."""
    places = [(parent, key) for parent in network.modules() for key, child in parent._modules.items() if child is old]
    for parent, key in places:
        setattr(parent, key, new)


def _feature_channels(network: nn.Module, input_shape: Sequence[int], name: str) -> int:
    outputs = _probe(network, input_shape, {name: network.get_submodule(name)})[1][name]
    # (1, F, *S) with the axes of the input, at any resolution.
    fits = len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == len(input_shape) + 1
    if not fits:
        described = [str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in outputs]
        raise InputError(
            f'"features_from" in the "deferral" block: {name} of {type(network).__name__} must return one tensor with '
            f"the axes (B, F, {len(input_shape) - 1} spatial ones) once per image, but returned "
            f"{', '.join(described) or 'nothing'}"
        )
    return int(outputs[0].shape[1])


def _probe(
    network: nn.Module, input_shape: Sequence[int], modules: Mapping[str, nn.Module]
) -> tuple[Tensor, dict[str, list[Any]]]:
    """The network's finest output for an image of zeros, and the outputs of modules, one for each call."""
    seen: dict[str, list[Any]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, name=name: seen[name].append(output))
        for name, module in modules.items()
    ]
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            output = network(torch.zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return output[0] if isinstance(output, (list, tuple)) else output, seen


def _module(network: nn.Module, name: str, setting: str) -> nn.Module:
    known = dict(network.named_modules())
    if not name or name not in known:
        raise InputError(
            f'"{setting}" in the "deferral" block is {name!r}, but {type(network).__name__} has no such module. Its '
            f"modules are: {', '.join(filter(None, known))}"
        )
    return known[name]


def _candidates(network: nn.Module, num_heads: int) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _CONVOLUTIONS) and module.out_channels == num_heads
    }


def _names(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join(modules) or "none"
