"""Scores of whole test sets for `mt eval` and the report of a run. No tokenizer, no model: strings only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mt.errors import DataError
from mt.evaluation.metrics import Metric, metric_keys
from mt.report.facts import ScoredSet


@dataclass(frozen=True)
class TranslatedSet:
    """A test set with a system's translations, line by line.

    Raises:
        DataError: the numbers of lines differ, or there are no lines.
    """

    sources: Sequence[str] | None
    hypotheses: Sequence[str]
    references: Sequence[Sequence[str]]  # one or more sets of references
    tgt_lang: str = "de"
    baseline: Sequence[str] | None = None  # another system's hypotheses

    def __post_init__(self) -> None:
        references = [("references", lines) for lines in self.references]
        for what, lines in (*references, ("sources", self.sources), ("lines of the baseline", self.baseline)):
            if lines is not None and len(lines) != len(self.hypotheses):
                found = f"{len(self.hypotheses):,} hypotheses and {len(lines):,} {what}"
                raise DataError(f"{found}: scoring needs the same number of lines")
        if not self.hypotheses:
            raise DataError("nothing to score: there are no lines")


def score_corpus(translated: TranslatedSet, metrics: Sequence[str] | None = None, n_samples: int = 0) -> ScoredSet:
    """Score hypothesis i against reference i of each set.

    Args:
        metrics: names in mt.evaluation.metrics.METRICS, or `all`; by default BLEU, chrF2, chrF2++ and lower-cased BLEU.
        n_samples: bootstrap samples for confidence intervals; 0: no intervals.
    Raises:
        ConfigError: an unknown metric; too few or too many samples.
    """
    computed = [Metric(key, translated.references, translated.tgt_lang) for key in metric_keys(metrics)]
    scores = [metric.score(metric.rows(translated.hypotheses), n_samples) for metric in computed]
    return ScoredSet(n_lines=len(translated.hypotheses), n_references=len(translated.references), scores=scores)


def bleu_and_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """Return only BLEU and chrF2."""
    bleu, chrf = score_corpus(TranslatedSet(None, hypotheses, [references]), ["bleu", "chrf"]).scores
    return bleu.score, chrf.score
