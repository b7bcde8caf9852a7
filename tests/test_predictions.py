"""Opening a folder of predictions: what is read, and what is refused before anything else happens."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from small_prediction import LABELS, deferral_folder, read_mask, reader_of, write_mask, write_prediction

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.route import route_folder
from nnunetv2_deferral.dataset import same_cases
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.predictions import PredictionFolder

ENDINGS = (".nii.gz", ".png", ".bmp")


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


class TestReading:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_masks_and_maps_are_what_was_written(self, tmp_path, ending):
        written = write_prediction(tmp_path, ending=ending)
        opened = PredictionFolder.open(tmp_path)
        assert (opened.cases, opened.experts) == (("x", "y"), ("ann", "bob"))
        assert opened.files.label_values == (0, 1, 2)
        for case, predicted in written.items():
            found = opened.case(case)
            assert found.model.dtype == np.int16
            assert np.array_equal(found.model, predicted.model)
            _, properties = reader_of(ending).read_seg(str(tmp_path / f"{case}{ending}"))
            assert found.properties["spacing"] == properties["spacing"]
            for name in ("route", "expert"):
                assert getattr(found, name).dtype == np.uint8
                assert np.array_equal(getattr(found, name), getattr(predicted, name))

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_a_probability_is_a_float_between_0_and_1_however_it_is_stored(self, tmp_path, ending):
        written = write_prediction(tmp_path, ending=ending)
        opened = PredictionFolder.open(tmp_path)
        for case, predicted in written.items():
            found = opened.case(case).probability
            assert found.dtype == np.float32
            stored = read_mask(maps.probability_file(tmp_path, case, ending)).max()
            step = 1 / (255 if ending == ".bmp" else 65535)
            assert (stored > 1) == (ending != ".nii.gz")  # whose readers scale the integers themselves
            assert np.abs(found - predicted.probability).max() <= step / 2 + 1e-7

    def test_a_mask_that_is_not_the_predicted_one_is_known_from_its_checksum(self, tmp_path):
        written = write_prediction(tmp_path)
        deferral_folder(tmp_path, ".nii.gz", ("ann", "bob")).note_mask("x", with_probabilities=True)
        opened = PredictionFolder.open(tmp_path)
        assert not any(map(opened.has_other_mask, ("x", "y")))
        for case in ("x", "y"):
            write_mask(tmp_path / f"{case}.nii.gz", np.roll(written[case].model, 1))
        assert [case for case in ("x", "y") if opened.has_other_mask(case)] == ["x"]  # y's was not noted
        route_folder(tmp_path, tmp_path.with_name("routed"), limits=Limits(budget=0.1))
        assert PredictionFolder.open(tmp_path.with_name("routed")).has_other_mask("x")

    def test_probabilities_of_an_earlier_prediction_are_not_the_cases(self, tmp_path):
        write_prediction(tmp_path)
        for case in ("x", "y"):
            maps.save_routing(tmp_path, case, np.ones((3, 4, 6, 7), np.float32))
            np.savez(tmp_path / f"{case}.npz", probabilities=np.ones((3, 4, 6, 7), np.float32))
        deferral_folder(tmp_path, ".nii.gz", ("ann", "bob")).note_mask("x", with_probabilities=False)
        opened = PredictionFolder.open(tmp_path)
        for case, there in (("x", False), ("y", True)):  # y's were not noted
            assert (opened.has_softmax(case), opened.has_routing(case)) == (there, there)
            assert (opened.case(case).has("softmax"), opened.case(case).has("routing")) == (there, there)
        with pytest.raises(
            InputError, match=r"routing.x.npz is from an earlier prediction; the last one saved no prob"
        ):
            route_folder(tmp_path, tmp_path.with_name("routed"), limits=Limits())

    def test_regions_and_the_ignore_label_come_from_dataset_json(self, tmp_path):
        write_prediction(tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
        content = json.loads((tmp_path / "dataset.json").read_text()) | {"regions_class_order": [1, 2]}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        files = PredictionFolder.open(tmp_path).files
        assert list(files.regions) == [(1, 2), (2,)]
        assert files.label_values == (0, 1, 2)
        assert files.label_manager.ignore_label == 3

    def test_a_validation_folder_is_read_with_the_dataset_json_of_its_model(self, tmp_path):
        folder = tmp_path / "model" / "fold_0" / "validation"
        write_prediction(folder)
        (folder / "dataset.json").rename(tmp_path / "model" / "dataset.json")
        assert PredictionFolder.open(folder).cases == ("x", "y")

    def test_a_dataset_json_that_is_given_comes_first(self, tmp_path):
        write_prediction(tmp_path / "out")
        other = tmp_path / "other.json"
        other.write_text(json.dumps({"labels": {"background": 0, "one": 1}, "file_ending": ".nii.gz"}))
        assert PredictionFolder.open(tmp_path / "out", other).files.label_values == (0, 1)

    def test_those_who_are_asked_have_voxels_of_these_cases(self, tmp_path):
        write_prediction(tmp_path, experts=("ann", "bob", "eve"), routes_to=(0, 1, 3))
        assert PredictionFolder.open(tmp_path).asked() == ("ann", "eve")
        shutil.copy(maps.case_file(tmp_path, "x"), maps.case_file(tmp_path, "gone"))
        edit(maps.case_file(tmp_path, "gone"), lambda entry: entry.update(share={"ann": 0, "bob": 1, "eve": 0}))
        assert PredictionFolder.open(tmp_path).asked() == ("ann", "eve")

    def test_files_that_only_accompany_the_masks_are_no_cases(self, tmp_path):
        write_prediction(tmp_path)
        for name in ("plans.json", "._x.nii.gz", ".unfinished.nii.gz"):
            (tmp_path / name).write_text("{}")
        assert PredictionFolder.open(tmp_path).cases == ("x", "y")


class TestRefusals:
    def test_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(ValueError, match="the folder .*/nowhere does not exist"):
            PredictionFolder.open(tmp_path / "nowhere")

    def test_the_masks_of_a_stock_model(self, tmp_path):
        write_mask(tmp_path / "x.nii.gz", np.zeros((2, 3, 4), np.uint8))
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
        with pytest.raises(
            ValueError, match=r"has no deferral maps .*deferral.json is missing.*stock model, of nnUNetv2_ensemble"
        ):
            PredictionFolder.open(tmp_path)

    def test_all_maps_that_are_missing_are_listed(self, tmp_path):
        write_prediction(tmp_path)
        gone = [
            maps.route_file(tmp_path, "x", ".nii.gz"),
            maps.expert_file(tmp_path, "x", ".nii.gz"),
            maps.probability_file(tmp_path, "y", ".nii.gz"),
        ]
        for file in gone:
            file.unlink()
        with pytest.raises(ValueError, match=r"deferral maps are missing \(3\): ") as refused:
            PredictionFolder.open(tmp_path)
        assert all(str(file) in str(refused.value) for file in gone)

    def test_of_very_many_missing_maps_ten_are_listed(self, tmp_path):
        write_prediction(tmp_path, cases=[f"case{number:02}" for number in range(5)])
        for kind in ("route", "probability", "expert"):
            for file in (tmp_path / "deferral" / kind).iterdir():
                file.unlink()
        with pytest.raises(ValueError, match=r"missing \(15\): .* and 5 more"):
            PredictionFolder.open(tmp_path)

    def test_a_folder_without_dataset_json(self, tmp_path):
        write_prediction(tmp_path / "far" / "away")
        (tmp_path / "far" / "away" / "dataset.json").unlink()
        with pytest.raises(ValueError, match="no dataset.json in .*away; specify it with -djfile"):
            PredictionFolder.open(tmp_path / "far" / "away")

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            "{}",
            '{"labels": {"background": 0}}',
            '{"file_ending": ".nii.gz"}',
            '{"labels": {"one": 1}, "file_ending": ".nii.gz"}',
        ],
    )
    def test_a_dataset_json_that_is_none(self, tmp_path, content):
        write_prediction(tmp_path)
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(
            InputError, match="dataset.json(: nnU-Net does not accept| cannot be read: |: .* (missing|an object, got))"
        ):
            PredictionFolder.open(tmp_path)

    def test_a_dataset_json_that_is_given_and_not_there(self, tmp_path):
        write_prediction(tmp_path)
        with pytest.raises(ValueError, match="nowhere.json is missing"):
            PredictionFolder.open(tmp_path, tmp_path / "nowhere.json")

    def test_a_folder_without_masks_of_that_ending(self, tmp_path):
        write_prediction(tmp_path)
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nrrd"}))
        with pytest.raises(ValueError, match="has no masks with the file ending '.nrrd' of .*dataset.json"):
            PredictionFolder.open(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda index: index.pop("model"),
            lambda index: index["model"].pop("experts"),
            lambda index: index["model"].update(experts="ann"),
            lambda index: index["model"].update(experts=[]),
            lambda index: index.update(cases={"x": None}),
            lambda index: index["model"].update(dataset="Dataset702_Other"),
            lambda index: index["model"].update(experts=["bob", "ann"]),
            lambda index: index["model"].update(experts=["ann"]),
            lambda index: index["model"].update(experts=["../ann", "bob"]),
            lambda index: index.pop("settings"),
            lambda index: index["settings"].update(boundary_width=0.5),
            lambda index: index["settings"].update(experts=["ann"]),
        ],
    )
    def test_a_deferral_json_that_lacks_something(self, tmp_path, change):
        write_prediction(tmp_path)
        edit(maps.index_file(tmp_path), change)
        with pytest.raises(ValueError, match=re.escape(str(maps.index_file(tmp_path)))):
            PredictionFolder.open(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda entry: entry.pop("share"),
            lambda entry: entry.pop("largest_gain"),
            lambda entry: entry.update(share={"ann": float("nan"), "bob": 0}),
            lambda entry: entry.update(share={"ann": 0.5, "bob": 0, "eve": 0.1}),
            lambda entry: entry.update(deferral_rate="0.5"),
            lambda entry: entry.update(model="0123456789ab"),
        ],
    )
    def test_an_entry_that_is_not_of_this_prediction(self, tmp_path, change):
        write_prediction(tmp_path)
        file = maps.case_file(tmp_path, "x")
        edit(file, change)
        with pytest.raises(InputError, match=re.escape(str(file))):
            PredictionFolder.open(tmp_path)

    def test_a_case_without_an_entry(self, tmp_path):
        write_prediction(tmp_path)
        maps.case_file(tmp_path, "y").unlink()
        with pytest.raises(InputError, match=r"cases without an entry in .*deferral/cases.* y"):
            PredictionFolder.open(tmp_path)

    @pytest.mark.parametrize("content", ["", '{"model": {"experts": ["ann"', "[]", "null"])
    def test_a_deferral_json_that_is_broken(self, tmp_path, content):
        write_prediction(tmp_path)
        maps.index_file(tmp_path).write_text(content)
        with pytest.raises(ValueError, match=r"deferral.json(: the content must be an object| cannot be read: )"):
            PredictionFolder.open(tmp_path)

    @pytest.mark.parametrize("route", [3, 255, 256])
    def test_a_route_to_an_expert_who_does_not_exist(self, tmp_path, route):
        predicted = write_prediction(tmp_path)["x"]
        file = maps.route_file(tmp_path, "x", ".nii.gz")
        changed = predicted.route.astype(np.uint16)
        changed[0, 0, 0] = route
        write_mask(file, changed)
        with pytest.raises(ValueError, match=f"contains {route}, but must lie in .0, 2.") as refused:
            _ = PredictionFolder.open(tmp_path).case("x").route
        assert str(file) in str(refused.value)

    @pytest.mark.parametrize("kind", ["route", "probability", "expert"])
    def test_a_map_that_was_cut_short(self, tmp_path, kind):
        write_prediction(tmp_path, ending=".png")
        file = tmp_path / "deferral" / kind / "x.png"
        file.write_bytes(file.read_bytes()[:30])
        with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read; is it complete? (")):
            getattr(PredictionFolder.open(tmp_path).case("x"), kind)

    def test_cases_that_are_not_among_others_are_all_named(self):
        same_cases("references are missing", ["a"], ["a", "b"])
        with pytest.raises(ValueError, match=r"references are missing \(2\): c, d"):
            same_cases("references are missing", ["d", "a", "c"], ["a", "b"])


class TestCase:
    def test_a_case_that_was_not_predicted(self, tmp_path):
        write_prediction(tmp_path)
        with pytest.raises(InputError, match=re.escape(f"{tmp_path} has no case 'z'")):
            PredictionFolder.open(tmp_path).case("z")

    @pytest.mark.parametrize("used", ["model", "properties", "route", "probability", "expert", "gain"])
    def test_only_what_is_used_is_read_and_only_once(self, tmp_path, monkeypatch, used):
        write_prediction(tmp_path)
        opened, read = PredictionFolder.open(tmp_path), []
        stock = SimpleITKIO.read_seg
        monkeypatch.setattr(SimpleITKIO, "read_seg", lambda self, file: read.append(Path(file)) or stock(self, file))
        case = opened.case("x")
        assert read == []
        assert getattr(case, used) is getattr(case, used)
        mask, map_of_it = opened.mask_file("x"), tmp_path / "deferral" / used / "x.nii.gz"
        assert sorted(read) == sorted([mask] if used in ("model", "properties") else [mask, map_of_it])

    @pytest.mark.parametrize("kind", ["route", "probability", "expert", "gain"])
    def test_a_map_of_another_shape_than_its_mask(self, tmp_path, kind):
        write_prediction(tmp_path)
        file = tmp_path / "deferral" / kind / "y.nii.gz"
        write_mask(file, np.ones((4, 6, 8), np.uint8))
        case = PredictionFolder.open(tmp_path).case("y")
        with pytest.raises(InputError, match=re.escape(f"{file} has shape (4, 6, 8) instead of (4, 6, 7)")):
            getattr(case, kind)

    @pytest.mark.parametrize("expert", [0, 3])
    def test_a_voxel_that_would_be_asked_of_nobody(self, tmp_path, expert):
        predicted = write_prediction(tmp_path)["x"]
        file = maps.expert_file(tmp_path, "x", ".nii.gz")
        predicted.expert[0, 0, 0] = expert
        write_mask(file, predicted.expert)
        with pytest.raises(InputError, match=f"contains {expert}, but must lie in .1, 2."):
            _ = PredictionFolder.open(tmp_path).case("x").expert

    def test_a_gain_that_is_not_finite(self, tmp_path):
        write_prediction(tmp_path, ending=".png")
        edit(maps.case_file(tmp_path, "x"), lambda entry: entry.update(largest_gain=float("inf")))
        with pytest.raises(InputError, match=r"cases/x\.json: largest_gain must be a finite number, got inf"):
            PredictionFolder.open(tmp_path)

    def test_probabilities_are_there_where_they_were_saved(self, tmp_path):
        write_prediction(tmp_path)
        routing = np.random.default_rng(0).random((3, 4, 6, 7), dtype=np.float32)
        routing[:, 0] = np.nan
        maps.save_routing(tmp_path, "x", routing)
        np.savez(tmp_path / "x.npz", probabilities=np.zeros((3, 4, 6, 7), np.float32))
        opened = PredictionFolder.open(tmp_path)
        x, y = opened.case("x"), opened.case("y")
        assert [case.has(kind) for kind in ("routing", "softmax") for case in (x, y)] == [True, False, True, False]
        assert np.array_equal(x.routing, routing, equal_nan=True)
        assert np.array_equal(x.predicted, ~np.isnan(routing[0]))
        assert x.softmax.shape == (3, 4, 6, 7)
        with pytest.raises(InputError, match=re.escape(f"{opened.softmax_file('y')} cannot be read")):
            _ = y.softmax

    def test_probabilities_that_do_not_fit(self, tmp_path):
        write_prediction(tmp_path)
        maps.save_routing(tmp_path, "x", np.zeros((2, 4, 6, 7), np.float32))
        np.savez(tmp_path / "x.npz", probabilities=np.zeros((3, 4, 6, 8), np.float32))
        opened = PredictionFolder.open(tmp_path)
        expected = f"{opened.routing_file('x')} has shape (2, 4, 6, 7) instead of (3, 4, 6, 7)"
        with pytest.raises(InputError, match=re.escape(expected)):
            _ = opened.case("x").routing
        expected = f"{opened.softmax_file('x')} has shape (3, 4, 6, 8) instead of (3, 4, 6, 7)"
        with pytest.raises(InputError, match=re.escape(expected)):
            _ = opened.case("x").softmax

    @pytest.mark.parametrize("content", [b"no zip", b""])
    def test_probabilities_that_cannot_be_read(self, tmp_path, content):
        write_prediction(tmp_path)
        opened = PredictionFolder.open(tmp_path)
        opened.softmax_file("x").write_bytes(content)
        with pytest.raises(InputError, match=re.escape(f"{opened.softmax_file('x')} cannot be read")):
            _ = opened.case("x").softmax

    def test_a_case_as_if_something_had_not_been_saved(self, tmp_path):
        written = write_prediction(tmp_path)["x"]
        maps.save_routing(tmp_path, "x", np.zeros((3, 4, 6, 7), np.float32))
        case = PredictionFolder.open(tmp_path).case("x").without("routing", "softmax")
        assert not case.has("routing")
        assert np.array_equal(case.route, written.route)
        with pytest.raises(InputError, match="case x: array routing is missing"):
            _ = case.routing

    def test_an_orientation_that_is_none_names_the_mask(self, tmp_path):
        write_prediction(tmp_path)
        opened = PredictionFolder.open(tmp_path)
        assert opened.case("x").orientation.spacing_mm == pytest.approx((2.5, 0.7, 1.1))
        case = opened.case("x")
        case.properties["sitk_stuff"]["direction"] = (1.0,) * 9
        with pytest.raises(InputError, match=re.escape(f"{opened.mask_file('x')}: the axis directions of the volume")):
            _ = case.orientation
