"""Worker processes: results in order, flat memory, and an end at once where something goes wrong.

Not `concurrent.futures.ProcessPoolExecutor`, for two reasons: before Python 3.11.5 it can hang for ever when a worker
is killed (https://github.com/python/cpython/issues/94777), and its workers import the caller's main script anew, which
runs it again where it has no main guard.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, TypeVar

from mt.errors import MTError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# A module of the working directory must not stand in for one of Python's: the search path comes from the parent.
_BOOTSTRAP = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "from multiprocessing.connection import Connection; connection = Connection(int(sys.argv[1])); "
    "sys.path[:] = connection.recv(); from mt.processes import _serve; _serve(connection, int(sys.argv[2]))"
)
_SECONDS_BETWEEN_LOOKS = 0.5  # for the parent, where the system does not tell of its end
_SECONDS_FOR_SIGTERM = 0.5
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Processes:
    """`n` worker processes while inside `with`; leaving it by an exception ends them at once.

    Functions, items and results travel by pickle, so a function has to stand in a module. Workers leave Ctrl-C to this
    process, and end with it.

    Args:
        n: 0 runs everything in this process.
        initializer: called with `initargs` in each worker before anything else.
    """

    def __init__(
        self, n: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
    ) -> None:
        self.n = n
        self._prelude = None if initializer is None else (initializer, initargs)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Processes:
        try:
            for _ in range(self.n):
                self._workers.append(_Worker(self._tasks, self._prelude))
        except BaseException:
            self._kill()
            raise
        if self.n == 0 and self._prelude is not None:
            initializer, initargs = self._prelude
            initializer(*initargs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()
            return
        try:
            for _ in self._workers:
                self._tasks.put(None)
            for worker in self._workers:
                worker.join()
        except BaseException:
            self._kill()
            raise

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            self._tasks.put(None)  # so that its thread ends, too
        for worker in self._workers:
            worker.process.wait()

    def submit(self, function: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """`function(*arguments)`, to be run by the next free worker.

        The result raises what the function raises, or an MTError where the worker was killed.
        """
        future: Future[_Result] = Future()
        task = _Task(future, function, arguments)
        if self.n == 0:
            task.run_here()
        else:
            self._tasks.put(task)
        return future

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int) -> Iterator[_Result]:
        """The results in the order of the items.

        Args:
            items: drawn only as they are needed.
            ahead: items in work or done whose results were not yet taken: at most so many, at least 1.
        Raises:
            MTError: a worker was killed.
            Exception: what the function raises for an item, once the results before it are taken.
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
    """`function(*arguments)`, run in a process of its own: its memory goes with it, and Ctrl-C does not wait for it.

    Args:
        while_waiting: called about once a second.
    """
    with Processes(1) as processes:
        future = processes.submit(function, *arguments)
        while wait([future], timeout=1.0).not_done:
            while_waiting()
        return future.result()


class Ending:
    """What shall end this process, once a signal has come."""

    def __init__(self) -> None:
        self._reason: BaseException | None = None

    def come(self, reason: BaseException) -> None:
        self._reason = reason
        raise reason

    def check(self) -> None:
        """Raise it again: Python drops what is raised while it runs a callback of a weak reference or a finaliser."""
        if self._reason is not None:
            raise self._reason


@contextlib.contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """SIGTERM becomes SystemExit(143) in here, so that what is open is cleaned up, and no Ctrl-C is lost.

    In the main thread alone; call `check` of what this gives now and then.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: ending.come(SystemExit(143)))}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: ending.come(KeyboardInterrupt()))
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Task:
    def __init__(self, future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.future = future
        self.call = (function, arguments)

    def run_here(self) -> None:
        function, arguments = self.call
        try:
            self.future.set_result(function(*arguments))
        except Exception as error:
            self.future.set_exception(error)


class _Worker:
    """One process, and the thread that hands it tasks and waits for their results."""

    def __init__(self, tasks: queue.SimpleQueue[_Task | None], prelude: tuple[Any, ...] | None) -> None:
        self._tasks = tasks
        self._prelude = prelude
        self._connection, there = Pipe()
        with there:
            self.process = _start(there)
        self._thread = threading.Thread(target=self._hand_out_tasks, name="worker-process", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, once a None is among the tasks for it."""
        self._thread.join()
        self.process.wait()

    def _hand_out_tasks(self) -> None:
        with self._connection:
            failure = self._prepared()
            while (task := self._tasks.get()) is not None:
                if not task.future.set_running_or_notify_cancel():
                    continue
                result, error = (None, failure) if failure is not None else self._answer(task.call)
                if error is None:
                    task.future.set_result(result)
                else:
                    task.future.set_exception(error)
                # Nothing of a task outlives it: results are large.
                del task, result, error

    def _prepared(self) -> BaseException | None:
        """What goes wrong before the first task."""
        try:
            self._connection.send(sys.path)
        except OSError:
            return self._lost()
        return None if self._prelude is None else self._answer(self._prelude)[1]

    def _answer(self, call: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
        """Result and None, or None and what was raised."""
        try:
            message = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            return None, error
        try:
            self._connection.send_bytes(message)
            answer: tuple[Any, BaseException | None] = self._connection.recv()
        except (EOFError, OSError):
            return None, self._lost()
        except Exception as error:
            return None, error
        return answer

    def _lost(self) -> MTError:
        status = self.process.wait()
        if status == -signal.SIGKILL:
            return MTError(
                "a worker process was killed, which mostly means that memory is short: free some, or give this job more"
            )
        if status == -signal.SIGTERM:
            # Who ends a whole job sends it to this process as well, which then has its own way to end.
            time.sleep(_SECONDS_FOR_SIGTERM)
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return MTError(f"a worker process ended before its work was done ({how}): start again")


def _start(there: Connection) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _BOOTSTRAP, str(there.fileno()), str(os.getpid())]
    # A Ctrl-C while Python starts would print a traceback: it stays blocked until the worker ignores it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, parent: int) -> None:
    """What a worker does: answer calls until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with(parent)
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
            answer = _pickled_error(error)
        try:
            connection.send_bytes(answer)
        except OSError:
            return
        del answer


def _pickled_error(error: BaseException) -> bytes:
    """An answer that raises the error itself, with the worker's traceback as its cause, if it can travel."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        answer = pickle.dumps((None, _Remote(error, text)), pickle.HIGHEST_PROTOCOL)
        pickle.loads(answer)
    except Exception:
        return pickle.dumps((None, RuntimeError(f"in a worker process:\n{text}")))
    return answer


class _WorkerTraceback(Exception):
    """Where in a worker an error came from; the cause of the error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Remote:
    """An error on its way out of a worker: pickle alone would lose its cause."""

    def __init__(self, error: BaseException, text: str) -> None:
        self.error = error
        self.text = text

    def __reduce__(self) -> tuple[Callable[[BaseException, str], BaseException], tuple[BaseException, str]]:
        return _with_cause, (self.error, self.text)


def _with_cause(error: BaseException, text: str) -> BaseException:
    error.__cause__ = _WorkerTraceback(text)
    return error


def _end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was faster
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
