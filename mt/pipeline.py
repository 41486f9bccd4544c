"""The stages of a run, in order: prepare, train, average, evaluate. A stage whose result exists is skipped."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from mt.checkpoint import ModelFolder, average_weights, save_model_folder
from mt.config.loading import CONFIG, as_yaml, config_differences, dump_config, is_changeable, load_config
from mt.config.settings import SCHEDULE, BleuTokenizer, Direction, RunConfig, TrainConfig
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.evaluation.command import as_read_by
from mt.evaluation.findings import EvalOptions, evaluate
from mt.evaluation.report_files import HTML_NAME, read_evaluation, write_report
from mt.evaluation.runs import RunArtifacts, basis_of
from mt.evaluation.scores import TranslatedSet, score_corpus
from mt.evaluation.tokenization import chosen_tokenizers
from mt.report.facts import Evaluation
from mt.report.terminal import comparison_lines, direction_lines, scores_text
from mt.run_folder import ADDED_TESTS, MADE_AT, RunFolder, checkpoint_step, initial_model
from mt.system.console import note
from mt.system.device import choose_device, choose_dtype, hardware
from mt.system.distributed import Ranks, process_group
from mt.system.files import file_checksum, write_json, write_text
from mt.system.provenance import source_commit, versions
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus, pairs_text, with_tag
from mt.text.overlap import n_in_training
from mt.text.prepare import changed_inputs, corpus_inputs, fingerprint_of, held_out_pairs, prepare_corpus
from mt.text.reader import SentencePair
from mt.text.sentences import UsualLines
from mt.training.engine import check_memory, choose_execution
from mt.training.loop import train
from mt.training.progress import Progress
from mt.training.validation import validate
from mt.units import format_count, format_duration, listed

_log = logging.getLogger(__name__)

_SCHEDULE_KEYS = tuple(f"train.{name}" for name in SCHEDULE)
_PATH_OF_TEXT = re.compile(r"data\.(train\.\d+|valid(\.\d+)?|test\..+)\.(src|tgt|file|dataset)(\.\d+)?")


def train_run(config: RunConfig, run_dir: Path) -> None:
    """Run all stages from raw text to a report, except those that are already done.

    Raises:
        MTError: data, settings or checkpoints need the user's attention.
        KeyboardInterrupt, SystemExit: stopped by a signal, after saving what was trained.
    """
    ranks = Ranks.from_environment()
    device = choose_execution(config.train, config.model, ranks).device  # before hours are spent on the data
    if config.tokenizer.model is None and config.train.init_from is None:  # otherwise vocab_size is not known yet
        check_memory(config, config.tokenizer.vocab_sizes, device)
    run = RunFolder(run_dir)
    with ExitStack() as held:  # rank 0 holds the run folder until the report is written
        with process_group(ranks, partial(_begin_run, config, run, held)) as folder:
            if ranks.is_first:
                config = replace(config, eval=run.read_config().eval)  # as resolved at the run's first start
            corpus = _shared_corpus(Path(folder), ranks)
            progress = train(config, corpus, run_dir, ranks)
        if not ranks.is_first:
            return
        trained_at = time.monotonic()
        _finish_model(config, corpus, run, progress)
        report = _evaluate_run(config, corpus, run, progress)
    for line in report.warning_lines:
        _log.warning(line)
    if config.train.budget is not None:
        seconds = progress.train_seconds + time.monotonic() - trained_at
        _log.info(f"training and evaluation took {format_duration(seconds)} of train.budget ({config.train.budget})")
    _log.info(f"report with curves and sentences: {run_dir / HTML_NAME}")


def _begin_run(config: RunConfig, run: RunFolder, held: ExitStack) -> str:
    """Lock the run folder and prepare the corpus on rank 0, before the others may start; return the corpus's folder."""
    held.enter_context(run.held())
    run.remove_leftovers()
    prepared = corpus_folder(config, run)
    config = _with_bleu_tokenizer(config, run)
    has_begun = run.record.exists()
    at_first, is_kept = config_of_corpus(config, run), has_begun and prepared.is_dir()
    corpus = PreparedCorpus.open(prepared, is_verified=True) if is_kept else prepare(at_first)
    added = _add_tests(config, at_first, corpus, run)
    _record_start(config, corpus, run, added)
    return str(corpus.folder)


def _with_bleu_tokenizer(config: RunConfig, run: RunFolder) -> RunConfig:
    """Return the config with a tokenizer of BLEU by name, if it is one, which a run keeps as long as it has work.

    Raises:
        ConfigError: the tokenizer cannot be used on this machine.
    """
    setting = config.eval.bleu_tokenize
    if setting == "auto" and run.has_work:
        setting = run.read_config().eval.bleu_tokenize
    tokenizers = chosen_tokenizers(setting, [direction.tgt for direction in config.all_directions])
    if ", " in tokenizers:  # one for each target language: auto stays
        return config
    return replace(config, eval=replace(config.eval, bleu_tokenize=cast("BleuTokenizer", tokenizers)))


def _shared_corpus(folder: Path, ranks: Ranks) -> PreparedCorpus:
    if not folder.is_dir():
        problem = f"cannot find {folder}, which rank 0 prepared"
        raise DataError(f"rank {ranks.rank}", problem, "set data.prepared_dir to a folder that all machines share")
    return PreparedCorpus.open(folder)


def prepare(config: RunConfig) -> PreparedCorpus:
    """Prepare the corpus of a config, with the tokenizer of `train.init_from` if it is set."""
    return prepare_corpus(config, initial_tokenizers(config))


def initial_tokenizers(config: RunConfig) -> tuple[Path, ...]:
    """Return the tokenizer files of the model that training starts from (`train.init_from`); none without it."""
    folder = initial_model(config)
    return () if folder is None else folder.tokenizer_paths


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
    average, folders = run.average(last), folders[-last:]
    with run.held():
        if not _is_average(average, config, run, folders):
            _write_average(config, run, average, folders, average_weights(folders))
    return average


def corpus_folder(config: RunConfig, run: RunFolder) -> Path:
    """Return the folder of the prepared corpus of a run, or of a new run; it need not exist yet.

    Raises:
        ConfigError: the config contradicts the settings with which the run was started.
        DataError: text is missing, or both text and prepared corpus differ from those at the start of the run.
    """
    record = run.read_record()
    at_start = None if record is None else Path(config.data.prepared_dir, record["corpus_fingerprint"])
    if at_start is not None and run.has_work:
        _check_changes(config, run, but_paths=True)
    try:
        at_first = config_of_corpus(config, run)
        inputs = corpus_inputs(at_first, initial_tokenizers(config))
    except MTError:
        # Text or model are gone, but the run does not need them any more.
        if at_start and at_start.is_dir() and not _changed_settings(config, run):
            return at_start
        raise
    prepared = Path(config.data.prepared_dir, fingerprint_of(inputs))
    if at_start is None or at_start == prepared or not run.has_work:
        return prepared
    _check_changes(config, run)
    if not at_start.is_dir():
        problem = f"the run's prepared corpus {at_start} does not exist any more, and its text or mt itself has changed"
        raise DataError(run.path, problem, "restore one of them, or start over with another --run-dir")
    corpus = PreparedCorpus.open(at_start)
    changed = changed_inputs(corpus, inputs)
    since = f"{'has' if len(changed) == 1 else 'have'} changed since this run was started"
    note(f"{listed(changed)} {since}; it continues with the corpus prepared then ({at_start})")
    for key in _changed_sets(at_first, corpus):
        note(f"{key} has changed; the run scores the text prepared then. Add the new text as another test set.")
    return at_start


def _changed_sets(config: RunConfig, corpus: PreparedCorpus) -> list[str]:
    """Return the keys of validation and test sets whose text is not that of the prepared corpus, as far as known."""
    readers, changed = readers_of(config), []
    for name, pairs in corpus.held_out.items():
        reader = readers[key := f"data.{name}" if name in corpus.valid_sets else f"data.test.{name}"]
        with suppress(MTError):
            if with_tag(reader.pairs(), reader.corpus.tag) != pairs:
                changed.append(key)
    return changed


def config_of_corpus(config: RunConfig, run: RunFolder) -> RunConfig:
    """Return the config without the test sets that were added to the run after its corpus was prepared."""
    if not (run.has_work and run.config.is_file()):
        return config
    return _with_tests(config, run.read_config().data.test.keys() - run.added_tests.keys())


def _with_tests(config: RunConfig, names: Container[str]) -> RunConfig:
    test = {name: corpus for name, corpus in config.data.test.items() if name in names}
    return replace(config, data=replace(config.data, test=test))


def _add_tests(config: RunConfig, at_first: RunConfig, corpus: PreparedCorpus, run: RunFolder) -> dict[str, Any]:
    """Store the text of the test sets that the corpus was prepared without; return the facts for the run's record.

    Args:
        at_first: the config that the corpus was prepared with.
    Raises:
        ConfigError: the tokenizer does not know the tag of a test set.
        DataError: a test set is missing, unreadable or empty.
    """
    known, readers, facts = run.added_tests, readers_of(config), dict[str, Any]()
    new: dict[str, list[SentencePair]] = {}
    added = {name: entry for name, entry in config.tests.items() if name not in at_first.tests}
    for name, entry in added.items():
        reader, tag = readers[f"data.test.{name}"], entry.corpus.tag
        if tag not in (None, *at_first.symbols):
            fix = f"use one of {', '.join(at_first.symbols)}" if at_first.symbols else "remove it"
            raise ConfigError(f"data.test.{name}.tag", f"is {tag}, which the tokenizer of this run does not know", fix)
        has_copy = name in known and run.added_test(name).is_file()
        try:
            fingerprint = [reader.fingerprint(), tag, *(entry.direction if len(config.directions) > 1 else ())]
        except DataError:
            if not has_copy or run.read_config().tests.get(name) != entry:
                raise
            fingerprint = known[name]["fingerprint"]
        if has_copy and known[name]["fingerprint"] == fingerprint:
            facts[name] = known[name]
        else:
            new[name] = held_out_pairs(reader)
            source = reader.description
            facts[name] = {"source": source, "pairs": len(new[name]), "fingerprint": fingerprint}
    langs = {name: entry.direction for name, entry in added.items()}
    for name, n in (n_in_training(at_first, corpus, new, langs) if new else {}).items():
        facts[name]["in_training"] = n
        tag, source = added[name].corpus.tag, facts[name]["source"]
        run.tests.mkdir(exist_ok=True)
        write_text(run.added_test(name), pairs_text(with_tag(new[name], tag)))
        _log.info(f"test set {name} added to the run: {len(new[name]):,} pairs of {source}; {n:,} in the training text")
    for name in known.keys() - facts.keys():
        _log.info(f"test set {name} removed from the run: the config does not have it any more")
        for path in (run.added_test(name), run.translation(name)):
            path.unlink(missing_ok=True)
    return facts


def _changed_settings(config: RunConfig, run: RunFolder, *, but_paths: bool = False) -> list[str]:
    """Return a text for each setting that a started run cannot change, and that has changed.

    Args:
        but_paths: leave out the paths of text, which may change while the text stays the same.
    """
    if not run.config.is_file():
        fix = "restore it (each checkpoint has a copy), or start over with another --run-dir"
        raise CheckpointError(run.config, "is missing, so the settings of this run are not known", fix)
    before = config_of_corpus(run.read_config(), run)
    if run.checkpoints():  # the schedule of the updates so far, which a start that made none did not change
        with suppress(ConfigError):
            trained = load_config(str(run.checkpoints()[-1] / CONFIG), is_stored=True).train
            before = replace(before, train=replace(before.train, **trained.schedule_settings))
    known, tests = before.data.test, config.data.test
    differences = config_differences(_with_tests(before, tests), _with_tests(config, known))
    return [f"the test set {name} was removed" for name in known if name not in tests] + [
        f"{key} was {as_yaml(value)} and is now {as_yaml(now)}"
        for key, (value, now) in differences.items()
        if (not is_changeable(key) or key.startswith("data.test."))
        and not (config.train.restart_schedule and key in _SCHEDULE_KEYS)
        # With train.init_from they had no effect, and an earlier version did not take them from that model.
        and not (config.train.init_from and key in config.tokenizer.kept.keys() - {"tokenizer.joint"})
        and not (but_paths and _PATH_OF_TEXT.fullmatch(key))
        # auto means the tokenizer that the run has; before, it is of a run that an earlier version started.
        and not (key == "eval.bleu_tokenize" and "auto" in (value, now))
    ]


def _check_changes(config: RunConfig, run: RunFolder, *, but_paths: bool = False) -> None:
    if _changed_settings(config, run, but_paths=but_paths):
        changed = _changed_settings(config, run)
        fix = f"change {'it' if len(changed) == 1 else 'them'} back, or start a new run with another --run-dir"
        if schedule := [key for key in _SCHEDULE_KEYS if any(text.startswith(f"{key} was ") for text in changed)]:
            fix += f". To restart the schedule with another {listed(schedule)}, set train.restart_schedule to true"
        raise ConfigError(run.path, f"this run was started with other settings ({'; '.join(changed)})", fix)


def _record_start(config: RunConfig, corpus: PreparedCorpus, run: RunFolder, added_tests: dict[str, Any]) -> None:
    """Write the config and the run's record; add an entry for this start."""
    record = run.read_record() or {"name": config.name, "starts": []}
    # The corpus may differ from that of earlier starts without a checkpoint.
    record |= {"corpus_fingerprint": corpus.fingerprint, ADDED_TESTS: added_tests}
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


def _finish_model(config: RunConfig, corpus: PreparedCorpus, run: RunFolder, progress: Progress) -> None:
    """Write `model/`: the average of the last checkpoints, or the best checkpoint if its validation score is higher."""
    best = run.best_checkpoint() or run.checkpoints()[-1]
    n = config.train.n_averaged
    folders = run.scheduled_checkpoints(config.train.checkpoint_every)[-n:] if n else [best]
    if any(_is_average(run.model, config, run, one) for one in (folders, [best])):
        return
    weights = average_weights(folders)
    if folders != [best] and progress.best_step == checkpoint_step(best):
        newest, on = ModelFolder.open(folders[-1]), choose_device(config.train.device)
        model = newest.with_weights(weights, choose_dtype(config.train.precision, on), on)
        lines = UsualLines.of_manifest(newest.manifest)
        result = validate(model, newest.load_tokenizers(), corpus, config, lines)
        by = config.train.best_by
        score, best_score = getattr(result, by), -progress.best_score if by == "loss" else progress.best_score
        average, step = _steps_text(list(map(checkpoint_step, folders))), f"step {checkpoint_step(best):,}"
        is_better = score <= best_score if by == "loss" else score >= best_score
        name = {"bleu": "BLEU", "chrf": "chrF2"}.get(by, by)
        scores = f"validation {name}: {score:.2f} for the {average}, {best_score:.2f} for {step}"
        _log.info(f"{scores}; the model is {f'the {average}' if is_better else step}")
        if not is_better:
            folders, weights = [best], average_weights([best])
    _write_average(config, run, run.model, folders, weights)


def _is_average(model_dir: Path, config: RunConfig, run: RunFolder, folders: list[Path]) -> bool:
    """Return whether a model folder exists, is the mean of these checkpoints, and was made after the last update."""
    wanted = (list(map(checkpoint_step, folders)), checkpoint_step(run.checkpoints()[-1]), config)
    try:
        present = ModelFolder.open(model_dir)
        return (present.manifest["averaged_steps"], present.manifest[MADE_AT], present.config) == wanted
    except (CheckpointError, KeyError):
        return False


def _write_average(
    config: RunConfig, run: RunFolder, model_dir: Path, folders: list[Path], weights: dict[str, Tensor]
) -> None:
    """Write the mean of some checkpoints as a model folder."""
    newest = ModelFolder.open(folders[-1])
    manifest = {key: value for key, value in newest.manifest.items() if key != "format_version"}
    made_at = checkpoint_step(run.checkpoints()[-1])
    manifest |= {"averaged_steps": list(map(checkpoint_step, folders)), MADE_AT: made_at}
    save_model_folder(model_dir, weights, config, newest.tokenizer_paths, manifest)


def _evaluate_run(config: RunConfig, corpus: PreparedCorpus, run: RunFolder, progress: Progress) -> Evaluation:
    """Translate and score validation and test sets, unless a report of exactly this training exists."""
    artifacts = RunArtifacts.of(run.model)
    pairs = {**corpus.valid_sets, **artifacts.test_pairs(list(config.tests))}
    directions = artifacts.directions(pairs)
    initial = _initial_artifacts(config)
    if initial is not None:
        known = [(one, directions[name]) for name, one in pairs.items()]
        for name, theirs in _tests_of(initial, config).items():
            if (theirs, direction := initial.directions([name])[name]) not in known:
                pairs[new := f"{initial.folder.config.name}.{name}"] = theirs
                directions[new] = direction
    facts = _facts_of_training(config, artifacts, progress)
    facts["texts"] = {name: artifacts.text_checksum(one, directions[name]) for name, one in pairs.items()}
    existing = read_evaluation(run.path)
    if config.train.init_from is not None and initial is None and existing is not None:
        facts["texts"] = {**(existing.texts or {}), **facts["texts"]}  # the comparison with a model that is gone stays
    if existing is not None and all(getattr(existing, name) == value for name, value in facts.items()):
        return existing
    tests = {name: one for name, one in pairs.items() if name not in corpus.valid_sets}
    baselines = {} if initial is None else _translations_of(initial, config, tests, directions, artifacts)
    sets = {
        name: replace(
            one,
            tokenize=artifacts.bleu_tokenizer(directions[name], config.eval.bleu_tokenize),
            baseline=baselines.get(name),
        )
        for name, one in _translated_sets(config, pairs, directions, artifacts, run).items()
    }
    checksums = {name: file_checksum(run.translation(name)) for name in sets}
    scored = {name: score_corpus(sets.pop(name)) for name in corpus.valid_sets}
    valid = {"valid_sets": scored} if len(scored) > 1 else {"valid": scored["valid"]}
    options = EvalOptions(has_analysis=True, baseline=initial.path if initial is not None and baselines else None)
    found = evaluate(sets, config.name, options, artifacts.count_words, artifacts.overlap_warnings(sets))
    facts |= artifacts.facts(config.train.device, config.train.precision)
    report = found.model_copy(update=facts | {"translations": checksums} | valid)
    report = report.model_copy(update={"notes": notes_of(report, config.train)})
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
    config: RunConfig,
    pairs: dict[str, list[SentencePair]],
    directions: Mapping[str, Direction],
    artifacts: RunArtifacts,
    run: RunFolder,
) -> dict[str, TranslatedSet]:
    """Return validation and test sets with this model's translations, which are stored in the run folder."""
    kept = artifacts.kept_translations(pairs, directions)
    new = {name: one for name, one in pairs.items() if name not in kept}
    if new:
        on = config.train.device, config.train.precision
        new_sets = artifacts.translate(new, directions, *on, n_processes=1)
        run.translations.mkdir(exist_ok=True)
        for name, one in new_sets.items():
            write_text(run.translation(name), "".join(f"{hypothesis}\n" for hypothesis in one.hypotheses))
        kept |= new_sets
    return {name: kept[name] for name in pairs}


# --- The model that training started from -----------------------------------------------------------------------------


def _initial_artifacts(config: RunConfig) -> RunArtifacts | None:
    """Return the model in `train.init_from` with its run; None if there is none any more."""
    if config.train.init_from is None:
        return None
    try:
        return RunArtifacts.of(Path(config.train.init_from))
    except MTError as error:
        _log.info(f"{error.statement}: what was gained and lost since then cannot be measured")
        return None


def _tests_of(initial: RunArtifacts, config: RunConfig) -> dict[str, list[SentencePair]]:
    """Return the test sets of the model that training started from, as far as the new model has their direction."""
    entries = initial.folder.config.tests
    try:
        return initial.test_pairs([name for name, one in entries.items() if one.direction in config.directions])
    except MTError as error:
        _log.info(f"the test sets of {initial.path} cannot be scored: {error.statement}")
        return {}


def _translations_of(
    initial: RunArtifacts,
    config: RunConfig,
    tests: Mapping[str, list[SentencePair]],
    directions: Mapping[str, Direction],
    artifacts: RunArtifacts,
) -> dict[str, Sequence[str]]:
    """Return the translations of test sets by the model that training started from: stored ones, or new ones."""
    theirs = _tests_of(initial, config)
    stored = initial.kept_translations(theirs, of_theirs := initial.directions(theirs))
    found: dict[str, Sequence[str]] = {}
    for name, pairs in tests.items():
        for their_name, one in stored.items():
            if (pairs, directions[name]) == (theirs[their_name], of_theirs[their_name]):
                found[name] = one.hypotheses
    new = {
        name: pairs
        for name, pairs in as_read_by(initial, tests, artifacts).items()
        if name not in found and directions[name] in initial.folder.config.directions
    }
    if new:
        on = config.train.device, config.train.precision
        _log.info(f"{initial.path}: translating {', '.join(new)} for the comparison")
        translated = initial.translate(new, directions, *on, n_processes=1)
        found |= {name: one.hypotheses for name, one in translated.items()}
    return found


def format_report(report: Evaluation) -> str:
    """Return a run's report as text for a terminal."""
    return "\n".join(
        [
            f"{report.name}: {format_count(report.n_parameters or 0)} parameters, {report.steps:,} steps, "
            f"{report.n_tgt_tokens:,} target tokens in {format_duration(report.train_seconds or 0)}",
            f"model: {_steps_text((report.basis or {})['averaged_steps'])}",
            scores_text(report.validated | report.test_sets),
            *direction_lines(report),
            *comparison_lines(report),
            *(f"note: {note}" for note in report.notes),
        ]
    )


def _steps_text(steps: Sequence[int]) -> str:
    return f"{'average of steps' if len(steps) > 1 else 'step'} {', '.join(f'{step:,}' for step in steps)}"


def notes_of(report: Evaluation, train: TrainConfig) -> list[str]:
    """Return a note if no checkpoint is within `train.max_loss_on_old`."""
    if train.max_loss_on_old is None or report.best is not None:
        return []
    limit = f"{train.max_loss_on_old:g} BLEU on the validation text of {train.init_from} (train.max_loss_on_old)"
    advice = "lower train.peak_lr, validate more often, or add {run: DIR} to data.train"
    return [f"each checkpoint lost more than {limit}, so this model is the last one: {advice}"]
