"""Tables of the page docs/reference/files.md."""

from __future__ import annotations

from result_tables.shared import markdown_table, read_json, small_print

_FILES = {
    "probabilities": "`<case>.npz`",
    "mask": "mask",
    "route": "`route`",
    "expert": "`expert`",
    "probability": "`probability`",
    "gain": "`gain`",
    "gains": "`gains`",
    "prior": "`prior`",
    "routing": "`routing`",
    "fold": "`folds`, each",
    "mutual_information": "`mutual_information`",
}


def sizes() -> str:
    """The size of each file of a case."""
    content = read_json("sizes.json")
    cases = content["cases"]
    rows = [(words, *(_kib(found["bytes"][kind]) for found in cases.values())) for kind, words in _FILES.items()]
    shapes = [
        f"{'×'.join(map(str, found['image'][-int(name[0]) :]))} `{found['file_ending']}`"
        for name, found in cases.items()
    ]
    line = f"one synthetic object with smooth noise, {content['classes']} classes, {content['experts']} experts"
    return f"{markdown_table(('file', *shapes), rows)}\n\n{small_print(line + ', ' + content['date'])}"


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


TABLES = (sizes,)
