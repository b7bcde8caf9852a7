"""Commands through which people see deferred regions and answer."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_deferral import defaults
from nnunetv2_deferral.commands.parsers.shared import (
    add_dataset_json,
    add_parts,
    add_predictions,
    add_work_time,
    new_parser,
)


def worklist() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_worklist`."""
    parser = new_parser(
        "worklist",
        "List the deferred regions in the order of their expected gain per minute of work, with a picture of each, "
        "and masks that any viewer can open.",
        "-i predictions -images imagesTs -o worklist -max_minutes 60",
    )
    add = parser.add_argument
    add_predictions(parser)
    add("-images", metavar="IMAGES", type=Path, help="folder of the images (<case>_0000), for the pictures")
    add("-o", metavar="LIST", type=Path, required=True, help="output folder for list, pictures and masks")
    add_work_time(parser)
    add("-max_regions", type=int, metavar="N", help="maximum number of regions. Default: no limit")
    add("-max_minutes", type=float, metavar="M", help="maximum total working time. Default: no limit")
    add_dataset_json(parser)
    add("--overwrite", action="store_true", help="replace an existing worklist")
    add("--no_pictures", action="store_true", help="write no pictures; images are then not needed")
    add_parts(parser)
    words = "also write points for 3D Slicer (.mrk.json) and a task list for MITK to LIST/viewers; needs -images"
    add("--viewers", action="store_true", help=words)
    return parser


def review() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_review`."""
    parser = new_parser(
        "review",
        "Serve a page on this machine where experts annotate the deferred regions, and print a link for "
        "each expert. Writes REVIEWS/<expert>/<case> in the layout of expertsTr. Requires the extra [review].",
        "-i predictions -images imagesTs -o reviews",
    )
    add_predictions(parser)
    parser.add_argument("-images", metavar="IMAGES", required=True, help="folder of the predicted images")
    parser.add_argument("-ref", metavar="LABELS", help="folder of reference masks, for the coordinator's scores")
    parser.add_argument(
        "-worklist", metavar="LIST", help="folder of nnUNetv2_deferral_worklist: ask about its regions only"
    )
    parser.add_argument(
        "-o", metavar="REVIEWS", required=True, help="output folder for the answers; an existing review is continued"
    )
    add_dataset_json(parser)
    words = "experts who read each region without seeing each other, 1 or 2. Default: %(default)s"
    parser.add_argument("-readers_per_region", metavar="N", type=int, choices=(1, 2), default=1, help=words)
    words = "with two readers: who decides where they differ; a name other than the experts'. Default: nobody"
    parser.add_argument("-adjudicator", metavar="NAME", help=words)
    words = "with two readers: largest difference of readers who agree, in [0, 1]. Default: %(default)s"
    parser.add_argument("-max_difference", metavar="D", type=float, default=defaults.MAX_DIFFERENCE, help=words)
    words = "measure of this difference: share of the region's voxels, or 1 - Dice. Default: %(default)s"
    parser.add_argument(
        "-difference", choices=defaults.READING_MEASURES, default=defaults.READING_MEASURES[0], help=words
    )
    parser.add_argument("--port", type=int, default=defaults.PORT, help=f"port on 127.0.0.1. Default: {defaults.PORT}")
    words = "address under which a proxy on this machine serves the page, such as https://review.example.org/lung"
    parser.add_argument("--public_url", metavar="URL", help=words)
    words = "address of the proxy, such as 127.0.0.1, whose X-Forwarded-For the log trusts. Default: none"
    parser.add_argument("--proxy", metavar="ADDRESS", help=words)
    words = "links expire after this number of days; the next start makes new ones. Default: never"
    parser.add_argument("--valid_days", metavar="DAYS", type=float, help=words)
    words = "replace the links of these people; their old links, and sessions begun with them, become invalid"
    parser.add_argument("--revoke", metavar="NAME", nargs="+", default=[], help=words)
    words = "file to which one JSON line is added for each request, without names of cases"
    parser.add_argument("--access_log", metavar="FILE", type=Path, help=words)
    parser.add_argument("--show_scores", action="store_true", help="also show reference and scores to experts")
    words = "hide the model's mask from an expert until they have submitted the case; painting starts empty"
    parser.add_argument("--blind_start", action="store_true", help=words)
    return parser


def dicom() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_dicom`."""
    parser = new_parser(
        "dicom",
        "Import DICOM series as images for nnU-Net, export predictions as DICOM segmentations and parametric maps into "
        "the same studies, and read experts' answers from edited segmentations.",
        "export -i predictions -map images -dicom series -o objects",
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    mapped = "the dicom.json of the import, or its folder"

    words = "write each series as <case>_0000 and dicom.json, which maps cases to series"
    add = tasks.add_parser("import", help=words, description=_sentence(words)).add_argument
    add("-i", metavar="SERIES", type=Path, required=True, help="folder or zip file with a subfolder for each series")
    add("-o", metavar="IMAGES", type=Path, required=True, help="new folder for the images")
    words = "SeriesInstanceUIDs of the series to import. Default: all, with a single series in each folder"
    add("-series", metavar="UID", nargs="+", default=[], help=words)
    words = "cases are named PREFIX_ and ten digits that depend on the series' UID. Default: %(default)s"
    add("-prefix", default=defaults.DICOM_PREFIX, help=words)
    endings = defaults.DICOM_ENDINGS
    add("-ending", choices=endings, default=endings[0], help="format of the images. Default: %(default)s")
    add("--skip_refused", action="store_true", help="skip series that are not one evenly spaced volume, and list them")

    words = "write OUT/<case>/mask.dcm, review.dcm, probability.dcm and gain.dcm"
    task = tasks.add_parser("export", help=words, description=_sentence(words))
    add_predictions(task)
    add = task.add_argument
    add("-map", metavar="MAP", type=Path, required=True, help=mapped)
    add("-dicom", metavar="SERIES", type=Path, required=True, help="the folder or zip file that was imported")
    add("-o", metavar="OUT", type=Path, required=True, help="new output folder")
    what = defaults.DICOM_OBJECTS
    add("-what", nargs="+", choices=what, default=list(what), help=f"what to write. Default: {' '.join(what)}")
    kinds = defaults.DICOM_KINDS
    words = "type of the mask's segmentation; fractional takes saved probabilities. Default: %(default)s"
    add("-type", choices=kinds, default=kinds[0], help=words)
    _add_codes(task)
    add_dataset_json(task)
    add_work_time(task)

    words = "write edited segmentations as an expert's masks, OUT/<expert>/<case>"
    task = tasks.add_parser("answers", help=words, description=_sentence(words))
    add_predictions(task, "the predictions that were exported")
    add = task.add_argument
    add("-map", metavar="MAP", type=Path, required=True, help=mapped)
    words = "edited mask.dcm or review.dcm files, or folders of them, one of each case"
    add("-seg", metavar="FILE", type=Path, nargs="+", required=True, help=words)
    add("-expert", required=True, help="who answered")
    add("-o", metavar="OUT", type=Path, required=True, help="folder of experts' masks, such as expertsTr")
    _add_codes(task)
    add_dataset_json(task)
    add("--overwrite", action="store_true", help="replace existing answers of the expert")
    return parser


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _add_codes(parser: argparse.ArgumentParser) -> None:
    words = 'codes of the labels. Default: "dicom_codes" in dataset.json'
    parser.add_argument("-codes", metavar="JSON", type=Path, help=words)
