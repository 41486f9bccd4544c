"""Headers and quotes of .tsv and .csv files are found, and are not read as text."""

import csv
import io
import os
import threading
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mt.config.settings import Table
from mt.errors import ConfigError
from mt.text.delimited import SAMPLE_LINES, layout_of
from mt.text.files import log_once
from tests.parallel_text import error_of, read, reader, write

REAL_DATA = os.environ.get("MT_REAL_DATA")
PAIRS = [
    ("In Vienna a famous father cries.", "In Wien weint ein berühmter Vater."),
    ("Lena picks up Lena.", "Lena holt Lena ab."),
    ("Is the juice drunk?", "Wird der Saft getrunken?"),
]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log_once.cache_clear()


def tsv(*rows: tuple[str, ...]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def written(rows: list[tuple[str, ...]], **options: Any) -> str:
    """Return rows as the csv module writes them."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", **options).writerows(rows)
    return stream.getvalue()


def texts(**corpus: Any) -> list[tuple[str, str]]:
    return [(pair.src, pair.tgt) for pair in read(**corpus)]


# ---- headers


@pytest.mark.parametrize(
    "header",
    [
        ("en", "de"), ("EN", "DE"), ("en-US", "de_DE"), ("eng", "deu"), ("English", "German"), ("english", "Deutsch"),
        ("source", "target"), ("Source", "Target"), ("src", "tgt"), ("source_text", "target_text"),
        ("Source (English)", "Target (German)"), ("text", "translation"), ("source sentence", "translation"),
        ("text_en", "text_de"), ("translation.en", "translation.de"), ("en", "translation"), ("Sentence", "German"),
    ],
)  # fmt: skip
def test_a_first_line_that_names_both_sides_is_a_header(header: tuple[str, str]) -> None:
    write("a.tsv", tsv(header, *PAIRS))
    assert texts(file="a.tsv") == PAIRS
    write("b.tsv", tsv((header[1], header[0]), *((tgt, src) for src, tgt in PAIRS)))
    assert texts(file="b.tsv") == PAIRS


def test_a_header_chooses_two_of_many_columns(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows = [(str(i), "0.9", tgt, src) for i, (src, tgt) in enumerate(PAIRS)]
    write("a.tsv", tsv(("", "score", "de", "en"), *rows))
    assert read(file="a.tsv") == [(*pair, line) for line, pair in enumerate(PAIRS, start=2)]
    assert caplog.messages == ["a.tsv: line 1 is a header; its columns en and de are read, and it is not read as text"]
    write("b.tsv", tsv(("id", "en", "en_text", "source language", "de"), ("1", "a", "b", "c", "d")))
    assert texts(file="b.tsv") == [("a", "d")]


@pytest.mark.parametrize(
    "pair",
    [
        ("Source", "Quelle"), ("German", "Deutsch"), ("English", "Englisch"), ("text", "Text"), ("No", "Nein"),
        ("Original", "Original"), ("English text", "German text."), ("source", "source"), ("en", "en"), ("1", "1"),
    ],
)  # fmt: skip
def test_a_real_pair_is_never_a_header(pair: tuple[str, str]) -> None:
    write("a.tsv", tsv(pair, *PAIRS))
    assert texts(file="a.tsv") == [pair, *PAIRS]


def test_a_header_is_not_read_as_text_if_columns_are_numbered() -> None:
    write("a.tsv", tsv(("en", "de"), *PAIRS))
    assert texts(file="a.tsv", src_column=1, tgt_column=2) == PAIRS
    assert texts(file="a.tsv", src_column=2, tgt_column=1) == [(tgt, src) for src, tgt in PAIRS]


def test_a_header_that_recurs_in_joined_files_is_skipped_and_counted() -> None:
    write("a.tsv", tsv(("en", "de"), *PAIRS, ("en", "de"), *PAIRS))
    skipped: Counter[str] = Counter()
    assert [pair.line for pair in reader(file="a.tsv").pairs(skipped)] == [2, 3, 4, 6, 7, 8]
    assert skipped == {"header lines": 2}


@pytest.mark.parametrize("header", [("fr", "es"), ("0", "1"), ("id", "text"), ("Column 1", "Column 2")])
def test_a_first_line_that_may_be_another_header_is_read_and_suspected(header: tuple[str, str]) -> None:
    write("a.tsv", tsv(header, *PAIRS))
    assert texts(file="a.tsv") == [header, *PAIRS]
    assert layout_of(Path("a.tsv"), ("en", "de"), Table(file="a.tsv")).suspect == header


def test_a_glossary_does_not_look_like_a_header() -> None:
    write("a.tsv", tsv(("text", "Text"), ("number", "Nr"), ("id", "ID"), *PAIRS))
    assert layout_of(Path("a.tsv"), ("en", "de"), Table(file="a.tsv")).suspect is None


def test_two_columns_of_one_language_must_be_chosen() -> None:
    write("a.tsv", tsv(("en-GB", "en-US", "de"), ("one", "two", "drei")))
    assert error_of(file="a.tsv") == (
        "a.tsv, line 1: expected source, tab, target, found 3 columns. Set src_column and tgt_column to the columns to "
        "read, or fix the line."
    )


def test_only_the_first_thousand_columns_are_searched_for_a_header() -> None:
    for n, is_header in ((998, True), (999, False)):
        write("a.tsv", tsv(("x",) * n + ("en", "de")))
        assert (layout_of(Path("a.tsv"), ("en", "de"), Table(file="a.tsv")).header is not None) == is_header


# ---- quotes in .tsv files

QUOTED = [("He said “no”.", 'Er sagte "nein".'), ('"Yes"', "Ja; doch"), *PAIRS]


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
@pytest.mark.parametrize("header", [[], [("en", "de")]])
def test_a_tsv_file_written_with_quotes_is_read_without_them(quoting: Any, header: list[tuple[str, ...]]) -> None:
    write("a.tsv", written([*header, *QUOTED], delimiter="\t", quoting=quoting))
    assert texts(file="a.tsv") == QUOTED


def test_numbers_without_quotes_do_not_hide_that_the_text_is_quoted() -> None:
    rows = [(i, *PAIRS[i % 3]) for i in range(20)]
    write("a.tsv", written([("id", "en", "de"), *rows], delimiter="\t", quoting=csv.QUOTE_NONNUMERIC))
    assert texts(file="a.tsv") == [(src, tgt) for _, src, tgt in rows]


def test_a_quoted_header_with_the_given_columns_shows_that_the_text_is_quoted() -> None:
    write("a.tsv", written([("hier", "dort"), *PAIRS], delimiter="\t", quoting=csv.QUOTE_ALL))
    assert texts(file="a.tsv", src_column="hier", tgt_column="dort") == PAIRS


def test_quotes_of_direct_speech_stay_characters() -> None:
    speech = [('"Hello."', '"Hallo."'), ('"Who?" she said.', '"Wer?", sagte sie.'), ('He said "no".', "Er sagte nein.")]
    write("a.tsv", tsv(*speech, *PAIRS))
    assert texts(file="a.tsv") == [*speech, *PAIRS]
    alone = [('"Hello."', '"Hallo."'), ('"Who are you?"', '"Wer bist du?"')]
    write("b.tsv", tsv(*alone, *PAIRS))
    assert texts(file="b.tsv") == [*alone, *PAIRS]
    assert texts(file="b.tsv", quoting="csv") == [("Hello.", "Hallo."), ("Who are you?", "Wer bist du?"), *PAIRS]


def test_a_quote_that_is_not_closed_stays_a_character_and_swallows_no_line() -> None:
    for pairs in (
        [('"I came.', '"Ich kam.'), ('I saw."', 'Ich sah."'), ('5" pipe', '5"-Rohr'), *PAIRS],
        [('"I came.', "Ich kam,"), ('I saw."', "sah und siegte."), *PAIRS],
        [("I came.", '"Ich kam,'), ("I saw.", 'sah und siegte."'), *PAIRS],
    ):
        write("a.tsv", tsv(*pairs))
        assert texts(file="a.tsv") == pairs


def test_quoting_none_reads_quotes_as_characters() -> None:
    write("a.tsv", written([("en", "de"), *PAIRS], delimiter="\t", quoting=csv.QUOTE_ALL))
    assert texts(file="a.tsv", quoting="none") == [(f'"{src}"', f'"{tgt}"') for src, tgt in PAIRS]


def test_quoting_is_only_for_files_with_quotes() -> None:
    with pytest.raises(ConfigError) as caught:
        Table(file="a.jsonl", quoting="csv")
    assert str(caught.value) == "quoting is csv, but only .tsv and .csv files have quotes. Remove it."


# ---- .csv files


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_csv_file_may_have_commas_semicolons_or_tabs(separator: str, suffix: str) -> None:
    rows = [("Yes, it is; really", 'Ja, "wirklich"; ja'), *QUOTED]
    for header in ([], [("en", "de")]):
        write(f"a.csv{suffix}", written([*header, *rows], delimiter=separator))
        assert texts(file=f"a.csv{suffix}") == rows


def test_a_line_end_in_quotes_is_a_space_and_lines_are_counted_in_the_file() -> None:
    write("a.csv", 'en,de\r\n"one\r\ntwo","eins\n\nzwei"\r\n\r\nthree,drei\r\n')
    assert read(file="a.csv") == [("one two", "eins  zwei", 2), ("three", "drei", 7)]


def test_columns_of_a_csv_file_are_chosen_by_name_or_number() -> None:
    write("a.csv", 'id;original;lang;"übersetzt"\n1;one;de;eins\n')
    assert texts(file="a.csv", src_column="original", tgt_column="übersetzt") == [("one", "eins")]
    write("b.csv", '"one, two",x,eins\nthree,y,"drei, vier"\n')
    assert texts(file="b.csv", src_column=1, tgt_column=3) == [("one, two", "eins"), ("three", "drei, vier")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("one,eins\ntwo\n", ", line 2: expected source, comma, target, found 1 column. Fix or remove the line."),
        (
            'a,b\n"one,eins\ntwo,zwei\n',
            ", line 2: the quote that opens there is not closed before the end of the file. {fix}",
        ),
        (
            'a,b\n"one,eins\ntwo,"zwei"\nc,d\n',
            ", line 2: text follows the closing quote of a field that ends in line 3. {fix}",
        ),
        ('a,b\n"one" more,eins\n', ", line 2: text follows the closing quote of a field. {fix}"),
        (
            'a,b\n"one,eins\n' + "x" * 80 + "\n" * 131_072,
            ", line 2: the quote that opens there is not closed within 131,072 characters. {fix}",
        ),
    ],
)
def test_errors_in_a_csv_file_name_the_line_where_a_quote_opens(text: str, problem: str) -> None:
    fix = "Double the quotes inside of quoted fields, or set quoting: none if quotes are part of the text."
    assert error_of(file=write("a.csv", text)) == "a.csv" + problem.format(fix=fix)


def test_the_layout_does_not_depend_on_how_many_lines_are_read_at_once() -> None:
    rows = [*PAIRS * 10, ('say ""', "x")]
    write("a.tsv", written([*rows], delimiter="\t"))
    for size in (1, 2, 50_000):
        chunks = list(reader(file="a.tsv").chunks(size))
        assert [pair for chunk in chunks for pair in zip(chunk.src, chunk.tgt, strict=True)] == rows


def test_headers_and_quotes_change_the_fingerprint() -> None:
    write("a.tsv", tsv(("en", "de"), *PAIRS))
    before = reader(file="a.tsv").fingerprint()
    assert before.endswith(":header")
    assert reader(file="a.tsv", quoting="csv").fingerprint() == before.replace(":header", ":quotes:header")
    assert reader(file="a.tsv", quoting="none").fingerprint() == before


@pytest.mark.parametrize("n", [SAMPLE_LINES - 1, SAMPLE_LINES, SAMPLE_LINES + 1])
def test_quotes_are_found_even_if_the_sample_ends_inside_a_row(n: int) -> None:
    rows = [PAIRS[0]] * (n - 1) + [("one\ntwo", "eins"), *PAIRS]
    write("a.tsv", written([*rows], delimiter="\t", quoting=csv.QUOTE_ALL))
    assert texts(file="a.tsv") == [(src.replace("\n", " "), tgt) for src, tgt in rows]


def test_a_field_that_is_too_long_for_csv_is_named() -> None:
    limit = "a.csv, line 2 has a field of more than 131,072 characters. Split or remove the line."
    for long in ("x" * 200_000, f'"{"x" * 200_000}"'):
        assert error_of(file=write("a.csv", f"a,b\n{long},c\nd,e\n")) == limit


def test_the_last_suffix_decides_about_the_format() -> None:
    write("a.csv.tsv", '1,5\t"one" or two\n')
    assert texts(file="a.csv.tsv") == [("1,5", '"one" or two')]


def test_rows_of_a_csv_file_are_read_from_a_pipe_one_by_one() -> None:
    os.mkfifo("a.csv")
    is_first_read = threading.Event()

    def feed() -> None:
        with open("a.csv", "wb", buffering=0) as stream:
            stream.write(b'"one, two",eins\n')
            is_first_read.wait(timeout=60)
            stream.write(b"three,drei\n")

    feeder = threading.Thread(target=feed)
    feeder.start()
    pairs = reader(file="a.csv").pairs()
    assert next(pairs) == ("one, two", "eins", 1)
    is_first_read.set()
    assert list(pairs) == [("three", "drei", 2)]
    feeder.join()


def test_a_column_that_the_header_does_not_have_is_an_error_of_its_line() -> None:
    write("a.tsv", tsv(("en", "de"), *PAIRS))
    assert error_of(file="a.tsv", src_column=1, tgt_column=5) == (
        "a.tsv, line 2 has 2 columns, but column 5 is expected. Fix or remove the line."
    )


# ---- real text


@pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")
@pytest.mark.parametrize("name", ["parallel/tatoeba", "parallel/bible", "parallel/msdocs"])
def test_real_text_has_no_false_header_and_no_false_quotes(name: str) -> None:
    folder = Path(REAL_DATA or "") / "data"
    pairs = islice(reader(src=str(folder / f"{name}.en.gz"), tgt=str(folder / f"{name}.de.gz")).pairs(), 20_000)
    lines = [f"{pair.src}\t{pair.tgt}" for pair in pairs if "\t" not in pair.src + pair.tgt]
    for start in range(0, len(lines), SAMPLE_LINES // 4):
        path = Path(write("a.tsv", "".join(f"{line}\n" for line in lines[start : start + SAMPLE_LINES // 4])))
        layout = layout_of(path, ("en", "de"), Table(file="a.tsv"))
        assert (layout.header, layout.suspect, layout.has_quotes) == (None, None, False)


@pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")
def test_the_case_of_a_quoted_file_with_a_header_is_read() -> None:
    folder = Path(REAL_DATA or "") / "cases/quoted-tsv-header"
    pairs = read(file=str(folder / "quoted-full.tsv"))
    assert len(pairs) == 2_000
    assert pairs[0] == (*PAIRS[0], 2)
    assert not any('"' in pair.src + pair.tgt for pair in pairs)
    assert [read(file=str(folder / name)) for name in ("quoted.tsv", "header.tsv")] == [pairs[:5], pairs[:5]]
