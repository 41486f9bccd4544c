"""Random segmentations of words, with the pieces of a tokenizer: BPE-dropout and unigram sampling.

SentencePiece can sample, too, but from some version on its generator differs in each process, whatever the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from random import Random

import numpy as np

from mt.text.corpus import FlatIds
from mt.text.tokenizer import WORD_START, Piece, Tokenizer

KINDS = ("bpe", "unigram")  # the kinds of tokenizers that have several segmentations for a text
MOST_VARIANTS = 32  # of a word that are drawn for one call; its further occurrences take one of these


class SubwordSampler:
    """Random segmentations with the pieces of a tokenizer.

    A word is a piece that starts a word, and the pieces that continue it. Words with special pieces, bytes or symbols
    keep their segmentation.

    Args:
        alpha: for bpe, the probability that a merge is left out (Provilkov et al. 2020); for unigram, the exponent of
            the probabilities of segmentations: small ones give more pieces (Kudo 2018, with all segmentations).
    """

    def __init__(self, tokenizer: Tokenizer, alpha: float) -> None:
        pieces = tokenizer.proto.pieces
        self._draw = {"bpe": self._merged, "unigram": self._divided}[tokenizer.kind]
        self._alpha, self._texts = alpha, [piece.piece for piece in pieces]
        self._ids = {piece.piece: i for i, piece in enumerate(pieces) if piece.type == Piece.NORMAL}
        self._scores = {piece.piece: piece.score for piece in pieces if piece.type == Piece.NORMAL}
        self._longest = max(map(len, self._ids), default=0)
        # Special pieces are words of one piece each, so that the ends of sentences are not part of a word.
        self._starts = np.array([p.piece.startswith(WORD_START) or p.type == Piece.CONTROL for p in pieces])

    def sample(self, sentences: FlatIds, seed: int) -> FlatIds:
        """Return other segmentations of the same text. They depend only on the sentences and the seed."""
        ids, lengths = sentences
        ends = np.cumsum(lengths)
        is_start = self._starts[ids]
        is_start[ends[:-1]] = is_start[:1] = True
        starts = np.flatnonzero(is_start)
        occurrences: dict[tuple[int, ...], list[int]] = {}
        flat = ids.tolist()
        for word, (start, end) in enumerate(zip(starts.tolist(), [*starts[1:].tolist(), len(flat)], strict=True)):
            occurrences.setdefault(tuple(flat[start:end]), []).append(word)
        random = Random(seed)
        chosen: list[Sequence[int]] = [()] * len(starts)
        for plain, words in occurrences.items():
            variants = self._variants(plain, min(len(words), MOST_VARIANTS), random)
            for n, word in enumerate(words):
                chosen[word] = variants[n if n < len(variants) else int(random.random() * len(variants))]
        n_pieces = np.fromiter(map(len, chosen), np.int64, count=len(chosen))
        first_words = np.searchsorted(starts, ends - lengths)
        new = np.fromiter(chain.from_iterable(chosen), ids.dtype, count=int(n_pieces.sum()))
        return new, np.add.reduceat(n_pieces, first_words)

    def _variants(self, plain: tuple[int, ...], n: int, random: Random) -> list[Sequence[int]]:
        text = "".join(self._texts[i] for i in plain)
        if len(text) < 2 or any(self._texts[i] not in self._ids for i in plain):
            return [plain]
        drawn = self._draw(text, n, random)
        return [
            [self._ids[piece] for piece in pieces] if all(p in self._ids for p in pieces) else plain for pieces in drawn
        ]

    def _merged(self, word: str, n: int, random: Random) -> list[list[str]]:
        """Merge characters as BPE does, but leave out each possible merge with a probability, at each step."""
        drawn = []
        for _ in range(n):
            symbols = [*word]
            while True:
                possible = [
                    (score, -i)
                    for i in range(len(symbols) - 1)
                    if (score := self._scores.get(symbols[i] + symbols[i + 1])) is not None
                    and random.random() >= self._alpha
                ]
                if not possible:
                    break
                i = -max(possible)[1]
                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            drawn.append(symbols)
        return drawn

    def _divided(self, word: str, n: int, random: Random) -> list[list[str]]:
        """Draw from all segmentations, each in proportion to its probability to the power of alpha.

        Forward filtering and backward sampling, as in Kudo 2018, section 3.2.
        """
        # For each end: the begins of possible last pieces, with the summed probability of all that ends with them.
        last: list[list[tuple[int, float]]] = [[]]
        total = [1.0]
        for end in range(1, len(word) + 1):
            options = [
                (begin, total[begin] * math.exp(self._alpha * score))
                for begin in range(max(0, end - self._longest), end)
                if total[begin] and (score := self._scores.get(word[begin:end])) is not None
            ]
            last.append(options)
            total.append(sum(weight for _, weight in options))
        drawn = []
        for _ in range(n):
            pieces, end = list[str](), len(word)
            while end:
                rest = random.random() * total[end]
                begin = 0
                for begin, weight in last[end]:  # noqa: B007 (it is used after the loop)
                    rest -= weight
                    if rest < 0:
                        break
                pieces.append(word[begin:end])
                end = begin
            drawn.append(pieces[::-1])
        return drawn
