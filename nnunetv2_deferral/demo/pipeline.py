"""The pipeline of the demo: from generated images to a report, in a few minutes on a CPU.

The demo runs the commands that a user would type as subprocesses, one after the other, and writes their output to
OUT/logs. All files are in the output folder, with nnU-Net folders of its own; the user's nnUNet_raw,
nnUNet_preprocessed and nnUNet_results are not accessed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from nnunetv2_deferral.demo.data import DATASET_NAME, write_dataset
from nnunetv2_deferral.demo.report import DemoFiles, write_report
from nnunetv2_deferral.environment import ENVIRONMENT
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.installed import find_script, trainers_folder
from nnunetv2_deferral.logged_commands import run_logged

COMMAND = "nnUNetv2_deferral_demo"
SEED = 501
NUM_TRAINING, NUM_TEST = 36, 8
EXPERT_SET, NUM_EXPERTS = "complementary", 3
EPOCHS = 5
BUDGET = 0.05  # share of the voxels of each case that may be deferred
PLANS = "nnUNetDeferralCPUPlans"
STOCK_TRAINER = f"nnUNetTrainer_{EPOCHS}epochs"
# A head on the trained network takes a fraction of the time of another training.
DEFERRAL_TRAINER = f"nnUNetTrainerDeferral{NUM_EXPERTS}Experts_frozen_1epoch"

_MARKER = "demo.json"
# All top-level entries of the output folder; overwriting removes nothing else.
_OWN_ENTRIES = (
    *("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "experts", "logs", "cases"),
    *("overview.png", "report.html", "table.json", "table.md", _MARKER),
)
_EPOCH = re.compile(rb"(?:^|\s)Epoch (\d+)\s*$", re.MULTILINE)


class StepError(RuntimeError):
    """A command of the demo failed; the message names it and quotes the end of its log."""


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        log_name: Stem of the log file.
        title: Description for the terminal.
        arguments: The command line, starting with the name of the console script.
        epochs: Number of epochs for the progress bar; 0 for a step without training.
        variables: Environment variables of this command alone.
    """

    log_name: str
    title: str
    arguments: tuple[str, ...]
    epochs: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def typed(self) -> tuple[str, ...]:
        """The words that a person would type."""
        return (*(f"{name}={value}" for name, value in self.variables.items()), *self.arguments)


def prepare_folder(out: Path, *, overwrite: bool = False) -> None:
    """Create or clear the output folder.

    Raises:
        InputError: If it is not empty and `overwrite` is false, or its content was not written by a demo.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise InputError(f"{out} is not empty and was not written by {COMMAND}; choose another folder (-o)")
        if not overwrite:
            raise InputError(f"{out} has an earlier demo; choose another folder (-o) or replace it (--overwrite)")
        for name in _OWN_ENTRIES:
            entry = out / name
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"written_by": COMMAND, "entries": list(_OWN_ENTRIES)}, out / _MARKER)


def demo_steps(files: DemoFiles, *, device: str) -> list[Step]:
    """The commands of the demo in order.

    Args:
        files: The files of the demo.
        device: `"cpu"` or `"cuda"`, passed to nnU-Net's commands.
    """
    dataset = DATASET_NAME[len("Dataset") :].split("_")[0]
    panel = f"-experts {EXPERT_SET} -num_experts {NUM_EXPERTS}"
    model = f"-p {PLANS} -device {device}"
    plan = f"plan_experiment -d {dataset} -pl nnUNetPlannerDeferralCPU {panel} --preprocess -c 2d -np 1"
    steps = [Step("plan", "Planning and preprocessing", (*f"nnUNetv2_deferral_{plan}".split(),))]
    stock = ("nnUNetv2_train", *f"{dataset} 2d 0 -tr {STOCK_TRAINER} {model}".split())
    steps.append(Step("train_stock", "Training stock nnU-Net", stock, EPOCHS))
    weights = ("-pretrained_weights", str(files.checkpoint(STOCK_TRAINER)))
    head = ("nnUNetv2_train", *f"{dataset} 2d 0 -tr {DEFERRAL_TRAINER} {model}".split(), *weights)
    steps.append(Step("train_deferral", "Training deferral on its network", head, 1))
    folders = ("-i", str(files.images), "-o", str(files.prediction("deferral")))
    predict = f"-d {dataset} -c 2d -f 0 -tr {DEFERRAL_TRAINER} {model} -npp 1 -nps 1 --save_probabilities"
    arguments = ("nnUNetv2_predict", *folders, *predict.split())
    limit = {ENVIRONMENT: str(BUDGET)}
    steps.append(Step("predict", "Predicting the test cases", arguments, variables=limit))
    inputs = ("-i", str(files.labels), "-djfile", str(files.dataset_json), "-o", str(files.experts))
    arguments = ("nnUNetv2_deferral_simulate_experts", *inputs, *panel.split())
    return [*steps, Step("simulate_experts", "Simulating the experts on the test cases", arguments)]


def demo_environment(out: Path) -> dict[str, str]:
    """The environment of the commands: nnU-Net folders inside `out`, the deferral trainers, and few processes."""
    folders = {name: str(out / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    trainers = str(trainers_folder())
    return {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": trainers,
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "MPLBACKEND": "Agg",
        # nnU-Net trains with as many threads as there are cores. With networks this small, threads that spin while
        # waiting slow down a busy machine tenfold.
        "OMP_WAIT_POLICY": "passive",
    }


def run_step(step: Step, *, logs: Path, environment: Mapping[str, str]) -> None:
    """Run a command with its output written to `logs/<log_name>.log`, and a progress bar for trainings.

    Raises:
        StepError: If it fails; the message quotes the last lines of the log.
    """
    log = logs / f"{step.log_name}.log"
    command = [find_script(step.arguments[0]), *step.arguments[1:]]
    with _progress(step) as bar:
        failure = run_logged(
            command,
            log,
            environment={**environment, **step.variables},
            watch=lambda: _show(bar, _epochs_begun(log, step)),
        )
        _show(bar, 0 if failure else step.epochs)
    if failure:
        raise StepError(f"{step.title}: {step.arguments[0]} {failure}")


def run_demo(out: Path, *, device: str, overwrite: bool = False) -> DemoFiles:
    """Generate data, train, predict, simulate experts and write the report into `out`.

    Args:
        out: The output folder.
        device: `"cpu"` or `"cuda"`.
        overwrite: Replace an earlier demo in `out`.

    Returns:
        The files of the demo; `report` is the HTML report.

    Raises:
        InputError: See :func:`prepare_folder`.
        StepError: If a command fails.
    """
    out = out.resolve()
    prepare_folder(out, overwrite=overwrite)
    files = DemoFiles(out, deferral_trainer=DEFERRAL_TRAINER, plans=PLANS)
    for folder in (files.logs, out / "nnUNet_preprocessed", out / "nnUNet_results"):
        folder.mkdir()
    write_dataset(out / "nnUNet_raw", num_training=NUM_TRAINING, num_test=NUM_TEST, seed=SEED)
    environment = demo_environment(out)
    steps = demo_steps(files, device=device)
    for number, step in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {step.title}", flush=True)
        run_step(step, logs=files.logs, environment=environment)
    write_report(files, steps=[(step.title, step.typed) for step in steps], epochs=EPOCHS, budget=BUDGET)
    return files


@contextmanager
def _progress(step: Step) -> Iterator[tqdm]:
    with tqdm(total=step.epochs, unit="epoch", disable=not step.epochs, leave=False) as bar:
        yield bar


def _show(bar: tqdm, epochs: int) -> None:
    if epochs > bar.n:
        bar.update(epochs - bar.n)
    elif sys.stderr.isatty():
        bar.refresh()  # updates the elapsed time


def _epochs_begun(log: Path, step: Step) -> int:
    """The number of the current epoch according to the log; 0 before the first."""
    begun = _EPOCH.findall(log.read_bytes()) if step.epochs else []
    return int(begun[-1]) if begun else 0
