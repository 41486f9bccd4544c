"""Where a system is good and where it is bad: scores by kinds of sentences, oddities, the best and the worst."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU

from mt.decode.oddities import fewest_tokens, is_in_a_loop, is_too_long
from mt.errors import DataError
from mt.evaluate.metrics import Metric, check_parallel, reference_sets

LENGTHS = (0, 10, 20, 30, 40, 50, 60, 70, 80)  # source words at which a bucket begins; the last has no end
FREQUENCIES = (0, 1, 2, 5, 10, 100, 1_000)  # the same, of how often training has the rarest word of a source
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,' \u00a0\u202f]\d{3})*(?:[.,]\d+)?")
_LINES_SHOWN = 20  # of those that are odd in one way
_SENTENCE_BLEU = BLEU(effective_order=True, force=True)


def count_words(lines: Iterable[str]) -> Counter[str]:
    """How often each word occurs: runs of letters, as they are written."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(_WORD.findall(line))
    return counts


def analyse(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    sources: Sequence[str],
    word_counts: Mapping[str, int] | None = None,
    baseline: Sequence[str] | None = None,
    n_examples: int = 10,
) -> dict[str, Any]:
    """What can be said of translations without a person who reads them.

    Args:
        word_counts: of the source side of the training text, as `count_words` gives them.
        baseline: another system's hypotheses.
        n_examples: sentences listed as best, worst, and most different from the baseline's.
    Returns:
        {"by_length": [{"bucket", "n_lines", "bleu", "chrf"}, …], with `word_counts` "by_rarest_word" the same,
        "oddities": {NAME: {"n_lines", "lines"}, …} with the numbers of the first lines, "numbers": {"n", "n_kept",
        "lines"}, "length_ratio", "worst", "best", with a baseline "most_different": [sentence, …]}. A sentence is
        {"line", "source", "hypothesis", "reference", "chrf", "bleu"}, and in most_different "baseline",
        "baseline_chrf" and "baseline_bleu". Lines count from 1; scores are 0 to 100, unrounded.
    Raises:
        DataError: different numbers of lines, or none at all.
    """
    sets = reference_sets(references)
    check_parallel(hypotheses, sets)
    for side, lines in (("sources", sources), ("lines of the baseline", baseline)):
        if lines is not None and len(lines) != len(hypotheses):
            raise DataError(f"{len(hypotheses):,} hypotheses and {len(lines):,} {side}: they are compared line by line")
    metrics = {key: Metric(key, sets) for key in ("bleu", "chrf")}
    rows = {key: np.array(metric.statistics(hypotheses)) for key, metric in metrics.items()}
    analysis: dict[str, Any] = {
        "by_length": _by_bucket([len(line.split()) for line in sources], LENGTHS, metrics, rows)
    }
    if word_counts is not None:
        rarest = [min((word_counts.get(word, 0) for word in _WORD.findall(line)), default=-1) for line in sources]
        analysis["by_rarest_word"] = _by_bucket(rarest, FREQUENCIES, metrics, rows)
    analysis["oddities"] = _oddities(hypotheses, sets[0], sources)
    analysis["numbers"] = _numbers(hypotheses, sets[0], sources)
    n_reference_words = sum(len(line.split()) for line in sets[0])
    analysis["length_ratio"] = sum(len(line.split()) for line in hypotheses) / max(1, n_reference_words)
    sentences = _sentences(hypotheses, sets[0], sources, metrics["chrf"], rows)
    ranked = sorted(sentences, key=lambda entry: (entry["chrf"], -len(entry["source"]), entry["line"]))
    analysis["worst"], analysis["best"] = ranked[:n_examples], ranked[::-1][:n_examples]
    if baseline is not None:
        theirs = {key: np.array(metric.statistics(baseline)) for key, metric in metrics.items()}
        others = _sentences(baseline, sets[0], sources, metrics["chrf"], theirs)
        analysis["most_different"] = _most_different(sentences, others)[:n_examples]
    return analysis


def _by_bucket(
    values: Sequence[int], begins: Sequence[int], metrics: Mapping[str, Metric], rows: Mapping[str, npt.NDArray[Any]]
) -> list[dict[str, Any]]:
    """Scores of the lines of each bucket that has some; a line with a value below all begins is in none."""
    buckets = np.searchsorted(begins, np.array(values), side="right") - 1
    found = []
    for number in range(len(begins)):
        inside = buckets == number
        if inside.any():
            scores = {key: metric.score_of(rows[key][inside].sum(axis=0)) for key, metric in metrics.items()}
            found.append({"bucket": _bucket_name(begins, number), "n_lines": int(inside.sum()), **scores})
    return found


def _bucket_name(begins: Sequence[int], number: int) -> str:
    first = begins[number]
    if number == len(begins) - 1:
        return f"{first:,}+"
    last = begins[number + 1] - 1
    return f"{first}" if first == last else f"{first}–{last}"


def _oddities(hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    lines: dict[str, list[int]] = {name: [] for name in ("empty", "repetitions", "copies", "too_long", "too_short")}
    ids: dict[str, int] = {}
    for number, (hypothesis, reference, source) in enumerate(
        zip(hypotheses, references, sources, strict=True), start=1
    ):
        words, source_words = hypothesis.split(), source.split()
        if not words:
            if source_words:
                lines["empty"].append(number)
            continue
        if is_in_a_loop(*([ids.setdefault(word, len(ids)) for word in side] for side in (words, source_words))):
            lines["repetitions"].append(number)
        if words == source_words != reference.split() and _WORD.search(source):
            lines["copies"].append(number)
        if is_too_long(len(source_words), len(words)):
            lines["too_long"].append(number)
        if len(words) < fewest_tokens(len(source_words)):
            lines["too_short"].append(number)
    return {name: {"n_lines": len(found), "lines": found[:_LINES_SHOWN]} for name, found in lines.items()}


def _numbers(hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """Of the numbers that source and reference share, those that the hypothesis has too; separators do not count."""
    n = n_kept = 0
    losing: list[int] = []
    for number, texts in enumerate(zip(hypotheses, references, sources, strict=True), start=1):
        hypothesis, reference, source = (_digits(text) for text in texts)
        wanted = source & reference
        kept = wanted & hypothesis
        n, n_kept = n + wanted.total(), n_kept + kept.total()
        if kept != wanted:
            losing.append(number)
    return {"n": n, "n_kept": n_kept, "n_lines": len(losing), "lines": losing[:_LINES_SHOWN]}


def _digits(text: str) -> Counter[str]:
    return Counter("".join(filter(str.isdigit, number)) for number in _NUMBER.findall(text))


def _sentences(
    hypotheses: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str],
    chrf: Metric,
    rows: Mapping[str, npt.NDArray[Any]],
) -> list[dict[str, Any]]:
    """Each sentence with its scores, BLEU with the orders of n-grams that it has."""
    texts = zip(hypotheses, references, sources, rows["chrf"].tolist(), rows["bleu"].tolist(), strict=True)
    return [
        {
            "line": number,
            "source": source,
            "hypothesis": hypothesis,
            "reference": reference,
            "chrf": chrf.score_of(chrf_row),
            "bleu": float(_SENTENCE_BLEU._compute_score_from_stats(bleu_row).score),
        }
        for number, (hypothesis, reference, source, chrf_row, bleu_row) in enumerate(texts, start=1)
    ]


def _most_different(sentences: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sentences in the order of how far chrF of the two systems lies apart; those that are the same are left out."""
    pairs = [
        {**ours, "baseline": theirs["hypothesis"], "baseline_chrf": theirs["chrf"], "baseline_bleu": theirs["bleu"]}
        for ours, theirs in zip(sentences, others, strict=True)
        if ours["hypothesis"] != theirs["hypothesis"]
    ]
    return sorted(pairs, key=lambda entry: (-abs(entry["chrf"] - entry["baseline_chrf"]), entry["line"]))
