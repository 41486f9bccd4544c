from __future__ import annotations

import io
import os
import queue
import threading
import time
from itertools import chain
from pathlib import Path

import pytest

from mt.decode import lines as lines_module
from mt.decode.lines import MAX_BYTES, LineReader, decoded, open_lines
from mt.errors import DataError
from mt.text.files import MAX_LINE_BYTES
from tests.clock import Clock, comes_true


def all_lines(content: bytes) -> list[bytes]:
    return [line for batch in LineReader(io.BytesIO(content)).batches() for line in batch]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"a\r\n\n", [b"a\r", b""]),
        ("a\u2028b\x0bc\x85d\rf\n".encode(), ["a\u2028b\x0bc\x85d\rf".encode()]),
    ],
)
def test_lines_end_only_at_a_line_feed(tmp_path: Path, content: bytes, lines: list[bytes]):
    assert all_lines(content) == lines
    (tmp_path / "text").write_bytes(content)
    for is_strict in (False, True):
        with open_lines(str(tmp_path / "text"), is_strict=is_strict) as reader:
            assert (reader.total, list(chain.from_iterable(reader.batches()))) == (len(lines), lines)


def test_a_line_may_be_longer_than_any_buffer():
    lines = [b"x" * 1_000_000, b"", b"y" * 65_536, b"z"]
    assert all_lines(b"\n".join(lines)) == lines


def test_the_end_of_a_batch_depends_only_on_the_lines():
    long = b"x" * (MAX_BYTES // 2)
    batches = list(LineReader(io.BytesIO(b"\n".join([b"a"] * 10 + [long] * 3))).batches(max_lines=4))
    # The third batch has the last two short lines and the first two long ones.
    assert [len(batch) for batch in batches] == [4, 4, 4, 1]
    assert [len(batch) for batch in LineReader(io.BytesIO(b"\n".join([long] * 5))).batches()] == [2, 2, 1]


def test_lines_can_be_skipped_and_batches_end_at_the_given_line():
    reader = LineReader(io.BytesIO(b"".join(b"%d\n" % i for i in range(10_000))))
    reader.skip(5_000)
    batches = list(reader.batches(7, max_lines=4))
    assert batches == [[b"5000", b"5001", b"5002", b"5003"], [b"5004", b"5005", b"5006"]]
    assert reader.n_read == 5_007
    assert reader.take(2) == [b"5007", b"5008"]


def test_the_digest_depends_on_the_lines_but_not_on_how_they_were_read():
    content = b"a\nbc\n\nd\ne"
    one, other, third = (LineReader(io.BytesIO(text)) for text in (content, content, content.replace(b"c\n", b"\nc")))
    assert one.take(4) == [b"a", b"bc", b"", b"d"]
    other.skip(1)
    assert list(other.batches(3, max_lines=2)) == [[b"bc", b""], [b"d"]]
    third.skip(4)
    assert one.digest == other.digest != third.digest


def test_pending_lines_are_yielded_when_the_input_pauses():
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as stream:
        batches = LineReader(stream).batches(pause_seconds=0.05)
        os.write(writer, b"one\ntwo\nthr")
        assert next(batches) == [b"one", b"two"]
        os.write(writer, b"ee\n")
        assert next(batches) == [b"three"]
        os.close(writer)
        assert list(batches) == []


def test_a_slow_but_steady_input_does_not_delay_lines_for_long(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(lines_module, "time", clock)

    class Trickle(LineReader):
        """A reader that gets one line every quarter of a second."""

        n_left = 100

        def _next(self, wait_seconds: float | None) -> bytes | None:
            if wait_seconds is not None and wait_seconds < 0.25:
                raise queue.Empty
            clock.now += 0.25
            self.n_left -= 1
            return b"line" if self.n_left >= 0 else None

    batches = list(Trickle(io.BytesIO()).batches(pause_seconds=0.5))
    # The first line of a batch waits for at most four more.
    assert [len(batch) for batch in batches] == [5] * 20


def test_reading_ahead_has_a_limit():
    class Endless(io.RawIOBase):
        n_bytes = 0

        def read(self, size: int = -1) -> bytes:
            self.n_bytes += size
            return b"x" * (size - 1) + b"\n" if self.n_bytes < 16 << 20 else b""

    stream = Endless()
    reader = LineReader(stream)  # type: ignore[arg-type]
    assert comes_true(lambda: reader._blocks.full() or stream.n_bytes > 8 << 20)
    time.sleep(0.1)  # a reader without a limit would continue meanwhile
    assert 1 << 20 < stream.n_bytes < 8 << 20


def test_an_error_while_reading_reaches_the_caller():
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("the disk is gone")

    with pytest.raises(DataError, match=r"^standard input cannot be read: the disk is gone$"):
        list(LineReader(Broken()).batches())  # type: ignore[arg-type]


def test_bad_bytes_become_replacement_characters_and_are_reported():
    assert decoded("schön\r".encode()) == ("schön", True)
    assert decoded(b"sch\xf6n") == ("sch\ufffdn", False)
    assert decoded("\ufffd".encode()) == ("\ufffd", True)


def test_strict_reading_fails_at_the_first_invalid_byte(tmp_path: Path):
    path = tmp_path / "text"
    path.write_bytes(b"gut\n" + b"sch\xf6n\n")
    with open_lines(str(path)) as reader:
        assert reader.total == 2
    with pytest.raises(DataError) as caught, open_lines(str(path), is_strict=True):
        pass
    assert str(caught.value) == (
        f"{path}, line 2: byte 0xf6 at offset 3 is not UTF-8. Fix the line, or omit --strict to read invalid bytes "
        "as U+FFFD."
    )


def test_a_non_blocking_descriptor_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def feed() -> None:
        for number in range(3):
            time.sleep(0.05)
            os.write(writing, b"line %d\n" % number)
        os.close(writing)

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reading, "rb", buffering=0) as stream:
        lines = [line for batch in LineReader(stream).batches() for line in batch]
    thread.join()
    assert lines == [b"line 0", b"line 1", b"line 2"]


def test_an_endless_line_of_a_pipe_is_an_error_that_leaves_memory_free() -> None:
    class Endless(io.RawIOBase):
        n_bytes = 0

        def read(self, size: int = -1) -> bytes:
            self.n_bytes += size
            return b"one\n" if self.n_bytes == size else b"x" * size

    stream = Endless()
    with pytest.raises(DataError) as caught:
        LineReader(stream).take(2)  # type: ignore[arg-type]
    assert str(caught.value) == "standard input, line 2 is longer than 16 MiB. Insert line feeds, or remove the line."
    assert stream.n_bytes < MAX_LINE_BYTES + (16 << 20)
