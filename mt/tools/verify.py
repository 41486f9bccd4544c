"""A proof, on the user's own machine, that a killed training resumes exactly: `mt verify-resume`.

The same updates are made without interruption, and again in processes that are killed at random moments, each followed
by a process that resumes. Then all weights, the training state and the logged figures are compared bit for bit.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mt.checkpoint import ModelFolder
from mt.config.loading import dump_config, flattened
from mt.config.settings import RunConfig
from mt.errors import ConfigError, MTError
from mt.pipeline import prepare
from mt.run_folder import RunFolder
from mt.system.workers import WorkerLost, Workers
from mt.text.corpus import ParallelIds, PreparedCorpus, Sentences
from mt.training.loop import train
from mt.units import finite

_log = logging.getLogger(__name__)

# If two uninterrupted runs differ, a resumed run may differ by this factor more. Rounding alone makes a factor of 2 or
# 3. State that a resume loses shows in the losses, where it makes a factor of thousands.
TOLERANCE = 10.0
LOSS_ROUNDING = 1e-6  # nats; two units in the last place of a loss in float32
N_VALIDATION_PAIRS = 4
LOGGED = ("train_loss", "learning_rate", "grad_norm", "valid_loss", "valid_bleu", "valid_chrf")
_POLL_SECONDS = 0.0005

K = TypeVar("K")


@dataclass(frozen=True)
class Kill:
    """The moment at which a process was killed."""

    step: int  # the last update that the process had logged
    while_saving: bool

    def __str__(self) -> str:
        return f"after update {self.step}" + (" while saving" if self.while_saving else "")


@dataclass(frozen=True)
class Difference:
    """The differences between two trainings of the same updates. Numbers are compared by their bits."""

    n_weights: int  # tensors
    n_weights_differing: int
    largest: float  # between two weights, absolute
    largest_in: str | None  # name of that weight
    relative: float  # norm of the difference of all weights, divided by the norm of the weights
    n_state: int  # tensors, numbers and names in the training state, except times
    n_state_differing: int
    first_state_differing: str | None  # the first that is not a tensor, with both values
    n_logged: int  # figures
    n_logged_differing: int
    largest_loss: float  # between two logged training losses, in nats
    first_logged_differing: str | None  # with both values

    @property
    def is_none(self) -> bool:
        return not (self.n_weights_differing or self.n_state_differing or self.n_logged_differing)

    def lines(self) -> list[str]:
        weights = f"{self.n_weights_differing:,} of {self.n_weights:,} weights differ"
        if self.largest_in:
            weights += f", by up to {self.largest:.1e} ({self.largest_in}), {self.relative:.1e} of their norm"
        state = f"{self.n_state_differing:,} of {self.n_state:,} entries of the training state differ"
        if self.first_state_differing:
            state += f"; first: {self.first_state_differing}"
        logged = f"{self.n_logged_differing:,} of {self.n_logged:,} logged figures differ"
        if self.first_logged_differing:
            logged += f", train_loss by up to {self.largest_loss:.1e}; first: {self.first_logged_differing}"
        return [f"    {line}" for line in (weights, state, logged)]


@dataclass(frozen=True)
class Verdict:
    """The result of `verify_resume`."""

    n_updates: int
    kills: tuple[Kill, ...]
    resumed: Difference  # between the killed run and the uninterrupted one
    again: Difference | None  # between two uninterrupted runs; None: not needed, resuming is bit-identical

    @property
    def is_proved(self) -> bool:
        """Return whether resuming adds no difference beyond that between two uninterrupted runs."""
        if self.again is None or self.again.is_none:
            return self.resumed.is_none
        return (
            self.resumed.relative <= TOLERANCE * self.again.relative
            and self.resumed.largest_loss <= TOLERANCE * max(self.again.largest_loss, LOSS_ROUNDING)
        )

    @property
    def summary(self) -> str:
        if self.resumed.is_none:
            return "resuming is bit-identical"
        if self.is_proved:
            return "resuming adds no difference beyond that between two uninterrupted runs on this machine"
        return "resuming changes the result"

    def __str__(self) -> str:
        compared, kills = self.resumed, f"killed {_times(len(self.kills))}: {', '.join(map(str, self.kills))}"
        lines = [self.summary, f"  {self.n_updates} updates without interruption, and again {kills}"]
        if not any(kill.while_saving for kill in self.kills):
            lines.append("  no kill happened during a save: saves are too short here")
        if self.resumed.is_none:
            state = f"{compared.n_state:,} entries of the training state"
            figures = f"{compared.n_logged:,} logged figures"
            lines.append(f"  bit-identical: {compared.n_weights:,} weights, {state}, {figures}")
        else:
            lines += ["  killed run against uninterrupted run:", *compared.lines()]
            if self.again is None or self.again.is_none:
                lines.append("  two uninterrupted runs: bit-identical")
            else:
                lines += ["  two uninterrupted runs:", *self.again.lines()]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return {"proved": self.is_proved, "bit_identical": self.resumed.is_none, **finite(asdict(self))}


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def train_in(run_dir: Path, corpus: Path) -> None:
    """Train as `mt train` does, but without the other stages and with only a few validation pairs.

    Args:
        run_dir: contains the config.
        corpus: folder of a prepared corpus.
    """
    run = RunFolder(run_dir)
    run.remove_leftovers()
    whole = PreparedCorpus.open(corpus)
    name, pairs = next(iter(whole.valid_sets.items()))
    pairs, sides = pairs[:N_VALIDATION_PAIRS], (whole.valid.src, whole.valid.tgt)
    n = len(pairs)
    valid = ParallelIds(*(Sentences(side.ids[: side.offsets[n]], side.offsets[: n + 1]) for side in sides))
    train(run.read_config(), replace(whole, valid=valid, valid_sets={name: pairs}), run_dir)


# ------------------------------------------------------------------------------------------------------ the procedure


def verify_resume(config: RunConfig, run_dir: Path | None = None, *, n_updates: int = 30, n_kills: int = 3) -> Verdict:
    """Compare a training that is killed and resumed with one that is not interrupted.

    Args:
        run_dir: folder for the runs, which are kept; None: a temporary folder that is removed at the end.
        n_updates: updates of each run.
        n_kills: how often the second run is killed, at moments drawn with `train.seed`; the first kill is during a
            save.
    Raises:
        ConfigError: too many kills for the updates, or the run finished before the first kill.
        MTError: the training itself ends with an error.
    """
    if n_updates < 2:
        raise ConfigError("--updates", f"expected at least 2, got {n_updates}")
    if not 1 <= n_kills < n_updates:
        raise ConfigError("--kills", f"expected 1 to {n_updates - 1} (fewer than --updates), got {n_kills}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE", "resume is verified in one process", "start it without torchrun")
    corpus = prepare(config).folder
    with ExitStack() as stack:
        folder = run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-verify-")))
        runs = _Runs(short_config(config, n_updates), folder, corpus)
        update_seconds, save_seconds = runs.in_one_go("one-go")
        kills = runs.killed("killed", n_kills, update_seconds, save_seconds)
        resumed = compare_runs(folder / "one-go", folder / "killed", n_updates)
        again = None
        if not resumed.is_none:
            _log.info(
                "the runs differ: repeating the uninterrupted run, to see whether two uninterrupted runs differ too"
            )
            runs.in_one_go("one-go-again")
            again = compare_runs(folder / "one-go", folder / "one-go-again", n_updates)
        return Verdict(n_updates, tuple(kills), resumed, again)


def short_config(config: RunConfig, n_updates: int) -> RunConfig:
    """Return a config for the same training with few updates: it logs each, saves often and validates little."""
    settings = replace(
        config.train,
        max_steps=n_updates,
        stop_after=None,
        budget=None,
        patience=None,
        log_every=1,
        checkpoint_every=max(1, n_updates // 10),
        validate_every=max(1, n_updates // 2),
        validation_beam_size=1,
        keep_last=1,
        keep_best=1,
        keep_every=None,
        average_last=0,
    )
    return replace(config, train=settings, decode=replace(config.decode, max_length=8))


@dataclass(frozen=True)
class _Runs:
    """Trainings of one config, each in its own folder."""

    config: RunConfig
    folder: Path
    corpus: Path

    def in_one_go(self, name: str) -> tuple[float, float]:
        """Train without interruption; return the seconds of an update and of a save, as seen from outside."""
        run_dir, n_updates = self._begin(name), self.config.train.max_steps
        _log.info(f"{n_updates} updates without interruption")
        updating_from = saving_from = None
        saves = [0.0]
        with Workers(1) as workers:
            training = workers.submit(train_in, run_dir, self.corpus)
            for step, is_saving in _poll(training.done, run_dir):
                now = time.monotonic()
                if step and updating_from is None:
                    updating_from = now
                if is_saving:
                    saving_from = saving_from or now
                elif saving_from is not None:
                    saves.append(now - saving_from)
                    saving_from = None
            training.result()
        now = time.monotonic()
        return (now - (updating_from or now)) / n_updates, statistics.median(saves)

    def killed(self, name: str, n_kills: int, update_seconds: float, save_seconds: float) -> list[Kill]:
        """Train with kills, each followed by a resume."""
        run_dir, n_updates = self._begin(name), self.config.train.max_steps
        _log.info(f"{n_updates} updates, killed {_times(n_kills)}")
        rng = random.Random(self.config.train.seed)
        kills: list[Kill] = []
        for i in range(n_kills):
            # Kills are spread over the training: one in each of n_kills parts, each later than the one before.
            first, last = 1 + i * (n_updates - 1) // n_kills, (i + 1) * (n_updates - 1) // n_kills
            step = max(rng.randint(first, last), kills[-1].step + 1 if kills else 0)
            # The first kill is during a save. If that save ended too soon, the next kill tries again, without a delay.
            in_save = not any(kill.while_saving for kill in kills)
            longest_delay = (0.0 if kills else 0.7 * save_seconds) if in_save else update_seconds
            with Workers(1) as workers:
                training = workers.submit(train_in, run_dir, self.corpus)
                if has_come := reaches(step, run_dir, training.done, in_save=in_save):
                    time.sleep(rng.uniform(0, longest_delay))
                    workers.kill()
                if not (has_come and isinstance(training.exception(), WorkerLost)):
                    training.result()
                    break
            kills.append(Kill(*read_progress(run_dir)))
            _log.info(f"killed {kills[-1]} ({len(kills)} of {n_kills})")
        else:
            with Workers(1) as workers:
                workers.submit(train_in, run_dir, self.corpus).result()
        if not kills:
            raise ConfigError("--updates", f"all {n_updates} were done before the first kill", "give more")
        _log.info("resumed to the end")
        return kills

    def _begin(self, name: str) -> Path:
        run = RunFolder(self.folder / name)
        try:
            run.path.mkdir(parents=True)
            run.config.write_text(dump_config(self.config), encoding="utf-8")
        except FileExistsError:
            raise ConfigError("--run-dir", f"{run.path} exists already", "give a new folder") from None
        except OSError as error:
            raise MTError(f"{run.path} cannot be written: {error.strerror}") from error
        return run.path


def reaches(step: int, run_dir: Path, is_over: Callable[[], bool], *, in_save: bool) -> bool:
    """Wait until a training has logged an update, or for the first save after it; return False if it ends before."""
    # At first, a checkpoint that the previous process left half written is still there.
    polled = dropwhile(lambda progress: progress[1], _poll(is_over, run_dir))
    return any(logged >= step and (is_saving or not in_save) for logged, is_saving in polled)


def _poll(is_over: Callable[[], bool], run_dir: Path) -> Iterator[tuple[int, bool]]:
    """Yield the progress of a training, again and again until it has ended."""
    while not is_over():
        yield read_progress(run_dir)
        time.sleep(_POLL_SECONDS)


def read_progress(run_dir: Path) -> tuple[int, bool]:
    """Return the last logged update (0: none yet), and whether a checkpoint is being saved."""
    run, step = RunFolder(run_dir), 0
    try:
        with run.metrics.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4_096))
            *lines, _ = stream.read().split(b"\n")
        step = int(json.loads(lines[-1])["step"])
    except (FileNotFoundError, IndexError, ValueError):
        pass
    return step, any(run.all_checkpoints.glob(".step-*.writing"))


# ------------------------------------------------------------------------------------------------------- comparing


def compare_runs(first_run: Path, second_run: Path, step: int) -> Difference:
    """Compare the checkpoints of two runs at an update, and everything logged up to it."""
    runs = [RunFolder(run_dir) for run_dir in (first_run, second_run)]
    folders = [ModelFolder.open(run.checkpoint(step)) for run in runs]
    first, second = (folder.load_weights() for folder in folders)
    n_weights, weights = _differing(first, second)
    gaps = {name: _gap(*tensors) for name, tensors in weights.items()}
    largest_in = max(gaps, key=lambda name: gaps[name][0], default=None)
    norm = sum(tensor.double().square().sum().item() for tensor in first.values()) if gaps else 1.0
    relative = math.sqrt(sum(squares for _, squares in gaps.values()) / norm)

    n_state, state = _differing(*map(_state, folders))
    plain = (f"{name}, {a!r} and {b!r}" for name, (a, b) in state.items() if not _are_tensors(a, b))

    n_logged, logged = _differing(*map(_logged, runs))
    losses = [both for (_, name), both in logged.items() if name == "train_loss"]
    figures = (f"{key[1]} of update {key[0]}, {logged[key][0]!r} and {logged[key][1]!r}" for key in sorted(logged))
    return Difference(
        n_weights=n_weights,
        n_weights_differing=len(weights),
        largest=gaps[largest_in][0] if largest_in else 0.0,
        largest_in=largest_in,
        relative=math.inf if math.isnan(relative) else relative,
        n_state=n_state,
        n_state_differing=len(state),
        first_state_differing=next(plain, None),
        n_logged=n_logged,
        n_logged_differing=len(logged),
        largest_loss=max((math.inf if None in (a, b) else abs(a - b) for a, b in losses), default=0.0),
        first_logged_differing=next(figures, None),
    )


def _differing(first: Mapping[K, Any], second: Mapping[K, Any]) -> tuple[int, dict[K, tuple[Any, Any]]]:
    """Return the number of entries, and both values of those that differ; a missing value is None."""
    pairs = {name: (first.get(name), second.get(name)) for name in {**first, **second}}
    return len(pairs), {name: (a, b) for name, (a, b) in pairs.items() if not _same(a, b)}


def _same(a: Any, b: Any) -> bool:
    """Return whether two entries are the same to the last bit: 0.0 and -0.0 are not, two equal NaNs are."""
    if _are_tensors(a, b):
        bits = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    return type(a) is type(b) and bool(a == b)


def _are_tensors(*values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _gap(a: Tensor | None, b: Tensor | None) -> tuple[float, float]:
    """Return the largest absolute difference and the sum of squares; infinity if the tensors do not match."""
    if a is None or b is None or a.shape != b.shape:
        return math.inf, math.inf
    gap = (a.double() - b.double()).abs()
    largest = gap.max().item()
    return math.inf if math.isnan(largest) else largest, gap.square().sum().item()


def _state(folder: ModelFolder) -> dict[str, Any]:
    entries = flattened(folder.load_training_state())
    return {name: value for name, value in entries.items() if not name.endswith("_seconds")}


def _logged(run: RunFolder) -> dict[tuple[int, str], Any]:
    entries = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    return {(entry["step"], name): entry[name] for entry in entries for name in LOGGED if name in entry}
