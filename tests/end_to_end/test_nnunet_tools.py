"""What nnU-Net offers for trained models and their predictions: ensembles, postprocessing, sharing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from workplace import FLAT, Workplace, read

TESTED = ("test_6", "test_7")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_predictions(workplace: Workplace, flat_deferral_fold_1: Path, flat_prediction: Path) -> tuple[Path, Path]:
    """The prediction folders of two folds, with npz files."""
    output = workplace.root / "fold_1_prediction"
    workplace.predict(FLAT, "2d", "TinyDeferral3Experts", output, "--save_probabilities", folds=(1,))
    return flat_prediction, output


def test_ensembling_two_folders_averages_the_models_probabilities(
    workplace: Workplace, two_predictions: tuple[Path, Path], tmp_path: Path
) -> None:
    workplace.command("nnUNetv2_ensemble", "-i", *two_predictions, "-o", tmp_path / "both", "-np", 1)
    assert sorted(file.name for file in (tmp_path / "both").glob("*.png")) == [f"{case}.png" for case in TESTED]
    for case in TESTED:
        mean = np.mean([np.load(folder / f"{case}.npz")["probabilities"] for folder in two_predictions], axis=0)
        np.testing.assert_array_equal(read(tmp_path / "both" / f"{case}.png"), mean.argmax(0)[0])


@pytest.mark.usefixtures("flat_deferral_fold_1")
def test_the_best_configuration_is_found_and_its_postprocessing_applied(
    workplace: Workplace, flat_prediction: Path, tmp_path: Path
) -> None:
    workplace.command(
        "nnUNetv2_find_best_configuration", FLAT, "-c", "2d", "-tr", "TinyDeferral3Experts", "-f", 0, 1, "-np", 1
    )
    model = workplace.model(FLAT, "2d", "TinyDeferral3Experts")
    found = model / "crossval_results_folds_0_1"
    assert sorted(file.name for file in found.glob("*.png")) == [f"train_{index}.png" for index in (0, 1, 4, 5)]
    best = json.loads((workplace.results / FLAT / "inference_information.json").read_text())["best_model_or_ensemble"]
    assert best["selected_model_or_models"][0]["trainer"] == "TinyDeferral3Experts"

    workplace.command(
        "nnUNetv2_apply_postprocessing", "-i", flat_prediction, "-o", tmp_path / "processed", "-np", 1,
        "-pp_pkl_file", found / "postprocessing.pkl", "-plans_json", found / "plans.json",
    )  # fmt: skip
    assert sorted(file.name for file in (tmp_path / "processed").glob("*.png")) == [f"{case}.png" for case in TESTED]


def test_an_exported_model_predicts_the_same_where_it_is_installed(
    workplace: Workplace, flat_deferral: Path, flat_prediction: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "model.zip"
    workplace.command(
        "nnUNetv2_export_model_to_zip", "-d", FLAT, "-o", archive, "-c", "2d", "-tr", "TinyDeferral3Experts", "-f", 0
    )
    elsewhere = {"nnUNet_results": str(tmp_path / "results")}
    (tmp_path / "results").mkdir()
    workplace.command("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    assert (tmp_path / "results" / FLAT / flat_deferral.parent.name / "fold_0" / "checkpoint_final.pth").is_file()
    workplace.predict(FLAT, "2d", "TinyDeferral3Experts", tmp_path / "out", **elsewhere)
    for case in TESTED:
        for part in (".", "deferral/route", "deferral/probability"):
            np.testing.assert_array_equal(
                read(tmp_path / "out" / part / f"{case}.png"), read(flat_prediction / part / f"{case}.png")
            )
