from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import sys
from collections import namedtuple
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mt.cli import app
from mt.config import RunConfig, SourceConfig, TokenizerConfig
from mt.configfile import dump_config, parse_config
from mt.text import checks, rehearsal
from mt.text.prepare import prepare_corpus
from mt.text.sample import draw_sample
from mt.text.tokenizer import count_words, train_tokenizer
from mt.tools import doctor
from mt.tools.doctor import diagnosis_text, examine

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
N_TRAIN, N_HELD_OUT, VOCAB_SIZE = 1_500, 300, 450

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


@pytest.fixture(scope="module")
def tokenizer(good: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the training text: training one takes a process of its own, for each config anew."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    words = count_words([*good["train.en"], *good["train.de"]])
    train_tokenizer(words, TokenizerConfig(vocab_size=VOCAB_SIZE), path, ("<b>", "</b>"))
    return path


@pytest.fixture
def lines(good: Lines, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(tokenizer, "tokenizer.model")
    monkeypatch.setattr(doctor, "READING_SECONDS", math.inf)
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
        "tokenizer": {"model": "tokenizer.model"},
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
    assert found(lines) == [
        (
            "error",
            "data.train.0",
            "train.en has 1,500 lines and train.de has 1,499: parallel files need one line for each line; from "
            "about line 701 on their lengths do not match any more",
            "a line is missing from train.de, or one too many in train.en",
        ),
    ]


def test_a_line_missing_here_and_another_there(lines: Lines) -> None:
    lines["train.de"] = [*lines["train.de"][:700], *lines["train.de"][701:], "Sie weint."]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en: from about line 701 on it is 1 line behind train.de",
            "look for a missing or an extra line there",
        ),
    ]


def test_swapped_sides(lines: Lines) -> None:
    lines["train.de"], lines["train.en"] = lines["train.en"], lines["train.de"]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en + train.de: the sides are swapped: src is de, and tgt is en",
            "swap them, or src_lang and tgt_lang",
        ),
    ]


def test_another_language_than_the_config_says(lines: Lines) -> None:
    assert found(lines, src_lang="fr") == [
        (
            "warning",
            "data.train.0",
            "train.en: 100% of its text is not fr, but mostly en",
            "give fr text, or change src_lang",
        ),
        (
            "warning",
            "data.valid",
            "valid.en: 100% of its text is not fr, but mostly en",
            "give fr text, or change src_lang",
        ),
        (
            "warning",
            "data.test.demo",
            "test.en: 100% of its text is not fr, but mostly en",
            "give fr text, or change src_lang",
        ),
    ]


def test_another_script_than_the_config_says(lines: Lines) -> None:
    assert found(lines, tgt_lang="ru") == [
        (
            "warning",
            "data.train.0",
            "train.de: 100% of its letters are Latin, and ru is written in Cyrillic",
            "give ru text, or change tgt_lang",
        ),
        (
            "warning",
            "data.train.0",
            "train.en + train.de: cleaning removes 100% of the pairs, most of them (100% of all) as "
            "wrong_script, such as line 1, “In Vienna a famous father cries.” and “In Wien weint ein berühmter "
            "Vater.”",
            "look at these lines, or change data.clean.max_wrong_script if they are good",
        ),
        (
            "warning",
            "data.valid",
            "valid.de: 100% of its letters are Latin, and ru is written in Cyrillic",
            "give ru text, or change tgt_lang",
        ),
        (
            "warning",
            "data.test.demo",
            "test.de: 100% of its letters are Latin, and ru is written in Cyrillic",
            "give ru text, or change tgt_lang",
        ),
        (
            "error",
            "data.train",
            "data.train: nothing is left of 1,500 pairs that were looked at",
            "see the findings of its sources",
        ),
    ]


def test_latin_1(lines: Lines) -> None:
    write(lines)
    text = "".join(f"{line}\n" for line in lines["train.de"])
    Path("train.de").write_bytes(text.encode("latin-1"))
    assert found() == [
        (
            "error",
            "data.train.0",
            "train.de, line 1: byte 0xfc at offset 21 is not UTF-8",
            "mend the line, or convert the file (iconv -f LATIN1 -t UTF-8, if that is what it is)",
        ),
    ]


def test_mojibake(lines: Lines) -> None:
    lines["train.de"] = [line.encode().decode("cp1252", "replace") for line in lines["train.de"]]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.de: 55% of the lines hold UTF-8 that was read as Latin-1, such as line 1, “In Wien weint "
            "ein berÃ¼hmter Vater.”",
            "get the text from where it was whole, or mend it with ftfy",
        ),
        (
            "warning",
            "data.train.0",
            "train.de: 9.8% of its tokens are single bytes, of characters that are no pieces",
            "take a tokenizer that was trained on text like this",
        ),
    ]


def test_utf_16(lines: Lines) -> None:
    write(lines)
    Path("valid.de").write_text("\n".join(lines["valid.de"]), "utf-16")
    assert found() == [
        (
            "error",
            "data.valid",
            "valid.de: is UTF-16, expected UTF-8",
            "convert it with iconv -f UTF-16 -t UTF-8",
        ),
    ]


def test_duplicates(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"] = lines[f"train.{lang}"] + [line.upper() for line in lines[f"train.{lang}"][:500]]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en + train.de: 25% of the pairs came before, case and punctuation aside (0.0% to the letter)",
            "see that this is no mistake; preparing removes them",
        ),
    ]


def test_tokenised_text(lines: Lines) -> None:
    for name in ("train.en", "train.de"):
        lines[name] = [re.sub(r"([.,?!])", r" \1", line) for line in lines[name]]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en: 85% of the lines are tokenised already, such as line 1, “In Vienna a famous father cries .”",
            "give raw text, detokenised (sacremoses detokenize); the tokenizer cuts it itself",
        ),
        (
            "warning",
            "data.train.0",
            "train.de: 86% of the lines are tokenised already, such as line 1, “In Wien weint ein berühmter Vater .”",
            "give raw text, detokenised (sacremoses detokenize); the tokenizer cuts it itself",
        ),
    ]


def test_pieces(lines: Lines) -> None:
    lines["train.de"] = [re.sub(r"(\w{4})(?=\w)", r"\1@@ ", line) for line in lines["train.de"]]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.de: 100% of the lines are cut into pieces already, such as line 1, “In Wien wein@@ t ein "
            "berü@@ hmte@@ r Vate@@ r.”",
            "give raw text: join the pieces (sed -E 's/@@( |$)//g' for BPE)",
        ),
        (
            "warning",
            "data.train.0",
            "train.de: 24% of its tokens are single bytes, of characters that are no pieces",
            "take a tokenizer that was trained on text like this",
        ),
    ]


def test_contamination(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"][600:700] = lines[f"test.{lang}"][:100]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en + train.de: 90 of the 1,500 pairs looked at have a side in data.test.demo, such as line "
            "601, “Jan gets up at half past six.”",
            "see that this is no mistake; preparing removes them",
        ),
    ]
    assert found(lines, data={"clean": {"contamination": False}}) == [
        (
            "warning",
            "data.train.0",
            "train.en + train.de: 90 of the 1,500 pairs looked at have a side in data.test.demo, such as line "
            "601, “Jan gets up at half past six.”",
            "set data.clean.contamination: true, or its scores mean little",
        ),
    ]


def test_the_forecast_leaves_out_what_stands_in_a_test_set(lines: Lines) -> None:
    def pairs_kept(**clean: bool) -> int:
        forecast = examine(a_config(data={"clean": clean}), Path("runs/toy")).forecast
        assert forecast is not None
        return forecast.train_pairs

    for lang in ("en", "de"):
        lines[f"train.{lang}"][600:700] = lines[f"test.{lang}"][:100]
    write(lines)
    assert pairs_kept(contamination=False) == 1_500
    assert pairs_kept() == 1_410  # 10 of the 100 have fewer words than data.clean.contamination_words


def test_training_text_that_is_the_test_set_is_an_error(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"] = [line for line in lines[f"test.{lang}"] if len(line.split()) > 8]
    n = min(len(lines["train.en"]), len(lines["train.de"]))
    for lang in ("en", "de"):
        lines[f"train.{lang}"] = lines[f"train.{lang}"][:n]
    problems = [finding[2] for finding in found(lines) if finding[0] == "error"]
    assert problems == [f"data.train: nothing is left of {n} pairs that were looked at"]


def test_the_forecast_is_right_where_long_lines_alternate_with_short_ones(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lang in ("en", "de"):
        texts = lines[f"train.{lang}"]
        lines[f"train.{lang}"] = [" ".join(texts[i : i + 3]) if i % 2 else texts[i] for i in range(len(texts))]
    write(lines)

    def tokens(n_encoded: int) -> int:
        monkeypatch.setattr(rehearsal, "_ENCODED_PAIRS", n_encoded)
        forecast = examine(a_config(), Path("runs/toy")).forecast
        assert forecast is not None
        return forecast.tgt_tokens

    assert tokens(N_TRAIN // 2) == pytest.approx(tokens(N_TRAIN), rel=0.03)


def test_a_target_that_is_half_empty(lines: Lines) -> None:
    lines["train.de"] = [line if i % 2 else "" for i, line in enumerate(lines["train.de"])]
    lines["test.de"][7] = " "
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en + train.de: cleaning removes 50% of the pairs, most of them (50% of all) as empty, such "
            "as line 1, “In Vienna a famous father cries.” and “”",
            "give the text that is missing, or leave out these lines on both sides",
        ),
        (
            "warning",
            "data.test.demo",
            "test.de: 1 of 300 lines are empty, the first is line 8",
            "remove them with their counterparts: they are scored as they stand",
        ),
    ]


def test_special_tokens_in_the_text(lines: Lines) -> None:
    lines["train.en"] = [f"<s> {line} </s>" for line in lines["train.en"]]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en: 100% of the lines hold special tokens as text, such as line 1, “<s> In Vienna a famous "
            "father cries. </s>”",
            "remove them: mt puts in what sentences begin and end with",
        ),
        (
            "warning",
            "data.train.0",
            "train.en: 13% of its tokens are single bytes, of characters that are no pieces",
            "take a tokenizer that was trained on text like this",
        ),
    ]


def test_tags_in_the_text(lines: Lines) -> None:
    lines["train.en"] = [f"<b>{line}</b>" if i % 4 == 0 else line for i, line in enumerate(lines["train.en"])]
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en: 25% of the lines hold tags, such as line 1, “<b>In Vienna a famous father cries.</b>”",
            "remove the markup, or name the tags in tokenizer.user_symbols",
        ),
    ]
    assert found(lines, tokenizer={"user_symbols": ["<b>"]}) == [
        (
            "warning",
            "data.train.0",
            "train.en: 25% of the lines hold tags, such as line 1, “<b>In Vienna a famous father cries.</b>”",
            "remove the markup, or name the tags in tokenizer.user_symbols",
        ),
    ]


def test_a_tag_of_a_source_in_its_text(lines: Lines) -> None:
    lines["train.en"][3] = "<bt> " + lines["train.en"][3]
    assert found(lines, data={"train": [{"src": "train.en", "tgt": "train.de", "tag": "<bt>"}]}) == [
        (
            "warning",
            "data.train.0",
            "train.en: holds the tag <bt> as text, such as line 4, “<bt> Is the juice drunk by the happy guest?”",
            "choose another tag, or remove it from the text: mt puts it in front of the source itself",
        ),
    ]


def test_a_compressed_file_that_is_cut_off(lines: Lines) -> None:
    write(lines)
    packed = gzip.compress(Path("train.de").read_bytes())
    Path("train.de.gz").write_bytes(packed[: len(packed) // 2])
    assert found(data={"train": [{"src": "train.en", "tgt": "train.de.gz"}]}) == [
        (
            "error",
            "data.train.0",
            "train.de.gz: ends too early, it was cut off",
            "copy or download it again",
        ),
    ]


def test_validation_that_is_the_test(lines: Lines) -> None:
    lines["test.en"], lines["test.de"] = lines["valid.en"], lines["valid.de"]
    assert found(lines) == [
        (
            "warning",
            "data.valid",
            "valid.en + valid.de: 300 of its 300 pairs are in data.test.demo (test.en + test.de), too",
            "give other text: what chooses the checkpoint cannot judge it, too",
        ),
    ]


def test_validation_that_is_too_small(lines: Lines) -> None:
    lines["valid.en"], lines["valid.de"] = lines["valid.en"][:30], lines["valid.de"][:30]
    assert found(lines) == [
        (
            "warning",
            "data.valid",
            "valid.en + valid.de: has 30 pairs: scores of so few leave the choice of a checkpoint to chance",
            "give 1,000 to 3,000",
        ),
    ]


def test_a_vocabulary_that_is_too_large(lines: Lines) -> None:
    assert found(lines, tokenizer={"vocab_size": 2_000, "model": None}) == [
        (
            "warning",
            "tokenizer.vocab_size",
            "tokenizer.vocab_size: 2,000 pieces stand 22 times each in the corpus, on average: too rarely to be learnt",
            "set it to 430, or give more text",
        ),
    ]
    assert found(tokenizer={"vocab_size": 30_000, "model": None}) == [
        (
            "error",
            "tokenizer.vocab_size",
            "tokenizer.vocab_size: 30,000 is too large for this corpus, which yields at most 8,290 pieces",
            "set it to 8290 or less, or give more text",
        ),
    ]


def test_files_that_are_something_else(lines: Lines) -> None:
    write(lines)
    Path("train.de").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    Path("valid.en").write_text("<!DOCTYPE html>\n<html>\n")
    Path("test.de").unlink()
    assert found() == [
        (
            "error",
            "data.train.0",
            "train.de: is a Git LFS pointer, not the text itself",
            "fetch the text with git lfs pull",
        ),
        (
            "error",
            "data.valid",
            "valid.en: is a web page, not text",
            "download the file itself, not the page about it",
        ),
        (
            "error",
            "data.test.demo",
            f"test.de: no such file (looked for in {Path.cwd()})",
            "correct data.test.demo",
        ),
    ]


def test_a_pipe(lines: Lines) -> None:
    write(lines)
    Path("train.de").unlink()
    os.mkfifo("train.de")
    assert (
        "error",
        "data.train.0",
        "train.de: is no file but a pipe or a device, and this text is read several times",
        "save it as a file",
    ) in found()


def test_a_source_without_pairs(lines: Lines) -> None:
    lines["test.en"], lines["test.de"] = [], []
    assert found(lines) == [
        (
            "error",
            "data.test.demo",
            "test.en + test.de: is empty",
            "give at least one pair of sentences",
        ),
    ]


def test_the_same_text_on_both_sides(lines: Lines) -> None:
    lines["train.de"] = list(lines["train.en"])
    # What follows is that hardly a pair is left.
    assert found(lines)[:3] == [
        (
            "warning",
            "data.train.0",
            "train.en and train.de: are the same text",
            "give the translation as tgt",
        ),
        (
            "warning",
            "data.train.0",
            "train.de: 100% of its text is not de, but mostly en",
            "give de text, or change tgt_lang",
        ),
        (
            "warning",
            "data.train.0",
            "train.en + train.de: cleaning removes 99% of the pairs, most of them (99% of all) as copied, such "
            "as line 1, “In Vienna a famous father cries.” and “In Vienna a famous father cries.”",
            "look at these lines, or change data.clean.max_copied if they are good",
        ),
    ]


def test_shuffled_text(lines: Lines) -> None:
    lines["train.de"] = sorted(lines["train.de"])
    assert found(lines) == [
        (
            "warning",
            "data.train.0",
            "train.en and train.de: the lengths of the lines do not go together (correlation -0.00; "
            "translations have about 0.9)",
            "see whether line i of the one translates line i of the other: one side may be sorted or shuffled",
        ),
    ]


def test_lower_case_in_training_alone(lines: Lines) -> None:
    lines["train.de"] = [line.lower() for line in lines["train.de"]]
    assert found(lines) == [
        (
            "warning",
            "data.valid",
            "valid.de: 100% of the lines have capital letters, and 0.0% in training",
            "write both in true case",
        ),
        (
            "warning",
            "data.test.demo",
            "test.de: 100% of the lines have capital letters, and 0.0% in training",
            "write both in true case",
        ),
    ]


def test_long_segments(lines: Lines) -> None:
    assert found(lines, data={"max_tokens": 16}) == [
        (
            "warning",
            "data.train.0",
            "train.en + train.de: 97% of the pairs have more than 16 tokens on a side and are removed; one in "
            "a hundred has 67 or more",
            "raise data.max_tokens, or split the segments at the ends of sentences",
        ),
        (
            "warning",
            "train.batch_tokens",
            "train.batch_tokens: 1,024 target tokens an update are more than training has (about 630): each "
            "update would hold pairs more than once",
            "lower it, to 31 say, or give more text",
        ),
        (
            "note",
            "model.dropout",
            "model.dropout: is 0.1 in a model of about 36,000 parameters for about 630 target tokens, which it "
            "can learn by heart",
            "raise it to 0.3, and take a smaller model",
        ),
    ]


def test_settings_that_do_not_suit_the_corpus(lines: Lines) -> None:
    train = {"batch_tokens": 60_000, "max_steps": 2_000, "warmup_steps": 4_000, "device": "cpu"}
    model = {"d_model": 512, "n_heads": 8, "d_ff": 2048}
    assert found(lines, train=train, model=model) == [
        (
            "warning",
            "train.batch_tokens",
            "train.batch_tokens: 60,000 target tokens an update are more than training has (about 48,000): "
            "each update would hold pairs more than once",
            "lower it, to 2,400 say, or give more text",
        ),
        (
            "note",
            "model.dropout",
            "model.dropout: is 0.1 in a model of about 7,600,000 parameters for about 48,000 target tokens, "
            "which it can learn by heart",
            "raise it to 0.3, and take a smaller model",
        ),
        (
            "warning",
            "train.max_steps",
            "train.max_steps: 2,000 updates would show every pair about 2,498 times",
            "lower it, to 80 for 100 times, or set train.patience",
        ),
        (
            "warning",
            "train.warmup_steps",
            "train.warmup_steps: 4,000 are more than train.max_steps (2,000): the learning rate never reaches its peak",
            "lower it, to 200 say",
        ),
    ]


def test_a_command_that_finds_nothing(lines: Lines) -> None:
    write(lines)
    Path("toy.yaml").write_text(dump_config(a_config()), "utf-8")
    result = CliRunner().invoke(app, ["doctor", "--config", "toy.yaml"])
    assert result.exit_code == 0
    told = result.stdout.splitlines()
    assert told[:3] == ["toy: no findings", "", "forecast"]
    assert [line.split("  ")[1] for line in told[3:]] == [
        "data.train.0",
        "data.valid",
        "data.test.demo",
        "training",
        "model",
        "prepare",
        "memory",
        "disk",
        "time",
    ]
    assert told[3] == "  data.train.0    train.en + train.de, 1,500 pairs"
    assert told[-1] == "  time            mt train --config toy.yaml --dry-run measures how long training takes"


def test_findings_by_source(lines: Lines) -> None:
    lines["train.de"][3] = "<bt> " + lines["train.de"][3]
    write(lines)
    Path("valid.en").unlink()
    config = a_config(data={"train": [{"src": "train.en", "tgt": "train.de", "tag": "<bt>"}]})
    Path("toy.yaml").write_text(dump_config(config), "utf-8")
    result = CliRunner().invoke(app, ["doctor", "--config", "toy.yaml"])
    assert result.exit_code == 2
    assert result.stdout.partition("\n\nforecast\n")[0].splitlines() == [
        "toy: 1 error, 1 warning",
        "",
        "data.train.0  train.en + train.de, 1,500 pairs",
        f"  warning   train.de: holds the tag <bt> as text, such as line 4, “{lines['train.de'][3]}”",
        "            choose another tag, or remove it from the text: mt puts it in front of the source itself",
        "",
        "data.valid  valid.en + valid.de",
        f"  error     valid.en: no such file (looked for in {Path.cwd()})",
        "            correct data.valid",
    ]


def test_one_object_for_programs(lines: Lines) -> None:
    write({**lines, "test.de": lines["test.de"][:-1]})
    Path("toy.yaml").write_text(dump_config(a_config()), "utf-8")
    result = CliRunner().invoke(app, ["doctor", "--config", "toy.yaml", "--json"])
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert (told["name"], told["n_errors"], told["n_warnings"]) == ("toy", 1, 0)
    (finding,) = told["findings"]
    assert (finding["level"], finding["check"], finding["key"]) == ("error", "reading", "data.test.demo")
    assert told["sources"][0] == {
        "key": "data.train.0",
        "source": "train.en + train.de",
        "pairs": 1500,
        "pairs_are_all": True,
        "pairs_looked_at": 1500,
    }
    assert told["forecast"]["train_pairs"] == 1500


def test_nothing_is_written(lines: Lines, tmp_path: Path) -> None:
    write(lines)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    examine(a_config(tokenizer={"model": None, "vocab_size": VOCAB_SIZE}), Path("runs/toy"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# --- Room, devices, what is there already -----------------------------------------------------------------------------


def test_a_full_disk_and_a_small_device(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(100_000, 0, 100_000))
    monkeypatch.setattr(doctor, "memory_bytes", lambda device: 1 << 18)
    assert found(lines) == [
        (
            "error",
            "model",
            "model: training takes at least 0.5 MiB on cpu, which has 0.2 MiB",
            "make the model or the vocabulary smaller",
        ),
        (
            "error",
            "data.prepared_dir",
            "runs/toy: up to 0.9 MiB are needed on its disk, and 0.1 MiB are free",
            "make room, lower train.keep_last and train.average_last, or choose other folders",
        ),
    ]


def test_a_device_that_is_not_there(lines: Lines) -> None:
    (finding,) = found(lines, train={"device": "cuda:99"})
    assert finding[:2] == ("error", "train.device")
    assert finding[2].startswith("train.device: cuda:99 is asked for, but ")


def test_a_tokenizer_that_is_not_there(lines: Lines) -> None:
    assert found(lines, tokenizer={"model": "none.model"}) == [
        (
            "error",
            "tokenizer.model",
            "none.model: no such file, the tokenizer is missing",
            "correct tokenizer.model",
        ),
    ]


def test_a_corpus_that_is_prepared(lines: Lines) -> None:
    write(lines)
    config = a_config(tokenizer={"model": None, "vocab_size": VOCAB_SIZE})
    assert examine(config, Path("runs/toy")).forecast.prepared is None
    corpus = prepare_corpus(config, say=lambda line: None)
    diagnosis = examine(config, Path("runs/toy"))
    assert diagnosis.findings == ()
    assert diagnosis.forecast.prepared == str(corpus.folder)
    assert f"  prepare         prepared already: {corpus.folder}" in diagnosis_text(diagnosis, "x").splitlines()
    # As the forecast has it.
    assert diagnosis.forecast.train_pairs == len(corpus.train) == N_TRAIN
    assert diagnosis.forecast.tgt_tokens == len(corpus.train.tgt.ids)
    ids = corpus.folder / "train.src.ids"
    ids.write_bytes(ids.read_bytes()[:-2])
    (finding,) = examine(config, Path("runs/toy")).findings
    n_bytes = ids.stat().st_size
    assert (
        finding.problem
        == f"{corpus.folder}: is damaged, train.src.ids has {n_bytes:,} bytes instead of {n_bytes + 2:,}"
    )
    assert finding.fix == f"delete {corpus.folder} and prepare it again"


def test_languages_without_py3langid(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    checks._identifier.cache_clear()
    assert found(lines) == [
        (
            "note",
            "languages",
            "languages: were looked at by their scripts alone, for py3langid is not installed",
            "pip install 'mt-train[language]'",
        ),
    ]
    checks._identifier.cache_clear()


# --- Samples ----------------------------------------------------------------------------------------------------------


def numbered(n: int, folder: Path) -> SourceConfig:
    for lang in ("en", "de"):
        (folder / f"n.{lang}").write_text("".join(f"{lang} {i}\n" for i in range(1, n + 1)), "utf-8")
    return SourceConfig(src=str(folder / "n.en"), tgt=str(folder / "n.de"))


@pytest.mark.parametrize("n", [0, 1, 199, 1_000, 1_001, 10_000, 123_456])
def test_a_sample_is_drawn_evenly(n: int, tmp_path: Path) -> None:
    sample = draw_sample("data.train.0", numbered(n, tmp_path), ("en", "de"), max_pairs=1_000, max_seconds=math.inf)
    assert (sample.n_pairs, sample.is_read, sample.error) == (n, True, None)
    assert len(sample.src) == n if n <= 1_000 else 800 < len(sample.src) <= 1_000
    assert sample.is_whole == (n <= 1_000)
    assert sample.src == [f"en {line}" for line in sample.lines]
    assert sample.tgt == [f"de {line}" for line in sample.lines]
    if n:
        assert (sample.lines[0], sample.lines[-1]) == (1, n)
    gaps = [later.lines[0] - earlier.lines[0] for earlier, later in pairwise(sample.stretches)]
    assert max(gaps, default=0) <= max(200, 2 * n / 5)


def test_reading_ends_in_time(tmp_path: Path) -> None:
    sample = draw_sample("data.train.0", numbered(10_000, tmp_path), ("en", "de"), max_pairs=1_000, max_seconds=0)
    assert (sample.n_pairs, sample.is_read) == (200, False)


# --- Real text --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="needs real text in MT_REAL_DATA")
@pytest.mark.parametrize("name", ["multi30k/train", "parallel/tatoeba", "parallel/bible", "parallel/news2008-2012"])
def test_good_real_text_is_silent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SAMPLED_PAIRS", 4_000)
    data = Path(os.environ["MT_REAL_DATA"]) / "data"
    sets = [name, "newstest/newstest2013", "newstest/newstest2014"]
    train, valid, test = ({"src": str(data / f"{one}.en.gz"), "tgt": str(data / f"{one}.de.gz")} for one in sets)
    assert (
        found(
            data={"train": [train], "valid": valid, "test": {"newstest2014": test}},
            tokenizer={"vocab_size": 2_000, "model": None},
        )
        == []
    )
