"""`mt eval`: from files or a model to scores, a comparison with a baseline, warnings, and a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt.errors import ConfigError, DataError, MTError
from mt.evaluate.findings import Question, findings
from mt.evaluate.scores import TranslatedSet, report_text
from mt.evaluate.significance import SAMPLE_NAMES
from mt.text.files import explained, open_bytes, require_text

if TYPE_CHECKING:
    from mt.evaluate.runs import KnownModel
    from mt.text.corpora import SentencePair

_log = logging.getLogger(__name__)

INPUT = "input"  # what a file of translations is called in a report
_MANY_SYSTEMS = 5
_UTF8_BOM = b"\xef\xbb\xbf"


def evaluate_files(
    hyp: Path, refs: Sequence[Path], src: Path | None, question: Question, tgt_lang: str = "de"
) -> dict[str, Any]:
    """What `findings` has on a file of translations, under the name `input`.

    Raises:
        DataError: a file is missing, empty, unreadable, or has not as many lines as the first reference.
        ConfigError: an unknown metric, or too few or too many samples.
    """
    first = refs[0]
    lines = {path: _read_lines(path) for path in (first, hyp, *refs[1:], *([src] if src else []))}
    for path in lines:
        _check_as_long(path, lines[path], first, lines[first])
    translated = TranslatedSet(
        sources=lines[src] if src else None,
        hypotheses=lines[hyp],
        references=[lines[path] for path in refs],
        tgt_lang=tgt_lang,
    )
    baselines = {}
    if question.baseline is not None:
        path = _lines_of(question.baseline, lines[first])
        baselines[INPUT] = _read_lines(path)
        _check_as_long(path, baselines[INPUT], first, lines[first])
    return findings({INPUT: translated}, baselines, str(hyp), question)


def evaluate_model(
    model: Path, tests: Sequence[str], device: str, precision: str, question: Question
) -> dict[str, Any]:
    """What `findings` has on a model's test sets, or those named; for a report, what the model stands on, too.

    Raises:
        ConfigError: the model has no test set, or none of that name; an unknown metric; a baseline for several sets.
        DataError: the baseline is missing or of another test set.
        CheckpointError: there is no model.
    """
    from mt.evaluate.runs import KnownModel

    known = KnownModel.of(model)
    names = known.test_names(tests)
    # What is wrong with the baseline shows before anything is translated.
    ours = {} if question.baseline is None else {name: known.test_references(name) for name in names}
    paths = {} if question.baseline is None else _baseline_files(question.baseline, ours, model)
    baselines = {name: _read_lines(path) for name, path in paths.items()}
    for name, lines in baselines.items():
        _check_translates(paths[name], lines, name, len(ours[name] or lines))
    translated = _translated(known, known.test_pairs(names), device, precision)
    for name, lines in baselines.items():
        _check_translates(paths[name], lines, name, translated[name].n_lines)
    if not question.has_analysis:
        return findings(translated, baselines, str(model), question)
    found = findings(translated, baselines, str(model), question, known.count_words_of)
    return found | known.figures() | known.facts(device, precision)


def compare_models(
    paths: Sequence[Path], tests: Sequence[str], device: str | None, precision: str | None, question: Question
) -> dict[str, Any]:
    """What `comparison_facts` has on several models, by the test sets that all of them have.

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
    from mt.evaluate.comparison import SharedSet, System, comparison_facts
    from mt.evaluate.runs import KnownModel

    models = [KnownModel.of(path) for path in paths]
    names = _shared_names(models, tests)
    pairs = [model.test_pairs(names) for model in models]
    references = {name: [pair.tgt for pair in found] for name, found in pairs[0].items()}
    for path, found in zip(paths, pairs, strict=True):
        for name in names:
            if [pair.tgt for pair in found[name]] != references[name]:
                raise _other_text(path, name, paths[0])
    translations: dict[Path, Mapping[str, Sequence[str]]] = {}
    for model, found in zip(models, pairs, strict=True):
        if model.folder.path not in translations:
            translations[model.folder.path] = _hypotheses_of(model, found, device, precision)
    tgt_lang = models[0].folder.config.tgt_lang
    _tell_of_comparing(len(paths))
    return comparison_facts(
        [
            System(str(model.path), translations[model.folder.path], model.settings, model.figures(), model.training())
            for model in models
        ],
        {name: SharedSet(lines, tgt_lang) for name, lines in references.items()},
        question.metrics,
        question.test,
        question.n_samples,
        question.n_confidence_samples,
    )


def compare_files(paths: Sequence[Path], refs: Sequence[Path], question: Question, tgt_lang: str) -> dict[str, Any]:
    """What `comparison_facts` has on several files of translations, under the name `input`.

    Args:
        paths: files, or runs that have translated the text of the references.
    Raises:
        DataError: a file is missing, empty, unreadable, or has not as many lines as the first reference.
        ConfigError: an unknown metric; samples that cannot be.
    """
    from mt.evaluate.comparison import SharedSet, System, comparison_facts

    first = refs[0]
    references = {path: _read_lines(path) for path in refs}
    files = {path: _lines_of(path, references[first]) for path in paths}
    systems = {path: _read_lines(file) for path, file in files.items()}
    for path, lines in (*references.items(), *systems.items()):
        _check_as_long(path, lines, first, references[first])
    _tell_of_comparing(len(paths))
    return comparison_facts(
        [System(str(path), {INPUT: systems[path]}) for path in paths],
        {INPUT: SharedSet([references[path] for path in refs], tgt_lang)},
        question.metrics,
        question.test,
        question.n_samples,
        question.n_confidence_samples,
    )


def _other_text(path: Path, name: str, other: Path) -> DataError:
    return DataError(
        f"{path}: its test set {name} is not the text that {other} has under that name: compare models on the same "
        "text, or choose a test set with --test"
    )


def _tell_of_comparing(n_systems: int) -> None:
    """Of many systems: each test takes about a second."""
    if n_systems >= _MANY_SYSTEMS:
        n_pairs = n_systems * (n_systems - 1) // 2
        _log.info(f"comparing {n_pairs:,} pairs of systems")


def _translated(
    model: KnownModel, sets: Mapping[str, Sequence[SentencePair]], device: str, precision: str
) -> dict[str, TranslatedSet]:
    # It takes its time, and not every path says which model it means.
    _log.info(f"{model.path}: translating {', '.join(sets)} with {model.description}")
    return model.translate(sets, device, precision, n_processes=None)


def _shared_names(models: Sequence[KnownModel], tests: Sequence[str]) -> list[str]:
    known = [list(model.folder.config.data.test) for model in models]
    for model, names in zip(models, known, strict=True):
        for test in tests:
            if test not in names:
                has = f"it has {', '.join(names)}" if names else "its config names none under data.test"
                raise ConfigError("test", f"{model.path} has no test set {test}", has)
    if tests:
        return list(dict.fromkeys(tests))
    shared = [name for name in known[0] if all(name in names for names in known)]
    if not shared:
        each = "; ".join(
            f"{model.path} has {', '.join(names) or 'none'}" for model, names in zip(models, known, strict=True)
        )
        raise ConfigError("", "these models have no test set in common", each)
    return shared


def _hypotheses_of(
    model: KnownModel, sets: Mapping[str, Sequence[SentencePair]], device: str | None, precision: str | None
) -> Mapping[str, Sequence[str]]:
    kept = model.kept_translations({name: len(pairs) for name, pairs in sets.items()})
    if kept is not None and device is None and precision is None:
        return kept
    translated = _translated(model, sets, device or "auto", precision or "auto")
    return {name: one.hypotheses for name, one in translated.items()}


def evaluation_text(report: Mapping[str, Any]) -> str:
    """The scores, and what a comparison found, for a terminal."""
    lines = [report_text(report)]
    if comparison := report.get("comparison"):
        kind = SAMPLE_NAMES[comparison["test"]]
        for name, entry in comparison["test_sets"].items():
            lines.append(f"{name}, against {comparison['baseline']} (paired test, {comparison['n_samples']:,} {kind})")
            lines += _comparison_lines(entry["scores"])
            lines.append(f"{entry['verdict']}.")
    return "\n".join(lines)


def _comparison_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [score["name"].partition(" (")[0] for score in scores]
    width = max(6, *(len(name) + 1 for name in names))
    return [
        f"  {name:<{width}}{score['score']:>7.2f} against {score['baseline_score']:.2f}   "
        f"{score['difference']:+.2f}   p = {score['p']:.4f}   {score['verdict']}"
        for name, score in zip(names, scores, strict=True)
    ]


# --------------------------------------------------------------------------------------------------- the baseline


def _baseline_files(baseline: Path, ours: Mapping[str, list[str] | None], model: Path) -> dict[str, Path]:
    """The baseline's translations of each test set of a model.

    Args:
        ours: name of the test set → its references, as far as they are known.
    Raises:
        ConfigError: one file for several test sets.
        DataError: a run that has not translated one of them, or other text of that name.
    """
    if not baseline.exists():
        raise DataError(f"{baseline}: no such file and no such run (looked for in {Path.cwd()})")
    if not baseline.is_dir():
        if len(ours) > 1:
            raise ConfigError(
                "baseline",
                f"{baseline} is of one test set and the model has {', '.join(ours)}",
                "choose one with --test, or give a run",
            )
        return dict.fromkeys(ours, baseline)
    translations, known = _translations(baseline), _known(baseline)
    for name, references in ours.items():
        if name not in translations:
            raise DataError(
                f"{baseline}: has no translations of {name}, it has {', '.join(translations)}: give another run, or "
                "choose a test set with --test"
            )
        theirs = None if known is None else known.test_references(name)
        if None not in (references, theirs) and references != theirs:
            raise _other_text(baseline, name, model)
    return {name: translations[name] for name in ours}


def _check_translates(path: Path, lines: Sequence[str], test_set: str, n_lines: int) -> None:
    if len(lines) != n_lines:
        raise DataError(
            f"{path} has {len(lines):,} lines and the test set {test_set} has {n_lines:,}: a baseline translates the "
            "same text"
        )


def _lines_of(path: Path, references: Sequence[str]) -> Path:
    """A file of translations: that file, or what a run says of the test set with these references.

    Raises:
        DataError: there is nothing, no set of the run has as many lines, or several have and their text is gone.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file and no such run (looked for in {Path.cwd()})")
    if not path.is_dir():
        return path
    translations, known = _translations(path), _known(path)
    texts = {name: None if known is None else known.test_references(name) for name in translations}
    for name, text in texts.items():
        if text == list(references):
            return translations[name]
    lengths = {name: len(_read_lines(file)) for name, file in translations.items()}
    fitting = [name for name, n in lengths.items() if n == len(references) and texts[name] is None]
    if len(fitting) == 1:
        return translations[fitting[0]]
    found = ", ".join(f"{translations[name].name} ({n:,})" for name, n in lengths.items())
    which = "several" if fitting else "none"
    raise DataError(
        f"{path}: {which} of its translations have the {len(references):,} lines of --ref and no other text: {found}: "
        "give the file that is meant"
    )


def _known(path: Path) -> KnownModel | None:
    """The model of a run; None where only its translations are left."""
    from mt.evaluate.runs import KnownModel

    try:
        return KnownModel.of(path)
    except MTError:
        return None


def _translations(run_dir: Path) -> dict[str, Path]:
    """A run's translations by the name of their set, the validation set last."""
    from mt.run_folder import RunFolder

    paths = {path.stem: path for path in sorted(RunFolder(run_dir).translations.glob("*.txt"))}
    if not paths:
        raise DataError(
            f"{run_dir}: has no translations, as a finished run does: let it finish, give a file of translations, or "
            "compare models with mt compare"
        )
    return dict(sorted(paths.items(), key=lambda item: item[0] == "valid"))


# --------------------------------------------------------------------------------------------------- files


def _check_as_long(path: Path, lines: Sequence[str], other: Path, other_lines: Sequence[str]) -> None:
    if len(lines) == len(other_lines):
        return
    (longer, n_longer), (shorter, n_shorter) = sorted(
        [(path, len(lines)), (other, len(other_lines))], key=lambda item: -item[1]
    )
    raise DataError(
        f"{longer} has {n_longer:,} lines and {shorter} has {n_shorter:,}: parallel files need one line for each line"
    )


def _read_lines(path: Path) -> list[str]:
    """All lines of a text file, which may be compressed; \\n alone ends one.

    Raises:
        DataError: it is missing, unreadable, not UTF-8, or holds no line.
    """
    with explained(path), open_bytes(path) as stream:
        content = stream.read()
    require_text(content[:64], path)
    raw_lines = content.removeprefix(_UTF8_BOM).removesuffix(b"\n").split(b"\n")
    if raw_lines == [b""] and not content.endswith(b"\n"):
        raise DataError(f"{path}: has no lines: nothing to score")
    return [_decoded(raw, path, number) for number, raw in enumerate(raw_lines, start=1)]


def _decoded(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number:,}: byte 0x{raw[error.start]:02x} is not UTF-8: fix the line, or convert the file "
            "(iconv -f LATIN1 -t UTF-8, if that is what it is)"
        ) from None
