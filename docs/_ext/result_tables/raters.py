"""Tables of the page docs/results/raters.md."""

from __future__ import annotations

from collections.abc import Mapping

from result_tables.shared import NONE, interval, markdown_table, read_json, small_print

_METHODS = {
    "ordinal": "ordinal",
    "majority": "`_majority`",
    "meanLabel": "`_meanLabel`",
    "randomRater": "`_randomRater`",
    "ordinal_noDice": "ordinal, `_noDice`",
    "majority_noDice": "`_majority_noDice`",
}


def several_raters() -> str:
    """Ways to learn from several raters: Dice, and calibration to all of them."""
    rows, notes = [], []
    for name in ("501_2d", "502_2d", "504_2d", "505_3d_fullres"):
        content, dataset = read_json(f"multi_rater_{name}.json"), name[:3]
        for method, words in _METHODS.items():
            if method not in content["methods"]:
                continue
            found = content["methods"][method]
            (calibration,), (dice,) = found["calibration"].values(), found["dice"].values()
            for reading, values in calibration.items():
                scores = (values["image"]["ece"], values["box"]["ece"], values["curvas_ece"], values["box"]["brier"])
                overlap = (dice["reference"], dice["raters"]) if reading == "probability" else ()
                cells = [_of_json(each) for each in overlap] or [NONE, NONE]
                estimates = (f"{scores[0]['estimate']:.4f}", *map(_of_json, scores[1:]))
                rows.append((dataset, words, reading, *cells, *estimates))
        first = next(iter(content["methods"].values()))
        notes.append(
            f"{dataset}: {first['cases']} cases of {first['groups']} {'images' if dataset == '504' else 'patients'}, "
            f"{len(first['raters'])} raters, fold {content['fold']}, {content['epochs']} epochs of "
            f"{content['iterations']} steps, plans {content['plans']}; {content['machine']}, {content['date']}"
        )
    header = (
        "dataset",
        "target",
        "reading",
        "Dice, reference",
        "Dice, mean of raters",
        "ECE, image",
        "ECE, box",
        "ECE by rater, box",
        "Brier score, box",
    )
    return markdown_table(header, rows) + f"\n\n{small_print('. '.join(notes))}"


def _of_json(found: Mapping[str, float | None]) -> str:
    """As :func:`interval`, of numbers, of which 0 is one."""
    return interval({key: "" if value is None else str(value) for key, value in found.items()})


TABLES = (several_raters,)
