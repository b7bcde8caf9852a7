"""Learning from several raters through the stock commands: training, resume, prediction, maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from workplace import LABELS, SOLID, Workplace, preprocess, read, variant_of_flat, write_dataset

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.multi_rater.rater_targets import majority_label

RATED, RATED_SOLID = "Dataset931_FlatRaters", "Dataset932_SolidRaters"
RATERS = ["ann", "bob", "eve"]
CASES = tuple(f"train_{index}" for index in range(6))
TESTED = ("test_6", "test_7")
KINDS = ("agreement", "disagreement")


def write_raters(raw: Path, ending: str) -> None:
    """Ann has the reference's files, bob sees no core and lacks a case, eve sees nothing."""
    from test_real_experts import write_like

    for rater, change in {
        "ann": lambda mask: mask,
        "bob": lambda mask: mask.clip(max=1),
        "eve": lambda m: 0 * m,
    }.items():
        folder = raw / "expertsTr" / rater
        folder.mkdir(parents=True)
        for case in CASES:
            if (rater, case) != ("bob", "train_1"):
                write_like(raw / "labelsTr" / f"{case}{ending}", folder, change)


def with_three_raters(workplace: Workplace, dataset: str) -> str:
    """Write the 2D dataset, two classes, with three raters, under a name."""
    variant_of_flat(workplace, dataset, LABELS, experts=RATERS)
    write_raters(workplace.raw / dataset, ".png")
    return dataset


@pytest.fixture(scope="module")
def rated(workplace: Workplace) -> str:
    """The dataset with three raters."""
    return with_three_raters(workplace, RATED)


@pytest.fixture(scope="module")
def fold(workplace: Workplace, rated: str) -> Path:
    """The fold folder of a training, with npz files."""
    return workplace.train(rated, "2d", 0, "TinyMultiRater", "--npz")


def expected_maps(folder: Path, case: str) -> dict[str, np.ndarray]:
    """The maps that follow from the saved probabilities of the levels."""
    with np.load(folder / "deferral" / "levels" / f"{case}.npz") as content:
        levels = content["probabilities"]
    assert levels.shape[:2] == (2, 4)
    np.testing.assert_allclose(levels.sum(1), 1, atol=1e-5)
    shares = (levels * np.arange(4).reshape(1, -1, *[1] * (levels.ndim - 2)) / 3).sum(1)
    return {"agreement": shares, "disagreement": 1 - levels[:, 0] - levels[:, -1]}


def check_maps(folder: Path, case: str, ending: str) -> None:
    mask = read(folder / f"{case}{ending}")
    for kind, values in expected_maps(folder, case).items():
        for number in (1, 2):
            found = read(folder / "deferral" / kind / str(number) / f"{case}{ending}")
            scale = 65535 if ending == ".png" else 1
            assert found.shape == mask.shape
            np.testing.assert_allclose(found / scale, np.squeeze(values[number - 1]), atol=1e-4)


def test_the_validation_has_masks_as_stock_and_maps_beside_them(fold: Path) -> None:
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == ["train_4.png", "train_5.png"]
    for case in ("train_4", "train_5"):
        check_maps(fold / "validation", case, ".png")
        with np.load(fold / "validation" / f"{case}.npz") as content:
            probabilities = content["probabilities"]
        assert probabilities.shape[0] == 3
        np.testing.assert_array_equal(probabilities.argmax(0)[0], read(fold / "validation" / f"{case}.png"))
    content = json.loads((fold / "validation" / "deferral" / "multi_rater.json").read_text())
    assert content["model"]["raters"] == RATERS
    assert content["structures"] == {"1": "rim", "2": "core"}
    assert json.loads((fold.parent / "plans.json").read_text())["multi_rater"]["raters"] == RATERS
    log = next(fold.glob("training_log_*.txt")).read_text()
    assert "Labelled cases of the 4 training cases: ann 4, bob 3, eve 4" in log


def test_a_prediction_needs_nothing_of_the_dataset(workplace: Workplace, fold: Path, tmp_path: Path) -> None:
    for folder in ("raw", "preprocessed"):
        (tmp_path / folder).mkdir()
    elsewhere = {f"nnUNet_{folder}": str(tmp_path / folder) for folder in ("raw", "preprocessed")}
    images, output = workplace.raw / RATED / "imagesTs", tmp_path / "out"
    workplace.predict(RATED, "2d", "TinyMultiRater", output, "--save_probabilities", images=images, **elsewhere)
    for case in TESTED:
        check_maps(output, case, ".png")


def test_a_training_continues_only_with_the_same_raters(workplace: Workplace, fold: Path) -> None:
    trainer = workplace.trainer("TinyMultiRater", RATED, "2d")
    trainer.load_checkpoint(str(fold / "checkpoint_final.pth"))
    assert trainer.current_epoch == 2
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    checkpoint["init_args"]["plans"]["multi_rater"]["raters"] = ["ann", "bob"]
    with pytest.raises(InputError, match="trained with the raters ann, bob, but dataset.json declares ann, bob, eve"):
        trainer.load_checkpoint(checkpoint)


@pytest.mark.parametrize("method", ["Majority", "MeanLabel", "Random"])
def test_the_other_methods_train_stock_networks(workplace: Workplace, rated: str, method: str) -> None:
    trainer = workplace.trainer(f"TinyMultiRater{method}", rated, "2d")
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    assert len(batch["target"]) == (3 if method == "MeanLabel" else 2)
    assert np.isfinite(trainer.train_step(batch)["loss"])
    trainer.network.eval()
    with torch.no_grad():
        counts = trainer.validation_step(next(trainer.dataloader_val))
    assert counts["tp_hard"].shape == (2,)
    assert trainer.network(batch["data"])[0].shape[1] == 3


def test_the_target_is_the_majority_of_those_who_saw_the_case(workplace: Workplace, rated: str) -> None:
    trainer = workplace.trainer("TinyMultiRater", rated, "2d")
    trainer.on_train_start()
    seen = set()
    for _ in range(20):
        batch = next(trainer.dataloader_train)
        target, masks = batch["target"][0][:, 0], batch["target"][-1]
        for case, found, each in zip(batch["keys"], target, masks, strict=True):
            ann, bob, eve = each  # ann has the reference's masks
            assert (eve == 0).all()
            assert (bob == MISSING).all() == (case == "train_1")
            assert torch.equal(found, majority_label(ann[None], each, (1, 2))[0])
            # Of those who saw the case, two of three see the rim, and where one sees a core the reference counts.
            assert (found == ann).float().mean() > 0.95
            seen.add(case)
    assert "train_1" in seen


def test_a_fold_with_another_number_of_raters_is_refused(workplace: Workplace, fold: Path) -> None:
    file = workplace.raw / RATED / "dataset.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"experts": ["ann", "bob"]}))
        trainer = workplace.trainer("TinyMultiRater", RATED, "2d", fold=1)
        with pytest.raises(
            InputError, match="fold_0 of this model learned from ann, bob, eve, but .* now declares ann"
        ):
            trainer.on_train_start()
    finally:
        file.write_text(before)


def test_fewer_than_two_raters_are_refused_with_what_to_use_instead(workplace: Workplace, rated: str) -> None:
    file = workplace.raw / rated / "dataset.json"
    before = file.read_text()
    try:
        for experts, named in (([], "none"), (["ann"], "only ann")):
            file.write_text(json.dumps(json.loads(before) | {"experts": experts}))
            with pytest.raises(InputError, match=f"declares {named} under .* For one rater, train nnUNetTrainer"):
                workplace.trainer("TinyMultiRater", rated, "2d")
    finally:
        file.write_text(before)


@pytest.mark.slow
def test_in_3d_with_regions_and_a_process_that_augments(workplace: Workplace) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    write_dataset(workplace, RATED_SOLID, labels, regions_class_order=[1, 2], experts=RATERS)
    source, folder = workplace.preprocessed / SOLID, workplace.preprocessed / RATED_SOLID
    folder.mkdir()
    for name in ("dataset_fingerprint.json", "splits_final.json"):
        shutil.copy(source / name, folder)
    plans = json.loads((source / "nnUNetPlans.json").read_text()) | {"dataset_name": RATED_SOLID}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess(workplace, RATED_SOLID)
    write_raters(workplace.raw / RATED_SOLID, ".nii.gz")
    workplace.train(RATED_SOLID, "3d_fullres", 0, "TinyMultiRater", "--npz", nnUNet_n_proc_DA="1")
    output = workplace.root / "solid_raters"
    workplace.predict(RATED_SOLID, "3d_fullres", "TinyMultiRater", output, "--save_probabilities")
    for case in TESTED:
        check_maps(output, case, ".nii.gz")
    without = workplace.root / "solid_raters_without"
    workplace.predict(RATED_SOLID, "3d_fullres", "TinyMultiRater", without)
    for kind in KINDS:
        first, second = (read(folder / "deferral" / kind / "1" / "test_6.nii.gz") for folder in (output, without))
        np.testing.assert_allclose(first, second, atol=1e-4)
