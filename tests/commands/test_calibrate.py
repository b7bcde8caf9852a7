"""`nnUNetv2_deferral_calibrate` on the validation folders of a made-up model: what it fits, writes and refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from close_to import assert_close
from scipy import ndimage
from scipy.special import expit, logit
from small_prediction import GEOMETRY, LABELS, read_mask, reader_of, write_mask

from nnunetv2_deferral import maps
from nnunetv2_deferral.answers import SIMULATION_NAME, who_answered
from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.evidence_fitting import TOLERANCE, predicted_gains
from nnunetv2_deferral.calibration.selection import select_calibrator
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.commands.calibrate import main
from nnunetv2_deferral.commands.route import main as route_main
from nnunetv2_deferral.commands.route import route_folder
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.decision.calibrators import IDENTITY, Isotonic
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.limits import Limits, warn_of_full_budget
from nnunetv2_deferral.decision.model_calibration import (
    CALIBRATION_KEY,
    ModelCalibration,
    calibration_of_other_folds,
)
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.inputs import open_inputs
from nnunetv2_deferral.evaluation.rankings import CURVE_BUDGETS
from nnunetv2_deferral.evaluation.reliability import ReliabilityStatistics
from nnunetv2_deferral.expert_sim.profiles import expert_set
from nnunetv2_deferral.experts import experts_to_json
from nnunetv2_deferral.names import REVIEW_NAME
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import resolve_settings

DATASET, TRAINER = "Dataset903_MadeUp", "nnUNetTrainerDeferral_OvA"
CASES = ("a", "b", "c", "d", "e", "f")
SPLITS = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
EXPERTS = ("ann", "bob")
SHAPE = (4, 40, 42)
UNKNOWN = 3  # columns at the edge that were not predicted
# How probable it really is that model, ann and bob are right, from what they say: all but bob are too sure or unsure.
TRUTHS = (lambda said: expit(0.5 * logit(said) - 0.2), lambda said: expit(2.0 * logit(said) + 0.3), lambda said: said)


def probabilities_of_routes(generator):
    odds = random_probabilities(generator)
    return odds / odds.sum(0)


class Workplace:
    """nnU-Net's folders with a model of two folds that were validated with --npz."""

    def __init__(self, root, *, said=None, **block):
        self.root = root
        self.raw, self.preprocessed = root / "raw" / DATASET, root / "preprocessed" / DATASET
        self.model = root / "results" / DATASET / f"{TRAINER}__nnUNetPlans__2d"
        self.settings = resolve_settings({"experts": list(EXPERTS), "objective": "one_vs_all", **block})
        for folder in (self.raw, self.preprocessed, self.model):
            folder.mkdir(parents=True)
        dataset_json = {"channel_names": {"0": "image"}, "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 6}
        for folder in (self.raw, self.preprocessed, self.model):
            (folder / "dataset.json").write_text(json.dumps(dataset_json))
        (self.preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
        self.write_plans(
            dataset_name=DATASET,
            plans_name="nnUNetPlans",
            configurations={"2d": {"spacing": [1, 1]}},
            deferral=self.settings.to_dict(),
            deferral_model={"trainer": TRAINER, "has_regions": False},
        )
        self.said, self.right = {}, {}
        for number, case in enumerate(CASES):
            self._write_case(case, np.random.default_rng(number), said or random_probabilities)

    def _write_case(self, case, generator, said):
        reference = disc(generator)
        self.said[case] = probabilities = said(generator).astype(np.float32)
        right = np.stack([truth(each) for truth, each in zip(TRUTHS, probabilities, strict=True)])
        self.right[case] = right = generator.random(right.shape) < right
        model, *answers = np.where(right, reference, (reference + 1) % 3).astype(np.uint8)
        probabilities[..., :UNKNOWN] = np.nan
        write_mask(self.preprocessed / "gt_segmentations" / f"{case}.nii.gz", reference.astype(np.uint8))
        for expert, answer in zip(EXPERTS, answers, strict=True):
            write_mask(self.raw / "expertsTr" / expert / f"{case}.nii.gz", answer)
        folder = self.validation(case)
        write_mask(folder / f"{case}.nii.gz", model)
        certainty = generator.uniform(0.7, 0.9, SHAPE)  # so that nothing ties
        softmax = np.where(np.arange(3)[:, None, None, None] == model, certainty, (1 - certainty) / 2).astype(
            np.float32
        )
        np.savez_compressed(folder / f"{case}.npz", probabilities=softmax)
        maps.save_routing(folder, case, probabilities)
        self._decide(folder, case, probabilities)

    def _decide(self, folder, case, probabilities, prediction=None):
        made = decide(probabilities, np.ones((1, 1, 1), np.float32), rule=self.settings.rule, limits=Limits(),
                      spacing_mm=GEOMETRY["spacing"])  # fmt: skip
        identity = maps.ModelIdentity(
            dataset=DATASET, plans="nnUNetPlans", configuration="2d", trainer=TRAINER, experts=EXPERTS
        )
        deferral = maps.DeferralFolder(
            folder=folder, file_ending=".nii.gz", writer=reader_of(".nii.gz"), model=identity, settings=self.settings,
            prediction=prediction or {},
        )  # fmt: skip
        deferral.write(case, made.maps, GEOMETRY)

    def predict(self, name="predictions", **prediction):
        """A folder of predictions with --save_probabilities, of cases that are as the validation cases."""
        folder = self.root / name
        files = {
            "labelsTs": [self.preprocessed / "gt_segmentations" / f"{case}.nii.gz" for case in CASES],
            **{f"expertsTs/{e}": [self.raw / "expertsTr" / e / f"{case}.nii.gz" for case in CASES] for e in EXPERTS},
            name: [self.validation(case) / f"{case}{end}" for case in CASES for end in (".nii.gz", ".npz")],
            f"{name}/deferral/routing": [maps.routing_file(self.validation(case), case) for case in CASES],
        }
        for place, copied in files.items():
            (self.root / place).mkdir(parents=True, exist_ok=True)
            for file in copied:
                shutil.copy(file, self.root / place / f"new_{file.name}")
        shutil.copy(self.model / "dataset.json", folder)
        how = {"folds": ["all"], "mirroring": True, "step_size": 0.5, "checkpoint": "checkpoint_final.pth"} | prediction
        for case in CASES:
            self._decide(folder, f"new_{case}", self.said[case], {key: each for key, each in how.items() if each})
        return folder

    def of_predictions(self, folder, *more):
        """Options of the command for a folder of predictions."""
        options = ("-d", 903, "-c", "2d", "-tr", TRAINER, "-i", folder, "-ref", self.root / "labelsTs")
        return [str(word) for word in (*options, "-experts", self.root / "expertsTs", *more)]

    def validation(self, case):
        return self.model / f"fold_{CASES.index(case) // 3}" / "validation"

    @property
    def plans_file(self):
        return self.model / "plans.json"

    @property
    def plans(self):
        return json.loads(self.plans_file.read_text())

    def write_plans(self, **content):
        self.plans_file.write_text(json.dumps(content))

    def options(self, *more, folds=(0, 1)):
        return [str(word) for word in ("-d", 903, "-c", "2d", "-f", *folds, "-tr", TRAINER, *more)]

    def calibrate(self, *more, evidence=False, ranking=False, **how):
        """What the command writes into the plans; evidence and a choice of ranking take most of the time."""
        left_out = [word for word, fitted in (("--replace", evidence), ("--keep_heads", ranking)) if not fitted]
        main(self.options(*more, *([] if "--thresholds_only" in more else left_out), **how))
        return ModelCalibration.from_dict(self.plans[CALIBRATION_KEY], EXPERTS)

    def refused(self, capsys, *more, **how):
        """The one line that the command says when it leaves everything as it was."""
        return self.refused_with(capsys, self.options(*more, **how))

    def refused_with(self, capsys, options):
        before = {file: file.read_bytes() for file in self.root.rglob("*") if file.is_file()}
        with pytest.raises(SystemExit) as ended:
            main(options)
        assert ended.value.code == 2
        assert {file: file.read_bytes() for file in self.root.rglob("*") if file.is_file()} == before
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        _, said = err.split(f"{parsers.calibrate().prog}: error: ")
        assert said.count("\n") == 1
        return said

    def voxel_weight(self, case):
        softmax = np.load(self.validation(case) / f"{case}.npz")["probabilities"]
        return dice_weight(softmax, has_regions=False)

    def decided(self, case, limits, calibration):
        """What a prediction of this case makes of it."""
        softmax = np.load(self.validation(case) / f"{case}.npz")["probabilities"]
        return decide(self.said[case], self.voxel_weight(case), rule=self.settings.rule, limits=limits,
                      spacing_mm=GEOMETRY["spacing"], calibration=calibration, softmax=softmax)  # fmt: skip

    def pooled(self, limits, calibration):
        """How many of all voxels each expert is asked about."""
        routes = np.concatenate([self.decided(case, limits, calibration).maps.route.ravel() for case in CASES])
        return np.bincount(routes, minlength=len(EXPERTS) + 1)[1:]


NUM_VOXELS = len(CASES) * math.prod(SHAPE)


def disc(generator):
    _, rows, columns = np.indices(SHAPE)
    distance = np.hypot(rows - generator.uniform(15, 25), columns - generator.uniform(15, 25))
    return (distance < 12).astype(np.int64) + (distance < 6)


def random_probabilities(generator):
    """(J + 1, *S), smooth, mostly high."""
    noise = np.stack([ndimage.gaussian_filter(generator.normal(size=SHAPE), (0, 1, 1)) for _ in range(3)])
    return expit(noise / noise.std() * 1.5 + np.array([1.0, 0.5, 1.0])[:, None, None, None])


def levels(*values):
    """Probabilities around some levels, all different, so that nothing ties."""

    def said(generator):
        return np.array(values)[:, None, None, None] + generator.uniform(-0.04, 0.04, (3, *SHAPE))

    return said


def calibration_error(said, right, num_bins=15):
    """Expected calibration error in bins of equally many voxels."""
    order = np.argsort(said, kind="stable")
    bins = zip(np.array_split(said[order], num_bins), np.array_split(right[order], num_bins), strict=True)
    return sum(abs(each.mean() - happened.mean()) * each.size for each, happened in bins) / said.size


def opened():
    """The validation cases of both folds."""
    method = Method(trainer=TRAINER, plans="nnUNetPlans")
    return CalibrationCases.of_validations(Experiment.find(903, "2d", (0, 1)), method)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Written once; nobody but `workplace` may use it."""
    return Workplace(tmp_path_factory.mktemp("finished"))


def environment(root, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))


@pytest.fixture
def workplace(finished, tmp_path, monkeypatch):
    """A copy of the model and all it was validated with."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    environment(tmp_path, monkeypatch)
    here = Workplace.__new__(Workplace)
    vars(here).update(vars(finished))
    here.root = tmp_path
    for name in ("raw", "preprocessed", "model"):
        setattr(here, name, tmp_path / getattr(finished, name).relative_to(finished.root))
    return here


@pytest.fixture
def another(tmp_path, monkeypatch):
    """Makes a workplace of another kind."""

    def make(**how):
        environment(tmp_path, monkeypatch)
        return Workplace(tmp_path, **how)

    return make


class TestPlans:
    def test_hold_what_was_fitted_and_all_that_they_held_before(self, workplace, capsys):
        before = workplace.plans
        main(workplace.options("-budgets", 0.01, 0.05))
        after = workplace.plans
        assert list(after) == [*before, CALIBRATION_KEY]
        assert {key: after[key] for key in before} == before
        calibration = ModelCalibration.from_dict(after[CALIBRATION_KEY], EXPERTS)
        assert [each.budget for each in calibration.thresholds] == [0.01, 0.05]
        assert calibration.report["folds"] == [0, 1]
        assert calibration.report["cases"] == list(CASES)
        assert calibration.report["dataset"] == DATASET
        assert calibration.report["experts"]["experts"] == list(EXPERTS)
        said = capsys.readouterr().out
        for words in (
            "6 validation cases of folds 0 and 1",
            "model",
            "ann",
            "bob",
            "budget 1.00%",
            str(workplace.plans_file),
        ):
            assert words in said

    def test_are_written_whole_and_nothing_else_is(self, workplace):
        before = {file: file.read_bytes() for file in workplace.root.rglob("*") if file.is_file()}
        workplace.calibrate()
        after = {file: file.read_bytes() for file in workplace.root.rglob("*") if file.is_file()}
        assert before.keys() == after.keys()
        assert [file for file in before if before[file] != after[file]] == [workplace.plans_file]

    def test_are_the_same_for_the_same_call_and_forget_the_call_before(self, workplace):
        first = workplace.calibrate("-budgets", 0.05)
        assert workplace.calibrate("-budgets", 0.05) == first
        assert workplace.calibrate().thresholds == ()
        assert workplace.calibrate().heads == first.heads

    def test_of_some_folds_are_fitted_on_their_cases(self, workplace):
        calibration = workplace.calibrate(folds=(1,))
        assert calibration.report["folds"] == [1]
        assert calibration.report["cases"] == list(CASES[3:])
        assert calibration.heads != workplace.calibrate().heads


class TestProbabilities:
    def test_come_to_mean_what_they_say(self, workplace):
        calibration = workplace.calibrate()
        known = [~np.isnan(workplace.said[case][0]) for case in CASES]
        for head in range(3):
            said = np.concatenate([workplace.said[case][head][where] for case, where in zip(CASES, known, strict=True)])
            right = np.concatenate(
                [workplace.right[case][head][where] for case, where in zip(CASES, known, strict=True)]
            )
            calibrated = calibration.heads[head](said)
            before, after = calibration_error(said, right), calibration_error(calibrated, right)
            report = calibration.report["heads"][("model", *EXPERTS)[head]]
            assert report["all"]["before"]["ece"] == pytest.approx(before, abs=0.003)
            assert report["all"]["after"]["ece"] == pytest.approx(after, abs=0.003)
            assert after < 0.01
            truth = TRUTHS[head](said)
            assert np.abs(calibrated - truth).mean() < 0.015
            if head < 2:  # those who do not keep their word
                assert before > 0.05
                assert np.abs(said - truth).mean() > 0.05
                assert report["least_certain"]["after"]["ece"] < report["least_certain"]["before"]["ece"]
            else:
                assert report["map"] == {"kind": "none"}

    def test_are_checked_on_the_same_least_certain_voxels_before_and_after(self, workplace, monkeypatch):
        found, summary = [], ReliabilityStatistics.summary
        monkeypatch.setattr(ReliabilityStatistics, "summary", lambda each: found.append(summary(each)) or found[-1])
        workplace.calibrate()
        before, after = found
        assert before["least_certain"] == after["least_certain"]
        for name, head in before["heads"].items():
            numbers = [sum(each["least_certain"]["before"]["voxels"]) for each in (head, after["heads"][name])]
            assert numbers[0] == numbers[1]

    def test_say_in_which_direction_they_were_wrong(self, workplace):
        heads = workplace.calibrate().report["heads"]
        assert heads["model"]["all"]["before"]["bias"] > 0.05
        assert heads["ann"]["all"]["before"]["bias"] < -0.02
        for head in heads.values():
            assert head["all"]["after"]["bias"] == pytest.approx(0, abs=0.005)

    def test_are_checked_on_cases_that_the_calibrators_were_not_fitted_on(self, workplace):
        heads = workplace.calibrate().report["heads"]
        for head, name in enumerate(("model", *EXPERTS)):
            errors = []
            for part in range(5):
                others = [case for place, case in enumerate(CASES) if place % 5 != part]
                known = {case: ~np.isnan(workplace.said[case][0]) for case in CASES}
                fitted = select_calibrator(
                    [workplace.said[case][head][known[case]] for case in others],
                    [workplace.right[case][head][known[case]] for case in others],
                    groups=others,
                ).calibrator
                for case in CASES[part::5]:
                    said = workplace.said[case][head][known[case]]
                    errors.append(fitted(said) - workplace.right[case][head][known[case]])
            bias = heads[name]["all"]["after"]["bias"]
            assert bias == pytest.approx(np.concatenate(errors).mean(), abs=2e-5)
        assert abs(heads["model"]["all"]["after"]["bias"]) > 5e-5  # as on the cases it was fitted on it would not be

    def test_of_too_few_cases_are_not_checked(self, workplace, capsys):
        split = [{"train": CASES[2:], "val": CASES[:2]}]
        (workplace.preprocessed / "splits_final.json").write_text(json.dumps(split))
        heads = workplace.calibrate(folds=(0,)).report["heads"]
        assert heads["model"]["all"]["before"]["ece"] > 0.05
        assert heads["model"]["all"]["after"] == {"ece": None, "bias": None}
        assert "-> –" in capsys.readouterr().out

    def test_stay_as_they_are_where_thresholds_alone_are_wanted(self, workplace):
        calibration = workplace.calibrate("--thresholds_only", "-budgets", 0.05)
        assert [head.kind for head in calibration.heads] == ["none"] * 3
        assert calibration.report["heads"] == {}
        said = workplace.said["a"][..., UNKNOWN:]
        assert np.array_equal(calibration.apply(said), said)

    def test_of_voxels_that_count_nowhere_are_not_looked_at(self, workplace):
        labels = LABELS | {"ignore": 3}
        for folder in (workplace.preprocessed, workplace.model):
            content = json.loads((folder / "dataset.json").read_text())
            (folder / "dataset.json").write_text(json.dumps(content | {"labels": labels}))
        file = workplace.preprocessed / "gt_segmentations" / "a.nii.gz"
        reference = reader_of(".nii.gz").read_seg(str(file))[0][0].astype(np.uint8)
        reference[1, :10] = 3
        write_mask(file, reference)
        (workplace.raw / "expertsTr" / "bob" / "a.nii.gz").unlink()
        case = opened().read("0", "a")
        expected = ~np.isnan(workplace.said["a"][0]) & (reference != 3)
        assert np.array_equal(case.prediction.predicted, ~np.isnan(workplace.said["a"][0]))
        known = case.known & case.prediction.predicted
        assert np.array_equal(known[0], expected)
        assert np.array_equal(known[1], expected)
        assert not known[2].any()
        assert np.array_equal(case.right[:2][:, expected], workplace.right["a"][:2][:, expected])

    def test_are_held_back_by_group(self, workplace):
        file = workplace.root / "groups.json"
        file.write_text(json.dumps({case: number // 2 for number, case in enumerate(CASES)}))
        by_case, by_group = workplace.calibrate(), workplace.calibrate("-groups", file)
        assert by_case.report["heads"]["model"]["log_loss"] != by_group.report["heads"]["model"]["log_loss"]
        assert by_case.report["heads"]["model"]["map"]["kind"] == by_group.report["heads"]["model"]["map"]["kind"]


def make_heads_ignorant(here):
    """The heads say the same everywhere but for noise, and the confidence tells where the model is right."""
    here.said = {}
    for number, case in enumerate(CASES):
        generator = np.random.default_rng([1, number])
        noise = expit(2 + generator.normal(size=(3, *SHAPE))).astype(np.float32)
        noise[..., :UNKNOWN] = np.nan
        here.said[case] = noise
        maps.save_routing(here.validation(case), case, noise)
        certainty = np.where(here.right[case][0], generator.uniform(0.6, 1, SHAPE), generator.uniform(0.4, 0.8, SHAPE))
        model = read_mask(here.validation(case) / f"{case}.nii.gz")
        softmax = np.where(np.arange(3)[:, None, None, None] == model, certainty, (1 - certainty) / 2)
        np.savez_compressed(here.validation(case) / f"{case}.npz", probabilities=softmax.astype(np.float32))


class TestRanking:
    def test_of_heads_that_know_nothing_falls_back_to_the_confidence(self, another, tmp_path, capsys):
        workplace = another(said=mostly_right)
        make_heads_ignorant(workplace)
        calibration = workplace.calibrate(ranking=True)
        ranking = calibration.report["ranking"]
        assert ranking["chosen"] in ("combined", "confidence")
        heads, chosen = ([row[kind] for row in ranking["budgets"]] for kind in ("heads", ranking["chosen"]))
        assert np.mean(chosen) > np.mean(heads) + 0.2
        assert f"ranking by the heads recovers {ranking['budgets'][1]['heads']:.2f} of" in capsys.readouterr().out
        assert calibration.combination is not None
        assert abs(calibration.combination.weights[0][1]) < 0.2 < calibration.combination.weights[0][2]
        for head in calibration.report["heads"].values():
            assert head["all"]["after"]["ece"] < 0.02 < head["all"]["before"]["ece"]
        # The same where cases are decided anew, and in their evaluation.
        folder = workplace.validation("a")
        index = json.loads(maps.index_file(folder).read_text())
        maps.index_file(folder).write_text(json.dumps(index | {"calibration": calibration.to_dict()}))
        where, limits = {"dataset_json": workplace.model / "dataset.json"}, Limits(budget=0.02)
        route_folder(folder, tmp_path / "out", limits=limits, **where)
        routed = PredictionFolder.open(tmp_path / "out")
        references, experts = workplace.preprocessed / "gt_segmentations", str(workplace.raw / "expertsTr")
        inputs = open_inputs(folder, references, experts=experts, **where)
        for case in routed.cases:
            decided = workplace.decided(case, limits, calibration)
            assert np.array_equal(routed.case(case).route, decided.maps.route)
            raw = PredictionFolder.open(folder, **where).case(case)
            combined = calibration.combination(raw.routing, raw.softmax)
            np.testing.assert_array_equal(inputs.read(case).prediction.routing, combined)
        assert inputs.has_routing
        (folder / "a.npz").unlink()
        assert not open_inputs(folder, references, experts=experts, **where).has_routing


class TestThresholds:
    @pytest.mark.parametrize("options", [(), ("--thresholds_only",)], ids=["calibrated", "thresholds only"])
    def test_keep_a_budget_to_the_voxel_where_it_binds(self, workplace, options):
        budgets = (0.001, 0.02, 0.1)
        calibration = workplace.calibrate("-budgets", *budgets, *options)
        for budget, fitted in zip(budgets, calibration.thresholds, strict=True):
            deferred = workplace.pooled(Limits(budget=budget, over="dataset"), calibration).sum()
            assert budget * NUM_VOXELS - 1 <= deferred <= budget * NUM_VOXELS
            assert fitted.rate * NUM_VOXELS == pytest.approx(deferred)
            assert len(set(fitted.thresholds)) == 1
            assert fitted.thresholds[0] > 0
        prices = [fitted.thresholds[0] for fitted in calibration.thresholds]
        assert prices == sorted(prices, reverse=True)

    def test_are_fitted_on_what_was_predicted_whatever_the_maps_say_elsewhere(self, workplace):
        cases = opened()
        bob_is_always_right = (IDENTITY, IDENTITY, Isotonic((-16.5,), (0.9,)))
        calibration = ModelCalibration(experts=EXPERTS, heads=bob_is_always_right)
        gains = predicted_gains(cases, cases.prediction("0", "a"), calibration)
        known = ~np.isnan(workplace.said["a"][0])
        assert np.isneginf(gains[:, ~known]).all()
        calibrated = [head(each[known]) for head, each in zip(bob_is_always_right, workplace.said["a"], strict=True)]
        right, wrong = (each[known] for each in workplace.voxel_weight("a"))
        model, _, bob = calibrated
        expected = (1 - model) * bob * right - model * (1 - bob) * wrong
        assert gains[1, known] == pytest.approx(expected, abs=1e-9)

    def test_give_more_to_cases_where_more_is_to_be_gained(self, workplace):
        calibration = workplace.calibrate("-budgets", 0.05)
        limits = Limits(budget=0.05, over="dataset")
        rates = [(workplace.decided(case, limits, calibration).maps.route > 0).mean() for case in CASES]
        assert min(rates) < 0.05 < max(rates)

    def test_keep_capacities_too(self, workplace):
        calibration = workplace.calibrate("-budgets", 0.1, "-capacities", 0.02, "none")
        (fitted,) = calibration.thresholds
        assert fitted.capacities == (0.02, None)
        ann, bob = workplace.pooled(Limits(budget=0.1, capacities=(0.02, None), over="dataset"), calibration)
        assert ann == pytest.approx(0.02 * NUM_VOXELS, abs=2)
        assert ann + bob == pytest.approx(0.1 * NUM_VOXELS, abs=2)
        assert fitted.thresholds[0] > fitted.thresholds[1] > 0

    def test_are_fitted_for_capacities_alone(self, workplace):
        calibration = workplace.calibrate("-capacities", 0.01, 0)
        (fitted,) = calibration.thresholds
        assert fitted.budget is None
        assert fitted.thresholds[1] == math.inf
        assert workplace.plans[CALIBRATION_KEY]["thresholds"][0]["thresholds"][1] is None
        ann, bob = workplace.pooled(Limits(capacities=(0.01, 0.0), over="dataset"), calibration)
        assert ann == pytest.approx(0.01 * NUM_VOXELS, abs=1)
        assert bob == 0

    def test_of_regions_keep_a_budget_as_predictions_route_them(self, workplace, capsys):
        calibration = workplace.calibrate("--thresholds_only", "-budgets", 0.02, "-min_region_mm", 4, "none")
        assert [each.min_region_mm for each in calibration.thresholds] == [4, None]
        assert "budget 2.00% and regions of 4 mm over the dataset" in capsys.readouterr().out
        for fitted in calibration.thresholds:
            limits = Limits(budget=0.02, over="dataset", min_region_mm=fitted.min_region_mm)
            deferred = workplace.pooled(limits, calibration).sum()
            assert 0.95 * 0.02 * NUM_VOXELS < deferred <= 0.02 * NUM_VOXELS
            assert fitted.rate * NUM_VOXELS == pytest.approx(deferred)
        with pytest.raises(
            InputError, match=r"0\.02 in regions of 5 mm over a dataset \(fitted: .* in regions of 4 mm; a"
        ):
            workplace.decided("a", Limits(budget=0.02, over="dataset", min_region_mm=5), calibration)

    def test_are_fitted_for_the_regions_of_the_plans(self, workplace):
        plans = workplace.plans
        workplace.write_plans(**plans | {"deferral": plans["deferral"] | {"min_region_mm": 3}})
        (fitted,) = workplace.calibrate("--thresholds_only", "-budgets", 0.02).thresholds
        assert fitted.min_region_mm == 3
        fitted = workplace.calibrate("--thresholds_only", "-budgets", 0.02, "-min_region_mm", "none").thresholds
        assert [each.min_region_mm for each in fitted] == [None, 3]  # the others are kept

    def test_are_zero_where_the_budget_does_not_bind(self, workplace):
        calibration = workplace.calibrate("-budgets", 1)
        (fitted,) = calibration.thresholds
        assert fitted.thresholds == (0.0, 0.0)
        free = sum(workplace.pooled(Limits(budget=1.0), calibration))
        assert 0 < free < NUM_VOXELS
        assert fitted.rate * NUM_VOXELS == pytest.approx(free)

    def test_where_nobody_is_worth_asking_are_zero_and_nothing_is_deferred(self, another):
        workplace = another(said=levels(0.95, 0.4, 0.5))
        calibration = workplace.calibrate("--thresholds_only", "-budgets", 0.05)
        (fitted,) = calibration.thresholds
        assert fitted.thresholds == (0.0, 0.0)
        assert fitted.rate == 0
        assert workplace.pooled(Limits(budget=0.05, over="dataset"), calibration).sum() == 0

    @pytest.mark.parametrize("budget", [0.05, 1])
    def test_where_everything_should_be_asked_keep_the_budget(self, another, budget):
        workplace = another(said=levels(0.1, 0.8, 0.9))
        calibration = workplace.calibrate("-budgets", budget)
        (fitted,) = calibration.thresholds
        possible = NUM_VOXELS * (1 - UNKNOWN / SHAPE[-1])
        deferred = workplace.pooled(Limits(budget=float(budget), over="dataset"), calibration).sum()
        assert deferred == pytest.approx(min(possible, budget * NUM_VOXELS), abs=1)
        assert fitted.rate * NUM_VOXELS == pytest.approx(deferred)

    def test_can_be_fitted_for_the_papers_objective(self, another):
        workplace = another(said=probabilities_of_routes, objective="collaboration")
        calibration = workplace.calibrate("--thresholds_only", "-budgets", 0.02)
        deferred = workplace.pooled(Limits(budget=0.02, over="dataset"), calibration).sum()
        assert 0.02 * NUM_VOXELS - 1 <= deferred <= 0.02 * NUM_VOXELS

    def test_a_budget_of_one_is_warned_of(self, workplace, caplog):
        warn_of_full_budget.cache_clear()
        workplace.calibrate("--thresholds_only", "-budgets", 0.01, 1)
        assert "a budget of 1 is a share of 100 %" in caplog.text

    def test_can_be_fitted_on_a_single_case(self, workplace):
        split = [{"train": CASES[1:], "val": CASES[:1]}]
        (workplace.preprocessed / "splits_final.json").write_text(json.dumps(split))
        calibration = workplace.calibrate("--thresholds_only", "-budgets", 0.1, folds=(0,))
        assert calibration.report["cases"] == ["a"]
        assert calibration.thresholds[0].rate == pytest.approx(0.1, abs=1 / math.prod(SHAPE))


class TestConfidenceRule:
    """What evaluations compare with: the expert and the stopping point that are best by the model's own confidence."""

    def answer(self, workplace, case, expert, labels):
        write_mask(workplace.raw / "expertsTr" / expert / f"{case}.nii.gz", labels.astype(np.uint8))

    def reference(self, workplace, case):
        return read_mask(workplace.preprocessed / "gt_segmentations" / f"{case}.nii.gz")

    def test_asks_the_better_expert_until_nothing_is_wrong(self, workplace, capsys):
        wrong = 0
        for case in CASES:
            reference = self.reference(workplace, case)
            self.answer(workplace, case, "ann", read_mask(workplace.validation(case) / f"{case}.nii.gz"))
            generator = np.random.default_rng(CASES.index(case))
            some = np.where(generator.random(SHAPE) < 0.05, (reference + 1) % 3, reference)
            write_mask(workplace.validation(case) / f"{case}.nii.gz", some.astype(np.uint8))
            sure = np.where(some == reference, 0.9, 0.6)
            softmax = np.where(np.arange(3)[:, None, None, None] == some, sure, (1 - sure) / 2).astype(np.float32)
            np.savez_compressed(workplace.validation(case) / f"{case}.npz", probabilities=softmax)
            self.answer(workplace, case, "bob", reference)
            wrong += np.count_nonzero(some != reference)
        rule = workplace.calibrate().confidence
        share = wrong / NUM_VOXELS
        assert rule.expert == "bob"
        assert rule.most == min(budget for budget in CURVE_BUDGETS if budget >= share)
        assert f"best with bob, for at most {rule.most:.2%} of voxels" in capsys.readouterr().out

    def test_asks_nobody_where_all_experts_are_worse(self, workplace):
        for case in CASES:
            for expert in EXPERTS:
                self.answer(workplace, case, expert, np.zeros(SHAPE))
        assert workplace.calibrate().confidence.most == 0

    def test_never_asks_who_cannot_be_asked(self, another):
        workplace = another(unavailable=["bob"])
        for case in CASES:
            self.answer(workplace, case, "bob", self.reference(workplace, case))
        assert workplace.calibrate().confidence.expert == "ann"

    def test_of_another_model_is_refused(self, workplace, capsys):
        workplace.calibrate()
        capsys.readouterr()
        plans = workplace.plans
        plans[CALIBRATION_KEY]["confidence"]["expert"] = "eve"
        workplace.write_plans(**plans)
        said = workplace.refused(capsys, "--thresholds_only", "-budgets", 0.1)
        assert "confidence.expert must be one of ann, bob" in said


class TestThresholdsOnly:
    def test_keep_the_calibration_and_the_thresholds_for_other_budgets(self, workplace):
        before = workplace.calibrate("-budgets", 0.02, 0.1)
        after = workplace.calibrate("--thresholds_only", "-budgets", 0.05, 0.1)
        assert (after.heads, after.evidence) == (before.heads, before.evidence)
        assert [each.budget for each in after.thresholds] == [0.05, 0.1, 0.02]
        assert after.thresholds[1:] == before.thresholds[::-1]
        deferred = workplace.pooled(Limits(budget=0.05, over="dataset"), after).sum()
        assert 0.05 * NUM_VOXELS - 1 <= deferred <= 0.05 * NUM_VOXELS

    def test_are_removed_with_any_fold_that_they_or_the_calibration_were_fitted_on(self, workplace):
        workplace.calibrate(folds=(0,))
        assert workplace.calibrate("--thresholds_only", "-budgets", 0.05, folds=(1,)).report["folds"] == [0, 1]

    def test_of_a_calibration_that_cannot_be_read_are_refused(self, workplace, capsys):
        workplace.write_plans(**workplace.plans, **{CALIBRATION_KEY: {"heads": 1}})
        assert f'the "{CALIBRATION_KEY}" entry' in workplace.refused(capsys, "--thresholds_only", "-budgets", 0.1)


def mostly_right(generator):
    """A model with few errors, and experts with fewer."""
    return np.array([0.99, 0.999, 0.999])[:, None, None, None] + generator.uniform(-0.0009, 0.0009, (3, *SHAPE))


class TestParts:
    """Cases read in several jobs or processes."""

    def parts(self, workplace, *more, number):
        for place in reversed(range(number)):
            main(workplace.options(*more, "-num_parts", number, "-part_id", place))

    @pytest.mark.parametrize(
        "more",
        [
            ("--replace", "-budgets", 0.05),
            ("--replace", "-certify", 0.9, 0.5, "-budgets", 0.2),
            ("--thresholds_only", "-budgets", 0.05, "-min_region_mm", 2, "none"),
        ],
        ids=["calibration", "certificate", "thresholds"],
    )
    def test_merged_parts_are_the_calibration_of_a_single_call_up_to_rounding(self, workplace, capsys, more):
        groups = workplace.root / "groups.json"
        groups.write_text(json.dumps({case: case for case in CASES}))  # a patient each, as without
        words = (*more, "-groups", groups)
        before = workplace.plans
        self.parts(workplace, *words, number=4)
        assert capsys.readouterr().out.splitlines()[-1] == str(workplace.model / "calibration/parts/part_0_of_4.pkl.gz")
        assert workplace.plans == before
        with_ranking = {"ranking": "-certify" not in more}
        merged = workplace.calibrate(*words, "--merge", **with_ranking).to_dict()
        workplace.write_plans(**before)
        assert_close(merged, workplace.calibrate(*words, **with_ranking).to_dict(), tolerance=1e-9)

    @pytest.mark.slow
    def test_several_processes_calibrate_as_one_up_to_rounding(self, workplace):
        words = ("-budgets", 0.05, "-min_region_mm", 2)
        several = workplace.calibrate(*words, "-np", 2, evidence=True, ranking=True).to_dict()
        assert len(several["report"]["evidence"]["budgets"]) == 4
        single = workplace.calibrate(*words, evidence=True, ranking=True).to_dict()
        assert_close(several, single, tolerance=1e-9)

    def test_parts_that_are_missing_damaged_or_of_another_call_are_named(self, workplace, capsys):
        refused = partial(workplace.refused, capsys, "--thresholds_only", "-budgets", 0.05)
        assert "calibration/parts has no parts" in refused("--merge")
        main(workplace.options("--thresholds_only", "-budgets", 0.05, "-num_parts", 2, "-part_id", 1))
        capsys.readouterr()
        assert "lacks 1 of 2 parts: 0" in refused("--merge")
        self.parts(workplace, "--thresholds_only", "-budgets", 0.05, number=2)
        capsys.readouterr()
        file = workplace.model / "calibration" / "parts" / "part_1_of_2.pkl.gz"
        said = workplace.refused(capsys, "--replace", "--merge")
        assert "part_0_of_2.pkl.gz was made with different arguments (--thresholds_only is " in said
        assert "(cases is" in refused("--merge", folds=(0,))
        file.write_bytes(file.read_bytes()[:-20])
        assert f"{file} cannot be read" in refused("--merge")
        assert "--merge puts all parts together" in refused("--merge", "-num_parts", 2)
        assert "number of processes must be at least 1, got 0" in refused("-np", 0)


class TestCertificate:
    @pytest.fixture
    def workplace(self, another):
        return another(said=mostly_right)

    def test_is_of_cases_that_nothing_was_fitted_on(self, workplace, capsys):
        calibration = workplace.calibrate("-certify", 0.9, 0.6, "-confidence", 0.5)
        fitted, held_out = calibration.report["cases"], calibration.report["certification"]["cases"]
        assert sorted([*fitted, *held_out]) == list(CASES)
        assert len(held_out) == 3
        alone = json.loads(json.dumps(SPLITS))
        for fold in alone:
            fold["val"] = [case for case in fold["val"] if case in fitted]
        (workplace.preprocessed / "splits_final.json").write_text(json.dumps(alone))
        assert workplace.calibrate().heads == calibration.heads
        assert "of 3 held out for the certificate" in capsys.readouterr().out

    @pytest.mark.parametrize("over", ["case", "dataset"])
    def test_counts_what_predictions_keep(self, workplace, capsys, over):
        """Each case's wrong voxels that are not deferred, from maps decided as a prediction decides."""
        budgets = ["-budgets", 0.3, 0.1, 0.01] if over == "dataset" else []
        calibration = workplace.calibrate("-certify", 0.35, 0.6, "-confidence", 0.5, *budgets)
        report = calibration.report["certification"]
        for row in report["budgets"]:
            above = 0
            for case in report["cases"]:
                reference = read_mask(workplace.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
                model = read_mask(workplace.validation(case) / f"{case}.nii.gz")
                route = workplace.decided(case, Limits(budget=row["budget"], over=over), calibration).maps.route
                kept = np.count_nonzero((model != reference) & (route == 0))
                above += kept / np.count_nonzero(reference) > 0.35
            assert row["violations"] == above
        violations = [row["violations"] for row in report["budgets"]]
        assert min(violations) == 0
        assert max(violations) > 1
        certificate = calibration.certificate
        certified = [row["budget"] for row in report["budgets"] if row["violations"] <= 1]
        assert certificate.budget == min(certified)
        assert (certificate.over, certificate.groups, certificate.predicted_by.folds) == (over, 3, ("0", "1"))
        assert certificate.statement in capsys.readouterr().out

    def test_that_cannot_be_given_is_not_and_says_what_it_takes(self, workplace, capsys):
        calibration = workplace.calibrate("-certify", 0.1, 0.1)
        assert calibration.certificate is None
        said = capsys.readouterr().out
        assert "a share of 0.1 with confidence 0.9 requires this many cases (patients): 22 if 0, 38 if 1" in said

    def test_that_is_tried_again_until_it_succeeds_says_so(self, workplace, capsys):
        for number, kept_error in enumerate((0.1, 0.3, 0.9), 1):
            calibration = workplace.calibrate("-certify", kept_error, 0.6, "-confidence", 0.5)
            assert calibration.report["certification"]["attempts"] == number
            said = f"this is attempt {number} on these cases: only the first has the stated confidence"
            assert (said in capsys.readouterr().out) == (number > 1)

    def test_attempts_are_counted_across_calibrations_without_one(self, workplace, capsys):
        options = ("-certify", 0.9, 0.6, "-confidence", 0.5)
        workplace.calibrate(*options)
        for between in ((), ("--thresholds_only", "-budgets", 0.1), ()):
            capsys.readouterr()
            workplace.calibrate(*between)
        assert "no certificate: the earlier attempt" in capsys.readouterr().out
        assert workplace.calibrate(*options).report["certification"]["attempts"] == 2
        assert "this is attempt 2 on these cases" in capsys.readouterr().out

    def test_that_is_removed_with_its_thresholds_is_not_told_as_one_that_could_not_be_given(self, workplace, capsys):
        options = ("-certify", 0.9, 0.6, "-confidence", 0.5, "-budgets", 0.3)
        assert workplace.calibrate(*options).certificate is not None
        capsys.readouterr()
        workplace.calibrate("--thresholds_only", "-budgets", 0.1)
        said = capsys.readouterr().out
        assert "no certificate" in said
        assert "nothing can be certified" not in said
        assert workplace.calibrate(*options).report["certification"]["attempts"] == 2

    def test_does_not_change_which_maps_are_of_this_model(self, workplace):
        calibration = workplace.calibrate("-certify", 0.9, 0.6, "-confidence", 0.5)
        assert calibration.certificate is not None
        assert replace(calibration, certificate=None).fingerprint == calibration.fingerprint

    def test_over_a_dataset_is_removed_with_its_thresholds(self, workplace):
        options = ("-certify", 0.9, 0.6, "-confidence", 0.5)
        assert workplace.calibrate(*options, "-budgets", 0.3).certificate is not None
        assert workplace.calibrate("--thresholds_only", "-budgets", 0.1).certificate is None
        kept = workplace.calibrate(*options).certificate
        assert kept is not None
        assert workplace.calibrate("--thresholds_only", "-budgets", 0.1).certificate == kept

    def test_is_printed_where_other_limits_are_decided(self, workplace, capsys):
        certificate = workplace.calibrate("-certify", 0.9, 0.6, "-confidence", 0.5).certificate
        source = workplace.root / "predictions"
        shutil.copytree(workplace.validation("a"), source)
        shutil.copy(workplace.model / "dataset.json", source)
        index = maps.index_file(source)
        content = json.loads(index.read_text())
        index.write_text(json.dumps(content | {"calibration": workplace.plans[CALIBRATION_KEY]}))
        for name, budget, words in (("some", 0.3, ""), ("few", certificate.budget / 2, "not for these limits: ")):
            route_main(["-i", str(source), "-o", str(workplace.root / name), "-budget", str(budget)])
            assert f"  {words}{certificate.statement}\n" in capsys.readouterr().out
        prediction = {"folds": ["0", "1"], "mirroring": True}
        index.write_text(json.dumps(json.loads(index.read_text()) | {"prediction": prediction}))
        route_main(["-i", str(source), "-o", str(workplace.root / "ensemble"), "-budget", "0.3"])
        assert f"  not tested for an ensemble: {certificate.statement}\n" in capsys.readouterr().out
        assert PredictionFolder.open(workplace.root / "ensemble").prediction == prediction

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["-certify", 0, 0.1], "the kept error of a certificate must be in (0, 1), got 0"),
            (["-certify", 0.1, 1.5], "the share of a certificate must be in (0, 1), got 1.5"),
            (["-certify", 0.1, 0.1, "-confidence", 1], "the confidence of a certificate must be in (0, 1), got 1"),
            (["-confidence", 0.9], "-confidence is the confidence of a certificate and requires -certify X ALPHA"),
            (["-certify", 0.1, 0.1, "-capacities", 0.1, 0.1], "-certify is for budgets without -capacities"),
            (["-certify", 0.1], "expected 2 arguments"),
            (
                ["-certify", 0.1, 0.1, "-budgets", 0.1, "-min_region_mm", "none", 5],
                "-certify is for budgets of single voxels: -min_region_mm none",
            ),
        ],
    )
    def test_of_impossible_values_is_refused(self, workplace, capsys, options, words):
        assert words in workplace.refused(capsys, *options)

    def test_is_refused_where_nothing_can_be_held_back(self, workplace, capsys):
        validate_one_case(workplace)
        assert "at least 4 cases (patients), got 1" in workplace.refused(capsys, "-certify", 0.1, 0.1, folds=(0,))

    def test_is_refused_beside_a_calibration_fitted_on_all(self, workplace, capsys):
        workplace.calibrate()
        capsys.readouterr()
        options = ("--thresholds_only", "-budgets", 0.1, "-certify", 0.1, 0.1)
        assert "certify without --thresholds_only" in workplace.refused(capsys, *options)


def remove_validation(here):
    shutil.rmtree(here.model / "fold_1" / "validation")


def remove_model(here):
    shutil.rmtree(here.model)


def make_stock(here):
    plans = here.plans
    del plans["deferral"], plans["deferral_model"]
    here.write_plans(**plans)


def make_collaborating(here):
    plans = here.plans
    here.write_plans(**plans | {"deferral": plans["deferral"] | {"objective": "collaboration"}})
    for folder in here.model.glob("fold_*/validation"):
        index = maps.index_file(folder)
        content = json.loads(index.read_text())
        content["settings"]["objective"] = "collaboration"
        index.write_text(json.dumps(content))


def take_maps_of_another_model(here):
    index = maps.index_file(here.model / "fold_1" / "validation")
    index.write_text(index.read_text().replace(TRAINER, "nnUNetTrainerDeferral2Experts"))
    for file in (index.parent / "cases").glob("*.json"):
        entry = json.loads(file.read_text())
        del entry["model"]
        file.write_text(json.dumps(entry))


def take_maps_of_a_stock_model(here):
    shutil.rmtree(here.model / "fold_0" / "validation" / maps.FOLDER)


def cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def validate_one_case(here):
    (here.preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))


def declare_experts(here):
    for folder in (here.raw, here.preprocessed, here.model):
        file = folder / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"experts": list(EXPERTS)}))


@pytest.mark.parametrize("ranking", [False, True])
def test_replacement_is_compared_with_evidence_by_heads_fitted_on_other_patients(another, monkeypatch, ranking):
    workplace, used = another(), []

    def fit_on(cases, pairs, structures, rule, finest, **how):
        used.append(([case for _, case in pairs], rule))
        raise InputError("this is enough")

    monkeypatch.setattr("nnunetv2_deferral.calibration.evidence_fitting._fit_on", fit_on)
    with pytest.raises(SystemExit):
        workplace.calibrate(evidence=True, ranking=ranking)
    ((others, rule),) = used
    assert set(others) < set(CASES)
    splits = json.loads(json.dumps(SPLITS))
    for fold in splits:
        fold["val"] = [case for case in fold["val"] if case in others]
    (workplace.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    alone = workplace.calibrate()
    if rule.combination is None:
        assert rule.heads == alone.heads
    else:
        assert ranking


class TestThePapersObjective:
    @pytest.mark.slow
    def test_reads_answers_as_evidence_and_leaves_the_heads_as_they_are(self, another, capsys):
        workplace = another(said=probabilities_of_routes, objective="collaboration")
        calibration = workplace.calibrate("-budgets", 0.02, evidence=True)
        assert set(calibration.heads) == {IDENTITY}
        assert calibration.report["heads"] == {}
        found = calibration.report["evidence"]
        assert found["kept"] == (calibration.evidence is not None)
        assert "if answers are read as evidence" in capsys.readouterr().out
        deferred = workplace.pooled(Limits(budget=0.02, over="dataset"), calibration).sum()
        # NIfTI stores spacings in single precision, so a few voxels at the threshold differ.
        assert deferred == pytest.approx(0.02 * NUM_VOXELS, abs=5)


class TestStockNetworks:
    @pytest.fixture
    def stock(self, another):
        """A stock network: probabilities, and raters whom the dataset declares, but no maps."""
        here = another()
        make_stock(here)
        declare_experts(here)
        for folder in ("fold_0", "fold_1"):
            shutil.rmtree(here.model / folder / "validation" / maps.FOLDER)
        return here

    @pytest.mark.slow
    def test_are_calibrated_and_routed_by_their_probabilities(self, stock, capsys):
        calibration = stock.calibrate("-budgets", 0.02, evidence=True)
        assert calibration.experts == EXPERTS
        found = calibration.report["evidence"]
        kept = [row["evidence"] >= row["replaced"] - TOLERANCE for row in found["budgets"]]
        assert len(kept) == 4
        assert found["kept"] == all(kept) == (calibration.evidence is not None)
        assert "nnUNetv2_deferral_route" in capsys.readouterr().out
        predictions, output = stock.root / "predictions", stock.root / "out"
        predictions.mkdir()
        for case in CASES:
            for ending in (".nii.gz", ".npz"):
                shutil.copy(stock.validation(case) / f"{case}{ending}", predictions)
        rate = route_folder(predictions, output, limits=Limits(budget=0.02, over="dataset"), model=stock.model)
        assert rate == pytest.approx(0.02, abs=0.002)
        folder = PredictionFolder.open(output)
        assert folder.experts == EXPERTS
        assert folder.calibration.to_dict() == calibration.to_dict()
        for case in CASES:
            predicted = folder.case(case)
            np.testing.assert_array_equal(predicted.model, read_mask(predictions / f"{case}.nii.gz"))
            # Without evidence or a deferral head, the score is the model's doubt.
            softmax = np.load(predictions / f"{case}.npz")["probabilities"]
            doubt = 1 - calibration.heads[0](softmax.max(0))
            right = [calibration.heads[1 + place](np.ones(SHAPE, np.float32)) for place in range(2)]
            np.testing.assert_allclose(predicted.probability, doubt * np.maximum(*right), atol=1e-5)

    @pytest.mark.parametrize("block", [{}, {"deferral": {"num_experts": 2}}])  # of plans for deferral networks
    def test_need_saved_probabilities(self, stock, capsys, block):
        stock.write_plans(**stock.plans | block)
        (stock.validation("e") / "e.npz").unlink()
        assert "e.npz" in stock.refused(capsys)

    def test_need_the_probabilities_of_their_masks(self, stock, capsys):
        with np.load(file := stock.validation("e") / "e.npz") as content:
            earlier = content["probabilities"][::-1]
        np.savez(file, probabilities=earlier)
        assert re.search(r"e\.npz does not belong to \S+: \d+ of \d+ voxels", stock.refused(capsys))

    def test_without_a_calibration_are_not_routed(self, stock):
        with pytest.raises(InputError, match=r"plans\.json has no calibration of a stock network"):
            route_folder(stock.validation("a"), stock.root / "out", limits=Limits(budget=0.1), model=stock.model)
        assert not (stock.root / "out").exists()


class TestRoutingAnew:
    def test_decides_as_a_prediction_with_these_limits(self, workplace):
        calibration = workplace.calibrate()
        source, output = workplace.validation("a"), workplace.root / "routed"
        limits = Limits(budget=0.01)
        rate = route_folder(source, output, limits=limits, dataset_json=workplace.model / "dataset.json")
        assert 0 < rate <= 0.01
        for case in CASES[:3]:  # the maps were made before the calibration, and are decided as they were
            expected = workplace.decided(case, limits, None)
            found = PredictionFolder.open(output).case(case)
            np.testing.assert_array_equal(found.route, expected.maps.route)
            np.testing.assert_allclose(found.gain, expected.maps.gain, atol=expected.maps.gain.max() / 65535)
        assert calibration.evidence is None
        shutil.rmtree(output)

    def test_refuses_what_it_cannot_decide_or_would_overwrite(self, workplace):
        source, output = workplace.validation("a"), workplace.root / "routed"
        how = {"dataset_json": workplace.model / "dataset.json"}
        with pytest.raises(InputError, match="thresholds"):
            route_folder(source, output, limits=Limits(budget=0.01, over="dataset"), **how)
        with pytest.raises(InputError, match="-capacities must have one entry"):
            route_folder(source, output, limits=Limits(capacities=(0.1,)), **how)
        output.mkdir()
        (output / "mine.txt").write_text("mine")
        with pytest.raises(InputError, match="is not empty"):
            route_folder(source, output, limits=Limits(budget=0.01), **how)
        assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_evidence_of_experts_who_were_simulated_beforehand_is_of_simulated_experts(workplace, monkeypatch):
    """As evaluations take who answered from such a folder."""
    profiles = tuple(replace(each, name=name) for each, name in zip(expert_set("standard", 2), EXPERTS, strict=True))
    record = {"experts": experts_to_json(profiles), "seed": 0}
    (workplace.raw / "expertsTr" / SIMULATION_NAME).write_text(json.dumps(record))
    monkeypatch.setattr("nnunetv2_deferral.calibration.evidence_fitting.TOLERANCE", 1)  # it is kept whatever it gains
    evidence = workplace.calibrate(evidence=True).evidence
    assert evidence.applies_to(experts_to_json(who_answered(workplace.raw / "expertsTr", EXPERTS)))
    assert not evidence.applies_to(list(EXPERTS))


def mask_postprocessed(here):
    """Masks note what was predicted, and one is another one since."""
    folder = maps.DeferralFolder(
        folder=here.root / "predictions", file_ending=".nii.gz", writer=reader_of(".nii.gz"), settings=here.settings,
        model=maps.ModelIdentity(dataset=DATASET, plans="nnUNetPlans", configuration="2d", trainer=TRAINER,
                                 experts=EXPERTS),
    )  # fmt: skip
    for case in CASES:
        folder.note_mask(f"new_{case}", with_probabilities=True)
    write_mask(folder.folder / "new_a.nii.gz", np.zeros(SHAPE, np.uint8))


def note_folds_as_a_word(here):
    index = maps.index_file(here.root / "predictions")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"prediction": {"folds": "all"}}))


class TestPredictions:
    """In place of final validations: predictions of cases that the networks were not trained on."""

    def calibrated(self, workplace, folder, *more):
        main(workplace.of_predictions(folder, "--replace", "--keep_heads", *more))
        return ModelCalibration.from_dict(workplace.plans[CALIBRATION_KEY], EXPERTS)

    def test_are_calibrated_on_as_validations_are(self, workplace, capsys):
        of_validations = workplace.calibrate("-budgets", 0.05)
        made = self.calibrated(workplace, workplace.predict(), "-budgets", 0.05)
        assert (made.heads, made.thresholds) == (of_validations.heads, of_validations.thresholds)
        assert made.confidence == of_validations.confidence
        assert made.report["cases"] == [f"new_{case}" for case in CASES]
        assert made.report["folds"] == ["all"]
        assert made.report["prediction"]["folds"] == ["all"]
        said = capsys.readouterr().out
        how = "checkpoint checkpoint_final.pth, mirroring True, step_size 0.5"
        assert f"6 cases in predictions by the network of fold all ({how})" in said

    def test_of_an_ensemble_certify_the_ensemble(self, another):
        workplace = another(said=mostly_right)
        others = [{"train": ["x"], "val": ["y"]}, {"train": ["y"], "val": ["x"]}]
        (workplace.preprocessed / "splits_final.json").write_text(json.dumps(others))
        made = self.calibrated(workplace, workplace.predict(folds=["0", "1"]), "-certify", 0.9, 0.6, "-confidence", 0.5)
        assert made.report["folds"] == [0, 1]
        assert "held out from the ensemble of folds 0 and 1 and from calibration" in made.certificate.statement
        assert made.certificate.predicted_by.unlike({"folds": ["1", "0"], "mirroring": True}) == ""
        assert made.certificate.predicted_by.unlike({"folds": ["0"]}) == "the network of fold 0"

    def test_of_a_fold_are_forgotten_when_it_is_trained_again(self, workplace):
        self.calibrated(workplace, workplace.predict())
        assert calibration_of_other_folds(workplace.plans_file, 0) is not None
        assert calibration_of_other_folds(workplace.plans_file, "all") is None

    def test_in_parts_are_those_of_one_call(self, workplace):
        folder = workplace.predict()
        whole = self.calibrated(workplace, folder)
        for part in range(2):
            main(workplace.of_predictions(folder, "--replace", "--keep_heads", "-num_parts", 2, "-part_id", part))
        merged = self.calibrated(workplace, folder, "--merge")
        said = np.linspace(0.01, 0.99, 50)
        for one, other in zip(whole.heads, merged.heads, strict=True):
            assert one(said) == pytest.approx(other(said), abs=1e-6)

    def test_give_thresholds_to_their_own_calibration_only(self, workplace, capsys):
        folder = workplace.predict()
        before = self.calibrated(workplace, folder)
        main(workplace.of_predictions(folder, "--thresholds_only", "-budgets", 0.05))
        after = ModelCalibration.from_dict(workplace.plans[CALIBRATION_KEY], EXPERTS)
        assert (after.heads, after.report, len(after.thresholds)) == (before.heads, before.report, 1)
        capsys.readouterr()
        said = workplace.refused(capsys, "--thresholds_only", "-budgets", 0.05)
        assert "was fitted on predictions by the network of fold all (" in said
        assert "not on final validations of folds 0 and 1" in said

    def test_that_only_thresholds_were_fitted_on_are_known_to_have_been_seen(self, workplace):
        folder = workplace.predict()
        self.calibrated(workplace, folder)
        other = workplace.root / "other"
        shutil.copytree(folder, other)
        for file in [*other.rglob("new_*"), *workplace.root.glob("labelsTs/*"), *workplace.root.glob("expertsTs/*/*")]:
            if file.is_relative_to(other):
                file.rename(file.with_name(file.name.replace("new_", "newer_")))
            else:
                shutil.copy(file, file.with_name(file.name.replace("new_", "newer_")))
        main(workplace.of_predictions(other, "--thresholds_only", "-budgets", 0.05))
        seen = ModelCalibration.from_dict(workplace.plans[CALIBRATION_KEY], EXPERTS).seen
        assert seen == {f"{new}_{case}" for new in ("new", "newer") for case in CASES}

    def test_are_not_certified_anew_because_others_were_in_between(self, another, capsys):
        workplace, options = another(said=mostly_right), ("-certify", 0.9, 0.6, "-confidence", 0.5)
        folder = workplace.predict()
        for number in (1, 2):
            assert workplace.calibrate(*options).report["certification"]["attempts"] == number
            assert self.calibrated(workplace, folder, *options).report["certification"]["attempts"] == number

    def test_need_neither_all_maps_nor_a_dataset_json(self, workplace):
        folder = workplace.predict()
        expected = self.calibrated(workplace, folder)
        index = maps.index_file(folder)
        index.write_text(json.dumps(json.loads(index.read_text()) | {"maps": ["route"]}))
        for kind in ("probability", "expert", "gain"):
            shutil.rmtree(folder / maps.FOLDER / kind)
        (folder / "dataset.json").unlink()
        assert self.calibrated(workplace, folder) == expected

    def test_by_which_a_network_was_chosen_are_named(self, workplace, caplog):
        splits = [{"train": ["x"], "val": ["y", "new_b"]}]
        (workplace.preprocessed / "splits_final.json").write_text(json.dumps(splits))
        for checkpoint in ("checkpoint_final.pth", "checkpoint_best.pth"):
            assert not caplog.records
            self.calibrated(workplace, workplace.predict(checkpoint, folds=["0"], checkpoint=checkpoint))
        (record,) = caplog.records
        assert "checkpoint_best.pth of fold 0 was chosen as the best one on validation cases" in record.getMessage()
        assert "(1: new_b)" in record.getMessage()

    def test_of_a_newer_network_are_doubted(self, workplace, caplog):
        folder, checkpoint = workplace.predict(), workplace.model / "fold_all" / "checkpoint_final.pth"
        checkpoint.parent.mkdir()
        checkpoint.touch()
        self.calibrated(workplace, folder)
        assert f"{checkpoint} is newer than predictions in {folder}" in caplog.text
        caplog.clear()
        os.utime(checkpoint, (0, 0))
        self.calibrated(workplace, folder)
        assert not caplog.records

    @pytest.mark.parametrize(
        ("spoil", "prediction", "words"),
        [
            (lambda here: None, {"folds": None}, "does not record which folds made the predictions"),
            (lambda here: (here.preprocessed / "gt_segmentations" / "new_b.nii.gz").touch(), {},
             "contains cases that the network of fold all was trained on (1): new_b. Calibrate on other cases"),
            (lambda here: (here.root / "predictions" / "new_c.npz").unlink(), {},
             "new_c.npz is missing: calibration requires the masks and probabilities of all cases. Predict with"),
            (lambda here: (here.root / "labelsTs" / "new_c.nii.gz").unlink(), {}, "without a reference"),
            (lambda here: (here.root / "expertsTs" / REVIEW_NAME).write_text('{"cases": {}}'), {},
             "has the answers of a review, which cover only what the model asked"),
            (mask_postprocessed, {}, ": 1 case has a mask other than the one predicted with the maps (new_a)"),
            (make_collaborating, {}, "contains the deferral maps of another model (objective: one_vs_all)"),
            (make_stock, {}, "is a stock network, which is calibrated on its final validations (-f)"),
            (remove_model, {}, "does not exist; trained are no models"),
            (lambda here: None, {"folds": ["7"]}, "has 2 folds, but not fold 7"),
            (lambda here: None, {"folds": ["x"]}, "a fold must be a number or \"all\", got 'x'"),
            (note_folds_as_a_word, {}, "deferral.json: prediction.folds must be a list, got 'all'"),
            (lambda here: [(here.root / "predictions" / f"new_{case}.nii.gz").unlink() for case in CASES[1:]], {},
             "labels in at least two cases (patients) for cross-validation, got new_a; more folds (-f) or predictions"),
            (lambda here: shutil.rmtree(here.preprocessed / "gt_segmentations"), {},
             'gt_segmentations has no *.nii.gz, so that it is not known which cases the network of fold "all" was'),
        ],
    )  # fmt: skip
    def test_that_cannot_be_calibrated_on_are_refused(self, workplace, capsys, spoil, prediction, words):
        folder = workplace.predict(**prediction)
        spoil(workplace)
        assert words in workplace.refused_with(capsys, workplace.of_predictions(folder))

    @pytest.mark.parametrize(("patient", "same"), [("patient_a", "patient_a"), (1, "1")])
    def test_of_patients_of_the_training_are_refused(self, workplace, capsys, patient, same):
        folder, file = workplace.predict(), workplace.root / "groups.json"
        groups = {f"new_{case}": f"patient_{case}" for case in CASES} | {"new_a": patient}
        file.write_text(json.dumps(groups | {"a": same, "b": "somebody"}))
        said = workplace.refused_with(capsys, workplace.of_predictions(folder, "-groups", file))
        assert f"of groups (patients) that the network of fold all was trained on (1): new_a of {patient}" in said

    def test_are_given_with_references_and_without_folds(self, workplace, capsys):
        folder = workplace.predict()
        assert "given together" in workplace.refused(capsys, "-i", folder)
        said = workplace.refused(capsys, "-i", folder, "-ref", workplace.root / "labelsTs")
        assert "predictions (-i) record which folds made them" in said
        said = workplace.refused(capsys, "-experts", workplace.root / "expertsTs")
        assert "a folder of masks is for predictions (-i); of validation cases, masks are read from expertsTr" in said


class TestRefusals:
    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (remove_validation, [f"{TRAINER}__", "has no validation of fold 1 (-f); there is one of fold 0"]),
            (remove_model, [f"{TRAINER}__", "does not exist; trained are no models"]),
            (make_stock, ["is a stock network", "declares no experts", "-experts"]),
            (
                take_maps_of_another_model,
                ["fold_1/validation contains the deferral maps of another model", "nnUNetTrainerDeferral2Experts"],
            ),
            (take_maps_of_a_stock_model, ["fold_0/validation has no deferral maps", "stock model"]),
            (lambda here: shutil.rmtree(here.preprocessed), ["has no dataset.json: plan and preprocess"]),
            (lambda here: (here.model / "dataset.json").unlink(), ["dataset.json"]),
            (lambda here: (here.preprocessed / "splits_final.json").unlink(), ["splits_final.json is missing"]),
            (lambda here: shutil.rmtree(here.raw / "expertsTr"), ["masks of ann, bob", "expertsTr"]),
            (lambda here: (here.preprocessed / "gt_segmentations" / "e.nii.gz").unlink(), ["e.nii.gz is missing"]),
            (
                lambda here: write_mask(here.raw / "expertsTr" / "bob" / "e.nii.gz", np.zeros((2, 40, 42), np.uint8)),
                ["bob/e.nii.gz: shape (2, 40, 42) instead of (4, 40, 42)"],
            ),
            (
                lambda here: write_mask(here.preprocessed / "gt_segmentations" / "e.nii.gz", np.zeros(SHAPE, np.uint8),
                                        origin=(0.0, 0.0, 0.0)),
                ["e.nii.gz does not match its prediction: origin (0, 0, 0) instead of"],
            ),
            (lambda here: cut_short(here.plans_file), ["plans.json cannot be read"]),
            (lambda here: cut_short(maps.routing_file(here.validation("b"), "b")), ["routing/b.npz cannot be read"]),
            (
                lambda here: maps.save_routing(here.validation("b"), "b", np.full((2, *SHAPE), 0.5, np.float32)),
                ["routing/b.npz has shape (2, 4, 40, 42) instead of (3, 4, 40, 42)"],
            ),
        ],
    )  # fmt: skip
    def test_what_is_not_as_a_validation_leaves_it(self, workplace, capsys, spoil, words):
        spoil(workplace)
        said = workplace.refused(capsys)
        for word in words:
            assert word in said

    def test_the_papers_objective_without_evidence_because_there_is_nothing_to_fit(self, workplace, capsys):
        make_collaborating(workplace)
        said = workplace.refused(capsys, "--replace")
        for word in ('"collaboration"', "_OvA", "without --replace", "--thresholds_only -budgets"):
            assert word in said

    @pytest.mark.parametrize("case", ["b", "f"])
    @pytest.mark.parametrize("of", ["routes", "classes", "mask"])
    def test_a_case_without_probabilities_with_the_command_that_writes_them(self, workplace, capsys, case, of):
        folder = workplace.validation(case)
        file = {
            "routes": maps.routing_file(folder, case),
            "classes": folder / f"{case}.npz",
            "mask": folder / f"{case}.nii.gz",
        }[of]
        file.unlink()
        said = workplace.refused(capsys)
        assert f"{file} is missing" in said
        fold = CASES.index(case) // 3
        assert f"nnUNetv2_train {DATASET} 2d {fold} -tr {TRAINER} -p nnUNetPlans --val --npz" in said

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--thresholds_only"], ["--thresholds_only needs -budgets or -capacities"]),
            (["-budgets", 1.5], ["budget must be a share of the voxels in [0, 1], got 1.5"]),
            (["-budgets", 0.1, -0.1], ["budget must be a share of the voxels in [0, 1], got -0.1"]),
            (["-budgets", "nan"], ["budget must be a share of the voxels in [0, 1], got nan"]),
            (["-budgets", "some"], ["-budgets", "'some'"]),
            (
                ["-capacities", 0.1, 0.1, 0.1],
                ["-capacities must have one entry for each of 2 experts", "(0.1, 0.1, 0.1)"],
            ),
            (["-capacities", 0.1], ["-capacities must have one entry for each of 2 experts", "(0.1,)"]),
            (["-capacities", 0.1, 1.1], ["capacity must be a share of the voxels in [0, 1], got 1.1"]),
            (["-capacities", "some", 0.1], ["-capacities", "'some'"]),
            (
                ["-budgets", 0.05, 0.5, "-capacities", 0.1, 0.2],
                ["the budget 0.5 exceeds the sum 0.3 of the experts' capacities [0.1, 0.2]"],
            ),
            (["-experts", "standard"], ["the model's experts are ann, bob, those of set standard expert1, expert2"]),
            (["-experts", "unheard_of"], ["unknown set of simulated experts 'unheard_of'", "standard"]),
            (
                ["-p", "nnUNetResEncUNetMPlans"],
                ["__nnUNetResEncUNetMPlans__2d does not exist; trained are "],
            ),
        ],
    )
    def test_options_that_make_no_sense(self, workplace, capsys, options, words):
        said = workplace.refused(capsys, *options)
        for word in words:
            assert word in said

    def test_a_fold_that_does_not_exist(self, workplace, capsys):
        assert "splits_final.json has 2 folds, but not fold 2" in workplace.refused(capsys, folds=(0, 1, 2))
        assert "distinct numbers >= 0, got [0, 0]" in workplace.refused(capsys, folds=(0, 0))

    @pytest.mark.parametrize("folds", [("all",), (0, "all")])
    def test_fold_all_has_no_validation_of_its_own(self, workplace, capsys, folds):
        said = workplace.refused(capsys, folds=folds)
        assert 'fold "all" has no validation of its own' in said
        assert "or calibrate on predictions of cases that it was not trained on (-i PREDICTIONS -ref LABELS)" in said

    def test_a_fold_that_is_not_a_number(self, workplace, capsys):
        assert "folds (-f) must be numbers, got 0 one" in workplace.refused(capsys, folds=(0, "one"))

    def test_a_single_case(self, workplace, capsys):
        validate_one_case(workplace)
        said = workplace.refused(capsys, folds=(0,))
        assert "labels in at least two cases (patients) for cross-validation, got a; more folds (-f)" in said

    def test_a_single_group(self, workplace, capsys):
        file = workplace.root / "groups.json"
        file.write_text(json.dumps(dict.fromkeys(CASES, "eve")))
        assert "for cross-validation, got eve" in workplace.refused(capsys, "-groups", file)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (json.dumps(dict.fromkeys(CASES[:-1], "eve")), "(1): f"),
            (json.dumps(list(CASES)), "must map cases to groups, got a list"),
            ('{"a": ', "cannot be read"),
            (None, "is missing"),
        ],
        ids=["lacking", "list", "cut short", "missing"],
    )
    def test_groups_that_are_none(self, workplace, capsys, content, words):
        file = workplace.root / "groups.json"
        if content is not None:
            file.write_text(content)
        said = workplace.refused(capsys, "-groups", file)
        assert str(file) in said
        assert words in said

    def test_what_was_fitted_before_stays_when_a_later_call_is_refused(self, workplace, capsys):
        workplace.calibrate("-budgets", 0.05)
        capsys.readouterr()
        before = workplace.plans[CALIBRATION_KEY]
        remove_validation(workplace)
        workplace.refused(capsys, "-budgets", 0.1)
        assert workplace.plans[CALIBRATION_KEY] == before

    def test_an_expert_who_answered_no_case_is_named(self, workplace, capsys):
        shutil.rmtree(workplace.raw / "expertsTr" / "bob")
        assert "bob" in workplace.refused(capsys)
