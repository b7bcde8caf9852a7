"""Which trainers of nnU-Net deferral can be added to, and with which settings."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

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
# Settings that replace what a method of the base gives.
_REPLACED = {
    "optimizer": "configure_optimizers",
    "schedule": "configure_optimizers",
    "segmentation_loss": "_build_loss",
}


def clip_norm_of_base(trainer: type, deferral: type) -> float:
    """The norm at which the base of a trainer clips gradients.

    Args:
        trainer: A subclass of the deferral trainer.
        deferral: The deferral trainer. The base is what follows it in the order of methods.

    Raises:
        InputError: If deferral cannot be added to the base; the message names the base and its method.
    """
    for method in _RESERVED:
        if (owner := _definer(trainer, deferral, method)) is not nnUNetTrainer:
            raise _refusal(trainer, owner, method, "deferral")
    owner = _definer(trainer, deferral, "train_step")
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
        value, owner = getattr(settings, setting), _definer(trainer, deferral, method)
        if value != "nnunet" and owner is not nnUNetTrainer:
            raise _refusal(trainer, owner, method, f'"{setting}": "{value}"')


def _definer(trainer: type, deferral: type, method: str) -> type:
    """The class that defines a method of the base."""
    bases = trainer.__mro__[trainer.__mro__.index(deferral) + 1 :]
    return next(base for base in bases if method in vars(base))


def _refusal(trainer: type, owner: type, method: str, what: str) -> InputError:
    return InputError(
        f"{trainer.__name__}: {what} cannot be combined with {owner.__name__}, because it has its own {method}"
    )
