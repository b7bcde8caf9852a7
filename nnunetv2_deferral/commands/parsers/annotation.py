"""Commands that choose what to annotate next and make datasets of the answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_deferral import defaults
from nnunetv2_deferral.commands.parsers.shared import add_dataset_json, add_parts, add_work_time, new_parser


def query() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_query`."""
    parser = new_parser(
        "query",
        "Choose which boxes of which images to annotate next, from the predictions of one or several folds "
        "with saved probabilities. Writes query.json and masks of the boxes.",
        "-i predictions/fold_0 predictions/fold_1 -o round_1 -n 100 -round 1 -annotated round_0",
    )
    add = parser.add_argument
    words = "folders of predictions of the same cases, one per fold, by nnUNetv2_predict --save_probabilities"
    add("-i", metavar="PREDICTIONS", type=Path, nargs="+", required=True, help=words)
    add("-o", metavar="ROUND", type=Path, required=True, help="new folder for query.json and masks of the boxes")
    add("-n", metavar="N", type=int, help="number of boxes; with -max_minutes an upper limit, by default none")
    words = "with -strategy gain: working time for all boxes. Default: no limit"
    add("-max_minutes", metavar="M", type=float, help=words)
    add_work_time(parser)
    add("-round", metavar="T", type=int, default=0, help="number of this round, from 0. Default: %(default)s")
    words = "planned number of rounds, over which the noise decays. Default: %(default)s"
    add("-rounds", metavar="T", type=int, default=defaults.QUERY_ROUNDS, help=words)
    words = "how boxes are chosen; gain needs a folder with deferral maps. Default: %(default)s"
    add("-strategy", choices=defaults.QUERY_STRATEGIES, default=defaults.QUERY_STRATEGIES[0], help=words)
    words = "with -strategy gain: boxes of one size, of the deferred regions, or whole cases. Default: %(default)s"
    add("-per", choices=defaults.QUERY_UNITS, default=defaults.QUERY_UNITS[0], help=words)
    size = parser.add_mutually_exclusive_group()
    words = f"edges of a box in voxels, z y x or y x. Default: {defaults.QUERY_EDGE_VOXELS} along each axis"
    size.add_argument("-patch", metavar="VOXELS", type=int, nargs="+", help=words)
    size.add_argument("-patch_mm", metavar="MM", type=float, nargs="+", help="edges of a box in mm, z y x or y x")
    words = "distance of neighbouring positions of a box in voxels, z y x or y x. Default: half of the edges"
    add("-stride", metavar="VOXELS", type=int, nargs="+", help=words)
    words = "folders of earlier rounds, whose boxes are not asked about again"
    add("-annotated", metavar="ROUND", type=Path, nargs="+", default=[], help=words)
    add("-seed", type=int, default=0, help="seed of all random choices. Default: %(default)s")
    words = "who is asked in a review; with -strategy gain, the model's experts are. Default: %(default)s"
    add("-annotator", metavar="NAME", default=defaults.ANNOTATOR, help=words)
    add_dataset_json(parser)
    add("--overwrite", action="store_true", help="replace a round in the output folder")
    add_parts(parser)
    answered = parser.add_argument_group("studies with images that are already annotated")
    words = (
        "also write the dataset DatasetXXX_Name of this and all -annotated rounds, as nnUNetv2_deferral_next_dataset"
    )
    answered.add_argument("--next_dataset", metavar="DATASET", help=words)
    answered.add_argument("-answers", metavar="LABELS", type=Path, help="for it: folder of masks")
    answered.add_argument("-images", metavar="IMAGES", type=Path, help="for it: folder of the images (<case>_0000)")
    return parser


def next_dataset() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_next_dataset`."""
    parser = new_parser(
        "next_dataset",
        "Create a dataset in nnUNet_raw from answers. Its labels are the answers at the voxels that were asked about "
        "and answered, and the ignore label elsewhere; splits and a record of who answered what are also written.",
        "-i round_0 round_1 -answers labels -images imagesPool -o Dataset512_Round2",
    )
    add = parser.add_argument
    words = "rounds of nnUNetv2_deferral_query, or one folder of predictions by a deferral model"
    add("-i", metavar="QUESTIONS", type=Path, nargs="+", required=True, help=words)
    words = "folder of masks: <expert>/<case>, for rounds of queries also <case>"
    add("-answers", metavar="ANSWERS", type=Path, required=True, help=words)
    add("-images", metavar="IMAGES", type=Path, required=True, help="folder of the images (<case>_0000)")
    add("-o", metavar="DATASET", required=True, help="name of the new dataset, DatasetXXX_Name")
    words = "a dataset whose cases are included; answers replace its labels"
    add("-base", metavar="DATASET", help=words)
    words = "maps each case to its group (patient), which is not divided between training and validation"
    add("-groups", metavar="JSON", type=Path, help=words)
    words = "the dataset.json of the questions. Default: in their folder"
    add("-djfile", metavar="DATASET_JSON", type=Path, help=words)
    return parser
