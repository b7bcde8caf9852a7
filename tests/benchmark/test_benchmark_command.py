"""The command on finished trainings: what it computes, writes and refuses."""

import csv
import json
import math
import re
import shutil
from html import unescape

import numpy as np
import pytest
from made_up_workplace import (
    CASES,
    DATASET,
    DEFERRAL,
    LABELS,
    STOCK,
    ask_where_wrong,
    cut_short,
    read,
    with_errors,
    write,
)
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnunetv2_deferral.benchmark.comparison import Resampling, compare
from nnunetv2_deferral.benchmark.scores import score_methods
from nnunetv2_deferral.benchmark.timing import Times
from nnunetv2_deferral.commands.benchmark import main
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference
from nnunetv2_deferral.nnunet.experiment import Method

TRAINERS = ["-tr", STOCK.trainer, DEFERRAL.trainer]
PERFECT = {"experts": [{"name": "ann", "foreground": 1.0, "background": 1.0, "boundary": 1.0}]}


@pytest.fixture
def trained(workplace):
    """A stock model with 40 wrong voxels a case, and a deferral model with 30 that asks a perfect expert there."""
    workplace.write_model(STOCK, errors=40)
    workplace.write_model(DEFERRAL, errors=30, seconds=11.0, route=ask_where_wrong, **PERFECT)
    return workplace


def results(here):
    return json.loads((here.root / "out" / "benchmark.json").read_text())


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_scores_are_those_of_nnunet_over_all_folds_with_each_case_once(trained):
    main([*trained.arguments, *TRAINERS])
    stock = results(trained)["methods"][0]
    reader = NaturalImage2DIO()
    found = {1: [], 2: []}
    for fold in (0, 1):
        for file in sorted(trained.experiment().validation(STOCK, fold).glob("*.png")):
            reference = trained.preprocessed / "gt_segmentations" / file.name
            metrics = compute_metrics(str(reference), str(file), reader, [1, 2])["metrics"]
            for label in (1, 2):
                found[label].append(metrics[label])
    assert results(trained)["num_cases"] == len(found[1]) == 6
    for label in (1, 2):
        for score in ("Dice", "IoU"):
            expected = np.mean([metrics[score] for metrics in found[label]])
            assert stock["scores"]["model_everywhere"][str(label)][score]["estimate"] == pytest.approx(expected)


def test_a_perfect_expert_asked_where_the_model_is_wrong_makes_the_system_perfect(trained):
    main([*trained.arguments, *TRAINERS])
    stock, deferral = results(trained)["methods"]
    assert stock["deferral_model"] is False
    assert stock["scores"].keys() == {"model_everywhere"}
    for score in ("Dice", "IoU", "Sensitivity"):
        for part in ("system", "expert", "model", "ann alone"):
            assert deferral["scores"][part]["foreground_mean"][score]["estimate"] == 1
    voxels = read(trained.experiment().validation(STOCK, 0) / "case_0.png").size
    assert deferral["deferral"]["rate"] == pytest.approx(30 / voxels)
    assert deferral["deferral"]["share"] == {"ann": pytest.approx(30 / voxels)}


def test_differences_to_the_first_are_paired_by_case(trained):
    main([*trained.arguments, *TRAINERS])
    found = results(trained)
    stock, deferral = found["methods"]
    less = deferral["minus_first"]["model_everywhere"]["1"]["Dice"]
    rows = [
        {row["case"]: row["metrics"]["1"]["Dice"] for row in method["summary"]["model_everywhere"]["metric_per_case"]}
        for method in (deferral, stock)
    ]
    cases = CASES[:3] + CASES[3:]
    ours, theirs = ([each[case] for case in cases] for each in rows)
    expected = bootstrap_difference(ours, theirs, generator=np.random.default_rng(0))
    assert (less["estimate"], less["low"], less["high"]) == pytest.approx(
        (expected.estimate, expected.low, expected.high)
    )
    system = deferral["minus_first"]["system"]["1"]["Dice"]
    assert system["estimate"] == pytest.approx(1 - np.mean(theirs))
    assert stock["minus_first"] == {}


def test_a_deferral_model_may_be_the_first(trained):
    main([*trained.arguments, "-tr", DEFERRAL.trainer, STOCK.trainer])
    less = results(trained)["methods"][1]["minus_first"]
    assert less.keys() == {"model_everywhere"}
    assert less["model_everywhere"]["foreground_mean"]["Dice"]["estimate"] < 0


def test_the_same_call_gives_the_same_files(trained):
    main([*trained.arguments, *TRAINERS])
    first = {file.name: file.read_bytes() for file in (trained.root / "out").iterdir()}
    main([*trained.arguments, *TRAINERS])
    assert first == {file.name: file.read_bytes() for file in (trained.root / "out").iterdir()}
    assert first.keys() == {"benchmark.json", "benchmark.csv", "benchmark.md"}


def test_the_csv_holds_every_number_once(trained):
    main([*trained.arguments, *TRAINERS])
    with (trained.root / "out" / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = [(row["trainer"], row["plans"], row["part"], row["region"], row["score"]) for row in rows]
    assert len(set(keys)) == len(keys)
    place = keys.index((DEFERRAL.trainer, "nnUNetPlans", "system", "2", "Dice"))
    assert float(rows[place]["estimate"]) == 1
    assert float(rows[place]["minus_first"]) > 0
    assert (DEFERRAL.trainer, "nnUNetPlans", "deferral", "", "share of ann") in keys


def test_the_markdown_names_classes_and_has_the_scores(trained, capsys):
    main([*trained.arguments, *TRAINERS])
    text = (trained.root / "out" / "benchmark.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for part in (DATASET, "Folds 0, 1, 6 validation cases", "## Class rim", "## Class core", "| 100.00 | 100.00 |"):
        assert part in text
    assert not re.search(r"\bnan\b", text)


def test_training_time_is_a_ratio_on_a_cpu(trained):
    main([*trained.arguments, *TRAINERS])
    stock, deferral = (method["time"] for method in results(trained)["methods"])
    assert deferral["epoch_ratio"] == pytest.approx(1.1)
    assert (stock["epoch_ratio"], stock["seconds_per_epoch"], stock["device"]) == (1, None, "cpu")


def test_scores_that_are_undefined_are_null_and_counted(workplace):
    empty = np.zeros_like(workplace.reference("case_0"))
    write(workplace.preprocessed / "gt_segmentations" / "case_0.png", empty)
    workplace.write_model(STOCK, errors=0)
    main([*workplace.arguments, "-tr", STOCK.trainer])
    stock = results(workplace)["methods"][0]
    assert stock["summary"]["model_everywhere"]["mean"]["1"]["n_undefined"] == 1
    row = stock["summary"]["model_everywhere"]["metric_per_case"][0]
    assert (row["case"], row["metrics"]["1"]["Dice"]) == ("case_0", None)
    assert stock["scores"]["model_everywhere"]["1"]["Dice"]["estimate"] == 1


def test_raters_are_read_from_the_raw_dataset(workplace):
    content = json.loads((workplace.raw / "dataset.json").read_text()) | {"experts": ["ann"]}
    (workplace.raw / "dataset.json").write_text(json.dumps(content))
    workplace.write_model(STOCK)
    workplace.write_model(DEFERRAL, route=ask_where_wrong, experts=["ann"])
    folder = workplace.raw / "expertsTr" / "ann"
    folder.mkdir(parents=True)
    for number, case in enumerate(CASES[1:]):
        write(folder / f"{case}.png", with_errors(workplace.reference(case), 5, seed=100 + number))
    main([*workplace.arguments, *TRAINERS])
    deferral = results(workplace)["methods"][1]
    assert deferral["deferral"]["unanswered"] == pytest.approx(1 / 6)  # of all cases case_0 has no mask
    assert deferral["scores"]["system"]["1"]["Dice"]["estimate"] > 0.9


def test_fold_all_has_no_validation_to_compare(workplace, capsys):
    text = refused([*workplace.arguments, "-f", "all", "-tr", DEFERRAL.trainer], capsys)
    assert 'fold "all" has no validation of its own' in text


def test_missing_raters_are_named(workplace, capsys):
    workplace.write_model(DEFERRAL, route=ask_where_wrong, experts=["ann"])
    text = refused([*workplace.arguments, "-tr", DEFERRAL.trainer], capsys)
    assert "the folder with the masks of" in text


def test_models_of_different_experts_are_compared_only_on_the_same(workplace, capsys):
    other = Method(trainer="nnUNetTrainerDeferral3Experts_noSC_5epochs", plans="nnUNetPlans")
    workplace.write_model(DEFERRAL, route=ask_where_wrong)
    workplace.write_model(other, route=ask_where_wrong, experts="scalability")
    arguments = [*workplace.arguments, "-tr", DEFERRAL.trainer, other.trainer]
    assert "would be answered by different experts" in refused(arguments, capsys)
    main([*arguments, "-experts", "complementary", "-seed", "3"])
    first, second = (method["answered_by"] for method in results(workplace)["methods"])
    assert first == second
    assert first["seed"] == 3
    assert first["experts"][0]["foreground"] == 0.97


def test_all_models_of_the_same_experts_get_the_same_answers(workplace):
    other = Method(trainer="nnUNetTrainerDeferral3Experts_noSC_5epochs", plans="nnUNetPlans")
    for method in (DEFERRAL, other):
        workplace.write_model(method, errors=30, route=ask_where_wrong)
    first, second = score_methods(workplace.experiment(), (DEFERRAL, other))
    assert json.dumps(first.summary) == json.dumps(second.summary)  # equal with NaN
    assert first.answered_by == second.answered_by


def test_references_that_were_changed_since_are_refused(trained, capsys):
    write(trained.preprocessed / "gt_segmentations" / "case_1.png", with_errors(trained.reference("case_1"), 9, 0))
    text = refused([*trained.arguments, *TRAINERS], capsys)
    assert "2 problem(s)" in text
    assert "does not match the mask and the reference of case_1" in text
    assert not (trained.root / "out").exists()


def test_masks_that_are_cut_short_or_of_another_shape_are_all_named(trained, capsys):
    validation = trained.experiment().validation(STOCK, 0)
    cut_short(validation / "case_0.png")
    write(validation / "case_1.png", np.zeros((1, 8, 8), np.int64))
    cut_short(trained.experiment().validation(DEFERRAL, 1) / "deferral" / "route" / "case_5.png")
    text = refused([*trained.arguments, *TRAINERS], capsys)
    for part in ("3 problem(s)", "case_0.png cannot be read", "case_1.png has shape (1, 8, 8)", "case_5.png cannot be"):
        assert part in text


def test_folds_of_other_settings_are_refused(trained, capsys):
    trained.write_model(DEFERRAL, folds=[1], route=ask_where_wrong, experts=PERFECT["experts"], lambda_balance=1.0)
    file = trained.experiment().validation(DEFERRAL, 1) / "deferral" / "deferral.json"
    content = json.loads(file.read_text())
    content["settings"]["lambda_balance"] = 1.0
    file.write_text(json.dumps(content))
    text = refused([*trained.arguments, *TRAINERS], capsys)
    assert "the settings of fold 1 differ from those of fold 0: lambda_balance is 1.0, not 5.0" in text


def test_a_validation_with_fewer_maps_is_refused_by_their_names(trained, capsys):
    for fold in trained.experiment().folds:
        folder = trained.experiment().validation(DEFERRAL, fold) / "deferral"
        shutil.rmtree(folder / "probability")
        content = json.loads((folder / "deferral.json").read_text())
        (folder / "deferral.json").write_text(json.dumps(content | {"maps": ["route", "expert", "gain"]}))
    text = refused([*trained.arguments, *TRAINERS], capsys)
    assert "validation does not have the maps probability, which are needed here" in text
    assert not (trained.root / "out").exists()


def test_what_was_never_trained_says_how_to_train_it(trained, capsys):
    text = refused([*trained.arguments, *TRAINERS, "nnUNetTrainer_10epochs"], capsys)
    assert "nnUNetTrainer_10epochs on nnUNetPlans was not trained" in text
    assert "--run" in text


def test_nothing_to_compare_is_refused(trained, capsys):
    assert "specify trainers to compare" in refused(trained.arguments, capsys)


def test_the_length_is_appended_to_all_names(trained):
    main([*trained.arguments, "-tr", "nnUNetTrainer", "nnUNetTrainerDeferral3Experts", "-epochs", "5"])
    assert [method["trainer"] for method in results(trained)["methods"]] == [STOCK.trainer, DEFERRAL.trainer]


def test_cases_of_a_patient_are_drawn_together(trained):
    groups = trained.root / "groups.json"
    groups.write_text(json.dumps({case: number // 3 for number, case in enumerate(CASES)}))
    main([*trained.arguments, *TRAINERS, "-groups", str(groups)])
    assert results(trained)["intervals"]["num_groups"] == 2


def test_one_case_has_no_interval(trained):
    (trained.preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))
    experiment = trained.experiment(0)
    scores = score_methods(experiment, [STOCK])
    found = compare(experiment, scores, [Times()], resampling=Resampling(num_resamples=10))
    interval = found["methods"][0]["scores"]["model_everywhere"]["1"]["Dice"]
    assert 0 < interval["estimate"] < 1
    assert math.isnan(interval["low"])
    assert found["regions"] == {"1": "rim", "2": "core"}
    assert set(LABELS) >= set(found["regions"].values())


def test_the_report_has_the_numbers_of_the_results_and_replaces_an_older_one(trained, capsys):
    report = trained.root / "pages" / "report.html"
    report.parent.mkdir()
    report.write_text("older")
    main([*trained.arguments, *TRAINERS, "--report", str(report)])
    assert str(report) in capsys.readouterr().out
    text = unescape(re.sub(r"<[^>]+>", " ", report.read_text()))
    assert "older" not in text
    stock, deferral = results(trained)["methods"]
    wanted = [deferral["minus_first"]["system"][region]["Dice"] for region in ("foreground_mean", "1", "2")]
    for found in [stock["scores"]["model_everywhere"]["2"]["IoU"], *wanted]:
        for number in found.values():
            assert f"{number:.3f}" in text
    for part in ("class rim", "class core", f"{100 * deferral['deferral']['rate']:.1f} %", "ann: 100 %", "is better"):
        assert part in text
    assert {file.name for file in (trained.root / "out").iterdir()} == {
        "benchmark.json", "benchmark.csv", "benchmark.md",
    }  # fmt: skip
    assert [file.name for file in report.parent.iterdir()] == ["report.html"]


def test_a_report_without_a_folder_is_placed_in_the_output_folder(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.root)
    main([*trained.arguments, *TRAINERS, "--report", "report.html"])
    assert str(trained.root / "out" / "report.html") in capsys.readouterr().out
    assert (trained.root / "out" / "report.html").is_file() and not (trained.root / "report.html").exists()


def test_the_report_has_a_section_for_each_table_of_the_paper(workplace):
    workplace.write_model(STOCK)
    for number, trainer in (
        (1, "nnUNetTrainerDeferral1Expert_DC_5epochs"),
        (3, "nnUNetTrainerDeferral3Experts_DC_5epochs"),
    ):
        method = Method(trainer=trainer, plans="nnUNetPlans")
        workplace.write_model(method, errors=10 + number, route=ask_where_wrong, num_experts=number)
    report = workplace.root / "report.html"
    arguments = ["-epochs", "5", "--num_experts", "1", "3", "-expert_set", "standard", "--report", str(report)]
    main([*workplace.arguments, *arguments])
    headings = re.findall("<h2>(.*?)</h2>", report.read_text())
    assert headings[0] == results(workplace)["studies"][0]["title"]
    assert "<td>J 3</td>" in report.read_text()


def test_the_report_draws_experts_alone_by_the_groups_of_the_results(trained):
    groups, report = trained.root / "groups.json", trained.root / "report.html"
    groups.write_text(json.dumps({case: number // 2 for number, case in enumerate(CASES)}))
    main([*trained.arguments, *TRAINERS, "-groups", str(groups), "--report", str(report)])
    text = report.read_text()
    assert "in 3 groups" in text
    assert re.search(r"<td>experts alone, whole image</td><td>ann alone</td><td>[^<[]+\[", text)


@pytest.mark.parametrize("place", ["folder", "file/report.html"])
def test_a_report_that_cannot_be_written_is_refused_before_any_training(workplace, capsys, monkeypatch, place):
    def trained_nevertheless(*_):
        raise AssertionError("a training was started")

    monkeypatch.setattr("nnunetv2_deferral.commands.benchmark.run_missing", trained_nevertheless)
    (workplace.root / "folder").mkdir()
    (workplace.root / "file").write_text("")
    report = str(workplace.root / place)
    text = refused([*workplace.arguments, *TRAINERS, "--run", "--report", report], capsys)
    assert f"the report {report} cannot be written" in text
    assert not (workplace.root / "out").exists()


def test_methods_with_probabilities_are_compared_with_all_raters(trained, capsys):
    experiment = trained.experiment()
    dataset = experiment.preprocessed / "dataset.json"
    dataset.write_text(json.dumps(json.loads(dataset.read_text()) | {"experts": ["ann", "bob"]}))
    for name in ("ann", "bob"):
        (experiment.raw / "expertsTr" / name).mkdir(parents=True)
    for place, case in enumerate(CASES):
        reference = read(experiment.preprocessed / "gt_segmentations" / f"{case}.png")
        write(experiment.raw / "expertsTr" / "ann" / f"{case}.png", reference)
        write(experiment.raw / "expertsTr" / "bob" / f"{case}.png", with_errors(reference, 20, place))
    plans = experiment.model(STOCK) / "plans.json"  # as nnUNetTrainerMultiRater leaves them
    of_raters = {"trainer": STOCK.trainer, "raters": ["ann", "bob"], "has_regions": False}
    plans.write_text(json.dumps(json.loads(plans.read_text()) | {"multi_rater": of_raters}))
    for fold, names in experiment.cases().items():
        for case in names:
            mask = read(experiment.validation(STOCK, fold) / f"{case}.png")
            one_hot = (mask == np.arange(3)[:, None, None]).astype(np.float32)[:, None]
            np.savez(experiment.validation(STOCK, fold) / f"{case}.npz", probabilities=one_hot)
    report = trained.root / "report.html"
    main([*trained.arguments, *TRAINERS, "--report", str(report)])
    assert "Against all raters" in report.read_text()
    stock, deferral = (method["against_raters"] for method in results(trained)["methods"])
    assert deferral == {}  # validated without probabilities
    assert stock["raters"] == {"ann": 6, "bob": 6}
    for label in (1, 2):
        each = []
        for fold, names in experiment.cases().items():
            for case in names:
                mask = read(experiment.validation(STOCK, fold) / f"{case}.png") == label
                raters = [read(experiment.raw / "expertsTr" / name / f"{case}.png") == label for name in ("ann", "bob")]
                each.append(np.mean([2 * (mask & one).sum() / (mask.sum() + one.sum()) for one in raters]))
        assert stock["dice"][str(label)]["raters"]["estimate"] == pytest.approx(np.mean(each))
    table = (trained.root / "out" / "benchmark.md").read_text().split("## Against all raters")[1]
    assert f"| {STOCK.trainer} | rim | {np.mean(stock['dice']['1']['raters']['estimate']):.3f} [" in table
    (experiment.raw / "expertsTr" / "ann" / f"{CASES[0]}.png").unlink()
    (experiment.raw / "expertsTr" / "bob" / f"{CASES[0]}.png").unlink()
    main([*trained.arguments, *TRAINERS])
    assert "Not compared with all raters: " in capsys.readouterr().out
    assert "Against all raters" not in (trained.root / "out" / "benchmark.md").read_text()
