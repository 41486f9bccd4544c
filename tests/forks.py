"""Trainings in forks of one process that has imported torch and done nothing with it: a start costs no imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
# The last two are what training imports only once it runs; torch's optimizers take torch._dynamo.
_context.set_forkserver_preload(
    ["mt.pipeline", "mt.verify", "torch._dynamo", "tensorboard.summary.writer.record_writer"]
)


class Fork:
    """A function in a process of its own, with what it prints in a file; the face of `subprocess.Popen`.

    Args:
        function: of a module, for the other process has to find it.
    """

    def __init__(self, log: Path, function: Callable[..., None], *arguments: Any) -> None:
        self._process = _context.Process(target=_with_log, args=(log, function, *arguments))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _with_log(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    function(*arguments)
