"""Console scripts, run as a process of their own or by :mod:`preloaded`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import preloaded
import pytest

TIMEOUT_S = 900  # of one command, on a machine with much else to do


class Scripts:
    """Runs console scripts of this environment and returns how they ended, with their whole output as `stdout`.

    The first run of `nnUNetv2_predict`, whose spawned processes import nnU-Net as well, is a process as a shell starts
    it, and so is any that asks for it; others are forks of a process that has nnU-Net imported (see :mod:`preloaded`).
    """

    def __init__(self, seen: Path) -> None:
        """`seen` is a folder that all processes of a test session share."""
        seen.mkdir(exist_ok=True)
        self._seen = seen

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
            try:
                code = preloaded.run_script(request | {"folder": str(Path.cwd()), "output": str(output)}, TIMEOUT_S)
            except TimeoutError:
                pytest.fail(f"{name} took longer than {TIMEOUT_S} s")
            return subprocess.CompletedProcess(command, code, output.read_text())

    def _is_first(self, name: str) -> bool:
        if name != "nnUNetv2_predict":
            return False
        try:
            (self._seen / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
