"""Console scripts, run as a process of their own or by :mod:`script_server`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

TIMEOUT_S = 900  # of one command, on a machine with much else to do
OURS = ("nnUNetv2_train", "nnUNetv2_predict")  # the stock commands that come to this package


class Scripts:
    """Runs console scripts of this environment and returns how they ended, with their whole output as `stdout`.

    The first run of each of :data:`OURS` is a process as a shell starts it, and so is any that asks for it; others are
    forks of a process that has nnU-Net imported (see :mod:`script_server`).
    """

    def __init__(self, seen: Path) -> None:
        """Start without a server; `seen` is a folder that all processes of a test session share."""
        seen.mkdir(exist_ok=True)
        self._seen = seen
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Scripts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._server.stdin is not None and self._server.stdout is not None:
            self._server.stdin.close()  # which ends it
            self._server.wait(TIMEOUT_S)
            self._server.stdout.close()

    def run(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], *, own_process: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run the script `name`, with `environment` in place of this process's."""
        command = [str(Path(sys.executable).with_name(name)), *arguments]
        if own_process or not hasattr(os, "fork") or self._is_first(name):
            return subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output.txt"
            request = {"script": command[0], "arguments": command[1:], "environment": dict(environment)}
            code = self._ask(request | {"folder": str(Path.cwd()), "output": str(output)})
            return subprocess.CompletedProcess(command, code, output.read_text())

    def _is_first(self, name: str) -> bool:
        if name not in OURS:
            return False
        try:
            (self._seen / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _ask(self, request: Mapping[str, object]) -> int:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("script_server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._answer() == "ready"
        assert self._server.stdin is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._answer())

    def _answer(self) -> str:
        """The next line of the server, which writes one for each request."""
        server = self._server
        assert server is not None and server.stdout is not None
        if not select.select([server.stdout], [], [], TIMEOUT_S)[0]:
            os.killpg(server.pid, signal.SIGKILL)
            pytest.fail(f"a command took longer than {TIMEOUT_S} s")
        return server.stdout.readline().strip()
