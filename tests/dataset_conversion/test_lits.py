import gzip
import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_deferral.commands.convert_dataset import convert_dataset
from nnunetv2_deferral.errors import InputError

BATCHES = "media/nas/01_Datasets/CT/LITS"


@pytest.fixture
def published(tmp_path, write_pair, write_volume):
    """Both batches as their archives unpack, one file compressed, and the test set."""
    folder = tmp_path / "LiTS"
    for batch, numbers in ((1, (0, 27)), (2, (28, 130))):
        for number in numbers:
            part = folder / BATCHES / f"Training Batch {batch}"
            image = part / f"volume-{number}.nii{'.gz' if number == 130 else ''}"
            write_pair(image, part / f"segmentation-{number}.nii", [1] if number == 27 else [1, 2], dtype=np.float64)
    write_volume(folder / "LITS-Challenge-Test-Data" / "test-volume-59.nii", np.ones((3, 5, 7), np.int16))
    return folder


def convert(published, **options):
    return convert_dataset("lits", published, 7, published.parent / "raw", **options)


def test_both_batches_and_the_test_set_become_one_dataset(published, files_below):
    folder = convert(published)
    assert folder.name == "Dataset007_LiTS"
    training = [f"LiTS_{number:03d}" for number in (0, 27, 28, 130)]
    assert files_below(folder) == [
        "dataset.json",
        *(f"imagesTr/{case}_0000.nii.gz" for case in training),
        "imagesTs/LiTS_test_059_0000.nii.gz",
        *(f"labelsTr/{case}.nii.gz" for case in training),
    ]


def test_voxels_and_geometry_are_kept_and_fractional_types_become_integers(published, assert_same_volume):
    folder = convert(published)
    for number, batch in ((0, 1), (130, 2)):
        source = published / BATCHES / f"Training Batch {batch}"
        image = next(source.glob(f"volume-{number}.nii*"))
        assert_same_volume(folder / f"imagesTr/LiTS_{number:03d}_0000.nii.gz", image)
        label = folder / f"labelsTr/LiTS_{number:03d}.nii.gz"
        assert_same_volume(label, source / f"segmentation-{number}.nii")
        assert sitk.ReadImage(str(label)).GetPixelID() == sitk.sitkUInt8


def test_compressed_images_are_taken_over_byte_by_byte(published):
    source = published / BATCHES / "Training Batch 2" / "volume-130.nii.gz"
    source.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), compresslevel=1))
    assert (convert(published) / "imagesTr/LiTS_130_0000.nii.gz").read_bytes() == source.read_bytes()


def test_nnunet_accepts_the_dataset(published, assert_accepted_by_nnunet):
    folder = convert(published)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert content["channel_names"] == {"0": "CT"}
    assert_accepted_by_nnunet(folder)


def test_a_mirror_with_other_folders_gives_the_same_files(published, files_below):
    before = files_below(convert(published))
    mirror = published.parent / "mirror"
    for file in list(published.rglob("*.nii*")):
        part = mirror / ("segmentations" if "segmentation" in file.name else "volume_pt1")
        part.mkdir(parents=True, exist_ok=True)
        file.rename(part / file.name)
    assert files_below(convert_dataset("lits", mirror, 8, published.parent / "raw")) == before


def test_one_batch_alone_is_converted_with_a_word_of_warning(published, caplog):
    batch = published / BATCHES / "Training Batch 1"
    content = json.loads((convert_dataset("lits", batch, 7, published.parent / "raw") / "dataset.json").read_text())
    assert content["numTraining"] == 2
    assert "Found 2 training cases, but 131 are published" in caplog.text


def test_a_segmentation_with_an_identity_matrix_is_refused_unless_told_otherwise(
    published, write_pair, assert_accepted_by_nnunet
):
    part = published / BATCHES / "Training Batch 1"
    identity = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # what nibabel calls the identity
    geometry = {"spacing": (1.0, 1.0, 1.0), "origin": (-1.0, -1.0, 1.0), "direction": identity}
    write_pair(part / "volume-27.nii", part / "segmentation-27.nii", [1, 2], **geometry)
    with pytest.raises(InputError, match="segmentation-27.nii is not on the grid of volume-27.nii: spacing .*ignore"):
        convert(published)
    assert_accepted_by_nnunet(convert(published, ignore_label_geometry=True))


def test_tumours_called_otherwise_are_refused(published, write_pair):
    part = published / BATCHES / "Training Batch 2"
    write_pair(part / "volume-28.nii", part / "segmentation-28.nii", [1, 3, 255])
    with pytest.raises(InputError, match="segmentation-28.nii contains unexpected labels: 3, 255$"):
        convert(published)


def test_unpaired_and_repeated_files_are_all_named_at_once(published):
    part = published / BATCHES / "Training Batch 1"
    (part / "segmentation-0.nii").rename(published / "segmentation-1.nii")
    (published / "segmentation-27.nii").write_bytes((part / "segmentation-27.nii").read_bytes())
    with pytest.raises(InputError, match="3 problems") as raised:
        convert(published)
    assert "segmentation-27.nii are the same part" in str(raised.value)
    assert "segmentation-1.nii has no image" in str(raised.value)
    assert "volume-0.nii has no segmentation" in str(raised.value)


def test_test_volumes_alone_are_no_dataset(published):
    with pytest.raises(InputError, match="no training cases of LiTS .*LITS-Challenge-Test-Data"):
        convert_dataset("lits", published / "LITS-Challenge-Test-Data", 7, published.parent / "raw")
    assert not (published.parent / "raw").exists()
