"""The stages of a run, in order: prepare, train, average, evaluate. A stage whose result exists is skipped."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from mt.checkpoint import ModelFolder, average_weights, file_checksum, save_model_folder
from mt.config.loading import as_yaml, config_differences, dump_config, is_changeable, load_config
from mt.config.settings import RunConfig
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.evaluation.findings import EvalOptions, evaluate
from mt.evaluation.report_files import HTML_NAME, read_evaluation, write_report
from mt.evaluation.runs import RunArtifacts, basis_of
from mt.evaluation.scores import TranslatedSet, score_corpus
from mt.evaluation.tokenization import chosen_tokenizer
from mt.report.facts import Evaluation
from mt.report.terminal import scores_text
from mt.run_folder import MADE_AT, RunFolder, checkpoint_step, initial_model
from mt.system.console import note
from mt.system.device import choose_device, hardware
from mt.system.distributed import Ranks, process_group
from mt.system.files import write_json, write_text
from mt.system.provenance import source_commit, versions
from mt.text.corpus import PreparedCorpus
from mt.text.prepare import corpus_fingerprint, prepare_corpus
from mt.training.engine import check_memory, choose_execution
from mt.training.loop import train
from mt.training.progress import Progress
from mt.units import format_count, format_duration

_log = logging.getLogger(__name__)

AVERAGE_TOLERANCE = 1.0  # BLEU or chrF2 on the validation set by which an average may be worse than the best checkpoint


def train_run(config: RunConfig, run_dir: Path) -> None:
    """Run all stages from raw text to a report, except those that are already done.

    Raises:
        MTError: data, settings or checkpoints need the user's attention.
        KeyboardInterrupt, SystemExit: stopped by a signal, after saving what was trained.
    """
    ranks = Ranks.from_environment()
    device = choose_execution(config.train, config.model, ranks).device  # before hours are spent on the data
    if config.tokenizer.model is None and config.train.init_from is None:  # otherwise vocab_size is not known yet
        check_memory(config, config.tokenizer.vocab_size, device)
    run = RunFolder(run_dir)
    with ExitStack() as held:  # rank 0 holds the run folder until the report is written
        with process_group(ranks, partial(_begin_run, config, run, held)) as folder:
            if ranks.is_first:
                config = replace(config, eval=load_config(str(run.config)).eval)  # as resolved at the run's first start
            corpus = _shared_corpus(Path(folder), ranks)
            progress = train(config, corpus, run_dir, ranks)
        if not ranks.is_first:
            return
        _finish_model(config, run)
        report = _evaluate_run(config, corpus, run, progress)
    for line in report.warning_lines:
        _log.warning(line)
    _log.info(f"report with curves and sentences: {run_dir / HTML_NAME}")


def _begin_run(config: RunConfig, run: RunFolder, held: ExitStack) -> str:
    """Lock the run folder and prepare the corpus on rank 0, before the others may start; return the corpus's folder."""
    held.enter_context(run.held())
    run.remove_leftovers()
    prepared = corpus_folder(config, run)
    config = _with_bleu_tokenizer(config, run)
    has_begun = run.record.exists()
    corpus = PreparedCorpus.open(prepared) if has_begun and prepared.is_dir() else prepare(config)
    _record_start(config, corpus, run)
    return str(corpus.folder)


def _with_bleu_tokenizer(config: RunConfig, run: RunFolder) -> RunConfig:
    """Return the config with a tokenizer of BLEU by name, which a run keeps as long as it has work.

    Raises:
        ConfigError: the tokenizer cannot be used on this machine.
    """
    setting = config.eval.bleu_tokenize
    if setting == "auto" and run.has_work:
        setting = load_config(str(run.config)).eval.bleu_tokenize
    return load_config(config, {"eval.bleu_tokenize": chosen_tokenizer(setting, config.tgt_lang)})


def _shared_corpus(folder: Path, ranks: Ranks) -> PreparedCorpus:
    if not folder.is_dir():
        problem = f"cannot find {folder}, which rank 0 prepared"
        raise DataError(f"rank {ranks.rank}", problem, "set data.prepared_dir to a folder that all machines share")
    return PreparedCorpus.open(folder)


def prepare(config: RunConfig) -> PreparedCorpus:
    """Prepare the corpus of a config, with the tokenizer of `train.init_from` if it is set."""
    return prepare_corpus(config, tokenizer_path=initial_tokenizer(config))


def initial_tokenizer(config: RunConfig) -> Path | None:
    """Return the tokenizer of the model that training starts from (`train.init_from`), or None."""
    if (folder := initial_model(config)) is None:
        return None
    folder.load_tokenizer()  # raises an error if it does not belong to the model
    return folder.tokenizer_path


def average_run(run_dir: Path, last: int) -> Path:
    """Average the last checkpoints of a run, write the result to the model folder `averages/last-N` and return it.

    Raises:
        CheckpointError: the folder is not a run, or has too few checkpoints.
    """
    run = RunFolder(run_dir)
    if not run.checkpoints():
        problem = "has no checkpoints" if run_dir.is_dir() else "no such folder"
        raise CheckpointError(run_dir, problem, "give a run folder with checkpoints")
    config = ModelFolder.open(run.checkpoints()[-1]).config
    folders = run.scheduled_checkpoints(config.train.checkpoint_every)
    if not 1 <= last <= len(folders):
        n = len(folders)
        found = f"has {n} checkpoint{'' if n == 1 else 's'} to average"
        raise CheckpointError(run_dir, found, f"give --last {f'1 to {n}' if n > 1 else 1}, not {last}")
    with run.held():
        return _write_average(config, run, run.average(last), folders[-last:])


def corpus_folder(config: RunConfig, run: RunFolder) -> Path:
    """Return the folder of the prepared corpus of a run, or of a new run; it need not exist yet.

    Raises:
        ConfigError: the config contradicts the settings with which the run was started.
        DataError: text is missing, or both text and prepared corpus differ from those at the start of the run.
    """
    record = run.read_record()
    if record is not None and run.has_work:
        _check_changes(config, run)
    at_start = None if record is None else Path(config.data.prepared_dir, record["corpus_fingerprint"])
    try:
        prepared = Path(config.data.prepared_dir, corpus_fingerprint(config, initial_tokenizer(config)))
    except MTError:
        # Text or model are gone, but the run does not need them any more.
        if at_start and at_start.is_dir() and (run.has_work or not _changed_settings(config, run)):
            return at_start
        raise
    if at_start is None or at_start == prepared or not run.has_work:
        return prepared
    if not at_start.is_dir():
        problem = f"the run's prepared corpus {at_start} does not exist any more, and its text has changed"
        raise DataError(run.path, problem, "restore one of them, or start over with another --run-dir")
    note(f"the text has changed since this run was started; it continues with the corpus prepared then ({at_start})")
    return at_start


def _changed_settings(config: RunConfig, run: RunFolder) -> list[str]:
    """Return a text for each setting that a started run cannot change, and that has changed."""
    if not run.config.is_file():
        fix = "restore it (each checkpoint has a copy), or start over with another --run-dir"
        raise CheckpointError(run.config, "is missing, so the settings of this run are not known", fix)
    return [
        f"{key} was {as_yaml(before)} and is now {as_yaml(now)}"
        for key, (before, now) in config_differences(load_config(str(run.config)), config).items()
        # auto means the tokenizer that the run has; before, it is of a run that an earlier version started.
        if not (is_changeable(key) or (key == "eval.bleu_tokenize" and "auto" in (before, now)))
    ]


def _check_changes(config: RunConfig, run: RunFolder) -> None:
    if changed := _changed_settings(config, run):
        fix = f"change {'it' if len(changed) == 1 else 'them'} back, or start a new run with another --run-dir"
        raise ConfigError(run.path, f"this run was started with other settings ({'; '.join(changed)})", fix)


def _record_start(config: RunConfig, corpus: PreparedCorpus, run: RunFolder) -> None:
    """Write the config and the run's record; add an entry for this start."""
    record = run.read_record() or {"name": config.name, "corpus_fingerprint": None, "starts": []}
    record["corpus_fingerprint"] = corpus.fingerprint  # may differ from that of earlier starts without a checkpoint
    start = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": source_commit(),
        "versions": versions(),
        "hardware": hardware(choose_device(config.train.device)),
    }
    record["starts"].append(start)
    write_text(run.config, dump_config(config))
    write_json(run.record, record)


def _finish_model(config: RunConfig, run: RunFolder) -> None:
    """Write `model/`: the average of the last checkpoints, or the best checkpoint."""
    if (n := config.train.average_last) > 0:
        folders = run.scheduled_checkpoints(config.train.checkpoint_every)[-n:]
    else:
        folders = [run.best_checkpoint() or run.checkpoints()[-1]]
    _write_average(config, run, run.model, folders)


def _write_average(config: RunConfig, run: RunFolder, model_dir: Path, folders: list[Path]) -> Path:
    """Write the mean of some checkpoints as a model folder, unless it exists already."""
    made_at = checkpoint_step(run.checkpoints()[-1])
    steps = [checkpoint_step(folder) for folder in folders]
    try:
        present = ModelFolder.open(model_dir)
        origin = (present.manifest["averaged_steps"], present.manifest[MADE_AT], present.config)
        if origin == (steps, made_at, config):
            return model_dir
    except (CheckpointError, KeyError):
        pass
    newest = ModelFolder.open(folders[-1])
    manifest = {key: value for key, value in newest.manifest.items() if key != "format_version"}
    manifest |= {"averaged_steps": steps, MADE_AT: made_at}
    save_model_folder(model_dir, average_weights(folders), config, newest.tokenizer_path, manifest)
    return model_dir


def _evaluate_run(config: RunConfig, corpus: PreparedCorpus, run: RunFolder, progress: Progress) -> Evaluation:
    """Translate and score validation and test sets, unless a report of exactly this training exists."""
    artifacts = RunArtifacts.of(run.model)
    facts = _facts_of_training(config, artifacts, progress)
    existing = read_evaluation(run.path)
    if existing is not None and all(getattr(existing, name) == value for name, value in facts.items()):
        return existing
    sets = {
        name: replace(one, tokenize=config.eval.bleu_tokenize)
        for name, one in _translated_sets(config, corpus, artifacts, run).items()
    }
    checksums = {name: file_checksum(run.translation(name)) for name in sets}
    valid = sets.pop("valid")
    found = evaluate(sets, config.name, EvalOptions(has_analysis=True), artifacts.count_words)
    facts |= artifacts.facts(config.train.device, config.train.precision)
    facts |= {"translations": checksums, "valid": score_corpus(valid)}
    report = found.model_copy(update=facts)
    report = report.model_copy(update={"notes": _notes(report)})
    write_report(report, run.path)
    return report


def _facts_of_training(config: RunConfig, artifacts: RunArtifacts, progress: Progress) -> dict[str, Any]:
    """Return the report's facts about the training. An existing report with the same facts is reused."""
    score = -progress.best_score if config.train.best_by == "loss" else progress.best_score
    return {
        "name": config.name,
        "steps": progress.step,
        "train_seconds": progress.train_seconds,
        "n_src_tokens": progress.n_src_tokens,
        "n_tgt_tokens": progress.n_tgt_tokens,
        "src_fill": progress.n_src_tokens / progress.n_src_positions,
        "tgt_fill": progress.n_tgt_tokens / progress.n_tgt_positions,
        "n_parameters": artifacts.folder.n_parameters,
        "basis": basis_of(artifacts.folder),
        "bleu_tokenizer": config.eval.bleu_tokenize,
        "best": None if progress.best_step is None else {"step": progress.best_step, config.train.best_by: score},
    }


def _translated_sets(
    config: RunConfig, corpus: PreparedCorpus, artifacts: RunArtifacts, run: RunFolder
) -> dict[str, TranslatedSet]:
    """Return validation and test sets with this model's translations, which are stored in the run folder."""
    pairs = {"valid": corpus.valid_pairs, **corpus.test_pairs}
    if (kept := artifacts.kept_translations(pairs)) is not None:
        return kept
    sets = artifacts.translate(pairs, config.train.device, config.train.precision, n_processes=1)
    run.translations.mkdir(exist_ok=True)
    for name, one in sets.items():
        write_text(run.translation(name), "".join(f"{hypothesis}\n" for hypothesis in one.hypotheses))
    return sets


def format_report(report: Evaluation) -> str:
    """Return a run's report as text for a terminal."""
    steps = (report.basis or {})["averaged_steps"]
    return "\n".join(
        [
            f"{report.name}: {format_count(report.n_parameters or 0)} parameters, {report.steps:,} steps, "
            f"{report.n_tgt_tokens:,} target tokens in {format_duration(report.train_seconds or 0)}",
            f"model: {'average of steps' if len(steps) > 1 else 'step'} {', '.join(f'{step:,}' for step in steps)}",
            scores_text(({"valid": report.valid} if report.valid else {}) | report.test_sets),
            *(f"note: {note}" for note in _notes(report)),
        ]
    )


def _notes(report: Evaluation) -> list[str]:
    """Return a note if the average is worse than the best checkpoint."""
    best, steps = report.best or {}, (report.basis or {})["averaged_steps"]
    if report.valid is None or len(steps) < 2:
        return []
    score_of = {one.name: one.score for one in report.valid.scores}
    return [
        f"on the validation set, the average of checkpoints ({score_of[name]:.2f} {name}) is worse than step "
        f"{best['step']:,} ({best[key]:.2f} {name} in training); --set train.average_last=0 uses that step instead"
        for key, name in (("bleu", "BLEU"), ("chrf", "chrF2"))
        if key in best and score_of[name] <= best[key] - AVERAGE_TOLERANCE
    ]
