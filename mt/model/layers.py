"""Layers and their parts: projections, norms, residual sums, attention, the feed-forward network.

T rows, S rows of the encoder's output, D d_model, F d_ff; H heads, G heads of keys and values, E = D / H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mt.config.settings import ModelConfig
from mt.dropout import add_dropped, checkpoint_rng_contexts, dropout
from mt.model.context import Context, TargetContext
from mt.model.kernels import Layer, activation
from mt.model.positions import POSITIONS

EPSILON = 1e-5  # of norms
# A layer returns its output and, if it has one, an auxiliary loss that is added to that of the batch (nats, summed over
# tokens).
Output = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class LayerSpec:
    """The config of a layer and its place in the stack, which set the scale of residual sums and initial weights."""

    config: ModelConfig
    is_decoder: bool
    index: int  # from 0

    @property
    def n_sums(self) -> int:
        """Number of residual sums in the stack."""
        if self.is_decoder:
            return self.config.n_decoder_layers * (2 if self.config.ffn_sharing == "wide" else 3)
        return self.config.n_encoder_layers * 2

    @property
    def alpha(self) -> float:
        """Factor of x in the residual sums of DeepNorm. Source: Wang et al. 2022, figure 2."""
        n, m = self.config.n_encoder_layers, self.config.n_decoder_layers
        return float(self.n_sums**0.25 if self.is_decoder else 0.81 * (n**4 * m) ** (1 / 16))

    def gains(self, *names: str) -> list[float]:
        """Return gains for the initial weights of projections called `query`, `key`, `value`, `inner` or `out`."""
        config, n, m = self.config, self.config.n_encoder_layers, self.config.n_decoder_layers
        beta = (4 * self.n_sums) ** -0.25 if self.is_decoder else 0.87 * (n**4 * m) ** (-1 / 16)
        value = beta if config.norm == "deepnorm" else 1.0
        out = 0.0 if config.zero_init_out else value
        if config.init == "scaled":  # Radford et al. 2019, section 2.3
            out *= self.n_sums**-0.5
        # Zhang, Titov and Sennrich 2019.
        by_depth = (self.index + 1) ** -0.5 if config.init == "depth_scaled" else 1.0
        gains = {"query": 1.0, "key": 1.0, "value": value, "inner": value, "out": out}
        return [by_depth * gains[name] for name in names]


class Linear(nn.Linear, Layer):
    """Several projections of one input, in one matrix. Products have the type of the input.

    Args:
        parts: output features of each projection.
        gains: factors of the initial weights of each projection, which are Xavier uniform.
    """

    packed: tuple[Tensor, Tensor | None] | None = None  # see `Kernels.packed`

    def __init__(self, n_inputs: int, parts: Sequence[int], gains: Sequence[float], bias: bool) -> None:
        super().__init__(n_inputs, sum(parts), bias)
        self.parts, self.gains = list(parts), gains

    def initialise(self) -> None:
        """Initialise the weights, each projection as a separate matrix; biases are 0."""
        for part, gain in zip(torch.split(self.weight, self.parts), self.gains, strict=True):
            nn.init.xavier_uniform_(part, gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.linear(x, self)


class LayerNorm(nn.LayerNorm, Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.layer_norm(x, self)


class RMSNorm(nn.RMSNorm, Layer):
    """Source: Zhang and Sennrich 2019."""

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.rms_norm(x, self)


def norm_of(config: ModelConfig) -> LayerNorm | RMSNorm:
    """Return a norm of D features."""
    if config.norm_kind == "rms":
        return RMSNorm(config.d_model, EPSILON)
    return LayerNorm(config.d_model, EPSILON, bias=config.bias)


class PostNorm(Layer):
    """norm(x + sublayer(x)). Source: Vaswani et al. 2017, section 3.1."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.norm, self.dropout, self.alpha = norm_of(spec.config), spec.config.dropout, spec.alpha

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(add_dropped(x, sublayer(x), self.dropout, self.training))


class PreNorm(PostNorm):
    """x + sublayer(norm(x)). Source: Xiong et al. 2020."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return add_dropped(x, sublayer(self.norm(x)), self.dropout, self.training)


class DeepNorm(PostNorm):
    """norm(α x + sublayer(x)). Source: Wang et al. 2022."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(add_dropped(self.alpha * x, sublayer(x), self.dropout, self.training))


class NoResidual(Layer):
    """The residual sum of a missing sub-layer: it returns x."""

    def forward(self, x: Tensor, sublayer: object) -> Tensor:
        return x


RESIDUALS = {"post": PostNorm, "pre": PreNorm, "deepnorm": DeepNorm}


class FeedForward(Layer):
    """Two linear layers with an activation between them."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        config, self.activation = spec.config, activation(spec.config.activation)
        names = ["inner"] * self.activation.n_inputs
        self.inner = Linear(config.d_model, [config.d_ff] * len(names), spec.gains(*names), config.bias)
        self.outer = Linear(config.d_ff, [config.d_model], spec.gains("out"), config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.feed_forward(x, self.inner, self.activation, self.outer)


class Attention(Layer):
    """Multi-head attention. Source: Vaswani et al. 2017, section 3.2.

    `n_kv_heads`: Shazeer 2019, Ainslie et al. 2023. `qk_norm`: Henry et al. 2020, here an RMS norm.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        config, self.n_features = spec.config, spec.config.d_model // spec.config.n_heads
        self.d_keys = (config.n_kv_heads or config.n_heads) * self.n_features
        norm = (lambda: RMSNorm(self.n_features, EPSILON)) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def heads(self, x: Tensor, n: int = 1) -> Tensor:
        """Return n projections x [T, n heads E] as [T, n, heads, E]."""
        return x.view(*x.shape[:-1], n, -1, self.n_features)


class SelfAttention(Attention):
    """Attention of a sequence to itself. Queries, keys and values are one tensor, which is not split."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        d, bias = spec.config.d_model, spec.config.bias
        self.qkv = Linear(d, [d, self.d_keys, self.d_keys], spec.gains("query", "key", "value"), bias)
        self.out = Linear(d, [d], spec.gains("out"), bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.out(context.attend(self.kernels, self.heads(self.qkv(x), 3)))


class SplitSelfAttention(SelfAttention):
    """Self-attention with separate queries, keys and values: for fewer key heads, norms or rotation."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = (self.heads(part) for part in torch.split(self.qkv(x), self.qkv.parts, -1))
        q, k = context.rotated(self.q_norm(q)), context.rotated(self.k_norm(k))
        return self.out(context.attend(self.kernels, q, k, v))


def self_attention(spec: LayerSpec) -> SelfAttention:
    """Return the self-attention of a layer."""
    config = spec.config
    is_split = config.qk_norm or POSITIONS[config.positions].rotates or config.n_kv_heads not in (None, config.n_heads)
    return SplitSelfAttention(spec) if is_split else SelfAttention(spec)


class CrossAttention(Attention):
    """Attention of the target to the encoder's output; keys and values are one projection."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        d, bias = spec.config.d_model, spec.config.bias
        self.q = Linear(d, [d], spec.gains("query"), bias)
        self.kv = Linear(d, [self.d_keys, self.d_keys], spec.gains("key", "value"), bias)
        self.out = Linear(d, [d], spec.gains("out"), bias)

    def forward(self, x: Tensor, context: TargetContext) -> Tensor:
        return self.out(context.attend_memory(self.kernels, self.queries(x), self.keys_and_values))

    def queries(self, x: Tensor) -> Tensor:
        """Return [T, 1, H, E], from x [T, D]."""
        return self.heads(self.q(x))

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Return [S, 2, G, E], or separate keys and values [S, 1, G, E], from memory [S, D]."""
        return (self.heads(self.kv(memory), 2),)


class NormedCrossAttention(CrossAttention):
    """Cross-attention with norms of queries and keys."""

    def queries(self, x: Tensor) -> Tensor:
        return self.q_norm(super().queries(x))

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, ...]:
        k, v = torch.split(self.heads(self.kv(memory), 2), 1, 1)
        return self.k_norm(k), v


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, its own or one that all encoder layers share."""

    def __init__(self, spec: LayerSpec, shared: FeedForward | None) -> None:
        super().__init__()
        residual = RESIDUALS[spec.config.norm]
        self.self_attention = self_attention(spec)
        self.self_residual = residual(spec)
        if shared is None:
            self.feed_forward = FeedForward(spec)
        else:
            self.__dict__["feed_forward"] = shared  # not registered here: it belongs to the model
        self.feed_forward_residual = residual(spec)

    def forward(self, x: Tensor, context: Context) -> Output:
        x = self.self_residual(x, lambda y: self.self_attention(y, context))
        return self.feed_forward_residual(x, self.feed_forward), None


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, and a feed-forward network, which may be missing."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        residual, has_network = RESIDUALS[spec.config.norm], spec.config.ffn_sharing == "none"
        self.self_attention = self_attention(spec)
        self.self_residual = residual(spec)
        self.cross_attention = NormedCrossAttention(spec) if spec.config.qk_norm else CrossAttention(spec)
        self.cross_residual = residual(spec)
        self.feed_forward = FeedForward(spec) if has_network else nn.Identity()
        self.feed_forward_residual = residual(spec) if has_network else NoResidual()

    def forward(self, x: Tensor, context: TargetContext) -> Output:
        x = self.self_residual(x, lambda y: self.self_attention(y, context))
        x = self.cross_residual(x, lambda y: self.cross_attention(y, context))
        return self.feed_forward_residual(x, self.feed_forward), None


class Stack(nn.ModuleList):
    """Layers in sequence. With `recomputes`, only their inputs are kept, and the backward pass runs them again."""

    def __init__(self, layers: Iterable[nn.Module], recomputes: bool, layer_dropout: float) -> None:
        super().__init__(layers)
        self.layer_dropout, self.run = layer_dropout, run_checkpointed if recomputes else nn.Module.__call__

    def forward(self, x: Tensor, contexts: Iterable[Context]) -> tuple[Tensor, list[Tensor]]:
        """Run as many layers as there are contexts; return the output and all auxiliary losses."""
        losses: list[Tensor] = []
        for layer, context in zip(self, contexts, strict=False):
            y, loss = self.run(layer, x, context)
            x = self.next_input(x, y)
            losses += [] if loss is None else [loss]
        return x, losses

    def next_input(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the input of the next layer, from the input x and the output y of this one."""
        return y


class DroppingStack(Stack):
    """Layers in sequence; in training, random layers are replaced by their input. Source: Fan et al. 2020 (LayerDrop).

    Replaced layers are still computed, so that every parameter has a gradient, and their auxiliary losses count.
    """

    def next_input(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.training:
            return y
        return torch.where(dropout(x.new_ones(1), self.layer_dropout, True) > 0, y, x)


# Runs a layer, keeps only its inputs, and runs it again in the backward pass.
run_checkpointed = partial(checkpoint, use_reentrant=False, context_fn=checkpoint_rng_contexts)
