"""What an evaluation finds of a system: scores, a comparison with a baseline, what is odd, where it is good and bad."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mt.evaluate.analysis import analyse, words_of
from mt.evaluate.metrics import check_samples, metric_keys
from mt.evaluate.scores import TranslatedSet, scored_test_set
from mt.evaluate.significance import DEFAULT_SAMPLES, compare, sentence
from mt.evaluate.warnings import check, unrelated_baseline

DEFAULT_CONFIDENCE_SAMPLES = 1_000


@dataclass(frozen=True)
class Question:
    """What to find out about translations."""

    metrics: Sequence[str] | None = None  # None: the default ones
    has_confidence: bool = False
    baseline: Path | None = None  # a file of translations, or a run
    test: str = "randomisation"  # or bootstrap: whether the difference from the baseline may be chance
    n_samples: int | None = None  # None: the defaults of intervals and tests
    has_analysis: bool = False  # where the system is good and bad, for a report

    @property
    def n_confidence_samples(self) -> int:
        """Of the intervals; 0 for none."""
        if not self.has_confidence:
            return 0
        return DEFAULT_CONFIDENCE_SAMPLES if self.n_samples is None else self.n_samples

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: an unknown metric, or too few samples.
        """
        metric_keys(self.metrics)
        if self.n_samples is not None:
            check_samples(self.n_samples, n_lines=1, bytes_of_a_line=1)


def findings(
    translated: Mapping[str, TranslatedSet],
    baselines: Mapping[str, Sequence[str]],
    system: str,
    question: Question,
    count_words_of: Callable[[Collection[str]], Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """What there is to say of some test sets.

    Args:
        baselines: name of the test set → the other system's hypotheses.
        system: what it is called.
        count_words_of: how often the source side of the training text has each word of a set.
    Returns:
        {"test_sets": {NAME: {"n_lines", "n_references", "scores"}}}, unrounded. With a baseline, "comparison":
        {"system", "baseline", "test", "n_samples", "test_sets": {NAME: {"scores", "verdict"}}}. Where something is odd,
        "warnings": {NAME: [line, …]}. If asked for, "analysis": {NAME: what `analyse` returns}.
    """
    n_samples = question.n_confidence_samples
    report: dict[str, Any] = {
        "test_sets": {
            name: scored_test_set(one.hypotheses, one.references, question.metrics, n_samples, one.tgt_lang)
            for name, one in translated.items()
        }
    }
    if baselines:
        report["comparison"] = {
            "system": system,
            "baseline": str(question.baseline),
            "test": question.test,
            "n_samples": question.n_samples or DEFAULT_SAMPLES[question.test],
            "test_sets": {
                name: _compared(translated[name], lines, system, question) for name, lines in baselines.items()
            },
        }
    odd = {
        name: check(one.hypotheses, one.references, one.sources, baselines.get(name))
        for name, one in translated.items()
    }
    for name, entry in report.get("comparison", {}).get("test_sets", {}).items():
        for score in entry["scores"]:
            if score["name"] == "BLEU" and (line := unrelated_baseline(score["score"], score["baseline_score"])):
                odd[name].append(line)
    if any(odd.values()):
        report["warnings"] = {name: lines for name, lines in odd.items() if lines}
    if question.has_analysis:
        report["analysis"] = _analyses(translated, baselines, count_words_of)
    return report


def _analyses(
    translated: Mapping[str, TranslatedSet],
    baselines: Mapping[str, Sequence[str]],
    count_words_of: Callable[[Collection[str]], Mapping[str, int]] | None,
) -> dict[str, Any]:
    counts = None
    if count_words_of is not None:
        sources = chain.from_iterable(one.sources or () for one in translated.values())
        counts = count_words_of({word for line in sources for word in words_of(line)})
    return {
        name: analyse(one.hypotheses, one.references, one.sources, counts, baselines.get(name))
        for name, one in translated.items()
    }


def _compared(translated: TranslatedSet, baseline: Sequence[str], system: str, question: Question) -> dict[str, Any]:
    comparisons = compare(
        (str(question.baseline), baseline),
        {system: translated.hypotheses},
        translated.references,
        question.metrics,
        question.test,
        question.n_samples or 0,
        tgt_lang=translated.tgt_lang,
    )[system]
    return {
        "scores": [
            {key: value for key, value in asdict(comparison).items() if value is not None}
            | {"difference": comparison.score - comparison.baseline_score}
            for comparison in comparisons
        ],
        "verdict": sentence(system, str(question.baseline), comparisons),
    }


def warning_lines(report: Mapping[str, Any]) -> list[str]:
    """What is odd, each line with the name of its test set where there are several."""
    has_several = len(report["test_sets"]) > 1
    return [
        f"{name}: {line}" if has_several else line
        for name, lines in report.get("warnings", {}).items()
        for line in lines
    ]
