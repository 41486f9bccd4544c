"""Cleaning: each removed pair has a reason, and each change of text is counted."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from typing import Any, get_args

import pytest

from mt.config.settings import CleanConfig, DataConfig
from mt.text.clean import CHANGE_RULES, RULES, Cleaner, Counted, Tally, removed_text
from mt.text.corpora import Chunk, SentencePair
from mt.text.normalise import Change, Normaliser

ENGLISH = "The committee will discuss the proposal next month."
GERMAN = "Der Ausschuss wird den Vorschlag im nächsten Monat erörtern."


def cleaner(src_lang: str = "en", tgt_lang: str = "de", **settings: Any) -> Cleaner:
    return Cleaner(CleanConfig(**settings), src_lang, tgt_lang, Tally())


def cleaned(clean: Cleaner, *pairs: tuple[str, str], first: int = 1) -> list[SentencePair]:
    src, tgt = map(list, zip(*pairs, strict=True))
    return clean.clean(Chunk(src, tgt, range(first, first + len(pairs))))


def counts(found: dict[str, Counted]) -> dict[str, int]:
    return {name: counted.count for name, counted in found.items() if counted.count}


def reason(src: str, tgt: str, src_lang: str = "en", tgt_lang: str = "de", **settings: Any) -> str | None:
    """Return why a pair is removed."""
    clean = cleaner(src_lang, tgt_lang, **settings)
    kept = cleaned(clean, (src, tgt))
    assert len(kept) + len(counts(clean.tally.removed)) == 1
    return next(iter(counts(clean.tally.removed)), None)


def test_a_pair_with_an_empty_side_is_removed() -> None:
    assert reason("\u00a0", "Hund") == "empty"
    assert reason("dog", "") == "empty"
    assert reason("dog", " \u00a0 ", white_space=False) == "empty"


def test_a_kept_pair_is_normalised_and_has_its_line_number() -> None:
    assert cleaned(cleaner(), (" a  dog", "ein\tHund"), first=7) == [SentencePair("a dog", "ein Hund", 7)]


def test_sides_up_to_the_maximum_length_are_kept() -> None:
    assert reason("x" * 20, "y" * 20, max_chars=20) is None
    assert reason("x" * 21, "y" * 20, max_chars=20) == "too_long"
    assert reason("x" * 20, "y" * 21, max_chars=20) == "too_long"


def test_a_side_that_is_far_too_long_is_removed_without_being_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    normalised: list[int] = []
    changes = Normaliser.changes

    def counted(normaliser: Normaliser, text: str) -> Any:
        normalised.append(len(text))
        return changes(normaliser, text[:1_000])

    monkeypatch.setattr(Normaliser, "changes", counted)
    clean = cleaner(max_chars=100)
    assert not cleaned(clean, ("a" + "\u0323\u0301" * 500_000, "kurz"))
    assert normalised == []
    assert not cleaned(clean, ("b" + "\u0301" * 500, "kurz"))
    assert normalised == [501, 4]
    assert clean.tally.as_json()["removed"]["too_long"]["count"] == 2
    assert clean.tally.n_kept == 0


def test_the_length_ratio_counts_bytes_with_sixteen_added_to_both_sides() -> None:
    assert reason("x" * 4, "y" * 64) is None  # (64 + 16) / (4 + 16) = 4
    assert reason("x" * 4, "y" * 65) == "length_ratio"
    assert reason("ü" * 33, "xxxx") == "length_ratio"  # (66 + 16) / 20 > 4
    assert reason("ü" * 33, "xxxx", max_length_ratio=None) is None


@pytest.mark.parametrize(
    ("src", "tgt", "expected"),
    [
        (ENGLISH, ENGLISH, "copied"),
        (ENGLISH, "– THE COMMITTEE will discuss the proposal, next month!", "copied"),
        (ENGLISH, GERMAN, None),
        ("Click the button", "Click the button", None),  # three words
        ("Click the small button", "Click the small button", "copied"),
        (
            "int, uint, char, long, ulong, float or double",
            "int, uint, char, long, ulong, float or double",
            None,
        ),  # not prose
        ("Windows Azure Active Directory", "Windows Azure Active Directory", None),  # four words
        ("1990 1995 2000 2005 2010 2015", "1990 1995 2000 2005 2010 2015", None),  # no words
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight nine zehn", None),
        ("a b c d e f g h i j k", "a b c d e f g h i j zehn", "copied"),  # 10 of 11
        ("a b c d e f g h i j k", "a b c d e f g h i j zehn elf", None),  # 10 of 12
        ("b a b a b a", "a b a b a b a b", None),  # 6 of 8: repetitions count
    ],
)
def test_more_than_nine_of_ten_words_in_common_is_a_copy(src: str, tgt: str, expected: str | None) -> None:
    assert reason(src, tgt, max_non_letters=None) == expected
    assert reason(tgt, src, max_non_letters=None) == expected
    assert reason(src, tgt, max_non_letters=None, max_copied=None) is None


def test_the_minimum_fraction_of_common_words_counts_numbers_too() -> None:
    assert reason("Press F5 in 10 seconds", "Drücken Sie F5 in 10 Sekunden", min_copied=0.5) is None  # 3 of 6
    assert reason("Press F5 in 10 seconds", "Drücken Sie F5 in 9 Sekunden", min_copied=0.5) == "too_little_copied"


def test_a_side_of_digits_and_signs_is_removed_unless_it_is_short() -> None:
    assert reason("12345678 ab", "zwei Wörter") is None  # 8 of 10
    assert reason("123456789 ab", "zwei Wörter") == "non_letters"  # 9 of 11
    assert reason("zwei Wörter", "★★★★★★★ →") == "non_letters"
    assert reason("28.8.09", "28. August 2009") is None
    assert reason("मैं यहाँ हूँ।", "I am here now.", "hi", "en") is None  # Python does not count vowel signs as letters
    assert reason("123456789 ab", "zwei Wörter", max_non_letters=None) is None


def test_a_side_in_the_wrong_script_is_removed() -> None:
    russian, georgian = "Комитет обсудит это.", "კომიტეტი განიხილავს."
    assert reason(ENGLISH, russian, "en", "ru") is None
    assert reason(ENGLISH, georgian, "en", "ru") == "wrong_script"
    assert reason(russian, ENGLISH, "en", "ru") == "swapped"
    assert reason(ENGLISH, "Windows 10", "en", "ru") is None  # a name
    assert reason(ENGLISH, "Комитет Windows Server.", "en", "ru") == "wrong_script"  # 13 of 20
    assert reason(ENGLISH, "Комитет по Windows.", "en", "ru") is None  # 7 of 16
    assert reason(russian, ENGLISH, "en", "ru", max_wrong_script=None) is None


@pytest.mark.parametrize(
    ("src", "tgt", "expected"),
    [
        ("It costs 1,000.50 in 2019", "Es kostet 2019 1.000,50", None),
        ("12 000 people", "12.000 Leute", None),
        ("in 2019 300 people", "2019 300 Leute", None),
        ("Chapter 05", "Kapitel 5", None),
        ("at 2:30", "um 2.30 Uhr", None),
        ("٣ books", "3 Bücher", None),
        ("3 books", "4 Bücher", "numbers"),
        ("3 books", "Bücher", "numbers"),
        ("3 and 3", "3 und", "numbers"),
        ("no books", "keine Bücher", None),
    ],
)
def test_numbers_are_compared_by_value_not_by_format(src: str, tgt: str, expected: str | None) -> None:
    assert reason(src, tgt, numbers=True) == expected
    assert reason(src, tgt) is None


def test_languages_are_checked_only_if_the_setting_is_on() -> None:
    french = "La commission examinera la proposition le mois prochain."
    clean = cleaner(language=True)
    pairs = [(ENGLISH, GERMAN), (GERMAN, ENGLISH), (ENGLISH, french), (french, ENGLISH), (ENGLISH, "Azure Backup")]
    assert [pair.line for pair in cleaned(clean, *pairs)] == [1, 5]
    assert removed_text(clean.tally.removed) == "1 swapped, 2 wrong_language"
    assert reason(GERMAN, ENGLISH) is None


def test_three_shortened_examples_are_kept_for_each_reason() -> None:
    clean = cleaner(max_chars=300)
    cleaned(clean, *[("x" * 301, "short")] * 5, ("", "Hund"))
    assert (clean.tally.n_read, clean.tally.n_kept) == (6, 0)
    too_long = clean.tally.removed["too_long"]
    assert too_long.count == 5
    assert [example["line"] for example in too_long.examples] == [1, 2, 3]
    assert too_long.examples[0]["src"] == "x" * 199 + "…"
    assert removed_text(clean.tally.removed) == "1 empty, 5 too_long"
    assert removed_text({}) == "none"


def test_changes_are_counted_per_side_and_examples_show_their_place() -> None:
    clean = cleaner()
    cleaned(clean, ("R&amp;D ", "as it was"), ("as it was", "w" * 250 + "\ttab"), first=4)
    assert counts(clean.tally.changed) == {"html_entities": 1, "white_space": 2}
    first, second = clean.tally.changed["white_space"].examples
    assert tuple(first.values()) == (4, "src", "R&amp;D ", "R&D")
    assert tuple(second.values()) == (5, "tgt", "…" + "w" * 100 + "\ttab", "…" + "w" * 100 + " tab")


def test_the_tallies_of_parts_add_up_to_the_tally_of_the_whole() -> None:
    pairs = [
        ("", "leer"),
        ("a &lt; b", "a < b"),
        ("x" * 50, "y"),
        (ENGLISH, ENGLISH),
        *[("", "leer")] * 2,
        ("c  d", "c d"),
    ]
    whole, first, second = (cleaner(max_length_ratio=2) for _ in range(3))
    assert cleaned(whole, *pairs) == cleaned(first, *pairs[:3]) + cleaned(second, *pairs[3:], first=4)
    total = Tally()
    for part in (first.tally, second.tally):
        total.add(json.loads(json.dumps(part.as_json())))
    assert total == whole.tally
    assert (total.n_read, total.n_kept) == (7, 2)
    assert [pair["line"] for pair in total.removed["empty"].examples] == [1, 5, 6]


def test_a_cleaner_can_be_sent_to_other_processes() -> None:
    clean = pickle.loads(pickle.dumps(cleaner(language=True, punctuation=True)))
    assert not cleaned(clean, (GERMAN, ENGLISH))
    assert removed_text(clean.tally.removed) == "1 swapped"


def test_every_reason_and_change_is_explained_and_names_a_setting() -> None:
    assert tuple(CHANGE_RULES) == get_args(Change)
    settings = {f"clean.{setting.name}" for setting in fields(CleanConfig)} | {
        field.name for field in fields(DataConfig)
    }
    assert {rule.setting for rule in [*RULES.values(), *CHANGE_RULES.values()]} <= settings


@pytest.mark.parametrize(
    ("src", "tgt", "expected"),
    [
        ("明日は公園で友達と会います。", "明日は公園で友達と会います。", "copied"),
        ("明日は公園で友達と会います。", "明日は公園で友達と遊びたい。", None),
        ("東京大学", "東京大学", None),  # a name
    ],
)
def test_copies_without_spaces_are_found(src: str, tgt: str, expected: str | None) -> None:
    assert reason(src, tgt, "ja", "zh", max_wrong_script=None) == expected


def test_names_inside_text_without_spaces_are_common_words() -> None:
    src, tgt = "Press F5 to start Windows", "F5キーを押してWindowsを起動"
    assert reason(src, tgt, "en", "ja", min_copied=0.3, max_wrong_script=None) is None  # 2 of 6
    assert (
        reason(src, tgt.replace("F5", "F6"), "en", "ja", min_copied=0.3, max_wrong_script=None) == "too_little_copied"
    )
