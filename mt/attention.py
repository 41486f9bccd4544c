"""Multi-head attention over packed sentences: one interface, its implementations.

`attention` is the only place that knows where sentences end. All implementations agree to rounding, in values and in
gradients.

Tq query rows, Tk key rows, H heads, E features of a head, n tiles, Wq and Wk their widths.
Source: Vaswani et al. 2017, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mt.data.batch import Layout, TileGroup, TileLayout, VarlenLayout


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool, dropout: float = 0.0) -> Tensor:
    """Each query attends to the keys of its own sentence, and with `causal` to none after it.

    Args:
        q: [Tq, H, E].
        k: [Tk, H, E].
        v: [Tk, H, E].
        layout: where sentences lie in the rows of q and of k.
        causal: in a tile layout the masks have it already, so it must be what the layout was made for.
        dropout: probability of dropping an attention weight; tile layouts only.
    Returns:
        [Tq, H, E]. Rows of no sentence hold finite values of no meaning.
    """
    if isinstance(layout, TileLayout):
        return _tiled(q, k, v, layout, dropout)
    assert dropout == 0, "flash attention has no dropout: choose a tile layout"
    if q.device.type == "cuda":
        return _flash(q, k, v, layout, causal)
    return _one_sentence_at_a_time(q, k, v, layout, causal)


def _tiled(q: Tensor, k: Tensor, v: Tensor, layout: TileLayout, dropout: float) -> Tensor:
    parts = [_tile_group(q, k, v, group, dropout) for group in layout.groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _tile_group(q: Tensor, k: Tensor, v: Tensor, group: TileGroup, dropout: float) -> Tensor:
    def tiles(x: Tensor, start: int, width: int) -> Tensor:
        rows = x[start : start + group.n_tiles * width]
        return rows.view(group.n_tiles, width, *rows.shape[1:]).transpose(1, 2)  # [n, H, W, E]

    queries = tiles(q, group.q_start, group.q_width)
    keys, values = tiles(k, group.k_start, group.k_width), tiles(v, group.k_start, group.k_width)
    out = masked_attention(queries, keys, values, group.bias, dropout)
    return out.transpose(1, 2).flatten(0, 1)  # [n Wq, H, E]


def attention_weights(q: Tensor, k: Tensor, layout: TileLayout) -> list[Tensor]:
    """The weights that `attention` gives to the values: [n, H, Wq, Wk] float32 for each group of tiles.

    Args:
        q: [Tq, H, E].
        k: [Tk, H, E].
    """
    weights = []
    for group in layout.groups:
        shape = (group.n_tiles, -1, *q.shape[1:])
        queries = q[group.q_start : group.q_start + group.n_tiles * group.q_width].view(shape).transpose(1, 2)
        keys = k[group.k_start : group.k_start + group.n_tiles * group.k_width].view(shape).transpose(1, 2)
        scores = torch.matmul(queries * q.shape[-1] ** -0.5, keys.transpose(-1, -2)) + group.bias
        weights.append(functional.softmax(scores, -1, dtype=torch.float32))
    return weights


def masked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention written out: matrix product, softmax, matrix product.

    On the CPU and at the length of sentences this is several times faster than the fused kernels of torch, whose
    backward pass alone took 47% of a step.

    Args:
        q: [..., Wq, E].
        k: [..., Wk, E].
        v: [..., Wk, E].
        bias: added to the scores, broadcast to [..., Wq, Wk].
    Returns:
        [..., Wq, E].
    """
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))  # [..., Wq, Wk]
    if bias is not None:
        scores = scores + bias
    weights = functional.softmax(scores, -1)
    if dropout > 0:
        weights = functional.dropout(weights, dropout)
    return torch.matmul(weights, v)


def decoding_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The same without dropout and gradients, for a few queries each: there one call is faster than five on a CPU."""
    if q.device.type == "cpu":
        return functional.scaled_dot_product_attention(q, k, v, bias)
    return masked_attention(q, k, v, bias)


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # A window without end to the left and none to the right is causal; `is_causal` moved between torch versions.
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(  # type: ignore[return-value]
        q, k, v, layout.cu_q, layout.cu_k, layout.max_q, layout.max_k, window_size=window
    )


def _one_sentence_at_a_time(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, causal: bool) -> Tensor:
    """The obvious version, slow: for tests, and for flash layouts on a device that has no flash attention."""
    out = []
    q_ends, k_ends = layout.cu_q.tolist(), layout.cu_k.tolist()
    for i in range(len(q_ends) - 1):
        queries = q[q_ends[i] : q_ends[i + 1]].transpose(0, 1)  # [H, Wq, E]
        keys, values = (x[k_ends[i] : k_ends[i + 1]].transpose(0, 1) for x in (k, v))
        allowed = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool, device=q.device)
        bias = torch.zeros_like(allowed, dtype=q.dtype).masked_fill_(~(allowed.tril() if causal else allowed), -1e4)
        out.append(masked_attention(queries, keys, values, bias).transpose(0, 1))
    return torch.cat(out)
