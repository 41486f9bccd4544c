"""Text files are read unchanged, line by line, and each problem with them is reported in one line."""

import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pytest

from mt.decode.lines import lines_of_text
from mt.errors import DataError
from mt.text.files import MAX_LINE_BYTES, content_hash, count_lines, open_bytes, read_line_chunks
from tests.parallel_text import compressed, error_of, read, write


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_an_archive_of_several_parts_is_read_completely(suffix: str) -> None:
    lines = "".join(f"line {i}\n" for i in range(200_000)).encode()
    name = f"a.en{suffix}"
    Path(name).write_bytes(compressed(name, lines[:600_000]) + compressed(name, lines[600_000:]))
    assert [pair.src for pair in read(src=name, tgt=write("a.de", lines))] == lines.decode().splitlines()


def test_lines_end_only_at_line_feeds_and_may_contain_any_other_character() -> None:
    odd = "a\u2028b\0\x0bc\x85d\x0ce\x1cf\rg"
    write("a.en", f"{odd}\r\n\nlast")
    write("a.de", "1\n2\n3\n")
    assert [pair.src for pair in read(src="a.en", tgt="a.de")] == [odd, "", "last"]


def test_the_line_ends_of_old_mac_files_are_named() -> None:
    write("a.en", "one\rtwo\rthree\r")
    write("a.de", "eins\nzwei\ndrei\n")
    assert error_of(src="a.en", tgt="a.de") == (
        "a.en is one line with 2 carriage returns, the line ends of old Mac files. "
        "Convert them: tr '\\r' '\\n' < OLD > NEW."
    )


def test_a_byte_order_mark_is_removed_only_at_the_start_of_a_file() -> None:
    write("a.en", "\ufeffone\n\ufefftwo\n")
    write("a.de", "eins\nzwei\n")
    assert [pair.src for pair in read(src="a.en", tgt="a.de")] == ["one", "\ufefftwo"]


def test_a_file_that_cannot_be_read_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tgt = write("a.de", "eins\n")
    assert error_of(src="a.en", tgt=tgt) == f"a.en: no such file (looked for in {tmp_path})"
    assert error_of(src=str(tmp_path / "a.en"), tgt=tgt) == f"{tmp_path}/a.en: no such file"
    Path("folder.gz").mkdir()
    assert error_of(src="folder.gz", tgt=tgt) == "folder.gz is a folder, expected a text file"
    Path("no.en.gz").write_bytes(b"plain text")
    assert error_of(src="no.en.gz", tgt=tgt) == (
        "no.en.gz is damaged, or is not a .gz file (Not a gzipped file (b'pl')). Download it again, or rename it if "
        "it is not compressed."
    )
    Path("no.en.zst").write_bytes(b"plain text")
    assert error_of(src="no.en.zst", tgt=tgt) == (
        "no.en.zst is damaged, or is not a .zst file (ZSTD decompress failed: Unknown frame descriptor). Download it "
        "again, or rename it if it is not compressed."
    )
    write("a.en", "one\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of(src="a.en", tgt=tgt) == "a.en cannot be read: Permission denied"


def test_all_line_chunks_except_the_last_have_the_requested_size() -> None:
    write("a.en", "".join(f"{i}\n" for i in range(100_000)))  # several blocks of bytes
    chunks = list(read_line_chunks(Path("a.en"), 30_000))
    assert [len(chunk) for chunk in chunks] == [30_000, 30_000, 30_000, 10_000]
    assert [line for chunk in chunks for line in chunk] == [str(i) for i in range(100_000)]


def test_a_line_longer_than_a_block_is_one_line() -> None:
    long = "ä" * 300_000
    assert list(read_line_chunks(Path(write("a.en", f"{long}\nb\n{long}")), 2)) == [[long, "b"], [long]]


def test_the_error_for_invalid_utf8_has_file_line_and_byte() -> None:
    lines = [f"line {i:,}\n".encode() for i in range(1, 50_001)]
    lines[0] = b"\xef\xbb\xbf" + lines[0]
    lines[40_000] = b"\xc3\x28\n"
    tgt = write("a.de", "x\n" * 50_000)
    assert error_of(src=write("a.en.gz", b"".join(lines)), tgt=tgt) == (
        f"a.en.gz, line 40,001: byte 0xc3 at offset {len(b''.join(lines[:40_000])):,} is not UTF-8. "
        "Fix the line, or convert the file to UTF-8 (if it is Latin-1: iconv -f LATIN1 -t UTF-8)."
    )


WIDE = "One is a number – the „first“.\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (WIDE.encode("utf-16"), "UTF-16, expected UTF-8. Convert it with iconv -f UTF-16 -t UTF-8."),
        (WIDE.encode("utf-16-le"), "UTF-16, expected UTF-8. Convert it with iconv -f UTF-16LE -t UTF-8."),
        (WIDE.encode("utf-16-be"), "UTF-16, expected UTF-8. Convert it with iconv -f UTF-16BE -t UTF-8."),
        (WIDE.encode("utf-32"), "UTF-32, expected UTF-8. Convert it with iconv -f UTF-32 -t UTF-8."),
        (b"\x1f\x8b...", "compressed with gzip. Unpack it, or add .gz to its name."),
        (b"PK\x03\x04...", "a zip archive. Unpack it."),
        (b"PAR1\x15...", "a Parquet file. Give it as {file: NAME.parquet}."),
    ],
)
def test_common_formats_other_than_utf8_are_recognised(content: bytes, told: str) -> None:
    assert error_of(src=write("a.en", content), tgt=write("a.de", "1\n")) == f"a.en is {told}"


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("n_bytes", [25_000, -20])
def test_a_truncated_archive_is_an_error_and_not_a_short_corpus(suffix: str, n_bytes: int) -> None:
    name = f"a.en{suffix}"
    Path(name).write_bytes(compressed(name, os.urandom(50_000).hex().encode() + b"\n")[:n_bytes])
    assert error_of(src=name, tgt=write("a.de", "1\n")) == (f"{name} is truncated. Copy or download it again.")


def test_a_pipe_is_refused_for_text_that_is_read_several_times() -> None:
    os.mkfifo("a.en")
    with pytest.raises(DataError) as caught:
        content_hash(Path("a.en"))
    assert str(caught.value) == (
        "a.en is a pipe or a device; training text is read several times, so it must be a regular "
        "file. Save it to a file first."
    )


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_an_archive_that_unpacks_to_much_more_is_read_in_small_steps(suffix: str) -> None:
    name, n_bytes = f"a.en{suffix}", 96 << 20
    Path(name).write_bytes(compressed(name, b"a b c d " * (n_bytes // 8)))
    assert Path(name).stat().st_size < 200_000
    pool = pyarrow.default_memory_pool()
    before, n_read, in_pool = pool.bytes_allocated(), 0, 0
    tracemalloc.start()
    with open_bytes(Path(name)) as stream:
        while block := stream.read(1 << 20):
            n_read += len(block)
            in_pool = max(in_pool, pool.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_read == n_bytes
    assert max(peak, in_pool) < 16 << 20  # 8 MiB are the dictionary of an .xz file


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_an_endless_line_is_an_error_with_its_number(suffix: str) -> None:
    name = f"a.en{suffix}"
    lines = b"one\ntwo\n" + b"x" * MAX_LINE_BYTES
    write(name, lines)
    assert [len(line) for line in next(read_line_chunks(Path(name), 5))] == [3, 3, MAX_LINE_BYTES]
    write(name, lines + b"x" * (2 << 20) + b"\nfour\n")
    message = f"{name}, line 3 is longer than 16 MiB. Insert line feeds, or remove the line."
    assert error_of(src=name, tgt=write("a.de", "1\n2\n3\n4\n")) == message
    for read_all in (count_lines, lines_of_text, lambda path: next(read_line_chunks(path, 5))):
        with pytest.raises(DataError) as caught:
            read_all(Path(name))
        assert str(caught.value) == message


def test_an_archive_that_needs_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 256 << 20}]
    Path("a.en.xz").write_bytes(lzma.compress(b"one\n", filters=filters))
    # The header of a .zst frame: no flags, and a window of 2**31 bytes.
    Path("a.en.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8\x21\x00\x00one\n")
    for name in ("a.en.xz", "a.en.zst"):
        assert error_of(src=name, tgt=write("a.de", "eins\n")) == (
            f"{name} needs more than 128 MiB of memory to be unpacked. Compress it again with the usual settings."
        )
    filters[0]["dict_size"] = 128 << 20
    Path("a.en.xz").write_bytes(lzma.compress(b"one\n", filters=filters))
    assert [pair.src for pair in read(src="a.en.xz", tgt=write("a.de", "eins\n"))] == ["one"]


def test_an_xz_archive_may_have_zeros_between_and_after_its_parts() -> None:
    parts = [lzma.compress(b"one\n"), b"\0" * 80_000, lzma.compress(b""), lzma.compress(b"two\n"), b"\0\0\0\0"]
    Path("a.en.xz").write_bytes(b"".join(parts))
    assert [pair.src for pair in read(src="a.en.xz", tgt=write("a.de", "eins\nzwei\n"))] == ["one", "two"]
    Path("empty.xz").write_bytes(b"")
    with pytest.raises(DataError, match=r"^empty.xz is truncated"):
        count_lines(Path("empty.xz"))
