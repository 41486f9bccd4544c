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
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import torch

from mt.errors import MTError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_OURS = {signal.SIGINT, signal.SIGTERM}  # signals that processes leave to their parent


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
    What is interrupted or fails ends them at once, whatever they are at; new ones are forked when there is work again.
    """

    def __init__(self, n: int) -> None:
        self.n = n if sys.platform == "linux" else 1  # elsewhere what is forked may not compute
        self._workers: dict[Connection, BaseProcess] = {}
        self._is_at_work = False
        weakref.finalize(self, _end, self._workers)

    def map(self, function: Callable[..., Result], *arguments: Sequence[Any]) -> Generator[Result, None, None]:
        """The function of the arguments, in order; it is a module's, and all else goes through pipes.

        Raises:
            MTError: a process was killed.
        """
        assert not self._is_at_work, "one after the other"
        self._is_at_work = True
        try:
            if not self._workers:
                self._start()
            yield from self._in_order(function, list(zip(*arguments, strict=True)))
            self._is_at_work = False
        except (EOFError, ConnectionError):
            raise MTError(
                f"one of {self.n} processes that translate was killed, perhaps for want of memory: smaller batches "
                "(--batch-tokens) or fewer threads (OMP_NUM_THREADS) take less"
            ) from None
        finally:
            if self._is_at_work:
                _end(self._workers)
                self._is_at_work = False

    def _in_order(self, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
        to_do = iter(enumerate(calls))
        busy: dict[Connection, int] = {}
        results: dict[int, Result] = {}

        def give_work_to(idle: Iterable[Connection]) -> None:
            # To nobody else: in a pipe that is not read from there may be no room.
            for worker, (number, call) in zip(idle, to_do, strict=False):
                worker.send((function, call))
                busy[worker] = number

        give_work_to(self._workers)
        for wanted in range(len(calls)):
            while wanted not in results:
                ready = cast(list[Connection], wait(busy))
                for worker in ready:
                    results[busy.pop(worker)] = _received(worker)
                give_work_to(ready)
            yield results.pop(wanted)

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)  # until a process knows what not to hear
        try:
            for _ in range(self.n):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                self._workers[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: dict[Connection, BaseProcess]) -> None:
    for process in workers.values():
        process.kill()
    for connection, process in workers.items():
        process.join()
        connection.close()
    workers.clear()


def _received(worker: Connection) -> Any:
    result, error, trace = worker.recv()
    if error is not None:
        raise error from RuntimeError(f"in a process that translates:\n{trace}")
    return result


def _work(calls: Connection, parent: int) -> None:
    """In a process: one call after the other."""
    _begin(parent)
    while True:
        function, arguments = calls.recv()
        outcome: tuple[Any, Exception | None, str]
        try:
            outcome = (function(*arguments), None, "")
        except Exception as error:
            outcome = (None, error, traceback.format_exc())
        calls.send(outcome)


def _begin(parent: int) -> None:
    """In a new process: one thread, no ear for what is meant for the parent, and no life after it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    torch.set_num_threads(1)
