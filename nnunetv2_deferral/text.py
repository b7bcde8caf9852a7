"""Words for messages and tables: lists cut short, differences, Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One phrase for each key whose value differs."""
    return [
        f"{key} is {_short(there.get(key))}, not {_short(here.get(key))}"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def listed(items: Iterable[str], most: int = 5) -> str:
    """The first of several names, and how many more there are: `a, b, c and 4 more`."""
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table, headings first, numbers from the second column on; empty without a body."""
    head, *body = rows
    if not body:
        return ""
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
