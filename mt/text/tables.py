"""Parallel text in Arrow tables: finding its columns, reading their text, reading Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mt.errors import DataError
from mt.text.files import explained, first_line

Texts = tuple[list[str], list[str]]  # source and target texts, two lists of the same length
Columns = tuple[int | str, int | str]  # source and target column: 1-based numbers, or names with dots if nested
_Path = tuple[str, ...]  # the name of a column, followed by names of fields inside it

_BUFFER_BYTES = 1 << 20
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class TextColumns:
    """The source and the target column, each as a path of names."""

    where: str  # the file or the data set, for error messages
    paths: tuple[_Path, _Path]

    @classmethod
    def find(cls, schema: Any, where: str, langs: tuple[str, str], columns: Columns | None) -> TextColumns:
        """Return the given columns, or else those named after the languages, inside a column `translation` or outside.

        Args:
            schema: an Arrow schema.
        Raises:
            DataError: these columns do not exist, or hold no text.
        """
        import pyarrow

        types = _types(schema)
        if columns is None:
            src, tgt = _columns_of_languages(types, schema.names, where, langs)
        else:
            src, tgt = (_named_column(types, schema.names, where, column) for column in columns)
        for path, name in zip((src, tgt), columns or langs, strict=True):
            if schema.names.count(path[0]) > 1:
                raise DataError(where, f"has several columns with the name {path[0]}", "give them different names")
            type_ = types[path]
            value_type = type_.value_type if pyarrow.types.is_dictionary(type_) else type_
            if str(value_type) not in ("string", "large_string", "string_view", "null"):
                raise DataError(where, f"expected text in column {name}, found {type_}")
        return cls(where, (src, tgt))

    def texts(self, batch: Any, n_before: int) -> Texts:
        """Return both sides of a record batch; a missing text becomes an empty one.

        Raises:
            DataError: a text is not UTF-8.
        """
        src, tgt = (self._texts(batch, path, n_before) for path in self.paths)
        return src, tgt

    def _texts(self, batch: Any, path: _Path, n_before: int) -> list[str]:
        import pyarrow
        import pyarrow.compute

        array = batch.column(path[0])
        if len(path) > 1:  # unlike reading the field itself, this gives null where the whole struct is null
            array = pyarrow.compute.struct_field(array, path[1:])
        if str(array.type) not in ("string", "large_string"):
            array = array.cast(pyarrow.large_string())
        try:
            # Many times faster than the to_pylist() of older versions.
            texts = cast("list[str]", array.to_numpy(zero_copy_only=False).tolist())
        except (UnicodeDecodeError, pyarrow.ArrowException):
            rows = f"rows {n_before + 1:,} to {n_before + len(array):,}"
            problem = f"column {'.'.join(path)} has text that is not UTF-8 in {rows}"
            raise DataError(self.where, problem, "convert the text to UTF-8") from None
        return [text or "" for text in texts] if array.null_count else texts


def _types(fields: Iterable[Any], parent: _Path = ()) -> dict[_Path, Any]:
    """Return the Arrow types of columns and of the fields inside them, by path."""
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
        problem = f"has no column {column}; its columns are {', '.join(names)}"
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
    problem = f"has no {missing}; {place} are {', '.join(found or names)}"
    raise DataError(where, problem, "set src_column and tgt_column to those of the text")


def read_parquet(path: Path, langs: tuple[str, str], columns: Columns | None, size: int) -> Iterator[Texts]:
    """Yield both sides of a Parquet file, at most `size` rows at a time, in constant memory.

    Raises:
        DataError: the file is missing, damaged or truncated, or lacks the columns.
    """
    import pyarrow.parquet

    n_rows = 0
    with explained(path), path.open("rb") as stream:
        if not stream.seekable():
            raise DataError(path, "is a pipe, and Parquet cannot be read from a pipe", "save it to a file first")
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
    """Return the error that explains why a Parquet file cannot be read. Its table of contents is at its end."""
    with path.open("rb") as stream:
        beginning = stream.read(len(_PARQUET_MAGIC))
        stream.seek(-min(path.stat().st_size, len(_PARQUET_MAGIC)), 2)
        end = stream.read()
    if beginning != _PARQUET_MAGIC:
        return DataError(path, "is not a Parquet file", "rename it to match its format, or give another file")
    if end != _PARQUET_MAGIC:
        return DataError(path, "is truncated", "copy or download it again")
    return DataError(path, f"is damaged after row {n_rows:,} ({first_line(error)})", "copy or download it again")


def count_parquet_rows(path: Path) -> int | None:
    """Return the number of rows of a Parquet file; None if it is damaged, which reading it will explain."""
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, pyarrow.ArrowException):
        return None
