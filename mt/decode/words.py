"""From pieces of words to words: alignments as those who use them count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WORD_START = "▁"
_SPACE_BYTES = ("<0x09>", "<0x20>")


def word_numbers(pieces: Iterable[str]) -> list[int]:
    """Return for each piece the number of its word, from 0; words are what spaces separate.

    A space that is a piece by itself belongs to the word behind it.
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


def word_alignment(
    src_pieces: Sequence[str], tgt_pieces: Sequence[str], token_pairs: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Turn alignments of tokens into alignments of their words, without repetition and in order.

    Args:
        src_pieces: as in the vocabulary, without the end of sentence, which is in no word.
        tgt_pieces: likewise.
        token_pairs: (place in src_pieces, place in tgt_pieces).
    """
    src_words, tgt_words = word_numbers(src_pieces), word_numbers(tgt_pieces)
    pairs = {(src_words[i], tgt_words[j]) for i, j in token_pairs if i < len(src_words) and j < len(tgt_words)}
    return sorted(pair for pair in pairs if min(pair) >= 0)


def pharaoh(pairs: Iterable[tuple[int, int]]) -> str:
    """Write pairs of words as text, `0-0 1-2`: source before target."""
    return " ".join(f"{i}-{j}" for i, j in pairs)
