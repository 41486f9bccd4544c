"""Parallel text in Arrow tables: which of the columns hold it, their text, and Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mt.errors import DataError
from mt.text.files import explained, first_line

Texts = tuple[list[str], list[str]]  # of the two sides, equally many
Columns = tuple[int | str, int | str]  # of the two sides: 1-based numbers or names, dotted where they are nested

_BUFFER_BYTES = 1 << 20
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class TextColumns:
    """The columns of the two sides, each as the names that lead to it."""

    where: str  # the file or the data set, for messages
    src: tuple[str, ...]
    tgt: tuple[str, ...]

    @classmethod
    def find(cls, schema: Any, where: str, langs: tuple[str, str], columns: Columns | None) -> TextColumns:
        """The named columns; else the languages, inside a column `translation` or as columns of their own.

        Args:
            schema: an Arrow schema.
        Raises:
            DataError: there are no such columns, or no text is in them.
        """
        if columns is not None:
            src, tgt = (_named_column(schema, where, column) for column in columns)
        else:
            src, tgt = _columns_of_languages(schema, where, langs)
        for path, name in zip((src, tgt), columns or langs, strict=True):
            _require_text(where, str(name), _type_of(schema, path))
        return cls(where, src, tgt)

    def texts(self, batch: Any, n_before: int) -> Texts:
        """Both sides of a record batch; what is missing is empty.

        Raises:
            DataError: a text is no UTF-8.
        """
        return self._texts(batch, self.src, n_before), self._texts(batch, self.tgt, n_before)

    def _texts(self, batch: Any, path: tuple[str, ...], n_before: int) -> list[str]:
        import pyarrow
        import pyarrow.compute

        array = batch.column(batch.schema.get_field_index(path[0]))
        for name in path[1:]:  # unlike the field itself, this knows that nothing is in a struct that is missing
            array = pyarrow.compute.struct_field(array, [array.type.get_field_index(name)])
        if str(array.type) not in ("string", "large_string"):
            array = array.cast(pyarrow.large_string())
        try:
            # Many times faster than to_pylist() in older versions.
            texts = cast("list[str]", array.to_numpy(zero_copy_only=False).tolist())
        except (UnicodeDecodeError, pyarrow.ArrowException):
            rows = f"rows {n_before + 1:,} to {n_before + len(array):,}"
            raise DataError(self.where, f"{'.'.join(path)} has text that is not UTF-8 in {rows}", "fix it") from None
        return [text or "" for text in texts] if array.null_count else texts


def _named_column(schema: Any, where: str, column: int | str) -> tuple[str, ...]:
    if isinstance(column, int):
        if column > len(schema.names):
            raise _no_column(where, column, schema.names)
        return (_only(schema, where, schema.names[column - 1]),)
    for path in ((column,), tuple(column.split("."))):
        if _type_of(schema, path) is not None:
            return path
    raise _no_column(where, column, _all_names(schema))


def _no_column(where: str, column: int | str, names: Sequence[str]) -> DataError:
    return DataError(
        where, f"has no column {column}, its columns are {', '.join(names)}", "correct src_column and tgt_column"
    )


def _only(schema: Any, where: str, name: str) -> str:
    if schema.names.count(name) > 1:
        raise DataError(where, f"has several columns {name}", "give them different names")
    return name


def _type_of(schema: Any, path: tuple[str, ...]) -> Any:
    """The Arrow type at the end of the names, None where there is none."""
    fields, type_ = schema, None
    for name in path:
        index = fields.get_field_index(name) if hasattr(fields, "get_field_index") else -1
        if index < 0:
            return None
        type_ = fields.field(index).type
        fields = type_
    return type_


def _all_names(schema: Any) -> list[str]:
    """Names of the columns, those inside structs as `translation.en`."""
    names = []
    for field in schema:
        inside = _names_inside(field.type)
        names += [f"{field.name}.{name}" for name in inside] or [field.name]
    return names


def _names_inside(type_: Any) -> list[str]:
    """Names of the fields of a struct; none of any other type."""
    import pyarrow

    return [type_.field(i).name for i in range(type_.num_fields)] if pyarrow.types.is_struct(type_) else []


def _columns_of_languages(schema: Any, where: str, langs: tuple[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found, place = schema.names, "its columns"
    if "translation" in found and (inside := _names_inside(schema.field("translation").type)):
        if set(langs) <= set(inside):
            return ("translation", langs[0]), ("translation", langs[1])
        found, place = inside, "the keys of its column translation"
    if set(langs) <= set(schema.names):
        return (langs[0],), (langs[1],)
    missing = " and ".join(sorted(set(langs) - set(found)))
    raise DataError(
        where,
        f"has no {missing}: {place} are {', '.join(found)}",
        "say which hold the text with src_column and tgt_column",
    )


def _require_text(where: str, name: str, type_: Any) -> None:
    import pyarrow

    value_type = type_.value_type if pyarrow.types.is_dictionary(type_) else type_
    if str(value_type) not in ("string", "large_string", "string_view", "null"):
        raise DataError(where, f"expected text in {name}, found {type_}")


def read_parquet(path: Path, langs: tuple[str, str], columns: Columns | None, size: int) -> Iterator[Texts]:
    """Both sides of a Parquet file, at most `size` rows at a time, in flat memory.

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
            wanted = sorted({found.src[0], found.tgt[0]})
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
    """Rows of a Parquet file as its end tells; None where it is damaged, which reading it explains."""
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, pyarrow.ArrowException):
        return None
