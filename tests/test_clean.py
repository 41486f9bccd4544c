"""Text is changed once, by one idempotent function; every removed pair has a reason."""

import unicodedata

import pytest

from mt.config import CleanConfig
from mt.text.clean import Cleaner, normalise, removed_text
from mt.text.sources import SentencePair


def cleaner(**settings: float) -> Cleaner:
    return Cleaner(CleanConfig(**settings))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two   words \n", "two words"),
        ("no\u00a0break\u2028line\u2029paragraph\x85next\tTab", "no break line paragraph next Tab"),
        ("bell\x07 nul\x00 del\x7f c1\x9b.", "bell nul del c1 ."),
        ("\ufeffbyte order mark, zero\u200bwidth", "byte order mark, zero width"),
        ("\u2581\u2581piece", "piece"),
        ("u\u0308ber", "über"),
        ("m² ﬁ ½ ￦", "m² ﬁ ½ ￦"),  # what NFKC would have changed
        ("می\u200cخواهم 👩\u200d👩", "می\u200cخواهم 👩\u200d👩"),
        ("half \ud800 a pair", "half \ufffd a pair"),
        (" \x00\u2003\t", ""),
        ("", ""),
    ],
)
def test_normalising_is_nfc_with_single_spaces(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_normalising_twice_changes_nothing_more() -> None:
    every_character = "".join(map(chr, range(0x30000)))
    pieces = [every_character[i : i + 7] for i in range(0, len(every_character), 7)]
    with_marks = [f" {chr(code)}\u0301\u0323{chr(code)}\u200b" for code in range(0x3000)]
    for text in pieces + with_marks:
        once = normalise(text)
        assert normalise(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert not set(once) & set("\t\n\r\u2028")


def test_a_pair_with_an_empty_side_is_removed() -> None:
    clean = cleaner()
    assert clean.clean(SentencePair("\u00a0", "Hund", 1)) is None
    assert clean.clean(SentencePair("dog", "", 2)) is None
    assert removed_text(clean.removals) == "2 empty"


def test_a_kept_pair_comes_back_normalised_with_its_line() -> None:
    assert cleaner().clean(SentencePair(" a  dog", "ein\tHund", 7)) == SentencePair("a dog", "ein Hund", 7)


def test_the_longest_allowed_side_stays_and_one_more_character_goes() -> None:
    clean = cleaner(max_chars=20)
    assert clean.clean(SentencePair("x" * 20, "y" * 20, 1)) is not None
    assert clean.clean(SentencePair("x" * 21, "y" * 20, 2)) is None
    assert clean.clean(SentencePair("x" * 20, "y" * 21, 3)) is None
    assert removed_text(clean.removals) == "2 too_long"


def test_the_length_ratio_counts_bytes_with_sixteen_added_to_both_sides() -> None:
    clean = cleaner(max_length_ratio=4)
    assert clean.clean(SentencePair("x" * 4, "y" * 64, 1)) is not None  # (64 + 16) / (4 + 16) = 4
    assert clean.clean(SentencePair("x" * 4, "y" * 65, 2)) is None
    assert clean.clean(SentencePair("ü" * 33, "xxxx", 3)) is None  # (66 + 16) / 20 > 4
    assert removed_text(clean.removals) == "2 length_ratio"


def test_three_shortened_examples_are_kept_for_each_reason() -> None:
    clean = cleaner(max_chars=300)
    for line in range(1, 6):
        clean.clean(SentencePair("x" * 301, "short", line))
    clean.clean(SentencePair("", "Hund", 6))
    assert (clean.n_read, clean.n_kept) == (6, 0)
    too_long = clean.removals["too_long"].as_json()
    assert too_long["count"] == 5
    assert [example["line"] for example in too_long["examples"]] == [1, 2, 3]
    assert too_long["examples"][0]["src"] == "x" * 199 + "…"
    assert removed_text(clean.removals) == "5 too_long, 1 empty"
    assert removed_text({}) == "none"
