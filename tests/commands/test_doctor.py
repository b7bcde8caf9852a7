import os

import pytest

from nnunetv2_deferral.commands import doctor


@pytest.fixture(autouse=True)
def healthy(monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("nnUNet_extTrainer", str(doctor.trainers_folder()))


def faults():
    return {finding.name: finding for finding in doctor.examine() if finding.advice is not None}


def test_on_a_machine_where_training_would_start_there_is_no_fault(capsys):
    doctor.main([])
    printed = capsys.readouterr().out
    assert "nnUNetTrainerDeferral3Experts found" in printed
    assert "_noSC" in printed
    assert "FAULT" not in printed


def test_trainers_prints_only_the_folder_that_nnunet_must_look_in(capsys):
    doctor.main(["--trainers"])
    assert capsys.readouterr().out.strip() == str(doctor.trainers_folder())
    assert (doctor.trainers_folder() / "nnUNetTrainerDeferral.py").is_file()


@pytest.mark.parametrize("name", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_unset_folder_is_a_fault_with_the_line_to_type(monkeypatch, name):
    monkeypatch.delenv(name)
    assert f"export {name}=" in faults()[name].advice


def test_a_folder_that_is_not_there_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nowhere"))
    assert "nowhere is not a folder" in faults()["nnUNet_raw"].found


def test_other_external_trainers_are_kept_in_the_advice(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    advice = faults()["nnUNet_extTrainer"].advice
    assert f"{tmp_path.resolve()}{os.pathsep}{doctor.trainers_folder()}" in advice


def test_a_misspelt_variable_of_ours_is_a_fault_and_the_others_are_listed(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_deferral_budget", "0.01")
    doctor.main([])
    assert "ok    nnUNet_deferral_*: nnUNet_deferral_budget=0.01\n" in capsys.readouterr().out
    monkeypatch.setenv("nnUNet_deferral_budgets", "0.01")
    assert "unknown environment variable nnUNet_deferral_budgets" in faults()["nnUNet_deferral_*"].found


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_number_of_workers_that_nnunet_cannot_use_is_a_fault(monkeypatch, value):
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    assert "nnUNet_n_proc_DA" in faults()


def test_builds_of_torch_and_torchvision_that_do_not_match_are_named(monkeypatch, capsys):
    real_import = __import__

    def broken(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", broken)
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "torchvision::nms does not exist" in printed
    assert "pip install --force-reinstall torch torchvision" in printed


def test_an_nnunet_that_was_not_tested_is_a_fault(monkeypatch):
    monkeypatch.setattr("nnunetv2_deferral.nnunet.hooks.version", lambda package: "2.9.0")
    assert "nnunetv2 2.9.0 is installed, but" in faults()["nnU-Net version"].found


def test_a_seam_that_nnunet_has_moved_is_a_fault(monkeypatch):
    monkeypatch.delattr("nnunetv2.run.run_training.maybe_load_checkpoint")
    assert "maybe_load_checkpoint does not exist" in faults()["hooks into nnU-Net"].found
