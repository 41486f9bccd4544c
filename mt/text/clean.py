"""Cleaning of sentence pairs: rules that remove or change pairs, each with a count and its first examples."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from mt.config.settings import CleanConfig
from mt.text.languages import (
    LanguageIdentifier,
    expected_scripts,
    n_letters_and_marks,
    n_words,
    units_of,
    wrong_script_fraction,
)
from mt.text.normalise import Normaliser
from mt.text.reader import Chunk, SentencePair

MAX_EXAMPLES = 3  # for each rule
NORMALISED_CHARS = 10  # times max_chars; a longer side is removed without being normalised
EXAMPLE_CHARS = 200  # shown of each side
RATIO_SLACK_BYTES = 16  # added to both sides, so that short sentences may differ by a word or two
MIN_COPIED_WORDS = 4  # on the longer side; fewer words prove nothing
MIN_PLAIN_WORDS, MIN_PLAIN_FRACTION = 3, 0.4  # of a side; other text is names, titles, code, rightly the same
MIN_NON_LETTERS_CHARS = 8  # without spaces; shorter text is mostly list numbers and dates
MIN_SCRIPT_LETTERS = 10  # shorter text is mostly names


class Rule(NamedTuple):
    """The description of a cleaning rule in messages and reports."""

    setting: str  # its key, without the prefix "data."
    text: str  # a sentence about the text that the rule removes or changes


# In the order in which the rules are tried: a pair counts for the first rule that removes it.
RULES: dict[str, Rule] = {
    "empty": Rule("clean", "A side is empty."),
    "too_long": Rule("clean.max_chars", "A side has more characters than allowed."),
    "length_ratio": Rule("clean.max_length_ratio", "One side is many times as long as the other, in bytes."),
    "copied": Rule("clean.max_copied", "The two sides are the same prose, or nearly the same: it was not translated."),
    "too_little_copied": Rule("clean.min_copied", "The two sides share too few words, names and numbers."),
    "non_letters": Rule("clean.max_non_letters", "A side is mostly digits, punctuation and symbols."),
    "swapped": Rule("clean.language", "Each side is in the language of the other, by its script or its words."),
    "wrong_script": Rule("clean.max_wrong_script", "A side is in a script that its language is not written in."),
    "numbers": Rule("clean.numbers", "The two sides contain different numbers."),
    "wrong_language": Rule("clean.language", "A side is in another language than the config says."),
    "contaminated": Rule("clean.contamination", "A side is in a validation or test set."),
    "duplicate": Rule("clean.duplicates", "The same pair occurs earlier."),
    "folded_duplicate": Rule("clean.duplicates", "The same pair occurs earlier, ignoring case and punctuation."),
    "too_many_tokens": Rule("max_tokens", "A side has more tokens than allowed."),
}
CHANGE_RULES: dict[str, Rule] = {
    "unicode_nfc": Rule("clean.unicode_nfc", "Letters and their accents were joined into one character (Unicode NFC)."),
    "control_characters": Rule(
        "clean.control_characters", "Control characters became spaces, and invisible ones were removed from words."
    ),
    "presentation_forms": Rule(
        "clean.presentation_forms", "Ligatures, special hyphens and other forms became the usual characters."
    ),
    "html_entities": Rule("clean.html_entities", "HTML entities such as &amp; became the characters they stand for."),
    "punctuation": Rule(
        "clean.punctuation", "Quotes, dashes and the spaces around them were normalised, as Moses does."
    ),
    "white_space": Rule(
        "clean.white_space", "Tabs and runs of spaces became single spaces; spaces at the ends were removed."
    ),
}

_PUNCTUATION = string.punctuation + "„“”‘’‚«»‹›–—…¿¡、。，！？：；（）「」『』・"
_LETTERS = string.ascii_letters.encode()
# All bytes of U+0000 to U+024F in UTF-8: ASCII and the Latin letters of most of Europe.
_LATIN_BYTES = bytes(range(0xCA))
# Digits with the separators inside a number: 1,000.5, 1'000,5, 2:30.
_NUMBERS = re.compile(r"\d+(?:[.,:'’\u066b\u066c]\d+)*")
_SPACED_NUMBERS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)")
_SPACES = re.compile("[ \u00a0\u202f]")


def shortened(text: str) -> str:
    """Return the beginning of a text, short enough for an example."""
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1] + "…"


def _where_they_differ(before: str, after: str) -> tuple[str, str]:
    """Return both texts shortened; if their first difference is far from the start, begin shortly before it."""
    n_same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(before, after, strict=False)))
    start = max(n_same - EXAMPLE_CHARS // 2, 0)
    if start == 0 or max(len(before), len(after)) <= EXAMPLE_CHARS:
        return shortened(before), shortened(after)
    return shortened("…" + before[start:]), shortened("…" + after[start:])


@dataclass
class Counted:
    """A count of cases, with the first examples in the form that the report shows."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, example: Callable[[], dict[str, Any]]) -> None:
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example())


@dataclass
class Tally:
    """Counts of the pairs of one corpus, or of a part of it, that were read, removed and changed."""

    n_read: int = 0
    removed: dict[str, Counted] = field(default_factory=lambda: {rule: Counted() for rule in RULES})
    # Counts of sides, including those of removed pairs.
    changed: dict[str, Counted] = field(default_factory=lambda: {change: Counted() for change in CHANGE_RULES})

    @property
    def n_kept(self) -> int:
        return self.n_read - sum(removal.count for removal in self.removed.values())

    def remove(self, rule: str, pair: SentencePair, _note: str = "") -> None:
        """Count a pair as removed."""
        self.removed[rule].add(lambda: {"src": shortened(pair.src), "tgt": shortened(pair.tgt), "line": pair.line})

    def change(self, changes: Iterable[str], line: int, side: Literal["src", "tgt"], before: str, after: str) -> None:
        """Count a side as changed."""

        def example() -> dict[str, Any]:
            shown = _where_they_differ(before, after)
            return {"line": line, "side": side, "before": shown[0], "after": shown[1]}

        for change in changes:
            self.changed[change].add(example)

    def add(self, part: Mapping[str, Any]) -> None:
        """Add the tally of a later part of the same corpus, given as its `as_json`."""
        self.n_read += part["n_read"]
        for counts, later in ((self.removed, part["removed"]), (self.changed, part["changed"])):
            for kind, found in later.items():
                counts[kind].count += found["count"]
                counts[kind].examples = (counts[kind].examples + found["examples"])[:MAX_EXAMPLES]

    def as_json(self) -> dict[str, Any]:
        removed, changed = (
            {kind: asdict(found) for kind, found in counts.items() if found.count}
            for counts in (self.removed, self.changed)
        )
        return {"n_read": self.n_read, "removed": removed, "changed": changed}


class Cleaner:
    """A cleaner for the pairs of one corpus: it normalises them, keeps the good ones, and counts the others in a tally.

    Raises:
        ConfigError: a rule needs a package that is not installed, or does not know a language.
    """

    def __init__(self, config: CleanConfig, src_lang: str, tgt_lang: str, tally: Tally) -> None:
        self.config = config
        self.src_lang = src_lang
        self.tgt_lang = tgt_lang
        self.tally = tally
        self._src, self._tgt = Normaliser(config, src_lang), Normaliser(config, tgt_lang)
        self._are_latin = all("Latin" in (expected_scripts(lang) or ()) for lang in (src_lang, tgt_lang))
        self._split = str.split if self._are_latin else units_of
        self._languages = LanguageIdentifier((src_lang, tgt_lang)) if config.language else None

    def clean(self, chunk: Chunk) -> list[SentencePair]:
        """Return the pairs that are kept, both sides normalised, in order."""
        src_changes, tgt_changes, why_removed = self._src.changes, self._tgt.changes, self._why_removed
        most_chars = NORMALISED_CHARS * self.config.max_chars
        kept = []
        for src_text, tgt_text, line in zip(*chunk, strict=True):
            if len(src_text) > most_chars or len(tgt_text) > most_chars:
                pair = SentencePair(" ".join(src_text.split()), " ".join(tgt_text.split()), line)
                self.tally.remove("too_long", pair)
                continue
            src_after, changes_of_src = src_changes(src_text)
            tgt_after, changes_of_tgt = tgt_changes(tgt_text)
            if changes_of_src or changes_of_tgt:
                self.tally.change(changes_of_src, line, "src", src_text, src_after)
                self.tally.change(changes_of_tgt, line, "tgt", tgt_text, tgt_after)
            pair = SentencePair(src_after, tgt_after, line)
            rule = why_removed(src_after, tgt_after)
            if rule is None:
                kept.append(pair)
            else:
                self.tally.remove(rule, pair)
        self.tally.n_read += len(chunk.src)
        return kept

    def _why_removed(self, src: str, tgt: str) -> str | None:
        config = self.config
        if not src or not tgt or src.isspace() or tgt.isspace():
            return "empty"
        n_src, n_tgt = len(src), len(tgt)
        if n_src > config.max_chars or n_tgt > config.max_chars:
            return "too_long"
        src_bytes, tgt_bytes = src.encode(), tgt.encode()
        # Bytes, because a Chinese character carries about as much information as three Latin letters.
        n_src_bytes, n_tgt_bytes = len(src_bytes) + RATIO_SLACK_BYTES, len(tgt_bytes) + RATIO_SLACK_BYTES
        ratio = config.max_length_ratio
        if ratio is not None and (n_src_bytes > ratio * n_tgt_bytes or n_tgt_bytes > ratio * n_src_bytes):
            return "length_ratio"
        if config.max_copied is not None and _is_copied(src, tgt, config.max_copied, self._split):
            return "copied"
        if config.min_copied is not None:
            src_words, tgt_words = _words(src, self._split), _words(tgt, self._split)
            n_longer = max(n_words(" ".join(words)) for words in (src_words, tgt_words))
            if _common_fraction(src_words, tgt_words, n_longer) < config.min_copied:
                return "too_little_copied"
        # Without its ASCII letters, a text is short, and nearly always shows that the slower checks are not needed.
        src_rest, tgt_rest = src_bytes.translate(None, _LETTERS), tgt_bytes.translate(None, _LETTERS)
        most = config.max_non_letters
        if most is not None and (
            (len(src_rest) > most * n_src and _non_letters_fraction(src) > most)
            or (len(tgt_rest) > most * n_tgt and _non_letters_fraction(tgt) > most)
        ):
            return "non_letters"
        if config.max_wrong_script is not None and not (
            self._are_latin
            and not src_rest.translate(None, _LATIN_BYTES)
            and not tgt_rest.translate(None, _LATIN_BYTES)
        ):
            rule = self._wrong_scripts(src, tgt, config.max_wrong_script)
            if rule is not None:
                return rule
        if config.numbers and not _same_numbers(src, tgt):
            return "numbers"
        return None if self._languages is None else self._wrong_languages(self._languages, src, tgt)

    def _wrong_scripts(self, src: str, tgt: str, most: float) -> str | None:
        src_is_wrong = wrong_script_fraction(src, self.src_lang, MIN_SCRIPT_LETTERS) > most
        tgt_is_wrong = wrong_script_fraction(tgt, self.tgt_lang, MIN_SCRIPT_LETTERS) > most
        if not (src_is_wrong or tgt_is_wrong):
            return None
        swapped = (wrong_script_fraction(src, self.tgt_lang), wrong_script_fraction(tgt, self.src_lang))
        return "swapped" if src_is_wrong and tgt_is_wrong and max(swapped) <= most else "wrong_script"

    def _wrong_languages(self, languages: LanguageIdentifier, src: str, tgt: str) -> str | None:
        of_src = languages.other_language(src, self.src_lang)
        of_tgt = languages.other_language(tgt, self.tgt_lang)
        if of_src is None and of_tgt is None:
            return None
        is_swapped = languages.is_in(of_src, self.tgt_lang) and languages.is_in(of_tgt, self.src_lang)
        return "swapped" if is_swapped else "wrong_language"


def removed_text(removed: Mapping[str, Counted]) -> str:
    """Return a text such as `8 empty, 2 length_ratio`."""
    return ", ".join(f"{found.count:,} {rule}" for rule, found in removed.items() if found.count) or "none"


def _is_copied(src: str, tgt: str, most: float, split: Callable[[str], list[str]]) -> bool:
    """Return whether more than this fraction of the words of the longer side are on both sides.

    Args:
        split: splits a text into words; in scripts without spaces into characters.
    """
    folded_src, folded_tgt = src.casefold(), tgt.casefold()
    words = folded_src.split()
    # A few missing words decide the question, for most pairs already here.
    n_may_miss = (1 - most) * len(words)
    for word in words:
        if word not in folded_tgt and len(stripped := word.strip(_PUNCTUATION)) > 1 and stripped not in folded_tgt:
            n_may_miss -= 1
            if n_may_miss < 0:
                return False
    src_words, tgt_words = _words_with_letters(split(folded_src)), _words_with_letters(split(folded_tgt))
    if max(len(src_words), len(tgt_words)) < MIN_COPIED_WORDS or max(n_words(src), n_words(tgt)) < MIN_COPIED_WORDS:
        return False
    return _common_fraction(src_words, tgt_words) > most and _is_prose(split(src)) and _is_prose(split(tgt))


def _is_prose(words: Sequence[str]) -> bool:
    """Return whether enough words consist of lower-case letters only, apart from punctuation at their end."""
    n_plain = sum(word.rstrip(".!?").isalpha() and word == word.lower() for word in words)
    return n_plain >= MIN_PLAIN_WORDS and n_plain >= MIN_PLAIN_FRACTION * len(words)


def _words_with_letters(words: Sequence[str]) -> list[str]:
    return [stripped for word in words if (stripped := word.strip(_PUNCTUATION)) and any(map(str.isalpha, stripped))]


def _words(text: str, split: Callable[[str], list[str]]) -> list[str]:
    """Return the words and numbers of a text, case-folded, without the punctuation around them."""
    return [stripped for word in split(text.casefold()) if (stripped := word.strip(_PUNCTUATION))]


def _common_fraction(src_words: Sequence[str], tgt_words: Sequence[str], n_longer: int | None = None) -> float:
    """Return the number of words that both sides share, repetitions counted, over the words of the longer side.

    Two sides without words give 1.

    Args:
        n_longer: the words of the longer side, if they are not counted by characters.
    """
    n_longer = max(len(src_words), len(tgt_words)) if n_longer is None else n_longer
    return sum((Counter(src_words) & Counter(tgt_words)).values()) / n_longer if n_longer else 1.0


def _non_letters_fraction(text: str) -> float:
    """Return the fraction of characters, without spaces, that are not letters; 0 for text too short to judge."""
    n_chars = sum(map(len, text.split()))
    return 1 - n_letters_and_marks(text) / n_chars if n_chars >= MIN_NON_LETTERS_CHARS else 0.0


def _same_numbers(src: str, tgt: str) -> bool:
    """Return whether both sides have the same numbers, whatever separators they use for thousands and decimals."""
    if _numbers(src) == _numbers(tgt):
        return True
    return _numbers(_SPACED_NUMBERS.sub(_joined, src)) == _numbers(_SPACED_NUMBERS.sub(_joined, tgt))


def _joined(number: re.Match[str]) -> str:
    return _SPACES.sub("", number[0])


def _numbers(text: str) -> list[str]:
    """Return the numbers of a text, sorted, each as its digits without separators and leading zeros."""
    return sorted(digits_of(number).lstrip("0") for number in _NUMBERS.findall(text))


def digits_of(text: str) -> str:
    """Return the decimal digits of a text in any script, each as 0 to 9."""
    digits = "".join(filter(str.isdecimal, text))
    return digits if digits.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in digits)
