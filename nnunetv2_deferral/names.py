"""Validation of experts' names.

An expert's name is used as a folder name (`expertsTr/<expert>`) and as a key in summaries and tables.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from nnunetv2_deferral.errors import InputError

REVIEW_NAME = "review.json"
"""What the review page writes to its folder of experts' masks."""

RESERVED_NAMES = ("system", "model", "model_everywhere", "expert", "expert_everywhere", REVIEW_NAME, "settled")
"""Keys and files beside the experts' in summaries and in the folder of a review."""

_FORBIDDEN = set('/\\:*?"<>|') | {chr(code) for code in (*range(32), 127)}


def check_expert_name(name: object, where: str) -> str:
    """Return the name if it is valid for an expert.

    Args:
        name: The name.
        where: Where it was given, such as `"experts" in dataset.json`; the message begins with it.

    Raises:
        InputError: If it is not a string, is empty, begins or ends with a dot or a space, contains a character that is
            not allowed in folder names on some system, or is reserved.
    """
    reason = _reason_against(name)
    if reason:
        raise InputError(f"{where}: {name!r} is not a valid name of an expert: {reason}")
    return str(name)


def check_expert_names(names: Iterable[object], where: str) -> tuple[str, ...]:
    """Return the names if all are valid and distinct.

    Raises:
        InputError: See :func:`check_expert_name`; also if a name occurs twice.
    """
    checked = tuple(check_expert_name(name, where) for name in names)
    if twice := _first_repeated(checked):
        raise InputError(f"{where}: two experts have the same name, {twice!r}")
    return checked


def spelling(name: str) -> str:
    """What two names have in common whose files or folders are the same on some systems."""
    return unicodedata.normalize("NFC", name).casefold()


def _reason_against(name: object) -> str:
    if not isinstance(name, str):
        return f"it is of type {type(name).__name__}, not a string"
    if not name.strip():
        return "it is empty"
    if name[0] in ". " or name[-1] in ". ":
        return "it begins or ends with a dot or a space"
    if forbidden := sorted(_FORBIDDEN & set(name)):
        return f"folder names cannot contain {', '.join(map(repr, forbidden))}"
    if name in RESERVED_NAMES:
        return "the name is reserved for results"
    return ""


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)
