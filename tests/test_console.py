from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

import mt.system.console
from mt.system.console import LiveLine, Meter, is_terminal, note, printable
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(mt.system.console, "time", clock)
    return clock


def test_speed_and_remaining_time_do_not_count_the_work_of_an_earlier_run(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Meter("lines", 10_000, before=4_000, has_summary=True) as meter:
        clock.now += 5
        meter.show(4_500)  # too early for a line
        clock.now += 35
        meter.show(5_000)
        clock.now += 20
        meter.show(10_000)
    assert capsys.readouterr().err.splitlines() == [
        "5,000 of 10,000 lines · 25.0 lines/s · 3 min 20 s left",
        "10,000 of 10,000 lines · 100.0 lines/s · 0 s left",
        "6,000 lines in 1 min 00 s · 100.0 lines/s",
    ]


def test_a_short_run_shows_no_progress(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("lines", has_summary=True) as meter:
        clock.now += 3
        meter.show(10)
    assert capsys.readouterr().err == ""


def test_progress_without_a_count_shows_the_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(None, what="training") as meter:
        clock.now += 70
        meter.advance()
    assert capsys.readouterr().err == "training: 1 min 10 s\n"


def pretend_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def drawn(written: str) -> list[str]:
    """Return the texts that a terminal has shown one after the other, without colours."""
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written)
    texts = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    return [text for text, before in zip(texts, [None, *texts], strict=False) if text != before]


def test_a_terminal_shows_one_progress_line_and_messages_above_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_terminal(monkeypatch)
    message = "a message that is longer than the terminal is wide, with a [bracket], and is not broken in two lines"
    with Meter("lines", has_summary=True) as meter:
        for n_lines in (10, 20):
            clock.now += 1
            meter.show(n_lines)
        note(message)
    out, err = capsys.readouterr()
    assert out == ""
    shown = drawn(err)
    assert shown[:2] == ["10 lines 10.0 lines/s", "20 lines 10.0 lines/s"]
    assert f"note: {message}" in shown
    assert shown[-1] == "20 lines in 2 s · 10.0 lines/s"
    assert err.count("20 lines in") == 1


def test_progress_with_a_total_has_a_bar(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_terminal(monkeypatch)
    with Meter("pairs", 40, what="cleaning") as meter:
        clock.now += 1
        meter.advance(10)
    (first, *_) = drawn(capsys.readouterr().err)
    assert re.fullmatch(r"cleaning: 10 of 40 pairs ━+╸?[ ━╺]* 10\.0 pairs/s · 3 s left", first)


def test_a_progress_line_does_not_change_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_terminal(monkeypatch)
    line = LiveLine("1/2", "at work", 1, 2, clock=lambda: "now")
    print("a translation")
    line.close()
    assert capsys.readouterr().out == "a translation\n"


def test_a_program_that_imports_the_package_sees_messages_only_if_it_asks() -> None:
    code = "from mt.system.console import note, show_messages; note('one'); {}note('two')"
    for change, shown in (("", ""), ("show_messages(); ", "note: two\n")):
        command = [sys.executable, "-c", code.format(change)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == shown


def test_control_characters_of_a_message_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    note("a file named \x1b]0;title\x07 \x9b2J \u202egnp.exe\r, café 日本語\tb")
    escaped = r"a file named \u001b]0;title\u0007 \u009b2J \u202egnp.exe\u000d, café 日本語"
    assert capsys.readouterr().err == f"note: {escaped}\tb\n"
    assert json.loads(f'"{printable(chr(27))}"') == "\x1b"


def test_messages_without_a_standard_error_are_dropped(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_terminal()
    with Meter("lines", has_summary=True) as meter:
        meter.show(1)
    note("a note that nobody can read")
    assert capsys.readouterr().out == ""
