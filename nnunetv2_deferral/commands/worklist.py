"""`nnUNetv2_deferral_worklist`: list the deferred regions by expected gain per minute of work."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.defaults import MEASURED_BY
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.parts import read_parts
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review.work_times import chosen_time
from nnunetv2_deferral.worklist.table import region_rows
from nnunetv2_deferral.worklist.writing import same_for_all_parts, summary, write_worklist


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.worklist()
    given = parser.parse_args(arguments)
    try:
        if given.images is None and not given.no_pictures and given.num_parts == 1:
            raise InputError("pictures require the images; specify their folder (-images) or use --no_pictures")
        time, fitted = chosen_time(given.times_from, given.minutes_per_region, given.minutes_per_cm)
        part = parsers.part_of(given)
        if part.of > 1:
            folder = PredictionFolder.open(given.i, given.djfile, needed=MEASURED_BY)
            found = region_rows(folder, part.cases(folder.cases), time, num_processes=given.np)
            print(part.write(found, given.o, same_for_all_parts(folder, time)))
            return
        if given.images is None and given.viewers:
            raise InputError("--viewers requires the images; specify their folder (-images)")
        content = write_worklist(
            given.i,
            given.o,
            images=None if given.no_pictures else given.images,
            time=time,
            max_regions=given.max_regions,
            max_minutes=given.max_minutes,
            dataset_json=given.djfile,
            viewers=given.images if given.viewers else None,
            overwrite=given.overwrite,
            num_processes=given.np,
            times=None if fitted is None else {"from": str(given.times_from)} | fitted.to_dict(),
            find=(lambda folder: read_parts(given.o, same_for_all_parts(folder, time))) if given.merge else None,
        )
    except InputError as error:
        parser.error(str(error))
    if fitted is not None:
        print(f"working time: {fitted}")
    print(summary(content, given.o))
