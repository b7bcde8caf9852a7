"""Tasks as jobs of a SLURM cluster (or, for testing, local jobs) through submitit, an optional dependency."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nnunetv2_deferral.errors import InputError

# submitit's own default is five minutes.
_TIMEOUT_MIN = 2 * 24 * 60
_SECONDS_BETWEEN_LOOKS = 1.0


Task = TypeVar("Task", bound=Callable[[], None])


class Requeued:
    """A task that submitit resubmits, and which then goes on, when its job is preempted or times out."""

    def __init__(self, task: Callable[[], None]) -> None:
        self.task = task

    def __call__(self) -> None:
        """Do the task."""
        self.task()

    def checkpoint(self) -> Any:
        """The job that submitit submits as a replacement."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class ClusterExecutor:
    """Submits tasks as an array of jobs and waits for them. An interruption cancels all submitted jobs.

    Args:
        logs: A folder shared by this machine and those of the jobs, for submitit's files.
        cluster: `"slurm"` or `"local"`.
        parameters: Parameters of submitit's `update_parameters`, such as `slurm_partition`, `gpus_per_node`,
            `cpus_per_task`, `mem_gb`, `timeout_min` (default: two days).

    Raises:
        InputError: If submitit is not installed, SLURM is not available, or a parameter is unknown.
    """

    def __init__(self, logs: Path, *, cluster: str = "slurm", parameters: Mapping[str, Any] | None = None) -> None:
        try:
            import submitit
        except ImportError as error:
            raise InputError(
                f"-executor {cluster} requires submitit, which is not installed: pip install nnunetv2-deferral[slurm]"
            ) from error
        try:
            self._executor = submitit.AutoExecutor(folder=logs / "submitit", cluster=cluster)
            self._executor.update_parameters(
                **({"name": "nnunet_benchmark", "timeout_min": _TIMEOUT_MIN} | dict(parameters or {}))
            )
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"submitit refuses -executor {cluster}: {error}") from error

    def __call__(self, tasks: Sequence[Task], watch: Callable[[], None]) -> dict[Task, str]:
        """Submit all tasks, wait for them and return the failures."""
        with self._executor.batch():
            jobs = {task: self._executor.submit(Requeued(task)) for task in tasks}
        try:
            while not all(job.done() for job in jobs.values()):
                watch()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            for job in jobs.values():
                job.cancel()
            raise
        found = {task: job.exception() for task, job in jobs.items()}
        return {
            task: f"{task} (job {jobs[task].job_id}): {_last_of(str(error))}"
            for task, error in found.items()
            if error is not None
        }


def parse_parameters(given: Sequence[str]) -> dict[str, Any]:
    """Convert `["slurm_partition=gpu", "mem_gb=32"]` to a dictionary; digits become integers.

    Raises:
        InputError: If an item is not of the form KEY=VALUE.
    """
    parameters: dict[str, Any] = {}
    for pair in given:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise InputError(f"parameters of jobs must be given as KEY=VALUE, got {pair!r}")
        parameters[key] = int(value) if value.isdigit() else value
    return parameters


def _last_of(message: str, lines: int = 25) -> str:
    """The last lines of a message; errors of submitit contain the whole traceback of the job."""
    return "\n".join(message.strip().splitlines()[-lines:])
