"""A limit of minutes over all cases that nnU-Net predicts, and where it cannot be kept."""

import numpy as np
import pytest
import torch
from small_prediction import write_mask
from small_predictor import small_predictor

from nnunetv2_deferral.commands import route, run
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.environment import ENVIRONMENT_MINUTES
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet import trainer  # noqa: F401  # replaces functions of nnU-Net
from nnunetv2_deferral.nnunet.in_memory import predict_array
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.worklist.table import region_rows

CASES = ("c0", "c1")


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    return small_predictor()


@pytest.fixture
def predictor(tmp_path, small):
    for number, case in enumerate(CASES):
        image = np.random.default_rng(number).integers(0, 200, (2, 32, 32)).astype(np.uint8)
        write_mask(tmp_path / "images" / f"{case}_0000.nii.gz", image)
    (tmp_path / "out").mkdir()
    return small


def predict(predictor, root, output, **how):
    (root / output).mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(str(root / "images"), str(root / output), **how)
    return PredictionFolder.open(root / output)


def lists_of(predictor, root, output="out", **how):
    """What nnU-Net would predict, before it does."""
    images = [[str(root / "images" / f"{case}_0000.nii.gz")] for case in CASES]
    return predictor._manage_input_and_output_lists(
        images, output if isinstance(output, list) else str(root / output), **how
    )


def minutes_of(folder):
    return region_rows(folder, folder.cases, WorkTime(), num_processes=1)["minutes"]


def test_a_prediction_keeps_them_over_all_cases_and_so_does_routing_its_probabilities(
    tmp_path, predictor, monkeypatch, capsys
):
    free = minutes_of(predict(predictor, tmp_path, "free", save_probabilities=True))
    assert len(free) > 2
    most = f"{free.sum() * 0.6:.3f}"
    monkeypatch.setenv(ENVIRONMENT_MINUTES, most)
    kept = predict(predictor, tmp_path, "out")
    found = minutes_of(kept)
    assert 0 < found.sum() <= float(most)
    said = capsys.readouterr().out
    assert f"Deferral: at most {float(most):.4g} minutes of work for all cases together" in said
    assert f"{len(found)} of {len(free)} regions in {found.sum():.1f} of {free.sum():.1f} minutes" in said
    assert f"{sum(kept.index['cases'][case]['deferral_rate'] for case in CASES) / 2:.2%} of the voxels" in said
    lists_of(predictor, tmp_path)  # of a prediction that is killed before its first case
    with pytest.raises(InputError, match="cases without an entry"):
        PredictionFolder.open(tmp_path / "out")
    monkeypatch.delenv(ENVIRONMENT_MINUTES)
    route.main(["-i", str(tmp_path / "free"), "-o", str(tmp_path / "routed"), "-minutes", most])
    routed = PredictionFolder.open(tmp_path / "routed")
    assert f"{len(found)} of {len(free)} regions" in capsys.readouterr().out
    for case in CASES:
        assert np.array_equal(routed.case(case).route, kept.case(case).route)
        assert routed.index["cases"][case]["minutes"] == pytest.approx(kept.index["cases"][case]["minutes"])


@pytest.mark.parametrize("how", [{"num_parts": 2}, {"overwrite": False}])
def test_in_parts_or_continued_they_cannot_be_kept(tmp_path, predictor, monkeypatch, how):
    monkeypatch.setenv(ENVIRONMENT_MINUTES, "30")
    with pytest.raises(InputError, match=r"nnUNet_deferral_minutes.*one call.*nnUNetv2_deferral_route -minutes 30"):
        lists_of(predictor, tmp_path, **how)
    monkeypatch.delenv(ENVIRONMENT_MINUTES)
    assert lists_of(predictor, tmp_path, **how)[0]
    for case in CASES:
        write_mask(tmp_path / "out" / f"{case}.nii.gz", np.zeros((2, 4, 4), np.uint8))
    monkeypatch.setenv(ENVIRONMENT_MINUTES, "30")
    with pytest.raises(InputError, match="one call"):
        lists_of(predictor, tmp_path, **how)  # also where nothing is missing


def test_a_folder_with_other_cases_is_refused(tmp_path, predictor, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_MINUTES, "30")
    write_mask(tmp_path / "out" / "other.nii.gz", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"has 1 cases that are not predicted now \(other\)"):
        lists_of(predictor, tmp_path)
    (tmp_path / "out" / "other.nii.gz").rename(tmp_path / "out" / "c1.nii.gz")
    assert len(lists_of(predictor, tmp_path)[0]) == 2
    with pytest.raises(InputError, match="into a folder of their own"):
        lists_of(predictor, tmp_path, [str(tmp_path / "out" / "c0"), str(tmp_path / "elsewhere" / "c1")])


def test_arrays_and_parts_of_an_archive_are_not_all_cases(tmp_path, predictor, monkeypatch, capsys):
    monkeypatch.setenv(ENVIRONMENT_MINUTES, "30")
    with pytest.raises(InputError, match="requires all cases at once"):
        predict_array(predictor, np.zeros((1, 1, 32, 32), np.float32), {"spacing": [1.0, 1.0, 1.0]})
    with pytest.raises(SystemExit):
        run.main(["-i", str(tmp_path / "images"), "-o", str(tmp_path / "run"), "-steps", "predict"])
    assert "requires all cases at once" in capsys.readouterr().err


def test_a_number_of_minutes_that_makes_no_sense_is_named(tmp_path, predictor, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_MINUTES, "half an hour")
    with pytest.raises(InputError, match="nnUNet_deferral_minutes must be a number of minutes, got 'half an hour'"):
        lists_of(predictor, tmp_path)
