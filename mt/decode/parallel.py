"""Running batches in parallel on a CPU, one batch on each core.

The operators of a search are small. Cores that share an operator wait for each other most of the time, and threads that
each have a batch wait for Python's interpreter lock. Processes do neither.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from mt.errors import MTError
from mt.system.workers import WorkerLost, Workers

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], n_workers: int
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order, computed by n_workers threads.

    An interrupt or an error does not wait for the threads; a busy thread finishes its item.
    """
    if n_workers == 1 or len(items) == 1:
        yield from map(function, items)
        return
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _threads(n_workers).map(function, items)
    finally:
        torch.set_num_threads(n_threads)


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    """Return a pool of threads that live until the program ends.

    A thread that has used MKL takes one of MKL's locks when it ends. In a process that is forked at that moment, the
    lock is never released, and the next matrix product waits forever.
    """
    return ThreadPoolExecutor(n)


class ForkPool:
    """Worker processes that share the memory that this process had at the first call, weights included.

    They are forked, so nothing is copied or loaded again. They end with this object and with this process, even if it
    is killed. An interrupted or failed call kills them at once; the next call forks new ones.
    """

    def __init__(self, n: int) -> None:
        self.n = n if sys.platform == "linux" else 1  # on other systems a forked process may fail to compute
        self._workers: Workers | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
        """Yield function(item) for each item, in order. The function is pickled, so it must belong to a module.

        Raises:
            MTError: a process was killed.
        """
        try:
            if self._workers is None:
                self._workers = Workers(self.n, torch.set_num_threads, (1,), are_forked=True).__enter__()
                self._end = weakref.finalize(self, self._workers.kill)
            yield from self._workers.map(function, items, ahead=len(items))
        except BaseException as error:
            if self._workers is not None:
                self._end()
                self._workers = None
            if isinstance(error, WorkerLost):
                problem = f"one of {self.n} translation processes was killed, perhaps because memory ran out"
                fix = "set OMP_NUM_THREADS to fewer threads, or lower --batch-tokens of mt translate"
                raise MTError("", problem, fix) from None
            raise
