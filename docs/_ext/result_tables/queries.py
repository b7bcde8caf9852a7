"""Tables of the page docs/results/queries.md."""

from __future__ import annotations

from result_tables.shared import NONE, Rows, markdown_table, read_json, small_print


def query_rounds() -> str:
    """Dice on other patients after each round of queries, by strategy."""
    return _table("query_rounds_004_2d.json")


def query_rounds_short() -> str:
    """The same after shorter trainings."""
    return _table("query_rounds_004_2d_short.json")


def query_rounds_shortest() -> str:
    """The same after the shortest trainings."""
    return _table("query_rounds_004_2d_shortest.json")


def _table(file: str) -> str:
    """The mean over seeds, that of each seed, and the difference from random boxes, after each round."""
    content = read_json(file)
    given = content["arguments"]
    means = {(row["strategy"], row["round"], row["seed"]): row["mean"] for row in content["rows"]}
    compared = {(row["strategy"], row["round"]): row for row in content["compared"]}
    rounds = sorted({number for _, number in compared})
    rows: Rows = []
    for strategy in given["strategies"]:
        cells = []
        for number in rounds:
            row = compared.get((strategy, number))
            of_seeds = _listed(
                [means[strategy, number, seed] for seed in given["seeds"] if (strategy, number, seed) in means]
            )
            cells.append(NONE if row is None else f"{row['dice']:.3f} ({of_seeds})")
            less = None if row is None else row.get("difference")
            cells.append(
                NONE if less is None else f"{less['estimate']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f})"
            )
        rows.append((f"`{strategy}`", *cells))
    begun = _listed([row["mean"] for row in content["rows"] if row["strategy"] == "start"])
    note = (
        f"Dice after round 0, by seed: {begun}. {content['pool']} images in the pool, {content['test']} of other "
        f"patients for testing, {given['n']} boxes of {' x '.join(map(str, given['patch']))} voxels a round, "
        f"{50 * given['start_epochs']} iterations for the start and {50 * given['epochs']} a round; "
        f"{content['machine']}, {content['date']}"
    )
    head = [words for number in rounds for words in (f"round {number} (by seed)", "− `random_foreground`")]
    return markdown_table(("strategy", *head), rows) + f"\n\n{small_print(note)}"


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


TABLES = (query_rounds, query_rounds_short, query_rounds_shortest)
