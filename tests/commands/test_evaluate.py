"""`nnUNetv2_deferral_evaluate` on made-up folders: what it writes, and what it refuses before it computes anything."""

import csv
import json
import shutil

import numpy as np
import pytest
from close_to import assert_close
from made_once import made_once
from page_reader import Reader
from small_certificate import certificate
from small_prediction import GEOMETRY, deferral_folder, read_mask, reader_of, write_mask, write_prediction

from nnunetv2_deferral import folds, maps
from nnunetv2_deferral.commands.evaluate import main
from nnunetv2_deferral.decision.calibrators import IDENTITY, Temperature
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.defaults import AGGREGATED, MAPS
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.evaluation.summary import SUMMARY_NAME
from nnunetv2_deferral.evaluation.surfaces import surface_scores
from nnunetv2_deferral.expert_sim.profiles import expert_set
from nnunetv2_deferral.experts import experts_to_json
from nnunetv2_deferral.folds import EnsembleIdentity, FoldsFolder
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.image_files import write_values
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.report.curves import draw_curves
from nnunetv2_deferral.settings import resolve_settings


class Folders:
    """A prediction of two cases with references and experts beside it."""

    def __init__(self, root, *, ending=".nii.gz", experts=("ann", "bob")):
        self.root, self.ending, self.experts = root, ending, experts
        made = made_once(root, ("evaluated", ending, experts), lambda folder: self._write(folder, ending, experts))
        self.predicted, self.reference, self.answers = made

    @staticmethod
    def _write(root, ending, experts):
        written, reference, answers = write_prediction(root / "out", ending=ending, experts=experts), {}, {}
        for number, (case, predicted) in enumerate(written.items()):
            random = np.random.default_rng(10 + number)
            reference[case] = random.integers(0, 3, predicted.model.shape).astype(np.uint8)
            write_mask(root / "labels" / f"{case}{ending}", reference[case])
            for expert in experts:
                labels = np.where(random.random(predicted.model.shape) < 0.8, reference[case], 0).astype(np.uint8)
                answers[case, expert] = labels
                write_mask(root / "experts" / expert / f"{case}{ending}", labels)
        return written, reference, answers

    def file(self, *parts):
        *folders, case = parts
        return self.root.joinpath(*folders, f"{case}{self.ending}")

    def options(self, *more, experts="experts"):
        given = ["-i", self.root / "out", "-ref", self.root / "labels", "-o", self.root / "evaluation"]
        if experts is not None:
            given += ["-experts", self.root / experts if experts == "experts" else experts]
        return [str(word) for word in (*given, *more)]

    def evaluate(self, *more, **how):
        main(self.options(*more, **how))
        return json.loads((self.root / "evaluation" / SUMMARY_NAME).read_text())

    def refused(self, capsys, *more, **how):
        with pytest.raises(SystemExit) as ended:
            main(self.options(*more, **how))
        assert ended.value.code == 2
        assert not (self.root / "evaluation").exists()
        return capsys.readouterr().err


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_system_experts_and_model_are_scored_as_their_masks_are(tmp_path, ending):
    folders = Folders(tmp_path, ending=ending)
    summary = folders.evaluate()
    for case, predicted in folders.predicted.items():
        experts = np.stack([folders.answers[case, expert] for expert in folders.experts])
        masks = {
            "system": fuse_masks(predicted.model, experts, predicted.route),
            "model_everywhere": predicted.model,
            "expert_everywhere/ann": experts[0],
        }
        for key, mask in masks.items():
            part = summary
            for name in key.split("/"):
                part = part[name]
            row = next(row for row in part["metric_per_case"] if row["case"] == case)
            expected = overlap(folders.reference[case].astype(int), mask.astype(int), [1, 2])
            assert row["metrics"]["1"]["Dice"] == pytest.approx(expected["1"]["Dice"])
            assert row["metrics"]["2"]["TP"] == expected["2"]["TP"]
    route = np.concatenate([predicted.route.ravel() for predicted in folders.predicted.values()])
    assert summary["deferral"]["rate"] == pytest.approx((route > 0).mean())
    assert summary["deferred"]["total"]["deferred"] == (route > 0).sum()


def test_masks_that_were_not_predicted_with_the_maps_are_cautioned_about(folders, capsys):
    for case in folders.predicted:
        deferral_folder(folders.root / "out", ".nii.gz", folders.experts).note_mask(case, with_probabilities=False)
    write_mask(folders.file("out", "x"), np.roll(folders.predicted["x"].model, 1))
    assert folders.evaluate()["other_masks"] == ["x"]
    assert "CAUTION: 1 case has a mask other than the one predicted with the maps (x)" in capsys.readouterr().out


def test_at_budget_0_of_nothing_and_at_1_of_everything_the_rankings_agree(folders):
    summary = folders.evaluate("-budgets", 0, 1)
    model = summary["intervals"]["Dice"]["model_everywhere"]["estimate"]
    for name, rows in summary["budgets"].items():
        assert rows[0]["Dice"] == pytest.approx(model), name
    whole = {name: rows[1]["Dice"] for name, rows in summary["budgets"].items()}
    assert whole["learned"] == pytest.approx(whole["random"])
    assert whole["learned, always ann"] == pytest.approx(summary["intervals"]["Dice"]["ann"]["estimate"])
    assert whole["oracle"] >= max(whole.values())


def test_the_probabilities_beside_the_masks_bring_the_models_own_confidence(folders):
    assert "entropy" not in folders.evaluate()["budgets"]
    for case, predicted in folders.predicted.items():
        probabilities = np.random.default_rng(0).dirichlet(np.ones(3), predicted.model.shape)
        np.savez_compressed(folders.root / "out" / f"{case}.npz", probabilities=np.moveaxis(probabilities, -1, 0))
    summary = folders.evaluate()
    assert {"learned", "max_softmax", "entropy", "random", "oracle"} <= set(summary["budgets"])
    own, known = {"probability", "max_softmax", "entropy"}, {"near_border", "near_centre", "prior_map", "mask_only"}
    assert own | known == set(summary["risk_coverage"])


def test_the_map_of_the_aggregated_predictor_is_one_ranking_more(folders, capsys):
    file = maps.index_file(folders.root / "out")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"maps": [*MAPS, AGGREGATED]}))
    of_aggregated = {case: maps.MAP_FILES[AGGREGATED](folders.root / "out", case, ".nii.gz") for case in ("x", "y")}
    assert f"deferral maps are missing (2): {of_aggregated['x']}" in folders.refused(capsys)
    for case, predicted in folders.predicted.items():
        wrong = (predicted.model != folders.reference[case]).astype(np.float32)
        write_values(wrong, 1, of_aggregated[case], reader_of(".nii.gz"), GEOMETRY)
    found = folders.evaluate("-budgets", 0.3)["budgets"]
    assert found[AGGREGATED][0]["Dice"] > found["probability"][0]["Dice"] + 0.05


def test_tables_have_a_row_a_case_and_a_row_a_ranking_and_budget(folders):
    summary = folders.evaluate()
    with (folders.root / "evaluation" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["x", "y"]
    dice = summary["system"]["metric_per_case"][0]["metrics"]["1"]["Dice"]
    assert float(rows[0]["Dice_system_1"]) == pytest.approx(dice)
    with (folders.root / "evaluation" / "budgets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(found) for found in summary["budgets"].values())


def test_where_an_expert_left_a_case_out_the_models_answer_counts_and_it_is_said(folders):
    folders.file("experts", "bob", "y").unlink()
    summary = folders.evaluate()
    predicted = folders.predicted["y"]
    experts = np.stack([folders.answers["y", "ann"].astype(int), np.full(predicted.model.shape, MISSING)])
    fused = fuse_masks(predicted.model, experts, predicted.route)
    row = summary["system"]["metric_per_case"][1]["metrics"]["1"]
    assert row["Dice"] == pytest.approx(
        overlap(folders.reference["y"].astype(int), fused.astype(int), [1])["1"]["Dice"]
    )
    assert summary["deferred"]["per_case"]["y"]["unanswered"] == (predicted.route == 2).sum()
    assert [row["case"] for row in summary["expert_everywhere"]["bob"]["metric_per_case"]] == ["x"]


def test_groups_are_drawn_together(folders):
    file = folders.root / "groups.json"
    file.write_text(json.dumps({"x": "patient", "y": "patient"}))
    summary = folders.evaluate("-groups", file)
    assert summary["intervals"]["num_groups"] == 1
    assert np.isnan(summary["intervals"]["Dice"]["system"]["low"])


def test_masks_of_folds_are_compared_with_each_other(folders):
    for fold in ("fold_0", "fold_1"):
        for case, predicted in folders.predicted.items():
            write_mask(folders.file(fold, case), np.roll(predicted.model, int(fold[-1]), axis=-1))
    summary = folders.evaluate("-folds", folders.root / "fold_0", folders.root / "fold_1")
    found = summary["failure_detection"]["fold_disagreement"]["per_case"]
    assert all(0 < value <= 1 for value in found.values())


def test_folds_that_were_predicted_with_the_ensemble_are_found(folders, capsys):
    out, names = folders.root / "out", ("0", "1")
    ensemble = EnsembleIdentity(dataset="D", plans="P", configuration="2d", trainer="T", folds=names)
    written = FoldsFolder(folder=out, file_ending=".nii.gz", writer=reader_of(".nii.gz"), ensemble=ensemble)
    written.enter()
    for case, predicted in folders.predicted.items():
        for fold in names:
            written.write_mask(case, fold, np.roll(predicted.model, int(fold), axis=-1), GEOMETRY)
        written.write_information(case, predicted.probability, GEOMETRY)
    found = folders.evaluate()["failure_detection"]
    assert all(value > 0 for value in found["fold_disagreement"]["per_case"].values())
    mean = folders.predicted["x"].probability.mean()
    assert found["mutual_information, mean"]["per_case"]["x"] == pytest.approx(mean, abs=1e-4)
    folds.information_file(out, "y", ".nii.gz").unlink()
    capsys.readouterr()
    assert not {"fold_disagreement", "mutual_information, mean"} & folders.evaluate()["failure_detection"].keys()
    assert "disagreement between folds omitted: not all cases have masks of folds" in capsys.readouterr().out


def simulated(root):
    """Predictions of a model that was trained with two simulated experts."""
    panel = expert_set("standard", 2)
    folders = Folders(root, experts=tuple(profile.name for profile in panel))
    index = maps.index_file(root / "out")
    content = json.loads(index.read_text())
    content["settings"] = resolve_settings({"experts": [profile.to_json() for profile in panel]}).to_dict()
    index.write_text(json.dumps(content))
    return folders


def test_without_a_folder_the_experts_of_the_training_answer_with_its_seed(tmp_path):
    folders = simulated(tmp_path)
    first, second = folders.evaluate(experts=None), folders.evaluate(experts="standard")
    assert first["experts"]["seed"] == 0
    assert first["system"] == second["system"]
    assert folders.evaluate("-seed", 1, experts="standard")["system"] != first["system"]
    assert folders.evaluate("-error_model", "correlated", experts=None)["system"] != first["system"]


class TestSimulatedBesideAFolder:
    def write(self, folders, *names):
        for name in names:
            for case, predicted in folders.predicted.items():
                write_mask(folders.root / "some" / name / f"{case}.nii.gz", predicted.model)

    def test_nobody_is_simulated_who_is_not_named(self, tmp_path, capsys):
        folders = simulated(tmp_path)
        self.write(folders, "expert1")
        said = folders.refused(capsys, experts=folders.root / "some")
        assert f"no *.nii.gz in {folders.root / 'some' / 'expert2'}" in said
        assert "can be simulated with -simulated: expert1, expert2" in said

    def test_those_who_are_named_are_simulated_and_printed(self, tmp_path, capsys):
        folders = simulated(tmp_path)
        self.write(folders, "expert1")
        summary = folders.evaluate("-simulated", "expert2", experts=folders.root / "some")
        assert summary["experts"]["experts"][0] == "expert1"
        assert summary["experts"]["experts"][1]["name"] == "expert2"
        assert "  simulated experts: expert2 (independent)\n" in capsys.readouterr().out
        other = folders.evaluate("-simulated", "expert2", "-seed", 3, experts=folders.root / "some")
        assert other["expert"] != summary["expert"]

    @pytest.mark.parametrize("made", ["empty", "labels", "renamed", "review"])
    def test_a_folder_without_the_experts_answers(self, tmp_path, capsys, made):
        folders, folder = simulated(tmp_path), tmp_path / "some"
        folder.mkdir()
        if made == "labels":
            folder = tmp_path / "labels"  # masks, but not in folders of experts
        if made == "renamed":
            self.write(folders, "Expert1", "Expert2")
        if made == "review":
            (folder / "review.json").write_text('{"cases": {}}')
        said = folders.refused(capsys, experts=folder)
        assert str(folder) in said
        assert ("not spelled expert1" in said) == (made == "renamed")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["-error_model", "correlated"], "-error_model correlated is for simulated experts"),
            (["-simulated", "eve"], "cannot simulate eve: the simulated experts of the training are expert1, expert2"),
            (["-simulated", "expert1"], "expert1 cannot be simulated: there are masks in "),
        ],
    )
    def test_options_that_contradict_the_folder(self, tmp_path, capsys, options, message):
        folders = simulated(tmp_path)
        self.write(folders, "expert1", "expert2")
        assert message in folders.refused(capsys, *options, experts=folders.root / "some")

    def test_without_a_folder_nobody_can_be_named(self, tmp_path, capsys):
        said = simulated(tmp_path).refused(capsys, "-simulated", "expert1", experts=None)
        assert "-simulated requires a folder of masks" in said


def test_domains_are_compared_in_the_summary_in_the_report_and_in_the_terminal(folders, capsys):
    file, report = folders.root / "domains.json", folders.root / "report.html"
    file.write_text(json.dumps({"x": "hospital A", "y": "ID"}))
    index = maps.case_file(folders.root / "out", "x")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"limits": {"budget": 0.3, "over": "case"}}))
    summary = folders.evaluate("-domains", file, "--report", report)
    found = summary["domains"]
    assert {name: (each["cases"], each["budget"]) for name, each in found.items()} == {
        "hospital A": (1, 0.3), "ID": (1, None),
    }  # fmt: skip
    rows = {row["case"]: row["metrics"] for row in summary["system"]["metric_per_case"]}
    mean = np.mean([rows["x"][label]["Dice"] for label in ("1", "2")])
    assert found["hospital A"]["Dice"]["system"]["estimate"] == pytest.approx(mean)
    said = capsys.readouterr().out
    assert "  hospital A: 1 case, model " in said
    assert "of the voxels of each domain, the learned ranking has" in said
    page = Reader(report.read_text())
    table = [row for row in page.rows if row and row[0] in ("ID", "hospital A")]
    assert [row[0] for row in table] == ["ID", "hospital A"]
    assert "of 30.0 %" in " ".join(table[1])


def test_cases_without_a_domain_are_named(folders, capsys):
    file = folders.root / "domains.json"
    file.write_text(json.dumps({"x": "ID"}))
    assert f"cases without a domain in {file} (1): y" in folders.refused(capsys, "-domains", file)


def one_vs_all(folders, *, heads=None, objective="one_vs_all", number=None):
    """Routing probabilities beside the maps of a one-vs-all model, of all cases or the first `number`."""
    index = maps.index_file(folders.root / "out")
    content = json.loads(index.read_text())
    content["settings"]["objective"] = objective
    if heads is not None:
        calibration = ModelCalibration(experts=folders.experts, heads=tuple(heads))
        content["calibration"] = calibration.to_dict()
    index.write_text(json.dumps(content))
    written = {}
    for case, predicted in list(folders.predicted.items())[:number]:
        shape = (len(folders.experts) + 1, *predicted.model.shape)
        written[case] = np.random.default_rng(5).uniform(0.2, 0.9, shape).astype(np.float32)
        written[case][:, 0, 0] = np.nan
        maps.save_routing(folders.root / "out", case, written[case])
    return written


def test_what_a_one_vs_all_model_says_is_compared_with_what_happened(folders, capsys):
    said = one_vs_all(folders)
    found = folders.evaluate()["reliability"]
    right = {
        "model": [folders.predicted[case].model == folders.reference[case] for case in said],
        "bob": [folders.answers[case, "bob"] == folders.reference[case] for case in said],
    }
    for name, place in (("model", 0), ("bob", 2)):
        predicted = [~np.isnan(each[place]) for each in said.values()]
        bias = np.concatenate(
            [
                each[place][where] - was[where]
                for each, where, was in zip(said.values(), predicted, right[name], strict=True)
            ]
        )
        head = found["heads"][name]["all"]
        assert head["before"]["bias"] == pytest.approx(bias.mean(), abs=1e-4)
        assert head["after"] is None
    ece = found["heads"]["bob"]["least_certain"]["before"]["ece"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["bob", f"{ece:.4f}"] for line in lines)
    assert any(f"observed {found['gain']['kept']:.2%}" in line for line in lines)


def test_the_calibration_of_the_prediction_is_that_of_its_reliability(folders, capsys):
    one_vs_all(folders, heads=[Temperature(1.0), Temperature(4.0), Temperature(1.0)])
    report = folders.root / "report.html"
    heads = folders.evaluate("--report", report)["reliability"]["heads"]
    assert heads["ann"]["all"]["after"]["ece"] != heads["ann"]["all"]["before"]["ece"]
    assert heads["bob"]["all"]["after"]["ece"] == pytest.approx(heads["bob"]["all"]["before"]["ece"])
    ece = [f"{heads['ann']['least_certain'][when]['ece']:.4f}" for when in ("before", "after")]
    assert f"{ece[0]} -> {ece[1]}" in capsys.readouterr().out
    assert "Reliability of the probabilities" in report.read_text()


def test_the_confidence_rule_spends_no_more_than_its_share_with_its_expert(folders, capsys):
    one_vs_all(folders, heads=[IDENTITY] * 3)
    for case, predicted in folders.predicted.items():
        probabilities = np.random.default_rng(0).dirichlet(np.ones(3), predicted.model.shape)
        np.savez_compressed(folders.root / "out" / f"{case}.npz", probabilities=np.moveaxis(probabilities, -1, 0))
    index = maps.index_file(folders.root / "out")
    content = json.loads(index.read_text())
    content["calibration"]["confidence"] = {"expert": "bob", "most": 0.05}
    index.write_text(json.dumps(content))
    report = folders.root / "report.html"
    budgets = folders.evaluate("-budgets", 0.02, 0.05, 0.5, "--report", report)["budgets"]
    fitted, always = budgets["max_softmax, fitted"], budgets["max_softmax, always bob"]
    assert [row["budget"] for row in fitted[:3]] == [0.02, 0.05, 0.5]
    assert [row["Dice"] for row in fitted[:3]] == [always[place]["Dice"] for place in (0, 1, 1)]
    assert fitted[2]["rate"] == pytest.approx(0.05)
    assert "max_softmax, fitted" in capsys.readouterr().out
    assert "the expert and the stopping point that were best on validation cases" in report.read_text()


def limit(folders, case, limits):
    """Note limits as those that a case was decided with."""
    file = maps.case_file(folders.root / "out", case)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"limits": limits}))


class TestSurfaces:
    def test_whole_masks_are_scored_and_shown(self, folders, capsys):
        report = folders.root / "report.html"
        summary = folders.evaluate("-surface_tolerance", "1.5", "--report", report)
        assert (summary["surface_tolerance"], summary["unit"]) == (1.5, "mm")
        expected = surface_scores(
            folders.reference["x"], folders.predicted["x"].model, (1, 2), spacing=GEOMETRY["spacing"], tolerance=1.5
        )
        (row,) = (each for each in summary["model_everywhere"]["metric_per_case"] if each["case"] == "x")
        for region, found in expected.items():
            assert {key: row["metrics"][region][key] for key in found} == pytest.approx(found)
        for part in (summary["system"], *summary["expert_everywhere"].values()):
            assert 0 < part["foreground_mean"]["NSD"] <= 1
        assert "NSD" not in summary["model"]["foreground_mean"]
        assert "HD95 in mm, normalised surface distance at a tolerance of 1.5 mm:" in capsys.readouterr().out
        assert "share of the surfaces that lie within 1.5 mm of each other" in report.read_text()
        with (folders.root / "evaluation" / "cases.csv").open(newline="") as file:
            assert float(next(csv.DictReader(file))["HD95_model_1"]) == pytest.approx(expected["1"]["HD95"])

    def test_a_tolerance_below_zero_is_refused(self, folders, capsys):
        assert "must be finite and at least 0, got -1.0" in folders.refused(capsys, "-surface_tolerance=-1")


class TestParts:
    """Parts of the cases in jobs of their own, merged, are one evaluation of all cases."""

    def test_merged_are_what_one_call_finds(self, folders, capsys):
        groups, domains = folders.root / "groups.json", folders.root / "domains.json"
        groups.write_text('{"x": "p", "y": "p"}')
        domains.write_text('{"x": "ID", "y": "far"}')
        more = ["-groups", str(groups), "-domains", str(domains)]
        whole = folders.evaluate(*more)
        results = {file.name: file.read_text() for file in (folders.root / "evaluation").iterdir()}
        shutil.rmtree(folders.root / "evaluation")
        for part in range(3):  # one more than cases
            main(folders.options(*more, "-num_parts", "3", "-part_id", str(part)))
        assert capsys.readouterr().out.splitlines()[-1] == str(folders.root / "evaluation/parts/part_2_of_3.pkl.gz")
        assert not (folders.root / "evaluation" / SUMMARY_NAME).exists()
        assert_close(folders.evaluate(*more, "--merge"), whole)
        found = {file.name: file.read_text() for file in (folders.root / "evaluation").iterdir() if file.is_file()}
        assert found.keys() == results.keys()
        assert found["budgets.csv"] == results["budgets.csv"]

    def test_parts_with_other_groups_are_refused(self, folders, capsys):
        for part in range(2):
            main(folders.options("-num_parts", "2", "-part_id", str(part)))
        groups = folders.root / "groups.json"
        groups.write_text('{"x": "p", "y": "p"}')
        with pytest.raises(SystemExit):
            main(folders.options("--merge", "-groups", str(groups)))
        message = "part_0_of_2.pkl.gz was made with different arguments (groups is null, not"
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["-num_parts", "2", "-part_id", "2"], "2 parts are numbered 0 to 1, got 2"),
            (["-np", "0"], "the number of processes must be at least 1, got 0"),
            (["--merge", "-num_parts", "2"], "--merge puts all parts together"),
            (["--merge"], "evaluation/parts has no parts"),
        ],
    )
    def test_what_cannot_be_is_refused(self, folders, capsys, words, message):
        assert message in folders.refused(capsys, *words)

    @pytest.mark.distributed
    def test_processes_find_what_one_finds(self, folders):
        assert_close(folders.evaluate("-np", "2"), folders.evaluate())


class TestCertificates:
    @pytest.fixture
    def certified(self, folders):
        """Maps decided with a budget of 20 % by a model that is certified from 10 % on."""
        one_vs_all(folders, heads=[IDENTITY] * 3)
        index = maps.index_file(folders.root / "out")
        content = json.loads(index.read_text())
        promise = certificate(
            kept_error=0.5, alpha=0.5, budget=0.1, groups=20, violations=3, grouped=False, median_foreground=9.0,
            scores=(0.7,) * 20,
        )  # fmt: skip
        content["calibration"]["certificate"] = promise.to_dict()
        index.write_text(json.dumps(content))
        for case in folders.predicted:
            limit(folders, case, {"budget": 0.2, "over": "case"})
        return folders

    def test_are_not_compared_with_cases_of_the_calibration(self, certified, capsys):
        index = maps.index_file(certified.root / "out")
        content = json.loads(index.read_text())
        content["calibration"]["report"] = {"cases": ["x", "somebody else"]}
        index.write_text(json.dumps(content))
        found = certified.evaluate()
        assert found["calibrated_on"] == ["x"]
        assert "on some of these cases" in found["certificate"]["unchecked"]
        said = capsys.readouterr().out
        assert "CAUTION: The calibration was fitted on 1 of these cases (x): expect worse results on others" in said

    def test_are_compared_with_what_was_kept(self, certified, capsys):
        report = certified.root / "report.html"
        found = certified.evaluate("--report", report)["certificate"]
        above = 0
        for case, predicted in certified.predicted.items():
            reference = certified.reference[case]
            kept = np.count_nonzero((predicted.model != reference) & (predicted.route == 0))
            above += kept / np.count_nonzero(reference) > 0.5
        assert (found["groups"], found["violations"]) == (2, above)
        said = capsys.readouterr().out
        assert "certified: with 90 % confidence, at most 50 % of cases like those tested" in said
        for told in (said, report.read_text()):
            assert "at most 20 % of the voxels of each case" in told
        assert f"here {above} of 2 cases" in said
        assert f"here {above} of 2 cases" in report.read_text()

    def test_parts_are_compared_together(self, certified):
        whole = certified.evaluate()["certificate"]
        for part in range(2):
            main(certified.options("-num_parts", "2", "-part_id", str(part)))
        assert certified.evaluate("--merge")["certificate"] == whole
        assert whole["groups"] == 2

    def test_are_not_for_other_limits(self, certified):
        limit(certified, "x", {"budget": 0.02, "over": "case"})
        assert "'budget': 0.02" in certified.evaluate()["certificate"]["unchecked"]

    def test_are_not_for_other_folds(self, certified):
        index = maps.index_file(certified.root / "out")
        index.write_text(json.dumps(json.loads(index.read_text()) | {"prediction": {"folds": ["7"]}}))
        assert "not on the network of fold 7" in certified.evaluate()["certificate"]["unchecked"]

    @pytest.mark.parametrize("limits", [{"budget": 2}, {"bugdet": 0.1}, ["budget"], {"capacities": 1}])
    def test_need_limits_that_can_be_read(self, certified, capsys, limits):
        limit(certified, "y", limits)
        assert "cases/y.json: limits: " in certified.refused(capsys)

    def test_that_were_edited_are_refused(self, certified, capsys):
        index = maps.index_file(certified.root / "out")
        index.write_text(index.read_text().replace('"alpha": 0.5', '"alpha": 50'))
        assert "certificate: alpha must be" in certified.refused(capsys)


@pytest.mark.parametrize("how", [{"objective": "collaboration"}, {"number": 1}, {"number": 0}])
def test_without_probabilities_of_being_right_for_all_cases_nothing_is_said_of_them(folders, capsys, how):
    one_vs_all(folders, **how)
    report = folders.root / "report.html"
    assert folders.evaluate("--report", report)["reliability"] is None
    assert "ECE" not in capsys.readouterr().out
    assert "Reliability of the probabilities" not in report.read_text()


def write_review(folders, cases):
    (folders.root / "experts" / "review.json").write_text(json.dumps({"cases": cases}))


def test_what_the_answers_cost_on_the_review_page_is_in_summary_and_report(folders, capsys):
    ann = {"regions": 2, "voxels": 40, "changed_voxels": 10, "minutes": 1.5, "revisions": 3}
    flag = {"voxel": [1, 2, 3], "mm": None, "comment": "<missed>"}
    bob = ann | {"minutes": 0.25, "cannot_tell_voxels": 7, "left_out_voxels": 5, "flags": [flag]}
    bob["confidence"] = {"1": "low", "2": "cannot tell", "3": "high", "4": "low"}
    elsewhere = {"regions": 9, "voxels": 9, "changed_voxels": 9, "minutes": 9}
    write_review(folders, {"x": {"ann": ann, "bob": bob}, "y": {"ann": ann}, "another": {"ann": elsewhere}})
    report = folders.root / "report.html"
    summary = folders.evaluate("--report", report)
    assert summary["review"]["ann"] == {
        "cases": 2, "regions": 4, "voxels": 80, "changed_voxels": 20, "cannot_tell_voxels": 0,
        "assumed_voxels": 0, "minutes": 3.0, "confidence": {"high": 0, "medium": 0, "low": 0}, "flags": [],
    }  # fmt: skip
    assert summary["review"]["bob"]["minutes"] == 0.25
    assert summary["review"]["bob"]["cannot_tell_voxels"] == 7
    assert summary["review"]["bob"]["assumed_voxels"] == 12
    assert "In 12 of these voxels, which were not on the worklist" in report.read_text()
    assert summary["review"]["bob"]["flags"] == [{"case": "x", "voxel": [1, 2, 3], "comment": "<missed>"}]
    assert "ann answered 4 regions of 2 cases in 3.0 minutes and changed 20 of 80 voxels" in capsys.readouterr().out
    assert "Effort on the review page" in report.read_text()
    assert summary["review"]["bob"]["confidence"] == {"high": 1, "medium": 0, "low": 2}
    rows = Reader(report.read_text()).rows
    assert ["x", "1, 2, 3", "bob", "<missed>"] in rows
    assert [row[6] for row in rows if row[:2] in (["ann", "2"], ["bob", "1"])] == ["–", "1 high\n2 low"]


def test_the_models_labels_in_masks_of_a_review_are_no_answers(folders, capsys):
    for case, predicted in folders.predicted.items():
        for number, expert in enumerate(folders.experts, start=1):
            labels = np.where(predicted.route == number, folders.answers[case, expert], predicted.model)
            write_mask(folders.file("experts", expert, case), labels.astype(np.uint8))
    record = {"regions": 1, "voxels": 1, "changed_voxels": 1, "minutes": 1}
    write_review(folders, {case: {"ann": record, "bob": record} for case in folders.predicted})
    report = folders.root / "report.html"
    summary = folders.evaluate("-budgets", 0.5, 1, "--report", report)
    for number, expert in enumerate(folders.experts, start=1):
        for row in summary["expert_everywhere"][expert]["metric_per_case"]:
            predicted, reference = folders.predicted[row["case"]], folders.reference[row["case"]].astype(int)
            labels = folders.answers[row["case"], expert].astype(int)
            assert row["metrics"] == overlap(reference, labels, [1, 2], predicted.route == number)
    for rows in summary["budgets"].values():  # nobody has answered more
        assert rows[1]["budget"] == 1
        assert rows[1]["rate"] <= summary["deferral"]["rate"]
    said = "Experts answered only what they were asked about on the review page."
    assert said in capsys.readouterr().out
    assert said in report.read_text()
    assert "best single expert" not in report.read_text()
    assert "labels of whole images" not in report.read_text()
    lines = [line.get_label() for axes in draw_curves(summary).axes for line in axes.lines]
    assert "model alone" in lines
    assert "ann alone" not in lines


def test_without_a_review_nothing_is_said_of_one(folders):
    report = folders.root / "report.html"
    assert folders.evaluate("--report", report)["review"] is None
    assert "review page" not in report.read_text()
    assert "best single expert" in report.read_text()


def test_experts_that_were_simulated_beforehand_are_called_simulated(folders, capsys):
    profiles = expert_set("standard", 2)
    named = [{"name": name, **fields(profile)} for name, profile in zip(("ann", "bob"), profiles, strict=True)]
    content = {"experts": named, "seed": 77, "boundary_width": 2}
    (folders.root / "experts" / "simulation.json").write_text(json.dumps(content))
    report = folders.root / "report.html"
    summary = folders.evaluate("--report", report)
    assert [expert["name"] for expert in summary["experts"]["experts"]] == ["ann", "bob"]
    assert (summary["experts"]["seed"], summary["experts"]["boundary_width"]) == (77, 2)
    text = report.read_text()
    assert "The experts are simulated: this shows whether routing works" in text
    assert "Simulated from the reference with seed 77" in text
    assert "Raters, with labels" not in text
    assert "  simulated experts: ann (independent), bob (independent)\n" in capsys.readouterr().out


def fields(profile):
    """The accuracies of a simulated expert as in simulation.json."""
    return {key: value for key, value in experts_to_json((profile,))[0].items() if key != "name"}


def record(**changes):
    return {"cases": {"x": {"ann": {"regions": 1, "voxels": 4, "changed_voxels": 1, "minutes": 0.5} | changes}}}


class TestRefusals:
    def test_routing_probabilities_of_other_experts(self, folders, capsys):
        one_vs_all(folders)
        maps.save_routing(folders.root / "out", "y", np.full((2, 4, 6, 7), 0.5, np.float32))
        said = folders.refused(capsys)
        file = maps.routing_file(folders.root / "out", "y")
        assert f"{file} has shape (2, 4, 6, 7) instead of (3, 4, 6, 7)" in said

    def test_a_review_that_was_cut_short(self, folders, capsys):
        (folders.root / "experts" / "review.json").write_text('{"cases": {"x": ')
        assert "review.json cannot be read" in (said := folders.refused(capsys))
        assert "Evaluating" not in said  # the bar of progress: it is refused before the work

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            ([], "the content must be an object, got []"),
            ({}, "cases is missing"),
            ({"cases": {"x": []}}, "cases.x must be an object"),
            (
                {"cases": {"x": {"ann": {"regions": 1, "voxels": 4, "changed_voxels": 1}}}},
                "cases.x.ann.minutes is missing",
            ),
            (record(minutes="3"), "cases.x.ann.minutes must be"),
            (record(minutes=-1), "cases.x.ann.minutes must be greater than or equal to 0, got -1"),
            (record(minutes=float("nan")), "cases.x.ann.minutes must be a finite number, got nan"),
            (record(minutes=True), "cases.x.ann.minutes must be"),
            (record(voxels=1.5), "cases.x.ann.voxels must be an integer, got 1.5"),
            (record(regions=-2), "cases.x.ann.regions must be greater than or equal to 0, got -2"),
            (record(changed_voxels=None), "cases.x.ann.changed_voxels must be an integer, got None"),
        ],
    )
    def test_a_review_with_other_types_or_ranges(self, folders, capsys, content, fault):
        (folders.root / "experts" / "review.json").write_text(json.dumps(content))
        assert f"review.json: {fault}" in folders.refused(capsys)

    def test_predictions_of_a_stock_model(self, folders, capsys):
        maps.index_file(folders.root / "out").unlink()
        assert "has no deferral maps" in folders.refused(capsys)

    def test_a_case_without_a_reference(self, folders, capsys):
        folders.file("labels", "y").unlink()
        assert "without a reference in" in (said := folders.refused(capsys))
        assert "(1): y" in said

    def test_a_case_without_any_experts_mask_where_voxels_were_deferred(self, folders, capsys):
        for expert in folders.experts:
            folders.file("experts", expert, "y").unlink()
        assert "without any expert's mask" in (said := folders.refused(capsys))
        assert "(1): y" in said

    def test_an_expert_who_was_asked_and_has_no_files(self, folders, capsys):
        for case in ("x", "y"):
            folders.file("experts", "bob", case).unlink()
        assert "voxels are routed to experts without masks" in (said := folders.refused(capsys))
        assert str(folders.root / "experts" / "bob") in said

    @pytest.mark.parametrize("folder", ["labels", "experts/ann"])
    def test_a_mask_of_another_geometry(self, folders, capsys, folder):
        file = folders.file(*folder.split("/"), "y")
        write_mask(file, read_mask(file).astype(np.uint8), origin=(1.0, 2.0, 3.0))
        assert f"{file}" in (said := folders.refused(capsys))
        assert "origin (1, 2, 3) instead of" in said

    def test_a_mask_of_another_shape(self, folders, capsys):
        file = folders.file("experts", "ann", "y")
        write_mask(file, read_mask(file)[1:].astype(np.uint8))
        assert f"{file}: shape (3, 6, 7) instead of (4, 6, 7)" in folders.refused(capsys)

    def test_a_label_that_the_dataset_does_not_have(self, folders, capsys):
        file = folders.file("experts", "ann", "x")
        write_mask(file, np.full((4, 6, 7), 7, np.uint8))
        assert f"{file}: contains labels that are not in dataset.json: 7" in folders.refused(capsys)

    def test_a_file_that_was_cut_short(self, folders, capsys):
        file = folders.file("experts", "ann", "x")
        file.write_bytes(file.read_bytes()[:40])
        assert f"{file} cannot be read" in folders.refused(capsys)

    @pytest.mark.parametrize(
        "folder",
        ["labels", "experts/ann", "out", "out/deferral/route", "out/deferral/probability", "out/deferral/gain"],
    )
    def test_a_file_of_which_only_voxels_are_missing(self, folders, capsys, folder):
        """SimpleITK reads such files without an error."""
        file = folders.root / folder / "x.nii.gz"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * 9 // 10])
        assert f"{file} cannot be read; is it complete?" in folders.refused(capsys)

    @pytest.mark.parametrize(("values", "unknown"), [([0, 255, 255], "255"), ([0, 1, 7], "7")])
    def test_a_reference_with_labels_that_the_dataset_does_not_have(self, folders, capsys, values, unknown):
        file = folders.file("labels", "y")
        write_mask(file, np.array(values, np.uint8)[read_mask(file).astype(int)])
        assert f"{file} contains labels that are not in dataset.json: {unknown}" in folders.refused(capsys)

    def test_a_route_to_an_expert_who_does_not_exist(self, folders, capsys):
        file = maps.route_file(folders.root / "out", "x", ".nii.gz")
        write_mask(file, np.full((4, 6, 7), 5, np.uint8))
        assert f"{file} contains 5, but must lie in [0, 2]" in folders.refused(capsys)

    def test_a_folder_of_experts_that_is_not_there(self, folders, capsys):
        said = folders.refused(capsys, experts="nobody")
        assert "nobody is neither a folder nor a set of simulated experts (standard," in said

    def test_a_set_of_other_experts_than_the_models(self, folders, capsys):
        assert "the model's experts are ann, bob, those of set standard expert1, expert2" in folders.refused(
            capsys, experts="standard"
        )

    def test_raters_without_a_folder(self, folders, capsys):
        assert "this model was trained with raters (ann, bob)" in folders.refused(capsys, experts=None)

    def test_a_case_without_a_group(self, folders, capsys):
        file = folders.root / "groups.json"
        file.write_text(json.dumps({"x": 1}))
        assert f"cases without a group in {file} (1): y" in folders.refused(capsys, "-groups", file)

    def test_a_budget_that_is_none(self, folders, capsys):
        assert "budgets must be shares of the voxels in [0, 1], got [2.0]" in folders.refused(capsys, "-budgets", 2)
