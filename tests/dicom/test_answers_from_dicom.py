"""Experts' answers from edited segmentations, as other programs might write them."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
from small_prediction import LABELS
from small_series import CODES, Dataset, dcmread, hd, make_multi_frame, make_series, program, walk

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.dicom.returned import read_answers
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.raters import ExpertMasks

EDITABLE = ("mask", "review")
WITH_IGNORE = LABELS | {"ignore": 3}


@pytest.fixture(scope="module", params=["oblique", "multi_frame"])
def walked(request, tmp_path_factory):
    made = make_multi_frame("sagittal") if request.param == "multi_frame" else make_series(request.param)
    return walk(tmp_path_factory.mktemp("walk"), made, what=EDITABLE, labels=WITH_IGNORE)


@pytest.fixture(scope="module")
def axial(tmp_path_factory):
    return walk(tmp_path_factory.mktemp("axial"), make_series(), what=EDITABLE, labels=WITH_IGNORE)


def answers(walked, file, output, expert="ann", **options):
    return read_answers(walked.predictions, walked.images, [file], expert, output, **options)


def written(walked, output, expert="ann"):
    """The expert's mask as training and evaluation read it."""
    example = walked.predictions / f"{walked.case}.nii.gz"
    files = DatasetFiles.of(walked.predictions / "dataset.json", example)
    _, properties = files.read(example)
    return ExpertMasks.of(output, [expert], files).read(expert, walked.case, properties)


def segment(number, label, codes):
    kind = {
        key: hd.sr.CodedConcept(codes[key]["value"], codes[key]["scheme"], "as coded") for key in ("category", "type")
    }
    return hd.seg.SegmentDescription(number, label, kind["category"], kind["type"], "MANUAL")


def edited(walked, file, labels, segments, **options):
    """A segmentation that somebody wrote: another series of another program on the same source."""
    given = [dcmread(each, stop_before_pixels=True) for each in walked.source.iterdir()]
    by_uid = {dataset.SOPInstanceUID: dataset for dataset in given}
    instances = json.loads((walked.images / "dicom.json").read_text())["cases"][walked.case]
    if frames := instances.get("frames"):
        labels, unsorted = np.empty_like(labels), labels
        labels[np.array(frames) - 1] = unsorted
    hd.seg.Segmentation(
        [by_uid[uid] for uid in instances["instances"]],
        labels,
        options.pop("kind", "BINARY"),
        segments,
        *(hd.UID(), 1, hd.UID(), 1, "Viewer", "Viewer", "1", "1"),
        **options,
    ).save_as(file)
    return file


def corrected(walked):
    """The model's mask with changes in ann's two regions, in bob's, and outside of all."""
    labels = walked.predicted.model.astype(np.uint8)
    labels[1, 2:4, 3:6] = 2
    labels[4, 12:14, 16:19] = 1
    labels[3, 7:9, 11:14] = 2
    labels[5, 0, :3] = 1
    return labels


RIM_CORE = (("rim", CODES["rim"]), ("core", CODES["core"]))


def segments(*named):
    return [segment(number, *each) for number, each in enumerate(named, start=1)]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_an_edited_mask_answers_the_regions_of_its_expert(walked, tmp_path, kind):
    labels = corrected(walked)
    file = edited(walked, tmp_path / "mask.dcm", labels, segments(*RIM_CORE), kind=kind)
    done = answers(walked, file, tmp_path / "expertsTr")[walked.case]
    route = walked.predicted.route
    expected = np.where(route == 1, labels.astype(int), MISSING)
    np.testing.assert_array_equal(written(walked, tmp_path / "expertsTr"), expected)
    assert (done.edited, done.regions, done.voxels, done.answered_voxels) == ("mask", 2, 21, 21)
    assert done.changed_voxels == 12 and done.changed_outside == 6 + 3
    report = json.loads((tmp_path / "expertsTr" / "dicom_answers.json").read_text())
    assert report == {"cases": {walked.case: {"ann": vars(done)}}}


def test_what_was_exported_comes_back_as_it_was(walked, tmp_path):
    done = answers(walked, walked.objects / walked.case / "mask.dcm", tmp_path / "out", "bob")[walked.case]
    expected = np.where(walked.predicted.route == 2, walked.predicted.model.astype(int), MISSING)
    np.testing.assert_array_equal(written(walked, tmp_path / "out", "bob"), expected)
    assert (done.changed_voxels, done.changed_outside) == (0, 0)


def test_slices_that_are_rounded_differently_come_back(tmp_path):
    made = make_series("negated_column")
    for number, dataset in enumerate(made.datasets):
        dataset.ImageOrientationPatient[1] += number * 1e-6
        dataset.ImagePositionPatient[2] = round(dataset.ImagePositionPatient[2] + number % 3 * 0.07, 1)
        dataset.PixelSpacing = [1.1, 0.8 + number * 1e-6]
    walked = walk(tmp_path, made, what=["mask"], labels=WITH_IGNORE)
    answers(walked, walked.objects / walked.case / "mask.dcm", tmp_path / "out")
    expected = np.where(walked.predicted.route == 1, walked.predicted.model.astype(int), MISSING)
    np.testing.assert_array_equal(written(walked, tmp_path / "out"), expected)


def test_an_edited_review_answers_what_was_drawn_and_what_was_erased(walked, tmp_path):
    review = dcmread(walked.objects / walked.case / "review.dcm")
    route, named, labels = walked.predicted.route, [], np.zeros_like(walked.predicted.route)
    for number, item in enumerate(review.SegmentSequence, start=1):
        kind = {"category": {"value": "309825002", "scheme": "SCT"}, "type": {"value": "1", "scheme": "99VIEWER"}}
        named.append((item.SegmentLabel, kind))
        labels[route == (1 if "ask ann" in item.SegmentLabel else 2)] = number
    labels[4, 12:15, 16:19] = labels[1, 2, 3]  # both regions of ann; bob's has another number
    labels[1, 2:4, 3:6] = 5  # painted over with "core"
    labels[4, 12, 16:19] = 0  # erased
    labels[0, 0, :4] = 4  # "rim", outside of the regions
    file = edited(walked, tmp_path / "review.dcm", labels, segments(*named, *RIM_CORE))
    done = answers(walked, file, tmp_path / "out")[walked.case]
    expected = np.full(route.shape, MISSING)
    expected[1, 2:4, 3:6], expected[4, 12, 16:19] = 2, 0
    np.testing.assert_array_equal(written(walked, tmp_path / "out"), expected)
    assert (done.edited, done.voxels, done.answered_voxels, done.changed_outside) == ("review", 21, 9, 4)


def test_an_unchanged_review_is_no_answer(axial, tmp_path):
    with pytest.raises(InputError, match=f"answers none of the regions of ann in case {axial.case}"):
        answers(axial, axial.objects / axial.case / "review.dcm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_an_ignore_label_the_rest_has_the_models_label(axial, tmp_path):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"labels": LABELS}))
    changed, labels = axial._replace(predictions=folder), corrected(axial)
    file = edited(axial, tmp_path / "mask.dcm", labels, segments(*RIM_CORE))
    answers(changed, file, tmp_path / "out")
    expected = np.where(axial.predicted.route == 1, labels, axial.predicted.model)
    np.testing.assert_array_equal(written(changed, tmp_path / "out"), expected)


def test_regions_of_labels_are_merged_in_their_order(axial, tmp_path):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps({key: content[key] for key in content if key != "dicom_codes"}))
    labels = corrected(axial)
    stacked = np.stack([labels > 0, labels == 2], axis=-1).astype(np.uint8)
    named = (("whole", CODES["rim"]), ("core", CODES["core"]))
    file = edited(axial, tmp_path / "mask.dcm", stacked, segments(*named))
    changed = axial._replace(predictions=folder)
    answers(changed, file, tmp_path / "out")
    expected = np.where(axial.predicted.route == 1, labels, axial.predicted.model)
    np.testing.assert_array_equal(written(changed, tmp_path / "out"), expected)


def test_cropped_turned_and_mirrored_frames_are_put_in_place(axial, tmp_path):
    """Sagittal frames, from left to right, of a part of the image."""
    labels = corrected(axial)
    file = edited(axial, tmp_path / "mask.dcm", labels, segments(*RIM_CORE))
    dataset = dcmread(file)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, -1, 0, 0, 0, 1]
    shared.PixelMeasuresSequence[0].PixelSpacing = [2.5, 1.1]
    frames, groups = [], []
    for x in range(19, 2, -1):
        for number in (1, 2):
            pixels = labels[:, ::-1, x] == number
            if pixels.any():
                place, which, group = Dataset(), Dataset(), Dataset()
                place.ImagePositionPatient = [-31.5 + 0.8 * x, 12.25 + 1.1 * 15, 104.0]
                which.ReferencedSegmentNumber = number
                group.PlanePositionSequence, group.SegmentIdentificationSequence = [place], [which]
                frames.append(pixels)
                groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = groups, len(groups)
    dataset.Rows, dataset.Columns = 6, 16
    pixels = np.packbits(np.stack(frames).ravel(), bitorder="little").tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset.save_as(file)
    done = answers(axial, file, tmp_path / "out")[axial.case]
    np.testing.assert_array_equal(
        written(axial, tmp_path / "out"), np.where(axial.predicted.route == 1, labels.astype(int), MISSING)
    )
    assert done.changed_outside == 6  # the column x = 0 to 2 was cropped away, where the model has nothing


def test_segments_are_found_by_their_codes(axial, tmp_path):
    named = (("Segment_1", CODES["core"]),)
    labels = (corrected(axial) == 2).astype(np.uint8)
    file = edited(axial, tmp_path / "mask.dcm", labels, segments(*named))
    answers(axial, file, tmp_path / "out")
    np.testing.assert_array_equal(
        written(axial, tmp_path / "out"), np.where(axial.predicted.route == 1, labels.astype(int) * 2, MISSING)
    )
    file = edited(axial, tmp_path / "mask.dcm", labels, segments(("Segment_1", CODES["rim"])))  # without "left"
    with pytest.raises(InputError, match="segment 1 'Segment_1' is not one of the labels rim, core"):
        answers(axial, file, tmp_path / "out2")


def test_overlapping_labels_are_refused(axial, tmp_path):
    labels = corrected(axial)
    stacked = np.stack([labels > 0, labels == 2], axis=-1).astype(np.uint8)
    file = edited(axial, tmp_path / "mask.dcm", stacked, segments(*RIM_CORE))
    with pytest.raises(InputError, match=f"{(labels == 2).sum()} voxels of 'core' are also in segments of other"):
        answers(axial, file, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 0.3}, r"mask.dcm, frame 1: its pixels are up to 0.3\d* voxels from the voxels of the case"),
        ({"position": -8.0}, r"voxels of segment 1 are outside of the image"),
        ({"spacing": [2.2, 0.8]}, r"a step to the next row is \(0, 2, 0\) voxels along x, y, z"),
    ],
)
def test_frames_that_are_not_on_the_voxels_are_refused(axial, tmp_path, change, message):
    dataset = dcmread(axial.objects / axial.case / "mask.dcm")
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[0] += change.get("position", 0) * 0.8
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = change.get("spacing", measures.PixelSpacing)
    dataset.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputError, match=message):
        answers(axial, tmp_path / "mask.dcm", tmp_path / "out")


def of_another_study(dataset):
    dataset.StudyInstanceUID = "1.2.3"


def elsewhere(dataset):
    dataset.FrameOfReferenceUID = "1.2.3"


def nowhere(dataset):
    del dataset.FrameOfReferenceUID


def of_other_instances(dataset):
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[2].ReferencedSOPInstanceUID = "1.2.3"


def with_two_frames_at_one_place(dataset):
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    second.PlanePositionSequence = first.PlanePositionSequence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_study, r"its StudyInstanceUID is 1.2.3, that of case dcm_\w+ is 1\.2\.826"),
        (elsewhere, r"its FrameOfReferenceUID is 1.2.3, that of case dcm_\w+ is 1\.2\.826"),
        (nowhere, r"its FrameOfReferenceUID is missing, that of"),
        (of_other_instances, r"refers to instances that case dcm_\w+ was not made of: 1.2.3$"),
        (with_two_frames_at_one_place, r"the frames 1 and 2 are both of segment 1 at \(-31.5, 12.25, 111.5\)"),
    ],
)
def test_a_segmentation_of_something_else_is_refused(axial, tmp_path, change, message):
    dataset = dcmread(axial.objects / axial.case / "mask.dcm")
    change(dataset)
    dataset.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputError, match=message):
        answers(axial, tmp_path / "mask.dcm", tmp_path / "out")


@pytest.mark.parametrize("name", EDITABLE)
@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_segmentation_that_was_exported_with_other_regions_is_refused(axial, tmp_path, name, is_tracked):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    file = next((folder / "deferral" / "route").iterdir())
    route = sitk.ReadImage(str(file))
    route[3, 2, 1], route[12, 9, 1] = 0, 1
    sitk.WriteImage(route, str(file))
    dataset = dcmread(axial.objects / axial.case / f"{name}.dcm")
    for item in dataset.SegmentSequence if not is_tracked else ():  # as by a program that does not keep it
        del item.TrackingID
    dataset.save_as(tmp_path / "edited.dcm")
    here = axial._replace(predictions=folder)
    if is_tracked or name == "review":
        message = "was exported when other regions" if is_tracked else "1 voxels of its regions are in no region of"
        with pytest.raises(InputError, match=message):
            answers(here, tmp_path / "edited.dcm", tmp_path / "out")
    else:  # nothing tells, which is said
        assert not answers(here, tmp_path / "edited.dcm", tmp_path / "out")[axial.case].tracked


def test_other_input_that_does_not_fit_is_refused(axial, tmp_path):
    mask, out = axial.objects / axial.case / "mask.dcm", tmp_path / "out"
    with pytest.raises(InputError, match="'eve' is not one of the model's experts: ann, bob"):
        answers(axial, mask, out, "eve")
    with pytest.raises(InputError, match=r"IM0000 is not a DICOM segmentation: SOPClassUID 1.2.840"):
        answers(axial, axial.source / "IM0000", out)
    (tmp_path / "text.dcm").write_text("text")
    with pytest.raises(InputError, match=r"text.dcm cannot be read as DICOM"):
        answers(axial, tmp_path / "text.dcm", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no \.dcm files"):
        answers(axial, tmp_path / "empty", out)
    with pytest.raises(InputError, match="nothing does not exist"):
        answers(axial, tmp_path / "nothing", out)
    with pytest.raises(InputError, match=f"are both segmentations of case {axial.case}"):
        read_answers(axial.predictions, axial.images, [mask, mask], "ann", out)
    fractional = edited(axial, tmp_path / "fractional.dcm", corrected(axial), segments(*RIM_CORE), kind="FRACTIONAL")
    with pytest.raises(InputError, match="is a FRACTIONAL segmentation"):
        answers(axial, fractional, out)
    dataset = dcmread(mask)
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    dataset.save_as(tmp_path / "other.dcm")
    with pytest.raises(InputError, match=r"other.dcm refers to the series 1.2.3, not to exactly one of .*dicom.json"):
        answers(axial, tmp_path / "other.dcm", out)
    assert not out.exists()


def without_segments(dataset):
    dataset.SegmentSequence = []


def without_one_segment(dataset):
    dataset.SegmentSequence = dataset.SegmentSequence[:1]


def without_frames(dataset):
    dataset.PerFrameFunctionalGroupsSequence = []


def without_pixels(dataset):
    del dataset.PixelData


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_segments, "mask.dcm has no segments"),
        (without_one_segment, "has voxels of segments that it does not describe: 2"),
        (without_frames, "mask.dcm has no frames"),
        (without_pixels, "mask.dcm cannot be read as DICOM"),
    ],
)
def test_a_damaged_segmentation_is_refused(axial, tmp_path, damage, message):
    dataset = dcmread(axial.objects / axial.case / "mask.dcm")
    damage(dataset)
    dataset.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputError, match=message):
        answers(axial, tmp_path / "mask.dcm", tmp_path / "out")


def test_a_case_without_a_prediction_is_refused(axial, tmp_path):
    content = json.loads((axial.images / "dicom.json").read_text())
    (tmp_path / "dicom.json").write_text(json.dumps({"cases": {"other": content["cases"][axial.case]}}))
    with pytest.raises(InputError, match=f"is of case other, which {axial.predictions} does not have"):
        answers(axial._replace(images=tmp_path), axial.objects / axial.case / "mask.dcm", tmp_path / "out")


def test_a_case_without_regions_of_the_expert_is_refused(axial, tmp_path):
    folder = shutil.copytree(axial.predictions, tmp_path / "predictions")
    file = next((folder / "deferral" / "route").iterdir())
    route = sitk.ReadImage(str(file))
    sitk.WriteImage(route * sitk.Cast(route == 1, route.GetPixelID()), str(file))
    with pytest.raises(InputError, match=f"is of case {axial.case}, in which bob has no regions"):
        answers(axial._replace(predictions=folder), axial.objects / axial.case / "mask.dcm", tmp_path / "out", "bob")


def test_answers_are_replaced_only_if_asked(axial, tmp_path):
    mask = axial.objects / axial.case / "mask.dcm"
    answers(axial, mask, tmp_path / "out")
    answers(axial, mask, tmp_path / "out", "bob")
    with pytest.raises(InputError, match=rf"answers exist: .*{axial.case}.nii.gz. Replace them with --overwrite"):
        answers(axial, mask, tmp_path / "out")
    answers(axial, mask, tmp_path / "out", overwrite=True)
    report = json.loads((tmp_path / "out" / "dicom_answers.json").read_text())
    assert list(report["cases"][axial.case]) == ["ann", "bob"]


def test_a_segmentation_that_dcmqi_wrote_is_read(walked, tmp_path):
    if len(walked.made.datasets) == 1:
        pytest.skip("dcmqi writes no segmentations of this multi-frame object")
    read, write = program("segimage2itkimage"), program("itkimage2segimage")
    mask = walked.objects / walked.case / "mask.dcm"
    subprocess.run(
        [read, "--inputDICOM", mask, "--outputDirectory", tmp_path, "--outputType", "nii"],
        capture_output=True,
        check=True,
    )
    files = [str(tmp_path / f"{label}.nii.gz") for label in (1, 2)]
    command = [write, "--inputImageList", ",".join(files), "--inputMetadata", tmp_path / "meta.json"]
    command += ["--inputDICOMDirectory", walked.source, "--outputDICOM", tmp_path / "theirs.dcm"]
    subprocess.run(command, capture_output=True, check=True)
    answers(walked, tmp_path / "theirs.dcm", tmp_path / "out")
    expected = np.where(walked.predicted.route == 1, walked.predicted.model.astype(int), MISSING)
    np.testing.assert_array_equal(written(walked, tmp_path / "out"), expected)
