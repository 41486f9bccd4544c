"""Fixtures. Also shows messages, and enables Ctrl-C, which shells disable for tests that run in the background."""

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

if TYPE_CHECKING:  # so that tests of torch-free modules do not wait for torch
    from mt.text.tokenizer import Tokenizer

show_messages()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):  # machines for the tests that need a GPU may not have it
    from hypothesis import HealthCheck, settings

    # Hypothesis fails a test whose examples take long, which any test may do on a busy machine.
    settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `mt` with arguments and standard input, and return exit status, standard output and standard error."""
    from mt.cli import app

    def run_mt(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            app(list(map(str, arguments)), prog_name="mt")
        return caught.value.code or 0, *capsys.readouterr()

    return run_mt


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU compute batches without tiles, sentence by sentence."""
    from mt.model import kernels
    from tests.toys import one_sentence_at_a_time

    flash = kernels.flash
    monkeypatch.setattr(
        kernels, "flash", lambda q, *rest: (one_sentence_at_a_time if q.device.type == "cpu" else flash)(q, *rest)
    )


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer of 380 pieces, trained on toy text and its translations."""
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
    """Return a model folder with random weights, which are large so that rounding changes no choice."""
    from mt.checkpoint import save_model_folder
    from tests.toys import sharp_model, toy_config

    folder = tmp_path_factory.mktemp("toy")
    model = sharp_model(vocab_size=380, d_ff=64, n_encoder_layers=1, n_decoder_layers=1)
    save_model_folder(
        folder / "model", model.state_dict(), toy_config(folder / "text"), [tokenizer_path], {"vocab_size": 380}
    )
    return folder / "model"
