"""Training and predicting with the stock commands: what lies where afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from workplace import FLAT, SOLID, Workplace, read

from nnunetv2_deferral.maps import mask_checksum, read_index

VALIDATED = ("train_4", "train_5")
TESTED = ("test_6", "test_7")


def assert_maps(folder: Path, cases: tuple[str, ...], ending: str, num_experts: int = 3) -> None:
    """Masks, maps and index of exactly these cases are there, in their types and in agreement with each other."""
    names = sorted(f"{case}{ending}" for case in cases)
    assert sorted(file.name for file in folder.glob(f"*{ending}")) == names
    for kind in ("route", "probability"):
        assert sorted(file.name for file in (folder / "deferral" / kind).iterdir()) == names
    index = read_index(folder)
    assert sorted(index["cases"]) == sorted(cases)
    experts = index["model"]["experts"]
    assert experts == [f"expert{number}" for number in range(1, num_experts + 1)]
    for case in cases:
        mask, route, probability = (
            read(folder / part / f"{case}{ending}") for part in (".", "deferral/route", "deferral/probability")
        )
        assert mask.shape == route.shape == probability.shape
        assert route.dtype == np.uint8
        assert route.max() <= num_experts
        assert probability.dtype == (np.uint16 if ending == ".png" else np.float32)
        probability = probability / 65535 if ending == ".png" else probability
        assert 0 <= probability.min() < probability.max() <= 1
        # A voxel that is deferred was not the model's with certainty, one with p < 1 / (J + 1) cannot be deferred.
        assert probability[route > 0].min(initial=1) > 0.45
        rates = index["cases"][case]
        assert rates["mask"] == mask_checksum(folder / f"{case}{ending}")
        assert rates["probabilities"] == (folder / f"{case}.npz").is_file()
        assert rates["deferral_rate"] == pytest.approx((route > 0).mean())
        assert list(rates["share"].values()) == pytest.approx([(route == j + 1).mean() for j in range(num_experts)])


def scores_without_deferral_folder(workplace: Workplace, folder: Path, dataset: str, tmp_path: Path) -> tuple:
    """The scores of nnUNetv2_evaluate_folder for a folder, and for a copy of it without `deferral/`."""
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("deferral"))
    references = workplace.raw / dataset / "labelsTs"
    for each in (folder, bare):
        workplace.command(
            "nnUNetv2_evaluate_folder", references, each, "-djfile", each / "dataset.json", "-pfile",
            each / "plans.json", "-np", 1,
        )  # fmt: skip
    both = [json.loads((each / "summary.json").read_text()) for each in (folder, bare)]
    for summary in both:
        for case in summary["metric_per_case"]:
            del case["prediction_file"]
    return tuple(both)


class TestTraining:
    def test_a_2d_fold_holds_masks_and_maps_of_its_validation_cases(self, flat_deferral: Path) -> None:
        assert_maps(flat_deferral / "validation", VALIDATED, ".png")

    def test_a_3d_fold_holds_masks_and_maps_of_its_validation_cases(self, solid_deferral: Path) -> None:
        assert_maps(solid_deferral / "validation", VALIDATED, ".nii.gz")

    def test_npz_files_of_a_fold_hold_the_models_classes_alone(self, flat_deferral: Path) -> None:
        for case in VALIDATED:
            probabilities = np.load(flat_deferral / "validation" / f"{case}.npz")["probabilities"]
            assert probabilities.shape == (3, 1, 40, 48)
            np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
            mask = read(flat_deferral / "validation" / f"{case}.png")
            np.testing.assert_array_equal(probabilities.argmax(0)[0], mask)

    def test_experts_are_drawn_in_the_step_where_the_environment_says_so(
        self, flat_deferral: Path, flat_deferral_fold_1: Path
    ) -> None:
        said = "Simulated experts are drawn in each step on cpu"
        (log,) = flat_deferral_fold_1.glob("training_log_*.txt")
        assert said in log.read_text()
        assert all(said not in log.read_text() for log in flat_deferral.glob("training_log_*.txt"))
        summary = json.loads((flat_deferral_fold_1 / "validation" / "deferral_summary.json").read_text())
        assert 0 < summary["deferral"]["rate"] < 1

    def test_a_validation_has_all_maps_whatever_predictions_shall_have(self, flat_deferral_fold_1: Path) -> None:
        folder = flat_deferral_fold_1 / "validation"
        cases = tuple(sorted(file.stem for file in folder.glob("*.png")))
        assert cases
        assert_maps(folder, cases, ".png")
        of_aggregated = [folder / "deferral" / "aggregated" / f"{case}.png" for case in cases]
        assert all(0 < read(file).max() <= 65535 for file in of_aggregated)

    def test_something_is_deferred_after_a_few_iterations(self, flat_deferral: Path, solid_deferral: Path) -> None:
        for fold in (flat_deferral, solid_deferral):
            summary = json.loads((fold / "validation" / "deferral_summary.json").read_text())
            assert 0 < summary["deferral"]["rate"] <= 1

    def test_the_summaries_agree_where_they_speak_of_the_same(self, flat_deferral: Path) -> None:
        validation = flat_deferral / "validation"
        ours, stock = (
            json.loads((validation / f"{name}.json").read_text()) for name in ("deferral_summary", "summary")
        )
        assert ours["model_everywhere"]["foreground_mean"]["Dice"] == pytest.approx(stock["foreground_mean"]["Dice"])
        for label in ("1", "2"):
            assert ours["model_everywhere"]["mean"][label]["TP"] == pytest.approx(stock["mean"][label]["TP"])
        rates = read_index(validation)["cases"]
        for case, found in ours["deferral"]["per_case"].items():
            assert found == {key: rates[case][key] for key in ("deferral_rate", "share")} | {"unanswered": 0}

    def test_experts_in_the_summary_are_good_but_not_perfect(self, solid_deferral: Path) -> None:
        summary = json.loads((solid_deferral / "validation" / "deferral_summary.json").read_text())
        dice = [each["foreground_mean"]["Dice"] for each in summary["expert_everywhere"].values()]
        assert len(dice) == 3
        assert all(0.6 < value < 1 for value in dice)

    def test_the_fold_shows_its_progress(self, flat_deferral: Path) -> None:
        assert (flat_deferral / "progress.png").stat().st_size > 0
        picture = read(flat_deferral / "deferral_progress.png")
        assert picture.ndim == 3
        assert picture.std() > 0
        log = next(flat_deferral.glob("training_log_*.txt")).read_text()
        for line in (
            "Deferral to 3 experts: expert1 (simulated, independent), expert2 (simulated, independent), "
            "expert3 (simulated, independent)",
            "train losses: segmentation ",
            "pseudo Dice of the system ",
            "Dice of the model ",
        ):
            assert line in log
        assert log.count("pseudo Dice of the system ") == 2

    def test_a_subclass_that_shortens_the_training_has_a_shorter_warm_up(self, workplace: Workplace) -> None:
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d")
        assert trainer.num_epochs == 2
        assert trainer.warmup_epochs == 0
        trainer.num_epochs = 40
        assert trainer.warmup_epochs == 4

    def test_the_model_folder_says_which_experts_it_was_trained_for(self, flat_deferral: Path) -> None:
        plans = json.loads((flat_deferral.parent / "plans.json").read_text())
        assert plans["deferral"]["num_experts"] == 3
        assert [expert["foreground"] for expert in plans["deferral"]["experts"]] == [0.92, 0.85, 0.75]
        assert plans["deferral_model"] == {
            "trainer": "TinyDeferral3Experts",
            "has_regions": False,
            "segmentation_layer": "decoder.seg_layers.1",
        }

    def test_the_plans_of_the_dataset_stay_stock(self, workplace: Workplace, flat_deferral: Path) -> None:
        plans = json.loads((workplace.preprocessed / FLAT / "nnUNetPlans.json").read_text())
        assert not [key for key in plans if "deferral" in key]


class TestPrediction:
    def test_2d_images_get_masks_and_maps(self, flat_prediction: Path) -> None:
        assert_maps(flat_prediction, TESTED, ".png")

    def test_3d_images_get_masks_and_maps(self, solid_prediction: Path) -> None:
        assert_maps(solid_prediction, TESTED, ".nii.gz")

    def test_maps_lie_where_the_image_lies(self, workplace: Workplace, solid_prediction: Path) -> None:
        for case in TESTED:
            image = sitk.ReadImage(str(workplace.raw / SOLID / "imagesTs" / f"{case}_0000.nii.gz"))
            for part in (".", "deferral/route", "deferral/probability"):
                written = sitk.ReadImage(str(solid_prediction / part / f"{case}.nii.gz"))
                assert written.GetSize() == image.GetSize()
                assert written.GetSpacing() == pytest.approx(image.GetSpacing())
                assert written.GetOrigin() == pytest.approx(image.GetOrigin())
                assert written.GetDirection() == pytest.approx(image.GetDirection())

    def test_what_nnunet_crops_away_is_the_models(self, workplace: Workplace, solid_prediction: Path) -> None:
        for case in TESTED:
            image = read(workplace.raw / SOLID / "imagesTs" / f"{case}_0000.nii.gz")
            route, probability = (
                read(solid_prediction / "deferral" / kind / f"{case}.nii.gz") for kind in ("route", "probability")
            )
            border = np.ones(image.shape, bool)
            border[2:-2, 2:-2, 2:-2] = False
            assert not route[border].any()
            assert not probability[border].any()
            assert probability[~border].all()

    def test_evaluation_is_not_disturbed_by_the_maps_in_2d(
        self, workplace: Workplace, flat_prediction: Path, tmp_path: Path
    ) -> None:
        with_maps, without = scores_without_deferral_folder(workplace, flat_prediction, FLAT, tmp_path)
        assert len(with_maps["metric_per_case"]) == len(TESTED)
        assert with_maps == without

    @pytest.mark.slow
    def test_evaluation_is_not_disturbed_by_the_maps_in_3d(
        self, workplace: Workplace, solid_prediction: Path, tmp_path: Path
    ) -> None:
        with_maps, without = scores_without_deferral_folder(workplace, solid_prediction, SOLID, tmp_path)
        assert len(with_maps["metric_per_case"]) == len(TESTED)
        assert with_maps == without

    @pytest.mark.slow
    @pytest.mark.usefixtures("flat_deferral", "flat_deferral_fold_1")
    def test_several_folds_without_mirroring_predict_the_mean(self, workplace: Workplace) -> None:
        outputs = {}
        for folds in ((0,), (1,), (0, 1)):
            outputs[folds] = workplace.root / f"folds_{'_'.join(map(str, folds))}"
            workplace.predict(
                FLAT, "2d", "TinyDeferral3Experts", outputs[folds], "--disable_tta", "--save_probabilities", folds=folds
            )
            assert_maps(outputs[folds], TESTED, ".png")
        first, second, both = (np.load(output / "test_6.npz")["probabilities"] for output in outputs.values())
        assert not np.allclose(first, second)
        # Folds are averaged as logits, so the log-odds of two classes are averaged too (in nnU-Net's half precision).
        inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # of what nnU-Net crops away
        odds = [np.log(each[1] / each[0]) for each in (first[inside], second[inside], both[inside])]
        np.testing.assert_allclose(odds[2], (odds[0] + odds[1]) / 2, atol=0.02)

    @pytest.mark.slow
    def test_parts_predicted_into_one_folder_make_one_index(self, workplace: Workplace, flat_deferral: Path) -> None:
        output = workplace.root / "parts"
        for part in (0, 1):
            workplace.predict(FLAT, "2d", "TinyDeferral3Experts", output, "-num_parts", 2, "-part_id", part)
        assert_maps(output, TESTED, ".png")

    @pytest.mark.slow
    def test_a_continued_prediction_adds_what_is_missing_and_leaves_the_rest(
        self, workplace: Workplace, flat_prediction: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "again"
        shutil.copytree(flat_prediction, output)
        kept = output / "deferral" / "route" / "test_6.png"
        before = kept.stat().st_mtime_ns
        for part in (".", "deferral/route", "deferral/probability"):
            (output / part / "test_7.png").unlink()
        (output / "test_7.npz").unlink()  # which is not saved again
        workplace.predict(FLAT, "2d", "TinyDeferral3Experts", output, "--continue_prediction")
        assert_maps(output, TESTED, ".png")
        assert kept.stat().st_mtime_ns == before
        (output / "test_7.png").unlink()
        more = ("--continue_prediction", "-chk", "checkpoint_best.pth")
        done = workplace.predict(FLAT, "2d", "TinyDeferral3Experts", output, *more, fails=True)
        assert 'checkpoint is "checkpoint_final.pth", not "checkpoint_best.pth"' in done.stdout
        assert not (output / "test_7.png").exists()


@pytest.mark.slow
class TestValidationOptions:
    def test_val_and_val_best_write_the_validation_anew(self, workplace: Workplace, flat_deferral: Path) -> None:
        fold = workplace.model(FLAT, "2d", "TinyDeferral3Experts") / "fold_0"
        summary = json.loads((fold / "validation" / "deferral_summary.json").read_text())
        shutil.rmtree(fold / "validation")
        workplace.train(FLAT, "2d", 0, "TinyDeferral3Experts", "--val", "--val_best")
        assert_maps(fold / "validation", VALIDATED, ".png")
        shutil.rmtree(fold / "validation")
        workplace.train(FLAT, "2d", 0, "TinyDeferral3Experts", "--val", "--npz")
        assert_maps(fold / "validation", VALIDATED, ".png")
        again = json.loads((fold / "validation" / "deferral_summary.json").read_text())
        assert again["model_everywhere"] == summary["model_everywhere"]
        assert again["system"] == summary["system"]

    def test_a_training_whose_experts_cost_too_much_says_at_its_end_that_nothing_was_deferred(
        self, workplace: Workplace
    ) -> None:
        plans = workplace.derive_plans(
            FLAT, "nnUNetDearPlans", lambda plans: plans.update(deferral={"num_experts": 3, "costs": [1, 1, 1]})
        )
        fold = workplace.train(FLAT, "2d", 0, "TinyDeferral3Experts", plans=plans)
        (log,) = fold.glob("training_log_*.txt")
        _, _, end = log.read_text().partition(", deferred 0.00%")
        assert "CAUTION: Nothing was deferred: the system's masks are the model's." in end

    def test_all_cases_as_one_fold(self, workplace: Workplace) -> None:
        fold = workplace.train(FLAT, "2d", "all", "TinyDeferral1Expert")
        assert_maps(fold / "validation", tuple(f"train_{index}" for index in range(6)), ".png", num_experts=1)
        output = workplace.root / "fold_all"
        workplace.predict(FLAT, "2d", "TinyDeferral1Expert", output, folds=("all",))
        assert_maps(output, TESTED, ".png", num_experts=1)
