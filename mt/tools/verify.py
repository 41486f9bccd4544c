"""A proof, on the user's own machine, that a training which was killed goes on as if nothing had happened.

The same updates are made in one go, and once more in processes that are killed at random moments, each followed by
another that goes on. Then every weight, all that training remembers, and what was logged are compared bit for bit.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mt.checkpoint import ModelFolder
from mt.config.loading import dump_config, load_config
from mt.config.settings import RunConfig
from mt.errors import ConfigError, MTError
from mt.pipeline import prepare
from mt.run_folder import RunFolder
from mt.system.console import show_messages
from mt.text.corpus import ParallelIds, PreparedCorpus, Sentences
from mt.train.loop import train
from mt.units import finite

_log = logging.getLogger(__name__)

# How many times further apart than two runs in one go a resumed run may be, where these are not identical themselves.
# Rounding alone makes a factor of 2 or 3; what a resume forgets shows in the losses, and there it makes thousands.
TOLERANCE = 10.0
LOSS_ROUNDING = 1e-6  # nats; two units in the last place of a loss in float32
N_VALIDATION_PAIRS = 4
LOGGED = ("train_loss", "learning_rate", "grad_norm", "valid_loss", "valid_bleu", "valid_chrf")
CONFIG, LOG = "config.yaml", "training.log"
_SECONDS_BETWEEN_LOOKS = 0.0005


Child = subprocess.Popen[bytes]  # a training in its own process
Start = Callable[[Path, Path], Child]  # of a run folder that holds the config, and of a prepared corpus


@dataclass(frozen=True)
class Kill:
    """When a process was killed."""

    step: int  # the last update that it had logged
    while_saving: bool

    def __str__(self) -> str:
        return f"after update {self.step}" + (" while saving" if self.while_saving else "")


@dataclass(frozen=True)
class Difference:
    """How two trainings of the same updates differ. Numbers are compared by their bits."""

    n_weights: int  # tensors
    n_weights_differing: int
    largest: float  # between two weights, absolute
    largest_in: str | None  # name of that weight
    relative: float  # norm of the difference of all weights over their norm
    n_state: int  # tensors, numbers and names that the training state holds, besides times
    n_state_differing: int
    first_state_differing: str | None  # that is no tensor, with both values
    n_logged: int  # figures
    n_logged_differing: int
    largest_loss: float  # between two logged training losses, in nats
    first_logged_differing: str | None  # with both values

    @property
    def is_none(self) -> bool:
        return not (self.n_weights_differing or self.n_state_differing or self.n_logged_differing)


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    n_updates: int
    kills: tuple[Kill, ...]
    resumed: Difference  # the run with kills against the one in one go
    again: Difference | None  # a second run in one go against the first; None: not needed, resume is bit-identical

    @property
    def is_bit_identical(self) -> bool:
        return self.resumed.is_none

    @property
    def is_proved(self) -> bool:
        """Whether resume adds nothing: no difference at all, or none beyond that of two runs that nobody kills."""
        if self.again is None or self.again.is_none:
            return self.is_bit_identical
        return (
            self.resumed.relative <= TOLERANCE * self.again.relative
            and self.resumed.largest_loss <= TOLERANCE * max(self.again.largest_loss, LOSS_ROUNDING)
        )

    @property
    def summary(self) -> str:
        """In one line."""
        if self.is_bit_identical:
            return "resume is bit-identical"
        if self.is_proved:
            return "resume adds nothing to how far two runs in one go are apart on this machine"
        return "resume changes the result"

    def __str__(self) -> str:
        """For people."""
        compared = self.resumed
        lines = [
            self.summary,
            f"  {self.n_updates} updates in one go, and again, killed {_times(len(self.kills))}: "
            + ", ".join(map(str, self.kills)),
        ]
        if not any(kill.while_saving for kill in self.kills):
            lines.append("  none of the kills came in a save: saves are too short here")
        if self.is_bit_identical:
            return "\n".join(
                [
                    *lines,
                    f"  the same to the last bit: {compared.n_weights:,} weights, {compared.n_state:,} entries of the "
                    f"training state, {compared.n_logged:,} logged figures",
                ]
            )
        lines += ["  killed and in one go:", *_difference_lines(compared)]
        if self.again is None or self.again.is_none:
            return "\n".join([*lines, "  in one go twice: the same to the last bit"])
        return "\n".join([*lines, "  in one go twice:", *_difference_lines(self.again)])

    def as_json(self) -> dict[str, Any]:
        """For programs; a number that is not finite is null."""
        return {
            "proved": self.is_proved,
            "bit_identical": self.is_bit_identical,
            "n_updates": self.n_updates,
            "kills": [asdict(kill) for kill in self.kills],
            "resumed": finite(asdict(self.resumed)),
            "again": None if self.again is None else finite(asdict(self.again)),
        }


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _difference_lines(difference: Difference) -> list[str]:
    d = difference
    where = f", by up to {d.largest:.1e} ({d.largest_in}), {d.relative:.1e} of their norm" if d.largest_in else ""
    state = f": {d.first_state_differing}" if d.first_state_differing else ""
    logged = (
        f", train_loss by up to {d.largest_loss:.1e}: first {d.first_logged_differing}" if d.n_logged_differing else ""
    )
    return [
        f"    {d.n_weights_differing:,} of {d.n_weights:,} weights differ{where}",
        f"    {d.n_state_differing:,} of {d.n_state:,} entries of the training state differ{state}",
        f"    {d.n_logged_differing:,} of {d.n_logged:,} logged figures differ{logged}",
    ]


# ------------------------------------------------------------------------------------------------------ the procedure


def verify_resume(
    config: RunConfig,
    run_dir: Path | None = None,
    *,
    n_updates: int = 30,
    n_kills: int = 3,
    start: Start | None = None,
) -> Verdict:
    """Find out whether a training that is killed and goes on ends with the same bits as one that is not.

    Args:
        run_dir: where the runs are kept; None: in a temporary folder, removed at the end.
        n_updates: of each run.
        n_kills: how often the second run is killed, at moments drawn with `train.seed`; the first one in a save.
        start: starts a training; another process of this Python by default.
    Raises:
        ConfigError: too many kills for the updates, or none of them came in time.
        MTError: the training itself ends with an error.
    """
    if n_updates < 2:
        raise ConfigError("--updates", f"expected at least 2, got {n_updates}")
    if not 1 <= n_kills < n_updates:
        raise ConfigError("--kills", f"expected 1 to {n_updates - 1}, fewer than --updates, got {n_kills}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE", "resume is verified in one process", "start it without torchrun")
    corpus = prepare(config).folder
    with ExitStack() as stack:
        folder = run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-verify-")))
        runs = _Runs(short_config(config, n_updates), folder, corpus, start or start_process)
        pace = runs.in_one_go("one-go")
        kills = runs.killed("killed", n_kills, pace)
        resumed = compare(folder / "one-go", folder / "killed", n_updates)
        again = None
        if not resumed.is_none:
            _log.info("they differ: once more in one go, to see whether that differs too")
            runs.in_one_go("one-go-again")
            again = compare(folder / "one-go", folder / "one-go-again", n_updates)
        return Verdict(n_updates, tuple(kills), resumed, again)


def short_config(config: RunConfig, n_updates: int) -> RunConfig:
    """The same training for a few updates: it logs each, saves every few, and hardly validates."""
    settings = replace(
        config.train,
        max_steps=n_updates,
        stop_after=None,
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
class Pace:
    """How fast a training is, as seen from outside."""

    update_seconds: float
    save_seconds: float


@dataclass(frozen=True)
class _Runs:
    """Trainings of one config, each in a folder of its own."""

    config: RunConfig
    folder: Path
    corpus: Path
    start: Start

    def in_one_go(self, name: str) -> Pace:
        """Train without a kill."""
        run_dir, n_updates = self._begin(name), self.config.train.max_steps
        _log.info(f"{n_updates} updates in one go")
        updating_from = saving_from = None
        saves = [0.0]
        with _ended(self.start(run_dir, self.corpus)) as child:
            while child.poll() is None:
                now = time.monotonic()
                if updating_from is None and last_logged(run_dir):
                    updating_from = now
                if is_saving(run_dir):
                    saving_from = saving_from or now
                elif saving_from is not None:
                    saves.append(now - saving_from)
                    saving_from = None
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        _require_success(child.wait(), run_dir)
        now = time.monotonic()
        return Pace((now - (updating_from or now)) / n_updates, statistics.median(saves))

    def killed(self, name: str, n_kills: int, pace: Pace) -> list[Kill]:
        """Train with kills, each followed by another start."""
        run_dir, n_updates = self._begin(name), self.config.train.max_steps
        _log.info(f"{n_updates} updates, killed {_times(n_kills)}")
        chance = random.Random(self.config.train.seed)
        kills: list[Kill] = []
        for i in range(n_kills):
            # Spread over the training: one kill in each part of it, and none before the one before.
            first, last = 1 + i * (n_updates - 1) // n_kills, (i + 1) * (n_updates - 1) // n_kills
            step = max(chance.randint(first, last), kills[-1].step + 1 if kills else 0)
            # The first kill comes in a save; if the save was over too soon, so do the next ones, at once.
            in_save = not any(kill.while_saving for kill in kills)
            longest_delay = (0.0 if kills else 0.7 * pace.save_seconds) if in_save else pace.update_seconds
            with _ended(self.start(run_dir, self.corpus)) as child:
                kill = kill_at(child, run_dir, step, in_save, chance.uniform(0, longest_delay))
            if kill is None:
                _require_success(child.wait(), run_dir)
                break
            kills.append(kill)
            _log.info(f"killed {kill} ({len(kills)} of {n_kills})")
        else:
            with _ended(self.start(run_dir, self.corpus)) as child:
                _require_success(child.wait(), run_dir)
        if not kills:
            raise ConfigError("--updates", f"{n_updates} were made before a kill could come", "give more")
        _log.info("went on to the end")
        return kills

    def _begin(self, name: str) -> Path:
        run_dir = self.folder / name
        try:
            run_dir.mkdir(parents=True)
            (run_dir / CONFIG).write_text(dump_config(self.config), encoding="utf-8")
        except FileExistsError:
            raise ConfigError("--run-dir", f"{run_dir} is there already", "give a new folder") from None
        except OSError as error:
            raise MTError(f"{run_dir}: cannot be written: {error.strerror}") from error
        return run_dir


def kill_at(child: Child, run_dir: Path, step: int, in_save: bool, delay: float) -> Kill | None:
    """Kill a training once it has logged an update, or in the first save after that; None: it ended before.

    Args:
        delay: seconds between that moment and the kill.
    """
    while child.poll() is None and is_saving(run_dir):  # what the process before has left is still there
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    while child.poll() is None:
        if last_logged(run_dir) >= step and (is_saving(run_dir) or not in_save):
            time.sleep(delay)
            child.kill()
            return Kill(last_logged(run_dir), is_saving(run_dir)) if child.wait() < 0 else None
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return None


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is half written."""
    try:
        with os.scandir(run_dir / "checkpoints") as entries:
            return any(entry.name.startswith(".step-") and entry.name.endswith(".writing") for entry in entries)
    except FileNotFoundError:
        return False


def last_logged(run_dir: Path) -> int:
    """The last update of which measurements are written, 0 before the first."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4_096))
            *lines, _ = stream.read().split(b"\n")
        return int(json.loads(lines[-1])["step"])
    except (FileNotFoundError, IndexError, ValueError):
        return 0


@contextmanager
def _ended(child: Child) -> Iterator[Child]:
    """A child that has ended when this is left; killed, if by an exception."""
    try:
        yield child
    except BaseException:
        child.kill()
        raise
    finally:
        child.wait()


def _require_success(status: int, run_dir: Path) -> None:
    if status == 0:
        return
    log = (run_dir / LOG).read_text(encoding="utf-8", errors="replace") if (run_dir / LOG).exists() else ""
    last = (log.splitlines() or [""])[-1]
    if status == 2:
        raise MTError(last.removeprefix("error: "))
    if status < 0:
        raise MTError(f"the training was ended by signal {-status}, which did not come from here: is memory short?")
    raise RuntimeError(f"the training ended with status {status}:\n{log}")


# -------------------------------------------------------------------------------------------------- in the process


def start_process(run_dir: Path, corpus: Path) -> Child:
    """Train in a process of this Python; what it prints is added to a file in the run folder."""
    import mt

    # A folder named mt may lie in the current directory: the code that runs here comes first.
    code = "import sys; sys.path.insert(0, sys.argv[1]); from mt.tools.verify import main; main(sys.argv[2:])"
    package = str(Path(mt.__file__).resolve().parent.parent)
    with (run_dir / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, package, str(run_dir), str(corpus)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def main(arguments: Sequence[str]) -> None:
    """Train, or go on, in a run folder that holds a config; an error of the user is one line and status 2."""
    show_messages()
    run_dir, corpus = map(Path, arguments)
    try:
        train_in(run_dir, corpus)
    except MTError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def train_in(run_dir: Path, corpus: Path) -> None:
    """The training alone, as `mt train` does it, on a validation set cut down to a few pairs."""
    RunFolder(run_dir).remove_leftovers()
    whole = PreparedCorpus.open(corpus)
    pairs = whole.valid_pairs[:N_VALIDATION_PAIRS]
    valid = ParallelIds(*(_first(side, len(pairs)) for side in (whole.valid.src, whole.valid.tgt)))
    train(load_config(str(run_dir / CONFIG)), replace(whole, valid=valid, valid_pairs=pairs), run_dir)


def _first(sentences: Sentences, n: int) -> Sentences:
    return Sentences(sentences.ids[: sentences.offsets[n]], sentences.offsets[: n + 1])


# ------------------------------------------------------------------------------------------------------- comparing


def compare(first_run: Path, second_run: Path, step: int) -> Difference:
    """How the checkpoints of an update, and all that was logged up to it, differ between two runs."""
    folders = [ModelFolder.open(RunFolder(run_dir).checkpoint(step)) for run_dir in (first_run, second_run)]
    first, second = (folder.load_weights() for folder in folders)
    differing = [name for name in _union(first, second) if not _same(first.get(name), second.get(name))]
    gaps = {name: _gap(first.get(name), second.get(name)) for name in differing}
    largest_in = max(gaps, key=lambda name: gaps[name]) if gaps else None

    first_state, second_state = (_flat(folder.load_training_state()) for folder in folders)
    entries = [name for name in _union(first_state, second_state) if not name.endswith("_seconds")]
    changed = [name for name in entries if not _same(first_state.get(name), second_state.get(name))]
    plain = [
        f"{name} is {first_state.get(name)!r} and {second_state.get(name)!r}"
        for name in changed
        if not (isinstance(first_state.get(name), Tensor) and isinstance(second_state.get(name), Tensor))
    ]

    first_logged, second_logged = (_logged(run_dir) for run_dir in (first_run, second_run))
    figures = _union(first_logged, second_logged)
    unlike = [key for key in figures if first_logged.get(key) != second_logged.get(key)]
    return Difference(
        n_weights=len(_union(first, second)),
        n_weights_differing=len(differing),
        largest=gaps[largest_in] if largest_in else 0.0,
        largest_in=largest_in,
        relative=_relative(first, second) if differing else 0.0,
        n_state=len(entries),
        n_state_differing=len(changed),
        first_state_differing=plain[0] if plain else None,
        n_logged=len(figures),
        n_logged_differing=len(unlike),
        largest_loss=max(
            (_loss_gap(first_logged.get(key), second_logged.get(key)) for key in unlike if key[1] == "train_loss"),
            default=0.0,
        ),
        first_logged_differing=_both(min(unlike), first_logged, second_logged) if unlike else None,
    )


def _union(first: dict[Any, Any], second: dict[Any, Any]) -> list[Any]:
    return [*first, *(key for key in second if key not in first)]


def _same(a: Any, b: Any) -> bool:
    """Whether two entries are the same to the last bit: 0.0 and -0.0 are not, two equal NaNs are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    return type(a) is type(b) and bool(a == b)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _gap(a: Tensor | None, b: Tensor | None) -> float:
    """The largest absolute difference of two tensors; infinite where they cannot be subtracted."""
    if a is None or b is None or a.shape != b.shape:
        return math.inf
    gap = (a.double() - b.double()).abs().max().item()
    return math.inf if math.isnan(gap) else gap


def _loss_gap(a: float | None, b: float | None) -> float:
    return math.inf if a is None or b is None else abs(a - b)


def _relative(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    if any(name not in second or tensor.shape != second[name].shape for name, tensor in first.items()):
        return math.inf
    apart = sum((tensor.double() - second[name].double()).square().sum().item() for name, tensor in first.items())
    relative = math.sqrt(apart / sum(tensor.double().square().sum().item() for tensor in first.values()))
    return math.inf if math.isnan(relative) else relative


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested dicts and lists by dotted names."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {key: value}
    return {k: v for name, inner in items for k, v in _flat(inner, f"{key}.{name}" if key else str(name)).items()}


def _logged(run_dir: Path) -> dict[tuple[int, str], Any]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return {(entry["step"], name): entry[name] for entry in entries for name in LOGGED if name in entry}


def _both(key: tuple[int, str], first: dict[tuple[int, str], Any], second: dict[tuple[int, str], Any]) -> str:
    step, name = key
    return f"{name} of update {step}, {first.get(key)!r} and {second.get(key)!r}"
