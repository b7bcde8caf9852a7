"""The command that checks raters' masks and makes them training data, on a small preprocessed dataset."""

import json
import shutil

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from small_dataset import CASES, make_dataset

from nnunetv2_deferral.commands.preprocess_experts import main, preprocess_experts
from nnunetv2_deferral.nnunet.rater_data import experts_folder

NAME = "Dataset701_Small"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    return root, make_dataset(root, NAME)


@pytest.fixture
def dataset(original, tmp_path, monkeypatch):
    """A copy of the dataset in nnU-Net's folders; two raters are declared, one of whom lacks a case."""
    root, made = original
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results").mkdir()
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    copy = type(made)(raw=tmp_path / "raw" / NAME, preprocessed=tmp_path / "preprocessed" / NAME, plans=made.plans)
    copy.declare("ann", "bob")
    copy.copy_reference("ann")
    copy.copy_reference("bob", ["a", "c"])
    return copy


def masks_of(dataset, configuration):
    return sorted(file.stem for file in experts_folder(dataset.data(configuration)).glob("*.b2nd"))


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_configuration_gets_its_masks_and_the_command_says_so(dataset, capsys):
    main(["-d", "701", "-np", "1"])
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}: the experts' masks match their images",
        "  ann: 3 masks",
        "  bob: 2 masks",
        "  2d: 3 cases preprocessed, the others were up to date",
        "  3d_fullres: 3 cases preprocessed, the others were up to date",
    ]
    for configuration in ("2d", "3d_fullres"):
        assert masks_of(dataset, configuration) == list(CASES)
        folder = experts_folder(dataset.data(configuration))
        assert json.loads((folder / "experts.json").read_text())["experts"] == ["ann", "bob"]
        assert blosc2.open(str(folder / "b.b2nd")).shape[0] == 2


def test_the_second_time_there_is_nothing_to_do(dataset):
    preprocess_experts(NAME)
    lines = preprocess_experts(NAME)
    assert [line.split(",")[0] for line in lines[-2:]] == [
        "  2d: 0 cases preprocessed",
        "  3d_fullres: 0 cases preprocessed",
    ]


def test_configurations_and_plans_can_be_chosen(dataset, capsys):
    plans = json.loads((dataset.preprocessed / "nnUNetPlans.json").read_text()) | {"plans_name": "mine"}
    del plans["configurations"]["3d_fullres"]
    plans["configurations"]["2d_again"] = {"inherits_from": "2d", "batch_size": 12}
    (dataset.preprocessed / "mine.json").write_text(json.dumps(plans))
    main(["-d", NAME, "-p", "mine", "-c", "2d_again", "-np", "1"])
    assert "  2d_again: 3 cases preprocessed" in capsys.readouterr().out
    assert masks_of(dataset, "2d") == list(CASES)
    assert masks_of(dataset, "3d_fullres") == []


def test_a_configuration_that_is_not_preprocessed_is_passed_over_unless_it_is_asked_for(dataset, capsys):
    shutil.rmtree(dataset.data("3d_fullres"))
    assert [line[:5] for line in preprocess_experts(NAME)[3:]] == ["  2d:"]
    assert not experts_folder(dataset.data("3d_fullres")).exists()
    said = error_of(capsys, "-d", NAME, "-c", "2d", "3d_fullres")
    assert f"{NAME} is not preprocessed for 3d_fullres; run nnUNetv2_preprocess first" in said


def test_several_datasets_are_done_one_after_the_other(dataset, capsys):
    for folder in (dataset.raw, dataset.preprocessed):
        shutil.copytree(folder, folder.with_name("Dataset702_Other"))
    file = dataset.preprocessed.with_name("Dataset702_Other") / "nnUNetPlans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset_name": "Dataset702_Other"}))
    main(["-d", "701", "Dataset702_Other", "-c", "2d", "-np", "1"])
    said = capsys.readouterr().out
    assert said.index(f"{NAME}: ") < said.index("Dataset702_Other: ")


def test_all_faults_are_listed_and_nothing_is_written(dataset, capsys):
    wrong = dataset.write_mask("ann", "a", np.full_like(dataset.reference("a"), 9))
    moved = dataset.write_mask("bob", "c", dataset.reference("c"), origin=(1, 2, 3))
    said = error_of(capsys, "-d", NAME, "-np", "1")
    assert "2 problem(s) in the experts' masks of" in said
    assert f"{wrong}: contains labels that are not in dataset.json: 9" in said
    assert f"{moved}: origin (1, 2, 3) instead of (-7, 3.5, 11)" in said
    assert "Traceback" not in said
    assert masks_of(dataset, "2d") == masks_of(dataset, "3d_fullres") == []


def test_a_declared_expert_without_a_folder_is_a_fault(dataset, capsys):
    dataset.declare("ann", "eve")
    assert f"{dataset.raw / 'expertsTr' / 'eve'} has no masks (*.nii.gz)" in error_of(capsys, "-d", NAME, "-np", "1")


def test_experts_declared_after_planning_count(dataset):
    content = json.loads((dataset.preprocessed / "dataset.json").read_text())
    del content["experts"]
    (dataset.preprocessed / "dataset.json").write_text(json.dumps(content))
    assert preprocess_experts(701, configurations=["2d"])[1:3] == ["  ann: 3 masks", "  bob: 2 masks"]


def test_without_the_raw_dataset_what_is_there_is_not_said_to_have_been_checked(dataset, capsys):
    preprocess_experts(NAME)
    shutil.rmtree(dataset.raw)
    first, *others = preprocess_experts(NAME)
    assert first == f"{NAME}: the experts' masks are preprocessed; the raw dataset is not on this machine"
    assert [line.split(" cases")[0] for line in others] == ["  2d: 0", "  3d_fullres: 0"]
    (experts_folder(dataset.data("2d")) / "experts.json").unlink()
    assert "the masks of ann, bob are not preprocessed for 3 of 3 cases" in error_of(capsys, "-d", NAME)


def damage_declaration(dataset):
    dataset.declare("ann", "ann")


def undeclare(dataset):
    dataset.declare()


def unplan(dataset):
    (dataset.preprocessed / "nnUNetPlans.json").unlink()


def unprocess(dataset):
    for configuration in ("2d", "3d_fullres"):
        shutil.rmtree(dataset.data(configuration))


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (undeclare, ["-d", NAME], f"dataset.json of {NAME} declares no experts"),
        (damage_declaration, ["-d", NAME], "two experts have the same name, 'ann'"),
        (unplan, ["-d", NAME], f"{NAME} has no plans nnUNetPlans ("),
        (unprocess, ["-d", NAME], f"{NAME} is not preprocessed for 2d, 3d_fullres"),
        (None, ["-d", NAME, "-c", "2d", "3d_lowres"], f"nnUNetPlans of {NAME} has no configuration 3d_lowres"),
        (None, ["-d", NAME, "-p", "others"], f"{NAME} has no plans others ("),
        (None, ["-d", "77"], "Could not find a dataset with the ID 77"),
        (None, ["-d", NAME, "-np", "0"], "must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(dataset, capsys, damage, arguments, message):
    if damage is not None:
        damage(dataset)
    said = error_of(capsys, *arguments)
    assert message in said
    assert "Traceback" not in said
    assert not list(dataset.preprocessed.rglob("*_experts/*.b2nd"))


@pytest.mark.parametrize("cut", [False, True])
def test_a_full_disk_is_told_and_nothing_is_left(dataset, capsys, monkeypatch, cut):
    save = nnUNetDatasetBlosc2.save_seg

    def write(masks, name, **how):
        save(np.zeros_like(masks) if cut else masks, name, **how)
        if not cut:
            raise RuntimeError("Could not build empty array")  # what blosc2 says

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_seg", staticmethod(write))
    assert "cannot be written completely: is the disk full?" in error_of(capsys, "-d", "701", "-c", "2d", "-np", "1")
    assert not masks_of(dataset, "2d")
