"""Installed parts of this package, and versions."""

from __future__ import annotations

import shutil
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

from nnunetv2_deferral import __version__
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


def versions(*more: str) -> dict[str, str]:
    """The versions to record in results: of this package, of nnU-Net, and of more installed packages."""
    return {"nnunetv2_deferral": __version__} | {name: _version(name) for name in ("nnunetv2", *more)}


@cache
def _version(name: str) -> str:
    return metadata.version(name)
