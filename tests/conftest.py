"""For all tests: what nnU-Net and PyTorch read when they are imported, and how tests are shared out among processes."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")
# As many processes as cores, each with one thread: none of the arrays here is worth a second.
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# Tests that a shell starts in the background ignore SIGINT, and so would the processes that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
# Groups that take longest begin first, so that no process has one left when the others are done.
LONGEST = (
    "trained models",
    "end_to_end",
    "review/test_browser.py",
    "review/test_store.py",
    "benchmark/test_cluster.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto` starts a process a core, but at most eight, and none for a single file, which is done before that."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    if len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file stay in one process, and so do those of an `xdist_group`: what they build is built once."""

    def group(item: pytest.Item) -> str:
        mark = item.get_closest_marker("xdist_group")
        return mark.args[0] if mark else item.path.relative_to(TESTS).as_posix()

    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(LONGEST) if group(item).startswith(name)), len(LONGEST))

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=place)
