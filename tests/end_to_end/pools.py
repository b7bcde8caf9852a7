"""Starts the processes of pools that commands spawn from one process that has nnU-Net imported.

:mod:`script_server` starts that process, multiprocessing's fork server, before anything else; commands use it for every
pool that they would spawn. A fork of a command itself could wait for ever for threads of PyTorch that it does not have;
in the fork server PyTorch has not worked.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import context, forkserver, resource_tracker, spawn
from pathlib import Path
from typing import Any

_KEY = "script_server"


def start() -> None:
    """Start the fork server, which imports :mod:`pools_preload`; for the server of scripts."""
    here = str(Path(__file__).parent)
    found = os.environ.get("PYTHONPATH")
    # Before Python 3.13 the fork server looks for modules nowhere else.
    os.environ["PYTHONPATH"] = here if found is None else os.pathsep.join((here, found))
    forkserver.set_forkserver_preload([__name__ + "_preload"])
    forkserver.ensure_running()
    if found is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = found


def use(output: str) -> None:
    """Let this process, a fork of the one that called :func:`start`, start what it would spawn from the fork server.

    Args:
        output: The file that the started processes print to.
    """
    server: Any = forkserver._forkserver
    server.ensure_running = lambda: None  # this is not its parent and cannot wait for it
    if hasattr(resource_tracker.ResourceTracker, "__del__"):
        del resource_tracker.ResourceTracker.__del__  # nor for that of resources
    contexts: Any = context._concrete_contexts
    contexts["spawn"] = multiprocessing.get_context("forkserver")
    stock = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return stock(name) | {_KEY: {"environment": dict(os.environ), "output": output}}

    spawn.get_preparation_data = get_preparation_data


def preload() -> None:
    """Import what commands import. None of it starts a thread or reads nnU-Net's folders from the environment."""
    import nnunetv2.evaluation.evaluate_predictions
    import nnunetv2.inference.predict_from_raw_data
    import nnunetv2.run.run_training  # noqa: F401


def take_over() -> None:
    """Let every fork of this process, the fork server, have the environment and output of the one that asked for it."""
    import numpy as np

    stock = spawn.prepare

    def prepare(data: dict[str, Any]) -> None:
        asked = data.pop(_KEY)
        os.environ.clear()
        os.environ.update(asked["environment"])
        output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        np.random.seed()  # as in a process that imports numpy for itself
        stock(data)

    spawn.prepare = prepare
