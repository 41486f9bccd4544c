"""What `mt translate` writes: whole lines, step by step, so that an interrupted run can be resumed.

An output file grows as OUTPUT.part and gets its name when it is whole. OUTPUT.part.json says how it is made and how far
it has come. It is written after each step; a run that resumes cuts off what was written behind that step.
"""

from __future__ import annotations

import json
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
from mt.system.files import WriteError, explained_writes, write_json
from mt.system.locks import locked

_FORMAT = 1


@dataclass(frozen=True)
class OutputRecord:
    """How far a translation has come, and what it was made with."""

    made_by: Mapping[str, Any] = field(default_factory=dict)  # all that the output depends on but the text
    n_lines: int = 0  # of the input
    digests: Mapping[str, str] = field(default_factory=dict)  # of what was read so far, by name
    counts: Mapping[str, int] = field(default_factory=dict)  # of lines with something to report
    n_bytes: tuple[int, ...] = ()  # of each output file

    @classmethod
    def read(cls, path: Path, part: Path) -> OutputRecord | None:
        """Read the record of an earlier run; None if there is none."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
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
    """What translations are written to: standard output, a pipe or a device, which cannot be resumed.

    Args:
        path: None for standard output.
    """

    _is_synced = False
    _stream: BinaryIO | FileIO

    def __init__(self, path: Path | None, stream: BinaryIO | FileIO) -> None:
        self.path, self._stream = path, stream

    def write(self, content: bytes) -> None:
        start = _place_in_file(self._stream)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()
            if self._is_synced:
                os.fsync(self._stream.fileno())
        except OSError as error:
            if start is not None:  # a file, if only by redirection, shall end with a whole line
                os.ftruncate(self._stream.fileno(), start)
            if self.path is None:
                raise
            raise WriteError(self.path, error) from None


class PartFile(OutputStream):
    """A file that is written as `path.part`, by this process alone, and gets its name when it is whole."""

    _is_synced = True
    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = Path(os.path.realpath(path))  # a link is written through
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
        """Undo `publish`, if the run was killed between that and its end."""
        if not self.part.is_file() and self.target.is_file() and self.target.stat().st_size == n_bytes:
            self.target.replace(self.part)


class Outputs:
    """The files that a translation writes in step, open until the stack closes; the first has the translations."""

    def __init__(self, files: Sequence[OutputStream], stack: ExitStack, *, is_resumed: bool) -> None:
        self._files, self._is_resumed = files, is_resumed
        self._parts = [file for file in files if isinstance(file, PartFile)]
        first = files[0]
        # If the translations themselves cannot be resumed, nothing is kept.
        self._record_path = first.part.with_name(f"{first.part.name}.json") if isinstance(first, PartFile) else None
        self.record = OutputRecord(n_bytes=(0,) * len(files))
        if self._record_path is not None:
            self.record = self._earlier_record(self._record_path) or self.record
        for file in self._parts:
            file.open(stack)
        self._write_record()
        stack.callback(self._leave)

    @property
    def where(self) -> Path:
        return self._parts[0].part

    @property
    def are_seen_at_once(self) -> bool:
        """Whether translations go where somebody may wait for them, and not into a file."""
        return self._record_path is None

    @property
    def can_be_resumed(self) -> bool:
        return self._record_path is not None and self.record.n_lines > 0

    def begin(self, made_by: Mapping[str, Any]) -> None:
        """Make ready to append what comes after the lines that `record` counts.

        Args:
            made_by: all that the output depends on but the text, for JSON. Names are those of options, if there is one.
        Raises:
            DataError: the run that is resumed was started with something else.
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
        """Give the files their names."""
        # The translations last: anyone who waits for them finds the others.
        for file in reversed(self._parts):
            file.publish()
        if self._record_path is not None:
            self._record_path.unlink(missing_ok=True)

    def _leave(self) -> None:
        """Keep the completed steps of a translation that was interrupted; leave nothing of one that has none."""
        if self.can_be_resumed:
            self._cut()
            return
        for path in (*(file.part for file in self._parts), *filter(None, [self._record_path])):
            path.unlink(missing_ok=True)

    def _earlier_record(self, path: Path) -> OutputRecord | None:
        """Return the record of the run to be resumed, whose files are there; None if the work starts over."""
        record = OutputRecord.read(path, self.where)
        if record is None:
            self._refuse_to_overwrite(path)
        if record is None or record.n_lines == 0:  # a run that stopped before its first step was complete
            return None
        if self._is_resumed:
            for file, n_bytes in zip(self._parts, record.n_bytes, strict=False):
                file.unpublish(n_bytes)
        missing = [file.part for file in self._parts if not file.part.is_file()]
        if len(missing) == len(self._parts):
            if self._is_resumed:
                self._refuse_to_overwrite(path)
            return None
        if not self._is_resumed:
            problem = f"is an interrupted translation of {record.n_lines:,} lines"
            raise DataError(self.where, problem, "add --resume to continue it, or delete it to start over")
        if missing:
            (there, *_) = (file.part for file in self._parts if file.part not in missing)
            raise DataError(missing[0], "is missing", f"delete {there} too, to start over")
        for file, n_bytes in zip(self._parts, record.n_bytes, strict=False):
            if file.part.stat().st_size < n_bytes:
                raise DataError(file.part, "is shorter than what was written to it", "delete it to start over")
        return record

    def _refuse_to_overwrite(self, record_path: Path) -> None:
        for file in self._parts:
            if file.part.is_file() and file.part.stat().st_size:
                problem = f"is in the way, and no {record_path} says which translation it belongs to"
                raise DataError(file.part, problem, "move it away")
            if self._is_resumed and file.target.exists():
                fix = "delete it, or leave --resume out, to translate again"
                raise DataError(file.path, f"exists already, and there is no {file.part.name} to continue", fix)

    def _cut(self) -> None:
        """Cut off what was written after the last step that was completed."""
        for file, n_bytes in zip(self._parts, self.record.n_bytes, strict=False):
            file.cut(n_bytes)

    def _write_record(self) -> None:
        if self._record_path is not None:
            self.record.write(self._record_path)


@contextmanager
def open_outputs(
    translations: BinaryIO | Path, alignments: Path | None = None, *, is_resumed: bool = False
) -> Iterator[Outputs]:
    """Yield the outputs of a translation.

    Args:
        translations: standard output, or a path.
    Raises:
        ConfigError: an output that is not a regular file is to be resumed.
        DataError: a file cannot be written, or what an earlier run left is in the way or does not fit.
    """
    with ExitStack() as stack:
        files = [_output_file(where, stack) for where in (translations, alignments) if where is not None]
        if is_resumed and not all(isinstance(file, PartFile) for file in files):
            fix = "give regular files to --output and --alignments"
            raise ConfigError("--resume", "can only continue regular files", fix)
        if isinstance(files[0], PartFile) and not isinstance(files[-1], PartFile):
            problem = f"{alignments} is not a regular file, but --output is"
            raise ConfigError("--alignments", problem, "give two regular files, or none")
        yield Outputs(files, stack, is_resumed=is_resumed)


def _output_file(where: BinaryIO | Path, stack: ExitStack) -> OutputStream:
    if not isinstance(where, Path):
        return OutputStream(None, where)
    if where.is_file() or not where.exists():
        return PartFile(where)
    with explained_writes(where):  # a device or a named pipe
        return OutputStream(where, stack.enter_context(where.open("wb", buffering=0)))


def _place_in_file(stream: BinaryIO | FileIO) -> int | None:
    """Return where a stream that is a regular file is going to be written; None for all others."""
    try:
        descriptor = stream.fileno()
        return os.lseek(descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):
        return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return how an earlier run was started, if not like this one, and what to do."""
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
