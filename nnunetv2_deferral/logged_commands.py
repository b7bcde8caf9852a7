"""Commands as processes of their own: with a log, in a process group, under a lock that outlives a killed parent."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from nnunetv2_deferral.files import locked

_NUM_LAST_LINES = 15
_SECONDS_TO_END = 10
_SECONDS_BETWEEN_LOOKS = 0.2


def run_logged(
    words: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    lock: IO[bytes] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> str:
    """Run a command in its own process group, which is ended with this call, and append its output to a log.

    Args:
        words: The command, run without a shell.
        log: The log; the command comes first. Its folder is made.
        environment: The environment variables of the command.
        lock: A lock of `inherited_lock`, which the command holds until it ends, even if this process is killed.
        watch: Called a few times a second; an exception of it ends the command.

    Returns:
        Empty if the command ended well; else "failed with exit code ...", the end of the log, and where it is.

    Raises:
        OSError: If the command cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(os.fsencode(f"\n$ {' '.join(words)}\n"))
        output.flush()
        process = subprocess.Popen(  # noqa: S603 - the words of this package and of its user, without a shell
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=() if lock is None else (lock.fileno(),),
        )
        try:
            if lock is not None:
                lock.truncate(0)
                lock.write(f"{platform.node()} {process.pid}".encode())
                lock.flush()
            _wait(process, watch)
        finally:
            _end_group(process)
    if not process.returncode:
        return ""
    end = "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-_NUM_LAST_LINES:])
    return f"failed with exit code {process.returncode}:\n{end}\nThe complete log is {log}"


@contextmanager
def inherited_lock(file: Path) -> Iterator[IO[bytes] | None]:
    """Hold a lock for `run_logged`; None where the operating system has no such locks.

    What a command of this machine has left is ended first if its main process is gone: its children may wait for it
    forever, and hold the lock that they inherited.

    Raises:
        BlockingIOError: If another process holds it, such as a command that goes on after its parent was killed.
    """
    with ExitStack() as stack:
        yield _taken(file, stack)


def _taken(file: Path, stack: ExitStack) -> IO[bytes] | None:
    deadline = time.monotonic() + _SECONDS_TO_END
    while True:
        try:
            return stack.enter_context(locked(file))
        except BlockingIOError:
            if not _kill_orphans(file) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _wait(process: subprocess.Popen[bytes], watch: Callable[[], None]) -> None:
    while True:
        try:
            process.wait(timeout=_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            watch()
        else:
            return


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its process group, with SIGTERM and then, or if this is interrupted again, SIGKILL.

    Of a process that failed or was killed, as by a system without memory, the group is ended, too: its children may
    wait for it forever, and keep the locks that they inherited.
    """
    interrupted = process.poll() is None
    try:
        for sign in ("SIGTERM", "SIGKILL"):
            if process.poll() is not None:
                break
            try:
                os.killpg(process.pid, getattr(signal, sign))
            except (AttributeError, ProcessLookupError):  # Windows, or already ended
                process.kill()
            try:
                process.wait(timeout=_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if interrupted or process.returncode:
            with suppress(AttributeError, OSError, subprocess.TimeoutExpired):  # Windows, or nothing is left
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=_SECONDS_TO_END)


def _kill_orphans(lock: Path) -> bool:
    """Kill the group of the process noted in a lock if that process is gone; whether it is, and the lock soon free."""
    try:
        machine, text = lock.read_text().split()
        process = int(text)
    except (OSError, ValueError):
        return False  # nothing is noted yet
    if machine != platform.node() or not _is_gone(process):
        return False
    with suppress(AttributeError, OSError):  # Windows, or they are gone, too
        os.killpg(process, signal.SIGKILL)
    return True


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it is somebody else's
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False  # not Linux
    return state == "Z"  # ended, but in many containers there is nobody who would collect it
