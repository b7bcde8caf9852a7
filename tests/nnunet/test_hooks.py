"""The names in nnU-Net that are replaced."""

from __future__ import annotations

import pytest
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits as stock_export
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

from nnunetv2_deferral.nnunet import hooks, trainer
from nnunetv2_deferral.nnunet.export import export_prediction_from_logits


def test_every_name_is_where_it_is_expected() -> None:
    assert hooks.misfits() == []


def test_importing_the_trainer_replaces_them() -> None:
    assert issubclass(trainer.DeferralTrainer, trainer_module.nnUNetTrainer)
    for module in (predict_from_raw_data, trainer_module):
        assert module.export_prediction_from_logits is export_prediction_from_logits
    assert stock_export is not export_prediction_from_logits
    assert stock_export.__module__ == "nnunetv2.inference.export_prediction"


def test_installing_twice_wraps_once() -> None:
    wrapped = run_training.maybe_load_checkpoint
    hooks.install()
    assert run_training.maybe_load_checkpoint is wrapped
    assert not hasattr(wrapped.__wrapped__, "__wrapped__")


@pytest.mark.parametrize("replacement", hooks.REPLACEMENTS, ids=lambda each: f"{each.owner.__name__}.{each.name}")
def test_a_name_that_has_moved_stops_the_installation(
    monkeypatch: pytest.MonkeyPatch, replacement: hooks.Replacement
) -> None:
    monkeypatch.setattr(run_training, "_deferral_installed", False)
    monkeypatch.delattr(replacement.owner, replacement.name)
    with pytest.raises(RuntimeError, match=rf"nnunetv2 2\.\d.* has changed: .*{replacement.name} does not exist"):
        hooks.install()


def test_a_name_with_other_parameters_stops_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_training, "_deferral_installed", False)
    monkeypatch.setattr(run_training, "maybe_load_checkpoint", lambda nnunet_trainer, mode: None)
    with pytest.raises(RuntimeError, match="maybe_load_checkpoint has the parameters nnunet_trainer, mode"):
        hooks.install()


@pytest.mark.parametrize("version", ["2.7.3", "2.9.0", "3.0"])
def test_another_nnunet_is_refused_by_its_version(version: str) -> None:
    with pytest.raises(ValueError, match=f"nnunetv2 {version} is installed"):
        hooks.check_nnunet_version(version)


@pytest.mark.parametrize("version", ["2.8", "2.8.1", "2.8.12"])
def test_every_patch_release_of_the_tested_nnunet_is_taken(version: str) -> None:
    hooks.check_nnunet_version(version)
