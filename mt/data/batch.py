"""Packed batches: sentences laid end to end with no padding between them, and the thread that makes them ahead.

S source positions, T target positions, N segments, W tile width, n tiles.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mt.data.packing import Indices, MicroBatchBudget, fit_into_tiles
from mt.text.corpus import ParallelIds, Sentences
from mt.text.tokenizer import BOS_ID, PAD_ID

TILE_WIDTH = 64
PREFETCH_DEPTH = 3  # items that wait in the queue of `Prefetcher`
# Added to the scores of positions that must not be attended to. Finite, so that a row of padding stays finite too.
MASKED = -1e4
_MASKED_BITS = {
    dtype: torch.full((1,), MASKED, dtype=dtype).view(integer).numpy()
    for dtype, integer in (
        (torch.bfloat16, torch.int16),
        (torch.float16, torch.int16),
        (torch.float32, torch.int32),
        (torch.float64, torch.int64),
    )
}


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one width: whole sentences in rows of W positions, kept apart by a mask."""

    n_tiles: int
    q_start: int  # first row of the packed queries that the group covers
    q_width: int
    k_start: int
    k_width: int
    bias: Tensor  # [n, 1, q_width or 1, k_width], 0 or MASKED; causal where the layout is


@dataclass(frozen=True)
class TileLayout:
    """Sentence borders as masks inside tiles, for written-out attention."""

    groups: tuple[TileGroup, ...]


@dataclass(frozen=True)
class VarlenLayout:
    """Sentence borders as cumulative lengths, for attention over sentences of any length."""

    cu_q: Tensor  # [N + 1] int32; the last one is the number of query rows, always
    cu_k: Tensor  # [N + 1] int32
    q_sentences: Tensor  # [T] int32: which sentence a row belongs to
    k_sentences: Tensor  # [S] int32
    max_q: int  # no segment is longer
    max_k: int


Layout = TileLayout | VarlenLayout


def varlen_layout(cu_q: Tensor, cu_k: Tensor, longest: int) -> VarlenLayout:
    """Return the layout of cumulative lengths [N + 1] of both sides, of which none is longer."""
    q_sentences = _sentences_of_rows(cu_q)
    k_sentences = q_sentences if cu_k is cu_q else _sentences_of_rows(cu_k)
    return VarlenLayout(cu_q, cu_k, q_sentences, k_sentences, longest, longest)


def _sentences_of_rows(cu: Tensor) -> Tensor:
    # By numpy: torch's operators would start a second team of threads in the thread that makes batches.
    numbers = np.repeat(np.arange(len(cu) - 1, dtype=np.int32), np.diff(cu.cpu().numpy()))
    return torch.from_numpy(numbers).to(cu.device)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch of an update. Positions that belong to no sentence hold padding and weigh nothing."""

    src_ids: Tensor  # [S] int64
    src_positions: Tensor  # [S] int64, from 0 in each sentence
    tgt_inputs: Tensor  # [T] int64, each sentence shifted right behind BOS
    tgt_outputs: Tensor  # [T] int64, each sentence with its EOS
    tgt_positions: Tensor  # [T] int64
    tgt_weights: Tensor  # [T] float32: 1 for real tokens, 0 for padding
    encoder_layout: Layout
    decoder_layout: Layout
    cross_layout: Layout
    sentences: Indices  # which pairs of the corpus these are
    n_src_tokens: int  # real ones, end of sentence included
    n_tgt_tokens: int

    @property
    def max_positions(self) -> int:
        """No position in the batch is as high as this."""
        return _max_positions(self.encoder_layout, self.cross_layout)

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on the device; from pinned memory the host does not wait for the copies."""
        return _moved(self, lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the batch until the stream has done what it has been given so far."""
        for tensor in self.tensors():
            tensor.record_stream(stream)

    def tensors(self) -> list[Tensor]:
        """All tensors, each once, in the same order for all batches of a kind."""
        found: list[Tensor] = []

        def enter(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        _moved(self, enter)
        return found

    def clone(self) -> PackedBatch:
        """A copy of the batch."""
        return _moved(self, Tensor.clone)

    def pinned(self) -> PackedBatch:
        """The batch in page-locked memory."""
        return _moved(self, Tensor.pin_memory)


def _max_positions(*layouts: Layout) -> int:
    longest = 0
    for layout in layouts:
        if isinstance(layout, VarlenLayout):
            longest = max(longest, layout.max_q, layout.max_k)
        else:
            longest = max([longest, *(max(group.q_width, group.k_width) for group in layout.groups)])
    return longest


def _moved(batch: PackedBatch, move_one: Callable[[Tensor], Tensor]) -> PackedBatch:
    done: dict[int, Tensor] = {}  # layouts share tensors

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            done[id(tensor)] = move_one(tensor)
        return done[id(tensor)]

    def moved_layout(layout: Layout) -> Layout:
        if isinstance(layout, VarlenLayout):
            tensors = {name: move(x) for name, x in vars(layout).items() if isinstance(x, Tensor)}
            return replace(layout, **tensors)  # type: ignore[arg-type]
        return TileLayout(tuple(replace(group, bias=move(group.bias)) for group in layout.groups))

    values: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            values[field.name] = move(value)
        elif isinstance(value, TileLayout | VarlenLayout):
            values[field.name] = moved_layout(value)
    return replace(batch, **values)


def assemble_tiles(corpus: ParallelIds, sentences: Indices, dtype: torch.dtype) -> PackedBatch:
    """Pack pairs into tiles: source and target of a pair lie in the same tile.

    Args:
        sentences: indices of the pairs; may be empty, then one tile of padding stands for them.
        dtype: of the masks; that of the matrix products.
    """
    src_lengths, tgt_lengths = corpus.src.lengths[sentences], corpus.tgt.lengths[sentences]
    widths, tile_of = fit_into_tiles(src_lengths, tgt_lengths, TILE_WIDTH)
    widths = widths or [TILE_WIDTH]
    tile_starts = np.concatenate([[0], np.cumsum(widths)])
    n_rows = int(tile_starts[-1])
    src_starts = tile_starts[tile_of] + _offsets_within(tile_of, src_lengths)
    tgt_starts = tile_starts[tile_of] + _offsets_within(tile_of, tgt_lengths)

    src_ids, src_positions, src_segments = _lay_out(corpus.src, sentences, src_starts, n_rows)
    tgt_ids, tgt_positions, tgt_segments = _lay_out(corpus.tgt, sentences, tgt_starts, n_rows)
    encoder: list[TileGroup] = []
    decoder: list[TileGroup] = []
    cross: list[TileGroup] = []
    start = 0
    for width in sorted(set(widths), reverse=True):
        n_tiles = widths.count(width)
        rows = slice(start, start + n_tiles * width)
        src, tgt = (segments[rows].reshape(n_tiles, width) for segments in (src_segments, tgt_segments))
        causal = np.tri(width, dtype=np.bool_)
        for groups, allowed in (
            (encoder, src[:, :, None] == src[:, None, :]),
            (decoder, (tgt[:, :, None] == tgt[:, None, :]) & causal),
            (cross, tgt[:, :, None] == src[:, None, :]),
        ):
            groups.append(TileGroup(n_tiles, start, width, start, width, _bias(allowed, dtype)))
        start += n_tiles * width
    return PackedBatch(
        src_ids=torch.from_numpy(src_ids),
        src_positions=torch.from_numpy(src_positions),
        tgt_inputs=torch.from_numpy(_shifted_right(tgt_ids, tgt_positions, tgt_segments)),
        tgt_outputs=torch.from_numpy(tgt_ids),
        tgt_positions=torch.from_numpy(tgt_positions),
        tgt_weights=torch.from_numpy((tgt_segments >= 0).astype(np.float32)),
        encoder_layout=TileLayout(tuple(encoder)),
        decoder_layout=TileLayout(tuple(decoder)),
        cross_layout=TileLayout(tuple(cross)),
        sentences=sentences,
        n_src_tokens=int(src_lengths.sum()),
        n_tgt_tokens=int(tgt_lengths.sum()),
    )


def packed_pairs(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int, dtype: torch.dtype
) -> Iterator[tuple[Indices, PackedBatch]]:
    """Given pairs in batches of tiles, the longest first.

    Args:
        sources: ids, each ending with EOS.
        targets: ids, each ending with EOS.
        batch_tokens: a batch holds so many source and so many target tokens at most, or one pair.
    Yields:
        The places of the pairs in the lists, in the order in which their rows follow each other, and the batch.
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
    """Pack pairs end to end into one static shape; the tail is cut into segments that belong to no sentence.

    Each side has rows for its budget and for one row in each tail segment at least, so that no segment that has
    queries lacks keys, and the cumulative lengths end at the number of rows.

    Args:
        max_tokens: no sentence is longer; tail segments are not either.
    """
    src_lengths, tgt_lengths = corpus.src.lengths[sentences], corpus.tgt.lengths[sentences]
    assert len(sentences) <= budget.n_sentences
    assert max(src_lengths.max(initial=0), tgt_lengths.max(initial=0)) <= max_tokens
    most_tails = max(budget.src_tokens, budget.tgt_tokens) // max_tokens + 2
    n_src, n_tgt = (_round_up(n + most_tails, 64) for n in (budget.src_tokens, budget.tgt_tokens))
    src_tail, tgt_tail = n_src - int(src_lengths.sum()), n_tgt - int(tgt_lengths.sum())
    # Rounding up to multiples of 64 can add one more segment than the budget alone.
    n_tails = max(-(-src_tail // max_tokens), -(-tgt_tail // max_tokens))
    n_segments = budget.n_sentences + max(n_src, n_tgt) // max_tokens + 2
    src_ends = _cumulative(src_lengths, src_tail, n_tails, n_segments)
    tgt_ends = _cumulative(tgt_lengths, tgt_tail, n_tails, n_segments)

    src_ids, src_positions, _ = _lay_out(corpus.src, sentences, src_ends[: len(sentences)].astype(np.int64), n_src)
    tgt_ids, tgt_positions, segments = _lay_out(
        corpus.tgt, sentences, tgt_ends[: len(sentences)].astype(np.int64), n_tgt
    )
    cu_src, cu_tgt = torch.from_numpy(src_ends), torch.from_numpy(tgt_ends)
    encoder, decoder = (varlen_layout(cu, cu, max_tokens) for cu in (cu_src, cu_tgt))
    return PackedBatch(
        src_ids=torch.from_numpy(src_ids),
        src_positions=torch.from_numpy(src_positions),
        tgt_inputs=torch.from_numpy(_shifted_right(tgt_ids, tgt_positions, segments)),
        tgt_outputs=torch.from_numpy(tgt_ids),
        tgt_positions=torch.from_numpy(tgt_positions),
        tgt_weights=torch.from_numpy((segments >= 0).astype(np.float32)),
        encoder_layout=encoder,
        decoder_layout=decoder,
        cross_layout=replace(decoder, cu_k=encoder.cu_k, k_sentences=encoder.k_sentences),
        sentences=sentences,
        n_src_tokens=int(src_lengths.sum()),
        n_tgt_tokens=int(tgt_lengths.sum()),
    )


@dataclass(frozen=True)
class SourceBatch:
    """Sentences to translate: one to a tile, as wide as the longest of them."""

    ids: Tensor  # [B * W] int64
    positions: Tensor  # [B * W] int64
    layout: TileLayout
    lengths: Tensor  # [B] int64, end of sentence included
    width: int
    has_padding: bool  # whether a sentence is shorter than that

    def to(self, device: torch.device) -> SourceBatch:
        """The batch on the device."""
        groups = tuple(replace(group, bias=group.bias.to(device)) for group in self.layout.groups)
        return SourceBatch(
            self.ids.to(device),
            self.positions.to(device),
            TileLayout(groups),
            self.lengths.to(device),
            self.width,
            self.has_padding,
        )


def assemble_sources(sentences: Sequence[Sequence[int]], dtype: torch.dtype, width_multiple: int = 1) -> SourceBatch:
    """Source sentences for the decoder, each ending with EOS; as wide as the next multiple of width_multiple."""
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
        layout=TileLayout((TileGroup(len(sentences), 0, width, 0, width, bias),)),
        lengths=torch.from_numpy(lengths),
        width=width,
        has_padding=bool((lengths < width).any()),
    )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _bias(allowed: npt.NDArray[np.bool_], dtype: torch.dtype) -> Tensor:
    # Bit patterns in numpy: a torch operator here, beside the main thread, would start a second team of OpenMP threads,
    # and two teams that spin on the same cores slow each other down by factors.
    bits = _MASKED_BITS[dtype]
    return torch.from_numpy(np.where(allowed[:, None], bits.dtype.type(0), bits)).view(dtype)  # [n, 1, W, W]


def _offsets_within(group: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each item begins if the items of each group are laid end to end in their order."""
    order = np.argsort(group, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    sorted_group = group[order]
    first = np.concatenate([[True], sorted_group[1:] != sorted_group[:-1]]) if len(group) else np.zeros(0, np.bool_)
    group_base = np.repeat(before[first], np.diff(np.append(np.flatnonzero(first), len(group))))
    offsets = np.empty(len(group), np.int64)
    offsets[order] = before - group_base
    return offsets


def _lay_out(
    side: Sentences, sentences: Indices, starts: npt.NDArray[np.int64], n_rows: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids, positions and segment numbers (-1 for padding) of n_rows rows, each sentence at its start."""
    ids, positions = np.full(n_rows, PAD_ID, np.int64), np.zeros(n_rows, np.int64)
    segments = np.full(n_rows, -1, np.int64)
    lengths = side.lengths[sentences]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = np.repeat(starts, lengths) + within
    ids[rows] = side.ids[np.repeat(side.offsets[sentences], lengths) + within]
    positions[rows] = within
    segments[rows] = np.repeat(np.arange(len(sentences)), lengths)
    return ids, positions, segments


def _shifted_right(
    outputs: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    inputs = np.roll(outputs, 1)
    inputs[positions == 0] = BOS_ID
    inputs[segments < 0] = PAD_ID
    return inputs


def _cumulative(lengths: npt.NDArray[np.int64], tail: int, n_tails: int, n_segments: int) -> npt.NDArray[np.int32]:
    """[n_segments + 1]: the sentences, the tail in near-equal parts, and empty segments up to the fixed number."""
    tails = np.full(n_tails, tail // n_tails, np.int64) if n_tails else np.zeros(0, np.int64)
    tails[: tail - int(tails.sum())] += 1
    empty = np.zeros(n_segments - len(lengths) - n_tails, np.int64)
    return np.concatenate([[0], np.cumsum(np.concatenate([lengths, tails, empty]))]).astype(np.int32)


T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread of its own, a few items ahead of whoever takes them."""

    def __init__(self, items: Iterator[T], depth: int = PREFETCH_DEPTH) -> None:
        self._queue: queue.Queue[T | BaseException | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(items,), name="batches ahead", daemon=True)
        self._thread.start()

    def _produce(self, items: Iterator[T]) -> None:
        last: BaseException | None = None
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:
            last = error
        self._put(last)

    def _put(self, item: T | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stopped.set()
        self._thread.join()
