"""What `mt translate` writes: whole lines, step by step, so that a run that was cut short can go on.

An output file grows as OUTPUT.part and gets its name when it is whole. OUTPUT.part.json says how it is made and how far
it has come. It is written after each step: what lies behind its figures is cut off by the run that goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from mt.errors import ConfigError, DataError
from mt.system.files import WriteError, explained_writes, whole_file
from mt.system.locks import locked

_FORMAT = 1
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far a translation has come."""

    n_lines: int = 0  # of the input
    digests: Mapping[str, str] = field(default_factory=dict)  # of what was read so far, by name
    counts: Mapping[str, int] = field(default_factory=dict)  # of lines with something to report


class DirectFile:
    """Standard output, a pipe or a device: what is written cannot be taken back."""

    def __init__(self, stream: BinaryIO, path: Path | None) -> None:
        self._stream = stream
        self._path = path  # None: standard output

    def write(self, content: bytes) -> None:
        start = _place_in_file(self._stream)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()
        except OSError as error:
            if start is not None:  # redirected to a file, which shall end with a whole line
                os.ftruncate(self._stream.fileno(), start)
            if self._path is None:
                raise
            raise WriteError(self._path, error) from None

    def close(self) -> None:
        if self._path is not None:
            self._stream.close()


class PartFile:
    """A file that is written as `path.part` and gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._target = Path(os.path.realpath(path))  # a link is written through
        self.part = self._target.with_name(f"{self._target.name}.part")
        self._descriptor: int | None = None
        self._lock = ExitStack()
        self._n_bytes = 0
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def size(self) -> int | None:
        """In bytes; None where there is no such file."""
        return self.part.stat().st_size if self.part.is_file() else None

    @property
    def is_published(self) -> bool:
        return self._target.exists()

    def open(self) -> None:
        """Open the part, which is made if there is none, for this process alone."""
        with explained_writes(self.path):
            self._descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        lock = self.part.with_name(f".{self.part.name}.lock")
        with explained_writes(self.path):
            self._lock.enter_context(locked(lock, self._refuse))

    def _refuse(self) -> NoReturn:
        raise DataError(f"{self.part}: another mt translate is writing it: wait for it, or stop it")

    def go_on(self, recorded: Mapping[str, Any]) -> bool:
        """Go on behind what is recorded; False where that is not what the part begins with."""
        assert self._descriptor is not None
        n_left = recorded["bytes"]
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while n_left and (block := os.read(self._descriptor, min(n_left, _BLOCK_BYTES))):
            self._digest.update(block)
            n_left -= len(block)
        self._n_bytes = recorded["bytes"] - n_left
        return self.recorded() == recorded

    def recorded(self) -> dict[str, Any]:
        return {"bytes": self._n_bytes, "blake2b": self._digest.hexdigest()}

    def cut(self) -> None:
        """Cut off what lies behind the steps that were completed."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, self._n_bytes)
        os.lseek(self._descriptor, self._n_bytes, os.SEEK_SET)

    def write(self, content: bytes) -> None:
        """Write to the disk, where it counts for nothing before `complete_step`."""
        assert self._descriptor is not None
        with explained_writes(self.path):
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)

    def complete_step(self, content: bytes) -> None:
        self._n_bytes += len(content)
        self._digest.update(content)

    def publish(self) -> None:
        with explained_writes(self.path):
            self.part.replace(self._target)

    def withdraw(self) -> None:
        """Undo `publish`."""
        self._target.replace(self.part)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._lock.close()


class Outputs:
    """The files that a translation writes side by side; the first is that of the translations.

    Raises:
        DataError: a file cannot be written, or what is there from an earlier run is in the way or does not fit.
    """

    def __init__(self, files: Sequence[DirectFile | PartFile], *, is_resumed: bool = False) -> None:
        self._files = files
        self._parts = [file for file in files if isinstance(file, PartFile)]
        first = files[0]
        # Where the translations themselves cannot be taken up again, nothing is kept.
        self._record_path = first.part.with_name(f"{first.part.name}.json") if isinstance(first, PartFile) else None
        self._is_resumed = is_resumed
        self._record: dict[str, Any] | None = None  # of the run that this one continues
        self._made_by: Mapping[str, Any] = {}
        self._progress = Progress()
        self._is_ours = self._is_finished = False

    @property
    def n_lines(self) -> int:
        """Lines of the input whose translations will last."""
        return self._progress.n_lines

    @property
    def where(self) -> str:
        return str(self._parts[0].part)

    @property
    def are_seen_at_once(self) -> bool:
        """Whether translations go where somebody may wait for them, and not into a file."""
        return self._record_path is None

    @property
    def can_go_on(self) -> bool:
        """Whether what was written stays for a run that goes on."""
        return self._record_path is not None and self.n_lines > 0

    def __enter__(self) -> Outputs:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours and not self._is_finished:
            for file in self._parts:
                if self.can_go_on:
                    file.cut()
                else:
                    file.part.unlink(missing_ok=True)
            if self._record_path is not None and not self.can_go_on:
                self._record_path.unlink(missing_ok=True)
        self._close()

    def begin(self, made_by: Mapping[str, Any]) -> Progress:
        """Where to begin.

        Args:
            made_by: all that the output depends on but the text: name → value, for JSON.
        """
        self._made_by = made_by
        if self._record is not None:
            self._check(self._record, made_by)
            for file in self._parts:
                file.cut()
            self._progress = Progress(*(self._record[key] for key in ("n_lines", "digests", "counts")))
            self._is_ours = True
        return self._progress

    def add(self, contents: Sequence[bytes], progress: Progress) -> None:
        """One step: what is added to each file, and how far the translation has come with it."""
        try:
            for file, content in zip(self._files, contents, strict=True):
                file.write(content)
            for file, content in zip(self._files, contents, strict=True):
                if isinstance(file, PartFile):
                    file.complete_step(content)
            self._write_record(progress)
        except WriteError as error:
            if not self.can_go_on:
                raise
            raise WriteError(error.path, error.error, "run the same command with --resume") from None
        self._progress = progress

    def finish(self) -> None:
        """Give the files their names."""
        # The translations last: whoever waits for them finds the others.
        for file in reversed(self._parts):
            file.publish()
        self._is_finished = True
        if self._record_path is not None:
            self._record_path.unlink(missing_ok=True)

    def _open(self) -> None:
        if self._record_path is not None:
            self._record = self._read_record(self._record_path)
            if self._record is None:
                self._check_nothing_is_there()
            elif self._record["n_lines"] == 0 or not self._find_parts(self._record):
                self._record = None  # it stopped before its first step, or its part was deleted
        for file in self._parts:
            file.open()
        if self._record is None:
            self._is_ours = True
            for file in self._parts:
                file.cut()
            self._write_record(self._progress)

    def _check_nothing_is_there(self) -> None:
        for file in self._parts:
            if file.size:
                raise DataError(
                    f"{file.part}: is in the way, and there is no {self._record_path} that says what it is the "
                    "beginning of: move it away"
                )
            if self._is_resumed and file.is_published:
                raise DataError(
                    f"{file.path}: is there, and no {file.part.name} to go on with: delete it, or leave --resume out, "
                    "to translate anew"
                )

    def _find_parts(self, record: Mapping[str, Any]) -> bool:
        """Whether the parts of an interrupted run are there; they may have been given their names already."""
        there = [file for file in self._parts if file.size is not None]
        if there and not self._is_resumed:
            raise DataError(
                f"{there[0].part}: is an interrupted translation of {record['n_lines']:,} lines: add --resume to go "
                "on with it, or delete it to begin anew"
            )
        if not self._is_resumed:
            return False
        for file, recorded in zip(self._parts, record["files"], strict=False):
            if file.size is None and file.is_published and file._target.stat().st_size == recorded["bytes"]:
                file.withdraw()
                there.append(file)
        if there and len(there) < len(self._parts):
            (missing, *_) = (file for file in self._parts if file not in there)
            raise DataError(f"{missing.part}: is missing: delete {there[0].part} too, to begin anew")
        if not there:
            self._check_nothing_is_there()
        return bool(there)

    def _check(self, record: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        problem = _difference(record["made_by"], json.loads(json.dumps(made_by)))
        if problem is None:
            if len(record["files"]) != len(self._parts):
                problem = "it was begun with another number of files"
            for file, recorded in zip(self._parts, record["files"], strict=False):
                if not file.go_on(recorded):
                    problem = f"{file.part.name} is not what was written then"
        if problem is not None:
            raise DataError(
                f"{self.where}: is no beginning of what this command writes: {problem}: give the command that it was "
                "begun with, or delete it to begin anew"
            )

    def _read_record(self, path: Path) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] == _FORMAT and {"made_by", "n_lines", "digests", "counts", "files"} <= record.keys():
                return record
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise DataError(f"{path}: is damaged, or of another version of mt: delete it and {self.where} to begin anew")

    def _write_record(self, progress: Progress) -> None:
        if self._record_path is None:
            return
        record = {
            "format": _FORMAT,
            "made_by": self._made_by,
            **asdict(progress),
            "files": [file.recorded() for file in self._parts],
        }
        with explained_writes(self._record_path), whole_file(self._record_path, is_synced=True) as stream:
            stream.write(json.dumps(record, ensure_ascii=False, indent=1).encode())

    def _close(self) -> None:
        for file in self._files:
            file.close()


def open_outputs(translations: BinaryIO | Path, alignments: Path | None = None, *, is_resumed: bool = False) -> Outputs:
    """The outputs of a translation, to be entered as a context.

    Args:
        translations: standard output, or a path.
    Raises:
        ConfigError: a run cannot go on with what is no regular file.
        DataError: see `Outputs`.
    """
    files: list[DirectFile | PartFile] = []
    for where in (translations, *([] if alignments is None else [alignments])):
        if not isinstance(where, Path):
            files.append(DirectFile(where, None))
        elif where.exists() and not where.is_file():  # a device or a named pipe is written to directly
            files.append(_direct(where))
        else:
            files.append(PartFile(where))
    if is_resumed and not all(isinstance(file, PartFile) for file in files):
        raise ConfigError(
            "--resume", "goes on with regular files alone", "give --output, and --alignments if any, such"
        )
    if isinstance(files[0], PartFile) and isinstance(files[-1], DirectFile):
        raise ConfigError(
            "--alignments", f"{alignments} is no regular file, and --output is", "give two files, or none"
        )
    return Outputs(files, is_resumed=is_resumed)


def _direct(path: Path) -> DirectFile:
    with explained_writes(path):
        return DirectFile(path.open("wb", buffering=0), path)


def _place_in_file(stream: BinaryIO) -> int | None:
    """Where a stream that is a regular file is going to be written; None for all others."""
    try:
        descriptor = stream.fileno()
        return os.lseek(descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):
        return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name == "--model":
            return "it was begun with another model"
        if old is None or new is None or isinstance(new, bool):
            return f"it was begun {'without' if not old else 'with'} {name}"
        return f"it was begun with {name} {old}, not {new}"
    return None
