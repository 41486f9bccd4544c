"""The prepared corpus: memory-mapped ids on disk, in a folder named after the fingerprint of its text and settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt.config.settings import RunConfig, VocabSizes
from mt.errors import DataError
from mt.text.corpora import SentencePair, readers_of
from mt.text.tokenizer import tokenizer_paths
from mt.units import format_vocabulary

CORPUS_FORMAT_VERSION = 2
SIDES = ("src", "tgt")

_LARGEST_UINT16_VOCABULARY = 65_535


def ids_dtype(vocab_size: VocabSizes) -> str:
    """Return numpy's name of the integer type in which the ids of both sides are stored."""
    largest = vocab_size if isinstance(vocab_size, int) else max(vocab_size)
    return "<u2" if largest <= _LARGEST_UINT16_VOCABULARY else "<u4"


class Sentences:
    """The ids of many sentences, concatenated in one memory-mapped file; each ends with EOS_ID, without a BOS_ID.

    Args:
        offsets: [n + 1]; sentence i is ids[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> None:
        self.ids = ids
        self.offsets = offsets
        self.lengths: npt.NDArray[np.int64] = np.diff(offsets)  # tokens, end of sentence included

    @classmethod
    def open(cls, folder: Path, name: str, dtype: str) -> Sentences:
        ids = np.memmap(folder / f"{name}.ids", dtype=dtype, mode="r")
        return cls(ids, np.fromfile(folder / f"{name}.offsets", dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> npt.NDArray[Any]:
        """Return the ids of sentence i, counted from 0."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


class ParallelIds:
    """Sentences and their translations."""

    def __init__(self, src: Sentences, tgt: Sentences) -> None:
        assert len(src) == len(tgt), "the two sides were written pair by pair"
        self.src = src
        self.tgt = tgt

    @classmethod
    def open(cls, folder: Path, name: str, dtype: str) -> ParallelIds:
        return cls(*(Sentences.open(folder, f"{name}.{side}", dtype) for side in SIDES))

    def __len__(self) -> int:
        return len(self.src)


FlatIds = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]  # the concatenated ids of some sentences, and their lengths


def flat_ids(sentences: Sequence[Sequence[int]], dtype: str) -> FlatIds:
    """Concatenate the ids of sentences; return them with the length of each sentence."""
    lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
    return np.fromiter(chain.from_iterable(sentences), dtype, count=int(lengths.sum())), lengths


def write_parallel_ids(folder: Path, name: str, parts: Iterable[Sequence[FlatIds]]) -> dict[str, Any]:
    """Write the files that `ParallelIds` reads, and return their entry in the manifest.

    Args:
        parts: each has the source and the target side of some pairs, end of sentence included.
    """
    n_tokens, longest = [0, 0], [0, 0]
    with ExitStack() as stack:
        files = [
            [stack.enter_context((folder / f"{name}.{side}.{part}").open("wb")) for part in ("ids", "offsets")]
            for side in SIDES
        ]
        for _, offsets_file in files:
            np.zeros(1, dtype=np.int64).tofile(offsets_file)
        for part in parts:
            for i, ((ids, lengths), (ids_file, offsets_file)) in enumerate(zip(part, files, strict=True)):
                ids.tofile(ids_file)
                (n_tokens[i] + np.cumsum(lengths)).tofile(offsets_file)
                n_tokens[i] += len(ids)
                longest[i] = max(longest[i], int(lengths.max(initial=0)))
    return {
        "src_tokens": n_tokens[0],
        "tgt_tokens": n_tokens[1],
        "src_tokens_per_tgt_token": n_tokens[0] / n_tokens[1],
        "longest_src": longest[0],
        "longest_tgt": longest[1],
    }


@dataclass(frozen=True, repr=False)
class PreparedCorpus:
    """A prepared corpus on disk, opened: everything that training and evaluation need to know about the data."""

    folder: Path
    fingerprint: str
    manifest: dict[str, Any]
    tokenizer_paths: tuple[Path, ...]  # of a joint tokenizer, or of the source's and the target's
    train: ParallelIds  # the pairs of the first corpus, then those of the second, …
    corpus_sizes: tuple[int, ...]  # the number of pairs kept from each training corpus
    train_lines: npt.NDArray[np.int64]  # the 1-based line of each training pair in its corpus
    valid: ParallelIds
    valid_pairs: list[SentencePair]  # unchanged text
    test_pairs: dict[str, list[SentencePair]]  # unchanged text

    def __repr__(self) -> str:
        sizes = {"train": len(self.train), "valid": len(self.valid_pairs)}
        sizes |= {f"test {name}": len(pairs) for name, pairs in self.test_pairs.items()}
        return f"<PreparedCorpus {self.folder}: {', '.join(f'{name} {n:,}' for name, n in sizes.items())} pairs>"

    def __str__(self) -> str:
        """Return the facts that `mt prepare` prints."""
        facts, train = self.manifest, self.manifest["train"]
        lines = [
            f"folder     {self.folder}",
            f"tokenizer  {facts['tokenizer']['kind']}, {format_vocabulary(facts['tokenizer']['vocab_size'])}",
            f"train      {train['pairs_kept']:,} of {train['pairs_read']:,} pairs kept, "
            f"{train['src_tokens']:,} source and {train['tgt_tokens']:,} target tokens",
            f"valid      {facts['valid']['pairs']:,} pairs, {facts['valid']['source']}",
            *(f"test       {one['pairs']:,} pairs, {name}: {one['source']}" for name, one in facts["test"].items()),
        ]
        return "\n".join(lines)

    @classmethod
    def open(cls, folder: Path) -> PreparedCorpus:
        """Open a corpus that `prepare_corpus` has built.

        Raises:
            DataError: the folder is missing, incomplete, damaged or of another version.
        """
        manifest = _read_manifest(folder)
        dtype = manifest["ids_dtype"]
        return cls(
            folder=folder,
            fingerprint=manifest["fingerprint"],
            manifest=manifest,
            tokenizer_paths=tokenizer_paths(folder),
            train=ParallelIds.open(folder, "train", dtype),
            corpus_sizes=tuple(entry["pairs_kept"] for entry in manifest["train"]["sources"]),
            train_lines=np.fromfile(folder / "train.lines", dtype=np.int64),
            valid=ParallelIds.open(folder, "valid", dtype),
            valid_pairs=read_pairs(folder / "valid.jsonl"),
            test_pairs={name: read_pairs(folder / f"test.{name}.jsonl") for name in manifest["test"]},
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    advice = f"delete {folder} and prepare it again"
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        version, sizes = manifest["format_version"], manifest["file_bytes"]
    except FileNotFoundError:
        raise DataError(folder, "is not a prepared corpus: manifest.json is missing", advice) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(folder, "the prepared corpus has a damaged manifest.json", advice) from None
    if version != CORPUS_FORMAT_VERSION:
        problem = f"was prepared in format {version}, but this version of mt reads format {CORPUS_FORMAT_VERSION}"
        raise DataError(folder, problem, advice)
    for name, n_bytes in sizes.items():
        path = folder / name
        if not path.is_file():
            raise DataError(folder, f"the prepared corpus is incomplete: {name} is missing", advice)
        if path.stat().st_size != n_bytes:
            found = f"{name} has {path.stat().st_size:,} bytes instead of {n_bytes:,}"
            raise DataError(folder, f"the prepared corpus is damaged: {found}", advice)
    return manifest


def read_pairs(path: Path) -> list[SentencePair]:
    """Read the pairs of a validation or test set as `pairs_text` writes them."""
    with path.open(encoding="utf-8") as stream:
        return [SentencePair(*json.loads(line)) for line in stream]


def pairs_text(pairs: Iterable[SentencePair]) -> str:
    """Return pairs as JSON, one a line."""
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


def with_tag(pairs: Iterable[SentencePair], tag: str | None) -> list[SentencePair]:
    """Return the pairs with their corpus's tag, if it has one, before each source segment, as the model reads them."""
    if tag is None:
        return list(pairs)
    return [SentencePair(f"{tag} {src}", tgt, line) for src, tgt, line in pairs]


def without_tag(src: str, tags: Iterable[str]) -> str:
    """Return a source segment without the tag before it, if it has one of these."""
    return next((src.removeprefix(f"{tag} ") for tag in tags if src.startswith(f"{tag} ")), src)


def first_test_pairs(
    config: RunConfig, fingerprint: str | None, *, may_fetch: bool = True
) -> tuple[str, list[SentencePair]]:
    """Return the description and the pairs of a run's first test set, or of its validation set if it has no test set.

    Args:
        fingerprint: of the run's prepared corpus, which is used if it exists.
        may_fetch: allow downloads, for text that is not in local files.
    Raises:
        DataError: the text is missing or unreadable, or a download is needed and not allowed.
    """
    name = next(iter(config.data.test), "valid")
    reader = readers_of(config)[f"data.test.{name}" if config.data.test else "data.valid"]
    description = f"{name}: {reader.corpus.description}"
    prepared = Path(config.data.prepared_dir) / str(fingerprint)
    if prepared.is_dir():
        corpus = PreparedCorpus.open(prepared)
        sets = {"valid": corpus.valid_pairs, **corpus.test_pairs}
        if name in sets:  # not if the test set was added later
            return description, sets[name]
    if not may_fetch and not reader.corpus.files:
        raise DataError(reader.corpus.description, "is not available without a download")
    return description, with_tag(reader.pairs(), reader.corpus.tag)
