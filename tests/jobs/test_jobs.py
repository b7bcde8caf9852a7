"""Jobs of a plan: what is run, what is repeated, and what is left when something is killed."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from waiting import wait_for

from nnunetv2_deferral.benchmark.cluster import ClusterExecutor
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.jobs.engine import ATTEMPTS, MANIFEST, LocalExecutor, run_plan
from nnunetv2_deferral.jobs.job import Job, JobError

WRITES = "from pathlib import Path; f = Path({file!r}); f.write_text(f.read_text() + 'x' if f.exists() else 'x')"


def job(folder, code, *, number=0, of=1, step="evaluate", outputs=(), reads=""):
    words = (sys.executable, "-S", "-c", code)
    return Job(step=step, number=number, of=of, words=words, folder=folder / "jobs", outputs=outputs, reads=reads)


def writes(folder, name, **how):
    """A job that writes an x to a file each time that it runs."""
    file = folder / name
    return job(folder, WRITES.format(file=str(file)), outputs=(file,), **how)


class MadeUpPlan:
    """Two parts and what puts them together."""

    steps, num_parts, images = ("evaluate",), 2, Path("images")

    def __init__(self, output, *groups):
        self.output, self.groups = output, groups

    def jobs(self, step):
        return [list(group) for group in self.groups]

    def clear(self, step):
        pass


def run(plan, at_once=2):
    return run_plan(plan, LocalExecutor(at_once))


@pytest.fixture
def plan(tmp_path):
    parts = [writes(tmp_path, f"part{number}", number=number, of=2) for number in range(2)]
    return MadeUpPlan(tmp_path, parts, [writes(tmp_path, "whole", step="evaluate_merge")])


def content(folder):
    return {name: (folder / name).read_text() for name in ("part0", "part1", "whole")}


def test_each_job_runs_once_however_often_the_call_is_repeated(plan, tmp_path):
    manifest = run(plan)
    assert content(tmp_path) == {"part0": "x", "part1": "x", "whole": "x"}
    assert manifest["complete"]
    assert [each["attempts"] for each in manifest["jobs"].values()] == [1, 1, 1]
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest
    again = run(plan)
    assert content(tmp_path) == {"part0": "x", "part1": "x", "whole": "x"}
    assert [(each["state"], each["attempts"]) for each in again["jobs"].values()] == [("done", 0)] * 3


def test_a_job_whose_output_is_gone_runs_again(plan, tmp_path):
    run(plan)
    (tmp_path / "part1").unlink()
    manifest = run(plan)
    assert content(tmp_path) == {"part0": "x", "part1": "x", "whole": "x"}
    assert [each["attempts"] for each in manifest["jobs"].values()] == [0, 1, 0]


@pytest.mark.parametrize("complete", [True, False])
def test_other_images_are_refused_since_their_predictions_would_be_there_already(plan, tmp_path, monkeypatch, complete):
    if complete:
        run(plan)
    else:
        monkeypatch.setattr(plan, "jobs", pytest.fail)  # as if it was killed with its first job
        with pytest.raises(pytest.fail.Exception):
            run(plan)
    monkeypatch.setattr(plan, "images", Path("others"))
    with pytest.raises(InputError, match=r"run.json is of the images images, not others; choose another output"):
        run(plan)


@pytest.mark.parametrize("change", ["words", "reads", "damaged"])
def test_a_record_of_something_else_counts_as_none(tmp_path, change):
    first = writes(tmp_path, "file", reads="one")
    first()
    assert first.record()["words"] == list(first.words)
    if change == "damaged":
        first.record_file.write_text("{")
    other = {"words": ("echo",)} if change == "words" else {"reads": "two"} if change == "reads" else {}
    assert Job(**vars(first) | other).record() is None


def test_what_fails_is_tried_three_times_and_the_rest_is_done(tmp_path):
    wrong = job(tmp_path, "print('the reason'); raise SystemExit(3)", number=1, of=2)
    plan = MadeUpPlan(tmp_path, [writes(tmp_path, "part0", of=2), wrong], [writes(tmp_path, "whole")])
    with pytest.raises(
        JobError, match=r"1 of 2 jobs failed\nevaluate 1 of 2 failed with exit code 3:\n(.*\n)*.*reason"
    ):
        run(plan)
    assert (tmp_path / "part0").read_text() == "x"
    assert not (tmp_path / "whole").exists()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert not manifest["complete"]
    assert manifest["jobs"]["evaluate 0 of 2"]["state"] == "done"
    failed = manifest["jobs"]["evaluate 1 of 2"]
    assert (failed["state"], failed["attempts"]) == ("failed", ATTEMPTS)
    assert "the reason" in failed["problem"]
    assert (tmp_path / failed["log"]).read_text().count("\nthe reason\n") == ATTEMPTS


def test_a_job_that_is_killed_is_repeated(tmp_path):
    """It kills itself the first time."""
    file = tmp_path / "file"
    kill = f"import os, signal; os.kill(os.getpid(), signal.SIGKILL) if Path({str(file)!r}).read_text() == 'x' else 0"
    plan = MadeUpPlan(tmp_path, [job(tmp_path, f"{WRITES.format(file=str(file))}; {kill}", outputs=(file,))])
    manifest = run(plan)
    assert file.read_text() == "xx"
    entry = manifest["jobs"]["evaluate"]
    assert (entry["state"], entry["attempts"]) == ("done", 2)
    assert "evaluate failed with exit code -9" in entry["problem"]


def test_children_of_a_job_that_is_killed_alone_do_not_keep_it_from_being_repeated(tmp_path):
    """They have inherited its lock, and wait for it."""
    file = tmp_path / "file"
    code = f"""
import os, signal, time
{WRITES.format(file=str(file))}
if f.read_text() == "x":
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
"""
    manifest = run(MadeUpPlan(tmp_path, [job(tmp_path, code, outputs=(file,))]))
    assert file.read_text() == "xx"
    assert manifest["jobs"]["evaluate"]["attempts"] == 2


def test_children_do_not_keep_the_next_run_from_repeating_a_job_that_was_killed_with_its_engine(tmp_path):
    file, child = tmp_path / "file", tmp_path / "child"
    code = f"""
import os, time
{WRITES.format(file=str(file))}
if f.read_text() == "x":
    if not os.fork():
        Path({str(child)!r}).write_text(f"{{os.getppid()}}")
    time.sleep(600)
"""
    plan = MadeUpPlan(tmp_path, [job(tmp_path, code, outputs=(file,))])
    engine = multiprocessing.get_context("fork").Process(target=run, args=(plan,))
    engine.start()
    wait_for(lambda: child.exists() and child.read_text())
    os.kill(engine.pid, signal.SIGKILL)
    engine.join()
    os.kill(int(child.read_text()), signal.SIGKILL)
    run(plan)
    assert file.read_text() == "xx"


def test_a_job_that_ends_without_its_outputs_has_failed(tmp_path):
    plan = MadeUpPlan(tmp_path, [job(tmp_path, "0", outputs=(tmp_path / "mask",))])
    with pytest.raises(JobError, match="evaluate ended without an error, but .*mask does not exist"):
        run(plan)


def test_a_command_that_cannot_be_started_is_a_failure(tmp_path):
    wrong = Job(step="predict", number=0, of=1, words=(str(tmp_path / "none"),), folder=tmp_path)
    with pytest.raises(JobError, match=r"No such file or directory: .*none"):
        run(MadeUpPlan(tmp_path, [wrong]))


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_after_the_whole_was_killed_a_running_job_is_waited_for_and_then_repeated(tmp_path, sign):
    """SIGKILL leaves the command running, which would work in the same folder; an interruption ends it."""
    code = (
        "import time; from pathlib import Path; f = Path({!r}); begun = f.with_name('begun');"
        "first = not begun.exists(); begun.touch(); time.sleep(1.5 if first else 0);"
        "f.write_text(f.read_text() + 'x' if f.exists() else 'x')"
    ).format(str(tmp_path / "file"))
    plan = MadeUpPlan(tmp_path, [job(tmp_path, code, outputs=(tmp_path / "file",))])
    engine = multiprocessing.get_context("fork").Process(target=run, args=(plan,))
    engine.start()
    wait_for((tmp_path / "begun").exists)
    os.kill(engine.pid, sign)
    engine.join()
    run(plan)
    assert (tmp_path / "file").read_text() == ("xx" if sign == signal.SIGKILL else "x")


@pytest.mark.slow
def test_jobs_of_submitit_do_the_same(plan, tmp_path):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    execute = ClusterExecutor(tmp_path / "jobs", cluster="local", parameters={"timeout_min": 5})
    assert run_plan(plan, execute)["complete"]
    assert content(tmp_path) == {"part0": "x", "part1": "x", "whole": "x"}


def test_the_number_of_parts_is_checked():
    from nnunetv2_deferral.jobs.steps import Plan

    with pytest.raises(InputError, match="the number of parts must be at least 1, got 0"):
        Plan(images=Path("i"), output=Path("o"), steps=("predict",), num_parts=0, options={})
