"""Runs the jobs of a plan and repeats what failed; a repeated call does only what is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from tqdm import tqdm

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.jobs.job import Job, JobError
from nnunetv2_deferral.jobs.steps import Plan

MANIFEST = "run.json"
ATTEMPTS = 3
_SECONDS_BETWEEN_LOOKS = 0.5


class Executor(Protocol):
    """Runs independent jobs."""

    def __call__(self, jobs: Sequence[Job], watch: Callable[[], None], /) -> dict[Job, str]:
        """Run all jobs and return the failures; must call `watch` about once a second."""


class LocalExecutor:
    """Runs jobs as processes of this machine. An interruption ends all of them.

    Args:
        at_once: The number of jobs that run at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once

    def __call__(self, jobs: Sequence[Job], watch: Callable[[], None]) -> dict[Job, str]:
        """Run all jobs and return the failures."""
        ended = threading.Event()

        def unless_ended() -> None:
            if ended.is_set():
                raise KeyboardInterrupt

        def run(job: Job) -> str | None:
            try:
                unless_ended()
                job(unless_ended)
            except (JobError, OSError) as error:
                return str(error)
            return None

        with ThreadPoolExecutor(self._at_once) as pool:
            running = {job: pool.submit(run, job) for job in jobs}
            try:
                while not all(future.done() for future in running.values()):
                    watch()
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            except BaseException:
                ended.set()
                raise
        found = {job: future.result() for job, future in running.items()}
        return {job: problem for job, problem in found.items() if problem is not None}


def run_plan(plan: Plan, execute: Executor) -> dict[str, Any]:
    """Run all steps of a plan.

    Args:
        plan: The plan, which was checked.
        execute: Runs the jobs.

    Returns:
        The content of run.json in the output folder, which is written after every attempt: `steps`, `num_parts`,
        `versions`, `complete`, and under `jobs` by name the `state` (`"done"`, `"failed"`), `words`, the number of
        `attempts` in this call, `begun`, `seconds`, `log` and the `problem` of the last attempt that failed, also if a
        later one ended well.

    Raises:
        JobError: Listing the jobs of a step that failed three times; later steps are not begun.
        InputError: If the run.json that is there is of other images, whose predictions would count as those of these.
    """
    file = plan.output / MANIFEST
    images = read_json(file).get("images") if file.is_file() else str(plan.images)
    if images != str(plan.images):
        raise InputError(
            f"{file} is of the images {images}, not {plan.images}; choose another output folder (-o) or, if the "
            "images were moved there, delete this file"
        )
    manifest: dict[str, Any] = {
        "steps": list(plan.steps),
        "num_parts": plan.num_parts,
        "images": str(plan.images),
        "versions": versions(),
        "complete": False,
        "jobs": {},
    }
    write_json(manifest, file)
    for step in plan.steps:
        plan.clear(step)
        for group in plan.jobs(step):
            _run_group(group, execute, manifest, plan)
    manifest["complete"] = True
    write_json(manifest, file)
    return manifest


def _run_group(jobs: Sequence[Job], execute: Executor, manifest: dict[str, Any], plan: Plan) -> None:
    failures: dict[Job, str] = {}
    problems: dict[Job, str] = {}  # also of those that ended well later
    attempts = dict.fromkeys(jobs, 0)

    def enter() -> None:
        for job in jobs:
            record = job.record()
            manifest["jobs"][str(job)] = {
                "state": "done" if record else "failed" if job in failures else "open",
                "words": list(job.words),
                "attempts": attempts[job],
                "begun": record and record["begun"],
                "seconds": record and record["seconds"],
                "log": str(job.log.relative_to(plan.output)),
                "problem": problems.get(job),
            }
        write_json(manifest, plan.output / MANIFEST)

    missing = [job for job in jobs if job.record() is None]
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc=jobs[0].step, unit="job") as bar:

        def watch() -> None:
            if more := sum(job.record_file.is_file() for job in jobs) - bar.n:
                bar.update(more)

        for job in missing:
            job.record_file.unlink(missing_ok=True)
        while missing and max(attempts[job] for job in missing) < ATTEMPTS:
            for job in missing:
                attempts[job] += 1
            failures = execute(missing, watch)
            problems |= failures
            missing = list(failures)
            watch()
            enter()
    enter()
    if failures:
        raise JobError(f"{len(failures)} of {len(jobs)} jobs failed\n" + "\n".join(failures.values()))
