from __future__ import annotations

import sys

import pytest

import mt.decode.meter
from mt.decode.meter import Meter
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(mt.decode.meter, "time", clock)
    return clock


def test_speed_and_the_time_left_leave_out_what_an_earlier_run_did(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = Meter(10_000, n_before=4_000, is_shown=True)
    clock.now += 20
    meter.show(4_500)  # too early for a line
    clock.now += 20
    meter.show(5_000)
    clock.now += 20
    meter.show(10_000)
    meter.close()
    assert capsys.readouterr().err == (
        "5,000 of 10,000 lines · 25.0 lines/s · 3 min 20 s left\n6,000 lines in 1 min 00 s · 100.0 lines/s\n"
    )


def test_a_short_run_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(None, n_before=0, is_shown=True)
    clock.now += 3
    meter.show(10)
    meter.close()
    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_line_in_place(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    meter = Meter(None, n_before=0, is_shown=True)
    for n_lines in (10, 20):
        clock.now += 1
        meter.show(n_lines)
    meter.close()
    assert capsys.readouterr().err == (
        "\r\x1b[K10 lines · 10.0 lines/s\r\x1b[K20 lines · 10.0 lines/s\r\x1b[K20 lines in 2 s · 10.0 lines/s\n"
    )
