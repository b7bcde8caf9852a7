"""`nnUNetv2_deferral_worklist`: list the deferred regions by expected gain per minute of work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.worklist.items import WorkTime
from nnunetv2_deferral.worklist.writing import summary, write_worklist

COMMAND = "nnUNetv2_deferral_worklist"


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="List the deferred regions in the order of their expected gain in Dice per minute of work, with a "
        "picture of each, and masks that any viewer can open.",
    )
    add, usual = parser.add_argument, WorkTime()
    add("-i", metavar="PREDICTIONS", type=Path, required=True, help="folder of masks and deferral maps")
    add("-images", metavar="IMAGES", type=Path, help="folder of the images (<case>_0000), for the pictures")
    add("-o", metavar="LIST", type=Path, required=True, help="output folder for list, pictures and masks")
    add("-minutes_per_region", type=float, metavar="M", default=usual.minutes_per_region,
        help="working time for each region. Default: %(default)s")  # fmt: skip
    add("-minutes_per_cm", type=float, metavar="M", default=usual.minutes_per_cm,
        help="extra time per cm of its longest side, if the voxel size is known. Default: %(default)s")  # fmt: skip
    add("-max_regions", type=int, metavar="N", help="maximum number of regions. Default: no limit")
    add("-max_minutes", type=float, metavar="M", help="maximum total working time. Default: no limit")
    add("-djfile", metavar="DATASET_JSON", type=Path, help="the model's dataset.json. Default: beside PREDICTIONS")
    add("--overwrite", action="store_true", help="replace an existing worklist")
    add("--no_pictures", action="store_true", help="write no pictures; images are then not needed")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = _make_parser()
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
