"""The classes behind trainers' names, and how long they train."""

from __future__ import annotations

import contextlib
import io
import os
import re
from functools import cache
from pathlib import Path

from nnunetv2.paths import nnUNet_extTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import trainers_folder
from nnunetv2_deferral.nnunet.naming import trainer_class
from nnunetv2_deferral.nnunet.trainer import DeferralTrainer

DEFAULT_EPOCHS = 1000
_EPOCHS = re.compile(r"_(\d+)epochs?(?=_|$)")


@cache
def find_trainer(name: str) -> type:
    """The class that nnUNetv2_train would train with.

    Raises:
        InputError: If there is none of that name.
    """
    try:
        return trainer_class(name)
    except AttributeError:
        pass  # not a name of ours
    try:
        # nnU-Net prints where it looks.
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"there is no trainer {name}: {error}") from error


def is_frozen(name: str) -> bool:
    """Whether the trainer needs the trained network of a stock trainer to start from."""
    return bool(getattr(find_trainer(name), "frozen", False))


def is_deferral_trainer(name: str) -> bool:
    """Whether the trainer is one of ours or a subclass."""
    return issubclass(find_trainer(name), DeferralTrainer)


def with_epochs(name: str, epochs: int | None) -> str:
    """The name of the same trainer with another length; None and 1000 (nnU-Net's own) leave it as it is.

    Raises:
        InputError: If the length is no number of epochs.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"the number of epochs must be at least 1, got {epochs}")
    if epochs in (None, DEFAULT_EPOCHS):
        return name
    return f"{name}_{epochs}epoch{'s' if epochs != 1 else ''}"


def expected_epochs(name: str) -> int:
    """How many epochs a trainer of that name should take; one's own trainers may take another number."""
    found = _EPOCHS.search(name)
    return int(found[1]) if found else DEFAULT_EPOCHS


def trainers_path() -> str:
    """nnUNet_extTrainer with the folder of our trainers in it."""
    ours = str(trainers_folder())
    theirs = [path for path in (nnUNet_extTrainer.get() or "").split(os.pathsep) if path.strip()]
    return os.pathsep.join(theirs if any(Path(path).resolve() == Path(ours) for path in theirs) else [ours, *theirs])
