"""dicom.json, which says of which series the images of a folder are. It holds UIDs and no names of patients."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral import __version__
from nnunetv2_deferral.dicom.series import Series
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.schema import Text, read_validated_json

MAP_NAME = "dicom.json"
PREFIX_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DIGITS = 10

Uid = Annotated[str, Strict(), Field(pattern=r"^[0-9.]{1,64}$")]
_FromOne = Annotated[int, Strict(), Field(ge=1)]


class MappedCase(TypedDict):
    """The origin of a case; `frames` are the numbers of the slices in a multi-frame object, its only instance."""

    study: Uid
    series: Uid
    frame_of_reference: Uid
    modality: Text
    instances: Annotated[list[Uid], Field(min_length=1)]
    frames: NotRequired[Annotated[list[_FromOne], Field(min_length=1)]]


class _Map(TypedDict):
    cases: dict[Text, MappedCase]


@dataclass(frozen=True, kw_only=True)
class CaseMap:
    """The cases of a folder of images and the series that they are of.

    Attributes:
        file: The dicom.json.
        cases: The origin of each case.
    """

    file: Path
    cases: Mapping[str, MappedCase]

    @classmethod
    def read(cls, file: Path) -> CaseMap:
        """Read a dicom.json.

        Args:
            file: The file, or the folder in which it is.

        Raises:
            InputError: If it is missing, cannot be read or has another content, or two cases are of one series.
        """
        file = file / MAP_NAME if file.is_dir() else file
        cases: dict[str, MappedCase] = read_validated_json(file, _Map)["cases"]
        names: dict[str, str] = {}
        for case, entry in cases.items():
            other = names.setdefault(entry["series"], case)
            if other != case:
                raise InputError(f"{file}: the cases {other} and {case} are both of series {entry['series']}")
        return cls(file=file, cases=cases)

    def case_of(self, series: str) -> str | None:
        """The case of a SeriesInstanceUID, or None."""
        return next((case for case, entry in self.cases.items() if entry["series"] == series), None)


def case_name(prefix: str, series: str) -> str:
    """The name of the case of a series: the prefix and ten hexadecimal digits of the SHA-256 of its UID.

    It is the same at every import, and says nothing of the patient.
    """
    return f"{prefix}_{hashlib.sha256(series.encode()).hexdigest()[:_DIGITS]}"


def write_map(cases: Mapping[str, Series], folder: Path) -> None:
    """Write the dicom.json of a folder of images."""
    entries: dict[str, MappedCase] = {}
    for case, series in sorted(cases.items()):
        entries[case] = {
            "study": series.study,
            "series": series.uid,
            "frame_of_reference": series.frame_of_reference,
            "modality": series.modality,
            "instances": list(dict.fromkeys(plane.instance for plane in series.planes)),
        }
        if series.is_multi_frame:
            entries[case]["frames"] = [plane.frame for plane in series.planes]
    write_json({"cases": entries, "versions": {"nnunetv2_deferral": __version__}}, folder / MAP_NAME)
