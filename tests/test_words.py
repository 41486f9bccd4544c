from __future__ import annotations

import pytest

from mt.decode.words import pharaoh, word_numbers, word_pairs


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


def test_pairs_of_tokens_become_pairs_of_words():
    # The last source token and the last target token are the ends of their sentences.
    token_pairs = [(1, 0), (0, 0), (1, 1), (3, 2), (2, 3)]
    assert word_pairs(token_pairs, [0, 0, 1], [0, 1, 1]) == [(0, 0), (0, 1)]
    assert pharaoh([(0, 0), (2, 1)]) == "0-0 2-1"
    assert pharaoh([]) == ""
