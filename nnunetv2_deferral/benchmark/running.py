"""Running trainings: one after the other here, or as jobs of a cluster, with one bar over the epochs of all.

A training that fails does not stop the others; all failures are told at the end. An interruption (Ctrl-C, SIGTERM)
ends what runs and raises KeyboardInterrupt; the same call again goes on from there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tqdm import tqdm

from nnunetv2_deferral.benchmark.state import Stage
from nnunetv2_deferral.benchmark.trainers import expected_epochs
from nnunetv2_deferral.benchmark.training import Training, TrainingError

_EPOCH = re.compile(rb"(?:^|\s)Epoch (\d+)\s*$", re.MULTILINE)
_TRAINED = b"Training done."


class Executor(Protocol):
    """Whatever runs trainings that do not depend on each other."""

    def __call__(self, trainings: Sequence[Training], watch: Callable[[], None]) -> dict[Training, str]:
        """Run them all and return the failures; `watch` is to be called about once a second."""


def run_here(trainings: Sequence[Training], watch: Callable[[], None]) -> dict[Training, str]:
    """Run trainings one after the other on this machine."""
    failures = {}
    for training in trainings:
        try:
            training(watch)
        except TrainingError as error:
            failures[training] = str(error)
        watch()
    return failures


def run_trainings(trainings: Sequence[Training], execute: Executor = run_here) -> None:
    """Run what is missing.

    Trainings that start from another's network are run after all others.

    Args:
        trainings: All trainings, those that are done too.
        execute: Where to run them.

    Raises:
        TrainingError: Naming all that failed, once everything else is done.
    """
    failures: dict[Training, str] = {}
    with Progress(trainings) as progress:
        missing = [training for training in trainings if training.state().stage is not Stage.DONE]
        for wave in ([t for t in missing if t.pretrained is None], [t for t in missing if t.pretrained is not None]):
            if wave:
                failures |= execute(wave, progress.watch)
    if failures:
        raise TrainingError(f"{len(failures)} of {len(trainings)} trainings failed\n" + "\n".join(failures.values()))


@dataclass
class _Watched:
    """What is known of a training that is looked at from outside."""

    training: Training
    total: int
    epochs: int = 0
    done: bool = False
    size: int = -1
    start: int = 0
    debug: Path = field(init=False)

    def __post_init__(self) -> None:
        self.debug = self.training.folder / "debug.json"
        self.start = self.training.log.stat().st_size if self.training.log.is_file() else 0

    def look(self) -> None:
        """Read the log, where it has grown."""
        log = self.training.log
        if self.done or not log.is_file() or (size := log.stat().st_size) == self.size or size <= self.start:
            return
        self.size = size
        self.total = _planned_epochs(self.debug) or self.total
        with log.open("rb") as file:
            file.seek(self.start)
            text = file.read()
        begun = _EPOCH.findall(text)
        self.epochs = max(self.epochs, int(begun[-1]) if begun else 0)
        if _TRAINED in text:
            self.epochs = self.total


class Progress:
    """A bar over the epochs of all trainings, done ones included; it reads their logs."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        self._watched = []
        for training in trainings:
            watched = _Watched(training, total=expected_epochs(training.method.trainer))
            watched.total = _planned_epochs(watched.debug) or watched.total
            watched.done = training.state().stage is Stage.DONE
            watched.epochs = watched.total if watched.done else 0
            self._watched.append(watched)
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        # In a log file every update is a line of its own.
        seconds = 0.1 if sys.stderr.isatty() else 60.0
        self._bar = tqdm(total=self.total, initial=self.epochs, desc="Training", unit="epoch", mininterval=seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watch()
        if self._bar is not None:
            self._bar.close()

    @property
    def epochs(self) -> int:
        """The epochs done."""
        return sum(watched.epochs for watched in self._watched)

    @property
    def total(self) -> int:
        """The epochs of all trainings, as far as is known."""
        return sum(watched.total for watched in self._watched)

    def watch(self) -> None:
        """Look how far all are."""
        for watched in self._watched:
            watched.look()
        if self._bar is None:
            return
        self._bar.total = self.total
        self._bar.update(self.epochs - self._bar.n)
        now = next((w for w in self._watched if not w.done and w.size > 0 and w.epochs < w.total), None)
        self._bar.set_postfix_str("" if now is None else str(now.training), refresh=False)


def _planned_epochs(debug: Path) -> int | None:
    """The number of epochs that a training in progress has set itself, as nnU-Net's debug.json has it."""
    try:
        content: Any = json.loads(debug.read_text())
        return int(content["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not written yet, or being written
