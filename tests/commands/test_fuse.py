"""From predictions and the masks of experts to the system's masks, file by file."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from killed import killed_after
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from small_prediction import GEOMETRY, deferral_folder, read_mask, write_mask, write_prediction

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.fuse import REPORT_NAME, fuse_folder, main, summary
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.labels import MISSING

ENDINGS = (".nii.gz", ".png")


@pytest.fixture(params=ENDINGS)
def ending(request):
    return request.param


def answer(expert, case, shape, labels=(0, 1, 2)):
    """What an expert of the tests answers."""
    return np.random.default_rng(sum(map(ord, expert + case))).choice(labels, shape).astype(np.uint8)


def write_answers(folder, written, experts=("ann", "bob"), ending=".nii.gz", but=(), labels=(0, 1, 2)):
    """The experts' masks of all cases but some, given as `(expert, case)`."""
    for expert in experts:
        for case, predicted in written.items():
            if (expert, case) not in but:
                write_mask(folder / expert / f"{case}{ending}", answer(expert, case, predicted.model.shape, labels))


def state_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestRule:
    def test_every_voxel_is_answered_by_whom_it_was_routed_to(self, tmp_path, ending):
        written = write_prediction(tmp_path / "in", ending=ending)
        write_answers(tmp_path / "experts", written, ending=ending)
        report = fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [REPORT_NAME, f"x{ending}", f"y{ending}"]
        for case, predicted in written.items():
            experts = np.stack([answer(expert, case, predicted.model.shape) for expert in ("ann", "bob")])
            expected = fuse_masks(predicted.model, experts, predicted.route)
            assert (expected != predicted.model).any()
            fused = read_mask(tmp_path / "out" / f"{case}{ending}")
            assert np.array_equal(fused, expected)
            assert report["cases"][case] == {
                "deferred": int((predicted.route > 0).sum()),
                "changed": int((expected != predicted.model).sum()),
                "overruled": 0,
                "unanswered": {},
            }
        assert json.loads((tmp_path / "out" / REPORT_NAME).read_text()) == report
        assert report["experts"] == ["ann", "bob"]

    def test_masks_that_were_not_predicted_with_the_maps_are_told(self, tmp_path):
        written = write_prediction(tmp_path / "in")
        write_answers(tmp_path / "experts", written)
        for case in written:
            deferral_folder(tmp_path / "in", ".nii.gz", ("ann", "bob")).note_mask(case, with_probabilities=False)
        write_mask(tmp_path / "in" / "y.nii.gz", np.roll(written["y"].model, 1))
        report = fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        assert [case.get("other_mask") for case in report["cases"].values()] == [None, True]
        assert "CAUTION: 1 case has a mask other than the one predicted with the maps (y)" in summary(report, tmp_path)

    @pytest.mark.distributed
    def test_processes_write_what_one_does(self, tmp_path):
        write_answers(tmp_path / "experts", write_prediction(tmp_path / "in"))
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "other", num_processes=2)
        one, two = (state_of(tmp_path / name) for name in ("out", "other"))
        assert [*one.values()] == [*two.values()]

    def test_the_experts_are_those_of_the_model_whatever_else_lies_beside_them(self, tmp_path):
        written = write_prediction(tmp_path / "in", experts=("bob", "ann"))
        write_answers(tmp_path / "experts", written, ("aaa", "ann", "bob"))
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        experts = np.stack([answer(expert, "x", written["x"].model.shape) for expert in ("bob", "ann")])
        expected = fuse_masks(written["x"].model, experts, written["x"].route)
        assert np.array_equal(read_mask(tmp_path / "out" / "x.nii.gz"), expected)

    def test_fused_masks_lie_where_the_models_lie(self, tmp_path):
        written = write_prediction(tmp_path / "in")
        write_answers(tmp_path / "experts", written)
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        for case in written:
            model, fused = (sitk.ReadImage(str(tmp_path / folder / f"{case}.nii.gz")) for folder in ("in", "out"))
            assert fused.GetPixelID() == model.GetPixelID()
            for what in ("Size", "Spacing", "Origin", "Direction"):
                assert getattr(fused, f"Get{what}")() == getattr(model, f"Get{what}")()
            assert fused.GetOrigin() == pytest.approx(GEOMETRY["sitk_stuff"]["origin"])

    def test_where_nobody_is_asked_no_experts_are_needed(self, tmp_path, ending):
        written = write_prediction(tmp_path / "in", ending=ending, routes_to=[0])
        report = fuse_folder(tmp_path / "in", tmp_path / "nobody", tmp_path / "out")
        for case, predicted in written.items():
            assert np.array_equal(read_mask(tmp_path / "out" / f"{case}{ending}"), predicted.model)
            assert report["cases"][case] == {"deferred": 0, "changed": 0, "overruled": 0, "unanswered": {}}

    def test_a_validation_folder_is_fused_with_the_dataset_json_of_its_model(self, tmp_path):
        folder = tmp_path / "model" / "fold_0" / "validation"
        written = write_prediction(folder)
        (folder / "dataset.json").rename(tmp_path / "model" / "dataset.json")
        write_answers(tmp_path / "experts", written)
        assert list(fuse_folder(folder, tmp_path / "experts", tmp_path / "out")["cases"]) == ["x", "y"]


class TestUnanswered:
    def test_what_an_expert_did_not_annotate_stays_the_models_and_is_counted(self, tmp_path, ending):
        written = write_prediction(tmp_path / "in", ending=ending)
        write_answers(tmp_path / "experts", written, ending=ending, but=[("bob", "x")])
        report = fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        model, route, *_ = written["x"]
        fused = read_mask(tmp_path / "out" / f"x{ending}")
        assert np.array_equal(fused[route != 1], model[route != 1])
        assert np.array_equal(fused[route == 1], answer("ann", "x", model.shape)[route == 1])
        assert report["cases"]["x"]["unanswered"] == {"bob": int((route == 2).sum())}
        assert report["cases"]["x"]["deferred"] == int((route > 0).sum())
        assert report["cases"]["y"]["unanswered"] == {}

    def test_so_does_what_an_expert_marked_with_the_ignore_label(self, tmp_path):
        labels = {"background": 0, "rim": 1, "core": 2, "ignore": 3}
        written = write_prediction(tmp_path / "in", labels=labels)
        write_answers(tmp_path / "experts", written, labels=(0, 1, 2, 3))
        report = fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        for case, (model, route, *_) in written.items():
            answers = np.stack([answer(expert, case, model.shape, (0, 1, 2, 3)) for expert in ("ann", "bob")])
            known = np.where(answers == 3, MISSING, answers.astype(int))
            fused = read_mask(tmp_path / "out" / f"{case}.nii.gz")
            assert np.array_equal(fused, fuse_masks(model, known, route))
            assert fused.max() == 2
            assert report["cases"][case]["unanswered"] == {
                "ann": int(((route == 1) & (answers[0] == 3)).sum()),
                "bob": int(((route == 2) & (answers[1] == 3)).sum()),
            }

    def test_the_summary_tells_whose_and_which(self, tmp_path):
        cases = [f"case{number}" for number in range(7)]
        written = write_prediction(tmp_path / "in", cases=cases)
        write_answers(tmp_path / "experts", written, but=[("ann", case) for case in cases[1:]])
        report = fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        lines = summary(report, tmp_path / "out").splitlines()
        missed = sum(int((written[case].route == 1).sum()) for case in cases[1:])
        deferred = sum(int((predicted.route > 0).sum()) for predicted in written.values())
        assert len(lines) == 2
        assert lines[0].startswith(f"7 cases fused into {tmp_path / 'out'}: {deferred} voxels deferred, ")
        assert f"ann has no label for {missed} voxels of 6 cases (case1, case2, case3, case4, case5, ...)" in lines[1]


class TestRefusals:
    """Nothing appears and nothing changes when something is wrong."""

    @pytest.fixture
    def ready(self, tmp_path):
        """A prediction and answers that fit."""
        written = write_prediction(tmp_path / "in")
        write_answers(tmp_path / "experts", written)
        return written

    def refused(self, tmp_path, message, **how):
        before = state_of(tmp_path)
        with pytest.raises(ValueError, match=message) as refused:
            fuse_folder(tmp_path / "in", tmp_path / "experts", how.pop("output", tmp_path / "out"), **how)
        assert state_of(tmp_path) == before
        assert not list(tmp_path.rglob(".unfinished*"))
        return str(refused.value)

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("where", ["in", "in/../in", "experts/bob"])
    def test_an_output_folder_that_is_an_input(self, tmp_path, ready, where, overwrite):
        how = {"output": tmp_path / where, "overwrite": overwrite}
        said = self.refused(tmp_path, "would overwrite their own inputs", **how)
        assert str(tmp_path / where) in said
        assert "(-o)" in said

    def test_masks_that_are_there_already_unless_told_to_replace_them(self, tmp_path, ready):
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        (tmp_path / "out" / "x.nii.gz").unlink()
        self.refused(tmp_path, r"out already has masks of 1 of these cases, the first being y; .*--overwrite")
        write_answers(tmp_path / "experts", {"x": ready["y"], "y": ready["x"]})
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out", overwrite=True)
        answers = np.stack([answer(expert, "y", ready["y"].model.shape) for expert in ("ann", "bob")])
        expected = fuse_masks(ready["y"].model, answers, ready["y"].route)
        assert np.array_equal(read_mask(tmp_path / "out" / "y.nii.gz"), expected)

    @pytest.mark.parametrize("moved", [1, 2])
    def test_a_call_that_was_killed_while_masks_moved_can_be_repeated(self, tmp_path, ready, monkeypatch, moved):
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "whole")
        killed_after(moved + 2, monkeypatch)  # the report in the scratch folder, the list of what moves, what moves
        with pytest.raises(KeyboardInterrupt):
            fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        monkeypatch.undo()
        assert len([file for file in (tmp_path / "out").iterdir() if file.name[0] != "."]) == moved
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        written = ({file.name: file.read_bytes() for file in (tmp_path / to).iterdir()} for to in ("whole", "out"))
        assert next(written) == next(written)

    def test_an_expert_who_was_asked_and_has_no_masks_at_all(self, tmp_path, ready):
        for file in (tmp_path / "experts" / "bob").iterdir():
            file.unlink()
        self.refused(tmp_path, r"experts without masks: no \*.nii.gz in .*/experts/bob \(existing folders: ann, bob\)")

    @pytest.mark.parametrize(
        ("geometry", "message"),
        [
            ({"origin": (0.0, 3.5, 40.0)}, r"bob/y.nii.gz: origin \(0, 3.5, 40\) instead of \(-11, 3.5, 40\)"),
            ({"spacing": (0.7, 1.1, 2.6)}, r"bob/y.nii.gz: spacing \(2.6, 1.1, 0.7\) instead of \(2.5, 1.1, 0.7\)"),
            ({"direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}, r"bob/y.nii.gz: direction .* instead of"),
        ],
    )
    def test_a_mask_with_another_geometry(self, tmp_path, ready, geometry, message):
        write_mask(tmp_path / "experts/bob/y.nii.gz", answer("bob", "y", ready["y"].model.shape), **geometry)
        self.refused(tmp_path, message)

    def test_a_mask_of_another_shape(self, tmp_path, ready):
        write_mask(tmp_path / "experts/bob/y.nii.gz", answer("bob", "y", (4, 6, 8)))
        self.refused(tmp_path, r"bob/y.nii.gz: shape \(4, 6, 8\) instead of \(4, 6, 7\)")

    def test_a_mask_with_labels_that_the_dataset_does_not_have(self, tmp_path, ready):
        write_mask(tmp_path / "experts/bob/y.nii.gz", answer("bob", "y", (4, 6, 7), labels=(0, 9)))
        self.refused(tmp_path, r"bob/y.nii.gz: contains labels that are not in dataset.json: 9")

    def test_a_mask_that_was_cut_short(self, tmp_path, ready):
        file = tmp_path / "experts/ann/y.nii.gz"
        file.write_bytes(file.read_bytes()[:30])
        self.refused(tmp_path, re.escape(f"{file} cannot be read"))

    def test_a_route_of_another_shape_than_the_mask(self, tmp_path, ready):
        write_mask(maps.route_file(tmp_path / "in", "y", ".nii.gz"), np.zeros((4, 6, 8), np.uint8))
        self.refused(tmp_path, r"in/deferral/route/y.nii.gz has shape \(4, 6, 8\) instead of \(4, 6, 7\)")

    def test_maps_that_fusion_does_not_need_are_not_read(self, tmp_path, ready):
        for file in (maps.gain_file, maps.probability_file, maps.expert_file):
            file(tmp_path / "in", "y", ".nii.gz").write_bytes(b"no map")
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")

    def test_the_masks_of_a_stock_model(self, tmp_path, ready):
        maps.index_file(tmp_path / "in").unlink()
        self.refused(tmp_path, "no deferral maps .*stock model")

    def test_a_fault_in_the_last_case_leaves_earlier_fused_masks_as_they_were(self, tmp_path, ready):
        fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        for case in ready:
            write_mask(tmp_path / "experts" / "ann" / f"{case}.nii.gz", np.full((4, 6, 7), 2 if case == "x" else 9))
        self.refused(tmp_path, "ann/y.nii.gz: contains labels", overwrite=True)

    def test_a_disk_that_is_full(self, tmp_path, ready, monkeypatch):
        stock = SimpleITKIO.write_seg

        def fail(self, seg, output_fname, properties):
            stock(self, seg, output_fname, properties)
            if output_fname.endswith("y.nii.gz"):
                raise OSError("disk full")

        monkeypatch.setattr(SimpleITKIO, "write_seg", fail)
        before = state_of(tmp_path)
        with pytest.raises(OSError, match="disk full"):
            fuse_folder(tmp_path / "in", tmp_path / "experts", tmp_path / "out")
        assert state_of(tmp_path) == before


class TestCommand:
    def test_it_takes_nnunets_letters_and_says_what_it_did(self, tmp_path, capsys):
        written = write_prediction(tmp_path / "in")
        write_answers(tmp_path / "experts", written, but=[("ann", "x")])
        djfile = (tmp_path / "in" / "dataset.json").rename(tmp_path / "elsewhere.json")
        arguments = ["-i", tmp_path / "in", "-experts", tmp_path / "experts", "-o", tmp_path / "out", "-djfile", djfile]
        main(list(map(str, arguments)))
        said = capsys.readouterr().out
        assert f"2 cases fused into {tmp_path / 'out'}" in said
        assert "ann has no label for" in said
        main([*map(str, arguments), "--overwrite"])

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda root: maps.index_file(root / "in").write_text("{"), "deferral.json cannot be read"),
            (lambda root: (root / "in" / "dataset.json").unlink(), "specify it with -djfile"),
            (lambda root: (root / "in" / "dataset.json").write_text("{"), "dataset.json cannot be read"),
            (lambda root: (root / "experts" / "bob").rename(root / "gone"), "experts without masks"),
        ],
    )
    def test_bad_input_ends_with_one_line_and_no_traceback(self, tmp_path, capsys, damage, message):
        write_answers(tmp_path / "experts", write_prediction(tmp_path / "in"))
        damage(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main(["-i", str(tmp_path / "in"), "-experts", str(tmp_path / "experts"), "-o", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


class TestParts:
    @pytest.fixture
    def call(self, tmp_path, capsys):
        """Calls the command; gives what it says."""
        write_answers(tmp_path / "experts", write_prediction(tmp_path / "in"))

        def call(*more, out="out"):
            capsys.readouterr()
            words = ["-i", tmp_path / "in", "-experts", tmp_path / "experts", "-o", tmp_path / out, *more]
            try:
                main(list(map(str, words)))
            except SystemExit:
                return capsys.readouterr().err
            return capsys.readouterr().out

        return call

    def test_together_they_are_one_call_and_leave_nothing_else(self, tmp_path, call):
        whole = call(out="whole")
        for part in (1, 0, 0):  # as after a part that was killed
            assert f"parts/part_{part}_of_2.pkl.gz" in call("-num_parts", 2, "-part_id", part)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts"]
        assert call("--merge").replace("/out", "/whole") == whole
        files = {file.name: file for file in (tmp_path / "out").iterdir()}
        assert set(files) == {REPORT_NAME, "x.nii.gz", "y.nii.gz"}
        assert all(file.read_bytes() == (tmp_path / "whole" / name).read_bytes() for name, file in files.items())

    @pytest.mark.parametrize("damage", ["experts/ann/x.nii.gz", "out/parts/part_0_of_2/x.nii.gz"])
    def test_a_part_of_other_answers_or_without_its_masks_is_refused(self, tmp_path, call, damage):
        for part in (0, 1):
            call("-num_parts", 2, "-part_id", part)
        (tmp_path / damage).unlink()
        assert re.search("state of the experts' masks is .* make it again|lacks the masks of x; make", call("--merge"))
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts"]

    def test_masks_that_are_there_are_refused_before_the_work(self, tmp_path, call):
        call()
        assert "already has masks of 2" in call("-num_parts", 2)
        assert not (tmp_path / "out" / "parts").exists()
