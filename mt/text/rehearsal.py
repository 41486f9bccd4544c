"""A forecast of preparation from samples: the pairs removed, the vocabulary, the time."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mt.config.settings import SMALLEST_VOCABULARY, CleanConfig, Corpus, RunConfig, VocabSizes
from mt.errors import ConfigError, statement
from mt.text.checks import FEWEST_PAIRS, Finding, Level, percent, quoted, rounded, warning
from mt.text.clean import RULES, Cleaner, Tally, removed_text
from mt.text.corpus import SIDES
from mt.text.growth import grow_model
from mt.text.overlap import HeldOut, folded_all
from mt.text.reader import SentencePair
from mt.text.sample import Sample
from mt.text.shards import DUPLICATES, Marks, encode_pairs
from mt.text.tokenizer import (
    UNK_ID,
    Tokenizer,
    Tokenizers,
    Vocabulary,
    count_words,
    train_tokenizer,
    vocabularies,
)

_ENCODED_PAIRS = 5_000  # of each corpus
_SEED = 1
_SMALLER = 0.7  # factor of the next vocabulary size to try, if the sample is too small for the configured one


@dataclass(frozen=True)
class CleanedSample:
    """A sample after cleaning."""

    sample: Sample
    pairs: list[SentencePair]
    tally: Tally
    seconds: float

    @property
    def n_kept(self) -> float:
        """The estimated number of pairs of the whole corpus that cleaning keeps."""
        return len(self.pairs) * self.sample.scale


@dataclass(frozen=True)
class EncodedSample:
    """A cleaned sample, or a part of it, after encoding."""

    cleaned: CleanedSample
    lengths: npt.NDArray[np.int64]  # [2, pairs] tokens of source and target side, end of sentence included
    fits: npt.NDArray[np.bool_]  # [pairs] whether a pair is within data.max_tokens
    piece_counts: tuple[npt.NDArray[np.int64], ...]  # [V] for each side
    seconds: float

    @property
    def sample(self) -> Sample:
        return self.cleaned.sample

    @property
    def n_kept(self) -> float:
        """The estimated number of pairs of the whole corpus that are kept."""
        return self.cleaned.n_kept * float(self.fits.mean()) if len(self.fits) else 0.0

    def n_tokens(self, side: int) -> float:
        """Return the estimated number of tokens of the source (0) or target (1) side of these pairs."""
        return float(self.lengths[side][self.fits].mean()) * self.n_kept if self.fits.any() else 0.0


@dataclass(frozen=True)
class Rehearsal:
    """The encoded samples of all training corpora, and estimates for the whole corpora."""

    sources: tuple[EncodedSample, ...]
    tokenizers: Tokenizers  # have fewer pieces than configured if the samples are too small
    vocab_size: VocabSizes
    tokenizer_seconds: float  # the time of training it on the samples; 0 if it is given

    @property
    def text_bytes(self) -> float:
        """The estimated bytes of the cleaned text of all corpora."""
        return math.fsum(
            sum(len(f"{src}{tgt}".encode()) + 2 for src, tgt, _ in source.cleaned.pairs) * source.sample.scale
            for source in self.sources
        )

    def prepare_seconds(self, n_processes: int) -> float:
        """Return the estimated time of preparation: one process reads, `n_processes` clean and encode."""
        reading = sum(s.sample.seconds for s in self.sources)
        cleaning = sum(s.cleaned.seconds * s.sample.scale for s in self.sources)
        encoding = sum(s.seconds / max(1, len(s.fits)) * s.cleaned.n_kept for s in self.sources)
        # A text n times as long has about √n times as many distinct words (Heaps' law).
        n_sampled = sum(max(1, len(s.cleaned.pairs)) for s in self.sources)
        growth = sum(s.cleaned.n_kept for s in self.sources) / n_sampled
        return reading + (cleaning + encoding) / n_processes + self.tokenizer_seconds * math.sqrt(growth)


def clean_sample(sample: Sample, config: RunConfig, held_out: HeldOut | None = None) -> CleanedSample:
    """Clean a sample in the same way as preparation.

    Args:
        held_out: validation and test sets; pairs with a side in one of them are dropped, but not counted in `tally`.
    Raises:
        ConfigError: a rule needs a package that is not installed, or does not know a language.
    """
    tally = Tally()
    cleaner = Cleaner(config.data.clean, *sample.langs, tally)
    started_at = time.perf_counter()
    pairs = list(chain.from_iterable(map(cleaner.clean, sample.stretches)))
    seconds = time.perf_counter() - started_at
    if held_out is not None:
        sides = (folded_all([getattr(pair, side) for pair in pairs]) for side in SIDES)
        pairs = [pair for pair, *folds in zip(pairs, *sides, strict=True) if held_out.find(*folds) is None]
    return CleanedSample(sample, pairs, tally, seconds)


def rehearse(
    config: RunConfig, cleaned: Sequence[CleanedSample], given: Tokenizers | None, n_grown: int = 0
) -> Rehearsal:
    """Encode a part of each cleaned sample.

    Args:
        given: tokenizers to use; otherwise they are trained on the samples.
        n_grown: most pieces that each given tokenizer grows by, on the samples.
    Raises:
        ConfigError: the samples are the whole corpus, and the vocabulary size does not fit it.
    """
    started_at = time.perf_counter()
    made_from = vocabularies(config)
    if given and n_grown:
        given = Tokenizers.of([_grown(given[one.sides[0]], one, n_grown, cleaned) for one in made_from])
    tokenizers = given or Tokenizers.of([_trained(vocabulary, cleaned) for vocabulary in made_from])
    tokenizer_seconds = 0.0 if given else time.perf_counter() - started_at
    encoded = tuple(_encoded(sample, tokenizers, config.data.max_tokens) for sample in cleaned)
    vocab_size = given.vocab_size if given else config.tokenizer.vocab_sizes
    return Rehearsal(encoded, tokenizers, vocab_size, tokenizer_seconds)


def _words(vocabulary: Vocabulary, cleaned: Sequence[CleanedSample]) -> Counter[str]:
    return count_words(pair[:2][side] for sample in cleaned for pair in sample.pairs for side in vocabulary.sides)


def _grown(old: Tokenizer, vocabulary: Vocabulary, n: int, cleaned: Sequence[CleanedSample]) -> Tokenizer:
    added = {"controls": vocabulary.controls, "symbols": vocabulary.symbols}
    return Tokenizer(grow_model(old.model, _words(vocabulary, cleaned), n, **added).model)


def _trained(vocabulary: Vocabulary, cleaned: Sequence[CleanedSample]) -> Tokenizer:
    """Train a tokenizer of the configured size; if the samples are only a part of the corpus, perhaps a smaller one."""
    settings, first_error = vocabulary.settings, None
    is_whole = all(sample.sample.is_whole for sample in cleaned)
    words = _words(vocabulary, cleaned)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        while True:
            try:
                extra = vocabulary.symbols, vocabulary.controls
                train_tokenizer(words, settings, path, *extra, size_key=vocabulary.size_key)
                return Tokenizer.load(path)
            except ConfigError as error:
                first_error = first_error or error
                smaller = int(settings.vocab_size * _SMALLER)
                if is_whole or smaller < SMALLEST_VOCABULARY:
                    raise first_error from None
                settings = replace(settings, vocab_size=smaller)


def _encoded(cleaned: CleanedSample, tokenizers: Tokenizers, max_tokens: int) -> EncodedSample:
    started_at = time.perf_counter()
    # Draw at random: in Multi30k, every second line is a long one.
    n_drawn = min(len(cleaned.pairs), _ENCODED_PAIRS)
    drawn = np.sort(np.random.default_rng(_SEED).choice(len(cleaned.pairs), n_drawn, replace=False))
    sides = encode_pairs(tokenizers, [cleaned.pairs[i] for i in drawn], Marks(), n_threads=1)
    lengths = np.array([[len(ids) for ids in side] for side in sides], dtype=np.int64)
    counts = tuple(
        np.bincount([i for ids in side for i in ids[:-1]], minlength=tokenizer.vocab_size)
        for side, tokenizer in zip(sides, tokenizers, strict=True)
    )
    seconds = time.perf_counter() - started_at
    return EncodedSample(cleaned, lengths, lengths.max(axis=0) <= max_tokens, counts, seconds)


# ---------------------------------------------------------------------------------------------------- findings

_MUCH_REMOVED = 0.2
_REMOVED_FROM_GOOD_TEXT = ("contaminated", *DUPLICATES)
_MANY_TOO_LONG = 0.05
_MANY_BYTES = 0.02
_MANY_UNKNOWN = 0.005
_MORE_CHARACTERS = 1.2  # the whole text may have more characters than the sample
FEWEST_OCCURRENCES = 50  # of a piece on average; with fewer, the vocabulary is too large


def check_removed(key: str, corpus: Corpus, tally: Tally, config: CleanConfig) -> Iterator[Finding]:
    """Check whether the rules remove more pairs than from good text: a warning, or an error over `max_removed`.

    Duplicates and pairs of validation and test sets do not count: text is not bad because it is there twice.

    Args:
        tally: of all pairs of the corpus, or of a sample.
    """
    removed = {rule: found for rule, found in tally.removed.items() if rule not in _REMOVED_FROM_GOOD_TEXT}
    rule, most = max(removed.items(), key=lambda item: item[1].count)
    n, n_removed = tally.n_read, sum(found.count for found in removed.values())
    if n < FEWEST_PAIRS or n_removed <= _MUCH_REMOVED * n:
        return
    example = most.examples[0]
    problem = (
        f"cleaning removes {percent(n_removed / n)} of the pairs ({removed_text(removed)}, of {n:,}), for example by "
        f"{rule} line {example['line']:,}: {quoted(example['src'])} and {quoted(example['tgt'])}"
    )
    fix = f"look at these lines; if they are good, change data.{RULES[rule].setting}"
    if rule == "empty":
        fix = "add the missing text, or delete these lines on both sides"
    level, fix = _limited(n_removed / n, fix, config)
    yield Finding(level, "cleaning", key, statement(corpus.description, problem), fix)


def _limited(fraction_removed: float, fix: str, config: CleanConfig) -> tuple[Level, str]:
    """Return the level and the fix of a finding about pairs that are removed: an error over `max_removed`."""
    if config.max_removed is None or fraction_removed <= config.max_removed:
        return "warning", fix
    return "error", f"{fix}; to train without them, raise data.clean.max_removed (now {config.max_removed:g})"


def check_rehearsal(rehearsal: Rehearsal, config: RunConfig) -> Iterator[Finding]:
    """Check lengths in tokens, and how well the vocabulary fits each corpus."""
    if not sum(source.n_kept for source in rehearsal.sources):
        n_read = sum(len(source.sample.pairs) for source in rehearsal.sources)
        problem = f"data.train: none of the {n_read:,} pairs checked would be kept"
        yield Finding("error", "nothing_left", "data.train", problem, "see the findings for each training corpus")
    for source in rehearsal.sources:
        yield from _too_long(source, config)
        yield from _bytes_and_unknown(source, rehearsal.tokenizers, config)
    yield from _vocabulary_size(rehearsal, config)


def _too_long(source: EncodedSample, config: RunConfig) -> Iterator[Finding]:
    max_tokens = config.data.max_tokens
    fraction = 1 - float(source.fits.mean()) if len(source.fits) else 0.0
    if fraction > _MANY_TOO_LONG:
        longest = int(np.percentile(source.lengths.max(axis=0), 99))
        removed = f"{percent(fraction)} of the pairs have more than {max_tokens:,} tokens on a side and are removed"
        problem = statement(source.sample.corpus.description, f"{removed}; one in a hundred has {longest:,} or more")
        fix, tally = "raise data.max_tokens, or split long segments into sentences", source.cleaned.tally
        level, fix = _limited(1 - (1 - fraction) * tally.n_kept / tally.n_read, fix, config.data.clean)
        yield Finding(level, "max_tokens", source.sample.key, problem, fix)


def _bytes_and_unknown(source: EncodedSample, tokenizers: Tokenizers, config: RunConfig) -> Iterator[Finding]:
    is_given = config.tokenizer.model is not None or config.train.init_from is not None
    for side, counts in enumerate(source.piece_counts):
        vocabulary = next(one for one in vocabularies(config) if side in one.sides)
        fix = f"raise tokenizer.character_coverage or {vocabulary.size_key}"
        if is_given:
            grow = "" if config.train.init_from is None else "raise train.grow_vocab, or "
            fix = f"{grow}use a tokenizer that was trained on similar text"
        n_tokens = max(1, int(counts.sum()))
        unknown_share = int(counts[UNK_ID]) / n_tokens
        if unknown_share > _MANY_UNKNOWN:
            problem = f"{percent(unknown_share)} of its tokens are unknown to the tokenizer"
            yield warning("unknown", source.sample, side, problem, fix)
        byte_share = int(counts[sorted(tokenizers[side].byte_ids)].sum()) / n_tokens
        if byte_share > _MANY_BYTES:
            problem = (
                f"{percent(byte_share)} of its tokens are single bytes: their characters are not in the vocabulary"
            )
            yield warning("bytes", source.sample, side, problem, fix)


def _vocabulary_size(rehearsal: Rehearsal, config: RunConfig) -> Iterator[Finding]:
    """Check that pieces occur often enough.

    Source: Gowda and May 2020, Finding the Optimal Vocabulary Size for Neural Machine Translation.
    """
    is_given = config.tokenizer.model is not None or config.train.init_from is not None
    if is_given or not all(source.sample.is_read for source in rehearsal.sources):
        return
    for vocabulary in vocabularies(config):
        n_tokens = sum(source.n_tokens(side) for source in rehearsal.sources for side in vocabulary.sides)
        key, size = vocabulary.size_key, vocabulary.settings.vocab_size
        if (occurrences := n_tokens / size) < FEWEST_OCCURRENCES:
            pieces = f"{size:,} {vocabulary.name} pieces".replace("  ", " ")
            often = f"on average, each of {pieces} occurs only {occurrences:.0f} times in the corpus"
            problem = f"{key}: {often}, too rarely to be learnt well"
            # The fewest pieces: characters, bytes, special pieces, and two for each symbol.
            tokenizer = rehearsal.tokenizers[vocabulary.sides[0]]
            n_characters = sum(len(piece) == 1 for piece in tokenizer.pieces(range(tokenizer.vocab_size)))
            n_special = len(tokenizer.byte_ids) + len(tokenizer.special_ids) + 2 * len(vocabulary.symbols)
            fewest = math.ceil(_MORE_CHARACTERS * n_characters) + n_special
            smaller = max(SMALLEST_VOCABULARY, fewest, rounded(n_tokens / (2 * FEWEST_OCCURRENCES)))
            is_for_both = vocabulary.sides == (0,) and config.tokenizer.tgt_vocab_size is None
            target = f" and tokenizer.tgt_vocab_size to {size}" if is_for_both else ""
            fix = f"set it to {smaller}{target}, or " if smaller < size else ""
            yield Finding("warning", "vocabulary", key, problem, f"{fix}give more text")
