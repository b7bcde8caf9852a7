"""Tables of the page docs/results/queries.md."""

from __future__ import annotations

from result_tables.shared import NONE, Rows, markdown_table, read_json, small_print


def query_rounds() -> str:
    """Dice on other patients after each round of queries, by strategy."""
    content = read_json("query_rounds_004_2d.json")
    found = {(row["strategy"], row["round"]): row for row in content["compared"]}
    rounds = sorted({number for _, number in found})
    rows: Rows = []
    for strategy in content["arguments"]["strategies"]:
        cells = []
        for number in rounds:
            row = found.get((strategy, number))
            cells.append(NONE if row is None else f"{row['dice']:.3f} ({row['seeds']})")
            less = None if row is None else row.get("difference")
            cells.append(
                NONE if less is None else f"{less['estimate']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f})"
            )
        rows.append((f"`{strategy}`", *cells))
    begun = [row["mean"] for row in content["rows"] if row["strategy"] == "start"]
    given = content["arguments"]
    note = (
        f"Dice after round 0: {' and '.join(f'{value:.3f}' for value in begun)}. {content['pool']} images in the "
        f"pool, {content['test']} of other patients for testing, {given['n']} boxes of "
        f"{' x '.join(map(str, given['patch']))} voxels a round, {50 * given['start_epochs']} iterations for the "
        f"start and {50 * given['epochs']} a round; {content['machine']}, {content['date']}"
    )
    head = [words for number in rounds for words in (f"round {number} (seeds)", "− `random_foreground`")]
    return markdown_table(("strategy", *head), rows) + f"\n\n{small_print(note)}"


TABLES = (query_rounds,)
