"""Tables of the page docs/results/shift.md."""

from __future__ import annotations

from result_tables.shared import interval, markdown_table, read_json, small_print

_THIRDS = {"low": 1, "middle": 2, "high": 3}


def shift() -> str:
    """What rankings gain where images, cases or experts differ from those of the training."""
    return _shift("shift_Dataset501_LIDCnodule2D_2d.json")


def shift_3d() -> str:
    """The same for hippocampi."""
    return _shift("shift_Dataset004_Hippocampus_3d_fullres.json")


def _shift(file: str) -> str:
    content = read_json(file)
    named = {"images": "", "experts": "experts: ", "raters": "disagreement of readers: "}
    rankings = {
        "learned": "learned",
        "max_softmax": "max softmax",
        "near_border": "near the border",
        "oracle": "oracle",
    }
    rows = []
    for kind, domains in content["domains"].items():
        for name, found in sorted(domains.items(), key=lambda each: _THIRDS.get(each[0], 0)):
            gains = (found["rankings"][key]["gain"] for key in rankings)
            dice = found["Dice"]
            rows.append(
                (
                    named.get(kind, f"{kind}: ") + name,
                    f"{dice['model_everywhere']['estimate']:.3f}",
                    interval(dice["system - model_everywhere"]),
                    f"{found['rate']:.2%}",
                    f"{found['kept_error']:.3f}",
                    *(interval(gain) for gain in gains),
                )
            )
    header = ("domain", "model", "system − model", "deferred", "kept error", *rankings.values())
    note = f"{content['dataset']}, fold {content['fold']}, {content['machine']}, {content['date']}"
    return markdown_table(header, rows) + f"\n\n{small_print(note)}"


TABLES = (shift, shift_3d)
