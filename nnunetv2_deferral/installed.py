"""Where parts of this package lie, in a checkout or installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def trainers_folder() -> Path:
    """The folder that `nnUNet_extTrainer` must name."""
    return Path(next(iter(import_module("nnunetv2_deferral.trainers").__path__))).resolve()
