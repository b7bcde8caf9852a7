"""Tables of the page docs/results/readers.md."""

from __future__ import annotations

from result_tables.shared import BUDGETS, budget_cells, markdown_table, percents, read_budgets, read_json


def readers_2d() -> str:
    """Four real readers, 2D: rankings at matched budgets and how they rank the model's errors."""
    folder = "dataset501_2d_real_readers"
    found = read_budgets(f"{folder}/budgets_one_vs_all.csv")
    areas = read_json(f"{folder}/evaluation_one_vs_all.json")["risk_coverage"]
    augrc = {name: f"{1000 * area['AUGRC']['area']:.3f}" for name, area in areas.items()}
    some = next(iter(areas.values()))["AUGRC"]
    augrc |= {"random": f"{1000 * some['random']:.3f}", "oracle": f"{1000 * some['optimum']:.3f}"}
    rankings = {
        "learned": "expected gain",
        "probability": "probability map",
        "max_softmax": "max softmax",
        "random": "random",
        "oracle": "oracle",
    }
    rows = [(words, *budget_cells(found[key]), augrc.get(key, "")) for key, words in rankings.items()]
    return markdown_table(("ranking", *percents(), "AUGRC × 1000"), rows)


def readers_3d() -> str:
    """Four real readers and a weak model, 3D."""
    found = read_budgets("dataset505_3d_real_readers/budgets_one_vs_all.csv")
    budgets = (*BUDGETS, 0.1)
    rankings = {
        "learned": "expected gain",
        "probability": "probability map",
        "max_softmax": "max softmax",
        "max_softmax, always rater4": "max softmax, always rater4",
        "oracle": "oracle",
    }
    rows = [(words, *budget_cells(found[key], budgets)) for key, words in rankings.items()]
    return markdown_table(("ranking", *percents(budgets)), rows)


TABLES = (readers_2d, readers_3d)
