"""Image files that are cut short, damaged, of another format or hold what no label map holds are refused by name."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.image_files import check_file, read_image, read_labels, read_values

LABELS = (np.random.default_rng(0).random((6, 9, 11)) < 0.3).astype(np.uint8)
KNOWN = (0, 1, None)


def itk(reader, compress):
    def write(file, array):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(file), compress)
        return reader()

    return write


def tiff(file, array):
    tifffile.imwrite(file, array)
    file.with_suffix(".json").write_text('{"spacing": [1, 1, 1]}')
    return Tiff3DIO()


def picture(file, array):
    io.imsave(file, array[0], check_contrast=False)
    return NaturalImage2DIO()


KINDS = {
    "x.nii.gz": itk(SimpleITKIO, True),
    "nibabel.nii.gz": itk(NibabelIO, True),
    "x.nii": itk(NibabelIO, False),
    "x.nrrd": itk(SimpleITKIO, True),
    "raw.nrrd": itk(SimpleITKIO, False),
    "x.mha": itk(SimpleITKIO, True),
    "raw.mha": itk(SimpleITKIO, False),
    "x.gipl": itk(SimpleITKIO, False),
    "x.tif": tiff,
    "x.png": picture,
    "x.bmp": picture,
}
COMPRESSED = ("x.nii.gz", "nibabel.nii.gz", "x.nrrd", "x.mha")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_a_whole_file_is_read(tmp_path, kind):
    file = tmp_path / kind
    reader = KINDS[kind](file, LABELS)
    labels, properties = read_labels(file, reader, KNOWN)
    np.testing.assert_array_equal(labels, LABELS if labels.shape[0] > 1 else LABELS[:1])
    assert labels.dtype == np.int16
    assert len(properties["spacing"]) == 3


def test_no_file_that_was_cut_short_is_read_as_something_else(tmp_path, kind):
    file = tmp_path / kind
    reader = KINDS[kind](file, LABELS)
    whole, content = read_values(file, reader)[0], file.read_bytes()
    refused, tried = 0, 0
    for length in {*range(0, len(content), max(1, len(content) // 60)), len(content) - 1}:
        file.write_bytes(content[:length])
        tried += 1
        try:
            values, _ = read_values(file, reader)
        except InputError as error:
            refused += str(file) in str(error)
        else:  # what was cut off was no voxel, such as the last chunk of a PNG file
            np.testing.assert_array_equal(values, whole)
            tried -= 1
    assert refused == tried > 30  # each naming the file


def test_voxels_written_as_text_are_read_whatever_their_length(tmp_path):
    file = tmp_path / "x.mha"
    header = "ObjectType = Image\nNDims = 3\nBinaryData = False\nDimSize = 2 2 1\nElementType = MET_FLOAT\n"
    file.write_text(f"{header}ElementDataFile = LOCAL\n0 1 1 0\n")
    check_file(file)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_no_damaged_byte_of_compressed_voxels_passes(tmp_path, kind):
    file = tmp_path / kind
    reader = KINDS[kind](file, LABELS)
    content = file.read_bytes()
    start = len(content) - 60  # behind the header, before the checksum
    for position in range(start, start + 40):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=kind):
            read_values(file, reader)


def test_a_missing_file_is_named(tmp_path, kind):
    with pytest.raises(InputError, match=f"{kind} is missing"):
        check_file(tmp_path / kind)


def test_a_file_of_another_format_is_refused_before_a_reader_looks_into_it(tmp_path, kind):
    file = tmp_path / kind
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n" + b" " * 600)
    with pytest.raises(InputError, match=kind):
        check_file(file)


@pytest.mark.parametrize("kind", ["x.nii.gz", "x.nii", "x.nrrd", "x.mha"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, kind, value):
    file = tmp_path / kind
    array = LABELS.astype(np.float32)
    array[2, 3, 4] = value
    reader = KINDS[kind](file, array)
    with pytest.raises(InputError, match=f"{kind} contains numbers that are not finite"):
        read_values(file, reader)
    if value == np.inf:
        assert read_image([file], reader).shape == (1, *LABELS.shape)  # only maps and masks must be finite


@pytest.mark.parametrize("kind", ["x.nii.gz", "x.nii", "x.nrrd", "x.mha"])
def test_complex_numbers_are_refused(tmp_path, kind):
    file = tmp_path / kind
    reader = KINDS[kind](file, LABELS.astype(np.complex64))
    with pytest.raises(InputError, match=f"{kind} (contains complex numbers|is not a map with one channel)"):
        read_values(file, reader)


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (LABELS * 255, "255"),
        (LABELS * 7, "7"),
        (LABELS.astype(np.int16) * -1, "-1"),
        (LABELS * np.float32(0.5), "0.5"),
        (LABELS.astype(np.int32) * 2**20, "1.04858e+06"),
    ],
)
def test_labels_that_the_dataset_has_not_are_named(tmp_path, array, values):
    file = tmp_path / "x.nii.gz"
    reader = KINDS["x.nii.gz"](file, array)
    with pytest.raises(InputError) as refused:
        read_labels(file, reader, KNOWN)
    assert str(refused.value) == f"{file} contains labels that are not in dataset.json: {values}"


@pytest.mark.parametrize("kind", ["x.nii.gz", "x.nrrd", "x.mha"])
def test_several_channels_are_no_label_map(tmp_path, kind):
    file = tmp_path / kind
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([LABELS] * 3, axis=-1), isVector=True), str(file))
    with pytest.raises(InputError, match=f"{kind} is not a map with one channel"):
        read_values(file, SimpleITKIO())


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("raw.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = %s"),
        ("raw.nrrd", b"encoding: raw", b"data file: %s\nencoding: raw"),
        ("raw.nrrd", b"encoding: raw", b"DataFile: %s\nencoding: raw"),
    ],
)
def test_a_header_that_refers_to_another_file_is_refused(tmp_path, kind, old, new):
    file, other = tmp_path / kind, tmp_path / "secret.raw"
    KINDS[kind](file, LABELS)
    other.write_bytes(LABELS.tobytes())
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new % str(other).encode()))
    with pytest.raises(InputError, match=f"{kind} refers to another file for its data"):
        check_file(file)


def test_a_gzip_header_with_a_wrong_checksum_is_refused(tmp_path):
    """As by ITK: nnU-Net would read this file and all others of the folder by another reader."""
    file = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.uint8)), str(file))
    check_file(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:3] + b"\x02\x00" + whole[3:])
    with pytest.raises(InputError, match=r"a.nii.gz cannot be read; .* \(.*header crc mismatch"):
        check_file(file)


def test_a_nifti_header_whose_voxels_are_elsewhere_is_refused(tmp_path):
    file = tmp_path / "x.nii"
    KINDS["x.nii"](file, LABELS)
    content = bytearray(file.read_bytes())
    content[344:348] = b"ni1\0"
    file.write_bytes(content)
    with pytest.raises(InputError, match="x.nii is not a NIfTI file that contains its own data"):
        check_file(file)


@pytest.mark.parametrize("offset", [np.nan, np.inf, -1.0, -1e30, 1e30])
def test_a_nifti_header_with_an_impossible_place_of_its_voxels_is_refused(tmp_path, offset):
    file = tmp_path / "x.nii"
    KINDS["x.nii"](file, LABELS)
    content = bytearray(file.read_bytes())
    content[108:112] = np.float32(offset).tobytes()
    file.write_bytes(content)
    with pytest.raises(InputError, match="x.nii "):
        check_file(file)


def test_a_header_that_promises_less_than_there_is_is_refused(tmp_path):
    file = tmp_path / "x.nii.gz"
    KINDS["x.nii.gz"](file, LABELS)
    whole = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(whole + b"\0" * 100))
    check_file(file)  # padding
    file.write_bytes(gzip.compress(whole + b"\0" * 2**21))
    with pytest.raises(InputError, match=r"x.nii.gz contains more than the \d+ bytes of voxels of its header"):
        check_file(file)


def test_nifti_2_is_read(tmp_path):
    file = tmp_path / "x.nii.gz"
    nibabel.save(nibabel.Nifti2Image(LABELS, np.eye(4)), file)
    assert read_labels(file, NibabelIO(), KNOWN)[0].sum() == LABELS.sum()


def test_an_image_needs_a_file(tmp_path):
    with pytest.raises(InputError, match="at least one file"):
        read_image([], SimpleITKIO())


def test_every_channel_of_an_image_is_checked(tmp_path):
    files = [tmp_path / f"x_000{channel}.nii.gz" for channel in range(2)]
    for file in files:
        KINDS["x.nii.gz"](file, LABELS)
    assert read_image(files, SimpleITKIO()).shape == (2, *LABELS.shape)
    files[1].write_bytes(files[1].read_bytes()[:-30])
    with pytest.raises(InputError, match="x_0001.nii.gz"):
        read_image(files, SimpleITKIO())


@pytest.mark.parametrize(("known", "dtype"), [((0, 5, None), np.int16), ((0, 5, 40_000), np.int64)])
def test_labels_take_no_more_memory_than_they_need(tmp_path, known, dtype):
    file = tmp_path / "x.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 3, 4), 5, np.uint8)), str(file))
    labels, _ = read_labels(file, SimpleITKIO(), known)
    assert labels.dtype == dtype
    assert (labels == 5).all()
