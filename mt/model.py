"""The encoder-decoder Transformer, top to bottom: packed for training, cached for decoding, from the same weights.

S source rows, T target rows (packed, see data/batch.py), D d_model, F d_ff, H heads, E = D / H, V vocabulary;
in decoding B sentences, K beams, k of them open, t positions that the cache has room for, W source width.

Source: Vaswani et al. 2017. `norm: pre` is Xiong et al. 2020.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mt.attention import attention, attention_weights, decoding_attention
from mt.config import ModelConfig
from mt.data.batch import MASKED, Layout, PackedBatch, SourceBatch, TileLayout
from mt.dropout import add_dropped, dropout, replayed
from mt.fused import feed_forward, linear, packed_product, packed_weight, tiled_attention

VOCAB_MULTIPLE = 128  # rows of the embedding; matrix units like multiples of it
ROOM = 8  # positions that the cache of a decoder grows by


def _is_fused(x: Tensor) -> bool:
    """Whether x takes the way of mt/fused.py: on the CPU, where there is a backward pass to save."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


class Linear(nn.Linear):
    """A linear layer whose weights are kept in float32 and multiplied in the type of the input."""

    packed: Tensor | None = None  # the weight in the layout of the library that multiplies, for inference on a CPU

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return packed_product(x, self.packed, self.bias)
        if _is_fused(x):
            return linear(x, self.weight, self.bias)
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    def relu(self, x: Tensor) -> Tensor:
        """The same with a ReLU behind it."""
        if self.packed is not None:
            return packed_product(x, self.packed, self.bias, "relu")
        return functional.relu(self(x))


class LayerNorm(nn.LayerNorm):
    """Layer norm in the type of the input; its statistics are taken in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # takes parameters of another type, and then is faster
            return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return functional.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Residual(nn.Module):
    """x plus what a sub-layer makes of it, with dropout, and the norm after (the paper) or before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.d_model)
        self.norm_first = config.norm == "pre"
        self.dropout = config.dropout

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return add_dropped(x, sublayer(self.norm(x)), self.dropout, self.training)
        return self.norm(add_dropped(x, sublayer(x), self.dropout, self.training))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = Linear(config.d_model, config.d_ff)
        self.outer = Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        if _is_fused(x):
            return feed_forward(x, self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias)
        return self.outer(self.inner.relu(x))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Attention of a sequence to itself; queries, keys and values are one projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.attention_dropout = config.attention_dropout
        self.qkv = Linear(config.d_model, 3 * config.d_model)
        self.out = Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, layout: Layout, causal: bool) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, -1))  # [T, 3, H, E]
        p = self.attention_dropout if self.training else 0.0
        if _is_fused(x) and isinstance(layout, TileLayout) and p == 0:
            return self.out(tiled_attention(layout, qkv))  # type: ignore[no-any-return]
        q, k, v = qkv.unbind(1)
        return self.out(attention(q, k, v, layout, causal, p).flatten(1))  # type: ignore[no-any-return]

    def step(self, x: Tensor, cache: DecoderCache, layer: int) -> Tensor:
        """One position of k open beams, x [B k, D]: its keys and values join the cache, which is never reordered."""
        n_sentences = cache.n_sentences
        qkv = self.qkv(x).view(n_sentences, len(x) // n_sentences, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, k, E] each
        cache.write(layer, k, v)
        # The beams of a sentence are query rows over all its slots; ancestry masks those of others.
        keys, values = cache.keys[layer].flatten(2, 3), cache.values[layer].flatten(2, 3)  # [B, H, t K, E]
        out = decoding_attention(q, keys, values, cache.ancestry_bias)
        return self.out(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention of the target to the encoder's output; keys and values are one projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.attention_dropout = config.attention_dropout
        self.q = Linear(config.d_model, config.d_model)
        self.kv = Linear(config.d_model, 2 * config.d_model)
        self.out = Linear(config.d_model, config.d_model)

    def keys_and_values(self, memory: Tensor) -> Tensor:
        """[S, 2, H, E], from memory [S, D]."""
        return self.kv(memory).unflatten(-1, (2, self.n_heads, -1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, memory: Tensor, layout: Layout) -> Tensor:
        q = self.q(x).unflatten(-1, (self.n_heads, -1))  # [T, H, E]
        kv = self.keys_and_values(memory)
        p = self.attention_dropout if self.training else 0.0
        if _is_fused(x) and isinstance(layout, TileLayout) and p == 0:
            return self.out(tiled_attention(layout, q[:, None], kv))  # type: ignore[no-any-return]
        k, v = kv.unbind(1)
        return self.out(attention(q, k, v, layout, False, p).flatten(1))  # type: ignore[no-any-return]

    def weights(self, x: Tensor, memory: Tensor, layout: TileLayout) -> list[Tensor]:
        """What `forward` weighs the values with: [n, H, Wq, Wk] float32 for each group of tiles."""
        q = self.q(x).unflatten(-1, (self.n_heads, -1))  # [T, H, E]
        return attention_weights(q, self.keys_and_values(memory)[:, 0], layout)

    def step(self, x: Tensor, cache: DecoderCache, layer: int) -> Tensor:
        """One position of k open beams, x [B k, D]; all beams of a sentence share its memory."""
        n_sentences = cache.n_sentences
        q = self.q(x).view(n_sentences, len(x) // n_sentences, self.n_heads, -1).transpose(1, 2)  # [B, H, k, E]
        out = decoding_attention(q, cache.memory_keys[layer], cache.memory_values[layer], cache.memory_bias)
        return self.out(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.self_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.self_residual(x, lambda y: self.self_attention(y, layout, causal=False))
        return self.feed_forward_residual(x, self.feed_forward)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.self_residual = Residual(config)
        self.cross_attention = CrossAttention(config)
        self.cross_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, memory: Tensor, self_layout: Layout, cross_layout: Layout) -> Tensor:
        x = self.self_residual(x, lambda y: self.self_attention(y, self_layout, causal=True))
        x = self.cross_residual(x, lambda y: self.cross_attention(y, memory, cross_layout))
        return self.feed_forward_residual(x, self.feed_forward)  # type: ignore[no-any-return]

    def cross_weights(self, x: Tensor, memory: Tensor, self_layout: Layout, cross_layout: TileLayout) -> list[Tensor]:
        """What the cross-attention weighs the values with, see `CrossAttention.weights`."""
        x = self.self_residual(x, lambda y: self.self_attention(y, self_layout, causal=True))
        x = self.cross_residual.norm(x) if self.cross_residual.norm_first else x
        return self.cross_attention.weights(x, memory, cross_layout)

    def step(self, x: Tensor, cache: DecoderCache, layer: int) -> Tensor:
        """One position of k open beams, x [B k, D]."""
        x = self.self_residual(x, lambda y: self.self_attention.step(y, cache, layer))
        x = self.cross_residual(x, lambda y: self.cross_attention.step(y, cache, layer))
        return self.feed_forward_residual(x, self.feed_forward)  # type: ignore[no-any-return]


@dataclass
class DecoderCache:
    """What decoding keeps between steps. Slots are written once and stay where they are.

    After each choice of beams only the ancestry table moves: `ancestors[b, k, i]` is the slot that holds position i of
    the hypothesis that is now beam k, and K where i is still to come.
    """

    keys: Tensor  # [L, B, H, t, K, E] of the decoder's self-attention, for the t positions that there is room for
    values: Tensor
    memory_keys: Tensor  # [L, B, H, W, E] of the encoder's output, once for each sentence
    memory_values: Tensor
    memory_bias: Tensor | None  # [B, 1, 1, W]; None where all sentences are equally long
    ancestors: Tensor  # [B, K, t] int64
    bias_of_slot: Tensor  # [K + 1, K]: what masks all slots of a position but one, and in the last row all of them
    ancestry_bias: Tensor  # [B, 1, k, t K], for the step in progress
    position: Tensor  # [1] int64: positions decoded so far, for the device
    length: int = 0  # and for the host
    is_static: bool = False  # the host's knowledge stays out of what the device does, so that a step can be captured

    @property
    def n_sentences(self) -> int:
        return self.ancestors.shape[0]

    def begin_step(self, n_open: int) -> None:
        """Make room for a position, enter each of k open beams as its own ancestor there, and make the mask."""
        if self.length == self.room:
            self.grow()
        n_beams = self.ancestors.shape[1]
        slots = torch.arange(n_beams, device=self.ancestors.device)
        self.enter(self.ancestors, 2, slots.expand(self.n_sentences, -1))
        bias = functional.embedding(self.ancestors[:, :n_open], self.bias_of_slot)  # [B, k, t, K]
        self.ancestry_bias = bias.view(self.n_sentences, 1, n_open, -1)

    @property
    def room(self) -> int:
        """t: positions that there is room for."""
        return self.ancestors.shape[2]

    def enter(self, stored: Tensor, dim: int, values: Tensor) -> None:
        """Write values, which lack the dimension of positions, to the position in progress."""
        if self.is_static:
            stored.index_copy_(dim, self.position, values.unsqueeze(dim))
        else:
            stored.select(dim, self.length).copy_(values)

    def grow(self, n_positions: int = ROOM) -> None:
        """Make room for some more positions."""
        # A little at a time: products run over the whole of a tensor, since a part of it would be copied for each.
        self.keys = functional.pad(self.keys, (0, 0, 0, 0, 0, n_positions))
        self.values = functional.pad(self.values, (0, 0, 0, 0, 0, n_positions))
        self.ancestors = functional.pad(self.ancestors, (0, n_positions), value=self.ancestors.shape[1])

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Those of the position in progress, [B, H, k, E] each."""
        n_open = keys.shape[2]
        self.enter(self.keys[layer, :, :, :, :n_open], 2, keys)
        self.enter(self.values[layer, :, :, :, :n_open], 2, values)

    def choose(self, parents: Tensor) -> None:
        """Beam k of sentence b now continues the hypothesis of beam parents[b, k]."""
        self.ancestors = self.ancestors.gather(1, parents[:, :, None].expand(-1, -1, self.ancestors.shape[2]))

    def keep_sentences(self, rows: Tensor) -> None:
        """Only these sentences go on; rows [n] are their places in the batch."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.memory_keys = self.memory_keys.index_select(1, rows)
        self.memory_values = self.memory_values.index_select(1, rows)
        self.memory_bias = None if self.memory_bias is None else self.memory_bias[rows]
        self.ancestors = self.ancestors[rows]


class Transformer(nn.Module):
    """The model. It knows neither text nor devices; rows of no sentence pass through it and mean nothing.

    Args:
        config: its shape.
        vocab_size: V, shared by both languages; the embedding has more rows, see VOCAB_MULTIPLE.
        pad_id: id of padding.
        dtype: of matrix products and of the residual stream; parameters are kept in float32.
        activation_checkpointing: keep the inputs of layers alone for the backward pass, and compute the rest again.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: int,
        pad_id: int,
        dtype: torch.dtype = torch.float32,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        self.dtype = dtype
        self.activation_checkpointing = activation_checkpointing
        n_rows = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.embedding = nn.Embedding(n_rows, config.d_model)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        # With the norm before each sub-layer nothing has normalised the last sum.
        final = (lambda: LayerNorm(config.d_model)) if config.norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = final(), final()
        self._positions = sinusoidal_positions(1024, config.d_model)
        self._packed_output: Tensor | None = None  # as Linear.packed
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Embeddings N(0, D^-0.5), so that scaled by D^0.5 they have variance 1; matrices Xavier uniform, biases 0."""
        nn.init.normal_(self.embedding.weight, std=self.config.d_model**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                # A fused projection is so many square ones side by side, and is drawn as such.
                n_parts = {"qkv": 3, "kv": 2}.get(name.rpartition(".")[2], 1)
                for part in module.weight.chunk(n_parts):
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(module.bias)

    @property
    def output_weight(self) -> Tensor:
        """[V, D]: the rows of the embedding that stand for pieces; the output layer is tied to it."""
        return self.embedding.weight[: self.vocab_size]

    @property
    def n_parameters(self) -> int:
        """Parameters that are learned; rows that pad the vocabulary are not."""
        padding = (self.embedding.num_embeddings - self.vocab_size) * self.config.d_model
        return sum(parameter.numel() for parameter in self.parameters()) - padding

    def training_flops(self, n_src_tokens: int, n_tgt_tokens: int) -> int:
        """Floating-point operations of a forward and a backward pass over so many real tokens, by convention.

        Each weight of a matrix is multiplied and added three times for each token that goes through it: for the
        output, and for the gradients of input and weight. The embedding counts as the output layer alone. Products of
        queries, keys and values are left out, and so is what is not a matrix product.

        Source of the convention: Kaplan et al. 2020, section 2.1.
        """
        matrices = {name: module.weight.numel() for name, module in self.named_modules() if isinstance(module, Linear)}
        # Keys and values of the cross-attention are made of the encoder's output.
        of_source = sum(n for name, n in matrices.items() if name.startswith("encoder.") or name.endswith(".kv"))
        of_target = sum(matrices.values()) - of_source + self.vocab_size * self.config.d_model
        return 6 * (n_src_tokens * of_source + n_tgt_tokens * of_target)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The decoder's last states [T, D] for all target positions; `logits` or the loss takes them on."""
        memory = self.encode(batch.src_ids, batch.src_positions, batch.encoder_layout, batch.max_positions)
        x = self._embed(batch.tgt_inputs, batch.tgt_positions, batch.max_positions)  # [T, D]
        for layer in self.decoder:
            x = self._passed(layer, x, memory, batch.decoder_layout, batch.cross_layout)
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def cross_attention_weights(self, batch: PackedBatch, layer: int) -> list[Tensor]:
        """How much each target row of a batch of tiles attends to each source row, in one layer of the decoder.

        Args:
            layer: counted from 0.
        Returns:
            [n, H, W, W] float32 for each group of tiles in the batch's cross layout, queries before keys.
        """
        assert isinstance(batch.cross_layout, TileLayout)
        memory = self.encode(batch.src_ids, batch.src_positions, batch.encoder_layout, batch.max_positions)
        x = self._embed(batch.tgt_inputs, batch.tgt_positions, batch.max_positions)  # [T, D]
        for before in self._decoder_layers[:layer]:
            x = before(x, memory, batch.decoder_layout, batch.cross_layout)
        return self._decoder_layers[layer].cross_weights(x, memory, batch.decoder_layout, batch.cross_layout)

    def encode(self, ids: Tensor, positions: Tensor, layout: Layout, max_positions: int) -> Tensor:
        """The encoder's output [S, D] for ids [S] and positions [S]; no position reaches max_positions."""
        x = self._embed(ids, positions, max_positions)
        for layer in self.encoder:
            x = self._passed(layer, x, layout)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def _passed(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, context_fn=replayed)  # type: ignore[no-any-return]
        return layer(*inputs)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in the model's dtype, from hidden [..., D]."""
        return functional.linear(hidden, self.output_weight.to(hidden.dtype))

    def begin_decoding(self, sources: SourceBatch, n_beams: int) -> DecoderCache:
        """Encode the sentences and lay out the cache; it grows as it is used."""
        memory = self.encode(sources.ids, sources.positions, sources.layout, sources.width)  # [B W, D]
        n_sentences, n_heads = len(sources.lengths), self.config.n_heads
        n_features = self.config.d_model // n_heads
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer in self._decoder_layers:
            kv = layer.cross_attention.keys_and_values(memory).view(
                n_sentences, sources.width, 2, n_heads, -1
            )  # [B, W, 2, H, E]
            keys.append(kv[:, :, 0].transpose(1, 2))
            values.append(kv[:, :, 1].transpose(1, 2))
        bias_of_slot = torch.full((n_beams + 1, n_beams), MASKED, dtype=memory.dtype, device=memory.device)
        no_room = memory.new_zeros((len(self.decoder), n_sentences, n_heads, 0, n_beams, n_features))
        return DecoderCache(
            keys=no_room,
            values=no_room,
            memory_keys=torch.stack(keys).contiguous(),
            memory_values=torch.stack(values).contiguous(),
            memory_bias=sources.layout.groups[0].bias if sources.has_padding else None,
            ancestors=torch.zeros((n_sentences, n_beams, 0), dtype=torch.int64, device=memory.device),
            bias_of_slot=bias_of_slot.fill_diagonal_(0),
            ancestry_bias=torch.empty(0, device=memory.device),
            position=torch.zeros(1, dtype=torch.int64, device=memory.device),
        )

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits of what may follow the last tokens [B k] of k open beams; on CUDA in float32.

        They are [B k, rows of the embedding], so that they can be seen as blocks; those of no piece are -inf.
        """
        cache.begin_step(len(tokens) // cache.n_sentences)
        x = self._embed(tokens, cache.position, cache.room)  # [B k, D]
        for i, layer in enumerate(self._decoder_layers):
            x = layer.step(x, cache, i)
        cache.length += 1
        cache.position = cache.position + 1
        x = self.decoder_norm(x)
        weight = self.embedding.weight
        if x.is_cuda and x.dtype != torch.float32:
            # In float32, since rounded logits tie; products of this kind exist on CUDA alone.
            logits = torch.mm(x, weight.t(), out_dtype=torch.float32)
        elif self._packed_output is not None:
            logits = packed_product(x, self._packed_output, None)
        else:
            logits = functional.linear(x, weight)
        logits[:, self.vocab_size :] = float("-inf")
        return logits

    @property
    def _decoder_layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder))

    def for_inference(self, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> Transformer:
        """A copy that cannot be trained, all of it in one type, so that no step converts weights again.

        Args:
            weights: of the copy, where they are not the model's own.
        """
        model = copy.deepcopy(self)
        if weights is not None:
            model.load_state_dict(weights)
        model = model.to(dtype)
        model.dtype = dtype
        model.requires_grad_(False).eval()
        if model.embedding.weight.device.type == "cpu":
            model._packed_output = packed_weight(model.embedding.weight)
            for module in model.modules():
                if isinstance(module, Linear):
                    module.packed = packed_weight(module.weight)
        return model

    def _embed(self, ids: Tensor, positions: Tensor, max_positions: int) -> Tensor:
        table = self._positions
        if max_positions > len(table):
            table = sinusoidal_positions(2 * max_positions, self.config.d_model)
        if table.device != ids.device:
            table = table.to(ids.device)
        self._positions = table  # other threads may do the same meanwhile: what this one reads is its own
        scale = math.sqrt(self.config.d_model)
        if torch.is_grad_enabled():
            x = self.embedding(ids).float() * scale + table[positions]
        else:  # the same in one pass
            x = torch.add(table[positions], self.embedding(ids), alpha=scale)
        return dropout(x.to(self.dtype), self.config.dropout, self.training)


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """[n, D] float32: sines in even columns, cosines in odd ones. Source: Vaswani et al. 2017, section 3.5."""
    rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000) / d_model))
    angles = torch.arange(n_positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
