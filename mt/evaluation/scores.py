"""Scores of whole test sets for `mt eval` and the report of a run. No tokenizer, no model: strings only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mt.errors import DataError
from mt.evaluation.metrics import Metric, metric_keys
from mt.evaluation.tokenization import DEFAULT_TOKENIZER
from mt.report.facts import ScoredSet
from mt.text.languages import characters_per_word, fraction_in_language


@dataclass(frozen=True)
class TranslatedSet:
    """A test set with a system's translations, line by line.

    Raises:
        DataError: the numbers of lines differ, or there are no lines.
    """

    sources: Sequence[str] | None
    hypotheses: Sequence[str]
    references: Sequence[Sequence[str]]  # one or more sets of references
    tgt_lang: str | None = None  # None: not known
    baseline: Sequence[str] | None = None  # another system's hypotheses
    tokenize: str = DEFAULT_TOKENIZER  # of BLEU, by sacreBLEU's name
    src_lang: str | None = None  # given if the system has several directions
    is_zero_shot: bool = False  # the system was not trained in this direction

    def __post_init__(self) -> None:
        references = [("references", lines) for lines in self.references]
        for what, lines in (*references, ("sources", self.sources), ("lines of the baseline", self.baseline)):
            if lines is not None and len(lines) != len(self.hypotheses):
                found = f"{len(self.hypotheses):,} hypotheses and {len(lines):,} {what}"
                raise DataError(f"{found}: scoring needs the same number of lines")
        if not self.hypotheses:
            raise DataError("nothing to score: there are no lines")

    @cached_property
    def has_spaces(self) -> bool:
        """Return whether most words of the references are separated by spaces."""
        return characters_per_word("\n".join(self.references[0])) == 1

    def metric(self, key: str) -> Metric:
        """Return the metric of a name in METRICS, with the references of this set."""
        return Metric(key, self.references, self.tgt_lang, self.tokenize)

    def metrics(self, names: Sequence[str] | None = None) -> list[Metric]:
        """Return the metrics of these names; by default BLEU, chrF2, chrF2++ and lower-cased BLEU.

        The default for text without spaces leaves out chrF2++, which also counts words.

        Raises:
            ConfigError: an unknown metric, or the tokenizer of BLEU cannot be used.
        """
        return [self.metric(key) for key in metric_keys(names) if names or self.has_spaces or key != "chrf++"]


def score_corpus(translated: TranslatedSet, metrics: Sequence[str] | None = None, n_samples: int = 0) -> ScoredSet:
    """Score hypothesis i against reference i of each set.

    Args:
        metrics: names in mt.evaluation.metrics.METRICS, or `all`; None: the default ones.
        n_samples: bootstrap samples for confidence intervals; 0: no intervals.
    Raises:
        ConfigError: an unknown metric; too few or too many samples.
    """
    computed = translated.metrics(metrics)
    scores = [metric.score(metric.rows(translated.hypotheses), n_samples) for metric in computed]
    facts: dict[str, Any] = {}
    if (src_lang := translated.src_lang) is not None and (tgt_lang := translated.tgt_lang) is not None:
        share = fraction_in_language(translated.hypotheses, tgt_lang, src_lang)
        facts = {"src_lang": src_lang, "tgt_lang": tgt_lang, "in_language": share}
        facts |= {"is_zero_shot": translated.is_zero_shot}
    n_references = len(translated.references)
    return ScoredSet(n_lines=len(translated.hypotheses), n_references=n_references, scores=scores, **facts)


def bleu_and_chrf(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str = DEFAULT_TOKENIZER
) -> tuple[float, float]:
    """Return only BLEU and chrF2."""
    translated = TranslatedSet(None, hypotheses, [references], tokenize=tokenize)
    bleu, chrf = score_corpus(translated, ["bleu", "chrf"]).scores
    return bleu.score, chrf.score
