"""Measurements of the speed of training and of decoding: `mt bench`. Nothing is written."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mt.config.settings import DecodeConfig, RunConfig, VocabSizes, of_both_sides
from mt.data.packing import PlanState
from mt.decode.lines import lines_of_text
from mt.decode.translator import Translator
from mt.errors import ConfigError
from mt.pipeline import initial_tokenizers, prepare
from mt.run_folder import open_model
from mt.system.device import data_sheet_flops, hardware, peak_flops, peak_memory_bytes
from mt.system.malloc import tune_malloc
from mt.system.provenance import source_commit, versions
from mt.text.corpus import ParallelIds, PreparedCorpus, Sentences
from mt.text.prepare import first_test_pairs
from mt.text.tokenizer import EOS_ID, Tokenizers
from mt.training.engine import Engine, OutOfMemory, Update
from mt.training.optimizer import learning_rate
from mt.units import format_count

_log = logging.getLogger(__name__)

# Without a given number, updates are timed for TIMED_SECONDS, but at least FEWEST_STEPS of them.
TIMED_SECONDS = 20.0
FEWEST_STEPS = 10
# The warm-up ends with the first step that takes more than this fraction of the time of the step before.
STEADY_SHARE = 0.8
MOST_WARM_UP_STEPS = 10
# Random sentences: target lengths are lognormal with the mean of WMT14's English-German training text in pieces; the
# spread and the length ratio are those of its news test sets.
RANDOM_PAIRS = 100_000
MEAN_TGT_TOKENS, LOG_LENGTH_DEVIATION = 28.0, 0.6
SRC_TOKENS_PER_TGT_TOKEN, LOG_RATIO_DEVIATION = 0.95, 0.17
# Latency is measured on up to LATENCY_LINES lines, spread over the text, for about LATENCY_SECONDS at most.
LATENCY_LINES, LATENCY_SECONDS = 100, 20.0
# Lines that are translated before the measurement starts.
WARM_UP_LINES = 64


def bench_training(config: RunConfig, n_steps: int | None = None, random_data: bool = False) -> dict[str, Any]:
    """Measure the speed of training.

    After a warm-up, some updates are timed without waiting for the device in between. A few more are timed in parts.

    Args:
        n_steps: updates to time; None: about TIMED_SECONDS of them.
        random_data: train on random sentences instead of the config's own corpus, which is prepared if necessary.
    Returns:
        The figures. Padding does not count as tokens; ends of sentences do.
    Raises:
        MTError: data, settings or device need the user's attention.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE", "mt bench measures one device", "start it without torchrun")
    corpus = None if random_data else prepare(config)
    started_at = time.perf_counter()
    engine = engine_over(config, corpus)
    engine.begin()
    device, micro_batch_tokens = engine.device, engine.micro_batch_tokens
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with engine.prefetched_updates(PlanState(), 1, sys.maxsize) as updates:
            warm_up = _warm_up(engine, updates)
            warm_up_seconds = time.perf_counter() - started_at
            _log.info(f"warmed up in {warm_up_seconds:.1f} s, {len(warm_up)} updates")
            n_steps = n_steps or max(FEWEST_STEPS, math.ceil(TIMED_SECONDS / warm_up[-1]))
            _log.info(f"timing {n_steps:,} updates, about {n_steps * warm_up[-1]:.0f} s")
            seconds, stall_seconds, n = _time_steps(engine, islice(updates, n_steps))
            parts = _time_parts(engine, islice(updates, min(20, max(1, n_steps // 5))))
    except OutOfMemory as error:
        problem = (
            f"micro-batches of {micro_batch_tokens:,} target tokens do not fit into the memory of {device} ({error})"
        )
        fewer = max(micro_batch_tokens // 2, config.data.max_tokens)
        fix = f"set it to {fewer}" if fewer < micro_batch_tokens else "lower data.max_tokens, or make the model smaller"
        raise ConfigError("train.micro_batch_tokens", problem, fix) from None
    memory = peak_memory_bytes(device)  # before peak_flops, which uses memory for its measurement
    reserved_memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    flops, peak = engine.model.training_flops(n["src_tokens"], n["tgt_tokens"]), peak_flops(device, engine.dtype)
    return {
        "what": "training",
        "name": config.name,
        "data": "random sentences with WMT14's lengths" if corpus is None else str(corpus.folder),
        "device": str(device),
        "execution": engine.note,  # precision, and whether it was compiled
        "n_parameters": engine.model.n_parameters,
        "batch_tokens": config.train.batch_tokens,
        "micro_batch_tokens": micro_batch_tokens,
        "n_micro_batches": engine.budget.n_micro_batches,
        "warm_up_steps": len(warm_up),
        # From the start until steps take a steady time: random sentences, model, micro-batches that fit, compilation.
        "warm_up_seconds": warm_up_seconds,
        "n_steps": n_steps,
        "step_seconds": seconds / n_steps,
        "tgt_tokens_per_second": n["tgt_tokens"] / seconds,
        "src_tokens_per_second": n["src_tokens"] / seconds,
        # input_stall: how long the device (on a CPU, the computation) waits for data in the timed updates. The other
        # parts are measured on further updates; forward includes the loss.
        "split_seconds": {"input_stall": stall_seconds / n_steps, **parts},
        "src_fill": n["src_tokens"] / n["src_positions"],  # fraction of the positions that hold real tokens
        "tgt_fill": n["tgt_tokens"] / n["tgt_positions"],
        "peak_memory_bytes": memory,
        "reserved_memory_bytes": reserved_memory,
        "flops_per_tgt_token": flops / n["tgt_tokens"],  # see Transformer.training_flops
        "flops_per_second": flops / seconds,
        "peak_flops_per_second": peak,
        "peak_is_measured": data_sheet_flops(device, engine.dtype) is None,  # False: it is from the data sheet
        "mfu": flops / seconds / peak,
        **provenance(device),
    }


def engine_over(config: RunConfig, corpus: PreparedCorpus | None) -> Engine:
    """Return an engine over a corpus, or over random sentences if it is None."""
    tune_malloc()
    paths = initial_tokenizers(config) if corpus is None else corpus.tokenizer_paths
    vocab_size = Tokenizers.load(paths).vocab_size if paths else config.tokenizer.vocab_sizes
    if corpus is None:
        return Engine(config, random_corpus(vocab_size, config.data.max_tokens), vocab_size)
    return Engine(config, corpus.train, vocab_size, corpus_sizes=corpus.corpus_sizes)


def random_corpus(vocab_size: VocabSizes, max_tokens: int, n_pairs: int = RANDOM_PAIRS) -> ParallelIds:
    """Return pairs of random ids with realistic lengths; the id of rank r occurs in proportion to 1 / r."""
    rng = np.random.default_rng(1)
    mean_log = math.log(MEAN_TGT_TOKENS) - LOG_LENGTH_DEVIATION**2 / 2
    tgt_lengths = rng.lognormal(mean_log, LOG_LENGTH_DEVIATION, n_pairs)
    mean_log_ratio = math.log(SRC_TOKENS_PER_TGT_TOKEN) - LOG_RATIO_DEVIATION**2 / 2
    src_lengths = tgt_lengths * rng.lognormal(mean_log_ratio, LOG_RATIO_DEVIATION, n_pairs)

    def side(lengths: Any, vocab_size: int) -> Sentences:
        offsets = np.concatenate([[0], np.clip(np.rint(lengths), 2, max_tokens).cumsum()]).astype(np.int64)
        ids = EOS_ID + (vocab_size - EOS_ID) ** rng.random(offsets[-1])  # ln(rank) is even, so 1 / r
        ids[offsets[1:] - 1] = EOS_ID
        return Sentences(ids.astype(np.uint32), offsets)

    return ParallelIds(*map(side, (src_lengths, tgt_lengths), of_both_sides(vocab_size)))


class StepTimer:
    """A timer in the stream of the device: the host records where parts end, and waits only in `seconds`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._moments = device, list[tuple[str, Any]]()
        self.end("")

    def end(self, part: str) -> None:
        """Record that everything since the last call belongs to this part."""
        now: Any = time.perf_counter()
        if self._device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record(torch.cuda.current_stream(self._device))
        self._moments.append((part, now))

    def seconds(self, part: str) -> float:
        """Return the total seconds of a part."""
        _wait(self._device)
        spans = [(before, now) for (_, before), (name, now) in pairwise(self._moments) if name == part]
        if self._device.type == "cuda":
            return float(sum(before.elapsed_time(now) for before, now in spans)) / 1000
        return float(sum(now - before for before, now in spans))


def _warm_up(engine: Engine, updates: Iterator[Update]) -> list[float]:
    """Make updates until they get no faster; return the seconds of each update."""
    seconds: list[float] = []
    for update in islice(updates, MOST_WARM_UP_STEPS):
        started_at = time.perf_counter()
        engine.step(update, _lr(engine, update))
        _wait(engine.device)
        seconds.append(time.perf_counter() - started_at)
        if len(seconds) > 1 and seconds[-1] > STEADY_SHARE * seconds[-2]:
            break
    return seconds


def _time_steps(engine: Engine, updates: Iterable[Update]) -> tuple[float, float, Counter[str]]:
    """Make updates as training does; return the seconds, the seconds of waiting for data, and counts of tokens."""
    n: Counter[str] = Counter()
    _wait(engine.device)
    timer = StepTimer(engine.device)
    started_at = time.perf_counter()
    for update in updates:
        _wait_for_data(engine, update)
        timer.end("input_stall")
        engine.step(update, _lr(engine, update))
        timer.end("step")
        n["src_tokens"] += update.n_src_tokens
        n["tgt_tokens"] += update.n_tgt_tokens
        n["src_positions"] += sum(len(batch.src_ids) for batch in update.micro_batches.values())
        n["tgt_positions"] += sum(len(batch.tgt_inputs) for batch in update.micro_batches.values())
    _wait(engine.device)
    return time.perf_counter() - started_at, timer.seconds("input_stall"), n


def _time_parts(engine: Engine, updates: Iterable[Update]) -> dict[str, float]:
    """Return the mean seconds of each part of an update."""
    timer = StepTimer(engine.device)
    for n_updates, update in enumerate(updates, start=1):  # noqa: B007
        step_in_parts(engine, update, timer)
    return {part: timer.seconds(part) / n_updates for part in ("forward", "backward", "optimizer")}


def step_in_parts(engine: Engine, update: Update, timer: StepTimer) -> None:
    """Do the same as `Engine.step`, and record the end of each part."""
    _wait_for_data(engine, update)
    engine.model.kernels.begin_update()
    for number, batch in update.micro_batches.items():
        if update.ready is not None:
            batch.record_stream(torch.cuda.current_stream(engine.device))
        timer.end("other")
        loss = engine.micro_batch_loss(update.step, number, batch)
        timer.end("forward")
        (loss * (engine.optimizer.loss_scale / update.n_tgt_tokens)).backward()  # type: ignore[no-untyped-call]
        timer.end("backward")
    engine.optimizer.step(_lr(engine, update))
    if engine.average is not None:
        engine.average.update(update.step, engine.optimizer.was_skipped)
    timer.end("optimizer")


def _wait_for_data(engine: Engine, update: Update) -> None:
    """Make the device, not the host, wait until the data of an update has been copied."""
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
    """Measure the speed of a model on the lines of a file, or on its first test set, or without one its validation set.

    Args:
        n_rounds: how often the whole text is translated, after a few lines for warm-up; once by default.
        changes: settings of `DecodeConfig` that differ from the model's own.
    Raises:
        MTError: model, text or settings need the user's attention.
    """
    folder = open_model(model_path)
    direction = folder.config.directions[0]
    if input_path is None:
        data, pairs, direction = first_test_pairs(folder.config, folder.manifest.get("corpus_fingerprint"))
        lines = [pair.src for pair in pairs]
    else:
        data, lines = str(input_path), lines_of_text(input_path)
    started_at = time.perf_counter()
    translator = Translator.load(folder.path, device, precision, n_processes=None).in_direction(direction)
    load_seconds = time.perf_counter() - started_at
    decode, on = replace(translator.decode, **(changes or {})), translator.model.embedding.weight.device
    translator.translate(lines[:WARM_UP_LINES], decode)
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    _wait(on)
    started_at = time.perf_counter()
    rounds = [translator.translate_lines(lines, decode) for _ in range(n_rounds or 1)]
    n_tgt_tokens = sum(hypotheses[0].n_tokens for translated in rounds for hypotheses in translated)
    _wait(on)
    seconds = time.perf_counter() - started_at
    n_lines = len(rounds) * len(lines)
    return {
        "what": "decoding",
        "model": str(model_path),
        "data": data,
        "device": str(on),
        "execution": {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[translator.model.dtype],
        "n_parameters": translator.model.n_parameters,
        "beam_size": decode.beam_size,
        "batch_tokens": decode.batch_tokens,
        "n_lines": n_lines,  # of all rounds
        "n_tgt_tokens": n_tgt_tokens,  # of the best hypotheses
        "load_seconds": load_seconds,
        "seconds": seconds,  # from text to text, loading not included
        "sentences_per_second": n_lines / seconds,
        "tgt_tokens_per_second": n_tgt_tokens / seconds,
        "latency_seconds": _latency(translator, lines, decode),
        "peak_memory_bytes": peak_memory_bytes(on),
        **provenance(on),
    }


def _latency(translator: Translator, lines: Sequence[str], decode: DecodeConfig) -> dict[str, float]:
    """Translate lines one at a time; return percentiles of the seconds per line, and the number of lines."""
    some = lines[:: max(1, len(lines) // LATENCY_LINES)][:LATENCY_LINES]
    seconds: list[float] = []
    began_at = time.perf_counter()
    for line in some:
        started_at = time.perf_counter()
        translator.translate([line], decode)
        seconds.append(time.perf_counter() - started_at)
        if time.perf_counter() - began_at > LATENCY_SECONDS:
            break
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    return {"p50": p50, "p95": p95, "n": len(seconds)}


# --- Output -----------------------------------------------------------------------------------------------------------


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what figures depend on besides the settings: hardware, versions, commit."""
    return {"hardware": hardware(device), "versions": versions(), "commit": source_commit()}


def device_name(hardware: dict[str, Any]) -> str:
    """Return the name of a device, from the values of `hardware`."""
    n = hardware.get("threads")
    return hardware.get("gpu") or f"{hardware['cpu']}, {n} thread{'' if n == 1 else 's'}"


def format_bench(figures: dict[str, Any]) -> str:
    """Return the figures of `bench_training` or `bench_decoding` as a table for a terminal."""
    memory = f"peak of {figures['peak_memory_bytes'] / 2**30:,.2f} GiB"
    if reserved := figures.get("reserved_memory_bytes"):
        memory += f", {reserved / 2**30:,.2f} GiB reserved"
    is_training = figures["what"] == "training"
    rows = {
        "model": f"{figures['name' if is_training else 'model']}, {format_count(figures['n_parameters'])} parameters",
        "device": f"{figures['device']} ({device_name(figures['hardware'])}) in {figures['execution']}",
        "data": figures["data"],
        **(_training_rows(figures) if is_training else _decoding_rows(figures)),
        "memory": f"{memory} (the whole process)" if figures["device"] == "cpu" else memory,
    }
    return "\n".join(f"{name:<14}{value}" for name, value in rows.items())


def _training_rows(f: dict[str, Any]) -> dict[str, str]:
    parts, n_micro_batches = f["split_seconds"], f["n_micro_batches"]
    micro_batches = f"{n_micro_batches} micro-batch{'es' if n_micro_batches > 1 else ''}"
    update = f"{1000 * f['step_seconds']:,.1f} ms for up to {f['batch_tokens']:,} target tokens in {micro_batches}"
    peak = f"{_flops_text(f['peak_flops_per_second'])} ({'measured' if f['peak_is_measured'] else 'data sheet'})"
    return {
        "speed": f"{f['tgt_tokens_per_second']:,.0f} target tokens/s, {f['src_tokens_per_second']:,.0f} source",
        "update": f"{update}; mean of {f['n_steps']:,}",
        **{
            f"  {name.replace('_', ' ')}": f"{1000 * seconds:>9,.1f} ms  {seconds / sum(parts.values()):>6.1%}"
            for name, seconds in parts.items()
        },
        "packing": f"{f['src_fill']:.1%} of source and {f['tgt_fill']:.1%} of target positions hold tokens",
        "work": f"{f['flops_per_tgt_token'] / 1e9:.3g} GFLOP per target token: {_flops_text(f['flops_per_second'])}, "
        f"{f['mfu']:.1%} of the device's {peak}",
        "warm-up": f"{f['warm_up_seconds']:,.1f} s, {f['warm_up_steps']} updates",
    }


def _decoding_rows(f: dict[str, Any]) -> dict[str, str]:
    p50, p95 = (f"{1000 * f['latency_seconds'][percentile]:,.1f} ms" for percentile in ("p50", "p95"))
    return {
        "load": f"{f['load_seconds']:,.1f} s",
        "speed": f"{f['sentences_per_second']:,.1f} sentences/s, {f['tgt_tokens_per_second']:,.0f} target tokens/s",
        "search": f"beam size {f['beam_size']}, batches of {f['batch_tokens']:,} source tokens",
        "text": f"{f['n_lines']:,} lines, {f['n_tgt_tokens']:,} target tokens, {f['seconds']:,.1f} s",
        "latency": f"median {p50} per line, one at a time; 95% of {f['latency_seconds']['n']} lines take up to {p95}",
    }


def _flops_text(flops_per_second: float) -> str:
    if flops_per_second >= 1e12:
        return f"{flops_per_second / 1e12:,.4g} TFLOP/s"
    return f"{flops_per_second / 1e9:,.3g} GFLOP/s"
