"""The commands `mt eval` and `mt compare`: evaluation of files, runs and models. For the errors, see `mt.api`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mt.config.settings import Corpus, Direction
from mt.errors import ConfigError, DataError, MTError
from mt.evaluation.comparison import System, compare_systems
from mt.evaluation.findings import EvalOptions, Text, evaluate
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.tokenization import chosen_tokenizer
from mt.report.facts import Evaluation, SystemComparison
from mt.text.corpora import different_counts
from mt.text.corpus import without_tag
from mt.text.files import COMPRESSIONS, read_line_chunks
from mt.text.languages import chosen_direction
from mt.text.reader import SentencePair

if TYPE_CHECKING:  # scoring files does not import torch
    from mt.evaluation.runs import GivenLangs, RunArtifacts

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
        tgt_lang: None if it is not known; the script of the references then decides the tokenizer of BLEU.
    """
    reference = _read_lines(refs[0])
    tokenize = chosen_tokenizer(options.tokenize or "auto", tgt_lang, reference)
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
    langs: GivenLangs = (None, None),
) -> Evaluation:
    """Evaluate a model on its test sets, or on other text; for a report, add its training, data and settings.

    Args:
        tests: names of test sets of the model; if there are none, all of them.
        n_processes: as in `Translator.load`.
        given: other text, which is scored instead of the model's test sets.
        langs: source and target language of that text, or of the test sets to score; None: all, or as is clear.
    """
    from mt.evaluation.runs import RunArtifacts

    artifacts, other = RunArtifacts.of(model), _model_of(options.baseline)
    more_references: list[list[str]] = []
    if given is None:
        names = artifacts.test_names(tests, langs)
        pairs, directions = artifacts.test_pairs(names), artifacts.directions(names)
    else:
        pairs, more_references, directions = _given_pairs(given, artifacts, langs)
    tokenizers = _tokenizers_of([artifacts] if other is None else [artifacts, other], directions, options)
    how = device, precision, n_processes
    # Errors of the baseline are raised before the model translates anything.
    baselines: Mapping[str, Sequence[str]] = {}
    if other is not None:
        baselines = _hypotheses(other, as_read_by(other, pairs, artifacts), directions, how, may_use_stored=True)
    elif options.baseline is not None:
        baselines = _read_baselines(options.baseline, pairs)
    translated = {
        name: replace(
            one,
            baseline=baselines.get(name),
            references=[*one.references, *more_references],
            tokenize=tokenizers[name],
        )
        for name, one in _translated(artifacts, pairs, directions, how).items()
    }
    known_warnings = artifacts.overlap_warnings(pairs if given is None else ())
    found = evaluate(translated, str(model), options, artifacts.count_words, known_warnings)
    if not options.has_analysis:
        return found
    return found.model_copy(update=artifacts.figures() | artifacts.facts(device, precision))


def compare_models(
    systems: Sequence[tuple[str, Text]],
    tests: Sequence[str],
    device: str | None,
    precision: str | None,
    options: EvalOptions,
    n_processes: int | None = None,
    given: GivenText | None = None,
    langs: GivenLangs = (None, None),
) -> SystemComparison:
    """Compare models on the test sets that all of them have, or on other text, also with files of its translations.

    A finished run has stored its translations. Other models translate now; if device or precision is given, all do.

    Args:
        systems: name, and path of a model; for text that is given, also translations.
        tests: if any, only these test sets are compared.
        device, precision: None: the best for this machine.
        n_processes, given, langs: as in `evaluate_model`.
    """
    from mt.evaluation.runs import RunArtifacts

    paths = {name: text for name, text in systems if isinstance(text, Path) and (given is None or _is_run(text))}
    if not paths:
        raise ConfigError("", "none of the systems is a model", "give only references to compare translations")
    models = {name: RunArtifacts.of(path) for name, path in paths.items()}
    first, *_ = models.values()
    more_references: list[list[str]] = []
    if given is None:
        sets = _shared_sets(models, tests, langs)
        directions = first.directions(next(iter(sets.values())))
    else:
        pairs, more_references, directions = _given_pairs(given, first, langs)
        sets = {name: as_read_by(model, pairs, first) for name, model in models.items()}
    of_first, *_ = sets.values()
    may_use_stored, how = device is None and precision is None, (device or "auto", precision or "auto", n_processes)
    settings, compared = _settings(models), []
    for name, text in systems:
        if (model := models.get(name)) is not None:
            found = _hypotheses(model, sets[name], directions, how, may_use_stored)
            compared.append(System(name, found, settings[name], model.figures(), model.training()))
        else:
            read = {test: _read_translations(text, test, pairs, name) for test, pairs in of_first.items()}
            compared.append(System(name, read))
    references = {test: [[pair.tgt for pair in pairs], *more_references] for test, pairs in of_first.items()}
    tokenizers = _tokenizers_of([*models.values()], directions, options)
    languages = {test: (directions[test].tgt, tokenizers[test]) for test in references}
    return compare_systems(compared, references, options, languages)


def compare_files(
    texts: Sequence[tuple[str, Text]], refs: Sequence[Text], options: EvalOptions, tgt_lang: str | None
) -> SystemComparison:
    """Compare translations of several systems.

    Args:
        texts: name and translations of each system; a run has translated the text of the references.
    """
    reference = _read_lines(refs[0])
    read = partial(_read_lines, parallel_to=(refs[0], reference))
    sets = [reference, *map(read, refs[1:])]
    tokenize = chosen_tokenizer(options.tokenize or "auto", tgt_lang, reference)
    translated = [TranslatedSet(None, read(_lines_of(text, reference)), sets) for _, text in texts]
    systems = [System(name, {INPUT: one.hypotheses}) for (name, _), one in zip(texts, translated, strict=True)]
    return compare_systems(systems, {INPUT: sets}, options, {INPUT: (tgt_lang, tokenize)})


def _translated(
    model: RunArtifacts,
    sets: Mapping[str, Sequence[SentencePair]],
    directions: Mapping[str, Direction],
    how: _How,
) -> dict[str, TranslatedSet]:
    # Logged because it takes time, and because a path may not tell which model is used.
    _log.info(f"{model.path}: translating {', '.join(sets)} with {model.description}")
    device, precision, n_processes = how
    return model.translate(sets, directions, device, precision, n_processes=n_processes)


def _hypotheses(
    model: RunArtifacts,
    sets: Mapping[str, Sequence[SentencePair]],
    directions: Mapping[str, Direction],
    how: _How,
    may_use_stored: bool,
) -> dict[str, Sequence[str]]:
    """Return a model's translations: those that its finished run has stored, and new ones of other text."""
    found = model.kept_translations(sets, directions) if may_use_stored else {}
    if new := {name: pairs for name, pairs in sets.items() if name not in found}:
        found |= _translated(model, new, directions, how)
    return {name: found[name].hypotheses for name in sets}


def _settings(models: Mapping[str, RunArtifacts]) -> dict[str, dict[str, Any]]:
    """Return the settings of each model, without those of tokenizers that are the same, or not known for all models."""
    settings = {name: model.settings() for name, model in models.items()}
    is_same = len({model.tokenizer_checksums for model in models.values()}) == 1
    left_out = {
        key
        for key in set().union(*settings.values())
        if key.startswith("tokenizer.") and (is_same or not all(key in one for one in settings.values()))
    }
    return {name: {key: one[key] for key in one if key not in left_out} for name, one in settings.items()}


def _tokenizers_of(
    models: Sequence[RunArtifacts], directions: Mapping[str, Direction], options: EvalOptions
) -> dict[str, str]:
    """Return the tokenizer of BLEU of each test set.

    Raises:
        ConfigError: it is not the same for all models and not given, or it cannot be used.
    """
    found = {}
    for name, direction in directions.items():
        tokenizers = {str(model.path): model.bleu_tokenizer(direction, options.tokenize) for model in models}
        if len({*tokenizers.values()}) > 1:
            each = ", ".join(f"{path} with {tokenizer}" for path, tokenizer in tokenizers.items())
            fix = "give --tokenize to score all of them with the same one"
            raise ConfigError("", f"the BLEU of these models is computed with different tokenizers ({each})", fix)
        found[name] = next(iter(tokenizers.values()))
    return found


def _shared_sets(
    models: Mapping[str, RunArtifacts], tests: Sequence[str], langs: GivenLangs
) -> dict[str, dict[str, list[SentencePair]]]:
    """Return for each model the test sets of these names, or else those that all models have.

    Raises:
        ConfigError: there is none.
        DataError: a test set is not the same text for all models.
    """
    known = {
        name: model.test_names(langs=langs) if model.folder.config.tests else list[str]()
        for name, model in models.items()
    }
    first, *_ = models
    if tests:
        names, *_ = [model.test_names(tests, langs) for model in models.values()]
    elif not (names := [test for test in known[first] if all(test in one for one in known.values())]):
        each = "; ".join(f"{name} has {', '.join(one) or 'none'}" for name, one in known.items())
        fix = "choose models with a common test set, or give other text, such as --src FILE --ref FILE"
        raise ConfigError("", f"these models have no test set in common ({each})", fix)
    sets = {name: model.test_pairs(names) for name, model in models.items()}
    for name, pairs in sets.items():
        for test in names:
            if [pair.tgt for pair in pairs[test]] != [pair.tgt for pair in sets[first][test]]:
                problem = f"its test set {test} is not the same text as {test} of {first}"
                raise DataError(name, problem, "compare models on the same text, or choose a test set with --test")
    return sets


# --- Text that is given -----------------------------------------------------------------------------------------------


def _given_pairs(
    given: GivenText, model: RunArtifacts, langs: GivenLangs
) -> tuple[dict[str, list[SentencePair]], list[list[str]], dict[str, Direction]]:
    """Return given text under its name, as the model reads it, its further sets of references, and its direction.

    Raises:
        ConfigError: the model does not know the tag or the languages.
        DataError: the text is missing, unreadable, empty or not parallel.
    """
    if isinstance(given, Corpus):
        langs = langs[0] or given.src_lang, langs[1] or given.tgt_lang
    direction = chosen_direction(model.folder.config, *langs)
    if isinstance(given, Corpus):
        name = _stem(Path(given.files[0])) if given.files else given.description.removeprefix("sacrebleu:")
        return {name: model.pairs_of(given, direction)}, [], {name: direction}
    src, refs = given
    sources = _read_lines(src)
    reference, *more = [_read_lines(ref, parallel_to=(src, sources)) for ref in refs]
    for lines in (reference, *more):
        if len(lines) != len(sources):
            raise DataError(f"{len(sources):,} sources and {len(lines):,} references: scoring needs the same number")
    pairs = [SentencePair(*sides, line) for line, sides in enumerate(zip(sources, reference, strict=True), start=1)]
    name = _stem(src) if isinstance(src, Path) else INPUT
    return {name: pairs}, more, {name: direction}


def _stem(path: Path) -> str:
    """Return the name of a file without the suffixes of its compression and its format or language."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).stem


def as_read_by(
    model: RunArtifacts, sets: Mapping[str, list[SentencePair]], other: RunArtifacts
) -> dict[str, list[SentencePair]]:
    """Return another model's test sets without the tags that this model does not know."""
    tags = [tag for tag in other.folder.config.data.tags if tag not in model.folder.config.symbols]
    return {name: [pair._replace(src=without_tag(pair.src, tags)) for pair in pairs] for name, pairs in sets.items()}


# --- Translations of other systems ------------------------------------------------------------------------------------


def _model_of(baseline: Text | None) -> RunArtifacts | None:
    """Return the model of a baseline; None if there is none, because the baseline consists of translations.

    Raises:
        DataError: the path does not exist.
        CheckpointError: a folder has neither a model nor translations.
    """
    from mt.evaluation.runs import RunArtifacts
    from mt.run_folder import RunFolder

    if not isinstance(baseline, Path) or not _is_run(baseline):
        return None
    try:
        return RunArtifacts.of(baseline)
    except MTError:
        if RunFolder(baseline).translations.is_dir():  # a run without its model may have its translations
            return None
        raise


def _read_baselines(baseline: Text, sets: Mapping[str, Sequence[SentencePair]]) -> dict[str, list[str]]:
    """Return translations of test sets: lines or a file, or those in a folder.

    Raises:
        ConfigError: one file for several test sets.
        DataError: the folder has no translations of a test set; a file has another number of lines.
    """
    paths: Mapping[str, Text] = dict.fromkeys(sets, baseline)
    if isinstance(baseline, Path) and _is_run(baseline):
        paths = _translations(baseline)
        for name in sets:
            if name not in paths:
                problem = f"has no translations of {name}, only of {', '.join(paths)}"
                raise DataError(baseline, problem, "give another run, or choose a test set with --test")
    elif len(sets) > 1:
        named = baseline if isinstance(baseline, Path) else "it"
        problem = f"{named} translates one test set, but the model has {', '.join(sets)}"
        raise ConfigError("baseline", problem, "choose one with --test, or give a run")
    return {name: _read_translations(paths[name], name, pairs, "the baseline") for name, pairs in sets.items()}


def _read_translations(text: Text, test_set: str, pairs: Sequence[SentencePair], system: str) -> list[str]:
    """Return a system's translations of a test set."""
    lines = _read_lines(text)
    if len(lines) != len(pairs):
        named = text if isinstance(text, Path) else system
        counts = f"{named} has {len(lines):,} lines and the test set {test_set} has {len(pairs):,}"
        raise DataError("", counts, "give translations of the same text")
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


def _references_of(run: Path, names: Iterable[str]) -> dict[str, list[str] | None]:
    """Return the references of test sets of a run; None if they are no longer available."""
    from mt.evaluation.runs import RunArtifacts

    try:
        artifacts = RunArtifacts.of(run)
    except MTError:
        return dict.fromkeys(names)
    return {name: artifacts.test_references(name) for name in names}


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
