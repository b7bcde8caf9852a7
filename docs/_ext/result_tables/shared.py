"""Reads the files in `RESULTS`, and formats their numbers and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[3] / "measurements" / "results"
BUDGETS = (0.005, 0.01, 0.02, 0.05)
STOCK = "nnUNetTrainer_5epochs"
NONE = "–"
Rows = list[Sequence[str]]


@cache
def read_json(name: str) -> Any:
    """The content of a file of `RESULTS`."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@cache
def read_budgets(name: str) -> dict[str, dict[Any, dict[str, str]]]:
    """Rows of a budgets.csv by ranking, and there by budget or `"own"`, the model's own rate."""
    found: dict[str, dict[Any, dict[str, str]]] = {}
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = "own" if row["own_rate"] == "True" else float(row["budget"])
            found.setdefault(row["ranking"], {})[key] = row
    return found


@cache
def read_scores(folder: str, trainer: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of a trainer in a benchmark.csv by part, region and score.

    Raises:
        ValueError: If the file has no such trainer.
    """
    with (RESULTS / folder / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["trainer"] == trainer]
    if not found:
        raise ValueError(f"{folder}/benchmark.csv has no trainer {trainer}")
    return {(row["part"], row["region"], row["score"]): row for row in found}


def last_line(folder: str) -> str:
    """Versions, machine and date of a benchmark, the last line of its Markdown."""
    return (RESULTS / folder / "benchmark.md").read_text(encoding="utf-8").strip().splitlines()[-1]


def benchmark_table(folder: str, names: Mapping[str, str]) -> str:
    """Trainers of a benchmark, by their names there and their words in the table; the first is stock."""
    rows = []
    for trainer, words in names.items():
        found = read_scores(folder, trainer)
        model = interval(found["model_everywhere", "foreground_mean", "Dice"])
        system = found.get(("system", "foreground_mean", "Dice"))
        difference = NONE if system is None else interval(system, "minus_first")
        system_text = NONE if system is None else interval(system)
        rows.append((words, model, system_text, difference, *deferred(found)))
    header = ("trainer", "Dice of the model", "Dice of the system", "system − stock", "deferred", "by expert")
    return markdown_table(header, rows) + f"\n\n{small_print(last_line(folder))}"


def deferred(found: Mapping[tuple[str, str, str], Mapping[str, str]]) -> tuple[str, str]:
    """Share of the voxels that was deferred, and the share of each expert."""
    rates = {key[2]: float(row["estimate"]) for key, row in found.items() if key[0] == "deferral" and row["estimate"]}
    if "rate" not in rates:
        return NONE, NONE
    experts = [percent(value) for name, value in sorted(rates.items()) if name.startswith("share")]
    return percent(rates["rate"]), ", ".join(experts)


def budget_cells(rows: Mapping[Any, Mapping[str, str]], budgets: Sequence[float] = BUDGETS) -> list[str]:
    """Dice of a ranking at each budget, with the recovered part of the oracle's gain."""
    return [_cell(rows[budget]) for budget in budgets]


def _cell(row: Mapping[str, str]) -> str:
    dice = f"{float(row['Dice']):.3f}"
    return dice if row["ranking"] == "oracle" else f"{dice} ({float(row['recovered']):.2f})"


def interval(row: Mapping[str, str], column: str = "") -> str:
    """An estimate with its interval, of the score itself or of a difference."""
    names = (column, f"{column}_low", f"{column}_high") if column else None
    if names is None:
        names = ("estimate" if "estimate" in row else "Dice", "low", "high")
    estimate, low, high = (row[name] for name in names)
    if not estimate:
        return NONE
    text = f"{float(estimate):.3f}"
    return f"{text} [{float(low):.3f}, {float(high):.3f}]" if low else text


def percent(share: float) -> str:
    """A share in per cent, which no line break divides."""
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def percents(budgets: Sequence[float] = BUDGETS) -> list[str]:
    return [f"{100 * budget:g} %" for budget in budgets]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def small_print(text: str) -> str:
    """The line below a table."""
    return f"*{text}.*"
