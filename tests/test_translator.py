from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mt.decode.translator
from mt.config import DecodeConfig, ModelConfig, TokenizerConfig
from mt.decode.translator import Hypothesis, Translator
from mt.errors import CheckpointError, ConfigError
from mt.model import Transformer
from mt.runtime import choose_device, choose_dtype
from mt.text.tokenizer import PAD_ID, Tokenizer, train_tokenizer
from tests.toys import toy_text

MAX_SOURCE_TOKENS = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    src, tgt = toy_text(300, 1)
    train_tokenizer([*src, *tgt], TokenizerConfig(vocab_size=380), path)
    return Tokenizer.load(path)


@pytest.fixture
def translator(tokenizer: Tokenizer) -> Translator:
    torch.manual_seed(0)
    config = ModelConfig(d_model=32, n_heads=2, d_ff=48, n_encoder_layers=1, n_decoder_layers=2)
    model = Transformer(config, vocab_size=tokenizer.vocab_size, pad_id=PAD_ID)
    with torch.no_grad():
        model.embedding.weight.mul_(4)  # decided, so that rounding does not decide
    decode = DecodeConfig(beam_size=2, max_length=10)
    return Translator(model.for_inference(torch.float32), tokenizer, decode, max_source_tokens=MAX_SOURCE_TOKENS)


LINES = toy_text(40, 9)[0]


def test_order_is_kept_and_blank_lines_stay_blank(translator: Translator) -> None:
    alone = [translator.translate([line])[0] for line in LINES[:5]]
    assert len(set(alone)) > 3
    mixed = [LINES[0], "", LINES[1], "  \t ", LINES[2], LINES[3], "\u2028", LINES[4]]
    expected = [alone[0], "", alone[1], "", alone[2], alone[3], "", alone[4]]
    assert translator.translate(mixed) == expected
    assert next(iter(translator.translate_lines([""]))) == [Hypothesis("", 0.0, 0.0, 0)]


def test_the_size_of_a_batch_changes_no_line(translator: Translator) -> None:
    together = translator.translate(LINES)
    assert translator.translate(LINES, replace(translator.decode, batch_tokens=1)) == together
    assert translator.translate(LINES, replace(translator.decode, batch_tokens=40)) == together


def test_every_line_gets_a_line_and_harms_no_other(translator: Translator) -> None:
    odd = ["ba " * 33_000, "", "🙂🙂🙂", "Привет, мир", "漢字" * 50, "\x00\x0b\x85 \u2028", "a" * 3_000, "\ufffd"]
    mixed = [line for pair in zip(LINES, odd, strict=False) for line in pair]
    translations = translator.translate(mixed)
    assert len(translations) == len(mixed)
    assert translations[::2] == translator.translate(LINES[: len(odd)])
    for text in translations:
        assert not {"\n", "\r", "\x00"} & set(text)


def test_a_line_that_is_too_long_is_translated_in_parts_and_counted(translator: Translator) -> None:
    first, second = "bar bast ban. " * 3, "der dest den. " * 4
    (whole,) = translator.translate([first + second])
    assert translator.n_lines_in_parts == 1
    ids = translator.tokenizer.encode((first + second).strip())
    parts = translator._split(ids)
    assert len(parts) > 1
    assert [token for part in parts for token in part[:-1]] == ids
    assert all(len(part) <= MAX_SOURCE_TOKENS and part[-1] == translator.tokenizer.eos_id for part in parts)
    texts = [translator.tokenizer.decode(part[:-1]) for part in parts]
    assert all(text.endswith(".") for text in texts)
    assert whole == " ".join(translator.translate(texts))


def test_a_word_that_is_too_long_is_cut_anywhere_and_joined_again(translator: Translator) -> None:
    ids = translator.tokenizer.encode("x" * 100)
    parts = translator._split(ids)
    assert len(parts) == -(-len(ids) // (MAX_SOURCE_TOKENS - 1))
    assert [token for part in parts for token in part[:-1]] == ids


def test_a_model_that_gives_no_numbers_says_what_to_try(translator: Translator) -> None:
    with torch.no_grad():
        translator.model.embedding.weight[9] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        translator.translate(["bar dest"])
    assert str(caught.value) == (
        "the model gives no numbers for 'bar dest': try --precision fp32; if that does not help, "
        "its weights are damaged"
    )


def test_n_best_are_different_and_in_order_of_their_score(translator: Translator) -> None:
    for hypotheses in translator.translate_lines(LINES[:5], replace(translator.decode, beam_size=4), n_best=3):
        assert len({hypothesis.text for hypothesis in hypotheses}) == 3
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_more_hypotheses_than_beams_are_refused(translator: Translator) -> None:
    with pytest.raises(ConfigError) as caught:
        translator.translate_lines(LINES, n_best=3)
    assert str(caught.value) == (
        "n_best: expected 1 to the beam size (2), got 3: raise the beam size (up to 64) or ask for fewer"
    )


def test_a_bare_string_is_refused(translator: Translator) -> None:
    with pytest.raises(TypeError, match=r"^lines: expected a list of str, got a str: write \[text\]$"):
        translator.translate("bar dest")


def test_translations_come_before_the_input_ends(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mt.decode.translator, "LINES_AT_A_TIME", 4)
    read = []

    def lines() -> Iterator[str]:
        for line in LINES:
            read.append(line)
            yield line

    translated = translator.translate_lines(lines())
    next(translated)
    assert len(read) == 4
    assert len(list(translated)) == len(LINES) - 1


def test_devices_and_precisions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_device("gpu")
    assert str(caught.value) == "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"
    with pytest.raises(ConfigError) as caught:
        choose_dtype("fp16", torch.device("cpu"))
    assert str(caught.value) == "precision: fp16 needs a GPU; on a CPU use bf16, fp32 or auto"
    with pytest.raises(ConfigError) as caught:
        choose_dtype("int8", torch.device("cpu"))
    assert str(caught.value) == "precision: expected auto, bf16, fp16 or fp32, got 'int8'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_device("cuda")
    assert str(caught.value) == (
        f"device: cuda is asked for, but torch {torch.__version__} finds no CUDA device: use cpu"
    )


def test_the_translator_is_at_the_top_of_the_package(tmp_path: Path) -> None:
    import mt

    assert mt.Translator is Translator
