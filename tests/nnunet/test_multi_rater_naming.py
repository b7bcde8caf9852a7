"""Names of the trainers for several raters."""

import importlib
import pickle
import sys

import pytest

from nnunetv2_deferral.commands.doctor import trainers_folder
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.multi_rater_naming import OPTIONS, multi_rater_class
from nnunetv2_deferral.nnunet.multi_rater_trainer import MAJORITY, MEAN_LABEL, ORDINAL, RANDOM_RATER


def test_a_name_fixes_method_and_length():
    trainer = multi_rater_class("nnUNetTrainerMultiRater")
    assert (trainer.method, trainer.epochs, trainer.with_dice) == (ORDINAL, None, True)
    trainer = multi_rater_class("nnUNetTrainerMultiRater_majority_noDice_20epochs")
    assert (trainer.method, trainer.epochs, trainer.with_dice) == (MAJORITY, 20, False)
    assert multi_rater_class("nnUNetTrainerMultiRater_1epoch_meanLabel").method is MEAN_LABEL
    assert multi_rater_class("nnUNetTrainerMultiRater_randomRater").method is RANDOM_RATER


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_makes_a_trainer_that_can_be_pickled(option):
    trainer = multi_rater_class(f"nnUNetTrainerMultiRater_{option}")
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nnUNetTrainerMultiRater_3epoch", "unknown option _3epoch. The options are _majority, .*_5epochs"),
        ("nnUNetTrainerMultiRater_majority_meanLabel", "conflict or are repeated"),
        ("nnUNetTrainerMultiRater_5epochs_5epochs", "conflict or are repeated"),
        ("nnUNetTrainerMultiRater__majority", "unknown option _\\. The"),
        ("nnUNetTrainerMultiRater_meanLabel_noDice", "_meanLabel has no Dice term"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_exists(name, message):
    with pytest.raises(InputError, match=f"unknown trainer {name}: .*{message}"):
        multi_rater_class(name)


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerMultiRaterMine", "nnUNetTrainerDeferral"])
def test_names_that_are_not_ours_are_left_to_others(name, monkeypatch):
    monkeypatch.syspath_prepend(str(trainers_folder()))
    monkeypatch.delitem(sys.modules, "nnUNetTrainerMultiRater", raising=False)
    module = importlib.import_module("nnUNetTrainerMultiRater")
    assert not hasattr(module, name)
    assert module.nnUNetTrainerMultiRater_5epochs is multi_rater_class("nnUNetTrainerMultiRater_5epochs")
