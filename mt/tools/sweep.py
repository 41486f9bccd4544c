"""Trainings of several variants of a config, with several seeds each, and one table that compares them."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from mt.config.loading import as_yaml, config_differences, dump_config, load_config, read_axis
from mt.config.settings import RunConfig, parse_duration
from mt.errors import ConfigError, MTError
from mt.evaluation.report_files import json_object
from mt.report.terminal import aligned
from mt.system.distributed import Ranks
from mt.system.files import write_text
from mt.system.locks import locked
from mt.system.signals import caught_signals
from mt.tools.sweep_table import RESULT, Finished, SweepTable
from mt.units import format_duration

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a variant with a seed. Its config and its output are in files next to its folder."""

    variant: str  # the settings that differ, such as dropout=0.1
    seed: int
    folder: Path
    config: RunConfig

    @property
    def config_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


class Sweep:
    """The runs of a grid, in their order: all variants with the first seed, then all with the next.

    Args:
        config: a file, or the name of a config that ships with mt.
        grid: `KEY=V1,V2` for each setting that varies; the first values are the baseline.
        overrides: `KEY=VALUE` for all runs.
        n_seeds: runs of each variant, with train.seed and the next numbers.
        folder: of the runs and the result.
    Raises:
        ConfigError: a wrong grid, or a wrong config of any variant; the folder has another sweep or something else.
    """

    def __init__(self, config: str, grid: Sequence[str], overrides: Sequence[str], n_seeds: int, folder: Path) -> None:
        axes = [read_axis(text) for text in grid]
        _check_keys([key for key, _ in axes], [text.partition("=")[0].strip() for text in overrides])
        self.name, self.folder = config, folder
        self.grid = {key: [" ".join(as_yaml(value).split()) for value in values] for key, values in axes}
        first = _config(config, overrides, {key: values[0] for key, values in self.grid.items()})
        self.seeds = [first.train.seed + number for number in range(n_seeds)]
        self.runs: list[Run] = []
        for seed, values in itertools.product(self.seeds, itertools.product(*self.grid.values())):
            variant = self._variant(values) or first.name
            place = folder / f"{_file_name(variant)}-seed{seed}"
            found = _config(config, overrides, dict(zip(self.grid, values, strict=True)), place)
            found = replace(found, train=replace(found.train, seed=seed))
            self.runs.append(Run(variant, seed, place, found))
        seen: dict[str, Run] = {}
        for run in self.runs:
            if (other := seen.setdefault(dump_config(run.config), run)) is not run:
                raise ConfigError("--grid", f"{other.variant} and {run.variant} are the same", "remove one of them")
        self._check_folder()
        self.table = SweepTable(list(dict.fromkeys(run.variant for run in self.runs)), self.seeds)
        for run in self.runs:
            self._read(run)

    def _variant(self, values: Sequence[str]) -> str:
        """Return a name such as `dropout=0.1,norm=pre`, with whole keys where their last parts are the same."""
        last = [key.rpartition(".")[2] for key in self.grid]
        names = [part if last.count(part) == 1 else key for key, part in zip(self.grid, last, strict=True)]
        return ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))

    def _check_folder(self) -> None:
        """Raise a ConfigError if the folder has anything but a part of this sweep."""
        record = json_object(self.folder / RESULT)
        if "grid" not in record:
            if any(self.folder.glob("[!.]*")):
                problem = "is not empty, and is not the folder of a sweep"
                raise ConfigError(self.folder, problem, "give another --sweep-dir")
            return
        before: dict[str, list[Any]] = {**record["grid"], "train.seed": record["seeds"]}
        now: dict[str, list[Any]] = {**self.grid, "train.seed": self.seeds}
        changed = [
            f"{key} had the values {_listed(before.get(key))} and now has {_listed(now.get(key))}"
            for key in {**before, **now}
            if key not in before or before[key] != now.get(key, [])[: len(before[key])]
        ]
        if not changed and list(before) != list(now):  # the names of the runs would be others
            changed = [f"the order of --grid was {', '.join(record['grid'])}"]
        stored = ((run, run.config_file) for run in self.runs if run.config_file.is_file())
        for run, path in stored if not changed else ():
            differences = config_differences(load_config(str(path), is_stored=True), run.config)
            changed = [f"{key} was {as_yaml(old)} and is now {as_yaml(new)}" for key, (old, new) in differences.items()]
            if changed:
                break
        if changed:
            fix = "give another --sweep-dir; seeds, and values at the end of a grid, may be added"
            raise ConfigError(self.folder, f"has a sweep with other settings ({'; '.join(changed)})", fix)

    def _read(self, run: Run) -> bool:
        """Read the result of a run; return whether it is finished."""
        if (found := Finished.read(run.folder)) is not None:
            self.table.finished[run.variant, run.seed] = found
        return found is not None

    @property
    def waiting(self) -> list[Run]:
        """The runs that are not finished."""
        return [run for run in self.runs if (run.variant, run.seed) not in self.table.finished]

    def plan(self) -> str:
        """Return the runs, one a line, and how long they take if their time is limited."""
        waiting, rows = self.waiting, [["folder", "variant", "seed", "state"]]
        for run in self.runs:
            state = "finished" if run not in waiting else "started" if run.folder.exists() else "new"
            rows.append([str(run.folder), run.variant, str(run.seed), state])
        limits = [run.config.train.budget or run.config.train.stop_after for run in waiting]
        seconds = [parse_duration(limit) for limit in limits if limit is not None]
        total = f", {format_duration(sum(seconds))} of training in all" if seconds and None not in limits else ""
        return "\n".join([*aligned(rows), f"{len(waiting):,} of {len(self.runs):,} runs to train{total}"])

    # --- training

    def train(self) -> None:
        """Train the runs that are not finished, one on each GPU at a time; write the result after each.

        Raises:
            KeyboardInterrupt, SystemExit(143): a signal stopped the sweep; each training has saved a checkpoint.
        """

        def refuse() -> NoReturn:
            raise MTError(self.folder, "another sweep is running in this folder", "wait for it")

        if Ranks.from_environment().n > 1:
            raise ConfigError("WORLD_SIZE", "a sweep has one process for each training", "start it without torchrun")
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", refuse):
            self._write()
            for run in self.runs:
                write_text(run.config_file, dump_config(run.config))
            self._train(self.waiting)

    def _train(self, waiting: list[Run]) -> None:
        free, running, has_told = _devices(self.runs), dict[Any, tuple[Run, str | None, int]](), False
        with caught_signals() as signals:
            try:
                while running or (waiting and signals.number is None):
                    while waiting and free and signals.number is None:
                        run, device = waiting.pop(0), free.pop(0)
                        n_before = run.log.stat().st_size if run.log.exists() else 0
                        _log.info(f"{self._place(run)}: training; its output goes to {run.log}")
                        running[start(run, device)] = run, device, n_before
                    time.sleep(_POLL_SECONDS)
                    if signals.number is not None and not has_told:
                        for process in running:  # on a terminal they have it already, and take both for one
                            process.send_signal(signals.number)
                        has_told = True
                    for process in [one for one in running if one.poll() is not None]:
                        run, device, n_before = running.pop(process)
                        free.append(device)
                        if process.returncode == 0 or signals.number is None:
                            self._end(run, process.returncode, n_before)
            finally:  # after an error or a second signal
                for process in running:
                    process.terminate()
                    process.wait()
        if signals.number is not None:
            _log.info("the same command continues this sweep")
            raise KeyboardInterrupt if signals.number == signal.SIGINT else SystemExit(128 + signals.number)

    def _write(self) -> None:
        grid = {"grid": self.grid, "seeds": self.seeds, "baseline": self.table.baseline}
        self.table.write(self.folder, {"config": self.name, **grid})

    def _place(self, run: Run) -> str:
        return f"{self.runs.index(run) + 1} of {len(self.runs)}, {run.variant}, seed {run.seed}"

    def _end(self, run: Run, status: int, n_before: int) -> None:
        """Record the end of a training, and write the result."""
        if status == 0 and self._read(run):
            found = self.table.finished[run.variant, run.seed]
            scores = ", ".join(f"{name} {score:.2f}" for name, score in found.bleu.items())
            minutes = format_duration(found.report.train_seconds or 0)
            _log.info(f"{self._place(run)}: BLEU {scores}; {minutes} of training")
        else:
            output = run.log.read_bytes()[n_before:].decode(errors="replace")
            self.table.failed[run.variant, run.seed] = reason = _reason(status, output)
            _log.warning(f"{self._place(run)}: {reason}")
        self._write()


def start(run: Run, device: str | None) -> Any:
    """Start `mt train` in another process, which appends its output to the run's log.

    Args:
        device: the CUDA device that it sees; None: all.
    """
    environment = {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})}
    command = [sys.executable, "-m", "mt", "train", "--config", str(run.config_file), "--run-dir", str(run.folder)]
    with run.log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _devices(runs: Sequence[Run]) -> list[str | None]:
    """Return the CUDA devices for one run each, if there are several; otherwise [None]."""
    n = torch.cuda.device_count() if all(run.config.train.device == "auto" for run in runs) else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n)))
    return [*visible.split(",")[:n]] if n > 1 else [None]


def _reason(status: int, output: str) -> str:
    """Return why a training failed: its error, or else the last line of its output."""
    if status < 0:
        return f"the training was ended by {signal.Signals(-status).name}"
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"the training ended with status {status}"])[-1]


def _check_keys(varied: Sequence[str], given: Sequence[str]) -> None:
    """Raise a ConfigError if a setting that varies, or a part of it, is given again."""
    if "train.seed" in varied:
        raise ConfigError("--grid train.seed", "cannot vary", "use --seeds N")
    for i, key in enumerate(varied):
        again = [f"--grid {one}" for j, one in enumerate(varied) if j != i] + [f"--set {one}" for one in given]
        if other := next((one for one in again if f"{one[one.index(' ') + 1 :]}.".startswith(f"{key}.")), None):
            raise ConfigError(f"--grid {key}", f"is given again by {other}", "give each setting once")


def _config(config: str, overrides: Sequence[str], settings: dict[str, str], run_dir: Path | None = None) -> RunConfig:
    texts = [f"{key}={value}" for key, value in settings.items()]
    try:
        return load_config(config, [*overrides, *texts], run_dir)
    except ConfigError as error:
        if any(error.place.startswith(f"--set {text}") for text in texts):
            raise ConfigError(error.place.replace("--set", "--grid", 1), error.problem, error.fix) from None
        raise


def _file_name(variant: str) -> str:
    """Return a variant as the name of a file; different variants have different names."""
    name = re.sub(r"[^\w=,.+-]", "_", variant)[:100]
    return name if name == variant else f"{name}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"


def _listed(values: Sequence[object] | None) -> str:
    return ", ".join(map(str, values)) if values else "none"
