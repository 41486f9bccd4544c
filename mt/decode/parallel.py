"""Batches side by side on the cores of a CPU, each on one of them.

The operators of a search are small. Cores that share one wait for each other most of the time, and threads that each
have a batch of their own wait for Python's interpreter; processes do neither.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch

from mt.errors import MTError
from mt.system.workers import WorkerLost, Workers

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], n_workers: int
) -> Generator[Result, None, None]:
    """Return the function of each item, in order, computed by n_workers threads.

    What is interrupted or fails does not wait for them; a thread that is at work comes to the end of its item.
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
    """Processes that have all that this one has had when the first of them was needed, weights included.

    They are forked, so nothing is copied or loaded again, and end with this object and this process, however they end.
    A call that is interrupted or fails ends them at once, whatever they are at; the next call forks new ones.
    """

    def __init__(self, n: int) -> None:
        self.n = n if sys.platform == "linux" else 1  # elsewhere what is forked may not compute
        self._pools: list[Workers] = []  # one, once there was work
        self._is_at_work = False
        weakref.finalize(self, _end, self._pools)

    def map(self, function: Callable[..., Result], *arguments: Sequence[Any]) -> Generator[Result, None, None]:
        """Yield the function of the arguments, in order; the function is one of a module, as all goes through pipes.

        Raises:
            MTError: a process was killed.
        """
        assert not self._is_at_work, "one after the other"
        self._is_at_work = True
        try:
            if not self._pools:
                self._pools.append(Workers(self.n, torch.set_num_threads, (1,), are_forked=True).__enter__())
            calls = [(function, each) for each in zip(*arguments, strict=True)]
            yield from self._pools[0].map(_called, calls, ahead=len(calls))
            self._is_at_work = False
        except WorkerLost:
            raise MTError(
                f"one of {self.n} processes that translate was killed, perhaps for want of memory: smaller batches "
                "(--batch-tokens) or fewer threads (OMP_NUM_THREADS) take less"
            ) from None
        finally:
            if self._is_at_work:
                _end(self._pools)
                self._is_at_work = False


def _called(call: tuple[Callable[..., Result], tuple[Any, ...]]) -> Result:
    function, arguments = call
    return function(*arguments)


def _end(pools: list[Workers]) -> None:
    for pool in pools:
        pool.kill()
    pools.clear()
