"""Running trainings one after the other locally, or as jobs of a cluster, with a progress bar over all epochs.

A failed training does not stop the others; all failures are reported at the end. An interruption (Ctrl-C, SIGTERM)
ends running trainings and raises KeyboardInterrupt; repeating the call resumes.
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
from nnunetv2_deferral.errors import InputError

_EPOCH = re.compile(rb"(?:^|\s)Epoch (\d+)\s*$", re.MULTILINE)
_TRAINED = b"Training done."


class Executor(Protocol):
    """Runs independent trainings."""

    def __call__(self, trainings: Sequence[Training], watch: Callable[[], None], /) -> dict[Training, str]:
        """Run all trainings and return the failures; must call `watch` about once a second."""


def run_here(trainings: Sequence[Training], watch: Callable[[], None]) -> dict[Training, str]:
    """Run trainings one after the other on this machine."""
    failures = {}
    for training in trainings:
        try:
            training(watch)
        except TrainingError as error:
            failures[training] = str(error)
        except InputError as error:  # a file of this training, which need not concern the others
            failures[training] = f"{training}: {error}"
        watch()
    return failures


def run_trainings(trainings: Sequence[Training], execute: Executor = run_here) -> None:
    """Run all trainings that are not done.

    Trainings that start from another training's network are run last.

    Args:
        trainings: All trainings, including completed ones.
        execute: Runs the trainings.

    Raises:
        TrainingError: Listing all failures, after all other trainings are done.
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
    """The progress of a training, read from its log."""

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
        """Read the log if it has grown."""
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
    """A progress bar over the epochs of all trainings, including completed ones, read from their logs."""

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
        # In a log file every update is a separate line.
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
        """The number of completed epochs."""
        return sum(watched.epochs for watched in self._watched)

    @property
    def total(self) -> int:
        """The number of epochs of all trainings, as far as known."""
        return sum(watched.total for watched in self._watched)

    def watch(self) -> None:
        """Update the progress of all trainings."""
        for watched in self._watched:
            watched.look()
        if self._bar is None:
            return
        self._bar.total = self.total
        self._bar.update(self.epochs - self._bar.n)
        now = next((w for w in self._watched if not w.done and w.size > 0 and w.epochs < w.total), None)
        self._bar.set_postfix_str("" if now is None else str(now.training), refresh=False)


def _planned_epochs(debug: Path) -> int | None:
    """The number of epochs of a training according to nnU-Net's debug.json."""
    try:
        content: Any = json.loads(debug.read_text())
        return int(content["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # not written, or incomplete
