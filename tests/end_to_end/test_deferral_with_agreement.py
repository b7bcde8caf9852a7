"""Deferral with a network that also learns how far raters agree (_MR), through the stock commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_multi_rater import RATERS, TESTED, check_maps, with_three_raters
from workplace import Workplace, read

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.network import deferral_head
from nnunetv2_deferral.predictions import PredictionFolder

AGREED = "Dataset933_FlatAgreed"
TRAINER = "TinyDeferralMR"


@pytest.fixture(scope="module")
def agreed(workplace: Workplace) -> str:
    """The dataset with three raters."""
    return with_three_raters(workplace, AGREED)


@pytest.fixture(scope="module")
def fold(workplace: Workplace, agreed: str) -> Path:
    """The fold folder of a training, with npz files."""
    return workplace.train(agreed, "2d", 0, TRAINER, "--npz")


@pytest.fixture(scope="module")
def predicted(workplace: Workplace, agreed: str, fold: Path) -> Path:
    """A prediction of the test images with probabilities, half of whose voxels are deferred."""
    output = workplace.root / "agreed"
    workplace.predict(agreed, "2d", TRAINER, output, "--save_probabilities", nnUNet_deferral_budget="0.5")
    return output


def test_the_validation_has_the_maps_of_deferral_and_of_agreement(fold: Path) -> None:
    validation = fold / "validation"
    for case in ("train_4", "train_5"):
        check_maps(validation, case, ".png")
        assert read(validation / "deferral" / "route" / f"{case}.png").max() <= 3
    summary = json.loads((validation / "deferral_summary.json").read_text())
    assert sorted(summary["deferral"]["share"]) == RATERS
    assert set(summary["deferral"]["disagreement"]) == {"kept", "deferred"}
    block = json.loads((fold.parent / "plans.json").read_text())["deferral"]
    assert block["multi_rater"] is True
    assert block["objective"] == "one_vs_all"


def test_predictions_have_both_kinds_of_maps_and_lists_say_where_to_ask_two(
    workplace: Workplace, predicted: Path, tmp_path: Path
) -> None:
    folder = PredictionFolder.open(predicted)
    for name in TESTED:
        check_maps(predicted, name, ".png")
        case = folder.case(name)
        of_structures = [read(file) / 65535 for file in folder.disagreement_files(name)]
        np.testing.assert_allclose(case.disagreement[0], np.max(of_structures, axis=0), atol=1e-6)
    workplace.command("nnUNetv2_deferral_worklist", "-i", predicted, "-o", tmp_path / "list", "--no_pictures")
    rows = json.loads((tmp_path / "list" / "worklist.json").read_text())["regions"]
    assert rows
    for row in rows:
        case = folder.case(row["case"])
        mask = read(tmp_path / "list" / row["mask"])
        expected = case.disagreement[0][mask == row["label"]].mean()
        assert row["disagreement"] == pytest.approx(expected, abs=1e-4)
        assert ("ask two" in row["why"]) == (expected >= 0.5)
    with (tmp_path / "list" / "worklist.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [float(row["disagreement"]) for row in listed] == [row["disagreement"] for row in rows]


def test_another_decision_keeps_the_maps_of_agreement(workplace: Workplace, predicted: Path, tmp_path: Path) -> None:
    workplace.command("nnUNetv2_deferral_route", "-i", predicted, "-o", tmp_path / "anew", "-budget", 0.1)
    before, after = (PredictionFolder.open(folder) for folder in (predicted, tmp_path / "anew"))
    for name in TESTED:
        check_maps(tmp_path / "anew", name, ".png")
        np.testing.assert_array_equal(before.case(name).disagreement, after.case(name).disagreement)
        assert (after.case(name).route > 0).mean() <= 0.1


def test_a_missing_map_of_disagreement_is_named(predicted: Path) -> None:
    file = predicted / "deferral" / "disagreement" / "2" / "test_7.png"
    away = file.rename(file.with_suffix(".away"))
    try:
        with pytest.raises(InputError, match=r"deferral maps are missing \(1\): .*disagreement/2/test_7.png"):
            PredictionFolder.open(predicted)
    finally:
        away.rename(file)


def test_a_frozen_head_is_trained_on_a_network_of_the_trainer_for_several_raters(
    workplace: Workplace, agreed: str, tmp_path: Path
) -> None:
    pretrained, weights = workplace.trainer("TinyMultiRater", AGREED, "2d"), tmp_path / "checkpoint_final.pth"
    pretrained.initialize()
    pretrained.save_checkpoint(str(weights))
    trainer = workplace.trainer("nnUNetTrainerDeferral_OvA_MR_frozen", AGREED, "2d")
    trainer.load_pretrained_weights(str(weights))
    trainer.on_train_start()
    trainer.network.train()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    changed = {name for name, value in trainer.network.state_dict().items() if not (value == before[name]).all()}
    assert changed
    head = dict(deferral_head(trainer.network).named_parameters())
    assert {name.partition("seg_layers.1.")[2] for name in changed} <= set(head)
    assert not any(".segmentation." in name for name in changed)


def test_a_frozen_head_refuses_the_network_of_another_trainer(
    workplace: Workplace, agreed: str, flat_stock: Path
) -> None:
    trainer = workplace.trainer("nnUNetTrainerDeferral_OvA_MR_frozen", AGREED, "2d")
    with pytest.raises(InputError, match=r"do not match this network.*one of nnUNetTrainerMultiRater"):
        trainer.load_pretrained_weights(str(flat_stock / "checkpoint_final.pth"))


def test_simulated_experts_have_no_agreement_to_learn(workplace: Workplace, agreed: str) -> None:
    plans = workplace.derive_plans(agreed, "Simulated", lambda plans: plans.update(deferral={"experts": "standard"}))
    with pytest.raises(InputError, match=r"_MR\) learns how far raters agree, .* \(simulated: "):
        workplace.trainer("nnUNetTrainerDeferral3Experts_MR", agreed, "2d", plans=plans)


def test_a_training_without_a_case_of_two_raters_is_refused(
    workplace: Workplace, agreed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {f"train_{index}": {"ann": 9, "bob": 0, "eve": 0} for index in range(6)}
    monkeypatch.setattr("nnunetv2_deferral.nnunet.trainer.labelled_voxels", lambda _folder: alone)
    trainer = workplace.trainer("nnUNetTrainerDeferral_OvA_MR", agreed, "2d")
    with pytest.raises(InputError, match=r"no training case of fold 0 was labelled by two .* of 4: ann 4, bob 0, eve"):
        trainer._count_labels()


def test_the_agreement_of_a_prediction_is_compared_with_raters(
    workplace: Workplace, predicted: Path, tmp_path: Path
) -> None:
    for rater in ("ann", "bob"):
        shutil.copytree(workplace.raw / AGREED / "labelsTs", tmp_path / "raters" / rater)
    workplace.command(
        "nnUNetv2_deferral_evaluate_raters", "-i", predicted, "-raters", tmp_path / "raters", "-o", tmp_path / "found"
    )
    found = json.loads((tmp_path / "found" / "rater_calibration.json").read_text())
    assert set(found["calibration"]["1"]) == {"probability", "agreement"}
