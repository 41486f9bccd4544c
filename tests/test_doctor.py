from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from mt.config import RunConfig
from mt.configfile import parse_config
from mt.doctor import examine

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
N_TRAIN, N_HELD_OUT = 1_500, 300

Lines = dict[str, list[str]]


@pytest.fixture(scope="module")
def good() -> Lines:
    """The beginning of the demo corpus, by file name."""
    sizes = {"train": N_TRAIN, "valid": N_HELD_OUT, "test": N_HELD_OUT}
    return {
        f"{name}.{lang}": (DEMO / f"{name}.{lang}").read_text("utf-8").split("\n")[:n]
        for name, n in sizes.items()
        for lang in ("en", "de")
    }


@pytest.fixture
def lines(good: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.chdir(tmp_path)
    return {name: list(texts) for name, texts in good.items()}


def write(lines: Lines) -> None:
    for name, texts in lines.items():
        Path(name).write_text("".join(f"{text}\n" for text in texts), "utf-8")


def a_config(**changes: Any) -> RunConfig:
    """Settings that suit the text; `changes` by section."""
    mapping: dict[str, Any] = {
        "name": "toy",
        "src_lang": "en",
        "tgt_lang": "de",
        "data": {
            "train": [{"src": "train.en", "tgt": "train.de"}],
            "valid": {"src": "valid.en", "tgt": "valid.de"},
            "test": {"demo": {"src": "test.en", "tgt": "test.de"}},
        },
        "tokenizer": {"vocab_size": 450},
        "model": {"d_model": 32, "n_heads": 2, "d_ff": 64, "n_encoder_layers": 1, "n_decoder_layers": 1},
        "train": {"batch_tokens": 1024, "max_steps": 200, "warmup_steps": 50, "device": "cpu"},
    }
    for section, values in changes.items():
        mapping[section] = {**mapping[section], **values} if isinstance(values, dict) else values
    return parse_config(mapping, "test")


def found(lines: Lines | None = None, **changes: Any) -> list[tuple[str, ...]]:
    """What is found in these lines, or in the files as they are: level, place in the config, problem, fix."""
    if lines is not None:
        write(lines)
    findings = examine(a_config(**changes), Path("runs/toy")).findings
    return [(finding.level, finding.key, finding.problem, finding.fix) for finding in findings]


def test_good_text_is_silent(lines: Lines) -> None:
    assert found(lines) == []


def test_a_missing_line(lines: Lines) -> None:
    del lines["train.de"][700]
    assert found(lines) == []


def test_a_line_missing_here_and_another_there(lines: Lines) -> None:
    lines["train.de"] = [*lines["train.de"][:700], *lines["train.de"][701:], "Sie weint."]
    assert found(lines) == []


def test_swapped_sides(lines: Lines) -> None:
    lines["train.de"], lines["train.en"] = lines["train.en"], lines["train.de"]
    assert found(lines) == []


def test_another_language_than_the_config_says(lines: Lines) -> None:
    assert found(lines, src_lang="fr") == []


def test_another_script_than_the_config_says(lines: Lines) -> None:
    assert found(lines, tgt_lang="ru") == []


def test_latin_1(lines: Lines) -> None:
    write(lines)
    text = "".join(f"{line}\n" for line in lines["train.de"])
    Path("train.de").write_bytes(text.encode("latin-1"))
    assert found() == []


def test_mojibake(lines: Lines) -> None:
    lines["train.de"] = [line.encode().decode("cp1252", "replace") for line in lines["train.de"]]
    assert found(lines) == []


def test_utf_16(lines: Lines) -> None:
    write(lines)
    Path("valid.de").write_text("\n".join(lines["valid.de"]), "utf-16")
    assert found() == []


def test_duplicates(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"] = lines[f"train.{lang}"] + [line.upper() for line in lines[f"train.{lang}"][:500]]
    assert found(lines) == []


def test_tokenised_text(lines: Lines) -> None:
    for name in ("train.en", "train.de"):
        lines[name] = [re.sub(r"([.,?!])", r" \1", line) for line in lines[name]]
    assert found(lines) == []


def test_pieces(lines: Lines) -> None:
    lines["train.de"] = [re.sub(r"(\w{4})(?=\w)", r"\1@@ ", line) for line in lines["train.de"]]
    assert found(lines) == []


def test_contamination(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"][600:700] = lines[f"test.{lang}"][:100]
    assert found(lines) == []
    assert found(lines, data={"clean": {"contamination": False}}) == []


def test_a_target_that_is_half_empty(lines: Lines) -> None:
    lines["train.de"] = [line if i % 2 else "" for i, line in enumerate(lines["train.de"])]
    lines["test.de"][7] = " "
    assert found(lines) == []


def test_special_tokens_in_the_text(lines: Lines) -> None:
    lines["train.en"] = [f"<s> {line} </s>" for line in lines["train.en"]]
    assert found(lines) == []


def test_tags_in_the_text(lines: Lines) -> None:
    lines["train.en"] = [f"<b>{line}</b>" if i % 4 == 0 else line for i, line in enumerate(lines["train.en"])]
    assert found(lines) == []
    assert found(lines, tokenizer={"vocab_size": 450, "user_symbols": ["<b>", "</b>"]}) == []


def test_a_tag_of_a_source_in_its_text(lines: Lines) -> None:
    lines["train.en"][3] = "<bt> " + lines["train.en"][3]
    assert found(lines, data={"train": [{"src": "train.en", "tgt": "train.de", "tag": "<bt>"}]}) == []


def test_a_compressed_file_that_is_cut_off(lines: Lines) -> None:
    write(lines)
    packed = gzip.compress(Path("train.de").read_bytes())
    Path("train.de.gz").write_bytes(packed[: len(packed) // 2])
    assert found(data={"train": [{"src": "train.en", "tgt": "train.de.gz"}]}) == []


def test_validation_that_is_the_test(lines: Lines) -> None:
    lines["test.en"], lines["test.de"] = lines["valid.en"], lines["valid.de"]
    assert found(lines) == []


def test_validation_that_is_too_small(lines: Lines) -> None:
    lines["valid.en"], lines["valid.de"] = lines["valid.en"][:30], lines["valid.de"][:30]
    assert found(lines) == []


def test_a_vocabulary_that_is_too_large(lines: Lines) -> None:
    assert found(lines, tokenizer={"vocab_size": 1_000}) == []
    assert found(tokenizer={"vocab_size": 30_000}) == []


def test_files_that_are_something_else(lines: Lines) -> None:
    write(lines)
    Path("train.de").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    Path("valid.en").write_text("<!DOCTYPE html>\n<html>\n")
    Path("test.de").unlink()
    Path("test.en").write_text("")
    assert found() == []


def test_the_same_text_on_both_sides(lines: Lines) -> None:
    lines["train.de"] = list(lines["train.en"])
    assert found(lines) == []


def test_shuffled_text(lines: Lines) -> None:
    lines["train.de"] = sorted(lines["train.de"])
    assert found(lines) == []


def test_lower_case_in_training_alone(lines: Lines) -> None:
    lines["train.de"] = [line.lower() for line in lines["train.de"]]
    assert found(lines) == []


def test_long_segments(lines: Lines) -> None:
    assert found(lines, data={"max_tokens": 16}) == []


def test_settings_that_do_not_suit_the_corpus(lines: Lines) -> None:
    train = {"batch_tokens": 60_000, "max_steps": 2_000, "warmup_steps": 4_000, "device": "cpu"}
    model = {"d_model": 512, "n_heads": 8, "d_ff": 2048}
    assert found(lines, train=train, model=model) == []
