"""Opening a folder of predictions: what is read, and what is refused before anything else happens."""

import json
import re

import numpy as np
import pytest
from small_prediction import LABELS, read_mask, reader_of, write_mask, write_prediction

from nnunetv2_deferral import maps
from nnunetv2_deferral.dataset import same_cases
from nnunetv2_deferral.predictions import PredictionFolder

ENDINGS = (".nii.gz", ".png", ".bmp")


def edit_index(folder, change):
    file = maps.index_file(folder)
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
            model, properties = opened.model(case)
            assert model.dtype == np.int64
            assert np.array_equal(model, predicted.model)
            assert properties["spacing"] == reader_of(ending).read_seg(str(tmp_path / f"{case}{ending}"))[1]["spacing"]
            for name in ("route", "expert"):
                found = getattr(opened, name)(case)
                assert found.dtype == np.uint8
                assert np.array_equal(found, getattr(predicted, name))

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_a_probability_is_a_float_between_0_and_1_however_it_is_stored(self, tmp_path, ending):
        written = write_prediction(tmp_path, ending=ending)
        opened = PredictionFolder.open(tmp_path)
        for case, predicted in written.items():
            found = opened.probability(case)
            assert found.dtype == np.float32
            stored = read_mask(maps.probability_file(tmp_path, case, ending)).max()
            step = 0 if ending == ".nii.gz" else 1 / (255 if ending == ".bmp" else 65535)
            assert (stored > 1) == (step > 0)
            assert np.abs(found - predicted.probability).max() <= step / 2 + 1e-7

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
        edit_index(
            tmp_path,
            lambda index: index["cases"].update(gone={"share": {"ann": 0, "bob": 1, "eve": 0}, "largest_gain": 0.0}),
        )
        assert PredictionFolder.open(tmp_path).asked() == ("ann", "eve")

    def test_files_that_only_accompany_the_masks_are_no_cases(self, tmp_path):
        write_prediction(tmp_path)
        for name in ("plans.json", "._x.nii.gz", ".unfinished.nii.gz"):
            (tmp_path / name).write_text("{}")
        assert PredictionFolder.open(tmp_path).cases == ("x", "y")


class TestRefusals:
    def test_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(ValueError, match="there is no folder .*/nowhere"):
            PredictionFolder.open(tmp_path / "nowhere")

    def test_the_masks_of_a_stock_model(self, tmp_path):
        write_mask(tmp_path / "x.nii.gz", np.zeros((2, 3, 4), np.uint8))
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
        with pytest.raises(ValueError, match=r"has no deferral maps .*deferral.json is missing.*stock model\?"):
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
        with pytest.raises(ValueError, match="no dataset.json in .*away; give it with -djfile"):
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
            ValueError, match="dataset.json(: nnU-Net does not accept| is not a valid dataset.json: | cannot be read: )"
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
            lambda index: index.pop("cases"),
            lambda index: index["cases"].update(x={"deferral_rate": 0.5}),
            lambda index: index["cases"].update(x={"share": {"ann": 0.5}}),
            lambda index: index["cases"].update(x=None),
        ],
    )
    def test_a_deferral_json_that_lacks_something(self, tmp_path, change):
        write_prediction(tmp_path)
        edit_index(tmp_path, change)
        with pytest.raises(ValueError, match=re.escape(str(maps.index_file(tmp_path)))):
            PredictionFolder.open(tmp_path)

    @pytest.mark.parametrize("content", ["", '{"model": {"experts": ["ann"', "[]", "null"])
    def test_a_deferral_json_that_is_broken(self, tmp_path, content):
        write_prediction(tmp_path)
        maps.index_file(tmp_path).write_text(content)
        with pytest.raises(ValueError, match=r"deferral.json cannot be read: "):
            PredictionFolder.open(tmp_path)

    @pytest.mark.parametrize("route", [3, 255, 256])
    def test_a_route_to_an_expert_who_does_not_exist(self, tmp_path, route):
        predicted = write_prediction(tmp_path)["x"]
        file = maps.route_file(tmp_path, "x", ".nii.gz")
        changed = predicted.route.astype(np.uint16)
        changed[0, 0, 0] = route
        write_mask(file, changed)
        with pytest.raises(ValueError, match=f"routes voxels to expert {route}, but .*names 2 experts") as refused:
            PredictionFolder.open(tmp_path).route("x")
        assert str(file) in str(refused.value)

    @pytest.mark.parametrize("kind", ["route", "probability", "expert"])
    def test_a_map_that_was_cut_short(self, tmp_path, kind):
        write_prediction(tmp_path, ending=".png")
        file = tmp_path / "deferral" / kind / "x.png"
        file.write_bytes(file.read_bytes()[:30])
        with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read: ")):
            getattr(PredictionFolder.open(tmp_path), kind)("x")

    def test_cases_that_are_not_among_others_are_all_named(self):
        same_cases("references are missing", ["a"], ["a", "b"])
        with pytest.raises(ValueError, match=r"references are missing \(2\): c, d"):
            same_cases("references are missing", ["d", "a", "c"], ["a", "b"])
