"""The output files of `mt translate`, written so that an interrupted run can be resumed.

Whole lines are appended to OUTPUT.part, which is renamed to OUTPUT when it is complete. OUTPUT.part.json has the
settings and the progress, and is written after each step. A run that resumes removes lines written after that step.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from mt.errors import ConfigError, DataError
from mt.system.files import WriteError, explained_writes, read_json, refuse_to_overwrite, write_json
from mt.system.locks import locked

_FORMAT = 1


@dataclass(frozen=True)
class OutputRecord:
    """The progress of a translation, and the settings it was started with."""

    made_by: Mapping[str, Any] = field(default_factory=dict)  # everything that the output depends on, except the text
    n_lines: int = 0  # of the input
    digests: Mapping[str, str] = field(default_factory=dict)  # of the text read so far, by name
    counts: Mapping[str, int] = field(default_factory=dict)  # of lines, by flag
    n_bytes: tuple[int, ...] = ()  # of each output file

    @classmethod
    def read(cls, path: Path, part: Path) -> OutputRecord | None:
        """Return the record of an earlier run; None if there is none."""
        try:
            found = read_json(path)
            if found.pop("format") == _FORMAT:
                n_bytes = tuple(file["bytes"] for file in found.pop("files"))
                return cls(n_bytes=n_bytes, **found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        fix = f"delete it and {part} to start over"
        raise DataError(path, "is damaged, or was written by another version of mt", fix)

    def write(self, path: Path) -> None:
        facts = dict(vars(self))
        files = [{"bytes": n_bytes} for n_bytes in facts.pop("n_bytes")]
        write_json(path, {"format": _FORMAT, **facts, "files": files})


class OutputStream:
    """An output that cannot be resumed: standard output, a pipe or a device.

    Args:
        path: None for standard output.
    """

    _is_synced = False
    _stream: BinaryIO | FileIO

    def __init__(self, path: Path | None, stream: BinaryIO | FileIO) -> None:
        self.path, self._stream = path, stream

    def write(self, content: bytes) -> None:
        start = _position_in_file(self._stream)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()
            if self._is_synced:
                os.fsync(self._stream.fileno())
        except OSError as error:
            if start is not None:  # standard output can be a file, which must end with a whole line
                os.ftruncate(self._stream.fileno(), start)
            if self.path is None:
                raise
            raise WriteError(self.path, error) from None


class PartFile(OutputStream):
    """A file that only this process writes, as `path.part`. When it is complete, it is renamed to `path`."""

    _is_synced = True
    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = Path(os.path.realpath(path))  # a link stays: its target is written
        self.part = self.target.with_name(f"{self.target.name}.part")

    def open(self, stack: ExitStack) -> None:
        def refuse() -> NoReturn:
            raise DataError(self.part, "another mt translate is writing it", "wait for it, or stop it")

        with explained_writes(self.path):
            self._stream = stack.enter_context(self.part.open("ab", buffering=0))
            stack.enter_context(locked(self.part.with_name(f".{self.part.name}.lock"), refuse))

    def cut(self, n_bytes: int) -> None:
        self._stream.truncate(n_bytes)

    def publish(self) -> None:
        with explained_writes(self.path):
            self.part.replace(self.target)

    def unpublish(self, n_bytes: int) -> None:
        """Undo `publish`, after a run that was killed before it ended."""
        if not self.part.is_file() and self.target.is_file() and self.target.stat().st_size == n_bytes:
            self.target.replace(self.part)


class Outputs:
    """The outputs of a translation, which are written in the same steps. The first one has the translations."""

    def __init__(
        self, files: Sequence[OutputStream], stack: ExitStack, *, is_resumed: bool, may_overwrite: bool
    ) -> None:
        self._files, self._is_resumed = files, is_resumed
        self._parts = [file for file in files if isinstance(file, PartFile)]
        first = files[0]
        # If the output of the translations cannot be resumed, there is no record.
        self._record_path = first.part.with_name(f"{first.part.name}.json") if isinstance(first, PartFile) else None
        self.record = OutputRecord(n_bytes=(0,) * len(files))
        if self._record_path is not None:
            self.record = self._earlier_record(self._record_path) or self.record
        for file in () if may_overwrite else self._parts:
            refuse_to_overwrite(file.path)
        for file in self._parts:
            file.open(stack)
        stack.callback(self._leave)
        self._write_record()

    @property
    def where(self) -> Path:
        return self._parts[0].part

    @property
    def are_streamed(self) -> bool:
        """Return whether translations go to a stream, whose reader may wait for them, and not into a file."""
        return self._record_path is None

    @property
    def can_be_resumed(self) -> bool:
        return self._record_path is not None and self.record.n_lines > 0

    def begin(self, made_by: Mapping[str, Any]) -> None:
        """Prepare to append the lines after those that `record` counts.

        Args:
            made_by: everything that the output depends on, except the text, named by option; written as JSON.
        Raises:
            DataError: the interrupted run was started with other settings.
        """
        if self.can_be_resumed and (difference := _difference(self.record.made_by, made_by)):
            raise DataError(self.where, f"was started {difference[0]}", f"{difference[1]}, or delete it to start over")
        self.record = replace(self.record, made_by=made_by)
        self._cut()

    def add(self, contents: Sequence[bytes], n_lines: int, digests: Mapping[str, str], counts: Counter[str]) -> None:
        """Append the translations of the next lines to each file, and record them; see OutputRecord."""
        before = self.record
        try:
            for file, content in zip(self._files, contents, strict=True):
                file.write(content)
            self.record = OutputRecord(
                before.made_by,
                before.n_lines + n_lines,
                digests,
                Counter(before.counts) + counts + Counter(lines=n_lines),
                tuple(n + len(content) for n, content in zip(before.n_bytes, contents, strict=True)),
            )
            self._write_record()
        except WriteError as error:
            self.record = before
            if not self.can_be_resumed:
                raise
            raise WriteError(error.path, error.error, "run the same command with --resume") from None

    def finish(self) -> None:
        """Rename the complete files to their final names."""
        # The translations last: a program that waits for them then finds the other files too.
        for file in reversed(self._parts):
            file.publish()
        if self._record_path is not None:
            self._record_path.unlink(missing_ok=True)

    def _leave(self) -> None:
        """Keep the completed steps of an interrupted translation; if there are none, remove all its files."""
        if self.can_be_resumed:
            self._cut()
            return
        for path in (*(file.part for file in self._parts), *filter(None, [self._record_path])):
            path.unlink(missing_ok=True)

    def _earlier_record(self, path: Path) -> OutputRecord | None:
        """Return the record of the run to resume, after checking its files; None if translation starts from line 1."""
        record = OutputRecord.read(path, self.where)
        if record is None:
            self._refuse_unknown_parts(path)
        if record is None or record.n_lines == 0:  # it stopped during its first step
            return None
        if self._is_resumed:
            for file, n_bytes in zip(self._parts, record.n_bytes, strict=False):
                file.unpublish(n_bytes)
        missing = [file.part for file in self._parts if not file.part.is_file()]
        if len(missing) == len(self._parts):
            return None
        if not self._is_resumed:
            problem = f"is an interrupted translation of {record.n_lines:,} lines"
            raise DataError(self.where, problem, "add --resume to continue it, or delete it to start over")
        if missing:
            (there, *_) = (file.part for file in self._parts if file.part not in missing)
            raise DataError(missing[0], "is missing", f"to start over, delete {there} too")
        for file, n_bytes in zip(self._parts, record.n_bytes, strict=False):
            if file.part.stat().st_size < n_bytes:
                raise DataError(file.part, "is shorter than when it was written", "delete it to start over")
        return record

    def _refuse_unknown_parts(self, record_path: Path) -> None:
        for file in self._parts:
            if file.part.is_file() and file.part.stat().st_size:
                problem = f"exists, but there is no {record_path} that says which translation it belongs to"
                raise DataError(file.part, problem, "move it to another place, or delete it")

    def _cut(self) -> None:
        """Remove everything written after the last complete step."""
        for file, n_bytes in zip(self._parts, self.record.n_bytes, strict=False):
            file.cut(n_bytes)

    def _write_record(self) -> None:
        if self._record_path is not None:
            self.record.write(self._record_path)


@contextmanager
def open_outputs(
    translations: BinaryIO | Path,
    alignments: Path | None = None,
    *,
    is_resumed: bool = False,
    may_overwrite: bool = False,
) -> Iterator[Outputs]:
    """Yield the outputs of a translation.

    Args:
        translations: standard output, or a path.
    Raises:
        ConfigError: `is_resumed` needs regular files, or only the alignments go to a stream.
        DataError: a file exists and may not be overwritten, or the files of an earlier run do not match.
        WriteError: a file cannot be written.
    """
    with ExitStack() as stack:
        files = [_output_file(where, stack) for where in (translations, alignments) if where is not None]
        if is_resumed and not all(isinstance(file, PartFile) for file in files):
            fix = "use regular files for --output and --alignments"
            raise ConfigError("--resume", "can only continue regular files", fix)
        if isinstance(files[0], PartFile) and not isinstance(files[-1], PartFile):
            problem = f"{alignments} is not a regular file, but --output is"
            raise ConfigError("--alignments", problem, "use regular files for both or neither")
        yield Outputs(files, stack, is_resumed=is_resumed, may_overwrite=may_overwrite)


def _output_file(where: BinaryIO | Path, stack: ExitStack) -> OutputStream:
    if not isinstance(where, Path):
        return OutputStream(None, where)
    if where.is_file() or not where.exists():
        return PartFile(where)
    with explained_writes(where):  # a device or a named pipe
        return OutputStream(where, stack.enter_context(where.open("wb", buffering=0)))


def _position_in_file(stream: BinaryIO | FileIO) -> int | None:
    """Return the position at which a regular file is written next; None for any other stream."""
    try:
        descriptor = stream.fileno()
        return os.lseek(descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):
        return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return how an earlier run was started and what to do; None if this run has the same settings."""
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name == "--model":
            return "with another model", "give that model"
        if old is None or old is False:
            return f"without {name}", f"rerun without {name}"
        if old is True:
            return f"with {name}", f"rerun with {name}"
        return f"with {name} {old}{'' if new is None else f', not {new}'}", f"rerun with {name} {old}"
    return None
