"""Reading hub data sets, and local folders in the hub's layout, with the package `datasets`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt.config.settings import HubDataset
from mt.errors import DataError
from mt.text.files import content_hash, first_line, log_once
from mt.text.tables import TextColumns, Texts


class UnreachableError(DataError):
    """The hub does not answer, and the cache has no copy of the data set."""


def read_dataset(corpus: HubDataset, split: str, langs: tuple[str, str], size: int) -> Iterator[Texts]:
    """Yield both sides of a split, at most `size` rows at a time, in constant memory.

    Args:
        split: a name, a part such as train[:10%], or several of these joined by +.
    Raises:
        DataError: the data set, its config, its split or its columns do not exist, or the hub cannot be reached.
    """
    where = f"data set {corpus.dataset}"
    dataset = _load_dataset(corpus, split)
    found = TextColumns.find(dataset.features.arrow_schema, where, langs, corpus.columns) if dataset.features else None
    n_rows = 0
    # Read whole batches of Arrow columns: row by row, WMT14 would take many minutes.
    tables = iter(dataset.with_format("arrow").iter(batch_size=size))
    while (table := _next_table(tables, where, n_rows)) is not None:
        found = found or TextColumns.find(table.schema, where, langs, corpus.columns)
        for batch in table.to_batches():
            yield found.texts(batch, n_rows)
            n_rows += batch.num_rows


def count_rows(corpus: HubDataset, split: str) -> int | None:
    """Return the number of rows of a split; None if it is streamed.

    Raises:
        DataError: as `read_dataset`.
    """
    return None if corpus.streaming else len(_load_dataset(corpus, split))


def dataset_fingerprint(corpus: HubDataset) -> str:
    """Return an identifier of the content: a hash of a local folder, the config entry of a remote data set."""
    config_and_split = json.dumps([corpus.config, corpus.split])
    if not is_local(corpus.dataset):
        return f"dataset:{corpus.dataset}:{config_and_split}"
    # The hash covers the relative names and the contents of all files that are not hidden.
    digest, folder = hashlib.blake2b(digest_size=16), Path(corpus.dataset)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(json.dumps([relative.as_posix(), content_hash(path)]).encode())
    return f"dataset-folder:{digest.hexdigest()}:{config_and_split}"


def is_local(name: str) -> bool:
    """Return whether a data set is a folder in the hub's layout."""
    return Path(name).is_dir()


def _load_dataset(corpus: HubDataset, split: str) -> Any:
    name = corpus.dataset
    if not is_local(name):
        if Path(name).is_file():
            fix = f"if it is a .tsv, .jsonl or .parquet file, write {{file: {name}}}"
            raise DataError(name, "is a file, expected a data set", fix)
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise DataError(name, f"no such folder (looked for in {Path.cwd()})")
        how = ("streaming", "") if corpus.streaming else ("loading", " or the local cache")
        log_once(f"{how[0]} data set {name} from the hub{how[1]}")
    import datasets

    with _quiet_datasets(datasets):
        try:
            return datasets.load_dataset(name, corpus.config, split=split, streaming=corpus.streaming)
        except Exception as error:
            raise _dataset_error(datasets, error, name, corpus.config, split) from None


def _next_table(tables: Iterator[Any], where: str, n_rows: int) -> Any:
    """Return the next table, None at the end. Raise an error of one line if the stream breaks off."""
    import datasets

    with _quiet_datasets(datasets):
        try:
            return next(tables, None)
        except DataError:
            raise
        except Exception as error:
            if _is_without_network(error):
                problem = f"the hub stopped answering after row {n_rows:,}"
                fix = "start again (without streaming, downloaded files are kept)"
                raise DataError(where, problem, fix) from None
            raise DataError(where, f"cannot be read after row {n_rows:,}: {first_line(error)}") from None


@contextlib.contextmanager
def _quiet_datasets(datasets: Any) -> Iterator[None]:
    """Show progress bars only on a terminal, and hide the library's line for each retry."""
    if sys.stderr is None or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    loggers = [logging.getLogger(package) for package in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_without_network(error: Exception) -> bool:
    names = [base.__name__ for base in type(error).__mro__]
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        word in name for name in names for word in ("ConnectionError", "ConnectError", "ConnectorError", "Timeout")
    )


def _dataset_error(datasets: Any, error: Exception, name: str, config: str | None, split: str) -> DataError:
    """Return the error that explains the failure; it lists the configs or splits to choose from if they are known."""
    where = f"data set {name}"
    if _is_without_network(error):
        problem = "the hub cannot be reached, and the local cache has no copy"
        return UnreachableError(where, problem, "check the network, or give a local folder that holds the data set")
    if "scripts are no longer supported" in str(error):
        problem = "is read by its own script, and mt runs no code of data sets"
        return DataError(where, problem, "give a version of it in Parquet, or its files as {file: …} or {src, tgt}")
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        page = f"https://huggingface.co/datasets/{name}"
        if re.search(r"\bgated\b", str(error)):
            return DataError(where, "is gated", f"request access at {page}, and log in with `hf auth login`")
        fix = f"check the name at {page}, and log in with `hf auth login` if it is private"
        return DataError(where, "was not found on the hub, or is private", fix)
    with contextlib.suppress(Exception):
        configs = datasets.get_dataset_config_names(name)
        if config not in configs and not (config is None and len(configs) == 1):
            found = f"has no config {config}" if config else "has several configs, and the key config is missing"
            return DataError(where, f"{found}; choose from {', '.join(configs)}")
        splits = datasets.get_dataset_split_names(name, config)
        for part in split.split("+"):
            if part.split("[")[0].strip() not in splits:
                return DataError(where, f"has no split {part.strip()}; choose from {', '.join(splits)}")
    if "nrecognized instruction format" in str(error):
        fix = "write a name, a part such as train[:10%], or several of these with + between them"
        return DataError(where, f"the split {split} is not valid", fix)
    return DataError(where, f"cannot be loaded: {first_line(error)}")
