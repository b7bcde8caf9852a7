"""Figures and tables for a paper."""

import re
import shutil
import subprocess

import pytest

from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.report.paper import to_latex, write_paper

LATEX = shutil.which("pdflatex")


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
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    assert not set("−–×%\\") & set(re.sub(r"\\\w+|\\[%_&\\]|^% requires.*$", "", text, flags=re.MULTILINE))


def test_what_latex_reads_as_commands_is_escaped():
    table = Table(
        caption="95 % of a_b", head=["who & what", "n"], rows=[["#1 {x} ~ ^ \\", "−0.1\n[–, 2]"], ["50 $", "3"]]
    )
    text = to_latex(table, "tab:x")
    assert r"\caption{95 \% of a\_b}" in text
    assert r"who \& what & n \\" in text
    lines = r"\begin{tabular}[t]{@{}r@{}}$-$0.1 \\ {}[--, 2]\end{tabular}"
    assert (
        rf"\#1 \{{x\}} \textasciitilde{{}} \textasciicircum{{}} \textbackslash{{}} & {lines} \\ \addlinespace" in text
    )
    assert r"50 \$ & 3 \\" in text
    assert r"\begin{tabular}{lr}" in text


@pytest.mark.parametrize("head", [(), ("name", "value")])
def test_a_table_may_have_no_headings(head):
    text = to_latex(Table(caption="c", rows=[["a", "1"]], head=head), "tab:x")
    assert ("name & value" in text) == bool(head)


@pytest.mark.skipif(LATEX is None, reason="LaTeX is not installed")
def test_the_tables_fit_on_a_page_of_a4(make_summary, tmp_path):
    files = write_paper(make_summary(with_routing=True, labels=2), tmp_path / "figures", [])
    tables = files[-1].read_text()
    rules = [rf"\providecommand\{name}{{\hline}}" for name in ("toprule", "midrule", "bottomrule")]
    lines = [
        r"\documentclass[a4paper]{article}",
        r"\usepackage[margin=2.5cm]{geometry}",
        *rules,  # in place of those of booktabs, which few installations of LaTeX have
        r"\newcommand\addlinespace{\noalign{\vskip 3pt}}",
        r"\begin{document}",
        tables,
        r"\end{document}",
    ]
    (tmp_path / "page.tex").write_text("\n".join(lines), encoding="utf-8")
    command = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    assert "Overfull" not in said.stdout


def test_long_names_beside_many_columns_are_broken_and_lines_of_cells_stand_below_each_other():
    row = ["a name that takes many characters", *(["0.9\n[0.8, 1.0]"] * 6)]
    wide, narrow = (to_latex(Table(caption="c", rows=[cells], head=()), "tab:x") for cells in (row, row[:3]))
    assert r"\begin{tabular}{p{2.4cm}rrrrrr}" in wide and r"\raggedright a name" in wide
    assert r"\begin{tabular}{lrr}" in narrow and "ragged" not in narrow
    assert r"\scriptsize" in wide
    assert wide.count(r"0.9 \\ {}[0.8, 1.0]") == 6
