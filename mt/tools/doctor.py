"""Checks of a config and its data before training: `mt doctor`.

A sample of each corpus is read, cleaned and tokenised as `mt prepare` does it, and checked for problems.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mt.config.settings import RunConfig, TrainConfig, VocabSizes
from mt.errors import CheckpointError, ConfigError, DataError, MTError, statement
from mt.evaluation.tokenization import bleu, tokenizer_of
from mt.pipeline import config_of_corpus
from mt.run_folder import RunFolder, initial_model
from mt.system.device import choose_device, choose_dtype, memory_bytes
from mt.system.files import existing_folder
from mt.system.provenance import n_cores
from mt.text import checks
from mt.text.checks import Finding, Level, rounded
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus, ids_dtype
from mt.text.overlap import HeldOut
from mt.text.prepare import corpus_fingerprint
from mt.text.reader import CorpusReader
from mt.text.rehearsal import Rehearsal, check_rehearsal, check_removed, clean_sample, rehearse
from mt.text.sample import SAMPLED_PAIRS, Sample, draw_sample
from mt.text.tokenizer import Tokenizer, Tokenizers, adopt_model, vocabularies
from mt.training.engine import Footprint
from mt.units import format_bytes, format_duration, format_vocabulary

_log = logging.getLogger(__name__)

HELD_OUT_PAIRS = 100_000  # of the validation set and of each test set
READING_SECONDS = 40.0  # for all corpora together; larger corpora are read in part

MANY_EPOCHS = 500
SMALL_CORPUS_TOKENS = 2_000_000  # target tokens; below it, a large model needs more dropout
PARAMETERS_PER_TOKEN = 50  # above it, a model is large for its corpus
LOW_DROPOUT, ADVISED_DROPOUT = 0.2, 0.3
WORKER_BYTES = 250 * 2**20  # of memory per process that prepares, including its chunk of text
LABEL_WIDTH = 10


@dataclass(frozen=True)
class Forecast:
    """The resources that preparing and training will need, estimated from a sample."""

    prepared: str | None  # folder of the corpus if it is already prepared
    train_pairs: int  # kept by cleaning
    train_pairs_are_all: bool  # False: there was no time to read every corpus to its end
    src_tokens: int
    tgt_tokens: int
    epoch_tokens: float  # of the target
    vocab_size: VocabSizes
    parameters: int
    device: str
    device_bytes: int
    training_bytes: int  # lower bound: weights, gradients and optimizer state
    prepare_seconds: float
    prepare_bytes: int  # of memory
    corpus_bytes: int  # on disk, at most
    checkpoint_bytes: int  # on disk, at most


@dataclass(frozen=True)
class Diagnosis:
    """The result of `examine`: samples, findings and forecast."""

    config: RunConfig
    samples: tuple[Sample, ...]
    findings: tuple[Finding, ...]
    forecast: Forecast | None  # None if the data cannot be read
    seconds: float

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)


def examine(config: RunConfig, run_dir: Path) -> Diagnosis:
    """Check a config and a sample of every corpus for problems; write nothing."""
    started_at = time.perf_counter()
    readers, given = readers_of(config), None
    findings = [finding for key, reader in readers.items() for finding in checks.check_files(key, reader)]
    broken = {finding.key for finding in findings}
    try:
        given = _given_tokenizers(config)
    except MTError as error:
        findings.append(_failure(error))
    samples = _samples({key: reader for key, reader in readers.items() if key not in broken})
    findings += _reading_errors(samples)
    _log.info("checking alignment, languages, form and repetition")
    train, held_out = ([sample for sample in samples if (sample.role == "train") == is_train] for is_train in (1, 0))
    findings += checks.check_text(config, train, held_out)
    forecast = None
    if all(sample.pairs for sample in train) and len(train) == len(config.training):
        _log.info("testing cleaning, the tokenizer and encoding")
        forecast = _rehearse(config, run_dir, given, train, held_out, findings)
    findings += _bleu_findings(config)
    if complete := RunFolder(run_dir).limit_warning(config.train.last_step):
        findings.append(replace(Finding.of(complete, "complete", "train.max_steps"), level="warning"))
    findings.sort(key=lambda finding: [*readers, finding.key].index(finding.key))
    return Diagnosis(config, tuple(samples), tuple(findings), forecast, time.perf_counter() - started_at)


def _failure(error: MTError) -> Finding:
    """Return the finding for an error that preparing would end with."""
    key = "train.init_from" if isinstance(error, CheckpointError) else error.place or "data"
    return Finding.of(error, "preparing", "tokenizer.model" if Path(error.place).suffix == ".model" else key)


def _rehearse(
    config: RunConfig,
    run_dir: Path,
    given: Tokenizers | None,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    findings: list[Finding],
) -> Forecast | None:
    """Add findings about all data together; return the forecast, or None if preparing would fail."""
    try:
        sets = {sample.key: sample.pairs for sample in held_out}
        langs = {sample.key: sample.langs for sample in held_out}
        sought = HeldOut.of_run(config, sets, langs) if config.data.clean.contamination else None
        cleaned = [clean_sample(sample, config, sought) for sample in train]
        for one in cleaned:
            findings += check_removed(one.sample.key, one.sample.corpus, one.tally, config.data.clean)
        if any(finding.check == "preparing" for finding in findings):
            return None
        rehearsal = rehearse(config, cleaned, given, config.train.grow_vocab)
    except MTError as error:
        findings.append(_failure(error))
        return None
    rehearsal_findings = list(check_rehearsal(rehearsal, config))
    findings += rehearsal_findings
    if any(finding.check == "nothing_left" for finding in rehearsal_findings):
        return None
    device = prepared = None
    try:
        device = choose_device(config.train.device)
        choose_dtype(config.train.precision, device)
    except ConfigError as error:
        findings.append(Finding.of(error.under("train"), "device", f"train.{error.place}"))
    try:
        prepared = _prepared_folder(config_of_corpus(config, RunFolder(run_dir)))
    except DataError as error:
        findings.append(Finding.of(error, "prepared", "data.prepared_dir"))
    forecast = _forecast(config, rehearsal, device, prepared)
    findings += [*_setting_findings(config, forecast), *_capacity_findings(config, run_dir, forecast)]
    return forecast


def _given_tokenizers(config: RunConfig) -> Tokenizers | None:
    if (folder := initial_model(config)) is not None:
        return folder.load_tokenizers()
    given = [
        Tokenizer(adopt_model(Path(one.settings.model), one.symbols, one.controls))
        for one in vocabularies(config)
        if one.settings.model is not None
    ]
    return Tokenizers.of(given) if given else None


def _prepared_folder(config: RunConfig) -> str | None:
    prepared_dir = Path(config.data.prepared_dir)
    if config.train.init_from is not None or not any(prepared_dir.glob("*/manifest.json")):
        return None  # computing the fingerprint reads all of the text
    folder = prepared_dir / corpus_fingerprint(config)
    return str(PreparedCorpus.open(folder).folder) if folder.is_dir() else None


def _samples(readers: Mapping[str, CorpusReader]) -> list[Sample]:
    """Return a sample of each corpus; validation and test sets are whole up to HELD_OUT_PAIRS."""
    samples, ends_at = [], time.perf_counter() + READING_SECONDS
    for n_left, (key, reader) in zip(range(len(readers), 0, -1), readers.items(), strict=True):
        _log.info(f"reading {key} ({reader.corpus.description})")
        most = SAMPLED_PAIRS if key.startswith("data.train.") else HELD_OUT_PAIRS
        seconds = max(1.0, (ends_at - time.perf_counter()) / n_left)
        samples.append(draw_sample(key, reader, max_pairs=most, max_seconds=seconds))
    return samples


def _bleu_findings(config: RunConfig) -> Iterator[Finding]:
    """Check whether BLEU's tokenizer is installed: if not, training counts characters instead of `auto`, or fails."""
    setting = config.eval.bleu_tokenize
    for lang in dict.fromkeys(one.tgt for one in config.all_directions):
        try:
            bleu(tokenizer_of(lang) if setting == "auto" else setting)
        except ConfigError as error:
            finding = Finding.of(error, "bleu_tokenizer", "eval.bleu_tokenize")
            if setting == "auto":
                problem = f"{finding.problem}; until then, BLEU of {lang} counts characters (tok:char)"
                finding = replace(finding, level="warning", problem=problem)
            yield finding
            if setting != "auto":
                return


def _reading_errors(samples: Sequence[Sample]) -> Iterator[Finding]:
    for sample in samples:
        if sample.error is not None:
            yield Finding.of(sample.error, "reading", sample.key)
        elif sample.n_pairs == 0:
            problem = f"{sample.corpus.description} is empty"
            yield Finding("error", "empty", sample.key, problem, "give at least one pair of sentences")


# --- Forecast ---------------------------------------------------------------------------------------------------------


def _forecast(config: RunConfig, rehearsal: Rehearsal, device: torch.device | None, prepared: str | None) -> Forecast:
    footprint, sources, n_processes = Footprint.of(config, rehearsal.vocab_size), rehearsal.sources, n_cores()
    pairs = round(sum(source.n_kept for source in sources))
    src_tokens, tgt_tokens = (round(sum(source.n_tokens(side) for source in sources)) for side in (0, 1))
    weights = config.weights([source.n_kept for source in sources])
    epoch_tokens = sum(source.n_tokens(1) * weight for source, weight in zip(sources, weights, strict=True))
    id_bytes = 2 if ids_dtype(rehearsal.vocab_size) == "<u2" else 4
    return Forecast(
        prepared=prepared,
        train_pairs=pairs,
        train_pairs_are_all=all(source.sample.is_read for source in sources),
        src_tokens=src_tokens,
        tgt_tokens=tgt_tokens,
        epoch_tokens=max(1.0, epoch_tokens),
        vocab_size=rehearsal.vocab_size,
        parameters=footprint.n_parameters,
        device="" if device is None else str(device),
        device_bytes=0 if device is None else memory_bytes(device),
        training_bytes=footprint.memory_bytes,
        prepare_seconds=rehearsal.prepare_seconds(n_processes),
        prepare_bytes=(1 + n_processes) * WORKER_BYTES + 16 * pairs,
        # Ids and offsets of both sides, line numbers, and the text of the shards, which is deleted only at the end.
        corpus_bytes=id_bytes * (src_tokens + tgt_tokens) + 24 * pairs + round(rehearsal.text_bytes),
        checkpoint_bytes=footprint.disk_bytes,
    )


# --- Settings against data --------------------------------------------------------------------------------------------


def _epochs(train: TrainConfig, forecast: Forecast) -> float:
    """Return the number of epochs; 0 with a budget, since it depends on speed."""
    return 0.0 if train.budget else train.max_steps * train.batch_tokens / forecast.epoch_tokens


def _setting_findings(config: RunConfig, forecast: Forecast) -> Iterator[Finding]:
    train, dropout = config.train, config.model.dropout

    def finding(level: Level, check: str, key: str, problem: str, fix: str) -> Finding:
        return Finding(level, check, key, statement(key, problem), fix)

    epoch_tokens, epochs = forecast.epoch_tokens, _epochs(train, forecast)
    if train.batch_tokens > epoch_tokens:
        problem = (
            f"{train.batch_tokens:,} target tokens per update are more than an epoch has ({_about(epoch_tokens)}), "
            "so each update would contain pairs more than once"
        )
        smaller = max(config.data.max_tokens, rounded(epoch_tokens / 20))
        fix = f"lower it, for example to {smaller}, or add text" if smaller < train.batch_tokens else "add text"
        yield finding("warning", "batch", "train.batch_tokens", problem, fix)

    # Source: Sennrich and Zhang 2019, Revisiting Low-Resource Neural Machine Translation, section 4.
    is_small = forecast.tgt_tokens < SMALL_CORPUS_TOKENS and forecast.train_pairs_are_all
    is_large = forecast.parameters > PARAMETERS_PER_TOKEN * forecast.tgt_tokens
    if is_small and is_large and dropout < LOW_DROPOUT and train.init_from is None:
        problem = (
            f"{dropout:g} is low for a model of {_about(forecast.parameters)} parameters and only "
            f"{_about(forecast.tgt_tokens)} target tokens, which it can memorise"
        )
        fix = f"raise it to {ADVISED_DROPOUT:g}, and use a smaller model"
        yield finding("note", "dropout", "model.dropout", problem, fix)

    if epochs > MANY_EPOCHS and forecast.train_pairs_are_all and train.patience is None:
        problem = f"{train.max_steps:,} updates would train on every pair about {epochs:,.0f} times"
        fewer = max(1, rounded(train.max_steps * 100 / epochs))
        fix = f"lower it, for example to {fewer} (about 100 times), or set train.patience"
        yield finding("warning", "epochs", "train.max_steps", problem, fix)
    if train.warmup_steps > train.last_step:
        more = f"{train.warmup_steps:,} is more than train.max_steps ({train.max_steps:,})"
        problem = f"{more}, so the learning rate never reaches its peak"
        fix = f"lower it, for example to {max(1, train.max_steps // 10)}"
        yield finding("warning", "warmup", "train.warmup_steps", problem, fix)


def _capacity_findings(config: RunConfig, run_dir: Path, forecast: Forecast) -> Iterator[Finding]:
    """Yield errors if the device's memory or a disk is too small."""
    if forecast.device and forecast.training_bytes > forecast.device_bytes:
        problem = (
            f"model: training needs at least {format_bytes(forecast.training_bytes)} on {forecast.device}, which has "
            f"{format_bytes(forecast.device_bytes)}"
        )
        yield Finding("error", "memory", "model", problem, "make the model or the vocabulary smaller")
    needs = {Path(config.data.prepared_dir): forecast.corpus_bytes, run_dir: forecast.checkpoint_bytes}
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(existing_folder(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        needed, free = sum(map(needs.__getitem__, folders)), shutil.disk_usage(existing_folder(folders[-1])).free
        if needed > free:
            sizes = f"its disk needs up to {format_bytes(needed)} of free space and has {format_bytes(free)}"
            fix = "free some space, lower train.keep_last and train.average_last, or choose other folders"
            yield Finding("error", "disk", "data.prepared_dir", f"{folders[-1]}: {sizes}", fix)


def _about(n: float) -> str:
    return f"about {rounded(n):,}"


# --- Output -----------------------------------------------------------------------------------------------------------


def diagnosis_text(diagnosis: Diagnosis, config_name: str) -> str:
    """Return the text for a terminal: findings by corpus, then the forecast."""
    headings = {key: f"{key}  {entry.corpus.description}" for key, entry in diagnosis.config.entries.items()}
    headings |= {sample.key: f"{sample.key}  {_checked(sample)}" for sample in diagnosis.samples if sample.pairs}
    findings: dict[str, list[str]] = {heading: [] for heading in (*headings.values(), "settings")}
    for finding in diagnosis.findings:
        lines = findings[headings.get(finding.key, "settings")]
        lines.append(f"  {finding.level:<{LABEL_WIDTH}}{finding.problem}")
        if finding.fix:
            lines.append(f"  {'':<{LABEL_WIDTH}}{finding.fix}")
    counts = Counter(finding.level for finding in diagnosis.findings)
    counted = [f"{n} {level}{'' if n == 1 else 's'}" for level in ("error", "warning", "note") if (n := counts[level])]
    sections = [[f"{diagnosis.config.name}: {', '.join(counted) or 'no findings'}"]]
    sections += [[heading, *lines] for heading, lines in findings.items() if lines]
    if diagnosis.forecast is not None:
        sections.append(_forecast_lines(diagnosis, diagnosis.forecast, config_name))
    return "\n\n".join(map("\n".join, sections))


def _checked(sample: Sample) -> str:
    pairs = f"{sample.n_pairs:,} pairs"
    if not sample.is_whole:
        pairs = f"{len(sample.pairs):,} of {'' if sample.is_read else 'at least '}{pairs} checked"
    return f"{sample.description}, {pairs}"


def _forecast_lines(diagnosis: Diagnosis, forecast: Forecast, config_name: str) -> list[str]:
    least, most = ("", "") if forecast.train_pairs_are_all else ("at least ", "at most ")
    n, seconds = n_cores(), format_duration(max(1.0, forecast.prepare_seconds))
    prepare = f"about {seconds} on {n} core{'s' if n > 1 else ''}, {format_bytes(forecast.prepare_bytes)} of memory"
    train, epochs = diagnosis.config.train, _epochs(diagnosis.config.train, forecast)
    n_epochs = f"{most}about {epochs:,.{0 if epochs >= 10 else 1}f} epochs"
    length = f"training takes {train.budget}" if train.budget else f"{train.max_steps:,} updates are {n_epochs}"
    corpus, checkpoints = format_bytes(forecast.corpus_bytes), format_bytes(forecast.checkpoint_bytes)
    entries = {
        **{sample.key: _checked(sample) for sample in diagnosis.samples},
        "training": f"{least}{_about(forecast.train_pairs)} pairs are kept, with {_about(forecast.src_tokens)} source "
        f"and {_about(forecast.tgt_tokens)} target tokens; {length}",
        "model": f"{forecast.parameters:,} parameters with a vocabulary of {format_vocabulary(forecast.vocab_size)}",
        "prepare": f"already prepared: {forecast.prepared}" if forecast.prepared else prepare,
        "memory": f"at least {format_bytes(forecast.training_bytes)} of the {format_bytes(forecast.device_bytes)} of "
        f"{forecast.device} for training, plus the memory of its batches",
        "disk": f"up to {corpus} for the corpus and {checkpoints} for checkpoints",
        "time": f"mt train --config {config_name} --dry-run measures how long training takes",
    }
    if not forecast.device:
        del entries["memory"]
    width = max(map(len, entries)) + 2
    return ["forecast", *(f"  {name:<{width}}{text}" for name, text in entries.items())]


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as the object that --json prints."""
    levels = [finding.level for finding in diagnosis.findings]
    return {
        "name": diagnosis.config.name,
        "n_errors": levels.count("error"),
        "n_warnings": levels.count("warning"),
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "sources": [
            {
                "key": sample.key,
                "source": sample.corpus.description,
                "pairs": sample.n_pairs,
                "pairs_are_all": sample.is_read,
                "pairs_looked_at": len(sample.pairs),
            }
            for sample in diagnosis.samples
        ],
        "forecast": None if diagnosis.forecast is None else asdict(diagnosis.forecast),
        "seconds": round(diagnosis.seconds, 3),
    }
