"""Parts of the model with a backward pass written by hand, for the CPU: there each pass over memory costs time.

They compute what the plain operators beside their callers compute, to rounding. On CUDA the compiler fuses those.

T rows, D features in, F features out or d_ff; H heads, E features of a head, n tiles, W tile width.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mt.data.batch import TileLayout

# oneDNN's product with bias and ReLU in the same pass; private to torch, so it is looked up and can be missing.
_linear_pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_reorder_linear_weight = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
# It refuses bf16 where the CPU has nothing for it.
_is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
_has_bf16_product = _linear_pointwise is not None and _is_supported is not None and bool(_is_supported())
PACKED_ROWS = 128  # rows that the layout of a packed weight is chosen for; it takes any number, and is fast with most


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b in the type of x [T, D]; gradients in the type of the parameters."""
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


def feed_forward(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
    """Two linear layers with a ReLU between them, in the type of x [T, D]."""
    return _FeedForward.apply(x, weight_1, bias_1, weight_2, bias_2)  # type: ignore[no-any-return, no-untyped-call]


def packed_weight(weight: Tensor) -> Tensor | None:
    """The weight [F, D] as oneDNN keeps it between products, which saves it a copy in each; None where it cannot."""
    if _reorder_linear_weight is None or not _has_bf16_product or weight.dtype != torch.bfloat16:
        return None
    return _reorder_linear_weight(weight, PACKED_ROWS)  # type: ignore[no-any-return]


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """x Wᵀ + b [T, F] with a weight from `packed_weight`, and on request a ReLU ("relu") in the same pass."""
    return _linear_pointwise(x, packed, bias, activation, [], "")  # type: ignore[no-any-return, misc]


def tiled_attention(layout: TileLayout, *projections: Tensor) -> Tensor:
    """Attention inside tiles, [Tq, H E].

    Args:
        projections: queries, keys and values in one tensor [T, 3, H, E]; or the queries [Tq, 1, H, E] and the keys and
            values [Tk, 2, H, E].
    """
    return _TiledAttention.apply(layout, *projections)  # type: ignore[no-any-return, no-untyped-call]


def _product(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    if x.dtype == torch.bfloat16 and _has_bf16_product:
        return _linear_pointwise(x, weight, bias, activation, [], "")  # type: ignore[no-any-return, misc]
    y = functional.linear(x, weight, bias)
    return y.relu_() if activation == "relu" else y


def _parameter_gradients(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of weight and bias in grad [T, F] = d(x Wᵀ + b), with x [T, D]."""
    return (grad.t() @ x).to(dtype), grad.sum(0).to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight, *_parameter_gradients(grads[0], x, ctx.dtype)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
        ctx.dtype = weight_1.dtype
        weight_1, weight_2 = weight_1.to(x.dtype), weight_2.to(x.dtype)
        hidden = _product(x, weight_1, bias_1.to(x.dtype), "relu")
        ctx.save_for_backward(x, hidden, weight_1, weight_2)
        return _product(hidden, weight_2, bias_2.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, hidden, weight_1, weight_2 = ctx.saved_tensors
        of_weight_2, of_bias_2 = _parameter_gradients(grads[0], hidden, ctx.dtype)
        grad = torch.ops.aten.threshold_backward(grads[0] @ weight_2, hidden, 0)
        return grad @ weight_1, *_parameter_gradients(grad, x, ctx.dtype), of_weight_2, of_bias_2


class _TiledAttention(torch.autograd.Function):
    """One copy into heads and one out of them, each way; everything between is a batch of contiguous matrices."""

    @staticmethod
    def forward(ctx: Any, layout: TileLayout, *projections: Tensor) -> Tensor:
        ctx.layout, saved, out = layout, [], []
        for group in layout.groups:
            sides = (group.q_start, group.q_width), (group.k_start, group.k_width)
            # One projection: queries lie where keys do.
            heads = [_into_heads(x, group.n_tiles, *side) for x, side in zip(projections, sides, strict=False)]
            q, k, v = chain(*heads)
            n_heads = len(q) // group.n_tiles
            weights = group.bias.expand(-1, n_heads, group.q_width, -1).flatten(0, 1).contiguous()
            weights.baddbmm_(q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
            torch.softmax(weights, -1, out=weights)
            out.append(_out_of_heads(torch.bmm(weights, v)[None], group.n_tiles).flatten(1))
            saved += [weights, *heads]
        ctx.save_for_backward(*saved)
        return _joined(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        n_projections = len(ctx.needs_input_grad) - 1
        per_group = []
        for group in ctx.layout.groups:
            weights, heads = next(saved), [next(saved) for _ in range(n_projections)]
            q, k, v = chain(*heads)
            n_heads, scale = len(q) // group.n_tiles, q.shape[-1] ** -0.5
            grad = grads[0].view(len(grads[0]), 1, n_heads, -1)
            (grad,) = _into_heads(grad, group.n_tiles, group.q_start, group.q_width)
            grad_heads = [torch.empty_like(x) for x in heads]
            grad_q, grad_k, grad_v = chain(*grad_heads)
            torch.bmm(weights.transpose(1, 2), grad, out=grad_v)
            grad = torch.bmm(grad, v.transpose(1, 2))
            grad = torch._softmax_backward_data(grad, weights, -1, grad.dtype)
            torch.baddbmm(grad_q, grad, k, beta=0, alpha=scale, out=grad_q)
            torch.baddbmm(grad_k, grad.transpose(1, 2), q, beta=0, alpha=scale, out=grad_k)
            per_group.append([_out_of_heads(x, group.n_tiles) for x in grad_heads])
        return None, *(_joined(parts) for parts in zip(*per_group, strict=True))


def _into_heads(x: Tensor, n_tiles: int, start: int, width: int) -> Tensor:
    """[k, n H, W, E], contiguous, from n tiles of W rows of x [T, k, H, E]."""
    tiles = x[start : start + n_tiles * width].view(n_tiles, width, *x.shape[1:])
    return tiles.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)


def _out_of_heads(x: Tensor, n_tiles: int) -> Tensor:
    """[n W, k, H, E], contiguous, from [k, n H, W, E]."""
    tiles = x.view(len(x), n_tiles, -1, *x.shape[2:])  # [k, n, H, W, E]
    return tiles.permute(1, 3, 0, 2, 4).contiguous().flatten(0, 1)


def _joined(parts: Any) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
