"""Preparation of a corpus: read, clean, remove duplicates, train the tokenizer, encode, report."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import reduce
from itertools import accumulate, chain, islice
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt.config.loading import settings_of
from mt.config.settings import Direction, RunConfig
from mt.errors import ConfigError, DataError
from mt.report.data import write_data_report
from mt.system.console import Meter
from mt.system.files import checksums_of, sync, sync_all, write_text
from mt.system.locks import locked
from mt.system.provenance import host_memory_bytes, machine, n_cores, package_versions, peak_host_memory_bytes
from mt.system.signals import exit_on_signals, raise_pending_exit
from mt.system.workers import Workers
from mt.text import checks, shards
from mt.text.checks import Finding
from mt.text.clean import CHANGE_RULES, NORMALISED_CHARS, RULES, Tally, removed_text
from mt.text.corpora import readers_of, rechunked
from mt.text.corpus import (
    CHECKSUMS,
    CORPUS_FORMAT_VERSION,
    SIDES,
    FlatIds,
    PreparedCorpus,
    flat_ids,
    held_out_file,
    ids_dtype,
    pairs_text,
    with_tag,
    write_parallel_ids,
)
from mt.text.growth import fraction_cut_differently, grow_model, tokens_per_word
from mt.text.normalise import NORMALISER_VERSION, Normalisers
from mt.text.overlap import HeldOut, NgramOverlap
from mt.text.reader import Chunk, CorpusReader, SentencePair
from mt.text.rehearsal import check_rehearsal, check_removed, clean_sample, rehearse
from mt.text.replay import lines_of_run
from mt.text.sample import SAMPLED_PAIRS, STRETCH_LINES, Sample, Sampler
from mt.text.subwords import KINDS as SAMPLED_KINDS
from mt.text.tokenizer import (
    MAX_WORD_BYTES,
    Tokenizer,
    Tokenizers,
    Vocabulary,
    adopt_model,
    n_skipped_words,
    tokenizer_paths,
    train_tokenizer,
    vocabularies,
    vocabulary_facts,
)
from mt.units import listed

N_SAMPLE_PAIRS = 50  # kept pairs that the report shows
MOST_WORDS = 2_000_000  # distinct words of a language counted at one time; beyond it, the rarest are dropped
MAX_VALIDATION_TOKENS = 4_096  # the memory of a validation grows with the square of its longest line
# Lower edges of the bars in the report's histogram of source tokens per target token.
LENGTH_RATIOS = (0.0, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0)
_OF_MANIFEST = ("train", "valid", "valid_sets", "test", "tokenizer", "findings")  # facts that the manifest repeats
LINES_TO_CUT = 10_000  # of the text of a model whose vocabulary grows, to see how many are cut differently
_PAIRS_AT_ONCE = 1_000  # read before long ones are cut
_DAYS_KEPT = 7  # for the finished shards of an interrupted preparation
_TOKENISED = 25  # stretches of a sample that are enough to check the tokenizer
# The prepared corpus depends on the versions of these packages.
_PACKAGES = ("mt-train", "sentencepiece", "datasets", "defusedxml", "sacrebleu", "numpy", "py3langid", "sacremoses")

_log = logging.getLogger(__name__)


def corpus_fingerprint(config: RunConfig, given: Sequence[Path] = ()) -> str:
    """Return 16 hexadecimal digits that identify the inputs of a corpus; see `corpus_inputs`."""
    return fingerprint_of(corpus_inputs(config, given))


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def corpus_inputs(config: RunConfig, given: Sequence[Path] = ()) -> dict[str, Any]:
    """Return what decides about a prepared corpus: the content of all corpora and the settings of preparation.

    It does not depend on the paths and weights of corpora: a weight changes the training plan, not the corpus.

    Args:
        given: as for `prepare_corpus`.
    Raises:
        DataError: a local corpus, or the tokenizer, is missing or unreadable.
    """
    data, entries = config.data, dict[str, list[Any]]()
    for key, reader in readers_of(config).items():
        has_one = len(config.all_directions) == 1 and not config.language_pieces
        languages = [] if has_one else [*reader.langs, config.pieces_of(Direction(*reader.langs))]
        entries[key] = [reader.fingerprint(), reader.corpus.tag, *languages]
    valid = [entries[f"data.{name}"] for name in config.valid_sets]
    inputs = {
        "format_version": CORPUS_FORMAT_VERSION,
        **config.directions[0].in_words(),
        "train": [entry for key, entry in entries.items() if key.startswith("data.train.")],
        "valid": valid[0] if len(valid) == 1 else valid,
        "test": [[name, *entries[f"data.test.{name}"]] for name in config.tests],
        "tokenizer": _tokenizer_fingerprint(config, given),
        "cleaning": [data.max_tokens, asdict(data.clean), NORMALISER_VERSION],
    }
    del inputs["cleaning"][1]["max_removed"]  # it decides whether there is a corpus, not which
    as_in_manifest: dict[str, Any] = json.loads(json.dumps(inputs))
    return as_in_manifest


def changed_inputs(corpus: PreparedCorpus, inputs: Mapping[str, Any]) -> list[str]:
    """Return in words which inputs differ from those of a prepared corpus with the same config."""
    before = corpus.manifest.get("inputs")
    if before is None:  # an earlier version of mt did not store them
        return ["the text or the version of mt"]
    words = {
        "the text": ("train", "valid", "test"),
        "the tokenizer (its file, or mt's defaults)": ("tokenizer",),
        "mt's cleaning": ("cleaning",),
    }
    return [what for what, keys in words.items() if any(before[key] != inputs[key] for key in keys)]


def _tokenizer_fingerprint(config: RunConfig, given: Sequence[Path]) -> Any:
    settings = config.tokenizer
    paths = given or [Path(model) for model in (settings.model, settings.tgt_model) if model]
    if not paths:
        return {key: value for key, value in asdict(settings).items() if not key.endswith("model")}
    digests = []
    for key, path in zip(("model", "tgt_model"), paths, strict=False):
        try:
            digests.append(hashlib.blake2b(path.read_bytes()).hexdigest())
        except OSError as error:
            fix = f"correct tokenizer.{key}, or remove it to train a tokenizer"
            raise DataError(path, f"the tokenizer cannot be read ({error.strerror})", fix) from None
    growth = [config.train.grow_vocab, settings.sample_lines] if given and config.train.grow_vocab else []
    return [*digests, settings.user_symbols, *growth]


def prepare_corpus(config: RunConfig, given: Sequence[Path] = ()) -> PreparedCorpus:
    """Return the prepared corpus of a config: open it if it exists, otherwise build it.

    It is built under another name and renamed at the end, so it is either complete or absent. An interrupted
    preparation continues from its finished shards; one that fails because of bad data or a full disk leaves nothing.
    Memory does not grow with the corpus, except for two bytes a pair and the words of the tokenizer's sample.

    Args:
        given: the tokenizer files of the model that training starts from, see `tokenizer_paths`; used unchanged,
            unless `train.grow_vocab` is set.
    Raises:
        DataError: a corpus is missing, unreadable or not parallel, no pairs are left, or more of a corpus would be
            removed than `data.clean.max_removed` allows.
        ConfigError: the vocabulary does not fit the corpus, or the tokenizer does not know a tag.
        MTError: a worker process was killed.
    """
    models = [Path(one.settings.model) for one in vocabularies(config) if one.settings.model is not None]
    _check_sampling(config, given or models)
    fingerprint = corpus_fingerprint(config, given)
    folder = Path(config.data.prepared_dir) / fingerprint
    if folder.exists():
        return _opened(folder, config)
    for key, reader in readers_of(config).items():
        for finding in checks.check_files(key, reader):
            raise DataError("", finding.problem, finding.fix)
        reader.check()
    for vocabulary in vocabularies(config):
        if vocabulary.settings.model is not None:
            adopt_model(Path(vocabulary.settings.model), vocabulary.symbols, vocabulary.controls)
    building = folder.with_name(f".building-{fingerprint}")
    waiting = f"{folder}: another process is preparing this corpus; waiting for it"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_leftovers(folder.parent)
        lock = locked(folder.with_name(f".{fingerprint}.lock"), lambda: _log.info(waiting))
        with lock, exit_on_signals():
            if folder.exists():
                return _opened(folder, config)
            _build(config, building, given)
            raise_pending_exit()
            sync(building)
            building.rename(folder)
            sync(folder.parent)
    except OSError as error:
        fix = "set data.prepared_dir to a writable folder with enough space"
        raise DataError(folder, f"cannot be written: {error.strerror or error}", fix) from error
    _log.info(f"prepared corpus {folder}; its report shows what was removed and why: {folder / 'report.html'}")
    return PreparedCorpus.open(folder)


def _check_sampling(config: RunConfig, models: Sequence[Path]) -> None:
    """Raise a ConfigError if `train.subword_sampling` is set and a tokenizer has one segmentation for each text."""
    for path in models if config.train.subword_sampling is not None else ():
        if (kind := Tokenizer(adopt_model(path, ())).kind) not in SAMPLED_KINDS:
            problem = f"needs a tokenizer of kind bpe or unigram, but {path} is of kind {kind}"
            raise ConfigError("train.subword_sampling", problem, "remove it, or use another tokenizer")


def _opened(folder: Path, config: RunConfig) -> PreparedCorpus:
    corpus = PreparedCorpus.open(folder, is_verified=True)
    _log.info(f"prepared corpus {folder}: {len(corpus.train):,} training pairs, prepared earlier from the same data")
    for finding in corpus.manifest.get("findings", ()):
        _log.warning(Finding(**finding))
    tallies = [Tally() for _ in config.training]
    for tally, source in zip(tallies, corpus.manifest["train"]["sources"], strict=True):
        tally.add({**source, "n_read": source["pairs_read"]})
    _refuse(_removal_findings(config, tallies), folder)
    return corpus


class _TooManyRemovedError(DataError):
    """Preparation would remove a large part of a corpus; its finished shards are kept."""


def _removal_findings(config: RunConfig, tallies: Iterable[Tally]) -> list[Finding]:
    """Return what `check_removed` finds, given the tally of each training corpus."""
    corpora = zip(config.entries.items(), tallies, strict=False)  # the training corpora are the first
    clean = config.data.clean
    return [found for (key, one), tally in corpora for found in check_removed(key, one.corpus, tally, clean)]


def _refuse(findings: Iterable[Finding], folder: Path) -> None:
    """Raise the errors among findings about removed pairs as one.

    Args:
        folder: the place of `removed.tsv`.
    """
    if errors := [finding for finding in findings if finding.level == "error"]:
        fixes = dict.fromkeys(error.fix for error in errors)
        problem = "; ".join(error.problem for error in errors)
        raise _TooManyRemovedError("", f"{problem}; all of them: {folder / 'removed.tsv'}", "; ".join(fixes))


def _build(config: RunConfig, building: Path, given: Sequence[Path]) -> None:
    """Build the corpus; if this fails, remove the folder. Only the process that holds the lock may call this."""
    parts = building / "shards"
    has_begun = parts.exists()
    try:
        parts.mkdir(parents=True, exist_ok=True)
        os.utime(parts)
        if has_begun:
            _log.info(f"{building}: continuing an interrupted preparation of the same data")
        # The manifest is written last: if it exists, only the shards are left to remove.
        if not (building / "manifest.json").exists():
            _Builder(config, building, given).build()
        shutil.rmtree(parts)
    except (KeyboardInterrupt, SystemExit):
        _log.info(f"interrupted; the same command continues from the finished parts, kept for {_DAYS_KEPT} days")
        raise
    except _TooManyRemovedError:
        raise  # with a higher limit, the same command continues
    except (DataError, ConfigError, OSError):
        shutil.rmtree(building, ignore_errors=True)
        raise


def _remove_old_leftovers(prepared_dir: Path) -> None:
    """Remove the folders of interrupted preparations that were never continued."""
    for leftover in prepared_dir.glob(".building-*"):
        with suppress(OSError):
            # Shards are written to a subfolder, so the folder's own time is that of its first minutes.
            changed_at = max(path.stat().st_mtime for path in (leftover, leftover / "shards") if path.exists())
            if time.time() - changed_at > _DAYS_KEPT * 86_400:
                shutil.rmtree(leftover, ignore_errors=True)


class _Builder:
    """The preparation of one corpus in its own folder. `build` lists the steps in order."""

    def __init__(self, config: RunConfig, folder: Path, given: Sequence[Path]) -> None:
        self.config = config
        readers = readers_of(config)
        self.train_readers = {key: reader for key, reader in readers.items() if key.startswith("data.train.")}
        self.held_out_readers = {
            **{name: readers[f"data.{name}"] for name in config.valid_sets},
            **{name: readers[f"data.test.{name}"] for name in config.tests},
        }
        self.folder = folder
        self.given = given
        self.fingerprint = folder.name.removeprefix(".building-")
        self.seconds: dict[str, float] = {}
        self.skipped: defaultdict[str | int, Counter[str]] = defaultdict(Counter)  # lines and units without a pair
        self.shards: list[shards.Shard] = []  # of all corpora, in order
        self.samples: list[Sample] = []  # of the training corpora
        self.findings: list[Finding] = []

    def build(self) -> None:
        # Validation and test sets first: they are small, so their errors show at once.
        with self._timed("held_out"):
            sets = {name: self._copied(reader, name) for name, reader in self.held_out_readers.items()}
            langs = {name: reader.langs for name, reader in self.held_out_readers.items()}
            held_out = HeldOut.of_run(self.config, sets, langs)
        with self._timed("clean"):
            self._clean(held_out)
        with self._timed("check"):
            self._check_text(sets)
        with self._timed("duplicates"):
            repeats = self._find_repeats()
        with self._timed("count_words"):
            words, n_lines = self._count_words(repeats)
        with self._timed("tokenizer"):
            tokenizers, tokenizer_facts = self._make_tokenizers(words, n_lines)
            self._check_tokenizers(tokenizers)
        with self._timed("encode"):
            self._encode()
            train_facts = self._join(ids_dtype(tokenizers.vocab_size))
            valid_facts = self._encode_valid(tokenizers, sets)
        with self._timed("report"):
            overlap = NgramOverlap(held_out)
            for shard in self.shards:
                overlap.merge(shard.result("cleaned")["overlap"])
            described: dict[str, Any] = {
                name: {
                    "source": reader.description,
                    "pairs": len(sets[name]),
                    "empty": len(_empty(sets[name])),
                    "skipped": self.skipped[name],
                    **self._languages_of(reader),
                }
                for name, reader in self.held_out_readers.items()
            }
            valid = {name: described.pop(name) for name in self.config.valid_sets}
            together = next(iter(valid.values()))
            if len(valid) > 1:
                n_pairs = sum(one["pairs"] for one in valid.values())
                together = {"source": f"{len(valid)} validation sets", "pairs": n_pairs}
            facts = {
                **train_facts,
                "valid": together | valid_facts,
                **({"valid_sets": valid} if len(valid) > 1 else {}),
                "test": described,
                "overlap": overlap.facts(),
                "tokenizer": {**tokenizer_facts, **vocabulary_facts(tokenizers, *words)},
                "findings": [asdict(finding) for finding in self.findings],
            }
            self._join_removed()
        inputs = corpus_inputs(self.config, self.given)
        if fingerprint_of(inputs) != self.fingerprint:
            fix = "start again when no other program writes to the training, validation and test files"
            raise DataError("data", "a file was changed while the corpus was prepared from it", fix)
        self._write_report_and_manifest(facts, inputs)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        raise_pending_exit()
        started_at = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started_at

    def _run(self, stage: shards.Stage, tasks: Iterable[tuple[shards.Shard, Any]], n_pairs: int | None) -> None:
        """Run a stage in worker processes on all shards for which it is not finished yet."""
        tasks = (task for task in tasks if not task[0].is_finished(stage.name))
        first = list(islice(tasks, 2))
        # A single shard takes less time than starting processes.
        n = min(n_cores(), 64) if len(first) > 1 else 0
        with Meter("pairs", n_pairs, what=stage.what) as meter, Workers(n, shards.install_stage, (stage,)) as workers:
            for n_done in workers.map(shards.run_stage, chain(first, tasks), ahead=n + 1):
                meter.advance(n_done)
                raise_pending_exit()

    def _tally(self, stage: str, corpus: int | None = None) -> Tally:
        """Return the tally of one corpus, or of all, up to a stage."""
        total = Tally()
        for shard in self.shards:
            if corpus in (None, shard.corpus):
                total.add(shard.result(stage)["tally"])
        return total

    def _require_pairs(self, stage: str) -> Tally:
        total = self._tally(stage)
        if not total.n_kept:
            problem = f"no pairs are left, all {total.n_read:,} were removed ({removed_text(total.removed)})"
            rules = [rule for rule, found in total.removed.items() if found.count and rule != "empty"]
            settings = ["src_lang", "tgt_lang", *dict.fromkeys(f"data.{RULES[rule].setting}" for rule in rules)]
            raise DataError("data.train", problem, f"check {listed(['the text', *settings])}")
        return total

    # ------------------------------------------------------------------------------------------- stages, in order

    def _copied(self, reader: CorpusReader, name: str) -> list[SentencePair]:
        """Write a validation or test set unchanged and complete; return its pairs."""
        pairs = held_out_pairs(reader, self.skipped[name])
        with (self.folder / held_out_file(name, self.config.valid_sets)).open("w", encoding="utf-8") as stream:
            stream.write(pairs_text(with_tag(pairs, reader.corpus.tag)))
        return pairs

    def _clean(self, held_out: HeldOut) -> None:
        def shorten(chunk: Chunk) -> Chunk:
            """Cut sides that cleaning will remove for their length, so that a shard of them fits into memory."""
            most = NORMALISED_CHARS * self.config.data.clean.max_chars + 1
            return Chunk([text[:most] for text in chunk.src], [text[:most] for text in chunk.tgt], chunk.lines)

        def tasks() -> Iterator[tuple[shards.Shard, Chunk]]:
            for corpus, (key, reader) in enumerate(self.train_readers.items()):
                chunks, sampler = reader.chunks(_PAIRS_AT_ONCE, self.skipped[corpus]), Sampler(SAMPLED_PAIRS)
                for number, chunk in enumerate(rechunked(map(shorten, chunks), shards.PAIRS_PER_SHARD)):
                    for stretch in rechunked(iter([chunk]), STRETCH_LINES):
                        sampler.add(stretch)
                    self.shards.append(shards.Shard(self.folder / "shards", corpus, number, len(chunk.src)))
                    yield self.shards[-1], chunk
                drawn = sampler.stretches, sampler.n_pairs, self.skipped[corpus]
                self.samples.append(Sample(key, reader, *drawn))

        counts = [reader.count() for reader in self.train_readers.values()]
        n_pairs = None if None in counts else sum(filter(None, counts))
        langs = [reader.langs for reader in self.train_readers.values()]
        self._run(shards.Cleaning(self.config.data.clean, langs, held_out), tasks(), n_pairs)
        for number, reader in enumerate(self.train_readers.values()):
            tally, skipped = self._tally("cleaned", number), self.skipped[number]
            without = "".join(f"; {what} skipped: {count:,}" for what, count in skipped.items())
            _log.info(
                f"{reader.description}: {tally.n_read:,} pairs read, {tally.n_kept:,} kept; "
                f"removed: {removed_text(tally.removed)}{without}"
            )

    def _check_text(self, sets: Mapping[str, Sequence[SentencePair]]) -> None:
        """Log what is wrong with the text, and refuse to remove a large part of a corpus.

        Args:
            sets: the pairs of the validation set and of each test set.
        """
        held_out = []
        for name, pairs in sets.items():
            key = f"data.{name}" if name in self.config.valid_sets else f"data.test.{name}"
            chunk = Chunk(*map(list, zip(*pairs, strict=True)))
            held_out.append(Sample(key, self.held_out_readers[name], (chunk,), len(pairs), self.skipped[name]))
        self._warn(checks.check_text(self.config, self.samples, held_out))
        self._warn(self._check_removed("cleaned"))
        self._require_pairs("cleaned")

    def _check_removed(self, stage: str) -> list[Finding]:
        """Return the warnings about pairs removed up to a stage; if there are too many, keep them for the user to see.

        Raises:
            _TooManyRemovedError: see `_refuse`.
        """
        corpora = range(len(self.train_readers))
        findings = _removal_findings(self.config, (self._tally(stage, corpus) for corpus in corpora))
        if any(finding.level == "error" for finding in findings):
            self._join_removed()
            _refuse(findings, self.folder)
        return findings

    def _check_tokenizers(self, tokenizers: Tokenizers) -> None:
        """Log how well the vocabulary fits the training text."""
        stretches = (sample.stretches[:: max(1, len(sample.stretches) // _TOKENISED)] for sample in self.samples)
        parts = (replace(sample, stretches=few) for sample, few in zip(self.samples, stretches, strict=True))
        cleaned = [clean_sample(part, self.config) for part in parts]
        self._warn(check_rehearsal(rehearse(self.config, cleaned, tokenizers), self.config))

    def _warn(self, findings: Iterable[Finding]) -> None:
        """Log findings, and keep them for the report and for later starts; notes are for `mt doctor`."""
        for finding in findings:
            # Both directions of a corpus give the same findings.
            if finding.level != "note" and str(finding) not in map(str, self.findings):
                self.findings.append(finding)
                _log.warning(finding)

    def _find_repeats(self) -> list[npt.NDArray[np.uint8]]:
        """Return for each shard which of its pairs are duplicates of earlier ones, as input for `shards.Counting`."""
        mode = self.config.data.clean.duplicates
        if mode == "keep" or all(shard.is_finished("kept") for shard in self.shards):
            return [np.zeros(shard.path("cleaned.lines").stat().st_size // 8, dtype=np.uint8) for shard in self.shards]
        exact = shards.repeated([shard.path("cleaned.keys") for shard in self.shards])
        if mode == "exact":
            return [flags.astype(np.uint8) for flags in exact]
        folded = shards.repeated([shard.path("cleaned.folded") for shard in self.shards])
        return [np.select(flags, (1, 2)).astype(np.uint8) for flags in zip(exact, folded, strict=True)]

    def _count_words(self, repeats: Sequence[npt.NDArray[np.uint8]]) -> tuple[list[Counter[str]], int]:
        """Remove duplicates; return the word counts of both sides of a sample, and its number of lines."""
        n_pairs = self._tally("cleaned").n_kept
        share = self.config.tokenizer.sample_lines / max(2 * n_pairs, 1)
        self._run(shards.Counting(share), zip(self.shards, repeats, strict=True), n_pairs)
        words: list[Counter[str]] = [Counter(), Counter()]
        n_lines = 0
        for shard in self.shards:
            n_lines += shard.result("kept")["n_lines"]
            for side, of_shard in enumerate(json.loads(shard.path("kept.words").read_text("utf-8"))):
                words[side].update(of_shard)
                if len(words[side]) > MOST_WORDS:
                    words[side] = _without_rarest(words[side])
        if self.config.data.clean.duplicates != "keep":
            removed = self._tally("kept").removed
            _log.info(f"duplicates removed: {removed_text({rule: removed[rule] for rule in shards.DUPLICATES})}")
        return words, n_lines

    def _make_tokenizers(self, words: Sequence[Counter[str]], n_lines: int) -> tuple[Tokenizers, dict[str, Any]]:
        """Write the files of the tokenizers; return the tokenizers and the report's entry about their origin."""
        settings, made_from = self.config.tokenizer, vocabularies(self.config)
        facts: dict[str, Any] = {"kind": "given"}
        if not self.given and settings.model is not None:
            facts |= {"model": settings.model} | ({} if settings.joint else {"tgt_model": settings.tgt_model})
        elif not self.given:
            facts = {"kind": settings.kind, "character_coverage": settings.character_coverage}
            facts |= {"split_digits": settings.split_digits, "lines": n_lines, "skipped_words": 0}
        growths: list[dict[str, int | float]] = []
        for i, vocabulary in enumerate(made_from):
            path = self.folder / vocabulary.file_name
            if self.given and self.config.train.grow_vocab:
                growths.append(self._grow(vocabulary, words, self.given[i], path))
            elif self.given:
                shutil.copyfile(self.given[i], path)
            elif vocabulary.settings.model is not None:
                adopted = adopt_model(Path(vocabulary.settings.model), vocabulary.symbols, vocabulary.controls)
                path.write_bytes(adopted)
            else:
                trained = self.folder / "shards" / path.name  # a killed training leaves other files next to it
                counts = reduce(add, (words[side] for side in vocabulary.sides))
                if not trained.exists():
                    self._train_tokenizer(vocabulary, counts, n_lines * len(vocabulary.sides) // 2, trained)
                shutil.copyfile(trained, path)
                facts["skipped_words"] += n_skipped_words(counts)
        if growths:
            by_key = {key: [growth[key] for growth in growths] for key in growths[0]}
            facts = {"kind": "grown"} | {key: of[0] if len(of) == 1 else of for key, of in by_key.items()}
        tokenizers = Tokenizers.load(tokenizer_paths(self.folder))
        return tokenizers, {**facts, "vocab_size": tokenizers.vocab_size, "symbols": list(self.config.symbols)}

    def _grow(
        self, vocabulary: Vocabulary, words: Sequence[Counter[str]], given: Path, path: Path
    ) -> dict[str, int | float]:
        """Write the grown tokenizer; return what was added, and the tokens a word before and after on the new text."""
        name = f"{vocabulary.name} vocabulary".lstrip()
        counts = reduce(add, (words[side] for side in vocabulary.sides))
        old, n = given.read_bytes(), self.config.train.grow_vocab
        _log.info(f"growing the {name} by up to {n:,} piece{'' if n == 1 else 's'} on {len(counts):,} distinct words")
        growth = grow_model(old, counts, n, controls=vocabulary.controls, symbols=vocabulary.symbols)
        path.write_bytes(growth.model)
        before, after = (tokens_per_word(model, counts) for model in (old, growth.model))
        kinds = zip(("language piece", "symbol", "character", "piece"), growth.facts.values(), strict=True)
        added = [f"{number:,} {kind}{'' if number == 1 else 's'}" for kind, number in kinds if number]
        tokens = f"its text takes {after:.2f} tokens per word, {before:.2f} before"
        _log.info(f"{name}: {listed(added) if added else 'nothing'} added; {tokens}")
        facts = growth.facts | {"fertility_before": before}
        with suppress(DataError):  # the text of the old model is known only if it is that of a run
            lines = lines_of_run(Path(str(self.config.train.init_from)), vocabulary.sides, LINES_TO_CUT)
            facts["old_lines_cut_differently"] = fraction_cut_differently(
                Tokenizer(old), Tokenizer(growth.model), lines
            )
            _log.info(f"{name}: {facts['old_lines_cut_differently']:.1%} of the old lines are cut differently")
        return facts

    def _train_tokenizer(self, vocabulary: Vocabulary, words: Counter[str], n_lines: int, path: Path) -> None:
        settings, n_skipped = vocabulary.settings, n_skipped_words(words)
        what = f"{vocabulary.name} {settings.kind} tokenizer of {settings.vocab_size:,} pieces".lstrip()
        _log.info(f"training a {what} on {n_lines:,} lines with {len(words):,} distinct words")
        started_at = time.perf_counter()
        with Meter(None, what=f"training the {what}") as meter:
            extra = vocabulary.symbols, vocabulary.controls
            train_tokenizer(words, settings, path, *extra, meter.advance, vocabulary.size_key)
        skipped = f"; {n_skipped:,} words were left out of training (over {MAX_WORD_BYTES:,} bytes each)"
        _log.info(f"{what}: trained in {time.perf_counter() - started_at:.0f} s{skipped if n_skipped else ''}")

    def _encode(self) -> None:
        max_tokens = self.config.data.max_tokens
        marks = [shards.Marks.of(self.config, entry) for entry in self.config.training]
        sizes = [shard.result("kept")["n_pairs"] for shard in self.shards]
        started_at = time.perf_counter()
        encoding = shards.Encoding(tokenizer_paths(self.folder), max_tokens, marks)
        self._run(encoding, zip(self.shards, _shown(sizes), strict=True), sum(sizes))
        self._check_removed("encoded")
        total = self._require_pairs("encoded")
        n_too_long = total.removed["too_many_tokens"].count
        _log.info(
            f"encoded {total.n_kept:,} pairs in {time.perf_counter() - started_at:.0f} s; "
            f"removed: {n_too_long:,} pair{'' if n_too_long == 1 else 's'} over {max_tokens} tokens"
        )

    def _join(self, dtype: str) -> dict[str, Any]:
        """Join the files of all shards; return the report's facts about the training text."""
        n_bins = self.config.data.max_tokens + 1
        counts = np.zeros((2, n_bins), dtype=np.int64)
        ratios = np.zeros(len(LENGTH_RATIOS), dtype=np.int64)

        def parts() -> Iterator[list[FlatIds]]:
            with (self.folder / "train.lines").open("wb") as lines:
                for shard in self.shards:
                    lines.write(shard.path("encoded.lines").read_bytes())
                    paths = [[shard.path(f"encoded.{side}.{part}") for part in ("ids", "lengths")] for side in SIDES]
                    sides = [(np.fromfile(ids, dtype), np.fromfile(lengths, np.int64)) for ids, lengths in paths]
                    src, tgt = (lengths for _, lengths in sides)
                    counts[:] += [np.bincount(lengths, minlength=n_bins) for lengths in (src, tgt)]
                    found = np.searchsorted(LENGTH_RATIOS, src / tgt, side="right") - 1
                    ratios[:] += np.bincount(found, minlength=len(LENGTH_RATIOS))
                    yield sides

        facts = write_parallel_ids(self.folder, "train", parts())
        sources = []
        weights = self.config.weights([self._tally("encoded", i).n_kept for i in range(len(self.train_readers))])
        for number, (reader, weight) in enumerate(zip(self.train_readers.values(), weights, strict=True)):
            tally = self._tally("encoded", number)
            n_read = sum(shard.n_pairs for shard in self.shards if shard.corpus == number)
            assert tally.n_read == n_read, "every pair that was read is accounted for"
            corpus = reader.corpus
            told: dict[str, Any] = {"source": reader.description, "tag": corpus.tag, "weight": round(weight, 4)}
            told |= self._languages_of(reader)
            has_many = reader.description != corpus.description
            told |= {"files": list(map(str, reader.files)) if has_many else [], "skipped": self.skipped[number]}
            found = tally.as_json()
            told |= {"pairs_read": found.pop("n_read"), "pairs_kept": tally.n_kept}
            sources.append(told | found)
        n_read, n_kept = (sum(source[key] for source in sources) for key in ("pairs_read", "pairs_kept"))
        assert n_kept == counts[0].sum(), "every pair that was kept is written"
        return {
            "train": {"pairs_read": n_read, "pairs_kept": n_kept, **facts, "sources": sources},
            "lengths": {
                "tokens": {side: n[1:].tolist() for side, n in zip(SIDES, counts, strict=True)},
                "ratio": {"edges": [*LENGTH_RATIOS, None], "counts": ratios.tolist()},
            },
            "samples": [sample for shard in self.shards for sample in shard.result("encoded")["samples"]],
        }

    def _languages_of(self, reader: CorpusReader) -> dict[str, str]:
        """Return the languages of a corpus, if those of all corpora are not the same."""
        return Direction(*reader.langs).in_words() if len(self.config.all_directions) > 1 else {}

    def _encode_valid(self, tokenizers: Tokenizers, sets: Mapping[str, Sequence[SentencePair]]) -> dict[str, Any]:
        """Write the ids of all validation sets, one after the other."""
        max_tokens, dtype = self.config.data.max_tokens, ids_dtype(tokenizers.vocab_size)
        parts = []
        for name, entry in self.config.valid_sets.items():
            normalised = Normalisers.of_run(self.config, entry.direction).pairs(sets[name])
            sides = shards.encode_pairs(tokenizers, normalised, shards.Marks.of(self.config, entry))
            parts.append([flat_ids(side, dtype) for side in sides])
            lengths = np.maximum(*(lengths for _, lengths in parts[-1]))
            longest, description = int(lengths.max()), self.held_out_readers[name].corpus.description
            if longest > MAX_VALIDATION_TOKENS:
                first = int((lengths > MAX_VALIDATION_TOKENS).argmax())
                allowed = f"but validation allows at most {MAX_VALIDATION_TOKENS:,}"
                problem = f"line {sets[name][first].line:,} has {lengths[first]:,} tokens, {allowed}"
                raise DataError(description, problem, "split or remove the line")
            if longest > max_tokens:
                _log.info(
                    f"{description}: the longest validation sentence has {longest:,} tokens, more than "
                    f"data.max_tokens ({max_tokens:,}); it is kept"
                )
        return write_parallel_ids(self.folder, "valid", parts)

    def _join_removed(self) -> None:
        """Write `removed.tsv`: every pair removed so far with its corpus, its line and the reason."""
        with (self.folder / "removed.tsv").open("w", encoding="utf-8", newline="\n") as joined:
            joined.write("source\tline\treason\tsrc\ttgt\n")
            for shard in self.shards:
                description = [*self.train_readers.values()][shard.corpus].name.replace("\t", " ")
                for stage in (shards.Cleaning, shards.Counting, shards.Encoding):
                    if not shard.is_finished(stage.name):
                        continue
                    with shard.path(f"{stage.name}.removed").open(encoding="utf-8", newline="\n") as rows:
                        joined.writelines(f"{description}\t{row}" for row in rows)

    def _write_report_and_manifest(self, facts: dict[str, Any], inputs: dict[str, Any]) -> None:
        config = self.config
        identity = {"format_version": CORPUS_FORMAT_VERSION, "fingerprint": self.fingerprint}
        identity |= config.directions[0].in_words()
        origin = {
            "versions": package_versions(*_PACKAGES),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }
        shaping = ("data.clean.", "data.max_tokens", "tokenizer.")
        told = {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {key: value for key, value in settings_of(config).items() if key.startswith(shaping)},
            "peak_memory_bytes": peak_host_memory_bytes(n_cores()),
            "hardware": {**machine(), "cores": n_cores(), "memory_bytes": host_memory_bytes()},
        }
        write_data_report({**identity, **told, **facts, **origin}, self.folder, {**RULES, **CHANGE_RULES})
        # Users may delete the reports; all other files belong to the corpus.
        for_people = ("report.html", "report.json", "removed.tsv")
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file() and path.name not in for_people]
        manifest = {
            **identity,
            "inputs": inputs,
            "ids_dtype": ids_dtype(facts["tokenizer"]["vocab_size"]),
            **{key: facts[key] for key in _OF_MANIFEST if key in facts},
            **origin,
            "file_bytes": {path.name: path.stat().st_size for path in files},
            CHECKSUMS: checksums_of(files),
        }
        sync_all(self.folder)
        # Written in the folder of the shards first: a kill would leave a temporary file among the corpus's files.
        written = self.folder / "shards" / "manifest.json"
        write_text(written, json.dumps(manifest, indent=2, ensure_ascii=True) + "\n")
        written.replace(self.folder / "manifest.json")


def held_out_pairs(reader: CorpusReader, skipped: Counter[str] | None = None) -> list[SentencePair]:
    """Return all pairs of a validation or test set.

    Args:
        skipped: lines and units without a pair are counted here, by what they are.
    Raises:
        DataError: it is missing, unreadable, not parallel or empty, or each of its pairs has an empty side.
    """
    skipped = Counter() if skipped is None else skipped
    role, pairs = reader.split, list(reader.pairs(skipped))
    if not pairs:
        raise DataError(reader.description, "has no sentence pairs, expected at least one")
    if len(_empty(pairs)) == len(pairs):
        problem = f"all {len(pairs):,} {role} pairs have an empty side"
        raise DataError(reader.description, problem, "give a set with text on both sides")
    for what, count in skipped.items():
        _log.info(f"{reader.description}: {what} skipped: {count:,}")
    return pairs


def first_test_pairs(
    config: RunConfig, fingerprint: str | None, *, may_fetch: bool = True
) -> tuple[str, list[SentencePair], Direction]:
    """Return description, pairs and direction of a run's first test set, or of its validation set if it has none.

    Args:
        fingerprint: of the run's prepared corpus, which is used if it exists.
        may_fetch: allow downloads, for text that is not in local files.
    Raises:
        DataError: the text is missing or unreadable, or a download is needed and not allowed.
    """
    key = next(iter(f"data.test.{name}" for name in config.tests), f"data.{next(iter(config.valid_sets))}")
    name, reader = key.removeprefix("data.").removeprefix("test."), readers_of(config)[key]
    description = f"{name}: {reader.corpus.description}"
    prepared = Path(config.data.prepared_dir) / str(fingerprint)
    if prepared.is_dir():
        sets = PreparedCorpus.open(prepared).held_out
        if name in sets:  # not if the test set was added later
            return description, sets[name], config.entries[key].direction
    if not may_fetch and not reader.corpus.files:
        raise DataError(reader.corpus.description, "is not available without a download")
    return description, with_tag(reader.pairs(), reader.corpus.tag), config.entries[key].direction


def _empty(pairs: Iterable[SentencePair]) -> list[SentencePair]:
    return [pair for pair in pairs if not pair.src.strip() or not pair.tgt.strip()]


def _shown(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield for each shard the indices of the pairs that the report shows, drawn from all shards with a fixed seed."""
    ends = list(accumulate(sizes))
    drawn = sorted(random.Random(1).sample(range(ends[-1]), min(N_SAMPLE_PAIRS, ends[-1])))
    for size, end in zip(sizes, ends, strict=True):
        yield [i - (end - size) for i in drawn if end - size <= i < end]


def _without_rarest(words: Counter[str]) -> Counter[str]:
    """Return at most MOST_WORDS / 2 words: drop those that occur once, then those that occur twice, and so on.

    In text without spaces, hardly a word occurs twice: if too few are left, an even sample of those dropped last stays.
    """
    n_times, most = 1, MOST_WORDS // 2
    while len(words) > most:
        rarest = [word for word, count in words.items() if count == n_times]
        words = Counter({word: count for word, count in words.items() if count > n_times})
        if len(words) < most // 2:
            words.update(dict.fromkeys(rarest[:: len(rarest) // (most - len(words)) + 1], n_times))
        n_times += 1
    return words
