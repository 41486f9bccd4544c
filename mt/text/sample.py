"""A sample of a corpus: runs of consecutive lines, drawn evenly from the whole corpus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mt.config.settings import Corpus
from mt.errors import DataError
from mt.text.corpora import rechunked
from mt.text.hub import UnreachableError
from mt.text.reader import Chunk, CorpusReader, SentencePair

SAMPLED_PAIRS = 20_000  # of each training corpus
STRETCH_LINES = 200
_LINES_AT_ONCE = 10 * STRETCH_LINES


@dataclass(frozen=True)
class Sample:
    """The pairs drawn from a corpus, and facts about reading it."""

    key: str  # of the corpus in the config, such as data.train.0
    reader: CorpusReader
    stretches: tuple[Chunk, ...]  # each holds consecutive pairs
    n_pairs: int  # pairs that were read; all pairs of the corpus if `is_read`
    skipped: Counter[str]  # lines and units that hold no pair
    is_read: bool = True  # whether the corpus was read to its end; time or an error may prevent it
    seconds: float = 0.0  # the time that reading took
    error: DataError | None = None

    @property
    def corpus(self) -> Corpus:
        return self.reader.corpus

    @property
    def langs(self) -> tuple[str, str]:
        return self.reader.langs

    @property
    def description(self) -> str:
        """The corpus, with the number of its files if they were read."""
        return self.corpus.description if self.error else self.reader.description

    @property
    def role(self) -> str:
        return self.key.split(".")[1]

    @cached_property
    def pairs(self) -> list[SentencePair]:
        return [pair for stretch in self.stretches for pair in map(SentencePair, *stretch)]

    @cached_property
    def sides(self) -> tuple[list[str], list[str]]:
        return [pair.src for pair in self.pairs], [pair.tgt for pair in self.pairs]

    @property
    def is_whole(self) -> bool:
        """True if the sample has every pair of the corpus."""
        return self.is_read and len(self.pairs) == self.n_pairs

    @property
    def scale(self) -> float:
        """The factor from counts in the sample to counts in all pairs that were read."""
        return self.n_pairs / len(self.pairs) if self.pairs else 0.0

    def side_name(self, side: int) -> str:
        """Return the name of the source side (0) or of the target side (1)."""
        return self.reader.side(side)


class Sampler:
    """A sample that is drawn while a corpus is read: its stretches are spread evenly, the first and the last included.

    Args:
        max_pairs: the size of the sample; a smaller corpus is kept completely.
    """

    def __init__(self, max_pairs: int) -> None:
        self.n_pairs = 0  # that were read
        self._n_wanted, self._every, self._n_read = max(2, max_pairs // STRETCH_LINES), 1, 0
        self._kept: list[Chunk] = []  # every `_every`th stretch of those read so far
        self._last: Chunk | None = None

    def add(self, stretch: Chunk) -> None:
        """Read the next STRETCH_LINES pairs, or the last ones."""
        if self._n_read % self._every == 0:
            self._kept.append(stretch)
        self._n_read += 1
        self.n_pairs += len(stretch.src)
        self._last = stretch
        if len(self._kept) > 2 * self._n_wanted:
            self._kept, self._every = self._kept[::2], 2 * self._every

    @property
    def stretches(self) -> tuple[Chunk, ...]:
        """The stretches drawn so far."""
        kept, n = self._kept, self._n_wanted
        if self._last is not None and kept[-1] is not self._last:
            kept = [*kept, self._last]
        return tuple(kept if len(kept) <= n else (kept[round(i * (len(kept) - 1) / (n - 1))] for i in range(n)))


def draw_sample(key: str, reader: CorpusReader, *, max_pairs: int, max_seconds: float) -> Sample:
    """Read a corpus and keep at most `max_pairs` of its pairs, as `Sampler` draws them.

    A hub data set that is not downloaded yet is streamed, and only its beginning is read.

    Args:
        max_seconds: reading ends after this time.
    """
    sampler, is_read, error, skipped = Sampler(max_pairs), False, None, Counter[str]()
    started_at = time.perf_counter()
    try:
        for stretch in _stretches(reader, skipped):
            sampler.add(stretch)
            is_enough = reader.is_streamed and sampler.n_pairs >= max_pairs
            if is_enough or time.perf_counter() - started_at > max_seconds:
                break
        else:
            is_read = True
    except DataError as failure:
        error = failure
    seconds = time.perf_counter() - started_at
    return Sample(key, reader, sampler.stretches, sampler.n_pairs, skipped, is_read, seconds, error)


def _stretches(reader: CorpusReader, skipped: Counter[str]) -> Iterator[Chunk]:
    n_stretches = 0
    try:
        for stretch in rechunked(reader.streamed().chunks(_LINES_AT_ONCE, skipped), STRETCH_LINES):
            n_stretches += 1
            yield stretch
    except UnreachableError:
        if n_stretches or reader.streamed() == reader:
            raise
        # There is no network, but the cache may have a copy.
        yield from rechunked(reader.chunks(_LINES_AT_ONCE), STRETCH_LINES)
