"""Sentence boundaries in a line, and how many sentences and tokens the lines that a model was trained on have."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sentencex import segment

from mt.text.corpus import ParallelIds
from mt.text.languages import base_language
from mt.text.tokenizer import Tokenizer

# sentencex takes quadratic time in the worst case (100,000 unclosed quotes take 4 s), so it gets a window at a time.
_WINDOW_CHARS = 2_000
# sentencex 1.0.32 panics at some white space of more than one byte.
_WHITE_SPACE = re.compile(r"[\s\x00-\x1f]")
_KHMER_STOPS = str.maketrans("។៕", "!!")  # which sentencex does not know
CLOSERS = "\"'”’“‘»«›‹)]}」』）】》〉〕］｝"
_UNSPACED_STOPS = tuple("。！？｡")  # of scripts that put no space after them
UNMARKED_ENDS = frozenset({"th", "lo"})  # languages that put no mark at the end of a sentence
# Not the end of a sentence: an initial (M. Dupont), an ordinal or the number of an item (der 2. Weltkrieg).
_ABBREVIATED = re.compile(r"(?:^|[\s(\[“„«\"'])(?:[^\W\d_]|\d{1,2})\.$")

# A sentence count is usual if at least this fraction of the lines of an epoch has as many or more sentences.
USUAL_FRACTION = 0.05
USUAL_LENGTH_QUANTILE = 0.999
_MOST_COUNTED, _MOST_MEASURED = 5_000, 1_000_000  # lines drawn to count their sentences, and to measure their lengths


def sentence_ends(text: str, lang: str) -> list[int]:
    """Return where the sentences of a text end, each with the white space after it; the last end is `len(text)`.

    Boundaries are those of sentencex, except where the next sentence would not begin after white space (ASP.NET),
    after an initial or a number of one or two digits, and before a small letter in text that has capitals.

    Args:
        lang: language code; sentencex uses general rules for languages that it does not know.
    """
    has_capitals = not text.islower()
    code, plain = base_language(lang), _WHITE_SPACE.sub(" ", text).translate(_KHMER_STOPS)
    ends: list[int] = []
    start = last = 0
    while start < len(text):
        lengths = [len(sentence) for sentence in segment(code, plain[start : start + _WINDOW_CHARS])]
        if start + _WINDOW_CHARS < len(text) and len(lengths) > 1:
            lengths.pop()  # its end is that of the window
        for length in lengths:
            start += length
            if start == len(text) or (_is_end(plain, last, start) and not (has_capitals and text[start].islower())):
                ends.append(start)
                last = start
    return ends


def _is_end(text: str, start: int, end: int) -> bool:
    """Return whether text that begins at `start` may be a sentence up to `end`."""
    sentence = text[max(start, end - 50) : end].rstrip()
    bare = sentence.rstrip(CLOSERS)
    if not sentence or not unicodedata.category(sentence[-1]).startswith("P") or _ABBREVIATED.search(sentence):
        return False
    return text[end - 1] == " " or bare.endswith(_UNSPACED_STOPS)


def count_sentences(text: str, lang: str) -> int:
    """Return the number of sentences of a text that is not blank."""
    return len(sentence_ends(text, lang))


@dataclass(frozen=True)
class UsualLines:
    """The lengths that most lines of a model's training text do not exceed; longer lines are translated in parts."""

    sentences: int
    src_tokens: int  # end of sentence included

    KEY = "usual_lines"  # in the manifest of a model

    @classmethod
    def of_corpus(
        cls,
        train: ParallelIds,
        sizes: Sequence[int],
        weights: Sequence[float],
        tokenizer: Tokenizer,
        src_langs: Sequence[str],
    ) -> Self:
        """Return the figures of a prepared corpus, from lines that are evenly spread over an epoch.

        Args:
            sizes: number of pairs of each training corpus; the pairs of a corpus are consecutive.
            weights: copies of each of its pairs in an epoch.
            src_langs: its source language.
        """
        first_pairs, first_copies = (np.cumsum([0, *sums]) for sums in (sizes, np.multiply(sizes, weights)))

        def drawn(most: int) -> npt.NDArray[np.int64]:
            n = min(len(train), most)
            middles = (np.arange(n) + 0.5) / n * first_copies[-1]
            return np.asarray(np.interp(middles, first_copies, first_pairs), np.int64)

        lines = drawn(_MOST_COUNTED)
        langs = [src_langs[corpus] for corpus in np.searchsorted(first_pairs[1:], lines, side="right")]
        texts = tokenizer.decode_batch(train.src[i] for i in lines)
        counts = sorted(map(count_sentences, texts, langs))
        lengths = train.src.lengths[drawn(_MOST_MEASURED)]
        return cls(
            max(counts[-math.ceil(USUAL_FRACTION * len(counts))], 1),
            int(np.quantile(lengths, USUAL_LENGTH_QUANTILE, method="inverted_cdf")),
        )

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Self | None:
        """Return the figures in the manifest of a model; None if an earlier version of mt has trained it."""
        match manifest.get(cls.KEY):
            case {"sentences": int(sentences), "src_tokens": int(src_tokens)}:
                return cls(max(sentences, 1), max(src_tokens, 1))
        return None
