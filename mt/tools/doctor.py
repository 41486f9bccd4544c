"""Looking at a config and its data before anything is spent: `mt doctor`.

A sample of each corpus is read, cleaned, cut into tokens as preparing would, and looked at for what will go wrong.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mt.config.settings import Corpus, RunConfig, TrainConfig
from mt.errors import ConfigError, DataError, MTError
from mt.system.device import choose_device, memory_bytes
from mt.system.provenance import n_cores
from mt.text.checks import (
    Finding,
    check_alignment,
    check_contamination,
    check_duplicates,
    check_files,
    check_form,
    check_habits,
    check_held_out,
    check_languages,
    check_symbols,
    language_identifier,
    rounded,
)
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus, ids_dtype
from mt.text.overlap import folded_all
from mt.text.prepare import corpus_fingerprint
from mt.text.rehearsal import (
    Rehearsal,
    check_cleaning,
    check_rehearsal,
    clean_sample,
    held_out_sets,
    rehearse,
    without_contaminated,
)
from mt.text.sample import Sample, draw_sample
from mt.text.tokenizer import Tokenizer, adopt_model
from mt.train.footprint import Footprint, existing_folder
from mt.units import format_bytes, format_duration

_log = logging.getLogger(__name__)

SAMPLED_PAIRS = 20_000  # of each training corpus
HELD_OUT_PAIRS = 100_000  # of the validation set and of each test set
READING_SECONDS = 40.0  # for all corpora together; what is larger is read in part

MANY_EPOCHS = 500
SMALL_CORPUS_TOKENS = 2_000_000  # target tokens under which a large model needs more dropout
PARAMETERS_PER_TOKEN = 50  # from which a model is large for its corpus
LOW_DROPOUT, ADVISED_DROPOUT = 0.2, 0.3
WORKER_BYTES = 250 * 2**20  # of a process that prepares, its chunk of text included
LABEL_WIDTH = 10


@dataclass(frozen=True)
class Forecast:
    """What preparing and training will take, as far as a sample tells."""

    prepared: str | None  # folder of the corpus, where it is prepared already
    train_pairs: int  # that are kept
    train_pairs_are_all: bool  # else there was no time to read every corpus to its end
    src_tokens: int
    tgt_tokens: int  # of an epoch, weights of corpora included
    epochs: float
    vocab_size: int
    parameters: int
    device: str
    device_bytes: int
    training_bytes: int  # at least: weights, gradients and the state of the optimizer
    prepare_seconds: float
    prepare_bytes: int  # of memory
    corpus_bytes: int  # on the disk, at the most
    checkpoint_bytes: int  # on the disk, at the most


@dataclass(frozen=True)
class Diagnosis:
    """What was looked at, what was found, and what is to be expected."""

    config: RunConfig
    samples: tuple[Sample, ...]
    findings: tuple[Finding, ...]
    forecast: Forecast | None  # none where the data cannot be read
    seconds: float

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)


def examine(config: RunConfig, run_dir: Path) -> Diagnosis:
    """Read a sample of every corpus and find what will go wrong; nothing is written."""
    started_at = time.perf_counter()
    findings = [finding for key, corpus in config.data.corpora.items() for finding in check_files(key, corpus)]
    samples = _samples(config, {finding.key for finding in findings})
    findings += [finding for sample in samples for finding in _reading_errors(sample)]
    _log.info("checking alignment, languages, form and repetition")
    findings += _text_findings(config, samples)
    forecast = None
    train = [sample for sample in samples if sample.role == "train" and sample.src]
    if len(train) == len(config.data.train):
        held_out = [sample for sample in samples if sample.role != "train"]
        _log.info("trying out cleaning, the tokenizer and encoding")
        rehearsal_findings, forecast = _rehearse(config, run_dir, train, held_out)
        findings += rehearsal_findings
    order = list(config.data.corpora)
    findings.sort(key=lambda finding: order.index(finding.key) if finding.key in order else len(order))
    return Diagnosis(config, tuple(samples), tuple(findings), forecast, time.perf_counter() - started_at)


def _rehearse(
    config: RunConfig, run_dir: Path, train: Sequence[Sample], held_out: Sequence[Sample]
) -> tuple[list[Finding], Forecast | None]:
    """What goes wrong with the whole of the data, and what it takes; no forecast where preparing would fail."""
    findings: list[Finding] = []
    try:
        cleaned = [clean_sample(sample, config) for sample in train]
        findings += [finding for sample in cleaned for finding in check_cleaning(sample)]
        if config.data.clean.contamination:
            sought = held_out_sets(held_out, config)
            cleaned = [without_contaminated(sample, sought) for sample in cleaned]
        given = _given_tokenizer(config)
        rehearsal = rehearse(config, cleaned, given)
    except MTError as error:
        key = "tokenizer.model" if Path(error.place).suffix == ".model" else error.place or "data"
        return [*findings, Finding.of(error, "preparing", key)], None
    findings += check_rehearsal(rehearsal, config)
    if any(finding.level == "error" for finding in findings):
        return findings, None
    device_findings, device = _device(config)
    prepared_findings, prepared = _prepared(config)
    forecast = _forecast(config, rehearsal, device, prepared)
    return [*findings, *device_findings, *prepared_findings, *_setting_findings(config, run_dir, forecast)], forecast


def _given_tokenizer(config: RunConfig) -> Tokenizer | None:
    if config.train.init_from is not None:
        from mt.pipeline import initial_tokenizer

        path = initial_tokenizer(config)
        return None if path is None else Tokenizer.load(path)
    if config.tokenizer.model is None:
        return None
    return Tokenizer(adopt_model(Path(config.tokenizer.model), config.symbols))


def _prepared(config: RunConfig) -> tuple[list[Finding], str | None]:
    """Whether the corpus is prepared, and opens."""
    prepared_dir = Path(config.data.prepared_dir)
    if config.train.init_from is not None or not any(prepared_dir.glob("*/manifest.json")):
        return [], None  # the fingerprint needs all of the text to be read
    try:
        folder = prepared_dir / corpus_fingerprint(config)
        if not folder.is_dir():
            return [], None
        PreparedCorpus.open(folder)
    except DataError as error:
        return [Finding.of(error, "prepared", "data.prepared_dir")], None
    return [], str(folder)


def _samples(config: RunConfig, broken: set[str]) -> list[Sample]:
    """Return a sample of every corpus that can be read, of validation and test sets the whole where it is not huge."""
    readers = {key: reader for key, reader in readers_of(config).items() if key not in broken}
    samples, ends_at = [], time.perf_counter() + READING_SECONDS
    for i, (key, reader) in enumerate(readers.items()):
        _log.info(f"reading {key} ({reader.corpus.description})")
        n_left = len(readers) - i
        samples.append(
            draw_sample(
                key,
                reader,
                max_pairs=SAMPLED_PAIRS if key.startswith("data.train.") else HELD_OUT_PAIRS,
                max_seconds=max(1.0, (ends_at - time.perf_counter()) / n_left),
            )
        )
    return samples


def _reading_errors(sample: Sample) -> list[Finding]:
    if sample.error is not None:
        return [Finding.of(sample.error, "reading", sample.key)]
    if sample.n_pairs == 0:
        problem = f"{sample.corpus.description}: is empty"
        return [Finding("error", "empty", sample.key, problem, "give at least one pair of sentences")]
    return []


def _text_findings(config: RunConfig, samples: Sequence[Sample]) -> list[Finding]:
    identifier, findings = language_identifier(config)
    for sample in samples:
        findings += check_alignment(sample)
        findings += check_languages(sample, identifier)
        findings += check_form(sample, config)
        findings += check_symbols(sample, config.data.tags)
    train = [sample for sample in samples if sample.role == "train"]
    held_out = [sample for sample in samples if sample.role != "train"]
    folds = [[folded_all(side) for side in (sample.src, sample.tgt)] for sample in train]
    for sample, fold in zip(train, folds, strict=True):
        findings += check_duplicates(sample, fold, config)
    return [
        *findings,
        *check_contamination(train, folds, held_out, config),
        *check_habits(train, held_out),
        *check_held_out(held_out),
    ]


# --- Forecast ---------------------------------------------------------------------------------------------------------


def _device(config: RunConfig) -> tuple[list[Finding], tuple[str, int] | None]:
    try:
        device = choose_device(config.train.device)
    except ConfigError as error:
        return [Finding.of(error.under("train"), "device", "train.device")], None
    return [], (str(device), memory_bytes(device))


def _forecast(
    config: RunConfig, rehearsal: Rehearsal, device: tuple[str, int] | None, prepared: str | None
) -> Forecast:
    footprint = Footprint.of(config, rehearsal.vocab_size)
    n_processes = n_cores()
    sources = rehearsal.sources
    pairs = round(sum(source.n_kept for source in sources))
    src_tokens, tgt_tokens = (round(sum(getattr(s, f"{side}_tokens") for s in sources)) for side in ("src", "tgt"))
    epoch_tokens = sum(s.tgt_tokens * s.sample.corpus.weight for s in sources)
    id_bytes = 2 if ids_dtype(rehearsal.vocab_size) == "<u2" else 4
    return Forecast(
        prepared=prepared,
        train_pairs=pairs,
        train_pairs_are_all=all(source.sample.is_read for source in sources),
        src_tokens=src_tokens,
        tgt_tokens=tgt_tokens,
        epochs=config.train.max_steps * config.train.batch_tokens / max(1.0, epoch_tokens),
        vocab_size=rehearsal.vocab_size,
        parameters=footprint.n_parameters,
        device="" if device is None else device[0],
        device_bytes=0 if device is None else device[1],
        training_bytes=footprint.memory_bytes,
        prepare_seconds=rehearsal.prepare_seconds(n_processes),
        prepare_bytes=(1 + n_processes) * WORKER_BYTES + 16 * pairs,
        # Ids and offsets of two sides, line numbers; text of the shards until the end.
        corpus_bytes=id_bytes * (src_tokens + tgt_tokens) + 24 * pairs + round(rehearsal.text_bytes),
        checkpoint_bytes=footprint.disk_bytes,
    )


# --- Settings against data --------------------------------------------------------------------------------------------


def _setting_findings(config: RunConfig, run_dir: Path, forecast: Forecast) -> list[Finding]:
    return [
        *_batch_findings(config, forecast),
        *_model_findings(config, forecast),
        *_schedule_findings(config.train, forecast),
        *_room_findings(config, run_dir, forecast),
    ]


def _batch_findings(config: RunConfig, forecast: Forecast) -> list[Finding]:
    epoch_tokens = config.train.max_steps * config.train.batch_tokens / forecast.epochs
    if config.train.batch_tokens <= epoch_tokens:
        return []
    key = "train.batch_tokens"
    problem = (
        f"{key}: {config.train.batch_tokens:,} target tokens an update are more than training has "
        f"({_about(epoch_tokens)}): each update would hold pairs more than once"
    )
    smaller = max(config.data.max_tokens, rounded(epoch_tokens / 20))
    return [Finding("warning", "batch", key, problem, f"lower it, to {smaller:,} say, or give more text")]


def _model_findings(config: RunConfig, forecast: Forecast) -> list[Finding]:
    """Source: Sennrich and Zhang 2019, Revisiting Low-Resource Neural Machine Translation, section 4."""
    is_small = forecast.tgt_tokens < SMALL_CORPUS_TOKENS and forecast.train_pairs_are_all
    is_large = forecast.parameters > PARAMETERS_PER_TOKEN * forecast.tgt_tokens
    if not (is_small and is_large and config.model.dropout < LOW_DROPOUT) or config.train.init_from is not None:
        return []
    key = "model.dropout"
    problem = (
        f"{key}: is {config.model.dropout:g} in a model of {_about(forecast.parameters)} parameters for "
        f"{_about(forecast.tgt_tokens)} target tokens, which it can learn by heart"
    )
    return [Finding("note", "dropout", key, problem, f"raise it to {ADVISED_DROPOUT:g}, and take a smaller model")]


def _schedule_findings(train: TrainConfig, forecast: Forecast) -> list[Finding]:
    findings = []
    if forecast.epochs > MANY_EPOCHS and forecast.train_pairs_are_all and train.patience is None:
        key = "train.max_steps"
        problem = f"{key}: {train.max_steps:,} updates would show every pair about {forecast.epochs:,.0f} times"
        fewer = max(1, rounded(train.max_steps * 100 / forecast.epochs))
        fix = f"lower it, to {fewer:,} for 100 times, or set train.patience"
        findings.append(Finding("warning", "epochs", key, problem, fix))
    if train.warmup_steps > train.max_steps:
        key = "train.warmup_steps"
        problem = (
            f"{key}: {train.warmup_steps:,} are more than train.max_steps ({train.max_steps:,}): the learning rate "
            "never reaches its peak"
        )
        findings.append(
            Finding("warning", "warmup", key, problem, f"lower it, to {max(1, train.max_steps // 10):,} say")
        )
    return findings


def _room_findings(config: RunConfig, run_dir: Path, forecast: Forecast) -> list[Finding]:
    """Memory and disks that are too small."""
    findings = []
    if forecast.device and forecast.training_bytes > forecast.device_bytes:
        problem = (
            f"model: training takes at least {format_bytes(forecast.training_bytes)} on {forecast.device}, which has "
            f"{format_bytes(forecast.device_bytes)}"
        )
        findings.append(Finding("error", "memory", "model", problem, "make the model or the vocabulary smaller"))
    free: dict[int, tuple[Path, int, int]] = {}
    for folder, n_bytes in (
        (Path(config.data.prepared_dir), forecast.corpus_bytes),
        (run_dir, forecast.checkpoint_bytes),
    ):
        existing = existing_folder(folder)
        _, needed, _ = free.get(existing.stat().st_dev, (folder, 0, 0))
        free[existing.stat().st_dev] = (folder, needed + n_bytes, shutil.disk_usage(existing).free)
    for folder, needed, room in free.values():
        if needed > room:
            problem = (
                f"{folder}: up to {format_bytes(needed)} are needed on its disk, and {format_bytes(room)} are free"
            )
            fix = "make room, lower train.keep_last and train.average_last, or choose other folders"
            findings.append(Finding("error", "disk", "data.prepared_dir", problem, fix))
    return findings


def _about(n: float) -> str:
    return f"about {rounded(n):,}"


# --- Telling ----------------------------------------------------------------------------------------------------------


def diagnosis_text(diagnosis: Diagnosis, config_name: str) -> str:
    """For a terminal: findings by source, then what is to be expected."""
    sections = [f"{diagnosis.config.name}: {_summary(diagnosis.findings)}"]
    samples = {sample.key: sample for sample in diagnosis.samples}
    corpora = diagnosis.config.data.corpora
    for key, corpus in corpora.items():
        if findings := [finding for finding in diagnosis.findings if finding.key == key]:
            sections.append("\n".join([_heading(key, corpus, samples.get(key)), *_finding_lines(findings)]))
    if rest := [finding for finding in diagnosis.findings if finding.key not in corpora]:
        sections.append("\n".join(["settings", *_finding_lines(rest)]))
    if diagnosis.forecast is not None:
        sections.append("\n".join(_forecast_lines(diagnosis, diagnosis.forecast, config_name)))
    return "\n\n".join(sections)


def _summary(findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning", "note")}
    told = [f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items() if n]
    return ", ".join(told) or "no findings"


def _heading(key: str, corpus: Corpus, sample: Sample | None) -> str:
    if sample is None or not sample.src:
        return f"{key}  {corpus.description}"
    return f"{key}  {corpus.description}, {_looked_at(sample)}"


def _looked_at(sample: Sample) -> str:
    if sample.is_whole:
        return f"{sample.n_pairs:,} pairs"
    return f"{len(sample.src):,} of {'' if sample.is_read else 'at least '}{sample.n_pairs:,} pairs looked at"


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"  {finding.level:<{LABEL_WIDTH}}{finding.problem}"
        if finding.fix:
            yield f"  {'':<{LABEL_WIDTH}}{finding.fix}"


def _forecast_lines(diagnosis: Diagnosis, forecast: Forecast, config_name: str) -> list[str]:
    config = diagnosis.config
    entries = {sample.key: f"{sample.corpus.description}, {_looked_at(sample)}" for sample in diagnosis.samples}
    least = "" if forecast.train_pairs_are_all else "at least "
    entries["training"] = (
        f"{least}{_about(forecast.train_pairs)} pairs are kept, with {_about(forecast.src_tokens)} source and "
        f"{_about(forecast.tgt_tokens)} target tokens; {config.train.max_steps:,} updates are "
        f"{'at most ' if least else ''}about {forecast.epochs:,.3g} epochs"
    )
    entries["model"] = f"{forecast.parameters:,} parameters with {forecast.vocab_size:,} pieces"
    entries["prepare"] = (
        f"prepared already: {forecast.prepared}"
        if forecast.prepared
        else f"about {format_duration(max(1.0, forecast.prepare_seconds))} on {_cores(n_cores())}, "
        f"{format_bytes(forecast.prepare_bytes)} of memory"
    )
    if forecast.device:
        entries["memory"] = (
            f"at least {format_bytes(forecast.training_bytes)} of the {format_bytes(forecast.device_bytes)} of "
            f"{forecast.device} for training, and what its batches take"
        )
    entries["disk"] = (
        f"up to {format_bytes(forecast.corpus_bytes)} for the corpus and {format_bytes(forecast.checkpoint_bytes)} "
        "for checkpoints"
    )
    entries["time"] = f"mt train --config {config_name} --dry-run measures how long training takes"
    width = max(map(len, entries)) + 2
    return ["forecast", *(f"  {name:<{width}}{text}" for name, text in entries.items())]


def _cores(n: int) -> str:
    return "1 core" if n == 1 else f"{n} cores"


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """The same for a program."""
    levels = [finding.level for finding in diagnosis.findings]
    return {
        "name": diagnosis.config.name,
        "n_errors": levels.count("error"),
        "n_warnings": levels.count("warning"),
        "findings": [finding.as_json() for finding in diagnosis.findings],
        "sources": [
            {
                "key": sample.key,
                "source": sample.corpus.description,
                "pairs": sample.n_pairs,
                "pairs_are_all": sample.is_read,
                "pairs_looked_at": len(sample.src),
            }
            for sample in diagnosis.samples
        ],
        "forecast": None if diagnosis.forecast is None else asdict(diagnosis.forecast),
        "seconds": round(diagnosis.seconds, 3),
    }
