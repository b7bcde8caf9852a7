"""Rooms stand above what they use: imports point down, never up and never in a circle."""

import ast
import re
from collections import Counter, defaultdict
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "nnunetv2_deferral"
FOLDERS = {PACKAGE: PACKAGE} | {name: f"{PACKAGE}.{name}" for name in ("expert_sim", "planners", "trainers")}

# From the ground up. A room may use any room of a lower layer, and its own modules as long as they form no circle.
LAYERS = (
    ("errors", "defaults"),
    ("files", "processes", "arrays", "text", "names", "installed", "environment", "channels", "labels", "head_place"),
    ("schema", "image_files", "parts", "uncertainty", "logged_commands"),
    ("expert_sim", "routing", "geometry", "fusion", "readings", "multi_rater"),
    ("experts", "evidence", "forecast"),
    ("cases", "decision", "dataset", "image_shifts"),
    ("raters",),
    ("settings",),
    ("network", "losses", "planners", "maps"),
    ("agreement_maps",),
    ("predictions", "folds"),
    ("answers", "minutes"),
    ("evaluation",),
    ("nnunet",),
    ("calibration", "benchmark"),
    ("report",),
    ("worklist", "plots", "demo", "dataset_conversion"),
    ("review", "query", "jobs", "dicom"),
    ("commands", "trainers"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """Every module of ours that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(PACKAGE)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return found


MODULES = modules()


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """The modules of ours that each module imports."""
    return {name: imports(file, MODULES) - {name} for name, file in MODULES.items()}


def room(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            place = stack.index(node)
            part = stack[place:]
            del stack[place:]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_every_package_is_installed():
    """Work on a clone finds a package that setup.cfg does not name; an installation lacks it."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert set(config["options"]["packages"].split()) == found


def test_every_room_has_its_layer():
    assert {room(name) for name in MODULES if name != PACKAGE} == set(LEVEL)


def test_every_room_is_named_in_the_layout():
    layout = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].partition("\n## ")[0]
    assert [room for room in LEVEL if not re.search(rf"\b{room}\b", layout)] == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - {PACKAGE}))
def test_imports_point_down(name, imported):
    up = [
        other
        for other in imported[name]
        if other != PACKAGE and room(other) != room(name) and LEVEL[room(other)] >= LEVEL[room(name)]
    ]
    assert not up, f"{name} imports {', '.join(up)}, which stands no lower"


def test_no_modules_import_each_other_in_a_circle(imported):
    assert circles({name: others - {PACKAGE} for name, others in imported.items()}) == []


def test_no_rooms_import_each_other_in_a_circle(imported):
    rooms = defaultdict(set)
    for name, others in imported.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name), PACKAGE}
    assert circles(rooms) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_two_modules_have_the_same_name():
    # A command is named after the room whose work it does.
    names = Counter(file.stem for name, file in MODULES.items() if file.stem != "__init__" and room(name) != "commands")
    assert [name for name, number in names.items() if number > 1] == []


def test_no_two_test_modules_have_the_same_name():
    """Pytest imports them by their names; a second one stops a run of all tests."""
    names = Counter(file.name for file in Path(__file__).parent.rglob("*.py") if file.name != "conftest.py")
    assert [name for name, number in names.items() if number > 1] == []
