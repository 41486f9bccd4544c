"""Contexts of attention: they say where keys and values are, in the rows of a batch or in a cache for decoding.

A layer has one forward pass. Training, decoding and the recording of attention weights differ only in the context that
the layer is called with.

T rows, H heads, G heads of keys and values, E features of a head, L layers; in decoding B sentences, K beams, k of them
open, t positions that fit into the cache, W source width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mt.data.batch import MASKED, Layout, TileLayout, VarlenLayout
from mt.model.kernels import Kernels, Rows, attention_scores, separate
from mt.model.positions import Positions, rotated

KeysAndValues = Callable[[Tensor], tuple[Tensor, ...]]  # see `CrossAttention.keys_and_values`
GROWTH = 8  # positions by which a cache grows


def rows_of(layout: Layout, dropout: float, positions: Positions | None = None, is_causal: bool = False) -> Rows:
    """Return the rows of a layout. Pass positions for self-attention, and not for cross-attention."""
    masks = [group.bias for group in layout.groups] if isinstance(layout, TileLayout) else []
    if positions is not None and positions.adds_to_scores:
        # Two rows of a sentence are as far apart as their positions, so indices of rows can be used.
        if isinstance(layout, VarlenLayout):
            distances = torch.arange(-layout.longest, layout.longest + 1, device=layout.cu_k.device)
            masks = [positions.bias(distances.new_zeros(1), distances, is_causal)[:, 0].contiguous()]
        else:
            indices = [torch.arange(mask.shape[-1], device=mask.device) for mask in masks]
            biases = [positions.bias(index, index, is_causal) for index in indices]  # [H, W, W]
            masks = [mask + bias.to(mask.dtype) for mask, bias in zip(masks, biases, strict=True)]
    return Rows(layout, tuple(masks), is_causal, dropout)


@dataclass(frozen=True)
class Packed:
    """The context of a packed batch: its rows have the keys and values."""

    self_rows: Rows  # for self-attention
    angles: Tensor | None  # see `Positions.angles`

    def rotated(self, x: Tensor) -> Tensor:
        """Return queries or keys [T, n, heads, E], rotated if the position scheme rotates them."""
        return rotated(x, self.angles)

    def attend(self, kernels: Kernels, *projections: Tensor) -> Tensor:
        """Return self-attention [T, H E]; see `Kernels.attend`."""
        return kernels.attend(self.self_rows, *projections)


@dataclass(frozen=True)
class PackedTarget(Packed):
    """The context of a packed batch in the decoder, which also attends to the encoder's output."""

    cross_rows: Rows  # for cross-attention
    memory: Tensor  # [S, D] the encoder's output

    def attend_memory(self, kernels: Kernels, q: Tensor, keys_and_values: KeysAndValues) -> Tensor:
        """Return cross-attention [T, H E] of queries [T, 1, H, E]."""
        return kernels.attend(self.cross_rows, q, *keys_and_values(self.memory))


@dataclass(frozen=True)
class Recorded(PackedTarget):
    """A decoder context of packed tiles that records the weights of cross-attention."""

    weights: list[Tensor] = field(default_factory=list)  # [n, H, W, W] float32 for each group of tiles

    def attend_memory(self, kernels: Kernels, q: Tensor, keys_and_values: KeysAndValues) -> Tensor:
        assert isinstance(self.cross_rows.layout, TileLayout)
        queries, keys, _ = separate((q, *keys_and_values(self.memory)))
        for group, mask in zip(self.cross_rows.layout.groups, self.cross_rows.masks, strict=True):
            q_tiles, k_tiles = (group.tiles(x).transpose(1, 2) for x in (queries, keys))
            scores = attention_scores(q_tiles, k_tiles, mask)
            self.weights.append(functional.softmax(scores, -1, dtype=torch.float32))
        return super().attend_memory(kernels, q, keys_and_values)


@dataclass
class Cache:
    """The keys, values and states that decoding keeps between steps.

    A slot is written once and never moved. When beams are selected, only the ancestry table is reordered:
    `ancestors[b, k, i]` is the slot that holds position i of the hypothesis that is now beam k, or K if position i is
    not decoded yet. States are small tensors of layers without attention; they are reordered themselves.
    """

    keys: Tensor  # [L, B, G, t, K, E] slots of the decoder's self-attention
    values: Tensor
    memory_keys: Tensor  # [L, B, G, W, E] of the encoder's output, once per sentence
    memory_values: Tensor
    memory_mask: Tensor | None  # [B, 1, 1, W]; None if all sentences are equally long
    ancestors: Tensor  # [B, K, t] int64
    slot_masks: Tensor  # [K + 1, K]: row i masks all slots of a position except slot i; row K masks all slots
    position: Tensor  # [1] int64: number of decoded positions, on the device
    length: int = 0  # the same number, on the host
    states: dict[str, Tensor] = field(default_factory=dict)  # [B, K, …] each
    ancestry_mask: Tensor | None = None  # [B, 1 or H, k, t K], of the current step
    angles: Tensor | None = None  # of the current step

    @classmethod
    def empty(cls, memory_keys: Tensor, memory_values: Tensor, memory_mask: Tensor | None, n_beams: int) -> Cache:
        """Return a cache without positions. It grows when it is used."""
        device, n_sentences = memory_keys.device, memory_keys.shape[1]
        slots = memory_keys.new_zeros((*memory_keys.shape[:3], 0, n_beams, memory_keys.shape[-1]))
        ancestors = torch.zeros((n_sentences, n_beams, 0), dtype=torch.int64, device=device)
        slot_masks = memory_keys.new_full((n_beams + 1, n_beams), MASKED).fill_diagonal_(0)
        position = torch.zeros(1, dtype=torch.int64, device=device)
        return cls(slots, slots, memory_keys, memory_values, memory_mask, ancestors, slot_masks, position)

    @property
    def capacity(self) -> int:
        """t: the number of positions that fit."""
        return self.ancestors.shape[2]

    def tensors(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """Yield each tensor that is kept from step to step: the dictionary that holds it, its key there, and itself."""
        for held in (vars(self), self.states):
            for name, value in held.items():
                if isinstance(value, Tensor) and name not in ("ancestry_mask", "angles"):
                    yield held, name, value

    def copy(self) -> Cache:
        """Return another cache with the same tensors."""
        return replace(self, states=dict(self.states))

    def begin_step(self, n_open: int, positions: Positions) -> None:
        """Add a position, at which each beam is its own ancestor, and compute the ancestry mask of the k open beams."""
        if self.length == self.capacity:
            self.grow()
        n_sentences, n_beams, _ = self.ancestors.shape
        device = self.ancestors.device
        self.write(self.ancestors, torch.arange(n_beams, device=device).expand(n_sentences, -1))
        mask = functional.embedding(self.ancestors[:, :n_open], self.slot_masks)  # [B, k, t, K]
        self.ancestry_mask = mask.view(n_sentences, 1, n_open, -1)
        if positions.adds_to_scores:
            bias = positions.bias(self.position, torch.arange(self.capacity, device=device), True)  # [H, 1, t]
            slot_bias = bias[..., None].expand(-1, -1, -1, n_beams).flatten(2)  # [H, 1, t K]
            self.ancestry_mask = self.ancestry_mask + slot_bias.to(mask.dtype)
        self.angles = positions.angles(self.position, self.capacity)

    def write(self, stored: Tensor, values: Tensor) -> None:
        """Write values at the current position of the third dimension of `stored`, a dimension that they lack."""
        stored.select(2, self.length).copy_(values)

    def grow(self, n_positions: int = GROWTH) -> None:
        """Make room for n_positions more."""
        # Few at a time: matrix products run over the whole tensor, because a slice of it would have to be copied.
        self.keys = functional.pad(self.keys, (0, 0, 0, 0, 0, n_positions))
        self.values = functional.pad(self.values, (0, 0, 0, 0, 0, n_positions))
        self.ancestors = functional.pad(self.ancestors, (0, n_positions), value=self.ancestors.shape[1])

    def select_beams(self, parents: Tensor) -> None:
        """End the step: beam k of sentence b now continues the hypothesis of beam parents[b, k]."""
        self.length += 1
        self.position = self.position + 1
        self.ancestors = self.ancestors.gather(1, parents[:, :, None].expand(-1, -1, self.capacity))
        for name, state in self.states.items():
            index = parents.view(*parents.shape, *[1] * (state.ndim - 2)).expand(-1, -1, *state.shape[2:])
            self.states[name] = state.gather(1, index)

    def keep_sentences(self, rows: Tensor) -> None:
        """Keep only these sentences; rows [n] are their indices in the batch."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.memory_keys = self.memory_keys.index_select(1, rows)
        self.memory_values = self.memory_values.index_select(1, rows)
        self.memory_mask = None if self.memory_mask is None else self.memory_mask[rows]
        self.ancestors = self.ancestors[rows]
        self.states = {name: state[rows] for name, state in self.states.items()}


class StaticCache(Cache):
    """A cache whose steps can be captured as CUDA graphs: no device operation depends on a number on the host."""

    def write(self, stored: Tensor, values: Tensor) -> None:
        stored.index_copy_(2, self.position, values.unsqueeze(2))


@dataclass(frozen=True)
class Cached:
    """The context of a decoding step: a cache has the keys of the layer; rows are the k open beams of each sentence."""

    cache: Cache
    layer: int

    def rotated(self, x: Tensor) -> Tensor:
        return rotated(x, self.cache.angles)

    def attend(self, kernels: Kernels, *projections: Tensor) -> Tensor:
        cache = self.cache
        q, k, v = (part for x in projections for part in self._beams(x))
        keys, values = cache.keys[self.layer], cache.values[self.layer]  # [B, G, t, K, E]
        cache.write(keys[:, :, :, : k.shape[2]], k)
        cache.write(values[:, :, :, : k.shape[2]], v)
        # The beams of a sentence are query rows over all its slots; the mask hides the slots of other hypotheses.
        return _rows(kernels.attend_step(q, keys.flatten(2, 3), values.flatten(2, 3), cache.ancestry_mask))

    def attend_memory(self, kernels: Kernels, q: Tensor, keys_and_values: KeysAndValues) -> Tensor:
        keys, values = self.cache.memory_keys[self.layer], self.cache.memory_values[self.layer]
        return _rows(kernels.attend_step(self._beams(q)[0], keys, values, self.cache.memory_mask))

    def _beams(self, x: Tensor) -> Tensor:
        """Return x [B k, n, heads, E] as [n, B, heads, k, E]."""
        return x.view(len(self.cache.ancestors), -1, *x.shape[1:]).permute(2, 0, 3, 1, 4)


def _rows(x: Tensor) -> Tensor:
    """Return x [B, H, k, E] as [B k, H E]."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


Context = Packed | Cached  # a layer is called with its input and a context
TargetContext = PackedTarget | Cached
