"""Trainings of several variants of a config, with several seeds each, and one table that compares them."""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml

from mt.config.loading import as_yaml, config_differences, is_changeable, load_config
from mt.config.settings import RunConfig, parse_duration
from mt.errors import ConfigError
from mt.evaluation.report_files import read_evaluation
from mt.evaluation.runs import RunArtifacts
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.significance import compare
from mt.report.charts import Series, line_chart
from mt.report.facts import Evaluation
from mt.report.page import page, table
from mt.run_folder import RunFolder
from mt.system.files import parse_json, write_json, write_text
from mt.units import format_count, format_duration, listed

_log = logging.getLogger(__name__)

NAME = "sweep"  # of the files with the result
METRIC = "bleu"
N_SHUFFLES = 10_000


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a variant with a seed."""

    variant: str  # the settings that differ, such as dropout=0.1
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @cached_property
    def result(self) -> Evaluation | None:
        """The report of a finished run."""
        return read_evaluation(self.folder)


class Sweep:
    """The runs of a grid, in their order: all variants with the first seed, then all with the next.

    Args:
        config: a file, or the name of a config that ships with mt.
        grid: `KEY=V1,V2` for each setting that varies; the first values are the baseline.
        overrides: `KEY=VALUE` for all runs.
        n_seeds: runs of each variant, with train.seed and the next numbers.
    Raises:
        ConfigError: a wrong grid or a wrong config of any variant; a run in the folder has other settings.
    """

    def __init__(self, config: str, grid: Sequence[str], overrides: Sequence[str], n_seeds: int, folder: Path) -> None:
        axes = dict(map(_axis, grid))
        given = [text.partition("=")[0].strip() for text in overrides]
        keys = [text.partition("=")[0].strip() for text in grid]
        if twice := [key for key in keys if (keys + given).count(key) > 1]:
            raise ConfigError(f"--grid {twice[0]}", "is given twice", "give each setting once, in --grid or in --set")
        if "train.seed" in axes:
            raise ConfigError("--grid train.seed", "cannot vary", "use --seeds N")
        self.folder, self.baseline, self.runs = folder, "", list[Run]()
        for number, values in itertools.product(range(n_seeds), itertools.product(*axes.values())):
            chosen = dict(zip(axes, values, strict=True))
            variant = (
                ",".join(f"{key.rpartition('.')[2]}={as_yaml(value)}" for key, value in chosen.items()) or "config"
            )
            texts = [*overrides, *(f"{key}={as_yaml(value)}" for key, value in chosen.items())]
            seed = load_config(config, texts).train.seed + number
            texts.append(f"train.seed={seed}")
            place = folder / f"{_file_name(variant)}-seed{seed}"
            self.runs.append(Run(variant, seed, place, tuple(texts), load_config(config, texts, run_dir=place)))
        self.config, self.baseline = config, self.runs[0].variant
        self.variants = list(dict.fromkeys(run.variant for run in self.runs))
        for run in self.runs:
            _check_settings(run)

    def plan(self) -> str:
        """Return the runs, one a line, and how long they take if they have a budget."""
        states = {run: "finished" if run.result else "started" if run.folder.exists() else "new" for run in self.runs}
        budgets = [
            run.config.train.budget or run.config.train.stop_after
            for run, state in states.items()
            if state != "finished"
        ]
        lines = [
            f"{run.folder}  ({state})  {' '.join(f'--set {text}' for text in run.overrides)}"
            for run, state in states.items()
        ]
        if budgets and all(budgets):
            seconds = sum(parse_duration(text) for text in budgets if text)
            lines.append(f"{len(budgets)} runs to train, {format_duration(seconds)} in all, on one device")
        return "\n".join(lines)

    def train(self) -> dict[Run, str]:
        """Train the runs that are not finished, one on each GPU at a time; write the result after each.

        Returns:
            The reason of each run that failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        n_gpus = torch.cuda.device_count() if self.runs[0].config.train.device == "auto" else 0
        n_devices = n_gpus if n_gpus > 1 else 0  # 0: the runs follow each other
        failed: dict[Run, str] = {}
        devices: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(n_devices):
            devices.put(number)

        def train_one(run: Run) -> tuple[Run, str | None]:
            device = devices.get() if n_devices else None
            try:
                return run, None if run.result else self._train(run, device)
            finally:
                if device is not None:
                    devices.put(device)

        with ThreadPoolExecutor(max(n_devices, 1)) as pool:
            for run, reason in pool.map(train_one, self.runs):
                if reason is not None:
                    failed[run] = reason
                    _log.warning(f"{run.folder}: {reason}; its output is in {run.log}")
                self.write(failed)
        return failed

    def _train(self, run: Run, device: int | None) -> str | None:
        """Train a run in another process; return why it failed, if it did."""
        options = [word for text in run.overrides for word in ("--set", text)]
        command = [sys.executable, "-m", "mt", "train", "--config", self.config, "--run-dir", str(run.folder), *options]
        _log.info(f"{run.folder}: training; its output goes to {run.log}")
        environment = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(device)}
        status = _run(command, run.log, environment)
        if status in (130, 143):
            raise KeyboardInterrupt
        run.__dict__.pop("result", None)
        if status:
            lines = run.log.read_text("utf-8", "replace").splitlines() or [f"exit status {status}"]
            return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix(
                "error: "
            )
        assert run.result is not None
        scores = ", ".join(f"{name} {one.scores[0].score:.2f}" for name, one in run.result.scored_sets.items())
        _log.info(f"{run.folder}: {scores}")
        return None

    # --- the result

    def rows(self, failed: dict[Run, str]) -> list[dict[str, Any]]:
        """Return the figures of each variant; means and standard deviations are over its finished seeds."""
        found = []
        for variant in self.variants:
            runs = [run for run in self.runs if run.variant == variant]
            results = [run.result for run in runs if run.result]
            row: dict[str, Any] = {"variant": variant, "seeds": [run.seed for run in runs if run.result]}
            if results:
                row["minutes"] = fmean(one.train_seconds or 0.0 for one in results) / 60
                row["parameters"], row["steps"] = results[0].n_parameters, fmean(one.steps or 0 for one in results)
                row["bleu"] = {
                    name: _mean_and_sd([one.scored_sets[name].scores[0].score for one in results])
                    for name in results[0].scored_sets
                }
                if variant != self.baseline:
                    row["p"] = self._p(variant)
            if reasons := [failed[run] for run in runs if run in failed]:
                row["failed"] = reasons
            found.append(row)
        return found

    def _p(self, variant: str) -> dict[str, float]:
        """Return p of the difference from the baseline for each test set, over the seeds that both have finished."""
        of_variant, of_baseline = (
            {run.seed: run for run in self.runs if run.variant == one and run.result}
            for one in (variant, self.baseline)
        )
        shared = [seed for seed in of_variant if seed in of_baseline]
        found = {}
        for name in of_variant[shared[0]].config.tests if shared else ():
            texts = [[_hypotheses(of[seed], name) for seed in shared] for of in (of_variant, of_baseline)]
            ours, theirs = (list(itertools.chain.from_iterable(lines)) for lines in texts)
            artifacts = RunArtifacts.of(of_variant[shared[0]].folder)
            references = [pair.tgt for pair in artifacts.test_pairs([name])[name]] * len(shared)
            direction = artifacts.directions([name])[name]
            tokenizer = artifacts.bleu_tokenizer(direction)
            pooled = TranslatedSet(None, ours, [references], direction.tgt, theirs, tokenizer)
            found[name] = compare(pooled, [METRIC], "randomisation", N_SHUFFLES)[0].p
        return found

    def write(self, failed: dict[Run, str]) -> None:
        """Write the result so far as JSON, Markdown and HTML."""
        rows, cells = self.rows(failed), self.table(failed)
        write_json(self.folder / f"{NAME}.json", {"config": self.config, "baseline": self.baseline, "variants": rows})
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|" + "---|" * len(cells[0]))
        write_text(self.folder / f"{NAME}.md", "\n".join(lines) + "\n")
        curves = [self._curve(variant) for variant in self.variants]
        chart = line_chart("BLEU on the validation set", curves, "minutes of training", "BLEU")
        title = f"Sweep of {self.config}"
        html = page("sweep.html.j2", title, table=table(cells[0], cells[1:]), chart=chart, baseline=self.baseline)
        write_text(self.folder / f"{NAME}.html", html)

    def text(self, failed: dict[Run, str]) -> str:
        """Return the result as a table for a terminal."""
        cells = self.table(failed)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)

    def table(self, failed: dict[Run, str]) -> list[list[str]]:
        """Return the cells of a table for people, header first."""
        rows = self.rows(failed)
        names = list(dict.fromkeys(name for row in rows for name in row.get("bleu", ())))
        header = ["variant", "seeds", *names, f"p against {self.baseline}", "minutes", "updates", "parameters"]
        cells = [header]
        for row in rows:
            scores = [_score_text(row["bleu"].get(name)) if "bleu" in row else "" for name in names]
            p = ", ".join(f"{name} {value:.4f}" for name, value in row.get("p", {}).items())
            rest = (
                [f"{row['minutes']:.1f}", f"{row['steps']:,.0f}", format_count(row["parameters"])]
                if "bleu" in row
                else [""] * 3
            )
            if "failed" in row:
                p = "; ".join([p, *row["failed"]]).removeprefix("; ")
            cells.append([row["variant"], str(len(row["seeds"])), *scores, p, *rest])
        return cells

    def _curve(self, variant: str) -> Series:
        """Return the mean curve of a variant: BLEU by minutes, validation by validation."""
        curves = [_validations(run) for run in self.runs if run.variant == variant and run.result]
        means = [[fmean(values) for values in zip(*points, strict=True)] for points in zip(*curves, strict=False)]
        return Series(variant, [minutes for minutes, _ in means], [bleu for _, bleu in means])


def _run(command: list[str], log_path: Path, environment: Mapping[str, str]) -> int:
    """Run a command to its end, append its output to a file, and return its exit status."""
    with (
        log_path.open("ab") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it has received the signal, too, and saves a checkpoint
            raise


def _axis(text: str) -> tuple[str, list[Any]]:
    """Return the key and the values of `KEY=V1,V2`."""
    key, equals, values = (part.strip() for part in text.partition("="))
    place = f"--grid {text}"
    if not (key and equals and values):
        raise ConfigError(place, "expected KEY=VALUE,VALUE, such as model.dropout=0.1,0.3")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        raise ConfigError(place, "the values are not valid YAML") from None
    if len({*map(as_yaml, found)}) < len(found):
        raise ConfigError(place, "has the same value twice", "remove one of them")
    return key, found


def _file_name(variant: str) -> str:
    return "".join(character if character.isalnum() or character in "=,.-_+" else "_" for character in variant)[:150]


def _check_settings(run: Run) -> None:
    """Raise a ConfigError if the run was started with settings that cannot change."""
    if not RunFolder(run.folder).has_work:
        return
    before = RunFolder(run.folder).read_config()
    changed = [
        f"{key} was {as_yaml(old)} and is now {as_yaml(new)}"
        for key, (old, new) in config_differences(before, run.config).items()
        if not is_changeable(key) and key != "eval.bleu_tokenize"
    ]
    if changed:
        problem = f"was started with other settings ({listed(changed)})"
        raise ConfigError(run.folder, problem, "use another --sweep-dir, or delete it")


def _hypotheses(run: Run, name: str) -> list[str]:
    return RunFolder(run.folder).translation(name).read_text("utf-8").split("\n")[:-1]


def _validations(run: Run) -> Iterator[tuple[float, float]]:
    """Yield minutes and BLEU of each validation."""
    for line in RunFolder(run.folder).metrics.read_text("utf-8").splitlines():
        record = parse_json(line)
        if record.get("valid_bleu") is not None:
            yield record["train_seconds"] / 60, record["valid_bleu"]


def _mean_and_sd(values: Sequence[float]) -> list[float | None]:
    return [fmean(values), stdev(values) if len(values) > 1 else None]


def _score_text(score: Sequence[float | None] | None) -> str:
    if score is None or score[0] is None or not math.isfinite(score[0]):
        return ""
    return f"{score[0]:.2f}" + ("" if score[1] is None else f" ± {score[1]:.2f}")
