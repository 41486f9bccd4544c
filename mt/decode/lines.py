"""Lines in and out of `mt translate`: read as they come, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mt.errors import DataError
from mt.text.sources import explained, open_bytes

_CHUNK_BYTES = 1 << 16


def batches_of_lines(
    stream: BinaryIO, max_lines: int = 4096, pause_seconds: float = 0.2, longest_wait_seconds: float = 1.0
) -> Iterator[list[bytes]]:
    """The lines of a stream, without their ends, in lists of up to `max_lines`: enough to sort, never stuck.

    A thread reads ahead. A list is given out early when no line came for `pause_seconds`, or when its first line has
    waited for `longest_wait_seconds`. Lines end in a line feed alone; a last line without one is a line.

    The thread may still wait for input when the program ends. A buffered stream would then be locked, which Python
    takes for a fatal error: give the raw one.
    """
    lines: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=max_lines)
    threading.Thread(target=_read_ahead, args=(stream, lines), daemon=True).start()
    while (line := lines.get()) is not None:
        batch = [_whole(line)]
        give_out_at = time.monotonic() + longest_wait_seconds
        try:
            while len(batch) < max_lines:
                line = lines.get(timeout=max(0.0, min(pause_seconds, give_out_at - time.monotonic())))
                if line is None:
                    yield batch
                    return
                batch.append(_whole(line))
        except queue.Empty:
            pass
        yield batch


def decoded(line: bytes) -> tuple[str, bool]:
    """The text of a line without its carriage return, and whether it was valid UTF-8; bad bytes become U+FFFD."""
    line = line.removesuffix(b"\r")
    try:
        return line.decode(), True
    except UnicodeDecodeError:
        return line.decode(errors="replace"), False


def lines_of_text(path: Path) -> list[str]:
    """All lines of a text file, which may be compressed.

    Raises:
        DataError: it is missing, unreadable, or holds no text.
    """
    with explained(path), open_bytes(path) as stream:
        lines = [decoded(line)[0] for line in stream.read().split(b"\n")]
    if lines[-1] == "":
        lines.pop()
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: has no text: nothing to translate")
    return lines


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends, and not at all when the block fails.

    What exists and is no regular file, such as /dev/null or a named pipe, is written to directly.

    Raises:
        DataError: the file cannot be made or written.
    """
    target = Path(os.path.realpath(path))
    is_direct = target.exists() and not target.is_file()
    beside = target if is_direct else target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        stream = beside.open("wb")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with stream:
            yield stream
        if not is_direct:
            beside.replace(target)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if not is_direct:
            beside.unlink(missing_ok=True)


def _read_ahead(stream: BinaryIO, lines: queue.Queue[bytes | Exception | None]) -> None:
    """Put each line into the queue, then None; an error takes the place of the line that it hit."""
    read = getattr(stream, "read1", stream.read)  # what is there, without waiting for more
    try:
        for line in _split(read):
            lines.put(line)
    except Exception as error:
        lines.put(error)
    lines.put(None)


def _split(read: Callable[[int], bytes]) -> Iterator[bytes]:
    unfinished: list[bytes] = []  # pieces of a line: joined once, however long it is
    while chunk := read(_CHUNK_BYTES):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*unfinished, line])
            unfinished.clear()
        unfinished.append(rest)
    if any(unfinished):
        yield b"".join(unfinished)


def _whole(line: bytes | Exception) -> bytes:
    if isinstance(line, Exception):
        raise line
    return line
