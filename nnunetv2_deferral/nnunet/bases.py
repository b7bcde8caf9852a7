"""Which trainers of nnU-Net deferral can be added to, and with which settings."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.settings import DeferralSettings

# The training steps of nnU-Net that are known to differ in nothing but the norm at which they clip gradients.
_TRAINERS = "nnunetv2.training.nnUNetTrainer"
_CLIP_NORMS = {
    f"{_TRAINERS}.nnUNetTrainer.nnUNetTrainer": 12.0,
    f"{_TRAINERS}.primus.primus_trainers.AbstractPrimus": 1.0,
}
# Methods that deferral replaces, or whose stock form it relies on.
_RESERVED = ("validation_step", "get_dataloaders", "run_training")
# Methods that determine the augmentation; the second also which axes are mirrored.
_AUGMENTATION = ("get_training_transforms", "configure_rotation_dummyDA_mirroring_and_inital_patch_size")
# Settings that replace what a method of the base gives.
_REPLACED = {
    "optimizer": "configure_optimizers",
    "schedule": "configure_optimizers",
    "segmentation_loss": "_build_loss",
}


def other_trainer(name: str) -> type[nnUNetTrainer]:
    """The trainer of a name that is not one of ours: nnU-Net's, or from a folder of `nnUNet_extTrainer`.

    Raises:
        InputError: If there is none of that name.
    """
    try:
        # nnU-Net prints the folders that it searches.
        with contextlib.redirect_stdout(io.StringIO()):
            found: type[nnUNetTrainer] = recursive_find_trainer_class_by_name(name)
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"unknown trainer {name}: {error}") from error
    return found


def clip_norm_of_base(trainer: type, deferral: type) -> float:
    """The norm at which the base of a trainer clips gradients.

    Args:
        trainer: A subclass of the deferral trainer.
        deferral: The deferral trainer. The base is what follows it in the order of methods.

    Raises:
        InputError: If deferral cannot be added to the base; the message names the base and its method.
    """
    for method in _RESERVED:
        if (owner := _definer(_bases(trainer, deferral), method)) is not nnUNetTrainer:
            raise _refusal(trainer, owner, method, "deferral")
    owner = _definer(_bases(trainer, deferral), "train_step")
    name = f"{owner.__module__}.{owner.__qualname__}"
    if name not in _CLIP_NORMS:
        raise _refusal(trainer, owner, "train_step", "deferral")
    return _CLIP_NORMS[name]


def check_settings_of_base(trainer: type, deferral: type, settings: DeferralSettings) -> None:
    """Refuse settings that replace what the base of a trainer changes itself.

    Args:
        trainer: A subclass of the deferral trainer.
        deferral: The deferral trainer.
        settings: The settings.

    Raises:
        InputError: Naming the setting, the base and its method.
    """
    for setting, method in _REPLACED.items():
        value, owner = getattr(settings, setting), _definer(_bases(trainer, deferral), method)
        if value != "nnunet" and owner is not nnUNetTrainer:
            raise _refusal(trainer, owner, method, f'"{setting}": "{value}"')


def remark_on_augmentation(trainer: type, trained_by: str, *, mirrors_all_axes: bool) -> str:
    """A sentence if a head is trained with another augmentation than the network was, besides mirroring.

    Args:
        trainer: The deferral trainer of the head.
        trained_by: The name of the trainer of the network.
        mirrors_all_axes: Whether the network was mirrored along all axes, as by nnU-Net's default.

    Returns:
        The sentence, or an empty string.
    """
    try:
        other = other_trainer(trained_by)
    except InputError:
        return f"The network was trained by {trained_by}, which is not found; its augmentation may have been another"
    transforms, rotation = (
        _definer(_not_ours(other), method) is not _definer(_not_ours(trainer), method) for method in _AUGMENTATION
    )
    # Trainers that mirror along fewer axes have a method of their own for that alone.
    if transforms or (rotation and mirrors_all_axes):
        return (
            f"The network was trained by {trained_by}, which has an augmentation of its own. To train the head with "
            f"it, end the name of the trainer with _on_{trained_by}"
        )
    return ""


def _bases(trainer: type, deferral: type) -> Sequence[type]:
    """The base of a deferral trainer and its bases, in the order of methods."""
    return trainer.__mro__[trainer.__mro__.index(deferral) + 1 :]


def _not_ours(trainer: type) -> Sequence[type]:
    """A trainer and its bases without those of this package, which only add experts to an augmentation."""
    return [each for each in trainer.__mro__ if not each.__module__.startswith("nnunetv2_deferral")]


def _definer(classes: Sequence[type], method: str) -> type:
    """The first of the classes that defines a method."""
    return next(each for each in classes if method in vars(each))


def _refusal(trainer: type, owner: type, method: str, what: str) -> InputError:
    return InputError(
        f"{trainer.__name__}: {what} cannot be combined with {owner.__name__}, because it has its own {method}"
    )
