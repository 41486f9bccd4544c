"""Packed batches of sentences without padding between them, and a thread that prepares batches ahead.

S source positions, T target positions, N segments, W tile width, n tiles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mt.data.packing import Indices, MicroBatchBudget, fit_into_tiles
from mt.text.corpus import ParallelIds, Sentences
from mt.text.tokenizer import BOS_ID, PAD_ID

TILE_WIDTH = 64
N_PREFETCHED = 4  # items that `prefetched` prepares ahead
# Added to the scores of masked positions. Finite, so that the result for a row of padding is also finite.
MASKED = -1e4
_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_MASKED_BITS = {dtype: torch.full((1,), MASKED, dtype=dtype).view(bits).numpy() for dtype, bits in _BITS.items()}
_Ids = npt.NDArray[np.int64]
_T = TypeVar("_T")


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one width: each has W positions with whole sentences, which a mask separates."""

    n_tiles: int
    start: int  # its first row, the same on both sides
    width: int
    bias: Tensor  # [n, 1, W or 1, W], 0 or MASKED; also causal in a decoder layout

    def tiles(self, x: Tensor) -> Tensor:
        """Return this group's rows of x [T, …] as [n, W, …]."""
        return x[self.start : self.start + self.n_tiles * self.width].view(self.n_tiles, self.width, *x.shape[1:])


@dataclass(frozen=True)
class TileLayout:
    """Sentence borders as masks inside tiles, for attention by plain matrix products."""

    groups: tuple[TileGroup, ...]

    @property
    def longest(self) -> int:
        """The width of the widest tile."""
        return max(group.width for group in self.groups)


@dataclass(frozen=True)
class VarlenLayout:
    """Sentence borders as cumulative lengths, for attention over sentences of any length."""

    cu_q: Tensor  # [N + 1] int32; the last entry is always the number of query rows
    cu_k: Tensor  # [N + 1] int32
    q_sentences: Tensor  # [T] int32: the sentence of each row
    k_sentences: Tensor  # [S] int32
    longest: int  # an upper bound of the rows of a segment, on both sides


Layout = TileLayout | VarlenLayout


def varlen_layout(cu_q: Tensor, cu_k: Tensor, longest: int) -> VarlenLayout:
    """Return the layout for cumulative lengths [N + 1] of both sides, whose segments have at most `longest` rows."""
    q_sentences = _sentences_of_rows(cu_q)
    k_sentences = q_sentences if cu_k is cu_q else _sentences_of_rows(cu_k)
    return VarlenLayout(cu_q, cu_k, q_sentences, k_sentences, longest)


def _sentences_of_rows(cu: Tensor) -> Tensor:
    # With numpy: torch's operators would start a second team of OpenMP threads in the thread that prepares batches.
    numbers = np.repeat(np.arange(len(cu) - 1, dtype=np.int32), np.diff(cu.cpu().numpy()))
    return torch.from_numpy(numbers).to(cu.device)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch of an update. Positions outside sentences hold padding and have weight 0."""

    src_ids: Tensor  # [S] int64
    src_positions: Tensor  # [S] int64, from 0 in each sentence
    tgt_inputs: Tensor  # [T] int64, each sentence shifted right, with BOS in front
    tgt_outputs: Tensor  # [T] int64, each sentence with its EOS
    tgt_positions: Tensor  # [T] int64
    tgt_weights: Tensor  # [T] float32: 1 for real tokens, 0 for padding
    encoder_layout: Layout
    decoder_layout: Layout
    cross_layout: Layout
    sentences: Indices  # the indices of these pairs in the corpus
    n_src_tokens: int  # without padding, end of sentence included
    n_tgt_tokens: int

    @property
    def max_positions(self) -> int:
        """An upper bound of all positions in the batch, exclusive."""
        return max(self.encoder_layout.longest, self.cross_layout.longest)

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on the device. For a batch in pinned memory, the host does not wait for the copies."""
        return _moved(self, lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the batch until the stream has finished its work so far."""
        for tensor in self.tensors():
            tensor.record_stream(stream)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, each once, in the same order for all batches with the same kind of layout."""
        found: list[Tensor] = []
        _moved(self, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def clone(self) -> PackedBatch:
        """Return a copy of the batch."""
        return _moved(self, Tensor.clone)

    def pinned(self) -> PackedBatch:
        """Return the batch in page-locked memory."""
        return _moved(self, Tensor.pin_memory)


def _moved(batch: _T, move: Callable[[Tensor], Tensor]) -> _T:
    """Return a batch, or a part of one, with `move` applied to each tensor; tensors that layouts share stay shared."""
    done: dict[int, Tensor] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in done:
                done[id(value)] = move(value)
            return done[id(value)]
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        if isinstance(value, PackedBatch | SourceBatch | Layout | TileGroup):
            return type(value)(**{name: moved(part) for name, part in vars(value).items()})
        return value

    result: _T = moved(batch)
    return result


def assemble_tiles(corpus: ParallelIds, sentences: Indices, dtype: torch.dtype) -> PackedBatch:
    """Pack pairs into tiles; source and target of a pair are in the same tile.

    Args:
        sentences: indices of the pairs; without any, the batch is one tile of padding.
        dtype: the type of the masks, equal to that of the matrix products.
    """
    src_lengths, tgt_lengths = corpus.src.lengths[sentences], corpus.tgt.lengths[sentences]
    widths, tile_of = fit_into_tiles(src_lengths, tgt_lengths, TILE_WIDTH)
    widths = widths or [TILE_WIDTH]
    tile_starts = np.concatenate([[0], np.cumsum(widths)])
    n_rows = int(tile_starts[-1])
    src_starts = tile_starts[tile_of] + _offsets_within(tile_of, src_lengths)
    tgt_starts = tile_starts[tile_of] + _offsets_within(tile_of, tgt_lengths)
    rows, src_segments, tgt_segments = _lay_out_pairs(corpus, sentences, (src_starts, tgt_starts), (n_rows, n_rows))
    groups: dict[str, list[TileGroup]] = {"encoder": [], "decoder": [], "cross": []}
    start = 0
    for width in sorted(set(widths), reverse=True):
        n_tiles = widths.count(width)
        stop = start + n_tiles * width
        src, tgt = (segments[start:stop].reshape(n_tiles, width) for segments in (src_segments, tgt_segments))
        causal = np.tri(width, dtype=np.bool_)
        for layout, allowed in (
            ("encoder", src[:, :, None] == src[:, None, :]),
            ("decoder", (tgt[:, :, None] == tgt[:, None, :]) & causal),
            ("cross", tgt[:, :, None] == src[:, None, :]),
        ):
            groups[layout].append(TileGroup(n_tiles, start, width, _bias(allowed, dtype)))
        start = stop
    rows |= {f"{layout}_layout": TileLayout(tuple(tiles)) for layout, tiles in groups.items()}
    return PackedBatch(**rows)


def packed_pairs(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int, dtype: torch.dtype
) -> Iterator[tuple[Indices, PackedBatch]]:
    """Yield given pairs in batches of tiles, the longest first.

    Args:
        sources: ids, each ending with EOS.
        targets: ids, each ending with EOS.
        batch_tokens: the limit of source tokens, and also of target tokens, of a batch; it has at least one pair.
    Yields:
        The indices of the pairs in the lists, in the order of their rows, and the batch.
    """
    corpus = ParallelIds(_end_to_end(sources), _end_to_end(targets))
    order = np.argsort(-np.maximum(corpus.src.lengths, corpus.tgt.lengths), kind="stable")
    start = n_src = n_tgt = 0
    for i, pair in enumerate(order.tolist()):
        n_src += int(corpus.src.lengths[pair])
        n_tgt += int(corpus.tgt.lengths[pair])
        if max(n_src, n_tgt) > batch_tokens and i > start:
            yield _tiles_in_order(corpus, order[start:i], dtype)
            start, n_src, n_tgt = i, int(corpus.src.lengths[pair]), int(corpus.tgt.lengths[pair])
    if start < len(order):
        yield _tiles_in_order(corpus, order[start:], dtype)


def _end_to_end(sentences: Sequence[Sequence[int]]) -> Sentences:
    ends = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
    return Sentences(np.fromiter(chain.from_iterable(sentences), np.int64, count=int(ends[-1])), ends)


def _tiles_in_order(corpus: ParallelIds, pairs: Indices, dtype: torch.dtype) -> tuple[Indices, PackedBatch]:
    _, tile_of = fit_into_tiles(corpus.src.lengths[pairs], corpus.tgt.lengths[pairs], TILE_WIDTH)
    return pairs[np.argsort(tile_of, kind="stable")], assemble_tiles(corpus, pairs, dtype)


def assemble_varlen(corpus: ParallelIds, sentences: Indices, budget: MicroBatchBudget, max_tokens: int) -> PackedBatch:
    """Concatenate pairs into a batch of a static shape; the padding at its end is cut into segments without a sentence.

    Each side has rows for its budget, and at least one row for each padding segment. So every segment with queries has
    keys, and the cumulative lengths end at the number of rows.

    Args:
        max_tokens: the limit of the length of a sentence and of a padding segment.
    """
    src_lengths, tgt_lengths = corpus.src.lengths[sentences], corpus.tgt.lengths[sentences]
    assert len(sentences) <= budget.n_sentences
    assert max(src_lengths.max(initial=0), tgt_lengths.max(initial=0)) <= max_tokens
    most_tails = max(budget.src_tokens, budget.tgt_tokens) // max_tokens + 2
    n_src, n_tgt = (_round_up(n + most_tails, 64) for n in (budget.src_tokens, budget.tgt_tokens))
    src_tail, tgt_tail = n_src - int(src_lengths.sum()), n_tgt - int(tgt_lengths.sum())
    # Rounding up to multiples of 64 can add one more segment than the budget has.
    n_tails = max(-(-src_tail // max_tokens), -(-tgt_tail // max_tokens))
    n_segments = budget.n_sentences + max(n_src, n_tgt) // max_tokens + 2
    src_ends = _cumulative(src_lengths, src_tail, n_tails, n_segments)
    tgt_ends = _cumulative(tgt_lengths, tgt_tail, n_tails, n_segments)
    starts = (src_ends[: len(sentences)].astype(np.int64), tgt_ends[: len(sentences)].astype(np.int64))
    rows, _, _ = _lay_out_pairs(corpus, sentences, starts, (n_src, n_tgt))
    encoder, decoder = (varlen_layout(cu, cu, max_tokens) for cu in map(torch.from_numpy, (src_ends, tgt_ends)))
    cross = replace(decoder, cu_k=encoder.cu_k, k_sentences=encoder.k_sentences)
    return PackedBatch(**rows, encoder_layout=encoder, decoder_layout=decoder, cross_layout=cross)


@dataclass(frozen=True)
class SourceBatch:
    """Source sentences to translate: one in each tile; all tiles are as wide as the longest sentence."""

    ids: Tensor  # [B * W] int64
    positions: Tensor  # [B * W] int64
    layout: TileLayout
    lengths: Tensor  # [B] int64, end of sentence included
    width: int
    has_padding: bool  # whether a sentence is shorter than the width

    def to(self, device: torch.device) -> SourceBatch:
        """Return the batch on the device."""
        return _moved(self, lambda tensor: tensor.to(device))


def assemble_sources(sentences: Sequence[Sequence[int]], dtype: torch.dtype, width_multiple: int = 1) -> SourceBatch:
    """Assemble source sentences for translation, each ending with EOS; the width is a multiple of `width_multiple`."""
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    assert lengths.min() > 0
    width = _round_up(int(lengths.max()), width_multiple)
    ids = np.full((len(sentences), width), PAD_ID, np.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = sentence
    bias = _bias((np.arange(width) < lengths[:, None])[:, None, :], dtype)  # [B, 1, 1, W]
    return SourceBatch(
        ids=torch.from_numpy(ids.reshape(-1)),
        positions=torch.arange(width).repeat(len(sentences)),
        layout=TileLayout((TileGroup(len(sentences), 0, width, bias),)),
        lengths=torch.from_numpy(lengths),
        width=width,
        has_padding=bool((lengths < width).any()),
    )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _bias(allowed: npt.NDArray[np.bool_], dtype: torch.dtype) -> Tensor:
    # Bit patterns in numpy: a torch operator in this thread would start a second team of OpenMP threads besides that of
    # the main thread, and two teams that spin on the same cores make each other several times slower.
    bits = _MASKED_BITS[dtype]
    return torch.from_numpy(np.where(allowed[:, None], bits.dtype.type(0), bits)).view(dtype)  # [n, 1, W, W]


def _offsets_within(group: _Ids, lengths: _Ids) -> _Ids:
    """Return the start of each item if the items of each group are concatenated in their order."""
    order = np.argsort(group, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    _, first, sizes = np.unique(group[order], return_index=True, return_counts=True)
    offsets = np.empty(len(group), np.int64)
    offsets[order] = before - np.repeat(before[first], sizes)
    return offsets


def _lay_out_pairs(
    corpus: ParallelIds, sentences: Indices, starts: tuple[_Ids, _Ids], n_rows: tuple[int, int]
) -> tuple[dict[str, Any], _Ids, _Ids]:
    """Return the fields of a batch except its layouts, and the segment numbers of the rows of both sides."""
    src_ids, src_positions, src_segments = _lay_out(corpus.src, sentences, starts[0], n_rows[0])
    tgt_ids, tgt_positions, tgt_segments = _lay_out(corpus.tgt, sentences, starts[1], n_rows[1])
    inputs = np.roll(tgt_ids, 1)
    inputs[tgt_positions == 0] = BOS_ID
    inputs[tgt_segments < 0] = PAD_ID
    rows = {
        "src_ids": torch.from_numpy(src_ids),
        "src_positions": torch.from_numpy(src_positions),
        "tgt_inputs": torch.from_numpy(inputs),
        "tgt_outputs": torch.from_numpy(tgt_ids),
        "tgt_positions": torch.from_numpy(tgt_positions),
        "tgt_weights": torch.from_numpy((tgt_segments >= 0).astype(np.float32)),
        "sentences": sentences,
        "n_src_tokens": int(corpus.src.lengths[sentences].sum()),
        "n_tgt_tokens": int(corpus.tgt.lengths[sentences].sum()),
    }
    return rows, src_segments, tgt_segments


def _lay_out(side: Sentences, sentences: Indices, starts: _Ids, n_rows: int) -> tuple[_Ids, _Ids, _Ids]:
    """Place each sentence at its start; return ids, positions and segment numbers (-1: padding) of n_rows rows."""
    ids, positions = np.full(n_rows, PAD_ID, np.int64), np.zeros(n_rows, np.int64)
    segments = np.full(n_rows, -1, np.int64)
    lengths = side.lengths[sentences]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = np.repeat(starts, lengths) + within
    ids[rows] = side.take(sentences)
    positions[rows] = within
    segments[rows] = np.repeat(np.arange(len(sentences)), lengths)
    return ids, positions, segments


def _cumulative(lengths: _Ids, tail: int, n_tails: int, n_segments: int) -> npt.NDArray[np.int32]:
    """Return [n_segments + 1]: the cumulative lengths of sentences, n_tails nearly equal tail parts, empty segments."""
    tails = (tail + np.arange(n_tails)[::-1]) // n_tails
    empty = np.zeros(n_segments - len(lengths) - n_tails, np.int64)
    return np.concatenate([[0], np.cumsum(np.concatenate([lengths, tails, empty]))]).astype(np.int32)


def prefetched(items: Iterator[_T]) -> Generator[_T]:
    """Yield the items of an iterator, none of which is None; a thread computes some ahead until this is closed."""
    thread = ThreadPoolExecutor(1, "batches ahead")
    try:
        ahead = deque(thread.submit(next, items, None) for _ in range(N_PREFETCHED))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
