"""The encoder-decoder Transformer, top to bottom: packed for training, cached for decoding, from the same weights.

S source rows, T target rows (packed, see data/batch.py), D d_model, F d_ff, H heads, E = D / H, V vocabulary;
in decoding B sentences, K beams, t positions decoded so far, W source width.

Source: Vaswani et al. 2017. `norm: pre` is Xiong et al. 2020.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mt.attention import attention, attention_weights, masked_attention
from mt.config import ModelConfig
from mt.data.batch import MASKED, Layout, PackedBatch, SourceBatch, TileLayout
from mt.dropout import add_dropped, dropout, replayed
from mt.fused import feed_forward, linear, tiled_attention

VOCAB_MULTIPLE = 128  # rows of the embedding; matrix units like multiples of it


def _is_fused(x: Tensor) -> bool:
    """Whether x takes the way of mt/fused.py: on the CPU, where there is a backward pass to save."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


class Linear(nn.Linear):
    """A linear layer whose weights are kept in float32 and multiplied in the type of the input."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_fused(x):
            return linear(x, self.weight, self.bias)
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


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
        return self.outer(functional.relu(self.inner(x)))  # type: ignore[no-any-return]


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
        """One position of each beam, x [B K, D]: its keys and values join the cache, which is never reordered."""
        n_sentences, n_heads, _, n_beams, _ = cache.keys.shape[1:]
        q, k, v = self.qkv(x).view(n_sentences, n_beams, 3, n_heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, K, E] each
        keys, values = cache.keys[layer], cache.values[layer]  # [B, H, t_max, K, E]
        keys[:, :, cache.length], values[:, :, cache.length] = k, v
        stop = (cache.length + 1) * n_beams
        # The K beams of a sentence are K query rows over all its t K slots; ancestry masks the slots of others.
        out = masked_attention(
            q, keys.flatten(2, 3)[:, :, :stop], values.flatten(2, 3)[:, :, :stop], cache.ancestry_bias
        )
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
        """One position of each beam, x [B K, D]; all beams of a sentence share its memory."""
        n_sentences, n_heads, _, n_beams, _ = cache.keys.shape[1:]
        q = self.q(x).view(n_sentences, n_beams, n_heads, -1).transpose(1, 2)  # [B, H, K, E]
        out = masked_attention(q, cache.memory_keys[layer], cache.memory_values[layer], cache.memory_bias)
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
        """One position of each beam, x [B K, D]."""
        x = self.self_residual(x, lambda y: self.self_attention.step(y, cache, layer))
        x = self.cross_residual(x, lambda y: self.cross_attention.step(y, cache, layer))
        return self.feed_forward_residual(x, self.feed_forward)  # type: ignore[no-any-return]


@dataclass
class DecoderCache:
    """What decoding keeps between steps. Slots are written once and stay where they are.

    After each choice of beams only the ancestry table moves: `ancestors[b, k, i]` is the slot that holds position i of
    the hypothesis that is now beam k.
    """

    keys: Tensor  # [L, B, H, t_max, K, E] of the decoder's self-attention
    values: Tensor
    memory_keys: Tensor  # [L, B, H, W, E] of the encoder's output, once for each sentence
    memory_values: Tensor
    memory_bias: Tensor  # [B, 1, 1, W]
    ancestors: Tensor  # [B, K, t_max] int8
    ancestry_bias: Tensor  # [B, 1, K, (t + 1) K], for the step in progress
    length: int = 0  # positions decoded so far

    @property
    def max_length(self) -> int:
        """t_max: positions that there is room for."""
        return self.ancestors.shape[2]

    def begin_step(self) -> None:
        """Enter each beam as its own ancestor at the position to come, and make the mask that follows."""
        n_sentences, n_beams, _ = self.ancestors.shape
        slots = torch.arange(n_beams, dtype=torch.int8, device=self.ancestors.device)
        self.ancestors[:, :, self.length] = slots
        own = self.ancestors[:, :, : self.length + 1, None] == slots  # [B, K, t + 1, K]
        bias = torch.zeros(own.shape, dtype=self.keys.dtype, device=own.device).masked_fill_(~own, MASKED)
        self.ancestry_bias = bias.view(n_sentences, 1, n_beams, -1)

    def choose(self, parents: Tensor) -> None:
        """Beam k of sentence b now continues the hypothesis of beam parents[b, k]."""
        used = self.ancestors[:, :, : self.length]
        self.ancestors[:, :, : self.length] = used.gather(1, parents[:, :, None].expand(used.shape))

    def keep_sentences(self, rows: Tensor) -> None:
        """Only these sentences go on; rows [n] are their places in the batch."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.memory_keys = self.memory_keys.index_select(1, rows)
        self.memory_values = self.memory_values.index_select(1, rows)
        self.memory_bias, self.ancestors = self.memory_bias[rows], self.ancestors[rows]


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

    def begin_decoding(self, sources: SourceBatch, n_beams: int, max_length: int) -> DecoderCache:
        """Encode the sentences and lay out the cache for up to max_length target positions."""
        memory = self.encode(sources.ids, sources.positions, sources.layout, sources.width)  # [B W, D]
        n_sentences, n_heads = len(sources.lengths), self.config.n_heads
        n_features = self.config.d_model // n_heads
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer in self._decoder_layers:
            k, v = layer.cross_attention.keys_and_values(memory).unbind(1)
            for stored, x in ((keys, k), (values, v)):
                stored.append(x.view(n_sentences, sources.width, n_heads, -1).transpose(1, 2))  # [B, H, W, E]
        shape = (len(self.decoder), n_sentences, n_heads, max_length, n_beams, n_features)
        return DecoderCache(
            keys=torch.zeros(shape, dtype=memory.dtype, device=memory.device),
            values=torch.zeros(shape, dtype=memory.dtype, device=memory.device),
            memory_keys=torch.stack(keys).contiguous(),
            memory_values=torch.stack(values).contiguous(),
            memory_bias=sources.layout.groups[0].bias,
            ancestors=torch.zeros((n_sentences, n_beams, max_length), dtype=torch.int8, device=memory.device),
            ancestry_bias=torch.empty(0, device=memory.device),
        )

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits [B K, V] of the tokens that may follow; tokens [B K] are the last ones of the beams."""
        cache.begin_step()
        positions = torch.full_like(tokens, cache.length)
        x = self._embed(tokens, positions, cache.length + 1)  # [B K, D]
        for i, layer in enumerate(self._decoder_layers):
            x = layer.step(x, cache, i)
        cache.length += 1
        return self.logits(self.decoder_norm(x))

    @property
    def _decoder_layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder))

    def for_inference(self, dtype: torch.dtype) -> Transformer:
        """A copy that cannot be trained, all of it in one type, so that no step converts weights again."""
        model = copy.deepcopy(self).to(dtype)
        model.dtype = dtype
        return model.requires_grad_(False).eval()

    def _embed(self, ids: Tensor, positions: Tensor, max_positions: int) -> Tensor:
        if max_positions > len(self._positions):
            self._positions = sinusoidal_positions(2 * max_positions, self.config.d_model)
        if self._positions.device != ids.device:
            self._positions = self._positions.to(ids.device)
        x = self.embedding(ids).float() * math.sqrt(self.config.d_model) + self._positions[positions]
        return dropout(x.to(self.dtype), self.config.dropout, self.training)


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """[n, D] float32: sines in even columns, cosines in odd ones. Source: Vaswani et al. 2017, section 3.5."""
    rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000) / d_model))
    angles = torch.arange(n_positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
