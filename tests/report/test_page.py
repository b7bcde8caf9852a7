import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunetv2_deferral.evaluation.summary import Case, summarize_deferral
from nnunetv2_deferral.report.page import Page, Picture, Section, render_page, write_page
from nnunetv2_deferral.report.tables import (
    deferral_effect,
    deferral_rows,
    dice_by_case,
    markdown_tables,
    result_table,
    score_rows,
    telling_order,
    without_nan,
)

NAN = float("nan")
PNG = b"\x89PNG\r\n\x1a\n" + b"anything"


def make_cases():
    """Eight voxels, four deferred: of these the model has two wrong, one is fixed and one is made worse."""
    reference = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    model = np.array([0, 0, 1, 1, 1, 0, 0, 0])
    expert = np.array([1, 0, 0, 1, 0, 0, 0, 0])
    route = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.uint8)
    return [Case("one", reference, model, expert[None], route)]


def make_table(cases=None, experts=("ann",), stock=None):
    cases = make_cases() if cases is None else cases
    return result_table(summarize_deferral(cases, (1,), experts), deferral_effect(cases), stock=stock)


def make_page(**changes):
    return Page(**{"title": "Title", "introduction": ("Words.",), "table": make_table()} | changes)


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


def test_the_effect_of_deferring_is_counted_voxel_by_voxel():
    assert deferral_effect(make_cases()) == {
        "voxels": 8,
        "model_wrong": 3,
        "deferred": 4,
        "deferred_model_wrong": 2,
        "fixed": 1,
        "worsened": 1,
    }


def test_ignored_voxels_have_no_effect():
    cases = [Case("one", np.array([2, 1]), np.array([0, 0]), np.array([[1, 1]]), np.array([1, 1], np.uint8))]
    effect = deferral_effect(cases, ignore_label=2)
    assert effect == dict.fromkeys(effect, 1) | {"worsened": 0}


def test_the_effect_without_cases_is_zero():
    assert set(deferral_effect([]).values()) == {0}


def test_the_numbers_shown_are_those_of_the_summary():
    summary = summarize_deferral(make_cases(), (1,), ["ann"])
    rows = Reader(render_page(make_page())).rows
    for who, part in (
        ("model alone", summary["model_everywhere"]),
        ("system (model + experts asked)", summary["system"]),
        ("ann alone", summary["expert_everywhere"]["ann"]),
    ):
        scores = [f"{part['foreground_mean'][score]:.3f}" for score in ("Dice", "IoU", "Sensitivity")]
        assert [who, *scores] in rows
    assert ["voxels deferred", "50.00 %"] in rows
    assert ["asked of ann", "50.00 %"] in rows
    assert ["of the model's errors, deferring fixed", "33.33 %"] in rows


def test_stock_comes_first_when_there_is_one():
    stock = {"foreground_mean": {"Dice": 0.25, "IoU": 0.125, "Sensitivity": 1.0}}
    assert score_rows(make_table(stock=stock))[1] == ["stock nnU-Net", "0.250", "0.125", "1.000"]


def test_undefined_numbers_are_dashes():
    empty = np.zeros(4, np.int64)
    table = make_table([Case("empty", empty, empty, empty[None], empty.astype(np.uint8))])
    assert [row[1] for row in score_rows(table)[1:]] == ["–"] * 3
    rows = Reader(render_page(make_page(table=table))).rows
    assert ["of the deferred voxels, the model had wrong", "–"] in rows
    assert "nan" not in "".join(cell for row in rows for cell in row).lower()


def test_the_page_loads_nothing():
    pictures = (Picture(png=PNG, title="a", caption="b"),)
    html = render_page(make_page(sections=(Section(heading="h", pictures=pictures, commands="do it"),)))
    tags = Reader(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "base"}
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "srcset")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", html)


def test_pictures_have_a_text_for_those_who_do_not_see_them():
    section = Section(heading="h", pictures=(Picture(png=PNG, title='the "a"', caption=""),))
    assert ('the "a"') in [
        attributes.get("alt") for _, attributes in Reader(render_page(make_page(sections=(section,)))).tags
    ]


def test_names_are_escaped():
    page = make_page(title="<b>&", table=make_table(experts=("<script>alert(1)</script>",)))
    html = render_page(page)
    assert "<script" not in html
    assert "<h1>&lt;b&gt;&amp;</h1>" in html


def test_the_page_is_written_as_it_is_rendered(tmp_path):
    page = make_page()
    write_page(page, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_page(page)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_picture_that_is_no_png_is_refused():
    with pytest.raises(ValueError, match="'x' is no PNG"):
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
        ("c", "most improved by asking, median result of the system"),
        ("d", "worst result of the system"),
        ("a", ""),
        ("b", ""),
        ("e", ""),
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
