"""The commands `mt eval` and `mt compare`: evaluation of files, runs and models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mt.config.loading import settings_of
from mt.errors import ConfigError, DataError, MTError
from mt.evaluation.comparison import System, compare_systems
from mt.evaluation.findings import EvalOptions, Text, evaluate
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.tokenization import chosen_tokenizer
from mt.report.facts import Evaluation, SystemComparison
from mt.text.corpora import different_counts
from mt.text.files import read_line_chunks

if TYPE_CHECKING:  # scoring files does not import torch
    from mt.evaluation.runs import RunArtifacts
    from mt.text.corpora import SentencePair

_log = logging.getLogger(__name__)

INPUT = "input"  # name of the test set when files are scored
_LINES_AT_ONCE = 10_000


def evaluate_files(
    hyp: Text, refs: Sequence[Text], src: Text | None, options: EvalOptions, tgt_lang: str | None = None
) -> Evaluation:
    """Evaluate translations.

    Args:
        tgt_lang: None if it is not known; BLEU then has the tokenizer 13a.
    Raises:
        DataError: a file is missing, empty, unreadable, or differs from the first reference in its number of lines.
        ConfigError: an unknown metric, or too few or too many samples; the tokenizer cannot be used.
    """
    tokenize = chosen_tokenizer(options.tokenize or "auto", tgt_lang)
    reference = _read_lines(refs[0])
    read = partial(_read_lines, parallel_to=(refs[0], reference))
    baseline = None if options.baseline is None else read(_lines_of(options.baseline, reference))
    sources = None if src is None else read(src)
    translated = TranslatedSet(sources, read(hyp), [reference, *map(read, refs[1:])], tgt_lang, baseline, tokenize)
    return evaluate({INPUT: translated}, str(hyp) if isinstance(hyp, Path) else "the system", options)


def evaluate_model(
    model: Path,
    tests: Sequence[str],
    device: str,
    precision: str,
    options: EvalOptions,
    n_processes: int | None = None,
) -> Evaluation:
    """Evaluate a model on its test sets, or on those given; for a report, add its training, data and settings.

    Args:
        n_processes: as in `Translator.load`.
    Raises:
        ConfigError: the model has no test set, or none of a given name; an unknown metric; one file as baseline of
            several test sets.
        DataError: the baseline is missing or translates other text.
        CheckpointError: there is no model.
    """
    from mt.evaluation.runs import RunArtifacts

    artifacts = RunArtifacts.of(model)
    tokenize = _tokenizer_of([artifacts, *_run_of(options.baseline)], options)
    pairs = artifacts.test_pairs(artifacts.test_names(tests))
    # Errors of the baseline are raised before anything is translated.
    baselines = {} if options.baseline is None else _baselines(options.baseline, pairs, model)
    translated = _translated(artifacts, pairs, device, precision, n_processes)
    translated = {
        name: replace(one, baseline=baselines.get(name), tokenize=tokenize) for name, one in translated.items()
    }
    found = evaluate(translated, str(model), options, artifacts.count_words)
    if not options.has_analysis:
        return found
    return found.model_copy(update=artifacts.figures() | artifacts.facts(device, precision))


def compare_models(
    paths: Sequence[Path],
    tests: Sequence[str],
    device: str | None,
    precision: str | None,
    options: EvalOptions,
    n_processes: int | None = None,
) -> SystemComparison:
    """Compare several models on the test sets that all of them have.

    A finished run has stored its translations. Other models translate now; if device or precision is given, all do.

    Args:
        paths: runs, checkpoints or model folders.
        tests: if any, only these test sets are compared.
        device, precision: None: the best for this machine.
        n_processes: as in `Translator.load`.
    Raises:
        ConfigError: no test set that all models have, or none of a given name; an invalid metric or number of samples.
        DataError: a test set is not the same text for all models.
        CheckpointError: there is no model, or it cannot be read.
    """
    from mt.evaluation.runs import RunArtifacts

    models = [RunArtifacts.of(path) for path in paths]
    tokenize = _tokenizer_of(models, options)
    names = _shared_names(models, tests)
    pairs = [model.test_pairs(names) for model in models]
    references = {name: [pair.tgt for pair in found] for name, found in pairs[0].items()}
    for path, found in zip(paths, pairs, strict=True):
        for name in names:
            if [pair.tgt for pair in found[name]] != references[name]:
                raise _other_text(path, name, paths[0])
    systems = []
    for model, found in zip(models, pairs, strict=True):
        kept = model.kept_translations(found) if device is None and precision is None else None
        translated = kept or _translated(model, found, device or "auto", precision or "auto", n_processes)
        hypotheses = {name: one.hypotheses for name, one in translated.items()}
        known = (settings_of(model.folder.config), model.figures(), model.training())
        systems.append(System(str(model.path), hypotheses, *known))
    sets = {name: [lines] for name, lines in references.items()}
    return compare_systems(systems, sets, options, models[0].folder.config.tgt_lang, tokenize)


def compare_files(
    texts: Sequence[tuple[str, Text]], refs: Sequence[Text], options: EvalOptions, tgt_lang: str | None
) -> SystemComparison:
    """Compare translations of several systems.

    Args:
        texts: name and translations of each system; a run has translated the text of the references.
    Raises:
        DataError: a file is missing, empty, unreadable, or differs from the first reference in its number of lines.
        ConfigError: an invalid metric or number of samples.
    """
    reference = _read_lines(refs[0])
    read = partial(_read_lines, parallel_to=(refs[0], reference))
    sets = [reference, *map(read, refs[1:])]
    tokenize = chosen_tokenizer(options.tokenize or "auto", tgt_lang)
    translated = [TranslatedSet(None, read(_lines_of(text, reference)), sets) for _, text in texts]
    systems = [System(name, {INPUT: one.hypotheses}) for (name, _), one in zip(texts, translated, strict=True)]
    return compare_systems(systems, {INPUT: sets}, options, tgt_lang, tokenize)


def _other_text(path: Path, name: str, other: Path) -> DataError:
    problem = f"its test set {name} is not the same text as {name} of {other}"
    return DataError(path, problem, "compare models on the same text, or choose a test set with --test")


def _translated(
    model: RunArtifacts,
    sets: Mapping[str, Sequence[SentencePair]],
    device: str,
    precision: str,
    n_processes: int | None,
) -> dict[str, TranslatedSet]:
    # Logged because it takes time, and because a path may not tell which model is used.
    _log.info(f"{model.path}: translating {', '.join(sets)} with {model.description}")
    return model.translate(sets, device, precision, n_processes=n_processes)


def _tokenizer_of(models: Sequence[RunArtifacts], options: EvalOptions) -> str:
    """Return the tokenizer of BLEU for all models.

    Raises:
        ConfigError: it is not the same for all and not given, or it cannot be used.
    """
    tokenizers = {str(model.path): model.bleu_tokenizer(options.tokenize) for model in models}
    if len({*tokenizers.values()}) > 1:
        each = ", ".join(f"{path} with {tokenizer}" for path, tokenizer in tokenizers.items())
        fix = "give --tokenize to score all of them with the same one"
        raise ConfigError("", f"the BLEU of these models is computed with different tokenizers ({each})", fix)
    return next(iter(tokenizers.values()))


def _shared_names(models: Sequence[RunArtifacts], tests: Sequence[str]) -> list[str]:
    if tests:
        names, *_ = [model.test_names(tests) for model in models]
        return names
    known = {model.path: list(model.folder.config.data.test) for model in models}
    shared = [name for name in known[models[0].path] if all(name in names for names in known.values())]
    if not shared:
        each = "; ".join(f"{path} has {', '.join(names) or 'none'}" for path, names in known.items())
        problem = f"these models have no test set in common ({each})"
        raise ConfigError("", problem, "choose models with a common test set")
    return shared


# --- Translations of other systems ------------------------------------------------------------------------------------


def _baselines(baseline: Text, sets: Mapping[str, Sequence[SentencePair]], model: Path) -> dict[str, list[str]]:
    """Return the baseline's translations of each test set of a model.

    Raises:
        ConfigError: one file for several test sets.
        DataError: a run has no translations of a test set, or its test set of that name is another text.
    """
    paths: Mapping[str, Text] = dict.fromkeys(sets, baseline)
    if isinstance(baseline, Path) and _is_run(baseline):
        paths, theirs = _translations(baseline), _references_of(baseline, sets)
        for name, pairs in sets.items():
            if name not in paths:
                problem = f"has no translations of {name}, only of {', '.join(paths)}"
                raise DataError(baseline, problem, "give another run, or choose a test set with --test")
            if theirs[name] not in (None, [pair.tgt for pair in pairs]):
                raise _other_text(baseline, name, model)
    elif len(sets) > 1:
        named = baseline if isinstance(baseline, Path) else "it"
        problem = f"{named} translates one test set, but the model has {', '.join(sets)}"
        raise ConfigError("baseline", problem, "choose one with --test, or give a run")
    lines = {name: _read_lines(paths[name]) for name in sets}
    for name, pairs in sets.items():
        if len(lines[name]) != len(pairs):
            named = path if isinstance(path := paths[name], Path) else "the baseline"
            counts = f"{named} has {len(lines[name]):,} lines and the test set {name} has {len(pairs):,}"
            raise DataError("", counts, "give a baseline that translates the same text")
    return lines


def _lines_of(path: Text, references: list[str]) -> Text:
    """Return the text itself, or for a run its translations of the text of the references.

    Raises:
        DataError: the path does not exist, or none or several of the run's files may translate that text.
    """
    if not isinstance(path, Path) or not _is_run(path):
        return path
    translations = _translations(path)
    texts = _references_of(path, translations)
    if same := [name for name, text in texts.items() if text == references]:
        return translations[same[0]]
    lengths = {name: len(_read_lines(file)) for name, file in translations.items()}
    fitting = [name for name, n in lengths.items() if n == len(references) and texts[name] is None]
    if len(fitting) == 1:
        return translations[fitting[0]]
    found = ", ".join(f"{translations[name].name} ({n:,})" for name, n in lengths.items())
    which = "several of its files may translate" if fitting else "none of its files translates"
    problem = f"{which} the text of --ref ({len(references):,} lines): {found}"
    raise DataError(path, problem, "give the right file instead of the run")


def _is_run(path: Path) -> bool:
    if not path.exists():
        raise DataError(path, f"does not exist (looked for in {Path.cwd()})")
    return path.is_dir()


def _run_of(text: Text | None) -> list[RunArtifacts]:
    """Return the run in a folder that stands for a text, if it is one and its model is available."""
    from mt.evaluation.runs import RunArtifacts

    try:
        return [RunArtifacts.of(text)] if isinstance(text, Path) and text.is_dir() else []
    except MTError:
        return []


def _references_of(run: Path, names: Iterable[str]) -> dict[str, list[str] | None]:
    """Return the references of test sets of a run; None if they are no longer available."""
    artifacts = _run_of(run)
    return {name: artifacts[0].test_references(name) if artifacts else None for name in names}


def _translations(run_dir: Path) -> dict[str, Path]:
    """Return a run's files of translations by the name of their test set, the validation set last."""
    from mt.run_folder import RunFolder

    paths = sorted(RunFolder(run_dir).translations.glob("*.txt"), key=lambda path: (path.stem == "valid", path))
    if not paths:
        fix = "let it finish, give a file of translations, or compare models with mt compare"
        raise DataError(run_dir, "has no translations, because it is not a finished run", fix)
    return {path.stem: path for path in paths}


def _read_lines(path: Text, parallel_to: tuple[Text, Sequence[str]] | None = None) -> list[str]:
    """Read all lines of a text file, which may be compressed; only \\n ends a line. Return given lines as they are.

    Raises:
        DataError: it is missing, unreadable, not UTF-8, or empty, or `parallel_to` has another number of lines.
    """
    if not isinstance(path, Path):
        return list(path)
    lines = [*chain.from_iterable(read_line_chunks(path, _LINES_AT_ONCE))]
    if not lines:
        raise DataError(path, "has no lines to score")
    if parallel_to and isinstance(other := parallel_to[0], Path) and len(lines) != len(parallel_to[1]):
        raise different_counts({path: len(lines), other: len(parallel_to[1])})
    return lines
