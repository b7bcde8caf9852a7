import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_deferral.commands.convert_dataset import convert_dataset
from nnunetv2_deferral.errors import InputError


@pytest.fixture
def published(tmp_path, write_pair, write_volume):
    """The archives of the Zenodo release; the live challenge without segmentations."""
    folder = tmp_path / "promise12"
    for part, numbers in (("training_data", (0, 1, 7)), ("test_data", (0,))):
        for number in numbers:
            image = folder / part / f"Case{number:02d}.mhd"
            write_pair(image, image.with_name(f"Case{number:02d}_segmentation.mhd"), [1], dtype=np.int8)
    write_volume(folder / "livechallenge_test_data" / "Case00.mhd", np.ones((4, 9, 11), np.int16))
    (folder / "LICENSE.TXT").write_text("licence")
    return folder


def convert(published, **options):
    return convert_dataset("promise12", published, 12, published.parent / "raw", **options)


def test_every_case_is_written_once_and_the_test_sets_are_told_apart(published, files_below):
    folder = convert(published)
    assert folder == published.parent / "raw" / "Dataset012_PROMISE12"
    training = [f"Case{number}" for number in ("00", "01", "07")]
    assert files_below(folder) == [
        "dataset.json",
        *(f"imagesTr/{case}_0000.nii.gz" for case in training),
        "imagesTs/LiveCase00_0000.nii.gz",
        "imagesTs/TestCase00_0000.nii.gz",
        *(f"labelsTr/{case}.nii.gz" for case in training),
        "labelsTs/TestCase00.nii.gz",
    ]
    assert files_below(folder.parent) == [f"{folder.name}/{file}" for file in files_below(folder)]


def test_voxels_and_geometry_are_kept_and_labels_are_small_integers(published, assert_same_volume):
    folder = convert(published)
    for case in ("Case00", "Case01", "Case07"):
        assert_same_volume(folder / f"imagesTr/{case}_0000.nii.gz", published / f"training_data/{case}.mhd")
        label = folder / f"labelsTr/{case}.nii.gz"
        assert_same_volume(label, published / f"training_data/{case}_segmentation.mhd")
        assert sitk.ReadImage(str(label)).GetPixelID() == sitk.sitkUInt8


def test_nnunet_accepts_the_dataset(published, assert_accepted_by_nnunet):
    folder = convert(published)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "prostate": 1}
    assert content["channel_names"] == {"0": "T2"}
    assert content["numTraining"] == 3
    assert "experts" not in content
    assert_accepted_by_nnunet(folder)


def test_the_folders_of_the_older_release_will_do(published, files_below):
    before = files_below(convert(published))
    (published / "training_data").rename(published / "TrainingData_Part1")
    (published / "TrainingData_Part3").mkdir()
    for file in (published / "TrainingData_Part1").glob("Case07*"):
        file.rename(published / "TrainingData_Part3" / file.name)
    (published / "test_data").rename(published / "TestData")
    assert files_below(convert_dataset("promise12", published, 13, published.parent / "raw")) == before


def test_the_training_archive_alone_will_do_and_what_macos_adds_is_no_case(published, files_below):
    training = published / "training_data"
    (training / "__MACOSX").mkdir()
    for name in ("._Case00.mhd", "__MACOSX/Case55.mhd"):
        (training / name).write_text("junk")
    folder = convert_dataset("promise12", training, 12, published.parent / "raw")
    assert len(files_below(folder)) == 7


def test_unpaired_files_are_all_named_at_once(published, files_below):
    (published / "training_data/Case01_segmentation.mhd").unlink()
    (published / "training_data/Case07.mhd").unlink()
    with pytest.raises(
        InputError, match="2 problems: .*Case07_segmentation.mhd has no image; .*Case01.mhd has no segm"
    ):
        convert(published)
    assert not (published.parent / "raw").exists()


def test_two_files_for_one_case_are_refused(published):
    (published / "training_data" / "copy").mkdir()
    for suffix in ("mhd", "raw"):
        content = (published / f"training_data/Case00.{suffix}").read_bytes()
        (published / f"training_data/copy/Case00.{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=r"Case00.mhd and .*copy/Case00.mhd are the same part of the same case"):
        convert(published)


def test_geometries_that_disagree_are_all_named_before_anything_is_written(published, write_pair):
    for number in (1, 7):
        image = published / f"training_data/Case{number:02d}.mhd"
        label = image.with_name(f"Case{number:02d}_segmentation.mhd")
        write_pair(image, label, [1], spacing=(1.0, 1.0, float(number)), origin=(0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="2 problems") as raised:
        convert(published)
    message = str(raised.value)
    assert "Case01_segmentation.mhd is not on the grid of Case01.mhd" in message
    assert "spacing (1, 1, 7) instead of (0.625, 0.75, 3.5), origin (0, 0, 0) instead of (-11, 3.5, 40)" in message
    assert "direction" not in message
    assert "ignore_label_geometry" in message
    assert not (published.parent / "raw").exists()


def test_ignoring_the_labels_geometry_gives_them_that_of_their_images(published, write_pair, assert_accepted_by_nnunet):
    image = published / "training_data/Case01.mhd"
    label = image.with_name("Case01_segmentation.mhd")
    write_pair(image, label, [1], spacing=(1.0, 1.0, 1.0), direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    folder = convert(published, ignore_label_geometry=True)
    written, source = (sitk.ReadImage(str(file)) for file in (folder / "labelsTr/Case01.nii.gz", image))
    assert written.GetSpacing() == source.GetSpacing()
    assert written.GetDirection() == pytest.approx(source.GetDirection())
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(sitk.ReadImage(str(label))))
    assert_accepted_by_nnunet(folder)


def test_another_number_of_voxels_is_refused_even_then(published, write_volume):
    write_volume(published / "training_data/Case01_segmentation.mhd", np.zeros((4, 9, 12), np.uint8))
    with pytest.raises(InputError, match=r"Case01_segm.*size \(12, 9, 4\) instead of \(11, 9, 4\)$"):
        convert(published, ignore_label_geometry=True)


def test_rounding_of_the_labels_geometry_is_no_fault_and_is_undone(published, write_pair, assert_accepted_by_nnunet):
    image = published / "training_data/Case01.mhd"
    rounded = {"spacing": (0.6251, 0.7499, 3.501), "origin": (-11.001, 3.5, 40.002)}
    write_pair(image, image.with_name("Case01_segmentation.mhd"), [1], **rounded)
    folder = convert(published)
    assert sitk.ReadImage(str(folder / "labelsTr/Case01.nii.gz")).GetSpacing() == pytest.approx((0.625, 0.75, 3.5))
    assert_accepted_by_nnunet(folder)


@pytest.mark.parametrize(("value", "listed"), [(2, "2"), (0.5, "0.5"), (float("nan"), "nan")])
def test_labels_that_should_not_be_there_are_named(published, write_pair, value, listed):
    image = published / "training_data/Case07.mhd"
    write_pair(image, image.with_name("Case07_segmentation.mhd"), [1, value], dtype=np.float32)
    with pytest.raises(InputError, match=f"Case07_segmentation.mhd contains unexpected labels: {listed}$"):
        convert(published)
    assert not (published.parent / "raw").exists()


def test_geometry_and_labels_of_a_case_are_complained_of_together(published, write_pair):
    image = published / "training_data/Case07.mhd"
    write_pair(image, image.with_name("Case07_segmentation.mhd"), [3], origin=(0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="2 problems: .*not on the grid.*; .*unexpected labels: 3"):
        convert(published)


def test_pixels_that_are_missing_are_named_and_leave_nothing_behind(published, files_below):
    (published / "training_data/Case00.raw").unlink()
    (published / "training_data/Case01_segmentation.raw").unlink()
    with pytest.raises(InputError, match="Case01_segmentation.mhd cannot be read"):
        convert(published)
    (published / "training_data/Case01_segmentation.raw").write_bytes(bytes(4 * 9 * 11))
    with pytest.raises(InputError, match="Case00.mhd cannot be read"):
        convert(published)
    assert files_below(published.parent / "raw") == []


def test_flat_and_coloured_pictures_are_no_volumes(published, write_volume):
    flat = {"spacing": (1, 1), "origin": (0, 0), "direction": (1, 0, 0, 1)}
    write_volume(published / "training_data/Case01.mhd", np.zeros((9, 11), np.int16), **flat)
    colours = sitk.GetImageFromArray(np.zeros((4, 9, 11, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(published / "training_data/Case07_segmentation.mhd"))
    with pytest.raises(InputError, match="2 problems") as raised:
        convert(published)
    assert "Case01.mhd is not a volume with one channel: size (11, 9), 1 channel(s)" in str(raised.value)
    assert "Case07_segmentation.mhd is not a volume with one channel: size (11, 9, 4), 3 channel(s)" in str(
        raised.value
    )


def test_a_folder_without_the_dataset_is_refused(published, tmp_path):
    with pytest.raises(InputError, match="the folder .*nowhere does not exist"):
        convert(tmp_path / "nowhere")
    for file in (published / "training_data").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no training cases of PROMISE12 .* in .*promise12"):
        convert(published)
