"""A job: one command that leaves a record once it has ended well."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from nnunetv2_deferral.benchmark.training import end_group, environment, last_lines
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import locked, read_json, write_json

_SECONDS_BETWEEN_LOOKS = 0.2


class JobError(RuntimeError):
    """A job failed; the message names it and contains the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command, pickled for execution on other machines.

    Attributes:
        step: The step that it belongs to, such as `"predict"`.
        number: Its number in the step.
        of: The number of jobs of the step.
        words: The command.
        folder: The folder of records and logs.
        outputs: Files that exist once it has ended well.
        reads: The state of the files that it reads; a record of another state counts as none.
    """

    step: str
    number: int
    of: int
    words: tuple[str, ...]
    folder: Path
    outputs: tuple[Path, ...] = ()
    reads: str = ""

    def __str__(self) -> str:
        return self.step if self.of == 1 else f"{self.step} {self.number} of {self.of}"

    @property
    def log(self) -> Path:
        """The output of all attempts."""
        return self.folder / f"{self.step}_{self.number}_of_{self.of}.log"

    @property
    def record_file(self) -> Path:
        """The record of the attempt that ended well."""
        return self.folder / f"{self.step}_{self.number}_of_{self.of}.json"

    def record(self) -> dict[str, Any] | None:
        """What the job left if it has ended well: `words`, `reads`, `begun` (UTC), `seconds`; else None.

        A record of another command, of files that have changed since, or whose outputs are gone counts as none, as does
        one that cannot be read, because repeating the job mends it.
        """
        try:
            found = read_json(self.record_file)
            same = found["words"] == list(self.words) and found["reads"] == self.reads
        except (InputError, KeyError, TypeError):
            return None
        return found if same and not self.missing() else None

    def missing(self) -> list[Path]:
        """The outputs that do not exist."""
        return [file for file in self.outputs if not file.is_file()]

    def __call__(self, watch: Callable[[], None] = lambda: None) -> None:
        """Run the command.

        Args:
            watch: Called a few times a second; an exception of it ends the command.

        Raises:
            JobError: If the command fails, or ends well without its outputs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone(watch) as lock, self.log.open("ab") as output:
            begun, start = datetime.now(timezone.utc), time.monotonic()
            output.write(f"\n$ {' '.join(self.words)}\n".encode())
            output.flush()
            process = subprocess.Popen(  # noqa: S603 - the words of this package and of its user, without a shell
                self.words,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
                pass_fds=() if lock is None else (lock.fileno(),),
            )
            if lock is not None:
                lock.truncate(0)
                lock.write(f"{platform.node()} {process.pid}".encode())
                lock.flush()
            try:
                while process.poll() is None:
                    watch()
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            finally:
                end_group(process)
        if process.returncode:
            raise JobError(f"{self} failed with exit code {process.returncode}:\n{last_lines(self.log)}\n  {self.log}")
        if missing := self.missing():
            raise JobError(f"{self} ended without an error, but {missing[0]} does not exist ({len(missing)} files)")
        content = {
            "words": list(self.words),
            "reads": self.reads,
            "begun": begun.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(content, self.record_file)

    @contextmanager
    def _alone(self, watch: Callable[[], None]) -> Iterator[IO[bytes] | None]:
        """Hold the lock of the job, which the command inherits, because it goes on if this process is killed."""
        file = self.log.with_suffix(".lock")
        while True:
            try:
                with locked(file) as lock:
                    yield lock
                return
            except BlockingIOError:
                _end_orphans(file)
                watch()
                time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end_orphans(lock: Path) -> None:
    """End the processes that a command of this machine has left if its main process, noted in its lock, is gone.

    They may wait for it forever, and hold the lock that they inherited.
    """
    try:
        machine, text = lock.read_text().split()
        process = int(text)
    except (OSError, ValueError):
        return  # nothing is noted yet
    if machine != platform.node():
        return
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        with suppress(AttributeError, OSError):  # Windows, or they are gone, too
            os.killpg(process, signal.SIGKILL)
    except OSError:
        pass  # it is somebody else's
