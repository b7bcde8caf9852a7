"""For all tests: what nnU-Net and PyTorch read when they are imported, and how tests are shared out among processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pools
import preloaded
import pytest

os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")
# As many processes as cores, each with one thread: none of the arrays here is worth a second.
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# Commands of nnU-Net set as many as there are cores, which would spin while they wait for the next piece of work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tests that a shell starts in the background ignore SIGINT, and so would the processes that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
# These train what they need for themselves. All others of the folder share trained models, and so a process.
APART = ("test_benchmark.py", "test_kinds_of_data.py", "test_limits_and_calibration.py", "test_real_experts.py")
# Folders whose files share what is made once a process: trained models, and the standard that highdicom reads.
TOGETHER = ("end_to_end", "dicom")
# Files that need MONAI, whose import takes longer than all of their tests, stay in one process, too.
WITH_MONAI = {"evaluation/test_surfaces.py": "commands/test_evaluate.py"}
# What takes longest begins first, so that no process has it left when the others are done.
LONGEST = (
    "end_to_end",
    "end_to_end/test_real_experts.py",
    "review/test_browser.py",
    "commands/test_evaluate.py",
    "commands/test_calibrate.py",
    "test_fuzz.py",
    "benchmark/test_cluster.py",
    "end_to_end/test_limits_and_calibration.py",
    "end_to_end/test_kinds_of_data.py",
    "report/test_reliability_section.py",
    "report/test_evaluation_page.py",
    "report/test_report_command.py",
    "nnunet/test_rater_transform.py",
    "commands/test_worklist_command.py",
    "test_public_api.py",
    "review/test_listed.py",
    "review/test_store.py",
)


@pytest.fixture(scope="session", autouse=True)
def _blank_figures() -> Iterator[Any]:
    """Figures are saved blank, since drawing them takes most of the time of a report; tests of figures ask for more."""
    from matplotlib.figure import Figure
    from PIL import Image

    stock = Figure.savefig

    def savefig(figure: Figure, file: Any, **options: Any) -> None:
        if (options.get("format") or Path(file).suffix) in ("png", ".png"):
            size = (figure.get_size_inches() * 40).astype(int)
            Image.new("RGB", tuple(size.tolist()), "white").save(file, "png")
        else:
            stock(figure, file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield stock


@pytest.fixture
def drawn_figures(_blank_figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn whole but with few pixels, as much time goes into compressing them."""
    from matplotlib.figure import Figure

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        coarse = {"dpi": 40} | ({"pil_kwargs": None} if "pil_kwargs" in options else {})
        _blank_figures(figure, *arguments, **options | coarse)

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def full_resolution(_blank_figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn and saved with all of their pixels."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", _blank_figures)


def group(file: str) -> str:
    """What of a file's tests, given relative to this folder, is to stay in one process: the file, or its folder."""
    folder, _, name = file.rpartition("/")
    return folder if folder in TOGETHER and name not in APART else WITH_MONAI.get(file, file)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have the processes of tests forked, in all processes of the session from the same one."""
    if hasattr(os, "fork"):
        if (server := preloaded.start()) is not None:
            config.add_cleanup(lambda: preloaded.end(server))
        pools.connect(preloaded.address("pools"), os.open(os.devnull, os.O_RDONLY))
        pools.use()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto` starts a process a core, but at most eight, and none for a single file, which is done before that."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    if len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scheduler of `--dist loadfile`, for groups of files."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = config.rootpath / nodeid.partition("::")[0]
            return group(file.relative_to(TESTS).as_posix()) if file.is_relative_to(TESTS) else str(file)

    return LoadGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests by what takes longest."""

    def place(item: pytest.Item) -> int:
        name = group(item.path.relative_to(TESTS).as_posix()) if item.path.is_relative_to(TESTS) else ""
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
