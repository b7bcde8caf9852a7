"""Deferral by the model's own confidence, with one expert and a stopping point: what a deferral head has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from typing_extensions import TypedDict

from nnunetv2_deferral.schema import Share, Text, validate


class _Stored(TypedDict):
    expert: Text
    most: Share


@dataclass(frozen=True, kw_only=True)
class ConfidenceRule:
    """Ask one expert about the least confident voxels, up to a share of all voxels.

    Attributes:
        expert: The expert with whom most was gained on the validation cases.
        most: The share of the voxels beyond which asking that expert gained nothing more there.
    """

    expert: str
    most: float

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> ConfidenceRule:
        """Restore the data of :meth:`to_dict`.

        Raises:
            InputError: Naming `where`, if a value is missing, of another type or out of range.
        """
        validate(content, _Stored, where)
        return cls(expert=content["expert"], most=content["most"])
