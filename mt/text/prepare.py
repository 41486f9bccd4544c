"""From the corpora of a config to the prepared corpus: read, clean, find duplicates, tokenize, encode, report."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mt.config.loading import settings_of
from mt.config.settings import Corpus, RunConfig
from mt.errors import ConfigError, DataError
from mt.report.data import write_data_report
from mt.system.console import Meter
from mt.system.files import whole_file
from mt.system.locks import locked
from mt.system.provenance import host_memory_bytes, machine, n_cores, package_versions, peak_host_memory_bytes
from mt.system.signals import PendingExit, exit_on_signals
from mt.system.workers import Workers
from mt.text.clean import CHANGE_RULES, RULES, Tally, removed_text
from mt.text.corpora import Chunk, CorpusReader, SentencePair, readers_of
from mt.text.corpus import FORMAT_VERSION, PreparedCorpus, ids_dtype, with_tag
from mt.text.duplicates import repeated
from mt.text.normalise import Normalisers
from mt.text.overlap import HeldOut, NgramOverlap
from mt.text.shards import PAIRS_PER_SHARD, Cleaning, Counting, Encoding, Repeats, Shard, encode_pairs
from mt.text.tokenizer import MAX_WORD_BYTES, Tokenizer, adopt_model, train_tokenizer
from mt.text.vocabulary import joint_vocabulary_facts

N_SAMPLES = 50  # kept pairs that the report shows
MOST_WORDS = 2_000_000  # different ones of a language that are counted at one time; the rarest give way
MAX_VALIDATION_TOKENS = 4_096  # memory of a validation grows with the square of its longest line
# Source tokens for each target token, where the bars of the report begin.
LENGTH_RATIOS = (0.0, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0)
_DAYS_KEPT = 7  # finished shards of a preparation that was interrupted
# Whose versions shape a corpus.
_PACKAGES = ("mt-train", "sentencepiece", "datasets", "sacrebleu", "numpy", "py3langid", "sacremoses")
_HELD_OUT_CHUNK = 10_000  # pairs encoded together

_log = logging.getLogger(__name__)


def corpus_fingerprint(config: RunConfig, tokenizer_path: Path | None = None) -> str:
    """Return 16 hexadecimal digits for the content of all corpora and the settings that shape the prepared one.

    Neither paths nor the weights of corpora are in it: a weight shapes the plan of training, not the corpus.

    Args:
        tokenizer_path: as for `prepare_corpus`.
    Raises:
        DataError: a local corpus, or the tokenizer, is missing or unreadable.
    """
    data, readers = config.data, readers_of(config)

    def entry(key: str) -> list[str | None]:
        return [readers[key].fingerprint(), readers[key].corpus.tag]

    content = {
        "format_version": FORMAT_VERSION,
        "src_lang": config.src_lang,
        "tgt_lang": config.tgt_lang,
        "train": [entry(f"data.train.{number}") for number in range(len(data.train))],
        "valid": entry("data.valid"),
        "test": [[name, *entry(f"data.test.{name}")] for name in data.test],
        "tokenizer": _tokenizer_fingerprint(config, tokenizer_path),
        "cleaning": [data.max_tokens, asdict(data.clean)],
    }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _tokenizer_fingerprint(config: RunConfig, tokenizer_path: Path | None) -> Any:
    path = tokenizer_path or (Path(config.tokenizer.model) if config.tokenizer.model else None)
    if path is None:
        settings = asdict(config.tokenizer)
        del settings["model"]
        return settings
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the tokenizer cannot be read: {error.strerror}: correct tokenizer.model, or leave it out to have "
            "one trained"
        ) from None
    return [hashlib.blake2b(content).hexdigest(), config.tokenizer.user_symbols]


def prepare_corpus(config: RunConfig, tokenizer_path: Path | None = None) -> PreparedCorpus:
    """The prepared corpus of a config: opened where it stands, else built.

    It is built under another name and renamed at the end, so it is whole or absent. A preparation that was interrupted
    goes on with the shards that were finished; one that meets bad data or a full disk leaves nothing. Memory does not
    grow with the corpus, but for its 8-byte keys in parts and the words of the tokenizer's sample.

    Args:
        tokenizer_path: the tokenizer of the model that training starts from, used as it is.
    Raises:
        DataError: a corpus is missing, unreadable, not parallel, or nothing of it is left.
        ConfigError: the vocabulary does not fit the corpus, or the tokenizer does not know a tag.
        MTError: a worker process was killed.
    """
    fingerprint = corpus_fingerprint(config, tokenizer_path)
    folder = Path(config.data.prepared_dir) / fingerprint
    if folder.exists():
        return _standing(folder)
    _check_corpora(config)
    building = folder.with_name(f".building-{fingerprint}")

    def wait_aloud() -> None:
        _log.info(f"{folder}: another process is preparing it, waiting")

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with locked(folder.with_name(f".{fingerprint}.lock"), wait_aloud), exit_on_signals() as pending_exit:
            if folder.exists():
                return _standing(folder)
            _build(config, building, tokenizer_path, pending_exit)
            pending_exit.check()
            building.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}: set data.prepared_dir to a folder that has room "
            "and can be written"
        ) from error
    _log.info(f"prepared corpus {folder}; what was removed and why: {folder / 'report.html'}")
    return PreparedCorpus.open(folder)


def _standing(folder: Path) -> PreparedCorpus:
    corpus = PreparedCorpus.open(folder)
    _log.info(f"prepared corpus {folder}: {len(corpus.train):,} training pairs, made before with the same data")
    return corpus


def _build(config: RunConfig, building: Path, tokenizer_path: Path | None, pending_exit: PendingExit) -> None:
    """Only who holds the lock of the corpus may call this: what fails removes the folder."""
    shards = building / "shards"
    has_begun = shards.exists()
    try:
        shards.mkdir(parents=True, exist_ok=True)
        os.utime(shards)
        if has_begun:
            _log.info(f"{building}: a preparation of the same data was interrupted, its finished parts are used")
        # The manifest is written last: with it, nothing but the removal of the shards is left to do.
        if not (building / "manifest.json").exists():
            _Builder(config, building, tokenizer_path, pending_exit).build()
        shutil.rmtree(shards)
    except (KeyboardInterrupt, SystemExit):
        _log.info(f"interrupted; finished parts are kept for {_DAYS_KEPT} days, the same command goes on with them")
        raise
    except (DataError, ConfigError, OSError):
        shutil.rmtree(building, ignore_errors=True)
        raise


def _sweep(prepared_dir: Path) -> None:
    """Remove what preparations that nobody went on with have left."""
    for leftover in prepared_dir.glob(".building-*"):
        with suppress(OSError):
            # Shards are written below the folder, whose own time is that of its first minutes.
            changed_at = max(path.stat().st_mtime for path in (leftover, leftover / "shards") if path.exists())
            if time.time() - changed_at > _DAYS_KEPT * 86_400:
                shutil.rmtree(leftover, ignore_errors=True)


def _check_corpora(config: RunConfig) -> None:
    for reader in readers_of(config).values():
        reader.check()
    if config.tokenizer.model is not None:
        adopt_model(Path(config.tokenizer.model), config.symbols)


class _Builder:
    """Builds one corpus in a folder of its own. The steps are the lines of `build`, in order."""

    def __init__(self, config: RunConfig, folder: Path, tokenizer_path: Path | None, pending_exit: PendingExit) -> None:
        self.config = config
        self.readers = readers_of(config)
        self.pending_exit = pending_exit
        self.folder = folder
        self.tokenizer_path = tokenizer_path
        self.fingerprint = folder.name.removeprefix(".building-")
        self.seconds: dict[str, float] = {}

    def build(self) -> None:
        # Validation and test sets first: they are small, and what is wrong with them shows at once.
        with self._stage("held_out"):
            valid, tests = self._read_held_out_sets()
        with self._stage("clean"):
            shards, n_read = self._clean(valid, tests)
        with self._stage("duplicates"):
            repeats = self._find_repeats(shards)
        with self._stage("count_words"):
            words, n_lines = self._count_words(shards, repeats)
        with self._stage("tokenizer"):
            tokenizer, tokenizer_facts = self._make_tokenizer(words, n_lines)
        with self._stage("encode"):
            self._encode(shards, tokenizer)
            lengths, sides = self._join(shards, tokenizer)
            valid_sides = self._encode_valid(tokenizer, valid)
        with self._stage("report"):
            facts = {
                **self._facts(shards, n_read, sides, lengths),
                "valid": {**_held_out_facts(self.config.data.valid, valid), **valid_sides.facts()},
                "test": {name: _held_out_facts(self.config.data.test[name], pairs) for name, pairs in tests.items()},
                "overlap": self._overlap(shards, valid, tests),
                "tokenizer": {**tokenizer_facts, **_vocabulary(tokenizer, words)},
            }
            self._join_removed(shards)
        self._require_unchanged_text()
        self._write_report_and_manifest(facts)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.pending_exit.check()
        started_at = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started_at

    # ------------------------------------------------------------------------------------------- held-out sets

    def _read_held_out_sets(self) -> tuple[list[SentencePair], dict[str, list[SentencePair]]]:
        """The validation set and the test sets, written as they are, nothing removed."""
        valid = self._read_kept_whole(self.readers["data.valid"], self.folder / "valid.jsonl")
        tests = {
            name: self._read_kept_whole(self.readers[f"data.test.{name}"], self.folder / f"test.{name}.jsonl")
            for name in self.config.data.test
        }
        return valid, tests

    def _read_kept_whole(self, reader: CorpusReader, path: Path) -> list[SentencePair]:
        corpus, role, pairs = reader.corpus, reader.split, list(reader.pairs())
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(pair) + "\n" for pair in with_tag(pairs, corpus.tag))
        empty = [pair.line for pair in pairs if not pair.src.strip() or not pair.tgt.strip()]
        if len(empty) == len(pairs):
            raise DataError(corpus.description, f"all {len(pairs):,} {role} pairs have an empty side")
        if empty:
            _log.info(
                f"{corpus.description}: {len(empty):,} of {len(pairs):,} {role} pairs have an empty side, "
                f"first in line {empty[0]:,}; they are kept"
            )
        return pairs

    def _held_out(self, valid: Sequence[SentencePair], tests: dict[str, list[SentencePair]]) -> HeldOut:
        normalisers = Normalisers.of_run(self.config)
        sets = {
            name: [SentencePair(normalisers.src(src), normalisers.tgt(tgt), line) for src, tgt, line in pairs]
            for name, pairs in {"valid": valid, **tests}.items()
        }
        return HeldOut(sets, self.config.data.clean.contamination_words)

    # ------------------------------------------------------------------------------------------------ cleaning

    def _clean(
        self, valid: Sequence[SentencePair], tests: dict[str, list[SentencePair]]
    ) -> tuple[list[list[Shard]], list[int]]:
        """The shards of each corpus, cleaned, and the pairs that were read of it."""
        data = self.config.data
        readers = [self.readers[f"data.train.{number}"] for number in range(len(data.train))]
        cleaning = Cleaning(data.clean, self.config.src_lang, self.config.tgt_lang, self._held_out(valid, tests))
        shards: list[list[Shard]] = [[] for _ in data.train]
        n_read = [0 for _ in data.train]

        def tasks() -> Iterator[tuple[Shard, Chunk]]:
            for number, reader in enumerate(readers):
                for chunk in reader.chunks(PAIRS_PER_SHARD):
                    shard = Shard(self.folder / "shards", number, len(shards[number]))
                    shards[number].append(shard)
                    n_read[number] += len(chunk.src)
                    if not shard.is_finished("cleaned"):
                        yield shard, chunk

        n_pairs = _sum_if_known([reader.count() for reader in readers])
        self._run(cleaning, tasks(), Meter("pairs", n_pairs, what="cleaning"))
        for number, corpus in enumerate(data.train):
            tally = _total(shard.result("cleaned")["tally"] for shard in shards[number])
            _log.info(
                f"{corpus.description}: {tally.n_read:,} pairs read, {tally.n_kept:,} kept; "
                f"removed: {removed_text(tally.removed)}"
            )
        self._require_pairs(shards, "cleaned")
        return shards, n_read

    def _find_repeats(self, shards: list[list[Shard]]) -> Iterable[Repeats]:
        """For each shard in order: which of its pairs came before."""
        every = [shard for of_corpus in shards for shard in of_corpus]
        mode = self.config.data.clean.duplicates
        if mode == "keep" or all(shard.is_finished("kept") for shard in every):
            return [Repeats(None, None) for _ in every]
        exact = repeated([shard.path("cleaned.keys") for shard in every])
        if mode == "exact":
            return [Repeats(flags, None) for flags in exact]
        folded = repeated([shard.path("cleaned.folded") for shard in every])
        return [Repeats(*flags) for flags in zip(exact, folded, strict=True)]

    def _count_words(self, shards: list[list[Shard]], repeats: Iterable[Repeats]) -> tuple[list[Counter[str]], int]:
        """Duplicates removed; the words of source and target side in a sample, and its lines."""
        every = [shard for of_corpus in shards for shard in of_corpus]
        n_pairs = sum(_total([shard.result("cleaned")["tally"]]).n_kept for shard in every)
        meter = Meter("pairs", n_pairs, what="removing duplicates, counting words")
        share = self.config.tokenizer.sample_lines / max(2 * n_pairs, 1)
        tasks = ((s, r) for s, r in zip(every, repeats, strict=True) if not s.is_finished("kept"))
        self._run(Counting(share), tasks, meter)
        words: list[Counter[str]] = [Counter(), Counter()]
        n_lines = 0
        for shard in every:
            n_lines += shard.result("kept")["n_lines"]
            for side, of_shard in enumerate(shard.words()):
                words[side].update(of_shard)
                if len(words[side]) > MOST_WORDS:
                    words[side] = _without_rarest(words[side])
        total = _total(shard.result("kept")["tally"] for shard in every)
        duplicates = {reason: total.removed[reason] for reason in _DUPLICATES if reason in total.removed}
        if self.config.data.clean.duplicates != "keep":
            _log.info(f"duplicates removed: {removed_text(duplicates)}")
        return words, n_lines

    # ----------------------------------------------------------------------------------------------- tokenizer

    def _make_tokenizer(self, words: Sequence[Counter[str]], n_lines: int) -> tuple[Tokenizer, dict[str, Any]]:
        """The tokenizer in its place, and what the report says of where it comes from."""
        path, settings = self.folder / "tokenizer.model", self.config.tokenizer
        symbols = self.config.symbols
        facts: dict[str, Any]
        if self.tokenizer_path is not None:
            shutil.copyfile(self.tokenizer_path, path)
            facts = {"kind": "given"}
        elif settings.model is not None:
            path.write_bytes(adopt_model(Path(settings.model), symbols))
            facts = {"kind": "given", "model": settings.model}
        else:
            trained = self.folder / "shards" / "tokenizer.model"  # beside it, training leaves files when it is killed
            facts = self._train_tokenizer(words, n_lines, symbols, trained)
            shutil.copyfile(trained, path)
        tokenizer = Tokenizer.load(path)
        for symbol in symbols:
            if not _knows(tokenizer, symbol):
                raise ConfigError(
                    symbol,
                    "the tokenizer of the model that training starts from does not know this symbol",
                    "leave it out, or train from scratch",
                )
        return tokenizer, {**facts, "vocab_size": tokenizer.vocab_size, "symbols": list(symbols)}

    def _train_tokenizer(
        self, words: Sequence[Counter[str]], n_lines: int, symbols: Sequence[str], path: Path
    ) -> dict[str, Any]:
        settings = self.config.tokenizer
        what = f"{settings.kind} tokenizer of {settings.vocab_size:,} pieces"
        done = path.with_suffix(".json")
        if done.exists():
            facts: dict[str, Any] = json.loads(done.read_text("utf-8"))
            return facts
        counts = words[0] + words[1]
        _log.info(f"training a {what} on {n_lines:,} lines with {len(counts):,} different words")
        started_at = time.perf_counter()
        with Meter(None, what=f"{what}: in training") as meter:
            stats = train_tokenizer(counts, settings, path, symbols, while_waiting=meter.advance)
        skipped = ""
        if stats.n_skipped_words:
            skipped = (
                f"; SentencePiece skipped {stats.n_skipped_words:,} of the words in training "
                f"(over {MAX_WORD_BYTES:,} bytes each)"
            )
        _log.info(f"{what}: trained in {time.perf_counter() - started_at:.0f} s{skipped}")
        facts = {
            "kind": settings.kind,
            "character_coverage": settings.character_coverage,
            "lines": n_lines,
            "skipped_words": stats.n_skipped_words,
        }
        with whole_file(done) as stream:
            stream.write(json.dumps(facts).encode())
        return facts

    # ------------------------------------------------------------------------------------------------ encoding

    def _encode(self, shards: list[list[Shard]], tokenizer: Tokenizer) -> None:
        every = [shard for of_corpus in shards for shard in of_corpus]
        sizes = [shard.result("kept")["n_pairs"] for shard in every]
        tags = {number: source.tag for number, source in enumerate(self.config.data.train) if source.tag is not None}
        encoding = Encoding(self.folder / "tokenizer.model", self.config.data.max_tokens, tags)
        meter = Meter("pairs", sum(sizes), what="encoding")
        tasks = (task for task in zip(every, _shown(sizes), strict=True) if not task[0].is_finished("encoded"))
        started_at = time.perf_counter()
        self._run(encoding, tasks, meter)
        self._require_pairs(shards, "encoded")
        total = _total(shard.result("encoded")["tally"] for shard in every)
        n_too_long = total.removed["too_many_tokens"].count if "too_many_tokens" in total.removed else 0
        _log.info(
            f"encoded {total.n_kept:,} pairs in {time.perf_counter() - started_at:.0f} s; "
            f"removed: {n_too_long:,} pair{'' if n_too_long == 1 else 's'} over {self.config.data.max_tokens} tokens"
        )

    def _join(self, shards: list[list[Shard]], tokenizer: Tokenizer) -> tuple[dict[str, Any], _PairWriter]:
        """The files of all shards as one; histograms of lengths, and what the manifest tells about both sides."""
        max_tokens = self.config.data.max_tokens
        counts = [np.zeros(max_tokens + 1, dtype=np.int64) for _ in range(2)]
        ratios = np.zeros(len(LENGTH_RATIOS), dtype=np.int64)
        with (
            _PairWriter(self.folder, "train", tokenizer.vocab_size) as writer,
            (self.folder / "train.lines").open("wb") as lines,
        ):
            for shard in (shard for of_corpus in shards for shard in of_corpus):
                of_sides = writer.append(shard)
                lines.write(shard.path("encoded.lines").read_bytes())
                for total, lengths in zip(counts, of_sides, strict=True):
                    total += np.bincount(lengths, minlength=max_tokens + 1)
                found = np.searchsorted(LENGTH_RATIOS, of_sides[0] / of_sides[1], side="right") - 1
                ratios += np.bincount(found, minlength=len(LENGTH_RATIOS))
        lengths_facts = {
            "tokens": {"src": counts[0][1:].tolist(), "tgt": counts[1][1:].tolist()},
            "ratio": {"edges": [*LENGTH_RATIOS, None], "counts": ratios.tolist()},
        }
        return lengths_facts, writer

    def _encode_valid(self, tokenizer: Tokenizer, pairs: Sequence[SentencePair]) -> _PairWriter:
        normalisers, source = Normalisers.of_run(self.config), self.config.data.valid
        with _PairWriter(self.folder, "valid", tokenizer.vocab_size) as writer:
            for start in range(0, len(pairs), _HELD_OUT_CHUNK):
                chunk = [
                    SentencePair(normalisers.src(src), normalisers.tgt(tgt), line)
                    for src, tgt, line in pairs[start : start + _HELD_OUT_CHUNK]
                ]
                src_ids, tgt_ids = encode_pairs(tokenizer, chunk, source.tag)
                self._refuse_endless(chunk, src_ids, tgt_ids)
                writer.write(src_ids, tgt_ids)
        max_tokens = self.config.data.max_tokens
        if max(writer.longest) > max_tokens:
            _log.info(
                f"{source.description}: the longest validation sentence has {max(writer.longest):,} "
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

    # ------------------------------------------------------------------------------------------------- telling

    def _overlap(
        self, shards: list[list[Shard]], valid: Sequence[SentencePair], tests: dict[str, list[SentencePair]]
    ) -> dict[str, Any]:
        overlap = NgramOverlap(self._held_out(valid, tests))
        for shard in (shard for of_corpus in shards for shard in of_corpus):
            overlap.merge(shard.result("cleaned")["overlap"])
        return overlap.facts()

    def _facts(
        self, shards: list[list[Shard]], n_read: Sequence[int], sides: _PairWriter, lengths: dict[str, Any]
    ) -> dict[str, Any]:
        results = [[shard.result("encoded") for shard in of_corpus] for of_corpus in shards]
        tallies = [_total(result["tally"] for result in of_corpus) for of_corpus in results]
        assert [tally.n_read for tally in tallies] == list(n_read), "every pair that was read is accounted for"
        assert sum(tally.n_kept for tally in tallies) == sides.n_pairs, "every pair that was kept is written"
        sources = [
            {
                "source": source.description,
                "tag": source.tag,
                "weight": source.weight,
                "pairs_read": tally.n_read,
                "pairs_kept": tally.n_kept,
                **{key: value for key, value in tally.as_json().items() if key in ("removed", "changed")},
            }
            for source, tally in zip(self.config.data.train, tallies, strict=True)
        ]
        return {
            "train": {"pairs_read": sum(n_read), "pairs_kept": sides.n_pairs, **sides.facts(), "sources": sources},
            "lengths": lengths,
            "samples": [sample for of_corpus in results for result in of_corpus for sample in result["samples"]],
        }

    def _join_removed(self, shards: list[list[Shard]]) -> None:
        """`removed.tsv`: every removed pair with its place and reason."""
        with (self.folder / "removed.tsv").open("w", encoding="utf-8", newline="\n") as joined:
            joined.write("source\tline\treason\tsrc\ttgt\n")
            for source, of_corpus in zip(self.config.data.train, shards, strict=True):
                description = source.description.replace("\t", " ")
                for shard in of_corpus:
                    for stage in ("cleaned", "kept", "encoded"):
                        with shard.path(f"{stage}.removed").open(encoding="utf-8", newline="\n") as rows:
                            joined.writelines(f"{description}\t{row}" for row in rows)

    def _require_unchanged_text(self) -> None:
        if corpus_fingerprint(self.config, self.tokenizer_path) != self.fingerprint:
            raise DataError(
                "data: a file was changed while the corpus was prepared from it: start again when nothing writes to "
                "the text of training, validation and test"
            )

    def _write_report_and_manifest(self, facts: dict[str, Any]) -> None:
        identity = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "src_lang": self.config.src_lang,
            "tgt_lang": self.config.tgt_lang,
        }
        origin = {
            "versions": {"python": platform.python_version(), **package_versions(*_PACKAGES)},
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
        }
        told = {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {
                key: value
                for key, value in settings_of(self.config).items()
                if key.startswith(("data.clean.", "data.max_tokens", "tokenizer."))
            },
            "peak_memory_bytes": peak_host_memory_bytes(n_cores()),
            "hardware": {**machine(), "cores": n_cores(), "memory_bytes": host_memory_bytes()},
        }
        write_data_report(
            {**identity, **told, **facts, **origin}, self.folder, dict(chain(RULES.items(), CHANGE_RULES.items()))
        )
        made_of = ("report.html", "report.json", "removed.tsv")
        manifest = {
            **identity,
            "ids_dtype": ids_dtype(facts["tokenizer"]["vocab_size"]),
            **{key: facts[key] for key in ("train", "valid", "test", "tokenizer")},
            **origin,
            # What people read may be deleted; the rest is the corpus.
            "file_bytes": {
                path.name: path.stat().st_size
                for path in sorted(self.folder.iterdir())
                if path.is_file() and path.name not in made_of
            },
        }
        # Written among the shards: what a kill leaves beside its place would be a file of the corpus.
        written = self.folder / "shards" / "manifest.json"
        written.write_text(json.dumps(manifest, indent=2, ensure_ascii=True) + "\n", "utf-8")
        written.replace(self.folder / "manifest.json")

    # ---------------------------------------------------------------------------------------------- processes

    def _run(self, stage: Callable[[Any], int], tasks: Iterable[Any], meter: Meter) -> None:
        """Let worker processes do the tasks of a stage, which return how many pairs they had."""
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        # Starting processes takes longer than one shard.
        n = min(n_cores(), 64) if len(first) > 1 else 0
        with meter, Workers(n, _install, (stage,)) as workers:
            for n_pairs in workers.map(_call_stage, chain(first, tasks), ahead=n + 1):
                meter.advance(n_pairs)
                self.pending_exit.check()

    def _require_pairs(self, shards: list[list[Shard]], stage: str) -> None:
        total = _total(shard.result(stage)["tally"] for of_corpus in shards for shard in of_corpus)
        if not total.n_kept:
            raise DataError(
                f"data.train: nothing is left of {total.n_read:,} pairs, removed: {removed_text(total.removed)}; "
                "look at the text, or at the limits data.clean and data.max_tokens"
            )


_DUPLICATES = ("duplicate", "folded_duplicate")
_stage: Callable[[Any], int] | None = None  # of this worker process


def _install(stage: Callable[[Any], int]) -> None:
    global _stage
    _stage = stage


def _call_stage(task: Any) -> int:
    assert _stage is not None, "the initializer of the process has run"
    return _stage(task)


def _total(tallies: Iterable[dict[str, Any]]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(Tally.from_json(tally))
    return total


def _sum_if_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _shown(sizes: Sequence[int]) -> Iterator[list[int]]:
    """For each shard the pairs that the report shows: a seeded draw from all shards together."""
    n_pairs = sum(sizes)
    drawn = sorted(random.Random(1).sample(range(n_pairs), min(N_SAMPLES, n_pairs)))
    first = 0
    for size in sizes:
        yield [i - first for i in drawn if first <= i < first + size]
        first += size


def _without_rarest(words: Counter[str]) -> Counter[str]:
    """Half of the room free again: those that came once go, then those that came twice, and so on."""
    n_times = 1
    while len(words) > MOST_WORDS // 2:
        words = Counter({word: count for word, count in words.items() if count > n_times})
        n_times += 1
    return words


def _held_out_facts(corpus: Corpus, pairs: Sequence[SentencePair]) -> dict[str, Any]:
    return {
        "source": corpus.description,
        "pairs": len(pairs),
        "empty": sum(not pair.src.strip() or not pair.tgt.strip() for pair in pairs),
    }


def _knows(tokenizer: Tokenizer, symbol: str) -> bool:
    return len(tokenizer.encode(symbol)) == 1 and tokenizer.decode(tokenizer.encode(symbol)).strip() == symbol


def _vocabulary(tokenizer: Tokenizer, words: Sequence[Counter[str]]) -> dict[str, Any]:
    facts = joint_vocabulary_facts(tokenizer, *words)
    sides = {
        side: {
            **facts[side],
            "longest_pieces": [{"piece": piece, "count": count} for piece, count in facts[side]["longest_pieces"]],
        }
        for side in ("src", "tgt")
    }
    return {**sides, "pieces": {key: facts["coverage"][key] for key in ("src", "tgt", "both", "neither")}}


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
        lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(sentences), dtype=self._dtype, count=int(lengths.sum()))
        self._append(ids.tobytes(), lengths)

    def append(self, ids: Path, lengths: npt.NDArray[np.int64]) -> None:
        self._append(ids.read_bytes(), lengths)

    def _append(self, ids: bytes, lengths: npt.NDArray[np.int64]) -> None:
        if not len(lengths):
            return
        self._ids.write(ids)
        self._offsets.write((self.n_tokens + np.cumsum(lengths)).tobytes())
        self.n_tokens += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))

    def close(self) -> None:
        self._ids.close()
        self._offsets.close()


class _PairWriter:
    """Both sides, and what the manifest tells about them."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self.n_pairs = 0
        self._sides = {side: _SideWriter(folder, f"{name}.{side}", ids_dtype(vocab_size)) for side in ("src", "tgt")}

    def __enter__(self) -> _PairWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides.values():
            side.close()

    def write(self, src_ids: Sequence[Sequence[int]], tgt_ids: Sequence[Sequence[int]]) -> None:
        for side, ids in zip(self._sides.values(), (src_ids, tgt_ids), strict=True):
            side.write(ids)
        self.n_pairs += len(src_ids)

    def append(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Add an encoded shard; the lengths of its two sides."""
        of_sides = []
        for name, side in self._sides.items():
            of_sides.append(np.fromfile(shard.path(f"encoded.{name}.lengths"), dtype=np.int64))
            side.append(shard.path(f"encoded.{name}.ids"), of_sides[-1])
        src, tgt = of_sides
        self.n_pairs += len(src)
        return src, tgt

    @property
    def longest(self) -> tuple[int, int]:
        return self._sides["src"].longest, self._sides["tgt"].longest

    def facts(self) -> dict[str, Any]:
        src, tgt = self._sides["src"], self._sides["tgt"]
        return {
            "src_tokens": src.n_tokens,
            "tgt_tokens": tgt.n_tokens,
            "src_tokens_per_tgt_token": src.n_tokens / tgt.n_tokens,
            "longest_src": src.longest,
            "longest_tgt": tgt.longest,
        }
