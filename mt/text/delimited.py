"""Reading .tsv and .csv files: their separator, quotes and header line are found from their first lines."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mt.config.settings import Table
from mt.errors import DataError
from mt.text.files import format_of, log_once, read_line_chunks
from mt.text.languages import closeness, is_language
from mt.text.tables import Columns

# Source and target texts, the line on which each row begins, and the number of lines of the file read so far.
Rows = tuple[list[str], list[str], Sequence[int], int]
Langs = tuple[str, str]

HEADERS = "header lines"  # name of skipped lines in the report
SAMPLE_LINES = 1_000  # from which the layout of a file is found
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_FEWEST_ROWS = 10  # all in quotes, from which a .tsv file without a header counts as written with quotes
_MOST = 0.9
_RARE = 0.01
# Words in the names of columns.
_SIDES = (
    {"source", "src", "original", "input"},
    {"target", "tgt", "trg", "translation", "translated", "output", "reference"},
)
_TEXT = {"text", "sentence", "segment", "string", "phrase", "utterance"}
_OTHER = {
    "id", "idx", "index", "key", "no", "nr", "number", "line", "row", "col", "column", "field", "name", "value",
    "label", "score", "quality", "domain", "corpus", "origin", "date", "lang", "language", "licence", "license", "url",
    "file", "document", "doc", "note", "comment", "context",
}  # fmt: skip
_NAMES = _SIDES[0] | _SIDES[1] | _TEXT | _OTHER
_MOST_COLUMNS = 1_000  # of a header
_LONGEST_NAME = 40  # characters of the name of a column
_NUMBER = re.compile(r"[-+.\d]*")


@dataclass(frozen=True)
class Layout:
    """The separator, the quotes, the header and the columns of a file."""

    separator: str
    has_quotes: bool  # fields may be in CSV quotes
    columns: tuple[int, int] = (0, 1)  # source and target, from 0
    header: tuple[str, ...] | None = None  # the first line, if it names columns; it is not text
    suspect: tuple[str, ...] | None = None  # the first line, if it is read as text and yet looks like a header
    wrapped: float = 0.0  # fraction of the fields that begin and end in a quote, which is read as a character

    @property
    def about_header(self) -> str:
        header = self.header or ()
        used = " and ".join(header[column] for column in self.columns if column < len(header))
        return f"line 1 is a header; its columns {used} are read, and it is not read as text"

    def described(self) -> Iterator[str]:
        """Yield what is worth a line in the log."""
        if self.header is not None:
            yield self.about_header
        if self.has_quotes and self.separator == "\t":
            yield "fields are in CSV quotes, which are not read as text (quoting: none would read them)"
        if self.separator == ";":
            yield "the columns are separated by semicolons"


def read_delimited(path: Path, langs: Langs, corpus: Table, size: int, skipped: Counter[str]) -> Iterator[Rows]:
    """Yield both sides of a .tsv or .csv file, `size` rows at a time, in constant memory.

    A line end inside a quoted field becomes a space, and rows that repeat the header are left out.

    Args:
        skipped: the number of these rows is added to it.
    Raises:
        DataError: the file is missing or unreadable, a row lacks a column, or a quote is not closed.
    """
    layout, lines = _opened(path, langs, corpus, size)
    for told in layout.described():
        log_once(f"{corpus.description}: {told}")
    src_column, tgt_column = layout.columns
    header = None if layout.header is None else list(layout.header)
    n_wanted = 2 if corpus.columns is None and (header is None or len(header) == 2) else None
    src, tgt, numbers, n_lines = list[str](), list[str](), list[int](), 0
    for number, n_lines, row in _rows(path, lines, layout):
        if not row:  # a blank line
            continue
        if row == header:
            skipped[HEADERS] += 1
            continue
        if len(row) <= max(src_column, tgt_column) or (n_wanted and len(row) != n_wanted):
            raise _wrong_row(path, number, row, corpus.columns, layout)
        src.append(row[src_column])
        tgt.append(row[tgt_column])
        numbers.append(number)
        if len(src) >= size:
            yield src, tgt, numbers, n_lines
            src, tgt, numbers = [], [], []
    yield src, tgt, numbers, n_lines


def layout_of(path: Path, langs: Langs, corpus: Table) -> Layout:
    """Return the layout of a file, found from its first lines.

    Raises:
        DataError: as `read_delimited`.
    """
    return _opened(path, langs, corpus, SAMPLE_LINES)[0]


def _opened(path: Path, langs: Langs, corpus: Table, size: int) -> tuple[Layout, Iterator[str]]:
    """Return the layout of a file and its lines."""
    # From a pipe, a row is given as soon as it arrives, so only the first line is known.
    chunks = read_line_chunks(path, max(size, SAMPLE_LINES) if path.is_file() else size)
    first = next(chunks, [])
    return _layout(path, first[:SAMPLE_LINES], langs, corpus), chain(first, chain.from_iterable(chunks))


# ---------------------------------------------------------------------------------------------------- rows


def _rows(path: Path, lines: Iterator[str], layout: Layout) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the numbers of the first and the last line of each row, and its fields."""
    if not layout.has_quotes:
        for number, line in enumerate(lines, start=1):
            yield number, number, line.split(layout.separator)
        return
    n_lines = 0
    try:
        for of_row, row in _parsed(lines, layout.separator, strict=True):
            first, n_lines = n_lines + 1, n_lines + len(of_row)
            yield first, n_lines, row if len(of_row) == 1 else [field.replace("\n", " ") for field in row]
    except _UnreadableRowError as error:
        raise _quote_error(path, n_lines + 1, error.lines, error.reason) from None


class _UnreadableRowError(Exception):
    """A row that the csv module cannot read."""

    def __init__(self, lines: Sequence[str], reason: str) -> None:
        self.lines, self.reason = lines, reason


def _parsed(lines: Iterable[str], separator: str, *, strict: bool) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the lines and the fields of each row of text with CSV quotes.

    Raises:
        _UnreadableRowError: a row is not written as CSV.
    """
    of_row: list[str] = []

    def fed() -> Iterator[str]:
        for line in lines:
            of_row.append(line)
            yield line.replace("\r", " ") + "\n"  # csv refuses a carriage return outside of quotes

    try:
        for row in csv.reader(fed(), delimiter=separator, strict=strict):
            yield of_row, row
            of_row = []
    except csv.Error as error:
        raise _UnreadableRowError(of_row, str(error)) from None


def _quote_error(path: Path, first: int, lines: Sequence[str], reason: str) -> DataError:
    """Return the error about a row that the csv module cannot read; its first line has the number `first`."""
    fix = "double the quotes inside of quoted fields, or set quoting: none if quotes are part of the text"
    is_closed = "expected after" in reason
    opened, is_open = 0, False
    for i, line in enumerate(lines[:-1] if is_closed else lines):
        if line.count('"') % 2:
            opened, is_open = i, not is_open
    if is_closed:
        number = first + (opened if is_open else len(lines) - 1)
        until = f" that ends in line {first + len(lines) - 1:,}" if is_open else ""
        return DataError(f"{path}, line {number:,}", f"text follows the closing quote of a field{until}", fix)
    limit = f"{csv.field_size_limit():,} characters"
    if not is_open:
        return DataError(f"{path}, line {first:,}", f"has a field of more than {limit}", "split or remove the line")
    within = f"within {limit}" if "limit" in reason else "before the end of the file"
    return DataError(f"{path}, line {first + opened:,}", f"the quote that opens there is not closed {within}", fix)


def _wrong_row(path: Path, number: int, row: list[str], columns: Columns | None, layout: Layout) -> DataError:
    where = f"{path}, line {number:,}"
    found = f"{len(row)} column{'' if len(row) == 1 else 's'}"
    fix, last = "fix or remove the line", max(layout.columns)
    if columns is None and (layout.header is None or len(row) > last):
        if len(row) > 2:
            fix = "set src_column and tgt_column to the columns to read, or fix the line"
        return DataError(where, f"expected source, {_SEPARATORS[layout.separator]}, target, found {found}", fix)
    names = columns or [(layout.header or ())[column] for column in layout.columns]
    column = names[layout.columns.index(last)]
    wanted = f"column {column} is number {last + 1}" if isinstance(column, str) else f"column {column} is expected"
    if number == 1:
        fix = f"correct src_column and tgt_column, or {fix}"
    return DataError(where, f"has {found}, but {wanted}", fix)


# ---------------------------------------------------------------------------------------------------- layout


def _layout(path: Path, lines: Sequence[str], langs: Langs, corpus: Table) -> Layout:
    columns, is_csv = corpus.columns, format_of(path) == ".csv"
    named = [column for column in columns or () if isinstance(column, str)]

    def is_header(fields: Sequence[str]) -> bool:
        return all(name in fields for name in named) if named else _named_columns(fields, langs) is not None

    is_auto = corpus.quoting == "auto"
    has_quotes = corpus.quoting == "csv" or (is_auto and (is_csv or _is_quoted(lines, is_header)))
    splits = {one: _split(lines, one, has_quotes) for one in (_SEPARATORS if is_csv else "\t")}
    separator = max(splits, key=lambda one: _fit(splits[one], is_header))  # the first of equal ones
    if not (rows := splits[separator]):
        return Layout(separator, has_quotes)
    first = tuple(rows[0])
    given = None if columns is None else _indices(path, columns, first)
    if named:
        return Layout(separator, has_quotes, given or (0, 1), first)
    found = _named_columns(first, langs)
    fields = [first[column] for column in given or () if column < len(first)] or first
    if found is not None or _named_columns(fields, langs) is not None:
        return Layout(separator, has_quotes, given or found or (0, 1), first)
    # In a glossary, many rows look like headers.
    is_suspect = _is_like_header(fields, langs) and _fraction(_is_like_header(row, langs) for row in rows[1:]) <= _RARE
    wrapped = _fraction(len(field) > 1 and field[0] == field[-1] == '"' for row in rows for field in row)
    suspect = first if is_suspect else None
    return Layout(separator, has_quotes, given or (0, 1), None, suspect, 0.0 if has_quotes else wrapped)


def _split(lines: Sequence[str], separator: str, has_quotes: bool) -> list[list[str]]:
    if not has_quotes:
        return [line.split(separator) for line in lines]
    return [row for _, row in _sampled(lines, separator, strict=False)[0] if row]


def _sampled(
    lines: Sequence[str], separator: str, *, strict: bool
) -> tuple[list[tuple[list[str], list[str]]], _UnreadableRowError | None]:
    """Return the rows of `_parsed` up to one that cannot be read, and the error about this one."""
    rows = []
    try:
        for parsed in _parsed(lines, separator, strict=strict):
            rows.append(parsed)
    except _UnreadableRowError as error:
        return rows, error
    return rows, None


def _fit(rows: Sequence[Sequence[str]], is_header: Callable[[Sequence[str]], bool]) -> tuple[bool, float]:
    """Return how well a separator fits: whether it finds a header, and the fraction of rows of equal size."""
    if not rows:
        return False, 0.0
    size, n_rows = Counter(map(len, rows)).most_common(1)[0]
    return is_header(rows[0]), n_rows / len(rows) if size > 1 else 0.0


def _indices(path: Path, columns: Columns, header: Sequence[str]) -> tuple[int, int]:
    """Return the 0-based indices of the two columns."""
    for column in columns:
        if isinstance(column, str) and header.count(column) != 1:
            found = "several columns" if column in header else "no column"
            problem = f"its first line has {found} {column}; its columns are {', '.join(header)}"
            raise DataError(path, problem, "use one of these names, or column numbers if this line is not a header")
    src, tgt = (column - 1 if isinstance(column, int) else header.index(column) for column in columns)
    return src, tgt


def _fraction(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))


# ---------------------------------------------------------------------------------------------------- quotes


def _is_quoted(lines: Sequence[str], is_header: Callable[[Sequence[str]], bool]) -> bool:
    """Return whether the first lines of a .tsv file were written with CSV quotes.

    Each row must be as the csv module writes it, with quotes around all fields, or only around those that need them.
    Rows that have quotes for no reason are as likely direct speech, so there must be more evidence: a header or a field
    that needs its quotes, or all rows in quotes.
    """
    if not any('"' in line for line in lines):
        return False
    rows, error = _sampled(lines, "\t", strict=True)
    is_cut = error is not None and error.reason == "unexpected end of data"  # the sample may end inside a row
    if not rows or (error is not None and not (is_cut and (len(error.lines) > 1 or len(lines) == SAMPLE_LINES))):
        return False
    n_columns = len(rows[0][1])
    # Direct speech may begin in one line and end in another one; each line then still has all columns.
    are_lines_whole = all(line.count("\t") == n_columns - 1 for line in lines)
    if are_lines_whole and len(lines) - len(rows) > is_cut:
        return False
    n_quoted = n_needed = 0
    for of_row, row in rows:
        quoted = _quoted_fields("\n".join(of_row), row)
        if quoted is None or len(row) != n_columns:
            return False
        n_quoted += all(is_quoted or _NUMBER.fullmatch(field) for is_quoted, field in zip(quoted, row, strict=True))
        n_needed += any(one in field for field in row for one in '"\t\n')
    has_header = rows[0][0][0].startswith('"') and is_header(rows[0][1])
    return has_header or n_needed > 0 or n_quoted >= max(_FEWEST_ROWS, _MOST * len(rows))


def _quoted_fields(text: str, row: Sequence[str]) -> list[bool] | None:
    """Return which fields of a row are in quotes in its text; None if a field has quotes and is not in quotes."""
    flags, start = [], 0
    for field in row:
        is_quoted, n_quotes = text.startswith('"', start), field.count('"')
        if n_quotes and not is_quoted:
            return None
        flags.append(is_quoted)
        start += len(field) + 1 + (n_quotes + 2 if is_quoted else 0)
    return flags


# ---------------------------------------------------------------------------------------------------- header


def _named_columns(fields: Sequence[str], langs: Langs) -> tuple[int, int] | None:
    """Return the columns of both languages if the fields name them; no sentence pair names one on each side."""
    roles = [_role(field, langs) for field in fields[:_MOST_COLUMNS]]
    found: list[int | None] = []
    for side in (0, 1):
        ranked = sorted((role.rank, i) for i, role in enumerate(roles) if role is not None and role.side == side)
        if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            return None
        found.append(ranked[0][1] if ranked else None)
    if len(fields) == 2 and found.count(None) == 1:
        unnamed = found.index(None)
        other = 1 - (found[1 - unnamed] or 0)
        if (role := roles[other]) is not None and role.is_text and role.side is None:
            found[unnamed] = other
    src, tgt = found
    return None if src is None or tgt is None else (src, tgt)


class _Role(NamedTuple):
    """The meaning of a column's name."""

    side: int | None  # source (0) or target (1); None: neither
    rank: tuple[int, int]  # the smaller, the better
    is_text: bool


def _role(field: str, langs: Langs) -> _Role | None:
    """Return what a field says as the name of a column; None if it is not such a name."""
    name = field.strip().casefold()
    if len(name) > _LONGEST_NAME or re.search(r"[.!?,;:]( |$)", name):
        return None
    words = [name] if is_language(name) else re.findall(r"[^\W_]+", name)
    bare = [word.rstrip("0123456789") for word in words]
    if not all(one in _NAMES or not one or is_language(word) for one, word in zip(bare, words, strict=True)):
        return None
    if words and not any(bare):
        return None
    close = [max((closeness(word, lang) for word in words), default=0) for lang in langs]
    by_word = [any(word in of_side for word in words) for of_side in _SIDES]
    is_of = [bool(one) for one in close] if any(close) else by_word
    is_text = not _TEXT.isdisjoint(bare)
    return _Role(is_of.index(True) if sum(is_of) == 1 else None, (-max(close), len(words)), is_text)


def _is_like_header(fields: Sequence[str], langs: Langs) -> bool:
    """Return whether each field may be the name of a column, such as another language or a number."""
    if len(fields) > 1 and list(fields) == list(map(str, range(len(fields)))):  # pandas numbers columns without names
        return True
    return any(fields) and all(_role(field, langs) is not None for field in fields[:_MOST_COLUMNS])
