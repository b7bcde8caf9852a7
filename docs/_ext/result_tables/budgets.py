"""Tables of the page docs/results/budgets.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from result_tables.shared import BUDGETS, Rows, markdown_table, percent, percents, read_json, small_print


def transfer() -> str:
    """Budgets and calibrators fitted on other patients, 2D, by the experts' error model."""
    experts = {
        "standard": "Table 2",
        "standard_correlated": "Table 2, correlated errors",
        "standard_boundary_bias": "Table 2, boundary bias",
        "complementary": "complementary (E.11)",
    }
    rows: Rows = []
    for name, words in experts.items():
        rows += [(words, *row) for row in _transfer_rows(f"budget_transfer_501_2d_{name}.json", region="3 pixels")]
    note = _transfer_note("budget_transfer_501_2d_standard.json")
    return markdown_table(("experts", "deferred by", *percents()), rows) + f"\n\n{small_print(note)}"


def transfer_3d() -> str:
    """The same for the 3D dataset."""
    file = "budget_transfer_004_3d_fullres_standard.json"
    rows = list(_transfer_rows(file, region="4 mm", with_oracle=True))
    return markdown_table(("deferred by", *percents()), rows) + f"\n\n{small_print(_transfer_note(file))}"


def transfer_calibration() -> str:
    """Calibration error of each head over the least certain voxels, before and after calibrators of other patients."""
    files = {
        "501_2d_standard": "2D, Table 2",
        "501_2d_standard_boundary_bias": "2D, Table 2, boundary bias",
        "501_2d_complementary": "2D, complementary (E.11)",
        "004_3d_fullres_standard": "3D, Table 2",
    }
    rows = []
    for name, words in files.items():
        heads = read_json(f"budget_transfer_{name}.json")["calibration"].values()
        rows.append((words, *(f"{head['ece_before']:.3f} → {head['ece_after']:.3f}" for head in heads)))
    return markdown_table(("experts", "model", "expert 1", "expert 2", "expert 3"), rows)


def _transfer_rows(file: str, *, region: str, with_oracle: bool = False) -> Iterable[Sequence[str]]:
    ways = {
        "gain": "expected gain",
        "gain, per case": "expected gain, budget of each case",
        "regions": f"expected gain, regions of {region}",
        "confidence": "confidence",
    }
    if with_oracle:
        ways["oracle"] = "oracle"
    found = {(row["way"], row["budget"]): row for row in read_json(file)["rows"]}
    for way, words in ways.items():
        if (way, BUDGETS[0]) not in found:
            continue
        yield (words, *(_transfer_cell(found[way, budget]) for budget in BUDGETS))


def _transfer_cell(row: Mapping[str, Any]) -> str:
    dice = f"{row['Dice']['estimate']:.3f}"
    return f"{dice} ({row['recovered']:.2f}), {percent(row['rate'])}" if "recovered" in row else dice


def _transfer_note(file: str) -> str:
    content = read_json(file)
    folds = ", ".join(map(str, content["folds"]))
    return f"{content['cases']} cases, folds {folds}; {content['machine']}, {content['date']}"


TABLES = (transfer, transfer_3d, transfer_calibration)
