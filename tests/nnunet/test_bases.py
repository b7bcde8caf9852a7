"""Which trainers deferral can be added to, and what is said about those that a network comes from."""

import pytest

from nnunetv2_deferral.commands.doctor import trainers_folder
from nnunetv2_deferral.nnunet.bases import remark_on_augmentation
from nnunetv2_deferral.nnunet.naming import trainer_class

PLAIN, ON_DA5 = (trainer_class(f"nnUNetTrainerDeferral3Experts_frozen{on}") for on in ("", "_on_nnUNetTrainerDA5"))


@pytest.mark.parametrize(
    ("trainer", "trained_by", "mirrors_all_axes"),
    [
        (PLAIN, "nnUNetTrainer", True),
        (PLAIN, "nnUNetTrainer_5epochs", True),
        (PLAIN, "nnUNetTrainerDiceLoss", True),
        (PLAIN, "nnUNetTrainerNoMirroring", False),
        (PLAIN, "nnUNetTrainer_onlyMirror01", False),
        (PLAIN, "nnUNetTrainerMultiRater", True),
        (ON_DA5, "nnUNetTrainerDA5_10epochs", True),
    ],
)
def test_nothing_is_said_where_a_network_was_trained_with_the_augmentation_of_its_head(
    monkeypatch, trainer, trained_by, mirrors_all_axes
):
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    assert remark_on_augmentation(trainer, trained_by, mirrors_all_axes=mirrors_all_axes) == ""


@pytest.mark.parametrize(
    ("trainer", "trained_by", "mirrors_all_axes"),
    [
        (PLAIN, "nnUNetTrainerDA5", True),
        (PLAIN, "nnUNetTrainerNoDA", False),
        (PLAIN, "nnUNetTrainer_noDummy2DDA", True),
        (PLAIN, "nnUNetTrainer_onlyMirror01_DASegOrd0", False),
        (ON_DA5, "nnUNetTrainer", True),
    ],
)
def test_another_augmentation_is_named_with_how_to_have_it(trainer, trained_by, mirrors_all_axes):
    said = remark_on_augmentation(trainer, trained_by, mirrors_all_axes=mirrors_all_axes)
    assert said.startswith(f"The network was trained by {trained_by}, which has an augmentation of its own.")
    assert said.endswith(f"end the name of the trainer with _on_{trained_by}")


def test_a_trainer_that_is_not_found_is_said():
    said = remark_on_augmentation(PLAIN, "nnUNetTrainerElsewhere", mirrors_all_axes=True)
    assert "nnUNetTrainerElsewhere, which is not found" in said
