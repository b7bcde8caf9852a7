"""One training of one fold as a task: it looks how far the fold is, and does what is left through nnUNetv2_train.

A task can be started as often as one likes. What is done is not done again; an interrupted training goes on from its
last whole checkpoint (`--c`), and where only the validation is missing, only that is run (`--val`). A checkpoint that
is cut short is set aside as `<name>.broken`. The training runs in a process group of its own, which ends with the task;
should the task be killed without a chance to end it (SIGKILL), it trains on, and holds a lock by which a task started
again knows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nnunetv2_deferral.benchmark.state import FINAL, FoldState, Stage, fold_state
from nnunetv2_deferral.benchmark.trainers import is_deferral_trainer, is_frozen, trainers_path
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import find_script
from nnunetv2_deferral.nnunet.experiment import Experiment, Method

if sys.platform != "win32":
    import fcntl

_NUM_LAST_LINES = 15
_SECONDS_TO_END = 10


class TrainingError(RuntimeError):
    """A training failed; the message says which, and shows the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of a fold; goes to other machines by pickle.

    Attributes:
        experiment: What is trained on.
        method: What is trained.
        fold: The fold.
        cases: Its validation cases.
        device: As nnUNetv2_train takes it.
        logs: Folder of the log.
        pretrained: The checkpoint that a frozen trainer starts from, or None.
    """

    experiment: Experiment
    method: Method
    fold: int
    cases: tuple[str, ...]
    device: str
    logs: Path
    pretrained: Path | None = None

    def __str__(self) -> str:
        return f"{self.method}, fold {self.fold}"

    @property
    def log(self) -> Path:
        """What nnUNetv2_train prints; a task started again appends."""
        name = f"{self.method.trainer}__{self.method.plans}__{self.experiment.configuration}__fold_{self.fold}.log"
        return self.logs / self.experiment.dataset / name

    @property
    def folder(self) -> Path:
        """Where the training goes."""
        return self.experiment.fold(self.method, self.fold)

    def state(self) -> FoldState:
        """How far it is."""
        return fold_state(self.folder, self.cases, self.experiment.file_ending)

    def __call__(self, watch: Callable[[], None] = lambda: None) -> None:
        """Do what is left to do.

        Args:
            watch: Called about once a second while it runs.

        Raises:
            TrainingError: If nnUNetv2_train fails or ends without a complete validation, or if this fold is being
                trained already.
        """
        with self._alone() as lock:
            state = self.state()
            if state.stage is Stage.DONE:
                return
            for file in state.broken:
                file.replace(file.with_name(f"{file.name}.broken"))
            self._run(self.command(state.stage), lock, watch)
            if (state := self.state()).stage is not Stage.DONE:
                raise TrainingError(f"{self}: nnUNetv2_train ended without an error, but {state.problem}")

    def command(self, stage: Stage) -> list[str]:
        """The command line for what is left to do.

        Raises:
            TrainingError: If nnUNetv2_train is not installed, or the network to start from is missing.
        """
        words = [find_script("nnUNetv2_train"), self.experiment.dataset, self.experiment.configuration, str(self.fold)]
        words += ["-tr", self.method.trainer, "-p", self.method.plans, "-device", self.device]
        if stage is Stage.RESUME:
            return [*words, "--c"]
        if stage is Stage.VALIDATE:
            return [*words, "--val"]
        if self.pretrained is None:
            return words
        if not self.pretrained.is_file():
            raise TrainingError(f"{self} starts from {self.pretrained}, which is missing")
        return [*words, "-pretrained_weights", str(self.pretrained)]

    def _run(self, command: Sequence[str], lock: IO[bytes] | None, watch: Callable[[], None]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            output.write(f"\n$ {' '.join(command)}\n".encode())
            output.flush()
            inherited: dict[str, Any] = {} if lock is None else {"pass_fds": (lock.fileno(),)}
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True, **inherited
            )
            try:
                while process.poll() is None:
                    watch()
                    time.sleep(0.5)
            finally:
                end_group(process)
        if process.returncode:
            raise TrainingError(
                f"{self}: nnUNetv2_train failed with exit code {process.returncode}:\n{last_lines(self.log)}\n"
                f"All of it is in {self.log}"
            )

    @contextmanager
    def _alone(self) -> Iterator[IO[bytes] | None]:
        """Hold the fold's lock, which a training inherits and so holds as long as it lives."""
        if sys.platform == "win32":
            yield None
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder.parent / f".benchmark_fold_{self.fold}.lock"
        with file.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TrainingError(
                    f"{self} is being trained already by another process ({file} is locked; a training outlives a "
                    f"benchmark that was killed). Wait for it or end it, and start again"
                ) from error
            yield lock


def trainings_of(
    experiment: Experiment,
    methods: Sequence[Method],
    *,
    device: str,
    logs: Path,
) -> list[Training]:
    """All trainings of an experiment, every method's folds in their order.

    A frozen trainer starts from the network of the first method that is a stock trainer.

    Raises:
        InputError: For an unknown trainer, and a frozen one without any stock trainer.
    """
    cases = experiment.cases()
    stock = next((method for method in methods if not is_deferral_trainer(method.trainer)), None)
    trainings = []
    for method in methods:
        frozen = is_frozen(method.trainer)
        if frozen and stock is None:
            raise InputError(
                f"{method.trainer} starts from the network of a stock trainer: name one too (-tr nnUNetTrainer ...)"
            )
        source = stock if frozen else None
        trainings += [
            Training(
                experiment=experiment,
                method=method,
                fold=fold,
                cases=tuple(cases[fold]),
                device=device,
                logs=logs,
                pretrained=None if source is None else experiment.fold(source, fold) / FINAL,
            )
            for fold in experiment.folds
        ]
    return trainings


def environment() -> dict[str, str]:
    """The environment of nnU-Net's commands: this one's, our trainers, output as it is printed."""
    return {**os.environ, "nnUNet_extTrainer": trainers_path(), "PYTHONUNBUFFERED": "1"}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """See that a process and all that it started are over."""
    for sign in ("SIGTERM", "SIGKILL"):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, getattr(signal, sign))
        except (AttributeError, ProcessLookupError):  # Windows, or over by now
            process.kill()
        try:
            process.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue


def last_lines(log: Path) -> str:
    """The end of a log, indented."""
    return "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-_NUM_LAST_LINES:])
