import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.evaluation.deferred import add_counts, count_deferred
from nnunetv2_deferral.evaluation.summary import summarize_deferral
from nnunetv2_deferral.files import without_nan
from nnunetv2_deferral.report.page import (
    Commands,
    Definitions,
    Note,
    Page,
    Picture,
    Section,
    SideBySide,
    Table,
    render_page,
    write_page,
)
from nnunetv2_deferral.report.tables import (
    deferral_rows,
    dice_by_case,
    markdown_tables,
    per_cent_text,
    result_table,
    result_tables,
    score_rows,
    share_text,
    signed_text,
    telling_order,
)

NAN = float("nan")
PNG = b"\x89PNG\r\n\x1a\n" + b"anything"


def make_cases():
    """Eight voxels, four deferred: of these the model has two wrong, one is fixed and one is made worse."""
    reference = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    model = np.array([0, 0, 1, 1, 1, 0, 0, 0])
    expert = np.array([1, 0, 0, 1, 0, 0, 0, 0])
    route = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.uint8)
    return [make_case("one", reference, model, expert, route)]


def make_case(name, reference, model, expert, route):
    prediction = PredictedCase(name, model=model, route=route)
    return EvaluatedCase(prediction=prediction, reference=reference, answers=expert[None])


def make_table(cases=None, experts=("ann",)):
    cases = make_cases() if cases is None else cases
    counted = [count_deferred(case.reference, case.model, case.answers, case.route, experts) for case in cases]
    effect = add_counts(counted, experts)["total"]
    return result_table(summarize_deferral(cases, (1,), experts), effect)


def make_page(*parts, table=None, **changes):
    tables = SideBySide(result_tables(table or make_table()))
    section = Section(heading="Numbers", parts=(tables, *parts))
    return Page(**{"title": "Title", "introduction": ("Words.",), "sections": (section,)} | changes)


class Reader(HTMLParser):
    """Collects the cells of all tables, and every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.tags, self._in_cell = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def test_the_numbers_shown_are_those_of_the_summary():
    summary = summarize_deferral(make_cases(), (1,), ["ann"])
    rows = Reader(render_page(make_page())).rows
    for who, part in (
        ("model alone", summary["model_everywhere"]),
        ("system (model + experts)", summary["system"]),
        ("ann alone", summary["expert_everywhere"]["ann"]),
    ):
        scores = [f"{part['foreground_mean'][score]:.3f}" for score in ("Dice", "IoU", "Sensitivity")]
        assert [who, *scores] in rows
    assert ["voxels deferred", "50.00 %"] in rows
    assert ["routed to ann", "50.00 %"] in rows
    assert ["errors of the model, fixed", "33.33 %"] in rows


def test_undefined_numbers_are_dashes():
    empty = np.zeros(4, np.int64)
    table = make_table([make_case("empty", empty, empty, empty, empty.astype(np.uint8))])
    assert [row[1] for row in score_rows(table)[1:]] == ["–"] * 3
    rows = Reader(render_page(make_page(table=table))).rows
    assert ["deferred voxels, model wrong", "–"] in rows
    assert "nan" not in "".join(cell for row in rows for cell in row).lower()


def test_the_page_loads_nothing():
    html = render_page(make_page(Picture(png=PNG, title="a", caption="b"), Commands("do it"), Note("n")))
    tags = Reader(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "base"}
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "srcset")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", html)


def test_pictures_have_a_text_for_those_who_do_not_see_them():
    html = render_page(make_page(Picture(png=PNG, title='the "a"', caption="")))
    assert ('the "a"') in [attributes.get("alt") for _, attributes in Reader(html).tags]


def test_names_are_escaped():
    page = make_page(title="<b>&", table=make_table(experts=("<script>alert(1)</script>",)))
    html = render_page(page)
    assert "<script" not in html
    assert "<h1>&lt;b&gt;&amp;</h1>" in html


def test_every_kind_of_part_is_escaped():
    bad = "<script>&"
    parts = (bad, Note(bad), Commands(bad), Definitions([(bad, bad)]), Picture(png=PNG, title=bad, caption=bad))
    html = render_page(make_page(*parts, Table(caption=bad, head=[bad], rows=[[bad]]), headline=bad))
    assert "<script" not in html
    assert html.count("&lt;script&gt;&amp;") == 12


def test_parts_keep_their_order():
    html = render_page(make_page("first", Note("second"), "third"))
    assert html.index("first") < html.index("second") < html.index("third")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (1, "100 %"), (0.1234, "12.3 %"), (0.0123, "1.2 %"), (0.00123, "0.12 %"), (1.7e-5, "0.0017 %"),
     (1e-9, "< 0.0001 %"), (0.99999, "99.99 %"), (NAN, "–")],
)  # fmt: skip
def test_shares_are_told_from_none_and_from_all(value, text):
    assert share_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0 %"), (0.004, "0 %"), (-0.42, "−42 %"), (1.5, "150 %"), (math.nan, "–")]
)
def test_whole_per_cent_has_no_negative_zero(value, text):
    assert per_cent_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0123, "+0.012"), (-0.5, "−0.500"), (-0.0001, "0.000"), (NAN, "–")])
def test_differences_have_a_sign(value, text):
    assert signed_text(value) == text


def test_the_page_is_written_as_it_is_rendered(tmp_path):
    page = make_page()
    write_page(page, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_page(page)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_picture_that_is_no_png_is_refused():
    with pytest.raises(ValueError, match="'x' is not a PNG"):
        Picture(png=b"GIF89a", title="x")


def test_markdown_has_the_same_numbers():
    table = make_table()
    text = markdown_tables(table)
    for row in (*score_rows(table), *deferral_rows(table)):
        assert "| " + " | ".join(row) + " |" in text


def test_the_most_telling_cases_come_first_and_only_once():
    model = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.2, "e": NAN}
    system = {"a": 0.6, "b": 0.95, "c": 0.8, "d": 0.2, "e": NAN}
    assert telling_order(model, system) == [
        ("c", "largest improvement, median result of the system"),
        ("d", "worst result of the system"),
        ("a", ""),
        ("b", ""),
        ("e", ""),
    ]


def test_a_case_that_asking_harmed_is_among_the_first():
    order = telling_order({"a": 0.5, "b": 0.9, "c": 0.7}, {"a": 0.6, "b": 0.8, "c": 0.7})
    assert order[1] == ("b", "largest deterioration")


def test_where_asking_changed_nothing_no_case_is_called_improved_or_harmed():
    dice = {"a": 0.5, "b": 0.9, "c": 0.7}
    assert [why for _, why in telling_order(dice, dice)] == [
        "worst result of the system",
        "median result of the system",
        "",
    ]


def test_without_any_defined_score_no_case_stands_out():
    assert telling_order({"a": NAN}, {"a": NAN}) == [("a", "")]


def test_the_dice_of_a_case_leaves_undefined_labels_out():
    metrics = {"1": {"Dice": 0.5}, "2": {"Dice": NAN}}
    rows = [{"case": "a", "metrics": metrics}, {"case": "b", "metrics": {"1": {"Dice": NAN}}}]
    found = dice_by_case({"metric_per_case": rows})
    assert found["a"] == 0.5
    assert math.isnan(found["b"])


def test_json_has_null_for_undefined_numbers():
    assert json.dumps(without_nan({"a": [NAN, 1.5], "b": (0, "x")})) == '{"a": [null, 1.5], "b": [0, "x"]}'
