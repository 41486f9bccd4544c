"""Scores of whole test sets, as `mt eval` and the report of a run have them; strings only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mt.evaluate.metrics import Metric, Score, check_parallel, metric_keys, reference_sets

__all__ = ["Score", "TranslatedSet", "corpus_bleu", "corpus_chrf", "report_text", "score_corpus", "scored_test_set"]


@dataclass(frozen=True)
class TranslatedSet:
    """A test set with a system's translations of it, line by line."""

    sources: Sequence[str] | None
    hypotheses: Sequence[str]
    references: Sequence[Sequence[str]]  # sets of them
    tgt_lang: str

    @property
    def n_lines(self) -> int:
        return len(self.hypotheses)


def score_corpus(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    n_samples: int = 0,
    tgt_lang: str = "de",
) -> list[Score]:
    """Scores of hypothesis i against reference i, or against the i-th of each set of references.

    Args:
        metrics: of mt.evaluate.metrics.METRICS, or `all`; by default BLEU, chrF2, chrF2++ and lower-cased BLEU.
        n_samples: of the bootstrap that gives confidence intervals; 0 for none.
        tgt_lang: whose rules bleu-2017 tokenises by.
    Raises:
        DataError: different numbers of lines, or none at all.
        ConfigError: an unknown metric; too few or too many samples.
    """
    keys, references = metric_keys(metrics), reference_sets(references)
    check_parallel(hypotheses, references)
    return [Metric(key, references, tgt_lang).score(hypotheses, n_samples) for key in keys]


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU alone; errors as in `score_corpus`."""
    return score_corpus(hypotheses, references, ["bleu"])[0].score


def corpus_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 alone; errors as in `score_corpus`."""
    return score_corpus(hypotheses, references, ["chrf"])[0].score


def scored_test_set(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    n_samples: int = 0,
    tgt_lang: str = "de",
) -> dict[str, Any]:
    """One entry of `test_sets`, as `mt eval --json` and report.json have it; arguments and errors of `score_corpus`.

    Returns:
        {"n_lines", "n_references", "scores": [{"name", "score", "signature"}, …]}; with `n_samples` a score has
        "confidence": {"mean", "low", "high", "n_samples"} too.
    """
    scores = score_corpus(hypotheses, references, metrics, n_samples, tgt_lang)
    return {
        "n_lines": len(hypotheses),
        "n_references": len(reference_sets(references)),
        "scores": [_without_none(asdict(score)) for score in scores],
    }


def _without_none(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def report_text(report: Mapping[str, Any]) -> str:
    """`{"test_sets": {NAME: {"n_lines", "scores"}}}` for a person: a line for each score, rounded to two digits."""
    lines = []
    for name, entry in report["test_sets"].items():
        n_references = entry.get("n_references", 1)
        lines.append(f"{name} ({entry['n_lines']:,} lines{f', {n_references} references' if n_references > 1 else ''})")
        lines += _score_lines(entry["scores"])
    return "\n".join(lines)


def _score_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of name, score, interval and signature; what a name says in brackets comes last."""
    names = [score["name"].partition(" (") for score in scores]
    width = max(6, *(len(name) + 1 for name, _, _ in names))
    lines = []
    for score, (name, bracket, remark) in zip(scores, names, strict=True):
        confidence = score.get("confidence")
        interval = f" ± {(confidence['high'] - confidence['low']) / 2:.2f}" if confidence else ""
        lines.append(f"  {name:<{width}}{score['score']:>7.2f}{interval}   {score['signature']}{bracket}{remark}")
    return lines
