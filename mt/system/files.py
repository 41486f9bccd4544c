"""Files that are either complete or absent: they are written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mt.errors import DataError, MTError

# The system's error number → the fix for a failed write.
REMEDIES = {
    errno.EBADF: "redirect it to a file or to /dev/null",  # a closed standard stream
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}

MOST_JSON_BYTES = 64 << 20  # that `read_json` reads; a report has a few


class WriteError(MTError):
    """A file cannot be written; the message has the system's reason and, if known, a fix."""

    def __init__(self, path: Path | str, error: BaseException, then: str = "run the same command again") -> None:
        """
        Args:
            error: an OSError, or an exception that a library raised because of one.
            then: what to do after the fix.
        """
        number = _errno(error)
        reason = str(error) if number is None else os.strerror(number)
        remedy = REMEDIES.get(number or 0)
        super().__init__(path, f"cannot be written: {reason}", f"{remedy}, then {then}" if remedy else "")
        self.args = path, error, then  # pickle calls the class with these
        self.path, self.error = path, error


@contextmanager
def explained_writes(path: Path) -> Iterator[None]:
    """Raise a WriteError about `path` if the system fails inside the block, also if a library hides the OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter
        if _errno(error) is None:
            raise
        raise WriteError(path, error) from error


def _errno(error: BaseException | None) -> int | None:
    """Return the system's error number that led to an exception; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # in messages of safetensors
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the block ends and its content is on the disk.

    If the block fails, an existing file is unchanged. An existing path that is not a regular file, such as /dev/null or
    a named pipe, is written directly.

    Raises:
        OSError: the file cannot be created or written.
    """
    target = Path(os.path.realpath(path))  # for a link, replace its target
    is_direct = target.exists() and not target.is_file()
    beside = target if is_direct else target.with_name(f".{target.name}.{os.getpid()}.writing")
    stream = beside.open("wb")
    try:
        with stream:
            yield stream
            if not is_direct:
                stream.flush()
                os.fsync(stream.fileno())
        if not is_direct:
            beside.replace(target)
    finally:
        if not is_direct:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, may_replace: bool = False) -> Iterator[Path]:
    """Yield a folder that gets its name when the block ends and its files are on the disk.

    If the block fails, an existing folder is unchanged.

    Raises:
        WriteError: the folder cannot be written, or exists already and may not be replaced.
    """
    building, replaced = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.replaced")
    try:
        with explained_writes(path):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            yield building
            sync_all(building)
            if may_replace:
                shutil.rmtree(replaced, ignore_errors=True)
                if path.exists():
                    path.rename(replaced)
            building.rename(path)
            sync(path.parent)
            if may_replace:
                shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def refuse_to_overwrite(path: Path) -> None:
    """Raise a DataError if a file with content exists. An empty file, a device or a pipe has nothing to lose."""
    if path.is_file() and path.stat().st_size:
        raise DataError(path, "exists already", "delete it, give another name, or add --overwrite")


def remove_leftovers(folder: Path) -> None:
    """Finish or remove the temporary files of killed writes. Only the process that owns the folder may call this."""
    # A process was killed between the two renames that replace a folder: the old one is complete.
    for replaced in folder.glob(".*.replaced"):
        place = folder / replaced.name.removeprefix(".").removesuffix(".replaced")
        if not place.exists():
            replaced.rename(place)
    for suffix in ("writing", "replaced", "removed"):
        for leftover in folder.glob(f".*.{suffix}"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; rename it first, because a partly removed folder must not look like a complete one."""
    renamed = folder.with_name(f".{folder.name}.removed")
    folder.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def existing_folder(folder: Path) -> Path:
    """Return the folder if it exists, otherwise its nearest parent that does."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def write_text(path: Path, text: str) -> None:
    """Write a small file completely and sync it.

    Raises:
        WriteError: it cannot be written; an existing file is unchanged.
    """
    with explained_writes(path), whole_file(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON with `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def checksums_of(paths: Sequence[Path]) -> dict[str, str]:
    """Return name → SHA-256 of files with different names. All cores compute."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {path.name: checksum for path, checksum in zip(paths, pool.map(file_checksum, paths), strict=True)}


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON that may be damaged, or made to do harm; `options` are those of `json.loads`.

    Raises:
        ValueError: it is not JSON, or has brackets inside brackets, thousands deep.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Read a JSON file with `parse_json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or has more than MOST_JSON_BYTES.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")  # reading a named pipe would wait for ever
    if path.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def append_text(path: Path, text: str) -> None:
    """Append whole lines to a file; create it if it does not exist.

    Raises:
        WriteError: it cannot be written.
    """
    with explained_writes(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def sync_all(folder: Path) -> None:
    """Wait until the files in a folder, and its entries, are on the disk."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk."""
    if os.name == "nt":  # on Windows, folders cannot be opened, and read-only files cannot be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
