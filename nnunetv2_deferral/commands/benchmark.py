"""`nnUNetv2_deferral_benchmark`: stock nnU-Net and deferral trainings on the same folds, run, checked and compared.

What is trained is found in nnUNet_results; with `--run` what is missing is trained first, through nnUNetv2_train. The
same call can be made again at any time: after an interruption it goes on from there. `--report` writes a page as well.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunetv2_deferral.benchmark.cluster import ClusterExecutor, parse_parameters
from nnunetv2_deferral.benchmark.comparison import Resampling, compare
from nnunetv2_deferral.benchmark.preparation import prepare
from nnunetv2_deferral.benchmark.running import Executor, run_here, run_trainings
from nnunetv2_deferral.benchmark.scores import score_methods
from nnunetv2_deferral.benchmark.studies import LAMBDAS, Study, StudyMaker
from nnunetv2_deferral.benchmark.timing import method_times, time_predictions
from nnunetv2_deferral.benchmark.trainers import with_epochs
from nnunetv2_deferral.benchmark.training import TrainingError, trainings_of
from nnunetv2_deferral.benchmark.verification import verify, verify_begun
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.report.benchmark_page import check_report, write_benchmark_page
from nnunetv2_deferral.report.benchmark_tables import markdown, write_tables

COMMAND = "nnUNetv2_deferral_benchmark"
LOGS = "logs"


def methods_of(trainers: Sequence[str], plans: str, epochs: int | None, studies: Sequence[Study] = ()) -> list[Method]:
    """All methods, each once: the trainers in their order, then the rows of the studies.

    Raises:
        InputError: If there are none.
    """
    named = [Method(trainer=with_epochs(trainer, epochs), plans=plans) for trainer in trainers]
    methods = list(dict.fromkeys([*named, *(row.method for study in studies for row in study.rows)]))
    if not methods:
        raise InputError("name trainers to compare (-tr), or a table of the paper (--ablation, --grid, --num_experts)")
    return methods


def studies_of(given: argparse.Namespace, experiment: Experiment) -> list[Study]:
    """The tables of the paper that were asked for; derives their plans with `--run`.

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
    """Train what is missing, after everything that can be checked before was.

    Raises:
        InputError: If something needed is not there, or what is there does not go with what would be trained.
        TrainingError: If trainings failed, once the others are done.
    """
    prepare(experiment, methods)
    verify_begun(experiment, methods)
    logs = (given.o / LOGS).resolve()
    execute: Executor = run_here
    if given.executor != "here":
        execute = ClusterExecutor(logs, cluster=given.executor, parameters=parse_parameters(given.job))
    run_trainings(trainings_of(experiment, methods, device=given.device, logs=logs), execute)


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing if asked to, verify and compare; returns what benchmark.json holds.

    Raises:
        InputError: For bad input, and methods that cannot be compared.
        TrainingError: If a command of nnU-Net failed.
    """
    experiment = Experiment.find(given.d, given.c, given.f)
    studies = studies_of(given, experiment)
    if given.frozen and not studies:
        raise InputError(
            "--frozen is for the tables; name frozen trainers by -tr: nnUNetTrainerDeferral3Experts_frozen"
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
    return compare(experiment, scores, times, studies=studies, resampling=resampling)


def write_report(results: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Write the page about a benchmark, with the groups that its intervals were drawn by.

    Raises:
        InputError: If these cannot be read, or are no longer those that the intervals were drawn by.
    """
    cases = [case for names in results["cases"].values() for case in names]
    groups = None if given.groups is None else read_groups(given.groups, cases)
    write_benchmark_page(results, given.report, groups=groups)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends with exit code 2, failed trainings with 1, an interruption with 130."""
    parser = _make_parser()
    given = parser.parse_args(arguments)
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with _ended_by_signals():
            if given.report is not None:
                check_report(given.report)
            results = benchmark(given)
            files = write_tables(results, given.o)
            if given.report is not None:
                write_report(results, given)
                files.append(given.report)
    except InputError as error:
        parser.error(str(error))
    except TrainingError as error:
        sys.exit(f"{COMMAND}: {error}")
    except KeyboardInterrupt:
        print(f"\n{COMMAND}: interrupted; the same call goes on from here", file=sys.stderr)
        sys.exit(130)
    print(markdown(results))
    print("\n".join(f"  {file}" for file in files))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end us as Ctrl-C does, so that trainings end with us."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Compare stock nnU-Net and deferral trainings on the same folds: check that all saw the same data, "
        "train what is missing if asked to, and write benchmark.md, benchmark.csv and benchmark.json. Differences are "
        "from the first trainer.",
    )
    add = parser.add_argument
    add("-d", metavar="DATASET", required=True, help="dataset id or name")
    add("-c", metavar="CONFIGURATION", required=True, help="configuration, such as 2d")
    add("-f", metavar="FOLD", type=int, nargs="+", default=list(range(5)), help="folds. Default: 0 1 2 3 4")
    add("-tr", metavar="TRAINER", nargs="+", default=[], help="trainers. Default with a table below: nnUNetTrainer")
    add("-p", metavar="PLANS", default="nnUNetPlans", help="plans of all. Default: %(default)s")
    words = "append _Nepochs to trainers' names (with --frozen, of the tables alone); 1000 is nnU-Net's own"
    add("-epochs", type=int, metavar="N", help=words)
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add("--report", metavar="HTML", type=Path, help="also write a page with figures, one file that opens anywhere")
    tables = parser.add_argument_group("tables of the paper, on plans derived from -p where these say otherwise")
    tables.add_argument("--ablation", action="store_true", help="Table 6: losses, with one and three experts")
    words = "Table C.8: weights of SC and LB. Default: 0.1 1 5 10"
    tables.add_argument("--grid", metavar="LAMBDA", type=float, nargs="*", help=words)
    tables.add_argument("--num_experts", metavar="J", type=int, nargs="+", help="Table D.10: numbers of experts")
    tables.add_argument("--experts", dest="num_experts", metavar="J", type=int, nargs="+", help=argparse.SUPPRESS)
    words = "of these tables, train the heads alone, on the networks of the first stock trainer"
    tables.add_argument("--frozen", action="store_true", help=words)
    words = "the simulated experts of --num_experts. Default: %(default)s"
    tables.add_argument("-expert_set", choices=EXPERT_SETS, default="scalability", help=words)
    running = parser.add_argument_group("running")
    running.add_argument("--run", action="store_true", help="train what is missing, or only begun")
    words = "default: cuda, if there is a GPU"
    running.add_argument("-device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help=words)
    words = "where trainings run: one after another here, or as jobs through submitit. Default: %(default)s"
    running.add_argument("-executor", choices=("here", "slurm", "local"), default="here", help=words)
    words = "of jobs, as submitit names them: slurm_partition=gpu gpus_per_node=1 cpus_per_task=12 timeout_min=2880"
    running.add_argument("-job", metavar="KEY=VALUE", nargs="+", default=[], help=words)
    running.add_argument("--time_prediction", action="store_true", help="time nnUNetv2_predict of every trainer")
    scoring = parser.add_argument_group("scoring")
    words = f"who answers: a folder <expert>/<case>, or a set ({', '.join(EXPERT_SETS)}). Default: the models' own"
    scoring.add_argument("-experts", metavar="EXPERTS", help=words)
    scoring.add_argument("-panel", dest="experts", metavar="EXPERTS", help=argparse.SUPPRESS)
    scoring.add_argument("-seed", type=int, help="seed of simulated experts. Default: evaluation_seed of the models")
    words = "case -> group (patient), drawn together for the intervals"
    scoring.add_argument("-groups", metavar="JSON", type=Path, help=words)
    scoring.add_argument("-bootstrap_seed", type=int, default=0, help="seed of the intervals. Default: %(default)s")
    return parser
