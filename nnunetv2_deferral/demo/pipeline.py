"""The demo's pipeline: from generated images to a report, in a few minutes on a CPU.

Everything happens in the output folder, in nnU-Net folders of its own, through the commands a user would type. They
run as subprocesses, one after the other; what they print goes to OUT/logs. Nothing outside the output folder is read or
written, and the user's own nnUNet_raw, nnUNet_preprocessed and nnUNet_results are not looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nnunetv2_deferral.demo.data import DATASET_NAME, write_dataset
from nnunetv2_deferral.demo.report import DemoFiles, write_report
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.installed import find_script, trainers_folder

COMMAND = "nnUNetv2_deferral_demo"
SEED = 501
NUM_TRAINING, NUM_TEST = 36, 8
EXPERT_SET, NUM_EXPERTS = "complementary", 3
EPOCHS = 5
PLANS = "nnUNetDeferralCPUPlans"
STOCK_TRAINER = f"nnUNetTrainer_{EPOCHS}epochs"
DEFERRAL_TRAINER = f"nnUNetTrainerDeferral{NUM_EXPERTS}Experts_{EPOCHS}epochs"

_MARKER = "demo.json"
# All that a demo writes at the top of its output folder; overwriting removes nothing else.
_OWN_ENTRIES = (
    *("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "experts", "logs", "cases"),
    *("overview.png", "report.html", "table.json", "table.md", _MARKER),
)
_EPOCH = re.compile(rb"(?:^|\s)Epoch (\d+)\s*$", re.MULTILINE)
_NUM_LAST_LINES = 15


class StepError(RuntimeError):
    """A command of the demo failed; the message says which, and shows the end of its log."""


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        log_name: Stem of its log file.
        title: What it does, for the person waiting.
        arguments: The command line, the console script's name first.
        epochs: Number of epochs to show progress of; 0 for a step that trains nothing.
    """

    log_name: str
    title: str
    arguments: tuple[str, ...]
    epochs: int = 0


def prepare_folder(out: Path, *, overwrite: bool = False) -> None:
    """Make the output folder ready for a demo.

    Raises:
        InputError: If it is not empty and may not be overwritten, or if no demo has written what is in it.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise InputError(f"{out} is not empty and was not written by {COMMAND}. Choose another folder (-o)")
        if not overwrite:
            raise InputError(f"{out} holds an earlier demo. Choose another folder (-o) or replace it (--overwrite)")
        for name in _OWN_ENTRIES:
            entry = out / name
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"written_by": COMMAND, "entries": list(_OWN_ENTRIES)}, out / _MARKER)


def demo_steps(files: DemoFiles, *, device: str) -> list[Step]:
    """The commands of the demo in their order.

    Args:
        files: Where everything lies.
        device: As nnU-Net's commands take it, `"cpu"` or `"cuda"`.
    """
    dataset = DATASET_NAME[len("Dataset") :].split("_")[0]
    panel = f"-experts {EXPERT_SET} -num_experts {NUM_EXPERTS}"
    model = f"-p {PLANS} -device {device}"
    plan = f"plan_experiment -d {dataset} -pl nnUNetPlannerDeferralCPU {panel} --preprocess -c 2d -np 1"
    steps = [Step("plan", "Planning and preprocessing", (*f"nnUNetv2_deferral_{plan}".split(),))]
    trainers = (("stock", "stock nnU-Net", STOCK_TRAINER), ("deferral", "nnU-Net with deferral", DEFERRAL_TRAINER))
    for name, words, trainer in trainers:
        train = f"nnUNetv2_train {dataset} 2d 0 -tr {trainer} {model}"
        steps.append(Step(f"train_{name}", f"Training {words}", (*train.split(),), EPOCHS))
    for name, words, trainer in trainers:
        folders = ("-i", str(files.images), "-o", str(files.prediction(name)))
        predict = f"-d {dataset} -c 2d -f 0 -tr {trainer} {model} -npp 1 -nps 1"
        arguments = ("nnUNetv2_predict", *folders, *predict.split())
        steps.append(Step(f"predict_{name}", f"Predicting the test cases with {words}", arguments))
    inputs = ("-i", str(files.labels), "-djfile", str(files.dataset_json), "-o", str(files.experts))
    arguments = ("nnUNetv2_deferral_simulate_experts", *inputs, *panel.split())
    return [*steps, Step("simulate_experts", "Simulating the experts on the test cases", arguments)]


def demo_environment(out: Path) -> dict[str, str]:
    """The environment of the commands: nnU-Net folders inside `out`, our trainers, few processes."""
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
        # nnU-Net trains with as many threads as there are cores. Threads that spin while they wait slow a busy machine
        # down tenfold with networks as small as these.
        "OMP_WAIT_POLICY": "passive",
    }


def run_step(step: Step, *, logs: Path, environment: Mapping[str, str]) -> None:
    """Run a command, its output into `logs/<log_name>.log`, with a line or a bar of progress on the terminal.

    Raises:
        StepError: If it fails; the message has the last lines of its log.
    """
    log = logs / f"{step.log_name}.log"
    command = [find_script(step.arguments[0]), *step.arguments[1:]]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(environment))
        try:
            with _progress(step) as bar:
                while process.poll() is None:
                    time.sleep(0.3)
                    _show(bar, _epochs_begun(log, step))
                _show(bar, step.epochs if process.returncode == 0 else 0)
        finally:
            _end(process)
    if process.returncode:
        last = "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-_NUM_LAST_LINES:])
        raise StepError(
            f"{step.title} failed ({step.arguments[0]}, exit code {process.returncode}):\n{last}\nAll of it is in {log}"
        )


def run_demo(out: Path, *, device: str, overwrite: bool = False) -> DemoFiles:
    """Generate data, train, predict, simulate experts and write the report into `out`.

    Args:
        out: The output folder.
        device: `"cpu"` or `"cuda"`.
        overwrite: Replace an earlier demo in `out`.

    Returns:
        Where everything lies; `report` is the page.

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
    write_report(files, steps=[(step.title, step.arguments) for step in steps], epochs=EPOCHS)
    return files


@contextmanager
def _progress(step: Step) -> Iterator[tqdm]:
    with tqdm(total=step.epochs, unit="epoch", disable=not step.epochs, leave=False) as bar:
        yield bar


def _show(bar: tqdm, epochs: int) -> None:
    if epochs > bar.n:
        bar.update(epochs - bar.n)
    elif sys.stderr.isatty():
        bar.refresh()  # the clock at least


def _epochs_begun(log: Path, step: Step) -> int:
    """The number of the epoch that runs, as the log has it; 0 before the first."""
    begun = _EPOCH.findall(log.read_bytes()) if step.epochs else []
    return int(begun[-1]) if begun else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """See that a command is over; one that was interrupted with us gets the time to end its own workers."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
