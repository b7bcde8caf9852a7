"""The environment variables that change what a prediction or a training does; each is read where its meaning is.

Settings that hold for one command only, because nnU-Net's own commands take no further options.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from nnunetv2_deferral.defaults import MAPS, ROUTE
from nnunetv2_deferral.errors import InputError

_PREFIX = "nnUNet_deferral_"
ENVIRONMENT = f"{_PREFIX}budget"
ENVIRONMENT_OVER = f"{_PREFIX}budget_over"
ENVIRONMENT_CAPACITIES = f"{_PREFIX}capacities"
ENVIRONMENT_REGION = f"{_PREFIX}min_region_mm"
ENVIRONMENT_MINUTES = f"{_PREFIX}minutes"
ENVIRONMENT_FOLDS = f"{_PREFIX}folds"
ENVIRONMENT_MAPS = f"{_PREFIX}maps"
ENVIRONMENT_SIMULATE_ON = f"{_PREFIX}simulate_on"
VARIABLES = (
    ENVIRONMENT,
    ENVIRONMENT_OVER,
    ENVIRONMENT_CAPACITIES,
    ENVIRONMENT_REGION,
    ENVIRONMENT_MINUTES,
    ENVIRONMENT_FOLDS,
    ENVIRONMENT_MAPS,
    ENVIRONMENT_SIMULATE_ON,
)
_LOADER, _DEVICE = "loader", "device"


def check_names(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse unknown variables that begin like ours: they are probably misspelt.

    Raises:
        InputError: Naming the variable and those that are known.
    """
    known = [os.path.normcase(name) for name in VARIABLES]  # Windows has all names in upper case
    for name in sorted(environment):
        if name.lower().startswith(_PREFIX.lower()) and os.path.normcase(name) not in known:
            raise InputError(f"unknown environment variable {name}; known are {', '.join(VARIABLES)}")


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


def maps_wanted(
    planned: Sequence[str], known: Sequence[str] = MAPS, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """The maps that are written for each case, in the order of those that are known; the route always is.

    Args:
        planned: Those of the settings, which `nnUNet_deferral_maps` (names separated by spaces) overrides.
        known: Those that the model has, see :attr:`.DeferralSettings.known_maps`.
        environment: The environment variables.

    Raises:
        InputError: If a name is unknown, or another variable is misspelt; the message names it.
    """
    check_names(environment)
    names = environment.get(ENVIRONMENT_MAPS, "").split()
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"{ENVIRONMENT_MAPS}: there is no map {', '.join(unknown)} of this model; known are {' '.join(known)}"
        )
    return tuple(name for name in known if name == ROUTE or name in (names or planned))


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """A context in which a variable has a value, also for processes that are started in it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def all_maps(known: Sequence[str]) -> AbstractContextManager[None]:
    """A context in which all maps of a model are written.

    Calibrations, benchmarks and the summary of a training take all maps of its validation.
    """
    return variable(ENVIRONMENT_MAPS, " ".join(known))


def simulates_on_device(device_type: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether trainings draw simulated experts on their device: on GPUs, unless the environment says otherwise.

    A data loader that draws experts takes longer for each sample, for which a GPU would wait. On a CPU, the loader's
    workers are the better place.

    Args:
        device_type: Such as `cuda`.
        environment: With `nnUNet_deferral_simulate_on`, `loader` or `device`.

    Raises:
        InputError: If the value is something else, or another variable is misspelt; the message names it.
    """
    check_names(environment)
    wanted = environment.get(ENVIRONMENT_SIMULATE_ON, "").strip() or (_DEVICE if device_type == "cuda" else _LOADER)
    if wanted not in (_LOADER, _DEVICE):
        raise InputError(f"{ENVIRONMENT_SIMULATE_ON} must be {_LOADER} or {_DEVICE}, got {wanted!r}")
    if wanted == _DEVICE and device_type == "mps":
        raise InputError(f"{ENVIRONMENT_SIMULATE_ON}={_DEVICE} is possible on cuda and cpu, not on mps")
    return wanted == _DEVICE
