"""Random damage to settings and files: every input is used as it is or refused by name, never a traceback.

A fixed number of examples for each kind, the same in every run; `pytest -m slow` tries many more, at random.
"""

import copy
import json
import shutil
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_prediction import read_mask, write_study

from nnunetv2_deferral.commands import evaluate, fuse, simulate_experts, worklist
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.settings import SettingsBlock, resolve_settings

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), 2**63, 0.5, 1e308, -0.0])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["ann", "../x", ".", "", "x" * 300, ".nii.gz", "standard", "\x00"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
quick = settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=SUPPRESSED)
long = settings(max_examples=1500, deadline=None, database=None, suppress_health_check=SUPPRESSED)


def both(test):
    """The test with few examples, and with many under the marker `slow`."""
    examples = [pytest.param(quick, id="quick"), pytest.param(long, id="long", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("how", examples)(test)


def paths_of(content, path=()):
    """The path to every value in JSON content."""
    yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from paths_of(value, (*path, key))


def damaged(draw, content):
    """The content with one value removed, replaced, or put elsewhere."""
    content = copy.deepcopy(content)
    path = draw(st.sampled_from([path for path in paths_of(content) if path]))
    *above, last = path
    holder = content
    for key in above:
        holder = holder[key]
    kind = draw(st.sampled_from(["remove", "replace", "add"]))
    if kind == "remove":
        del holder[last]
    elif kind == "replace" or not isinstance(holder[last], dict):
        holder[last] = draw(VALUES)
    else:
        holder[last][draw(st.text(max_size=4))] = draw(VALUES)
    return content


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A prediction of two cases with experts, references and images."""
    root = tmp_path_factory.mktemp("template")
    write_study(root)
    return root


@pytest.fixture
def fresh(template, tmp_path):
    def copied():
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        shutil.copytree(template, tmp_path / "work")
        return tmp_path / "work"

    return copied


def run(main, *arguments):
    """The exit code of a command; what is no SystemExit is a failure of the test."""
    try:
        main([*map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


def commands(root):
    data = ("-i", root / "in", "-o", root / "out")
    labels = ("-i", root / "labels", "-djfile", root / "in" / "dataset.json", "-o", root / "out")
    # Two regions, of both cases and both experts: most of the time goes into drawing them.
    listed = ("-images", root / "images", "-max_regions", 2)
    return {
        "fuse": partial(run, fuse.main, *data, "-experts", root / "experts"),
        "evaluate": partial(run, evaluate.main, *data, "-ref", root / "labels", "-experts", root / "experts"),
        "worklist": partial(run, worklist.main, *data, *listed),
        "simulate_experts": partial(run, simulate_experts.main, *labels),
    }


@both
def test_settings(how):
    @how
    @given(block=st.dictionaries(st.sampled_from([*SettingsBlock.__annotations__]), VALUES, max_size=3))
    def check(block):
        try:
            resolved = resolve_settings(block)
        except InputError:
            return
        assert resolve_settings(json.loads(json.dumps(resolved.to_dict()))) == resolved

    check()


@both
@pytest.mark.parametrize(
    ("name", "named", "command"),
    [
        *(
            ("in/deferral/deferral.json", "in/deferral/deferral.json", each)
            for each in ("fuse", "evaluate", "worklist")
        ),
        # Damage may also show in another file, such as a mask without the ending that dataset.json now has.
        *(("in/dataset.json", "", each) for each in ("fuse", "worklist", "simulate_experts")),
    ],
)
def test_json_files(fresh, capsys, how, name, named, command):
    @how
    @given(data=st.data())
    def check(data):
        root = fresh()
        file = root / name
        file.write_text(json.dumps(damaged(data.draw, json.loads(file.read_text()))))
        capsys.readouterr()
        if code := commands(root)[command]():
            assert code == 2
            assert str(root / named) in capsys.readouterr().err

    check()


@both
@pytest.mark.parametrize("where", ["in", "in/deferral/route", "experts/ann", "labels"])
def test_bytes_of_masks(fresh, capsys, how, where):
    """Damaged files are refused by name, unless the damage changes nothing."""

    @how
    @given(data=st.data())
    def check(data):
        root = fresh()
        file = root / where / "x.nii.gz"
        whole, content = read_mask(file), bytearray(file.read_bytes())
        kind = data.draw(st.sampled_from(["cut", "flip", "insert", "random"]))
        place = data.draw(st.integers(0, len(content) - 1))
        if kind == "cut":
            content = content[:place]
        elif kind == "flip":
            content[place] ^= data.draw(st.integers(1, 255))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=40))
        else:
            content = data.draw(st.binary(max_size=400))
        assume(bytes(content) != file.read_bytes())
        file.write_bytes(content)
        capsys.readouterr()
        if code := commands(root)["evaluate"]():
            assert code == 2
            assert str(file) in capsys.readouterr().err
        else:
            assert np.array_equal(read_mask(file), whole)

    check()
