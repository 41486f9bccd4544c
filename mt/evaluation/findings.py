"""The evaluation of a system: scores, a comparison with a baseline, warnings, an error analysis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mt.evaluation.analysis import analyse
from mt.evaluation.metrics import check_samples, metric_keys
from mt.evaluation.scores import TranslatedSet, score_corpus
from mt.evaluation.significance import DEFAULT_SAMPLES, compare, verdict_text
from mt.evaluation.warnings import check, check_scores, unrelated_baseline
from mt.report.facts import BaselineTest, Evaluation, PairedSet, Sentence
from mt.text.languages import words_of

MOST_SENTENCES = 5_000  # of a test set, in a report
_DEFAULT_CONFIDENCE_SAMPLES = 1_000
Text: TypeAlias = Path | Sequence[str]  # a file or a run that has lines, or the lines


@dataclass(frozen=True)
class EvalOptions:
    """The options of an evaluation."""

    metrics: Sequence[str] | None = None  # None: the default ones
    has_confidence: bool = False
    baseline: Text | None = None  # other translations
    test: str = "randomisation"  # or bootstrap: the significance test
    n_samples: int | None = None  # None: the defaults of intervals and tests
    has_analysis: bool = False  # adds the error analysis, for a report
    tokenize: str | None = None  # of BLEU, by sacreBLEU's name; None: that of the model, or of the language

    @property
    def n_confidence_samples(self) -> int:
        """The number of samples for confidence intervals; 0: no intervals."""
        return (self.n_samples or _DEFAULT_CONFIDENCE_SAMPLES) if self.has_confidence else 0

    @property
    def baseline_name(self) -> str:
        return str(self.baseline) if isinstance(self.baseline, Path) else "the baseline"

    @property
    def n_test_samples(self) -> int:
        return self.n_samples or DEFAULT_SAMPLES[self.test]

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: an unknown metric, or too few samples.
        """
        metric_keys(self.metrics)
        if self.n_samples is not None:
            check_samples(self.n_samples)


def evaluate(
    translated: Mapping[str, TranslatedSet],
    system: str,
    options: EvalOptions,
    count_words: Callable[[Collection[str]], Mapping[str, int] | None] | None = None,
    known_warnings: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Evaluate a system on some test sets.

    Args:
        system: its name.
        count_words: returns how often each given word occurs in the source side of the training text.
        known_warnings: test set → warnings about it that are already known.
    """
    sets = translated.items()
    test_sets = {name: score_corpus(one, options.metrics, options.n_confidence_samples) for name, one in sets}
    warnings = {
        name: [*(known_warnings or {}).get(name, ()), *check(one), *check_scores(one, test_sets[name].scores)]
        for name, one in sets
    }
    compared = {}
    for name, one in sets:
        if one.baseline is not None:
            scores = compare(one, options.metrics, options.test, options.n_test_samples)
            verdict = verdict_text(system, options.baseline_name, scores)
            compared[name] = PairedSet(scores=scores, verdict=verdict)
            bleu = [(score.score, score.baseline_score) for score in scores if score.name == "BLEU"]
            warnings[name] += filter(None, itertools.starmap(unrelated_baseline, bleu))
    names = {"system": system, "baseline": options.baseline_name, "test": options.test}
    comparison = BaselineTest(**names, n_samples=options.n_test_samples, test_sets=compared)
    analyses = {}
    if options.has_analysis:
        words = {word for one in translated.values() for line in one.sources or () for word in words_of(line)}
        counts = None if count_words is None else count_words(words)
        analyses = {name: analyse(one, counts) for name, one in sets}
    return Evaluation(
        system=system,
        test_sets=test_sets,
        comparison=comparison if compared else None,
        warnings={name: lines for name, lines in warnings.items() if lines},
        analysis={name: analysis for name, (analysis, _) in analyses.items()},
        sentences={name: _evenly(sentences) for name, (_, sentences) in analyses.items()},
    )


def _evenly(sentences: Sequence[Sentence]) -> list[Sentence]:
    n_shown = min(len(sentences), MOST_SENTENCES)
    return [sentences[i * len(sentences) // n_shown] for i in range(n_shown)]
