"""Figures and tables for a paper."""

import re

import pytest

from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.report.paper import to_latex, write_paper


def test_every_figure_is_written_in_every_format_and_the_same_again(make_summary, tmp_path, drawn_figures):
    summary = make_summary(with_routing=True, labels=2)
    files = write_paper(summary, tmp_path / "figures", ["svg", "png"])
    names = {"curves", "load", "location", "reliability"}
    assert {file.name for file in files} == {f"{name}.{ending}" for name in names for ending in ("svg", "png")} | {
        "tables.tex"
    }
    assert set(files) == set((tmp_path / "figures").iterdir())
    assert (tmp_path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figures" / "load.svg").read_text()
    before = {file: file.read_bytes() for file in files}
    write_paper(summary, tmp_path / "figures", ["svg", "png"])
    assert {file: file.read_bytes() for file in files} == before
    text = (tmp_path / "figures" / "tables.tex").read_text()
    assert re.findall(r"label\{tab:(\w+)\}", text) == ["scores", "regions", "budgets", "differences", "load"]
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5
    assert not set("−–×%\\") & set(re.sub(r"\\\w+|\\[%_&\\]|^% requires.*$", "", text, flags=re.MULTILINE))


def test_what_latex_reads_as_commands_is_escaped():
    table = Table(
        caption="95 % of a_b", head=["who & what", "n"], rows=[["#1 {x} ~ ^ \\", "−0.1\n[–, 2]"], ["50 $", "3"]]
    )
    text = to_latex(table, "tab:x")
    assert r"\caption{95 \% of a\_b}" in text
    assert r"who \& what & n \\" in text
    assert r"\#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} & $-$0.1 [--, 2] \\" in text
    assert r"50 \$ & 3 \\" in text
    assert r"\begin{tabular}{lr}" in text


@pytest.mark.parametrize("head", [(), ("name", "value")])
def test_a_table_may_have_no_headings(head):
    text = to_latex(Table(caption="c", rows=[["a", "1"]], head=head), "tab:x")
    assert ("name & value" in text) == bool(head)
