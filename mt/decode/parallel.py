"""Batches side by side on the cores of a CPU, each on one of them.

The operators of a search are small. Cores that share one wait for each other most of the time, and threads that each
have their own batch wait for Python's interpreter; processes do neither.
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


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], n_workers: int
) -> Generator[Result, None, None]:
    """Yield the function of each item, in order, computed by n_workers threads.

    An interrupt or an error does not wait for them; a thread that is at work finishes its item.
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
    """Return threads that stay until the program ends.

    A thread that has used MKL takes one of MKL's locks when it ends. In a process that is forked meanwhile this lock is
    never released, and its next product waits for ever.
    """
    return ThreadPoolExecutor(n)


class Forks:
    """Processes that share all that this one had in memory when the first of them was needed, weights included.

    They are forked, so nothing is copied or loaded again, and end with this object and this process, however they end.
    A call that is interrupted or fails ends them at once, whatever they do; the next call forks new ones.
    """

    def __init__(self, n: int) -> None:
        self.n = n if sys.platform == "linux" else 1  # on other systems a fork may not compute
        self._workers: Workers | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
        """Yield the function of each item, in order; it is a function of a module, as all goes through pipes.

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
                raise MTError(
                    f"one of {self.n} processes that translate was killed, perhaps for want of memory: smaller batches "
                    "(--batch-tokens) or fewer threads (OMP_NUM_THREADS) take less"
                ) from None
            raise
