"""`import nnunetv2_deferral`: its names, their examples, and what importing costs."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnunetv2_deferral

STUB = Path(nnunetv2_deferral.__file__).with_suffix(".pyi")
NEEDS_NNUNET = {"PredictionFolder", "predict_array"}  # which read files and predict
NAMES = tuple(nnunetv2_deferral.__all__)


def example_of(name: str) -> doctest.DocTest:
    """The example in the docstring of a name; nothing but its docstring's own imports is defined in it."""
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(nnunetv2_deferral, name), name, globs={})
    return found


def examples_given(name: str, tmp_path: Path) -> dict[str, Any]:
    """What an example takes for granted: a folder of predictions, a trained model, an image."""
    given: dict[str, Any] = {}
    if name == "PredictionFolder":
        from small_prediction import write_prediction

        given["folder"] = tmp_path / "predictions"
        write_prediction(given["folder"])
    if name == "write_maps":
        from small_prediction import GEOMETRY

        given |= {"folder": tmp_path, "properties": GEOMETRY}
    if name == "predict_array":
        from small_predictor import small_predictor

        given["predictor"] = small_predictor()
        given["image"] = np.random.default_rng(0).normal(size=(1, 3, 40, 48)).astype(np.float32)
    return given


def assigned(module: ast.Module, name: str) -> Any:
    """The literal that is assigned to a name in a module."""
    (value,) = (
        node.value for node in module.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return ast.literal_eval(value)


def fresh_interpreter(code: str) -> str:
    """What a new Python process prints; without a warning, which would be on stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_an_example_that_holds(name: str, tmp_path: Path) -> None:
    example = example_of(name)
    assert example.examples, f"{name} has no example"
    example.globs.update(examples_given(name, tmp_path))
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def test_the_names_are_those_of_the_stub() -> None:
    stub = ast.parse(STUB.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(assigned(stub, "__all__")) == sorted(imported) == sorted(NAMES)
    assert set(NAMES) <= set(dir(nnunetv2_deferral))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented_and_comes_from_this_package(name: str) -> None:
    found = getattr(nnunetv2_deferral, name)
    assert inspect.getdoc(found)
    assert found.__module__.startswith("nnunetv2_deferral.")
    assert not name.startswith("_")


def test_the_version_is_a_plain_assignment_that_setuptools_reads_without_importing() -> None:
    module = ast.parse(Path(nnunetv2_deferral.__file__).read_text())
    assert assigned(module, "__version__") == nnunetv2_deferral.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_this"):
        nnunetv2_deferral.nothing_like_this  # noqa: B018
    with pytest.raises(ImportError, match="nothing_like_this"):
        from nnunetv2_deferral import nothing_like_this  # noqa: F401


def test_importing_the_package_imports_neither_torch_nor_nnunet() -> None:
    code = (
        "import sys, nnunetv2_deferral; print(sorted({'torch', 'numpy', 'matplotlib', 'nnunetv2'} & set(sys.modules)))"
    )
    assert fresh_interpreter(code).strip() == "[]"


def test_pure_names_do_not_import_nnunet_when_they_are_used() -> None:
    examples = {name: example_of(name).docstring for name in NAMES if name not in NEEDS_NNUNET}
    code = f"""
import doctest, sys
import nnunetv2_deferral
for name in {list(examples)}:
    getattr(nnunetv2_deferral, name)
    assert "nnunetv2" not in sys.modules, name
for name in {[name for name in examples if name != "write_maps"]}:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(nnunetv2_deferral, name), name, globs={{}})
    doctest.DocTestRunner(verbose=False).run(example)
    assert "nnunetv2" not in sys.modules, name
print("pure")
"""
    assert fresh_interpreter(code).endswith("pure\n")
