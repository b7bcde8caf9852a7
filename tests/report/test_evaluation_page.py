import json
import re

import pytest
from page_reader import Reader

from nnunetv2_deferral.report import statements
from nnunetv2_deferral.report.evaluation_page import WITHOUT_IMAGES, evaluation_page, write_evaluation_page
from nnunetv2_deferral.report.evaluation_tables import load_table, scores_table
from nnunetv2_deferral.report.evaluation_text import evaluation_text
from nnunetv2_deferral.report.page import render_page
from nnunetv2_deferral.report.statements import headline, interval_text, limits, remarks
from nnunetv2_deferral.report.strips import chosen_cases

NAN = float("nan")


@pytest.fixture
def quick(monkeypatch):
    """Pages without drawing, for tests of their text."""
    for name in ("draw_curves", "draw_load", "draw_location"):
        monkeypatch.setattr(f"nnunetv2_deferral.report.evaluation_page.{name}", lambda *_, **__: None)
    monkeypatch.setattr("nnunetv2_deferral.report.evaluation_page.to_png", lambda *_, **__: b"\x89PNG\r\n\x1a\n")


def read(summary, **options):
    return Reader(render_page(evaluation_page(summary, **options)))


def with_change(summary, estimate, low, high):
    summary["intervals"]["Dice"]["system - model_everywhere"] = {"estimate": estimate, "low": low, "high": high}
    return summary


EDGE_CASES = {
    "nothing deferred": {"rate": 0},
    "everything deferred": {"rate": 1},
    "one case": {"num_cases": 1},
    "one expert": {"experts": ("ann",)},
    "eight experts": {"experts": tuple("abcdefgh")},
    "no probabilities": {"with_probabilities": False},
    "no Dice": {"empty": True},
    "two labels": {"labels": 2},
}


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize("options", EDGE_CASES.values(), ids=EDGE_CASES)
def test_every_evaluation_has_a_page_without_nan_and_with_all_figures(make_summary, options):
    page = read(make_summary(**options))
    assert [tag for tag, _ in page.tags].count("img") == 3
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)


def test_the_text_of_cases_without_a_dice_has_no_nan(make_summary):
    said = evaluation_text(make_summary(empty=True) | {"review": None})
    assert re.search(r"– \(–\).* learned", said)
    assert not re.search(r"\bnan\b", said)


def test_the_page_is_self_contained(make_summary):
    html = render_page(evaluation_page(make_summary()))
    tags = Reader(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "base"}
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on")]
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "srcset")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", html)
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")


def test_scores_are_those_of_the_summary(make_summary, quick):
    summary = make_summary()
    rows, dice = read(summary).rows, summary["intervals"]["Dice"]
    for who, key in (("model alone", "model_everywhere"), ("ann alone", "ann"), ("bob alone", "bob")):
        part = summary.get(key) or summary["expert_everywhere"][key]
        assert [
            who,
            f"{dice[key]['estimate']:.3f} [{dice[key]['low']:.3f}, {dice[key]['high']:.3f}]",
            interval_text(dice[f"system - {key}"], signed=True),
            f"{part['foreground_mean']['IoU']:.3f}",
            f"{part['foreground_mean']['Sensitivity']:.3f}",
            "4",
        ] in rows


def test_matched_budgets_are_those_of_the_summary(make_summary, quick):
    summary = make_summary()
    rows = read(summary).rows
    for name, shown in (("learned", "learned: expected gain (this model)"), ("oracle", "oracle"), ("random", "random")):
        cells = next(row for row in rows if row[0] == shown)[1:]
        assert len(cells) == len(summary["budgets"][name]) == 6
        for cell, found in zip(cells, summary["budgets"][name], strict=True):
            assert cell.replace("\N{NO-BREAK SPACE}", " ").split("\n")[:2] == [
                f"{found['Dice']:.3f}",
                f"[{found['low']:.3f}, {found['high']:.3f}]",
            ]
            assert cell.split("\n")[2] == f"{found['recovered']:.0%}".replace("%", " %").replace("-", "−")


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ((0.0, 0.0, 0.0), "equal to"),
        ((0.0001, -0.0003, 0.0004), "equal to"),
        ((0.0001, -0.08, 0.09), "not shown to differ from"),
        ((0.0, NAN, NAN), "not shown to differ from"),
        ((0.02, 0.01, 0.03), "better than"),
        ((-0.02, -0.03, -0.01), "worse than"),
    ],
)
def test_rankings_are_called_equal_only_if_the_interval_says_so(make_summary, difference, said):
    summary = make_summary()
    for row in summary["budgets"]["random"]:
        row["learned_minus_this"] = dict(zip(("estimate", "low", "high"), difference, strict=True))
    (found,) = (text for text in remarks(summary) if "the ranking by expected gain reaches" in text)
    assert f"{said} random order" in found


def test_an_undefined_share_of_the_oracles_gain_is_left_out(make_summary):
    summary = make_summary()
    assert any("of the oracle's gain." in text for text in remarks(summary))
    for row in summary["budgets"]["learned"]:
        row["recovered"] = NAN
    assert not any("oracle" in text for text in remarks(summary))


def test_that_rankings_pass_over_voxels_without_an_answer_is_said_where_there_are_any(make_summary):
    summary = make_summary()
    said = "Rankings at matched budgets skip voxels without an answer"
    summary["deferral"]["unanswered"] = 0.25
    (found,) = (text for text in limits(summary) if said in text)
    assert "(25.0 % of the deferred voxels)" in found
    summary["deferral"]["unanswered"] = 0
    assert not any(said in text for text in limits(summary))


def test_load_is_that_of_the_summary(make_summary):
    summary = make_summary(rate=0.4)
    counts = summary["deferred"]["experts"]["ann"]
    row = next(row for row in load_table(summary).rows if row[0] == "ann")
    numbers = [cell.split("\n")[0] for cell in row]
    no_change = counts["deferred"] - counts["fixed"] - counts["worsened"] - counts["unanswered"]
    assert numbers[1] == str(counts["deferred"])
    assert numbers[3:8] == [
        str(number) for number in (counts["deferred_model_wrong"], counts["fixed"], no_change, counts["worsened"],
                                   counts["unanswered"])
    ]  # fmt: skip
    assert load_table(summary).rows[-1][1].split("\n")[0] == f"{summary['deferred']['total']['deferred']:,}"


def test_an_expert_who_labelled_some_cases_only_is_shown_so(make_summary):
    summary = make_summary()
    del summary["expert_everywhere"]["ann"]["metric_per_case"][0]
    assert next(row for row in scores_table(summary).rows if row[0] == "ann alone")[-1] == "3 of 4"


def test_an_expert_without_any_label_has_no_row(make_summary, quick):
    summary = make_summary()
    for part in (summary["expert_everywhere"], summary["intervals"]["Dice"]):
        del part["bob"]
    del summary["intervals"]["Dice"]["system - bob"]
    page = read(summary)
    assert "bob alone" not in [row[0] for row in page.rows]
    assert "ann alone" in [row[0] for row in page.rows]


def test_names_are_escaped(make_summary, quick):
    bad = "<script>alert(1)</script>"
    summary = make_summary(experts=(bad, "a&b"))
    summary["model_identity"]["dataset"] = "<b>"
    html = render_page(evaluation_page(summary))
    assert "<script" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; alone" in html


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        ((0.002, -0.01, 0.02), "(difference +0.002 [−0.010, +0.020])", "raised"),
        ((0.002, -0.01, 0.02), "no gain was shown", "harm"),
        ((0.05, 0.03, 0.07), "(difference +0.050 [+0.030, +0.070])", "no gain"),
        ((-0.05, -0.07, -0.03), "(difference −0.050 [−0.070, −0.030])", "raised"),
        ((0.05, NAN, NAN), "no gain was shown", "raised"),
        ((NAN, NAN, NAN), "no gain can be shown", "raised"),
    ],
)
def test_the_headline_says_plainly_whether_deferring_helped(make_summary, change, said, not_said):
    text = headline(with_change(make_summary(), *change))
    assert said in text and not_said not in text


def test_the_headline_of_a_model_that_defers_nothing(make_summary):
    text = headline(make_summary(rate=0))
    assert text.startswith("The model deferred nothing") and text.endswith("No gain was shown.")


@pytest.mark.parametrize(
    ("entropy", "mask", "said"),
    [
        (0.01, 0.02, "is better than the model's entropy and predicted class and distance"),
        (0.01, -0.02, "was not shown to beat predicted class and distance to the predicted border (difference"),
        (-0.01, 0.02, "was not shown to beat the model's entropy (difference"),
        (-0.01, NAN, "was not shown to beat the model's entropy (difference"),
    ],
)
def test_it_is_said_whether_the_learned_ranking_beats_entropy_and_what_the_mask_says(
    make_summary, quick, entropy, mask, said
):
    summary = make_summary()
    for name, low in (("entropy", entropy), ("mask_only", mask)):
        difference = {"estimate": low + 0.01, "low": low, "high": low + 0.02}
        summary["budgets"][name][-1]["learned_minus_this"] = difference
    assert said in statements.sanity(summary)
    assert said in read(summary).text
    assert said in evaluation_text(summary | {"review": None})


def test_without_any_dice_nothing_is_said_about_rankings(make_summary):
    assert statements.sanity(make_summary(empty=True)) == ""


def test_what_is_undefined_is_a_dash_in_the_terminal(make_summary):
    summary = make_summary(empty=True)
    for part in (summary["model_everywhere"], summary["system"], *summary["expert_everywhere"].values()):
        part["foreground_mean"] |= {"HD95": NAN, "NSD": NAN}
    text = evaluation_text(summary | {"review": None, "surface_tolerance": 2.0, "unit": "mm"})
    assert "nan" not in text
    assert f"    {'model alone':<32} –, –" in text
    (oracle,) = (line for line in text.splitlines() if line.endswith("  oracle"))
    assert oracle.split()[:2] == ["–", "(–)"]


@pytest.mark.usefixtures("quick")
def test_that_everything_was_deferred_is_said_before_the_result(make_summary):
    summary = make_summary(rate=1)
    assert headline(summary).startswith("Deferring all voxels")
    before, _, _ = read(summary).text.partition("Deferring all voxels")
    assert "Caution: All voxels were deferred: the model answers nothing itself" in before


@pytest.mark.usefixtures("quick")
def test_an_ordinary_result_has_no_caution(make_summary):
    assert evaluation_page(make_summary()).cautions == []


def test_a_collapse_of_routing_is_said(make_summary):
    summary = make_summary()
    assert not any("collapsed" in text for text in remarks(summary))
    total = summary["deferred"]["total"]["deferred"]
    for name, number in (("ann", total - 1), ("bob", 1)):
        summary["deferred"]["experts"][name]["deferred"] = number
    assert any("one of 2 experts, ann: routing may have collapsed" in text for text in remarks(summary))


def test_a_single_expert_is_no_collapse(make_summary):
    assert not any("collapsed" in text for text in remarks(make_summary(experts=("ann",))))


def test_the_learned_ranking_is_compared_at_the_models_own_rate(make_summary):
    summary = make_summary()
    row = summary["budgets"]["max_softmax"][-1]
    text = remarks(summary)[0]
    assert f"ranking by max softmax ({row['Dice']:.3f}; difference" in text
    assert interval_text(row["learned_minus_this"], signed=True) in text


def test_the_best_expert_alone_is_named(make_summary):
    summary = make_summary()
    dice = summary["intervals"]["Dice"]
    best = max(("ann", "bob"), key=lambda name: dice[name]["estimate"])
    assert f"The best single expert is {best}" in remarks(summary)[1]


def test_raters_and_simulated_experts_are_told_apart(make_summary):
    summary = make_summary()
    assert statements.experts_text(summary) == "Raters, with labels read from files: ann, bob."
    assert any("made from these raters' own labels" in text for text in limits(summary))
    summary["experts"] = {
        "experts": [
            {"name": "ann", "foreground": 0.92, "background": 0.98, "boundary": 0.9, "error_model": "independent"},
            {"name": "bob", "foreground": 0.9, "background": 0.9, "edge_boost": -0.1, "error_model": "correlated"},
        ],
        "seed": 7,
        "boundary_width": 2,
    }
    text = statements.experts_text(summary)
    assert "seed 7" in text
    assert (
        "ann, right in 92 % of the foreground, 98 % of the background and 90 % of borders, independent errors" in text
    )
    assert "−10 points at borders, spatially correlated errors" in text
    assert any("simulated experts err independently" in text for text in limits(summary))


def simulated(name):
    return {"name": name, "foreground": 0.9, "background": 0.9, "boundary": 0.9, "error_model": "independent"}


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        (["ann", "bob"], None),
        ([simulated("ann")], "The expert is simulated"),
        ([simulated("ann"), simulated("bob")], "The experts are simulated"),
        ([simulated("ann"), "bob"], "1 of the 2 experts is simulated"),
    ],
)
def test_that_experts_are_simulated_is_said_at_the_top(make_summary, experts, said):
    summary = make_summary()
    summary["experts"]["experts"] = experts
    first = remarks(summary)[0]
    assert first.startswith(said) if said else "simulated" not in first


def test_how_the_intervals_were_drawn_is_told(make_summary):
    by_case = statements.intervals_text(make_summary())
    assert "100 resamples (seed 0) of the 4 cases;" in by_case
    groups = {f"case_{number}": number // 2 for number in range(4)}
    by_group = statements.intervals_text(make_summary(groups=groups))
    assert "the 2 groups (for example patients) of the 4 cases" in by_group
    assert any("With only 2" in text for text in limits(make_summary(groups=groups)))


def test_undefined_cases_are_counted(make_summary):
    assert any("label: 1: 4" in text for text in limits(make_summary(empty=True)))
    assert not any("undefined" in text for text in limits(make_summary()))


def test_model_and_versions_are_named(make_summary, quick):
    text = read(make_summary()).text
    for word in ("Dataset701_Small", "nnUNetTrainerDeferral", "nnUNetPlans", "3d_fullres", "nnunetv2 2.8.1"):
        assert word in text


def test_without_images_the_page_says_how_to_get_cases(make_summary, quick):
    assert WITHOUT_IMAGES in read(make_summary()).text


def test_without_probabilities_the_page_says_what_is_missing(make_summary, quick):
    assert "--save_probabilities" in read(make_summary(with_probabilities=False)).text
    assert "--save_probabilities" not in read(make_summary()).text


def test_labels_are_listed_where_there_are_several(make_summary, quick):
    assert "Dice by label" in read(make_summary(labels=2)).text
    assert "Dice by label" not in read(make_summary()).text


def test_a_summary_that_was_written_and_read_gives_the_same_page(make_summary, tmp_path):
    summary = make_summary(num_cases=1)
    write_evaluation_page(summary, tmp_path / "a.html")
    write_evaluation_page(json.loads(json.dumps(summary)), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_between_three_and_six_cases_are_shown(make_summary):
    assert 3 <= len(chosen_cases(make_summary(num_cases=9))) <= 6
    assert len(chosen_cases(make_summary(num_cases=9, rate=0))) == 3
    assert len(chosen_cases(make_summary(num_cases=2))) == 2
