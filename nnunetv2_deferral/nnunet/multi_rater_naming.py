"""Names of the trainers for several raters, and the creation of trainer classes from them.

    nnUNetTrainerMultiRater[_{option}]...

with options in any order, see :mod:`.naming`.
"""

from __future__ import annotations

import re
from functools import cache

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.multi_rater_trainer import MAJORITY, MEAN_LABEL, RANDOM_RATER, MultiRaterTrainer
from nnunetv2_deferral.nnunet.naming import LENGTHS, Option

BASE_NAME = "nnUNetTrainerMultiRater"

OPTIONS: dict[str, Option] = {
    "majority": Option("nnU-Net's loss on the label of the majority of raters", {"method": MAJORITY}, {}),
    "meanLabel": Option("cross-entropy on the mean label of the raters", {"method": MEAN_LABEL}, {}),
    "randomRater": Option("nnU-Net's loss on the label of a random rater per sample", {"method": RANDOM_RATER}, {}),
    "noDice": Option("nnU-Net's loss without its Dice term", {"with_dice": False}, {}),
    **LENGTHS,
}

# Names of any other form may belong to a user's own trainer in another folder.
_OWN_NAME = re.compile(rf"{BASE_NAME}(?P<options>(?:_\w+)?)")


def multi_rater_class(name: str) -> type[MultiRaterTrainer]:
    """The trainer class of a name.

    Raises:
        AttributeError: If the name is not of the form above, as required of a module's `__getattr__`.
        InputError: If the name is of this form, but an option is unknown, or options conflict; the message lists the
            alternatives.
    """
    match = _OWN_NAME.fullmatch(name)
    if match is None:
        raise AttributeError(name)
    options = tuple(match["options"].split("_")[1:])
    unknown = [option for option in options if option not in OPTIONS]
    if unknown:
        raise InputError(
            f"unknown trainer {name}: unknown option {', '.join('_' + option for option in unknown)}. "
            f"The options are {', '.join('_' + option for option in OPTIONS)}"
        )
    fixed = [each for option in options for each in OPTIONS[option].attributes.items()]
    if len(dict(fixed)) != len(fixed):
        raise InputError(f"unknown trainer {name}: its options conflict or are repeated")
    if {"meanLabel", "noDice"} <= set(options):
        raise InputError(f"unknown trainer {name}: _meanLabel has no Dice term that _noDice could leave out")
    return _make_class(name, options)


@cache
def _make_class(name: str, options: tuple[str, ...]) -> type[MultiRaterTrainer]:
    attributes = {key: value for option in options for key, value in OPTIONS[option].attributes.items()}
    described = "; ".join(OPTIONS[option].description for option in options)
    doc = f"nnUNetTrainer for several raters{': ' + described if described else ''}."
    # With this module name the class can be imported by name, and hence pickled.
    return type(name, (MultiRaterTrainer,), attributes | {"__module__": __name__, "__doc__": doc})


def __getattr__(name: str) -> type[MultiRaterTrainer]:
    return multi_rater_class(name)
