"""The prepared corpus: memory-mapped ids on disk, in a folder named after the fingerprint of its text and settings."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from mt.config.settings import VocabSizes, of_both_sides
from mt.errors import DataError
from mt.report.facts import Facts, HeldOutSet, TrainingCounts
from mt.system.files import checksums_of, parse_json, read_json
from mt.text.reader import SentencePair
from mt.text.tokenizer import tokenizer_paths
from mt.units import format_vocabulary

CORPUS_FORMAT_VERSION = 3  # 3: with checksums
CHECKSUMS = "sha256"  # key of the manifest: file name → 64 hexadecimal digits
SIDES = ("src", "tgt")

_LARGEST_UINT16_VOCABULARY = 65_535


def ids_dtype(vocab_size: VocabSizes) -> str:
    """Return numpy's name of the integer type in which the ids of both sides are stored."""
    return "<u2" if max(of_both_sides(vocab_size)) <= _LARGEST_UINT16_VOCABULARY else "<u4"


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
        """Open the files of one side.

        Raises:
            ValueError: the offsets do not rise from 0 to the number of ids.
        """
        ids = np.memmap(folder / f"{name}.ids", dtype=dtype, mode="r")
        opened = cls(ids, np.fromfile(folder / f"{name}.offsets", dtype=np.int64))
        ends = opened.offsets[[0, -1]].tolist() if len(opened.offsets) else []
        if ends != [0, len(ids)] or opened.lengths.min(initial=1) < 1:
            raise ValueError(f"the sentences in {name}.offsets do not fit {name}.ids")
        return opened

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def flat(self) -> FlatIds:
        """The concatenated ids, and the length of each sentence."""
        return self.ids[self.offsets[0] : self.offsets[-1]], self.lengths

    def take(self, sentences: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the concatenated ids of some sentences."""
        lengths = self.lengths[sentences]
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids: npt.NDArray[Any] = self.ids[np.repeat(self.offsets[sentences], lengths) + within]
        return ids

    def __getitem__(self, i: int) -> npt.NDArray[Any]:
        """Return the ids of sentence i, counted from 0."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


class ParallelIds:
    """Sentences and their translations."""

    def __init__(self, src: Sentences, tgt: Sentences) -> None:
        if len(src) != len(tgt):
            raise ValueError(f"there are {len(src):,} source and {len(tgt):,} target sentences")
        self.src = src
        self.tgt = tgt

    @classmethod
    def open(cls, folder: Path, name: str, dtype: str) -> ParallelIds:
        return cls(*(Sentences.open(folder, f"{name}.{side}", dtype) for side in SIDES))

    def __len__(self) -> int:
        return len(self.src)

    def part(self, start: int, stop: int) -> ParallelIds:
        """Return pairs `start` to `stop`, of which only the offsets are copied."""
        return ParallelIds(*(Sentences(side.ids, side.offsets[start : stop + 1]) for side in (self.src, self.tgt)))


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
    valid: ParallelIds  # of all validation sets, one after the other
    valid_sets: dict[str, list[SentencePair]]  # unchanged text
    test_pairs: dict[str, list[SentencePair]]  # unchanged text

    def __repr__(self) -> str:
        sizes = {"train": len(self.train)} | {name: len(pairs) for name, pairs in self.valid_sets.items()}
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
            *(f"valid      {one['pairs']:,} pairs, {one['source']}" for one in _valid_sets(facts).values()),
            *(f"test       {one['pairs']:,} pairs, {name}: {one['source']}" for name, one in facts["test"].items()),
        ]
        return "\n".join(lines)

    @classmethod
    def open(cls, folder: Path, *, is_verified: bool = False) -> PreparedCorpus:
        """Open a corpus that `prepare_corpus` has built.

        The text and the tokenizer are always compared with their checksums.

        Args:
            is_verified: verify the ids too, as at the start of a run: this reads all files, at about 1 GB a second.
        Raises:
            DataError: the folder is missing, incomplete, damaged or of another version.
        """
        manifest = _read_manifest(folder)
        _check_files(folder, manifest, is_verified=is_verified)
        dtype, valid = manifest["ids_dtype"], _valid_sets(manifest)
        texts = {name: folder / held_out_file(name, valid) for name in (*valid, *manifest["test"])}
        try:
            corpus = cls(
                folder=folder,
                fingerprint=manifest["fingerprint"],
                manifest=manifest,
                tokenizer_paths=tokenizer_paths(folder),
                train=ParallelIds.open(folder, "train", dtype),
                corpus_sizes=tuple(entry["pairs_kept"] for entry in manifest["train"]["sources"]),
                train_lines=np.fromfile(folder / "train.lines", dtype=np.int64),
                valid=ParallelIds.open(folder, "valid", dtype),
                valid_sets={name: read_pairs(texts[name]) for name in valid},
                test_pairs={name: read_pairs(texts[name]) for name in manifest["test"]},
            )
            corpus._check_sizes(is_verified)
        except (OSError, ValueError) as error:
            raise _damaged(folder, str(error)) from error
        return corpus

    @property
    def held_out(self) -> dict[str, list[SentencePair]]:
        """The text of validation and test sets, by name."""
        return self.valid_sets | self.test_pairs

    def valid_ids(self) -> Iterator[tuple[str, ParallelIds]]:
        """Yield the name and the ids of each validation set."""
        start = 0
        for name, pairs in self.valid_sets.items():
            yield name, self.valid.part(start, start := start + len(pairs))

    def _check_sizes(self, has_ids_checked: bool) -> None:
        """Raise a ValueError if the files do not fit together."""
        sizes = {"pairs": len(self.train), "line numbers": len(self.train_lines), "kept pairs": sum(self.corpus_sizes)}
        if len({*sizes.values()}) > 1 or len(self.valid) != sum(map(len, self.valid_sets.values())):
            raise ValueError(f"it has {', '.join(f'{n:,} {name}' for name, n in sizes.items())}")
        vocab_sizes = np.broadcast_to(self.manifest["tokenizer"]["vocab_size"], 2).tolist()  # source, target
        for pairs in (self.valid, *([self.train] if has_ids_checked else [])):
            for side, vocab_size in zip((pairs.src, pairs.tgt), vocab_sizes, strict=True):
                if (largest := int(side.ids.max(initial=0))) >= vocab_size:
                    raise ValueError(f"it has the id {largest:,}, but its tokenizer has {vocab_size:,} pieces")


def _valid_sets(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the validation sets in a manifest, by name."""
    return manifest.get("valid_sets") or {"valid": manifest["valid"]}


class _Tokenizer(Facts):
    kind: str
    vocab_size: int | tuple[int, int]


class _Manifest(Facts):
    """The entries of manifest.json that are read, besides its version."""

    fingerprint: str
    ids_dtype: Literal["<u2", "<u4"]
    train: TrainingCounts
    valid: HeldOutSet
    valid_sets: dict[str, HeldOutSet] = Field({})
    test: dict[str, HeldOutSet]
    tokenizer: _Tokenizer
    file_bytes: dict[str, int]
    sha256: dict[str, str]


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        version = manifest["format_version"]
        if version == CORPUS_FORMAT_VERSION:
            _Manifest.model_validate(manifest)
    except FileNotFoundError:
        raise DataError(folder, "is not a prepared corpus: manifest.json is missing", _advice(folder)) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(folder, "the prepared corpus has a damaged manifest.json", _advice(folder)) from None
    if version != CORPUS_FORMAT_VERSION:
        problem = f"was prepared in format {version}, but this version of mt reads format {CORPUS_FORMAT_VERSION}"
        fix = "continue the run with the version of mt that prepared it, or start over with another --run-dir"
        raise DataError(folder, problem, fix)
    return manifest


def _check_files(folder: Path, manifest: dict[str, Any], *, is_verified: bool) -> None:
    """Compare the sizes of all files with the manifest, and their checksums; see `PreparedCorpus.open`."""
    for name, n_bytes in manifest["file_bytes"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(folder, f"the prepared corpus is incomplete: {name} is missing", _advice(folder))
        if path.stat().st_size != n_bytes:
            raise _damaged(folder, f"{name} has {path.stat().st_size:,} bytes instead of {n_bytes:,}")
    names = [name for name in manifest["file_bytes"] if is_verified or not name.startswith("train.")]
    for name, checksum in checksums_of([folder / name for name in names]).items():
        if checksum != manifest[CHECKSUMS].get(name):
            raise _damaged(folder, f"the checksum of {name} differs from the one in manifest.json")


def _advice(folder: Path) -> str:
    return f"delete {folder} and prepare it again"


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(folder, f"the prepared corpus is damaged: {why}", _advice(folder))


def read_pairs(path: Path) -> list[SentencePair]:
    """Read pairs as `pairs_text` writes them.

    Raises:
        ValueError: the file contains something else.
    """
    with path.open(encoding="utf-8") as stream:
        return TypeAdapter(list[SentencePair]).validate_python([parse_json(line) for line in stream])


def held_out_file(name: str, valid_sets: Container[str]) -> str:
    """Return the name of the file with the text of a validation or test set."""
    return f"{name}.jsonl" if name in valid_sets else f"test.{name}.jsonl"


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
