"""The training of one fold as a task: determines the state of the fold and completes it with nnUNetv2_train.

A task can be started repeatedly. Completed work is not repeated; an interrupted training resumes from its last intact
checkpoint (`--c`), and if only the validation is missing, only that is run (`--val`). Truncated checkpoints are renamed
to `<name>.broken`. The training runs in its own process group, which is ended with the task. If the task is killed
without a chance to do so (SIGKILL), the training continues and holds a lock that a restarted task detects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nnunetv2_deferral.benchmark.state import FINAL, FoldState, Stage, fold_state
from nnunetv2_deferral.benchmark.trainers import environment, is_deferral_trainer, is_frozen, learns_agreement
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import find_script
from nnunetv2_deferral.logged_commands import inherited_lock, run_logged
from nnunetv2_deferral.nnunet.experiment import Experiment, Method


class TrainingError(RuntimeError):
    """A training failed; the message names it and contains the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of a fold; pickled for execution on other machines.

    Attributes:
        experiment: Dataset, configuration and folds.
        method: Trainer and plans.
        fold: The fold.
        cases: Its validation cases.
        device: The device, as in nnUNetv2_train.
        logs: Folder of the log.
        pretrained: The checkpoint that a frozen trainer starts from, or None.
        npz: Whether its validation saves probabilities.
    """

    experiment: Experiment
    method: Method
    fold: int
    cases: tuple[str, ...]
    device: str
    logs: Path
    pretrained: Path | None = None
    npz: bool = False

    def __str__(self) -> str:
        return f"{self.method}, fold {self.fold}"

    @property
    def log(self) -> Path:
        """The log of nnUNetv2_train's output; a restarted task appends to it."""
        name = f"{self.method.trainer}__{self.method.plans}__{self.experiment.configuration}__fold_{self.fold}.log"
        return self.logs / self.experiment.dataset / name

    @property
    def folder(self) -> Path:
        """The folder of the fold."""
        return self.experiment.fold(self.method, self.fold)

    def state(self) -> FoldState:
        """The state of the fold."""
        return fold_state(self.folder, self.cases, self.experiment.file_ending)

    def __call__(self, watch: Callable[[], None] = lambda: None) -> None:
        """Complete the fold.

        Args:
            watch: Called a few times a second while the training runs.

        Raises:
            TrainingError: If nnUNetv2_train fails or ends without a complete validation, or another process is training
                this fold.
        """
        with self._alone() as lock:
            state = self.state()
            if state.stage is Stage.DONE:
                return
            for file in state.broken:
                file.replace(file.with_name(f"{file.name}.broken"))
            failure = run_logged(self.command(state.stage), self.log, environment=environment(), lock=lock, watch=watch)
            if failure:
                raise TrainingError(f"{self}: nnUNetv2_train {failure}")
            if (state := self.state()).stage is not Stage.DONE:
                raise TrainingError(f"{self}: nnUNetv2_train ended without an error, but {state.problem}")

    def command(self, stage: Stage) -> list[str]:
        """The command line for the next step.

        Raises:
            InputError: If nnUNetv2_train is not installed.
            TrainingError: If the network to start from is missing.
        """
        words = [find_script("nnUNetv2_train"), self.experiment.dataset, self.experiment.configuration, str(self.fold)]
        words += ["-tr", self.method.trainer, "-p", self.method.plans, "-device", self.device]
        if self.npz:
            words.append("--npz")
        if stage is Stage.RESUME:
            return [*words, "--c"]
        if stage is Stage.VALIDATE:
            return [*words, "--val"]
        if self.pretrained is None:
            return words
        if not self.pretrained.is_file():
            raise TrainingError(f"{self} starts from {self.pretrained}, which is missing")
        return [*words, "-pretrained_weights", str(self.pretrained)]

    @contextmanager
    def _alone(self) -> Iterator[IO[bytes] | None]:
        """Hold the fold's lock, which the training process inherits and holds until it ends."""
        file = self.folder.parent / f".benchmark_fold_{self.fold}.lock"
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(inherited_lock(file))
            except BlockingIOError as error:
                raise TrainingError(
                    f"{self} is already being trained by another process ({file} is locked; a training continues when "
                    f"its benchmark is killed). Wait for it or end it, and start again"
                ) from error
            except OSError as error:
                raise TrainingError(f"{self} cannot be trained: {error}") from error
            yield lock


def trainings_of(
    experiment: Experiment,
    methods: Sequence[Method],
    *,
    device: str,
    logs: Path,
    npz: bool = False,
) -> list[Training]:
    """All trainings of an experiment, by method and fold.

    A frozen trainer starts from the network of the first stock trainer among the methods, with _MR from that of the
    first nnUNetTrainerMultiRater.

    Raises:
        InputError: If a trainer is unknown, or there is a frozen trainer but none with a network to start from.
    """
    cases = experiment.cases()
    networks = {learns_agreement(each.trainer): each for each in methods[::-1] if not is_deferral_trainer(each.trainer)}
    trainings = []
    for method in methods:
        frozen, with_raters = is_frozen(method.trainer), learns_agreement(method.trainer)
        source = networks.get(with_raters) if frozen else None
        if frozen and source is None:
            needed = "nnUNetTrainerMultiRater" if with_raters else "nnUNetTrainer"
            whose = needed if with_raters else "a stock trainer"
            raise InputError(f"{method.trainer} starts from the network of {whose}: add one (-tr {needed} ...)")
        trainings += [
            Training(
                experiment=experiment,
                method=method,
                fold=fold,
                cases=tuple(cases[fold]),
                device=device,
                logs=logs,
                pretrained=None if source is None else experiment.fold(source, fold) / FINAL,
                npz=npz,
            )
            for fold in experiment.folds
        ]
    return trainings
