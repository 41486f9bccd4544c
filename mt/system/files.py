"""Files that are whole or absent: they are written beside their place, then renamed there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mt.errors import MTError

# What helps when a write fails, by the number of the system's error.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


class WriteError(MTError):
    """A file cannot be written; the message has what the system says and, if it is known, what helps."""

    def __init__(self, path: Path | str, error: BaseException, then: str = "run the same command again") -> None:
        """
        Args:
            error: an OSError, or what a library makes of one.
            then: what to do once there is space again.
        """
        number = _errno(error)
        reason = str(error) if number is None else os.strerror(number)
        remedy = REMEDIES.get(number or 0)
        super().__init__(path, f"cannot be written: {reason}", f"{remedy}, then {then}" if remedy else "")
        self.args = path, error, then  # that pickle makes it of
        self.path, self.error = path, error


@contextmanager
def explained_writes(path: Path) -> Iterator[None]:
    """Raise a WriteError about `path` for a failure of the system inside the block, also if a library hides it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter
        if _errno(error) is None:
            raise
        raise WriteError(path, error) from error


def _errno(error: BaseException | None) -> int | None:
    """Return the system's number of the failure that led to an exception."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # so does safetensors say it
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def whole_file(path: Path, *, is_synced: bool = False) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the block ends; if the block fails, what was there is as it was.

    What exists and is not a regular file, such as /dev/null or a named pipe, is written to directly.

    Args:
        is_synced: wait until the content is on the disk before the name is given.
    Raises:
        OSError: the file cannot be made or written.
    """
    target = Path(os.path.realpath(path))  # a link is written through
    is_direct = target.exists() and not target.is_file()
    beside = target if is_direct else target.with_name(f".{target.name}.{os.getpid()}.writing")
    stream = beside.open("wb")
    try:
        with stream:
            yield stream
            if is_synced:
                stream.flush()
                os.fsync(stream.fileno())
        if not is_direct:
            beside.replace(target)
    finally:
        if not is_direct:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, may_replace: bool = False) -> Iterator[Path]:
    """Yield a folder that gets its name when the block ends; if the block fails, what was there is as it was.

    The files in it are to be synced by the caller, if they must outlive a crash of the machine.

    Raises:
        WriteError: it cannot be written, or there is one of that name and it may not be replaced.
    """
    building, replaced = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.replaced")
    try:
        with explained_writes(path):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            yield building
            sync(building)
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


def remove_leftovers(folder: Path) -> None:
    """Finish or remove what killed writes of this module have left. Only the process that owns the folder may do so."""
    # Killed between the two renames that replace a folder: the old one is whole.
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
    """Remove a folder; it is renamed first, as a folder half removed must not look like a whole one."""
    doomed = folder.with_name(f".{folder.name}.removed")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole and synced.

    Raises:
        WriteError: it cannot be written; what was there is as it was.
    """
    with explained_writes(path), whole_file(path, is_synced=True) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` writes text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file, which is made if there is none.

    Raises:
        WriteError: it cannot be written.
    """
    with explained_writes(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk."""
    if os.name == "nt":  # there a folder cannot be opened, nor a file that is read only be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
