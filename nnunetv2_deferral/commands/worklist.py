"""`nnUNetv2_deferral_worklist`: list the deferred regions by expected gain per minute of work."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.worklist.items import WorkTime
from nnunetv2_deferral.worklist.writing import summary, write_worklist


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.worklist()
    given = parser.parse_args(arguments)
    try:
        if given.images is None and not given.no_pictures:
            raise InputError("pictures require the images; specify their folder (-images) or use --no_pictures")
        content = write_worklist(
            given.i,
            given.o,
            images=None if given.no_pictures else given.images,
            time=WorkTime(minutes_per_region=given.minutes_per_region, minutes_per_cm=given.minutes_per_cm),
            max_regions=given.max_regions,
            max_minutes=given.max_minutes,
            dataset_json=given.djfile,
            overwrite=given.overwrite,
        )
    except InputError as error:
        parser.error(str(error))
    print(summary(content, given.o))
