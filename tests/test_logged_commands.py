import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_for

from nnunetv2_deferral.files import locked
from nnunetv2_deferral.logged_commands import inherited_lock, run_logged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups and locks as on Unix")


def python(code):
    return (sys.executable, "-c", code)


def run(code, log, **options):
    return run_logged(python(code), log, environment=os.environ, **options)


def test_a_command_that_ends_well_leaves_its_output_in_the_log(tmp_path):
    log = tmp_path / "logs" / "log"
    for word in ("one", "two"):
        assert run(f"print({word!r})", log) == ""
    lines = log.read_text().splitlines()
    assert [line for line in lines if line in ("one", "two")] == ["one", "two"]
    assert f"$ {' '.join(python('print(' + repr('one') + ')'))}" in lines


def test_a_failure_gives_the_code_the_end_of_the_log_and_its_place(tmp_path):
    log = tmp_path / "log"
    failure = run("print(*range(100), sep='\\n'); raise SystemExit(3)", log)
    assert failure.startswith("failed with exit code 3:\n")
    assert "  99\n" in failure and "  10\n" not in failure
    assert failure.endswith(str(log))


def test_what_is_watched_can_end_the_command_with_its_children(tmp_path):
    child = tmp_path / "child"
    code = (
        "import os, pathlib, time\n"
        f"if not os.fork(): pathlib.Path({str(child)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)"
    )

    def watch():
        if child.exists() and child.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(code, tmp_path / "log", watch=watch)
    wait_for(lambda: not running(int(child.read_text())))


def in_two_processes(numbers, *, of_main="", of_child=""):
    """A command with a child, whose process numbers are written to a file, and what each does before it waits."""
    return (
        "import os, pathlib, signal, sys, time\n"
        "child = os.fork()\n"
        f"exec({of_main!r} if child else {of_child!r})\n"
        f"if child: pathlib.Path({str(numbers)!r}).write_text(f'{{os.getpid()}} {{child}} .')\n"
        "time.sleep(600)"
    )


def started(numbers):
    return numbers.exists() and numbers.read_text().endswith(".")


def assert_ended(numbers):
    both = [int(each) for each in numbers.read_text().split()[:2]]
    try:
        wait_for(lambda: not any(map(running, both)))
    finally:
        for each in both:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


IGNORED = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def test_children_do_not_outlive_an_interrupted_command_that_ends_well(tmp_path):
    numbers = tmp_path / "numbers"
    caught = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"

    def watch():
        if started(numbers):
            time.sleep(0.1)  # until the child ignores the signal
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(in_two_processes(numbers, of_main=caught, of_child=IGNORED), tmp_path / "log", watch=watch)
    assert_ended(numbers)


def test_interrupted_again_while_it_waits_for_the_end_of_a_command_it_kills_that(tmp_path, monkeypatch):
    numbers, wait, again = tmp_path / "numbers", subprocess.Popen.wait, [KeyboardInterrupt]

    def interrupted(process, timeout=None):
        if again:
            raise again.pop()
        return wait(process, timeout=timeout)

    def watch():
        if started(numbers):
            monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(in_two_processes(numbers, of_main=IGNORED, of_child=IGNORED), tmp_path / "log", watch=watch)
    assert not again
    assert_ended(numbers)


def test_the_log_has_the_words_as_they_are_even_if_they_are_no_text(tmp_path):
    assert run_logged([*python("pass"), os.fsdecode(b"\xff")], tmp_path / "log", environment=os.environ) == ""
    assert b"pass \xff\n" in (tmp_path / "log").read_bytes()


def running(process):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestLock:
    @pytest.fixture
    def parent_killed(self, tmp_path):
        """Starts a command with one child by a process that is killed; the process numbers of both."""

        def start():
            numbers = tmp_path / "numbers"
            code = (
                "import os, pathlib, time\n"
                "child = os.fork()\n"
                f"if child: pathlib.Path({str(numbers)!r}).write_text(f'{{os.getpid()}} {{child}} .')\n"
                "time.sleep(600)"
            )
            parent = os.fork()
            if not parent:
                with inherited_lock(tmp_path / "lock") as lock:
                    run(code, tmp_path / "log", lock=lock)
                os._exit(0)
            wait_for(lambda: numbers.exists() and numbers.read_text().endswith("."))
            os.kill(parent, signal.SIGKILL)
            os.waitpid(parent, 0)
            main, child, _ = numbers.read_text().split()
            return int(main), int(child)

        return start

    def test_is_held_by_a_command_whose_parent_was_killed(self, parent_killed, tmp_path):
        main, child = parent_killed()
        try:
            with pytest.raises(BlockingIOError), inherited_lock(tmp_path / "lock"):
                pass
            assert running(child)
        finally:
            os.killpg(main, signal.SIGKILL)

    def test_is_not_kept_by_the_children_of_a_command_that_is_gone(self, parent_killed, tmp_path):
        main, child = parent_killed()
        os.kill(main, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{main}").exists())
        with inherited_lock(tmp_path / "lock"):
            assert not running(child)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_is_not_kept_where_nobody_collects_the_command_that_is_gone(self, tmp_path):
        with locked(tmp_path / "lock") as lock:
            main = os.fork()
            if not main:
                os.setsid()
                if not os.fork():
                    time.sleep(600)
                os._exit(0)
            lock.write(f"{platform.node()} {main}".encode())
        wait_for(lambda: not running(main))
        try:
            with inherited_lock(tmp_path / "lock"):
                pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(main, signal.SIGKILL)
            os.waitpid(main, 0)

    def test_of_another_machine_is_left_alone(self, parent_killed, tmp_path):
        main, child = parent_killed()
        number = (tmp_path / "lock").read_text().split()[1]
        (tmp_path / "lock").write_text(f"somewhere-else {number}")
        os.kill(main, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{main}").exists())
        try:
            with pytest.raises(BlockingIOError), inherited_lock(tmp_path / "lock"):
                pass
            assert running(child)
        finally:
            os.kill(child, signal.SIGKILL)

    def test_is_free_again_afterwards(self, tmp_path):
        with inherited_lock(tmp_path / "lock") as lock:
            run("pass", tmp_path / "log", lock=lock)
        begin = time.monotonic()
        with locked(tmp_path / "lock"):
            assert time.monotonic() - begin < 60
