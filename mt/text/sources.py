"""Parallel text from files (plain, .tsv, .jsonl; .gz, .xz, .zst), hub data sets and sacreBLEU test sets."""

from __future__ import annotations

import contextlib
import difflib
import functools
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mt.config import SourceConfig
from mt.errors import DataError

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16 = "UTF-16, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8"
_PACKED = "compressed, and its name does not say so: unpack it, or end its name in"
_NO_TEXT = {
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"\x1f\x8b": f"{_PACKED} .gz",
    b"\xfd7zXZ\x00": f"{_PACKED} .xz",
    b"\x28\xb5\x2f\xfd": f"{_PACKED} .zst",
    b"BZh": "compressed with bzip2: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
}
_COMPRESSIONS = (".gz", ".xz", ".zst")
_ROWS_PER_BATCH = 10_000
_HASH_BLOCK_BYTES = 1 << 20


class SentencePair(NamedTuple):
    """A segment and its translation, as they stand in their source."""

    src: str
    tgt: str
    line: int  # 1-based line or row in the source


def read_pairs(source: SourceConfig, src_lang: str, tgt_lang: str, default_split: str) -> Iterator[SentencePair]:
    """All pairs of a source in order, in flat memory.

    Args:
        default_split: split of a hub data set whose config names none: train, validation or test.
    Raises:
        DataError: the source is missing, unreadable or not parallel. Different line counts come out at the end.
    """
    if source.src is not None and source.tgt is not None:
        return _read_line_pairs(Path(source.src), Path(source.tgt))
    if source.file is not None:
        return _read_one_file(Path(source.file), src_lang, tgt_lang)
    if source.dataset is not None:
        return _read_dataset(source.dataset, source.config, source.split or default_split, src_lang, tgt_lang)
    assert source.sacrebleu is not None, "SourceConfig holds exactly one kind of source"
    return _read_line_pairs(*_sacrebleu_files(source.sacrebleu, src_lang, tgt_lang))


def check_source(source: SourceConfig, src_lang: str, tgt_lang: str, default_split: str) -> None:
    """Fetch what must be fetched and read the first pair, so that what is missing shows before hours are spent.

    Raises:
        DataError: as `read_pairs`, or the source holds no pair at all.
    """
    for _ in read_pairs(source, src_lang, tgt_lang, default_split):
        return
    raise DataError(f"{source.description}: is empty, expected at least one pair of sentences")


def source_fingerprint(source: SourceConfig) -> str:
    """A name for the content: local files by their bytes wherever they lie, remote sets by what the user wrote.

    Raises:
        DataError: a local file is missing or unreadable, in the words of `read_pairs`.
    """
    if source.src is not None and source.tgt is not None:
        return f"lines:{_file_fingerprint(Path(source.src))}:{_file_fingerprint(Path(source.tgt))}"
    if source.file is not None:
        return _file_fingerprint(Path(source.file))
    if source.dataset is not None:
        config_and_split = json.dumps([source.config, source.split])
        if _is_local_dataset(source.dataset):
            return f"dataset-folder:{_folder_fingerprint(Path(source.dataset))}:{config_and_split}"
        return f"dataset:{source.dataset}:{config_and_split}"
    return f"sacrebleu:{source.sacrebleu}"


# ---------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Reading errors of one file as one line each."""
    try:
        yield
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        raise DataError(f"{path}: no such file{where}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a text file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, EOFError) or "end-of-stream" in str(error):
            raise DataError(f"{path}: ends too early, it was cut off: copy or download it again") from None
        raise DataError(f"{path}: is no {path.suffix} file, or is damaged ({error}): fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, those inside where its name ends in .gz, .xz or .zst; read it inside `explained`."""
    if path.is_dir():
        raise IsADirectoryError
    if path.suffix == ".gz":
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(path), _HASH_BLOCK_BYTES))
    if path.suffix == ".xz":
        return cast(BinaryIO, io.BufferedReader(lzma.LZMAFile(path), _HASH_BLOCK_BYTES))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(path), _HASH_BLOCK_BYTES))
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """A .zst file. Written out because `zstandard`'s own stream reader takes a truncated file for a whole one."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: reading .zst needs one more package: pip install zstandard") from None
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._zstd_error = zstandard.ZstdError
        self._frame: Any = None  # the decompressor of the frame being read
        self._path = path
        self._file = path.open("rb")
        self._compressed = self._text = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            if not self._compressed:
                self._compressed = self._file.read(_HASH_BLOCK_BYTES)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError
                    return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._text = self._frame.decompress(self._compressed)
            except self._zstd_error:
                raise DataError(f"{self._path}: is no .zst file, or is damaged: fetch it again") from None
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        taken = self._text[: len(buffer)]
        buffer[: len(taken)] = taken
        self._text = self._text[len(taken) :]
        return len(taken)


def require_text(beginning: bytes, path: Path) -> None:
    """Refuse what is no text in UTF-8 but often given for it.

    Raises:
        DataError: the file begins as UTF-16 or as a compressed file does.
    """
    for magic, what in _NO_TEXT.items():
        if beginning.startswith(magic):
            raise DataError(f"{path}: is {what}")


def _raw_lines(path: Path) -> Iterator[bytes]:
    """Lines with their ends, split at \\n alone. Reading errors come out explained."""
    with explained(path), open_bytes(path) as stream:
        yield from stream


def _read_lines(path: Path) -> Iterator[str]:
    """Decoded lines without their ends. U+2028, \\x0b and \\x85 are ordinary characters inside a line."""
    offset = 0
    for number, raw in enumerate(_raw_lines(path), start=1):
        if number == 1:
            require_text(raw, path)
            if raw.startswith(_UTF8_BOM):
                raw = raw[len(_UTF8_BOM) :]
                offset = len(_UTF8_BOM)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number:,}: byte 0x{raw[error.start]:02x} at offset {offset + error.start:,} is not "
                "UTF-8: mend the line, or convert the file (iconv -f LATIN1 -t UTF-8, if that is what it is)"
            ) from None
        offset += len(raw)
        yield text.removesuffix("\n").removesuffix("\r")


def _read_line_pairs(src_path: Path, tgt_path: Path) -> Iterator[SentencePair]:
    src_lines, tgt_lines = _read_lines(src_path), _read_lines(tgt_path)
    for number, (src, tgt) in enumerate(zip_longest(src_lines, tgt_lines), start=1):
        if src is None or tgt is None:
            break
        yield SentencePair(src, tgt, number)
    else:
        return
    counts = {path: sum(1 for _ in _raw_lines(path)) for path in (src_path, tgt_path)}
    (longer, n_longer), (shorter, n_shorter) = sorted(counts.items(), key=lambda item: -item[1])
    raise DataError(
        f"{longer} has {n_longer:,} lines and {shorter} has {n_shorter:,}: parallel files need one line for each line"
    )


def _format(path: Path) -> str:
    """The suffix that tells the format, without that of a compression."""
    return (path.with_suffix("") if path.suffix in _COMPRESSIONS else path).suffix


def _read_one_file(path: Path, src_lang: str, tgt_lang: str) -> Iterator[SentencePair]:
    if _format(path) == ".tsv":
        return _read_tsv(path)
    if _format(path) == ".jsonl":
        return _read_jsonl(path, src_lang, tgt_lang)
    raise DataError(f"{path}: expected a name that ends in .tsv or .jsonl, then perhaps in .gz, .xz or .zst")


def _read_tsv(path: Path) -> Iterator[SentencePair]:
    for number, line in enumerate(_read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(f"{path}, line {number:,}: expected source, tab, target, found {len(columns)} column(s)")
        yield SentencePair(columns[0], columns[1], number)


def _read_jsonl(path: Path, src_lang: str, tgt_lang: str) -> Iterator[SentencePair]:
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number:,}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: is no JSON: {error}") from None
        if isinstance(row, dict) and isinstance(row.get("translation"), dict):
            row = row["translation"]
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with the keys {src_lang} and {tgt_lang}, found {line[:60]}")
        for lang in (src_lang, tgt_lang):
            if lang not in row:
                raise DataError(f"{where}: has no key {lang}, its keys are {', '.join(row) or 'none'}")
            if not isinstance(row[lang], str):
                raise DataError(f"{where}: expected text at the key {lang}, found {json.dumps(row[lang])[:60]}")
        yield SentencePair(row[src_lang], row[tgt_lang], number)


def _file_fingerprint(path: Path) -> str:
    """Hash of the content, with the suffixes that say how it is read."""
    suffixes = _format(path) if _format(path) in (".tsv", ".jsonl") else ""
    suffixes += path.suffix if path.suffix in _COMPRESSIONS else ""
    return f"{suffixes}:{_content_hash(path)}"


def _content_hash(path: Path) -> str:
    with explained(path):
        stat = path.stat()
        return _hash_of_unchanged_file(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of_unchanged_file(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of the bytes; the size and the time are there so that a changed file is read again."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- hub data sets


def _is_local_dataset(name: str) -> bool:
    return Path(name).is_dir()


def _folder_fingerprint(folder: Path) -> str:
    """By the relative names and the contents of all files that are not hidden."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(json.dumps([relative.as_posix(), _content_hash(path)]).encode())
    return digest.hexdigest()


def _read_dataset(name: str, config: str | None, split: str, src_lang: str, tgt_lang: str) -> Iterator[SentencePair]:
    dataset = _load_dataset(name, config, split)
    column_of_languages = _column_of_languages(name, dataset, src_lang, tgt_lang)
    number = 0
    # Whole batches of Arrow columns: row by row, WMT14 would take many minutes.
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS_PER_BATCH):
        for batch in table.to_batches():
            if column_of_languages:
                columns = batch.column(batch.schema.get_field_index(column_of_languages))
                src_texts, tgt_texts = columns.field(src_lang).to_pylist(), columns.field(tgt_lang).to_pylist()
            else:
                src_texts, tgt_texts = (
                    batch.column(batch.schema.get_field_index(lang)).to_pylist() for lang in (src_lang, tgt_lang)
                )
            for src, tgt in zip(src_texts, tgt_texts, strict=True):
                number += 1
                yield SentencePair(src or "", tgt or "", number)


def _load_dataset(name: str, config: str | None, split: str) -> Any:
    if not _is_local_dataset(name):
        if Path(name).is_file():
            raise DataError(f"{name}: is a file, expected a data set: give {{file: {name}}} for a .tsv or .jsonl file")
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise DataError(f"{name}: no such folder (looked for in {Path.cwd()})")
        print(f"fetching data set {name} from the hub, or from its cache", file=sys.stderr, flush=True)
    import datasets

    with _quiet_datasets(datasets):
        try:
            return datasets.load_dataset(name, config, split=split)
        except Exception as error:
            raise _dataset_error(datasets, error, name, config, split) from None


@contextlib.contextmanager
def _quiet_datasets(datasets: Any) -> Iterator[None]:
    """Progress bars only where a person sees them; one line from us instead of a log line for each retry."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    loggers = [logging.getLogger(package) for package in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _dataset_error(datasets: Any, error: Exception, name: str, config: str | None, split: str) -> DataError:
    """What went wrong, with the configs or splits to choose from where those can be known."""
    if isinstance(error, ConnectionError) or "ConnectionError" in type(error).__name__:
        return DataError(
            f"data set {name}: the hub cannot be reached, and there is no copy in the cache: "
            "check the network, or give a local folder that holds the data set"
        )
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return DataError(
            f"data set {name}: not found on the hub, or private: check the name at "
            f"https://huggingface.co/datasets/{name}, and log in with `hf auth login` if it is private"
        )
    with contextlib.suppress(Exception):
        configs = datasets.get_dataset_config_names(name)
        if config not in configs and not (config is None and len(configs) == 1):
            found = f"has no config {config}" if config else "has several configs, and none is given"
            return DataError(f"data set {name}: {found}; choose from {', '.join(configs)}")
        splits = datasets.get_dataset_split_names(name, config)
        if split.split("[")[0] not in splits:
            return DataError(f"data set {name}: has no split {split}; choose from {', '.join(splits)}")
    first_line = (str(error).splitlines() or [""])[0]
    return DataError(f"data set {name}: cannot be loaded: {first_line or type(error).__name__}")


def _column_of_languages(name: str, dataset: Any, src_lang: str, tgt_lang: str) -> str | None:
    """`translation` where that column holds both languages, None where each language has a column of its own."""
    schema = dataset.features.arrow_schema
    langs = {src_lang, tgt_lang}
    if "translation" in schema.names:
        struct = schema.field("translation").type
        found = [struct.field(i).name for i in range(struct.num_fields)]
        if langs <= set(found):
            _require_text(name, {lang: struct.field(found.index(lang)).type for lang in langs})
            return "translation"
        place = "the keys of its column translation"
    else:
        found, place = schema.names, "its columns"
    if langs <= set(schema.names):
        _require_text(name, {lang: schema.field(lang).type for lang in langs})
        return None
    missing = " and ".join(sorted(langs - set(found)))
    raise DataError(f"data set {name}: has no {missing}: {place} are {', '.join(found)}")


def _require_text(name: str, types: dict[str, Any]) -> None:
    for lang, type_ in types.items():
        if str(type_) not in ("string", "large_string", "string_view"):
            raise DataError(f"data set {name}: expected text in {lang}, found {type_}")


# ---------------------------------------------------------------------------------------------------- sacreBLEU


def _sacrebleu_files(name: str, src_lang: str, tgt_lang: str) -> tuple[Path, Path]:
    """Paths of the source and of the first reference, downloaded where they are not there yet."""
    from sacrebleu.dataset import DATASETS
    from sacrebleu.utils import SACREBLEU_DIR, get_reference_files, get_source_file

    langpair = f"{src_lang}-{tgt_lang}"
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {close[0]}?" if close else "`sacrebleu --list` shows those there are"
        raise DataError(f"sacreBLEU test set {name}: is not known, {hint}")
    langpairs = sorted(DATASETS[name].langpairs)
    if langpair not in langpairs:
        if f"{tgt_lang}-{src_lang}" in langpairs:
            raise DataError(
                f"sacreBLEU test set {name}: exists for {tgt_lang}-{src_lang} only, not for {langpair}: "
                "choose another one, or give its files as {src, tgt} if the other direction is what you want"
            )
        raise DataError(f"sacreBLEU test set {name}: has no {langpair}; choose from {', '.join(langpairs)}")
    logging.getLogger("sacrebleu").setLevel(logging.CRITICAL)
    try:
        return Path(get_source_file(name, langpair)), Path(get_reference_files(name, langpair)[0])
    # sacreBLEU leaves the process where a checksum does not fit.
    except (Exception, SystemExit) as error:
        reason = "its checksum is wrong" if isinstance(error, SystemExit) else str(getattr(error, "reason", error))
        raise DataError(
            f"sacreBLEU test set {name}: cannot be downloaded ({reason}): check the network, "
            f"delete {os.path.join(SACREBLEU_DIR, name)} if it holds half a download, or give its files as {{src, tgt}}"
        ) from None
