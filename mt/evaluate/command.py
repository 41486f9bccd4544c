"""`mt eval` and `mt compare`: from files, runs and models to what is found of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mt.config.loading import settings_of
from mt.errors import ConfigError, DataError, MTError
from mt.evaluate.comparison import System, compare_systems
from mt.evaluate.findings import EvalOptions, evaluate
from mt.evaluate.scores import TranslatedSet
from mt.report.facts import Evaluation, SystemComparison
from mt.text.files import read_line_chunks

if TYPE_CHECKING:  # scoring files does without torch
    from mt.evaluate.runs import RunArtifacts
    from mt.text.corpora import SentencePair

_log = logging.getLogger(__name__)

INPUT = "input"  # name of the test set where files are scored
_MANY_SYSTEMS = 5
_LINES_AT_ONCE = 10_000


def evaluate_files(
    hyp: Path, refs: Sequence[Path], src: Path | None, options: EvalOptions, tgt_lang: str = "de"
) -> Evaluation:
    """Evaluate a file of translations.

    Raises:
        DataError: a file is missing, empty, unreadable, or has not as many lines as the first reference.
        ConfigError: an unknown metric, or too few or too many samples.
    """
    first = refs[0]
    lines = {path: _read_lines(path) for path in (first, hyp, *refs[1:], *([src] if src else []))}
    baseline = None if options.baseline is None else _lines_of(options.baseline, lines[first])
    if baseline is not None:
        lines[baseline] = _read_lines(baseline)
    for path in lines:
        _check_as_long(path, lines[path], first, lines[first])
    sources, theirs = (None if path is None else lines[path] for path in (src, baseline))
    translated = TranslatedSet(sources, lines[hyp], [lines[path] for path in refs], tgt_lang, theirs)
    return evaluate({INPUT: translated}, str(hyp), options)


def evaluate_model(model: Path, tests: Sequence[str], device: str, precision: str, options: EvalOptions) -> Evaluation:
    """Evaluate a model on its test sets, or those named; for a report, add what the model is based on.

    Raises:
        ConfigError: the model has no test set, or none of that name; an unknown metric; a baseline for several sets.
        DataError: the baseline is missing or of another test set.
        CheckpointError: there is no model.
    """
    from mt.evaluate.runs import RunArtifacts

    artifacts = RunArtifacts.of(model)
    names = artifacts.test_names(tests)
    baselines: dict[str, list[str]] = {}
    if options.baseline is not None:  # what is wrong with it shows before anything is translated
        ours = {name: artifacts.test_references(name) for name in names}
        paths = _baseline_files(options.baseline, ours, model)
        baselines = {name: _read_lines(path) for name, path in paths.items()}
    pairs = artifacts.test_pairs(names)
    for name, lines in baselines.items():
        if len(lines) != len(pairs[name]):
            raise DataError(
                f"{paths[name]} has {len(lines):,} lines and the test set {name} has {len(pairs[name]):,}: a baseline "
                "translates the same text"
            )
    translated = {
        name: replace(one, baseline=baselines.get(name))
        for name, one in _translated(artifacts, pairs, device, precision).items()
    }
    found = evaluate(translated, str(model), options, artifacts.count_words)
    if not options.has_analysis:
        return found
    return found.model_copy(update=artifacts.figures() | artifacts.facts(device, precision))


def compare_models(
    paths: Sequence[Path], tests: Sequence[str], device: str | None, precision: str | None, options: EvalOptions
) -> SystemComparison:
    """Compare several models by the test sets that all of them have.

    A finished run has translated its test sets; other models do it now, and all where device or precision is given.

    Args:
        paths: of runs, checkpoints or model folders.
        tests: only these test sets.
        device, precision: None for what suits this machine.
    Raises:
        ConfigError: no test set that all have, or none of that name; a metric or samples that cannot be.
        DataError: a test set is not the same text for all.
        CheckpointError: there is no model, or it cannot be read.
    """
    from mt.evaluate.runs import RunArtifacts

    models = [RunArtifacts.of(path) for path in paths]
    names = _shared_names(models, tests)
    pairs = [model.test_pairs(names) for model in models]
    references = {name: [pair.tgt for pair in found] for name, found in pairs[0].items()}
    for path, found in zip(paths, pairs, strict=True):
        for name in names:
            if [pair.tgt for pair in found[name]] != references[name]:
                raise _other_text(path, name, paths[0])
    translations: dict[Path, dict[str, Sequence[str]]] = {}
    systems = []
    for model, found in zip(models, pairs, strict=True):
        folder = model.folder
        if folder.path not in translations:
            kept = model.kept_translations(found) if device is None and precision is None else None
            translated = kept or _translated(model, found, device or "auto", precision or "auto")
            translations[folder.path] = {name: one.hypotheses for name, one in translated.items()}
        known = (settings_of(folder.config), model.figures(), model.training())
        systems.append(System(str(model.path), translations[folder.path], *known))
    sets = {name: [lines] for name, lines in references.items()}
    return _compared(systems, sets, options, models[0].folder.config.tgt_lang)


def compare_files(paths: Sequence[Path], refs: Sequence[Path], options: EvalOptions, tgt_lang: str) -> SystemComparison:
    """Compare several files of translations.

    Args:
        paths: files, or runs that have translated the text of the references.
    Raises:
        DataError: a file is missing, empty, unreadable, or has not as many lines as the first reference.
        ConfigError: an unknown metric; samples that cannot be.
    """
    references = {path: _read_lines(path) for path in refs}
    first = references[refs[0]]
    systems = {path: _read_lines(_lines_of(path, first)) for path in paths}
    for path, lines in (*references.items(), *systems.items()):
        _check_as_long(path, lines, refs[0], first)
    named = [System(str(path), {INPUT: systems[path]}) for path in paths]
    return _compared(named, {INPUT: [references[path] for path in refs]}, options, tgt_lang)


def _compared(
    systems: Sequence[System], test_sets: Mapping[str, Sequence[Sequence[str]]], options: EvalOptions, tgt_lang: str
) -> SystemComparison:
    if (n := len(systems)) >= _MANY_SYSTEMS:  # each test takes about a second
        _log.info(f"comparing {n * (n - 1) // 2:,} pairs of systems")
    return compare_systems(systems, test_sets, options, tgt_lang)


def _other_text(path: Path, name: str, other: Path) -> DataError:
    problem = f"its test set {name} is not the text that {other} has under that name"
    return DataError(path, problem, "compare models on the same text, or choose a test set with --test")


def _translated(
    model: RunArtifacts, sets: Mapping[str, Sequence[SentencePair]], device: str, precision: str
) -> dict[str, TranslatedSet]:
    # It takes its time, and not every path says which model it means.
    _log.info(f"{model.path}: translating {', '.join(sets)} with {model.description}")
    return model.translate(sets, device, precision, n_processes=None)


def _shared_names(models: Sequence[RunArtifacts], tests: Sequence[str]) -> list[str]:
    if tests:
        names, *_ = [model.test_names(tests) for model in models]
        return names
    known = {model.path: list(model.folder.config.data.test) for model in models}
    shared = [name for name in known[models[0].path] if all(name in names for names in known.values())]
    if not shared:
        each = "; ".join(f"{path} has {', '.join(names) or 'none'}" for path, names in known.items())
        raise ConfigError("", "these models have no test set in common", each)
    return shared


# --- The baseline -----------------------------------------------------------------------------------------------------


def _baseline_files(baseline: Path, ours: Mapping[str, list[str] | None], model: Path) -> dict[str, Path]:
    """Return the baseline's translations of each test set of a model.

    Args:
        ours: name of the test set → its references, as far as they are known.
    Raises:
        ConfigError: one file for several test sets.
        DataError: a run that has not translated one of them, or other text of that name.
    """
    if not _is_run(baseline):
        if len(ours) > 1:
            problem = f"{baseline} is of one test set and the model has {', '.join(ours)}"
            raise ConfigError("baseline", problem, "choose one with --test, or give a run")
        return dict.fromkeys(ours, baseline)
    translations = _translations(baseline)
    theirs = _references_of(baseline, ours)
    for name, references in ours.items():
        if name not in translations:
            problem = f"has no translations of {name}, it has {', '.join(translations)}"
            raise DataError(baseline, problem, "give another run, or choose a test set with --test")
        if None not in (references, theirs[name]) and references != theirs[name]:
            raise _other_text(baseline, name, model)
    return {name: translations[name] for name in ours}


def _lines_of(path: Path, references: Sequence[str]) -> Path:
    """Return a file of translations: that file, or what a run has translated of the test set with these references.

    Raises:
        DataError: there is nothing, no set of the run has as many lines, or several have and their text is gone.
    """
    if not _is_run(path):
        return path
    translations = _translations(path)
    texts = _references_of(path, translations)
    for name, text in texts.items():
        if text == list(references):
            return translations[name]
    lengths = {name: len(_read_lines(file)) for name, file in translations.items()}
    fitting = [name for name, n in lengths.items() if n == len(references) and texts[name] is None]
    if len(fitting) == 1:
        return translations[fitting[0]]
    found = ", ".join(f"{translations[name].name} ({n:,})" for name, n in lengths.items())
    which = f"{'several' if fitting else 'none'} of its translations have"
    problem = f"{which} the {len(references):,} lines of --ref and no other text: {found}"
    raise DataError(path, problem, "give the file that is meant")


def _is_run(path: Path) -> bool:
    if not path.exists():
        raise DataError(path, f"no such file and no such run (looked for in {Path.cwd()})")
    return path.is_dir()


def _references_of(run: Path, names: Iterable[str]) -> dict[str, list[str] | None]:
    """Return the references of sets that a run has translated; None where only its translations are left."""
    from mt.evaluate.runs import RunArtifacts

    try:
        artifacts = RunArtifacts.of(run)
    except MTError:
        return dict.fromkeys(names)
    return {name: artifacts.test_references(name) for name in names}


def _translations(run_dir: Path) -> dict[str, Path]:
    """Return a run's translations by the name of their set, the validation set last."""
    from mt.run_folder import RunFolder

    paths = {path.stem: path for path in sorted(RunFolder(run_dir).translations.glob("*.txt"))}
    if not paths:
        fix = "let it finish, give a file of translations, or compare models with mt compare"
        raise DataError(run_dir, "has no translations, as a finished run does", fix)
    return dict(sorted(paths.items(), key=lambda item: item[0] == "valid"))


# --- Files ------------------------------------------------------------------------------------------------------------


def _check_as_long(path: Path, lines: Sequence[str], other: Path, other_lines: Sequence[str]) -> None:
    if len(lines) != len(other_lines):
        (n_shorter, shorter), (n_longer, longer) = sorted([(len(lines), path), (len(other_lines), other)])
        counts = f"{longer} has {n_longer:,} lines and {shorter} has {n_shorter:,}"
        raise DataError(f"{counts}: parallel files need one line for each line")


def _read_lines(path: Path) -> list[str]:
    """Read all lines of a text file, which may be compressed; only \\n ends a line.

    Raises:
        DataError: it is missing, unreadable, not UTF-8, or holds no line.
    """
    lines = [*chain.from_iterable(read_line_chunks(path, _LINES_AT_ONCE))]
    if not lines:
        raise DataError(path, "has no lines", "nothing to score")
    return lines
