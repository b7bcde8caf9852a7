"""Commands that score and compare models."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_deferral import defaults
from nnunetv2_deferral.commands.parsers.shared import (
    add_dataset_json,
    add_evidence,
    add_parts,
    add_predictions,
    add_report,
    add_resampling,
    new_parser,
)
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, EXPERT_SETS


def evaluate() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_evaluate`."""
    parser = new_parser(
        "evaluate",
        "Evaluate predictions of a deferral model: Dice of model, experts and system, the effect of "
        "deferral, and the model's ranking of voxels compared with others at matched budgets.",
        "-i predictions -ref labelsTs -experts expertsTs -o evaluation --report evaluation/report.html",
    )
    add = parser.add_argument
    add("-ref", metavar="LABELS", type=Path, required=True, help="folder of the references")
    add_predictions(parser)
    sets = f"a set of simulated experts ({', '.join(EXPERT_SETS)})"
    add("-experts", metavar="EXPERTS", help=f"folder of the experts' masks, or {sets}. Default: those used in training")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add("-seed", type=int, help="seed of simulated experts. Default: evaluation_seed of the model's settings")
    add(
        "-error_model",
        choices=ERROR_MODEL_NAMES,
        help="error model of all simulated experts. Default: those of their profiles",
    )
    words = "with a folder of masks: simulate these experts of the training, who have no masks in it"
    add("-simulated", metavar="EXPERT", nargs="+", default=[], help=words)
    add_dataset_json(parser)
    add_resampling(parser)
    words = 'maps each case to its domain (hospital, scanner), to compare them; the training\'s own is "ID"'
    add("-domains", metavar="JSON", type=Path, help=words)
    words = "folders with masks of single folds, for failure detection by their disagreement. Default: those in "
    words += "PREDICTIONS, if it was predicted with nnUNet_deferral_folds=1"
    add("-folds", metavar="FOLDER", type=Path, nargs="+", default=[], help=words)
    add_evidence(parser)
    words = "budgets at which rankings are compared, shares of voxels in [0, 1]"
    add("-budgets", metavar="B", type=float, nargs="+", default=list(defaults.BUDGETS), help=words)
    add_report(parser)
    add("-images", metavar="IMAGES", type=Path, help="folder of the images, to show some cases in the report")
    words = "also write the figures of the report to OUT/figures in these formats, with its tables in LaTeX"
    add("-figures", metavar="FORMAT", nargs="+", choices=("png", "svg", "pdf"), default=[], help=words)
    words = "also score surfaces: HD95, and the normalised surface distance with this tolerance in mm (png: pixels)"
    add("-surface_tolerance", metavar="MM", type=float, help=words)
    add_parts(parser)
    return parser


def evaluate_raters() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_evaluate_raters`."""
    parser = new_parser(
        "evaluate_raters",
        "Measure how well the probabilities of any nnU-Net model are calibrated to several raters, and the overlap "
        "of its masks with theirs. Requires predictions with --save_probabilities or a validation with --npz.",
        "-i predictions -raters expertsTs -ref labelsTs -o evaluation",
    )
    add = parser.add_argument
    add_predictions(parser, "folder of masks and probabilities")
    add("-raters", metavar="RATERS", type=Path, required=True, help="folder <rater>/<case> of the raters' masks")
    add("-ref", metavar="LABELS", type=Path, help="folder of reference masks, for the Dice against them")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add_resampling(parser)
    add_dataset_json(parser)
    return parser


def benchmark() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_benchmark`."""
    parser = new_parser(
        "benchmark",
        "Compare stock nnU-Net and deferral trainings on the same folds: run missing trainings if "
        "requested, verify that all used the same data, and write benchmark.md, benchmark.csv and benchmark.json. "
        "Differences are relative to the first trainer.",
        "-d 501 -c 2d -f 0 1 2 -tr nnUNetTrainer nnUNetTrainerDeferral3Experts -o benchmark",
        "--run --report benchmark.html",
    )
    add = parser.add_argument
    add("-d", metavar="DATASET", required=True, help="dataset id or name")
    add("-c", metavar="CONFIGURATION", required=True, help="configuration, for example 2d")
    add("-f", metavar="FOLD", nargs="+", default=list(range(defaults.FOLDS)), help="folds. Default: 0 1 2 3 4")
    add("-tr", metavar="TRAINER", nargs="+", default=[], help="trainers. Default if a table is given: nnUNetTrainer")
    add("-p", metavar="PLANS", default="nnUNetPlans", help="plans of all trainers. Default: %(default)s")
    words = "append _Nepochs to trainer names (with --frozen, only in the tables); nnU-Net's default is 1000"
    add("-epochs", type=int, metavar="N", help=words)
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add_report(parser)
    tables = parser.add_argument_group("tables of the paper, on plans derived from -p where their settings differ")
    tables.add_argument("--ablation", action="store_true", help="Table 6: losses, with one and three experts")
    words = "Table C.8: weights of SC and LB. Default: 0.1 1 5 10"
    tables.add_argument("--grid", metavar="LAMBDA", type=float, nargs="*", help=words)
    tables.add_argument("--num_experts", metavar="J", type=int, nargs="+", help="Table D.10: numbers of experts")
    tables.add_argument("--experts", dest="num_experts", metavar="J", type=int, nargs="+", help=argparse.SUPPRESS)
    words = "in these tables, train only the heads, on the networks of the first stock trainer"
    tables.add_argument("--frozen", action="store_true", help=words)
    words = "set of simulated experts for --num_experts. Default: %(default)s"
    tables.add_argument("-expert_set", choices=EXPERT_SETS, default="scalability", help=words)
    running = parser.add_argument_group("running")
    running.add_argument("--run", action="store_true", help="run missing and unfinished trainings")
    words = "save the probabilities of the validations, as needed for the comparison with all raters"
    running.add_argument("--npz", action="store_true", help=words)
    words = "default: cuda if a GPU is available, else cpu"
    running.add_argument("-device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help=words)
    words = "where to run trainings: sequentially on this machine, or as jobs through submitit. Default: %(default)s"
    running.add_argument("-executor", choices=("here", "slurm", "local"), default="here", help=words)
    words = "submitit parameters of the jobs: slurm_partition=gpu gpus_per_node=1 cpus_per_task=12 timeout_min=2880"
    running.add_argument("-job", metavar="KEY=VALUE", nargs="+", default=[], help=words)
    running.add_argument("--time_prediction", action="store_true", help="time nnUNetv2_predict of every trainer")
    scoring = parser.add_argument_group("scoring")
    words = f"folder <expert>/<case> of masks, or a set ({', '.join(EXPERT_SETS)}). Default: those of the models"
    scoring.add_argument("-experts", metavar="EXPERTS", help=words)
    scoring.add_argument("-panel", dest="experts", metavar="EXPERTS", help=argparse.SUPPRESS)
    scoring.add_argument("-seed", type=int, help="seed of simulated experts. Default: evaluation_seed of the models")
    add_resampling(scoring)
    return parser
