"""Every JSON file that a command or a training reads is checked by type, and the message names file, key and value."""

import json
import shutil

import pytest
from small_dataset import make_dataset

from nnunetv2_deferral.benchmark.state import read_summary, validation_problem
from nnunetv2_deferral.benchmark.timing import _Setup, _setup
from nnunetv2_deferral.commands import plan_experiment, preprocess_experts
from nnunetv2_deferral.dataset import read_dataset_json, read_groups, read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Experiment, is_deferral_model
from nnunetv2_deferral.nnunet.rater_data import dataset_raters, labelled_voxels

NAME = "Dataset701_Small"
DEEP = "[" * 900 + "]" * 900
DEEPER = "[" * 100_000 + "]" * 100_000
DATASET_FAULTS = [
    ("labels", "null", "labels must be an object, got None"),
    ("labels", "{}", "labels"),
    ("labels", '{"background": 0, "a": 1e400}', "labels.a must be an integer, got inf"),
    ("labels", '{"background": 0, "a": [1, "2"]}', "labels.a[1] must be an integer, got '2'"),
    ("labels", '{"background": 1, "a": 0}', "nnU-Net does not accept these labels"),
    ("labels", DEEP, "labels must be an object"),
    ("labels", DEEPER, "cannot be read"),
    ("file_ending", '[".png"]', "file_ending must be a string, got ['.png']"),
    ("file_ending", "7", "file_ending must be a string, got 7"),
    ("experts", '"ann"', "experts must be a list, got 'ann'"),
    ("experts", '[["ann"]]', "experts[0] must be a string, got ['ann']"),
    ("channel_names", "null", "channel_names must be an object, got None"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    make_dataset(root, NAME, configurations=("2d",)).declare("ann")
    (root / "raw" / NAME / "expertsTr").mkdir()
    shutil.copytree(root / "raw" / NAME / "labelsTr", root / "raw" / NAME / "expertsTr" / "ann")
    return root


@pytest.fixture
def root(original, tmp_path, monkeypatch):
    """A small dataset in nnU-Net's folders, with one rater."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    return tmp_path


def change(file, key, text):
    """Set a key of a JSON file to a text, which need not be short enough for a parser."""
    content = json.loads(file.read_text()) | {key: "HERE"}
    file.write_text(json.dumps(content).replace('"HERE"', text))


def refused(main, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("key", "text", "words"), DATASET_FAULTS)
def test_dataset_json_of_planning(root, capsys, key, text, words):
    if words.startswith("nnU-Net"):
        pytest.skip("planning does not use the values of labels")
    file = root / "raw" / NAME / "dataset.json"
    change(file, key, text)
    said = refused(plan_experiment.main, capsys, "-d", "701")
    assert str(file) in said
    assert words in said


@pytest.mark.parametrize("folder", ["raw", "preprocessed"])
@pytest.mark.parametrize(("key", "text", "words"), DATASET_FAULTS)
def test_dataset_json_of_preprocessing_masks(root, capsys, folder, key, text, words):
    if words.startswith("nnU-Net") and folder == "raw":
        pytest.skip("the labels are those of the preprocessed dataset")
    file = root / folder / NAME / "dataset.json"
    change(file, key, text)
    said = refused(preprocess_experts.main, capsys, "-d", "701", "-np", "1")
    assert str(file) in said or f"dataset.json of {NAME}" in said
    assert words in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "the content must be an object, got []"),
        ('{"configurations": []}', "configurations must be an object, got []"),
        ('{"configurations": {"2d": 7}}', "configurations.2d must be an object, got 7"),
        ('{"configurations": {}, "image_reader_writer": 7}', "image_reader_writer must be a string, got 7"),
        (DEEPER, "cannot be read"),
    ],
)
def test_plans(root, capsys, text, words):
    file = root / "preprocessed" / NAME / "nnUNetPlans.json"
    file.write_text(text)
    said = refused(preprocess_experts.main, capsys, "-d", "701", "-np", "1")
    assert str(file) in said
    assert words in said


INDEX_FAULTS = [
    ("[]", "the content must be an object, got []"),
    ('{"experts": "ann"}', "experts must be a list, got 'ann'"),
    ('{"experts": ["ann"], "cases": {"a": {"ann": 7}}}', "cases.a.ann must be a list, got 7"),
    ('{"experts": ["ann"], "labelled": {"a": {"ann": -1}}}', "labelled.a.ann must be"),
]


@pytest.mark.parametrize(("text", "words"), INDEX_FAULTS)
def test_the_index_of_preprocessed_masks(root, capsys, text, words):
    preprocess_experts.main(["-d", "701", "-np", "1"])
    preprocessed = root / "preprocessed" / NAME / "nnUNetPlans_2d"
    file = preprocessed.with_name("nnUNetPlans_2d_experts") / "experts.json"
    file.write_text(text)
    said = refused(preprocess_experts.main, capsys, "-d", "701", "-np", "1")
    assert f"{file}: " in said
    assert words in said
    with pytest.raises(InputError, match=r"experts\.json"):
        labelled_voxels(preprocessed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "the content must be a list, got {}"),
        ('[{"train": []}]', "[0].val is missing"),
        ('[{"train": [], "val": [7]}]', "[0].val[0] must be a string, got 7"),
        ('[{"train": [], "val": null}]', "[0].val must be a list, got None"),
    ],
)
def test_splits(root, text, words):
    experiment = Experiment.find(NAME, "2d", [0])
    file = experiment.preprocessed / "splits_final.json"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        experiment.cases()
    assert str(raised.value).startswith(str(file))
    assert words in str(raised.value)


SUMMARIES = [
    ("[]", "the content must be an object, got []"),
    ('{"metric_per_case": null}', "metric_per_case must be a list, got None"),
    ('{"metric_per_case": [{"metrics": {}}]}', "metric_per_case[0].prediction_file is missing"),
    ('{"metric_per_case": [{"prediction_file": 7, "metrics": {}}]}', "prediction_file must be a string, got 7"),
    ('{"metric_per_case": [{"prediction_file": "a.png", "metrics": {"1": 7}}]}', "metrics.1 must be an object, got 7"),
]


@pytest.mark.parametrize(("text", "words"), SUMMARIES)
def test_the_summary_of_a_validation(tmp_path, text, words):
    folder = tmp_path / "fold_0" / "validation"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(text)
    with pytest.raises(InputError) as raised:
        read_summary(folder, ".png")
    assert str(raised.value).startswith(str(folder / "summary.json"))
    assert words in str(raised.value)
    assert words in validation_problem(tmp_path / "fold_0", ["a"], ".png")


@pytest.mark.parametrize(
    "change",
    [{"gpu_name": [7]}, {"device": 7}, {"hostname": None}, {"num_iterations_per_epoch": 1e400}, {"device": None}],
)
def test_a_damaged_debug_json_means_an_unknown_setup(tmp_path, change):
    whole = {"device": "cpu", "hostname": "here", "num_iterations_per_epoch": "250"}
    file = tmp_path / "debug.json"
    file.write_text(json.dumps(whole))
    assert _setup(tmp_path) == _Setup("cpu", "here", 250)
    file.write_text(json.dumps(whole | change))
    assert _setup(tmp_path) == _Setup()


def test_other_files(tmp_path):
    file = tmp_path / "plans.json"
    for text in ("[]", "7", "null", '"x"'):
        file.write_text(text)
        for read in (read_plans_json, read_dataset_json, lambda file: is_deferral_model(file.parent)):
            with pytest.raises(InputError, match="the content must be an object, got"):
                read(file)
    file.write_text('{"a": ["p1"]}')
    with pytest.raises(InputError, match=r"plans\.json: a must be"):
        read_groups(file, ["a"])


def test_the_raters_of_a_training_are_read_from_a_checked_file(root):
    file = root / "raw" / NAME / "dataset.json"
    change(file, "experts", "{}")
    with pytest.raises(InputError, match=r"dataset\.json: experts must be a list, got \{\}"):
        dataset_raters(NAME, {})
