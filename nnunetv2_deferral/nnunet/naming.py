"""Trainers' names, and the creation of trainer classes from them.

    nnUNetTrainerDeferral[{J}Expert[s]][_{option}]...

with the number of experts J from 1 to 5 (if omitted, that of the plans) and options in any order. nnU-Net looks up
trainers with `hasattr` on modules, so a module-level `__getattr__` can create classes on demand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.trainer import DeferralTrainer
from nnunetv2_deferral.routing import COLLABORATION, ONE_VS_ALL

BASE_NAME = "nnUNetTrainerDeferral"
MAX_EXPERTS = 5
EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)


class Option(NamedTuple):
    """The attributes and settings fixed by a suffix of a trainer's name."""

    description: str
    attributes: Mapping[str, Any]
    settings: Mapping[str, Any]


OPTIONS: dict[str, Option] = {
    "frozen": Option("train only the head, on a stock network given by -pretrained_weights", {"frozen": True}, {}),
    "DC": Option("the paper's objective: DC with SC and LB", {}, {"objective": COLLABORATION}),
    "OvA": Option("one-vs-all probabilities instead of DC and LB", {}, {"objective": ONE_VS_ALL}),
    "noSC": Option("without the spatial-coherence loss", {}, {"lambda_coherence": 0.0}),
    "noLB": Option("without the load-balancing penalty", {}, {"lambda_balance": 0.0}),
    "paperSC": Option("spatial coherence also trains the routing (paper)", {}, {"coherence_trains_routing": True}),
    "joint": Option("routing losses also train the decoder", {}, {"routing_trains_decoder": True}),
    **{
        f"{number}epoch{'s' if number > 1 else ''}": Option(f"train for {number} epochs", {"epochs": number}, {})
        for number in EPOCHS
    },
}

# Names of any other form may belong to a user's own trainer in another folder.
_OWN_NAME = re.compile(rf"{BASE_NAME}(?:(?P<experts>\d+)Experts?)?(?P<options>(?:_\w+)?)")


def trainer_class(name: str) -> type[DeferralTrainer]:
    """The trainer class of a name.

    Raises:
        AttributeError: If the name is not of the form above, as required of a module's `__getattr__`.
        InputError: If the name is of this form, but the number of experts or an option is unknown, or options conflict;
            the message lists the alternatives.
    """
    match = _OWN_NAME.fullmatch(name)
    if match is None:
        raise AttributeError(name)
    return _make_class(name, *_parse(name, match))


def example_names() -> Iterator[str]:
    """The names without options, one per number of experts."""
    yield BASE_NAME
    for number in range(1, MAX_EXPERTS + 1):
        yield f"{BASE_NAME}{_experts_part(number)}"


def _parse(name: str, match: re.Match[str]) -> tuple[int | None, tuple[str, ...]]:
    number = int(match["experts"]) if match["experts"] else None
    options = tuple(match["options"].split("_")[1:])
    canonical = f"{BASE_NAME}{_experts_part(number)}"
    if number is not None and not (1 <= number <= MAX_EXPERTS and name.split("_")[0] == canonical):
        raise InputError(
            f"unknown trainer {name}: the part before the options must be one of {', '.join(example_names())}. For "
            f"more than {MAX_EXPERTS} experts use {BASE_NAME} with plans that list them"
        )
    unknown = [option for option in options if option not in OPTIONS]
    if unknown:
        raise InputError(
            f"unknown trainer {name}: unknown option {', '.join('_' + option for option in unknown)}. "
            f"The options are {', '.join('_' + option for option in OPTIONS)}"
        )
    fixed = [key for option in options for key in (*OPTIONS[option].attributes, *OPTIONS[option].settings)]
    if len(set(fixed)) != len(fixed):
        raise InputError(f"unknown trainer {name}: its options conflict or are repeated")
    return number, options


def _experts_part(number: int | None) -> str:
    if number is None:
        return ""
    return f"{number}Expert" if number == 1 else f"{number}Experts"


@cache
def _make_class(name: str, number: int | None, options: tuple[str, ...]) -> type[DeferralTrainer]:
    attributes: dict[str, Any] = {"num_experts": number, "settings_overrides": {}}
    for option in options:
        attributes |= OPTIONS[option].attributes
        attributes["settings_overrides"] |= OPTIONS[option].settings
    described = "; ".join(OPTIONS[option].description for option in options)
    doc = f"Deferral to {number or 'as many experts as the plans say'}{': ' + described if described else ''}."
    # With this module name the class can be imported by name, and hence pickled.
    return type(name, (DeferralTrainer,), attributes | {"__module__": __name__, "__doc__": doc})


def __getattr__(name: str) -> type[DeferralTrainer]:
    return trainer_class(name)
