"""Parallel text in Arrow tables: which of the columns hold it, their text, and Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mt.errors import DataError
from mt.text.files import explained, first_line

Texts = tuple[list[str], list[str]]  # of the two sides, equally many
Columns = tuple[int | str, int | str]  # of the two sides: 1-based numbers or names, dotted where they are nested
_Path = tuple[str, ...]  # names that lead to a column, or to a field inside one

_BUFFER_BYTES = 1 << 20
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class TextColumns:
    """The columns of the two sides, each as the names that lead to it."""

    where: str  # the file or the data set, for messages
    paths: tuple[_Path, _Path]

    @classmethod
    def find(cls, schema: Any, where: str, langs: tuple[str, str], columns: Columns | None) -> TextColumns:
        """Return the named columns; else those of the languages, inside a column `translation` or beside others.

        Args:
            schema: an Arrow schema.
        Raises:
            DataError: there are no such columns, or no text is in them.
        """
        import pyarrow

        types = _types(schema)
        if columns is None:
            src, tgt = _columns_of_languages(types, schema.names, where, langs)
        else:
            src, tgt = (_named_column(types, schema.names, where, column) for column in columns)
        for path, name in zip((src, tgt), columns or langs, strict=True):
            if schema.names.count(path[0]) > 1:
                raise DataError(where, f"has several columns {path[0]}", "give them different names")
            type_ = types[path]
            value_type = type_.value_type if pyarrow.types.is_dictionary(type_) else type_
            if str(value_type) not in ("string", "large_string", "string_view", "null"):
                raise DataError(where, f"expected text in {name}, found {type_}")
        return cls(where, (src, tgt))

    def texts(self, batch: Any, n_before: int) -> Texts:
        """Return both sides of a record batch, empty text where there is none.

        Raises:
            DataError: a text is not UTF-8.
        """
        src, tgt = (self._texts(batch, path, n_before) for path in self.paths)
        return src, tgt

    def _texts(self, batch: Any, path: _Path, n_before: int) -> list[str]:
        import pyarrow
        import pyarrow.compute

        array = batch.column(path[0])
        if len(path) > 1:  # unlike the field itself, this knows that nothing is in a struct that is missing
            array = pyarrow.compute.struct_field(array, path[1:])
        if str(array.type) not in ("string", "large_string"):
            array = array.cast(pyarrow.large_string())
        try:
            # Many times faster than to_pylist() in older versions.
            texts = cast("list[str]", array.to_numpy(zero_copy_only=False).tolist())
        except (UnicodeDecodeError, pyarrow.ArrowException):
            rows = f"rows {n_before + 1:,} to {n_before + len(array):,}"
            raise DataError(self.where, f"{'.'.join(path)} has text that is not UTF-8 in {rows}", "fix it") from None
        return [text or "" for text in texts] if array.null_count else texts


def _types(fields: Iterable[Any], parent: _Path = ()) -> dict[_Path, Any]:
    """Return the Arrow types of columns and of the fields inside them, by the names that lead to them."""
    types: dict[_Path, Any] = {}
    for field in fields:
        path = (*parent, field.name)
        types[path] = field.type
        if _is_struct(field.type):
            types |= _types(field.type, path)
    return types


def _is_struct(type_: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(type_))


def _named_column(types: Mapping[_Path, Any], names: Sequence[str], where: str, column: int | str) -> _Path:
    if isinstance(column, str):
        names = [".".join(path) for path, type_ in types.items() if not _is_struct(type_)]
        found = [path for path in ((column,), tuple(column.split("."))) if path in types]
    else:
        found = [(name,) for name in names[column - 1 : column]]
    if not found:
        problem = f"has no column {column}, its columns are {', '.join(names)}"
        raise DataError(where, problem, "correct src_column and tgt_column")
    return found[0]


def _columns_of_languages(
    types: Mapping[_Path, Any], names: Sequence[str], where: str, langs: tuple[str, str]
) -> tuple[_Path, _Path]:
    for parent in (("translation",), ()):
        src, tgt = ((*parent, lang) for lang in langs)
        if src in types and tgt in types:
            return src, tgt
    found, place = [path[1] for path in types if path[0] == "translation" and len(path) == 2], "its columns"
    if found:
        place = "the keys of its column translation"
    missing = " and ".join(sorted(set(langs) - set(found or names)))
    problem = f"has no {missing}: {place} are {', '.join(found or names)}"
    raise DataError(where, problem, "say which hold the text with src_column and tgt_column")


def read_parquet(path: Path, langs: tuple[str, str], columns: Columns | None, size: int) -> Iterator[Texts]:
    """Yield both sides of a Parquet file, at most `size` rows at a time, in flat memory.

    Raises:
        DataError: it is missing, damaged, cut off, or has no such columns.
    """
    import pyarrow.parquet

    n_rows = 0
    with explained(path), path.open("rb") as stream:
        if not stream.seekable():
            raise DataError(path, "is a pipe, and a Parquet file is not read from its beginning on", "give a file")
        try:
            file = pyarrow.parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            found = TextColumns.find(file.schema_arrow, str(path), langs, columns)
            wanted = sorted({path[0] for path in found.paths})
            for batch in file.iter_batches(batch_size=size, columns=wanted, use_threads=False):
                yield found.texts(batch, n_rows)
                n_rows += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise _damage(path, error, n_rows) from None


def _damage(path: Path, error: Exception, n_rows: int) -> DataError:
    """Return what is wrong with a Parquet file, which ends in its list of contents."""
    with path.open("rb") as stream:
        beginning = stream.read(len(_PARQUET_MAGIC))
        stream.seek(-min(path.stat().st_size, len(_PARQUET_MAGIC)), 2)
        end = stream.read()
    if beginning != _PARQUET_MAGIC:
        return DataError(path, "is no Parquet file", "give a file that is one, or end its name in what it is")
    if end != _PARQUET_MAGIC:
        return DataError(path, "ends too early, it was cut off", "copy or download it again")
    return DataError(path, f"is damaged after row {n_rows:,} ({first_line(error)})", "fetch it again")


def count_parquet_rows(path: Path) -> int | None:
    """Return the rows of a Parquet file as its end tells; None where it is damaged, which reading it explains."""
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, pyarrow.ArrowException):
        return None
