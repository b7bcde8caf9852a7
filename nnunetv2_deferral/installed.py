"""Locations of installed parts of this package."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

from nnunetv2_deferral.errors import InputError


def trainers_folder() -> Path:
    """The folder to put in `nnUNet_extTrainer`."""
    return Path(next(iter(import_module("nnunetv2_deferral.trainers").__path__))).resolve()


def find_script(name: str) -> str:
    """Find a console script beside the running Python (also in a venv that is not activated), else on the PATH.

    Raises:
        InputError: If it is not found.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise InputError(f"the command {name} was found neither beside {sys.executable} nor on the PATH")
    return found
