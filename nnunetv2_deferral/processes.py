"""Processing of cases, serial or in parallel, and how processes end."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from nnunetv2_deferral.errors import InputError

Case = TypeVar("Case")
Result = TypeVar("Result")


def check_processes(number: int) -> None:
    """Refuse a number of processes below 1.

    Raises:
        InputError: Naming the number.
    """
    if number < 1:
        raise InputError(f"the number of processes must be at least 1, got {number}")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that child processes are ended too.

    One that is ignored, as SIGHUP is after nohup, stays so.
    """

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        work: The function. With several processes it is pickled once for each, the cases and the results for each case.
        cases: Its arguments; may be empty.
        num_processes: 1 runs in this process, more in this one and spawned ones (at most one process per case).
        description: Label of the progress bar.
        initializer: Called first in each of several processes.
        size: The number of cases that the progress bar counts for each of `cases`.

    Yields:
        The results, in the order of the cases. An exception of `work` is raised here and cancels pending cases.
    """
    with ExitStack() as stack:
        if min(num_processes, len(cases)) <= 1:
            results: Iterator[Result] = map(work, cases)
        else:
            spawn = multiprocessing.get_context("spawn")
            others = min(num_processes, len(cases)) - 1
            pool = ProcessPoolExecutor(others, spawn, initializer=_begin, initargs=(work, initializer))
            stack.callback(pool.shutdown, cancel_futures=True)
            elsewhere = [pool.submit(_apply, case) for case in cases]
            if initializer is not None:
                initializer()
            results = _with_this_process(work, cases, elsewhere)
        yield from _shown(results, cases, description, size)


class Workers:
    """Processes for several calls, because they take seconds to start: a context, at whose end they end.

    A pickled copy has one process.
    """

    def __init__(self, number: int = 1) -> None:
        """Start nothing yet.

        Args:
            number: 1 runs in this process, more in this one and spawned ones.

        Raises:
            InputError: If the number is less than 1.
        """
        check_processes(number)
        self.number = number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, ()

    def map(
        self,
        work: Callable[[Case], Result],
        cases: Sequence[Case],
        *,
        description: str,
        size: Callable[[Case], int] = lambda case: 1,
    ) -> Iterator[Result]:
        """As :func:`map_cases`, in these processes; the function is sent with each case."""
        results: Iterator[Result] = map(work, cases)
        if min(self.number, len(cases)) > 1:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(self.number - 1, multiprocessing.get_context("spawn"))
            results = _with_this_process(work, cases, [self._pool.submit(work, case) for case in cases])
        yield from _shown(results, cases, description, size)


def _with_this_process(
    work: Callable[[Case], Result], cases: Sequence[Case], elsewhere: Iterable[Future[Result]]
) -> Iterator[Result]:
    """The results of other processes, which take seconds to start, and of this one, which has begun by then.

    This process takes the first case that no other has begun whenever the result whose turn it is has to be waited for,
    so that few results wait for their turn.
    """
    futures, first = dict(enumerate(elsewhere)), 0
    for place in range(len(cases)):
        first = max(first, place)
        while not futures[place].done() and first < len(cases):
            if futures[first].cancel():
                futures[first] = _done_here(work, cases[first])
            first += 1
        yield futures.pop(place).result()


def _done_here(work: Callable[[Case], Result], case: Case) -> Future[Result]:
    done: Future[Result] = Future()
    try:
        done.set_result(work(case))
    except Exception as error:  # raised when it is the turn of its case, as those of other processes
        done.set_exception(error)
    return done


def _shown(
    results: Iterable[Result], cases: Sequence[Case], description: str, size: Callable[[Case], int]
) -> Iterator[Result]:
    """The results, with a progress bar."""
    with tqdm(total=sum(map(size, cases)), desc=description, unit="case") as bar:
        for case, result in zip(cases, results, strict=True):
            bar.update(size(case))
            yield result


_in_this_process: list[Callable[[Any], Any]] = []


def _begin(work: Callable[[Any], Any], initializer: Callable[[], object] | None) -> None:
    """Keep the function in a spawned process."""
    if initializer is not None:
        initializer()
    _in_this_process[:] = [work]


def _apply(case: Any) -> Any:
    return _in_this_process[0](case)
