"""Preparation: a corpus is complete or absent, has a name derived from its content, and accounts for every pair."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import string
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mt.config.settings import CleanConfig, DataConfig, RunConfig, Table, TextFiles, TokenizerConfig
from mt.errors import ConfigError, DataError
from mt.system.workers import Workers
from mt.text import corpus as corpus_module
from mt.text import prepare as prepare_module
from mt.text import shards
from mt.text.checks import Finding
from mt.text.clean import Cleaner
from mt.text.corpora import Chunk, SentencePair
from mt.text.corpus import PreparedCorpus
from mt.text.normalise import normalise
from mt.text.prepare import corpus_fingerprint, prepare_corpus
from mt.text.shards import Cleaning, Counting, Encoding, Shard, Stage
from mt.text.tokenizer import EOS_ID, Tokenizer
from tests.clock import Clock

REAL_DATA = os.environ.get("MT_REAL_DATA")

DRAW = random.Random(5)
WORDS = ["".join(DRAW.choices(string.ascii_lowercase + "äöüß", k=DRAW.randint(2, 8))) for _ in range(400)]


def sentences(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 10))) for _ in range(n)]


def write_pair(name: str, src: list[str], tgt: list[str]) -> TextFiles:
    for side, lines in (("en", src), ("de", tgt)):
        Path(f"{name}.{side}").write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
    return TextFiles(src=f"{name}.en", tgt=f"{name}.de")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Line 1 needs normalisation, 2 is empty, 3 has too large a length ratio, 4 has too many characters, and 5 has too many
# tokens, because each word is at least one token.
MANY_WORDS = " ".join("q" * 110)
FIRST_SRC = ["  two\u00a0words ", "", "short", "x" * 301, MANY_WORDS, *sentences(195, seed=1)]
FIRST_TGT = ["zwei  Wörter", "leer", "y" * 200, "y" * 301, MANY_WORDS.replace("q", "j"), *sentences(195, seed=2)]
KEPT = (0, *range(5, 200))  # indices
SECOND_SRC, SECOND_TGT = sentences(50, seed=3), sentences(50, seed=4)
VALID_SRC, VALID_TGT = [" valid\u00a0 text", "", *sentences(8, seed=5)], ["die  Prüfung", "leer", *sentences(8, seed=6)]


@pytest.fixture
def config() -> RunConfig:
    data = DataConfig(
        train=(write_pair("first", FIRST_SRC, FIRST_TGT), write_pair("second", SECOND_SRC, SECOND_TGT)),
        valid=write_pair("valid", VALID_SRC, VALID_TGT),
        test={"news": write_pair("test", [" raw\ttext "], ["roher  Text\x0b"])},
        prepared_dir="prepared",
        max_tokens=100,
        clean=CleanConfig(max_chars=300),
    )
    return RunConfig(name="x", src_lang="en", tgt_lang="de", data=data, tokenizer=TokenizerConfig(vocab_size=500))


REPRODUCIBLE_FILES = (
    "removed.tsv",
    "tokenizer.model",
    "train.lines",
    *(
        f"{split}.{side}.{part}"
        for split in ("train", "valid")
        for side in ("src", "tgt")
        for part in ("ids", "offsets")
    ),
)


class InThisProcess(Workers):
    """Workers in this process, because starting others takes longer than all work on these small corpora."""

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(0, *arguments)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "Workers", InThisProcess)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def with_data(config: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


@contextmanager
def messages_passed_to(hear: Callable[[str], object]) -> Iterator[None]:
    """Pass each message logged inside the block to a function."""
    handler = logging.Handler()
    handler.emit = lambda record: hear(record.getMessage())  # type: ignore[assignment, return-value]
    logger = logging.getLogger("mt")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def prepare(config: RunConfig) -> tuple[PreparedCorpus, list[str]]:
    said: list[str] = []
    with messages_passed_to(said.append):
        return prepare_corpus(config), said


def error_of(config: RunConfig) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        prepare(config)
    left = list(Path("prepared").iterdir()) if Path("prepared").exists() else []
    assert left == [], "a failed build leaves nothing behind"
    return str(caught.value)


def test_the_corpus_has_every_kept_pair_in_order_with_line_number_and_eos(config: RunConfig) -> None:
    corpus, _ = prepare(config)
    tokenizer = Tokenizer.load(corpus.tokenizer_paths[0])
    kept = list(KEPT)
    assert corpus.corpus_sizes == (196, 50)
    assert corpus.train_lines.tolist() == [i + 1 for i in kept] + list(range(1, 51))
    for sentences_, first, second in (
        (corpus.train.src, FIRST_SRC, SECOND_SRC),
        (corpus.train.tgt, FIRST_TGT, SECOND_TGT),
    ):
        expected = [normalise(line) for line in [first[i] for i in kept] + second]
        assert len(sentences_) == len(corpus.train) == 246
        assert [tokenizer.decode(sentences_[i]) for i in range(246)] == expected
        assert [sentences_[i].tolist() for i in range(246)] == [[*tokenizer.encode(t), EOS_ID] for t in expected]
        assert sentences_.lengths.tolist() == [len(sentences_[i]) for i in range(246)]
        assert sentences_.offsets[0] == 0
        assert sentences_.offsets[-1] == len(sentences_.ids)
        assert sentences_.ids.dtype == np.uint16
        assert isinstance(sentences_.ids, np.memmap)


def test_removed_pairs_are_logged_and_are_in_the_manifest_with_examples(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "time", Clock())
    corpus, said = prepare(config)
    said = [line for line in said if not line.endswith(".")]  # warnings are sentences
    assert said[:3] == [
        "first.en + first.de: 200 pairs read, 197 kept; removed: 1 empty, 1 too_long, 1 length_ratio",
        "second.en + second.de: 50 pairs read, 50 kept; removed: none",
        "duplicates removed: none",
    ]
    n_words = len({word for side in (FIRST_SRC, FIRST_TGT) for i in KEPT for word in normalise(side[i]).split()})
    assert said[3].startswith("training a bpe tokenizer of 500 pieces on 494 lines with ")
    assert int(said[3].split()[-3]) >= n_words
    src_tokens, tgt_tokens = len(corpus.train.src.ids), len(corpus.train.tgt.ids)
    assert said[5] == "encoded 246 pairs in 0 s; removed: 1 pair over 100 tokens"
    assert corpus.manifest == json.loads((corpus.folder / "manifest.json").read_text("utf-8"))
    train = corpus.manifest["train"]
    assert (train["pairs_read"], train["pairs_kept"]) == (250, 246)
    assert (train["src_tokens"], train["tgt_tokens"]) == (src_tokens, tgt_tokens)
    assert train["src_tokens_per_tgt_token"] == src_tokens / tgt_tokens
    assert train["longest_src"] == corpus.train.src.lengths.max()
    removed = train["sources"][0]["removed"]
    assert {reason: removal["count"] for reason, removal in removed.items()} == {
        "empty": 1,
        "length_ratio": 1,
        "too_long": 1,
        "too_many_tokens": 1,
    }
    assert removed["empty"]["examples"] == [{"src": "", "tgt": "leer", "line": 2}]
    assert removed["too_many_tokens"]["examples"] == [
        {"src": MANY_WORDS[:199] + "…", "tgt": MANY_WORDS.replace("q", "j")[:199] + "…", "line": 5}
    ]
    assert corpus.manifest["tokenizer"]["vocab_size"] == 500
    assert corpus.manifest["tokenizer"]["lines"] == 494
    stages = {"held_out", "clean", "check", "duplicates", "count_words", "tokenizer", "encode", "report"}
    assert set(corpus.manifest["seconds"]) == stages


def test_validation_and_test_sets_keep_all_pairs_and_their_original_text(config: RunConfig) -> None:
    corpus, _ = prepare(config)
    tokenizer = Tokenizer.load(corpus.tokenizer_paths[0])
    assert corpus.valid_sets["valid"] == list(zip(VALID_SRC, VALID_TGT, range(1, 11), strict=True))
    assert corpus.test_pairs == {"news": [(" raw\ttext ", "roher  Text\x0b", 1)]}
    assert len(corpus.valid) == 10
    assert [tokenizer.decode(corpus.valid.src[i]) for i in range(10)] == [normalise(text) for text in VALID_SRC]
    assert corpus.valid.src[1].tolist() == [EOS_ID]


def test_a_second_preparation_opens_the_existing_corpus(config: RunConfig) -> None:
    first, _ = prepare(config)
    made_at = (first.folder / "manifest.json").stat().st_mtime_ns
    second, said = prepare(config)
    assert second.fingerprint == first.fingerprint == corpus_fingerprint(config) == first.folder.name
    assert (second.folder / "manifest.json").stat().st_mtime_ns == made_at
    warnings = [str(Finding(**finding)) for finding in first.manifest["findings"]]
    opened = f"prepared corpus {first.folder}: 246 training pairs, prepared earlier from the same data"
    assert said == [opened, *warnings]


def test_the_same_input_gives_the_same_files(config: RunConfig) -> None:
    first, _ = prepare(config)
    second, _ = prepare(with_data(config, prepared_dir="again"))
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == sorted(path.name for path in second.folder.iterdir())
    assert names == [
        "manifest.json",
        "removed.tsv",
        "report.html",
        "report.json",
        "test.news.jsonl",
        "tokenizer.model",
        "train.lines",
        *(f"train.{side}.{part}" for side in ("src", "tgt") for part in ("ids", "offsets")),
        "valid.jsonl",
        *(f"valid.{side}.{part}" for side in ("src", "tgt") for part in ("ids", "offsets")),
    ]
    for name in set(names) - {"manifest.json", "report.html", "report.json"}:  # these contain times
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_the_fingerprint_depends_on_content_and_settings_but_not_on_paths(config: RunConfig) -> None:
    before = corpus_fingerprint(config)
    assert len(before) == 16
    moved = [Path(f"first.{side}").rename(f"moved.{side}") for side in ("en", "de")]
    first = TextFiles(src=str(moved[0]), tgt=str(moved[1]))
    config = with_data(config, train=(first, config.data.train[1]), prepared_dir="elsewhere")
    assert corpus_fingerprint(config) == before
    assert corpus_fingerprint(dataclasses.replace(config, name="other")) == before
    second = config.data.train[1]
    # A weight changes the plan of training, not the corpus.
    assert corpus_fingerprint(with_data(config, train=(first, dataclasses.replace(second, weight=2.0)))) == before
    changed = [
        with_data(config, train=(second, first)),
        with_data(config, valid=second),
        with_data(config, test={"other": config.data.test["news"]}),
        with_data(config, max_tokens=101),
        with_data(config, clean=CleanConfig(max_chars=301)),
        with_data(config, clean=CleanConfig(max_chars=300, max_length_ratio=5.0)),
        dataclasses.replace(config, tgt_lang="nl"),
        dataclasses.replace(config, tokenizer=TokenizerConfig(vocab_size=501)),
    ]
    assert len({before, *map(corpus_fingerprint, changed)}) == 9


def test_the_tokenizer_is_trained_on_a_seeded_sample(config: RunConfig) -> None:
    sampled = dataclasses.replace(config, tokenizer=TokenizerConfig(vocab_size=400, sample_lines=123))
    corpus, _ = prepare(sampled)
    n_lines = corpus.manifest["tokenizer"]["lines"]
    assert 80 <= n_lines <= 170
    again, _ = prepare(with_data(sampled, prepared_dir="again"))
    assert again.manifest["tokenizer"]["lines"] == n_lines
    assert again.tokenizer_paths[0].read_bytes() == corpus.tokenizer_paths[0].read_bytes()


def test_a_corpus_whose_pairs_are_all_removed_has_size_zero(config: RunConfig) -> None:
    nothing = write_pair("nothing", ["", ""], ["x", "y"])
    corpus, _ = prepare(with_data(config, train=(nothing, *config.data.train)))
    assert corpus.corpus_sizes == (0, 196, 50)


def test_the_error_if_nothing_is_left_says_how_many_pairs_each_rule_removed(config: RunConfig) -> None:
    train = (write_pair("bad", ["", "short", ""], ["x", "y" * 200, ""]),)
    assert error_of(with_data(config, train=train)) == (
        "data.train: no pairs are left, all 3 were removed (2 empty, 1 length_ratio). Check the text, src_lang, "
        "tgt_lang and data.clean.max_length_ratio."
    )
    unlimited = dataclasses.replace(config.data.clean, max_removed=None)
    assert error_of(with_data(config, train=(config.data.train[1],), max_tokens=2, clean=unlimited)) == (
        "data.train: no pairs are left, all 50 were removed (50 too_many_tokens). Check the text, src_lang, tgt_lang "
        "and data.max_tokens."
    )


def test_all_sets_are_checked_before_the_tokenizer_is_trained(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "train_tokenizer", lambda *_, **__: pytest.fail("the tokenizer was trained"))
    valid = write_pair("uneven", ["a", "b"], ["c"])
    assert error_of(with_data(config, valid=valid)) == (
        "uneven.en has 2 lines and uneven.de has 1, but both files need the same number of lines"
    )
    assert error_of(with_data(config, test={"news": valid})) == (
        "uneven.en has 2 lines and uneven.de has 1, but both files need the same number of lines"
    )
    empty = write_pair("empty", [], [])
    assert error_of(with_data(config, valid=empty)) == (
        "empty.en + empty.de has no sentence pairs, expected at least one"
    )
    missing = TextFiles(src="nowhere.en", tgt="nowhere.de")
    assert error_of(with_data(config, test={"news": missing})) == (
        f"nowhere.en: no such file (looked for in {Path.cwd()})"
    )


def test_a_vocabulary_that_is_too_large_is_an_error_of_the_config(config: RunConfig) -> None:
    message = error_of(dataclasses.replace(config, tokenizer=TokenizerConfig(vocab_size=60_000)))
    assert message.startswith("tokenizer.vocab_size: 60,000 is too large for this corpus, which gives at most ")


def test_a_preparation_with_many_interruptions_gives_the_same_corpus_as_one_without(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = write_pair("again", FIRST_SRC[50:120], FIRST_TGT[50:120])
    config = with_data(config, train=(*config.data.train, again))
    monkeypatch.setattr(shards, "PAIRS_PER_SHARD", 37)
    whole, _ = prepare(with_data(config, prepared_dir="whole"))
    calls: list[str] = []

    def run(stage: Stage, shard: Shard, task: Any) -> int:
        calls.append(f"{stage.name} {shard.corpus}.{shard.number}")
        if calls.count(calls[-1]) == 1 and calls[-1].endswith("0.1"):
            interrupt()
        return original[type(stage)](stage, shard, task)

    def killed_training(_counts: object, _settings: object, path: Path, *_: object, **__: object) -> None:
        (path.parent / f".{path.name}.words-x").write_text("words")
        interrupt()

    def killed_before_the_manifest(path: Path, place: Path) -> None:
        if place.name == "manifest.json":
            interrupt()
        os.replace(path, place)

    def killed_at_the_very_end(folder: Path) -> None:
        for path in sorted(folder.iterdir())[::2]:
            path.unlink()
        interrupt()

    original: dict[type[Stage], Any] = {stage: stage.__call__ for stage in (Cleaning, Counting, Encoding)}
    for stage in original:
        monkeypatch.setattr(stage, "__call__", run)
    building = Path("prepared") / f".building-{corpus_fingerprint(config)}"
    for interruption in (
        None,  # the first stage is interrupted
        None,  # the second
        (prepare_module, "train_tokenizer", killed_training),
        None,  # the third
        (Path, "replace", killed_before_the_manifest),
        (shutil, "rmtree", killed_at_the_very_end),
    ):
        with monkeypatch.context() as patched:
            if interruption is not None:
                patched.setattr(*interruption)
            with pytest.raises(KeyboardInterrupt):
                prepare(config)
        assert list(Path("prepared").iterdir()) == [building]
    corpus, said = prepare(config)
    assert [line.split(": ")[0].split(";")[0] for line in said] == [str(building), f"prepared corpus {corpus.folder}"]
    assert said[0].endswith(": continuing an interrupted preparation of the same data")
    assert set(Counter(call for call in calls if not call.endswith("0.1")).values()) == {1}
    assert list(Path("prepared").iterdir()) == [corpus.folder]
    for name in REPRODUCIBLE_FILES:
        assert (corpus.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    names = {path.name for path in whole.folder.iterdir()}
    assert {path.name for path in corpus.folder.iterdir()} == names
    assert {*corpus.manifest["file_bytes"], "manifest.json", "removed.tsv", "report.html", "report.json"} == names
    assert corpus.manifest["train"] == whole.manifest["train"]
    assert corpus.manifest["train"]["sources"][2]["removed"]["duplicate"]["count"] == 70


def test_a_closed_terminal_does_not_stop_preparation(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung:
        def write(self, _text: str) -> None:
            raise OSError(errno.EIO, "Input/output error")  # a closed terminal

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stderr", Hung())
    assert len(prepare_corpus(config).train) == 246


def test_text_that_changes_while_it_is_prepared_is_refused(config: RunConfig) -> None:
    def add_a_line(line: str) -> None:
        if line.startswith("encoded"):
            for side in ("en", "de"):
                with Path(f"first.{side}").open("a") as stream:
                    stream.write("one more\n")

    with pytest.raises(DataError) as caught, messages_passed_to(add_a_line):
        prepare_corpus(config)
    assert str(caught.value) == (
        "data: a file was changed while the corpus was prepared from it. Start again when no other program writes to "
        "the training, validation and test files."
    )
    assert list(Path("prepared").iterdir()) == []


def test_a_preparation_without_the_lock_does_not_touch_the_files_of_others(config: RunConfig) -> None:
    fingerprint = corpus_fingerprint(config)
    finished = Path("prepared") / f".building-{fingerprint}" / "shards" / "0.000000.cleaned.json"
    finished.parent.mkdir(parents=True)
    finished.write_text("of another process")
    Path(f"prepared/.{fingerprint}.lock").mkdir()
    with pytest.raises(DataError, match=r"^prepared/\w{16} cannot be written: Is a directory. Set "):
        prepare(config)
    assert finished.read_text() == "of another process"


def test_interrupted_preparations_are_removed_after_a_week(config: RunConfig) -> None:
    now = time.time()
    for name, days in (("old", 8), ("at-work", 6)):
        shards = Path(f"prepared/.building-{name}/shards")
        shards.mkdir(parents=True)
        os.utime(shards, (now, now - days * 86_400))
        os.utime(shards.parent, (now, now - 8 * 86_400))
    corpus, _ = prepare(config)
    assert sorted(path.name for path in Path("prepared").iterdir()) == [".building-at-work", corpus.fingerprint]


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(config: RunConfig) -> None:
    Path("occupied").write_text("a file")
    folder = Path("occupied") / corpus_fingerprint(config)
    with pytest.raises(DataError) as caught:
        prepare(with_data(config, prepared_dir="occupied"))
    assert str(caught.value) == (
        f"{folder} cannot be written: File exists. Set data.prepared_dir to a writable folder with enough space."
    )


def test_a_damaged_corpus_is_refused(config: RunConfig) -> None:
    folder = prepare(config)[0].folder

    def message() -> str:
        with pytest.raises(DataError) as caught:
            PreparedCorpus.open(folder)
        return str(caught.value)

    advice = f"Delete {folder} and prepare it again."
    n_bytes = (folder / "train.src.ids").stat().st_size
    os.truncate(folder / "train.src.ids", n_bytes - 2)
    assert message() == (
        f"{folder}: the prepared corpus is damaged: train.src.ids has {n_bytes - 2:,} bytes instead of {n_bytes:,}. "
        f"{advice}"
    )
    (folder / "train.src.ids").unlink()
    assert message() == f"{folder}: the prepared corpus is incomplete: train.src.ids is missing. {advice}"
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"format_version": 3', '"format_version": 9'))
    assert message() == (
        f"{folder} was prepared in format 9, but this version of mt reads format 3. Continue the run with the version "
        "of mt that prepared it, or start over with another --run-dir."
    )
    (folder / "manifest.json").write_text(manifest[:100])
    assert message() == f"{folder}: the prepared corpus has a damaged manifest.json. {advice}"
    (folder / "manifest.json").unlink()
    assert message() == f"{folder} is not a prepared corpus: manifest.json is missing. {advice}"


def test_a_file_of_zeros_of_the_same_size_is_found_when_a_run_starts(config: RunConfig) -> None:
    folder = prepare(config)[0].folder
    for name in ("train.tgt.ids", "train.src.offsets", "train.lines", "valid.src.ids", "valid.jsonl"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes(len(content)))
        with pytest.raises(DataError) as caught:
            prepare(config)
        assert str(caught.value) == (
            f"{folder}: the prepared corpus is damaged: the checksum of {name} differs from the one in manifest.json. "
            f"Delete {folder} and prepare it again."
        )
        if not name.startswith("train"):  # small files are always compared
            with pytest.raises(DataError, match="the checksum of"):
                PreparedCorpus.open(folder)
        (folder / name).write_bytes(content)


def sign(folder: Path, name: str) -> None:
    """Write the checksum of a changed file into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest["file_bytes"][name] = (folder / name).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_files_that_do_not_fit_together_are_damage_although_their_checksums_fit(config: RunConfig) -> None:
    folder = prepare(config)[0].folder

    def damage(name: str, change: Callable[[npt.NDArray[Any]], object], dtype: str = "<i8") -> str:
        before, manifest = (folder / name).read_bytes(), (folder / "manifest.json").read_text()
        values = np.frombuffer(before, dtype).copy()
        changed = change(values)
        (values if changed is None else np.asarray(changed, dtype)).tofile(folder / name)
        sign(folder, name)
        with pytest.raises(DataError) as caught:
            PreparedCorpus.open(folder, is_verified=True)
        (folder / name).write_bytes(before)
        (folder / "manifest.json").write_text(manifest)
        prefix, suffix = f"{folder}: the prepared corpus is damaged: ", f". Delete {folder} and prepare it again."
        assert str(caught.value).startswith(prefix)
        return str(caught.value).removeprefix(prefix).removesuffix(suffix)

    n = len(PreparedCorpus.open(folder).train)
    too_large = "it has the id 60,000, but its tokenizer has 500 pieces"
    assert damage("train.src.ids", lambda ids: ids.__setitem__(5, 60_000), "<u2") == too_large
    assert damage("valid.tgt.ids", lambda ids: ids.__setitem__(0, 60_000), "<u2") == too_large
    unfit = "the sentences in train.src.offsets do not fit train.src.ids"
    assert damage("train.src.offsets", lambda offsets: offsets.__setitem__(3, offsets[5])) == unfit
    assert damage("train.src.offsets", lambda offsets: offsets.__setitem__(-1, offsets[-1] + 1)) == unfit
    assert damage("train.src.offsets", lambda offsets: offsets[:0]) == unfit
    joined = damage("train.src.offsets", lambda offsets: np.delete(offsets, 3))
    assert joined == f"there are {n - 1:,} source and {n:,} target sentences"
    lines = damage("train.lines", lambda lines: lines[:-1])
    assert lines == f"it has {n:,} pairs, {n - 1:,} line numbers, {n:,} kept pairs"


def test_a_manifest_of_another_shape_is_damaged(config: RunConfig) -> None:
    folder = prepare(config)[0].folder
    manifest = json.loads((folder / "manifest.json").read_text())
    changes = [{"train": "x"}, {"tokenizer": {}}, {"ids_dtype": "O"}, {"test": [1]}, {"sha256": None}, {"valid": None}]
    for content in [*(json.dumps(manifest | change) for change in changes), "[" * 200_000]:
        (folder / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=r"has a damaged manifest\.json\. Delete"):
            PreparedCorpus.open(folder)


def test_every_file_is_on_the_disk_before_the_corpus_gets_its_name(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, renamed = set(), []
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        renamed.append([file.name for file in path.iterdir() if file.stat().st_ino not in synced])
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    prepare(config)
    assert renamed == [[]]


def test_ids_of_more_than_65535_pieces_take_four_bytes() -> None:
    assert np.dtype(corpus_module.ids_dtype(65_535)) == np.uint16
    assert np.dtype(corpus_module.ids_dtype(65_536)) == np.uint32


def test_long_stages_log_their_progress(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt.system.console.LINE_SECONDS", 0.0)
    _, said = prepare(config)
    for stage, n_pairs in (("cleaning", 250), ("removing duplicates, counting words", 247), ("encoding", 247)):
        last = [line for line in said if line.startswith(f"{stage}: ")][-1]
        assert re.fullmatch(rf"{stage}: {n_pairs} of {n_pairs} pairs · [\d,.]+ pairs/s · 0 s left", last)


@pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")
def test_encoded_real_captions_decode_to_the_same_text() -> None:
    folder = Path(REAL_DATA or "") / "data/multi30k"
    folder = folder if folder.is_absolute() else Path(__file__).parents[1] / folder

    def source(name: str) -> TextFiles:
        return TextFiles(src=str(folder / f"{name}.en.gz"), tgt=str(folder / f"{name}.de.gz"))

    data = DataConfig(train=(source("val"),), valid=source("test_2016_flickr"), prepared_dir="prepared")
    config = RunConfig(name="x", src_lang="en", tgt_lang="de", data=data, tokenizer=TokenizerConfig(vocab_size=2_000))
    corpus, _ = prepare(config)
    tokenizer = Tokenizer.load(corpus.tokenizer_paths[0])
    assert len(corpus.train) == 1_014
    assert len(corpus.valid) == 1_000
    for side in ("src", "tgt"):
        ids = getattr(corpus.valid, side)
        for i, pair in enumerate(corpus.valid_sets["valid"]):
            assert tokenizer.decode(ids[i]) == normalise(getattr(pair, side))


def test_a_validation_line_that_is_too_long_is_refused(config: RunConfig) -> None:
    endless = write_pair("endless", ["a short line", "word " * 5_000], ["eine kurze Zeile", "Wort"])
    message = error_of(with_data(config, valid=endless))
    assert message.startswith("endless.en + endless.de: line 2 has ")
    assert message.endswith(" tokens, but validation allows at most 4,096. Split or remove the line.")
    assert not list(Path("prepared").iterdir())


def test_duplicates_and_contaminated_pairs_are_removed_and_reported(config: RunConfig) -> None:
    test_line = "six words of a test sentence"
    src = ["One two, three.", "one two three", "One two, three.", f"{test_line}!", "other", *sentences(60, seed=7)]
    tgt = ["Eins zwei, drei.", "eins zwei drei", "Eins zwei, drei.", "egal", "anders", *sentences(60, seed=8)]
    again = write_pair("again", ["other", "new"], ["anders", "neu"])
    changed = with_data(
        config,
        train=(write_pair("doubled", src, tgt), again),
        test={"news": write_pair("test", [test_line], ["sechs Wörter eines Satzes zum Testen"])},
    )
    corpus, said = prepare(dataclasses.replace(changed, tokenizer=TokenizerConfig(vocab_size=400)))
    first, second = corpus.manifest["train"]["sources"]
    assert {reason: removal["count"] for reason, removal in first["removed"].items()} == {
        "contaminated": 1,
        "duplicate": 1,
        "folded_duplicate": 1,
    }
    assert {reason: removal["count"] for reason, removal in second["removed"].items()} == {"duplicate": 1}
    assert corpus.train_lines.tolist() == [1, *range(5, 66), 2]
    assert "duplicates removed: 2 duplicate, 1 folded_duplicate" in said
    rows = [row.split("\t") for row in (corpus.folder / "removed.tsv").read_text("utf-8").splitlines()]
    assert rows == [
        ["source", "line", "reason", "src", "tgt"],
        ["doubled.en + doubled.de", "4", "contaminated (news)", f"{test_line}!", "egal"],
        ["doubled.en + doubled.de", "2", "folded_duplicate", "one two three", "eins zwei drei"],
        ["doubled.en + doubled.de", "3", "duplicate", "One two, three.", "Eins zwei, drei."],
        ["again.en + again.de", "1", "duplicate", "other", "anders"],
    ]
    report = json.loads((corpus.folder / "report.json").read_text("utf-8"))
    assert report["train"] == corpus.manifest["train"]
    kept = with_data(changed, clean=CleanConfig(duplicates="keep", contamination=False), prepared_dir="kept")
    corpus, _ = prepare(dataclasses.replace(kept, tokenizer=TokenizerConfig(vocab_size=400)))
    assert corpus.manifest["train"]["pairs_kept"] == 67


def test_a_tag_is_one_piece_before_each_segment_of_its_corpus(config: RunConfig) -> None:
    tagged = dataclasses.replace(config.data.train[1], tag="<bt>")
    corpus, _ = prepare(with_data(config, train=(config.data.train[0], tagged)))
    tokenizer = Tokenizer.load(corpus.tokenizer_paths[0])
    assert tokenizer.pieces(corpus.train.src[196].tolist())[0] == "▁<bt>"
    assert corpus.train.src[196][1:].tolist() == [*tokenizer.encode(SECOND_SRC[0]), EOS_ID]
    assert "▁<bt>" not in tokenizer.pieces(corpus.train.src[195].tolist())
    assert corpus.manifest["train"]["sources"][1]["tag"] == "<bt>"
    assert corpus_fingerprint(with_data(config, train=(config.data.train[0], tagged))) != corpus_fingerprint(config)


def test_shards_in_worker_processes_give_the_same_as_one_process(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = prepare(config)
    monkeypatch.setattr(prepare_module, "Workers", Workers)
    monkeypatch.setattr(shards, "PAIRS_PER_SHARD", 37)
    parts, _ = prepare(with_data(config, prepared_dir="parts"))
    for name in REPRODUCIBLE_FILES:
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    for key in ("train", "valid", "test"):
        assert parts.manifest[key] == whole.manifest[key]


def test_two_preparations_of_one_corpus_wait_for_each_other(config: RunConfig) -> None:
    said: dict[int, list[str]] = defaultdict(list)
    threads = [threading.Thread(target=prepare_corpus, args=(config,)) for _ in range(2)]
    with messages_passed_to(lambda line: said[threading.get_ident()].append(line)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    folder = Path("prepared") / corpus_fingerprint(config)
    assert list(Path("prepared").iterdir()) == [folder]
    waiting = f"{folder}: another process is preparing this corpus; waiting for it"
    waited = next(lines for lines in said.values() if lines[0] == waiting)
    assert waited[1] == f"prepared corpus {folder}: 246 training pairs, prepared earlier from the same data"
    others = next(lines for lines in said.values() if lines is not waited)
    assert waited[2:] == [line for line in others if line.endswith(".")]  # the warnings


def test_a_given_tokenizer_is_used_unchanged(config: RunConfig) -> None:
    first, _ = prepare(config)
    given = first.tokenizer_paths[0].rename("given.model")
    shutil.rmtree("prepared")
    corpus, said = prepare(dataclasses.replace(config, tokenizer=TokenizerConfig(model=str(given))))
    assert corpus.tokenizer_paths[0].read_bytes() == given.read_bytes()
    assert corpus.manifest["tokenizer"]["kind"] == "given"
    assert not any("training a" in line for line in said)
    shutil.rmtree("prepared")
    assert error_of(dataclasses.replace(config, tokenizer=TokenizerConfig(model="nowhere.model"))) == (
        "nowhere.model: the tokenizer cannot be read (No such file or directory). Correct tokenizer.model, or remove "
        "it to train a tokenizer."
    )


def test_if_there_are_too_many_words_the_rarest_are_dropped(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MOST_WORDS", 4)
    words = Counter({"a": 9, "b": 3, "c": 2, "d": 1, "e": 1})
    assert prepare_module._without_rarest(words) == {"a": 9, "b": 3}
    monkeypatch.setattr(prepare_module, "MOST_WORDS", 300)
    corpus, _ = prepare(dataclasses.replace(config, tokenizer=TokenizerConfig(vocab_size=400)))
    report = json.loads((corpus.folder / "report.json").read_text("utf-8"))
    assert report["tokenizer"]["src"]["distinct_words"] <= 300


def test_a_side_that_is_far_too_long_is_cut_when_it_is_read(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    longest: list[int] = []
    clean = Cleaner.clean

    def measured(cleaner: Cleaner, chunk: Chunk) -> list[SentencePair]:
        longest.append(max(map(len, chunk.src)))
        return clean(cleaner, chunk)

    monkeypatch.setattr(Cleaner, "clean", measured)
    train = write_pair("second", [*SECOND_SRC, "long " * 100_000], [*SECOND_TGT, "kurz"])
    said = prepare(with_data(config, train=(train,)))[1]
    assert {*longest} == {10 * config.data.clean.max_chars + 1}  # cleaned in a shard, and in a sample of it
    assert "second.en + second.de: 51 pairs read, 50 kept; removed: 1 too_long" in said


def test_the_fingerprint_depends_on_the_version_of_the_normaliser(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = corpus_fingerprint(config)
    monkeypatch.setattr(prepare_module, "NORMALISER_VERSION", 1)
    assert corpus_fingerprint(config) != before


def test_the_report_names_files_and_what_is_not_text(config: RunConfig) -> None:
    for i in (2, 10):
        pairs = zip(sentences(40, seed=20 + i), sentences(40, seed=30 + i), strict=True)
        rows = [f'"{src}"\t"{tgt}"\n' for src, tgt in pairs]
        Path(f"shard-{i}.tsv").write_text('"en"\t"de"\n' + "".join(rows), "utf-8")
    unit = "<tuv xml:lang='en'><seg>one</seg></tuv>"
    other = unit.replace("en", "de").replace("one", "eins")
    Path("valid.tmx").write_text(f"<tmx><body><tu>{unit}{other}</tu><tu>{unit}</tu></body></tmx>", "utf-8")
    found, said = prepare(with_data(config, train=(Table(file="shard-*.tsv"),), valid=Table(file="valid.tmx")))
    facts = json.loads((found.folder / "report.json").read_text("utf-8"))
    train = facts["train"]["sources"][0]
    assert train["source"] == "shard-*.tsv (2 files)"
    assert train["files"] == ["shard-2.tsv", "shard-10.tsv"]
    assert train["skipped"] == {"header lines": 2}
    assert facts["valid"]["skipped"] == {"units without both languages": 1}
    assert facts["train"]["pairs_kept"] == 80
    assert "shard-*.tsv (2 files): 80 pairs read, 80 kept; removed: none; header lines skipped: 2" in said
    assert "valid.tmx: units without both languages skipped: 1" in said
    page = (found.folder / "report.html").read_text("utf-8")
    for text in ("header lines skipped: 2", "shard-2.tsv, shard-10.tsv", "units without both languages skipped: 1"):
        assert text in page


def test_text_without_spaces_does_not_lose_all_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MOST_WORDS", 100)
    lines = Counter({"两次": 2} | {f"第{i}行": 1 for i in range(300)})
    kept = prepare_module._without_rarest(lines)
    assert (kept["两次"], set(kept) <= set(lines)) == (2, True)
    assert 40 <= len(kept) <= 50
    words = Counter({f"w{i}": 1 + i % 3 for i in range(150)})
    assert prepare_module._without_rarest(words) == {word: 3 for word, count in words.items() if count == 3}
