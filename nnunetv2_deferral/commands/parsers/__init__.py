"""The options of every command. Importing this takes no PyTorch and no nnU-Net, so that `--help` answers at once."""

from nnunetv2_deferral.commands.parsers.annotation import next_dataset, query
from nnunetv2_deferral.commands.parsers.data import (
    convert_dataset,
    plan_experiment,
    preprocess_experts,
    shift,
    simulate_experts,
)
from nnunetv2_deferral.commands.parsers.evaluation import benchmark, evaluate, evaluate_raters
from nnunetv2_deferral.commands.parsers.first_steps import demo, doctor
from nnunetv2_deferral.commands.parsers.prediction import calibrate, fuse, next_round, route, run, uncertainty
from nnunetv2_deferral.commands.parsers.reviewing import dicom, review, worklist
from nnunetv2_deferral.commands.parsers.shared import PREFIX, part_of, report_of

__all__ = [
    "PREFIX",
    "benchmark",
    "calibrate",
    "convert_dataset",
    "demo",
    "dicom",
    "doctor",
    "evaluate",
    "evaluate_raters",
    "fuse",
    "next_dataset",
    "next_round",
    "part_of",
    "plan_experiment",
    "preprocess_experts",
    "query",
    "report_of",
    "review",
    "route",
    "run",
    "shift",
    "simulate_experts",
    "uncertainty",
    "worklist",
]
