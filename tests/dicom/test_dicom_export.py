"""From predictions to DICOM objects: where their voxels are, what they refer to, and what they say."""

import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from small_series import (
    CODES,
    ORIENTATIONS,
    PATIENT,
    frames_of,
    make_multi_frame,
    make_series,
    program,
    walk,
    write_series,
)

from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.dicom.exporting import export_predictions
from nnunetv2_deferral.dicom.importing import import_series
from nnunetv2_deferral.dicom.returned import read_answers
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.worklist.items import choose, find_items


@pytest.fixture(scope="module", params=[*ORIENTATIONS, "multi_frame"])
def walked(request, tmp_path_factory):
    made = make_multi_frame("negated_column") if request.param == "multi_frame" else make_series(request.param)
    return walk(tmp_path_factory.mktemp("walk"), made)


@pytest.fixture(scope="module")
def axial(tmp_path_factory):
    return walk(tmp_path_factory.mktemp("axial"), make_series(), what=())


def exported(walked, output, **options):
    options = {"what": ["mask"], **options}
    return export_predictions(walked.predictions, walked.images, walked.source, output, **options)


def by_segment(dataset, like):
    """For each segment its voxels in an ITK image, by the places of its pixels in the patient."""
    found = defaultdict(list)
    for pixels, group, to_mm in frames_of(dataset):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for row, column in np.argwhere(pixels):
            place = (to_mm @ (row, column, 1)).tolist()
            index = like.TransformPhysicalPointToContinuousIndex(place)
            np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
            found[number].append(tuple(int(each) for each in np.rint(index)[::-1]))
    return {number: set(voxels) for number, voxels in found.items()}


def voxels(mask):
    return set(map(tuple, np.argwhere(mask).tolist()))


def test_the_voxels_of_the_mask_are_where_they_were(walked):
    mask = sitk.ReadImage(str(walked.predictions / f"{walked.case}.nii.gz"))
    model = sitk.GetArrayFromImage(mask)
    found = by_segment(walked.read("mask"), mask)
    assert found == {1: voxels(model == 1), 2: voxels(model == 2)}


def test_regions_are_those_of_the_worklist_with_its_ranks(walked):
    mask, dataset = sitk.ReadImage(str(walked.predictions / f"{walked.case}.nii.gz")), walked.read("review")
    found = by_segment(dataset, mask)
    case = PredictionFolder.open(walked.predictions).case(walked.case)
    listed = choose(find_items(case, WorkTime(), unit="mm"))
    assert len(listed) == len(found) == 3
    route = sitk.GetArrayFromImage(mask) * 0 + walked.predicted.route
    for number, (each, segment) in enumerate(zip(listed, dataset.SegmentSequence, strict=True), start=1):
        expert = ("ann", "bob")[each.item.region.expert - 1]
        assert segment.SegmentLabel.startswith(f"ask {expert}: ") and segment.SegmentLabel.endswith(f", rank {number}")
        assert len(found[number]) == each.item.region.voxels
        assert {route[voxel] for voxel in found[number]} == {each.item.region.expert}
        assert "The model" in segment.SegmentDescription and "Score 0." in segment.SegmentDescription


def test_maps_have_their_values_where_they_were(walked):
    for name in ("probability", "gain"):
        image = sitk.ReadImage(str(walked.predictions / "deferral" / name / f"{walked.case}.nii.gz"))
        dataset, compared = walked.read(name), 0
        shared = dataset.SharedFunctionalGroupsSequence[0]
        row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
        spacing = shared.PixelMeasuresSequence[0].PixelSpacing
        frames = np.frombuffer(dataset.FloatPixelData, np.float32).reshape(-1, dataset.Rows, dataset.Columns)
        for pixels, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
            first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            place = first + 7 * row * spacing[1] + 3 * column * spacing[0]
            assert image[image.TransformPhysicalPointToIndex(place.tolist())] == pytest.approx(float(pixels[3, 7]))
            compared += 1
        assert compared == 6
        # dcmqi and 3D Slicer take frames for sorted along the normal.
        places = [
            group.PlanePositionSequence[0].ImagePositionPatient for group in dataset.PerFrameFunctionalGroupsSequence
        ]
        assert (np.diff(np.array(places, dtype=float) @ np.cross(row, column)) > 0).all()
        mapping = shared.RealWorldValueMappingSequence[0]
        assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)


def test_objects_are_in_the_study_and_refer_to_the_slices_they_lie_on(walked):
    source = walked.made.datasets[0]
    places = {}
    for dataset in walked.made.datasets:
        groups = dataset.get("PerFrameFunctionalGroupsSequence", ())
        for number, group in enumerate(groups, start=1):
            places[dataset.SOPInstanceUID, number] = group.PlanePositionSequence[0].ImagePositionPatient
        if not groups:
            places[dataset.SOPInstanceUID, None] = dataset.ImagePositionPatient
    for name in ("mask", "review", "probability", "gain"):
        made = walked.read(name)
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
            assert made[keyword].value == source[keyword].value
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert [each.SeriesInstanceUID for each in made.ReferencedSeriesSequence] == [source.SeriesInstanceUID]
        assert str(made.PatientName) == PATIENT
        assert "INVESTIGATIONAL USE ONLY" in made.SeriesDescription
        assert made.ContentDescription.startswith("INVESTIGATIONAL USE ONLY")
        for group in made.PerFrameFunctionalGroupsSequence:
            (image,) = group.DerivationImageSequence[0].SourceImageSequence
            place = places[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
            np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, place)


def test_segments_say_what_they_are_and_who_made_them(walked):
    rim, core = walked.read("mask").SegmentSequence
    for segment, name in ((rim, "rim"), (core, "core")):
        assert segment.SegmentLabel == name and segment.SegmentAlgorithmType == "AUTOMATIC"
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == CODES[name]["category"]["value"]
        assert (kind.CodeValue, kind.CodeMeaning) == (CODES[name]["type"]["value"], CODES[name]["type"]["meaning"])
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == "nnU-Net T Dataset701_Small 2d"
        assert "use=investigational" in algorithm.AlgorithmParameters
    (modifier,) = rim.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert modifier.CodeMeaning == "Left"


def test_dciodvfy_finds_no_error(walked):
    dciodvfy = program("dciodvfy")
    for name in ("mask", "review", "probability", "gain"):
        file = walked.objects / walked.case / f"{name}.dcm"
        said = subprocess.run([dciodvfy, file], capture_output=True, text=True, check=False).stderr.splitlines()
        # Laterality is that of the source, which has none.
        assert [line for line in said if line.startswith("Error") and "<Laterality>" not in line] == []


def test_dcmqi_reads_the_mask_as_it_was(walked, tmp_path):
    command = [program("segimage2itkimage"), "--inputDICOM", walked.objects / walked.case / "mask.dcm"]
    subprocess.run([*command, "--outputDirectory", tmp_path, "--outputType", "nii"], capture_output=True, check=True)
    mask = sitk.ReadImage(str(walked.predictions / f"{walked.case}.nii.gz"))
    for label in (1, 2):
        theirs = sitk.ReadImage(str(tmp_path / f"{label}.nii.gz"))
        # dcmqi leaves out empty slices.
        ours = sitk.Resample(mask, theirs, sitk.Transform(), sitk.sitkNearestNeighbor)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ours) == label, sitk.GetArrayFromImage(theirs) == label)
        assert sitk.GetArrayFromImage(theirs).any()


def test_dcmqi_reads_the_maps_as_they_were(walked, tmp_path):
    for name in ("probability", "gain"):
        file = walked.objects / walked.case / f"{name}.dcm"
        command = [program("paramap2itkimage"), "--inputDICOM", file, "--outputDirectory", tmp_path / name]
        (tmp_path / name).mkdir()
        subprocess.run([*command, "--outputType", "nii"], capture_output=True, check=True)
        theirs = sitk.ReadImage(str(next((tmp_path / name).glob("*.nii.gz"))))
        ours = sitk.ReadImage(str(walked.predictions / "deferral" / name / f"{walked.case}.nii.gz"), sitk.sitkFloat32)
        ours = sitk.Resample(ours, theirs, sitk.Transform(), sitk.sitkNearestNeighbor)
        np.testing.assert_allclose(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs), atol=1e-6)


def test_a_label_map_has_the_labels(axial, tmp_path):
    exported(axial, tmp_path / "out", kind="labelmap")
    dataset = axial._replace(objects=tmp_path / "out").read("mask")
    assert dataset.SegmentationType == "LABELMAP"
    found = np.zeros_like(axial.predicted.model)
    for pixels, _, to_mm in frames_of(dataset):
        found[round((to_mm[2, 2] - 104.0) / 2.5)] = pixels
    np.testing.assert_array_equal(found, axial.predicted.model)


def test_a_fractional_segmentation_has_the_probabilities(axial, tmp_path):
    with pytest.raises(InputError, match=r"needs the network's probabilities, but .*\.npz is missing.*--save_prob"):
        exported(axial, tmp_path / "out", kind="fractional")
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    random = np.random.default_rng(0).random((3, *axial.predicted.model.shape), dtype=np.float32)
    random /= random.sum(0)
    np.savez(folder / f"{axial.case}.npz", probabilities=random)
    exported(axial._replace(predictions=folder), tmp_path / "out", kind="fractional")
    dataset = axial._replace(objects=tmp_path / "out").read("mask")
    assert (dataset.SegmentationType, dataset.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    values = np.empty((2, *random.shape[1:]))
    for pixels, group, to_mm in frames_of(dataset):
        place = round((to_mm[2, 2] - 104.0) / 2.5)
        values[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1, place] = pixels / 255
    np.testing.assert_allclose(values, random[1:], atol=1 / 255)


def test_regions_of_labels_overlap(axial, tmp_path):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    content = json.loads((folder / "dataset.json").read_text())
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    codes = {"whole": CODES["rim"], "core": CODES["core"]}
    content |= {"labels": regions, "regions_class_order": [1, 2], "dicom_codes": codes}
    (folder / "dataset.json").write_text(json.dumps(content))
    changed = axial._replace(predictions=folder, objects=tmp_path / "out")
    with pytest.raises(InputError, match="the labels whole, core overlap"):
        exported(changed, tmp_path / "out", kind="labelmap")
    exported(changed, tmp_path / "out")
    sizes = defaultdict(int)
    for pixels, group, _ in frames_of(changed.read("mask")):
        sizes[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(pixels.sum())
    model = axial.predicted.model
    assert sizes == {1: (model > 0).sum(), 2: (model == 2).sum()}


def test_a_source_without_patient_data_and_names_in_any_script(tmp_path):
    made = make_series()
    for dataset in made.datasets:
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyTime", "PositionReferenceIndicator"):
            delattr(dataset, keyword)
    labels = {"background": 0, "Läsion 病変": 1, "core": 2}
    codes = {"Läsion 病変": CODES["rim"], "core": CODES["core"]}
    walked = walk(tmp_path, made, what=["mask", "gain"], labels=labels, dicom_codes=codes)
    assert walked.read("mask").SegmentSequence[0].SegmentLabel == "Läsion 病変"
    assert str(walked.read("gain").PatientName) == PATIENT


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # on writing the source
def test_values_of_the_source_that_are_not_strictly_valid_do_not_matter(tmp_path):
    made = make_series()
    for dataset in made.datasets:
        dataset.AccessionNumber, dataset.PatientSex, dataset.StudyTime = "A" * 30, "male", "26:10"
        dataset.PatientBirthDate = "19000000"
    walked = walk(tmp_path, made, what=["mask", "gain"])
    for name in ("mask", "gain"):
        assert (walked.read(name).PatientBirthDate, walked.read(name).AccessionNumber) == ("", "A" * 30)


def test_readers_that_turn_the_axes_make_no_difference(tmp_path):
    reader = {"overwrite_image_reader_writer": "NibabelIOWithReorient"}
    walked = walk(tmp_path, make_series("sagittal"), what=["mask"], **reader)
    assert PredictionFolder.open(walked.predictions).case(walked.case).model.shape != walked.predicted.model.shape
    mask = sitk.ReadImage(str(walked.predictions / f"{walked.case}.nii.gz"))
    model = sitk.GetArrayFromImage(mask)
    assert by_segment(walked.read("mask"), mask) == {1: voxels(model == 1), 2: voxels(model == 2)}
    read_answers(walked.predictions, walked.images, [walked.objects], "ann", tmp_path / "out")
    answer = sitk.ReadImage(str(tmp_path / "out" / "ann" / f"{walked.case}.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(answer), model)  # without an ignore label
    np.testing.assert_allclose(answer.GetDirection(), mask.GetDirection(), atol=1e-5)


def test_groups_of_frames_need_not_be_shared(tmp_path):
    walked = walk(tmp_path, make_multi_frame("oblique", shared_only=False), what=["mask"])
    mask = sitk.ReadImage(str(walked.predictions / f"{walked.case}.nii.gz"))
    model = sitk.GetArrayFromImage(mask)
    assert by_segment(walked.read("mask"), mask) == {1: voxels(model == 1), 2: voxels(model == 2)}


def test_missing_codes_are_asked_for_by_name_with_an_example(axial, tmp_path):
    file = tmp_path / "codes.json"
    file.write_text(json.dumps({"rim": CODES["rim"]}))
    with pytest.raises(InputError, match=r'codes.json lacks the DICOM codes of core\. .*"dicom_codes".*\{"core": \{'):
        exported(axial, tmp_path / "out", codes=file)
    file.write_text(json.dumps({"rim": CODES["rim"], "core": CODES["core"] | {"type": {"value": 1}}}))
    with pytest.raises(InputError, match=r"core.type.value must be a string, got 1; core.type.scheme is missing"):
        exported(axial, tmp_path / "out", codes=file)
    file.write_text(json.dumps(CODES))
    exported(axial, tmp_path / "out", codes=file)


def test_other_input_that_does_not_fit_is_refused(axial, tmp_path):
    out = tmp_path / "out"
    other = write_series(make_series(seed=5), tmp_path / "other")
    with pytest.raises(InputError, match=f"has no series {axial.made.uid}"):
        export_predictions(axial.predictions, axial.images, other, out)
    import_series(other, tmp_path / "images")
    with pytest.raises(InputError, match=rf"cases that are not in .*dicom.json \(1\): {axial.case}"):
        export_predictions(axial.predictions, tmp_path / "images", axial.source, out)
    with pytest.raises(InputError, match="unknown objects report; known are mask, review"):
        exported(axial, out, what=["report"])
    with pytest.raises(InputError, match="must be one of binary, labelmap, fractional, got 'x'"):
        exported(axial, out, kind="x")
    fewer = shutil.copytree(axial.source, tmp_path / "fewer")
    last = axial.made.datasets[-1].SOPInstanceUID
    next(file for file in fewer.iterdir() if last.encode() in file.read_bytes()).unlink()
    with pytest.raises(InputError, match=f"is not the one of case {axial.case} .* instances are 5 instead of 6"):
        export_predictions(axial.predictions, axial.images, fewer, out)
    content = json.loads((axial.images / "dicom.json").read_text())
    content["cases"][axial.case]["study"] = "1.2.3"
    (tmp_path / "dicom.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="its StudyInstanceUID is .* instead of 1.2.3"):
        export_predictions(axial.predictions, tmp_path, axial.source, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slice": 5}, r"has \(5, 16, 20\) voxels along z, y, x of the patient, but its series has \(6, 16, 20\)"),
        ({"shift": 1.0}, r"does not lie on the voxels of its series: corners are up to 1.25 voxels apart"),
    ],
)
def test_a_mask_of_another_geometry_is_refused(axial, tmp_path, change, message):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    for file in folder.rglob("*.nii.gz"):
        image = sitk.ReadImage(str(file))[:, :, : change.get("slice", 6)]
        image.SetOrigin([each + change.get("shift", 0) * (axis == 0) for axis, each in enumerate(image.GetOrigin())])
        sitk.WriteImage(image, str(file))
    with pytest.raises(InputError, match=message):
        exported(axial._replace(predictions=folder), tmp_path / "out")


def with_index(axial, folder, **changes):
    """A copy of the prediction whose deferral.json has other entries."""
    index = shutil.copytree(axial.predictions, folder) / "deferral" / "deferral.json"
    content = json.loads(index.read_text())
    content["settings"] |= changes.pop("settings", {})
    index.write_text(json.dumps(content | changes))
    return axial._replace(predictions=folder)


@pytest.mark.parametrize(("objective", "is_dice"), [("collaboration", False), ("one_vs_all", True)])
def test_the_gain_of_the_papers_objective_is_not_called_dice(axial, tmp_path, objective, is_dice):
    changed = with_index(axial, tmp_path / "predictions", settings={"objective": objective})
    exported(changed, tmp_path / "out", what=["mask", "review", "gain"])
    review, gain = (str(changed._replace(objects=tmp_path / "out").read(name)) for name in ("review", "gain"))
    assert ("Dice" in review) == ("Dice" in gain) == ("GAIN_SCORE" not in gain) == is_dice
    assert "Dice" not in (tmp_path / "out" / "mitk_tasks.json").read_text()


@pytest.mark.parametrize("kinds", [["route"], ["route", "gain"]])
def test_a_map_that_was_not_written_is_named_before_anything_is_exported(axial, tmp_path, kinds):
    fewer = with_index(axial, tmp_path / "predictions", maps=kinds)
    lacking = "probability" if "gain" in kinds else "probability gain"
    with pytest.raises(InputError, match=f"does not have the maps {lacking}, which are needed here"):
        exported(fewer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_case_without_regions_has_no_review(axial, tmp_path):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    file = next((folder / "deferral" / "route").iterdir())
    sitk.WriteImage(sitk.ReadImage(str(file)) * 0, str(file))
    done = exported(axial._replace(predictions=folder), tmp_path / "out", what=["review", "gain"])
    assert done.unasked == (axial.case,) and done.files == {axial.case: (f"{axial.case}/gain.dcm",)}
    assert not (tmp_path / "out" / axial.case / "review.dcm").exists()


def test_tasks_for_mitk_begin_with_the_mask_and_end_where_answers_are_read(walked):
    content = json.loads((walked.objects / "mitk_tasks.json").read_text())
    assert (content["FileFormat"], content["Version"]) == ("MITK Segmentation Task List", 1)
    assert [task["Result"] for task in content["Tasks"]] in (
        [f"answers/{expert}/{walked.case}.dcm" for expert in order] for order in (("ann", "bob"), ("bob", "ann"))
    )
    for task in content["Tasks"]:
        assert (walked.objects / task["Segmentation"]).is_file() and Path(task["Image"]).parent == walked.source
        assert "The model" in task["Description"] and task["Name"].startswith(walked.case)
