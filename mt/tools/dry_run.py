"""A description of what a training would do, before it starts: `mt train --dry-run`. Nothing is written."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mt.checkpoint import ModelFolder
from mt.config.settings import RunConfig, TrainConfig, parse_duration
from mt.data.packing import PlanState
from mt.errors import CheckpointError, ConfigError, MTError
from mt.model import Transformer
from mt.pipeline import corpus_folder
from mt.run_folder import RunFolder, schedule_start
from mt.system.device import hardware, memory_bytes, peak_memory_bytes
from mt.system.distributed import Ranks
from mt.system.files import existing_folder
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus
from mt.tools.bench import StepTimer, device_name, engine_over, step_in_parts
from mt.training.budget import LONGEST_WARM_UP, budget_seconds
from mt.training.engine import Engine, Footprint, OutOfMemory, Update, choose_execution
from mt.training.optimizer import learning_rate
from mt.units import format_bytes, format_duration

_log = logging.getLogger(__name__)

# Micro-batches measured after the warm-up: at least FEWEST_MICRO_BATCHES, and for at least MEASURED_SECONDS.
WARM_UP_MICRO_BATCHES, FEWEST_MICRO_BATCHES, MEASURED_SECONDS = 2, 3, 2.0
MARGIN = 10  # columns for the names of sections
PLOT_ROWS, AXIS = 8, 10  # AXIS columns hold the labels of the vertical axis
EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Cost:
    """The measured cost of updates on this machine."""

    n_measured: int  # micro-batches
    n_micro_batches: float  # per update, mean of the measured updates
    n_tgt_tokens: float  # per update, mean of the measured updates
    update_seconds: float
    peak_bytes: int


def dry_run(config: RunConfig, run_dir: Path) -> str:
    """Return a description of what `mt train` would do, for a terminal.

    Raises:
        MTError: training would not start, as far as this is known before the data is prepared.
    """
    if Ranks.from_environment().n > 1:
        raise ConfigError("WORLD_SIZE", "a dry run uses one process", "start it without torchrun")
    choose_execution(config.train, config.model)
    _check_that_it_can_be_written(run_dir)
    _log.info("looking for the corpus")
    run = RunFolder(run_dir)
    folder, n_done = corpus_folder(config, run), run.n_updates
    corpus = PreparedCorpus.open(folder) if folder.is_dir() else None
    _log.info("building the model")
    engine = engine_over(config, corpus)
    _log.info(f"measuring updates on {engine.device}")
    cost, footprint = measure(engine), Footprint.of(config, engine.model.vocab_sizes)
    config = replace(config, train=_with_steps(config.train, cost.update_seconds))
    corpus_place = f"{folder} ({'to be prepared' if corpus is None else 'prepared'})"
    start = 0
    with suppress(CheckpointError):  # there is none yet, or it is damaged
        start = schedule_start(ModelFolder.open(run.checkpoint(n_done)), config.train)
    width = max(60, shutil.get_terminal_size((80, 24)).columns)
    sections = {
        "model": _model_lines(engine.model),
        "data": _data_lines(config, corpus, engine),
        "time": _time_lines(config.train, engine, cost, n_done, is_random=corpus is None),
        "memory": _memory_lines(engine, footprint, cost),
        "schedule": _schedule_lines(config.train, config.model.d_model, width - MARGIN, start),
        "files": _file_lines(config.train, footprint, corpus_place, run_dir, n_done),
    }
    text = [f"{config.name}: what mt train would do. This is a dry run: nothing is written."]
    if warning := run.limit_warning(config.train.last_step):
        text.append(f"warning: {warning}")
    for name, lines in sections.items():
        text += ["", f"{name:<{MARGIN}}{lines[0]}", *(f"{'':<{MARGIN}}{line}" for line in lines[1:])]
    return "\n".join(line.rstrip() for line in text)


def _check_that_it_can_be_written(run_dir: Path) -> None:
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        reason = "is not writable" if existing.is_dir() else "is not a folder"
        raise MTError(f"{run_dir}: the run folder cannot be written: {existing} {reason}")


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(engine: Engine) -> Cost:
    """Measure updates of one micro-batch each, and compute the cost of whole updates from them.

    Args:
        engine: one that has not started yet.
    Raises:
        ConfigError: not even the smallest micro-batches fit into memory.
    """
    engine.begin()
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    _warm_up(engine)
    updates = engine.updates(PlanState(), 1, sys.maxsize)
    timer, measured, started_at = StepTimer(engine.device), list[Update](), time.perf_counter()
    while len(measured) < FEWEST_MICRO_BATCHES or time.perf_counter() - started_at < MEASURED_SECONDS:
        update = next(updates)
        timer.end("data")
        step_in_parts(engine, _one_micro_batch(update, len(measured)), timer)
        measured.append(update)
    n_measured = len(measured)
    n_micro_batches = sum(len(update.sentences) for update in measured) / n_measured
    seconds = {part: timer.seconds(part) / n_measured for part in ("data", "forward", "backward", "optimizer")}
    # On a GPU, another thread assembles the data meanwhile.
    data_seconds = seconds["data"] if engine.device.type == "cpu" else 0.0
    pass_seconds = seconds["forward"] + seconds["backward"]
    return Cost(
        n_measured=n_measured,
        n_micro_batches=n_micro_batches,
        n_tgt_tokens=sum(update.n_tgt_tokens for update in measured) / n_measured,
        update_seconds=data_seconds + n_micro_batches * pass_seconds + seconds["optimizer"],
        peak_bytes=peak_memory_bytes(engine.device),
    )


def _warm_up(engine: Engine) -> None:
    """Make the first updates, which allocate lasting memory; halve micro-batches until one fits, as training does."""
    while True:
        try:
            for update in engine.updates(PlanState(), 1, WARM_UP_MICRO_BATCHES):
                engine.step(_one_micro_batch(update, 0), lr=1e-9)
            return
        except OutOfMemory as error:
            engine.halve_micro_batches(error)


def _one_micro_batch(update: Update, number: int) -> Update:
    """Return the update with only one of its micro-batches."""
    number %= len(update.micro_batches)
    return replace(update, micro_batches={number: update.micro_batches[number]})


def _with_steps(train: TrainConfig, update_seconds: float) -> TrainConfig:
    """Return the settings with the steps of a budget that is used for nothing but updates."""
    if train.budget is None:
        return train
    n = max(1, math.floor(budget_seconds(train) / update_seconds))
    warmup = min(train.warmup_steps, max(1, round(n * LONGEST_WARM_UP)))
    return replace(train, budget=None, max_steps=n, schedule="warmup_stable_decay", warmup_steps=warmup)


# --- Output -----------------------------------------------------------------------------------------------------------


def _model_lines(model: Transformer) -> list[str]:
    parts, total = parameters_by_part(model), model.n_parameters
    return [f"{total:>13,} parameters", *(f"{n:>13,} {n / total:>6.1%}  {part}" for part, n in parts.items())]


def parameters_by_part(model: Transformer) -> dict[str, int]:
    """Return the number of trainable parameters by part of the model."""
    parts = Counter[str]()
    for table, n in model.n_pieces.items():
        roles = [
            role for role, one in zip(("source", "target", "output"), model.embeddings, strict=True) if one is table
        ]
        parts[f"embedding of {', '.join(roles)} ({n:,} pieces × {model.config.d_model})"] = n * model.config.d_model
    tables = {table.weight for table in model.n_pieces}
    for name, parameter in model.named_parameters():
        if parameter not in tables:
            side, *path = name.split(".")
            inside = next((word for word in path if not word.isdigit()), "norm")
            what = "norms" if "norm" in name else inside.replace("_", " ")
            parts[f"{side.removesuffix('_norm').replace('_', ' ')}, {what}"] += parameter.numel()
    sides = [part.partition(",")[0] for part in parts]
    return dict(sorted(parts.items(), key=lambda item: (sides.index(item[0].partition(",")[0]), "norms" in item[0])))


def _data_lines(config: RunConfig, corpus: PreparedCorpus | None, engine: Engine) -> list[str]:
    weights = [one.corpus.weight for one in config.training] if corpus is None else config.weights(corpus.corpus_sizes)
    names = [reader.name for key, reader in readers_of(config).items() if key.startswith("data.train.")]
    each = zip(names, weights, strict=True)
    sources = [f"{name}, weight {weight:.3g}".removesuffix(", weight 1") for name, weight in each]
    if corpus is None:
        return ["not prepared yet: the numbers of pairs, tokens and epochs are known after mt prepare", *sources]
    train, per_epoch = corpus.manifest["train"], engine.plan.updates_per_epoch()
    kept = (f"{n:>13,} pairs  {source}" for n, source in zip(corpus.corpus_sizes, sources, strict=True))
    tests = "".join(f", {len(pairs):,} for {name}" for name, pairs in corpus.test_pairs.items())
    max_steps = config.train.max_steps
    return [
        f"{len(corpus.train):>13,} pairs, {train['src_tokens']:,} source and {train['tgt_tokens']:,} target tokens",
        *(kept if len(sources) > 1 else ()),
        f"{len(corpus.valid):>13,} pairs for validation{tests}",
        f"{per_epoch:>13,.1f} updates per epoch; {max_steps:,} updates are {max_steps / per_epoch:,.1f} epochs",
    ]


def _time_lines(train: TrainConfig, engine: Engine, cost: Cost, n_done: int, is_random: bool) -> list[str]:
    n_left, seconds = max(0, train.max_steps - n_done), cost.update_seconds
    micro_batches = "1 micro-batch" if cost.n_micro_batches == 1 else f"{cost.n_micro_batches:.3g} micro-batches"
    what = " of random sentences" if is_random else ""
    done = f" after the {n_done:,} already done" if n_done else ""
    device = f"{engine.device} ({device_name(hardware(engine.device))})"
    lines = [
        f"{format_duration(n_left * seconds)} for {n_left:,} updates{done}, {seconds:.3g} s each",
        f"{cost.n_tgt_tokens / seconds:,.0f} target tokens/s: {cost.n_tgt_tokens:,.0f} per update, in "
        f"{micro_batches} of up to {engine.budget.tgt_tokens:,}",
        f"measured over {cost.n_measured} micro-batches{what} on {device} in {engine.execution.note};",
        "preparation, validation, checkpoints and the final evaluation are not included",
    ]
    if train.stop_after is not None:
        n_until = math.floor(parse_duration(train.stop_after) / seconds)
        if n_until < train.max_steps:
            lines.append(
                f"train.stop_after ({train.stop_after}) ends training earlier, after {n_until:,} updates at most"
            )
    return lines


def _memory_lines(engine: Engine, footprint: Footprint, cost: Cost) -> list[str]:
    rest = "activations, data and the program" if engine.device.type == "cpu" else "activations and data"
    states = {**footprint.memory, rest: max(0, cost.peak_bytes - footprint.memory_bytes)}
    peak, available = format_bytes(cost.peak_bytes), format_bytes(memory_bytes(engine.device))
    return [
        f"{peak} of the {available} of {engine.device}{engine.memory_note}, not counting validation",
        *(f"{format_bytes(n):>13}  {name}" for name, n in states.items()),
    ]


def _schedule_lines(train: TrainConfig, d_model: int, width: int, start: int) -> list[str]:
    start = min(start, train.max_steps - 1)
    max_steps, peak_step = train.max_steps, min(start + train.warmup_steps, train.max_steps)
    peak, end = (learning_rate(step, train, d_model, start) for step in (peak_step, max_steps))
    limit = f"the {max_steps - start:,} updates that are left" if start else "train.max_steps"
    more = f"train.warmup_steps is {train.warmup_steps:,}, more than {limit}: the learning rate never falls"
    kept = [f"the last {max(train.keep_last, train.average_last)}", f"the best {train.keep_best}"]
    if train.keep_every is not None:
        kept.append(f"those of multiples of {train.keep_every:,}")
    return [
        *plot_schedule(train, d_model, width, start),
        *([f"restarted after step {start:,}"] if start else []),
        f"{train.schedule}: learning rate {peak:.3g} at step {peak_step:,}, {end:.3g} at the end (step {max_steps:,})",
        *([more] if start + train.warmup_steps > train.max_steps else []),
        f"validation every {train.validate_every:,} updates, {math.ceil(max_steps / train.validate_every):,} in total",
        f"checkpoint every {train.checkpoint_every:,} updates, {_n_checkpoints(train):,} in total; "
        f"kept: {', '.join(kept)}",
    ]


def _n_checkpoints(train: TrainConfig) -> int:
    """Return the number of checkpoints that training writes by schedule and at its end."""
    return math.ceil(train.max_steps / train.checkpoint_every)


def plot_schedule(train: TrainConfig, d_model: int, width: int, start: int = 0) -> list[str]:
    """Draw the learning rate over all updates after `start`, `width` columns wide."""
    n_columns, n_steps = width - AXIS, train.max_steps - start
    steps = [start + 1 + round(i * (n_steps - 1) / (n_columns - 1)) for i in range(n_columns)]
    rates = [learning_rate(step, train, d_model, start) for step in steps]
    # The peak may fall between two columns.
    top = max(*rates, learning_rate(start + min(train.warmup_steps, n_steps), train, d_model, start))
    heights = [round(rate / top * PLOT_ROWS * 8) for rate in rates]
    labels = {PLOT_ROWS - 1: f"{top:.2e}", PLOT_ROWS // 2 - 1: f"{top / 2:.2e}"}
    rows = [
        f"{labels.get(row, ''):>{AXIS - 2}} ┤" + "".join(EIGHTHS[min(8, max(0, h - 8 * row))] for h in heights)
        for row in reversed(range(PLOT_ROWS))
    ]
    axis = f"{'0':>{AXIS - 2}} └" + "─" * n_columns
    return [*rows, axis, " " * AXIS + _step_labels(train, n_columns, start)]


def _step_labels(train: TrainConfig, n_columns: int, start: int) -> str:
    """Return the labels below the plot: the first and the last step, and the end of the warm-up if it fits."""
    last = f"step {train.max_steps:,}"
    first = f"{start + 1:,}"
    line = first.ljust(n_columns - len(last)) + last
    place = round((train.warmup_steps - 1) / max(train.max_steps - start - 1, 1) * (n_columns - 1))
    label = f"↑ {start + train.warmup_steps:,}"
    if place > len(first) and place + len(label) < n_columns - len(last):
        line = line[:place] + label + line[place + len(label) :]
    return line


def _file_lines(train: TrainConfig, footprint: Footprint, corpus: str, run_dir: Path, n_done: int) -> list[str]:
    state = "new"
    if n_done:
        state = "already trained" if n_done >= train.max_steps else f"resumes from step {n_done:,}"
    model, n_averaged = "the best checkpoint", min(train.n_averaged, _n_checkpoints(train))
    if n_averaged:
        model = f"the average of the last {n_averaged} checkpoints" if n_averaged > 1 else "the last checkpoint"
    free = shutil.disk_usage(existing_folder(run_dir)).free
    entries = {
        "run folder": f"{run_dir} ({state})",
        "corpus": corpus,
        "model": f"{run_dir / 'model'}, {model}",
        "report": f"{run_dir / 'report.html'}, {run_dir / 'report.json'}, {run_dir / 'report.md'}",
        "curves": f"{run_dir / 'tensorboard'}, {run_dir / 'metrics.jsonl'}",
        "checkpoints": f"{run_dir / 'checkpoints'}, {format_bytes(footprint.checkpoint_bytes)} each, "
        f"up to {footprint.n_checkpoints:,} at a time",
        "disk": f"at most {format_bytes(footprint.disk_bytes)}; {format_bytes(free)} are free",
    }
    lines = [f"{name:<13}{text}" for name, text in entries.items()]
    if footprint.disk_bytes >= free:
        lines.append("warning: the disk has too little free space: keep fewer checkpoints")
    return lines
