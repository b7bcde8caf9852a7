"""Made-up volumes, and nnU-Net's own opinion of a dataset."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

SPACING, ORIGIN = (0.625, 0.75, 3.5), (-11.0, 3.5, 40.0)
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


@pytest.fixture
def write_volume():
    """A function that writes an array (Z, Y, X) with an unusual geometry, and makes the folders."""

    def write(path, array, *, spacing=SPACING, origin=ORIGIN, direction=DIRECTION):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(direction)
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))

    return write


@pytest.fixture
def write_pair(write_volume):
    """A function that writes an image and its segmentation: blocks of the given labels, as uint8 unless said else."""

    def write(image, label, values, *, dtype=np.uint8, shape=(4, 9, 11), **label_geometry):
        generator = np.random.default_rng(sum(map(ord, image.name)))
        write_volume(image, generator.integers(-500, 500, shape).astype(np.int16))
        labels = np.zeros(shape, dtype=dtype)
        for position, value in enumerate(values):
            labels[1:3, 2:6, position : position + 2] = value
        write_volume(label, labels, **label_geometry)

    return write


@pytest.fixture
def assert_same_volume():
    """A function that compares voxels and geometry of two files."""

    def check(first, second):
        one, other = (sitk.ReadImage(str(path)) for path in (first, second))
        assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
        for name in ("Spacing", "Origin", "Direction"):
            assert getattr(one, f"Get{name}")() == pytest.approx(getattr(other, f"Get{name}")())

    return check


@pytest.fixture
def assert_accepted_by_nnunet(capfd):
    """A function that has nnU-Net verify a dataset, without a warning."""

    def check(folder):
        verify_dataset_integrity(str(folder), num_processes=1)
        printed = capfd.readouterr().out
        assert "verify_dataset_integrity Done" in printed
        assert "mismatch" not in printed.lower()

    return check


@pytest.fixture
def files_below():
    """A function that lists all files of a folder, hidden ones too, relative to it."""
    return lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
