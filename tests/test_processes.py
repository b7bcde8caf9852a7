"""Work on several cases in several processes, of which the one that asks for it is one."""

import os
import time

import pytest

from nnunetv2_deferral.processes import Workers, map_cases


def in_process(case):
    time.sleep(0.02)
    return case, os.getpid()


def refuse_odd(case):
    if case % 2:
        raise ValueError(f"case {case}")
    return case


def by_map_cases(work, cases, number):
    return map_cases(work, cases, number, description="")


def by_workers(work, cases, number):
    with Workers(number) as workers:
        yield from workers.map(work, cases, description="")


both = pytest.mark.parametrize("call", [by_map_cases, by_workers])


@both
def test_this_process_works_while_others_start_and_results_keep_their_order(call):
    found = list(call(in_process, range(8), 2))
    assert [case for case, _ in found] == list(range(8))
    processes = {process for _, process in found}
    assert os.getpid() in processes
    assert len(processes) <= 2


@both
@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_first_case_that_fails_is_the_one_that_is_told(call, number):
    results = call(refuse_odd, range(6), number)
    assert next(results) == 0
    with pytest.raises(ValueError, match="case 1"):
        next(results)


@both
@pytest.mark.parametrize("cases", [0, 1, 2])
def test_there_may_be_fewer_cases_than_processes(call, cases):
    assert list(call(refuse_odd, [0] * cases, 4)) == [0] * cases
