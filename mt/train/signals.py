"""SIGINT and SIGTERM as wishes: noted at once, granted where nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# A scheduler signals every process of a job, and torchrun passes on what it gets: that is one wish, not two.
REPEAT_SECONDS = 1.0


class _Interrupted(BaseException):
    """A signal came while something ran that may be cut short."""


class Received:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._may_interrupt = False

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """What runs in here is cut short by a signal, so it must leave nothing half done."""
        with suppress(_Interrupted):
            self._may_interrupt = True
            try:
                yield
            except _Interrupted:
                pass
            finally:
                self._may_interrupt = False

    def interrupt_if_any(self) -> None:
        """Cut short what `interrupting` surrounds if a signal has come; elsewhere nothing."""
        if self._may_interrupt and self.number is not None:
            raise _Interrupted


@contextmanager
def caught_signals(speaks: bool = True) -> Iterator[Received]:
    """Note SIGINT and SIGTERM, so that the loop can save and stop between two steps; a second one acts at once."""
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    noted_at = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal noted_at
        if received.number is None:
            received.number, noted_at = number, time.monotonic()
            name = signal.Signals(number).name
            if speaks:
                with suppress(OSError):  # whoever read it may be gone, by the same Ctrl-C
                    message = f"{name}: stopping after this step, to save it; a second one stops at once"
                    print(message, file=sys.stderr, flush=True)
            received.interrupt_if_any()
        elif time.monotonic() - noted_at > REPEAT_SECONDS:
            for each in numbers:
                signal.signal(each, before[each])
            os.kill(os.getpid(), number)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])
