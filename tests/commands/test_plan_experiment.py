"""`nnUNetv2_deferral_plan_experiment`: from a raw dataset to plans, data and the next command."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scripts import Scripts

from nnunetv2_deferral.commands import doctor, plan_experiment
from nnunetv2_deferral.commands.plan_experiment import (
    configuration_data,
    main,
    plan_deferral_experiment,
    preprocess_missing,
    summary,
)
from nnunetv2_deferral.installed import trainers_folder

CASES = ("a", "b", "c")
ENVIRONMENT = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """nnUNet_raw with two datasets of three cases: 1 is 2D (png), 2 is 3D (nii.gz)."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    write_raw(tmp_path / "nnUNet_raw" / "Dataset001_Flat", shape=(32, 24), ending=".png")
    write_raw(tmp_path / "nnUNet_raw" / "Dataset002_Solid", shape=(12, 16, 14), ending=".nii.gz")
    return tmp_path


@pytest.fixture
def fingerprints(root):
    """The fingerprints of both, so that nothing has to be extracted."""
    for name, shape in (("Dataset001_Flat", (1, 32, 24)), ("Dataset002_Solid", (12, 16, 14))):
        folder = root / "nnUNet_preprocessed" / name
        folder.mkdir()
        statistics = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
        fingerprint = {
            "spacings": [[999.0 if shape[0] == 1 else 1.0, 1.0, 1.0]],
            "shapes_after_crop": [shape],
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(statistics, 1.0)},
        }
        (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return root


@pytest.fixture
def preprocessed(monkeypatch):
    """What nnU-Net was asked to preprocess; its files are faked."""
    calls = []

    def fake(dataset_id, plans_name, configurations, num_processes):
        calls.append((dataset_id, plans_name, configurations, num_processes))
        folder = next(Path(nnUNet_preprocessed).glob(f"Dataset{dataset_id:03d}_*"))
        plans = PlansManager(str(folder / f"{plans_name}.json"))
        for configuration in configurations:
            write_data(folder / plans.get_configuration(configuration).data_identifier)

    monkeypatch.setattr(plan_experiment, "preprocess_dataset", fake)
    return calls


def write_raw(folder: Path, *, shape: tuple[int, ...], ending: str) -> None:
    rng = np.random.default_rng(0)
    for subfolder in ("imagesTr", "labelsTr"):
        (folder / subfolder).mkdir(parents=True)
    for case in CASES:
        label = np.zeros(shape, dtype=np.uint8)
        label[tuple(slice(4, 9) for _ in shape)] = 1
        image = (label * 100 + rng.integers(0, 50, shape)).astype(np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(folder / "imagesTr" / f"{case}_0000{ending}"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label), str(folder / "labelsTr" / f"{case}{ending}"))
    dataset = {
        "channel_names": {"0": "gray"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(CASES),
        "file_ending": ending,
        # Listed, so that nnU-Net starts no pool of processes to find the files: that takes longer than planning.
        "dataset": {
            case: {"images": [f"imagesTr/{case}_0000{ending}"], "label": f"labelsTr/{case}{ending}"} for case in CASES
        },
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_data(folder: Path, cases=CASES) -> None:
    folder.mkdir(exist_ok=True)
    for case in cases:
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{case}{ending}").touch()


def error_of(capsys, *arguments: str) -> str:
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_from_raw_data_to_plans_and_data_in_one_command(root):
    arguments = ["-d", "1", "-pl", "nnUNetPlannerDeferralCPU", "-num_experts", "2", "--preprocess", "-np", "1"]
    done = Scripts(root / "seen").run("nnUNetv2_deferral_plan_experiment", arguments, os.environ)
    assert done.returncode == 0, done.stdout
    folder = root / "nnUNet_preprocessed" / "Dataset001_Flat"
    assert (folder / "dataset_fingerprint.json").is_file()
    assert json.loads((folder / "nnUNetDeferralCPUPlans.json").read_text())["deferral"]["num_experts"] == 2
    assert {file.name for file in (folder / "nnUNetDeferralCPUPlans_2d").glob("*.b2nd")} == {
        f"{case}{ending}" for case in CASES for ending in (".b2nd", "_seg.b2nd")
    }
    assert "data in nnUNetDeferralCPUPlans_2d, 3 cases ready" in done.stdout
    assert "nnUNetv2_train 1 2d 0 -tr nnUNetTrainerDeferral -p nnUNetDeferralCPUPlans" in done.stdout
    assert "nnUNetv2_preprocess" not in done.stdout


def test_the_summary_names_file_data_and_next_commands(fingerprints, capsys):
    main(["-d", "Dataset002_Solid", "-overwrite_plans_name", "mine", "-experts", "complementary"])
    said = capsys.readouterr().out
    file = fingerprints / "nnUNet_preprocessed" / "Dataset002_Solid" / "mine.json"
    assert f"written to {file}" in said
    assert json.loads(file.read_text())["deferral"]["experts"] == "complementary"
    assert "data in mine_3d_fullres, 3 of 3 cases not yet preprocessed" in said
    said = said[said.index("Next:") :]
    assert "nnUNetv2_preprocess -d 2 -plans_name mine -c 2d 3d_fullres" in said
    assert "export nnUNet_extTrainer=" in said
    assert "nnUNetv2_train 2 3d_fullres 0 -tr nnUNetTrainerDeferral -p mine" in said


def test_masks_of_experts_who_are_not_declared_are_named(fingerprints, monkeypatch, capsys):
    folder = fingerprints / "nnUNet_raw" / "Dataset001_Flat" / "expertsTr"
    for expert in ("ann", "bob", "nobody"):
        (folder / expert).mkdir(parents=True)
    for expert in ("ann", "bob"):
        (folder / expert / "a.png").touch()
    main(["-d", "1", "-overwrite_plans_name", "mine"])
    said = capsys.readouterr().out
    assert "WARNING: expertsTr of Dataset001_Flat has masks of ann, bob, which are not used" in said
    assert 'add "experts": ["ann", "bob"]' in said
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    doctor.main([])
    assert "experts' masks: expertsTr of Dataset001_Flat has masks of ann, bob" in capsys.readouterr().out

    file = folder.with_name("dataset.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"experts": ["ann", "bob"]}))
    main(["-d", "1", "-overwrite_plans_name", "mine", "--overwrite_deferral"])
    assert "WARNING" not in capsys.readouterr().out


def test_several_datasets_are_planned_by_id_or_name(fingerprints, capsys):
    main(["-d", "1", "Dataset002_Solid", "-pl", "nnUNetPlannerDeferralCPU"])
    said = capsys.readouterr().out
    assert "Dataset001_Flat: nnUNetDeferralCPUPlans for 3 expert(s): expert1, expert2, expert3" in said
    assert "Dataset002_Solid: nnUNetDeferralCPUPlans for 3 expert(s)" in said
    assert "objective one_vs_all" in said


def test_the_trainers_folder_is_not_exported_twice(fingerprints, monkeypatch):
    planned = plan_deferral_experiment(1, planner="nnUNetPlannerDeferralCPU")
    line = next(line for line in summary(planned).splitlines() if "nnUNet_extTrainer" in line)
    monkeypatch.setenv("nnUNet_extTrainer", f"/elsewhere{os.pathsep}{line.split('=')[1]}")
    assert "nnUNet_extTrainer" not in summary(planned)


def test_incomplete_data_is_counted(fingerprints):
    planned = plan_deferral_experiment(1, planner="nnUNetPlannerDeferralCPU")
    folder = configuration_data(planned)[0].folder
    assert configuration_data(planned)[0].num_missing == 3
    write_data(folder)
    assert configuration_data(planned)[0].num_missing == 0
    (folder / "b.pkl").unlink()
    (folder / "c_seg.b2nd").unlink()
    assert configuration_data(planned)[0].num_missing == 2
    assert "2 of 3 cases not yet preprocessed" in summary(planned)


def test_only_missing_data_is_preprocessed(fingerprints, preprocessed):
    planned = plan_deferral_experiment(2, planner="nnUNetPlannerDeferralCPU")
    write_data(planned.plans_file.parent / "nnUNetDeferralCPUPlans_2d")
    assert preprocess_missing(planned, num_processes=[2]) == ["3d_fullres"]
    assert preprocessed == [(2, "nnUNetDeferralCPUPlans", ["3d_fullres"], [2])]
    assert preprocess_missing(planned) == []


def test_configurations_that_share_a_folder_are_preprocessed_once(fingerprints, preprocessed):
    planned = plan_deferral_experiment(1, planner="nnUNetPlannerDeferralCPU")
    plans = json.loads(planned.plans_file.read_text())
    plans["configurations"]["2d_large_batch"] = {"inherits_from": "2d", "batch_size": 32}
    planned.plans_file.write_text(json.dumps(plans))
    assert preprocess_missing(planned) == ["2d"]


def test_usual_configurations_that_a_dataset_lacks_are_passed_over(fingerprints, preprocessed):
    main(["-d", "1", "2", "-pl", "nnUNetPlannerDeferralCPU", "--preprocess", "-c", "3d_fullres", "-np", "1"])
    assert preprocessed == [(2, "nnUNetDeferralCPUPlans", ["3d_fullres"], [1])]


def test_a_configuration_nobody_knows_is_refused(fingerprints, preprocessed):
    planned = plan_deferral_experiment(1, planner="nnUNetPlannerDeferralCPU")
    with pytest.raises(ValueError, match="no configuration 2D; available: 2d"):
        preprocess_missing(planned, configurations=["2D"])


def test_an_edited_block_is_kept_and_the_command_says_so(fingerprints, capsys):
    arguments = ["-d", "1", "-pl", "nnUNetPlannerDeferralCPU"]
    main(arguments)
    file = fingerprints / "nnUNet_preprocessed" / "Dataset001_Flat" / "nnUNetDeferralCPUPlans.json"
    plans = json.loads(file.read_text())
    plans["deferral"]["warmup"] = 0.5
    file.write_text(json.dumps(plans))
    assert "was kept" not in capsys.readouterr().out
    main(arguments)
    said = capsys.readouterr().out
    assert 'kept the existing "deferral" block' in said
    assert "warmup is 0.5, not 0.1" in said
    assert json.loads(file.read_text())["deferral"]["warmup"] == 0.5
    main([*arguments, "--overwrite_deferral"])
    assert json.loads(file.read_text())["deferral"]["warmup"] == 0.1


def test_a_refusal_leaves_every_dataset_unplanned(fingerprints, capsys):
    main(["-d", "2", "-num_experts", "2"])
    said = error_of(capsys, "-d", "1", "2", "-num_experts", "3")
    assert "is for 2 experts, but 3 were requested" in said
    assert not (fingerprints / "nnUNet_preprocessed" / "Dataset001_Flat" / "nnUNetDeferralPlans.json").exists()


def test_an_unknown_planner_is_refused_naming_those_that_exist(fingerprints, capsys):
    said = error_of(capsys, "-d", "1", "-pl", "ExperimentPlanner")
    assert "unknown planner 'ExperimentPlanner'" in said
    assert "nnUNetPlannerDeferralResEncL, nnUNetPlannerDeferralResEncXL, nnUNetPlannerDeferralCPU" in said


def test_planning_without_a_process_for_augmentation_is_refused(fingerprints, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert "nnUNet_n_proc_DA is 0" in error_of(capsys, "-d", "1")


def test_an_unknown_dataset_is_named_in_one_line(root, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["-d", "77"])
    assert stop.value.code == 2
    assert "unknown dataset 77" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "2d"], "require --preprocess"),
        (["-np", "2"], "require --preprocess"),
        (["--preprocess", "-np", "0"], "at least 1, got [0]"),
        (["--preprocess", "-c", "2d", "-np", "1", "2"], "-np has 2 values for 1 configurations"),
        (["-experts", "experienced"], "'experienced'"),
        (["-num_experts", "4", "-experts", "standard"], "1 to 3 experts, not"),
    ],
)
def test_options_that_make_no_sense_are_refused(fingerprints, capsys, arguments, message):
    assert message in error_of(capsys, "-d", "1", *arguments)
