"""The environment variables that change what a prediction does; each is read where its meaning is.

Settings that hold for one command only, because nnU-Net's own commands take no further options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from nnunetv2_deferral.errors import InputError

_PREFIX = "nnUNet_deferral_"
ENVIRONMENT = f"{_PREFIX}budget"
ENVIRONMENT_OVER = f"{_PREFIX}budget_over"
ENVIRONMENT_CAPACITIES = f"{_PREFIX}capacities"
ENVIRONMENT_REGION = f"{_PREFIX}min_region_mm"
ENVIRONMENT_MINUTES = f"{_PREFIX}minutes"
ENVIRONMENT_FOLDS = f"{_PREFIX}folds"
_VARIABLES = (
    ENVIRONMENT,
    ENVIRONMENT_OVER,
    ENVIRONMENT_CAPACITIES,
    ENVIRONMENT_REGION,
    ENVIRONMENT_MINUTES,
    ENVIRONMENT_FOLDS,
)


def check_names(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse unknown variables that begin like ours: they are probably misspelt.

    Raises:
        InputError: Naming the variable and those that are known.
    """
    known = [os.path.normcase(name) for name in _VARIABLES]  # Windows has all names in upper case
    for name in sorted(environment):
        if name.lower().startswith(_PREFIX.lower()) and os.path.normcase(name) not in known:
            raise InputError(f"unknown environment variable {name}; known are {', '.join(_VARIABLES)}")


def folds_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the masks of single folds are wanted beside the ensemble's (`nnUNet_deferral_folds`, 1 or 0).

    Raises:
        InputError: If the value is something else, or another variable is misspelt; the message names it.
    """
    check_names(environment)
    text = environment.get(ENVIRONMENT_FOLDS, "").strip()
    if text not in ("", "0", "1"):
        raise InputError(f"{ENVIRONMENT_FOLDS} must be 1 or 0, got {text!r}")
    return text == "1"
