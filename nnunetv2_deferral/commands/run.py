"""`nnUNetv2_deferral_run`: predict, evaluate and list an archive, in parts that run as jobs.

The same call can be repeated at any time: jobs that have ended well are not run again, and a prediction goes on with
its missing cases.
"""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from nnunetv2_deferral.benchmark.cluster import ClusterExecutor, parse_parameters
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.decision.limits import Limits, minutes_of_environment, refuse_minutes
from nnunetv2_deferral.errors import InputError, refusals_named
from nnunetv2_deferral.jobs.engine import MANIFEST, Executor, LocalExecutor, run_plan
from nnunetv2_deferral.jobs.job import JobError
from nnunetv2_deferral.jobs.steps import PREDICT, STEPS, Plan, refuse
from nnunetv2_deferral.processes import ended_by_signals


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with code 2 on invalid input, 1 if jobs failed, 130 if interrupted."""
    parser = parsers.run()
    given = parser.parse_args(arguments)
    try:
        plan = Plan(
            images=given.i.resolve(),
            output=given.o.resolve(),
            steps=tuple(given.steps),
            num_parts=given.num_parts,
            options={step: _words(step, getattr(given, step)) for step in STEPS},
        )
        _check(plan)
        if given.jobs < 1:
            raise InputError(f"at least one job must run at once (-jobs), got {given.jobs}")
        execute: Executor = LocalExecutor(given.jobs)
        if given.executor != "local":
            parameters = {"name": "nnunet_deferral"} | parse_parameters(given.job)
            execute = ClusterExecutor(
                plan.output / "jobs", cluster=given.executor.removeprefix("submitit_"), parameters=parameters
            )
        with ended_by_signals(), refusals_named(plan.output, "written to"):
            manifest = run_plan(plan, execute)
    except InputError as error:
        parser.error(str(error))
    except JobError as error:
        sys.exit(f"{parser.prog}: {error}\nRepeat the same call to go on with what is missing.")
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; repeat the same call to go on", file=sys.stderr)
        sys.exit(130)
    ran = sum(job["attempts"] > 0 for job in manifest["jobs"].values())
    print(f"{len(manifest['jobs'])} jobs done, {ran} of them now: {', '.join(manifest['steps'])}")
    print(f"  {plan.output / MANIFEST}")


def _check(plan: Plan) -> None:
    """Refuse what would fail in every job.

    Raises:
        InputError: If options are missing or wrong, there are no images, or the model does not exist.
    """
    for step in plan.steps:
        if step == PREDICT:
            refuse_minutes(Limits(minutes=minutes_of_environment()))  # parts do not know of each other
            plan.jobs(step)
            continue
        parser: ArgumentParser = getattr(parsers, step)()
        parser.error = refuse  # type: ignore[method-assign]
        try:
            parser.parse_args(["-i", str(plan.predictions), "-o", str(plan.output), *plan.options[step]])
        except InputError as error:
            raise InputError(f"options for {step}: {error}") from error


def _words(step: str, given: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(given))
    except ValueError as error:
        raise InputError(f"options for {step} cannot be read: {error}: {given}") from error
