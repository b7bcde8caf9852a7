"""`nnUNetv2_deferral_calibrate`: fit a model's calibrators and budget thresholds on its validation cases.

They are fitted to the outputs that the final validation saved with `--npz`, on cases held out from each fold's training
set, and written to plans.json in the model folder, where prediction reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_deferral.calibration.fitting import calibrate, write_calibration
from nnunetv2_deferral.calibration.validation_cases import ValidationCases
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.decision.assignment import check_capacities
from nnunetv2_deferral.decision.limits import Limits, capacity, warn_of_full_budget
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.reliability import LEAST_CERTAIN
from nnunetv2_deferral.nnunet.experiment import Experiment, Method, fold_numbers

COMMAND = "nnUNetv2_deferral_calibrate"


def text(calibration: ModelCalibration) -> str:
    """A summary of the fit for the terminal."""
    report = calibration.report
    lines = [f"{len(report['cases'])} validation cases of fold {', '.join(map(str, report['folds']))}"]
    if report["heads"]:
        lines.append(f"  {'calibration':<40} calibrator   ECE of the {LEAST_CERTAIN:.0%} least certain voxels   of all")
    for name, head in report["heads"].items():
        found = [head[part][when]["ece"] for part in ("least_certain", "all") for when in ("before", "after")]
        errors = ["–" if error is None else f"{error:.4f}" for error in found]
        lines.append(
            f"  {name:<40} {head['map']['kind']:<12} {errors[0]} -> {errors[1]}"
            f"                        {errors[2]} -> {errors[3]}"
        )
    if "evidence" in report:
        lines += _evidence_text(report["evidence"])
    for each in calibration.thresholds:
        limits = [] if each.budget is None else [f"budget {each.budget:.2%}"]
        if each.capacities is not None:
            words = ("no limit" if capacity is None else f"{capacity:.2%}" for capacity in each.capacities)
            limits.append(f"capacities {', '.join(words)}")
        prices = ", ".join(f"{value:.3g}" for value in each.thresholds)
        lines.append(f"  {' and '.join(limits)} over the dataset: gain > {prices}; {each.rate:.2%} of voxels deferred")
    return "\n".join(lines)


def _evidence_text(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  budget {row['budget']:>5.1%}: Dice {row['evidence']:.3f} if answers are read as evidence "
        f"({row['rate_evidence']:.2%} of voxels), {row['replaced']:.3f} if they replace labels "
        f"({row['rate_replaced']:.2%}), on patients held back"
        for row in found["budgets"]
    ]
    if found["kept"]:
        return [*lines, "  answers are read as evidence in further predictions"]
    return [*lines, f"  answers replace the model's labels: evidence was not kept because {found['reason']}"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Calibrate the probabilities that model and experts are right, and fit thresholds that keep a "
        "budget over a dataset, on the model's validation cases; prediction then uses both. Requires a final "
        "validation with --npz.",
    )
    add = parser.add_argument
    add("-d", required=True, metavar="DATASET", help="dataset id or name")
    add("-c", required=True, metavar="CONFIGURATION", help="configuration")
    add("-f", nargs="+", default=[0, 1, 2, 3, 4], metavar="FOLD", help="folds. Default: 0 1 2 3 4")
    add("-tr", required=True, metavar="TRAINER", help="trainer")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans. Default: %(default)s")
    add("-experts", metavar="SET", help="set of simulated experts. Default: those used in training")
    add("-groups", metavar="JSON", type=Path, help="maps each case to its group (patient), held out as a whole")
    add("-budgets", metavar="B", type=float, nargs="+", default=[], help="shares of all voxels to fit thresholds for")
    add(
        "-capacities", metavar="C", type=capacity, nargs="+",
        help="maximum share of all voxels for each expert, or none for no limit; one value per expert",
    )  # fmt: skip
    words = "answers replace the model's labels; do not fit how to read them as evidence"
    add("--replace", action="store_true", help=words)
    words = "the experts are anonymous readers, so that a name is a slot and not a person"
    add("--exchangeable", action="store_true", help=words)
    add("--thresholds_only", action="store_true", help="fit thresholds only; keep the current calibration")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = _make_parser()
    given = parser.parse_args(arguments)
    try:
        capacities = None if given.capacities is None else tuple(given.capacities)
        budgets: list[float | None] = list(given.budgets)
        if not budgets and capacities is not None:
            budgets = [None]
        limits = [Limits(budget=budget, capacities=capacities, over="dataset") for budget in budgets]
        if 1 in budgets:
            warn_of_full_budget()
        if given.thresholds_only and not limits:
            raise InputError("--thresholds_only needs -budgets or -capacities")
        experiment = Experiment.find(given.d, given.c, fold_numbers(given.f))
        method = Method(trainer=given.tr, plans=given.p)
        names = [case for found in experiment.cases().values() for case in found]
        groups = None if given.groups is None else read_groups(given.groups, names)
        cases = ValidationCases(experiment, method, experts=given.experts, groups=groups)
        check_capacities(capacities, cases.settings.num_experts, named="-capacities")
        calibration = calibrate(
            cases,
            limits,
            maps=not given.thresholds_only,
            evidence=not given.replace,
            exchangeable=given.exchangeable,
        )
        file = write_calibration(calibration, cases)
    except InputError as error:
        parser.error(str(error))
    print(text(calibration))
    used = f"used by nnUNetv2_deferral_route -m {file.parent}" if cases.is_stock else "used by all further predictions"
    print(f"  written to {file}; {used}")
