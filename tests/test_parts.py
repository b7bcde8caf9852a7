"""Parts of the cases: which, and what is read of the files in which they leave what they found."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram
from nnunetv2_deferral.parts import Part, in_order, pieces, read_parts

CASES = ("a", "b", "c", "d", "e")


def write_all(folder, *contents, arguments=None):
    for number, content in enumerate(contents):
        Part(number=number, of=len(contents)).write(content, folder, arguments or {"seed": 1})


def test_each_case_is_in_one_part_as_nnunet_shares_them_out():
    parts = [Part(number=number, of=3).cases(CASES) for number in range(3)]
    assert parts == [CASES[number::3] for number in range(3)]
    assert Part(number=6, of=7).cases(CASES) == ()


@pytest.mark.parametrize(("number", "of"), [(0, 0), (-1, 3), (3, 3)])
def test_numbers_out_of_range_are_refused(number, of):
    with pytest.raises(InputError, match=rf"got {of if of < 1 else number}$"):
        Part(number=number, of=of)


@pytest.mark.parametrize(("number", "processes", "expected"), [(9, 1, 1), (1, 4, 1), (9, 2, 8), (3, 2, 3), (0, 2, 1)])
def test_pieces_for_processes_have_each_case_once(number, processes, expected):
    cases = [f"case_{place}" for place in range(number)]
    found = pieces(cases, processes)
    assert len(found) == expected
    assert sorted(case for piece in found for case in piece) == cases


def test_what_parts_found_is_read_in_their_order(tmp_path):
    histogram = ScoreHistogram()
    histogram.update(np.array([0.5]), np.array([True]))
    write_all(tmp_path, histogram, {"x": np.arange(3)}, ())
    first, second, third = read_parts(tmp_path, {"seed": 1})
    np.testing.assert_array_equal(first.errors, histogram.errors)
    np.testing.assert_array_equal(second["x"], [0, 1, 2])
    assert third == ()


def test_results_are_put_in_the_order_of_the_cases():
    assert list(in_order([{"b": 1, "d": 2}, {"a": 3}], CASES)) == ["a", "b", "d"]


def test_missing_parts_are_listed(tmp_path):
    write_all(tmp_path, 0, 1, 2, 3)
    for number in (1, 3):
        Part(number=number, of=4).file(tmp_path).unlink()
    with pytest.raises(InputError, match=r"parts lacks 2 of 4 parts: 1, 3"):
        list(read_parts(tmp_path, {"seed": 1}))


def test_no_parts_and_parts_of_two_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no parts"):
        list(read_parts(tmp_path, {}))
    write_all(tmp_path, 0, 1)
    write_all(tmp_path, 0, 1, 2)
    with pytest.raises(InputError, match="has parts of 2 and of 3"):
        list(read_parts(tmp_path, {}))


def test_a_part_made_with_other_arguments_is_refused_by_name(tmp_path):
    write_all(tmp_path, 0, 1)
    with pytest.raises(InputError, match=r"part_0_of_2.pkl.gz .* different arguments .*\(seed is 1, not 2\)"):
        list(read_parts(tmp_path, {"seed": 2}))


@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_a_damaged_part_is_refused_by_name(tmp_path, share):
    write_all(tmp_path, np.random.default_rng(0).random(100), 1)
    file = Part(number=0, of=2).file(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"part_0_of_2.pkl.gz cannot be read: .*; make this part again"):
        list(read_parts(tmp_path, {"seed": 1}))


class Runs:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("call", [Path.touch, gzip.open, InputError.__init__])
def test_a_part_that_would_run_a_program_is_not_read(tmp_path, call):
    victim = tmp_path / "victim"
    file = Part().file(tmp_path)
    file.parent.mkdir()
    with gzip.open(file, "wb") as stream:
        pickle.dump({"arguments": {}, "content": Runs(call, victim, "w")}, stream)
    with pytest.raises(InputError, match="it refers to"):
        list(read_parts(tmp_path, {}))
    assert not victim.exists()
