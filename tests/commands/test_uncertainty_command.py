"""`nnUNetv2_deferral_uncertainty`: what it passes on to nnU-Net, and what it refuses before."""

import inspect
import os
import sys

import pytest
from nnunetv2.inference import predict_from_raw_data

from nnunetv2_deferral.commands import parsers, uncertainty
from nnunetv2_deferral.environment import ENVIRONMENT_FOLDS
from nnunetv2_deferral.errors import InputError


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The options for a model with the folds 0 and 1."""
    model = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    monkeypatch.setattr(uncertainty, "get_output_folder", lambda *_names: str(model))
    for fold in "01":
        (model / f"fold_{fold}").mkdir(parents=True)
        (model / f"fold_{fold}" / "checkpoint_final.pth").touch()
    return ["-i", str(tmp_path), "-o", str(tmp_path / "out"), "-d", "1", "-c", "2d", "-f", "0", "1"]


def test_every_option_is_one_of_nnunets():
    stock = inspect.getsource(predict_from_raw_data.predict_entry_point)
    ours = [each.option_strings[0] for each in parsers.uncertainty()._actions if each.dest not in ("help", "version")]
    assert [option for option in ours if f"'{option}'" not in stock] == []
    assert len(ours) == stock.count("add_argument('-")


def test_nnunet_predicts_with_all_options_as_they_are(words, monkeypatch, capsys):
    called = []
    program = list(sys.argv)
    monkeypatch.setattr(
        uncertainty, "predict_entry_point", lambda: called.append((sys.argv, os.environ[ENVIRONMENT_FOLDS]))
    )
    uncertainty.main([*words, "--disable_tta", "-npp", "1"])
    assert called == [(["nnUNetv2_predict", *words, "--disable_tta", "-npp", "1"], "1")]
    assert (sys.argv, ENVIRONMENT_FOLDS in os.environ) == (program, False)
    assert "mutual_information" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-f", "0", "--disable_tta"], "at least two or a single one with mirroring (without --disable_tta), got 0"),
        (["-f", "1", "1"], "different folds (-f) are required, at least two or a single one with mirroring"),
        (["-f", "0", "3"], "checkpoints are missing (1): "),
        (["-chk", "best.pth"], "checkpoints are missing (2): "),
        (["-num_parts", "2", "-part_id", "2"], "-part_id must lie in 0 to 1, got 2"),
        (["-i", "nowhere"], "the folder of images nowhere does not exist"),
    ],
)
def test_what_is_not_there_is_named(words, monkeypatch, capsys, more, message):
    monkeypatch.setattr(uncertainty, "predict_entry_point", lambda: pytest.fail("must not be called"))
    with pytest.raises(SystemExit) as ended:
        uncertainty.main([*words, *more])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_refused_during_the_prediction_is_one_line_too(words, monkeypatch, capsys):
    def refuse():
        raise InputError("out already contains the masks of folds of another prediction")

    monkeypatch.setattr(uncertainty, "predict_entry_point", refuse)
    with pytest.raises(SystemExit):
        uncertainty.main(words)
    assert "error: out already contains" in capsys.readouterr().err
