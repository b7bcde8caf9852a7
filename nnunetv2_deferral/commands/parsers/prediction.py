"""Commands from a trained model to fused masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_deferral import defaults
from nnunetv2_deferral.commands.parsers.shared import (
    PREFIX,
    add_dataset_json,
    add_evidence,
    add_parts,
    add_predictions,
    add_separate_parts,
    add_work_time,
    new_parser,
)
from nnunetv2_deferral.decision.limits import OVER, limit


def calibrate() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_calibrate`."""
    parser = new_parser(
        "calibrate",
        "Calibrate the probabilities that model and experts are right, and fit thresholds that keep a "
        "budget over a dataset, on the model's validation cases; prediction then uses both. Requires a final "
        "validation with --npz, or predictions of other cases with a reference (-i, -ref).",
        "-d 501 -c 2d -f 0 1 2 3 4 -tr nnUNetTrainerDeferral3Experts_OvA -groups groups.json -budgets 0.01",
    )
    add = parser.add_argument
    add("-d", required=True, metavar="DATASET", help="dataset id or name")
    add("-c", required=True, metavar="CONFIGURATION", help="configuration")
    add("-f", nargs="+", metavar="FOLD", help="folds. Default: 0 1 2 3 4")
    add("-tr", required=True, metavar="TRAINER", help="trainer")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans. Default: %(default)s")
    words = "in place of validations: folder that the model predicted with --save_probabilities, by any folds (also "
    words += "all, or an ensemble), of cases that they were not trained on"
    add("-i", metavar="PREDICTIONS", type=Path, help=words)
    add("-ref", metavar="LABELS", type=Path, help="folder of the references of PREDICTIONS")
    words = (
        "set of simulated experts, or with -i also the folder of the experts' masks. Default: those used in training"
    )
    add("-experts", metavar="EXPERTS", help=words)
    add("-groups", metavar="JSON", type=Path, help="maps each case to its group (patient), held out as a whole")
    add("-budgets", metavar="B", type=float, nargs="+", default=[], help="shares of all voxels to fit thresholds for")
    add(
        "-capacities", metavar="C", type=limit, nargs="+",
        help="maximum share of all voxels for each expert, or none for no limit; one value per expert",
    )  # fmt: skip
    add(
        "-min_region_mm", metavar="D", type=limit, nargs="+",
        help="smallest region that is deferred, as an equivalent diameter, or none for single voxels; several values "
        "fit thresholds for each. Default: that of the plans",
    )  # fmt: skip
    words = "answers replace the model's labels; do not fit an evidence model"
    add("--replace", action="store_true", help=words)
    words = "the experts are anonymous readers: a name is not the same person in all cases"
    add("--exchangeable", action="store_true", help=words)
    words = "rank voxels by the heads; do not compare with the model's confidence and with both combined"
    add("--keep_heads", action="store_true", help=words)
    words = "also fit a prediction of the Dice of each case and class without a reference; needs at least 10 cases"
    add("--predict_dice", action="store_true", help=words)
    words = "fit thresholds only; keep the calibration that the model has, and its thresholds for other budgets"
    add("--thresholds_only", action="store_true", help=words)
    add(
        "-certify", metavar=("X", "ALPHA"), type=float, nargs=2,
        help="hold half of the cases (patients) out of all fitting, and certify on them the smallest budget at which "
        "at most a share ALPHA of cases has a kept error (wrong voxels that are not deferred, divided by the "
        "foreground voxels of the reference) above X",
    )  # fmt: skip
    add("-confidence", metavar="C", type=float, help=f"confidence of the certificate. Default: {defaults.CONFIDENCE}")
    add_parts(parser)
    return parser


def uncertainty() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_uncertainty`: the options of `nnUNetv2_predict`, which are passed on to it."""
    parser = new_parser(
        "uncertainty",
        "Predict with an ensemble of folds of any model, as nnUNetv2_predict does and with its options, and also "
        "write the mask of each fold (OUT/deferral/folds/<fold>) and the mutual information of the folds "
        "(OUT/deferral/mutual_information), without predicting more than once. With a single fold, its mirrored "
        "predictions take the place of the folds, and prediction takes twice the time.",
        "-d 501 -c 2d -f 0 1 2 3 4 -i imagesTs -o predictions",
    )
    add = parser.add_argument
    add("-i", metavar="IMAGES", type=Path, required=True, help="folder of images (<case>_0000)")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add("-d", metavar="DATASET", required=True, help="dataset id or name")
    add("-p", metavar="PLANS", default="nnUNetPlans", help="plans. Default: %(default)s")
    add("-tr", metavar="TRAINER", default="nnUNetTrainer", help="trainer. Default: %(default)s")
    add("-c", metavar="CONFIGURATION", required=True, help="configuration, for example 2d")
    words = "folds; a single one is compared with itself mirrored. Default: 0 1 2 3 4"
    add("-f", metavar="FOLD", nargs="+", default=[str(fold) for fold in range(defaults.FOLDS)], help=words)
    add("-step_size", metavar="S", type=float, default=0.5, help="step of the sliding window. Default: %(default)s")
    add("--disable_tta", action="store_true", help="predict without mirroring")
    add("--verbose", action="store_true", help="print more")
    add("--save_probabilities", action="store_true", help="also save the ensemble's probabilities")
    words = "only predict what is missing: masks of the ensemble or of its folds"
    add("--continue_prediction", action="store_true", help=words)
    add("-chk", metavar="FILE", default="checkpoint_final.pth", help="name of the checkpoint. Default: %(default)s")
    add("-npp", metavar="N", type=int, help="processes for preprocessing. Default: as nnUNetv2_predict")
    words = "processes for export; with -npp 0 -nps 0 all is done in one process. Default: as nnUNetv2_predict"
    add("-nps", metavar="N", type=int, help=words)
    words = "for a cascade, folder of the predictions of the previous stage"
    add("-prev_stage_predictions", metavar="FOLDER", help=words)
    add_separate_parts(parser, "predict")
    add("-device", choices=("cpu", "cuda", "mps"), default="cuda", help="default: cuda")
    add("--disable_progress_bar", action="store_true", help="print no progress")
    words = "keep the logits of a case in main memory, not in that of the device"
    add("--not_on_device", action="store_true", help=words)
    return parser


def route() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_route`."""
    parser = new_parser(
        "route",
        "Decide what to defer without another prediction: within other limits for a deferral model, or for a "
        "calibrated stock network. The latter, and decisions without a budget or capacities, require saved "
        "probabilities (--save_probabilities).",
        "-i predictions -o predictions2 -budget 0.02",
    )
    add = parser.add_argument
    add_predictions(parser, "folder of masks with deferral maps or probabilities")
    add("-o", metavar="OUT", type=Path, required=True, help="new folder for masks and deferral maps")
    add("-m", metavar="MODEL", type=Path, help="for a stock network: its model folder, which contains plans.json")
    add("-budget", metavar="B", type=float, help="share of the voxels that may be deferred. Default: no limit")
    words = "maximum share of the voxels for each expert, or none; one value per expert"
    add("-capacities", metavar="C", type=limit, nargs="+", help=words)
    add("-over", choices=OVER, default=OVER[0], help="shares of each case, or of all cases. Default: %(default)s")
    add("-min_region_mm", metavar="D", type=float, help="equivalent diameter of the smallest region")
    words = "working time for all cases: within the other limits, regions with the highest gain per minute"
    add("-minutes", metavar="M", type=float, help=words)
    add_work_time(parser)
    add_dataset_json(parser)
    return parser


def fuse() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_fuse`."""
    parser = new_parser(
        "fuse",
        "Fuse the masks of a deferral model with those of its experts, voxel by voxel as routed. The "
        "experts' masks are EXPERTS/<expert>/<case>, with the names of the model's experts.",
        "-i predictions -experts expertsTs -o fused",
    )
    add_predictions(parser)
    parser.add_argument("-experts", metavar="EXPERTS", type=Path, required=True, help="folder of the experts' masks")
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder for the fused masks")
    add_dataset_json(parser)
    add_evidence(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing masks")
    add_parts(parser)
    return parser


def next_round() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_next_round`."""
    parser = new_parser(
        "next_round",
        "Decide what to ask next, given the answers to a prediction's questions. Requires a calibration "
        "that reads answers as evidence.",
        "-i predictions -answers expertsTs -o predictions2 -budget 0.005 -most 2",
    )
    add = parser.add_argument
    add_predictions(parser)
    add("-answers", metavar="EXPERTS", type=Path, required=True, help="folder of the masks of the experts who answered")
    add("-o", metavar="OUT", type=Path, required=True, help="new folder for the predictions with the next questions")
    add("-budget", metavar="B", type=float, required=True, help="share of all voxels to ask about in this round")
    words = "maximum number of experts asked about a voxel in all rounds together. Default: %(default)s"
    add("-most", metavar="K", type=int, default=1, help=words)
    add_dataset_json(parser)
    return parser


def run() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_run`."""
    parser = new_parser(
        "run",
        "Predict and evaluate an archive and write its worklist, in parts that run as jobs on this machine or on a "
        "SLURM cluster. A repeated call does only what is missing.",
        "-i imagesTs -o archive -steps predict worklist -num_parts 8",
        '-predict "-d 501 -c 2d -f 0 -tr nnUNetTrainerDeferral3Experts" -worklist "--no_pictures -max_regions 500"',
        "-executor slurm -job slurm_partition=gpu gpus_per_node=1",
        quoted=("-predict", "-evaluate", "-worklist"),
    )
    add = parser.add_argument
    add("-i", metavar="IMAGES", type=Path, required=True, help="folder of the images (<case>_0000)")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    words = "what to do, in this order. Default: predict worklist"
    steps = ("predict", "evaluate", "worklist")
    add("-steps", nargs="+", choices=steps, default=["predict", "worklist"], help=words)
    add("-num_parts", metavar="N", type=int, default=1, help="number of parts of the cases. Default: 1")
    for step, command in zip(steps, ("nnUNetv2_predict", f"{PREFIX}evaluate", f"{PREFIX}worklist"), strict=True):
        words = f"options of {command} as one quoted text, without -i and -o"
        add(f"-{step}", metavar="OPTIONS", default="", help=words)
    executors = ("local", "slurm", "submitit_local")
    words = "where jobs run: as processes on this machine, or through submitit. Default: %(default)s"
    add("-executor", choices=executors, default="local", help=words)
    add("-jobs", metavar="K", type=int, default=1, help="with -executor local: jobs at the same time. Default: 1")
    words = "with the other executors: submitit's parameters, such as slurm_partition=gpu mem_gb=32 timeout_min=600"
    add("-job", metavar="KEY=VALUE", nargs="+", default=[], help=words)
    return parser
