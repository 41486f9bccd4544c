"""A sample of a corpus: stretches of lines that follow each other, drawn evenly from the whole of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mt.config.settings import Corpus
from mt.errors import DataError
from mt.text.corpora import Chunk, CorpusReader
from mt.text.hub import UnreachableError

STRETCH_LINES = 200
_LINES_AT_ONCE = 10 * STRETCH_LINES


@dataclass(frozen=True)
class Sample:
    """What was drawn from a corpus, and what became known on the way."""

    key: str  # of the corpus in the config, such as data.train.0
    corpus: Corpus
    langs: tuple[str, str]
    stretches: tuple[Chunk, ...]  # each of pairs that follow each other
    n_pairs: int  # that were read: all there are, where `is_read` is true
    is_read: bool  # to its end; else there was no time for it, or an error
    seconds: float  # that reading took
    error: DataError | None = None

    @property
    def role(self) -> str:
        return self.key.split(".")[1]

    @cached_property
    def src(self) -> list[str]:
        return [text for stretch in self.stretches for text in stretch.src]

    @cached_property
    def tgt(self) -> list[str]:
        return [text for stretch in self.stretches for text in stretch.tgt]

    @cached_property
    def lines(self) -> list[int]:
        return [line for stretch in self.stretches for line in stretch.lines]

    @property
    def is_whole(self) -> bool:
        """Whether every pair of the corpus is in it."""
        return self.is_read and len(self.src) == self.n_pairs

    @property
    def scale(self) -> float:
        """By which counts in the sample must be multiplied for the pairs that were read."""
        return self.n_pairs / len(self.src) if self.src else 0.0

    def side_name(self, side: int) -> str:
        """Return what the source side (0) or the target side (1) is called."""
        return self.corpus.side(side, self.langs[side])


def draw_sample(key: str, reader: CorpusReader, *, max_pairs: int, max_seconds: float) -> Sample:
    """Read a corpus and keep at most `max_pairs` of it; the whole corpus where it is no larger.

    Stretches are drawn evenly, the first and the last one of the corpus among them. A hub data set that would have to
    be fetched is streamed instead, and only its beginning is read.

    Args:
        max_seconds: reading ends after this time.
    """
    drawn = _Drawn(max_stretches=max(2, max_pairs // STRETCH_LINES))
    started_at = time.perf_counter()
    is_read, error = False, None
    try:
        for stretch in _stretches(reader):
            drawn.add(stretch)
            is_enough = reader.is_streamed and drawn.n_pairs >= max_pairs
            if is_enough or time.perf_counter() - started_at > max_seconds:
                break
        else:
            is_read = True
    except DataError as failure:
        error = failure
    seconds = time.perf_counter() - started_at
    return Sample(key, reader.corpus, reader.langs, drawn.stretches(), drawn.n_pairs, is_read, seconds, error)


class _Drawn:
    """Stretches drawn evenly from those that have come, however many will come."""

    def __init__(self, max_stretches: int) -> None:
        self.n_pairs = 0
        self._max_stretches = max_stretches
        self._every = 1
        self._n_seen = 0
        self._kept: list[tuple[int, Chunk]] = []
        self._last: Chunk | None = None

    def add(self, stretch: Chunk) -> None:
        self.n_pairs += len(stretch.src)
        self._last = stretch
        if self._n_seen % self._every == 0:
            self._kept.append((self._n_seen, stretch))
        self._n_seen += 1
        if len(self._kept) > 2 * self._max_stretches:
            self._every *= 2
            self._kept = [item for item in self._kept if item[0] % self._every == 0]

    def stretches(self) -> tuple[Chunk, ...]:
        kept, n = [stretch for _, stretch in self._kept], self._max_stretches
        if self._last is not None and kept[-1] is not self._last:
            kept.append(self._last)
        if len(kept) > n:
            kept = [kept[round(i * (len(kept) - 1) / (n - 1))] for i in range(n)]
        return tuple(kept)


def _stretches(reader: CorpusReader) -> Iterator[Chunk]:
    for chunk in _chunks(reader):
        for start in range(0, len(chunk.src), STRETCH_LINES):
            stop = start + STRETCH_LINES
            yield Chunk(chunk.src[start:stop], chunk.tgt[start:stop], chunk.lines[start:stop])


def _chunks(reader: CorpusReader) -> Iterator[Chunk]:
    n_chunks = 0
    try:
        for chunk in reader.streamed().chunks(_LINES_AT_ONCE):
            n_chunks += 1
            yield chunk
    except UnreachableError:
        if n_chunks or reader.streamed() == reader:
            raise
        # Without a network nothing can be fetched, and there may be a copy in the cache.
        yield from reader.chunks(_LINES_AT_ONCE)
