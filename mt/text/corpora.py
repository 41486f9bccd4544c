"""Reading parallel text in chunks: from files (plain, tables, .jsonl, .tmx), hub data sets, sacreBLEU test sets."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mt.config.settings import Corpus, HubDataset, RunConfig, RunText, SacrebleuSet, Table, TextFiles
from mt.errors import DataError, suggestion
from mt.system import paths
from mt.text.delimited import Layout, Rows, layout_of, read_delimited
from mt.text.files import COMPRESSIONS, content_hash, count_lines, format_of, missing, read_line_chunks
from mt.text.hub import count_rows, dataset_fingerprint, is_local, read_dataset
from mt.text.languages import base_language
from mt.text.lengths import first_break
from mt.text.reader import Chunk, CorpusReader, SentencePair
from mt.text.replay import RunReader
from mt.text.tables import Columns, Texts, count_parquet_rows, read_parquet
from mt.text.tmx import read_tmx

_PAIRS_AT_ONCE = 1_000  # read before the first pair is yielded
_MOST_LINES_COMPARED = 50_000_000  # line lengths kept in memory to find where two files stop being parallel
_DELIMITED = (".tsv", ".csv")
_FORMATS = (*_DELIMITED, ".jsonl", ".tmx", ".parquet")  # read by column
_SURROGATE = re.compile("[\ud800-\udfff]")


def reader_of(corpus: Corpus, langs: tuple[str, str], split: str, folder: str = "") -> CorpusReader:
    """Return the reader of a corpus; for `langs`, `split` and `folder` see `CorpusReader`."""
    return _READERS[type(corpus)](corpus, langs, split, folder)


def readers_of(config: RunConfig) -> dict[str, CorpusReader]:
    """Return the reader of each corpus of a run in each of its directions, by its key in `RunConfig.entries`."""
    splits = {"train": "train", "valid": "validation", "test": "test"}
    readers = {}
    for key, (corpus, direction, is_reversed, _) in config.entries.items():
        split = splits[key.split(".")[1]]
        forward = reader_of(corpus, direction.reversed if is_reversed else direction, split, config.folder)
        readers[key] = _ReversedReader(corpus, direction, split, forward=forward) if is_reversed else forward
    return readers


def _files(name: str, folder: str) -> list[Path]:
    """Return the files that a path or a pattern means.

    Raises:
        DataError: there is none.
    """
    if files := paths.matching(name, folder):
        return files
    error = missing(Path(paths.expanded(name)), folder)
    if paths.is_pattern(name):
        raise DataError(name, error.problem.replace("no such file", "no file has such a name"), "correct the pattern")
    raise error


def _file_fingerprint(path: Path) -> str:
    """Return the hash of the content, with the suffixes that decide how the file is read."""
    suffixes = format_of(path) if is_table(path) else ""
    suffixes += path.suffix if path.suffix in COMPRESSIONS else ""
    return f"{suffixes}:{content_hash(path)}"


def is_table(path: Path) -> bool:
    """Return whether a file has columns, by its name."""
    return format_of(path) in _FORMATS


def _columns_fingerprint(columns: Columns | None) -> str:
    return "" if columns is None else f":{json.dumps(columns)}"


def _layout_fingerprint(layout: Layout | None) -> str:
    """Return what is not read as text although it is in the file."""
    if layout is None:
        return ""
    has_header, separator = layout.header is not None, layout.separator.strip("\t")
    return ":quotes" * layout.has_quotes + ":header" * has_header + f":{separator}" * bool(separator)


def _numbered(parts: Iterator[Texts]) -> Iterator[Rows]:
    n_rows = 0
    for src, tgt in parts:
        first, n_rows = n_rows + 1, n_rows + len(src)
        yield src, tgt, range(first, n_rows + 1), n_rows


def _joined(files: Iterable[Iterator[Rows]], size: int) -> Iterator[Chunk]:
    """Yield the rows of several files in chunks of `size`; lines are counted through."""

    def chunks() -> Iterator[Chunk]:
        n_read = 0
        for rows in files:
            n_before = n_read
            for src, tgt, numbers, n_lines in rows:
                yield Chunk(src, tgt, [n_before + number for number in numbers] if n_before else numbers)
                n_read = n_before + n_lines

    return rechunked(chunks(), size)


def rechunked(chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
    """Yield the same pairs in chunks of `size`; only the last chunk may be smaller."""
    src, tgt, lines = list[str](), list[str](), list[int]()
    for chunk in chunks:
        if not src and len(chunk.src) == size:
            yield chunk
            continue
        src += chunk.src
        tgt += chunk.tgt
        lines += chunk.lines
        n_given = len(src) - len(src) % size
        for start in range(0, n_given, size):
            stop = start + size
            yield Chunk(src[start:stop], tgt[start:stop], lines[start:stop])
        del src[:n_given], tgt[:n_given], lines[:n_given]
    if src:
        yield Chunk(src, tgt, lines)


# ---------------------------------------------------------------------------------------------------- two files


@dataclass(frozen=True)
class _TextFilesReader(CorpusReader):
    corpus: TextFiles

    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        return _joined((_numbered(_read_two_files(*pair, size)) for pair in self._pairs), size)

    def count(self) -> int | None:
        # A pipe can be read only once.
        src_files = self.files[::2]
        return sum(map(count_lines, src_files)) if all(path.is_file() for path in src_files) else None

    def fingerprint(self) -> str:
        return ":".join(["lines", *map(_file_fingerprint, self.files)])

    @property
    def files(self) -> list[Path]:
        return [path for pair in self._pairs for path in pair]

    @property
    def _pairs(self) -> list[tuple[Path, Path]]:
        names = self.corpus.files
        sides = names[: len(names) // 2], names[len(names) // 2 :]
        return [
            pair
            for both in zip(*sides, strict=True)
            for pair in paths.in_pairs(both, [_files(name, self.folder) for name in both])
        ]


def _read_two_files(src_path: Path, tgt_path: Path, size: int) -> Iterator[Texts]:
    src_chunks, tgt_chunks = read_line_chunks(src_path, size), read_line_chunks(tgt_path, size)
    n_lines = 0
    while True:
        src, tgt = next(src_chunks, []), next(tgt_chunks, [])
        if len(src) != len(tgt):
            n_src = n_lines + sum(map(len, chain([src], src_chunks)))
            n_tgt = n_lines + sum(map(len, chain([tgt], tgt_chunks)))
            raise different_counts({src_path: n_src, tgt_path: n_tgt})
        if not src:
            return
        yield src, tgt
        n_lines += len(src)


def different_counts(n_lines: dict[Path, int]) -> DataError:
    """Return the error for two files with different numbers of lines; it says where they stop being parallel."""
    (longer, n_longer), (shorter, n_shorter) = sorted(n_lines.items(), key=lambda item: -item[1])
    counts = f"{longer} has {n_longer:,} lines and {shorter} has {n_shorter:,}"
    problem, found = f"{counts}, but both files need the same number of lines", None
    if longer.is_file() and shorter.is_file() and n_longer <= _MOST_LINES_COMPARED:
        found = first_break(_line_lengths(longer), _line_lengths(shorter))
    if found is None:
        return DataError(problem)
    if found.line == n_shorter:
        return DataError("", f"{problem}; by length, all lines of {shorter} match", f"add the missing end of {shorter}")
    problem += f"; from about line {found.line + 1:,} on, the lengths of the lines do not match"
    return DataError("", problem, f"look there for a line missing from {shorter} or an extra line in {longer}")


def _line_lengths(path: Path) -> NDArray[np.int32]:
    """Return [n_lines]: the length of each line in characters."""
    chunks = [np.fromiter(map(len, lines), np.int32, len(lines)) for lines in read_line_chunks(path, 50_000)]
    return np.concatenate([np.zeros(0, np.int32), *chunks])


# ---------------------------------------------------------------------------------------------------- one file


@dataclass(frozen=True)
class _TableReader(CorpusReader):
    corpus: Table

    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        skipped = Counter() if skipped is None else skipped
        return _joined((self._read(path, size, skipped) for path in self.files), size)

    def count(self) -> int | None:
        if any(not path.is_file() or format_of(path) == ".tmx" for path in self.files):  # a pipe can be read only once
            return None
        counts = [count_parquet_rows(path) if path.suffix == ".parquet" else count_lines(path) for path in self.files]
        return None if None in counts else sum(filter(None, counts))

    def fingerprint(self) -> str:
        found = map(_file_fingerprint, self.files)
        layouts = self.layouts()
        parts = [one + _layout_fingerprint(layouts.get(path)) for path, one in zip(self.files, found, strict=True)]
        return ":".join(parts) + _columns_fingerprint(self.corpus.columns)

    @property
    def files(self) -> list[Path]:
        return [path for name in self.corpus.files for path in _files(name, self.folder)]

    def layouts(self) -> dict[Path, Layout]:
        files = [path for path in self.files if format_of(path) in _DELIMITED]
        return {path: layout_of(path, self.langs, self.corpus) for path in files}

    def _read(self, path: Path, size: int, skipped: Counter[str]) -> Iterator[Rows]:
        format_ = format_of(path)
        if format_ in _DELIMITED:
            return read_delimited(path, self.langs, self.corpus, size, skipped)
        if format_ == ".jsonl":
            return self._read_jsonl(path, size)
        if format_ == ".tmx":
            return read_tmx(path, self.langs, size, skipped)
        if path.suffix == ".parquet":
            return _numbered(read_parquet(path, self.langs, self.corpus.columns, size))
        if format_ == ".parquet":
            problem = "is a compressed Parquet file, which cannot be read (Parquet compresses its own contents)"
            raise DataError(path, problem, f"unpack it to {path.with_suffix('')}")
        problem = "the name does not end in .tsv, .csv, .jsonl or .tmx (or one of these with .gz, .xz or .zst), nor in "
        fix = "rename the file, or give two plain text files as {src: FILE, tgt: FILE}"
        raise DataError(path, f"{problem}.parquet", fix)

    def _read_jsonl(self, path: Path, size: int) -> Iterator[Rows]:
        columns = self.corpus.columns
        for column in columns or ():
            if isinstance(column, int):
                problem = f"has keys, not numbered columns, so {column} is not a column"
                raise DataError(path, problem, "set src_column and tgt_column to keys")
        keys = self.langs if columns is None else (str(columns[0]), str(columns[1]))
        n_lines = 0
        for lines in read_line_chunks(path, size):
            pairs: list[SentencePair] = []
            for number, line in enumerate(lines, start=n_lines + 1):
                if not line or line.isspace():
                    continue
                try:
                    pairs.append(SentencePair(*_json_pair(line, keys, is_language=columns is None), number))
                except DataError as error:
                    raise error.within(f"{path}, line {number:,}") from None
            n_lines += len(lines)
            yield [pair.src for pair in pairs], [pair.tgt for pair in pairs], [pair.line for pair in pairs], n_lines


def _json_pair(line: str, keys: tuple[str, str], is_language: bool) -> tuple[str, str]:
    """Return both sides of a line; errors do not name the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not valid JSON: {error}") from None
    if is_language and isinstance(row, dict) and isinstance(row.get("translation"), dict):
        row = row["translation"]
    if not isinstance(row, dict):
        raise DataError(f"expected an object with the keys {keys[0]} and {keys[1]}, found {line[:60]}")
    src, tgt = _json_text(row, keys[0]), _json_text(row, keys[1])
    if "\\u" in line and (half := _SURROGATE.search(src + tgt)):
        raise DataError("", f"\\u{ord(half[0]):04x} is half of a character (an unpaired surrogate)", "fix the line")
    return src, tgt


def _json_text(row: dict[str, Any], key: str) -> str:
    """Return the text at a key, or at a path of keys joined by dots."""
    text: Any = row
    for part in [key] if key in row else key.split("."):
        if not isinstance(text, dict) or part not in text:
            fix = "set src_column and tgt_column to the keys of the text, or fix the line"
            found = f"its keys are {', '.join(row)}" if row else "it is an empty object"
            raise DataError("", f"has no key {key}, {found}", fix)
        text = text[part]
    if not isinstance(text, str):
        raise DataError(f"expected text at the key {key}, found {json.dumps(text)[:60]}")
    return text


# ---------------------------------------------------------------------------------------------------- the hub


@dataclass(frozen=True)
class _HubReader(CorpusReader):
    corpus: HubDataset

    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        return _joined([_numbered(read_dataset(self.corpus, self._split, self.langs, size))], size)

    def count(self) -> int | None:
        return count_rows(self.corpus, self._split)

    def fingerprint(self) -> str:
        return dataset_fingerprint(self.corpus) + _columns_fingerprint(self.corpus.columns)

    @property
    def is_streamed(self) -> bool:
        return self.corpus.streaming or not (is_local(self.corpus.dataset) or "[" in self._split)

    def streamed(self) -> CorpusReader:
        return replace(self, corpus=replace(self.corpus, streaming=self.is_streamed))

    @property
    def _split(self) -> str:
        return self.corpus.split or self.split


# ---------------------------------------------------------------------------------------------------- sacreBLEU


@dataclass(frozen=True)
class _SacrebleuReader(CorpusReader):
    corpus: SacrebleuSet

    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        files = _sacrebleu_files(self.corpus.sacrebleu, *self.langs)
        return _joined([_numbered(_read_two_files(*files, size))], size)

    def count(self) -> int | None:
        return count_lines(_sacrebleu_files(self.corpus.sacrebleu, *self.langs)[0])

    def fingerprint(self) -> str:
        return f"sacrebleu:{self.corpus.sacrebleu}"


def _sacrebleu_files(name: str, src_lang: str, tgt_lang: str) -> tuple[Path, Path]:
    """Return the paths of the source and of the first reference, downloaded if they do not exist yet."""
    from sacrebleu.dataset import DATASETS
    from sacrebleu.utils import SACREBLEU_DIR, get_reference_files, get_source_file

    # sacreBLEU's codes have no script or region: en-zh for zh-Hans.
    src_lang, tgt_lang = base_language(src_lang), base_language(tgt_lang)
    where, langpair = f"sacreBLEU test set {name}", f"{src_lang}-{tgt_lang}"
    if name not in DATASETS:
        raise DataError(where, "is not known", suggestion(name, DATASETS, "run `sacrebleu --list` to see all names"))
    langpairs = sorted(DATASETS[name].langpairs)
    if langpair not in langpairs:
        if f"{tgt_lang}-{src_lang}" in langpairs:
            fix = "choose another one, or give its files as {src, tgt} if you want this direction anyway"
            raise DataError(where, f"exists for {tgt_lang}-{src_lang} only, not for {langpair}", fix)
        raise DataError(where, f"has no {langpair}; choose from {', '.join(langpairs)}")
    logging.getLogger("sacrebleu").setLevel(logging.CRITICAL)
    try:
        return Path(get_source_file(name, langpair)), Path(get_reference_files(name, langpair)[0])
    # sacreBLEU exits the process if a checksum does not match.
    except (Exception, SystemExit) as error:
        reason = "its checksum is wrong" if isinstance(error, SystemExit) else str(getattr(error, "reason", error))
        partial = f"delete {os.path.join(SACREBLEU_DIR, name)} if it holds a partial download"
        fix = f"check the network, {partial}, or give its files as {{src, tgt}}"
        raise DataError(where, f"cannot be downloaded ({reason})", fix) from None


# ---------------------------------------------------------------------------------------------------- reversed


@dataclass(frozen=True, kw_only=True)
class _ReversedReader(CorpusReader):
    """A reader of the same text with source and target exchanged."""

    forward: CorpusReader

    def chunks(self, size: int, skipped: Counter[str] | None = None) -> Iterator[Chunk]:
        return (Chunk(tgt, src, lines) for src, tgt, lines in self.forward.chunks(size, skipped))

    def count(self) -> int | None:
        return self.forward.count()

    def fingerprint(self) -> str:
        return f"{self.forward.fingerprint()}:reversed"

    @property
    def files(self) -> list[Path]:
        return self.forward.files

    def layouts(self) -> dict[Path, Layout]:
        return self.forward.layouts()

    def side(self, number: int) -> str:
        return self.corpus.side(1 - number, self.langs[number])

    @property
    def name(self) -> str:
        return f"{self.corpus.description}, {self.langs[0]}-{self.langs[1]}"

    @property
    def description(self) -> str:
        return f"{self.forward.description}, {self.langs[0]}-{self.langs[1]}"

    @property
    def is_streamed(self) -> bool:
        return self.forward.is_streamed

    def streamed(self) -> CorpusReader:
        return replace(self, forward=self.forward.streamed())


_READERS: dict[type[Corpus], type[CorpusReader]] = {
    TextFiles: _TextFilesReader,
    Table: _TableReader,
    HubDataset: _HubReader,
    SacrebleuSet: _SacrebleuReader,
    RunText: RunReader,
}
