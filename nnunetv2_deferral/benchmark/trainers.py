"""Trainer classes by name, and their numbers of epochs."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from nnunetv2.paths import nnUNet_extTrainer

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import trainers_folder
from nnunetv2_deferral.nnunet.bases import other_trainer
from nnunetv2_deferral.nnunet.multi_rater_naming import multi_rater_class
from nnunetv2_deferral.nnunet.multi_rater_trainer import MultiRaterTrainer
from nnunetv2_deferral.nnunet.naming import ON, trainer_class
from nnunetv2_deferral.nnunet.trainer import DeferralTrainer

DEFAULT_EPOCHS = 1000
_EPOCHS = re.compile(r"_(\d+)epochs?(?=_|$)")


@cache
def find_trainer(name: str) -> type:
    """The class that nnUNetv2_train uses for a name.

    Raises:
        InputError: If there is none of that name.
    """
    for find in (trainer_class, multi_rater_class):
        try:
            return find(name)
        except AttributeError:
            pass  # not one of these
    return other_trainer(name)


def is_frozen(name: str) -> bool:
    """Whether the trainer starts from the trained network of a stock trainer."""
    return bool(getattr(find_trainer(name), "frozen", False))


def learns_agreement(name: str) -> bool:
    """Whether the trainer's network has an ordinal head: nnUNetTrainerMultiRater, and deferral with _MR."""
    found = find_trainer(name)
    if issubclass(found, MultiRaterTrainer):
        return found.method.has_levels
    return bool(getattr(found, "settings_overrides", {}).get("multi_rater", False))


def is_deferral_trainer(name: str) -> bool:
    """Whether the trainer is a deferral trainer."""
    return issubclass(find_trainer(name), DeferralTrainer)


def with_epochs(name: str, epochs: int | None) -> str:
    """The name of the same trainer with another number of epochs; unchanged for None and 1000, nnU-Net's default.

    Raises:
        InputError: If the number of epochs is less than 1.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"the number of epochs must be at least 1, got {epochs}")
    if epochs in (None, DEFAULT_EPOCHS):
        return name
    own, on, base = name.partition(ON)
    return f"{own}_{epochs}epoch{'s' if epochs != 1 else ''}{on}{base}"


def expected_epochs(name: str) -> int:
    """The number of epochs according to a trainer's name; custom trainers may use another number."""
    found = _EPOCHS.search(name)
    return int(found[1]) if found else DEFAULT_EPOCHS


def trainers_path() -> str:
    """The value of nnUNet_extTrainer, including the folder of the deferral trainers."""
    ours = str(trainers_folder())
    theirs = [path for path in (nnUNet_extTrainer.get() or "").split(os.pathsep) if path.strip()]
    return os.pathsep.join(theirs if any(Path(path).resolve() == Path(ours) for path in theirs) else [ours, *theirs])


def environment() -> dict[str, str]:
    """The environment for nnU-Net's commands: the current one, with our trainers and unbuffered output."""
    return {**os.environ, "nnUNet_extTrainer": trainers_path(), "PYTHONUNBUFFERED": "1"}
