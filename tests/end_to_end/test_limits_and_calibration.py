"""A one-vs-all model is calibrated on its validation, and predicts within every limit, all with the same masks."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from connected import connected_pieces
from workplace import FLAT, Workplace, predictor_of

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.evidence_fitting import structures_of
from nnunetv2_deferral.calibration.evidence_models import candidates_of, fit_evidence, fit_prior
from nnunetv2_deferral.calibration.forecast_fitting import fit_forest
from nnunetv2_deferral.commands.calibrate import main as calibrate
from nnunetv2_deferral.commands.route import route_folder
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, FittedEvidence
from nnunetv2_deferral.environment import (
    ENVIRONMENT,
    ENVIRONMENT_CAPACITIES,
    ENVIRONMENT_OVER,
    ENVIRONMENT_REGION,
)
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.answered_cases import AnsweredCase
from nnunetv2_deferral.evaluation.folders import evaluate
from nnunetv2_deferral.evaluation.inputs import open_inputs
from nnunetv2_deferral.experts import experts_to_json
from nnunetv2_deferral.forecast.forest import DiceForecast
from nnunetv2_deferral.maps import deferred_text
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import resolve_settings
from nnunetv2_deferral.worklist.writing import write_worklist

PLANS, TRAINER = "nnUNetOneVsAllPlans", "TinyDeferral3Experts"
VALIDATED, TESTED = ("train_4", "train_5"), ("test_6", "test_7")
BUDGET, CAPACITIES = 0.06, "0.02,none,0.01"
LIMITS: dict[str, dict[str, str]] = {
    "plain": {},
    "budget": {ENVIRONMENT: "0.031"},
    "capacities": {ENVIRONMENT_CAPACITIES: CAPACITIES},
    "budget and capacities": {ENVIRONMENT: "0.025", ENVIRONMENT_CAPACITIES: CAPACITIES},
    "regions": {ENVIRONMENT: "0.1", ENVIRONMENT_REGION: "5"},
    "dataset": {ENVIRONMENT: str(BUDGET), ENVIRONMENT_OVER: "dataset"},
    "dataset, regions": {ENVIRONMENT: str(BUDGET), ENVIRONMENT_OVER: "dataset", ENVIRONMENT_REGION: "4"},
}


@pytest.fixture(scope="module")
def model(workplace: Workplace) -> Path:
    """The folder of a one-vs-all model of fold 0, calibrated with a budget."""
    workplace.derive_plans(FLAT, PLANS, lambda plans: plans.update(deferral={"objective": "one_vs_all"}))
    fold = workplace.train(FLAT, "2d", 0, TRAINER, "--npz", plans=PLANS)
    before = json.loads((fold.parent / "plans.json").read_text())
    options = [
        "-budgets",
        str(BUDGET),
        "0.01",
        "-min_region_mm",
        "none",
        LIMITS["dataset, regions"][ENVIRONMENT_REGION],
    ]
    calibrate(["-d", "901", "-c", "2d", "-f", "0", "-tr", TRAINER, "-p", PLANS, *options])
    after = json.loads((fold.parent / "plans.json").read_text())
    assert {**after, CALIBRATION_KEY: None} == {**before, CALIBRATION_KEY: None}
    assert CALIBRATION_KEY not in before
    return fold.parent


@pytest.fixture(scope="module")
def predictor(model: Path) -> Any:
    """nnU-Net's predictor with that model."""
    return predictor_of(model)


@pytest.fixture(scope="module")
def predictions(
    workplace: Workplace, predictor: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PredictionFolder]:
    """The test images, predicted within all limits."""
    root, images = tmp_path_factory.mktemp("predictions"), workplace.raw / FLAT / "imagesTs"
    return {
        name: predict_with(predictor, images, root / str(number), environment)
        for number, (name, environment) in enumerate(LIMITS.items())
    }


def predict_with(predictor: Any, images: Path, output: Path, environment: dict[str, str]) -> PredictionFolder:
    """What nnUNetv2_predict --save_probabilities does, in this process."""
    output.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with redirect_stdout(StringIO()) as said:
            predictor.predict_from_files_sequential(str(images), str(output), save_probabilities=True)
    assert said.getvalue().count("\nDeferral: ") == said.getvalue().count("\nDeferred ") == 1
    found = PredictionFolder.open(output)
    assert said.getvalue().splitlines()[-1] == deferred_text(output, found.cases) != ""
    return found


def calibration_in(model: Path) -> Any:
    return json.loads((model / "plans.json").read_text()).get(CALIBRATION_KEY)


def copy_of(model: Path, target: Path, **changes: Any) -> Path:
    """A copy of the model with other entries in its plans; None removes one."""
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("validation"))
    plans = json.loads((target / "plans.json").read_text()) | changes
    plans = {key: value for key, value in plans.items() if value is not None}
    (target / "plans.json").write_text(json.dumps(plans))
    return target


def settings_in(model: Path) -> dict[str, Any]:
    return json.loads((model / "plans.json").read_text())["deferral"]


def limits_of(folder: PredictionFolder) -> list[Any]:
    return [entry.get("limits") for entry in folder.index["cases"].values()]


def masks_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


class TestPrediction:
    def test_masks_are_the_same_under_any_limits(self, predictions: dict[str, PredictionFolder]) -> None:
        expected = masks_of(predictions["plain"].folder)
        assert sorted(expected) == [f"{case}.png" for case in TESTED]
        for name, found in predictions.items():
            assert masks_of(found.folder) == expected, name

    def test_routes_are_others_under_any_limits(self, predictions: dict[str, PredictionFolder]) -> None:
        routes = {
            name: b"".join(found.case(case).route.tobytes() for case in TESTED) for name, found in predictions.items()
        }
        assert len(set(routes.values())) == len(LIMITS)

    def test_is_calibrated_and_says_with_what(self, model: Path, predictions: dict[str, PredictionFolder]) -> None:
        for found in predictions.values():
            assert found.index["model"]["calibration"] == found.calibration.fingerprint
            assert found.index["calibration"] == calibration_in(model)
        assert limits_of(predictions["plain"]) == [None, None]
        rule, plain = resolve_settings(settings_in(model)).rule, predictions["plain"]
        assert plain.calibration is not None
        changed = 0
        for case in TESTED:
            raw = plain.case(case).routing
            known = ~np.isnan(raw[0])
            calibrated = plain.calibration.apply(raw[:, known])
            assert np.array_equal(plain.case(case).route[known], rule.decision(calibrated, axis=0))
            assert plain.case(case).probability[known] == pytest.approx(rule.score(calibrated, axis=0), abs=1e-5)
            assert not plain.case(case).route[~known].any()
            changed += np.count_nonzero(rule.decision(calibrated, axis=0) != rule.decision(raw[:, known], axis=0))
        assert changed

    def test_final_validations_are_what_is_fitted_on_and_not_calibrated(self, model: Path) -> None:
        validation = PredictionFolder.open(model / "fold_0" / "validation")
        assert validation.index["model"]["calibration"] is None
        assert validation.calibration is None
        assert tuple(validation.cases) == VALIDATED

    @pytest.mark.parametrize("name", ["budget", "budget and capacities", "regions"])
    def test_a_budget_of_each_case_is_never_exceeded(self, predictions: dict[str, PredictionFolder], name: str) -> None:
        budget = float(LIMITS[name][ENVIRONMENT])
        for case in TESTED:
            route = predictions[name].case(case).route
            deferred = np.count_nonzero(route)
            assert deferred <= budget * route.size
            assert deferred > (0 if name == "regions" else budget * route.size - 1)
            assert predictions[name].index["cases"][case]["deferral_rate"] == pytest.approx(deferred / route.size)

    @pytest.mark.parametrize("name", ["capacities", "budget and capacities"])
    def test_capacities_are_never_exceeded(self, predictions: dict[str, PredictionFolder], name: str) -> None:
        free = predictions["plain"]
        shares = [1.0 if text == "none" else float(text) for text in CAPACITIES.split(",")]
        for case in TESTED:
            rates = [np.mean(predictions[name].case(case).route == expert) for expert in (1, 2, 3)]
            assert all(rate <= share for rate, share in zip(rates, shares, strict=True))
            wanted = [np.mean(free.case(case).route == expert) for expert in (1, 2, 3)]
            assert any(want > share for want, share in zip(wanted, shares, strict=True))
        assert limits_of(predictions["capacities"]) == [{"capacities": [0.02, None, 0.01], "over": "case"}] * 2

    @pytest.mark.parametrize("name", ["regions", "dataset, regions"])
    def test_regions_have_the_size_that_is_asked_for(self, predictions: dict[str, PredictionFolder], name: str) -> None:
        smallest = float(LIMITS[name][ENVIRONMENT_REGION])
        found = 0
        for case in TESTED:
            route = predictions[name].case(case).route
            regions = connected_pieces(route, spacing_mm=(999, 1, 1))
            assert all(region.diameter_mm >= smallest for region in regions)
            found += len(regions)
            figures = predictions[name].index["cases"][case]
            assert figures["limits"]["min_region_mm"] == smallest
            assert figures["lost_by_regions"] >= 0
        # No region may be worth the price that was fitted, as the training differs from run to run.
        assert found or name != "regions"

    def test_limits_in_the_plans_of_the_model_hold_and_the_environment_wins(
        self, workplace: Workplace, model: Path, tmp_path: Path
    ) -> None:
        edited = copy_of(model, tmp_path / "model", deferral=settings_in(model) | {"budget": 0.02})
        predictor, images = predictor_of(edited), workplace.raw / FLAT / "imagesTs"
        for name, environment, budget in (("plans", {}, 0.02), ("environment", LIMITS["budget"], 0.031)):
            found = predict_with(predictor, images, tmp_path / name, environment)
            assert limits_of(found) == [{"budget": budget, "over": "case"}] * 2
            for case in TESTED:
                route = found.case(case).route
                assert np.count_nonzero(route) == math.floor(budget * route.size)


class TestABudgetOverADataset:
    def test_is_kept_by_the_cases_it_was_fitted_on(
        self, workplace: Workplace, model: Path, predictor: Any, tmp_path: Path
    ) -> None:
        images = tmp_path / "images"
        images.mkdir()
        for case in VALIDATED:
            shutil.copy(workplace.raw / FLAT / "imagesTr" / f"{case}_0000.png", images)
        found = predict_with(predictor, images, tmp_path / "out", LIMITS["dataset"])
        rates = [np.mean(found.case(case).route > 0) for case in VALIDATED]
        fitted = calibration_in(model)["thresholds"][0]
        assert fitted["budget"] == BUDGET
        assert np.mean(rates) == pytest.approx(fitted["rate"], abs=0.002)
        assert fitted["rate"] == pytest.approx(BUDGET, abs=1 / (2 * 40 * 48))
        assert limits_of(found) == [{"budget": BUDGET, "over": "dataset"}] * 2

    @pytest.mark.parametrize(
        ("environment", "words"),
        [
            (
                {ENVIRONMENT: "0.05", ENVIRONMENT_OVER: "dataset"},
                ["no thresholds were fitted for a budget of 0.05", "fitted: a budget of 0.06; a budget of 0.01"],
            ),
            (
                {ENVIRONMENT: "0.01", ENVIRONMENT_CAPACITIES: "0.01,0.01,0.01", ENVIRONMENT_OVER: "dataset"},
                ["a budget of 0.01 with capacities of 0.01, 0.01, 0.01", "fitted: a budget of 0.06; a budget of 0.01"],
            ),
            ({ENVIRONMENT_OVER: "dataset"}, ["limits over a dataset require a budget or capacities"]),
            ({ENVIRONMENT: "2"}, [ENVIRONMENT, "share of the voxels in [0, 1], got '2'"]),
            ({ENVIRONMENT_CAPACITIES: "0.1,0.1"}, [ENVIRONMENT_CAPACITIES, "3 experts"]),
        ],
        ids=["another", "with capacities", "no budget", "no share", "two capacities"],
    )
    def test_that_was_not_fitted_is_refused_before_the_first_case(
        self,
        workplace: Workplace,
        predictor: Any,
        tmp_path: Path,
        environment: dict[str, str],
        words: list[str],
    ) -> None:
        with pytest.raises(InputError) as refused:
            predict_with(predictor, workplace.raw / FLAT / "imagesTs", tmp_path / "out", environment)
        for word in words:
            assert word in str(refused.value)
        assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".png" or path.is_dir()]

    def test_of_a_model_without_calibration_is_refused(self, workplace: Workplace, model: Path, tmp_path: Path) -> None:
        bare = copy_of(model, tmp_path / "model", **{CALIBRATION_KEY: None})
        with pytest.raises(ValueError, match="which this model does not have. Fit them: nnUNetv2_deferral_calibrate"):
            predict_with(predictor_of(bare), workplace.raw / FLAT / "imagesTs", tmp_path / "out", LIMITS["dataset"])
        assert not list((tmp_path / "out").glob("*.png"))


class TestModelFolder:
    def test_maps_of_the_model_before_it_was_calibrated_are_not_mixed_with_others(
        self, workplace: Workplace, model: Path, predictions: dict[str, PredictionFolder], tmp_path: Path
    ) -> None:
        output = tmp_path / "taken"
        shutil.copytree(predictions["plain"].folder, output)
        before = {file: file.read_bytes() for file in (output / "deferral").rglob("*") if file.is_file()}
        bare = copy_of(model, tmp_path / "model", **{CALIBRATION_KEY: None})
        with pytest.raises(ValueError, match=r"maps of another model .*calibration: \w{12} there, None now"):
            predictor_of(bare).predict_from_files_sequential(str(workplace.raw / FLAT / "imagesTs"), str(output))
        assert {file: file.read_bytes() for file in (output / "deferral").rglob("*") if file.is_file()} == before

    @pytest.mark.parametrize(("fold", "kept"), [(1, True), (0, False)])
    def test_a_training_that_starts_keeps_what_was_fitted_on_other_folds(
        self, workplace: Workplace, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: int, kept: bool
    ) -> None:
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        there = copy_of(model, tmp_path / FLAT / model.name)
        before = json.loads((there / "plans.json").read_text())
        workplace.trainer(TRAINER, FLAT, "2d", fold, PLANS).on_train_start()
        assert calibration_in(there) == (calibration_in(model) if kept else None)
        after = json.loads((there / "plans.json").read_text())
        assert {**after, CALIBRATION_KEY: None} == {**before, CALIBRATION_KEY: None}

    @pytest.mark.parametrize("what", ["experts", "threshold"])
    def test_a_calibration_that_does_not_fit_the_model_is_refused_before_the_first_case(
        self, workplace: Workplace, model: Path, tmp_path: Path, what: str
    ) -> None:
        calibration = calibration_in(model)
        if what == "experts":
            calibration["experts"][0] = "eve"
        else:
            calibration["thresholds"][0]["thresholds"].append(0.1)
        edited = copy_of(model, tmp_path / "model", **{CALIBRATION_KEY: calibration})
        with pytest.raises(ValueError, match=f'"{CALIBRATION_KEY}" entry of the plans'):
            predict_with(predictor_of(edited), workplace.raw / FLAT / "imagesTs", tmp_path / "out", {})
        assert not list((tmp_path / "out").glob("*.png"))


class TestPredictedDice:
    """Two validation cases are too few to fit a forest; here one is fitted on made-up cases."""

    def test_is_refused_for_so_few_cases(
        self, workplace: Workplace, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (model / "plans.json").read_bytes()
        with pytest.raises(SystemExit):
            calibrate(["-d", "901", "-c", "2d", "-f", "0", "-tr", TRAINER, "-p", PLANS, "--replace", "--predict_dice"])
        error = capsys.readouterr().err.splitlines()[-1]
        assert "the Dice of rim is defined in 2 cases, but predicting it requires at least 10" in error
        assert (model / "plans.json").read_bytes() == before

    def test_is_in_the_entry_of_each_case_and_orders_the_worklist(
        self, workplace: Workplace, model: Path, predictions: dict[str, PredictionFolder], tmp_path: Path
    ) -> None:
        random = np.random.default_rng(0)
        forecast = DiceForecast(
            {name: fit_forest(random.random((12, 5)), random.random(12)) for name in ("rim", "core")}
        )
        entry = calibration_in(model) | {"forecast": forecast.to_dict()}
        predicting = copy_of(model, tmp_path / "model", **{CALIBRATION_KEY: entry})
        images = workplace.raw / FLAT / "imagesTs"
        found = predict_with(predictor_of(predicting), images, tmp_path / "out", {})
        assert masks_of(found.folder) == masks_of(predictions["plain"].folder)
        assert found.index["model"] == predictions["plain"].index["model"]
        assert "forecast" not in found.index["calibration"]
        predicted = {case: entry["predicted_dice"] for case, entry in found.index["cases"].items()}
        for case in TESTED:
            # nnU-Net saves probabilities in half precision, but a forest has steps.
            expected = forecast.predict(found.case(case).softmax, has_regions=False)
            assert predicted[case] == pytest.approx(expected, abs=0.1)
        content = write_worklist(found.folder, tmp_path / "list", images=None)
        means = {case: np.mean(list(of.values())) for case, of in predicted.items()}
        assert [each["case"] for each in content["check_first"]] == sorted(means, key=lambda case: means[case])
        route_folder(found.folder, tmp_path / "routed", limits=Limits(budget=0.03))
        again = PredictionFolder.open(tmp_path / "routed").index["cases"]
        assert {case: entry["predicted_dice"] for case, entry in again.items()} == predicted
        inputs = open_inputs(found.folder, workplace.raw / FLAT / "labelsTs")
        detected = evaluate(inputs, budgets=(0.01,))["failure_detection"]["predicted_dice"]
        assert detected["per_case"] == {case: pytest.approx(1 - mean) for case, mean in means.items()}
        assert detected["mean_absolute_error"]["estimate"] >= 0


@pytest.fixture(scope="module")
def reading(workplace: Workplace, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model with an evidence model in its calibration."""
    cases = CalibrationCases.of_validations(Experiment.find("901", "2d", (0,)), Method(trainer=TRAINER, plans=PLANS))
    structures = structures_of(cases.files)
    prior = fit_prior(cases, len(cases.cases), structures, voxel_size=1.0)
    regions = cases.files.regions
    seen = [AnsweredCase.of(case, candidates_of(case, structures, prior), regions) for case in cases]
    fitted = FittedEvidence(
        model=fit_evidence(seen, prior, structures, cases.experts.names),
        answered_by=tuple(experts_to_json(cases.experts.experts)),
    )
    calibration = calibration_in(model) | {"evidence": fitted.to_dict()}
    return copy_of(model, tmp_path_factory.mktemp("reading") / "model", **{CALIBRATION_KEY: calibration})


class TestEvidence:
    """Two validation cases are too few for calibrate to keep an evidence model; here one is fitted all the same."""

    def test_is_read_in_prediction_as_from_saved_probabilities(
        self, workplace: Workplace, reading: Path, predictions: dict[str, PredictionFolder], tmp_path: Path
    ) -> None:
        images = workplace.raw / FLAT / "imagesTs"
        found = predict_with(predictor_of(reading), images, tmp_path / "out", {ENVIRONMENT: "0.03"})
        assert masks_of(found.folder) == masks_of(predictions["plain"].folder)
        assert found.calibration is not None
        evidence = found.calibration.evidence
        assert evidence is not None
        structures = evidence.model.structures
        deferred = 0
        for name in TESTED:
            case = found.case(name)
            expected = evidence.model.prior.map_of(structures.probabilities(case.softmax), case.spacing)
            # nnU-Net saves probabilities in half precision.
            np.testing.assert_allclose(case.prior.logits, expected.logits, atol=0.03)
            np.testing.assert_allclose(case.prior.areas, expected.areas, rtol=1e-3)
            assert 0 < np.count_nonzero(case.route) <= 0.03 * case.route.size
            assert (case.gain[case.route > 0] > 0).all()
            deferred += np.count_nonzero(case.route)
        route_folder(found.folder, tmp_path / "routed", limits=Limits(budget=0.03))
        again = PredictionFolder.open(tmp_path / "routed")
        agree = sum(
            int(((again.case(n).route == found.case(n).route) & (found.case(n).route > 0)).sum()) for n in TESTED
        )
        assert agree > 0.9 * deferred
        workplace.command(
            "nnUNetv2_deferral_simulate_experts", "-i", workplace.raw / FLAT / "labelsTs", "-djfile",
            reading / "dataset.json", "-o", tmp_path / "experts", "-num_experts", 3,
        )  # fmt: skip
        workplace.command(
            "nnUNetv2_deferral_next_round", "-i", found.folder, "-answers", tmp_path / "experts", "-o",
            tmp_path / "second", "-budget", 0.02, "-most", 2,
        )  # fmt: skip
        fused = workplace.command(
            "nnUNetv2_deferral_fuse", "-i", tmp_path / "second", "-experts", tmp_path / "experts", "-o",
            tmp_path / "fused",
        )  # fmt: skip
        assert "answers were read as evidence" in fused.stdout
        assert len(list((tmp_path / "fused").glob("*.png"))) == len(TESTED)


@pytest.fixture(scope="module")
def installed(workplace: Workplace, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder that the model was exported to and installed in."""
    results = tmp_path_factory.mktemp("elsewhere")
    archive = results / "model.zip"
    (model / "fold_0" / "progress.png").touch()  # nnU-Net exports it; the tests' trainings draw none
    workplace.command(
        "nnUNetv2_export_model_to_zip", "-d", FLAT, "-o", archive, "-c", "2d", "-tr", TRAINER, "-p", PLANS, "-f", 0
    )
    workplace.command("nnUNetv2_install_pretrained_model_from_zip", archive, nnUNet_results=str(results))
    assert calibration_in(results / FLAT / model.name) == calibration_in(model)
    return results


@pytest.mark.slow
class TestTheStockCommands:
    @pytest.mark.parametrize("name", ["plain", "budget", "capacities", "regions", "dataset, regions"])
    def test_an_exported_model_predicts_alike_within_all_limits(
        self, workplace: Workplace, installed: Path, predictions: dict[str, PredictionFolder], tmp_path: Path, name: str
    ) -> None:
        """In processes that are started anew and import everything for themselves."""
        elsewhere = {"nnUNet_results": str(installed)}
        workplace.predict(
            FLAT, "2d", TRAINER, tmp_path / "out", plans=PLANS, own_process=True, **elsewhere, **LIMITS[name]
        )
        expected, found = predictions[name], PredictionFolder.open(tmp_path / "out")
        assert masks_of(found.folder) == masks_of(predictions["plain"].folder)
        for case in TESTED:
            assert np.array_equal(found.case(case).route, expected.case(case).route)
        assert found.index["calibration"] == expected.index["calibration"]
        assert limits_of(found) == limits_of(expected)

    def test_another_budget_is_refused_without_a_traceback(
        self, workplace: Workplace, model: Path, tmp_path: Path
    ) -> None:
        assert calibration_in(model) is not None
        limits = {ENVIRONMENT: "0.5", ENVIRONMENT_OVER: "dataset"}
        done = workplace.predict(FLAT, "2d", TRAINER, tmp_path / "out", plans=PLANS, fails=True, **limits)
        assert "Traceback" not in done.stdout
        last = done.stdout.strip().splitlines()[-1]
        said = "no thresholds were fitted for a budget of 0.5 over a dataset (fitted: "
        assert last.startswith(f"nnUNetv2_predict: error: {said}")
        assert not list((tmp_path / "out").glob("*.png"))

    def test_calibrating_changes_the_plans_and_a_training_of_the_same_fold_undoes_it(
        self, workplace: Workplace, model: Path
    ) -> None:
        """On a model of its own: the other tests need theirs calibrated."""
        plans = workplace.derive_plans(FLAT, "nnUNetAnewPlans", lambda plans: plans.update(deferral=settings_in(model)))
        words = ["-d", FLAT, "-c", "2d", "-f", 0, "-tr", TRAINER, "-p", plans]
        folder = workplace.train(FLAT, "2d", 0, TRAINER, "--npz", plans=plans).parent
        before = json.loads((folder / "plans.json").read_text())
        done = workplace.command("nnUNetv2_deferral_calibrate", *words, "-budgets", BUDGET)
        assert "2 validation cases of fold 0" in done.stdout
        fitted = calibration_in(folder)
        assert fitted["report"]["folds"] == [0]

        workplace.train(FLAT, "2d", 0, TRAINER, "--val", "--npz", plans=plans)  # no training
        assert calibration_in(folder) == fitted
        workplace.train(FLAT, "2d", 1, TRAINER, "--npz", plans=plans)
        assert calibration_in(folder) == fitted
        assert PredictionFolder.open(folder / "fold_1" / "validation").calibration is None
        workplace.train(FLAT, "2d", 0, TRAINER, plans=plans)
        assert json.loads((folder / "plans.json").read_text()) == before

    def test_a_network_of_all_cases_is_calibrated_on_predictions_of_others(
        self, workplace: Workplace, model: Path, tmp_path: Path
    ) -> None:
        """Of fold `all`, which has no validation; predictions then say that it is what was calibrated."""
        plans = workplace.derive_plans(FLAT, "nnUNetAllPlans", lambda plans: plans.update(deferral=settings_in(model)))
        folder, output = workplace.train(FLAT, "2d", "all", TRAINER, plans=plans).parent, tmp_path / "out"
        how: dict[str, Any] = {"folds": ("all",), "plans": plans}
        workplace.predict(FLAT, "2d", TRAINER, output, "--save_probabilities", **how)
        words = ["-d", FLAT, "-c", "2d", "-tr", TRAINER, "-p", plans]
        assert 'fold "all"' in workplace.command("nnUNetv2_deferral_calibrate", *words, "-f", "all", fails=True).stdout
        references = workplace.raw / FLAT / "labelsTs"
        given = ["-i", output, "-ref", references, "-budgets", BUDGET]
        done = workplace.command("nnUNetv2_deferral_calibrate", *words, *given)
        assert "2 cases in predictions by the network of fold all (checkpoint checkpoint_final.pth, mir" in done.stdout
        assert calibration_in(folder)["report"]["cases"] == list(TESTED)
        limits = {ENVIRONMENT: str(BUDGET), ENVIRONMENT_OVER: "dataset"}
        done = workplace.predict(FLAT, "2d", TRAINER, tmp_path / "again", **how, **limits)
        assert "the calibration was fitted on" not in done.stdout
        done = workplace.predict(FLAT, "2d", TRAINER, tmp_path / "other", "-step_size", 0.7, **how, **limits)
        said = "the probabilities of predictions whose step_size is 0.7, not 0.5 agree less"
        assert f"the calibration was fitted on predictions by the network of fold all: {said}" in done.stdout
