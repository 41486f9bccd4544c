"""Time in tests: none of them may fail because the machine is slow. Imports no torch, so that workers start quickly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


class Clock:
    """Replace the module `time` in a module under test: time passes when the test says so.

    With seconds like 0.25, whose sums are exact, a test can compare figures exactly.
    """

    now = 128.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = time = perf_counter

    def slow(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float | Callable[..., float]
    ) -> None:
        """Let a function take `seconds`, or what `seconds` says of its arguments."""
        function = getattr(owner, name)

        def slowed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds(*arguments, **options) if callable(seconds) else seconds
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, slowed)


def comes_true(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False after a minute, so that a test that fails does not hang."""
    ends_at = time.monotonic() + 60
    while not (held := condition()) and time.monotonic() < ends_at:
        time.sleep(0.01)
    return held
