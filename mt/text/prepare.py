"""From the sources of a config to the prepared corpus."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mt.config import DataConfig, RunConfig, SourceConfig
from mt.errors import DataError
from mt.text.clean import Cleaner, Reason, removed_text
from mt.text.corpus import FORMAT_VERSION, PreparedCorpus, ids_dtype
from mt.text.normalise import Normalisers
from mt.text.sources import SentencePair, check_source, read_pairs, source_fingerprint
from mt.text.tokenizer import (
    EOS_ID,
    MAX_WORD_BYTES,
    Tokenizer,
    count_words,
    train_tokenizer,
)

_PAIRS_PER_CHUNK = 50_000  # encoded together
_SAMPLE_SEED = 1  # of the tokenizer's sample: of its own, so that train.seed does not change the corpus
_SECONDS_BETWEEN_PROGRESS = 10.0
MAX_VALIDATION_TOKENS = 4_096  # memory of a validation grows with the square of its longest line
_TEXT, _LINES = "clean.{}.tsv", "clean.{}.lines"  # cleaned text of source {}, while building

Say = Callable[[str], None]


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def corpus_fingerprint(config: RunConfig, tokenizer_path: Path | None = None) -> str:
    """16 hexadecimal digits for the content of all sources and the settings that shape the corpus.

    Neither paths nor the weights of sources are in it: a weight shapes the plan of training, not the corpus.

    Raises:
        DataError: a local source is missing or unreadable.
    """
    data = config.data
    tokenizer: Any = asdict(config.tokenizer)
    if tokenizer_path is not None:
        tokenizer = hashlib.blake2b(tokenizer_path.read_bytes()).hexdigest()
    content = {
        "format_version": FORMAT_VERSION,
        "src_lang": config.src_lang,
        "tgt_lang": config.tgt_lang,
        "train": [source_fingerprint(source) for source in data.train],
        "valid": source_fingerprint(data.valid),
        "test": [[name, source_fingerprint(source)] for name, source in data.test.items()],
        "tokenizer": tokenizer,
        "cleaning": [data.max_tokens, asdict(data.clean)],
    }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def prepare_corpus(
    config: RunConfig, say: Say = _print_to_stderr, tokenizer_path: Path | None = None
) -> PreparedCorpus:
    """The prepared corpus of a config: opened where it stands, else built.

    The folder is built under another name and renamed at the end, so that it is whole or absent. Memory does not grow
    with the corpus, but for the sample that the tokenizer is trained on.

    Args:
        say: gets a few lines for people.
        tokenizer_path: a tokenizer to use; otherwise one is trained on the corpus.
    Raises:
        DataError: a source is missing, unreadable, not parallel, or nothing of it is left.
        ConfigError: the vocabulary does not fit the corpus.
    """
    fingerprint = corpus_fingerprint(config, tokenizer_path)
    folder = Path(config.data.prepared_dir) / fingerprint
    if folder.exists():
        corpus = PreparedCorpus.open(folder)
        say(f"prepared corpus {folder}: {len(corpus.train):,} training pairs, made before with the same data")
        return corpus
    _check_sources(config)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        building = Path(tempfile.mkdtemp(prefix=f".building-{fingerprint}-", dir=folder.parent))
        try:
            building.chmod(0o755)  # mkdtemp shuts out everyone else
            _Builder(config, building, say, tokenizer_path).build(fingerprint)
            _rename_unless_there(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    say(f"prepared corpus {folder}")
    return PreparedCorpus.open(folder)


def _sweep(prepared_dir: Path) -> None:
    """Remove what preparations that were killed have left; a day old, so that none that runs is hit."""
    for leftover in prepared_dir.glob(".building-*"):
        if time.time() - leftover.stat().st_mtime > 86_400:
            shutil.rmtree(leftover, ignore_errors=True)


def _rename_unless_there(building: Path, folder: Path) -> None:
    try:
        building.rename(folder)
    except OSError:
        if not (folder / "manifest.json").exists():  # else another process was faster, with the same content
            raise


def _check_sources(config: RunConfig) -> None:
    langs = config.src_lang, config.tgt_lang
    for source in config.data.train:
        check_source(source, *langs, "train")
    check_source(config.data.valid, *langs, "validation")
    for source in config.data.test.values():
        check_source(source, *langs, "test")


class _Builder:
    """Builds one corpus in a folder of its own. The steps are the lines of `build`, in order."""

    def __init__(self, config: RunConfig, folder: Path, say: Say, tokenizer_path: Path | None) -> None:
        self.tokenizer_path = tokenizer_path
        self.config = config
        self.normalisers = Normalisers.of_run(config)
        self.folder = folder
        self.say = say

    def build(self, fingerprint: str) -> None:
        clock = time.perf_counter
        started_at = clock()
        # Validation and test sets first: they are small, and what is wrong with them shows at once.
        valid_pairs = self._read_kept_whole(self.config.data.valid, "validation", self.folder / "valid.jsonl")
        n_test_pairs = self._read_test_sets()
        cleaners = self._clean_sources()
        cleaned_at = clock()
        if self.tokenizer_path is None:
            tokenizer_facts = self._train_tokenizer(sum(cleaner.tally.n_kept for cleaner in cleaners))
        else:
            shutil.copyfile(self.tokenizer_path, self.folder / "tokenizer.model")
            tokenizer_facts = {"kind": "given"}
        tokenizer = Tokenizer.load(self.folder / "tokenizer.model")
        tokenized_at = clock()
        sides = self._encode_train(tokenizer, cleaners)
        valid_sides = self._encode_valid(tokenizer, valid_pairs)
        encoded_at = clock()
        seconds = {
            "read_and_clean": cleaned_at - started_at,
            "train_tokenizer": tokenized_at - cleaned_at,
            "encode": encoded_at - tokenized_at,
        }
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "src_lang": self.config.src_lang,
            "tgt_lang": self.config.tgt_lang,
            "ids_dtype": ids_dtype(tokenizer.vocab_size),
            "train": _train_facts(self.config.data, cleaners, sides),
            "valid": {"source": self.config.data.valid.description, "pairs": len(valid_pairs), **valid_sides.facts()},
            "test": {
                name: {"source": source.description, "pairs": n_test_pairs[name]}
                for name, source in self.config.data.test.items()
            },
            "tokenizer": {**tokenizer_facts, "vocab_size": tokenizer.vocab_size},
            "versions": _versions(),
            "seconds": {stage: round(duration, 3) for stage, duration in seconds.items()},
            "file_bytes": {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())},
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=True)
        (self.folder / "manifest.json").write_text(text + "\n", "utf-8")

    def _read_kept_whole(self, source: SourceConfig, role: str, path: Path) -> list[SentencePair]:
        """A validation or test set: written as it is, nothing removed."""
        pairs = list(read_pairs(source, self.config.src_lang, self.config.tgt_lang, role))
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(pair) + "\n" for pair in pairs)
        normalise_src, normalise_tgt = self.normalisers
        empty = [pair.line for pair in pairs if not normalise_src(pair.src) or not normalise_tgt(pair.tgt)]
        if len(empty) == len(pairs):
            raise DataError(f"{source.description}: all {len(pairs):,} {role} pairs have an empty side")
        if empty:
            self.say(
                f"{source.description}: {len(empty):,} of {len(pairs):,} {role} pairs have an empty side, "
                f"first in line {empty[0]:,}; they are kept"
            )
        return pairs

    def _read_test_sets(self) -> dict[str, int]:
        return {
            name: len(self._read_kept_whole(source, "test", self.folder / f"test.{name}.jsonl"))
            for name, source in self.config.data.test.items()
        }

    def _clean_sources(self) -> list[Cleaner]:
        """Cleaned text and line numbers of each source to temporary files."""
        cleaners = []
        for number, source in enumerate(self.config.data.train):
            cleaner = Cleaner(self.config.data.clean, self.config.src_lang, self.config.tgt_lang)
            self._clean_source(number, source, cleaner)
            cleaners.append(cleaner)
            self.say(
                f"{source.description}: {cleaner.tally.n_read:,} pairs read, {cleaner.tally.n_kept:,} kept; "
                f"removed: {removed_text(cleaner.tally.removed)}"
            )
        _require_pairs(cleaners)
        return cleaners

    def _clean_source(self, number: int, source: SourceConfig, cleaner: Cleaner) -> None:
        pairs = read_pairs(source, self.config.src_lang, self.config.tgt_lang, "train")
        progress = _Progress(self.say, f"{source.description}: reading", "pairs")
        text_path, lines_path = self.folder / _TEXT.format(number), self.folder / _LINES.format(number)
        with text_path.open("w", encoding="utf-8", newline="\n") as text, lines_path.open("wb") as lines:
            while chunk := list(islice(pairs, _PAIRS_PER_CHUNK)):
                kept = [cleaned for pair in chunk if (cleaned := cleaner.clean(pair)) is not None]
                text.writelines(f"{src}\t{tgt}\n" for src, tgt, _ in kept)
                np.array([pair.line for pair in kept], dtype=np.int64).tofile(lines)
                progress.advance(len(chunk))

    def _cleaned_pairs(self, number: int) -> Iterator[SentencePair]:
        """What `_clean_source` has kept of a source."""
        lines = np.memmap(self.folder / _LINES.format(number), dtype=np.int64, mode="r")
        # Normalised text holds no tab and no line end.
        with (self.folder / _TEXT.format(number)).open(encoding="utf-8", newline="\n") as text:
            for row, line in zip(text, lines, strict=True):
                src, tgt = row[:-1].split("\t")
                yield SentencePair(src, tgt, int(line))

    def _train_tokenizer(self, n_pairs: int) -> dict[str, Any]:
        """Train the tokenizer on the cleaned text; what the manifest says of it."""
        settings = self.config.tokenizer
        n_lines = min(2 * n_pairs, settings.sample_lines)
        what = f"{settings.kind} tokenizer of {settings.vocab_size:,} pieces"
        self.say(f"training a {what} on {n_lines:,} lines")
        started_at = time.perf_counter()
        progress = _Progress(self.say, f"{what}: in training", None)
        lines = (line for number in self._kept_sources() for pair in self._cleaned_pairs(number) for line in pair[:2])
        stats = train_tokenizer(
            count_words(_sample(lines, 2 * n_pairs, n_lines)),
            settings,
            self.folder / "tokenizer.model",
            tuple(dict.fromkeys((*settings.user_symbols, *self.config.data.tags))),
            while_waiting=progress.advance,
        )
        skipped = ""
        if stats.n_skipped_words:
            skipped = f", without {stats.n_skipped_words:,} words of over {MAX_WORD_BYTES:,} bytes"
        self.say(f"{what}: trained in {time.perf_counter() - started_at:.0f} s{skipped}")
        return {**asdict(settings), "lines": n_lines, "skipped_words": stats.n_skipped_words}

    def _kept_sources(self) -> list[int]:
        """Numbers of the sources of which something is left."""
        n_sources = len(self.config.data.train)
        return [number for number in range(n_sources) if (self.folder / _LINES.format(number)).stat().st_size]

    def _encode_train(self, tokenizer: Tokenizer, cleaners: Sequence[Cleaner]) -> _PairWriter:
        started_at = time.perf_counter()
        progress = _Progress(self.say, "encoding", "pairs")
        with (
            _PairWriter(self.folder, "train", tokenizer.vocab_size) as writer,
            (self.folder / "train.lines").open("wb") as lines,
        ):
            for number in self._kept_sources():
                pairs = self._cleaned_pairs(number)
                while chunk := list(islice(pairs, _PAIRS_PER_CHUNK)):
                    kept = self._encode_chunk(tokenizer, chunk, cleaners[number], writer)
                    np.array([pair.line for pair in kept], dtype=np.int64).tofile(lines)
                    progress.advance(len(chunk))
        for number in range(len(cleaners)):
            (self.folder / _TEXT.format(number)).unlink()
            (self.folder / _LINES.format(number)).unlink()
        _require_pairs(cleaners)
        removals = [cleaner.tally.removed for cleaner in cleaners]
        n_too_long = sum(removed["too_many_tokens"].count for removed in removals if "too_many_tokens" in removed)
        self.say(
            f"encoded {writer.n_pairs:,} pairs in {time.perf_counter() - started_at:.0f} s: "
            f"{writer.n_src_tokens:,} source and {writer.n_tgt_tokens:,} target tokens, ends of sentences included; "
            f"removed: {n_too_long:,} pairs over {self.config.data.max_tokens} tokens"
        )
        return writer

    def _encode_chunk(
        self, tokenizer: Tokenizer, chunk: Sequence[SentencePair], cleaner: Cleaner, writer: _PairWriter
    ) -> list[SentencePair]:
        src_ids, tgt_ids = _encode_pairs(tokenizer, chunk)
        fits = [
            max(len(src), len(tgt)) <= self.config.data.max_tokens for src, tgt in zip(src_ids, tgt_ids, strict=True)
        ]
        for pair, fit in zip(chunk, fits, strict=True):
            if not fit:
                cleaner.tally.remove("too_many_tokens", pair)
        writer.write(_where(src_ids, fits), _where(tgt_ids, fits))
        return _where(chunk, fits)

    def _encode_valid(self, tokenizer: Tokenizer, pairs: Sequence[SentencePair]) -> _PairWriter:
        with _PairWriter(self.folder, "valid", tokenizer.vocab_size) as writer:
            for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
                chunk = [
                    SentencePair(self.normalisers.src(src), self.normalisers.tgt(tgt), line)
                    for src, tgt, line in pairs[start : start + _PAIRS_PER_CHUNK]
                ]
                src_ids, tgt_ids = _encode_pairs(tokenizer, chunk)
                self._refuse_endless(chunk, src_ids, tgt_ids)
                writer.write(src_ids, tgt_ids)
        max_tokens = self.config.data.max_tokens
        if max(writer.longest) > max_tokens:
            self.say(
                f"{self.config.data.valid.description}: the longest validation sentence has {max(writer.longest):,} "
                f"tokens, data.max_tokens is {max_tokens:,}; it is kept"
            )
        return writer

    def _refuse_endless(
        self, pairs: Sequence[SentencePair], src_ids: Sequence[Sequence[int]], tgt_ids: Sequence[Sequence[int]]
    ) -> None:
        for pair, src, tgt in zip(pairs, src_ids, tgt_ids, strict=True):
            longest = max(len(src), len(tgt))
            if longest > MAX_VALIDATION_TOKENS:
                raise DataError(
                    f"{self.config.data.valid.description}: line {pair.line:,} has {longest:,} tokens: validation "
                    f"measures every line whole, up to {MAX_VALIDATION_TOKENS:,} tokens: split or remove it"
                )


def _encode_pairs(tokenizer: Tokenizer, pairs: Sequence[SentencePair]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the two sides, each with its end of sentence."""
    ids = tokenizer.encode_batch([pair.src for pair in pairs] + [pair.tgt for pair in pairs])
    for sentence in ids:
        sentence.append(EOS_ID)
    return ids[: len(pairs)], ids[len(pairs) :]


def _where(items: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [item for item, is_wanted in zip(items, wanted, strict=True) if is_wanted]


class _SideWriter:
    """One side of the pairs: ids and offsets, appended to two files."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self.n_tokens = 0
        self.longest = 0
        self._dtype = dtype
        self._ids: BinaryIO = (folder / f"{name}.ids").open("wb")
        self._offsets: BinaryIO = (folder / f"{name}.offsets").open("wb")
        np.zeros(1, dtype=np.int64).tofile(self._offsets)

    def write(self, sentences: Sequence[Sequence[int]]) -> None:
        if not sentences:
            return
        lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
        n_tokens = int(lengths.sum())
        np.fromiter(chain.from_iterable(sentences), dtype=self._dtype, count=n_tokens).tofile(self._ids)
        (self.n_tokens + np.cumsum(lengths)).tofile(self._offsets)
        self.n_tokens += n_tokens
        self.longest = max(self.longest, int(lengths.max()))

    def close(self) -> None:
        self._ids.close()
        self._offsets.close()


class _PairWriter:
    """Both sides, and what the manifest tells about them."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self.n_pairs = 0
        self._sides = [_SideWriter(folder, f"{name}.{side}", ids_dtype(vocab_size)) for side in ("src", "tgt")]

    def __enter__(self) -> _PairWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides:
            side.close()

    def write(self, src_ids: Sequence[Sequence[int]], tgt_ids: Sequence[Sequence[int]]) -> None:
        for side, ids in zip(self._sides, (src_ids, tgt_ids), strict=True):
            side.write(ids)
        self.n_pairs += len(src_ids)

    @property
    def n_src_tokens(self) -> int:
        return self._sides[0].n_tokens

    @property
    def n_tgt_tokens(self) -> int:
        return self._sides[1].n_tokens

    @property
    def longest(self) -> tuple[int, int]:
        return self._sides[0].longest, self._sides[1].longest

    def facts(self) -> dict[str, Any]:
        return {
            "src_tokens": self.n_src_tokens,
            "tgt_tokens": self.n_tgt_tokens,
            "src_tokens_per_tgt_token": self.n_src_tokens / self.n_tgt_tokens,
            "longest_src": self.longest[0],
            "longest_tgt": self.longest[1],
        }


def _train_facts(data: DataConfig, cleaners: Sequence[Cleaner], writer: _PairWriter) -> dict[str, Any]:
    return {
        "pairs_read": sum(cleaner.tally.n_read for cleaner in cleaners),
        "pairs_kept": writer.n_pairs,
        **writer.facts(),
        "sources": [
            {
                "source": source.description,
                "pairs_read": cleaner.tally.n_read,
                "pairs_kept": cleaner.tally.n_kept,
                "removed": {reason: removal.as_json() for reason, removal in cleaner.tally.removed.items()},
            }
            for source, cleaner in zip(data.train, cleaners, strict=True)
        ],
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("mt-train", "sentencepiece", "datasets", "sacrebleu", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _require_pairs(cleaners: Sequence[Cleaner]) -> None:
    if sum(cleaner.tally.n_kept for cleaner in cleaners):
        return
    total: dict[Reason, int] = {}
    for cleaner in cleaners:
        for reason, removal in cleaner.tally.removed.items():
            total[reason] = total.get(reason, 0) + removal.count
    removed = ", ".join(f"{count:,} {reason}" for reason, count in total.items())
    n_read = sum(cleaner.tally.n_read for cleaner in cleaners)
    raise DataError(
        f"data.train: nothing is left of {n_read:,} pairs, removed: {removed}; look at the text, or at the limits "
        "data.clean and data.max_tokens"
    )


def _sample(lines: Iterable[str], n_lines: int, n_wanted: int) -> Iterator[str]:
    """`n_wanted` of the `n_lines` lines, drawn evenly, in order (Knuth, The Art of Computer Programming, 3.4.2 S)."""
    draw = random.Random(_SAMPLE_SEED).random
    for n_left, line in zip(range(n_lines, 0, -1), lines, strict=True):
        if n_left * draw() < n_wanted:
            n_wanted -= 1
            yield line


class _Progress:
    """Says now and then how far a long stage has come."""

    def __init__(self, say: Say, what: str, unit: str | None) -> None:
        self._say = say
        self._what = what
        self._unit = unit
        self._n_done = 0
        self._started_at = self._said_at = time.perf_counter()

    def advance(self, n: int = 0) -> None:
        self._n_done += n
        now = time.perf_counter()
        if now - self._said_at < _SECONDS_BETWEEN_PROGRESS:
            return
        self._said_at = now
        elapsed_seconds = now - self._started_at
        done = f"{self._n_done:,} {self._unit}, {self._n_done / elapsed_seconds:,.0f} a second, " if self._unit else ""
        self._say(f"{self._what}: {done}{elapsed_seconds:.0f} s")
