"""A function in a process of its own, which can be sent signals and killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from waiting import LONGEST_S


def _run(function: Callable[..., object], arguments: tuple[object, ...], outputs: tuple[Path, Path]) -> None:
    for descriptor, file in enumerate(outputs, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    function(*arguments)


class OwnProcess:
    """Calls a function of a module, as a spawned process does; killed at the end if it still runs.

    Args:
        function: Pickled, as are the arguments.
        arguments: Of the function.
        folder: For the files with what the process prints.
    """

    def __init__(self, function: Callable[..., object], *arguments: object, folder: Path) -> None:
        """Start the process."""
        self._outputs = (folder / "stdout.txt", folder / "stderr.txt")
        for file in self._outputs:
            file.write_text("")
        work = (function, arguments, self._outputs)
        self._process = multiprocessing.get_context("spawn").Process(target=_run, args=work, daemon=True)
        self._process.start()

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._process.exitcode is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end of the process; its exit code, as that of `subprocess`."""
        self._process.join(LONGEST_S)
        assert self._process.exitcode is not None, f"still runs after {LONGEST_S:.0f} s"
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """What it has printed to stdout until now."""
        return self._outputs[0].read_text()

    @property
    def errors(self) -> str:
        """What it has printed to stderr until now."""
        return self._outputs[1].read_text()
