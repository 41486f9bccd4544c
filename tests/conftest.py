"""Messages are shown, and Ctrl-C is heard, also if a script runs the tests in its background, which ignores SIGINT."""

import importlib.util
import io
import signal
import sys
from collections.abc import Callable

import pytest

from mt.system.console import show_messages

show_messages()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):  # the tests that need a GPU run without it
    from hypothesis import HealthCheck, settings

    # Hypothesis fails a test whose examples take long; on a busy machine all of them do.
    settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `mt` with arguments and standard input: exit status, standard output, standard error."""
    from mt.cli import app

    def run_mt(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            app(list(map(str, arguments)), prog_name="mt")
        return caught.value.code or 0, *capsys.readouterr()

    return run_mt


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches without tiles can be computed on a CPU, sentence by sentence."""
    from mt.model import kernels
    from tests.toys import one_sentence_at_a_time

    flash = kernels.flash
    monkeypatch.setattr(
        kernels, "flash", lambda q, *rest: (one_sentence_at_a_time if q.device.type == "cpu" else flash)(q, *rest)
    )
