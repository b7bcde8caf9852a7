import json

import numpy as np
import pytest

from nnunetv2_deferral.commands.convert_dataset import convert_dataset
from nnunetv2_deferral.errors import InputError

ORGANS = [
    *("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota", "postcava"),
    *("pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
]
TRAINING, VALIDATION, TEST = (1, 410, 507), (8, 555), (2, 500, 600)


def entries(suffix, numbers):
    named = [f"amos_{number:04d}.nii.gz" for number in numbers]
    return [{"image": f"./images{suffix}/{name}", "label": f"./labels{suffix}/{name}"} for name in named]


@pytest.fixture
def published(tmp_path, write_pair, write_volume):
    """CT and MRI in the training, validation and test set, and a dataset.json as published."""
    folder = tmp_path / "amos22"
    for suffix, numbers in (("Tr", TRAINING), ("Va", VALIDATION)):
        for number in numbers:
            name = f"amos_{number:04d}.nii.gz"
            write_pair(folder / f"images{suffix}" / name, folder / f"labels{suffix}" / name, [1, 6, 15])
    for number in TEST:
        write_volume(folder / f"imagesTs/amos_{number:04d}.nii.gz", np.ones((3, 5, 7), np.int16))
    content = {
        "name": "AMOS",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(["background", *ORGANS])},
        "training": entries("Tr", TRAINING),
        "validation": entries("Va", VALIDATION),
        "test": [{"image": entry["image"]} for entry in entries("Ts", TEST)],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def change(published):
    """A function that changes the published dataset.json."""

    def change(**changes):
        path = published / "dataset.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def convert(published, **options):
    return convert_dataset("amos22", published, 219, published.parent / "raw", **options)


def names(folder, part):
    return sorted(path.name for path in (folder / part).iterdir())


def test_ct_and_mri_of_the_training_and_validation_set_are_for_training(published):
    folder = convert(published)
    assert folder.name == "Dataset219_AMOS22Task2"
    numbers = sorted(TRAINING + VALIDATION)
    assert names(folder, "imagesTr") == [f"amos_{number:04d}_0000.nii.gz" for number in numbers]
    assert names(folder, "labelsTr") == [f"amos_{number:04d}.nii.gz" for number in numbers]
    assert names(folder, "imagesTs") == [f"amos_{number:04d}_0000.nii.gz" for number in TEST]
    assert names(folder, ".") == ["dataset.json", "imagesTr", "imagesTs", "labelsTr"]
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "either_CT_or_MR"}


def test_task_1_has_ct_alone(published):
    folder = convert(published, task=1)
    assert folder.name == "Dataset219_AMOS22Task1"
    assert names(folder, "labelsTr") == [f"amos_{number:04d}.nii.gz" for number in (1, 8, 410)]
    assert names(folder, "imagesTs") == ["amos_0002_0000.nii.gz", "amos_0500_0000.nii.gz"]
    content = json.loads((folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    assert content["numTraining"] == 3


def test_voxels_and_geometry_are_kept(published, assert_same_volume):
    folder = convert(published)
    for suffix, number in (("Tr", 507), ("Va", 8)):
        name = f"amos_{number:04d}"
        assert_same_volume(folder / f"imagesTr/{name}_0000.nii.gz", published / f"images{suffix}/{name}.nii.gz")
        assert_same_volume(folder / f"labelsTr/{name}.nii.gz", published / f"labels{suffix}/{name}.nii.gz")


def test_nnunet_accepts_the_dataset_with_its_15_organs_and_reorienting_reader(published, assert_accepted_by_nnunet):
    folder = convert(published)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {name: value for value, name in enumerate(["background", *ORGANS])}
    assert content["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert content["numTraining"] == 5
    assert_accepted_by_nnunet(folder)


def test_labels_of_test_cases_are_taken_along_if_there_are_any(published, write_pair):
    name = "amos_0002.nii.gz"
    write_pair(published / "imagesTs" / name, published / "labelsTs" / name, [3])
    assert names(convert(published), "labelsTs") == [name]


def test_images_that_dataset_json_does_not_list_are_left_out_with_a_warning(published, write_volume, caplog):
    write_volume(published / "imagesTr/amos_0003.nii.gz", np.ones((3, 5, 7), np.int16))
    assert "amos_0003_0000.nii.gz" not in names(convert(published), "imagesTr")
    assert "1 images in" in caplog.text
    assert "amos_0003.nii.gz" in caplog.text


def test_listed_files_that_are_missing_are_all_named_at_once(published):
    (published / "imagesTr/amos_0001.nii.gz").unlink()
    (published / "labelsVa/amos_0008.nii.gz").unlink()
    (published / "imagesTs/amos_0600.nii.gz").unlink()
    with pytest.raises(InputError, match="3 problems") as raised:
        convert(published)
    assert "is missing" in str(raised.value)
    assert "imagesVa/amos_0008.nii.gz has no label in" in str(raised.value)
    with pytest.raises(InputError, match="2 problems"):
        convert(published, task=1)
    assert not (published.parent / "raw").exists()


def test_organs_without_a_name_and_foreign_geometries_are_refused_together(published, write_pair):
    for number, values, geometry in ((1, [16], {}), (410, [1], {"origin": (0.0, 0.0, 0.0)})):
        name = f"amos_{number:04d}.nii.gz"
        write_pair(published / "imagesTr" / name, published / "labelsTr" / name, values, **geometry)
    with pytest.raises(InputError, match="2 problems: .*labelsTr/amos_0001.nii.gz .*labels: 16; .*amos_0410.* origin"):
        convert(published)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, 'lacks "labels" or "training"'),
        ({"training": None}, 'lacks "labels" or "training"'),
        ({"labels": ["background", "spleen"]}, "must map values to names, got"),
        ({"labels": {"zero": "background"}}, "must map values to names, got"),
        ({"labels": {"0": "background", "2": "spleen"}}, "must be consecutive from 0 .background."),
        ({"labels": {"1": "background", "0": "spleen"}}, "must be consecutive from 0 .background."),
        ({"labels": {"0": "background"}}, "must be consecutive from 0 .background."),
        ({"training": ["./imagesTr/amos_0001.nii.gz"]}, '"training" of .* lists .* which is not an image of a case'),
        ({"validation": [{"image": "./imagesVa/liver_8.nii.gz"}]}, "lists .*liver_8.* which is not an image of a case"),
        ({"validation": entries("Tr", (1,))}, "has no label in .*labelsVa.*; .* lists amos_0001 twice"),
    ],
)
def test_a_dataset_json_of_another_kind_is_refused(published, change, changes, message):
    change(**changes)
    with pytest.raises(InputError, match=message):
        convert(published)


def test_a_task_without_training_cases_and_missing_files_are_refused(published, change):
    change(training=entries("Tr", (507,)), validation=None, test=[])
    with pytest.raises(InputError, match="lists no training cases for task 1"):
        convert(published, task=1)
    (published / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="dataset.json cannot be read"):
        convert(published)
    (published / "dataset.json").unlink()
    with pytest.raises(InputError, match="dataset.json, the dataset.json of AMOS22, is missing"):
        convert(published)
    with pytest.raises(InputError, match="the folder .*nowhere does not exist"):
        convert(published / "nowhere")


def test_there_are_two_tasks(published):
    with pytest.raises(InputError, match="must be 1 or 2, got 3"):
        convert(published, task=3)
