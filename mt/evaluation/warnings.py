"""Warnings about mistakes in the compared files that make a score misleading.

The thresholds let human translations pass: see the tests on real text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from mt.evaluation.scores import TranslatedSet
from mt.evaluation.tokenization import OF_WORDS
from mt.report.facts import MetricScore
from mt.text.languages import units_of
from mt.units import listed

# Traces of a tokenizer, and the smallest fraction of lines with them that gives a warning.
_MARKS = {
    "spaces before full stops or commas": (re.compile(r"\S [.,](?= |$)"), 0.05),
    "@-@": (re.compile(r"(?:^| )@[-,.]@(?: |$)"), 0.005),
    "escapes such as &apos;": (re.compile(r"&(?:apos|quot|amp|lt|gt|#\d+);"), 0.005),
    "▁": (re.compile("▁"), 0.05),
    "@@": (re.compile(r"@@(?: |$)"), 0.05),
}
_LESS = 0.25  # only one side is tokenised if the other has less than this fraction of its traces
_COPIED_SHARE = 0.1  # of the lines; a line is copied if it equals the source and the reference does not
_UPPER_SHARE = 0.1  # lower-cased hypotheses have less than this fraction of the references' upper-case letters
_FEWEST_CASED = 20  # letters; with fewer, case and script are not checked
# Lines are shifted if they share at least 20 words with the neighbouring references, and twice as many as with theirs.
_FEWEST_SHIFTED, _SHIFTED_TIMES = 20, 2.0
_UNRELATED_BLEU, _RELATED_BLEU = 1.0, 10.0
# A BLEU below the first is printed with a warning if chrF2 is above the second. In text with spaces, a system with a
# chrF2 of 40 has a BLEU of 5 to 15.
_NEARLY_ZERO_BLEU, _HIGH_CHRF = 1.0, 40.0
_COUNTING_WORDS = ("chrF2++", "TER")  # between spaces, whatever the language
_REPEATED_SHARE, _FEWEST_REPEATED, _FEWEST_REFERENCES = 0.02, 10, 5


def check(translated: TranslatedSet) -> list[str]:
    """Return warnings for the reader of a score; none if everything seems right."""
    hypotheses, sets = translated.hypotheses, translated.references
    found = [*_equal_files(translated), *_empty_lines(hypotheses, sets)]
    for find_mistake in (_tokenised, _lower_cased, _in_another_script, _one_line_for_many, _shifted):
        found += find_mistake(hypotheses, sets[0])
    return found


def _equal_files(translated: TranslatedSet) -> Iterator[str]:
    hypotheses, sets = translated.hypotheses, translated.references
    sources, baseline = translated.sources, translated.baseline
    the_references = "the references" if len(sets) == 1 else "one of the sets of references"
    if any(_same(hypotheses, lines) for lines in sets):
        yield f"the hypotheses are identical to {the_references}: a score of 100.0 says nothing about a system"
    if sources is not None:
        n_copies = sum(
            source.strip() == hypothesis.strip() != reference.strip() and any(map(str.isalpha, source))
            for source, hypothesis, reference in zip(sources, hypotheses, sets[0], strict=True)
        )
        if _same(hypotheses, sources):
            yield "the hypotheses are identical to the source text: nothing was translated"
        elif n_copies >= max(2, _COPIED_SHARE * len(hypotheses)):
            yield f"{n_copies:,} of {len(hypotheses):,} hypotheses copy the source, but the references do not"
    if baseline is not None and _same(hypotheses, baseline):
        yield "the hypotheses are identical to those of the baseline: was the same file given twice?"
    for name, lines in (("the baseline is", baseline), ("the source text is", sources)):
        if lines is not None and any(_same(lines, references) for references in sets):
            yield f"{name} identical to {the_references}: was the same file given twice?"
            return
    if any(_same(one, other) for one, other in combinations(sets, 2)):
        yield "two sets of references are identical: was the same file given twice?"


def _empty_lines(hypotheses: Sequence[str], sets: Sequence[Sequence[str]]) -> Iterator[str]:
    wrong = ": any translation counts as wrong there"
    for one, many, files, effect in (
        ("hypothesis", "hypotheses", [hypotheses], ""),
        ("reference", "references", sets, wrong),
    ):
        empty = [number for lines in files for number, line in enumerate(lines, start=1) if not line.strip()]
        if len(empty) == 1:
            yield f"{one} {empty[0]:,} is empty{effect}"
        elif empty:
            yield f"{len(empty):,} {many} are empty, the first of them in line {min(empty):,}{effect}"


def _tokenised(hypotheses: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    n_lines = len(hypotheses)
    for name, (pattern, least) in _MARKS.items():
        ours, theirs = (sum(bool(pattern.search(line)) for line in lines) for lines in (hypotheses, references))
        (n, side), (n_other, other_side) = sorted([(ours, "hypotheses"), (theirs, "references")], reverse=True)
        if n >= max(least * n_lines, min(2, n_lines)) and n_other < _LESS * n:
            found = f"the {side} look tokenised and the {other_side} do not ({n:,} of {n_lines:,} lines with {name})"
            yield f"{found}: give both as plain text, otherwise the scores mean little"
            return


def _lower_cased(hypotheses: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    in_hypotheses, in_references = (_upper_share(lines) for lines in (hypotheses, references))
    if in_hypotheses is None or in_references is None or in_references < 0.01:
        return
    if in_hypotheses < _UPPER_SHARE * in_references:
        yield "the hypotheses look lower-cased and the references do not: case-sensitive scores are too low"


def _in_another_script(hypotheses: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    ours, theirs = _scripts(hypotheses), _scripts(references)
    shared = sum(n for script, n in ours.items() if theirs[script] >= 0.01 * theirs.total())
    if min(ours.total(), theirs.total()) >= _FEWEST_CASED and shared < 0.5 * ours.total():
        our_script, their_script = (scripts.most_common(1)[0][0].title() for scripts in (ours, theirs))
        found = f"the hypotheses are mostly in {our_script} script and the references in {their_script}"
        yield f"{found}: are they in another language?"


def _one_line_for_many(hypotheses: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    stripped = [line.strip() for line in hypotheses]
    for line, n in Counter(filter(None, stripped)).most_common(1):
        wanted = {reference for ours, reference in zip(stripped, references, strict=True) if ours == line}
        if n >= max(_FEWEST_REPEATED, _REPEATED_SHARE * len(hypotheses)) and len(wanted) >= _FEWEST_REFERENCES:
            shown = line if len(line) <= 40 else f"{line[:40]}…"
            yield f"{n:,} hypotheses are the same line, for {len(wanted):,} different references: {shown}"


def _shifted(hypotheses: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    """Find lines shifted by one: one is missing on one side, and an extra line later makes the counts equal again."""
    n = len(hypotheses)
    if n < 2 * _FEWEST_SHIFTED:
        return
    ours, theirs = ([frozenset(units_of(line)) for line in lines] for lines in (hypotheses, references))
    for half, lines in (("first", range(1, n // 2)), ("second", range(n // 2 + 1, n - 1))):
        straight, *others = (sum(len(ours[i] & theirs[i + shift]) for i in lines) for shift in (0, 1, -1))
        for shared, which in zip(others, ("next", "previous"), strict=True):
            if shared >= _FEWEST_SHIFTED and shared > _SHIFTED_TIMES * straight:
                found = f"in the {half} half of the lines, hypotheses share more words with the {which} reference"
                yield f"{found} than with their own: is a line missing?"
                return


def check_scores(translated: TranslatedSet, scores: Sequence[MetricScore]) -> list[str]:
    """Return warnings about scores that do not suit the language or the length of the lines."""
    found, tokenize = [], translated.tokenize
    score_of = {one.name: one.score for one in scores}
    bleu, chrf = score_of.get("BLEU", math.inf), score_of.get("chrF2", 0.0)
    if "BLEU" in score_of and tokenize in OF_WORDS and not translated.has_spaces:
        fix = "choose another one with --tokenize, or in a config with eval.bleu_tokenize"
        problem = f"BLEU is far too low, because its tokenizer (tok:{tokenize}) separates words at spaces only"
        found.append(f"the references are written without spaces: {problem}; {fix}")
    elif bleu < _NEARLY_ZERO_BLEU and chrf > _HIGH_CHRF:
        causes = (
            f"either most lines have fewer than 4 words, or the tokenizer (tok:{tokenize}) does not suit the language"
        )
        found.append(f"BLEU is {bleu:.2f} although chrF2 is {chrf:.2f}: {causes}")
    if (names := [name for name in _COUNTING_WORDS if name in score_of]) and not translated.has_spaces:
        found.append(f"the references are written without spaces: {listed(names)} says little, because it counts words")
    return found


def unrelated_baseline(score: float, baseline_score: float) -> str | None:
    """Return a warning if the BLEU of two systems suggests that one of them translated another text."""
    low, high = sorted([score, baseline_score])
    if low >= _UNRELATED_BLEU or high < _RELATED_BLEU:
        return None
    which = "the baseline has" if baseline_score == low else "the hypotheses have"
    return f"{which} {low:.1f} BLEU and the other system {high:.1f}: is it a translation of another text?"


# --------------------------------------------------------------------------------------------------- counting


def _same(lines: Sequence[str], others: Sequence[str]) -> bool:
    return all(line.strip() == other.strip() for line, other in zip(lines, others, strict=True))


def _upper_share(lines: Sequence[str]) -> float | None:
    """Return the fraction of upper-case letters among letters with case; None if there are too few."""
    letters = Counter("".join(lines))
    n_upper = sum(n for letter, n in letters.items() if letter.isupper())
    n_lower = sum(n for letter, n in letters.items() if letter.islower())
    return n_upper / (n_upper + n_lower) if n_upper + n_lower >= _FEWEST_CASED else None


def _scripts(lines: Sequence[str]) -> Counter[str]:
    """Count letters by script, which is the first word of a letter's Unicode name."""
    scripts: Counter[str] = Counter()
    for letter, n in Counter("".join(lines)).items():
        if letter.isalpha():
            scripts[unicodedata.name(letter, "unknown").split()[0]] += n
    return scripts
