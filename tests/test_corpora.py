"""Parallel text is read unchanged and in order, and each problem with it is reported in one line."""

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.config.settings import SacrebleuSet
from mt.errors import DataError, statement
from mt.text.corpora import SentencePair, reader_of
from tests.parallel_text import error_of, read, reader, write, write_parquet

REAL_DATA = os.environ.get("MT_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")


# ---- files


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_a_pair_of_files_yields_its_lines_with_their_numbers(suffix: str) -> None:
    src, tgt = write(f"a.en{suffix}", "one\ntwo\n"), write(f"a.de{suffix}", "eins\nzwei\n")
    assert read(src=src, tgt=tgt) == [SentencePair("one", "eins", 1), SentencePair("two", "zwei", 2)]


def test_empty_files_yield_no_pairs_and_fail_the_check() -> None:
    corpus = reader(src=write("a.en", ""), tgt=write("a.de", ""))
    assert list(corpus.pairs()) == []
    with pytest.raises(DataError) as caught:
        corpus.check()
    assert str(caught.value) == "a.en + a.de has no sentence pairs, expected at least one"


@pytest.mark.parametrize("swapped", [False, True])
def test_the_error_for_different_line_counts_has_both_counts(swapped: bool) -> None:
    long, short = write("long.txt.gz", "x\n" * 4_509), write("short.txt", "x\n" * 1_508)
    src, tgt = (short, long) if swapped else (long, short)
    assert error_of(src=src, tgt=tgt) == (
        "long.txt.gz has 4,509 lines and short.txt has 1,508, but both files need the same number of lines"
    )


def test_a_tsv_file_has_source_tab_target() -> None:
    assert read(file=write("a.tsv.gz", "one\teins\ntwo\tzwei\n")) == [("one", "eins", 1), ("two", "zwei", 2)]
    assert error_of(file=write("b.tsv", "one\teins\ntwo\tzwei\tCC BY\n")) == (
        "b.tsv, line 2: expected source, tab, target, found 3 columns. Set src_column and tgt_column to the "
        "columns to read, or fix the line."
    )


def test_a_jsonl_file_has_objects_with_the_languages_as_keys() -> None:
    rows = [{"de": "eins", "en": "one"}, {"translation": {"en": "two\n", "de": "zwei"}, "id": 5}]
    write("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(file="a.jsonl") == [("one", "eins", 1), ("two\n", "zwei", 2)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"en": "one", "fr": "un"}',
            "has no key de, its keys are en, fr. Set src_column and tgt_column to the keys of the text, or fix the "
            "line.",
        ),
        ('{"en": "one", "de": 1}', "expected text at the key de, found 1"),
        ('["one", "eins"]', 'expected an object with the keys en and de, found ["one", "eins"]'),
        ('{"en": one}', "is not valid JSON: Expecting value: line 1 column 8 (char 7)"),
    ],
)
def test_the_error_for_an_invalid_jsonl_line_has_its_number(line: str, problem: str) -> None:
    assert error_of(file=write("a.jsonl", f'{{"en": "a", "de": "b"}}\n{line}\n')) == statement(
        "a.jsonl, line 2", problem
    )


def test_an_unknown_file_format_is_refused() -> None:
    assert error_of(file=write("a.xlsx", "")) == (
        "a.xlsx: the name does not end in .tsv, .csv, .jsonl or .tmx (or one of these with .gz, .xz or .zst), nor in "
        ".parquet. Rename the file, or give two plain text files as {src: FILE, tgt: FILE}."
    )


# ---- chunks and pairs


def test_all_chunks_except_the_last_are_full() -> None:
    src, tgt = write("a.en", "1\n2\n3\n4\n5\n"), write("a.de", "a\nb\nc\nd\ne\n")
    chunks = list(reader(src=src, tgt=tgt).chunks(size=2))
    assert [(chunk.src, chunk.tgt, list(chunk.lines)) for chunk in chunks] == [
        (["1", "2"], ["a", "b"], [1, 2]),
        (["3", "4"], ["c", "d"], [3, 4]),
        (["5"], ["e"], [5]),
    ]


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.parquet"])
def test_chunks_are_full_even_if_lines_are_skipped_or_batches_are_smaller(name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    n = 2_500
    if name == "a.tsv":
        columns: dict[str, Any] = {"src_column": "en", "tgt_column": "de"}
        write(name, "de\ten\n" + "".join(f"d{i}\te{i}\n" for i in range(n)))
        lines = range(2, n + 2)
    elif name == "a.jsonl":
        columns = {}
        write(name, "".join(json.dumps({"en": f"e{i}", "de": f"d{i}"}) + "\n \n" for i in range(n)))
        lines = range(1, 2 * n + 1, 2)
    else:
        columns = {}
        table = pyarrow.table({"en": [f"e{i}" for i in range(n)], "de": [f"d{i}" for i in range(n)]})
        pyarrow.parquet.write_table(table, name, row_group_size=700)
        lines = range(1, n + 1)
    chunks = list(reader(file=name, **columns).chunks(size=1_000))
    assert [len(chunk.src) for chunk in chunks] == [1_000, 1_000, 500]
    assert [src for chunk in chunks for src in chunk.src] == [f"e{i}" for i in range(n)]
    assert [tgt for chunk in chunks for tgt in chunk.tgt] == [f"d{i}" for i in range(n)]
    assert [line for chunk in chunks for line in chunk.lines] == list(lines)


def test_pairs_are_read_from_pipes_one_by_one() -> None:
    for name in ("a.en", "a.de"):
        os.mkfifo(name)
    is_first_read = threading.Event()

    def feed() -> None:
        with open("a.en", "wb", buffering=0) as src:
            src.write(b"one\n")
            tgt = open("a.de", "wb", buffering=0)  # noqa: SIM115
            tgt.write(b"eins\n")
            if is_first_read.wait(timeout=60):
                src.write(b"two\nthree\n")
                tgt.write(b"zwei\n")
            tgt.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    pairs = reader(src="a.en", tgt="a.de").pairs()
    assert next(pairs) == ("one", "eins", 1)
    is_first_read.set()
    assert next(pairs) == ("two", "zwei", 2)
    with pytest.raises(DataError) as caught:
        next(pairs)
    feeder.join()
    assert str(caught.value) == "a.en has 3 lines and a.de has 2, but both files need the same number of lines"


# A line can contain anything except \n. A \r before its end, and a byte order mark at the start, are not part of it.
LINES = st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))] * 2))


def as_read(lines: list[str]) -> list[str]:
    lines = [line.removesuffix("\r") for line in lines]
    return [line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(lines)]


@settings(max_examples=50)
@given(LINES)
def test_written_lines_are_read_back_unchanged(pairs: list[tuple[str, str]]) -> None:
    srcs, tgts = [src for src, _ in pairs], [tgt for _, tgt in pairs]
    expected = [*zip(as_read(srcs), as_read(tgts), range(1, len(pairs) + 1), strict=True)]
    for suffix in ("", ".gz"):
        write(f"a.en{suffix}", "".join(f"{line}\n" for line in srcs))
        write(f"a.de{suffix}", "".join(f"{line}\n" for line in tgts))
        assert read(src=f"a.en{suffix}", tgt=f"a.de{suffix}") == expected
    whole = [*zip(srcs, tgts, range(1, len(pairs) + 1), strict=True)]
    for ascii in (True, False):
        write("a.jsonl", "".join(json.dumps({"en": s, "de": t}, ensure_ascii=ascii) + "\n" for s, t, _ in whole))
        assert read(file="a.jsonl") == whole
    if not any("\t" in line for line in [*srcs, *tgts]):
        write("a.tsv", "".join(f"{src}\t{tgt}\n" for src, tgt in pairs))
        lines = [(src, tgt.removesuffix("\r"), line) for src, tgt, line in whole]
        if lines:
            lines[0] = (lines[0][0].removeprefix("\ufeff"), *lines[0][1:])
        assert read(file="a.tsv") == lines


# ---- where two files differ


def lines_of_random_lengths(n: int) -> tuple[list[str], list[str]]:
    """Return lines of random lengths, and others of about the same lengths."""
    rng = random.Random(1)
    lengths = [rng.randint(5, 200) for _ in range(n)]
    return ["x" * length for length in lengths], ["y" * round(length * rng.uniform(0.9, 1.2)) for length in lengths]


def written(name: str, lines: list[str]) -> str:
    return write(name, "".join(f"{line}\n" for line in lines))


COUNTS = "a.en has 3,000 lines and a.de has {}, but both files need the same number of lines; "


def test_the_error_says_where_a_line_is_missing() -> None:
    src, tgt = lines_of_random_lengths(3_000)
    written("a.en", src)
    written("a.de", tgt[:1_233] + tgt[1_234:])
    assert error_of(src="a.en", tgt="a.de") == COUNTS.format("2,999") + (
        "from about line 1,234 on, the lengths of the lines do not match. "
        "Look there for a line missing from a.de or an extra line in a.en."
    )
    written("a.de", tgt[:500] + tgt[503:])
    assert error_of(src="a.en", tgt="a.de") == COUNTS.format("2,997") + (
        "from about line 501 on, the lengths of the lines do not match. "
        "Look there for a line missing from a.de or an extra line in a.en."
    )
    written("a.de", tgt[:2_000])
    assert error_of(src="a.en", tgt="a.de") == COUNTS.format("2,000") + (
        "by length, all lines of a.de match. Add the missing end of a.de."
    )


# ---- one file


def test_columns_of_a_tsv_file_are_chosen_by_number_or_header() -> None:
    write("a.tsv", 'id\tde\ten\n1\t"eins\tone\textra\n')
    assert read(file="a.tsv", src_column="en", tgt_column="de") == [("one", '"eins', 2)]
    assert read(file="a.tsv", src_column=3, tgt_column=2) == [("one", '"eins', 2)]
    assert read(file="a.tsv", src_column="en", tgt_column=1) == [("one", "1", 2)]


@pytest.mark.parametrize(
    ("text", "columns", "problem"),
    [
        ("one\teins\ntwo\n", (), ", line 2: expected source, tab, target, found 1 column. Fix or remove the line."),
        ("a\tb\tc\na\tb\n", (3, 1), ", line 2 has 2 columns, but column 3 is expected. Fix or remove the line."),
        (
            "de\tid\ten\na\tb\n",
            ("en", "de"),
            ", line 2 has 2 columns, but column en is number 3. Fix or remove the line.",
        ),
        (
            "de\tsource\n",
            ("en", "de"),
            ": its first line has no column en; its columns are de, source. Use one of these names, or column "
            "numbers if this line is not a header.",
        ),
        (
            "de\tde\ten\n",
            ("en", "de"),
            ": its first line has several columns de; its columns are de, de, en. Use one of these names, or "
            "column numbers if this line is not a header.",
        ),
    ],
)
def test_errors_in_a_tsv_file_say_where_they_are(text: str, columns: tuple[Any, ...], problem: str) -> None:
    chosen = dict(zip(("src_column", "tgt_column"), columns, strict=False))
    assert error_of(file=write("a.tsv", text), **chosen) == f"a.tsv{problem}"


def test_keys_of_a_jsonl_file_may_be_named_and_nested() -> None:
    write("a.jsonl", json.dumps({"text": {"src": "one"}, "a.b": "eins"}))
    assert read(file="a.jsonl", src_column="text.src", tgt_column="a.b") == [("one", "eins", 1)]
    assert error_of(file="a.jsonl", src_column="text.tgt", tgt_column="a.b") == (
        "a.jsonl, line 1 has no key text.tgt, its keys are text, a.b. Set src_column and tgt_column to the keys of "
        "the text, or fix the line."
    )
    assert error_of(file="a.jsonl", src_column=1, tgt_column=2) == (
        "a.jsonl has keys, not numbered columns, so 1 is not a column. Set src_column and tgt_column to keys."
    )


def test_a_lone_surrogate_in_json_is_an_error_but_a_pair_is_not() -> None:
    write("a.jsonl", '{"en": "\\ud83d\\ude00", "de": "ok"}\n{"en": "\\ud83d", "de": "\\ude00"}\n')
    assert error_of(file="a.jsonl") == (
        "a.jsonl, line 2: \\ud83d is half of a character (an unpaired surrogate). Fix the line."
    )


def test_parquet_columns_are_found_by_language_in_a_struct_or_by_name() -> None:
    write_parquet("a.parquet", {"en": ["one", None], "de": ["eins", "zwei"], "n": [1, 2]})
    assert read(file="a.parquet") == [("one", "eins", 1), ("", "zwei", 2)]
    write_parquet("b.parquet", {"translation": [{"de": "eins", "en": "one"}, None], "x": ["1", "2"]})
    assert read(file="b.parquet") == [("one", "eins", 1), ("", "", 2)]
    assert read(file="b.parquet", src_column="x", tgt_column="translation.de") == [("1", "eins", 1), ("2", "", 2)]


def test_dictionary_encoded_parquet_columns_are_read_as_text() -> None:
    import pyarrow

    column = pyarrow.array(["one", "two", "one"]).dictionary_encode()
    write_parquet("a.parquet", {"en": column, "de": pyarrow.array(["1", "2", "3"], pyarrow.large_string())})
    assert read(file="a.parquet") == [("one", "1", 1), ("two", "2", 2), ("one", "3", 3)]


def test_each_problem_with_a_parquet_file_is_reported_in_one_line() -> None:
    import pyarrow

    name = write_parquet("a.parquet", {"source": ["one"], "de": ["eins"]})
    assert error_of(file=name) == (
        "a.parquet has no en; its columns are source, de. Set src_column and tgt_column to those of the text."
    )
    assert error_of(file=name, src_column="src", tgt_column="de") == (
        "a.parquet has no column src; its columns are source, de. Correct src_column and tgt_column."
    )
    assert error_of(file=write_parquet("n.parquet", {"en": [b"one"], "de": ["eins"]})) == (
        "n.parquet: expected text in column en, found binary"
    )
    whole = Path(name).read_bytes()
    assert error_of(file=write("cut.parquet", whole[:-20])) == "cut.parquet is truncated. Copy or download it again."
    for name, content in (("no.parquet", b"en\tde\n"), ("empty.parquet", b"")):
        assert error_of(file=write(name, content)) == (
            f"{name} is not a Parquet file. Rename it to match its format, or give another file."
        )
    assert error_of(file=write("a.parquet.gz", whole)) == (
        "a.parquet.gz is a compressed Parquet file, which cannot be read (Parquet compresses its own contents). "
        "Unpack it to a.parquet."
    )
    assert error_of(file="nowhere.parquet") == f"nowhere.parquet: no such file (looked for in {Path.cwd()})"
    bad = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"]).buffers())
    assert error_of(file=write_parquet("bad.parquet", {"en": bad, "de": ["eins"]})) == (
        "bad.parquet: column en has text that is not UTF-8 in rows 1 to 1. Convert the text to UTF-8."
    )


# ---- sacreBLEU


def test_a_sacrebleu_test_set_is_read_from_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu.utils

    src, ref, other = write("s", "one\n"), write("r1", "eins\n"), write("r2", "einer\n")
    monkeypatch.setattr(sacrebleu.utils, "get_source_file", lambda name, langpair: src)
    monkeypatch.setattr(sacrebleu.utils, "get_reference_files", lambda name, langpair: [ref, other])
    assert read(sacrebleu="wmt14/full") == [("one", "eins", 1)]
    # A test set for en-de is that for other codes of these languages, too.
    reader = reader_of(SacrebleuSet(sacrebleu="wmt14/full"), ("eng_Latn", "de-AT"), "test")
    assert list(reader.pairs()) == [("one", "eins", 1)]
    assert list(reader_of(SacrebleuSet(sacrebleu="wmt22"), ("en", "zh-Hans"), "test").pairs()) == [("one", "eins", 1)]


def test_the_error_for_an_unknown_sacrebleu_set_or_direction_lists_alternatives() -> None:
    assert error_of(sacrebleu="wmt14/ful") == "sacreBLEU test set wmt14/ful is not known. Did you mean wmt14/full?"
    assert error_of(sacrebleu="?") == "sacreBLEU test set ? is not known. Run `sacrebleu --list` to see all names."
    with pytest.raises(DataError) as caught:
        list(reader_of(SacrebleuSet(sacrebleu="wmt22"), ("en", "xx"), "test").pairs())
    assert str(caught.value).startswith("sacreBLEU test set wmt22 has no en-xx; choose from cs-en, cs-uk, ")
    with pytest.raises(DataError) as caught:
        list(reader_of(SacrebleuSet(sacrebleu="wmt22"), ("fr", "xx"), "test").pairs())
    assert "has no fr-xx" in str(caught.value)


def test_a_sacrebleu_set_of_the_other_direction_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu.dataset

    monkeypatch.delitem(sacrebleu.dataset.DATASETS["wmt14/full"].langpairs, "en-de")
    assert error_of(sacrebleu="wmt14/full") == (
        "sacreBLEU test set wmt14/full exists for de-en only, not for en-de. "
        "Choose another one, or give its files as {src, tgt} if you want this direction anyway."
    )


def test_a_failed_download_of_a_sacrebleu_set_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error

    import sacrebleu.utils

    def fail(*_: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(sacrebleu.utils, "get_source_file", fail)
    monkeypatch.setattr(sacrebleu.utils, "SACREBLEU_DIR", "/cache")
    assert error_of(sacrebleu="wmt14/full") == (
        "sacreBLEU test set wmt14/full cannot be downloaded (Name or service not known). Check the network, "
        "delete /cache/wmt14/full if it holds a partial download, or give its files as {src, tgt}."
    )


# ---- fingerprints


def test_fingerprints_depend_on_the_content_but_not_on_the_path() -> None:
    def of(**corpus: Any) -> str:
        return reader(**corpus).fingerprint()

    for name in ("a.en", "elsewhere.txt"):
        write(name, "one\n")
    write("a.de", "eins\n")
    before = of(src="a.en", tgt="a.de")
    assert of(src="elsewhere.txt", tgt="a.de") == before
    assert of(src="a.de", tgt="a.en") != before
    write("a.de", "zwei\n")
    assert of(src="a.en", tgt="a.de") != before

    write_parquet("set/train.parquet", {"en": ["one"], "de": ["eins"]})
    folder = of(dataset="set")
    Path("set").rename("moved")
    write("moved/.DS_Store", "")
    assert of(dataset="moved") == folder
    assert of(dataset="moved", config="default") != folder
    write("moved/README.md", "new")
    assert of(dataset="moved") != folder

    write("a.tsv", "a\tb\n")
    assert (
        of(file="a.tsv") != of(file="a.tsv", src_column=1, tgt_column=2) != of(file="a.tsv", src_column=2, tgt_column=1)
    )
    assert of(file="a.tsv", weight=2.0, tag="<bt>") == of(file="a.tsv")
    assert of(dataset="wmt/wmt14", config="de-en") == 'dataset:wmt/wmt14:["de-en", null]'
    assert of(sacrebleu="wmt14/full") == "sacrebleu:wmt14/full"
    with pytest.raises(DataError) as caught:
        of(src="nowhere.en", tgt="a.de")
    assert str(caught.value) == f"nowhere.en: no such file (looked for in {Path.cwd()})"


# ---- real text


@needs_real_data
def test_the_hub_folder_and_the_files_have_the_same_newstest2014() -> None:
    folder = Path(REAL_DATA or "").resolve()
    newstest = folder / "data/newstest"
    from_files = read(src=str(newstest / "newstest2014.en.gz"), tgt=str(newstest / "newstest2014.de.gz"))
    from_hub = read("test", dataset=str(folder / "hub/wmt14"), config="de-en")
    assert len(from_files) == 3_003
    assert from_hub == from_files
