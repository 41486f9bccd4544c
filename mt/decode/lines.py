"""Reading lines of text from files and pipes, as they arrive."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import queue
import re
import select
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from mt.config.settings import Table
from mt.errors import DataError
from mt.system.console import require_stream
from mt.text.corpora import reader_of
from mt.text.delimited import HEADERS
from mt.text.files import (
    MAX_LINE_BYTES,
    count_lines,
    endless_line,
    explained,
    format_of,
    open_bytes,
    read_whole_lines,
    require_text,
)

_log = logging.getLogger(__name__)

Rows = Generator[list[bytes], None, None]

_BLOCK_BYTES = 1 << 16
_BLOCK_ROWS = 64
_BLOCKS_AHEAD = 64
# Limits of a batch of lines. MAX_BYTES bounds the memory if lines are long.
MAX_LINES, MAX_BYTES = 4_096, 8 << 20
_LINE_FEEDS = re.compile(r"\s*\n\s*")
LONGEST_WAIT_SECONDS = 1.0  # that a line waits for others, if input may pause


class LineReader:
    """The lines of a stream, without their ends; a thread reads a few megabytes ahead.

    Only a line feed ends a line. The last line need not have one. A line longer than MAX_LINE_BYTES raises a DataError.

    The thread may still wait for input when the program ends. A buffered stream would then be locked, which is a fatal
    error in Python: pass the raw stream if input may pause.

    Args:
        stream: bytes, or lists of lines, which may then contain line feeds.
        name: of the file, for errors.
        total: number of lines; None for a pipe, whose lines cannot be counted.
    """

    def __init__(self, stream: BinaryIO | Rows, name: str = "standard input", total: int | None = None) -> None:
        self.name, self.total = name, total
        self._blocks: queue.Queue[bytes | list[bytes] | Exception] = queue.Queue(maxsize=_BLOCKS_AHEAD)
        self._lines: deque[bytes] = deque()
        self._unfinished: list[bytes] = []  # pieces of an incomplete line, joined when it is complete
        self._n_unfinished = 0  # bytes of these pieces
        self._n_whole = 0  # lines that were complete
        self._is_at_end = False
        self._digest = hashlib.blake2b(digest_size=16)
        self.n_read = 0  # lines returned or skipped
        threading.Thread(target=_read_ahead, args=(stream, self._blocks), daemon=True).start()

    @property
    def digest(self) -> str:
        """Hash of all lines returned or skipped."""
        return self._digest.hexdigest()

    def take(self, max_lines: int) -> list[bytes]:
        """Return the next lines, fewer only at the end."""
        return [line for batch in self.batches(max_lines) for line in batch]

    def skip(self, n_lines: int) -> None:
        """Skip the next lines."""
        for _ in self.batches(n_lines):
            pass

    def batches(
        self, n_lines: int | None = None, *, max_lines: int = MAX_LINES, pause_seconds: float | None = None
    ) -> Iterator[list[bytes]]:
        """Yield the remaining lines, or the next `n_lines`, in batches that are large enough to sort by length.

        A batch ends after `max_lines` or MAX_BYTES, so batches depend only on the text. With `pause_seconds` a batch
        may end earlier: when no line has arrived for that long, or when its first line has waited for
        LONGEST_WAIT_SECONDS.
        """
        n_left = math.inf if n_lines is None else n_lines
        while n_left > 0:
            batch: list[bytes] = []
            n_bytes, deadline = 0, math.inf
            with contextlib.suppress(queue.Empty):
                while len(batch) < min(max_lines, n_left) and n_bytes < MAX_BYTES:
                    wait = None
                    if batch and pause_seconds is not None:
                        wait = max(0.0, min(pause_seconds, deadline - time.monotonic()))
                    line = self._next(wait)
                    if line is None:
                        break
                    if not batch:
                        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
                    batch.append(line)
                    n_bytes += len(line)
            if not batch:
                return
            n_left -= len(batch)
            self.n_read += len(batch)
            self._digest.update(b"".join(line + b"\n" for line in batch))
            yield batch

    def _next(self, wait_seconds: float | None) -> bytes | None:
        """Return the next line, None at the end; raise `queue.Empty` if it does not arrive in time."""
        while not self._lines and not self._is_at_end:
            block = self._blocks.get(timeout=wait_seconds)
            if isinstance(block, Exception):
                with explained(Path(self.name)):
                    raise block
            self._is_at_end = not block
            if isinstance(block, list):
                self._lines.extend(block)
                continue
            *whole, rest = block.split(b"\n")
            for line in whole:
                self._lines.append(b"".join([*self._unfinished, line]))
                self._unfinished.clear()
                self._n_unfinished = 0
            self._n_whole += len(whole)
            self._unfinished.append(rest)
            self._n_unfinished += len(rest)
            if self._n_unfinished > MAX_LINE_BYTES:
                raise endless_line(self.name, self._n_whole + 1)
            if self._is_at_end and any(self._unfinished):
                self._lines.append(b"".join(self._unfinished))
        return self._lines.popleft() if self._lines else None


def _read_ahead(stream: BinaryIO | Rows, blocks: queue.Queue[bytes | list[bytes] | Exception]) -> None:
    """Put blocks of bytes into the queue, and an empty one at the end; put an error there where it occurs."""
    try:
        if isinstance(stream, Generator):
            for rows in stream:
                blocks.put(rows)
            return
        read = getattr(stream, "read1", stream.read)  # returns what is available, without waiting for more
        while (block := read(_BLOCK_BYTES)) != b"":
            if block is None:  # a non-blocking descriptor without data
                select.select([stream], [], [])
            else:
                blocks.put(block)
    except Exception as error:
        blocks.put(error)
    finally:
        blocks.put(b"")


@contextlib.contextmanager
def open_lines(name: str, *, is_strict: bool = False) -> Iterator[LineReader]:
    """Yield a reader of a file, or of standard input for `-`.

    A regular file is first read to its end, so that errors in it are found at once.

    Raises:
        DataError: it cannot be read to its end or contains no text; or it is not UTF-8 and `is_strict` is true.
    """
    if name == "-":
        require_stream("input")
        if sys.stdin.isatty():
            _log.info("reading from the terminal: enter one sentence per line, and Ctrl-D at the end")
        yield LineReader(cast(BinaryIO, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)))
        return
    path, n_lines = Path(name), None
    with explained(path):
        if path.is_file():
            with open_bytes(path) as beginning:
                require_text(beginning.read(8), path)
            n_lines = _count_valid_lines(path) if is_strict else count_lines(path)
            stream = open_bytes(path)
        else:  # a pipe: it cannot be read twice; if it pauses, a buffered stream could not be closed
            stream = cast(BinaryIO, open(path, "rb", buffering=0))  # noqa: SIM115
    with stream:
        yield LineReader(stream, name, n_lines)


@contextlib.contextmanager
def open_rows(name: str, langs: tuple[str, str], src_column: str | None = None) -> Iterator[LineReader]:
    """Yield a reader of the source texts of a table, which may contain line feeds.

    A regular file is first read to its end, so that errors in it are found at once.

    Args:
        langs: of the model; they name the columns.
        src_column: the name of a column, or its number from 1.
    Raises:
        DataError: the file cannot be read to its end, or has no such column.
    """
    reader, skipped = reader_of(Table(file=name), langs, ""), Counter[str]()
    if src_column is not None:
        column = int(src_column) if src_column.isdecimal() else src_column
        reader = replace(reader, corpus=_Column(file=name, src_column=column, tgt_column=column))
    elif format_of(Path(name)) not in (".tsv", ".csv"):  # which need both names to find the columns
        reader = replace(reader, langs=(langs[0], langs[0]))
    with columns_named("--src-column"):
        chunks = reader.chunks(_BLOCK_ROWS, skipped) if Path(name).is_file() else None
        total = None if chunks is None else sum(len(chunk.src) for chunk in chunks)
    del skipped[HEADERS]  # which has been said
    for what, n in skipped.items():
        _log.warning(f"{name}: {what} skipped: {n:,}")
    rows = ([text.encode(errors="replace") for text in chunk.src] for chunk in reader.chunks(_BLOCK_ROWS))
    yield LineReader(rows, name, total)


@contextlib.contextmanager
def columns_named(options: str) -> Iterator[None]:
    """Name options instead of settings in errors about the columns of a table."""
    try:
        yield
    except DataError as error:
        fix = error.fix.replace("src_column and tgt_column", options)
        raise DataError(error.place, error.problem, fix) from None


class _Column(Table):
    """A table one column of which is read as both sides, which a config may not say."""

    def __post_init__(self) -> None:
        pass


def _count_valid_lines(path: Path) -> int:
    """Return the number of lines; raise a DataError about the first that is not UTF-8."""
    n_lines = 0
    for block in read_whole_lines(path):
        for line in block.removesuffix(b"\n").split(b"\n"):
            n_lines += 1
            require_utf8(line, path, n_lines)
    return n_lines


def require_utf8(line: bytes, path: str | Path, number: int) -> None:
    """Raise a DataError about the first byte of a line that is not UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        problem = f"byte 0x{line[error.start]:02x} at offset {error.start:,} is not UTF-8"
        fix = "fix the line, or omit --strict to read invalid bytes as U+FFFD"
        raise DataError(f"{path}, line {number:,}", problem, fix) from None


def decoded(line: bytes) -> tuple[str, bool]:
    """Return a line's text without its carriage return, and whether it was valid UTF-8; invalid bytes become U+FFFD."""
    line = line.removesuffix(b"\r")
    try:
        return line.decode(), True
    except UnicodeDecodeError:
        return line.decode(errors="replace"), False


def in_one_line(text: str) -> str:
    """Return a text with a space in place of each gap that has a line feed."""
    return _LINE_FEEDS.sub(" ", text)


def lines_of_text(path: Path) -> list[str]:
    """Return all lines of a text file, which may be compressed.

    Raises:
        DataError: it is missing, unreadable, or has no text, or a line is longer than MAX_LINE_BYTES.
    """
    blocks = (block.removesuffix(b"\n") for block in read_whole_lines(path))
    lines = [decoded(line)[0] for block in blocks for line in block.split(b"\n")]
    if not any(line.strip() for line in lines):
        raise DataError(path, "has no text to translate")
    return lines
