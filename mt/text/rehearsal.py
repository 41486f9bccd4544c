"""Preparing, rehearsed on samples: what would be removed, what the vocabulary would be like, and what it would take."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mt.config.settings import RunConfig
from mt.errors import ConfigError
from mt.text.checks import FEWEST_PAIRS, Finding, percent, quoted, rounded
from mt.text.clean import RULES, Cleaner, Reason, Removal
from mt.text.corpora import SentencePair
from mt.text.normalise import Normalisers
from mt.text.overlap import HeldOut, folded_all
from mt.text.sample import Sample
from mt.text.tokenizer import UNK_ID, Tokenizer, count_words, train_tokenizer

_ENCODED_PAIRS = 5_000  # of each corpus
_SEED = 1
_SMALLEST_VOCABULARY = 300
_SMALLER = 0.7  # vocabulary that is tried next, where the sample alone does not yield the one wanted


@dataclass(frozen=True)
class CleanedSample:
    """What cleaning leaves of a sample."""

    sample: Sample
    src: list[str]
    tgt: list[str]
    removed: dict[Reason, Removal]
    seconds: float


@dataclass(frozen=True)
class EncodedSample:
    """A cleaned sample, or a part of it, in tokens."""

    cleaned: CleanedSample
    src_lengths: npt.NDArray[np.int64]  # tokens, end of sentence included
    tgt_lengths: npt.NDArray[np.int64]
    fits: npt.NDArray[np.bool_]  # data.max_tokens
    piece_counts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # [V] of either side
    seconds: float

    @property
    def sample(self) -> Sample:
        return self.cleaned.sample

    @property
    def n_kept(self) -> float:
        """Pairs of the whole corpus that are likely to be kept."""
        share = float(self.fits.mean()) if len(self.fits) else 0.0
        return len(self.cleaned.src) * self.sample.scale * share

    @property
    def src_tokens(self) -> float:
        return self._tokens(self.src_lengths)

    @property
    def tgt_tokens(self) -> float:
        return self._tokens(self.tgt_lengths)

    def _tokens(self, lengths: npt.NDArray[np.int64]) -> float:
        return float(lengths[self.fits].mean()) * self.n_kept if self.fits.any() else 0.0


@dataclass(frozen=True)
class Rehearsal:
    """All training corpora, cleaned and in tokens."""

    sources: tuple[EncodedSample, ...]
    tokenizer: Tokenizer  # with fewer pieces than wanted where the samples yield no more
    vocab_size: int
    tokenizer_seconds: float  # that training it on the samples took; 0 where it is given

    @property
    def text_bytes(self) -> float:
        """Of the cleaned text of all corpora."""
        return math.fsum(
            sum(len(text.encode()) + 1 for side in (s.cleaned.src, s.cleaned.tgt) for text in side) * s.sample.scale
            for s in self.sources
        )

    def prepare_seconds(self, n_processes: int) -> float:
        """That preparing is likely to take: reading alone, cleaning and encoding in so many processes."""
        reading = sum(s.sample.seconds for s in self.sources)
        cleaning = sum(s.cleaned.seconds * s.sample.scale for s in self.sources)
        encoding = sum(s.seconds / max(1, len(s.fits)) * len(s.cleaned.src) * s.sample.scale for s in self.sources)
        # A text so many times as long has about the square root of that as many different words (Heaps' law).
        growth = sum(len(s.cleaned.src) * s.sample.scale for s in self.sources) / sum(
            max(1, len(s.cleaned.src)) for s in self.sources
        )
        return reading + (cleaning + encoding) / n_processes + self.tokenizer_seconds * math.sqrt(growth)


def clean_sample(sample: Sample, config: RunConfig) -> CleanedSample:
    """
    Raises:
        ConfigError: a rule needs a package that is missing, or does not know a language.
    """
    cleaner = Cleaner(config.data.clean, config.src_lang, config.tgt_lang)
    started_at = time.perf_counter()
    kept = [pair for stretch in sample.stretches for pair in cleaner.clean_chunk(*stretch)]
    seconds = time.perf_counter() - started_at
    return CleanedSample(
        sample, [pair.src for pair in kept], [pair.tgt for pair in kept], cleaner.tally.removed, seconds
    )


def without_contaminated(cleaned: CleanedSample, held_out: HeldOut) -> CleanedSample:
    """The pairs of which no side stands in a held-out set, as preparing keeps them."""
    is_kept = [
        held_out.find(*pair) is None for pair in zip(folded_all(cleaned.src), folded_all(cleaned.tgt), strict=True)
    ]
    return replace(cleaned, src=list(compress(cleaned.src, is_kept)), tgt=list(compress(cleaned.tgt, is_kept)))


def held_out_sets(samples: Sequence[Sample], config: RunConfig) -> HeldOut:
    """Validation and test sets, normalised as preparing does it."""
    normalisers = Normalisers.of_run(config)
    sets = {
        sample.key: [
            SentencePair(normalisers.src(src), normalisers.tgt(tgt), line)
            for src, tgt, line in zip(sample.src, sample.tgt, sample.lines, strict=True)
        ]
        for sample in samples
    }
    return HeldOut(sets, config.data.clean.contamination_words)


def _example(pair: SentencePair) -> str:
    return f"line {pair.line:,}, {quoted(pair.src)} and {quoted(pair.tgt)}"


def rehearse(config: RunConfig, cleaned: Sequence[CleanedSample], given: Tokenizer | None) -> Rehearsal:
    """
    Args:
        given: a tokenizer to use; otherwise one is trained on the samples.
    Raises:
        ConfigError: the samples are the whole corpus, and the vocabulary does not fit it.
    """
    started_at = time.perf_counter()
    tokenizer = given or _trained(config, cleaned)
    tokenizer_seconds = 0.0 if given else time.perf_counter() - started_at
    encoded = tuple(_encoded(sample, tokenizer, config.data.max_tokens) for sample in cleaned)
    vocab_size = given.vocab_size if given else config.tokenizer.vocab_size
    return Rehearsal(encoded, tokenizer, vocab_size, tokenizer_seconds)


def _trained(config: RunConfig, cleaned: Sequence[CleanedSample]) -> Tokenizer:
    """Of the wanted size, or of the largest that the samples yield where they are but a part of the corpus."""
    settings, first_error = config.tokenizer, None
    is_whole = all(sample.sample.is_whole for sample in cleaned)
    words = count_words(text for sample in cleaned for side in (sample.src, sample.tgt) for text in side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        while True:
            try:
                train_tokenizer(words, settings, path, config.symbols)
                return Tokenizer.load(path)
            except ConfigError as error:
                first_error = first_error or error
                smaller = int(settings.vocab_size * _SMALLER)
                if is_whole or smaller < _SMALLEST_VOCABULARY:
                    raise first_error from None
                settings = replace(settings, vocab_size=smaller)


def _encoded(cleaned: CleanedSample, tokenizer: Tokenizer, max_tokens: int) -> EncodedSample:
    started_at = time.perf_counter()
    # Drawn by chance: every second line of Multi30k is a long one.
    n_drawn = min(len(cleaned.src), _ENCODED_PAIRS)
    drawn = np.sort(np.random.default_rng(_SEED).choice(len(cleaned.src), n_drawn, replace=False))
    src, tgt = (tokenizer.encode_batch([texts[i] for i in drawn], n_threads=1) for texts in (cleaned.src, cleaned.tgt))
    src_lengths, tgt_lengths = (np.array([len(ids) + 1 for ids in side], dtype=np.int64) for side in (src, tgt))
    fits = np.maximum(src_lengths, tgt_lengths) <= max_tokens
    counts = [np.bincount([i for ids in side for i in ids], minlength=tokenizer.vocab_size) for side in (src, tgt)]
    seconds = time.perf_counter() - started_at
    return EncodedSample(cleaned, src_lengths, tgt_lengths, fits, (counts[0], counts[1]), seconds)


# ---------------------------------------------------------------------------------------------------- findings

_MUCH_REMOVED = 0.2
_MANY_TOO_LONG = 0.05
_MANY_BYTES = 0.02
_MANY_UNKNOWN = 0.005
FEWEST_OCCURRENCES = 50  # of a piece in the mean, under which a vocabulary is too large


def check_cleaning(cleaned: CleanedSample) -> list[Finding]:
    """Whether cleaning removes more than good text gives it to remove."""
    sample, n_removed = cleaned.sample, sum(removal.count for removal in cleaned.removed.values())
    if len(sample.src) < FEWEST_PAIRS or n_removed <= _MUCH_REMOVED * len(sample.src):
        return []
    reason, removal = max(cleaned.removed.items(), key=lambda item: item[1].count)
    share = percent(n_removed / len(sample.src))
    problem = (
        f"{sample.corpus.description}: cleaning removes {share} of the pairs, most of them ("
        f"{percent(removal.count / len(sample.src))} of all) as {reason}, such as {_example(removal.examples[0])}"
    )
    fix = f"look at these lines, or change data.{RULES[reason].setting} if they are good"
    if reason == "empty":
        fix = "give the text that is missing, or leave out these lines on both sides"
    return [Finding("warning", "cleaning", sample.key, problem, fix)]


def check_rehearsal(rehearsal: Rehearsal, config: RunConfig) -> list[Finding]:
    """Lengths in tokens, and what the vocabulary is like for each corpus."""
    findings = []
    if not sum(source.n_kept for source in rehearsal.sources):
        n_read = sum(len(source.sample.src) for source in rehearsal.sources)
        problem = f"data.train: nothing is left of {n_read:,} pairs that were looked at"
        findings.append(Finding("error", "nothing_left", "data.train", problem, "see the findings of its sources"))
    for source in rehearsal.sources:
        findings += _too_long(source, config)
        findings += _bytes_and_unknown(source, rehearsal.tokenizer, config)
    return [*findings, *_vocabulary_size(rehearsal, config)]


def _too_long(source: EncodedSample, config: RunConfig) -> list[Finding]:
    share = 1 - float(source.fits.mean()) if len(source.fits) else 0.0
    if share <= _MANY_TOO_LONG:
        return []
    longest = int(np.percentile(np.maximum(source.src_lengths, source.tgt_lengths), 99))
    problem = (
        f"{source.sample.corpus.description}: {percent(share)} of the pairs have more than {config.data.max_tokens:,} "
        f"tokens on a side and are removed; one in a hundred has {longest:,} or more"
    )
    fix = "raise data.max_tokens, or split the segments at the ends of sentences"
    return [Finding("warning", "max_tokens", source.sample.key, problem, fix)]


def _bytes_and_unknown(source: EncodedSample, tokenizer: Tokenizer, config: RunConfig) -> list[Finding]:
    findings = []
    byte_ids = sorted(tokenizer.byte_ids)
    for side, counts in enumerate(source.piece_counts):
        n_tokens = max(1, int(counts.sum()))
        byte_share = int(counts[byte_ids].sum()) / n_tokens
        unknown_share = int(counts[UNK_ID]) / n_tokens
        fix = "raise tokenizer.character_coverage or tokenizer.vocab_size"
        if config.tokenizer.model is not None or config.train.init_from is not None:
            fix = "take a tokenizer that was trained on text like this"
        place = source.sample.side_name(side)
        if unknown_share > _MANY_UNKNOWN:
            problem = f"{place}: {percent(unknown_share)} of its tokens are unknown to the tokenizer"
            findings.append(Finding("warning", "unknown", source.sample.key, problem, fix))
        if byte_share > _MANY_BYTES:
            problem = f"{place}: {percent(byte_share)} of its tokens are single bytes, of characters that are no pieces"
            findings.append(Finding("warning", "bytes", source.sample.key, problem, fix))
    return findings


def _vocabulary_size(rehearsal: Rehearsal, config: RunConfig) -> list[Finding]:
    """Source: Gowda and May 2020, Finding the Optimal Vocabulary Size for Neural Machine Translation."""
    if not all(source.sample.is_read for source in rehearsal.sources) or config.tokenizer.model is not None:
        return []
    n_tokens = sum(source.src_tokens + source.tgt_tokens for source in rehearsal.sources)
    occurrences = n_tokens / rehearsal.vocab_size
    if occurrences >= FEWEST_OCCURRENCES or config.train.init_from is not None:
        return []
    key = "tokenizer.vocab_size"
    problem = (
        f"{key}: {rehearsal.vocab_size:,} pieces stand {occurrences:.0f} times each in the corpus, on average: too "
        "rarely to be learnt"
    )
    smaller = max(_SMALLEST_VOCABULARY, rounded(n_tokens / (2 * FEWEST_OCCURRENCES)))
    return [Finding("warning", "vocabulary", key, problem, f"set it to {smaller}, or give more text")]
