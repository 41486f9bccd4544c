"""Pairs of which half are translated backwards, for the first part of a training. Source: Ding et al. 2021 (BiT)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mt.text.corpus import ParallelIds, Sentences

_STREAM = 1  # tells this random choice from those of the plan, which have the same seeds


class _Mixed(Sentences):
    """The sentences of one side, some of them replaced by those of the other; nothing is copied."""

    def __init__(self, own: Sentences, other: Sentences, is_other: npt.NDArray[np.bool_]) -> None:
        self._sides, self._is_other = (own, other), is_other
        self.lengths = np.where(is_other, other.lengths, own.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, sentences: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        is_other = self._is_other[sentences]
        rows_are_other = np.repeat(is_other, self.lengths[sentences])
        ids = np.empty(len(rows_are_other), self._sides[0].ids.dtype)
        for side, chosen in enumerate((False, True)):
            ids[rows_are_other == chosen] = self._sides[side].take(sentences[is_other == chosen])
        return ids


@lru_cache(maxsize=2)  # an update begins in the same epoch as the one before, or in the next
def half_backwards(pairs: ParallelIds, seed: int, epoch: int) -> ParallelIds:
    """Return pairs of which about half have source and target swapped, chosen by seed and epoch."""
    is_swapped = np.random.Generator(np.random.PCG64([seed, epoch, _STREAM])).random(len(pairs)) < 0.5
    return ParallelIds(_Mixed(pairs.src, pairs.tgt, is_swapped), _Mixed(pairs.tgt, pairs.src, is_swapped))
