"""Reading .tsv and .csv files: their separator, quotes and header line are found from their first lines."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from mt.errors import DataError
from mt.text.files import log_once, read_line_chunks
from mt.text.languages import closeness, is_language
from mt.text.tables import Columns

Rows = tuple[list[str], list[str], Sequence[int]]  # source and target texts, and the line on which each row begins
Quoting = Literal["auto", "csv", "none"]

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
_LONGEST_NAME = 40  # characters of the name of a column
_NUMBER = re.compile(r"[-+.\d]*")
QUOTE = '"'
_LINE_END = re.compile(r"\r\n?|\n")


@dataclass(frozen=True)
class Layout:
    """The separator, the quotes, the header and the columns of a file."""

    separator: str
    has_quotes: bool  # fields may be in CSV quotes
    columns: tuple[int, int]  # source and target, from 0
    header: tuple[str, ...] | None = None  # the first line, if it names columns; it is not text
    suspect: tuple[str, ...] | None = None  # the first line, if it is read as text and yet looks like a header
    wrapped: float = 0.0  # fraction of the fields that begin and end in a quote, which is read as a character

    def described(self, name: str) -> Iterator[str]:
        """Yield what is worth a line in the log."""
        if self.header is not None:
            used = " and ".join(repr(self.header[i]) for i in self.columns if i < len(self.header))
            yield f"{name}: the first line is a header; its columns {used} are read, and it is not read as text"
        if self.has_quotes and self.separator == "\t":
            yield f"{name}: fields are in CSV quotes, which are not read as text (quoting: none would read them)"
        if self.separator == ";":
            yield f"{name}: the columns are separated by semicolons"


def read_delimited(
    path: Path,
    langs: tuple[str, str],
    columns: Columns | None,
    quoting: Quoting,
    size: int,
    skipped: Counter[str],
    name: str,
) -> Iterator[Rows]:
    """Yield both sides of a .tsv or .csv file, about `size` rows at a time, in constant memory.

    A line end inside a quoted field becomes a space, and rows that repeat the header are left out.

    Args:
        skipped: the number of these rows is added to it.
        name: of the corpus, for the log.
    Raises:
        DataError: the file is missing or unreadable, a row lacks a column, or a quote is not closed.
    """
    layout, chunks = _opened(path, langs, columns, quoting, size)
    for line in layout.described(name):
        log_once(line)
    src, tgt = layout.columns
    n_wanted = 2 if columns is None and (layout.header is None or len(layout.header) == 2) else None
    header = None if layout.header is None else list(layout.header)
    for rows, numbers in (_quoted_rows if layout.has_quotes else _plain_rows)(path, chunks, layout.separator):
        if header is not None and header in rows:
            kept = [i for i, row in enumerate(rows) if row != header]
            skipped[HEADERS] += len(rows) - len(kept)
            rows, numbers = [rows[i] for i in kept], [numbers[i] for i in kept]
        for row, number in zip(rows, numbers, strict=True):
            if len(row) <= max(src, tgt) or (n_wanted and len(row) != n_wanted):
                where, is_first = f"{path}, line {number:,}", number == 1
                raise _wrong_row(where, row, columns, layout, is_first=is_first)
        yield [row[src] for row in rows], [row[tgt] for row in rows], numbers


def layout_of(path: Path, langs: tuple[str, str], columns: Columns | None, quoting: Quoting) -> Layout:
    """Return the layout of a file, found from its first lines.

    Raises:
        DataError: as `read_delimited`.
    """
    return _opened(path, langs, columns, quoting, SAMPLE_LINES)[0]


def _opened(
    path: Path, langs: tuple[str, str], columns: Columns | None, quoting: Quoting, size: int
) -> tuple[Layout, Iterator[list[str]]]:
    """Return the layout of a file and its lines in chunks."""
    # From a pipe, a row is given as soon as it arrives, so only the first line is known.
    chunks = read_line_chunks(path, max(size, SAMPLE_LINES) if path.is_file() else size)
    first = next(chunks, [])
    return _layout(path, first[:SAMPLE_LINES], langs, columns, quoting), chain([first], chunks)


# ---------------------------------------------------------------------------------------------------- rows


def _plain_rows(
    _path: Path, chunks: Iterator[list[str]], separator: str
) -> Iterator[tuple[list[list[str]], Sequence[int]]]:
    n_lines = 0
    for lines in chunks:
        yield [line.split(separator) for line in lines], range(n_lines + 1, n_lines + len(lines) + 1)
        n_lines += len(lines)


def _quoted_rows(
    path: Path, chunks: Iterator[list[str]], separator: str
) -> Iterator[tuple[list[list[str]], Sequence[int]]]:
    """Yield rows with the numbers of their first lines, about as many at a time as a chunk has lines."""
    pending: list[str] = []  # the lines of the row that is being read
    rows, numbers = list[list[str]](), list[int]()

    def fed() -> Iterator[str]:
        for lines in chunks:
            for line in lines:
                pending.append(line)
                yield line.replace("\r", " ") + "\n"  # csv refuses a carriage return outside of quotes

    reader = csv.reader(fed(), delimiter=separator, strict=True)
    while True:
        pending.clear()
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise _quote_error(path, number, pending, error) from None
        if row:
            rows.append([" ".join(_LINE_END.split(field)) for field in row] if len(pending) > 1 else row)
            numbers.append(number)
        if len(rows) >= SAMPLE_LINES:
            yield rows, numbers
            rows, numbers = [], []
    if rows:
        yield rows, numbers


def _quote_error(path: Path, first: int, lines: Sequence[str], error: csv.Error) -> DataError:
    """Return the error about a row that the csv module cannot read; its first line has the number `first`."""
    fix = "double the quotes inside of quoted fields, or set quoting: none if quotes are part of the text"
    is_closed = "expected after" in str(error)
    opened, is_open = 0, False
    for i, line in enumerate(lines[:-1] if is_closed else lines):
        if line.count('"') % 2:
            opened, is_open = i, not is_open
    if is_closed:
        number = first + (opened if is_open else len(lines) - 1)
        until = f" that ends in line {first + len(lines) - 1:,}" if is_open else ""
        return DataError(f"{path}, line {number:,}", f"text follows the closing quote of a field{until}", fix)
    if is_open:
        problem = "the quote that opens there is not closed"
        limit = csv.field_size_limit()
        within = f" within {limit:,} characters" if "limit" in str(error) else " before the end of the file"
        return DataError(f"{path}, line {first + opened:,}", problem + within, fix)
    return DataError(f"{path}, line {first:,}", f"cannot be read as CSV: {error}", fix)


def _wrong_row(where: str, row: list[str], columns: Columns | None, layout: Layout, is_first: bool) -> DataError:
    found = f"{len(row)} column{'' if len(row) == 1 else 's'}"
    fix = "fix or remove the line"
    if columns is None and (layout.header is None or len(row) > max(layout.columns)):
        if len(row) > 2:
            fix = "set src_column and tgt_column to the columns to read, or fix the line"
        return DataError(where, f"expected source, {_SEPARATORS[layout.separator]}, target, found {found}", fix)
    last = max(layout.columns)
    names = columns or [(layout.header or ())[column] for column in layout.columns]
    column = names[layout.columns.index(last)]
    wanted = f"column {column} is number {last + 1}" if isinstance(column, str) else f"column {column} is expected"
    if is_first:
        fix = f"correct src_column and tgt_column, or {fix}"
    return DataError(where, f"has {found}, but {wanted}", fix)


# ---------------------------------------------------------------------------------------------------- layout


def _layout(
    path: Path, lines: Sequence[str], langs: tuple[str, str], columns: Columns | None, quoting: Quoting
) -> Layout:
    is_csv, named = ".csv" in path.suffixes[-2:], [column for column in columns or () if isinstance(column, str)]
    has_quotes = quoting == "csv" or (quoting == "auto" and (is_csv or _is_quoted(lines, langs, named)))
    split = partial(_split, lines, has_quotes=has_quotes)
    rows = split("\t")
    separator = "\t"
    if is_csv:
        fits = {one: _fit(split(one), langs, named) for one in _SEPARATORS}
        separator = max(fits, key=fits.__getitem__)  # the first of equal ones
        rows = split(separator)
    first = tuple(rows[0]) if rows else ()
    layout = partial(Layout, separator, has_quotes)
    if named or not rows:
        indices = _indices(path, columns, first) if columns and rows else (0, 1)
        return layout(indices, first if named and rows else None)
    given = None if columns is None else _indices(path, columns, first)
    fields = [first[column] for column in given or () if column < len(first)] or first
    found = _named_columns(first, langs)
    if found is not None or _named_columns(fields, langs) is not None:
        return layout(given or found or (0, 1), first)
    suspect = first if _is_like_header(fields, langs) and not _is_usual(rows[1:], langs) else None
    wrapped = 0.0 if has_quotes else _fraction(_is_wrapped(field) for row in rows for field in row)
    return layout(given or (0, 1), None, suspect, wrapped)


def _split(lines: Sequence[str], separator: str, *, has_quotes: bool) -> list[list[str]]:
    if not has_quotes:
        return [line.split(separator) for line in lines]
    return [row for _, row in _parsed(lines, separator, strict=False) if row]


def _parsed(lines: Sequence[str], separator: str, *, strict: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the text and the fields of each row in quotes; a row that the sample cuts off is left out.

    Raises:
        csv.Error: a row was not written with quotes.
    """
    fed = iter(lines)
    reader = csv.reader((line.replace("\r", " ") + "\n" for line in fed), delimiter=separator, strict=strict)
    start = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if reader.line_num == len(lines) and start < len(lines) - 1:
                return
            raise
        yield "\n".join(lines[start : reader.line_num]), row
        start = reader.line_num


def _fit(rows: Sequence[Sequence[str]], langs: tuple[str, str], named: Sequence[str]) -> tuple[bool, float]:
    """Return how well a separator fits: whether the header has the columns, and the fraction of rows of equal size."""
    if not rows:
        return False, 0.0
    sizes = Counter(map(len, rows))
    size, n_rows = sizes.most_common(1)[0]
    return _has_columns(rows[0], langs, named), n_rows / len(rows) if size > 1 else 0.0


def _has_columns(fields: Sequence[str], langs: tuple[str, str], named: Sequence[str]) -> bool:
    """Return whether fields are the names of columns: those that the config names, or of both sides."""
    return all(name in fields for name in named) if named else _named_columns(fields, langs) is not None


def _indices(path: Path, columns: Columns, header: Sequence[str]) -> tuple[int, int]:
    """Return the 0-based indices of the two columns."""
    for column in columns:
        if isinstance(column, str) and header.count(column) != 1:
            found = "several columns" if column in header else "no column"
            problem = f"its first line has {found} {column}; its columns are {', '.join(header)}"
            raise DataError(path, problem, "use one of these names, or column numbers if this line is not a header")
    src, tgt = (column - 1 if isinstance(column, int) else header.index(column) for column in columns)
    return src, tgt


# ---------------------------------------------------------------------------------------------------- quotes


def _is_quoted(lines: Sequence[str], langs: tuple[str, str], named: Sequence[str] = ()) -> bool:
    """Return whether the first lines of a .tsv file were written with CSV quotes.

    Each row must be as the csv module writes it, with quotes around all fields, or only around those that need them.
    Rows that have quotes for no reason are as likely direct speech, so there must be more evidence: a header or a field
    that needs its quotes, or all rows in quotes.
    """
    if not any('"' in line for line in lines):
        return False
    try:
        parsed = list(_parsed(lines, "\t", strict=True))
    except csv.Error:
        return False
    n_columns = len(parsed[0][1]) if parsed else 0
    # Direct speech may begin in one line and end in another one; each line then still has all columns.
    are_lines_whole = all(line.count("\t") == n_columns - 1 for line in lines)
    n_quoted = n_needed = 0
    for text, row in parsed:
        quoted = _quoted_fields(text, row)
        if quoted is None or len(row) != n_columns or (are_lines_whole and "\n" in text):
            return False
        n_quoted += all(is_quoted or _NUMBER.fullmatch(field) for is_quoted, field in zip(quoted, row, strict=True))
        n_needed += any(one in field for field in row for one in '"\t\n')
    has_header = parsed != [] and parsed[0][0].startswith(QUOTE) and _has_columns(parsed[0][1], langs, named)
    return has_header or n_needed > 0 or n_quoted >= max(_FEWEST_ROWS, _MOST * len(parsed))


def _quoted_fields(text: str, row: Sequence[str]) -> list[bool] | None:
    """Return which fields of a row are in quotes in its text; None if a field has quotes and is not in quotes."""
    flags, rest = [], f"{text}\t"
    for field in row:
        forms = (field + "\t", f'"{field.replace(QUOTE, QUOTE * 2)}"\t')
        is_quoted = rest.startswith(QUOTE)
        if not rest.startswith(forms[is_quoted]) or (QUOTE in field and not is_quoted):
            return None
        flags.append(is_quoted)
        rest = rest[len(forms[is_quoted]) :]
    return flags


def _is_wrapped(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _fraction(flags: Iterator[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))


# ---------------------------------------------------------------------------------------------------- header


def _named_columns(fields: Sequence[str], langs: tuple[str, str]) -> tuple[int, int] | None:
    """Return the columns of both languages if the fields name them; no sentence pair names one on each side."""
    roles = [_role(field, langs) for field in fields]
    found = []
    for side in (0, 1):
        named = [(role.rank, i) for i, role in enumerate(roles) if role is not None and role.side == side]
        best = [i for rank, i in named if rank == min(named)[0]]
        if len(best) > 1:
            return None
        found.append(best[0] if best else None)
    src, tgt = found
    if len(fields) == 2 and (src is None) != (tgt is None):
        other = 1 - (src if src is not None else tgt or 0)
        if (role := roles[other]) is not None and role.is_text and role.side is None:
            src, tgt = (other if src is None else src), (other if tgt is None else tgt)
    return None if src is None or tgt is None else (src, tgt)


class _Role(NamedTuple):
    """The meaning of a column's name."""

    side: int | None  # source (0) or target (1); None: neither
    rank: tuple[int, int]  # the smaller, the better
    is_text: bool


def _role(field: str, langs: tuple[str, str]) -> _Role | None:
    """Return what a field says as the name of a column; None if it is not such a name."""
    name = field.strip().casefold()
    if len(name) > _LONGEST_NAME or re.search(r"[.!?,;:]( |$)", name):
        return None
    words = [name] if is_language(name) else re.findall(r"[^\W_]+", name)
    if not all(map(_is_name_of_column, words)) or (words and all(map(str.isdecimal, words))):
        return None
    close = [max((closeness(word, lang) for word in words), default=0) for lang in langs]
    by_word = [any(word in of_side for word in words) for of_side in _SIDES]
    is_of = [bool(one) for one in close] if any(close) else by_word
    is_text = any(word.rstrip("0123456789") in _TEXT for word in words)
    return _Role(is_of.index(True) if sum(is_of) == 1 else None, (-max(close), len(words)), is_text)


def _is_name_of_column(word: str) -> bool:
    is_known = word in _SIDES[0] | _SIDES[1] or word.rstrip("0123456789") in _TEXT | _OTHER
    return is_known or word.isdecimal() or is_language(word)


def _is_like_header(fields: Sequence[str], langs: tuple[str, str]) -> bool:
    """Return whether each field may be the name of a column, such as another language or a number."""
    if len(fields) > 1 and list(fields) == list(map(str, range(len(fields)))):  # pandas numbers columns without names
        return True
    return any(fields) and all(_role(field, langs) is not None for field in fields)


def _is_usual(rows: Sequence[Sequence[str]], langs: tuple[str, str]) -> bool:
    """Return whether other rows are like headers, too: those of a glossary, for example."""
    return _fraction(_is_like_header(row, langs) for row in rows) > _RARE
