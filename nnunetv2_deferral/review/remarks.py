"""What an expert says beside the labels: the confidence in each region, and places outside of their regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Strict
from typing_extensions import TypedDict

from nnunetv2_deferral.answers import Confidence
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import Orientation
from nnunetv2_deferral.review.edits import RefusedError, place_text
from nnunetv2_deferral.schema import Count, validate

CANNOT_TELL = "cannot tell"
MAX_FLAGS, MAX_COMMENT = 20, 300


class Flag(TypedDict):
    """A place outside of the expert's regions that deserves a look, such as a missed lesion.

    Attributes:
        at: [z, y, x], the index of the voxel in the browser's orientation.
        comment: What is there.
    """

    at: Annotated[list[Count], Field(min_length=3, max_length=3)]
    comment: Annotated[str, Strict(), Field(max_length=MAX_COMMENT)]


class Remarks(TypedDict):
    """The remarks of an expert on a case.

    Attributes:
        confidence: By the number of a region, as text. A region that the expert cannot tell has no answer.
        flags: Places outside of the regions.
    """

    confidence: dict[Annotated[str, Strict(), Field(pattern="^[1-9][0-9]{0,4}$")], Confidence | Literal["cannot tell"]]
    flags: Annotated[list[Flag], Field(max_length=MAX_FLAGS)]


NO_REMARKS: Remarks = {"confidence": {}, "flags": []}


def parse_remarks(content: Any, shape: Sequence[int], regions: int) -> Remarks:
    """Check the remarks in a request.

    Args:
        content: The parsed part of the body.
        shape: (Z, Y, X) of the volume.
        regions: The number of the expert's regions.

    Raises:
        RefusedError: If they are not :class:`Remarks`, or name a region or place that does not exist.
    """
    try:
        validate(content, Remarks, "remarks")
    except InputError as error:
        raise RefusedError(400, str(error)[:180]) from None
    remarks: Remarks = content
    if unknown := [number for number in remarks["confidence"] if int(number) > regions]:
        raise RefusedError(422, f"There are {regions} regions, but a confidence is given for region {unknown[0]}.")
    for flag in remarks["flags"]:
        if any(at >= size for at, size in zip(flag["at"], shape, strict=True)):
            raise RefusedError(422, f"The flag at {place_text(flag['at'])} lies outside the volume.")
    return remarks


def regions_not_told(remarks: Remarks) -> list[int]:
    """The numbers of the regions that the expert cannot tell."""
    return [int(number) for number, confidence in remarks["confidence"].items() if confidence == CANNOT_TELL]


def regions_in_doubt(remarks: Remarks) -> int:
    """The number of regions in whose answer the expert has a low confidence."""
    return sum(confidence == "low" for confidence in remarks["confidence"].values())


def flags_in_file(flags: Iterable[Flag], orientation: Orientation, shape: Sequence[int]) -> list[dict[str, Any]]:
    """Flags for review.json: the `voxel` [x, y, z] of the file, its `mm` (LPS; None without orientation), `comment`."""
    found = []
    for flag in flags:
        mm = orientation.position_mm(flag["at"]) if orientation.named else None
        voxel = orientation.file_index(flag["at"], shape)[::-1]
        found.append({"voxel": list(voxel), "mm": mm, "comment": flag["comment"]})
    return found
