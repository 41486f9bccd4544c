"""Splitting lines that are longer than those of training, and joining the translations of their parts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mt.text.sentences import CLOSERS, sentence_ends

SplitSentences = Literal["auto", "always", "never"]

_CLOSERS = re.escape(CLOSERS)
_COMMAS = "，、；："
_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"

# A clause ends at punctuation, or before a dash between spaces, but not at the full stop of `z. B.` or `J. Smith`.
_CLAUSE_ENDS = re.compile(
    rf"(?:[,;:،؛!?…]|(?<!\b\w)\.)[{_CLOSERS}]*(?= )|[)\]}}»”](?= )|(?= [–—-] )|[{_COMMAS}][{_CLOSERS}]*(?! )"
)
_SPACES = re.compile("(?= )")
_CJK_CHAR = re.compile(f"[{_CJK}]")

# Where to cut if no sentence ends, best first.
_CUTS = (_CLAUSE_ENDS, _SPACES)
# The smallest allowed part as a fraction of a full one, at the end of a sentence and elsewhere: short parts have little
# context.
_SMALLEST_SENTENCES, _SMALLEST_PART = 0.25, 0.5
# White space that is not kept between two sentences: some programs take some of it for the end of a line.
_OTHER_SPACES = re.compile(r"[^\S \t\n\u3000]")


@dataclass(frozen=True)
class Part:
    """A part of a line."""

    text: str
    n_words_before: int  # index in the line of its first word, or of the word that it continues
    continues_word: bool = False  # the line was cut inside a word, just before this part
    gap: str | None = None  # white space between the sentence before it and this part; None if they are one sentence
    n_tags: int = 0  # words at its beginning that are not there in the line, but at the beginning of the line


def split_sentences(line: str, lang: str) -> list[str]:
    """Return the sentences of a line, each with the white space after it. A line feed ends a sentence too.

    White space at both ends of the line is dropped.
    """
    line = line.strip()
    ends = sorted({*sentence_ends(line, lang), *(match.end() for match in re.finditer(r"\n\s*", line))})
    return [line[start:end] for start, end in pairwise([0, *ends])]


def grouped(sentences: Sequence[str], n_tokens: Sequence[int], max_sentences: int, max_tokens: int) -> list[str]:
    """Join sentences to translate together: as many as the limits allow, and none across a line feed.

    Args:
        n_tokens: of each sentence. A sentence over the limit is its own group.
    """
    groups: list[list[str]] = []
    n = 0
    for sentence, length in zip(sentences, n_tokens, strict=True):
        n += length
        if not groups or "\n" in groups[-1][-1] or len(groups[-1]) == max_sentences or n > max_tokens:
            groups.append([])
            n = length
        groups[-1].append(sentence)
    return ["".join(group) for group in groups]


def gap_after(sentence: str) -> str:
    """Return the white space after a sentence as it is kept between two translations."""
    space = sentence[len(sentence.rstrip()) :]
    return _OTHER_SPACES.sub("", space.replace("\r\n", "\n")) or (space and " ")


def split_text(text: str, piece_ends: Sequence[int], max_pieces: int, lang: str = "") -> list[Part]:
    """Cut a normalised line into parts of about `max_pieces` pieces at most.

    Cuts are made after the last sentence that fits, or else the last clause, the last word, the last character.
    Only the space at a cut is dropped.

    Args:
        piece_ends: for each piece of the line the number of characters up to its end. Pieces that share a character
            end with it.
        lang: language code, for the ends of sentences.
    """
    parts: list[Part] = []
    sentences = [end - (text[end - 1] == " ") for end in sentence_ends(text, lang)]
    start = n_words = 0
    continues_word = False
    while start < len(text):
        stop, is_inside_word = _cut(text, sentences, piece_ends, start, max_pieces)
        parts.append(Part(text[start:stop], n_words, continues_word))
        n_words += text.count(" ", start, stop)
        start, continues_word = stop, is_inside_word
        if text.startswith(" ", start):
            start += 1
            n_words += 1
    return parts


def _cut(
    text: str, sentences: Sequence[int], piece_ends: Sequence[int], start: int, max_pieces: int
) -> tuple[int, bool]:
    """Return where the part that begins at `start` ends, and whether that is within a word."""
    first = bisect_right(piece_ends, start)  # pieces before the part
    if len(piece_ends) - first <= max_pieces:
        return len(text), False
    last = first + max_pieces - 1
    while last > first and piece_ends[last] == piece_ends[last + 1]:  # pieces that share a character
        last -= 1
    farthest = max(piece_ends[last], start + 1)
    nearest = piece_ends[first + max(int(_SMALLEST_SENTENCES * max_pieces) - 1, 0)]
    last_sentence = bisect_right(sentences, farthest) - 1
    if last_sentence >= 0 and sentences[last_sentence] >= max(nearest, start + 1):
        return sentences[last_sentence], False
    nearest = piece_ends[first + max(int(_SMALLEST_PART * max_pieces) - 1, 0)]
    for pattern in _CUTS:
        # The text after a cut decides whether it is allowed: the pattern sees two more characters.
        ends = [match.end() for match in pattern.finditer(text, start + 1, farthest + 2)]
        if fitting := [end for end in ends if nearest <= end <= farthest]:
            return fitting[-1], False
    if text[farthest - 1] == " ":
        return farthest - 1, False
    return farthest, not text.startswith(" ", farthest)


def join_parts(left: str, right: str, continues_word: bool, gap: str | None = None) -> str:
    """Return the translations of two neighbouring parts as one text.

    Args:
        gap: see `Part`. A script without spaces needs none where the source has a single space or none.
    """
    if left and right and gap not in (None, "", " "):
        return f"{left}{gap}{right}"
    if not left or not right or continues_word or (_CJK_CHAR.match(left[-1]) and _CJK_CHAR.match(right[0])):
        return left + right
    return f"{left} {right}"
