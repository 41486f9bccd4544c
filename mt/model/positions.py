"""Position schemes: a class for each value of `model.positions`, with three hooks.

`embed` adds to embeddings, `angles` rotates queries and keys of self-attention, `bias` adds to its scores. No other
code depends on the scheme.

T rows, D d_model, H heads, E features of a head, q and k positions of queries and keys.
"""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mt.config.settings import ModelConfig
from mt.dropout import dropout
from mt.model.kernels import Layer

N_BUCKETS, LONGEST_DISTANCE = 32, 128  # the values of T5


class Positions(Layer):
    """The base of all schemes: no positions, so that the encoder sees a set of tokens."""

    rotates: ClassVar[bool] = False  # whether `angles` returns a tensor
    adds_to_scores: ClassVar[bool] = False  # whether `bias` must be called; flash attention does not support it
    n_positions: int | None = None  # most tokens that a sentence can have; None: no limit

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale, self.d_model, self.n_heads = math.sqrt(config.d_model), config.d_model, config.n_heads

    def forward(self, rows: Tensor, positions: Tensor, n_positions: int, dtype: torch.dtype, p: float) -> Tensor:
        """Return the result of `embed` in this type, after dropout with probability p."""
        return dropout(self.embed(rows, positions, n_positions).to(dtype), p, self.training)

    def embed(self, rows: Tensor, positions: Tensor, n_positions: int) -> Tensor:
        """Return [T, D] float32: scaled rows [T, D] of an embedding, plus their positions if the scheme adds them.

        Args:
            n_positions: all positions [T] are below this.
        """
        return rows.float() * self.scale

    def angles(self, positions: Tensor, n_positions: int) -> Tensor | None:
        """Return [T, E] float32, cosines before sines, for `rotated`; None: no rotation."""
        return None

    def bias(self, q_positions: Tensor, k_positions: Tensor, causal: bool) -> Tensor:
        """Return [H, q, k], added to the scores of self-attention in the decoder (causal) or the encoder."""
        raise NotImplementedError


class Sinusoidal(Positions):
    """Fixed sines and cosines, added to embeddings. Source: Vaswani et al. 2017, section 3.5."""

    def embed(self, rows: Tensor, positions: Tensor, n_positions: int) -> Tensor:
        table = _table(n_positions, self.d_model, positions.device)
        return self.kernels.scaled_sum(rows, self.scale, table[positions])


class Learned(Positions):
    """A vector for each position, for sentences up to `model.n_positions`. Source: Gehring et al. 2017."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.n_positions, self.embedding = config.n_positions, nn.Embedding(config.n_positions, config.d_model)

    def embed(self, rows: Tensor, positions: Tensor, n_positions: int) -> Tensor:
        # Captured graphs may run a few steps past the longest sentence; that output is discarded.
        indices = positions.clamp(max=self.embedding.num_embeddings - 1)
        return (rows.float() + functional.embedding(indices, self.embedding.weight).float()) * self.scale


class Rotary(Positions):
    """Pairs of features are rotated by an angle that grows with the position. Source: Su et al. 2021."""

    rotates = True

    def angles(self, positions: Tensor, n_positions: int) -> Tensor:
        rows = _table(n_positions, self.d_model // self.n_heads, positions.device)[positions]
        return torch.cat([rows[:, 1::2], rows[:, ::2]], 1)


class Relative(Positions):
    """A learned bias for each head and distance bucket, in encoder and decoder. Source: Raffel et al. 2020 (T5)."""

    adds_to_scores = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = (nn.Embedding(N_BUCKETS, config.n_heads) for _ in range(2))

    def bias(self, q_positions: Tensor, k_positions: Tensor, causal: bool) -> Tensor:
        buckets = relative_buckets(k_positions - q_positions[:, None], causal)
        table = self.decoder if causal else self.encoder
        return functional.embedding(buckets, table.weight).permute(2, 0, 1)


class Alibi(Positions):
    """Scores fall linearly with the distance, at a different rate in each head. Source: Press et al. 2022."""

    adds_to_scores = True

    def bias(self, q_positions: Tensor, k_positions: Tensor, causal: bool) -> Tensor:
        slopes = 2.0 ** (-8 / self.n_heads * torch.arange(1, self.n_heads + 1, device=q_positions.device))
        return -slopes[:, None, None] * (k_positions - q_positions[:, None]).abs()


POSITIONS = {
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "rotary": Rotary,
    "relative": Relative,
    "alibi": Alibi,
    "none": Positions,
}


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """Return [n, D] float32: sines in even columns, cosines in odd ones. Source: Vaswani et al. 2017, section 3.5."""
    rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000) / d_model))
    angles = torch.arange(n_positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _table(n_positions: int, n_columns: int, device: torch.device) -> Tensor:
    """Return a table of sinusoidal positions, which stays on the device: captured graphs read it."""
    return _table_of(1 << max(10, (n_positions - 1).bit_length()), n_columns, device)


@cache
def _table_of(n_rows: int, n_columns: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training may read a table that a search has made
        return sinusoidal_positions(n_rows, n_columns).to(device)


def rotated(x: Tensor, angles: Tensor | None) -> Tensor:
    """Return x [T, n, H, E] with features i and i + E/2 rotated by angles [T, E]; without angles, x itself."""
    if angles is None:
        return x
    cosines, sines = angles[:, None, None].chunk(2, -1)
    a, b = x.chunk(2, -1)  # products with angles are float32
    return torch.cat([a * cosines - b * sines, a * sines + b * cosines], -1).to(x.dtype)


def relative_buckets(distances: Tensor, causal: bool) -> Tensor:
    """Return the bucket of each distance, key minus query: small ones exact, the others on a logarithmic scale.

    Source: Raffel et al. 2020, section 2.1.
    """
    n_buckets = N_BUCKETS if causal else N_BUCKETS // 2
    first = torch.zeros_like(distances) if causal else (distances > 0) * n_buckets
    distances = (-distances).clamp(min=0) if causal else distances.abs()
    n_exact = n_buckets // 2
    ratio = torch.log(distances.clamp(min=1) / n_exact) / math.log(LONGEST_DISTANCE / n_exact)
    coarse = (n_exact + (ratio * (n_buckets - n_exact)).long()).clamp(max=n_buckets - 1)
    return first + torch.where(distances < n_exact, distances, coarse)
