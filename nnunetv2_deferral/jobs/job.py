"""A job: one command that leaves a record once it has ended well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from nnunetv2_deferral.benchmark.trainers import environment
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json
from nnunetv2_deferral.logged_commands import inherited_lock, run_logged

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
        with self._alone(watch) as lock:
            begun, start = datetime.now(timezone.utc), time.monotonic()
            failure = run_logged(self.words, self.log, environment=environment(), lock=lock, watch=watch)
        if failure:
            raise JobError(f"{self} {failure}")
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
        while True:
            try:
                with inherited_lock(self.log.with_suffix(".lock")) as lock:
                    yield lock
                return
            except BlockingIOError:
                watch()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
