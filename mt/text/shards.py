"""The stages of preparation that worker processes run on one shard of a corpus: clean, count words, encode.

The result of a stage is a few files in the folder where the corpus is built. The last of them gets its name when the
others are complete, so an interrupted preparation can continue from the finished shards.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from mt.config.settings import CleanConfig, Entry, RunConfig
from mt.system.files import sync, whole_file
from mt.text.clean import Cleaner, Tally, shortened
from mt.text.corpus import SIDES, flat_ids, ids_dtype
from mt.text.overlap import HeldOut, NgramOverlap, folded_all
from mt.text.reader import Chunk, SentencePair
from mt.text.tokenizer import EOS_ID, Tokenizers, count_words

PAIRS_PER_SHARD = 50_000
DUPLICATES = ("duplicate", "folded_duplicate")
_SAMPLE_SEED = 1  # independent of train.seed, so that train.seed does not change the corpus
_KEYS_PER_PART = 5_000_000  # compared at one time; each takes 28 bytes of memory
_TABS_AND_LINE_ENDS = str.maketrans("\t\n\r", "   ")


@dataclass(frozen=True)
class Shard:
    """Consecutive pairs of one training corpus."""

    folder: Path
    corpus: int  # index in data.train
    number: int  # index among the shards of the corpus
    n_pairs: int  # pairs that were read

    def path(self, kind: str) -> Path:
        return self.folder / f"{self.corpus}.{self.number:06}.{kind}"

    def is_finished(self, stage: str) -> bool:
        return self.path(f"{stage}.json").exists()

    def result(self, stage: str) -> Any:
        return json.loads(self.path(f"{stage}.json").read_text("utf-8"))

    def read_cleaned(self) -> list[SentencePair]:
        lines = np.fromfile(self.path("cleaned.lines"), dtype=np.int64).tolist()
        with self.path("cleaned.tsv").open(encoding="utf-8", newline="\n") as text:
            rows = (row[:-1].partition("\t") for row in text)
            return [SentencePair(src, tgt, line) for (src, _, tgt), line in zip(rows, lines, strict=True)]


@dataclass
class _Account(Tally):
    """The pairs that a stage removes from a shard: their tally, and their rows in `removed.tsv`."""

    rows: list[str] = field(default_factory=list)

    def remove(self, rule: str, pair: SentencePair, note: str = "") -> None:
        super().remove(rule, pair)
        src, tgt = (shortened(side).translate(_TABS_AND_LINE_ENDS) for side in pair[:2])
        self.rows.append(f"{pair.line}\t{rule}{note}\t{src}\t{tgt}\n")

    def write(self, shard: Shard, stage: Stage, **result: Any) -> None:
        """Write the rows and the result of the stage; call this when its other files are complete."""
        # Invalid text, such as half a surrogate pair, must not prevent the rest from being written.
        with shard.path(f"{stage.name}.removed").open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
            stream.writelines(self.rows)
        for path in (shard.path(f"{stage.name}.{kind}") for kind in ("removed", *stage.files)):
            if path.exists():
                sync(path)  # a stage whose result exists is not repeated, not even after a power cut
        with whole_file(shard.path(f"{stage.name}.json")) as file:
            file.write(json.dumps({"tally": self.as_json(), **result}).encode())


class Stage(ABC):
    """A step of preparation that worker processes run on each shard."""

    name: ClassVar[str]  # prefix of the suffixes of its files
    what: ClassVar[str]  # its name in progress messages
    files: ClassVar[tuple[str, ...]]  # further suffixes of the files that it may write, besides removed and json

    @abstractmethod
    def __call__(self, shard: Shard, task: Any) -> int:
        """Write the result files of a shard; return the number of pairs read.

        Args:
            task: further input of the stage for this shard.
        """


_stage: Stage | None = None  # of this worker process, which imports this module and little else


def install_stage(stage: Stage) -> None:
    """Set the stage that `run_stage` runs in this process."""
    global _stage
    _stage = stage


def run_stage(task: tuple[Shard, Any]) -> int:
    """Run the installed stage on a shard."""
    assert _stage is not None, "the initializer of the process has run"
    return _stage(*task)


class Cleaning(Stage):
    """First stage: normalise text, remove bad pairs, write keys for finding duplicates."""

    name, what = "cleaned", "cleaning"
    files = "tsv", "lines", "keys", "folded"

    def __init__(self, config: CleanConfig, langs: Sequence[tuple[str, str]], held_out: HeldOut) -> None:
        """
        Args:
            langs: source and target language of each training corpus, in their order.
        """
        self._config, self._langs, self._held_out = config, langs, held_out
        self._overlap: NgramOverlap | None = None  # built in the worker process

    def __call__(self, shard: Shard, chunk: Chunk) -> int:
        account = _Account()
        cleaned = Cleaner(self._config, *self._langs[shard.corpus], account).clean(chunk)
        folded_sides = [folded_all([getattr(pair, side) for pair in cleaned]) for side in SIDES]
        kept, kept_srcs, kept_tgts = [], [], []
        for pair, folded_src, folded_tgt in zip(cleaned, *folded_sides, strict=True):
            name = self._held_out.find(folded_src, folded_tgt) if self._config.contamination else None
            if name is not None:
                account.remove("contaminated", pair, f" ({name})")
                continue
            kept.append(pair)
            # Folding removes everything from text without words, but these pairs are not all duplicates.
            kept_srcs.append(folded_src or pair.src)
            kept_tgts.append(folded_tgt or pair.tgt)
        self._overlap = self._overlap or NgramOverlap(self._held_out)
        with shard.path("cleaned.tsv").open("w", encoding="utf-8", newline="\n") as text:
            # Cleaned text contains neither tabs nor line ends.
            text.writelines(f"{src}\t{tgt}\n" for src, tgt, _ in kept)
        np.array([pair.line for pair in kept], dtype=np.int64).tofile(shard.path("cleaned.lines"))
        # Equal pairs in two directions are not duplicates: their keys differ by the first corpus of the direction.
        direction = np.uint64(self._langs.index(self._langs[shard.corpus]))
        if self._config.duplicates != "keep":
            keys = pair_keys([pair.src for pair in kept], [pair.tgt for pair in kept])
            (keys ^ direction).tofile(shard.path("cleaned.keys"))
        if self._config.duplicates == "folded":
            (pair_keys(kept_srcs, kept_tgts) ^ direction).tofile(shard.path("cleaned.folded"))
        account.write(shard, self, overlap=self._overlap.found_in(kept_srcs, kept_tgts))
        return len(chunk.src)


class Counting(Stage):
    """Second stage: remove duplicates, count the words of a sample."""

    name, what = "kept", "removing duplicates, counting words"
    files = "mask", "words"

    def __init__(self, sample_fraction: float) -> None:
        self._sample_fraction = sample_fraction  # of the pairs

    def __call__(self, shard: Shard, repeats: npt.NDArray[np.uint8]) -> int:
        """Run the stage.

        Args:
            repeats: for each pair 0, or 1 + the index of its rule in DUPLICATES.
        """
        account, pairs = _Account(), shard.read_cleaned()
        account.add(shard.result("cleaned")["tally"])
        for number in np.flatnonzero(repeats).tolist():
            account.remove(DUPLICATES[repeats[number] - 1], pairs[number])
        (repeats == 0).tofile(shard.path("kept.mask"))
        kept = list(compress(pairs, repeats == 0))
        sample = kept
        if self._sample_fraction < 1:
            draw = random.Random(f"{_SAMPLE_SEED} {shard.corpus} {shard.number}").random
            sample = [pair for pair in kept if draw() < self._sample_fraction]
        words = [count_words(getattr(pair, side) for pair in sample) for side in SIDES]
        # In a separate file, because the result is read more often.
        shard.path("kept.words").write_text(json.dumps(words, ensure_ascii=False), "utf-8")
        account.write(shard, self, n_pairs=len(kept), n_lines=2 * len(sample))
        return len(pairs)


class Encoding(Stage):
    """Third stage: encode text as ids, remove long pairs."""

    name, what = "encoded", "encoding"
    files = "src.ids", "src.lengths", "tgt.ids", "tgt.lengths", "lines"

    def __init__(self, tokenizer_paths: Sequence[Path], max_tokens: int, marks: Sequence[Marks]) -> None:
        """
        Args:
            marks: of each training corpus, in their order.
        """
        self._tokenizer_paths, self._max_tokens, self._marks = tokenizer_paths, max_tokens, marks
        self._tokenizers: Tokenizers | None = None  # loaded in the worker process

    def __call__(self, shard: Shard, shown: Sequence[int]) -> int:
        """Run the stage.

        Args:
            shown: the indices of the pairs that the report shows as samples.
        """
        self._tokenizers = self._tokenizers or Tokenizers.load(self._tokenizer_paths)
        account = _Account()
        account.add(shard.result("kept")["tally"])
        pairs = list(compress(shard.read_cleaned(), np.fromfile(shard.path("kept.mask"), dtype=np.bool_)))
        sides = encode_pairs(self._tokenizers, pairs, self._marks[shard.corpus], n_threads=1)
        fits = [max(len(src), len(tgt)) <= self._max_tokens for src, tgt in zip(*sides, strict=True)]
        for pair, fit in zip(pairs, fits, strict=True):
            if not fit:
                account.remove("too_many_tokens", pair)
        for name, side in zip(SIDES, sides, strict=True):
            ids, lengths = flat_ids(list(compress(side, fits)), ids_dtype(self._tokenizers.vocab_size))
            ids.tofile(shard.path(f"encoded.{name}.ids"))
            lengths.tofile(shard.path(f"encoded.{name}.lengths"))
        np.array([pair.line for pair in compress(pairs, fits)], dtype=np.int64).tofile(shard.path("encoded.lines"))
        samples = [{"source": shard.corpus, **pairs[i]._asdict()} for i in shown if fits[i]]
        account.write(shard, self, n_pairs=sum(fits), samples=samples)
        return len(pairs)


class Marks(NamedTuple):
    """The beginning of the source sentences of a corpus."""

    pieces: tuple[str, ...] = ()  # of languages
    tag: str | None = None

    @classmethod
    def of(cls, config: RunConfig, entry: Entry) -> Marks:
        return cls(config.pieces_of(entry.direction), entry.corpus.tag)


def encode_pairs(
    tokenizers: Tokenizers, pairs: Sequence[SentencePair], marks: Marks, n_threads: int | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of both sides, each sentence with its EOS."""
    prefix, first = "" if marks.tag is None else f"{marks.tag} ", tokenizers.src.ids_of(marks.pieces)
    src = [[*first, *ids] for ids in tokenizers.src.encode_batch([f"{prefix}{pair.src}" for pair in pairs], n_threads)]
    tgt = tokenizers.tgt.encode_batch([pair.tgt for pair in pairs], n_threads)
    for sentence in chain(src, tgt):
        sentence.append(EOS_ID)
    return src, tgt


# ---------------------------------------------------------------------------------------------------- duplicates


def pair_keys(srcs: Sequence[str], tgts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit key of each pair, the same in every process and on every machine.

    Equal pairs have equal keys. Among n different pairs, the probability that any two have the same key is n² / 2^65:
    0.03% for 100 million pairs, 3% for a billion. Then one of the two is taken for a duplicate of the other.
    """
    # The key includes the length of the source, so that ("ab", "c") and ("a", "bc") have different keys.
    digests = [
        hashlib.blake2b(f"{len(src)} {src}{tgt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for src, tgt in zip(srcs, tgts, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


def repeated(key_files: Sequence[Path], keys_per_part: int = _KEYS_PER_PART) -> list[npt.NDArray[np.bool_]]:
    """Return for each file which of its keys occurred before: in an earlier file, or earlier in the same file.

    The files are read once for each part of the keys, so that memory does not grow with the number of keys, except for
    one byte a key. It does grow if many keys are equal.

    Args:
        key_files: uint64 keys, written by `tofile`, with values spread evenly like hashes.
    """
    sizes = [path.stat().st_size // 8 for path in key_files]
    is_repeated = np.zeros(sum(sizes), dtype=np.bool_)
    n_parts = -(-len(is_repeated) // keys_per_part)
    ends = np.cumsum(sizes, dtype=np.intp)
    for part in range(n_parts):
        parts, places = [], []
        for path, end, size in zip(key_files, ends, sizes, strict=True):
            keys = np.fromfile(path, dtype=np.uint64)
            of_part = np.flatnonzero(keys % np.uint64(n_parts) == part)
            parts.append(keys[of_part])
            places.append(of_part + (end - size))
        keys = np.concatenate(parts)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        is_repeated[np.concatenate(places)[order[1:][keys[1:] == keys[:-1]]]] = True
    return np.split(is_repeated, ends[:-1]) if sizes else []
