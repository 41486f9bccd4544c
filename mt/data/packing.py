"""Which sentences form which update and micro-batch: a plan that can be resumed and is the same everywhere.

The stream of sentences is a seeded permutation for each epoch, epochs joined end to end. An update is the next
sentences while they stay within its tokens; it is then cut into micro-batches, one for each forward and backward pass.
What an update holds depends on the data, the seed and `batch_tokens` alone: not on the device, the ranks or the
micro-batches.

All lengths count the end of sentence.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

# The source side of an update may be this much longer than the corpus's ratio makes it on average.
SOURCE_SLACK = 1.05
# A micro-batch may be this much larger than an equal share of the update.
MICRO_BATCH_SLACK = 1.03


@dataclass(frozen=True)
class PlanState:
    """A place in the stream: the next sentence is number `position` of epoch `epoch`."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class MicroBatchBudget:
    """What one micro-batch may hold at most; the static shape of a compiled step."""

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
        seed: of the permutations, and of the draw that a fractional weight needs.
        corpus_sizes: number of pairs of each corpus; they lie one after the other.
        corpus_weights: copies of each pair of that corpus in an epoch; the fraction is drawn by chance.
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
    ) -> None:
        self._src_lengths, self._tgt_lengths = src_lengths, tgt_lengths
        self._seed = seed
        self._corpus_sizes = list(corpus_sizes) if corpus_sizes is not None else [len(src_lengths)]
        self._corpus_weights = list(corpus_weights) if corpus_weights is not None else [1.0] * len(self._corpus_sizes)
        assert sum(self._corpus_sizes) == len(src_lengths) == len(tgt_lengths) > 0
        self.batch_tokens = batch_tokens
        ratio = float(src_lengths.sum() / tgt_lengths.sum())
        self.max_src_tokens = max(int(batch_tokens * ratio * SOURCE_SLACK), int(src_lengths.max()))
        assert batch_tokens >= int(tgt_lengths.max())
        self._cached_epoch = -1
        self._cached_order: Indices = np.zeros(0, np.int64)

    def update_at(self, state: PlanState) -> tuple[Indices, PlanState]:
        """Return the sentences of the update that begins at `state`, in stream order, and where the next one begins."""
        taken: list[Indices] = []
        src_room, tgt_room = self.max_src_tokens, self.batch_tokens
        epoch, position = state.epoch, state.position
        while True:
            order = self.epoch_order(epoch)
            # A sentence has two tokens or more, the end of sentence counted, so no update looks further than this.
            window = order[position : position + tgt_room + 1]
            src_total, tgt_total = np.cumsum(self._src_lengths[window]), np.cumsum(self._tgt_lengths[window])
            n = int(min(np.searchsorted(src_total, src_room, "right"), np.searchsorted(tgt_total, tgt_room, "right")))
            taken.append(window[:n])
            position += n
            if position < len(order):
                return np.concatenate(taken), PlanState(epoch, position)
            if n > 0:
                src_room -= int(src_total[n - 1])
                tgt_room -= int(tgt_total[n - 1])
            epoch, position = epoch + 1, 0

    def epoch_order(self, epoch: int) -> Indices:
        """Return all sentences of an epoch, copies included, in the order in which they are used."""
        if epoch != self._cached_epoch:
            rng = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            items = _copies(self._corpus_sizes, self._corpus_weights, rng)
            self._cached_epoch, self._cached_order = epoch, rng.permutation(items)
        return self._cached_order

    def updates_per_epoch(self) -> float:
        """Return about how many updates one epoch makes."""
        starts = np.cumsum(self._corpus_sizes)[:-1]
        src, tgt = (
            sum(weight * float(part.sum()) for weight, part in zip(self._corpus_weights, parts, strict=True))
            for parts in (np.split(self._src_lengths, starts), np.split(self._tgt_lengths, starts))
        )
        return max(src / self.max_src_tokens, tgt / self.batch_tokens)

    def micro_batch_budget(self, micro_batch_tokens: int, n_ranks: int = 1) -> MicroBatchBudget:
        """Return how many micro-batches an update is cut into, and what each may hold.

        Args:
            micro_batch_tokens: target tokens that one forward and backward pass should hold.
            n_ranks: processes that share the micro-batches; the number of micro-batches is a multiple of it.
        """
        n_micro_batches = math.ceil(math.ceil(self.batch_tokens / micro_batch_tokens) / n_ranks) * n_ranks
        slack = 1.0 if n_micro_batches == 1 else MICRO_BATCH_SLACK
        # The greedy cut leaves micro-batches apart by less than the longest sentence, however few they hold.
        src_tokens = max(math.ceil(self.max_src_tokens / n_micro_batches * slack), int(self._src_lengths.max()))
        tgt_tokens = max(math.ceil(self.batch_tokens / n_micro_batches * slack), int(self._tgt_lengths.max()))
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
    # Small weights on small data may draw nothing at all; an epoch must hold something.
    return items if len(items) else np.arange(start, dtype=np.int64)


def cut_into_micro_batches(
    sentences: Indices,
    src_lengths: npt.NDArray[np.int64],
    tgt_lengths: npt.NDArray[np.int64],
    budget: MicroBatchBudget,
    n_ranks: int = 1,
) -> list[Indices]:
    """Deal the sentences of an update to micro-batches of about equal size, none above the budget.

    The longest come first, each to the micro-batch that is least full. What does not fit opens another round of n_ranks
    micro-batches, so every rank runs equally many; micro-batches may be empty.
    """
    # The slots of a heap: (fullness, micro-batch). Fullness is the share of the fuller side.
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
    """First fit, longest first: whole pairs into tiles that hold `width` source and `width` target positions each.

    A tile is as wide as the smallest power-of-two multiple of `smallest_width` that holds its first pair.

    Returns:
        The width of each tile, widest first, and the tile of each pair.
    """
    longest = np.maximum(src_lengths, tgt_lengths)
    tile_of = np.zeros(len(longest), np.int64)
    widths: list[int] = []
    # Room left in each tile, on both sides; arrays, so that one comparison looks at all tiles.
    capacity = len(longest)
    src_room, tgt_room = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
    for pair in np.argsort(-longest, kind="stable").tolist():
        n_src, n_tgt = src_lengths[pair], tgt_lengths[pair]
        n_tiles = len(widths)
        fits = (src_room[:n_tiles] >= n_src) & (tgt_room[:n_tiles] >= n_tgt)
        tile = int(fits.argmax()) if n_tiles else 0
        if n_tiles == 0 or not fits[tile]:
            width = smallest_width
            while width < longest[pair]:
                width *= 2
            tile = n_tiles
            widths.append(width)
            src_room[tile] = tgt_room[tile] = width
        src_room[tile] -= n_src
        tgt_room[tile] -= n_tgt
        tile_of[pair] = tile
    return widths, tile_of
