"""Text for messages and tables: shortened lists, differences, fingerprints, Markdown."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_CHARACTERS = 80


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One phrase for each key whose value differs."""
    return [
        f"{key} is {_short(there.get(key))}, not {_short(here.get(key))}"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def fingerprint(content: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of JSON data, for comparison."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def counted(numbers: Mapping[str, int]) -> str:
    """What there is how often, sorted: `3 not DICOM, 1 of another series`."""
    return ", ".join(f"{number} {what}" for what, number in sorted(numbers.items()))


def plural(number: int, one: str, many: str = "") -> str:
    """A number of things: `1 case`, `2 cases`; the plural is the singular with an s, if no other is given."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def listed(items: Iterable[str], most: int = 5) -> str:
    """The first `most` names and the number of the rest: `a, b, c and 4 more`."""
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def rate_text(share: float) -> str:
    """A share of the voxels in per cent with two decimals; below 0.01 % with two significant digits.

    Example:
        >>> rate_text(0.0298), rate_text(0.000012), rate_text(0)
        ('2.98%', '0.0012%', '0.00%')
    """
    percent = 100 * share
    decimals = 1 - math.floor(math.log10(percent)) if 0 < percent < 0.01 else 2
    return f"{percent:.{decimals}f}%"


def named_folds(folds: Sequence[object]) -> str:
    """Folds by their names, for none `no fold`.

    Example:
        >>> named_folds([0, 1, 2]), named_folds(["all"])
        ('folds 0, 1 and 2', 'fold all')
    """
    if not folds:
        return "no fold"
    *others, last = map(str, folds)
    return f"folds {', '.join(others)} and {last}" if others else f"fold {last}"


def shown(value: object) -> str:
    """A value of any size and type for a message, abbreviated if necessary."""
    try:
        return _shortened(repr(value))
    except ValueError:  # an integer with more digits than Python converts
        return "a very large number"


def _short(value: Any) -> str:
    return _shortened(json.dumps(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """Format rows as a Markdown table; the first row is the header, columns from the second on are right-aligned.

    Returns:
        The table, or an empty string if there are no rows below the header.
    """
    head, *body = rows
    if not body:
        return ""
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
