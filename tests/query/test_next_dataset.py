"""nnUNetv2_deferral_next_dataset: answers become labels, everything else is ignored."""

import json

import numpy as np
import pytest
from small_ensemble import CASES, SHAPE, write_ensemble
from small_prediction import read_mask, write_mask, write_prediction, write_study

from nnunetv2_deferral.commands import next_dataset as command
from nnunetv2_deferral.commands.next_dataset import main
from nnunetv2_deferral.commands.query import main as query
from nnunetv2_deferral.query.next_dataset import NnunetFolders
from nnunetv2_deferral.query.rounds import QueryRound

NAME = "Dataset702_Next"


@pytest.fixture
def root(tmp_path, monkeypatch):
    folders = NnunetFolders(raw=tmp_path / "raw", preprocessed=tmp_path / "preprocessed")
    monkeypatch.setattr(command, "nnunet_folders", lambda: folders)
    monkeypatch.setattr("nnunetv2_deferral.commands.query.nnunet_folders", lambda: folders)
    return tmp_path


def references(root, folder="labels", cases=CASES, shift=0):
    found = {}
    for place, case in enumerate(cases):
        found[case] = np.random.default_rng([7, place + shift]).integers(0, 3, SHAPE)
        write_mask(root / folder / f"{case}.nii.gz", found[case])
        write_mask(root / "images" / f"{case}_0000.nii.gz", found[case])
    return found


def ask(root, *more, **how):
    folders = write_ensemble(root, **how)
    query(["-i", *map(str, folders), "-o", str(root / "round"), "-n", "12", "-patch", "2", "3", "4", *map(str, more)])
    return QueryRound.read(root / "round")


def make(root, *more, questions=("round",), answers="labels", name=NAME):
    main(
        [
            *("-i", *(str(root / each) for each in questions), "-answers", str(root / answers)),
            *("-images", str(root / "images"), "-o", name, *map(str, more)),
        ]
    )
    folder = root / "raw" / name
    return folder, *(json.loads((folder / file).read_text()) for file in ("dataset.json", "provenance.json"))


def refused(capsys, root, *more, **how):
    with pytest.raises(SystemExit) as ended:
        make(root, *more, **how)
    assert ended.value.code == 2
    assert not (root / "raw" / NAME).exists()
    assert not (root / "preprocessed" / NAME).exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_labels_are_the_answers_in_the_boxes_and_ignored_elsewhere(root):
    asked, found = ask(root), references(root)
    folder, content, provenance = make(root)
    assert content["labels"] == {"background": 0, "rim": 1, "core": 2, "ignore": 3}
    assert content["numTraining"] == len(asked.boxes)
    for case in asked.boxes:
        where = asked.mask(case, SHAPE)
        assert np.array_equal(read_mask(folder / "labelsTr" / f"{case}.nii.gz"), np.where(where, found[case], 3))
        assert np.array_equal(read_mask(folder / "imagesTr" / f"{case}_0000.nii.gz"), found[case])
        entry = provenance["cases"][case]
        assert entry["asked_voxels"] == entry["answered_voxels"] == where.sum()
        assert entry["voxels_of_expert"] == {"reference": where.sum()}
        assert sum(entry["voxels_of_label"].values()) == where.sum()
    splits = json.loads((root / "preprocessed" / NAME / "splits_final.json").read_text())
    assert sorted(case for split in splits for case in split["val"]) == sorted(asked.boxes)


def test_boxes_are_in_the_axis_order_of_the_reader_that_the_plans_name(root):
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    references(root)
    for folder in write_ensemble(root):
        (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIOWithReorient"}))
        for place, case in enumerate(CASES):
            shape = NibabelIOWithReorient().read_seg(str(folder / f"{case}.nii.gz"))[0].shape[1:]
            assert shape != SHAPE
            found = np.random.default_rng(place).dirichlet(np.ones(3), shape)
            np.savez_compressed(folder / f"{case}.npz", probabilities=np.moveaxis(found, -1, 0).astype(np.float32))
    folders = [str(root / f"fold_{place}") for place in range(2)]
    query(["-i", *folders, "-o", str(root / "round"), "-n", "12", "-patch", "2", "3", "4"])
    folder, content, _ = make(root)
    assert content["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    for case in QueryRound.read(root / "round").boxes:
        inside = read_mask(root / "round" / "masks" / f"{case}.nii.gz") > 0
        assert inside.any()
        expected = np.where(inside, read_mask(root / "labels" / f"{case}.nii.gz"), 3)
        assert np.array_equal(read_mask(folder / "labelsTr" / f"{case}.nii.gz"), expected)


def test_the_query_writes_the_same_dataset_itself(root):
    references(root)
    ask(root, "--next_dataset", NAME, "-answers", root / "labels", "-images", root / "images")
    once = {file.name: file.read_bytes() for file in (root / "raw" / NAME / "labelsTr").iterdir()}
    folder, _, _ = make(root, name="Dataset703_Again")
    assert {file.name: file.read_bytes() for file in (folder / "labelsTr").iterdir()} == once


def test_where_experts_differ_the_voxel_is_ignored_and_counted(root):
    asked = ask(root)
    ann, bob = references(root, "experts/ann"), references(root, "experts/bob", cases=CASES[:2], shift=5)
    folder, _, provenance = make(root, answers="experts")
    for case in asked.boxes:
        where = asked.mask(case, SHAPE)
        differs = where & (bob[case] != ann[case]) if case in bob else np.zeros(SHAPE, dtype=bool)
        expected = np.where(where & ~differs, ann[case], 3)
        assert np.array_equal(read_mask(folder / "labelsTr" / f"{case}.nii.gz"), expected)
        assert provenance["cases"][case]["contradicted_voxels"] == differs.sum()


def test_cases_that_nobody_answered_are_left_out_and_named(root, capsys):
    ask(root)
    references(root)
    (root / "labels" / "y.nii.gz").unlink()
    folder, content, provenance = make(root)
    assert provenance["not_answered"] == ["y"]
    assert not (folder / "labelsTr" / "y.nii.gz").exists()
    assert content["numTraining"] == 2
    assert "left out, because nothing was answered: y" in capsys.readouterr().out


def test_a_base_is_taken_over_and_answers_replace_its_labels(root, monkeypatch):
    asked, found = ask(root), references(root)
    base, old = root / "raw" / "Dataset701_Base", {}
    for place, case in enumerate(("x", "w")):
        old[case] = np.random.default_rng([9, place]).integers(0, 3, SHAPE)
        write_mask(base / "labelsTr" / f"{case}.nii.gz", old[case])
        write_mask(base / "imagesTr" / f"{case}_0000.nii.gz", old[case])
    (base / "dataset.json").write_text((root / "fold_0" / "dataset.json").read_text())
    monkeypatch.setattr(command, "full_dataset_name", lambda name: str(name))
    folder, content, provenance = make(root, "-base", "Dataset701_Base")
    assert content["numTraining"] == len({*asked.boxes, "x", "w"})
    assert np.array_equal(read_mask(folder / "labelsTr" / "w.nii.gz"), old["w"])
    where = asked.mask("x", SHAPE)
    assert np.array_equal(read_mask(folder / "labelsTr" / "x.nii.gz"), np.where(where, found["x"], old["x"]))
    assert provenance["cases"]["x"]["replaced_voxels_of_base"] == (where & (found["x"] != old["x"])).sum()
    assert provenance["cases"]["w"] == {"base": True}


def test_what_experts_answered_of_deferred_voxels_becomes_labels(root):
    write_study(root)
    folder, content, provenance = make(root, questions=["in"], answers="experts")
    assert content["labels"]["ignore"] == 3
    written = write_prediction(root / "again")  # the same numbers
    for case, predicted in written.items():
        answers = [read_mask(root / "experts" / expert / f"{case}.nii.gz") for expert in ("ann", "bob")]
        expected = np.select([predicted.route == 1, predicted.route == 2], answers, 3)
        assert np.array_equal(read_mask(folder / "labelsTr" / f"{case}.nii.gz"), expected)
        assert provenance["cases"][case]["voxels_of_expert"] == {
            expert: (predicted.route == place).sum() for place, expert in enumerate(("ann", "bob"), start=1)
        }


class TestRefused:
    """Each with exit code 2, one line that names the fault, and no dataset."""

    def test_a_dataset_that_exists(self, root, capsys):
        ask(root)
        references(root)
        (root / "raw" / "Dataset702_Other").mkdir(parents=True)
        assert "a dataset with id 702 already exists" in refused(capsys, root)

    def test_a_dataset_that_exists_before_the_query_is_made(self, root, capsys):
        (root / "raw" / "Dataset702_Other").mkdir(parents=True)
        with pytest.raises(SystemExit):
            ask(root, "--next_dataset", NAME, "-answers", root / "labels", "-images", root / "images")
        assert "already exists" in capsys.readouterr().err
        assert not (root / "round").exists()

    def test_a_name_that_is_none(self, root, capsys):
        ask(root)
        references(root)
        assert "must be called DatasetXXX_Name" in refused(capsys, root, name="Next")

    def test_answers_of_another_geometry(self, root, capsys):
        ask(root)
        found = references(root)
        write_mask(root / "labels" / "x.nii.gz", found["x"], origin=(0.0, 0.0, 0.0))
        assert "labels/x.nii.gz does not match its prediction: origin" in refused(capsys, root)

    def test_answers_with_labels_that_are_none(self, root, capsys):
        ask(root)
        references(root)
        write_mask(root / "labels" / "x.nii.gz", np.full(SHAPE, 7))
        assert "x.nii.gz contains labels that are not in dataset.json: 7" in refused(capsys, root)

    def test_a_folder_without_answers(self, root, capsys):
        ask(root)
        references(root, cases=["q"])
        assert "has no mask <case>.nii.gz or <expert>/<case>.nii.gz" in refused(capsys, root)

    def test_answers_both_in_the_folder_and_of_experts(self, root, capsys):
        ask(root)
        references(root)
        references(root, "labels/ann")
        assert "has masks both in itself and of ann" in refused(capsys, root)

    def test_an_image_that_is_missing(self, root, capsys):
        ask(root)
        references(root)
        (root / "images" / "x_0000.nii.gz").unlink()
        assert "cases without an image" in refused(capsys, root)

    def test_masks_of_boxes_that_were_painted_over(self, root, capsys):
        ask(root)
        references(root)
        write_mask(root / "round" / "masks" / "x.nii.gz", np.ones(SHAPE))
        assert "masks/x.nii.gz does not show the boxes of" in refused(capsys, root)

    def test_a_single_case(self, root, capsys):
        ask(root, "-round", "1", cases=["x"])
        references(root, cases=["x"])
        assert "needs at least two cases" in refused(capsys, root)

    def test_neither_rounds_nor_predictions(self, root, capsys):
        ask(root)
        references(root)
        assert "has no query.json" in refused(capsys, root, questions=["round", "labels"])

    def test_a_review_of_boxes_is_read_with_its_questions(self, root, capsys):
        ask(root)
        references(root)
        (root / "labels" / "review.json").write_text("{}")
        assert f"-i {root / 'round' / 'questions'}" in refused(capsys, root)

    def test_a_review_whose_experts_were_not_shown_all(self, root, capsys):
        write_study(root)
        record = {"regions": 1, "voxels": 1, "changed_voxels": 0, "minutes": 1.0}
        (root / "experts" / "review.json").write_text(json.dumps({"cases": {"x": {"ann": record}}}))
        error = refused(capsys, root, questions=["in"], answers="experts")
        assert "so the answers cannot be used for training" in error
