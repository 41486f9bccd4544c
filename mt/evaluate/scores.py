"""BLEU and chrF of translations, by sacreBLEU and with its signatures; strings only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from mt.errors import DataError


@dataclass(frozen=True)
class Score:
    """One figure for a whole test set."""

    name: str  # as sacreBLEU writes it: BLEU, chrF2
    score: float  # 0 to 100, unrounded
    signature: str  # sacreBLEU's: everything that the figure depends on, besides the text


def score_corpus(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
    """BLEU (13a, cased) and chrF2 of hypothesis i against reference i, one reference each.

    Raises:
        DataError: different numbers of lines, or none at all.
    """
    _check_parallel(hypotheses, references)
    scores = []
    for metric in (BLEU(), CHRF()):
        result = metric.corpus_score(hypotheses, [references])
        scores.append(Score(result.name, float(result.score), str(metric.get_signature())))
    return scores


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU alone; errors as in `score_corpus`."""
    _check_parallel(hypotheses, references)
    return float(BLEU().corpus_score(hypotheses, [references]).score)


def corpus_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 alone; errors as in `score_corpus`."""
    _check_parallel(hypotheses, references)
    return float(CHRF().corpus_score(hypotheses, [references]).score)


def scored_test_set(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """One entry of `test_sets`, as `mt eval --json` and report.json have it: n_lines and scores."""
    return {"n_lines": len(references), "scores": [asdict(score) for score in score_corpus(hypotheses, references)]}


def report_text(report: Mapping[str, Any]) -> str:
    """`{"test_sets": {NAME: {"n_lines", "scores"}}}` for a person: a line for each score, rounded to two digits."""
    lines = []
    for name, entry in report["test_sets"].items():
        lines.append(f"{name} ({entry['n_lines']:,} lines)")
        lines += [f"  {score['name']:<6}{score['score']:>7.2f}   {score['signature']}" for score in entry["scores"]]
    return "\n".join(lines)


def _check_parallel(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses):,} hypotheses and {len(references):,} references: scoring needs one line for each line"
        )
    if not references:
        raise DataError("nothing to score: there are no lines")
