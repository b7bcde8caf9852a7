"""`nnUNetv2_deferral_benchmark`: run, verify and compare stock nnU-Net and deferral trainings on the same folds.

Finished trainings are read from nnUNet_results; with `--run`, missing ones are run first through nnUNetv2_train. The
same call can be repeated at any time and resumes after an interruption. `--report` also writes an HTML report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_deferral.benchmark.cluster import ClusterExecutor, parse_parameters
from nnunetv2_deferral.benchmark.comparison import Resampling, compare
from nnunetv2_deferral.benchmark.preparation import prepare
from nnunetv2_deferral.benchmark.rater_scores import score_against_raters
from nnunetv2_deferral.benchmark.running import Executor, run_here, run_trainings
from nnunetv2_deferral.benchmark.scores import score_methods
from nnunetv2_deferral.benchmark.studies import LAMBDAS, Study, StudyMaker
from nnunetv2_deferral.benchmark.timing import method_times, time_predictions
from nnunetv2_deferral.benchmark.trainers import with_epochs
from nnunetv2_deferral.benchmark.training import TrainingError, trainings_of
from nnunetv2_deferral.benchmark.verification import verify, verify_begun
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Experiment, Method, fold_numbers
from nnunetv2_deferral.processes import ended_by_signals
from nnunetv2_deferral.report.benchmark_page import check_report, write_benchmark_page
from nnunetv2_deferral.report.benchmark_tables import markdown, write_tables

COMMAND = "nnUNetv2_deferral_benchmark"
LOGS = "logs"


def methods_of(trainers: Sequence[str], plans: str, epochs: int | None, studies: Sequence[Study] = ()) -> list[Method]:
    """All distinct methods: the trainers in the given order, then the rows of the studies.

    Raises:
        InputError: If there are none.
    """
    named = [Method(trainer=with_epochs(trainer, epochs), plans=plans) for trainer in trainers]
    methods = list(dict.fromkeys([*named, *(row.method for study in studies for row in study.rows)]))
    if not methods:
        raise InputError(
            "specify trainers to compare (-tr) or a table of the paper (--ablation, --grid, --num_experts)"
        )
    return methods


def studies_of(given: argparse.Namespace, experiment: Experiment) -> list[Study]:
    """The requested tables of the paper; with `--run`, their plans are written.

    Raises:
        InputError: See :class:`.StudyMaker`.
    """
    options = "_frozen" if given.frozen else ""
    maker = StudyMaker(
        experiment, given.p, name=lambda trainer: with_epochs(f"{trainer}{options}", given.epochs), write=given.run
    )
    studies = []
    if given.ablation:
        studies.append(maker.ablation())
    if given.grid is not None:
        studies.append(maker.grid(given.grid or LAMBDAS))
    if given.num_experts is not None:
        studies.append(maker.experts(given.num_experts, given.expert_set))
    return studies


def run_missing(given: argparse.Namespace, experiment: Experiment, methods: Sequence[Method]) -> None:
    """Run the missing trainings, after all checks that are possible beforehand.

    Raises:
        InputError: If a required input is missing, or existing trainings are inconsistent with the requested ones.
        TrainingError: If trainings failed; raised after all others have finished.
    """
    prepare(experiment, methods)
    verify_begun(experiment, methods)
    logs = (given.o / LOGS).resolve()
    execute: Executor = run_here
    if given.executor != "here":
        execute = ClusterExecutor(logs, cluster=given.executor, parameters=parse_parameters(given.job))
    run_trainings(trainings_of(experiment, methods, device=given.device, logs=logs, npz=given.npz), execute)


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run missing trainings if requested, verify and compare; returns the content of benchmark.json.

    Raises:
        InputError: For invalid input and for methods that cannot be compared.
        TrainingError: If an nnU-Net command failed.
    """
    experiment = Experiment.find(given.d, given.c, fold_numbers(given.f))
    studies = studies_of(given, experiment)
    if given.frozen and not studies:
        raise InputError(
            "--frozen applies to the tables only; specify frozen trainers with -tr: "
            "nnUNetTrainerDeferral3Experts_frozen"
        )
    trainers = given.tr or (["nnUNetTrainer"] if studies else [])
    epochs = None if given.frozen else given.epochs
    methods = methods_of(trainers, given.p, epochs, studies)
    if given.run:
        run_missing(given, experiment, methods)
    verify(experiment, methods)
    groups = given.groups
    if groups is not None:
        groups = read_groups(groups, [case for cases in experiment.cases().values() for case in cases])
    in_studies = [[row.method for row in study.rows] for study in studies]
    named = methods_of(trainers, given.p, epochs) if trainers else []
    scores = score_methods(experiment, methods, experts=given.experts, seed=given.seed, tables=[named, *in_studies])
    predictions = None
    if given.time_prediction:
        predictions = time_predictions(experiment, methods, device=given.device, logs=given.o / LOGS)
    times = method_times(experiment, methods, predictions=predictions, device=given.device)
    resampling = Resampling(groups=groups, seed=given.bootstrap_seed)
    of_raters: list[dict[str, Any]] = []
    try:
        of_raters = [
            score_against_raters(experiment, method, groups=groups, seed=given.bootstrap_seed) for method in methods
        ]
    except InputError as error:
        print(f"Not compared with all raters: {error}")
    return compare(experiment, scores, times, studies=studies, resampling=resampling, against_raters=of_raters)


def write_report(results: Mapping[str, Any], given: argparse.Namespace, file: Path) -> None:
    """Write the HTML report of a benchmark, with the groups used for its intervals.

    Raises:
        InputError: If the groups cannot be read or have changed since the intervals were computed.
    """
    cases = [case for names in results["cases"].values() for case in names]
    groups = None if given.groups is None else read_groups(given.groups, cases)
    write_benchmark_page(results, file, groups=groups)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with code 2 on invalid input, 1 if trainings failed, 130 if interrupted."""
    parser = parsers.benchmark()
    given = parser.parse_args(arguments)
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with ended_by_signals():
            report = parsers.report_of(given)
            if report is not None:
                check_report(report)
            results = benchmark(given)
            files = write_tables(results, given.o)
            if report is not None:
                write_report(results, given, report)
                files.append(report)
    except InputError as error:
        parser.error(str(error))
    except TrainingError as error:
        sys.exit(f"{COMMAND}: {error}")
    except KeyboardInterrupt:
        print(f"\n{COMMAND}: interrupted; repeat the same call to resume", file=sys.stderr)
        sys.exit(130)
    print(markdown(results))
    print("\n".join(f"  {file}" for file in files))
