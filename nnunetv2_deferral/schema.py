"""Validation of the content of JSON files and settings: types, ranges and finiteness.

The shape of a file is stated once, as a `TypedDict` whose annotations carry the ranges, and checked by pydantic without
conversions: `"false"` is not a boolean, `true` is not a number, and NaN is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, TypeAdapter, ValidationError

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.text import shown

Boolean = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0)]
Share = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0, le=1)]
Count = Annotated[int, Strict(), Field(ge=0, lt=2**63)]

_FAULTS_SHOWN = 5
_WORDS = {
    "Input should be": "must be",
    "a valid dictionary": "an object",
    "a valid integer": "an integer",
    "a valid": "a",
}


def validate(content: object, kind: Any, where: str) -> None:
    """Check JSON-like data against a type.

    Args:
        content: The data.
        kind: The type it must have, such as a `TypedDict` of the types above.
        where: The origin of the data, such as a file; the message begins with it.

    Raises:
        InputError: Naming `where`, and the key and the value of up to five faults.

    Example:
        >>> from typing_extensions import TypedDict
        >>> class Entry(TypedDict):
        ...     rate: Share
        >>> validate({"rate": 0.5}, Entry, "entry.json")
        >>> validate({"rate": float("nan")}, Entry, "entry.json")
        Traceback (most recent call last):
        ...
        nnunetv2_deferral.errors.InputError: entry.json: rate must be a finite number, got nan
    """
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        # Each alternative of a union has its own faults; the alternative that goes deepest is the one that was meant.
        faults: dict[str, Any] = {}
        for each in error.errors(include_url=False, include_context=False):
            faults.setdefault(_key(content, each), each)
        faults = {
            key: fault
            for key, fault in faults.items()
            if not any(other.startswith((f"{key}.", f"{key}[")) for other in faults)
        }
        shown = [_fault(key, fault) for key, fault in list(faults.items())[:_FAULTS_SHOWN]]
        more = [f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        raise InputError(f"{where}: {'; '.join(shown + more)}") from None


def read_validated_json(file: Path, kind: Any) -> Any:
    """The content of a JSON file of a given type.

    Raises:
        InputError: If the file is missing, is not JSON, or has another content; the message names file, key and value.
    """
    content = read_json(file)
    validate(content, kind, str(file))
    return content


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _key(content: Any, fault: Any) -> str:
    """Where a fault is, such as `cases.x.share[0]`; pydantic's location also names alternatives of unions."""
    key = ""
    for part in fault["loc"]:
        if isinstance(content, Mapping) and part in content:
            content, key = content[part], f"{key}.{part}"
        elif isinstance(content, list | tuple) and isinstance(part, int) and part < len(content):
            content, key = content[part], f"{key}[{part}]"
    if fault["type"] == "missing":
        key = f"{key}.{fault['loc'][-1]}"
    return key.lstrip(".")


def _fault(key: str, fault: Any) -> str:
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{key} is unknown"
    requirement = fault["msg"]
    for pydantics, ours in _WORDS.items():
        requirement = requirement.replace(pydantics, ours)
    return f"{key or 'the content'} {requirement}, got {shown(fault['input'])}"
