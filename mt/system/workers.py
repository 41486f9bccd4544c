"""Worker processes that return results in order, use constant memory and end at once after an error.

Workers are either new interpreters, which import only what their tasks need, or forks, which share this process's
memory.

Why not `concurrent.futures.ProcessPoolExecutor`: its new interpreters import the caller's main script, which runs the
script again if it has no main guard, and look for Python's modules in the working directory first. It cannot end
workers in the middle of a task or report how a lost one ended. If this process is killed, `multiprocessing` prints
messages about leaked semaphores.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from mt.errors import MTError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Call = tuple[Callable[..., Any], tuple[Any, ...]]
_Tasks = queue.SimpleQueue[tuple[Future[Any], _Call] | None]

# A module in the working directory must not replace one of Python's, so the search path comes from the parent.
_BOOTSTRAP = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "from multiprocessing.connection import Connection; connection = Connection(int(sys.argv[1])); "
    "sys.path[:] = connection.recv(); from mt.system.workers import _serve; _serve(connection, int(sys.argv[2]))"
)
_SIGTERM_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_PARENTS_SIGNALS = {signal.SIGINT, signal.SIGTERM}  # handled by the parent, which then ends its workers


class WorkerLost(MTError):
    """A worker process ended before its work was done."""


class Workers:
    """A pool of `n` worker processes inside a `with` block; an exception that leaves the block ends them at once.

    Functions, arguments and results are pickled, so functions must be defined at the top level of a module. Workers
    ignore Ctrl-C, which this process handles, and end when it ends.

    Args:
        n: the number of workers; 0 runs everything in this process.
        initializer: called with `initargs` in each worker before anything else.
        are_forked: fork this process, so that workers share its memory; only on Linux.
    """

    def __init__(
        self,
        n: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        are_forked: bool = False,
    ) -> None:
        self.n = n
        self._prelude = None if initializer is None else (initializer, initargs)
        self._are_forked = are_forked
        self._tasks: _Tasks = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._are_killed, self._is_submitting = False, threading.Lock()

    def __enter__(self) -> Workers:
        kind = _Fork if self._are_forked else _Interpreter
        try:
            for _ in range(self.n):
                self._workers.append(_Worker(kind, self._tasks, self._prelude))
        except BaseException:
            self.kill()
            raise
        for worker in self._workers:  # only after the last fork: a process with threads must not be forked
            worker.thread.start()
        if self.n == 0 and self._prelude is not None:
            initializer, initargs = self._prelude
            initializer(*initargs)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self._are_forked:  # forks hold each other's pipes open, so they never see their end
            self.kill()
            return
        try:
            for _worker in self._workers:
                self._tasks.put(None)
            for worker in self._workers:
                worker.thread.join()
                worker.process.wait()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the workers, also in the middle of a task. Tasks that they have not finished raise WorkerLost."""
        with self._is_submitting:
            self._are_killed = True
        for worker in self._workers:
            worker.process.kill()
            self._tasks.put(None)  # ends its thread
        for worker in self._workers:
            worker.process.wait()

    def submit(self, function: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """Run `function(*arguments)` in the next free worker; return its future result.

        The future raises the function's exception, or WorkerLost if the worker ended.
        """
        future: Future[_Result] = Future()
        if self.n == 0:
            _fulfil(future, partial(function, *arguments))
            return future
        with self._is_submitting:
            if self._are_killed:
                future.set_exception(WorkerLost("the worker processes have ended"))
            else:
                self._tasks.put((future, (function, arguments)))
        return future

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int) -> Iterator[_Result]:
        """Yield the results in the order of the items.

        Args:
            items: taken from the iterator only when they are needed.
            ahead: the largest number of items that are in work, or done but not yet yielded; at least 1.
        Raises:
            WorkerLost: a worker was killed.
            Exception: raised by the function for an item, after the results of earlier items.
        """
        submitted: deque[Future[_Result]] = deque()
        try:
            for item in items:
                submitted.append(self.submit(function, item))
                if len(submitted) >= ahead or self.n == 0:
                    yield submitted.popleft().result()
            while submitted:
                yield submitted.popleft().result()
        finally:
            for future in submitted:
                future.cancel()


def run_apart(
    function: Callable[..., _Result], *arguments: Any, while_waiting: Callable[[], None] = lambda: None
) -> _Result:
    """Return `function(*arguments)`, computed in a separate process, whose end frees its memory.

    Ctrl-C stops it at once.

    Args:
        while_waiting: called about once a second.
    """
    with Workers(1) as workers:
        future = workers.submit(function, *arguments)
        while wait([future], timeout=1.0).not_done:
            while_waiting()
        return future.result()


def _fulfil(future: Future[Any], work: Callable[[], Any], errors: type[BaseException] = Exception) -> None:
    try:
        future.set_result(work())
    except errors as error:
        future.set_exception(error)


class _Worker:
    """A worker process, and the thread that gives it tasks and waits for their results."""

    def __init__(self, start: type[_Interpreter] | type[_Fork], tasks: _Tasks, prelude: _Call | None) -> None:
        self._connection, there = Pipe()
        # A Ctrl-C while Python starts would print a traceback, so signals are blocked until the worker handles them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            with there:
                self.process: _Interpreter | _Fork = start(self._connection, there)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._prelude = prelude  # None once the worker has answered it
        # Not a thread of a ThreadPoolExecutor: at its end, Python would wait for results that nobody needs any more.
        self.thread = threading.Thread(target=self._hand_out, args=(tasks,), name="worker-process", daemon=True)

    def _hand_out(self, tasks: _Tasks) -> None:
        with self._connection:
            while (task := tasks.get()) is not None:
                future, call = task
                if future.set_running_or_notify_cancel():
                    _fulfil(future, partial(self._run, call), BaseException)
                # Free the task's memory before waiting for the next one: results are large.
                del task, future, call

    def _run(self, call: _Call) -> Any:
        if self._prelude is not None:
            self._exchange(self._prelude)
            self._prelude = None
        return self._exchange(call)

    def _exchange(self, call: _Call) -> Any:
        """Let the worker run a call; return its result or raise its exception."""
        message = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.send_bytes(message)
            result, error = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if error is not None:
            raise error
        return result

    def _lost(self) -> MTError:
        status = self.process.wait()
        if status == -signal.SIGKILL:
            return WorkerLost(
                "a worker process was killed, probably because memory ran out: free some, or give this job more"
            )
        if status == -signal.SIGTERM:
            # A scheduler that ends a whole job also sends SIGTERM to this process: wait for it to end in its own way.
            time.sleep(_SIGTERM_SECONDS)
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return WorkerLost(f"a worker process ended before its work was done ({how}): start again")


class _Interpreter(subprocess.Popen[bytes]):
    """A new Python interpreter."""

    def __init__(self, here: Connection, there: Connection) -> None:
        command = [sys.executable, "-c", _BOOTSTRAP, str(there.fileno()), str(os.getpid())]
        super().__init__(command, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()])
        here.send(sys.path)


class _Fork:
    """A copy of this process."""

    def __init__(self, _here: Connection, there: Connection) -> None:
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_serve, args=(there, os.getpid()), daemon=True)
        self._process.start()
        # Two threads may wait for the process, but the system reports its end to only one of them: the other one must
        # not read the exit code before it is set.
        self._is_waiting = threading.Lock()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        with self._is_waiting:
            self._process.join()
            return self._process.exitcode or 0


def _serve(connection: Connection, parent: int) -> None:
    """Run calls in a worker until the connection closes."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS_SIGNALS)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            function, arguments = pickle.loads(message)
            del message
            answer = pickle.dumps((function(*arguments), None), pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            answer = _pickled(error)
        try:
            connection.send_bytes(answer)
        except OSError:
            return
        del answer


def _pickled(error: BaseException) -> bytes:
    """Return an answer that raises the error in the parent, with the worker's traceback as a note.

    An error that cannot be pickled becomes a RuntimeError.
    """
    text = f"in a worker process:\n{''.join(traceback.format_exception(error))}"
    try:
        error.add_note(text)
        answer = pickle.dumps((None, error), pickle.HIGHEST_PROTOCOL)
        pickle.loads(answer)
    except Exception:
        return pickle.dumps((None, RuntimeError(text)))
    return answer


def _end_with(parent: int) -> None:
    """End this process when its parent ends. On other systems than Linux, it ends only after its task."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl was called
            os._exit(1)
