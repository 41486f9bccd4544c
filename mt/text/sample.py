"""A sample of a corpus: runs of consecutive lines, drawn evenly from the whole corpus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mt.config.settings import Corpus
from mt.errors import DataError
from mt.text.corpora import Chunk, CorpusReader, SentencePair, rechunked
from mt.text.delimited import Layout
from mt.text.hub import UnreachableError

STRETCH_LINES = 200
_LINES_AT_ONCE = 10 * STRETCH_LINES


@dataclass(frozen=True)
class Sample:
    """The pairs drawn from a corpus, and facts about reading it."""

    key: str  # of the corpus in the config, such as data.train.0
    corpus: Corpus
    langs: tuple[str, str]
    stretches: tuple[Chunk, ...]  # each holds consecutive pairs
    n_pairs: int  # pairs that were read; all pairs of the corpus if `is_read`
    is_read: bool  # whether the corpus was read to its end; time or an error may prevent it
    seconds: float  # the time that reading took
    error: DataError | None = None
    description: str = ""  # of the corpus, with the number of its files
    layouts: Mapping[Path, Layout] = field(default_factory=dict)  # of .tsv and .csv files
    skipped: Counter[str] = field(default_factory=Counter)  # lines and units that hold no pair

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
        return self.corpus.side(side, self.langs[side])


def draw_sample(key: str, reader: CorpusReader, *, max_pairs: int, max_seconds: float) -> Sample:
    """Read a corpus and keep at most `max_pairs` of its pairs; keep all of a smaller corpus.

    The runs of lines are drawn evenly and include the first and the last of the corpus. A hub data set that is not
    downloaded yet is streamed, and only its beginning is read.

    Args:
        max_seconds: reading ends after this time.
    """
    n_wanted, every, n_pairs = max(2, max_pairs // STRETCH_LINES), 1, 0
    kept: list[Chunk] = []  # every `every`th of those read so far
    stretch, is_read, error = None, False, None
    description, layouts, skipped = reader.corpus.description, dict[Path, Layout](), Counter[str]()
    started_at = time.perf_counter()
    try:
        description, layouts = reader.description, reader.layouts()
        for number, stretch in enumerate(_stretches(reader, skipped)):
            n_pairs += len(stretch.src)
            if number % every == 0:
                kept.append(stretch)
            if len(kept) > 2 * n_wanted:
                kept, every = kept[::2], 2 * every
            if (reader.is_streamed and n_pairs >= max_pairs) or time.perf_counter() - started_at > max_seconds:
                break
        else:
            is_read = True
    except DataError as failure:
        error = failure
    if stretch is not None and kept[-1] is not stretch:
        kept.append(stretch)
    if len(kept) > n_wanted:
        kept = [kept[round(i * (len(kept) - 1) / (n_wanted - 1))] for i in range(n_wanted)]
    seconds = time.perf_counter() - started_at
    read = (n_pairs, is_read, seconds, error, description, layouts, skipped)
    return Sample(key, reader.corpus, reader.langs, tuple(kept), *read)


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
