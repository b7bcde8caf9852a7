"""One process with PyTorch and nnU-Net imported, of which all other processes that tests start are forks.

Importing them takes most of the time of most commands, and so it is done once for a test session: its first process
calls :func:`start`, and all that belong to it find the server by an environment variable. The server imports nothing
before it is asked for the first time, and ends with the process that started it. It offers

- multiprocessing's fork server, from which :mod:`pools` starts what would be spawned, and
- console scripts (:func:`run_script`). What runs is the installed script's own file as `__main__`, with arguments,
  environment and folder of the caller; all that it and its children print goes to one file. It ends as any interpreter
  does, so that an error is told by its traceback and 1, but does not tidy up all modules, which takes most of a second.

nnunetv2_deferral is not imported beforehand: whether and how a command comes to it is what is tested.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pools

_VARIABLE = "NNUNETV2_DEFERRAL_TESTS_PRELOADED"  # the folder of the sockets
_POOLS, _SCRIPTS = "pools", "scripts"


def address(name: str) -> str:
    """The socket of one of the two services."""
    return str(Path(os.environ[_VARIABLE]) / name)


def start() -> subprocess.Popen[bytes] | None:
    """Start the server, unless this session has it; to be ended by :func:`end`."""
    if _VARIABLE in os.environ:
        return None
    os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="preloaded-")
    listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for listener, name in zip(listeners, (_POOLS, _SCRIPTS), strict=True):
        listener.bind(address(name))
        listener.listen()
    descriptors = [listener.fileno() for listener in listeners]
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, descriptors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,  # without the terminal's signals
    )
    for listener in listeners:
        listener.close()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server that :func:`start` returned."""
    assert process.stdin is not None
    process.stdin.close()  # which ends it
    process.wait()
    shutil.rmtree(os.environ.pop(_VARIABLE), ignore_errors=True)


def run_script(request: dict[str, Any], timeout_s: float) -> int:
    """Run a console script in a fork of the server.

    Args:
        request: "script", "arguments", "environment", "folder", and "output", the file for what it prints.
        timeout_s: After which it is killed.

    Returns:
        Its exit code.

    Raises:
        TimeoutError: It was killed.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(address(_SCRIPTS))
        connection.sendall(f"{json.dumps(request)}\n".encode())
        with connection.makefile() as answers:
            pid = int(answers.readline())
            try:
                return int(answers.readline())
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                raise


def preload() -> None:
    """Import what commands import, but nothing of ours. None of it starts a thread or reads nnU-Net's folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nnunetv2.evaluation.evaluate_predictions
        import nnunetv2.inference.predict_from_raw_data
        import nnunetv2.run.run_training  # noqa: F401
        from nnunetv2.training import nnUNetTrainer
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

        # A search for any trainer imports all of nnU-Net's.
        recursive_find_python_class(nnUNetTrainer.__path__[0], "none", nnUNetTrainer.__name__)
    loaded = [name for name in sys.modules if name.startswith("nnunetv2_deferral")]
    assert not loaded, loaded
    # Forks neither look through nor copy what is imported here when they collect garbage.
    gc.collect()
    gc.freeze()


def serve(pool_listener: socket.socket, script_listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns in each script's process with its request, and without one in all others."""
    if sys.stdin in select.select([sys.stdin, pool_listener, script_listener], [], [])[0]:
        return None
    preload()
    resource_tracker.ensure_running()
    alive_r, alive_w = os.pipe()
    if os.fork() == 0:
        os.close(alive_w)
        script_listener.close()
        pools.take_over()
        # Until the server and all scripts have ended.
        pools.serve(pool_listener.getsockname(), pool_listener.detach(), alive_r)
    os.close(alive_r)
    pools.connect(pool_listener.getsockname(), alive_w)
    pool_listener.close()
    while sys.stdin not in (ready := select.select([sys.stdin, script_listener], [], [])[0]):
        if script_listener in ready:
            connection = script_listener.accept()[0]
            if os.fork() == 0:
                script_listener.close()
                return fork_script(connection)
            connection.close()
        while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended; the fork server has not
            pass
    return None


def fork_script(connection: socket.socket) -> dict[str, Any]:
    """Read a request and fork for it; returns in the fork, while the process itself answers and ends."""
    with connection, connection.makefile() as lines:
        request = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            os.setsid()
            return request
        connection.sendall(f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            connection.sendall(f"{code}\n".encode())
        finally:
            os._exit(0)


def become(request: dict[str, Any]) -> None:
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
    pools.use()
    np.random.seed()  # as in a process that imports numpy for itself
    code: Any = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if (request := serve(*(socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:]))) is not None:
        become(request)
