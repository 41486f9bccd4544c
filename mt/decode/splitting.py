"""Splitting lines that are longer than a model has seen in training, and joining the translations of their parts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

_CLOSERS = "\"'”’“‘»«›‹)\\]}」』）】》〉〕］｝"
_FULL_STOPS = "。！？｡"  # of scripts that put no space after them
_COMMAS = "，、；："
_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"

# Where a sentence ends: not after a single letter, as in `z. B.` and `J. Smith`. A clause also ends before a dash
# between spaces, and at a full stop before a small letter: that may be `usw.`, or a text without capitals.
_SENTENCE_ENDS = re.compile(
    rf"(?:(?<!\b\w)\.|[!?…؟۔।॥{_FULL_STOPS}])[.!?…]*[{_CLOSERS}]*(?= )"
    rf"|[{_FULL_STOPS}]+[{_CLOSERS}]*(?![ {_FULL_STOPS}{_CLOSERS}])"
)
_CLAUSE_ENDS = re.compile(
    rf"(?:[,;:،؛!?…]|(?<!\b\w)\.)[{_CLOSERS}]*(?= )|[)\]}}»”](?= )|(?= [–—-] )|[{_COMMAS}][{_CLOSERS}]*(?! )"
)
_SPACES = re.compile("(?= )")
_CJK_CHAR = re.compile(f"[{_CJK}]")

# Where to cut, best first, and the smallest allowed part as a fraction of a full one: short parts have little context.
_CUTS = ((_SENTENCE_ENDS, 0.25), (_CLAUSE_ENDS, 0.5), (_SPACES, 0.5))


@dataclass(frozen=True)
class Part:
    """A part of a line."""

    text: str
    n_words_before: int  # index in the line of its first word, or of the word that it continues
    continues_word: bool = False  # the line was cut inside a word, just before this part


def split_text(text: str, piece_ends: Sequence[int], max_pieces: int) -> list[Part]:
    """Cut a normalised line into parts of about `max_pieces` pieces at most.

    Cuts are made after the last sentence that fits, or else the last clause, the last word, the last character.
    Only the space at a cut is dropped.

    Args:
        piece_ends: for each piece of the line the number of characters up to its end. Pieces that share a character
            end with it.
    """
    parts: list[Part] = []
    start = n_words = 0
    continues_word = False
    while start < len(text):
        stop, is_inside_word = _cut(text, piece_ends, start, max_pieces)
        parts.append(Part(text[start:stop], n_words, continues_word))
        n_words += text.count(" ", start, stop)
        start, continues_word = stop, is_inside_word
        if text.startswith(" ", start):
            start += 1
            n_words += 1
    return parts


def _cut(text: str, piece_ends: Sequence[int], start: int, max_pieces: int) -> tuple[int, bool]:
    """Return where the part that begins at `start` ends, and whether that is within a word."""
    first = bisect_right(piece_ends, start)  # pieces before the part
    if len(piece_ends) - first <= max_pieces:
        return len(text), False
    last = first + max_pieces - 1
    while last > first and piece_ends[last] == piece_ends[last + 1]:  # pieces that share a character
        last -= 1
    farthest = max(piece_ends[last], start + 1)
    for pattern, fraction in _CUTS:
        nearest = piece_ends[first + max(int(fraction * max_pieces) - 1, 0)]
        # The text after a cut decides whether it is allowed: the pattern sees two more characters.
        ends = [match.end() for match in pattern.finditer(text, start + 1, farthest + 2)]
        if pattern is _SENTENCE_ENDS:  # before a small letter it may be an abbreviation
            ends = [end for end in ends if not text[end + 1 : end + 2].islower()]
        if fitting := [end for end in ends if nearest <= end <= farthest]:
            return fitting[-1], False
    if text[farthest - 1] == " ":
        return farthest - 1, False
    return farthest, not text.startswith(" ", farthest)


def join_parts(left: str, right: str, continues_word: bool) -> str:
    """Return the translations of two neighbouring parts as one text."""
    if not left or not right or continues_word or (_CJK_CHAR.match(left[-1]) and _CJK_CHAR.match(right[0])):
        return left + right
    return f"{left} {right}"
