"""What people see on standard error: messages, and one line in place that says how far the work has come.

The package logs to the loggers below `mt`, and by itself shows nothing. `show_messages` shows all of it, as the command
line does.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from mt.units import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

_log = logging.getLogger(__name__)
IN_PLACE_SECONDS = 0.5  # between two updates of a line in place
LINE_SECONDS = 10.0  # between two messages on the progress, if there is no terminal


class _ConsoleHandler(logging.Handler):
    """Shows messages above the line in place; a terminal that was closed, or a full disk, is no reason to stop."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        message = prefix + record.getMessage()
        with suppress(OSError):
            if _shown:
                _shown[-1].console.print(message, markup=False, highlight=False, soft_wrap=True)
            else:
                print(message, file=sys.stderr, flush=True)


_handler = _ConsoleHandler()
_shown: list[Progress] = []  # what is drawn in place now


def show_messages() -> None:
    """Show the messages of the package on standard error from now on."""
    logger = logging.getLogger("mt")
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@lru_cache
def note(text: str) -> None:
    """Tell the user something, once for each text."""
    _log.info("note: %s", text)


def is_terminal() -> bool:
    """Return whether messages are shown, and a person sees them change."""
    return _handler in logging.getLogger("mt").handlers and sys.stderr.isatty()


class LiveLine:
    """A line in place: a count, a bar if the end is known, a text, and what a clock says.

    Args:
        clock: gives the last text, several times a second; without one, the line changes when `show` is called.
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
            redirect_stdout=False,  # it is the result, and not shown here
        )
        self._task = self._progress.add_task(text, total=total, count=count)
        self._progress.update(self._task, completed=done)
        self._redraws = clock is not None
        self._progress.start()
        _shown.append(self._progress)

    def show(self, count: str, done: float, text: str | None = None) -> None:
        """Change what is shown; without a text, it stays."""
        self._progress.update(self._task, count=count, completed=done, description=text, refresh=not self._redraws)

    def close(self) -> None:
        """Remove the line."""
        _shown.remove(self._progress)
        self._progress.stop()


class Meter:
    """Shows how far a long work has come, its speed and the time left: in place on a terminal, else now and then.

    Args:
        unit: of what is counted; None: only the time is.
        total: None if it is not known.
        what: is done.
        before: how many an earlier run has done.
        has_summary: say at the end what was done in all, if anything was shown before.
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
        """Count what is done since the last call."""
        self.show(self._done + n)

    def show(self, done: float) -> None:
        """Show how much is done, if it is time to; the last one perhaps in part."""
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
