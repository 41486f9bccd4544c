"""Text files: opening (.gz, .xz, .zst), decoding lines of UTF-8, and errors that say where."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import lzma
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import DataError

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
    """Reading errors of one file as one line each."""
    try:
        yield
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        raise DataError(path, f"no such file{where}") from None
    except IsADirectoryError:
        raise DataError(path, "is a folder, expected a text file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, EOFError) or "end-of-stream" in str(error):
            raise DataError(path, "ends too early, it was cut off", "copy or download it again") from None
        raise DataError(path, f"is no {path.suffix} file, or is damaged ({error})", "fetch it again") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from None


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, those inside where its name ends in .gz, .xz or .zst; read it inside `explained`."""
    if path.is_dir():
        raise IsADirectoryError
    if path.suffix == ".gz":
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(path), _BLOCK_BYTES))
    if path.suffix == ".xz":
        return cast(BinaryIO, io.BufferedReader(lzma.LZMAFile(path), _BLOCK_BYTES))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(path), _BLOCK_BYTES))
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """A .zst file. Written out because `zstandard`'s own stream reader takes a truncated file for a whole one."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(path, "reading .zst needs one more package", "pip install zstandard") from None
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
                self._compressed = self._file.read(_BLOCK_BYTES)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError
                    return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._text = self._frame.decompress(self._compressed)
            except self._zstd_error:
                raise DataError(self._path, "is no .zst file, or is damaged", "fetch it again") from None
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        taken = self._text[: len(buffer)]
        buffer[: len(taken)] = taken
        self._text = self._text[len(taken) :]
        return len(taken)


def require_text(beginning: bytes, path: Path) -> None:
    """Refuse what is no text in UTF-8 but often given for it.

    Args:
        beginning: the first bytes of the file, at least 8 unless it has fewer.
    Raises:
        DataError: the file begins as UTF-16 or as a compressed file does.
    """
    for magic, (problem, fix) in _NO_TEXT.items():
        if beginning.startswith(magic):
            raise DataError(path, problem, fix)
    if encoding := _utf16_without_mark(beginning[:_BEGINNING_BYTES]):
        raise DataError(path, "is UTF-16, expected UTF-8", f"convert it with iconv -f {encoding} -t UTF-8")


def _utf16_without_mark(beginning: bytes) -> str | None:
    """Every second byte of UTF-16 is 0 in scripts that begin with ASCII; such text would pass for UTF-8."""
    first, second = beginning[0::2], beginning[1::2]
    for encoding, high, low in (("UTF-16LE", second, first), ("UTF-16BE", first, second)):
        if len(high) >= 4 and all(low) and high.count(0) >= 0.75 * len(high):
            return encoding
    return None


def read_line_chunks(path: Path, size: int) -> Iterator[list[str]]:
    """Decoded lines without their ends, `size` at a time; only the last chunk may be shorter.

    Lines end in \\n alone, and \\r before it is dropped: U+2028, \\x0b and \\x85 are ordinary characters. So is NUL.
    From a pipe, a chunk is given out as soon as its last line has come.

    Raises:
        DataError: the file is missing, unreadable, cut off, or no UTF-8.
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
    """Lines in lists as they come. Decoding each line by itself would take twice the time."""
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
    """Bytes up to the end of a line, some lines at a time; a last line need not have an end."""
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
    """Lines of a file, the last one too where it has no end.

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
    """Hash of the bytes of a file as they lie on the disk; an unchanged file is read once.

    Raises:
        DataError: the file is missing or unreadable, or is a pipe.
    """
    with explained(path):
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise DataError(path, "is no file but a pipe or a device, and this text is read several times", "save it")
        return _hash_of_unchanged_file(path.resolve(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of_unchanged_file(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of the bytes; the size and the time are there so that a changed file is read again."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
