"""The commands `mt eval` and `mt compare`: evaluation of files, runs and models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mt.config.settings import Corpus
from mt.errors import ConfigError, DataError, MTError
from mt.evaluation.comparison import System, compare_systems
from mt.evaluation.findings import EvalOptions, Text, evaluate
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.tokenization import chosen_tokenizer
from mt.report.facts import Evaluation, SystemComparison
from mt.text.corpora import SentencePair, different_counts, reader_of
from mt.text.corpus import with_tag, without_tag
from mt.text.files import COMPRESSIONS, read_line_chunks

if TYPE_CHECKING:  # scoring files does not import torch
    from mt.evaluation.runs import RunArtifacts

_log = logging.getLogger(__name__)

INPUT = "input"  # name of the test set when files are scored
_LINES_AT_ONCE = 10_000
GivenText: TypeAlias = Corpus | tuple[Text, Sequence[Text]]  # parallel text, or a source with references

_How: TypeAlias = tuple[str, str, int | None]  # device, precision and number of processes of a translation


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
    given: GivenText | None = None,
) -> Evaluation:
    """Evaluate a model on its test sets, or on those given; for a report, add its training, data and settings.

    Args:
        tests: names of test sets of the model; if there are none, all of them.
        n_processes: as in `Translator.load`.
        given: other text, which is scored instead of the model's test sets.
    Raises:
        ConfigError: the model has no test set, or none of a given name; an unknown metric; one file as baseline of
            several test sets; a tag that the model does not know.
        DataError: the text or the baseline is missing or unreadable, or the baseline has another number of lines.
        CheckpointError: there is no model.
    """
    from mt.evaluation.runs import RunArtifacts

    artifacts = RunArtifacts.of(model)
    tokenize = _tokenizer_of([artifacts, *_run_of(options.baseline)], options)
    more_references: list[list[str]] = []
    if given is None:
        pairs = artifacts.test_pairs(artifacts.test_names(tests))
    else:
        pairs, more_references = _given_pairs(given, artifacts)
    # Errors of the baseline are raised before the model translates anything.
    baselines = dict[str, Sequence[str]]()
    if options.baseline is not None:
        baselines = _baselines(options.baseline, pairs, artifacts, (device, precision, n_processes))
    translated = {
        name: replace(
            one, baseline=baselines.get(name), references=[*one.references, *more_references], tokenize=tokenize
        )
        for name, one in _translated(artifacts, pairs, (device, precision, n_processes)).items()
    }
    known_warnings = artifacts.overlap_warnings(pairs if given is None else ())
    found = evaluate(translated, str(model), options, artifacts.count_words, known_warnings)
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
                problem = f"its test set {name} is not the same text as {name} of {paths[0]}"
                fix = "compare models on the same text, or choose a test set with --test"
                raise DataError(path, problem, fix)
    may_use_stored, how = device is None and precision is None, (device or "auto", precision or "auto", n_processes)
    systems = [
        _system(model, settings, _hypotheses(model, found, how, may_use_stored))
        for model, settings, found in zip(models, _settings(models), pairs, strict=True)
    ]
    sets = {name: [lines] for name, lines in references.items()}
    return compare_systems(systems, sets, options, models[0].folder.config.tgt_lang, tokenize)


def compare_on(
    given: GivenText,
    texts: Sequence[tuple[str, Text]],
    device: str | None,
    precision: str | None,
    options: EvalOptions,
    n_processes: int | None = None,
) -> SystemComparison:
    """Compare several systems on text that is given: models, which translate it, and files of its translations.

    Args:
        texts: name and model or translations of each system.
        device, precision, n_processes: as in `compare_models`.
    Raises:
        ConfigError: none of the systems is a model; an invalid metric or number of samples.
        DataError: a text is missing, unreadable, or has another number of lines.
        CheckpointError: a folder is not a model, or cannot be read.
    """
    from mt.evaluation.runs import RunArtifacts

    models = {name: RunArtifacts.of(text) for name, text in texts if isinstance(text, Path) and _is_run(text)}
    if not models:
        raise ConfigError("", "none of the systems is a model", "give only references to compare translations")
    first, tokenize = next(iter(models.values())), _tokenizer_of(list(models.values()), options)
    pairs, more_references = _given_pairs(given, first)
    ((name, lines),) = pairs.items()
    may_use_stored, how = device is None and precision is None, (device or "auto", precision or "auto", n_processes)
    settings = dict(zip(models, _settings(list(models.values())), strict=True))
    systems = []
    for system, text in texts:
        if (model := models.get(system)) is not None:
            found = _hypotheses(model, _as_read_by(model, pairs, first), how, may_use_stored)
            systems.append(_system(model, settings[system], found))
        else:
            translated = _checked(_read_lines(text), lines, text, name, "a file that translates")
            systems.append(System(system, {name: translated}))
    sets = {name: [[pair.tgt for pair in lines], *more_references]}
    return compare_systems(systems, sets, options, first.folder.config.tgt_lang, tokenize)


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


def _translated(model: RunArtifacts, sets: Mapping[str, Sequence[SentencePair]], how: _How) -> dict[str, TranslatedSet]:
    # Logged because it takes time, and because a path may not tell which model is used.
    _log.info(f"{model.path}: translating {', '.join(sets)} with {model.description}")
    device, precision, n_processes = how
    return model.translate(sets, device, precision, n_processes=n_processes)


def _hypotheses(
    model: RunArtifacts, sets: Mapping[str, Sequence[SentencePair]], how: _How, may_use_stored: bool
) -> dict[str, Sequence[str]]:
    """Return a model's translations: those that its finished run has stored, and new ones of other text."""
    found = model.kept_translations(sets) if may_use_stored else {}
    if new := {name: pairs for name, pairs in sets.items() if name not in found}:
        found |= _translated(model, new, how)
    return {name: found[name].hypotheses for name in sets}


def _system(model: RunArtifacts, settings: Mapping[str, Any], hypotheses: Mapping[str, Sequence[str]]) -> System:
    return System(str(model.path), hypotheses, settings, model.figures(), model.training())


def _settings(models: Sequence[RunArtifacts]) -> list[dict[str, Any]]:
    """Return the settings of each model, without those of tokenizers that are the same, or not known for all models."""
    settings = [model.settings() for model in models]
    is_same = len({model.tokenizer_checksums for model in models}) == 1
    left_out = {
        key
        for key in set().union(*settings)
        if key.startswith("tokenizer.") and (is_same or not all(key in one for one in settings))
    }
    return [{key: value for key, value in one.items() if key not in left_out} for one in settings]


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


# --- Text that is given -----------------------------------------------------------------------------------------------


def _given_pairs(given: GivenText, model: RunArtifacts) -> tuple[dict[str, list[SentencePair]], list[list[str]]]:
    """Return given text under its name, with tags as the model reads it, and its further sets of references.

    Raises:
        ConfigError: the model does not know the tag.
        DataError: the text is missing, unreadable, empty or not parallel.
    """
    config = model.folder.config
    if isinstance(given, Corpus):
        if given.tag not in (None, *config.symbols):
            knows = f"it knows {', '.join(config.symbols)}" if config.symbols else "remove the tag"
            raise ConfigError("data.tag", f"{model.path} does not know {given.tag}", knows)
        pairs = with_tag(reader_of(given, (config.src_lang, config.tgt_lang), "test").pairs(), given.tag)
        if not pairs:
            raise DataError(given.description, "has no sentence pairs, expected at least one")
        name = _stem(Path(given.files[0])) if given.files else given.description.removeprefix("sacrebleu:")
        return {name: pairs}, []
    src, refs = given
    sources = _read_lines(src)
    reference, *more = [_read_lines(ref, parallel_to=(src, sources)) for ref in refs]
    for lines in (reference, *more):
        if len(lines) != len(sources):
            raise DataError(f"{len(sources):,} sources and {len(lines):,} references: scoring needs the same number")
    pairs = [SentencePair(*sides, line) for line, sides in enumerate(zip(sources, reference, strict=True), start=1)]
    return {_stem(src) if isinstance(src, Path) else INPUT: pairs}, more


def _stem(path: Path) -> str:
    """Return the name of a file without the suffixes of its compression and its format or language."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).stem


def _as_read_by(
    model: RunArtifacts, sets: Mapping[str, list[SentencePair]], other: RunArtifacts
) -> dict[str, list[SentencePair]]:
    """Return another model's test sets without the tags that this model does not know."""
    tags = [tag for tag in other.folder.config.data.tags if tag not in model.folder.config.symbols]
    return {name: [pair._replace(src=without_tag(pair.src, tags)) for pair in pairs] for name, pairs in sets.items()}


# --- Translations of other systems ------------------------------------------------------------------------------------


def _baselines(
    baseline: Text,
    sets: Mapping[str, list[SentencePair]],
    model: RunArtifacts,
    how: _How,
) -> dict[str, Sequence[str]]:
    """Return the baseline's translations of test sets of a model: stored ones of the same text, or new ones.

    Raises:
        ConfigError: one file for several test sets.
        DataError: a folder has neither a model nor translations of a test set; a file has another number of lines.
    """
    from mt.evaluation.runs import RunArtifacts
    from mt.run_folder import RunFolder

    paths: Mapping[str, Text] = dict.fromkeys(sets, baseline)
    if isinstance(baseline, Path) and _is_run(baseline):
        try:
            other = RunArtifacts.of(baseline)
        except MTError:
            if not RunFolder(baseline).translations.is_dir():
                raise
            paths = _translations(baseline)  # a run without its model may have its translations
        else:
            return _hypotheses(other, _as_read_by(other, sets, model), how, may_use_stored=True)
        for name in sets:
            if name not in paths:
                problem = f"has no translations of {name}, only of {', '.join(paths)}"
                raise DataError(baseline, problem, "give another run, or choose a test set with --test")
    elif len(sets) > 1:
        named = baseline if isinstance(baseline, Path) else "it"
        problem = f"{named} translates one test set, but the model has {', '.join(sets)}"
        raise ConfigError("baseline", problem, "choose one with --test, or give a run")
    return {name: _checked(_read_lines(paths[name]), pairs, paths[name], name) for name, pairs in sets.items()}


def _checked(
    lines: list[str],
    pairs: Sequence[SentencePair],
    text: Text,
    name: str,
    wanted: str = "a baseline that translates",
) -> list[str]:
    if len(lines) != len(pairs):
        named = text if isinstance(text, Path) else "the baseline"
        counts = f"{named} has {len(lines):,} lines and the test set {name} has {len(pairs):,}"
        raise DataError("", counts, f"give {wanted} the same text")
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
