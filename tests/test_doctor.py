from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from itertools import pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mt.config.loading import dump_config
from mt.config.settings import RunConfig, TextFiles, TokenizerConfig
from mt.text import checks, rehearsal
from mt.text.checks import Finding
from mt.text.corpora import CorpusReader, reader_of
from mt.text.prepare import prepare_corpus
from mt.text.sample import draw_sample
from mt.text.tokenizer import count_words, train_tokenizer
from mt.tools import doctor
from mt.tools.doctor import diagnosis_text, examine
from tests.conftest import Run
from tests.toys import messages

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
N_TRAIN, N_HELD_OUT, VOCAB_SIZE = 1_500, 300, 450

Lines = dict[str, list[str]]


@pytest.fixture(scope="module")
def good() -> Lines:
    """Return the first lines of the demo corpus, by file name."""
    sizes = {"train": N_TRAIN, "valid": N_HELD_OUT, "test": N_HELD_OUT}
    return {
        f"{name}.{lang}": (DEMO / f"{name}.{lang}").read_text("utf-8").split("\n")[:n]
        for name, n in sizes.items()
        for lang in ("en", "de")
    }


@pytest.fixture(scope="module")
def tokenizer(good: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tokenizer on the training text once: otherwise each config would train one in a new process."""
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
    """Return settings that suit the text, with `changes` by section."""
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
        mapping[section] = {**mapping.get(section, {}), **values} if isinstance(values, dict) else values
    return RunConfig(**mapping)


def findings_of(**changes: Any) -> tuple[Finding, ...]:
    """Return the findings of doctor about the files as they are."""
    return examine(a_config(**changes), Path("runs/toy")).findings


# --- Findings ---------------------------------------------------------------------------------------------------------

# Each case: a change to the good text or its files, settings, and the expected findings (level, check and key). Their
# messages are in doctor_findings.txt. The test adds the messages of cases that the file lacks.
Change = Callable[[Lines], object]
CASES: dict[str, tuple[Change, dict[str, Any], list[str]]] = {}
MESSAGES = Path(__file__).with_name("doctor_findings.txt")


def case(*findings: str, named: str = "", **config: Any) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        CASES[named or change.__name__.replace("_", " ")] = change, config, list(findings)
        return change

    return add


@case(named="good text")
@case(
    "warning language data.train.0",
    "warning language data.valid",
    "warning language data.test.demo",
    named="another language than the config says",
    src_lang="fr",
)
@case(
    "warning language data.train.0",
    "error cleaning data.train.0",
    "warning language data.valid",
    "warning language data.test.demo",
    "error nothing_left data.train",
    named="another script than the config says",
    tgt_lang="ru",
)
@case(
    "warning vocabulary tokenizer.vocab_size",
    named="a vocabulary that is too large for good pieces",
    tokenizer={"vocab_size": 2_000, "model": None},
)
@case(
    "error preparing tokenizer.vocab_size",
    named="a vocabulary that is too large to be made",
    tokenizer={"vocab_size": 30_000, "model": None},
)
@case("error preparing tokenizer.model", named="a tokenizer that does not exist", tokenizer={"model": "none.model"})
@case(
    "error max_tokens data.train.0",
    "warning batch train.batch_tokens",
    "note dropout model.dropout",
    named="long segments",
    data={"max_tokens": 16},
)
@case(
    "warning batch train.batch_tokens",
    "note dropout model.dropout",
    "warning epochs train.max_steps",
    "warning warmup train.warmup_steps",
    named="settings that do not suit the corpus",
    train={"batch_tokens": 60_000, "max_steps": 2_000, "warmup_steps": 4_000, "device": "cpu"},
    model={"d_model": 512, "n_heads": 8, "d_ff": 2048},
)
def unchanged(lines: Lines) -> None:
    pass


@case("error reading data.train.0")
def a_missing_line(lines: Lines) -> None:
    del lines["train.de"][700]


@case("warning shifted data.train.0")
def a_line_missing_here_and_another_there(lines: Lines) -> None:
    lines["train.de"] = [*lines["train.de"][:700], *lines["train.de"][701:], "Sie weint."]


@case("warning swapped data.train.0")
def swapped_sides(lines: Lines) -> None:
    lines["train.de"], lines["train.en"] = lines["train.en"], lines["train.de"]


@case("error reading data.train.0")
def latin_1(lines: Lines) -> None:
    Path("train.de").write_bytes("".join(f"{line}\n" for line in lines["train.de"]).encode("latin-1"))


@case("error reading data.valid")
def utf_16(lines: Lines) -> None:
    Path("valid.de").write_text("\n".join(lines["valid.de"]), "utf-16")


@case("warning mojibake data.train.0", "warning bytes data.train.0")
def mojibake(lines: Lines) -> None:
    lines["train.de"] = [line.encode().decode("cp1252", "replace") for line in lines["train.de"]]


@case("note duplicates data.train.0")
def duplicates(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"] += [line.upper() for line in lines[f"train.{lang}"][:500]]


@case("warning tokenised data.train.0", "warning tokenised data.train.0")
def tokenised_text(lines: Lines) -> None:
    for name in ("train.en", "train.de"):
        lines[name] = [re.sub(r"([.,?!])", r" \1", line) for line in lines[name]]


@case("warning pieces data.train.0", "warning bytes data.train.0")
def pieces(lines: Lines) -> None:
    lines["train.de"] = [re.sub(r"(\w{4})(?=\w)", r"\1@@ ", line) for line in lines["train.de"]]


@case("warning contamination data.train.0", named="contamination is kept", data={"clean": {"contamination": False}})
@case("note contamination data.train.0")
def contamination(lines: Lines) -> None:
    for lang in ("en", "de"):
        lines[f"train.{lang}"][600:700] = lines[f"test.{lang}"][:100]


@case("note contamination data.train.0", "error nothing_left data.train")
def training_text_that_is_the_test_set(lines: Lines) -> None:
    pairs = zip(lines["test.en"], lines["test.de"], strict=True)
    long = [pair for pair in pairs if min(len(side.split()) for side in pair) > 8]
    lines["train.en"], lines["train.de"] = map(list, zip(*long, strict=True))


@case("warning cleaning data.train.0", "warning empty_lines data.test.demo")
def a_target_that_is_half_empty(lines: Lines) -> None:
    lines["train.de"] = [line if i % 2 else "" for i, line in enumerate(lines["train.de"])]
    lines["test.de"][7] = " "


@case("warning special_tokens data.train.0", "warning bytes data.train.0")
def special_tokens_in_the_text(lines: Lines) -> None:
    lines["train.en"] = [f"<s> {line} </s>" for line in lines["train.en"]]


@case("warning tags data.train.0", named="tags of which one is named", tokenizer={"user_symbols": ["<b>"]})
@case("warning tags data.train.0")
def tags_in_the_text(lines: Lines) -> None:
    lines["train.en"] = [f"<b>{line}</b>" if i % 4 == 0 else line for i, line in enumerate(lines["train.en"])]


@case("warning tag_in_text data.train.0", data={"train": [{"src": "train.en", "tgt": "train.de", "tag": "<bt>"}]})
def a_tag_of_a_source_in_its_text(lines: Lines) -> None:
    lines["train.en"][3] = "<bt> " + lines["train.en"][3]


@case("error reading data.train.0", data={"train": [{"src": "train.en", "tgt": "train.de.gz"}]})
def a_compressed_file_that_is_cut_off(lines: Lines) -> None:
    packed = gzip.compress(Path("train.de").read_bytes())
    Path("train.de.gz").write_bytes(packed[: len(packed) // 2])


@case("warning valid_is_test data.valid")
def validation_that_is_the_test(lines: Lines) -> None:
    lines["test.en"], lines["test.de"] = lines["valid.en"], lines["valid.de"]


@case("warning valid_size data.valid")
def validation_that_is_too_small(lines: Lines) -> None:
    lines["valid.en"], lines["valid.de"] = lines["valid.en"][:30], lines["valid.de"][:30]


@case("error lfs_pointer data.train.0", "error web_page data.valid", "error reading data.test.demo")
def files_that_are_something_else(lines: Lines) -> None:
    Path("train.de").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    Path("valid.en").write_text("<!DOCTYPE html>\n<html>\n")
    Path("test.de").unlink()


@case("error pipe data.train.0")
def a_pipe(lines: Lines) -> None:
    Path("train.de").unlink()
    os.mkfifo("train.de")


@case("error empty data.test.demo")
def a_source_without_pairs(lines: Lines) -> None:
    lines["test.en"], lines["test.de"] = [], []


@case(
    "warning copied data.train.0",
    "warning language data.train.0",
    "error cleaning data.train.0",
    "warning batch train.batch_tokens",
    "note dropout model.dropout",
    "warning epochs train.max_steps",
)
def the_same_text_on_both_sides(lines: Lines) -> None:
    lines["train.de"] = list(lines["train.en"])


@case("warning unrelated data.train.0")
def shuffled_text(lines: Lines) -> None:
    lines["train.de"] = sorted(lines["train.de"])


@case("warning case data.valid", "warning case data.test.demo")
def lower_case_only_in_training(lines: Lines) -> None:
    lines["train.de"] = [line.lower() for line in lines["train.de"]]


def as_table(lines: Lines, header: str = "", quote: str = "") -> None:
    """Write the training text as a .tsv file."""
    pairs = zip(lines["train.en"], lines["train.de"], strict=True)
    rows = [f"{quote}{src}{quote}\t{quote}{tgt}{quote}\n" for src, tgt in pairs]
    Path("train.tsv").write_text(header + "".join(rows), "utf-8")


VARIANT = "<tuv xml:lang='{}'><seg>{}</seg></tuv>"
TABLE = {"train": [{"file": "train.tsv"}]}


@case("note header data.train.0", data=TABLE)
def a_header(lines: Lines) -> None:
    as_table(lines, '"en"\t"de"\n', quote='"')


@case("warning header data.train.0", data=TABLE)
def a_header_of_other_languages(lines: Lines) -> None:
    as_table(lines, "fr\tes\n")


@case(
    "warning quotes data.train.0",
    *["warning bytes data.train.0"] * 2,
    data={"train": [{"file": "train.tsv", "quoting": "none"}]},
)
def quotes_that_are_read_as_text(lines: Lines) -> None:
    as_table(lines, quote='"')


@case("warning units data.train.0", data={"train": [{"file": "train.tmx"}]})
def units_in_other_languages(lines: Lines) -> None:
    def unit(lang: str, src: str, tgt: str) -> str:
        return "<tu>" + "".join(VARIANT.format(*one) for one in (("en", src), (lang, tgt))) + "</tu>"

    pairs = zip(lines["train.en"], lines["train.de"], strict=True)
    units = [unit("fr" if i % 3 == 0 else "de", *pair) for i, pair in enumerate(pairs)]
    Path("train.tmx").write_text(f"<tmx><body>{''.join(units)}</body></tmx>", "utf-8")


@pytest.mark.parametrize("name", CASES)
def test_each_change_of_good_text_has_the_expected_findings(name: str, lines: Lines, good: Lines) -> None:
    change, config, expected = CASES[name]
    write(lines)
    change(lines)
    write({name: texts for name, texts in lines.items() if texts != good[name]})
    findings = findings_of(**config)
    assert [f"{finding.level} {finding.check} {finding.key}" for finding in findings] == expected
    told = [line for finding in findings for line in ("  " + finding.problem, "    " + finding.fix)]
    messages = [line.replace(str(Path.cwd()), "HERE") for line in told]
    known = MESSAGES.read_text("utf-8")
    if f"\n{name}\n" not in known:
        MESSAGES.write_text("\n".join([known, name, *messages, ""]), "utf-8")
    lines_behind = known.partition(f"\n{name}\n")[2].splitlines()
    assert list(takewhile(lambda line: line.startswith("  "), lines_behind)) == messages


# --- The forecast -----------------------------------------------------------------------------------------------------


def test_the_forecast_does_not_count_pairs_that_are_in_a_test_set(lines: Lines) -> None:
    def pairs_kept(**clean: bool) -> int:
        forecast = examine(a_config(data={"clean": clean}), Path("runs/toy")).forecast
        assert forecast is not None
        return forecast.train_pairs

    for lang in ("en", "de"):
        lines[f"train.{lang}"][600:700] = lines[f"test.{lang}"][:100]
    write(lines)
    assert pairs_kept(contamination=False) == 1_500
    assert pairs_kept() == 1_410  # 10 of the 100 have fewer words than data.clean.contamination_words


def test_the_forecast_is_right_if_long_and_short_lines_alternate(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- The command ------------------------------------------------------------------------------------------------------


def test_doctor_without_findings_prints_the_forecast(run: Run, lines: Lines) -> None:
    write(lines)
    Path("toy.yaml").write_text(dump_config(a_config()), "utf-8")
    status, stdout, _ = run("doctor", "--config", "toy.yaml")
    assert status == 0
    told = stdout.splitlines()
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


def test_findings_are_grouped_by_corpus(run: Run, lines: Lines) -> None:
    lines["train.de"][3] = "<bt> " + lines["train.de"][3]
    write(lines)
    Path("valid.en").unlink()
    config = a_config(data={"train": [{"src": "train.en", "tgt": "train.de", "tag": "<bt>"}]})
    Path("toy.yaml").write_text(dump_config(config), "utf-8")
    status, stdout, _ = run("doctor", "--config", "toy.yaml")
    assert status == 2
    assert stdout.partition("\n\nforecast\n")[0].splitlines() == [
        "toy: 1 error, 1 warning",
        "",
        "data.train.0  train.en + train.de, 1,500 pairs",
        f"  warning   train.de contains the tag <bt> as text, for example line 4: “{lines['train.de'][3]}”",
        "            choose another tag, or remove it from the text: mt adds it to each source sentence itself",
        "",
        "data.valid  valid.en + valid.de",
        f"  error     valid.en: no such file (looked for in {Path.cwd()})",
        "            correct data.valid",
    ]


def test_with_json_doctor_prints_one_object(run: Run, lines: Lines) -> None:
    write({**lines, "test.de": lines["test.de"][:-1]})
    Path("toy.yaml").write_text(dump_config(a_config()), "utf-8")
    status, stdout, _ = run("doctor", "--config", "toy.yaml", "--json")
    assert status == 2
    told = json.loads(stdout)
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


def test_each_stage_is_logged(lines: Lines) -> None:
    write(lines)
    with messages() as said:
        findings_of()
    assert said == [
        "reading data.train.0 (train.en + train.de)",
        "reading data.valid (valid.en + valid.de)",
        "reading data.test.demo (test.en + test.de)",
        "checking alignment, languages, form and repetition",
        "testing cleaning, the tokenizer and encoding",
    ]


def test_doctor_writes_nothing(lines: Lines, tmp_path: Path) -> None:
    write(lines)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    examine(a_config(tokenizer={"model": None, "vocab_size": VOCAB_SIZE}), Path("runs/toy"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# --- Disk, devices, an existing corpus --------------------------------------------------------------------------------


def test_a_full_disk_and_too_little_device_memory_are_errors(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lines)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100_000, 0, 100_000))
    monkeypatch.setattr(doctor, "memory_bytes", lambda device: 1 << 18)
    memory, disk = findings_of()
    assert (memory.level, memory.key, disk.level, disk.key) == ("error", "model", "error", "data.prepared_dir")
    assert memory.problem == "model: training needs at least 0.6 MiB on cpu, which has 0.2 MiB"
    assert disk.problem == "runs/toy: its disk needs up to 0.9 MiB of free space and has 0.1 MiB"


def test_a_missing_device_is_an_error(lines: Lines) -> None:
    write(lines)
    (finding,) = findings_of(train={"device": "cuda:99"})
    assert (finding.level, finding.key) == ("error", "train.device")
    assert finding.problem.startswith("train.device: cuda:99 was requested, but ")


def test_a_prepared_corpus_is_found_and_checked(lines: Lines) -> None:
    write(lines)
    config = a_config(tokenizer={"model": None, "vocab_size": VOCAB_SIZE})
    assert examine(config, Path("runs/toy")).forecast.prepared is None
    corpus = prepare_corpus(config)
    diagnosis = examine(config, Path("runs/toy"))
    assert diagnosis.findings == ()
    assert diagnosis.forecast.prepared == str(corpus.folder)
    assert f"  prepare         already prepared: {corpus.folder}" in diagnosis_text(diagnosis, "x").splitlines()
    # As the forecast has it.
    assert diagnosis.forecast.train_pairs == len(corpus.train) == N_TRAIN
    assert diagnosis.forecast.tgt_tokens == len(corpus.train.tgt.ids)
    ids = corpus.folder / "train.src.ids"
    ids.write_bytes(ids.read_bytes()[:-2])
    (finding,) = examine(config, Path("runs/toy")).findings
    n_bytes = ids.stat().st_size
    damage = f"the prepared corpus is damaged: train.src.ids has {n_bytes:,} bytes instead of {n_bytes + 2:,}"
    assert finding.problem == f"{corpus.folder}: {damage}"
    assert finding.fix == f"delete {corpus.folder} and prepare it again"


def test_without_py3langid_a_note_says_that_languages_are_not_checked(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lines)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    checks._identifier.cache_clear()
    (finding,) = findings_of()
    checks._identifier.cache_clear()
    assert (finding.level, finding.check, finding.key) == ("note", "no_py3langid", "languages")


def test_the_advised_vocabulary_has_room_for_all_characters_and_leaves_the_other_side_as_it_is() -> None:
    def tokenizer(n_characters: int) -> Any:
        pieces = ["<0x00>", "ab", *["a"] * n_characters]
        return SimpleNamespace(vocab_size=2_000, pieces=lambda _: pieces, byte_ids=range(256), special_ids=range(4))

    def fixes(src: int, tgt: int, **settings: Any) -> list[str]:
        sources = [SimpleNamespace(sample=SimpleNamespace(is_read=True), n_tokens=lambda _: 40_000.0)]
        config = a_config(
            tokenizer={"model": None, "vocab_size": 2_000, **settings}, model={"tied_embeddings": "decoder"}
        )
        rehearsed: Any = SimpleNamespace(sources=sources, tokenizers=(tokenizer(src), tokenizer(tgt)))
        return [finding.fix for finding in rehearsal._vocabulary_size(rehearsed, config)]

    assert fixes(50, 50) == ["set it to 800, or give more text"]
    assert fixes(1_000, 1_000, user_symbols=["<x>"]) == ["set it to 1462, or give more text"]  # 1,200 + 256 + 4 + 2
    assert fixes(1_500, 1_500) == ["give more text"]
    assert fixes(50, 1_000, joint=False) == [
        "set it to 400 and tokenizer.tgt_vocab_size to 2000, or give more text",
        "set it to 1460, or give more text",
    ]
    assert fixes(50, 1_000, joint=False, tgt_vocab_size=3_000)[0] == "set it to 400, or give more text"


@pytest.mark.parametrize(("setting", "level"), [("auto", "warning"), ("ko-mecab", "error")])
def test_a_missing_tokenizer_of_bleu_is_named(
    setting: str, level: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MeCab", "mecab_ko"):
        monkeypatch.setitem(sys.modules, name, None)
    write(lines)
    found = [one for one in findings_of(tgt_lang="ko", eval={"bleu_tokenize": setting}) if one.key.startswith("eval")]
    assert [(one.level, one.check, one.key) for one in found] == [(level, "bleu_tokenizer", "eval.bleu_tokenize")]
    until = "; until then, BLEU of ko counts characters (tok:char)" if level == "warning" else ""
    assert str(found[0]) == (
        f"BLEU with tok:ko-mecab: mecab_ko is not installed{until}. Run pip install 'mt-train[ko]'."
    )


# --- Samples ----------------------------------------------------------------------------------------------------------


def numbered(n: int, folder: Path) -> CorpusReader:
    for lang in ("en", "de"):
        (folder / f"n.{lang}").write_text("".join(f"{lang} {i}\n" for i in range(1, n + 1)), "utf-8")
    return reader_of(TextFiles(src=str(folder / "n.en"), tgt=str(folder / "n.de")), ("en", "de"), "train")


@pytest.mark.parametrize("n", [0, 1, 199, 1_000, 1_001, 10_000, 123_456])
def test_a_sample_is_spread_evenly_over_the_corpus(n: int, tmp_path: Path) -> None:
    sample = draw_sample("data.train.0", numbered(n, tmp_path), max_pairs=1_000, max_seconds=math.inf)
    assert (sample.n_pairs, sample.is_read, sample.error) == (n, True, None)
    assert len(sample.pairs) == n if n <= 1_000 else 800 < len(sample.pairs) <= 1_000
    assert sample.is_whole == (n <= 1_000)
    assert all((src, tgt) == (f"en {line}", f"de {line}") for src, tgt, line in sample.pairs)
    if n:
        assert (sample.pairs[0].line, sample.pairs[-1].line) == (1, n)
    gaps = [later.lines[0] - earlier.lines[0] for earlier, later in pairwise(sample.stretches)]
    assert max(gaps, default=0) <= max(200, 2 * n / 5)


def test_reading_stops_at_the_time_limit(tmp_path: Path) -> None:
    sample = draw_sample("data.train.0", numbered(10_000, tmp_path), max_pairs=1_000, max_seconds=0)
    assert (sample.n_pairs, sample.is_read) == (200, False)


# --- Real text --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="needs real text in MT_REAL_DATA")
@pytest.mark.parametrize("name", ["multi30k/train", "parallel/tatoeba", "parallel/bible", "parallel/news2008-2012"])
def test_good_real_text_has_no_findings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SAMPLED_PAIRS", 4_000)
    data = Path(os.environ["MT_REAL_DATA"]) / "data"
    sets = [name, "newstest/newstest2013", "newstest/newstest2014"]
    train, valid, test = ({"src": str(data / f"{one}.en.gz"), "tgt": str(data / f"{one}.de.gz")} for one in sets)
    config = {"data": {"train": [train], "valid": valid, "test": {"newstest2014": test}}}
    assert findings_of(**config, tokenizer={"vocab_size": 2_000, "model": None}) == ()
