"""What experts may be called: one rule, checked wherever a name comes in.

An expert's name is the name of a folder (`expertsTr/<expert>`) and a key of summaries and tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nnunetv2_deferral.errors import InputError

RESERVED_NAMES = ("system", "model", "model_everywhere", "expert", "expert_everywhere", "review.json")
"""What stands beside the experts in summaries and in the folder of a review."""

_FORBIDDEN = set('/\\:*?"<>|') | {chr(code) for code in (*range(32), 127)}


def check_expert_name(name: object, where: str) -> str:
    """The name, if an expert may have it.

    Args:
        name: What was given as a name.
        where: Where it was given, such as `"experts" in dataset.json`; the message begins with it.

    Raises:
        InputError: If it is not a text, empty, begins with a dot, begins or ends with a space, ends with a dot, holds
            a character that no folder name may hold on some system, or is reserved.
    """
    reason = _reason_against(name)
    if reason:
        raise InputError(f"{where}: {name!r} cannot be the name of an expert: {reason}")
    return str(name)


def check_expert_names(names: Iterable[object], where: str) -> tuple[str, ...]:
    """The names, if experts may have them and all differ.

    Raises:
        InputError: See :func:`check_expert_name`; also for a name that comes twice.
    """
    checked = tuple(check_expert_name(name, where) for name in names)
    if twice := _first_repeated(checked):
        raise InputError(f"{where}: two experts have the same name, {twice!r}")
    return checked


def _reason_against(name: object) -> str:
    if not isinstance(name, str):
        return f"it is of type {type(name).__name__}, not a text"
    if not name.strip():
        return "it is empty"
    if name[0] in ". " or name[-1] in ". ":
        return "it begins or ends with a dot or a space"
    if forbidden := sorted(_FORBIDDEN & set(name)):
        return f"no folder can have {', '.join(map(repr, forbidden))} in its name"
    if name in RESERVED_NAMES:
        return "this name is reserved for results"
    return ""


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)
