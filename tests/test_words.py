from __future__ import annotations

import pytest

from mt.decode.words import pharaoh, word_alignment, word_numbers


@pytest.mark.parametrize(
    ("pieces", "numbers"),
    [
        ("▁Ein ▁klein er ▁Hund .", [0, 1, 1, 2, 2]),
        ("▁ <0xF0> <0x9F> ▁a", [0, 0, 0, 1]),
        ("▁a ▁ ▁b", [0, 1, 1]),
        ("▁a <0x20> b", [0, 1, 1]),
        ("a b ▁c ▁", [0, 0, 1, 1]),
        ("▁", [-1]),
        ("", []),
    ],
)
def test_words_are_what_spaces_part(pieces: str, numbers: list[int]):
    assert word_numbers(pieces.split()) == numbers


def test_tokens_are_merged_into_words() -> None:
    src = ["▁Two", "▁snow", "mob", "ile", "s", "▁stand"]  # Two snowmobiles stand
    tgt = ["▁Zwei", "▁Schnee", "mobile", "▁stehen"]
    tokens = [(0, 0), (1, 1), (3, 2), (4, 2), (5, 3), (0, 3)]
    assert word_alignment(src, tgt, tokens) == [(0, 0), (0, 2), (1, 1), (2, 2)]


def test_a_first_piece_begins_a_word_whatever_it_is() -> None:
    assert word_alignment(["a", "b", "▁c"], ["<0xC3>", "<0xA4>", "▁d"], [(1, 1), (2, 2)]) == [(0, 0), (1, 1)]


def test_a_space_by_itself_belongs_to_the_word_behind_it() -> None:
    src = ["▁", "x", "▁y", "▁", "▁z", "▁"]  # x y  z
    assert word_alignment(src, ["▁a"], [(0, 0)]) == [(0, 0)]
    assert word_alignment(src, ["▁a", "▁b"], [(3, 0), (5, 1)]) == [(2, 0), (2, 1)]
    assert word_alignment(["▁"], ["▁a"], [(0, 0)]) == []


def test_pharaoh_is_source_before_target() -> None:
    assert pharaoh([(0, 0), (1, 2)]) == "0-0 1-2"
    assert pharaoh([]) == ""


def test_the_end_of_a_sentence_is_in_no_word() -> None:
    assert word_alignment(["▁a", "▁b"], ["▁a"], [(0, 0), (2, 0), (1, 1)]) == [(0, 0)]
