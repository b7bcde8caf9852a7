"""The coded category and type of each label, which DICOM segmentations must state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.schema import validate
from nnunetv2_deferral.text import listed

KEY = "dicom_codes"  # in dataset.json

_Short = Annotated[str, Strict(), Field(min_length=1, max_length=16)]
_Long = Annotated[str, Strict(), Field(min_length=1, max_length=64)]

EXAMPLE = {
    "category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"},
    "type": {"value": "10200004", "scheme": "SCT", "meaning": "Liver"},
}


class CodeJson(TypedDict):
    """A code of a coding scheme such as SCT (SNOMED CT), DCM or, for a private one, 99 and a name."""

    value: _Short
    scheme: _Short
    meaning: _Long


class LabelCodes(TypedDict):
    """What the segments of a label are: category (CID 7150), type (CID 7151) and its modifier, such as left."""

    category: CodeJson
    type: CodeJson
    modifier: NotRequired[CodeJson]


_Codes = dict[str, LabelCodes]


@dataclass(frozen=True, kw_only=True)
class Codes:
    """The codes of labels.

    Attributes:
        where: Their origin, for messages.
        labels: By the names of labels in dataset.json.
    """

    where: str
    labels: Mapping[str, LabelCodes]

    @classmethod
    def read(cls, content: Mapping[str, Any], names: Sequence[str], *, dataset: str, file: Path | None = None) -> Codes:
        """Read the codes of all labels.

        Args:
            content: The content of dataset.json.
            names: The labels that need codes.
            dataset: The origin of `content`, for messages.
            file: A JSON file with the codes by label; None for `"dicom_codes"` in dataset.json.

        Raises:
            InputError: If the codes of a label are missing (the message has an example) or not valid.
        """
        where = f'"{KEY}" in {dataset}' if file is None else str(file)
        labels = content.get(KEY, {}) if file is None else read_json(file)
        validate(labels, _Codes, where)
        if missing := [name for name in names if name not in labels]:
            raise InputError(
                f"{where} lacks the DICOM codes of {listed(missing)}. DICOM segmentations state what each label is; "
                f'add them to dataset.json under "{KEY}" or to a JSON file (-codes), by label, for example '
                f"for a liver {json.dumps({missing[0]: EXAMPLE})}"
            )
        return cls(where=where, labels=labels)

    def label_of(
        self, category: tuple[str, str], kind: tuple[str, str], modifier: tuple[str, str] | None
    ) -> str | None:
        """The label of these codes, each value and scheme, if it is the only one."""
        codes = (category, kind, modifier)
        found = [name for name, entry in self.labels.items() if _pairs(entry) == codes]
        return found[0] if len(found) == 1 else None


def _pairs(entry: LabelCodes) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str] | None]:
    modifier = entry.get("modifier")
    return _pair(entry["category"]), _pair(entry["type"]), None if modifier is None else _pair(modifier)


def _pair(code: CodeJson) -> tuple[str, str]:
    return code["value"], code["scheme"]
