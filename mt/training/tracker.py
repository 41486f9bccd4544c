"""Reports of a run: a live line in a terminal or log lines, TensorBoard, metrics.jsonl and samples.jsonl."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt.run_folder import RunFolder
from mt.system.console import LiveLine, is_terminal
from mt.system.files import explained_writes, parse_json, write_text
from mt.units import finite, format_duration

if TYPE_CHECKING:
    from mt.training.progress import Progress
    from mt.training.validation import ValidationResult

_log = logging.getLogger(__name__)


class Tracker:
    """Shows and records the measurements of a run.

    Args:
        run: records of later steps than the current one, from an earlier start, are removed; they will be made again.
        progress: of the training; read whenever something is recorded.
        max_steps: number of updates when training ends; with `train.budget`, the progress has an estimate.
        updates_per_epoch: an estimate.
        seconds_left: time until `train.stop_after` or the end of `train.budget`.
    Raises:
        WriteError: the disk is full or the folder cannot be written. All methods that record can raise it too.
    """

    def __init__(
        self,
        run: RunFolder,
        progress: Progress,
        max_steps: int,
        updates_per_epoch: float,
        seconds_left: float = math.inf,
    ) -> None:
        self._run, self._progress = run, progress
        self._open_files()
        self._max_steps, self._updates_per_epoch = max_steps, updates_per_epoch
        self._last_bleu = ""
        self._warned_of_scores = False
        self._first_step, self._earlier_seconds = progress.step, progress.train_seconds
        self._started_at = self._step_at = time.monotonic()  # _step_at: end of the last update
        self._ends_at = self._started_at + seconds_left
        self._line: LiveLine | None = None
        if is_terminal():
            total = None if progress.budget_plan else max_steps
            self._line = LiveLine(self._count(), "starting", progress.step, total, clock=self._times)

    def _count(self) -> str:
        plan = self._progress.budget_plan
        if plan is None:
            return f"{self._progress.step:,}/{self._max_steps:,} ({self._progress.step / self._max_steps:.1%})"
        return f"{self._progress.step:,}" + ("" if plan.end is None else f" of about {plan.end:,}")

    def log(self, **values: float) -> None:
        """Record and show measurements of updates, named as in `metrics.jsonl`."""
        self._record(values)
        scalars = {f"train/{name.removeprefix('train_')}": x for name, x in values.items()}
        self._events.add_scalars(self._progress.step, scalars)
        self.show(**values)

    def log_validation(self, result: ValidationResult) -> None:
        """Record and show the result of a validation."""
        step = self._progress.step
        values = {"valid_loss": result.loss, "valid_bleu": result.bleu, "valid_chrf": result.chrf}
        by_set = {
            name: {key: getattr(one, key) for key in ("loss", "bleu", "chrf")} for name, one in result.sets.items()
        }
        if result.loss_on_old is not None:
            values["valid_loss_on_old"] = result.loss_on_old
        self._record(
            {**values, "valid_loss_by_length": result.loss_by_length} | ({"valid_sets": by_set} if by_set else {})
        )
        scalars = {f"valid/{name.removeprefix('valid_')}": value for name, value in values.items()}
        scalars |= {f"valid_loss_by_length/{length}": loss for length, loss in result.loss_by_length.items()}
        scalars |= {f"{name}/{key}": value for name, scores in by_set.items() for key, value in scores.items()}
        self._events.add_scalars(step, scalars)
        for i, (src, hyp, ref) in enumerate(result.samples, start=1):
            # TensorBoard renders Markdown: text indented by four spaces is shown unchanged.
            self._events.add_text(step, f"samples/{i}", f"    {src}\n    {hyp}\n    {ref}")
        samples = [{"source": src, "translation": hyp, "reference": ref} for src, hyp, ref in result.samples]
        self._samples.write_line({"step": step, "samples": samples})
        self._last_bleu = f" · BLEU {result.bleu:.2f}"
        self.say(f"step {step:,}: validation loss {result.loss:.4f}, BLEU {result.bleu:.2f}, chrF2 {result.chrf:.2f}")
        if result.sets:
            each = ", ".join(f"{name.removeprefix('valid.')} {one.bleu:.2f}" for name, one in result.sets.items())
            self.say(f"step {step:,}: these are means; BLEU by set: {each}")
        if result.loss_on_old is not None:
            relation = "below" if result.loss_on_old > 0 else "above"
            old = f"{abs(result.loss_on_old):.2f} BLEU {relation} the initial model on its validation text"
            self.say(f"step {step:,}: {old}")
        for warning in [] if self._warned_of_scores else result.warnings:
            self._warned_of_scores = True  # later ones differ in their numbers only
            self.say(f"warning: {warning}")

    def _record(self, values: dict[str, Any]) -> None:
        progress = self._progress
        reached = {"n_tgt_tokens": progress.n_tgt_tokens, "train_seconds": progress.train_seconds}
        self._metrics.write_line({"step": progress.step, **finite(values), **reached})

    def _open_files(self) -> None:
        """Open the files, which keep the records up to the current step."""
        for path in (self._run.metrics, self._run.samples):
            _remove_records_after(path, self._progress.step)
        self._metrics, self._samples = _AppendedFile(self._run.metrics), _AppendedFile(self._run.samples)
        self._events = _EventFile(self._run.tensorboard, self._progress.step)

    def roll_back(self) -> None:
        """Remove the records after the current step, to which training was rolled back."""
        self._close_files()
        self._open_files()

    def advance(self) -> None:
        """Move the progress bar. This is called after each update, so it must be cheap."""
        self._step_at = time.monotonic()
        if self._line is not None:
            self._line.show(self._count(), self._progress.step)

    def say(self, message: str) -> None:
        """Log one line."""
        _log.info(message)

    def show(self, **values: float) -> None:
        """Show measurements as `log` does, without recording them."""
        text = (
            f"epoch {self._progress.step / self._updates_per_epoch:.1f} · loss {values['train_loss']:.3f} · "
            f"lr {values['learning_rate']:.2e} · {values['tgt_tokens_per_second']:,.0f} tok/s{self._last_bleu} ·"
        )
        if self._line is not None:
            self._line.show(self._count(), self._progress.step, text)
        else:
            self.say(f"step {self._count()} · {text} {self._times()}")

    def _times(self) -> str:
        """Return the elapsed and the remaining time; both follow the clock between two updates."""
        now = time.monotonic()
        elapsed = f"{format_duration(self._earlier_seconds + now - self._started_at)} elapsed"
        step = self._progress.step
        if step == self._first_step:
            return elapsed
        seconds_per_step = (self._step_at - self._started_at) / (step - self._first_step)
        ends_at = min(self._step_at + seconds_per_step * (self._max_steps - step), self._ends_at)
        return f"{elapsed} · {format_duration(max(0.0, ends_at - now))} left"

    def close(self) -> None:
        """Close the files. All records are already written."""
        if self._line is not None:
            self._line.close()
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._events, self._metrics, self._samples):
            file.close()


class SilentTracker:
    """A tracker for the ranks other than the first: its methods do nothing."""

    def __getattr__(self, _method: str) -> Callable[..., None]:
        return lambda *_arguments, **_values: None


class _AppendedFile:
    """A file to which whole records are appended. It has no buffer, so that a failing write raises at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with explained_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        with explained_writes(self._path):
            while record:
                record = record[self._stream.write(record) :]

    def write_line(self, entry: dict[str, Any]) -> None:
        """Append a JSON object as one line."""
        self.write((json.dumps(entry) + "\n").encode())

    def close(self) -> None:
        self._stream.close()


class _EventFile:
    """An event file of TensorBoard, with scalars and text.

    torch's SummaryWriter is not used: it writes in a thread, which prints a traceback and dies if the disk is full.
    """

    _numbers = itertools.count()  # of this process: two files opened in one second need different names

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._file = _AppendedFile(folder / name)
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if first_step:  # TensorBoard hides later steps of an earlier start
            self._add(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, step: int, scalars: dict[str, float]) -> None:
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._add(step=step, summary={"value": values})

    def add_text(self, step: int, tag: str, text: str) -> None:
        kind = {"plugin_data": {"plugin_name": "text"}}
        tensor = {"dtype": "DT_STRING", "string_val": [text.encode()], "tensor_shape": {"dim": [{"size": 1}]}}
        self._add(step=step, summary={"value": [{"tag": tag, "metadata": kind, "tensor": tensor}]})

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        self._file.close()


def _remove_records_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a last line that was cut short is removed too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            if parse_json(line)["step"] <= step:
                kept.append(line.decode() + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))
