"""Functions that write files of parallel text and read them."""

import gzip
import lzma
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from mt.config.settings import AnyCorpus
from mt.errors import DataError
from mt.text.corpora import CorpusReader, SentencePair, reader_of


def reader(role: str = "train", /, **corpus: Any) -> CorpusReader:
    return reader_of(TypeAdapter(AnyCorpus).validate_python(corpus), ("en", "de"), role)


def read(role: str = "train", /, **corpus: Any) -> list[SentencePair]:
    return list(reader(role, **corpus).pairs())


def error_of(role: str = "train", /, **corpus: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(role, **corpus)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def compressed(name: str, data: bytes) -> bytes:
    """Return the data as compressed as the name of its file says."""
    zst = partial(pyarrow.compress, codec="zstd", asbytes=True)
    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zst}.get(Path(name).suffix)
    return compress(data) if compress else data


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(compressed(name, content.encode() if isinstance(content, str) else content))
    return name


def write_parquet(path: str, columns: dict[str, Any]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path
