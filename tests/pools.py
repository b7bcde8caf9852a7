"""Starts the processes of pools from one process that has nnU-Net imported, instead of importing it in each.

nnU-Net and this package spawn new interpreters, which import PyTorch and nnU-Net for seconds. Here, they are started by
multiprocessing's fork server, which :mod:`preloaded` runs. A fork of a command itself could wait for ever for threads
of PyTorch that it does not have; in the fork server PyTorch has not worked. As in a spawned process, all that such a
process is to do is pickled, and nothing of ours is imported before.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from multiprocessing import context, forkserver, reduction, spawn
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


def connect(address: str, alive: int) -> None:
    """Take the fork server at this address for that of this process.

    Args:
        address: Its socket.
        alive: A file descriptor that started processes inherit.
    """
    server: Any = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd = address, alive
    server._forkserver_authkey = _key(address)  # read on Python 3.14 and later
    server.ensure_running = lambda: None  # this is not its parent and cannot wait for it


def serve(address: str, listener: int, alive: int) -> None:
    """Be the fork server at this address until all that have the other end of the pipe `alive` have ended."""
    if sys.version_info < (3, 14):
        forkserver.main(listener, alive, [])
        return
    server: Any = forkserver._forkserver
    server._forkserver_authkey = _key(address)  # of processes that are started by those that it started
    keys, given = os.pipe()
    os.write(given, _key(address))
    os.close(given)
    forkserver.main(listener, alive, [], authkey_r=keys)


def _key(address: str) -> bytes:
    """What both sides of the fork server at this address know; others of this machine are not kept out."""
    return hashlib.sha256(address.encode()).digest()


def use() -> None:
    """Let this process start what it would spawn from the fork server that it is connected to."""
    contexts: Any = context._concrete_contexts
    contexts["spawn"] = multiprocessing.get_context("forkserver")
    stock = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return stock(name) | {_KEY: (dict(os.environ), [Inherited(1), Inherited(2)])}

    spawn.get_preparation_data = get_preparation_data


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
