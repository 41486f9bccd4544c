"""What an evaluation finds of a system: scores, a comparison with a baseline, what is odd, where it is good and bad."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mt.evaluate.analysis import analyse, words_of
from mt.evaluate.metrics import check_samples, metric_keys
from mt.evaluate.scores import TranslatedSet, score_corpus
from mt.evaluate.significance import DEFAULT_SAMPLES, compare, verdict_text
from mt.evaluate.warnings import check, unrelated_baseline
from mt.report.facts import BaselineTest, Evaluation, PairedSet, Sentence

MOST_SENTENCES = 5_000  # of a test set, in a report
_DEFAULT_CONFIDENCE_SAMPLES = 1_000


@dataclass(frozen=True)
class EvalOptions:
    """What to find out about translations."""

    metrics: Sequence[str] | None = None  # None: the default ones
    has_confidence: bool = False
    baseline: Path | None = None  # a file of translations, or a run
    test: str = "randomisation"  # or bootstrap: whether a difference between systems may be chance
    n_samples: int | None = None  # None: the defaults of intervals and tests
    has_analysis: bool = False  # where the system is good and bad, for a report

    @property
    def n_confidence_samples(self) -> int:
        """The samples of intervals; 0 for none."""
        return (self.n_samples or _DEFAULT_CONFIDENCE_SAMPLES) if self.has_confidence else 0

    @property
    def n_test_samples(self) -> int:
        return self.n_samples or DEFAULT_SAMPLES[self.test]

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: an unknown metric, or too few samples.
        """
        metric_keys(self.metrics)
        if self.n_samples is not None:
            check_samples(self.n_samples, n_lines=1, bytes_of_a_line=1)


def evaluate(
    translated: Mapping[str, TranslatedSet],
    baselines: Mapping[str, Sequence[str]],
    system: str,
    options: EvalOptions,
    count_words: Callable[[Collection[str]], Mapping[str, int] | None] | None = None,
) -> Evaluation:
    """Find what there is to say of some test sets.

    Args:
        baselines: name of the test set → the other system's hypotheses.
        system: its name.
        count_words: counts how often the source side of the training text has some words.
    """
    n_samples = options.n_confidence_samples
    test_sets = {
        name: score_corpus(one.hypotheses, one.references, options.metrics, n_samples, one.tgt_lang)
        for name, one in translated.items()
    }
    compared = {name: _compared(translated[name], lines, system, options) for name, lines in baselines.items()}
    warnings = {
        name: check(one.hypotheses, one.references, one.sources, baselines.get(name))
        for name, one in translated.items()
    }
    for name, paired in compared.items():
        bleu = (one for one in paired.scores if one.name == "BLEU")
        warnings[name] += filter(None, (unrelated_baseline(one.score, one.baseline_score) for one in bleu))
    comparison = BaselineTest(
        system=system,
        baseline=str(options.baseline),
        test=options.test,
        n_samples=options.n_test_samples,
        test_sets=compared,
    )
    analyses = {}
    if options.has_analysis:
        words = {word for one in translated.values() for line in one.sources or () for word in words_of(line)}
        counts = None if count_words is None else count_words(words)
        analyses = {
            name: analyse(one.hypotheses, one.references, one.sources, counts, baselines.get(name))
            for name, one in translated.items()
        }
    return Evaluation(
        system=system,
        test_sets=test_sets,
        comparison=comparison if compared else None,
        warnings={name: lines for name, lines in warnings.items() if lines},
        analysis={name: analysis for name, (analysis, _) in analyses.items()},
        sentences={name: _evenly(sentences) for name, (_, sentences) in analyses.items()},
    )


def _compared(translated: TranslatedSet, baseline: Sequence[str], system: str, options: EvalOptions) -> PairedSet:
    scores = compare(
        translated.hypotheses,
        baseline,
        translated.references,
        options.metrics,
        options.test,
        options.n_samples,
        tgt_lang=translated.tgt_lang,
    )
    return PairedSet(scores=scores, verdict=verdict_text(system, str(options.baseline), scores))


def _evenly(sentences: Sequence[Sentence]) -> list[Sentence]:
    n = len(sentences)
    if n <= MOST_SENTENCES:
        return list(sentences)
    return [sentences[i * n // MOST_SENTENCES] for i in range(MOST_SENTENCES)]
