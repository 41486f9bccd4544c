"""Measuring speed: of training on the engine, of decoding with a translator. Nothing is written."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mt.checkpoint import ModelFolder
from mt.config.settings import DecodeConfig, RunConfig
from mt.data.packing import PlanState
from mt.decode.lines import lines_of_text
from mt.decode.translator import Translator
from mt.errors import ConfigError
from mt.pipeline import prepare
from mt.run_folder import open_model
from mt.system.device import data_sheet_flops, hardware, peak_flops, peak_memory_bytes
from mt.system.malloc import tune_malloc
from mt.system.provenance import source_commit, versions
from mt.text.corpus import ParallelIds, Sentences, first_test_pairs
from mt.text.tokenizer import EOS_ID, Tokenizer
from mt.train.engine import Engine, OutOfMemory, Update
from mt.train.schedule import learning_rate
from mt.units import format_count

_log = logging.getLogger(__name__)

# Without a number of updates, as many are timed as take so long, and no fewer than this.
TIMED_SECONDS = 20.0
FEWEST_STEPS = 10
# A step of the warm-up that takes more than this share of the time of the one before ends it.
STEADY_SHARE = 0.8
MOST_WARM_UP_STEPS = 10
# Made-up sentences: target lengths are lognormal with the mean of WMT14's English-German training text in pieces, the
# spread and the ratio of the sides are those of its news test sets.
RANDOM_PAIRS = 100_000
MEAN_TGT_TOKENS, LOG_LENGTH_DEVIATION = 28.0, 0.6
SRC_TOKENS_PER_TGT_TOKEN, LOG_RATIO_DEVIATION = 0.95, 0.17
# Latency is that of so many lines, spread over the text, or of as many as take so long.
LATENCY_LINES, LATENCY_SECONDS = 100, 20.0
# Lines that are translated before the clock starts.
WARM_UP_LINES = 64


@dataclass(frozen=True)
class StepSplit:
    """Seconds of an update in each of its parts."""

    input_stall: float  # the device, or on a CPU the computation, waits for data; from the timed updates
    forward: float  # the loss included; this and what follows from further updates with a clock between the parts
    backward: float
    optimizer: float

    @property
    def shares(self) -> dict[str, float]:
        """Of the sum, by name."""
        total = sum(asdict(self).values())
        return {name: seconds / total for name, seconds in asdict(self).items()}


@dataclass(frozen=True)
class TrainingSpeed:
    """What training one model on one device was measured to cost. Tokens are real ones, ends of sentences included."""

    device: str
    execution: str  # precision, and whether it was compiled
    n_parameters: int
    batch_tokens: int
    micro_batch_tokens: int
    n_micro_batches: int
    warm_up_steps: int
    warm_up_seconds: float  # from nothing until the steps are steady: model, micro-batches that fit, compilation
    n_steps: int  # timed
    step_seconds: float
    tgt_tokens_per_second: float
    src_tokens_per_second: float
    split_seconds: StepSplit
    src_fill: float  # share of the positions that hold real tokens
    tgt_fill: float
    peak_memory_bytes: int
    reserved_memory_bytes: int | None  # by the allocator, on CUDA
    flops_per_tgt_token: float  # see Transformer.training_flops
    flops_per_second: float
    peak_flops_per_second: float
    peak_is_measured: bool  # else it is that of a data sheet
    mfu: float


@dataclass(frozen=True)
class DecodingSpeed:
    """What translating some lines with one model was measured to cost."""

    device: str
    execution: str
    n_parameters: int
    beam_size: int
    batch_tokens: int
    n_lines: int  # of all rounds
    n_tgt_tokens: int  # of the best hypotheses
    load_seconds: float
    seconds: float  # from text to text
    sentences_per_second: float
    tgt_tokens_per_second: float
    latency_seconds: dict[str, float]  # of one line translated alone: p50 and p95 of some, and how many these were (n)
    peak_memory_bytes: int


def bench_training(config: RunConfig, n_steps: int | None = None, random_data: bool = False) -> dict[str, Any]:
    """The figures of a config on its own corpus, prepared if need be, or on made-up sentences.

    Raises:
        MTError: data, settings or device need the user's attention.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE", "one device is measured", "start one process, without torchrun")
    if random_data:
        vocab_size = config.tokenizer.vocab_size
        data, corpus_sizes = random_corpus(vocab_size, config.data.max_tokens), None
        description = "made-up sentences of WMT14's lengths"
    else:
        corpus = prepare(config)
        vocab_size = Tokenizer.load(corpus.tokenizer_path).vocab_size
        data, corpus_sizes, description = corpus.train, corpus.corpus_sizes, str(corpus.folder)
    speed = measure_training(config, data, vocab_size, corpus_sizes, n_steps)
    return {
        "what": "training",
        "name": config.name,
        "data": description,
        **asdict(speed),
        **basis(torch.device(speed.device)),
    }


def measure_training(
    config: RunConfig,
    data: ParallelIds,
    vocab_size: int,
    corpus_sizes: tuple[int, ...] | None = None,
    n_steps: int | None = None,
) -> TrainingSpeed:
    """Warm up, time some updates without waiting for the device in between, then look into a few more.

    Args:
        n_steps: updates to time; None: about TIMED_SECONDS of them.
    Raises:
        ConfigError: the device cannot do what is asked, or runs out of memory.
    """
    tune_malloc()
    started_at = time.perf_counter()
    engine = Engine(config, data, vocab_size, corpus_sizes=corpus_sizes)
    micro_batch_tokens = engine.begin()
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    try:
        with engine.prefetched_updates(PlanState(), 1, sys.maxsize) as updates:
            endless = iter(updates)
            warm_up = _warm_up(engine, endless)
            warm_up_seconds = time.perf_counter() - started_at
            _log.info(f"warmed up in {warm_up_seconds:.1f} s, {len(warm_up)} updates")
            n_steps = n_steps or max(FEWEST_STEPS, math.ceil(TIMED_SECONDS / warm_up[-1]))
            _log.info(f"timing {n_steps:,} updates, about {n_steps * warm_up[-1]:.0f} s")
            timed = _time_steps(engine, islice(endless, n_steps))
            parts = _time_parts(engine, islice(endless, min(20, max(1, n_steps // 5))))
    except OutOfMemory as error:
        raise ConfigError(
            "train.micro_batch_tokens",
            f"micro-batches of {micro_batch_tokens:,} target tokens do not fit the memory of {engine.device} ({error})",
            f"set it to {micro_batch_tokens // 2}",
        ) from None
    peak_memory = peak_memory_bytes(engine.device)
    reserved = torch.cuda.max_memory_reserved(engine.device) if engine.device.type == "cuda" else None
    peak = peak_flops(engine.device, engine.dtype)
    flops = engine.model.training_flops(timed.n_src_tokens, timed.n_tgt_tokens)
    return TrainingSpeed(
        device=str(engine.device),
        execution=engine.note,
        n_parameters=engine.model.n_parameters,
        batch_tokens=config.train.batch_tokens,
        micro_batch_tokens=micro_batch_tokens,
        n_micro_batches=engine.budget.n_micro_batches,
        warm_up_steps=len(warm_up),
        warm_up_seconds=warm_up_seconds,
        n_steps=n_steps,
        step_seconds=timed.seconds / n_steps,
        tgt_tokens_per_second=timed.n_tgt_tokens / timed.seconds,
        src_tokens_per_second=timed.n_src_tokens / timed.seconds,
        split_seconds=StepSplit(timed.stall_seconds / n_steps, **parts),
        src_fill=timed.n_src_tokens / timed.n_src_positions,
        tgt_fill=timed.n_tgt_tokens / timed.n_tgt_positions,
        peak_memory_bytes=peak_memory,
        reserved_memory_bytes=reserved,
        flops_per_tgt_token=flops / timed.n_tgt_tokens,
        flops_per_second=flops / timed.seconds,
        peak_flops_per_second=peak,
        peak_is_measured=data_sheet_flops(engine.device, engine.dtype) is None,
        mfu=flops / timed.seconds / peak,
    )


def random_corpus(vocab_size: int, max_tokens: int, n_pairs: int = RANDOM_PAIRS) -> ParallelIds:
    """Pairs of made-up ids with the lengths of real ones; rank r of the vocabulary comes in proportion to 1 / r."""
    rng = np.random.default_rng(1)
    mean_log = math.log(MEAN_TGT_TOKENS) - LOG_LENGTH_DEVIATION**2 / 2
    tgt_lengths = rng.lognormal(mean_log, LOG_LENGTH_DEVIATION, n_pairs)
    mean_log_ratio = math.log(SRC_TOKENS_PER_TGT_TOKEN) - LOG_RATIO_DEVIATION**2 / 2
    src_lengths = tgt_lengths * rng.lognormal(mean_log_ratio, LOG_RATIO_DEVIATION, n_pairs)

    def side(lengths: Any) -> Sentences:
        offsets = np.concatenate([[0], np.clip(np.rint(lengths), 2, max_tokens).cumsum()]).astype(np.int64)
        ids = EOS_ID + (vocab_size - EOS_ID) ** rng.random(offsets[-1])  # ln(rank) is even, so 1 / r
        ids[offsets[1:] - 1] = EOS_ID
        return Sentences(ids.astype(np.uint32), offsets)

    return ParallelIds(side(src_lengths), side(tgt_lengths))


@dataclass
class _Timed:
    """What some updates held, and how long they took."""

    seconds: float = 0.0
    stall_seconds: float = 0.0
    n_src_tokens: int = 0
    n_tgt_tokens: int = 0
    n_src_positions: int = 0
    n_tgt_positions: int = 0

    def count(self, update: Update) -> None:
        self.n_src_tokens += update.n_src_tokens
        self.n_tgt_tokens += update.n_tgt_tokens
        self.n_src_positions += sum(len(batch.src_ids) for batch in update.micro_batches.values())
        self.n_tgt_positions += sum(len(batch.tgt_inputs) for batch in update.micro_batches.values())


class Laps:
    """A clock in the stream of the device: the host notes what ends, and waits for no one until it asks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[tuple[str, Any]] = [("", self._now())]

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def end(self, part: str) -> None:
        """What was done since the last call was this part."""
        self._moments.append((part, self._now()))

    def seconds(self, part: str) -> float:
        """Of all laps of a part."""
        _wait(self._device)
        laps = zip(self._moments[:-1], self._moments[1:], strict=True)
        return sum(self._between(before, now) for (_, before), (name, now) in laps if name == part)

    def _between(self, before: Any, now: Any) -> float:
        seconds: float = now - before if self._device.type == "cpu" else before.elapsed_time(now) / 1000
        return seconds


def _warm_up(engine: Engine, updates: Iterator[Update]) -> list[float]:
    """Seconds of each of the updates that were made until the steps got no faster."""
    seconds: list[float] = []
    for update in islice(updates, MOST_WARM_UP_STEPS):
        started_at = time.perf_counter()
        engine.step(update, _lr(engine, update))
        _wait(engine.device)
        seconds.append(time.perf_counter() - started_at)
        if len(seconds) > 1 and seconds[-1] > STEADY_SHARE * seconds[-2]:
            break
    return seconds


def _time_steps(engine: Engine, updates: Iterable[Update]) -> _Timed:
    """Updates one after the other, as training makes them."""
    timed = _Timed()
    _wait(engine.device)
    laps = Laps(engine.device)
    started_at = time.perf_counter()
    for update in updates:
        _let_data_arrive(engine, update)
        laps.end("input_stall")
        engine.step(update, _lr(engine, update))
        laps.end("step")
        timed.count(update)
    _wait(engine.device)
    timed.seconds = time.perf_counter() - started_at
    timed.stall_seconds = laps.seconds("input_stall")
    return timed


def _time_parts(engine: Engine, updates: Iterable[Update]) -> dict[str, float]:
    """Seconds of the parts of an update, in the mean of some."""
    laps = Laps(engine.device)
    n_updates = 0
    for update in updates:
        step_in_parts(engine, update, laps)
        n_updates += 1
    return {part: laps.seconds(part) / n_updates for part in ("forward", "backward", "optimizer")}


def step_in_parts(engine: Engine, update: Update, laps: Laps) -> None:
    """`Engine.step`, with the end of each part noted."""
    _let_data_arrive(engine, update)
    engine.model.kernels.begin_update()
    for number, batch in update.micro_batches.items():
        if update.ready is not None:
            batch.record_stream(torch.cuda.current_stream(engine.device))
        laps.end("other")
        loss = engine.micro_batch_loss(update.step, number, batch)
        laps.end("forward")
        (loss * (engine.optimizer.loss_scale / update.n_tgt_tokens)).backward()  # type: ignore[no-untyped-call]
        laps.end("backward")
    engine.optimizer.step(_lr(engine, update))
    if engine.average is not None:
        engine.average.follow(update.step, engine.optimizer.was_skipped)
    laps.end("optimizer")


def _let_data_arrive(engine: Engine, update: Update) -> None:
    """The device goes on when the data of an update has been copied."""
    if update.ready is not None:
        torch.cuda.current_stream(engine.device).wait_event(update.ready)


def _lr(engine: Engine, update: Update) -> float:
    return learning_rate(update.step, engine.config.train, engine.config.model.d_model)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- Decoding ---------------------------------------------------------------------------------------------------------


def bench_decoding(
    model_path: Path,
    input_path: Path | None = None,
    *,
    n_rounds: int | None = None,
    changes: dict[str, Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """The figures of a model on the lines of a file, or on its own first test set or validation set.

    Args:
        n_rounds: times that the whole text is translated; once by default.
        changes: settings of `DecodeConfig` that differ from the model's own.
    Raises:
        MTError: model, text or settings need the user's attention.
    """
    folder = open_model(model_path)
    description, lines = _own_lines(folder) if input_path is None else (str(input_path), lines_of_text(input_path))
    started_at = time.perf_counter()
    translator = Translator.load(folder.path, device, precision, n_processes=None)
    load_seconds = time.perf_counter() - started_at
    decode = replace(translator.decode, **(changes or {}))
    speed = measure_decoding(translator, lines, n_rounds or 1, decode, load_seconds)
    return {
        "what": "decoding",
        "model": str(model_path),
        "data": description,
        **asdict(speed),
        **basis(torch.device(speed.device)),
    }


def measure_decoding(
    translator: Translator,
    lines: Sequence[str],
    n_rounds: int,
    decode: DecodeConfig,
    load_seconds: float,
) -> DecodingSpeed:
    """Translate the lines some times, after a few of them for warm-up."""
    device = translator.model.embedding.weight.device
    translator.translate(lines[:WARM_UP_LINES], decode)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _wait(device)
    started_at = time.perf_counter()
    n_tgt_tokens = 0
    for _ in range(n_rounds):
        for hypotheses in translator.translate_lines(lines, decode):
            n_tgt_tokens += hypotheses[0].n_tokens
    _wait(device)
    seconds = time.perf_counter() - started_at
    n_lines = n_rounds * len(lines)
    latency = _latency(translator, lines, decode)
    return DecodingSpeed(
        device=str(device),
        execution={torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[translator.model.dtype],
        n_parameters=translator.model.n_parameters,
        beam_size=decode.beam_size,
        batch_tokens=decode.batch_tokens,
        n_lines=n_lines,
        n_tgt_tokens=n_tgt_tokens,
        load_seconds=load_seconds,
        seconds=seconds,
        sentences_per_second=n_lines / seconds,
        tgt_tokens_per_second=n_tgt_tokens / seconds,
        latency_seconds=latency,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def _latency(translator: Translator, lines: Sequence[str], decode: DecodeConfig) -> dict[str, float]:
    """Percentiles of the seconds that single lines take, one after the other."""
    some = lines[:: max(1, len(lines) // LATENCY_LINES)][:LATENCY_LINES]
    seconds: list[float] = []
    began_at = time.perf_counter()
    for line in some:
        started_at = time.perf_counter()
        translator.translate([line], decode)
        seconds.append(time.perf_counter() - started_at)
        if time.perf_counter() - began_at > LATENCY_SECONDS:
            break
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": float(p50), "p95": float(p95), "n": len(seconds)}


def _own_lines(folder: ModelFolder) -> tuple[str, list[str]]:
    """The source side of the model's first test set, or of its validation set, and which that is."""
    description, pairs = first_test_pairs(folder.config, folder.manifest.get("corpus_fingerprint"))
    return description, [pair.src for pair in pairs]


# --- For people -------------------------------------------------------------------------------------------------------


def basis(device: torch.device) -> dict[str, Any]:
    """Return what figures depend on besides what was measured: hardware, versions, commit."""
    return {"hardware": hardware(device), "versions": versions(), "commit": source_commit()}


def format_bench(figures: dict[str, Any]) -> str:
    """The figures of `bench_training` or `bench_decoding`, for a terminal."""
    rows = _training_rows(figures) if figures["what"] == "training" else _decoding_rows(figures)
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _training_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    split = StepSplit(**figures["split_seconds"])
    n_micro_batches, step_seconds = figures["n_micro_batches"], figures["step_seconds"]
    known = "measured" if figures["peak_is_measured"] else "data sheet"
    return [
        ("model", f"{figures['name']}, {format_count(figures['n_parameters'])} parameters"),
        ("device", _device_text(figures)),
        ("data", figures["data"]),
        (
            "speed",
            f"{figures['tgt_tokens_per_second']:,.0f} target tokens/s, {figures['src_tokens_per_second']:,.0f} source",
        ),
        (
            "update",
            f"{1000 * step_seconds:,.1f} ms for up to {figures['batch_tokens']:,} target tokens in {n_micro_batches} "
            f"micro-batch{'es' if n_micro_batches > 1 else ''}; mean of {figures['n_steps']:,}",
        ),
        *(
            (f"  {name.replace('_', ' ')}", f"{1000 * seconds:>9,.1f} ms  {split.shares[name]:>6.1%}")
            for name, seconds in asdict(split).items()
        ),
        ("packing", f"{figures['src_fill']:.1%} of source and {figures['tgt_fill']:.1%} of target positions"),
        (
            "work",
            f"{figures['flops_per_tgt_token'] / 1e9:.3g} GFLOP a target token: "
            f"{_flops_text(figures['flops_per_second'])}, {figures['mfu']:.1%} of the device's "
            f"{_flops_text(figures['peak_flops_per_second'])} ({known})",
        ),
        ("memory", _memory_text(figures)),
        ("warm-up", f"{figures['warm_up_seconds']:,.1f} s, {figures['warm_up_steps']} updates"),
    ]


def _decoding_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", f"{figures['model']}, {format_count(figures['n_parameters'])} parameters"),
        ("device", _device_text(figures)),
        ("data", figures["data"]),
        (
            "speed",
            f"{figures['sentences_per_second']:,.1f} sentences/s, "
            f"{figures['tgt_tokens_per_second']:,.0f} target tokens/s",
        ),
        ("search", f"beam of {figures['beam_size']}, {figures['batch_tokens']:,} source tokens together"),
        (
            "text",
            f"{figures['n_lines']:,} lines, {figures['n_tgt_tokens']:,} target tokens, {figures['seconds']:,.1f} s",
        ),
        (
            "latency",
            f"{1000 * figures['latency_seconds']['p50']:,.1f} ms for a line alone, 95% of "
            f"{figures['latency_seconds']['n']} take up to {1000 * figures['latency_seconds']['p95']:,.1f} ms",
        ),
        ("memory", _memory_text(figures)),
        ("load", f"{figures['load_seconds']:,.1f} s"),
    ]


def _device_text(figures: dict[str, Any]) -> str:
    name = figures["hardware"].get("gpu") or f"{figures['hardware']['cpu']}, {figures['hardware']['threads']} threads"
    return f"{figures['device']} ({name}) in {figures['execution']}"


def _memory_text(figures: dict[str, Any]) -> str:
    text = f"{figures['peak_memory_bytes'] / 2**30:,.2f} GiB at the peak"
    if reserved := figures.get("reserved_memory_bytes"):
        text += f", {reserved / 2**30:,.2f} GiB reserved"
    return text if figures["device"] != "cpu" else f"{text} of the process"


def _flops_text(flops_per_second: float) -> str:
    if flops_per_second >= 1e12:
        return f"{flops_per_second / 1e12:,.4g} TFLOP/s"
    return f"{flops_per_second / 1e9:,.3g} GFLOP/s"
