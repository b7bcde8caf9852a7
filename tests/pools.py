"""Starts the processes of pools from one process that has nnU-Net imported, instead of importing it in each.

nnU-Net and this package spawn new interpreters, which import PyTorch and nnU-Net for seconds. Here, they are started by
multiprocessing's fork server: that of the tests themselves (:func:`use`), and that of :mod:`script_server` (in the
folder end_to_end), which starts it before anything else. A fork of a command itself could wait for ever for threads of
PyTorch that it does not have; in the fork server PyTorch has not worked. As in a spawned process, all that such a
process is to do is pickled, and nothing of ours is imported before.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import context, forkserver, reduction, resource_tracker, spawn
from pathlib import Path
from typing import Any

_KEY = "environment_and_outputs"


class Inherited:
    """An open file of this process, which a started process gets as a file descriptor of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (reduction.DupFd(self._descriptor),)


def _detached(duplicate: Any) -> int:
    return duplicate.detach()


def start() -> None:
    """Start the fork server, which imports :mod:`pools_preload`; not necessary before :func:`use`."""
    if forkserver._forkserver._forkserver_pid is not None:
        return
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


def use(*, fork: bool = False) -> None:
    """Let this process start what it would spawn from the fork server, which is started when it is needed.

    Args:
        fork: This process is a fork of the one that called :func:`start`.
    """
    if fork:
        server: Any = forkserver._forkserver
        server.ensure_running = lambda: None  # this is not its parent and cannot wait for it
        if hasattr(resource_tracker.ResourceTracker, "__del__"):
            del resource_tracker.ResourceTracker.__del__  # nor for that of resources
    contexts: Any = context._concrete_contexts
    contexts["spawn"] = multiprocessing.get_context("forkserver")
    stock = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        if name == "ignore":  # the fork server itself
            return stock(name)
        if not fork:
            start()  # if it does not run
        return stock(name) | {_KEY: (dict(os.environ), [Inherited(1), Inherited(2)])}

    spawn.get_preparation_data = get_preparation_data


def preload() -> None:
    """Import what commands import. None of it starts a thread or reads nnU-Net's folders from the environment."""
    import dynamic_network_architectures.architectures.primus  # noqa: F401  # of trainers imported with any other
    import nnunetv2.evaluation.evaluate_predictions
    import nnunetv2.inference.predict_from_raw_data
    import nnunetv2.run.run_training  # noqa: F401


def take_over() -> None:
    """Let every fork of this process, the fork server, have environment and outputs of the one that asked for it."""
    import numpy as np

    stock = spawn.prepare

    def prepare(data: dict[str, Any]) -> None:
        environment, outputs = data.pop(_KEY)
        os.environ.clear()
        os.environ.update(environment)
        for descriptor, output in enumerate(outputs, start=1):
            os.dup2(output, descriptor)
            os.close(output)
        np.random.seed()  # as in a process that imports numpy for itself
        stock(data)

    spawn.prepare = prepare
