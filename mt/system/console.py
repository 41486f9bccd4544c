"""The standard streams: messages and a progress line on standard error, closed streams, text that is safe to show.

The package logs to the logger `mt` and those below it, and shows nothing by default. The command line calls
`show_messages`, which shows all messages.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from mt.errors import MTError
from mt.units import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

_log = logging.getLogger(__name__)
IN_PLACE_SECONDS = 0.5  # between two updates of a progress line
LINE_SECONDS = 10.0  # between two progress messages if there is no terminal


# Characters that a terminal may obey, but tab and line feed, and those that change the order of text.
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_STREAMS = "input", "output", "error"  # by descriptor
_closed: set[str] = set()  # the standard streams that the caller has closed


def printable(text: str) -> str:
    """Return text for people with an escape such as \\u001b, which JSON allows too, for each control character.

    Files of strangers contain them: on a terminal, they move the cursor or change what is shown.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def open_standard_streams() -> None:
    """Open the standard streams that the caller has closed, so that no other file gets their descriptors.

    They are opened on /dev/null, input only for writing and output only for reading, so that using them is an error.
    Messages are dropped.
    """
    for descriptor, name in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            _closed.add(name)
            os.open(os.devnull, os.O_RDONLY if name == "output" else os.O_WRONLY)  # gets the lowest free descriptor
    # Python sets closed streams to None. A stream of a used descriptor must not close it.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (stays open)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 (stays open)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 (stays open)


def require_stream(name: Literal["input", "output"]) -> None:
    """Raise an MTError if standard input or standard output is closed."""
    if name in _closed:
        raise MTError(f"standard {name}", "is closed", f"redirect it {'from' if name == 'input' else 'to'} a file")


class _ConsoleHandler(logging.Handler):
    """A handler that prints messages above the progress line. A closed terminal or a full disk does not stop it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        message = prefix + printable(record.getMessage())
        with suppress(OSError):
            if _shown:
                _shown[-1].console.print(message, markup=False, highlight=False, soft_wrap=True)
            elif sys.stderr is not None:
                print(message, file=sys.stderr, flush=True)


_handler = _ConsoleHandler()
_shown: list[Progress] = []  # the progress lines that are drawn now


def show_messages() -> None:
    """Start to show the messages of the package on standard error."""
    logger = logging.getLogger("mt")
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@lru_cache
def note(text: str) -> None:
    """Log a note for the user, each text only once."""
    _log.info("note: %s", text)


def is_terminal() -> bool:
    """Return whether messages are shown on a terminal."""
    return _handler in logging.getLogger("mt").handlers and sys.stderr is not None and sys.stderr.isatty()


class LiveLine:
    """A progress line that is updated in place: a count, a bar if the total is known, a text, and a clock's text.

    Args:
        clock: returns the last text, several times a second. Without it, the line changes only when `show` is called.
    """

    def __init__(
        self, count: str, text: str, done: float, total: float | None, *, clock: Callable[[], str] | None = None
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        class Clock(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(clock() if clock else "")

        bar = [] if total is None else [BarColumn(bar_width=24)]
        last = [Clock()] if clock else []
        columns = [TextColumn("{task.fields[count]}"), *bar, TextColumn("{task.description}"), *last]
        self._progress = Progress(
            *columns,
            console=Console(stderr=True, force_terminal=True),
            auto_refresh=clock is not None,
            transient=True,
            redirect_stdout=False,  # standard output has the command's result, not messages
        )
        self._task = self._progress.add_task(text, total=total, count=count)
        self._progress.update(self._task, completed=done)
        self._redraws = clock is not None
        self._progress.start()
        _shown.append(self._progress)

    def show(self, count: str, done: float, text: str | None = None) -> None:
        """Update the line; without a text, the old one stays."""
        self._progress.update(self._task, count=count, completed=done, description=text, refresh=not self._redraws)

    def close(self) -> None:
        """Remove the line."""
        _shown.remove(self._progress)
        self._progress.stop()


class Meter:
    """A progress display with speed and time left: in place on a terminal, otherwise as a message now and then.

    Args:
        unit: the unit that is counted; None shows only the time.
        total: the number of units in all; None if it is not known.
        what: the name of the work, shown at the start of the line.
        before: the number of units that an earlier run has done.
        has_summary: whether to show the totals at the end, if any progress was shown.
    """

    def __init__(
        self,
        unit: str | None,
        total: int | None = None,
        *,
        what: str = "",
        before: int = 0,
        is_shown: bool = True,
        has_summary: bool = False,
    ) -> None:
        self._unit, self._total, self._what, self._before = unit, total, what and f"{what}: ", before
        self._done: float = before
        self._is_shown, self._has_summary, self._is_in_place = is_shown, has_summary, is_terminal()
        self._seconds = IN_PLACE_SECONDS if self._is_in_place else LINE_SECONDS
        self._started_at = self._shown_at = time.monotonic()
        self._line: LiveLine | None = None

    def advance(self, n: float = 0) -> None:
        """Add n units to those done."""
        self.show(self._done + n)

    def show(self, done: float) -> None:
        """Set the number of units done, which may include part of one, and show it if an update is due."""
        now = time.monotonic()
        self._done = done
        if not self._is_shown or now - self._shown_at < self._seconds:
            return
        self._shown_at = now
        count, speed = self._texts(now - self._started_at)
        if not self._is_in_place:
            _log.info(" · ".join(filter(None, (count, speed))))
        elif self._line is None:
            self._line = LiveLine(count, speed, done, self._total)
        else:
            self._line.show(count, done, speed)

    def _texts(self, seconds: float) -> tuple[str, str]:
        if self._unit is None:
            return self._what + format_duration(seconds), ""
        per_second = (self._done - self._before) / seconds
        of_total = "" if self._total is None else f" of {self._total:,}"
        speed = f"{per_second:,.1f} {self._unit}/s"
        if self._total is not None and per_second > 0:
            speed += f" · {format_duration((self._total - self._done) / per_second)} left"
        return f"{self._what}{int(self._done):,}{of_total} {self._unit}", speed

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._line is not None:
            self._line.close()
        if kind is None and self._has_summary and self._shown_at > self._started_at:
            seconds = time.monotonic() - self._started_at
            n = int(self._done) - self._before
            _log.info(f"{n:,} {self._unit} in {format_duration(seconds)} · {n / seconds:,.1f} {self._unit}/s")
