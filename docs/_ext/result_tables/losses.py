"""Tables of the page docs/results/losses.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from result_tables.shared import (
    BUDGETS,
    STOCK,
    benchmark_table,
    budget_cells,
    deferred,
    interval,
    last_line,
    markdown_table,
    percent,
    percents,
    read_budgets,
    read_scores,
    small_print,
)


def frozen() -> str:
    """Two objectives on the same frozen network."""
    names = {
        STOCK: "stock",
        "nnUNetTrainerDeferral3Experts_frozen_5epochs": "`_DC_frozen`",
        "nnUNetTrainerDeferral3Experts_OvA_frozen_5epochs": "`_OvA_frozen`",
    }
    return benchmark_table("dataset501_2d_frozen_5epochs", names)


def frozen_budgets() -> str:
    """Rankings at matched budgets for the two objectives on the frozen network."""
    rankings = {"learned": "expected gain", "probability": "probability map", "max_softmax": "max softmax"}
    rows = []
    for objective, words in (("collaboration", "`_DC`"), ("one_vs_all", "`_OvA`")):
        found = read_budgets(f"dataset501_2d_frozen_5epochs/budgets_{objective}.csv")
        rows += [(words, name, *budget_cells(found[key])) for key, name in rankings.items()]
    rows.append(("either", "oracle", *budget_cells(found["oracle"])))
    return markdown_table(("objective", "ranking", *percents()), rows)


def ablation() -> str:
    """The paper's losses one by one, three experts."""
    losses = {
        "DC_noSC_noLB": "DC (`_DC_noSC_noLB`)",
        "DC_noLB": "DC + SC (`_DC_noLB`)",
        "DC_noSC": "DC + LB (`_DC_noSC`)",
        "DC": "DC + SC + LB (`_DC`)",
        "DC_paperSC": "DC + SC as in the paper + LB (`_DC_paperSC`)",
        "OvA": "one-vs-all (`_OvA`)",
    }
    return _ablation(losses, trainer="nnUNetTrainerDeferral3Experts", prefix="")


def ablation_one_expert() -> str:
    """The same with one expert."""
    losses = {
        "DC_noSC": "DC (`_DC_noSC`)",
        "DC": "DC + SC (`_DC`)",
        "DC_paperSC": "DC + SC as in the paper (`_DC_paperSC`)",
        "OvA": "one-vs-all (`_OvA`)",
    }
    return _ablation(losses, trainer="nnUNetTrainerDeferral1Expert", prefix="1_expert_")


def numbers_of_experts() -> str:
    """One-vs-all with one, three and five experts."""
    files = {
        "1": "dataset501_2d_experts/budgets_one_vs_all_1.csv",
        "3": "dataset501_2d_frozen_5epochs/budgets_one_vs_all.csv",
        "5": "dataset501_2d_experts/budgets_one_vs_all_5.csv",
    }
    rows = []
    for number, file in files.items():
        found = read_budgets(file)
        own = found["learned"]["own"]
        rows.append(
            (
                number,
                interval(own),
                percent(float(own["rate"])),
                _listed(found["learned"]),
                _listed(found["max_softmax"]),
            )
        )
    at = ", ".join(f"{100 * budget:g}" for budget in BUDGETS)
    return markdown_table(("experts", "system", "deferred", f"expected gain at {at} %", f"max softmax at {at} %"), rows)


def _ablation(losses: Mapping[str, str], *, trainer: str, prefix: str) -> str:
    folder, rows = "dataset501_2d_ablation", []
    for name, words in losses.items():
        found = read_scores(folder, f"{trainer}_{name}_frozen_5epochs")
        budgets = read_budgets(f"{folder}/budgets_{prefix}{name}.csv")["learned"]
        system = interval(found["system", "foreground_mean", "Dice"])
        rows.append((words, system, *deferred(found), *budget_cells(budgets)))
    header = ("losses", "Dice of the system", "deferred", "by expert", *percents())
    return markdown_table(header, rows) + f"\n\n{small_print(last_line(folder))}"


def _listed(rows: Mapping[Any, Mapping[str, str]]) -> str:
    return ", ".join(f"{float(rows[budget]['Dice']):.3f}" for budget in BUDGETS)


TABLES = (frozen, frozen_budgets, ablation, ablation_one_expert, numbers_of_experts)
