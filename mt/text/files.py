"""Text files: opening (.gz, .xz, .zst), decoding lines of UTF-8, and errors that say where."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import DataError

COMPRESSIONS = (".gz", ".xz", ".zst")

_UTF8_BOM = b"\xef\xbb\xbf"
_PACKED = "compressed, and its name does not say so: unpack it, or end its name in"
_NO_TEXT = {
    b"\xff\xfe\x00\x00": "UTF-32, expected UTF-8: convert it with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": f"{_PACKED} .gz",
    b"\xfd7zXZ\x00": f"{_PACKED} .xz",
    b"\x28\xb5\x2f\xfd": f"{_PACKED} .zst",
    b"BZh": "compressed with bzip2: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1\x15": "a Parquet file: give it as {file}, and end its name in .parquet",
}
_BEGINNING_BYTES = 64  # that tell UTF-16 without a mark
_BLOCK_BYTES = 1 << 20


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
                self._compressed = self._file.read(_BLOCK_BYTES)
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

    Args:
        beginning: the first bytes of the file, at least 8 where there are so many.
    Raises:
        DataError: the file begins as UTF-16 or as a compressed file does.
    """
    for magic, what in _NO_TEXT.items():
        if beginning.startswith(magic):
            raise DataError(f"{path}: is {what}")
    if encoding := _utf16_without_mark(beginning[:_BEGINNING_BYTES]):
        raise DataError(f"{path}: is UTF-16, expected UTF-8: convert it with iconv -f {encoding} -t UTF-8")


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

    Raises:
        DataError: the file is missing, unreadable, cut off, or no UTF-8.
    """
    n_lines = offset = 0
    with explained(path), open_bytes(path) as stream:
        beginning = cast(io.BufferedReader, stream).peek(_BEGINNING_BYTES)
        require_text(beginning, path)
        while raw := list(islice(stream, size)):
            if n_lines == 0 and raw[0].startswith(_UTF8_BOM):
                raw[0] = raw[0][len(_UTF8_BOM) :]
                offset = len(_UTF8_BOM)
            joined = b"".join(raw)
            try:
                text = joined.decode()
            except UnicodeDecodeError:
                raise _not_utf8(path, raw, n_lines, offset) from None
            yield _lines(text)
            n_lines += len(raw)
            offset += len(joined)


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    if text.endswith("\n"):
        lines.pop()
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def _not_utf8(path: Path, raw: list[bytes], n_lines: int, offset: int) -> DataError:
    """The error of the first line that is no UTF-8, `n_lines` and `offset` bytes being before `raw`."""
    for number, line in enumerate(raw, start=n_lines + 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return DataError(
                f"{path}, line {number:,}: byte 0x{line[error.start]:02x} at offset {offset + error.start:,} is not "
                "UTF-8: mend the line, or convert the file (iconv -f LATIN1 -t UTF-8, if that is what it is)"
            )
        offset += len(line)
    raise AssertionError("every line is UTF-8, and all of them together are not")


def content_hash(path: Path) -> str:
    """Hash of the bytes of a file as they lie on the disk; an unchanged file is read once.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with explained(path):
        stat = path.stat()
        return _hash_of_unchanged_file(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of_unchanged_file(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of the bytes; the size and the time are there so that a changed file is read again."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
