"""Raters' masks from expertsTr to summaries and maps, through the stock commands and through nnU-Net's trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io
from torch.nn.functional import max_pool2d
from workplace import LABELS, SOLID, Workplace, predictor_of, preprocess, read, variant_of_flat, write_dataset

from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.maps import read_index, write_maps
from nnunetv2_deferral.nnunet.rater_data import experts_folder
from nnunetv2_deferral.nnunet.validation import summarize_validation

RATED, RATED_SOLID = "Dataset921_FlatRated", "Dataset922_SolidRated"
CASES = tuple(f"train_{index}" for index in range(6))
VALIDATED, TESTED = CASES[4:], ("test_6", "test_7")
ABSENT = ("train_1", "train_5")  # whom bob has not seen; the first is in the training part of fold 0
PROFILE = {"name": "sim", "foreground": 0.9, "background": 0.95, "boundary": 0.8}
LAST = "decoder.seg_layers.1."


def write_experts(raw: Path, ending: str) -> None:
    """Ann has the reference's files. Bob sees no core, and lacks two cases."""
    shutil.copytree(raw / "labelsTr", raw / "expertsTr" / "ann")
    (raw / "expertsTr" / "bob").mkdir()
    for case in set(CASES) - set(ABSENT):
        write_like(raw / "labelsTr" / f"{case}{ending}", raw / "expertsTr" / "bob", lambda mask: mask.clip(max=1))


def write_like(file: Path, folder: Path, change: Any) -> Path:
    """A changed copy of a mask, in its geometry."""
    target = folder / file.name
    if file.suffix == ".png":
        io.imsave(target, change(io.imread(file)), check_contrast=False)
        return target
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(target))
    return target


@pytest.fixture(scope="module")
def rated(workplace: Workplace) -> str:
    """The 2D dataset with two raters."""
    dataset = variant_of_flat(workplace, RATED, LABELS, experts=["ann", "bob"])
    write_experts(workplace.raw / dataset, ".png")
    return dataset


@pytest.fixture(scope="module")
def rated_solid(workplace: Workplace) -> str:
    """The 3D dataset with two raters, declared after it was planned and preprocessed."""
    write_dataset(workplace, RATED_SOLID)
    source, folder = workplace.preprocessed / SOLID, workplace.preprocessed / RATED_SOLID
    folder.mkdir()
    for name in ("dataset_fingerprint.json", "splits_final.json"):
        shutil.copy(source / name, folder)
    plans = json.loads((source / "nnUNetPlans.json").read_text()) | {"dataset_name": RATED_SOLID}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess(workplace, RATED_SOLID)
    raw = workplace.raw / RATED_SOLID
    write_experts(raw, ".nii.gz")
    content = json.loads((raw / "dataset.json").read_text()) | {"experts": ["ann", "bob"]}
    (raw / "dataset.json").write_text(json.dumps(content))
    return RATED_SOLID


@pytest.fixture(scope="module")
def rated_fold(workplace: Workplace, rated: str) -> Path:
    """The fold folder of a training with both raters."""
    return workplace.train(rated, "2d", 0, "TinyDeferral")


def cases_of(summary: dict[str, Any]) -> list[str]:
    return sorted(case["case"] for case in summary["metric_per_case"])


def other_dataset(workplace: Workplace, source: str, name: str) -> str:
    """A copy of a dataset with raters, to be damaged."""
    shutil.copytree(workplace.raw / source, workplace.raw / name)
    shutil.copytree(
        workplace.preprocessed / source, workplace.preprocessed / name, ignore=shutil.ignore_patterns("*_experts")
    )
    file = workplace.preprocessed / name / "nnUNetPlans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset_name": name}))
    return name


class TestTraining:
    def test_the_summary_has_the_raters_by_their_names(self, rated_fold: Path) -> None:
        summary = json.loads((rated_fold / "validation" / "deferral_summary.json").read_text())
        everywhere = summary["expert_everywhere"]
        assert list(everywhere) == ["ann", "bob"]
        assert sorted(summary["deferral"]["share"]) == ["ann", "bob"]
        assert summary["experts"]["experts"] == ["ann", "bob"]
        assert everywhere["ann"]["foreground_mean"]["Dice"] == 1
        assert everywhere["bob"]["mean"]["2"]["Dice"] == 0
        # An expert alone is scored on the cases that the expert has seen.
        assert cases_of(everywhere["ann"]) == list(VALIDATED)
        assert cases_of(everywhere["bob"]) == ["train_4"]
        for case, rates in summary["deferral"]["per_case"].items():
            route = read(rated_fold / "validation" / "deferral" / "route" / f"{case}.png")
            to_bob = (route == 2).sum() / max((route > 0).sum(), 1)
            assert rates["unanswered"] == pytest.approx(to_bob if case in ABSENT else 0)

    def test_the_model_folder_says_who_they_are(self, rated_fold: Path) -> None:
        block = json.loads((rated_fold.parent / "plans.json").read_text())["deferral"]
        assert (block["num_experts"], block["experts"], block["costs"]) == (2, ["ann", "bob"], [0.05, 0.05])
        log = next(rated_fold.glob("training_log_*.txt")).read_text()
        assert "Experts' masks: 6 cases preprocessed, the others are up to date" in log
        assert "Deferral to 2 experts: ann (rater), bob (rater)" in log

    def test_stock_trainers_see_the_cases_and_not_the_raters(self, workplace: Workplace, rated_fold: Path) -> None:
        trainer = workplace.trainer("TinyStock", RATED, "2d")
        trainer.on_train_start()
        assert sorted(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)) == list(CASES)
        assert next(trainer.dataloader_train)["target"][0].shape == (2, 1, 32, 32)

    def test_a_prediction_needs_nothing_of_the_dataset(
        self, workplace: Workplace, rated_fold: Path, tmp_path: Path
    ) -> None:
        for folder in ("raw", "preprocessed"):
            (tmp_path / folder).mkdir()
        elsewhere = {f"nnUNet_{folder}": str(tmp_path / folder) for folder in ("raw", "preprocessed")}
        images = workplace.raw / RATED / "imagesTs"
        workplace.predict(RATED, "2d", "TinyDeferral", tmp_path / "out", images=images, **elsewhere)
        index = read_index(tmp_path / "out")
        assert index["model"]["experts"] == index["settings"]["experts"] == ["ann", "bob"]
        assert sorted(index["cases"]) == list(TESTED)
        for case in TESTED:
            assert read(tmp_path / "out" / "deferral" / "route" / f"{case}.png").max() <= 2

    def test_the_second_training_finds_the_masks_ready(self, workplace: Workplace, rated_fold: Path) -> None:
        folder = experts_folder(workplace.preprocessed / RATED / "nnUNetPlans_2d")
        before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.b2nd")}
        assert len(before) == len(CASES)
        workplace.trainer("TinyDeferral", RATED, "2d", fold=1).on_train_start()
        assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.b2nd")} == before

    @pytest.mark.slow
    def test_in_3d_with_a_process_that_augments(self, workplace: Workplace, rated_solid: str) -> None:
        fold = workplace.train(rated_solid, "3d_fullres", 0, "TinyDeferral", own_process=True, nnUNet_n_proc_DA="1")
        summary = json.loads((fold / "validation" / "deferral_summary.json").read_text())
        assert summary["expert_everywhere"]["ann"]["foreground_mean"]["Dice"] == 1
        output = workplace.root / "rated_solid"
        workplace.predict(rated_solid, "3d_fullres", "TinyDeferral", output)
        fused = workplace.root / "rated_solid_fused"
        # For test images there are no answers; ann's are made up here from the references.
        experts = workplace.root / "rated_solid_experts"
        for expert in ("ann", "bob"):
            shutil.copytree(workplace.raw / rated_solid / "labelsTs", experts / expert)
        workplace.command("nnUNetv2_deferral_fuse", "-i", output, "-experts", experts, "-o", fused)
        for case in TESTED:
            route = read(output / "deferral" / "route" / f"{case}.nii.gz")
            reference = read(workplace.raw / rated_solid / "labelsTs" / f"{case}.nii.gz")
            expected = np.where(route > 0, reference, read(output / f"{case}.nii.gz"))
            np.testing.assert_array_equal(read(fused / f"{case}.nii.gz"), expected)

    @pytest.mark.slow
    def test_stock_commands_train_on_the_dataset_as_ever(self, workplace: Workplace, rated: str) -> None:
        fold = workplace.train(rated, "2d", 0, "TinyStock")
        assert sorted(file.stem for file in (fold / "validation").glob("*.png")) == list(VALIDATED)


class TestPanels:
    def test_a_list_in_the_plans_mixes_raters_and_simulated_experts(self, workplace: Workplace, rated: str) -> None:
        block = {"experts": ["bob", PROFILE, "ann"], "lower": [0.0] * 3, "upper": [1.0] * 3}
        plans = workplace.derive_plans(rated, "Mixed", lambda plans: plans.update(deferral=block))
        trainer = workplace.trainer("TinyDeferral3Experts", rated, "2d", plans=plans)
        trainer.on_train_start()
        trainer.network.train()
        losses = trainer.train_step(next(trainer.dataloader_train))
        assert all(np.isfinite(value) for value in losses.values())
        missing = 0
        for _ in range(12):
            batch = next(trainer.dataloader_train)
            reference, (bob, sim, ann) = batch["target"][0][:, 0], batch["target"][-1].movedim(1, 0)
            assert torch.equal(ann, reference)
            assert not torch.equal(sim, reference)
            for case, seen, expected in zip(batch["keys"], bob, reference, strict=True):
                if case in ABSENT:
                    missing += int((seen == MISSING).sum())
                else:
                    # Where three labels meet, a voxel between them may go to another than where two of them are one.
                    background, core = (
                        max_pool2d((expected == label)[None].float(), 3, stride=1, padding=1)[0] > 0 for label in (0, 2)
                    )
                    assert ((seen == expected.clamp(max=1)) | (background & core)).all()
        assert missing > 0
        with torch.no_grad():
            counts = trainer.validation_step(next(trainer.dataloader_val))
        assert counts["routed"].shape == (4,)

    def test_in_a_validation_step_an_absent_rater_is_not_asked(self, workplace: Workplace, rated: str) -> None:
        trainer = workplace.trainer("TinyDeferral", rated, "2d")
        trainer.on_train_start()
        trainer.network.decoder.seg_layers[-1].routing.bias.data[2] = 50.0
        with torch.no_grad():
            for _ in range(6):
                batch = next(trainer.dataloader_val)
                known = batch["target"][-1][:, 1] != MISSING
                routed = trainer.validation_step(batch)["routed"]
                assert routed[2] == known.sum()
                assert routed.sum() == known.numel()

    def test_3d_raters_are_aligned_with_a_reference_that_was_cropped_and_resampled(
        self, workplace: Workplace, rated_solid: str
    ) -> None:
        for configuration in ("2d", "3d_fullres"):
            trainer = workplace.trainer("TinyDeferral", rated_solid, configuration)
            trainer.on_train_start()
            for loader in (trainer.dataloader_train, trainer.dataloader_val):
                for _ in range(8):
                    target = next(loader)["target"]
                    assert torch.equal(target[-1][:, :1], target[0])

    def test_regions_and_the_ignore_label_work_with_raters(self, workplace: Workplace) -> None:
        labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
        dataset = variant_of_flat(
            workplace, "Dataset923_FlatRatedRegions", labels, regions_class_order=[1, 2], experts=["ann", "bob"]
        )
        write_experts(workplace.raw / dataset, ".png")
        trainer = workplace.trainer("TinyDeferral", dataset, "2d")
        trainer.on_train_start()
        trainer.network.train()
        assert all(np.isfinite(value) for value in trainer.train_step(next(trainer.dataloader_train)).values())
        for _ in range(6):
            regions, ann = (next(trainer.dataloader_train)["target"][place] for place in (0, -1))
            assert set(ann.unique().tolist()) <= {MISSING, 0, 1, 2}
        batch = next(trainer.dataloader_train)
        regions, ann = batch["target"][0], batch["target"][-1][:, 0]
        assert torch.equal(ann == 2, regions[:, 1])
        assert torch.equal(ann == MISSING, regions[:, 2])


class TestUnavailable:
    @pytest.fixture
    def bobs_model(self, rated_fold: Path, tmp_path: Path) -> Path:
        """A copy of the model that sends every voxel to bob, and if he cannot be asked to ann."""
        model = tmp_path / "model"
        shutil.copytree(rated_fold.parent, model, ignore=shutil.ignore_patterns("validation"))
        file = model / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        checkpoint["network_weights"][f"{LAST}routing.bias"] += torch.tensor([0.0, 20.0, 40.0])
        torch.save(checkpoint, file)
        return model

    def routes(self, workplace: Workplace, model: Path, output: Path) -> np.ndarray:
        output.mkdir()
        predictor = predictor_of(model)
        reader = predictor.plans_manager.image_reader_writer_class()
        for case in TESTED:
            image = reader.read_images([str(workplace.raw / RATED / "imagesTs" / f"{case}_0000.png")])
            predictor.predict_single_npy_array(*image, output_file_truncated=str(output / case))
        return np.stack([read(output / "deferral" / "route" / f"{case}.png") for case in TESTED])

    @pytest.mark.parametrize("budget", [None, "0.6"])
    def test_an_edit_of_a_trained_models_plans_keeps_voxels_from_an_expert(
        self,
        workplace: Workplace,
        bobs_model: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        budget: str | None,
    ) -> None:
        if budget is not None:
            monkeypatch.setenv("nnUNet_deferral_budget", budget)
        before = self.routes(workplace, bobs_model, tmp_path / "before")
        assert (before == 2).mean() > 0.5
        plans = json.loads((bobs_model / "plans.json").read_text())
        plans["deferral"]["unavailable"] = ["bob"]
        (bobs_model / "plans.json").write_text(json.dumps(plans))
        after = self.routes(workplace, bobs_model, tmp_path / "after")
        assert not (after == 2).any()
        assert (after == 1).mean() > 0.5
        for case in TESTED:
            assert (read(tmp_path / "after" / "deferral" / "expert" / f"{case}.png") == 1).all()

    def test_the_map_of_whom_to_ask_never_names_an_expert_who_is_not_available(
        self, workplace: Workplace, bobs_model: Path, tmp_path: Path
    ) -> None:
        plans = json.loads((bobs_model / "plans.json").read_text())
        plans["deferral"]["unavailable"] = ["ann"]
        (bobs_model / "plans.json").write_text(json.dumps(plans))
        assert not (self.routes(workplace, bobs_model, tmp_path / "out") == 1).any()
        for case in TESTED:
            assert (read(tmp_path / "out" / "deferral" / "expert" / f"{case}.png") == 2).all()

    @pytest.mark.slow
    def test_a_training_without_an_expert_routes_nothing_there(self, workplace: Workplace, rated: str) -> None:
        plans = workplace.derive_plans(rated, "NoAnn", lambda plans: plans.update(deferral={"unavailable": ["ann"]}))
        fold = workplace.train(rated, "2d", 0, "TinyDeferral", plans=plans)
        output = workplace.root / "no_ann"
        workplace.predict(rated, "2d", "TinyDeferral", output, plans=plans)
        for folder, cases in ((fold / "validation", VALIDATED), (output, TESTED)):
            for case in cases:
                assert not (read(folder / "deferral" / "route" / f"{case}.png") == 1).any()
        share = json.loads((fold / "validation" / "deferral_summary.json").read_text())["deferral"]["share"]
        assert share["ann"] == 0


class TestWithoutLabels:
    """A rater without labels in the training cases of a fold."""

    @pytest.fixture
    def dataset(self, workplace: Workplace, rated: str) -> Iterator[str]:
        """Bob has labelled only a case of the validation of fold 0, which is a training case of fold 1."""
        dataset = other_dataset(workplace, rated, "Dataset930_FlatUnlabelled")
        bob = workplace.raw / dataset / "expertsTr" / "bob"
        for file in bob.iterdir():
            if file.name != "train_4.png":
                file.unlink()
        yield dataset
        for folder in (workplace.raw, workplace.preprocessed, workplace.results):
            shutil.rmtree(folder / dataset, ignore_errors=True)

    def test_nothing_is_routed_there_and_the_log_says_why(self, workplace: Workplace, dataset: str) -> None:
        trainer = workplace.trainer("TinyDeferral", dataset, "2d")
        trainer.initialize()  # as for pretrained weights, before the training starts
        trainer.on_train_start()
        assert trainer.settings.unavailable == trainer.loss.settings.unavailable == ("bob",)
        fold = Path(trainer.output_folder)
        (log,) = fold.glob("training_log_*.txt")
        assert "Labelled cases of the 4 training cases: ann 4, bob 0" in log.read_text()
        assert "WARNING: bob has no label in the 4 training cases of fold 0" in log.read_text()
        assert json.loads((fold.parent / "plans.json").read_text())["deferral"]["unavailable"] == ["bob"]
        planned = json.loads((workplace.preprocessed / dataset / "nnUNetPlans.json").read_text())
        assert "deferral" not in planned
        trainer.network.decoder.seg_layers[-1].routing.bias.data[2] = 50.0
        with torch.no_grad():
            for _ in range(4):
                assert trainer.validation_step(next(trainer.dataloader_val))["routed"][2] == 0

    def test_a_validation_in_another_process_routes_nothing_there(self, workplace: Workplace, dataset: str) -> None:
        workplace.trainer("TinyDeferral", dataset, "2d").on_train_start()
        trainer = workplace.trainer("TinyDeferral", dataset, "2d")
        trainer.initialize()
        trainer.network.decoder.seg_layers[-1].routing.bias.data[2] = 50.0
        trainer.perform_actual_validation()
        folder = Path(trainer.output_folder) / "validation"
        for case in VALIDATED:
            assert not (read(folder / "deferral" / "route" / f"{case}.png") == 2).any()
        index = read_index(folder)
        assert index["model"]["unavailable"] == index["settings"]["unavailable"] == ["bob"]

    def test_another_fold_learns_about_the_rater_but_predictions_use_all_folds(
        self, workplace: Workplace, dataset: str
    ) -> None:
        for order in ((0, 1), (1, 0)):
            for fold in order:
                trainer = workplace.trainer("TinyDeferral", dataset, "2d", fold=fold)
                trainer.on_train_start()
                assert trainer.settings.unavailable == (() if fold else ("bob",))
            model = Path(trainer.output_folder).parent
            assert json.loads((model / "plans.json").read_text())["deferral"]["unavailable"] == ["bob"]
            said = "".join(log.read_text() for log in (model / "fold_1").glob("training_log_*.txt"))
            assert "bob has labels in only 1 of the 4 training cases of fold 1 (" in said
            assert ("predictions with this model route nothing to bob" in said) == (order == (0, 1))
            shutil.rmtree(model)

    def test_with_nobody_else_the_training_does_not_start(self, workplace: Workplace, dataset: str) -> None:
        for file in (workplace.raw / dataset / "expertsTr" / "ann").iterdir():
            if file.name != "train_5.png":
                file.unlink()
        trainer = workplace.trainer("TinyDeferral", dataset, "2d")
        with pytest.raises(InputError, match="no labels of ann, bob in the 4 training cases of fold 0"):
            trainer.on_train_start()
        assert not (Path(trainer.output_folder).parent / "plans.json").exists()


class TestRefusals:
    def test_a_trainer_for_another_number_of_experts_names_both_sides(self, workplace: Workplace, rated: str) -> None:
        for name in ("nnUNetTrainerDeferral3Experts", "nnUNetTrainerDeferral1Expert"):
            with pytest.raises(ValueError, match="conflicting numbers of experts") as refused:
                workplace.trainer(name, rated, "2d")
            assert f"the trainer says {name.removeprefix('nnUNetTrainerDeferral')[0]}" in str(refused.value)
            assert '"experts" in dataset.json (ann, bob) says 2' in str(refused.value)
            assert not workplace.model(rated, "2d", name).exists()

    def test_plans_that_name_a_rater_whom_the_dataset_does_not_have(self, workplace: Workplace, rated: str) -> None:
        block = {"experts": ["ann", "eve"]}
        plans = workplace.derive_plans(rated, "Stranger", lambda plans: plans.update(deferral=block))
        with pytest.raises(ValueError, match="names the raters 'eve', but dataset.json declares ann, bob"):
            workplace.trainer("nnUNetTrainerDeferral", rated, "2d", plans=plans)

    def test_faulty_masks_stop_the_training_before_its_first_epoch_with_all_faults(
        self, workplace: Workplace, rated: str
    ) -> None:
        dataset = other_dataset(workplace, rated, "Dataset924_FlatFaulty")
        experts, labels = workplace.raw / dataset / "expertsTr", workplace.raw / dataset / "labelsTr"
        wrong = write_like(labels / "train_0.png", experts / "ann", lambda mask: mask + 7)
        small = write_like(labels / "train_3.png", experts / "bob", lambda mask: mask[1:])
        cut = experts / "ann" / "train_5.png"
        cut.write_bytes(cut.read_bytes()[:40])
        arguments = (dataset, "2d", 0, "-tr", "TinyDeferral", "-device", "cpu")
        said = workplace.command("nnUNetv2_train", *arguments, fails=True).stdout
        assert "3 problem(s) in the experts' masks of" in said
        for fault in (
            f"{wrong}: contains labels that are not in dataset.json: 7, 8, 9",
            f"{small}: shape (1, 39, 48), but the image has (1, 40, 48)",
            f"{cut} cannot be read",
        ):
            assert fault in said
        fold = workplace.model(dataset, "2d", "TinyDeferral") / "fold_0"
        assert not list(fold.glob("checkpoint_*.pth"))
        assert "Epoch 0" not in said
        assert not list(experts_folder(workplace.preprocessed / dataset / "nnUNetPlans_2d").glob("*.b2nd"))

    def test_a_checkpoint_of_other_raters_names_both_panels(
        self, workplace: Workplace, rated: str, rated_fold: Path
    ) -> None:
        for experts, described in ((["bob", "ann"], "bob, ann"), ("standard", "expert1, expert2")):
            block = {"experts": experts, "num_experts": 2}
            plans = workplace.derive_plans(rated, "Others", lambda plans, block=block: plans.update(deferral=block))
            trainer = workplace.trainer("TinyDeferral", rated, "2d", plans=plans)
            with pytest.raises(ValueError, match="with other experts") as refused:
                trainer.load_checkpoint(str(rated_fold / "checkpoint_final.pth"))
            assert "(ann, bob)" in str(refused.value)
            assert f"({described})" in str(refused.value)


class TestWithoutTheRawDataset:
    def test_training_takes_the_masks_that_were_preprocessed_before(
        self, workplace: Workplace, rated: str, rated_fold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("nnUNet_raw", str(tmp_path))
        trainer = workplace.trainer("TinyDeferral", rated, "2d")
        assert trainer.settings.raters == ("ann", "bob")
        trainer.on_train_start()
        target = next(trainer.dataloader_train)["target"]
        assert torch.equal(target[-1][:, :1], target[0])

    def test_without_any_the_training_does_not_start(
        self, workplace: Workplace, rated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset = other_dataset(workplace, rated, "Dataset925_FlatElsewhere")
        monkeypatch.setenv("nnUNet_raw", str(tmp_path))
        trainer = workplace.trainer("TinyDeferral", dataset, "2d")
        with pytest.raises(ValueError, match="ann, bob are not preprocessed for 6 of 6 cases .*nnUNet_raw"):
            trainer.on_train_start()

    def test_there_is_no_summary_rather_than_a_wrong_one(
        self, workplace: Workplace, rated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("nnUNet_raw", str(tmp_path))
        trainer = workplace.trainer("TinyDeferral", rated, "2d")
        assert summarize_validation(trainer, trainer.settings) is None


def test_masks_that_fit_their_image_are_not_refused_at_the_end_for_a_label_file_that_does_not(
    workplace: Workplace, rated_solid: str
) -> None:
    """nnU-Net only warns of a label whose origin is not the image's. Such a dataset trains, and must end well, too."""
    dataset = other_dataset(workplace, rated_solid, "Dataset926_SolidShifted")
    references = workplace.preprocessed / dataset / "gt_segmentations"
    for folder in (references, workplace.raw / dataset / "labelsTr"):
        for file in folder.iterdir():
            image = sitk.ReadImage(str(file))
            image.SetOrigin((0.0, 0.0, 0.0))
            sitk.WriteImage(image, str(file))
    trainer = workplace.trainer("TinyDeferral", dataset, "3d_fullres")
    trainer.on_train_start()
    validation = Path(trainer.output_folder) / "validation"
    validation.mkdir(parents=True)
    reader = SimpleITKIO()
    for case in VALIDATED:
        shutil.copy(references / f"{case}.nii.gz", validation)
        mask, properties = reader.read_seg(str(validation / f"{case}.nii.gz"))
        nothing = np.zeros(mask.shape[1:], dtype=np.float32)
        maps = RoutingMaps(nothing.astype(np.uint8), nothing, np.ones(nothing.shape, np.uint8), nothing)
        write_maps(
            validation, case, maps, properties, writer=reader, file_ending=".nii.gz", experts=trainer.settings.experts
        )
    summary = summarize_validation(trainer, trainer.settings)
    assert list(summary["expert_everywhere"]) == ["ann", "bob"]
