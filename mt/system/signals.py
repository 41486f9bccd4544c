"""Handling of SIGINT and SIGTERM: exit cleanly, stop after the current step, or exit after a grace period."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)

# A second signal within this time is the same request: a scheduler signals every process of a job, and torchrun
# forwards its signal to its processes.
REPEAT_SECONDS = 1.0
SIGTERM_GRACE_SECONDS = 5.0
STUCK_AFTER_SIGTERM_SECONDS = 25.0  # torchrun kills remaining processes 30 s after SIGTERM

_Handler = Callable[[int, FrameType | None], None]


def _in_main_thread() -> bool:
    """Return whether this thread may set handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled(numbers: Iterable[int], handler: _Handler) -> Iterator[dict[int, Any]]:
    """Set a handler for signals inside the block, and yield the previous ones; outside the main thread, do nothing."""
    before = {number: signal.signal(number, handler) or signal.SIG_DFL for number in numbers if _in_main_thread()}
    try:
        yield before
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


_exits: list[BaseException] = []  # raised by signals inside the block of `exit_on_signals`


def raise_pending_exit() -> None:
    """Raise a signal's exception again: Python drops it inside weak reference callbacks and finalisers."""
    if _exits:
        raise _exits[-1]


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise SystemExit(143) on SIGTERM, so that `with` and `finally` blocks clean up, and make Ctrl-C reliable.

    Outside the main thread, do nothing. A long block should call `raise_pending_exit` now and then.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        _exits.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
        raise_pending_exit()

    has_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with _handled([signal.SIGTERM, *([signal.SIGINT] if has_default else [])], leave):
        try:
            yield
        finally:
            _exits.clear()


class _Interrupted(BaseException):
    """A signal arrived in a block that may be interrupted."""


class Received:
    """The signal that was received, if any."""

    number: int | None = None
    _may_interrupt = False

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal interrupt the block. The block must not leave partial results."""
        with suppress(_Interrupted):
            self._may_interrupt = True
            try:
                yield
            finally:
                self._may_interrupt = False

    def interrupt_if_any(self) -> None:
        """Leave the block of `interrupting` if a signal was received; outside such a block, do nothing."""
        if self._may_interrupt and self.number is not None:
            raise _Interrupted


@contextmanager
def caught_signals(speaks: bool = True) -> Iterator[Received]:
    """Record SIGINT and SIGTERM, so that the loop can save and stop after a step; a second signal acts at once."""
    received, noted_at = Received(), 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal noted_at
        if received.number is None:
            received.number, noted_at = number, time.monotonic()
            name = signal.Signals(number).name
            if speaks:
                _log.info(f"{name}: saving and stopping after this step; a second signal stops at once, without saving")
            received.interrupt_if_any()
        elif time.monotonic() - noted_at > REPEAT_SECONDS:
            for each, handler_before in before.items():
                signal.signal(each, handler_before)
            os.kill(os.getpid(), number)

    with _handled((signal.SIGINT, signal.SIGTERM), note) as before:
        yield received


@contextmanager
def sigterm_grace_period(rank: int) -> Iterator[None]:
    """Delay the end of the process after SIGTERM by some seconds, also after an error inside the block.

    torchrun sends SIGTERM when another rank is lost. This rank then gets an error in its current or next collective
    and needs time to print it. If the collective never ends, print the likely reason before torchrun kills the process.
    """

    def end_soon(number: int, _frame: FrameType | None) -> None:
        timer = threading.Timer(SIGTERM_GRACE_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()

    if not _in_main_thread():
        yield
        return
    is_over = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_exit_if_stuck, args=(reading, rank, is_over), daemon=True).start()
    before = signal.signal(signal.SIGTERM, end_soon)
    # A Python handler runs only after the current instruction, which may never end; the pipe gets the signal at once.
    fd_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    yield
    signal.set_wakeup_fd(fd_before)
    signal.signal(signal.SIGTERM, before)
    is_over.set()
    os.close(writing)


def _exit_if_stuck(reading: int, rank: int, is_over: threading.Event) -> None:
    while number := os.read(reading, 1):
        is_sigterm = number[0] == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ
        if is_sigterm and not is_over.wait(STUCK_AFTER_SIGTERM_SECONDS):
            message = (
                f"error: rank {rank}: still running {STUCK_AFTER_SIGTERM_SECONDS:g} s after SIGTERM, because another "
                "rank was lost or a step or save is slow: see torchrun's message; the same command continues from the "
                "last checkpoint\n"
            )
            os.write(2, message.encode())
            os._exit(2)
    os.close(reading)
