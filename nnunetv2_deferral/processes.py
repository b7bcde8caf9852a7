"""Working on many cases, in this process or in several."""

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
) -> Iterator[Result]:
    """Do some work for every case, with a bar over the cases.

    Args:
        work: Goes to the workers by pickle, as the cases and what it returns do.
        cases: What to work on; may be empty.
        num_processes: 1 works in this process, more in as many spawned ones (no more than there are cases).
        description: Of the bar.
        initializer: Called first in every spawned process.

    Yields:
        What `work` returns, in the order of the cases. An error of `work` ends it: what has not begun is not done.
    """
    with tqdm(total=len(cases), desc=description, unit="case") as bar, ExitStack() as stack:
        if min(num_processes, len(cases)) <= 1:
            results: Iterator[Result] = map(work, cases)
        else:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(num_processes, len(cases)), spawn, initializer=initializer)
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(work, cases)
        for result in results:
            bar.update()
            yield result
