"""Reading text files: compression (.gz, .xz, .zst), lines of UTF-8, and errors that name the file and the line."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import logging
import lzma
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import DataError
from mt.shipped import DEMO_CORPUS

_log = logging.getLogger(__name__)

COMPRESSIONS = (".gz", ".xz", ".zst")

_UTF8_BOM = b"\xef\xbb\xbf"
# First bytes of a file that is not plain text → what the file is, and what to do.
_NOT_TEXT: dict[bytes, tuple[str, str]] = {
    b"\xff\xfe\x00\x00": ("is UTF-32, expected UTF-8", "convert it with iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("is UTF-16, expected UTF-8", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("is UTF-16, expected UTF-8", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it, or add .gz to its name"),
    b"\xfd7zXZ\x00": ("is compressed with xz", "unpack it, or add .xz to its name"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it, or add .zst to its name"),
    b"BZh": ("is compressed with bzip2", "unpack it"),
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"PAR1\x15": ("is a Parquet file", "give it as {file: NAME.parquet}"),
}
_BEGINNING_BYTES = 64  # enough to recognise UTF-16 without a byte order mark
MAX_LINE_BYTES = 16 << 20  # a longer line is an error: it would fill the memory, and is not text
_BLOCK_BYTES = 1 << 20
_MAX_UNPACKER_BYTES = 128 << 20  # of memory that an .xz file may ask for; the limit of .zst in pyarrow is the same
_DECODED_BYTES = 1 << 16  # decoded at once; text of this size stays in the processor's cache


def format_of(path: Path) -> str:
    """Return the suffix of a file's format, without the suffix of its compression."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise missing(path) from None
    except IsADirectoryError:
        raise DataError(path, "is a folder, expected a text file") from None
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None)
        if reason or path.suffix not in COMPRESSIONS:
            raise DataError(path, f"cannot be read: {reason or error}") from None
        if re.search("Memory usage limit|too much memory", str(error)):
            problem = f"needs more than {_MAX_UNPACKER_BYTES >> 20} MiB of memory to be unpacked"
            raise DataError(path, problem, "compress it again with the usual settings") from None
        if isinstance(error, EOFError) or re.search("end-of-stream|Truncated", str(error)):
            raise DataError(path, "is truncated", "copy or download it again") from None
        fix = "download it again, or rename it if it is not compressed"
        raise DataError(path, f"is damaged, or is not a {path.suffix} file ({error})", fix) from None


def missing(path: Path, folder: str = "") -> DataError:
    """Return the error about a file that does not exist.

    Args:
        folder: in which a relative path was looked for, besides the current one.
    """
    places = " and ".join(dict.fromkeys([str(Path.cwd()), str(Path(folder).absolute())]))
    where = "" if path.is_absolute() else f" (looked for in {places})"
    fix = "run mt demo to write it" if path.parent == DEMO_CORPUS else ""
    return DataError(path, f"no such file{where}", fix)


@functools.cache
def log_once(line: str) -> None:
    """Log a line, unless this process has logged it before: text is read several times."""
    _log.info(line)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, decompressed if its name ends in .gz, .xz or .zst; read it inside `explained`."""
    if path.is_dir():
        raise IsADirectoryError
    if path.suffix not in COMPRESSIONS:
        return path.open("rb")
    unpacked: dict[str, Callable[[Path], Any]] = {".gz": gzip.GzipFile, ".xz": _XzFile, ".zst": _zst_file}
    return cast(BinaryIO, io.BufferedReader(unpacked[path.suffix](path), _BLOCK_BYTES))


def _zst_file(path: Path) -> Any:
    import pyarrow  # its reader detects a truncated file, the reader of `zstandard` does not

    return pyarrow.CompressedInputStream(path.open("rb"), "zstd")


class _XzFile(io.RawIOBase):
    """An .xz file whose decoder has a memory limit; `lzma.LZMAFile` allocates what the file asks for, up to 4 GiB."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = _xz_decoder()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while True:
            packed = b""
            if self._decoder.eof:  # further streams may follow, each after zeros
                packed = self._decoder.unused_data.lstrip(b"\0")
                while not packed and (block := self._file.read(_DECODED_BYTES)):
                    packed = block.lstrip(b"\0")
                if not packed:
                    return 0
                self._decoder = _xz_decoder()
            elif self._decoder.needs_input and not (packed := self._file.read(_DECODED_BYTES)):
                raise EOFError("Truncated")
            if text := self._decoder.decompress(packed, len(buffer)):
                buffer[: len(text)] = text
                return len(text)


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_MAX_UNPACKER_BYTES + (1 << 20))


def require_text(beginning: bytes, path: Path) -> None:
    """Raise an error if the file is one of those often given by mistake instead of UTF-8 text.

    Args:
        beginning: the first bytes of the file, at least 8 unless it has fewer.
    Raises:
        DataError: the file begins like UTF-16 or like a compressed file.
    """
    for magic, (problem, fix) in _NOT_TEXT.items():
        if beginning.startswith(magic):
            raise DataError(path, problem, fix)
    # In UTF-16, every second byte of ASCII text is 0. Without a byte order mark, it is also valid UTF-8.
    first, second = beginning[:_BEGINNING_BYTES:2], beginning[1:_BEGINNING_BYTES:2]
    for encoding, high, low in (("UTF-16LE", second, first), ("UTF-16BE", first, second)):
        if len(high) >= 4 and all(low) and high.count(0) >= 0.75 * len(high):
            raise DataError(path, "is UTF-16, expected UTF-8", f"convert it with iconv -f {encoding} -t UTF-8")


def read_line_chunks(path: Path, size: int) -> Iterator[list[str]]:
    """Yield decoded lines without line ends, `size` at a time; only the last chunk may be shorter.

    Only \\n ends a line, and a \\r before it is removed: U+2028, \\x0b and \\x85 are ordinary characters. So is NUL.
    From a pipe, a chunk is yielded as soon as its last line has arrived.

    Raises:
        DataError: the file is missing, unreadable, cut off, or not UTF-8, only \\r ends its lines, or a line is longer
            than MAX_LINE_BYTES.
    """
    waiting: list[str] = []
    for lines in _read_lines(path):
        waiting += lines
        n_given = len(waiting) - len(waiting) % size
        for start in range(0, n_given, size):
            yield waiting[start : start + size]
        del waiting[:n_given]
    if waiting:
        yield waiting


def _read_lines(path: Path) -> Iterator[list[str]]:
    """Yield lists of lines as they arrive. Decoding line by line would take twice the time."""
    n_lines = offset = 0
    for raw in read_whole_lines(path):
        if offset == 0:
            require_text(raw, path)
            if raw.startswith(_UTF8_BOM):
                raw = raw[len(_UTF8_BOM) :]
                offset = len(_UTF8_BOM)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            number = n_lines + raw.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{path}, line {number:,}",
                f"byte 0x{raw[error.start]:02x} at offset {offset + error.start:,} is not UTF-8",
                "fix the line, or convert the file to UTF-8 (if it is Latin-1: iconv -f LATIN1 -t UTF-8)",
            ) from None
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        n_lines += len(lines)
        offset += len(raw)
        yield [line.removesuffix("\r") for line in lines] if "\r" in text else lines
    if n_lines == 1 and (n_returns := text.strip("\r\n").count("\r")) > 1:
        problem = f"is one line with {n_returns:,} carriage returns, the line ends of old Mac files"
        raise DataError(path, problem, "convert them: tr '\\r' '\\n' < OLD > NEW")


def read_whole_lines(path: Path, block_bytes: int = _DECODED_BYTES) -> Iterator[bytes]:
    """Yield the bytes of a number of whole lines at a time; the last line may lack its line end.

    Raises:
        DataError: the file is missing, unreadable or cut off, or a line is longer than MAX_LINE_BYTES.
    """
    unfinished: list[bytes] = []  # parts of one line, joined only once: it may be very long
    n_lines = n_unfinished = 0
    with explained(path), open_bytes(path) as stream:
        while block := cast(io.BufferedReader, stream).read1(block_bytes):
            end = block.rfind(b"\n") + 1
            if end:
                lines = b"".join([*unfinished, block[:end]])
                n_lines += lines.count(b"\n")
                yield lines
                unfinished.clear()
                n_unfinished = 0
            unfinished.append(block[end:])
            n_unfinished += len(block) - end
            if n_unfinished > MAX_LINE_BYTES:
                raise endless_line(path, n_lines + 1)
    if any(unfinished):
        yield b"".join(unfinished)


def endless_line(name: str | Path, number: int) -> DataError:
    """Return the error for a line that is longer than MAX_LINE_BYTES."""
    fix = "insert line feeds, or remove the line"
    return DataError(f"{name}, line {number:,}", f"is longer than {MAX_LINE_BYTES >> 20} MiB", fix)


def count_lines(path: Path) -> int:
    """Return the number of lines of a file; the last line may lack its line end.

    Raises:
        DataError: the file is missing, unreadable or cut off, or a line is longer than MAX_LINE_BYTES.
    """
    n_lines, last = 0, b"\n"
    for lines in read_whole_lines(path, _BLOCK_BYTES):
        n_lines += lines.count(b"\n")
        last = lines[-1:]
    return n_lines + (last != b"\n")


def content_hash(path: Path) -> str:
    """Return the hash of a file's bytes on the disk; while the file does not change, it is read only once.

    Raises:
        DataError: the file is missing or unreadable, or is a pipe.
    """
    with explained(path):
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            problem = "is a pipe or a device; training text is read several times, so it must be a regular file"
            raise DataError(path, problem, "save it to a file first")
        return _hash_of_unchanged_file(path.resolve(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of_unchanged_file(path: Path, _size: int, _mtime_ns: int) -> str:
    """Return the hash of the bytes. Size and time are part of the cache's key, so a changed file is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, functools.partial(hashlib.blake2b, digest_size=16)).hexdigest()
