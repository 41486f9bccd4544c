"""Error analysis: scores by kinds of sentences, quality flags, the best and the worst translations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
from mt.evaluation.metrics import sentence_bleu
from mt.evaluation.scores import TranslatedSet
from mt.report.facts import Analysis, Bucket, FlaggedLines, NumbersKept, Sentence
from mt.text.clean import digits_of
from mt.text.languages import characters_per_word, n_words, units_of, words_of

# Words at which a bucket begins; the last bucket is open. Text without spaces has buckets of 2 or 4 times as many
# characters, which is about as many words.
SOURCE_LENGTHS = (0, 10, 20, 30, 40, 50, 60, 70, 80)
FREQUENCIES = (0, 1, 2, 5, 10, 100, 1_000)  # the same for occurrences of the rarest source word in training
# Groups of thousands, if any, and decimals; a point or comma before three digits separates thousands.
# U+066B and U+066C are Arabic separators.
_NUMBER = re.compile(
    r"(?<![\d.,\u066b\u066c])(\d{1,3}(?:[.,'’\u066c \u00a0\u202f]\d{3})+|\d+)(?:[.,\u066b](\d+))?(?!\d)|\d+"
)
_METRICS = ("bleu", "chrf")  # of buckets and sentences
_UNITS = ("words", "characters")  # of lengths: with and without spaces between words
_LINES_SHOWN = 20  # line numbers listed for each flag
_N_EXAMPLES = 10  # sentences listed as best, worst, gained and lost
# For the reader of a report. {side} is the text that translations are compared with.
FLAG_RULES = (
    f"Repetition loop: a sequence of up to {LONGEST_PERIOD} words occurs at least {FEWEST_COPIES} times in a row, at "
    f"least {FEWEST_REPEATED_TOKENS} words are repeated, and more than twice as many as in the {{side}}. Far too long: "
    f"more than {LONGEST_RATIO} times the words of the {{side}}, plus {LONGEST_EXTRA}. Far too short: less than a "
    f"third of its words, minus {SHORTEST_LESS}. In scripts without spaces, each character counts as a word in a loop, "
    "and two characters (Chinese, Japanese) or four (such as Thai) count as a word in a length. Human translations "
    "pass these rules. Numbers preserved: numbers of the reference, if the source has them too, that are in the "
    "translation; the format of thousands and decimals does not matter."
)


def analyse(translated: TranslatedSet, word_counts: Mapping[str, int] | None = None) -> tuple[Analysis, list[Sentence]]:
    """Analyse translations: scores by bucket, quality flags, preserved numbers, best and worst sentences.

    With several sets of references, scores use all of them, and everything else uses the first. Without sources,
    lengths, loops and numbers are compared with the references, and copies of the source are not detected.
    Words of languages without spaces are counted by characters.

    Args:
        word_counts: occurrences of each word in the source side of the training text.
    Returns:
        The analysis, and all sentences. `by_rarest_word` needs `word_counts` and sources. `gained` and `lost`, the
        sentences with the largest differences in chrF, need a baseline.
    """
    sources, references = translated.sources, translated.references[0]
    given = references if sources is None else sources
    systems = {"": _System(translated, translated.hypotheses)}
    if translated.baseline is not None:
        systems["baseline_"] = _System(translated, translated.baseline)
    by_rarest_word = None
    if word_counts is not None and sources is not None:
        rarest = [min((word_counts.get(word, 0) for word in words_of(line)), default=-1) for line in sources]
        by_rarest_word = _by_bucket(systems, rarest, FREQUENCIES)
    n_units = max(1, _n_units(references))
    ratios: dict[str, Any] = {f"{key}length_ratio": _n_units(one.lines) / n_units for key, one in systems.items()}
    of_given, of_references = (characters_per_word("\n".join(lines)) for lines in (given, references))
    begins = [begin * of_given for begin in SOURCE_LENGTHS]
    sentences = _sentences(systems, references, sources)
    analysis = Analysis(
        beside="reference" if sources is None else "source",
        unit=_UNITS[of_given > 1],
        tgt_unit=_UNITS[of_references > 1],
        by_length=_by_bucket(systems, [len(units_of(line)) or -1 for line in given], begins),
        by_rarest_word=by_rarest_word,
        oddities=_quality_flags(systems),
        numbers=_numbers(systems, references, sources, sentences),
        **ratios,
        **_examples(sentences),
    )
    return analysis, sentences


class _System:
    """A system's lines, with their statistics for the metrics and their quality flags."""

    def __init__(self, translated: TranslatedSet, lines: Sequence[str]) -> None:
        self.lines = lines
        self._metrics = {key: translated.metric(key) for key in _METRICS}
        self._rows = {key: metric.rows(lines) for key, metric in self._metrics.items()}
        self.chrf = [self._metrics["chrf"].score_of(row) for row in self._rows["chrf"]]  # for each line
        self.bleu = sentence_bleu(self._rows["bleu"])  # for each line, using the orders of n-grams that it has
        self.flagged = _flagged_lines(lines, translated.references[0], translated.sources)

    def score(self, key: str, inside: npt.NDArray[np.bool_]) -> float:
        """Score the lines selected by a mask, as a corpus."""
        return self._metrics[key].score_of(self._rows[key][inside].sum(axis=0))


_Systems = Mapping[str, _System]  # prefix of keys ("", or "baseline_" for the baseline) → system


def _n_units(lines: Iterable[str]) -> int:
    return sum(len(units_of(line)) for line in lines)


def _by_bucket(systems: _Systems, values: Sequence[int], begins: Sequence[int]) -> list[Bucket]:
    """Score the lines of each bucket that is not empty; a line with a value below the first bucket is in none."""
    buckets = np.searchsorted(begins, np.array(values), side="right") - 1
    found = []
    for number, (begin, end) in enumerate(zip(begins, (*begins[1:], None), strict=True)):
        inside = buckets == number
        if inside.any():
            scores = {f"{prefix}{key}": one.score(key, inside) for prefix, one in systems.items() for key in _METRICS}
            name = f"{begin:,}+" if end is None else f"{begin}" if end == begin + 1 else f"{begin}–{end - 1}"
            found.append(Bucket(bucket=name, begin=begin, n_lines=int(inside.sum()), **scores))
    return found


def _flagged_lines(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> dict[str, list[int]]:
    """Return quality flag → numbers of the lines."""
    names = ("empty", "repetitions", *(() if sources is None else ("copies",)), "too_long", "too_short")
    lines: dict[str, list[int]] = {name: [] for name in names}
    ids: dict[str, int] = {}
    for number, (hypothesis, reference, given) in enumerate(
        zip(hypotheses, references, references if sources is None else sources, strict=True), start=1
    ):
        words, given_words = units_of(hypothesis), units_of(given)
        n_hypothesis, n_given = max(1, n_words(hypothesis)), n_words(given)  # a single character is half a word
        if not words:
            if given_words:
                lines["empty"].append(number)
            continue
        if has_repetition_loop(*([ids.setdefault(word, len(ids)) for word in side] for side in (words, given_words))):
            lines["repetitions"].append(number)
        if sources is not None and words == given_words != units_of(reference) and words_of(given):
            lines["copies"].append(number)
        if is_too_long(n_given, n_hypothesis):
            lines["too_long"].append(number)
        if n_hypothesis < min_plausible_length(n_given):
            lines["too_short"].append(number)
    return lines


def _quality_flags(systems: _Systems) -> dict[str, FlaggedLines]:
    found = {}
    for name, lines in systems[""].flagged.items():
        counts = {f"{prefix}n_lines": len(one.flagged[name]) for prefix, one in systems.items()}
        found[name] = FlaggedLines(lines=lines[:_LINES_SHOWN], **counts)
    return found


def _numbers(
    systems: _Systems, references: Sequence[str], sources: Sequence[str] | None, sentences: Sequence[Sentence]
) -> NumbersKept:
    """Compare the numbers of the hypotheses with those of sources and references; separators are ignored.

    Kept are the numbers of both source and reference that the hypothesis has; added are those that neither has.
    """
    wanted = allowed = [_figures(line) for line in references]
    if sources is not None:
        both = list(zip(wanted, map(_figures, sources), strict=True))
        wanted, allowed = [one & other for one, other in both], [one | other for one, other in both]
    n = sum(figures.total() for figures in wanted)
    counts: dict[str, Any] = {}
    faulty: dict[str, list[int]] = {}  # lines with missing and with added numbers, by prefix of system
    for prefix, system in systems.items():
        found = [_figures(line) for line in system.lines]
        missing = [figures - has for figures, has in zip(wanted, found, strict=True)]
        added = [has - figures for figures, has in zip(allowed, found, strict=True)]
        n_kept = n - sum(figures.total() for figures in missing)
        counts |= {f"{prefix}n_kept": n_kept, f"{prefix}kept_share": n_kept / n if n else None}
        counts[f"{prefix}n_added"] = sum(figures.total() for figures in added)
        for name, lines in (("missing", missing), ("added", added)):
            faulty[f"{prefix}{name}"] = [number for number, figures in enumerate(lines, start=1) if figures]
    missing_in, added_in = faulty["missing"], faulty["added"]
    return NumbersKept(
        n=n,
        n_lines=len(missing_in),
        lines=missing_in[:_LINES_SHOWN],
        n_added_lines=len(added_in),
        added_lines=added_in[:_LINES_SHOWN],
        examples=[sentences[number - 1] for number in sorted({*missing_in, *added_in})[:_N_EXAMPLES]],
        **counts,
    )


def _figures(text: str) -> Counter[str]:
    """Count the numbers in a text, in a normalised form."""
    found = ((match[1] or match[0], match[2]) for match in _NUMBER.finditer(text))
    return Counter(digits_of(whole) + (f".{digits_of(decimals)}" if decimals else "") for whole, decimals in found)


def _sentences(systems: _Systems, references: Sequence[str], sources: Sequence[str] | None) -> list[Sentence]:
    flags: list[list[str]] = [[] for _ in references]
    for name, lines in systems[""].flagged.items():
        for number in lines:
            flags[number - 1].append(name)
    sentences = []
    for i, reference in enumerate(references):
        values: dict[str, Any] = {}
        for prefix, system in systems.items():
            values[prefix.rstrip("_") or "hypothesis"] = system.lines[i]
            values |= {f"{prefix}chrf": system.chrf[i], f"{prefix}bleu": system.bleu[i]}
        if "baseline" in values:
            values["chrf_difference"] = values["chrf"] - values["baseline_chrf"]
        source = None if sources is None else sources[i]
        sentences.append(Sentence(line=i + 1, source=source, reference=reference, oddities=flags[i], **values))
    return sentences


def _examples(sentences: Sequence[Sentence]) -> dict[str, Any]:
    """Return the worst and best sentences (the longest first if equal), and those in which two systems differ most."""
    ranked = sorted(
        (one for one in sentences if one.reference.strip() or one.hypothesis.strip()),
        key=lambda one: (-len(one.reference), one.line),
    )
    worst, best = (sorted(ranked, key=lambda one: sign * one.chrf)[:_N_EXAMPLES] for sign in (1, -1))
    examples = {"worst": worst, "best": best}
    if sentences[0].baseline is not None:
        differing = [(one.chrf_difference or 0.0, one) for one in sentences if one.hypothesis != one.baseline]
        for name, sign in (("gained", 1), ("lost", -1)):
            found = sorted((pair for pair in differing if sign * pair[0] > 0), key=lambda pair: -sign * pair[0])
            examples[name] = [one for _, one in found[:_N_EXAMPLES]]
    return examples
