"""Messages are shown, and Ctrl-C is heard, also if a script runs the tests in its background, which ignores SIGINT."""

from __future__ import annotations

import importlib.util
import io
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mt.system.console import show_messages

if TYPE_CHECKING:  # tests of what needs no torch do not wait for it
    from mt.text.tokenizer import Tokenizer

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


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary of toy text and its translations: 380 pieces."""
    from mt.config.settings import TokenizerConfig
    from mt.text.tokenizer import count_words, train_tokenizer
    from tests.toys import toy_text

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(count_words(chain(*toy_text(300, 1))), TokenizerConfig(vocab_size=380), path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    from mt.text.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A model folder with random weights; they are large, so that rounding does not decide."""
    from mt.checkpoint import save_model_folder
    from tests.toys import sharp_model, toy_config

    folder = tmp_path_factory.mktemp("toy")
    model = sharp_model(vocab_size=380, d_ff=64, n_encoder_layers=1, n_decoder_layers=1)
    save_model_folder(
        folder / "model", model.state_dict(), toy_config(folder / "text"), tokenizer_path, {"vocab_size": 380}
    )
    return folder / "model"
