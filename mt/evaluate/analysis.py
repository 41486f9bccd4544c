"""Where a system is good and where it is bad: scores by kinds of sentences, oddities, the best and the worst."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU

from mt.decode.quality_flags import (
    FEWEST_COPIES,
    FEWEST_REPEATED_TOKENS,
    LONGEST_EXTRA,
    LONGEST_PERIOD,
    LONGEST_RATIO,
    SHORTEST_LESS,
    has_repetition_loop,
    is_too_long,
    min_plausible_length,
)
from mt.errors import DataError
from mt.evaluate.metrics import Metric, check_parallel, reference_sets

LENGTHS = (0, 10, 20, 30, 40, 50, 60, 70, 80)  # words at which a bucket begins; the last has no end
FREQUENCIES = (0, 1, 2, 5, 10, 100, 1_000)  # the same, of how often training has the rarest word of a source
_WORD = re.compile(r"[^\W\d_]+")
# Groups of thousands, where there are some, and decimals; a point or comma before three digits parts thousands.
_NUMBER = re.compile(r"(?<![\d.,])(\d{1,3}(?:[.,' \u00a0\u202f]\d{3})+|\d+)(?:[.,](\d+))?(?!\d)|\d+")
_LINES_SHOWN = 20  # of those that are odd in one way
# For the reader of a report.
ODDITY_RULES = (
    f"In a loop: up to {LONGEST_PERIOD} words come {FEWEST_COPIES} times in a row or more often, at least "
    f"{FEWEST_REPEATED_TOKENS} words are repeated, and more than twice as many as in the {{side}}. Far too long: over "
    f"{LONGEST_RATIO} words for each of the {{side}}, and {LONGEST_EXTRA} more; far too short: under a third of its "
    f"words, less {SHORTEST_LESS}. Translations made by people pass. Numbers: those of the reference, if the source "
    "has them too; it makes no difference how thousands and decimals are written."
)
_SENTENCE_BLEU = BLEU(effective_order=True, force=True)


def words_of(line: str) -> list[str]:
    """Runs of letters, as they are written."""
    return _WORD.findall(line)


def count_words(lines: Iterable[str]) -> Counter[str]:
    """How often each word occurs."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(words_of(line))
    return counts


def analyse(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
    word_counts: Mapping[str, int] | None = None,
    baseline: Sequence[str] | None = None,
    n_examples: int = 10,
) -> dict[str, Any]:
    """What can be said of translations without a person who reads them.

    Args:
        references: of several sets all count for scores, and the first one for all else.
        sources: without them lengths, loops and numbers are held against the references, and copies cannot be seen.
        word_counts: of the source side of the training text, as `count_words` gives them.
        baseline: another system's hypotheses.
        n_examples: sentences listed as best, worst, gained and lost.
    Returns:
        The values of an mt.report.facts.Analysis, and "sentences": [mt.report.facts.Sentence]. Without `word_counts`
        and `sources` there is no "by_rarest_word"; without a baseline no "gained" and "lost", which are the sentences
        with the largest differences in chrF. Lines count from 1; scores are from 0 to 100, unrounded.
    Raises:
        DataError: different numbers of lines, or none at all.
    """
    sets = reference_sets(references)
    check_parallel(hypotheses, sets)
    for side, lines in (("sources", sources), ("lines of the baseline", baseline)):
        if lines is not None and len(lines) != len(hypotheses):
            raise DataError(f"{len(hypotheses):,} hypotheses and {len(lines):,} {side}: they are compared line by line")
    given = sets[0] if sources is None else sources
    metrics = {key: Metric(key, sets) for key in ("bleu", "chrf")}
    systems = {"": _System.of(hypotheses, metrics)}
    if baseline is not None:
        systems["baseline_"] = _System.of(baseline, metrics)
    analysis: dict[str, Any] = {
        "beside": "reference" if sources is None else "source",
        "by_length": _by_bucket([len(line.split()) or -1 for line in given], LENGTHS, metrics, systems),
    }
    if word_counts is not None and sources is not None:
        rarest = [min((word_counts.get(word, 0) for word in words_of(line)), default=-1) for line in sources]
        analysis["by_rarest_word"] = _by_bucket(rarest, FREQUENCIES, metrics, systems)
    odd = {prefix: _odd_lines(system.lines, sets[0], sources) for prefix, system in systems.items()}
    analysis["oddities"] = {
        name: {"n_lines": len(lines), "lines": lines[:_LINES_SHOWN]}
        | ({"baseline_n_lines": len(odd["baseline_"][name])} if baseline is not None else {})
        for name, lines in odd[""].items()
    }
    analysis["numbers"] = _numbers(systems, sets[0], sources)
    n_reference_words = sum(len(line.split()) for line in sets[0])
    for prefix, system in systems.items():
        n_words = sum(len(line.split()) for line in system.lines)
        analysis[f"{prefix}length_ratio"] = n_words / max(1, n_reference_words)
    sentences = _sentences(systems, sets[0], sources, odd[""])
    return analysis | {"sentences": sentences} | _examples(sentences, n_examples)


@dataclass(frozen=True)
class _System:
    """A system's lines, with what the metrics count in each."""

    lines: Sequence[str]
    rows: Mapping[str, npt.NDArray[Any]]  # key of the metric → statistics [lines, …]
    chrf: Sequence[float]  # of each line
    bleu: Sequence[float]  # the same, with the orders of n-grams that a line has

    @classmethod
    def of(cls, lines: Sequence[str], metrics: Mapping[str, Metric]) -> _System:
        rows = {key: np.array(metric.statistics(lines)) for key, metric in metrics.items()}
        return cls(
            lines,
            rows,
            [metrics["chrf"].score_of(row) for row in rows["chrf"].tolist()],
            [float(_SENTENCE_BLEU._compute_score_from_stats(row).score) for row in rows["bleu"].tolist()],
        )


def _by_bucket(
    values: Sequence[int], begins: Sequence[int], metrics: Mapping[str, Metric], systems: Mapping[str, _System]
) -> list[dict[str, Any]]:
    """Scores of the lines of each bucket that has some; a line with a value below all begins is in none."""
    buckets = np.searchsorted(begins, np.array(values), side="right") - 1
    found = []
    for number, begin in enumerate(begins):
        inside = buckets == number
        if inside.any():
            scores = {
                f"{prefix}{key}": metric.score_of(system.rows[key][inside].sum(axis=0))
                for prefix, system in systems.items()
                for key, metric in metrics.items()
            }
            name = _bucket_name(begins, number)
            found.append({"bucket": name, "begin": begin, "n_lines": int(inside.sum()), **scores})
    return found


def _bucket_name(begins: Sequence[int], number: int) -> str:
    first = begins[number]
    if number == len(begins) - 1:
        return f"{first:,}+"
    last = begins[number + 1] - 1
    return f"{first}" if first == last else f"{first}–{last}"


def _odd_lines(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> dict[str, list[int]]:
    """Kind of oddity → numbers of the lines."""
    names = ("empty", "repetitions", *(() if sources is None else ("copies",)), "too_long", "too_short")
    lines: dict[str, list[int]] = {name: [] for name in names}
    ids: dict[str, int] = {}
    for number, (hypothesis, reference, given) in enumerate(
        zip(hypotheses, references, references if sources is None else sources, strict=True), start=1
    ):
        words, given_words = hypothesis.split(), given.split()
        if not words:
            if given_words:
                lines["empty"].append(number)
            continue
        if has_repetition_loop(*([ids.setdefault(word, len(ids)) for word in side] for side in (words, given_words))):
            lines["repetitions"].append(number)
        if sources is not None and words == given_words != reference.split() and _WORD.search(given):
            lines["copies"].append(number)
        if is_too_long(len(given_words), len(words)):
            lines["too_long"].append(number)
        if len(words) < min_plausible_length(len(given_words)):
            lines["too_short"].append(number)
    return lines


def _numbers(
    systems: Mapping[str, _System], references: Sequence[str], sources: Sequence[str] | None
) -> dict[str, Any]:
    """Of the numbers that source and reference share, those that a hypothesis has too; separators do not count."""
    wanted = [_figures(line) for line in references]
    if sources is not None:
        wanted = [figures & _figures(source) for figures, source in zip(wanted, sources, strict=True)]
    n = sum(figures.total() for figures in wanted)
    numbers: dict[str, Any] = {"n": n}
    for prefix, system in systems.items():
        kept = [figures & _figures(line) for figures, line in zip(wanted, system.lines, strict=True)]
        n_kept = sum(figures.total() for figures in kept)
        numbers |= {f"{prefix}n_kept": n_kept, f"{prefix}kept_share": n_kept / n if n else None}
        if not prefix:
            pairs = enumerate(zip(wanted, kept, strict=True), start=1)
            losing = [number for number, (all_, found) in pairs if all_ != found]
            numbers |= {"n_lines": len(losing), "lines": losing[:_LINES_SHOWN]}
    return numbers


def _figures(text: str) -> Counter[str]:
    """The numbers of a text, written in one way."""
    figures: Counter[str] = Counter()
    for match in _NUMBER.finditer(text):
        whole, decimals = match[1] or match[0], match[2]
        figures["".join(filter(str.isdigit, whole)) + (f".{decimals}" if decimals else "")] += 1
    return figures


def _sentences(
    systems: Mapping[str, _System],
    references: Sequence[str],
    sources: Sequence[str] | None,
    odd: Mapping[str, Sequence[int]],
) -> list[dict[str, Any]]:
    sentences: list[dict[str, Any]] = [{"line": number} for number in range(1, len(references) + 1)]
    for index, sentence in enumerate(sentences):
        if sources is not None:
            sentence["source"] = sources[index]
        sentence["reference"] = references[index]
        for prefix, system in systems.items():
            sentence[prefix.rstrip("_") or "hypothesis"] = system.lines[index]
            sentence[f"{prefix}chrf"] = system.chrf[index]
            sentence[f"{prefix}bleu"] = system.bleu[index]
        if "baseline_chrf" in sentence:
            sentence["chrf_difference"] = sentence["chrf"] - sentence["baseline_chrf"]
        sentence["oddities"] = []
    for name, lines in odd.items():
        for number in lines:
            sentences[number - 1]["oddities"].append(name)
    return sentences


def _examples(sentences: list[dict[str, Any]], n: int) -> dict[str, list[dict[str, Any]]]:
    """The worst and best sentences, of equals the longest first; and those in which two systems differ most."""
    told = [entry for entry in sentences if entry["reference"].strip() or entry["hypothesis"].strip()]
    ranked = sorted(told, key=lambda entry: (entry["chrf"], -len(entry["reference"]), entry["line"]))
    best = sorted(told, key=lambda entry: (-entry["chrf"], -len(entry["reference"]), entry["line"]))
    examples = {"worst": ranked[:n], "best": best[:n]}
    if sentences and "baseline" in sentences[0]:
        differences = [
            (entry["chrf_difference"], entry) for entry in sentences if entry["hypothesis"] != entry["baseline"]
        ]
        for name, sign in (("gained", 1), ("lost", -1)):
            found = [pair for pair in differences if sign * pair[0] > 0]
            found.sort(key=lambda pair: (-abs(pair[0]), pair[1]["line"]))
            examples[name] = [entry for _, entry in found[:n]]
    return examples
