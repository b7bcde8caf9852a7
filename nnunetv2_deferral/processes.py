"""Processing of cases, serial or in parallel."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from tqdm import tqdm

Case = TypeVar("Case")
Result = TypeVar("Result")


def map_cases(
    work: Callable[[Case], Result],
    cases: Sequence[Case],
    num_processes: int,
    *,
    description: str,
    initializer: Callable[[], object] | None = None,
    size: Callable[[Case], int] = lambda case: 1,
) -> Iterator[Result]:
    """Apply a function to every case, with a progress bar.

    Args:
        work: The function. With several processes it, the cases and the results are pickled.
        cases: Its arguments; may be empty.
        num_processes: 1 runs in this process, more in as many spawned processes (at most one per case).
        description: Label of the progress bar.
        initializer: Called first in every spawned process.
        size: The number of cases that the progress bar counts for each of `cases`.

    Yields:
        The results, in the order of the cases. An exception of `work` is raised here and cancels pending cases.
    """
    with tqdm(total=sum(map(size, cases)), desc=description, unit="case") as bar, ExitStack() as stack:
        if min(num_processes, len(cases)) <= 1:
            results: Iterator[Result] = map(work, cases)
        else:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(num_processes, len(cases)), spawn, initializer=initializer)
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(work, cases)
        for case, result in zip(cases, results, strict=True):
            bar.update(size(case))
            yield result
