"""What worker processes make of a stretch of a corpus: cleaned text, counts of words, ids.

Each result is a few files in the folder where the corpus is built; the last of them is renamed into its place when the
others are whole, so a preparation that was interrupted goes on with the shards that are finished.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt.config.settings import CleanConfig
from mt.system.files import whole_file
from mt.text.clean import Cleaner, Reason, Tally, shortened
from mt.text.corpora import Chunk, SentencePair
from mt.text.corpus import ids_dtype
from mt.text.duplicates import pair_keys
from mt.text.overlap import HeldOut, NgramOverlap, folded_all
from mt.text.tokenizer import EOS_ID, Tokenizer, count_words

PAIRS_PER_SHARD = 50_000
_SAMPLE_SEED = 1  # of its own, so that train.seed does not change the corpus


@dataclass(frozen=True)
class Shard:
    """A stretch of one corpus of the training text."""

    folder: Path
    corpus: int  # index in data.train
    number: int  # among the shards of the corpus

    def path(self, kind: str) -> Path:
        return self.folder / f"{self.corpus}.{self.number:06}.{kind}"

    def is_finished(self, stage: str) -> bool:
        return self.path(f"{stage}.json").exists()

    def result(self, stage: str) -> Any:
        return json.loads(self.path(f"{stage}.json").read_text("utf-8"))

    def words(self) -> list[dict[str, int]]:
        """The words of the sample of source and target side, with their counts."""
        words: list[dict[str, int]] = json.loads(self.path("kept.words").read_text("utf-8"))
        return words

    def finish(self, stage: str, result: Any) -> None:
        """Write what the stage found; the files of the stage are whole."""
        with whole_file(self.path(f"{stage}.json")) as stream:
            stream.write(json.dumps(result).encode())

    def write_cleaned(self, pairs: Sequence[SentencePair]) -> None:
        with self.path("cleaned.tsv").open("w", encoding="utf-8", newline="\n") as text:
            # Cleaned text holds no tab and no line end.
            text.writelines(f"{src}\t{tgt}\n" for src, tgt, _ in pairs)
        np.array([pair.line for pair in pairs], dtype=np.int64).tofile(self.path("cleaned.lines"))

    def read_cleaned(self) -> list[SentencePair]:
        lines = np.fromfile(self.path("cleaned.lines"), dtype=np.int64).tolist()
        with self.path("cleaned.tsv").open(encoding="utf-8", newline="\n") as text:
            rows = (row[:-1].partition("\t") for row in text)
            return [SentencePair(src, tgt, line) for (src, _, tgt), line in zip(rows, lines, strict=True)]

    def read_kept(self) -> list[SentencePair]:
        """Read the pairs that are left without the duplicates."""
        return list(compress(self.read_cleaned(), np.fromfile(self.path("kept.mask"), dtype=np.bool_)))


class _Removed:
    """The list of a shard's pairs that a stage removes, for people to look through."""

    def __init__(self, shard: Shard, stage: str) -> None:
        self._rows: list[str] = []
        self._path = shard.path(f"{stage}.removed")

    def add(self, pair: SentencePair, reason: str) -> None:
        src, tgt = (shortened(side).replace("\t", " ").replace("\n", " ").replace("\r", " ") for side in pair[:2])
        self._rows.append(f"{pair.line}\t{reason}\t{src}\t{tgt}\n")

    def write(self) -> None:
        # What is no text at all, such as half a surrogate pair, must not keep the rest from being written.
        with self._path.open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
            stream.writelines(self._rows)


class Cleaning:
    """First stage: text normalised, bad pairs removed, keys for finding duplicates."""

    def __init__(self, config: CleanConfig, src_lang: str, tgt_lang: str, held_out: HeldOut) -> None:
        self._config, self._langs, self._held_out = config, (src_lang, tgt_lang), held_out
        self._overlap: NgramOverlap | None = None  # made in the process that cleans

    def __call__(self, task: tuple[Shard, Chunk]) -> int:
        """Write shard files; pairs that were read."""
        shard, chunk = task
        cleaner, removed = Cleaner(self._config, *self._langs), _Removed(shard, "cleaned")
        cleaned = cleaner.clean_chunk(*chunk, on_removal=removed.add)
        folded_srcs, folded_tgts = (
            folded_all(side) for side in ([pair.src for pair in cleaned], [pair.tgt for pair in cleaned])
        )
        kept, kept_srcs, kept_tgts = [], [], []
        for pair, folded_src, folded_tgt in zip(cleaned, folded_srcs, folded_tgts, strict=True):
            name = self._held_out.find(folded_src, folded_tgt) if self._config.contamination else None
            if name is not None:
                cleaner.tally.remove("contaminated", pair)
                removed.add(pair, f"contaminated ({name})")
                continue
            kept.append(pair)
            # Folding leaves nothing of symbols alone, and such pairs are not all the same.
            kept_srcs.append(folded_src or pair.src)
            kept_tgts.append(folded_tgt or pair.tgt)
        self._overlap = self._overlap or NgramOverlap(self._held_out)
        self._overlap.clear()
        self._overlap.add(kept_srcs, kept_tgts)
        shard.write_cleaned(kept)
        if self._config.duplicates != "keep":
            pair_keys([pair.src for pair in kept], [pair.tgt for pair in kept]).tofile(shard.path("cleaned.keys"))
        if self._config.duplicates == "folded":
            pair_keys(kept_srcs, kept_tgts).tofile(shard.path("cleaned.folded"))
        removed.write()
        shard.finish("cleaned", {"tally": cleaner.tally.as_json(), "overlap": self._overlap.as_json()})
        return len(chunk.src)


@dataclass(frozen=True)
class Repeats:
    """Which pairs of a cleaned shard came before, exactly and folded."""

    exact: npt.NDArray[np.bool_] | None
    folded: npt.NDArray[np.bool_] | None

    def any_of(self, n_pairs: int) -> npt.NDArray[np.bool_]:
        flags = [side for side in (self.exact, self.folded) if side is not None]
        return np.logical_or.reduce(flags) if flags else np.zeros(n_pairs, dtype=np.bool_)


class Counting:
    """Second stage: duplicates removed, the words of a sample counted."""

    def __init__(self, sample_share: float) -> None:
        self._sample_share = sample_share  # of the pairs

    def __call__(self, task: tuple[Shard, Repeats]) -> int:
        """Write shard files; pairs that were read."""
        shard, repeats = task
        tally, removed = Tally.from_json(shard.result("cleaned")["tally"]), _Removed(shard, "kept")
        pairs = shard.read_cleaned()
        is_repeated = repeats.any_of(len(pairs))
        for number in np.flatnonzero(is_repeated).tolist():
            is_exact = repeats.exact is not None and repeats.exact[number]
            reason: Reason = "duplicate" if is_exact else "folded_duplicate"
            tally.remove(reason, pairs[number])
            removed.add(pairs[number], reason)
        (~is_repeated).tofile(shard.path("kept.mask"))
        kept = list(compress(pairs, ~is_repeated))
        removed.write()
        n_lines, words = self._words_of_sample(shard, kept)
        # Apart from the result, which is read more often.
        shard.path("kept.words").write_text(json.dumps(words, ensure_ascii=False), "utf-8")
        shard.finish("kept", {"tally": tally.as_json(), "n_pairs": len(kept), "n_lines": n_lines})
        return len(pairs)

    def _words_of_sample(self, shard: Shard, pairs: Sequence[SentencePair]) -> tuple[int, list[Counter[str]]]:
        """How many lines were counted, and the words of both sides with their counts."""
        if self._sample_share < 1:
            draw = random.Random(f"{_SAMPLE_SEED} {shard.corpus} {shard.number}").random
            pairs = [pair for pair in pairs if draw() < self._sample_share]
        return 2 * len(pairs), [count_words(pair.src for pair in pairs), count_words(pair.tgt for pair in pairs)]


class Encoding:
    """Third stage: ids, long pairs removed."""

    def __init__(self, tokenizer_path: Path, max_tokens: int, tags: Mapping[int, str]) -> None:
        """`tags`: of the corpora that have one, by index."""
        self._tokenizer_path, self._max_tokens, self._tags = tokenizer_path, max_tokens, tags
        self._tokenizer: Tokenizer | None = None  # loaded in the process that encodes

    def __call__(self, task: tuple[Shard, Sequence[int]]) -> int:
        """Write shard files; pairs that were read. The task names the pairs that shall be shown as samples."""
        shard, shown = task
        self._tokenizer = self._tokenizer or Tokenizer.load(self._tokenizer_path)
        tally, removed = Tally.from_json(shard.result("kept")["tally"]), _Removed(shard, "encoded")
        pairs = shard.read_kept()
        sides = encode_pairs(self._tokenizer, pairs, self._tags.get(shard.corpus), n_threads=1)
        fits = [max(len(src), len(tgt)) <= self._max_tokens for src, tgt in zip(*sides, strict=True)]
        for pair, fit in zip(pairs, fits, strict=True):
            if not fit:
                tally.remove("too_many_tokens", pair)
                removed.add(pair, "too_many_tokens")
        dtype = ids_dtype(self._tokenizer.vocab_size)
        for name, side in zip(("src", "tgt"), sides, strict=True):
            sentences = [ids for ids, fit in zip(side, fits, strict=True) if fit]
            lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
            lengths.tofile(shard.path(f"encoded.{name}.lengths"))
            flat = (id_ for ids in sentences for id_ in ids)
            np.fromiter(flat, dtype=dtype, count=int(lengths.sum())).tofile(shard.path(f"encoded.{name}.ids"))
        kept_lines = np.array([pair.line for pair, fit in zip(pairs, fits, strict=True) if fit], dtype=np.int64)
        kept_lines.tofile(shard.path("encoded.lines"))
        removed.write()
        samples = [
            {"source": shard.corpus, "line": pairs[i].line, "src": pairs[i].src, "tgt": pairs[i].tgt}
            for i in shown
            if fits[i]
        ]
        shard.finish("encoded", {"tally": tally.as_json(), "n_pairs": sum(fits), "samples": samples})
        return len(pairs)


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[SentencePair], tag: str | None = None, n_threads: int | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the two sides, each with its end of sentence."""
    prefix = "" if tag is None else f"{tag} "
    texts = [f"{prefix}{pair.src}" for pair in pairs] + [pair.tgt for pair in pairs]
    ids = tokenizer.encode_batch(texts, n_threads)
    for sentence in ids:
        sentence.append(EOS_ID)
    return ids[: len(pairs)], ids[len(pairs) :]
