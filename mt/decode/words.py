"""From pieces of words to words: alignments as those who use them count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WORD_START = "▁"
_SPACE_BYTES = ("<0x09>", "<0x20>")


def word_numbers(pieces: Iterable[str]) -> list[int]:
    """For each piece the number of its word, from 0; words are what spaces part.

    A space that is a piece of its own goes with the word behind it.
    """
    numbers = []
    word, is_new = -1, True
    for piece in pieces:
        content = "" if piece in _SPACE_BYTES else piece.lstrip(WORD_START)
        is_new |= content != piece
        if content and is_new:
            word, is_new = word + 1, False
        numbers.append(word + is_new)
    return [min(number, word) for number in numbers]  # a space at the end


def word_pairs(
    token_pairs: Iterable[tuple[int, int]], src_words: Sequence[int], tgt_words: Sequence[int]
) -> list[tuple[int, int]]:
    """The pairs of words that hold aligned tokens, sorted, each once; the ends of sentences are in no word."""
    return sorted({(src_words[i], tgt_words[j]) for i, j in token_pairs if i < len(src_words) and j < len(tgt_words)})


def pharaoh(pairs: Iterable[tuple[int, int]]) -> str:
    """Such as `0-0 1-2 2-1`."""
    return " ".join(f"{i}-{j}" for i, j in pairs)
