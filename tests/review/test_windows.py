"""The grey-level windows of each channel."""

import json

import pytest
from small_review import open_review, write_volumes

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.review.windows import EIGHT_BITS, check_windows, windows_of


def names(channels, chosen=(), *, colour=False, eight_bits=False):
    found = windows_of(channels, dict(chosen), colour=colour, eight_bits=eight_bits)
    return [[window["name"] for window in windows] for windows in found]


@pytest.mark.parametrize("name", ["CT", "ct", "CT venous", "portal_ct", "LDCT/CT"])
def test_channels_with_the_word_ct_have_windows_in_hounsfield_units(name):
    assert names([name]) == [["Percentiles 0.5–99.5", "Lung", "Mediastinum", "Bone", "Brain", "Liver"]]


@pytest.mark.parametrize("name", ["T1", "ADC", "octa", "fact", "0"])
def test_other_channels_have_percentiles(name):
    assert names([name])[0][1:] == ["Percentiles 2–98", "Percentiles 5–95", "Percentiles 0–100"]


def test_each_channel_has_its_own_windows_and_dataset_json_has_the_last_word():
    chosen = {"1": {"Bone": [300, 1500]}, "2": {"Uptake": [5, 10]}}
    assert [len(windows) for windows in names(["CT", "T2", "PET"], chosen)] == [6, 2, 2]
    assert windows_of(["CT", "CT"], chosen, colour=False, eight_bits=False)[1][1] == {
        "name": "Bone", "centre": 300, "width": 1500
    }  # fmt: skip


def test_pictures_are_shown_as_they_are():
    assert windows_of(["RGB"], {}, colour=True, eight_bits=True) == [[EIGHT_BITS]]
    assert names(["0"], eight_bits=True)[0][:2] == ["Full range 0–255", "Percentiles 0.5–99.5"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"CT": {"Lung": [-600, 1500]}}, "no channel 'CT'; windows are listed by number of the channel, '0', '1'"),
        ({"2": {}}, "there is no channel '2'"),
        ({"0": {"Lung": [-600, 0]}}, "'Lung' has the width 0; a window is [level, width]"),
    ],
)
def test_windows_that_could_not_be_shown_are_refused(chosen, words):
    check_windows({"0": {"Lung": [-600, 1500]}}, 2)
    with pytest.raises(InputError) as refused:
        check_windows(chosen, 2)
    assert words in str(refused.value)


def test_a_review_with_such_windows_does_not_start(tmp_path):
    folders = write_volumes(tmp_path)
    file = folders.predictions / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"windows": {"CT": {"Lung": [-600, 1500]}}}))
    with pytest.raises(InputError, match="there is no channel 'CT'"):
        open_review(folders)
