"""What makes a score mean something else than it seems to: mistakes in the files that are compared.

Thresholds are such that translations made by people pass: see the tests on real text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from mt.evaluate.metrics import reference_sets

# Marks that a tokenizer leaves, and how much text they are looked for in: at least this share of the lines.
_MARKS = {
    "spaces before full stops or commas": (re.compile(r"\S [.,](?= |$)"), 0.05),
    "@-@": (re.compile(r"(?:^| )@[-,.]@(?: |$)"), 0.005),
    "escapes such as &apos;": (re.compile(r"&(?:apos|quot|amp|lt|gt|#\d+);"), 0.005),
    "▁": (re.compile("▁"), 0.05),
    "@@": (re.compile(r"@@(?: |$)"), 0.05),
}
_LESS = 0.25  # marks are the work of a tokenizer where the other side has less than this share of them
_COPIED_SHARE = 0.1  # of the lines, that are the source although the reference is not
_UPPER_SHARE = 0.1  # of the upper-case letters of the references, that the hypotheses have where they are lower-cased
_FEWEST_CASED = 20  # letters, below which nothing is said of case or script
_FEWEST_SHIFTED, _SHIFTED_TIMES = 20, 2.0  # lines of a half, and words that they share; how many times as many
_UNRELATED_BLEU, _RELATED_BLEU = 1.0, 10.0
_REPEATED_SHARE, _FEWEST_REPEATED, _FEWEST_REFERENCES = 0.02, 10, 5


def check(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
    baseline: Sequence[str] | None = None,
) -> list[str]:
    """Lines for the reader of a score, none where all seems well.

    Args:
        hypotheses: as many lines as each set of references, the sources and the baseline have.
        references: one set, or a list of sets.
    """
    sets = reference_sets(references)
    found = [
        _is_a_reference(hypotheses, sets),
        _is_the_source(hypotheses, sets[0], sources),
        _is_the_baseline(hypotheses, baseline),
        _is_given_twice(sets, sources, baseline),
        _empty_lines(hypotheses),
        _empty_references(sets),
        _tokenised(hypotheses, sets[0]),
        _lower_cased(hypotheses, sets[0]),
        _in_another_script(hypotheses, sets[0]),
        _one_line_for_many(hypotheses, sets[0]),
        _shifted(hypotheses, sets[0]),
    ]
    return [line for line in found if line]


def _is_a_reference(hypotheses: Sequence[str], sets: Sequence[Sequence[str]]) -> str | None:
    if any(_same(hypotheses, lines) for lines in sets):
        return "the hypotheses are the references, line for line: a score of 100.0 says nothing of a system"
    return None


def _is_the_source(hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str] | None) -> str | None:
    if sources is None:
        return None
    if _same(hypotheses, sources):
        return "the hypotheses are the source text, line for line: nothing was translated"
    n_copies = sum(
        source.strip() == hypothesis.strip() != reference.strip() and any(map(str.isalpha, source))
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    )
    if n_copies >= 2 and n_copies >= _COPIED_SHARE * len(hypotheses):
        return f"{n_copies:,} of {len(hypotheses):,} hypotheses are their source text, and their references are not"
    return None


def _is_the_baseline(hypotheses: Sequence[str], baseline: Sequence[str] | None) -> str | None:
    if baseline is not None and _same(hypotheses, baseline):
        return "the hypotheses are those of the baseline, line for line: the same file twice?"
    return None


def _is_given_twice(
    sets: Sequence[Sequence[str]], sources: Sequence[str] | None, baseline: Sequence[str] | None
) -> str | None:
    for name, lines in (("the baseline is", baseline), ("the source text is", sources)):
        if lines is not None and any(_same(lines, references) for references in sets):
            return f"{name} the references, line for line: the same file twice?"
    if any(_same(one, other) for one, other in combinations(sets, 2)):
        return "two sets of references are the same, line for line: that is one set"
    return None


def _empty_lines(hypotheses: Sequence[str]) -> str | None:
    empty = [number for number, line in enumerate(hypotheses, start=1) if not line.strip()]
    if not empty:
        return None
    if len(empty) == 1:
        return f"hypothesis {empty[0]:,} is empty"
    return f"{len(empty):,} hypotheses are empty, the first of them in line {empty[0]:,}"


def _empty_references(sets: Sequence[Sequence[str]]) -> str | None:
    empty = [number for lines in sets for number, line in enumerate(lines, start=1) if not line.strip()]
    if not empty:
        return None
    if len(empty) == 1:
        return f"reference {empty[0]:,} is empty: whatever is said there counts as wrong"
    n, first = len(empty), min(empty)
    return f"{n:,} references are empty, the first of them in line {first:,}: whatever is said there counts as wrong"


def _tokenised(hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    for name, (pattern, least) in _MARKS.items():
        ours, theirs = (sum(bool(pattern.search(line)) for line in lines) for lines in (hypotheses, references))
        (n, side), (n_other, other_side) = sorted([(ours, "hypotheses"), (theirs, "references")], reverse=True)
        n_lines = len(hypotheses)
        if n >= max(least * n_lines, min(2, n_lines)) and n_other < _LESS * n:
            return (
                f"the {side} look tokenised and the {other_side} do not ({n:,} of {n_lines:,} lines with {name}): "
                "give both as plain text, or the scores mean little"
            )
    return None


def _lower_cased(hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    in_hypotheses, in_references = (_upper_share(lines) for lines in (hypotheses, references))
    if in_hypotheses is None or in_references is None or in_references < 0.01:
        return None
    if in_hypotheses < _UPPER_SHARE * in_references:
        return "the hypotheses look lower-cased and the references do not: scores that count case are too low"
    return None


def _in_another_script(hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    ours, theirs = _scripts(hypotheses), _scripts(references)
    n_ours, n_theirs = sum(ours.values()), sum(theirs.values())
    if min(n_ours, n_theirs) < _FEWEST_CASED:
        return None
    shared = sum(n for script, n in ours.items() if theirs[script] >= 0.01 * n_theirs)
    if shared >= 0.5 * n_ours:
        return None
    (our_script, _), (their_script, _) = ours.most_common(1)[0], theirs.most_common(1)[0]
    return (
        f"the hypotheses are mostly in {our_script.title()} script and the references in {their_script.title()}: "
        "another language?"
    )


def _one_line_for_many(hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    lines = Counter(line.strip() for line in hypotheses if line.strip())
    line, n = lines.most_common(1)[0] if lines else ("", 0)
    if n < max(_FEWEST_REPEATED, _REPEATED_SHARE * len(hypotheses)):
        return None
    wanted = {
        reference for hypothesis, reference in zip(hypotheses, references, strict=True) if hypothesis.strip() == line
    }
    if len(wanted) < _FEWEST_REFERENCES:
        return None
    shown = line if len(line) <= 40 else f"{line[:40]}…"
    return f"{n:,} hypotheses are the same line, for {len(wanted):,} different references: {shown}"


def _shifted(hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    """Lines that went missing on one side, and came back as others, shift all lines between."""
    n = len(hypotheses)
    if n < 2 * _FEWEST_SHIFTED:
        return None
    ours, theirs = ([frozenset(line.split()) for line in lines] for lines in (hypotheses, references))
    for first, last in ((1, n // 2), (n // 2 + 1, n - 1)):
        inside = range(first, last)
        straight, *others = (_shared(ours, theirs, inside, shift) for shift in (0, 1, -1))
        for shared, which in zip(others, ("next", "previous"), strict=True):
            if shared >= _FEWEST_SHIFTED and shared > _SHIFTED_TIMES * straight:
                half = "first" if first == 1 else "second"
                return (
                    f"in the {half} half of the lines, hypotheses share more words with the {which} reference than "
                    "with their own: is a line missing?"
                )
    return None


def _shared(ours: Sequence[frozenset[str]], theirs: Sequence[frozenset[str]], lines: Sequence[int], shift: int) -> int:
    return sum(len(ours[i] & theirs[i + shift]) for i in lines)


def unrelated_baseline(score: float, baseline_score: float) -> str | None:
    """Of BLEU: whether one of two systems seems to have translated another text."""
    low, high = sorted([score, baseline_score])
    if low >= _UNRELATED_BLEU or high < _RELATED_BLEU:
        return None
    which = "the baseline has" if baseline_score == low else "the hypotheses have"
    return f"{which} {low:.1f} BLEU and the other system {high:.1f}: a translation of another text?"


# --------------------------------------------------------------------------------------------------- counting


def _same(lines: Sequence[str], others: Sequence[str]) -> bool:
    return all(line.strip() == other.strip() for line, other in zip(lines, others, strict=True))


def _upper_share(lines: Sequence[str]) -> float | None:
    """Of the letters that have case; None where there are hardly any."""
    letters = Counter("".join(lines))
    n_upper = sum(n for letter, n in letters.items() if letter.isupper())
    n_lower = sum(n for letter, n in letters.items() if letter.islower())
    return n_upper / (n_upper + n_lower) if n_upper + n_lower >= _FEWEST_CASED else None


def _scripts(lines: Sequence[str]) -> Counter[str]:
    """Letters by script, which is the first word of a letter's Unicode name."""
    scripts: Counter[str] = Counter()
    for letter, n in Counter("".join(lines)).items():
        if letter.isalpha():
            scripts[unicodedata.name(letter, "unknown").split()[0]] += n
    return scripts
