"""The stages as functions: what `mt prepare`, `mt train`, `mt eval` and `mt compare` do, without printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mt.config.loading import AnyConfig, AnyCorpus, Overrides, load_config, load_corpus
from mt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mt.evaluation.command import GivenText
    from mt.evaluation.findings import Text
    from mt.report.facts import Evaluation, SystemComparison
    from mt.text.corpus import PreparedCorpus

AnyPath: TypeAlias = str | PathLike[str]
Lines: TypeAlias = AnyPath | Sequence[str]  # a file with one segment a line, or the segments


@dataclass(frozen=True)
class TrainedRun:
    """A run folder whose training has ended."""

    path: Path  # of the run folder, for `Translator.load`

    @property
    def report(self) -> Evaluation:
        """The scores of validation and test sets, and all that they are based on.

        Raises:
            DataError: there is no report. Of the processes of torchrun, only the first writes it, as the last thing.
        """
        from mt.evaluation.report_files import read_evaluation

        if (report := read_evaluation(self.path)) is None:
            raise DataError(self.path, "has no report", "train the run to its end")
        return report

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        """Return the report that `mt train` prints."""
        from mt.pipeline import format_report

        return format_report(self.report)


def prepare(config: AnyConfig, overrides: Overrides = ()) -> PreparedCorpus:
    """Fetch, clean and encode the text of a config, unless that is done.

    Args:
        config: a path, the name of a config that ships with mt, settings nested as in the YAML, or a RunConfig.
        overrides: settings by their dotted key, `{"data.max_tokens": 128}`.
    Returns:
        The prepared corpus. `print` shows its figures; `folder` has a report of what was removed and why.
    Raises:
        ConfigError: the config is wrong.
        DataError: text is missing, unreadable or not parallel, or nothing of it is left.
    """
    run_config = load_config(config, overrides)
    if run_config.train.init_from is None:
        from mt.text.prepare import prepare_corpus

        return prepare_corpus(run_config)
    # The tokenizer is that of a model; reading one takes torch, which takes seconds to import.
    from mt.pipeline import prepare

    return prepare(run_config)


def train(config: AnyConfig, overrides: Overrides = (), run_dir: AnyPath | None = None) -> TrainedRun:
    """Run all stages from raw text to a report: prepare, train, average, evaluate.

    Stages that are done are skipped, and a training that was stopped continues. Ctrl-C saves a checkpoint first.

    Args:
        config, overrides: as in `prepare`; `{"train.max_steps": 100}`.
        run_dir: the run folder; runs/NAME by default.
    Raises:
        MTError: data, settings or checkpoints need the user's attention.
    """
    run_config = load_config(config, overrides, None if run_dir is None else Path(run_dir))
    path = Path("runs", run_config.name) if run_dir is None else Path(run_dir)
    from mt.pipeline import train_run

    train_run(run_config, path)
    return TrainedRun(path)


def evaluate(
    model: AnyPath | None = None,
    *,
    hypotheses: Lines | None = None,
    references: Lines | Sequence[Lines] | None = None,
    sources: Lines | None = None,
    data: AnyCorpus | None = None,
    baseline: Lines | None = None,
    tests: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    confidence: bool = False,
    significance: Literal["randomisation", "bootstrap"] = "randomisation",
    n_samples: int | None = None,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    tokenize: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    n_processes: int | None = 1,
    analysis: bool = False,
) -> Evaluation:
    """Score a model on its test sets or on other text, or translations that are given, with sacreBLEU.

    Give `model`, alone or with `data`, or with `sources` and `references`; or give `hypotheses` and `references`. A
    text is a list of segments, or the path of a file with one a line.

    Args:
        model: a run folder, a checkpoint or a model folder.
        references: one text, or a list of several; in such a list, files are `Path`s.
        sources: the source text; without a model, more mistakes are found with it.
        data: parallel text, such as `{"file": "x.tsv"}` or `{"sacrebleu": "wmt14/full"}`: any corpus as in a config.
        baseline: other translations of the same text, or a model, which translates it unless its run has stored the
            translations; each metric is tested against it.
        tests: only these test sets of the model.
        metrics: of bleu, chrf, chrf++, bleu-lc, ter, bleu-2017, or all; the first four by default.
        confidence: add intervals that hold 95% of bootstrap samples.
        significance: the test of the difference from the baseline.
        n_samples: of intervals and tests; 1,000 of the bootstrap and 10,000 of the randomisation by default.
        src_lang, tgt_lang: the languages to translate, by a model with several; only its test sets in these
            languages are scored. Of given translations, `tgt_lang` is the language, by whose rules BLEU and
            bleu-2017 tokenise; None: not known.
        tokenize: the tokenizer of BLEU, by sacreBLEU's name: 13a, intl, zh, ja-mecab, ko-mecab, char, flores101,
            flores200 or none. By default that of the model's run; for given translations that of `tgt_lang`,
            or of the script of the references.
        device, precision, n_processes: of the model, as in `Translator.load`; given translations need none.
        analysis: also find where the system is good and bad, for `analysis` and `sentences` of the result.
    Returns:
        Scores from 0 to 100, in `test_sets[NAME].scores`, each with its signature. For `data` and `sources`, NAME is
        that of the file without its suffix, or of the data set; it is `input` for lists and for given translations.
        `print` shows the scores.
    Raises:
        ConfigError: an unknown metric or test set; a tokenizer that is unknown or cannot be used; too few or too many
            samples; one file as baseline of several test sets; `data` is wrong, or has a tag that the model does not
            know.
        DataError: a text is missing, unreadable, empty, or has another number of lines.
        CheckpointError: there is no model.
    """
    from mt.evaluation.command import evaluate_files, evaluate_model
    from mt.evaluation.findings import EvalOptions

    base = None if baseline is None else _text(baseline)
    options = EvalOptions(metrics, confidence, base, significance, n_samples, analysis, tokenize)
    if model is not None and hypotheses is None:
        given = _given(data, sources, references, tests)
        langs = src_lang, tgt_lang
        return evaluate_model(Path(model), tests, device, precision, options, n_processes, given, langs)
    if model is not None or data is not None or hypotheses is None or references is None:
        raise TypeError("evaluate: expected a model, or hypotheses and references")
    source_text = None if sources is None else _text(sources)
    return evaluate_files(_text(hypotheses), _texts(references), source_text, options, tgt_lang)


def compare(
    systems: Sequence[AnyPath] | Mapping[str, Lines],
    *,
    references: Lines | Sequence[Lines] | None = None,
    sources: Lines | None = None,
    data: AnyCorpus | None = None,
    tests: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    confidence: bool = False,
    significance: Literal["randomisation", "bootstrap"] = "randomisation",
    n_samples: int | None = None,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    tokenize: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    n_processes: int | None = 1,
) -> SystemComparison:
    """Compare each of several systems with each other, and find out which can be told apart.

    Args:
        systems: runs, checkpoints or model folders; with `references` files of translations; each may have a name.
        data, sources: other text than the test sets of the models, as in `evaluate`: the models translate it, and
            systems that are not models are translations of it. Without them, `references` are only for translations.
        device, precision: translate with these; by default the stored translations of a finished run are compared.
    Other arguments and errors are as in `evaluate`; metrics are bleu and chrf by default. Runs are refused if their
    BLEU is computed with different tokenizers and `tokenize` is not given, or if their test sets are not the same text.
    """
    from mt.evaluation.command import compare_files, compare_models
    from mt.evaluation.findings import EvalOptions

    if len(systems) < 2:
        raise ConfigError("systems", f"expected two or more, got {len(systems)}")
    options = EvalOptions(metrics, confidence, None, significance, n_samples, tokenize=tokenize)
    named = systems.items() if isinstance(systems, Mapping) else [(str(path), path) for path in systems]
    texts = [(name, _text(text)) for name, text in named]
    if references is not None and data is None and sources is None:
        return compare_files(texts, _texts(references), options, tgt_lang)
    given = _given(data, sources, references, tests)
    if given is None and not all(isinstance(text, Path) for _, text in texts):
        raise TypeError("compare: translations by name need references")
    return compare_models(texts, tests, device, precision, options, n_processes, given, (src_lang, tgt_lang))


def _given(
    data: AnyCorpus | None,
    sources: Lines | None,
    references: Lines | Sequence[Lines] | None,
    tests: Sequence[str],
) -> GivenText | None:
    """Return the text that is given instead of a model's own test sets; None if there is none."""
    if tests and (data is not None or sources is not None):
        raise TypeError("expected tests of the model, or other text, not both")
    if data is None and sources is not None and references is not None:
        return _text(sources), _texts(references)
    if sources is not None or references is not None:
        raise TypeError("expected sources and references, or data without them")
    return None if data is None else load_corpus(data)


def _text(text: Lines) -> Text:
    return Path(text) if isinstance(text, str | PathLike) else text


def _texts(texts: Lines | Sequence[Lines]) -> list[Text]:
    """Return the texts of references; a list of strings is one text."""
    if isinstance(texts, str | PathLike):
        return [Path(texts)]
    lines = [line for line in texts if isinstance(line, str)]
    return [lines] if len(lines) == len(texts) else [_text(text) for text in texts]
