"""Runs console scripts in forks of one process that has PyTorch and nnU-Net imported, which saves most of their time.

A request is a line of JSON on stdin: {"script", "arguments", "environment", "folder", "output"}; the answer on stdout
is the script's exit code. What runs is the installed script's own file as `__main__`, with the arguments, environment
and folder of the request; all that it and its children print goes to the file `output`, and it ends as any interpreter
does, so that an error is told by its traceback and 1. nnunetv2_deferral is not imported beforehand: whether and how a
command comes to it is what is tested.

Pools that a script spawns are started by :mod:`pools`.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
import pools


def preload() -> None:
    """Import what commands import, but nothing of ours."""
    pools.preload()
    loaded = [name for name in sys.modules if name.startswith("nnunetv2_deferral")]
    assert not loaded, loaded


def serve() -> dict[str, Any] | None:
    """Answer requests, each by a fork; returns in each fork with its request, and without one at the end."""
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def run(request: dict[str, Any]) -> None:
    """Become the script."""
    import numpy as np

    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    pools.use(fork=True)
    np.random.seed()  # as in a process that imports numpy for itself
    runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    pools.start()
    preload()
    if (request := serve()) is not None:
        run(request)
