import copy
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import same_color
from page_reader import Reader

from nnunetv2_deferral.benchmark.comparison import Resampling, compare
from nnunetv2_deferral.benchmark.scores import MethodScores
from nnunetv2_deferral.benchmark.studies import Row, Study
from nnunetv2_deferral.benchmark.timing import Times
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference
from nnunetv2_deferral.evaluation.overlap import overlap, summarize
from nnunetv2_deferral.evaluation.summary import summarize_deferral
from nnunetv2_deferral.files import without_nan
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.nnunet.experiment import Method
from nnunetv2_deferral.report import benchmark_page as module
from nnunetv2_deferral.report.benchmark_figures import Block, Line, Load, draw_forest, draw_loads
from nnunetv2_deferral.report.benchmark_page import benchmark_page, check_report, write_benchmark_page
from nnunetv2_deferral.report.benchmark_tables import markdown
from nnunetv2_deferral.report.page import Picture, Table, render_page
from nnunetv2_deferral.report.statements import interval_text
from nnunetv2_deferral.report.style import expert_fill

NAN = float("nan")
SIMULATED = {"name": "ann", "foreground": 0.9, "background": 0.9, "boundary": 0.9, "error_model": "independent"}
STOCK, ONE, TWO = "nnUNetTrainer", "nnUNetTrainerDeferral", "nnUNetTrainerDeferral_OvA"


def reference(number, labels, empty):
    found = np.zeros((1, 16, 16), np.int64)
    if not empty:
        found[:, 3:12, 3 + number % 3 : 12] = 1
        if labels > 1:
            found[:, 6:9, 6:9] = 2
    return found


def with_errors(mask, wrong, seed):
    changed = np.random.default_rng(seed).permutation(mask.size)[:wrong]
    found = mask.copy()
    found.ravel()[changed] = 1 - np.minimum(found.ravel()[changed], 1)
    return found


def make(
    methods=((STOCK, 30, ()), (ONE, 30, ("ann", "bob"))),
    *,
    num_cases=6,
    folds=2,
    labels=1,
    empty=False,
    asked=0.1,
    to=None,
    answering=None,
    groups=None,
    studies=(),
    labelled=None,
    names=None,
):
    """What `compare` returns for made-up masks: (trainer, wrong voxels, experts) each, the experts nearly right."""
    cases = [f"case_{number}" for number in range(num_cases)]
    regions = tuple(range(1, labels + 1))
    found = []
    for place, (trainer, wrong, experts) in enumerate(methods):
        made, scores = [], {}
        for number, case in enumerate(cases):
            right = reference(number, labels, empty)
            mask = with_errors(right, 0 if empty else wrong, seed=10 * number + place * (wrong != methods[0][1]))
            answers = np.stack([with_errors(right, 0 if empty else 4 + n, 99 + n) for n in range(max(len(experts), 1))])
            if labelled is not None and number >= labelled:
                answers[0] = MISSING
            chosen = np.random.default_rng(number).random(right.shape) < asked
            route = np.where(chosen, np.random.default_rng(number).integers(1, len(answers) + 1, right.shape), 0)
            route = np.where(route > 0, to, 0) if to else route
            predicted = PredictedCase(case, model=mask, route=route.astype(np.uint8))
            made.append(EvaluatedCase(prediction=predicted, reference=right, answers=answers))
            scores[case] = overlap(right, mask, regions)
        found.append(
            MethodScores(
                method=Method(trainer=trainer, plans="nnUNetPlans"),
                experts=tuple(experts),
                summary=summarize_deferral(made, regions, experts)
                if experts
                else {"model_everywhere": summarize(scores)},
                answered_by={"experts": answering or list(experts), "seed": 3, "boundary_width": 2}
                if experts
                else None,
            )
        )
    experiment = SimpleNamespace(
        dataset="Dataset901_Made",
        configuration="2d",
        folds=tuple(range(folds)),
        dataset_json={"labels": {"background": 0} | dict(zip(names or ("rim", "core"), (1, 2), strict=True))},
        cases=lambda: {fold: cases[fold::folds] for fold in range(folds)},
    )
    times = [Times(device="cpu (here)", iterations=250, epoch_ratio=1 + place / 10) for place in range(len(found))]
    rows = [
        Study(name=name, title=title, rows=tuple(
            Row(headings=headings, method=found[place].method) for headings, place in made
        ))
        for name, title, made in studies
    ]  # fmt: skip
    resampling = Resampling(groups=groups, num_resamples=60)
    return compare(experiment, found, times, studies=rows, resampling=resampling)


def set_change(results, *change, part="model_everywhere", place=1):
    numbers = dict(zip(("estimate", "low", "high"), change, strict=True))
    results["methods"][place]["minus_first"][part]["foreground_mean"]["Dice"] = numbers
    return results


def read(results, **options):
    return Reader(render_page(benchmark_page(results, **options)))


@pytest.fixture
def quick(monkeypatch):
    """Pages without drawing, for tests of their text."""
    monkeypatch.setattr(module.figures, "draw_forest", lambda *_, **__: None)
    monkeypatch.setattr(module.figures, "draw_loads", lambda *_, **__: None)
    monkeypatch.setattr(module, "to_png", lambda *_, **__: b"\x89PNG\r\n\x1a\n")


EDGE_CASES = {
    "one fold": ({"folds": 1}, 2),
    "two classes": ({"labels": 2}, 2),
    "one case": ({"num_cases": 1, "folds": 1}, 2),
    "nothing defined": ({"empty": True}, 2),
    "nothing deferred": ({"asked": 0}, 2),
    "everything deferred": ({"asked": 1}, 2),
    "one expert": ({"methods": [(STOCK, 30, ()), (ONE, 30, ("ann",))]}, 2),
    "eight experts": ({"methods": [(STOCK, 30, ()), (ONE, 30, tuple("abcdefgh"))]}, 2),
    "one stock method": ({"methods": [(STOCK, 30, ())]}, 0),
    "one deferral method": ({"methods": [(ONE, 30, ("ann",))]}, 2),
    "no deferral method": ({"methods": [(STOCK, 30, ()), ("other", 20, ())]}, 1),
    "deferral first": ({"methods": [(ONE, 30, ("ann",)), (STOCK, 30, ())]}, 2),
    "mathematics in a name": ({"methods": [(STOCK, 30, ()), ("$x_{", 30, ("$\\frac{", "b"))]}, 2),
}


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize(("options", "pictures"), EDGE_CASES.values(), ids=EDGE_CASES)
def test_every_comparison_has_a_page_without_nan_and_with_its_figures(options, pictures):
    page = read(make(**options))
    assert [tag for tag, _ in page.tags].count("img") == pictures
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)


def test_the_page_is_self_contained():
    html = render_page(benchmark_page(make()))
    tags = Reader(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "base"}
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "srcset")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://| on[a-z]+=", html)
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")


def test_names_are_escaped(quick):
    bad = "<script>alert(1)</script>"
    results = make([(STOCK, 30, ()), (f"{ONE}{bad}", 30, (bad, "a&b"))], labels=2, names=("<b>", "core"))
    html = render_page(benchmark_page(results))
    assert "<script" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; alone" in html


def broken(found, *, signed=False):
    return interval_text(found, signed=signed).replace(" [", "\n[").replace(", ", ",\xa0")


def test_scores_and_rates_are_those_of_the_results(quick):
    results = make(labels=2)
    stock, deferral = results["methods"]
    rows = read(results).rows
    columns = ("model_everywhere", "system", "model", "expert")
    rate = f"{100 * deferral['deferral']['rate']:.1f} %"
    for region in ("foreground_mean", "1", "2"):
        for score in ("Dice", "IoU", "Sensitivity"):
            cells = [broken(deferral["scores"][part][region][score]) for part in columns]
            assert [ONE, *cells, rate] in rows
            assert [STOCK, broken(stock["scores"]["model_everywhere"][region][score]), "–", "–", "–", "–"] in rows
    assert ["ann alone", broken(deferral["scores"]["ann alone"]["1"]["IoU"]), "–", "–", "–", "–"] in rows


def test_every_score_of_every_class_has_a_table(quick):
    sections = {section.heading: section.parts for section in benchmark_page(make(labels=2)).sections}
    assert [table.caption for table in sections["Scores"]] == [
        f"{score}, {region}"
        for region in ("mean over classes", "class rim", "class core")
        for score in ("Dice", "IoU", "Sensitivity")
    ]
    only = {section.heading: section.parts for section in benchmark_page(make()).sections}["Scores"]
    assert [table.caption for table in only] == ["Dice, class rim", "IoU, class rim", "Sensitivity, class rim"]


def test_differences_are_those_of_the_results(quick):
    results = make([(STOCK, 30, ()), (ONE, 20, ("ann", "bob"))], labels=2)
    less, rows = results["methods"][1]["minus_first"], read(results).rows
    for part, name in (("model_everywhere", "model alone"), ("system", "system")):
        cells = [broken(less[part][region]["Dice"], signed=True) for region in ("foreground_mean", "1", "2")]
        assert [ONE, name, *cells] in rows


def test_an_expert_alone_is_paired_with_the_first_over_the_cases_the_expert_labelled(quick):
    results = make(labelled=4)
    summaries = [method["summary"] for method in results["methods"]]
    part = summaries[1]["expert_everywhere"]["ann"]
    ours = {row["case"]: next(iter(row["metrics"].values()))["Dice"] for row in part["metric_per_case"]}
    theirs = {
        row["case"]: next(iter(row["metrics"].values()))["Dice"]
        for row in summaries[0]["model_everywhere"]["metric_per_case"]
    }
    cases = [case for fold in results["cases"].values() for case in fold if case in ours]
    assert len(cases) == 4
    expected = bootstrap_difference(
        [ours[case] for case in cases],
        [theirs[case] for case in cases],
        generator=np.random.default_rng(0),
        num_resamples=60,
    )
    row = ["experts alone, whole image", "ann alone", broken(expected.to_dict(), signed=True)]
    assert row in read(results).rows


def test_an_expert_of_several_methods_is_shown_once(quick):
    same = make([(STOCK, 30, ()), (ONE, 30, ("ann",)), (TWO, 20, ("ann",))])
    assert [row[1] for row in read(same).rows].count("ann alone") == 1
    different = copy.deepcopy(same)
    different["methods"][2]["summary"]["expert_everywhere"]["ann"]["metric_per_case"].pop()
    shown = [row[1] for row in read(different).rows]
    assert f"ann alone ({ONE})" in shown and f"ann alone ({TWO})" in shown


def test_groups_are_drawn_together_for_experts_alone_too(quick):
    groups = {f"case_{number}": number // 2 for number in range(6)}
    results = make(groups=groups)
    assert "in 3 groups (for example patients)" in read(results).text

    def alone(**options):
        return next(row[2] for row in read(results, **options).rows if row[1:2] == ["ann alone"])

    assert "[" in alone(groups=groups)
    assert alone() == alone(groups=groups).split("\n")[0]  # no interval rather than one of cases


def test_other_groups_than_those_of_the_results_are_refused(quick):
    results = make(groups={f"case_{number}": number // 2 for number in range(6)})
    with pytest.raises(ValueError, match="computed with 3 groups of cases, got 2"):
        benchmark_page(results, groups={f"case_{number}": number // 3 for number in range(6)})


@pytest.mark.parametrize(
    ("change", "num_groups", "said", "not_said"),
    [
        ((0.002, -0.01, 0.02), 24, "not shown to differ (+0.002 [−0.010, +0.020])", "better"),
        ((0.002, -0.01, 0.02), 24, "it is worse by at most 0.010", "better"),
        ((0.002, -0.0001, 0.02), 24, "it is worse by at most 0.001", "same"),
        ((0.002, -0.01, 0.02), 6, "too few cases for a conclusion", "no worse by more"),
        ((0.05, 0.03, 0.07), 24, "its mask is better (+0.050 [+0.030, +0.070])", "no worse"),
        ((-0.05, -0.07, -0.03), 24, "its mask is worse (−0.050 [−0.070, −0.030])", "better"),
        ((0.0, 0.0, 0.0), 24, "its mask is equally good", "no worse"),
        ((0.05, NAN, NAN), 24, "No difference is shown for its mask (+0.050, without an interval)", "better"),
        ((NAN, NAN, NAN), 24, "No difference is shown for its mask (–, without an interval)", "better"),
    ],
)  # fmt: skip
def test_the_headline_says_plainly_whether_the_mask_is_as_good(quick, change, num_groups, said, not_said):
    results = set_change(set_change(make(), *change), 0.0, -0.1, 0.1, part="system")
    results["intervals"]["num_groups"] = num_groups
    text = benchmark_page(results).headline.replace("is not shown to be better", "")
    assert said.lower() in text.lower() and not_said not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((0.05, 0.03, 0.07), "is better (+0.050 [+0.030, +0.070])"),
        ((0.05, -0.03, 0.07), "is not shown to be better (+0.050 [−0.030, +0.070])"),
        ((-0.05, -0.07, -0.03), "is worse (−0.050 [−0.070, −0.030])"),
        ((0.05, NAN, NAN), "is not shown to be better (+0.050, without an interval)"),
    ],
)
def test_the_headline_says_plainly_whether_the_system_is_better_and_at_what_rate(quick, change, said):
    results = set_change(make(), *change, part="system")
    results["methods"][1]["deferral"]["rate"] = 0.0123
    assert f"its system, with 1.2 % of the voxels deferred, {said}" in benchmark_page(results).headline


def test_the_headline_of_a_method_that_defers_nothing(quick):
    assert "it deferred nothing, so its system equals its mask" in benchmark_page(make(asked=0)).headline


def test_the_headline_of_one_method_compares_nothing(quick):
    text = benchmark_page(make([(STOCK, 30, ())])).headline
    assert text.startswith(f"No comparison: only {STOCK} was given")


def test_the_headline_says_that_there_is_no_deferral_model(quick):
    text = benchmark_page(make([(STOCK, 30, ()), ("other", 20, ())])).headline
    assert "There is no deferral model among the methods." in text and "system" not in text
    assert "no deferral model" not in benchmark_page(make()).headline


def test_many_methods_are_counted_in_the_headline_and_each_told_below(quick):
    methods = [(STOCK, 30, ()), *((f"{ONE}_{number}", 30, ("ann",)) for number in range(5))]
    results = make(methods)
    for place, low, high in ((1, 0.01, 0.03), (2, -0.03, -0.01), (3, -0.01, 0.01), (4, 0.01, 0.02), (5, NAN, NAN)):
        set_change(results, (low + high) / 2, low, high, place=place)
    page = benchmark_page(results)
    assert "Of 5 masks, 2 are better, 1 worse and 2 not shown to differ." in page.headline
    assert f"{ONE}_0" not in page.headline
    assert page.sections[0].heading == "Method by method"
    each = dict(page.sections[0].parts[0].meanings)
    assert each[f"{ONE}_1"].startswith("Its mask is worse")


def test_cases_folds_and_few_cases_are_told(quick):
    assert "6 validation cases of folds 0, 1, each counted once." in read(make()).text
    assert "With only 6 cases or groups, intervals are rough" in read(make()).text
    assert "1 validation case of fold 0" in read(make(num_cases=1, folds=1)).text
    assert "With only" not in read(make(num_cases=20)).text


def test_simulated_experts_and_raters_are_told_apart(quick):
    raters, simulated = read(make()).text, read(make(answering=[SIMULATED, "bob"])).text
    assert "Experts are simulated" in simulated and "seed 3" in simulated
    assert "Experts are simulated" not in raters and "Raters, with labels read from files: ann, bob" in raters


def test_the_markdown_says_who_answered_and_that_experts_are_simulated(quick):
    raters, simulated = markdown(make()), markdown(make(answering=[SIMULATED, "bob"]))
    assert "Experts are simulated: this shows whether routing works, not the gain with real experts." in simulated
    assert "Experts: Raters, with labels read from files: bob. Simulated from the reference with seed 3: " in simulated
    assert "imulated" not in raters and "Experts: Raters, with labels read from files: ann, bob." in raters


def test_a_collapse_of_routing_is_said(quick):
    assert "routing has collapsed unless" not in read(make()).text
    assert f"{ONE} (100 % to bob)" in read(make(to=2)).text
    assert "routing has collapsed unless" not in read(make([(STOCK, 30, ()), (ONE, 30, ("ann",))])).text


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"asked": 1}, f"Nearly all voxels were deferred: {ONE} (100 %). Such a system is as good as its experts."),
        (
            {"methods": ((STOCK, 30, ()), (ONE, 256, ("ann", "bob")))},
            f"Hardly anything is segmented correctly: {ONE} (Dice 0.000).",
        ),
    ],
)
def test_methods_that_say_little_about_deferral_are_named_before_the_result(quick, made, said):
    results = make(**made)
    before, _, _ = read(results).text.partition("Differences in Dice from")
    assert f"Caution: {said}" in before
    assert f"CAUTION: {said}" in markdown(results)


def test_ordinary_methods_have_no_caution(quick):
    assert "aution" not in read(make()).text and "CAUTION" not in markdown(make())


def test_load_is_that_of_the_results(quick):
    deferral = make()["methods"][1]["deferral"]
    row = next(row for row in read(make()).rows if row[0] == ONE and row[2].startswith("ann:"))
    assert row[1] == f"{100 * deferral['rate']:.1f} %" or row[1] == f"{100 * deferral['rate']:.2f} %"
    share = deferral["share"]["ann"]
    assert row[2].split("\n")[0] == f"ann: {100 * share / deferral['rate']:.1f} % ({100 * share:.1f} %)"


def test_every_study_has_a_section_with_its_rows_beside_the_first_method(quick):
    methods = [(STOCK, 30, ()), (ONE, 30, ("ann",)), (TWO, 20, ("ann",))]
    studies = [
        ("ablation", "Ablation", [({"J": "1", "Loss": "DC"}, 1), ({"J": "1", "Loss": "+ SC"}, 2)]),
        ("experts", "Numbers of experts", [({"J": "1"}, 1)]),
    ]
    results = make(methods, studies=studies)
    page = read(results)
    assert page.headings[:2] == ["Ablation", "Numbers of experts"]
    assert "Scores" not in page.headings
    dice = broken(results["methods"][2]["scores"]["model_everywhere"]["1"]["Dice"])
    assert next(row for row in page.rows if row[:2] == ["1", "+ SC"])[2] == dice
    assert sum(row[:2] == [STOCK, ""] for row in page.rows) == 3  # one of each score
    assert ["J 1, Loss + SC", "model alone"] in [row[:2] for row in page.rows]


def test_methods_outside_of_all_studies_have_their_own_sections_first(quick):
    methods = [(STOCK, 30, ()), (ONE, 30, ("ann",)), (TWO, 20, ("ann",))]
    page = read(make(methods, studies=[("experts", "Numbers of experts", [({"J": "1"}, 2)])]))
    assert page.headings[:4] == [f"Differences from {STOCK}", "Load of the experts", "Scores", "Numbers of experts"]


def test_times_are_ratios_and_seconds_only_where_there_are_any(quick):
    results = make()
    rows = read(results).rows
    assert ["trainer", "trained on", "epoch, ratio", "prediction, ratio"] in rows
    assert [ONE, "cpu (here)", "1.1", "–"] in rows
    results["methods"][0]["time"]["seconds_per_epoch"] = 12.34
    rows = read(results).rows
    assert [STOCK, "cpu (here)", "1", "–", "12.3"] in rows and [ONE, "cpu (here)", "1.1", "–", "–"] in rows


def test_how_it_was_made_is_told(quick):
    results = make()
    text = read(results).text
    for word in ("Dataset901_Made, configuration 2d", "0 (3 cases), 1 (3 cases)", f"{ONE}, plans nnUNetPlans",
                 f"torch {results['versions']['torch']}", results["date"], "60 resamples (seed 0)"):  # fmt: skip
        assert word in text


def test_undefined_cases_are_counted(quick):
    assert "by class: rim: 6." in read(make(empty=True)).text
    assert "left out" not in read(make()).text


def test_plans_are_named_where_they_differ(quick):
    results = make()
    results["methods"][1]["plans"] = "Other"
    assert f"{ONE} (Other)" in benchmark_page(results).headline
    assert "(nnUNetPlans)" not in benchmark_page(make()).headline


def test_a_page_of_what_was_written_as_json_is_the_same(quick):
    results = make(num_cases=1, folds=1)
    again = json.loads(json.dumps(without_nan(results)))
    assert render_page(benchmark_page(again)) == render_page(benchmark_page(results))


def test_many_classes_are_several_tables_and_no_endless_figure(quick, monkeypatch):
    drawn = []
    monkeypatch.setattr(module.figures, "draw_forest", lambda _, regions: drawn.append(list(regions)))
    results = make(labels=2)
    for number in range(3, 40):
        results["regions"][str(number)] = f"organ {number}"
        for method in results["methods"]:
            for part in (*method["scores"].values(), *method["minus_first"].values()):
                part[str(number)] = part["1"]
            for row in method["summary"]["model_everywhere"]["metric_per_case"]:
                row["metrics"][str(number)] = row["metrics"]["1"]
            method["summary"]["model_everywhere"]["mean"][str(number)] = {"n_undefined": 0}
            method["summary"].pop("expert_everywhere", None)
    parts = benchmark_page(results).sections[0].parts
    tables = [part for part in parts if isinstance(part, Table)]
    assert drawn == [["foreground_mean"]]
    assert len(tables) == 10 and max(len(table.head) for table in tables) == 6
    assert tables[-1].head[-1] == "class organ 39"


def test_an_existing_page_is_replaced_whole_or_left_as_it_is(quick, tmp_path, monkeypatch):
    file = tmp_path / "new" / "report.html"
    write_benchmark_page(make(), file)
    before = file.read_text()
    assert before.startswith("<!DOCTYPE html>") and before.rstrip().endswith("</html>")
    write_benchmark_page(make(to=1), file)
    after = file.read_text()
    assert after != before

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="no space"):
        write_benchmark_page(make(), file)
    assert file.read_text() == after
    assert [found.name for found in file.parent.iterdir()] == ["report.html"]


def test_files_that_cannot_be_written_are_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder cannot be written"):
        check_report(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"report\.html cannot be written"):
        check_report(tmp_path / "file" / "report.html")
    check_report(tmp_path / "file")
    check_report(tmp_path / "not" / "there" / "report.html")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    with pytest.raises(ValueError, match="Permission denied"):
        check_report(tmp_path / "report.html")


def line(kind, estimate, low, high):
    return Line(label=kind, kind=kind, differences={"1": {"estimate": estimate, "low": low, "high": high}})


def forest(*lines):
    return draw_forest([Block(heading="method", lines=lines)], {"1": "class"}).axes[0]


def test_the_forest_draws_estimates_and_intervals_where_they_are():
    axes = forest(line("model_everywhere", -0.01, -0.02, 0.005), line("system", 0.05, 0.03, 0.07))
    drawn = [(list(each.get_xdata()), list(each.get_ydata())) for each in axes.lines]
    assert ([0, 0], [0, 1]) in drawn
    for found in (([-0.02, 0.005], [1, 1]), ([-0.01], [1]), ([0.03, 0.07], [2, 2]), ([0.05], [2])):
        assert found in drawn
    low, high = axes.get_xlim()
    assert low < -0.02 and high > 0.07


def test_models_and_systems_are_told_apart_without_colour():
    axes = forest(line("model_everywhere", 0, -0.02, 0.02), line("system", 0, -0.02, 0.02))
    markers = [each.get_marker() for each in axes.lines if each.get_marker() not in ("None", "")]
    assert len(set(markers)) == 2


def test_a_far_expert_is_an_arrow_with_its_number_and_does_not_squeeze_the_scale():
    axes = forest(line("system", 0.01, 0.0, 0.02), line("expert alone", -0.6, -0.7, -0.5))
    assert axes.get_xlim()[0] > -0.05
    assert [text.get_text() for text in axes.texts] == ["◀", "−0.600"]


def test_a_near_expert_is_on_the_scale():
    axes = forest(line("system", 0.0, 0.0, 0.0), line("expert alone", 0.02, -0.01, 0.04))
    assert axes.get_xlim()[1] > 0.04
    assert not axes.texts


def test_what_is_undefined_is_a_dash_in_the_forest_and_what_has_no_interval_is_hollow():
    axes = forest(line("system", NAN, NAN, NAN), line("model_everywhere", 0.01, NAN, NAN))
    assert [text.get_text().split()[0] for text in axes.texts] == ["–"]
    dots = [each for each in axes.lines if each.get_marker() == "s"]
    assert len(dots) == 1 and same_color(dots[0].get_markerfacecolor(), "white")


def test_the_loads_are_shares_of_what_was_deferred_with_hatches():
    loads = [Load(label="a", rate=0.2, shares={"ann": 0.15, "bob": 0.05}), Load(label="b", rate=0, shares={"ann": 0})]
    figure = draw_loads(loads)
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0.75, 0.25])
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 0.75])
    assert [(bar.get_hatch() or "") for bar in bars] == [expert_fill(0)[1], expert_fill(1)[1]]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "20.0 % of all voxels deferred" in texts and "nothing was deferred" in texts


def test_figures_of_nothing_are_refused():
    with pytest.raises(ValueError, match="got 0"):
        draw_forest([], {"1": "class"})
    with pytest.raises(ValueError, match="at least one method"):
        draw_loads([])


def test_every_figure_has_a_table_beside_it():
    sections = benchmark_page(make()).sections
    for section in sections:
        if any(isinstance(part, Picture) for part in section.parts):
            assert any(isinstance(part, Table) for part in section.parts)
