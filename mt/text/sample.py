"""A sample of a source: stretches of lines that follow each other, drawn evenly from the whole of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mt.config import SourceConfig
from mt.errors import DataError
from mt.text.sources import read_pairs

STRETCH_LINES = 200


class Stretch(NamedTuple):
    """Pairs that follow each other in their source."""

    src: list[str]
    tgt: list[str]
    lines: list[int]  # 1-based, in the source


@dataclass(frozen=True)
class Sample:
    """What was drawn from a source, and what became known on the way."""

    key: str  # of the source in the config, such as data.train.0
    source: SourceConfig
    langs: tuple[str, str]
    stretches: tuple[Stretch, ...]
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
        """Whether every pair of the source is in it."""
        return self.is_read and len(self.src) == self.n_pairs

    @property
    def scale(self) -> float:
        """By which counts in the sample must be multiplied for the pairs that were read."""
        return self.n_pairs / len(self.src) if self.src else 0.0

    def side_name(self, side: int) -> str:
        """Of the source side (0) or the target side (1): its file, or the source and the language."""
        path = (self.source.src, self.source.tgt)[side]
        return path or f"{self.source.description} ({self.langs[side]})"


def draw_sample(
    key: str, source: SourceConfig, langs: tuple[str, str], *, max_pairs: int, max_seconds: float
) -> Sample:
    """Read a source and keep at most `max_pairs` of it; the whole source where it is no larger.

    Stretches are drawn evenly, the last one of the source among them, so that what happens near the end is seen. A hub
    data set that would have to be fetched is streamed instead, and only its beginning is read.

    Args:
        max_seconds: reading ends after this time.
    """
    started_at = time.perf_counter()
    chunks = _stretches(source, langs, _split(key))
    kept: list[tuple[int, Stretch]] = []
    last: Stretch | None = None
    n_pairs, every, is_read, error = 0, 1, False, None
    max_stretches = max(2, max_pairs // STRETCH_LINES)
    max_read = max_pairs if source.streaming else None
    try:
        for number, stretch in enumerate(chunks):
            n_pairs += len(stretch.src)
            last = stretch
            if number % every == 0:
                kept.append((number, stretch))
            if len(kept) > 2 * max_stretches:
                every *= 2
                kept = [item for item in kept if item[0] % every == 0]
            if time.perf_counter() - started_at > max_seconds or (max_read and n_pairs >= max_read):
                break
        else:
            is_read = True
    except DataError as failure:
        error = failure
    stretches = [stretch for _, stretch in kept]
    if last is not None and stretches[-1] is not last:
        stretches.append(last)
    stretches = _evenly(stretches, max_stretches)
    seconds = time.perf_counter() - started_at
    return Sample(key, source, langs, tuple(stretches), n_pairs, is_read, seconds, error)


def _evenly(stretches: list[Stretch], n: int) -> list[Stretch]:
    """So many of them, the first and the last among them."""
    if len(stretches) <= n:
        return stretches
    return [stretches[round(i * (len(stretches) - 1) / (n - 1))] for i in range(n)]


def _split(key: str) -> str:
    return {"train": "train", "valid": "validation", "test": "test"}[key.split(".")[1]]


def _stretches(source: SourceConfig, langs: tuple[str, str], split: str) -> Iterator[Stretch]:
    if is_remote(source):
        source = replace(source, streaming=True)
    pairs = read_pairs(source, *langs, split)
    while chunk := list(islice(pairs, STRETCH_LINES)):
        yield Stretch([p.src for p in chunk], [p.tgt for p in chunk], [p.line for p in chunk])


def is_remote(source: SourceConfig) -> bool:
    """Whether it is a hub data set that is no local folder."""
    return source.dataset is not None and not Path(source.dataset).is_dir()
