"""Trainers' names, and the creation of trainer classes from them.

    nnUNetTrainerDeferral[{J}Expert[s]][_{option}]...[_on_{trainer}]

with the number of experts J from 1 to 5 (if omitted, that of the plans), options in any order, and the trainer to which
deferral is added (if omitted, nnUNetTrainer). nnU-Net looks up trainers with `hasattr` on modules, so a module-level
`__getattr__` can create classes on demand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.bases import other_trainer
from nnunetv2_deferral.nnunet.trainer import DeferralTrainer
from nnunetv2_deferral.routing import COLLABORATION, ONE_VS_ALL

BASE_NAME = "nnUNetTrainerDeferral"
MAX_EXPERTS = 5
ON = "_on_"
EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)


class Option(NamedTuple):
    """The attributes and settings fixed by a suffix of a trainer's name."""

    description: str
    attributes: Mapping[str, Any]
    settings: Mapping[str, Any]


_PAPER: dict[str, Any] = {
    "objective": COLLABORATION,
    "coherence_trains_routing": True,
    "routing_trains_decoder": True,
    "segmentation_loss": "cross_entropy",
    "head_initialization": "random",
    "head_sees_confidence": False,
    "warmup": 0.0,
    "optimizer": "adamw",
    "schedule": "step",
    "patience": 50,
    "final_weights": "best",
}


def _as_in_paper(description: str, setting: str) -> Option:
    return Option(description, {}, {setting: _PAPER[setting]})


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


LENGTHS: dict[str, Option] = {
    _epochs(number).replace(" ", ""): Option(f"train for {_epochs(number)}", {"epochs": number}, {})
    for number in EPOCHS
}

OPTIONS: dict[str, Option] = {
    "frozen": Option("train only the head, on a stock network given by -pretrained_weights", {"frozen": True}, {}),
    "paper": Option("training as in the paper: _DC and the options from _paperSC to _best", {}, _PAPER),
    "DC": _as_in_paper("the paper's objective: DC with SC and LB", "objective"),
    "OvA": Option("one-vs-all probabilities instead of DC and LB", {}, {"objective": ONE_VS_ALL}),
    "MR": Option("also learn how many raters mark each structure", {}, {"multi_rater": True}),
    "noSC": Option("without the spatial-coherence loss", {}, {"lambda_coherence": 0.0}),
    "noLB": Option("without the load-balancing penalty", {}, {"lambda_balance": 0.0}),
    "paperSC": _as_in_paper("spatial coherence also trains the routing", "coherence_trains_routing"),
    "joint": _as_in_paper("routing losses also train the decoder", "routing_trains_decoder"),
    "CE": _as_in_paper("cross-entropy at full resolution trains the segmentation", "segmentation_loss"),
    "randomInit": _as_in_paper("random initialization of the routing", "head_initialization"),
    "featuresOnly": _as_in_paper("the head sees the features alone", "head_sees_confidence"),
    "noWarmup": _as_in_paper("the head is trained from the first epoch", "warmup"),
    "AdamW": _as_in_paper("AdamW at 1e-4 with weight decay 0.01 for network and head", "optimizer"),
    "StepLR": _as_in_paper("learning rates times 0.8 every 2 epochs", "schedule"),
    "stopEarly": _as_in_paper("end after 50 epochs without improvement", "patience"),
    "best": _as_in_paper("the weights of the epoch with the best validation Dice of the system", "final_weights"),
    **LENGTHS,
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
    own, on, base = name.partition(ON)
    match = _OWN_NAME.fullmatch(own)
    if match is None:
        raise AttributeError(name)
    if on and not base:
        raise InputError(f"unknown trainer {name}: the name of a trainer must follow {ON}")
    return _make_class(name, *_parse(name, match), base if on else None)


def example_names() -> Iterator[str]:
    """The names without options, one per number of experts."""
    yield BASE_NAME
    for number in range(1, MAX_EXPERTS + 1):
        yield f"{BASE_NAME}{_experts_part(number)}"


def _parse(name: str, match: re.Match[str]) -> tuple[int | None, tuple[str, ...]]:
    number = int(match["experts"]) if match["experts"] else None
    options = tuple(match["options"].split("_")[1:])
    canonical = f"{BASE_NAME}{_experts_part(number)}"
    if "__" in name:
        raise InputError(f"unknown trainer {name}: nnU-Net allows no __ in the name of a trainer")
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
    fixed = [each for option in options for part in OPTIONS[option][1:] for each in part.items()]
    if len(set(options)) != len(options) or len(dict(fixed)) != len(set(fixed)):
        raise InputError(f"unknown trainer {name}: its options conflict or are repeated")
    return number, options


def _experts_part(number: int | None) -> str:
    if number is None:
        return ""
    return f"{number}Expert" if number == 1 else f"{number}Experts"


@cache
def _make_class(name: str, number: int | None, options: tuple[str, ...], base: str | None) -> type[DeferralTrainer]:
    stock = nnUNetTrainer if base is None else other_trainer(base)
    if issubclass(stock, DeferralTrainer):
        raise InputError(f"unknown trainer {name}: {base} is a deferral trainer itself")
    attributes: dict[str, Any] = {"num_experts": number, "settings_overrides": {}}
    for option in options:
        attributes |= OPTIONS[option].attributes
        attributes["settings_overrides"] |= OPTIONS[option].settings
    described = "; ".join(OPTIONS[option].description for option in options)
    experts = number or "the experts of the plans"
    doc = f"{stock.__name__} with deferral to {experts}{': ' + described if described else ''}."
    # With this module name the class can be imported by name, and hence pickled.
    return type(name, (DeferralTrainer, stock), attributes | {"__module__": __name__, "__doc__": doc})


def __getattr__(name: str) -> type[DeferralTrainer]:
    return trainer_class(name)
