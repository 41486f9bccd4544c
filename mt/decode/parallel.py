"""Batches side by side on the cores of a CPU, each on one of them.

The operators of a search are small. Cores that share one wait for each other most of the time, and threads that each
have a batch of their own wait for Python's interpreter; processes do neither.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from mt.errors import MTError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], n_workers: int) -> Iterator[Result]:
    """The function of each item, in order; so many at a time, in threads."""
    if n_workers == 1 or len(items) == 1:
        yield from map(function, items)
        return
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


class Processes:
    """Processes that have all that this one has had when the first of them was needed, weights included.

    They are forked, so nothing is copied or loaded again, and end with this process, however it ends.
    """

    def __init__(self, n: int) -> None:
        self.n = n if sys.platform == "linux" else 1  # elsewhere what is forked may not compute
        self._pool: Executor | None = None

    def map(self, function: Callable[..., Result], *arguments: Sequence[Any]) -> Iterator[Result]:
        """The function of the arguments, in order; it is a module's, and all else goes through pipes.

        Raises:
            MTError: a process was killed.
        """
        if self._pool is None:
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(self.n, context, _begin, (os.getpid(),))
        try:
            yield from self._pool.map(function, *arguments)
        except BrokenProcessPool:
            raise MTError(
                f"one of {self.n} processes that translate was killed, perhaps for want of memory: smaller batches "
                "(--batch-tokens) or fewer threads (OMP_NUM_THREADS) take less"
            ) from None


def _begin(parent: int) -> None:
    """In a new process: one thread, no ear for what is meant for the parent, and no life after it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
