"""The masks of folds through the stock command, for a deferral model and a stock one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from workplace import FLAT, Workplace, write_stock_twin

pytestmark = pytest.mark.slow
TRAINER = "TinyDeferral3Experts"


def compared(workplace: Workplace, together: Path, alone: dict[str, Path], plain: Path) -> None:
    """The masks of an ensemble and of its folds are the same files that predictions by themselves wrote."""
    for case in ("test_6", "test_7"):
        name = f"{case}.png"
        assert (together / name).read_bytes() == (plain / name).read_bytes()
        for fold, folder in alone.items():
            assert (together / "deferral" / "folds" / fold / name).read_bytes() == (folder / name).read_bytes()
        assert (together / "deferral" / "mutual_information" / name).is_file()
    assert not list(together.rglob(".unfinished*"))


def test_one_prediction_writes_what_each_fold_predicts(
    workplace: Workplace, flat_deferral: Path, flat_deferral_fold_1: Path, tmp_path: Path
) -> None:
    alone = {str(fold): tmp_path / str(fold) for fold in (0, 1)}
    for fold, output in alone.items():
        workplace.predict(FLAT, "2d", TRAINER, output, folds=(fold,))
    workplace.predict(FLAT, "2d", TRAINER, tmp_path / "plain", folds=(0, 1))
    workplace.predict(FLAT, "2d", TRAINER, tmp_path / "out", folds=(0, 1), nnUNet_deferral_folds="1")
    compared(workplace, tmp_path / "out", alone, tmp_path / "plain")
    workplace.predict(FLAT, "2d", TRAINER, tmp_path / "one", nnUNet_deferral_folds="1")
    mirrored = sorted(folder.name for folder in (tmp_path / "one" / "deferral" / "folds").iterdir())
    assert mirrored == ["mirrored_0", "mirrored_0_1", "mirrored_1", "unmirrored"]
    unmirrored = {"fails": True, "nnUNet_deferral_folds": "1"}
    done = workplace.predict(FLAT, "2d", TRAINER, tmp_path / "none", "--disable_tta", **unmirrored)
    assert done.stdout.splitlines()[-1].startswith("nnUNetv2_predict: error: ")


def test_our_command_does_it_for_a_stock_model(
    workplace: Workplace, flat_deferral: Path, flat_deferral_fold_1: Path, tmp_path: Path
) -> None:
    model = write_stock_twin(flat_deferral, workplace.model(FLAT, "2d", "nnUNetTrainer", "TwinPlans"))
    other = write_stock_twin(flat_deferral_fold_1, tmp_path / "other")
    shutil.copytree(other / "fold_0", model / "fold_1")
    stock = {"plans": "TwinPlans", "nnUNet_extTrainer": ""}
    alone = {str(fold): tmp_path / str(fold) for fold in (0, 1)}
    for fold, output in alone.items():
        workplace.predict(FLAT, "2d", "nnUNetTrainer", output, folds=(fold,), **stock)
    workplace.predict(FLAT, "2d", "nnUNetTrainer", tmp_path / "plain", folds=(0, 1), **stock)
    workplace.command(
        "nnUNetv2_deferral_uncertainty", "-d", FLAT, "-c", "2d", "-p", "TwinPlans", "-f", 0, 1,
        "-i", workplace.raw / FLAT / "imagesTs", "-o", tmp_path / "out", "-device", "cpu", "-npp", 1, "-nps", 1,
    )  # fmt: skip
    compared(workplace, tmp_path / "out", alone, tmp_path / "plain")
    assert not (tmp_path / "out" / "deferral" / "deferral.json").exists()
