"""`nnUNetv2_deferral_evaluate_raters` on made-up folders of masks and probabilities."""

import csv
import json
import shutil

import numpy as np
import pytest
from small_prediction import GEOMETRY, reader_of, write_mask

from nnunetv2_deferral.agreement_maps import AGREEMENT, AgreementFolder, MultiRaterModel, map_file
from nnunetv2_deferral.commands.evaluate_raters import CASES, SUMMARY, main
from nnunetv2_deferral.nnunet.rater_evaluation import RaterInputs

RATERS = ("ann", "bob", "eve")


class Folders:
    """Two cases with two classes, whose probabilities are the shares of raters."""

    def __init__(self, root, ending=".nii.gz"):
        self.root, self.ending = root, ending
        self.shape = (4, 6, 7) if ending == ".nii.gz" else (1, 9, 8)
        for number, case in enumerate(("x", "y")):
            random = np.random.default_rng(number)
            masks = random.integers(0, 3, (len(RATERS), *self.shape)).astype(np.uint8)
            shares = np.stack([np.mean(masks == label, 0, dtype=np.float32) for label in range(3)])
            for rater, mask in zip(RATERS, masks, strict=True):
                write_mask(root / "raters" / rater / f"{case}{ending}", mask)
            write_mask(root / "out" / f"{case}{ending}", shares.argmax(0).astype(np.uint8))
            write_mask(root / "labels" / f"{case}{ending}", masks[0])
            np.savez_compressed(root / "out" / f"{case}.npz", probabilities=shares)
        labels = {"background": 0, "rim": 1, "core": 2}
        (root / "out" / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))

    def write_agreement(self):
        model = MultiRaterModel(dataset="D", plans="P", configuration="2d", trainer="T", raters=RATERS)
        writer = AgreementFolder(
            folder=self.root / "out",
            file_ending=self.ending,
            writer=reader_of(self.ending),
            model=model,
            structures=("rim", "core"),
        )
        for case in ("x", "y"):
            with np.load(self.root / "out" / f"{case}.npz") as content:
                writer.write(case, {AGREEMENT: content["probabilities"][1:]}, GEOMETRY)

    def options(self, *more):
        given = ("-i", self.root / "out", "-raters", self.root / "raters", "-o", self.root / "evaluation", *more)
        return [str(word) for word in given]

    def refused(self, capsys, *more):
        with pytest.raises(SystemExit) as ended:
            main(self.options(*more))
        assert ended.value.code == 2
        assert not (self.root / "evaluation").exists()
        return capsys.readouterr().err


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_the_shares_of_raters_are_calibrated_to_them(tmp_path, ending, capsys):
    here = Folders(tmp_path, ending)
    here.write_agreement()
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"x": "first", "y": "second"}))
    main(here.options("-ref", tmp_path / "labels", "-groups", groups))
    found = json.loads((tmp_path / "evaluation" / SUMMARY).read_text())
    assert found["raters"] == dict.fromkeys(RATERS, 2)
    assert found["groups"] == 2
    for structure in ("1", "2"):
        for reading in ("probability", "agreement"):
            for place in ("image", "box"):
                # Maps hold 16 bits.
                error = found["calibration"][structure][reading][place]["ece"]["estimate"]
                assert error == pytest.approx(0, abs=2e-5)
        assert 0 < found["dice"][structure]["reference"]["estimate"] <= 1
    with (tmp_path / "evaluation" / CASES).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["structure"]) for row in rows] == [("x", "1"), ("x", "2"), ("y", "1"), ("y", "2")]
    printed = capsys.readouterr().out
    assert "2 cases, raters ann (2), bob (2), eve (2); 95 % intervals over groups" in printed
    assert "ECE of agreement, box of the foreground" in printed


def test_a_stock_prediction_has_probabilities_only_and_needs_no_reference(tmp_path):
    main(Folders(tmp_path).options())
    found = json.loads((tmp_path / "evaluation" / SUMMARY).read_text())
    assert list(found["calibration"]["1"]) == ["probability"]
    assert list(found["dice"]["1"]) == ["raters"]


def test_maps_of_another_model_than_the_masks_are_refused(tmp_path, capsys):
    here = Folders(tmp_path)
    here.write_agreement()
    plans = {"multi_rater": {"trainer": "T"}, "image_reader_writer": "SimpleITKIO"}
    (tmp_path / "out" / "plans.json").write_text(json.dumps(plans))
    main(here.options())
    (tmp_path / "out" / "plans.json").write_text(json.dumps(plans | {"multi_rater": {"trainer": "U"}}))
    shutil.rmtree(tmp_path / "evaluation")
    assert "maps of agreement are of T, but the masks, according to plans.json, of U" in here.refused(capsys)
    deferral = {"deferral": {"multi_rater": True}, "deferral_model": {"trainer": "T"}}
    besides_deferral = deferral | {"image_reader_writer": "SimpleITKIO"}
    (tmp_path / "out" / "plans.json").write_text(json.dumps(besides_deferral))
    assert RaterInputs.open(tmp_path / "out", tmp_path / "raters").has_agreement
    (tmp_path / "out" / "plans.json").write_text(json.dumps(besides_deferral | {"deferral": {"multi_rater": False}}))
    assert "according to plans.json, of a model without such maps" in here.refused(capsys)


def test_probabilities_of_another_prediction_than_the_masks_are_refused(tmp_path, capsys):
    here = Folders(tmp_path)
    file = tmp_path / "out" / "y.npz"
    with np.load(file) as content:
        found = content["probabilities"]
    np.savez(file, probabilities=found[[0, 2, 1]])
    assert f"{file} does not belong to {tmp_path / 'out' / 'y.nii.gz'}" in here.refused(capsys)
    np.savez(file, probabilities=found[:2])
    assert f"{file}: probabilities of 2 classes or regions instead of 3" in here.refused(capsys)


def test_what_is_missing_is_said_before_anything_is_computed(tmp_path, capsys):
    here = Folders(tmp_path)
    assert "the folder of raters" in here.refused(capsys, "-raters", tmp_path / "nowhere")
    assert "the folder of references" in here.refused(capsys, "-ref", tmp_path / "nowhere")
    here.write_agreement()
    map_file(tmp_path / "out", AGREEMENT, "y", ".nii.gz", 2).unlink()
    assert "maps of agreement are missing (1)" in here.refused(capsys)
    (tmp_path / "labels" / "y.nii.gz").unlink()
    assert "predicted cases without a reference" in here.refused(capsys, "-ref", tmp_path / "labels")
    (tmp_path / "raters" / "ann" / "Y.nii.gz").write_bytes(b"")
    assert "raters' files that would not be used (1)" in here.refused(capsys)
    for rater in RATERS:
        for file in (tmp_path / "raters" / rater).glob("[yY]*"):
            file.unlink()
    assert "predicted cases without any rater's mask" in here.refused(capsys)
    (tmp_path / "out" / "x.npz").unlink()
    assert "probabilities are missing (1)" in here.refused(capsys)
