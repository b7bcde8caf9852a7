"""Figures and tables of an evaluation as files for a paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.report import domain_tables, evaluation_tables
from nnunetv2_deferral.report.curves import draw_curves
from nnunetv2_deferral.report.outcomes import draw_load, draw_location
from nnunetv2_deferral.report.page import Table
from nnunetv2_deferral.report.reliability_figure import draw_reliability

TABLES_NAME = "tables.tex"
_DPI = 300  # of png
_LONG, _MANY, _NAMES = 24, 7, "2.4cm"  # from so many characters of names and columns on, names are broken to this width
_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "\n": r" \\ {}",  # without {}, what follows were an argument of the line break if it begins with [
    "\N{NO-BREAK SPACE}": "~",
}


def write_paper(summary: Mapping[str, Any], folder: Path, formats: Sequence[str], *, unit: str = "mm") -> list[Path]:
    """Write each figure of the report in each format, and its tables in LaTeX, once all are complete.

    Args:
        summary: The content of `deferral_summary.json`.
        folder: The folder; files of the same names are replaced.
        formats: File endings that matplotlib writes, such as `"png"`, `"svg"` and `"pdf"`.
        unit: Unit of distances.

    Returns:
        The files: `curves`, `load`, `location` and, with routing probabilities, `reliability`, and `tables.tex`, which
        needs the LaTeX package booktabs.

    Raises:
        InputError: If the operating system refuses to write there.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: draw_curves(summary),
        "load": lambda: draw_load(summary),
        "location": lambda: draw_location(summary, unit=unit),
    }
    if summary["reliability"] is not None:
        figures["reliability"] = lambda: draw_reliability(summary)
    names = []
    with written_whole(folder) as scratch:
        for name, draw in figures.items():
            figure = draw()
            for ending in formats:
                names.append(f"{name}.{ending}")
                # Without the date and random names, so that the same results give the same files.
                about = {"Date": None} if ending == "svg" else {"CreationDate": None} if ending == "pdf" else {}
                with rc_context({"svg.hashsalt": name}):
                    figure.savefig(scratch / names[-1], dpi=_DPI, facecolor="white", metadata=about)
        text = "\n".join(to_latex(table, f"tab:{name}") for name, table in _tables(summary).items())
        (scratch / TABLES_NAME).write_text(f"% requires \\usepackage{{booktabs}}\n\n{text}", encoding="utf-8")
    return [folder / name for name in (*names, TABLES_NAME)]


def to_latex(table: Table, label: str) -> str:
    """A table with its caption, for LaTeX with booktabs, small enough for a page of A4.

    Args:
        table: The table.
        label: The label for references.
    """
    columns = len(table.rows[0])
    names = max(len(row[0]) for row in table.rows)
    is_broken = names > _LONG and columns >= _MANY
    first, ragged = (f"p{{{_NAMES}}}", r"\raggedright ") if is_broken else ("l", "")
    space = r" \addlinespace" if any("\n" in cell for row in table.rows for cell in row) else ""
    rows = [ragged + " & ".join(map(_cell, row)) + rf" \\{space}" for row in table.rows]
    head = [" & ".join(map(_cell, table.head)) + r" \\", r"\midrule"] if table.head else []
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}",
        rf"\caption{{{_escaped(table.caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{first}{'r' * (columns - 1)}}}",
        r"\toprule",
        *head,
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tables(summary: Mapping[str, Any]) -> dict[str, Table]:
    found = {
        "scores": evaluation_tables.scores_table(summary),
        "regions": evaluation_tables.regions_table(summary),
        "budgets": evaluation_tables.budgets_table(summary),
        "differences": evaluation_tables.differences_table(summary),
        "load": evaluation_tables.load_table(summary),
        "domains": domain_tables.domains_table(summary) if summary.get("domains") else None,
    }
    return {name: table for name, table in found.items() if table is not None}


def _cell(text: str) -> str:
    """A cell, its lines one below the other."""
    lines = _escaped(text)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{lines}\end{{tabular}}" if "\n" in text else lines


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda found: _SPECIAL[found[0]], text)
