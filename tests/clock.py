"""A clock for tests, which must not fail because a machine is slow. Imports no torch, so that workers start quickly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


class Clock:
    """A replacement for the module `time` in a module under test: time passes only when the test says so.

    With durations such as 0.25 s, whose sums are exact, a test can compare numbers exactly.
    """

    now = 128.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = time = perf_counter

    def slow(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float | Callable[..., float]
    ) -> None:
        """Let a function take `seconds`, which may be a function of its arguments."""
        function = getattr(owner, name)

        def slowed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds(*arguments, **options) if callable(seconds) else seconds
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, slowed)


def comes_true(condition: Callable[[], bool]) -> bool:
    """Return True as soon as a condition holds, or False after a minute, so that a failing test does not hang."""
    ends_at = time.monotonic() + 60
    while not (held := condition()) and time.monotonic() < ends_at:
        time.sleep(0.01)
    return held
