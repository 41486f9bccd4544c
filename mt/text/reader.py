"""Pairs of segments, and the interface of the readers of corpora."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mt.config.settings import Corpus, TextFiles
from mt.errors import DataError
from mt.text.delimited import Layout

_PAIRS_AT_ONCE = 1_000  # read before the first pair is yielded


class SentencePair(NamedTuple):
    """A segment and its translation, unchanged from the corpus."""

    src: str
    tgt: str
    line: int  # 1-based line or row in the corpus


class Chunk(NamedTuple):
    """Consecutive pairs of a corpus, unchanged."""

    src: list[str]
    tgt: list[str]
    lines: Sequence[int]  # 1-based line or row of each


@dataclass(frozen=True)
class CorpusReader(ABC):
    """Reader of the text of one corpus; each kind of corpus has a subclass.

    Text that is missing, unreadable or not parallel raises a DataError of one line.
    """

    corpus: Corpus
    langs: tuple[str, str]
    split: str  # for a hub data set without a split in its config: train, validation or test
    folder: str = ""  # of the config file, for relative paths that the current folder does not have

    @abstractmethod
    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        """Yield all pairs in order, `size` at a time; only the last chunk may be smaller. Memory is constant.

        Different line counts raise an error only at the end. In a corpus of several files, lines are counted through.

        Args:
            skipped: lines and units that hold no pair, such as headers, are added to it.
        """

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of pairs, or of lines if some hold no pair; None if counting would mean reading it all."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return an identifier of the content: a hash of local files, the config entry of remote data sets.

        It does not include weight and tag.
        """

    @property
    def files(self) -> list[Path]:
        """Return the files that hold the text, in order; none for a corpus that is not in files.

        Raises:
            DataError: a file does not exist, or has no counterpart on the other side.
        """
        return []

    def layouts(self) -> dict[Path, Layout]:
        """Return the layout of each .tsv and .csv file."""
        return {}

    def side(self, number: int) -> str:
        """Return the name of the source side (0) or the target side (1); see `Corpus.side`."""
        return self.corpus.side(number, self.langs[number])

    @property
    def name(self) -> str:
        """Return the corpus as the user wrote it, in a few words, with its direction if that is not the first one."""
        return self.corpus.description

    @property
    def description(self) -> str:
        """Return the description of the corpus, with the number of files if there are several."""
        n = len(self.files) // (2 if isinstance(self.corpus, TextFiles) else 1)
        what = "pairs of files" if isinstance(self.corpus, TextFiles) else "files"
        return f"{self.corpus.description} ({n:,} {what})" if n > 1 else self.corpus.description

    @property
    def is_streamed(self) -> bool:
        """Return whether the text is streamed from the hub, or would first have to be downloaded from there."""
        return False

    def streamed(self) -> CorpusReader:
        """Return a reader of the same text that streams it instead of downloading it first."""
        return self

    def pairs(self, skipped: Counter[str] | None = None) -> Iterator[SentencePair]:
        """Yield all pairs in order; from pipes, each as soon as it arrives. For `skipped` see `chunks`."""
        size = _PAIRS_AT_ONCE if all(path.is_file() for path in self.files) else 1
        for chunk in self.chunks(size, skipped):
            yield from map(SentencePair, *chunk)

    def check(self) -> None:
        """Download the corpus if needed and read its first pairs, so that errors show before hours are spent.

        Raises:
            DataError: the corpus cannot be read or has no pairs.
        """
        if next(self.chunks(_PAIRS_AT_ONCE), None) is None:
            raise DataError(self.corpus.description, "has no sentence pairs, expected at least one")
