"""Text files: opening (.gz, .xz, .zst), decoding lines of UTF-8, and errors that say where."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import lzma
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import DataError
from mt.shipped import DEMO_CORPUS

COMPRESSIONS = (".gz", ".xz", ".zst")

_UTF8_BOM = b"\xef\xbb\xbf"
_PACKED = "is compressed, and its name does not say so"
# What a file begins with → what it is, and what to do.
_NO_TEXT: dict[bytes, tuple[str, str]] = {
    b"\xff\xfe\x00\x00": ("is UTF-32, expected UTF-8", "convert it with iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("is UTF-16, expected UTF-8", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("is UTF-16, expected UTF-8", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": (_PACKED, "unpack it, or end its name in .gz"),
    b"\xfd7zXZ\x00": (_PACKED, "unpack it, or end its name in .xz"),
    b"\x28\xb5\x2f\xfd": (_PACKED, "unpack it, or end its name in .zst"),
    b"BZh": ("is compressed with bzip2", "unpack it"),
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"PAR1\x15": ("is a Parquet file", "give it as {file}, and end its name in .parquet"),
}
_BEGINNING_BYTES = 64  # that tell UTF-16 without a mark
_BLOCK_BYTES = 1 << 20
_DECODED_BYTES = 1 << 16  # at once; such a text stays in the processor's cache


def first_line(error: Exception) -> str:
    """Return the beginning of what a library says, or what kind of error it is."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what goes wrong with reading a file as a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        fix = "run mt demo to write it" if path.parent == DEMO_CORPUS else ""
        raise DataError(path, f"no such file{where}", fix) from None
    except IsADirectoryError:
        raise DataError(path, "is a folder, expected a text file") from None
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None)
        if reason or path.suffix not in COMPRESSIONS:
            raise DataError(path, f"cannot be read: {reason or error}") from None
        if isinstance(error, EOFError) or re.search("end-of-stream|Truncated", str(error)):
            raise DataError(path, "ends too early, it was cut off", "copy or download it again") from None
        raise DataError(path, f"is no {path.suffix} file, or is damaged ({error})", "fetch it again") from None


def open_bytes(path: Path) -> BinaryIO:
    """Return the bytes of a file, those inside where its name ends in .gz, .xz or .zst; read it inside `explained`."""
    if path.is_dir():
        raise IsADirectoryError
    if path.suffix not in COMPRESSIONS:
        return path.open("rb")
    unpacked: dict[str, Callable[[Path], Any]] = {".gz": gzip.GzipFile, ".xz": lzma.LZMAFile, ".zst": _zst_file}
    return cast(BinaryIO, io.BufferedReader(unpacked[path.suffix](path), _BLOCK_BYTES))


def _zst_file(path: Path) -> Any:
    import pyarrow  # its reader knows a truncated file from a whole one, that of `zstandard` does not

    return pyarrow.CompressedInputStream(path.open("rb"), "zstd")


def require_text(beginning: bytes, path: Path) -> None:
    """Refuse what is not text in UTF-8 but often given for it.

    Args:
        beginning: the first bytes of the file, at least 8 unless it has fewer.
    Raises:
        DataError: the file begins as UTF-16 or as a compressed file does.
    """
    for magic, (problem, fix) in _NO_TEXT.items():
        if beginning.startswith(magic):
            raise DataError(path, problem, fix)
    # Every second byte of UTF-16 is 0 in scripts that begin with ASCII; without a mark, it would pass for UTF-8.
    first, second = beginning[:_BEGINNING_BYTES:2], beginning[1:_BEGINNING_BYTES:2]
    for encoding, high, low in (("UTF-16LE", second, first), ("UTF-16BE", first, second)):
        if len(high) >= 4 and all(low) and high.count(0) >= 0.75 * len(high):
            raise DataError(path, "is UTF-16, expected UTF-8", f"convert it with iconv -f {encoding} -t UTF-8")


def read_line_chunks(path: Path, size: int) -> Iterator[list[str]]:
    """Yield decoded lines without their ends, `size` at a time; only the last chunk may be shorter.

    Lines end in \\n alone, and \\r before it is dropped: U+2028, \\x0b and \\x85 are ordinary characters. So is NUL.
    From a pipe, a chunk is given out as soon as its last line has come.

    Raises:
        DataError: the file is missing, unreadable, cut off, or not UTF-8.
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
    """Yield lines in lists as they come. Decoding each line by itself would take twice the time."""
    n_lines = offset = 0
    for raw in _read_whole_lines(path):
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
                "fix the line, or convert the file (iconv -f LATIN1 -t UTF-8, if that is what it is)",
            ) from None
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        n_lines += len(lines)
        offset += len(raw)
        yield [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def _read_whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the bytes of some whole lines at a time; a last line need not have an end."""
    unfinished: list[bytes] = []  # pieces of a line: joined once, however long it is
    with explained(path), open_bytes(path) as stream:
        while block := cast(io.BufferedReader, stream).read1(_DECODED_BYTES):
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*unfinished, block[:end]])
                unfinished.clear()
            unfinished.append(block[end:])
    if any(unfinished):
        yield b"".join(unfinished)


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, of which the last need not have an end.

    Raises:
        DataError: the file is missing, unreadable or cut off.
    """
    n_lines, last = 0, b"\n"
    with explained(path), open_bytes(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            n_lines += block.count(b"\n")
            last = block[-1:]
    return n_lines + (last != b"\n")


def content_hash(path: Path) -> str:
    """Return the hash of the bytes of a file as they are on the disk; an unchanged file is read once.

    Raises:
        DataError: the file is missing or unreadable, or is a pipe.
    """
    with explained(path):
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise DataError(path, "is a pipe or a device, not a file, and this text is read several times", "save it")
        return _hash_of_unchanged_file(path.resolve(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of_unchanged_file(path: Path, _size: int, _mtime_ns: int) -> str:
    """Return the hash of the bytes; the size and the time make a changed file be read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, functools.partial(hashlib.blake2b, digest_size=16)).hexdigest()
