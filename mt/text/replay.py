"""Reading the training text of an earlier run, from its prepared corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mt.config.loading import CONFIG, load_config
from mt.config.settings import Direction, RunText
from mt.errors import DataError
from mt.system.files import read_json
from mt.text.corpus import PreparedCorpus
from mt.text.reader import Chunk, CorpusReader
from mt.text.tokenizer import Tokenizers
from mt.units import listed


@dataclass(frozen=True)
class RunReader(CorpusReader):
    """A reader of the training pairs of a run in one direction, each once, with the tags of their corpora."""

    corpus: RunText

    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        corpus, numbers = self._prepared
        tokenizers = Tokenizers.load(corpus.tokenizer_paths)
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            src, tgt = (
                tokenizer.decode_batch(side[i].tolist() for i in some)
                for tokenizer, side in zip(tokenizers, (corpus.train.src, corpus.train.tgt), strict=True)
            )
            yield Chunk(src, tgt, (some + 1).tolist())

    def count(self) -> int:
        return len(self._prepared[1])

    def fingerprint(self) -> str:
        return f"run:{self._prepared[0].fingerprint}:{self.langs[0]}-{self.langs[1]}"

    @property
    def _prepared(self) -> tuple[PreparedCorpus, npt.NDArray[np.int64]]:
        """The corpus of the run, and the numbers of its pairs in this direction."""
        corpus, directions = _opened(Path(self.corpus.run))
        starts = np.cumsum([0, *corpus.corpus_sizes])
        parts = [
            np.arange(start, start + size)
            for start, size, direction in zip(starts, corpus.corpus_sizes, directions, strict=False)
            if direction == self.langs
        ]
        if not parts:
            has = listed(list(dict.fromkeys(map(str, directions))), "or")
            problem = f"has no training text from {self.langs[0]} to {self.langs[1]}"
            raise DataError(self.corpus.run, problem, f"set src_lang and tgt_lang of this entry to those of {has}")
        return corpus, np.concatenate(parts)


def lines_of_run(run: Path, sides: Sequence[int], n: int) -> list[str]:
    """Return up to `n` lines of the training text of a run, spread evenly over it.

    Args:
        sides: 0 for the source, 1 for the target; the lines are shared between them.
    Raises:
        DataError: see `_opened`.
    """
    corpus, _ = _opened(run)
    tokenizers, lines = Tokenizers.load(corpus.tokenizer_paths), list[str]()
    for side in sides:
        ids = (corpus.train.src, corpus.train.tgt)[side]
        every = max(1, -(-len(ids) * len(sides) // n))
        lines += tokenizers[side].decode_batch(ids[i].tolist() for i in range(0, len(ids), every))
    return lines


def _opened(run: Path) -> tuple[PreparedCorpus, list[Direction]]:
    """Return the prepared corpus of a run, and the direction of each of its training corpora.

    Raises:
        DataError: the folder is not a run, or its corpus is gone or damaged.
    """
    try:
        fingerprint = str(read_json(run / "run.json")["corpus_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        problem = "is not a run" if run.is_dir() else "no such run"
        raise DataError(run, problem, "give the folder of a run that has been started, such as runs/NAME") from None
    return _prepared_corpus(run, fingerprint)


@lru_cache(maxsize=4)
def _prepared_corpus(run: Path, fingerprint: str) -> tuple[PreparedCorpus, list[Direction]]:
    config = load_config(str(run / CONFIG), is_stored=True)
    folder = Path(config.data.prepared_dir, fingerprint)
    if not folder.is_dir():
        fix = f"prepare it again with mt prepare --config {run / CONFIG}, or remove this corpus"
        raise DataError(run, f"its prepared corpus {folder} is gone", fix)
    return PreparedCorpus.open(folder), [entry.direction for entry in config.training]
