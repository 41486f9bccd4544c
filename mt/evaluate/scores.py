"""Scores of whole test sets, as `mt eval` and the report of a run have them; strings only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mt.evaluate.metrics import Metric, check_parallel, metric_keys, reference_sets
from mt.report.facts import ScoredSet


@dataclass(frozen=True)
class TranslatedSet:
    """A test set with a system's translations of it, line by line."""

    sources: Sequence[str] | None
    hypotheses: Sequence[str]
    references: Sequence[Sequence[str]]  # sets of them
    tgt_lang: str


def score_corpus(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    n_samples: int = 0,
    tgt_lang: str = "de",
) -> ScoredSet:
    """Score hypothesis i against reference i, or against the i-th of each set of references.

    Args:
        metrics: of mt.evaluate.metrics.METRICS, or `all`; by default BLEU, chrF2, chrF2++ and lower-cased BLEU.
        n_samples: of the bootstrap that gives confidence intervals; 0 for none.
        tgt_lang: whose rules bleu-2017 tokenises by.
    Raises:
        DataError: different numbers of lines, or none at all.
        ConfigError: an unknown metric; too few or too many samples.
    """
    keys, sets = metric_keys(metrics), reference_sets(references)
    check_parallel(hypotheses, sets)
    computed = [Metric(key, sets, tgt_lang) for key in keys]
    scores = [metric.score(metric.rows(hypotheses), n_samples) for metric in computed]
    return ScoredSet(n_lines=len(hypotheses), n_references=len(sets), scores=scores)


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return BLEU alone; errors as in `score_corpus`."""
    return score_corpus(hypotheses, references, ["bleu"]).scores[0].score


def corpus_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return chrF2 alone; errors as in `score_corpus`."""
    return score_corpus(hypotheses, references, ["chrf"]).scores[0].score
