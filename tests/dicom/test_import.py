"""From DICOM series to images for nnU-Net, compared with ITK's own reading and with the headers."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from small_series import (
    ORIENTATIONS,
    PATIENT,
    SHAPE,
    SPACING,
    Dataset,
    axes_of,
    make_multi_frame,
    make_series,
    write_series,
)

from nnunetv2_deferral.commands import dicom as command
from nnunetv2_deferral.dicom.case_map import CaseMap, case_name
from nnunetv2_deferral.dicom.importing import import_series
from nnunetv2_deferral.errors import InputError


def imported(root, made, **options):
    done = import_series(write_series(made, root / "in"), root / "out", **options)
    (case,) = done.cases
    return case, sitk.ReadImage(str(next((root / "out").glob(f"{case}_0000.*"))))


def refused(root, made, message):
    write_series(made, root / "in")
    with pytest.raises(InputError, match=message):
        import_series(root / "in", root / "out")
    assert not (root / "out").exists()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_is_the_volume_that_itk_and_the_headers_have(tmp_path, orientation):
    made = make_series(orientation)
    case, image = imported(tmp_path, made)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), made.values)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, atol=1e-5)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), axes_of(orientation), atol=1e-5)
    for number in (0, 5):  # by the standard: position of the first pixel
        place = image.TransformIndexToPhysicalPoint((0, 0, number))
        np.testing.assert_allclose(place, made.datasets[number].ImagePositionPatient, atol=1e-4)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    theirs = reader.Execute()
    index = (3, 7, 4)
    same = theirs.TransformPhysicalPointToIndex(image.TransformIndexToPhysicalPoint(index))
    assert theirs.GetPixel(same) == image.GetPixel(index)
    entry = CaseMap.read(tmp_path / "out").cases[case]
    assert entry["instances"] == [dataset.SOPInstanceUID for dataset in made.datasets]
    assert entry["study"] == made.datasets[0].StudyInstanceUID and "frames" not in entry


@pytest.mark.parametrize("orientation", ["coronal", "negated_column"])
def test_frames_of_a_multi_frame_object_are_sorted(tmp_path, orientation):
    made = make_multi_frame(orientation)
    case, image = imported(tmp_path, made)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), made.values)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), axes_of(orientation), atol=1e-5)
    entry = CaseMap.read(tmp_path / "out").cases[case]
    assert entry["frames"] == [2, 4, 6, 1, 5, 3] and entry["instances"] == [made.datasets[0].SOPInstanceUID]


def test_slices_with_slopes_of_their_own_keep_their_values(tmp_path):
    made = make_series()
    for number, dataset in enumerate(made.datasets):
        dataset.RescaleSlope = 1 + number / 4
    _, image = imported(tmp_path, made)
    slopes = 1 + np.arange(SHAPE[0]).reshape(-1, 1, 1) / 4
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), (made.values + 1024.0) * slopes - 1024, rtol=1e-5)


def test_slices_with_more_bits_than_the_first_keep_their_values(tmp_path):
    made = make_series()
    for number, dataset in enumerate(made.datasets):
        bits = 16 if number == 3 else 12
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
        dataset.PixelData = np.full(SHAPE[1:], 60000 if number == 3 else 900, np.uint16).tobytes()
    _, image = imported(tmp_path, made)
    assert [image[0, 0, number] for number in range(SHAPE[0])] == [-124, -124, -124, 58976, -124, -124]


def test_a_single_slice_has_its_thickness(tmp_path):
    made = make_series("oblique")
    _, image = imported(tmp_path, made._replace(datasets=made.datasets[2:3]))
    assert image.GetSize() == (20, 16, 1) and image.GetSpacing()[2] == pytest.approx(2.5)


@pytest.mark.parametrize("keyword", ["SpacingBetweenSlices", "SliceThickness"])
def test_a_negative_distance_of_slices_mirrors_nothing(tmp_path, keyword):
    made = make_series()
    del made.datasets[1:]
    setattr(made.datasets[0], keyword, -2.5)
    _, image = imported(tmp_path, made)
    assert image.GetSpacing() == pytest.approx(SPACING)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel())


@pytest.mark.parametrize("ending", [".nii", ".nrrd"])
def test_nothing_of_the_patient_is_in_names_and_files(tmp_path, ending):
    made = make_series()
    case, _ = imported(tmp_path, made, file_ending=ending)
    assert case == case_name("dcm", made.uid) and len(case) == 14
    for file in (tmp_path / "out").iterdir():
        for word in (PATIENT.split("^")[0], "P-4711", "20260102"):
            assert word not in file.name and word.encode() not in file.read_bytes()


def test_a_zip_file_of_folders_gives_a_case_for_each(tmp_path):
    series = [make_series(seed=seed, study="1.2.3") for seed in (0, 1)]
    for number, made in enumerate(series):
        write_series(made, tmp_path / "in" / f"{number}")
    (tmp_path / "in" / "readme.txt").write_text("no DICOM")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in (tmp_path / "in").rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    done = import_series(tmp_path / "in.zip", tmp_path / "out", prefix="ct")
    names = sorted(case_name("ct", made.uid) for made in series)
    assert sorted(done.cases) == names and done.left_out == {"not DICOM": 1}
    assert sorted(json.loads((tmp_path / "out" / "dicom.json").read_text())["cases"]) == names


def test_of_series_in_one_folder_those_chosen_are_imported(tmp_path):
    first, second = make_series(seed=0), make_series(seed=1)
    for dataset in second.datasets:
        dataset.SeriesDescription = "Thorax 2.5"
    write_series(first, tmp_path / "in")
    for file in write_series(second, tmp_path / "other").iterdir():
        shutil.copy(file, tmp_path / "in" / f"2_{file.name}")
    with pytest.raises(InputError, match=r"has the files of 2 series, where one is expected: .*\(-series\)") as error:
        import_series(tmp_path / "in", tmp_path / "out")
    assert f"{first.uid} (CT, 6 files)" in str(error.value)
    assert f"{second.uid} (CT Thorax 2.5, 6 files)" in str(error.value)
    done = import_series(tmp_path / "in", tmp_path / "out", wanted=[second.uid])
    assert [each.uid for each in done.cases.values()] == [second.uid]
    assert done.left_out == {"of another series": 6}
    with pytest.raises(InputError, match="has no series 1.2.3"):
        import_series(tmp_path / "in", tmp_path / "out2", wanted=["1.2.3"])


def test_a_series_in_two_folders_is_refused(tmp_path):
    write_series(make_series(), tmp_path / "in" / "a")
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    with pytest.raises(InputError, match="is in several folders: .*/a, .*/b"):
        import_series(tmp_path / "in", tmp_path / "out")


def test_a_missing_slice_is_refused(tmp_path):
    made = make_series("oblique")
    del made.datasets[3]
    refused(
        tmp_path, made, r"lacks slices: between those at \(.*\) and \(.*\) there are 5 mm, otherwise 2.5 mm, so about 1"
    )


def test_all_series_that_are_refused_are_named_and_the_others_can_be_imported(tmp_path, capsys):
    whole, *gaps = (make_series(seed=seed) for seed in range(3))
    for place, made in enumerate([whole, *gaps]):
        if made is not whole:
            del made.datasets[3]
        write_series(made, tmp_path / "in" / str(place))
    with pytest.raises(InputError, match="2 of 3 series are refused: series .* lacks slices.*; series .* lacks slices"):
        import_series(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command.main(["import", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--skip_refused"])
    said = capsys.readouterr().out
    assert "1 series in " in said and "CAUTION: 2 series are refused and left out:" in said
    assert all(f"  series {made.uid} lacks slices" in said for made in gaps)
    assert list(CaseMap.read(tmp_path / "out").cases) == [case_name("dcm", whole.uid)]
    shutil.rmtree(tmp_path / "in" / "0")
    with pytest.raises(InputError, match="2 of 2 series are refused"):
        import_series(tmp_path / "in", tmp_path / "none", skip_refused=True)


def test_a_gantry_tilt_is_refused(tmp_path):
    made = make_series()
    for number, dataset in enumerate(made.datasets):
        dataset.ImagePositionPatient[1] += number * 0.5
    refused(tmp_path, made, r"sheared, as by a gantry tilt: .* by up to 2.5 mm, 11.3 degrees")


def test_slices_at_one_position_are_refused(tmp_path):
    made = make_series()
    made.datasets[4].ImagePositionPatient = made.datasets[3].ImagePositionPatient
    refused(
        tmp_path, made, r"several slices at one position \(ImagePositionPatient \(-31.5, 12.25, 111.5\)\): instances"
    )


def test_uneven_slices_are_refused(tmp_path):
    made = make_series()
    made.datasets[2].ImagePositionPatient[2] += 0.6
    refused(tmp_path, made, "not evenly spaced: slices are 1.9 to 3.1 mm apart, and up to 0.6 mm")


def test_rounded_positions_are_accepted(tmp_path):
    made = make_series()
    for dataset in made.datasets:
        dataset.ImagePositionPatient[2] = round(dataset.ImagePositionPatient[2] + 0.04, 1)
    imported(tmp_path, made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
            r"different orientations \(.*\): \(1, 0, .*\) and \(1, 0, ",
        ),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two unit vectors at right angles"),
        ({"PixelSpacing": [1.1, 0.9]}, r"different PixelSpacing: \(1.1, 0.[89]\) and \(1.1, 0.[89]\)"),
        ({"PixelSpacing": [1.1, 0]}, r"PixelSpacing must be positive, got \(1.1, 0\)"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient must be 3 numbers, got None"),
        ({"FrameOfReferenceUID": "1.2"}, "several values of FrameOfReferenceUID"),
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            "PhotometricInterpretation must be MONOCHROME2, got MONOCHROME1",
        ),
        ({"Rows": 20, "Columns": 16}, r"slices of different sizes: \((16, 20|20, 16)\) and"),
    ],
)
def test_a_slice_unlike_the_others_is_refused_with_its_value(tmp_path, change, message):
    made = make_series()
    for keyword, value in change.items():
        setattr(made.datasets[5], keyword, value)
    refused(tmp_path, made, message)


def test_what_is_no_series_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    for source, message in (
        (tmp_path / "empty", "has no series of CT, MR or PET images"),
        (tmp_path / "text", "neither a folder nor a zip file"),
        (tmp_path / "nothing", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            import_series(source, tmp_path / "out")
    with pytest.raises(InputError, match="letters, digits, - and _, got 'Max M'"):
        import_series(tmp_path / "empty", tmp_path / "out", prefix="Max M")
    with pytest.raises(InputError, match="must be one of .nii.gz, .nii, .nrrd, .mha, got '.png'"):
        import_series(tmp_path / "empty", tmp_path / "out", file_ending=".png")


def test_a_damaged_zip_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("file", "content" * 100)
    content = (tmp_path / "in.zip").read_bytes()
    (tmp_path / "in.zip").write_bytes(content.replace(b"content", b"changed"))
    with pytest.raises(InputError, match="in.zip cannot be unpacked: Bad CRC-32"):
        import_series(tmp_path / "in.zip", tmp_path / "out")


def test_an_object_without_frames_is_refused(tmp_path):
    made = make_multi_frame()
    made.datasets[0].PerFrameFunctionalGroupsSequence = []
    refused(tmp_path, made, f"series {made.uid} has no frames")


def test_pixels_that_cannot_be_decoded_are_refused(tmp_path):
    made = make_series()
    made.datasets[3].PixelData = b""
    refused(tmp_path, made, f"series {made.uid} cannot be read")
    shutil.rmtree(tmp_path / "in")
    made = make_multi_frame()
    made.datasets[0].PixelData = made.datasets[0].PixelData[:100]
    refused(tmp_path, made, "IM0000 cannot be read as DICOM")


def test_two_multi_frame_objects_and_missing_uids_are_refused(tmp_path):
    made = make_multi_frame()
    second = make_multi_frame().datasets[0]
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(second, keyword, made.datasets[0][keyword].value)
    refused(tmp_path, made._replace(datasets=[*made.datasets, second]), "has 2 multi-frame objects")
    shutil.rmtree(tmp_path / "in")
    del made.datasets[0].FrameOfReferenceUID
    refused(tmp_path, made, "has no FrameOfReferenceUID")


def test_real_values_by_a_table_are_refused(tmp_path):
    made = make_series()
    made.datasets[2].ModalityLUTSequence = [Dataset()]
    refused(tmp_path, made, r"IM\d+: real values by a table \(ModalityLUTSequence\), not a slope")


def test_slices_of_two_acquisitions_are_named(tmp_path, capsys):
    made = make_series()
    for dataset in made.datasets[3:]:
        dataset.AcquisitionNumber = 2
    command.main(["import", "-i", str(write_series(made, tmp_path / "in")), "-o", str(tmp_path / "out")])
    assert "of 2 acquisitions (AcquisitionNumber): check that it is one volume" in capsys.readouterr().out


def test_a_damaged_map_is_refused(tmp_path):
    file = tmp_path / "dicom.json"
    entry = {"study": "1.2", "series": "1.3", "frame_of_reference": "1.4", "modality": "CT", "instances": ["1.5"]}
    file.write_text(json.dumps({"cases": {"a": entry, "b": entry}}))
    with pytest.raises(InputError, match="the cases a and b are both of series 1.3"):
        CaseMap.read(file)
    file.write_text(json.dumps({"cases": {"a": entry | {"series": "Max"}}}))
    with pytest.raises(InputError, match=r"cases.a.series .*'Max'"):
        CaseMap.read(file)
