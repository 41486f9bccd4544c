"""Processes for tests, forked from a server that has imported torch but not used it, so that they start quickly."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mt.cli import main

_context = multiprocessing.get_context("forkserver")
# Training and translating import some of these only when they run; torch's optimizers import torch._dynamo.
_context.set_forkserver_preload(
    [
        "mt.pipeline",
        "mt.tools.verify",
        "pytest",
        "tests.toys",
        "torch._dynamo",
        "tensorboard.summary.writer.record_writer",
    ]
)


class Fork:
    """A function that runs in its own process and prints to a file. It has the interface of `subprocess.Popen`.

    Args:
        function: a function of a module, because the other process must find it by name.
    """

    def __init__(self, log: Path, function: Callable[..., None], *arguments: Any) -> None:
        self._process = _context.Process(target=_with_log, args=(log, function, *arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("a fork", timeout)
        return self._process.exitcode


class MT(Fork):
    """The command line of `mt` in its own process, as from a shell except for the imports. Killed at the end.

    Args:
        environment: changes to the environment of this process; may include OMP_NUM_THREADS.
        before: a function of a module, called in the process before the command line.
    """

    def __init__(
        self,
        *arguments: object,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._outputs = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115
        words = [str(argument) for argument in arguments]
        reading, writing = os.pipe()
        handed = [_Handed(descriptor) for descriptor in (reading, *(each.fileno() for each in self._outputs))]
        target = (handed, {**os.environ, **(environment or {})}, before, words)
        self._process = _context.Process(target=_run_mt, args=target)
        self._process.start()
        os.close(reading)
        threading.Thread(target=_write, args=(writing, stdin)).start()

    def __enter__(self) -> MT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.wait()
        for stream in self._outputs:
            stream.close()

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Wait for the end; return standard output and standard error."""
        self.wait(timeout)
        written = []
        for stream in self._outputs:
            stream.seek(0)
            written.append(stream.read())
        return written[0], written[1]


def run_mt(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line of `mt` to its end; see `MT`."""
    with MT(*arguments, **options) as process:
        out, errors = process.communicate(timeout)
        assert process.returncode is not None
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)


class _Handed:
    """A file descriptor that is passed to the new process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Any]]:
        return _detached, (multiprocessing.reduction.DupFd(self._descriptor),)


def _detached(handed: Any) -> int:
    return int(handed.detach())


def _write(pipe: int, content: bytes) -> None:
    with suppress(BrokenPipeError), open(pipe, "wb") as stream:
        stream.write(content)


def _run_mt(
    streams: list[int], environment: dict[str, str], before: Callable[[], None] | None, words: list[str]
) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = ["mt", *words]
    os.setpgid(0, 0)  # its own process group, as in a terminal
    if before is not None:
        before()
    main()


def _with_log(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    function(*arguments)
