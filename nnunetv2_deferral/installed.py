"""Where parts of this package lie, in a checkout or installed."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

from nnunetv2_deferral.errors import InputError


def trainers_folder() -> Path:
    """The folder that `nnUNet_extTrainer` must name."""
    return Path(next(iter(import_module("nnunetv2_deferral.trainers").__path__))).resolve()


def find_script(name: str) -> str:
    """A console script: the one beside the running Python, also in a venv that is not activated, else on the path.

    Raises:
        InputError: If there is none.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise InputError(f"the command {name} is neither beside {sys.executable} nor on the path")
    return found
