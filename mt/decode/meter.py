"""How far a translation has come, on standard error."""

from __future__ import annotations

import sys
import time

from mt.units import format_duration

# A line in place is renewed so often; where there is no terminal, a line is added so often.
IN_PLACE_SECONDS = 0.5
LINE_SECONDS = 30.0
_CLEAR = "\r\x1b[K"


class Meter:
    """Lines, lines a second and the time that is left: in place on a terminal, else a line every half minute."""

    def __init__(self, n_lines: int | None, *, n_before: int, is_shown: bool) -> None:
        """
        Args:
            n_lines: that there are in all; None where nobody knows.
            n_before: of them, done by an earlier run.
        """
        self._n_lines = n_lines
        self._n_done = self._n_before = n_before
        self._is_shown = is_shown
        self._is_in_place = sys.stderr.isatty()
        self._started_at = self._shown_at = time.monotonic()
        self._has_shown = False

    def show(self, n_lines: float) -> None:
        """So many lines are done; the last of them perhaps in part."""
        now = time.monotonic()
        self._n_done = int(n_lines)
        if self._is_shown and now - self._shown_at >= (IN_PLACE_SECONDS if self._is_in_place else LINE_SECONDS):
            self._shown_at = now
            self._has_shown = True
            text = self._text(n_lines, now - self._started_at)
            print(
                f"{_CLEAR}{text}" if self._is_in_place else text,
                end="" if self._is_in_place else "\n",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """The sum of it, if anything was shown before."""
        if self._has_shown:
            seconds = time.monotonic() - self._started_at
            n_lines = self._n_done - self._n_before
            text = f"{n_lines:,} lines in {format_duration(seconds)} · {n_lines / seconds:,.1f} lines/s"
            print(f"{_CLEAR}{text}" if self._is_in_place else text, file=sys.stderr, flush=True)

    def _text(self, n_lines: float, seconds: float) -> str:
        per_second = (n_lines - self._n_before) / seconds
        text = f"{int(n_lines):,} lines" if self._n_lines is None else f"{int(n_lines):,} of {self._n_lines:,} lines"
        text += f" · {per_second:,.1f} lines/s"
        if self._n_lines is not None and per_second > 0:
            text += f" · {format_duration((self._n_lines - n_lines) / per_second)} left"
        return text
