"""`nnUNetv2_deferral_dicom`: what it prints, and what it says without its extra."""

import sys

import pytest
import SimpleITK as sitk
from small_prediction import deferral_folder

from nnunetv2_deferral.commands.dicom import EXTRA, main


def fails(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    return said[said.index("error: ") :]


@pytest.mark.parametrize("package", EXTRA)
def test_a_missing_package_of_the_extra_is_named_with_how_to_install_it(tmp_path, monkeypatch, capsys, package):
    for name in [name for name in sys.modules if name.startswith("nnunetv2_deferral.dicom.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    monkeypatch.setitem(sys.modules, "pydicom" if package == "highdicom" else "highdicom", None)
    said = fails(capsys, "export", "-i", tmp_path, "-map", tmp_path, "-dicom", tmp_path, "-o", tmp_path / "out")
    assert said.count("\n") == 1
    assert "is not installed. Install the extra: pip install 'nnunetv2-deferral[dicom]'" in said


def test_from_a_series_to_the_experts_masks(tmp_path, capsys):
    small = pytest.importorskip("small_series", reason="the extra [dicom] is not installed")
    made = small.make_series("coronal")
    source, images = small.write_series(made, tmp_path / "series"), tmp_path / "images"
    main(["import", "-i", str(source), "-o", str(images), "-prefix", "ct"])
    said = capsys.readouterr().out
    (image,) = images.glob("*.nii.gz")
    case = image.name.removesuffix("_0000.nii.gz")
    assert f"  {case}  CT, 6 x 16 x 20 voxels of 2.5 x 1.1 x 0.8 mm" in said
    small.write_prediction(tmp_path / "predictions", image, case)
    predictions = ["-i", str(tmp_path / "predictions"), "-map", str(images)]
    main(["export", *predictions, "-dicom", str(source), "-o", str(tmp_path / "objects"), "-what", "mask", "review"])
    assert "2 objects of 1 cases" in capsys.readouterr().out
    mask = tmp_path / "objects" / case / "mask.dcm"
    main(["answers", *predictions, "-seg", str(mask), "-expert", "ann", "-o", str(tmp_path / "expertsTr")])
    said = capsys.readouterr().out
    assert f"  {case}: 21 of 21 voxels in 2 regions answered, 0 changed" in said and "CAUTION" not in said
    assert (tmp_path / "expertsTr" / "ann" / f"{case}.nii.gz").is_file()
    assert "answers exist" in fails(
        capsys, "answers", *predictions, "-seg", mask, "-expert", "ann", "-o", tmp_path / "expertsTr"
    )


def test_segments_without_tracking_ids_and_masks_that_were_not_predicted_with_the_maps_are_cautioned_about(
    tmp_path, capsys
):
    small = pytest.importorskip("small_series", reason="the extra [dicom] is not installed")
    walked = small.walk(tmp_path, small.make_series("axial"), what=["mask"])
    deferral_folder(walked.predictions, ".nii.gz", ("ann", "bob")).note_mask(walked.case, with_probabilities=False)
    given = ["-i", str(walked.predictions), "-map", str(walked.images)]
    export = ["export", *given, "-dicom", str(walked.source), "-what", "mask", "-o"]
    main([*export, str(tmp_path / "same")])
    assert "CAUTION" not in capsys.readouterr().out
    file = walked.predictions / f"{walked.case}.nii.gz"
    mask = sitk.ReadImage(str(file))
    mask[12, 9, 1] = 1
    sitk.WriteImage(mask, str(file))
    main([*export, str(tmp_path / "other")])
    assert (
        f"CAUTION: 1 case has a mask other than the one predicted with the maps ({walked.case})"
        in capsys.readouterr().out
    )
    edited = small.dcmread(tmp_path / "other" / walked.case / "mask.dcm")
    for item in edited.SegmentSequence:
        del item.TrackingID
    edited.save_as(tmp_path / "edited.dcm")
    main(["answers", *given, "-seg", str(tmp_path / "edited.dcm"), "-expert", "ann", "-o", str(tmp_path / "answers")])
    assert "CAUTION: its segments have no tracking IDs" in capsys.readouterr().out
