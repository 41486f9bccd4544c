"""The plan that assigns sentences to updates and micro-batches; it can be resumed and is the same on every machine.

The stream of sentences is a seeded permutation for each epoch, one epoch after the other. An update takes the next
sentences up to its limit of tokens. It is then cut into micro-batches, one for each forward and backward pass. The
sentences of an update depend only on the data, the seed and `batch_tokens`, not on the device, the ranks or the
micro-batches.

All lengths include the end of sentence.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Lengths = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # of source and target sides, in tokens

# Limit of the source tokens of an update, as a multiple of their average.
SOURCE_SLACK = 1.05
# Limit of a micro-batch, as a multiple of an equal part of the update.
MICRO_BATCH_SLACK = 1.03


@dataclass(frozen=True)
class PlanState:
    """A position in the stream: the next sentence has index `position` in epoch `epoch`."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class MicroBatchBudget:
    """The limits of a micro-batch, which give a compiled step its static shape."""

    n_micro_batches: int
    src_tokens: int
    tgt_tokens: int
    n_sentences: int


class UpdatePlan:
    """The sentences of each update.

    Args:
        src_lengths: tokens of each pair's source side.
        tgt_lengths: tokens of each pair's target side.
        batch_tokens: target tokens of an update.
        seed: of the permutations, and of the sampling for fractional weights.
        corpus_sizes: number of pairs of each corpus; the pairs of a corpus are consecutive.
        corpus_weights: copies of each pair of a corpus in an epoch; 1.5 is one copy, and a second one of a random half.
        longest: tokens of the longest side that a pair may have in any update. None: as in these lengths.
    """

    def __init__(
        self,
        src_lengths: npt.NDArray[np.int64],
        tgt_lengths: npt.NDArray[np.int64],
        *,
        batch_tokens: int,
        seed: int,
        corpus_sizes: Sequence[int] | None = None,
        corpus_weights: Sequence[float] | None = None,
        longest: int | None = None,
    ) -> None:
        self._src_lengths, self._tgt_lengths = src_lengths, tgt_lengths
        self._seed = seed
        self._corpus_sizes = list(corpus_sizes) if corpus_sizes is not None else [len(src_lengths)]
        self._corpus_weights = list(corpus_weights) if corpus_weights is not None else [1.0] * len(self._corpus_sizes)
        assert sum(self._corpus_sizes) == len(src_lengths) == len(tgt_lengths) > 0
        self.batch_tokens = batch_tokens
        ratio = float(src_lengths.sum() / tgt_lengths.sum())
        self._longest_src, self._longest_tgt = (longest or int(side.max()) for side in (src_lengths, tgt_lengths))
        self.max_src_tokens = max(int(batch_tokens * ratio * SOURCE_SLACK), self._longest_src)
        assert batch_tokens >= self._longest_tgt
        self._cached_epoch = -1
        self._cached_order: Indices = np.zeros(0, np.int64)

    def update_at(self, state: PlanState, lengths: Lengths | None = None) -> tuple[Indices, PlanState]:
        """Return the sentences of the update that starts at `state`, in stream order, and the state after it.

        Args:
            lengths: of source and target in this update; None: those of the plan.
        """
        src_lengths, tgt_lengths = lengths or (self._src_lengths, self._tgt_lengths)
        taken: list[Indices] = []
        src_left, tgt_left = self.max_src_tokens, self.batch_tokens
        epoch, position = state.epoch, state.position
        while True:
            order = self.epoch_order(epoch)
            # A sentence has at least two tokens with its end of sentence, so an update has fewer sentences than this.
            window = order[position : position + tgt_left + 1]
            src_total, tgt_total = np.cumsum(src_lengths[window]), np.cumsum(tgt_lengths[window])
            n = int(min(np.searchsorted(src_total, src_left, "right"), np.searchsorted(tgt_total, tgt_left, "right")))
            taken.append(window[:n])
            position += n
            if position < len(order):
                return np.concatenate(taken), PlanState(epoch, position)
            if n > 0:
                src_left -= int(src_total[n - 1])
                tgt_left -= int(tgt_total[n - 1])
            epoch, position = epoch + 1, 0

    def epoch_order(self, epoch: int) -> Indices:
        """Return all sentences of an epoch in the order of their use, copies included."""
        if epoch != self._cached_epoch:
            rng = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            items = _copies(self._corpus_sizes, self._corpus_weights, rng)
            self._cached_epoch, self._cached_order = epoch, rng.permutation(items)
        return self._cached_order

    def updates_per_epoch(self) -> float:
        """Return the approximate number of updates in an epoch."""
        starts = np.cumsum(self._corpus_sizes)[:-1]
        src, tgt = (
            sum(weight * float(part.sum()) for weight, part in zip(self._corpus_weights, parts, strict=True))
            for parts in (np.split(self._src_lengths, starts), np.split(self._tgt_lengths, starts))
        )
        return max(src / self.max_src_tokens, tgt / self.batch_tokens)

    def micro_batch_budget(self, micro_batch_tokens: int, n_ranks: int = 1) -> MicroBatchBudget:
        """Return the number of micro-batches of an update, and their limits.

        Args:
            micro_batch_tokens: the intended number of target tokens of a micro-batch.
            n_ranks: processes that share the micro-batches; the number of micro-batches is a multiple of it.
        """
        n_micro_batches = math.ceil(math.ceil(self.batch_tokens / micro_batch_tokens) / n_ranks) * n_ranks
        slack = 1.0 if n_micro_batches == 1 else MICRO_BATCH_SLACK
        # After the greedy cut, the sizes of micro-batches differ by less than the longest sentence.
        src_tokens = max(math.ceil(self.max_src_tokens / n_micro_batches * slack), self._longest_src)
        tgt_tokens = max(math.ceil(self.batch_tokens / n_micro_batches * slack), self._longest_tgt)
        n_sentences = math.ceil(tgt_tokens / float(self._tgt_lengths.mean()) * 1.25) + 16
        return MicroBatchBudget(n_micro_batches, src_tokens, tgt_tokens, n_sentences)


def _copies(sizes: Sequence[int], weights: Sequence[float], rng: np.random.Generator) -> Indices:
    start, parts = 0, []
    for size, weight in zip(sizes, weights, strict=True):
        pairs = np.arange(start, start + size, dtype=np.int64)
        whole = math.floor(weight)
        parts += [pairs] * whole
        if weight > whole:
            parts.append(pairs[rng.random(size) < weight - whole])
        start += size
    items = np.concatenate(parts)
    # With small weights on small data, no pair may be drawn at all, but an epoch must not be empty.
    return items if len(items) else np.arange(start, dtype=np.int64)


def cut_into_micro_batches(
    sentences: Indices,
    src_lengths: npt.NDArray[np.int64],
    tgt_lengths: npt.NDArray[np.int64],
    budget: MicroBatchBudget,
    n_ranks: int = 1,
) -> list[Indices]:
    """Distribute the sentences of an update over micro-batches of about equal size, none of them above the budget.

    The longest sentences are placed first, each in the least full micro-batch. If one does not fit, n_ranks further
    micro-batches are added, so that every rank runs the same number. Micro-batches may be empty.
    """
    # A heap of (fullness, micro-batch). Fullness is the used fraction of the budget, on the fuller side.
    micro_batches: list[list[int]] = [[] for _ in range(budget.n_micro_batches)]
    filled = [[0, 0] for _ in micro_batches]
    heap = [(0.0, i) for i in range(len(micro_batches))]
    src, tgt = src_lengths[sentences], tgt_lengths[sentences]
    longest_first = np.argsort(-np.maximum(src / budget.src_tokens, tgt / budget.tgt_tokens), kind="stable")
    for k in longest_first.tolist():
        n_src, n_tgt = int(src[k]), int(tgt[k])
        passed: list[tuple[float, int]] = []
        while heap:
            fullness, i = heapq.heappop(heap)
            fits = filled[i][0] + n_src <= budget.src_tokens and filled[i][1] + n_tgt <= budget.tgt_tokens
            if fits and len(micro_batches[i]) < budget.n_sentences:
                break
            passed.append((fullness, i))
        else:
            i = len(micro_batches)
            for new in range(i, i + n_ranks):
                micro_batches.append([])
                filled.append([0, 0])
                if new != i:
                    heapq.heappush(heap, (0.0, new))
        micro_batches[i].append(int(sentences[k]))
        filled[i][0] += n_src
        filled[i][1] += n_tgt
        heapq.heappush(heap, (max(filled[i][0] / budget.src_tokens, filled[i][1] / budget.tgt_tokens), i))
        for item in passed:
            heapq.heappush(heap, item)
    return [np.array(one, dtype=np.int64) for one in micro_batches]


def fit_into_tiles(
    src_lengths: npt.NDArray[np.int64], tgt_lengths: npt.NDArray[np.int64], smallest_width: int
) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Assign whole pairs to tiles with `width` source and `width` target positions each: first fit, longest first.

    The width of a tile is `smallest_width` times the smallest power of two for which its first pair fits.

    Returns:
        The width of each tile, widest first, and the tile of each pair.
    """
    longest = np.maximum(src_lengths, tgt_lengths)
    tile_of = np.zeros(len(longest), np.int64)
    widths: list[int] = []
    # Free positions of each tile on both sides; in arrays, so that one comparison covers all tiles.
    capacity = len(longest)
    src_free, tgt_free = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
    for pair in np.argsort(-longest, kind="stable").tolist():
        n_src, n_tgt = src_lengths[pair], tgt_lengths[pair]
        n_tiles = len(widths)
        fits = (src_free[:n_tiles] >= n_src) & (tgt_free[:n_tiles] >= n_tgt)
        tile = int(fits.argmax()) if n_tiles else 0
        if n_tiles == 0 or not fits[tile]:
            width = smallest_width
            while width < longest[pair]:
                width *= 2
            tile = n_tiles
            widths.append(width)
            src_free[tile] = tgt_free[tile] = width
        src_free[tile] -= n_src
        tgt_free[tile] -= n_tgt
        tile_of[pair] = tile
    return widths, tile_of
