"""What a dataset.json calls the labels, and which files are a case's image."""

import json
import re

import pytest

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError

PLAIN = {"background": 0, "rim": 1, "core": 2}


def files_of(folder, labels=PLAIN, *, ending=".nii.gz", **content):
    """A dataset.json that was planned with, so that no label file is needed to choose a reader."""
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    file = folder / "dataset.json"
    file.write_text(json.dumps({"labels": labels, "file_ending": ending} | content))
    return DatasetFiles.of(file, folder / f"none{ending}")


class TestLabelNames:
    def test_plain_labels_are_named_as_dataset_json_names_them(self, tmp_path):
        names = files_of(tmp_path, {"core": 2, "background": 0, "rim": 1}).label_names
        assert list(names.items()) == [(0, "background"), (1, "rim"), (2, "core")]

    def test_the_ignore_label_is_none_of_them(self, tmp_path):
        assert files_of(tmp_path, PLAIN | {"ignore": 3}).label_names == {0: "background", 1: "rim", 2: "core"}

    def test_with_regions_a_label_is_named_after_all_regions_that_it_lies_in(self, tmp_path):
        labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": [3], "ignore": 4}
        names = files_of(tmp_path, labels, regions_class_order=[1, 2, 3]).label_names
        assert list(names.items()) == [
            (0, "background"),
            (1, "whole"),
            (2, "whole + core"),
            (3, "whole + core + active"),
        ]
        as_number = labels | {"active": 3}  # nnU-Net takes either for a region of one label
        assert files_of(tmp_path, as_number, regions_class_order=[1, 2, 3]).label_names == names

    def test_regions_that_do_not_overlap_name_their_own_labels_only(self, tmp_path):
        labels = {"background": 0, "left": [1, 3], "right": [2]}
        names = files_of(tmp_path, labels, regions_class_order=[1, 2]).label_names
        assert names == {0: "background", 1: "left", 2: "right", 3: "left"}


class TestImageFiles:
    @pytest.fixture(params=[".nii.gz", ".png"])
    def ending(self, request):
        return request.param

    def write(self, folder, *names):
        for name in names:
            (folder / name).touch()

    def test_a_file_is_named_after_case_and_channel(self, tmp_path, ending):
        files = files_of(tmp_path, ending=ending)
        assert files.image_file(tmp_path, "x") == tmp_path / f"x_0000{ending}"
        assert files.image_file(tmp_path, "x", 12) == tmp_path / f"x_0012{ending}"

    def test_channels_are_in_their_order(self, tmp_path, ending):
        files = files_of(tmp_path, ending=ending)
        for channel in (11, 3, 0, 7, 9, 1, 10, 2, 5, 4, 6, 8):
            self.write(tmp_path, f"x_{channel:04d}{ending}")
        found = files.image_files(tmp_path, "x")
        assert [file.name for file in found] == [f"x_{channel:04d}{ending}" for channel in range(12)]
        assert found == [files.image_file(tmp_path, "x", channel) for channel in range(12)]

    def test_files_of_other_cases_and_of_other_kinds_are_not_among_them(self, tmp_path, ending):
        files = files_of(tmp_path, ending=ending)
        others = [f"x_1_0000{ending}", f"x_0000_0000{ending}", f"x_0000_0001{ending}", f"ax_0001{ending}"]
        self.write(tmp_path, *others, f"x_0000{ending}", f"x{ending}", f"x_001{ending}", f"x_00001{ending}")
        self.write(tmp_path, "x_0001.txt", f"x_000a{ending}", f".x_0001{ending}", f"X_0001{ending}")
        assert files.image_files(tmp_path, "x") == [tmp_path / f"x_0000{ending}"]
        assert files.image_files(tmp_path, "x_1") == [tmp_path / f"x_1_0000{ending}"]
        assert files.image_files(tmp_path, "x_0000") == [tmp_path / f"x_0000_000{channel}{ending}" for channel in "01"]

    def test_a_case_without_an_image_has_no_files(self, tmp_path, ending):
        files = files_of(tmp_path, ending=ending)
        self.write(tmp_path, f"xy_0000{ending}", f"x{ending}")
        assert files.image_files(tmp_path, "x") == []

    def test_a_case_may_be_named_in_signs_that_mean_something_in_patterns(self, tmp_path, ending):
        files = files_of(tmp_path, ending=ending)
        self.write(tmp_path, f"a[1]_0000{ending}", f"a1_0000{ending}", f"a[1]b_0001{ending}")
        assert files.image_files(tmp_path, "a[1]") == [tmp_path / f"a[1]_0000{ending}"]

    @pytest.mark.parametrize("channels", [(0, 2), (0, 1, 4), (1, 2), (1,)])
    def test_a_missing_channel_before_others_is_refused_naming_its_file(self, tmp_path, ending, channels):
        files = files_of(tmp_path, ending=ending)
        self.write(tmp_path, *(f"x_{channel:04d}{ending}" for channel in channels), f"x_a_0001{ending}")
        missing = next(channel for channel in range(5) if channel not in channels)
        message = f"{tmp_path / f'x_{missing:04d}{ending}'} is missing"
        with pytest.raises(InputError, match=re.escape(message)):
            files.image_files(tmp_path, "x")
