import importlib
import pickle
import sys

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_deferral.commands.doctor import trainers_folder
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.naming import EPOCHS, example_names, trainer_class
from nnunetv2_deferral.nnunet.trainer import DeferralTrainer
from nnunetv2_deferral.settings import resolve_settings


def test_a_name_fixes_experts_epochs_and_ablations():
    trainer = trainer_class("nnUNetTrainerDeferral2Experts_20epochs_noSC_noLB")
    assert trainer.__name__ == "nnUNetTrainerDeferral2Experts_20epochs_noSC_noLB"
    assert (trainer.num_experts, trainer.epochs, trainer.frozen) == (2, 20, False)
    assert trainer.settings_overrides == {"lambda_coherence": 0.0, "lambda_balance": 0.0}
    assert trainer_class("nnUNetTrainerDeferral1Expert_frozen").frozen


def test_a_name_without_a_number_leaves_the_experts_to_the_plans():
    assert trainer_class("nnUNetTrainerDeferral").num_experts is None


@pytest.mark.parametrize(
    "name", [*example_names(), *(f"nnUNetTrainerDeferral_{n}epoch{'s' * (n > 1)}" for n in EPOCHS)]
)
def test_every_listed_name_is_a_trainer_that_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(trainer_class(name))) is trainer_class(name)
    assert "__" not in name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nnUNetTrainerDeferral9Experts_3epoch",
            "unknown trainer .*9Experts_3epoch: .* must be one of .*5Experts",
        ),
        ("nnUNetTrainerDeferral0Experts", "unknown trainer nnUNetTrainerDeferral0Experts: "),
        (
            "nnUNetTrainerDeferral1Experts",
            "unknown trainer .*1Experts: .* must be one of .*Deferral1Expert,",
        ),
        ("nnUNetTrainerDeferral3Experts_3epoch", "unknown option _3epoch. The options are .*_5epochs"),
        ("nnUNetTrainerDeferral3Experts_5epochs_10epochs", "conflict or are repeated"),
        ("nnUNetTrainerDeferral3Experts_noSC_noSC", "repeat"),
        ("nnUNetTrainerDeferral3Experts_DC_OvA", "conflict or are repeated"),
        ("nnUNetTrainerDeferral3Experts_paper_OvA", "conflict or are repeated"),
        ("nnUNetTrainerDeferral3Experts_on_nnUNetTrainerNowhere", "unknown trainer nnUNetTrainerNowhere"),
        ("nnUNetTrainerDeferral3Experts_on_", "Deferral3Experts_on_: the name of a trainer must follow _on_"),
        ("nnUNetTrainerDeferral3Experts_OvA_on__Primus_S_96_BS1", "no __ in the name"),
        (
            "nnUNetTrainerDeferral_on_nnUNetTrainerBenchmark_5epochs_noDataLoading",
            "cannot be combined with nnUNetTrainerBenchmark_5epochs_noDataLoading, .* its own get_dataloaders",
        ),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_exists(name, message):
    with pytest.raises(ValueError, match=message):
        trainer_class(name)


def test_a_name_adds_deferral_to_another_trainer_of_nnunet():
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainer_onlyMirror01,
    )

    trainer = trainer_class("nnUNetTrainerDeferral2Experts_OvA_5epochs_on_nnUNetTrainer_onlyMirror01")
    assert (trainer.num_experts, trainer.epochs) == (2, 5)
    assert trainer.settings_overrides == {"objective": "one_vs_all"}
    assert issubclass(trainer, nnUNetTrainer_onlyMirror01)
    assert trainer.__mro__.index(DeferralTrainer) < trainer.__mro__.index(nnUNetTrainer_onlyMirror01)
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    assert trainer.clip_norm == 12.0
    assert trainer_class("nnUNetTrainerDeferral_on_nnUNet_Primus_S_Trainer").clip_norm == 1.0


def test_the_paper_is_its_options_together():
    single = ("DC", "paperSC", "joint", "CE", "randomInit", "featuresOnly", "noWarmup", "AdamW", "StepLR", "stopEarly")
    together = trainer_class(f"nnUNetTrainerDeferral3Experts_{'_'.join(single)}_best").settings_overrides
    assert trainer_class("nnUNetTrainerDeferral3Experts_paper").settings_overrides == together
    # What an option says again changes nothing, and ablations remain possible.
    assert trainer_class("nnUNetTrainerDeferral3Experts_DC_paper").settings_overrides == together
    assert trainer_class("nnUNetTrainerDeferral3Experts_paper_noSC").settings_overrides == together | {
        "lambda_coherence": 0.0
    }
    paper, default = resolve_settings(None, overrides=together), resolve_settings(None)
    assert all(getattr(paper, key) != getattr(default, key) for key in set(together) - {"objective"})


def own_base(method):
    return type(f"nnUNetTrainerOwn_{method}", (nnUNetTrainer,), {method: lambda self, *args: None})


@pytest.mark.parametrize("method", ["train_step", "validation_step", "get_dataloaders", "run_training"])
def test_a_trainer_with_steps_of_its_own_is_refused_by_name(method):
    message = f"Combined: deferral cannot be combined with nnUNetTrainerOwn_{method}, because it has its own {method}"
    with pytest.raises(InputError, match=message):
        type("Combined", (trainer_class("nnUNetTrainerDeferral"), own_base(method)), {})


def test_a_deferral_trainer_may_change_its_own_steps():
    type("Mine", (trainer_class("nnUNetTrainerDeferral"),), {"train_step": lambda self, batch: {}})


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerDeferralMine", "torch"])
def test_names_that_are_not_ours_are_left_to_others(name, monkeypatch):
    monkeypatch.syspath_prepend(str(trainers_folder()))
    monkeypatch.delitem(sys.modules, "nnUNetTrainerDeferral", raising=False)
    module = importlib.import_module("nnUNetTrainerDeferral")
    assert not hasattr(module, name)
    assert module.nnUNetTrainerDeferral3Experts is trainer_class("nnUNetTrainerDeferral3Experts")
