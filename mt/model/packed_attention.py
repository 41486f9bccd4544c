"""Attention of packed sentences as kernels of Triton: for sentences shorter than the blocks of flash attention.

Flash attention gives each sentence separate blocks of 128 × 128, of which one of 28 tokens fills 5%. Here a block is
64 rows, whatever sentences lie there, and goes over the keys from the first one's start to the last one's end. The
backward pass adds nothing up by atomic operations: its results do not vary.

T rows, H heads, G heads of keys and values, E features of a head.
Source: Milakov and Gimelshein 2018 (softmax in blocks); Dao et al. 2022, algorithms 1 and 4.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mt.data.batch import VarlenLayout
from mt.model.kernels import separate

LN_2 = tl.constexpr(math.log(2))  # exponentials are of base 2, which the device has


@triton.jit
def _rows_of_other(SENTENCES, CU_OTHER, block, n_rows, BLOCK: tl.constexpr):
    """Return the rows of the other side that belong to the sentences of a block of rows: from, to."""
    first = tl.load(SENTENCES + block * BLOCK)
    last = tl.load(SENTENCES + tl.minimum(block * BLOCK + BLOCK, n_rows) - 1)
    return tl.load(CU_OTHER + first), tl.load(CU_OTHER + last + 1)


@triton.jit
def _keys_of(SENTENCES, CU_K, block, n_q, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """Return the rows of a block of queries, which of them exist, their sentences, and the keys that they see."""
    rows = block * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_q
    start, end = _rows_of_other(SENTENCES, CU_K, block, n_q, BLOCK)
    if CAUSAL:
        end = tl.minimum(end, block * BLOCK + BLOCK)
    return rows, inside, tl.load(SENTENCES + rows, mask=inside, other=-1), start, end


@triton.jit
def _rows_at(X, rows, inside, stride, head, E: tl.constexpr):
    """Return rows of one head [B, E]; those outside are zero."""
    features = tl.arange(0, E)
    return tl.load(
        X + rows[:, None].to(tl.int64) * stride + head * E + features[None, :], mask=inside[:, None], other=0.0
    )


@triton.jit
def _put_rows(X, values, rows, inside, stride, head, E: tl.constexpr):
    features = tl.arange(0, E)
    places = X + rows[:, None].to(tl.int64) * stride + head * E + features[None, :]
    tl.store(places, values.to(X.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _masked(scores, q_rows, k_rows, q_sentences, k_sentences, CAUSAL: tl.constexpr):
    """Return scores [Bq, Bk], far below all others where a query must not see a key."""
    keep = q_sentences[:, None] == k_sentences[None, :]
    if CAUSAL:
        keep = keep & (k_rows[None, :] <= q_rows[:, None])
    return tl.where(keep, scores, -1e30)


@triton.jit
def _forward(
    Q, K, V, OUT, LSE, CU_K, Q_SENTENCES, K_SENTENCES, n_q, q_stride, k_stride, v_stride, out_stride, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries, and the logarithms of base 2 of what its softmax divides by."""
    block, head = tl.program_id(0), tl.program_id(1)
    rows, inside, sentences, start, end = _keys_of(Q_SENTENCES, CU_K, block, n_q, CAUSAL, BLOCK)
    q = _rows_at(Q, rows, inside, q_stride, head, E)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, E], tl.float32)
    for at in range(start, end, BLOCK):
        keys = at + tl.arange(0, BLOCK)
        present = keys < end
        k = _rows_at(K, keys, present, k_stride, head // GROUP, E)
        v = _rows_at(V, keys, present, v_stride, head // GROUP, E)
        k_sentences = tl.load(K_SENTENCES + keys, mask=present, other=-2)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = _masked(scores, rows, keys, sentences, k_sentences, CAUSAL)
        # A row that has seen no key yet holds what the first one multiplies by zero.
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        faded = tl.exp2(highest - higher)
        total = total * faded + tl.sum(weights, 1)
        out = out * faded[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = higher
    _put_rows(OUT, out / total[:, None], rows, inside, out_stride, head, E)
    tl.store(LSE + head * n_q + rows, highest + tl.log2(total), mask=inside)


@triton.jit
def _backward_of_queries(
    Q, K, V, OUT, GRAD, LSE, DELTA, GRAD_Q, CU_K, Q_SENTENCES, K_SENTENCES, n_q,
    q_stride, k_stride, v_stride, out_stride, grad_q_stride, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of queries, and for each the product of the output with its gradient."""
    block, head = tl.program_id(0), tl.program_id(1)
    rows, inside, sentences, start, end = _keys_of(Q_SENTENCES, CU_K, block, n_q, CAUSAL, BLOCK)
    q = _rows_at(Q, rows, inside, q_stride, head, E)
    grad = _rows_at(GRAD, rows, inside, out_stride, head, E)
    out = _rows_at(OUT, rows, inside, out_stride, head, E)
    lse = tl.load(LSE + head * n_q + rows, mask=inside, other=0.0)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(DELTA + head * n_q + rows, delta, mask=inside)
    grad_q = tl.zeros([BLOCK, E], tl.float32)
    for at in range(start, end, BLOCK):
        keys = at + tl.arange(0, BLOCK)
        present = keys < end
        k = _rows_at(K, keys, present, k_stride, head // GROUP, E)
        v = _rows_at(V, keys, present, v_stride, head // GROUP, E)
        k_sentences = tl.load(K_SENTENCES + keys, mask=present, other=-2)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        weights = tl.exp2(_masked(scores, rows, keys, sentences, k_sentences, CAUSAL) - lse[:, None])
        grad_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision="ieee")
    _put_rows(GRAD_Q, grad_q * (scale * LN_2), rows, inside, grad_q_stride, head, E)


@triton.jit
def _backward_of_keys(
    Q, K, V, GRAD, LSE, DELTA, GRAD_K, GRAD_V, CU_Q, Q_SENTENCES, K_SENTENCES, n_q, n_k,
    q_stride, k_stride, v_stride, out_stride, grad_k_stride, grad_v_stride, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of keys and values, of all heads that share them."""
    block, group = tl.program_id(0), tl.program_id(1)
    keys = block * BLOCK + tl.arange(0, BLOCK)
    present = keys < n_k
    k_sentences = tl.load(K_SENTENCES + keys, mask=present, other=-2)
    start, end = _rows_of_other(K_SENTENCES, CU_Q, block, n_k, BLOCK)
    if CAUSAL:
        start = tl.maximum(start, block * BLOCK)
    k = _rows_at(K, keys, present, k_stride, group, E)
    v = _rows_at(V, keys, present, v_stride, group, E)
    grad_k = tl.zeros([BLOCK, E], tl.float32)
    grad_v = tl.zeros([BLOCK, E], tl.float32)
    for head in range(group * GROUP, group * GROUP + GROUP):
        for at in range(start, end, BLOCK):
            rows = at + tl.arange(0, BLOCK)
            inside = rows < end
            sentences = tl.load(Q_SENTENCES + rows, mask=inside, other=-1)
            q = _rows_at(Q, rows, inside, q_stride, head, E)
            grad = _rows_at(GRAD, rows, inside, out_stride, head, E)
            lse = tl.load(LSE + head * n_q + rows, mask=inside, other=0.0)
            delta = tl.load(DELTA + head * n_q + rows, mask=inside, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            weights = tl.exp2(_masked(scores, rows, keys, sentences, k_sentences, CAUSAL) - lse[:, None])
            grad_v += tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision="ieee")
            grad_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
            grad_scores = weights * (grad_weights - delta[:, None])
            grad_k += tl.dot(tl.trans(grad_scores.to(q.dtype)), q, input_precision="ieee")
    _put_rows(GRAD_K, grad_k * (scale * LN_2), keys, present, grad_k_stride, group, E)
    _put_rows(GRAD_V, grad_v, keys, present, grad_v_stride, group, E)


# Operators, which the compiler takes as they are: their results are written once, and into one tensor where projections
# are in one.
_library = torch.library.Library("mt", "DEF")
_library.define(
    "attend(Tensor[] projections, Tensor cu_q, Tensor cu_k, Tensor q_sentences, Tensor k_sentences, bool causal) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "attend_backward(Tensor grad, Tensor out, Tensor lse, Tensor[] projections, Tensor cu_q, Tensor cu_k, "
    "Tensor q_sentences, Tensor k_sentences, bool causal) -> Tensor[]"
)


def _attend(
    projections: list[Tensor], cu_q: Tensor, cu_k: Tensor, q_sentences: Tensor, k_sentences: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    q, k, v = separate(tuple(projections))
    out, lse = _outputs(projections)
    assert all(x.stride()[1:] == (x.shape[2], 1) for x in (q, k, v)), "heads lie side by side"
    if not out.is_meta:
        block = _block(q)
        _forward[-(-len(q) // block), q.shape[1]](
            q, k, v, out, lse, cu_k, q_sentences, k_sentences, len(q), q.stride(0), k.stride(0), v.stride(0),
            out.stride(0), _scale(q), q.shape[1] // k.shape[1], causal, q.shape[2], block,
        )  # fmt: skip
    return out, lse


def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, projections: list[Tensor], cu_q: Tensor, cu_k: Tensor,
    q_sentences: Tensor, k_sentences: Tensor, causal: bool,
) -> list[Tensor]:  # fmt: skip
    q, k, v = separate(tuple(projections))
    gradients = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in projections]
    if not out.is_meta:
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        grad_q, grad_k, grad_v = separate(tuple(gradients))
        block = _block(q)
        constants = q.shape[1] // k.shape[1], causal, q.shape[2], block
        _backward_of_queries[-(-len(q) // block), q.shape[1]](
            q, k, v, out, grad, lse, delta, grad_q, cu_k, q_sentences, k_sentences, len(q), q.stride(0),
            k.stride(0), v.stride(0), out.stride(0), grad_q.stride(0), _scale(q), *constants,
        )  # fmt: skip
        _backward_of_keys[-(-len(k) // block), k.shape[1]](
            q, k, v, grad, lse, delta, grad_k, grad_v, cu_q, q_sentences, k_sentences, len(q), len(k), q.stride(0),
            k.stride(0), v.stride(0), out.stride(0), grad_k.stride(0), grad_v.stride(0), _scale(q), *constants,
        )  # fmt: skip
    return gradients


def _outputs(projections: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return room for the output [T, H E], and for the softmax's logarithms [H, T]."""
    n_rows, _, n_heads, n_features = projections[0].shape
    out = projections[0].new_empty(n_rows, n_heads * n_features)
    return out, out.new_empty(n_heads, n_rows, dtype=torch.float32)


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton multiplies narrow types on those of this device."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _block(q: Tensor) -> int:
    """Return the rows of a block: as many as fit into shared memory, and into registers where they multiply."""
    fits = q.element_size() == 2 and q.shape[2] <= 64 and _has_tensor_cores(q.device)
    return 64 if fits else 32


def _scale(q: Tensor) -> float:
    return float(q.shape[2] ** -0.5 / math.log(2))


for _key in ("CUDA", "CPU", "Meta"):  # on a CPU by Triton's interpreter alone
    _library.impl("attend", _attend, _key)
    _library.impl("attend_backward", _attend_backward, _key)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projections, *where, ctx.causal = inputs
    ctx.set_materialize_grads(False)  # the logarithms have no gradient
    ctx.save_for_backward(*output, *where, *projections)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    out, lse, *rest = ctx.saved_tensors
    gradients = torch.ops.mt.attend_backward(grad, out, lse, rest[4:], *rest[:4], ctx.causal)
    return gradients, None, None, None, None, None


torch.library.register_autograd("mt::attend", _gradients, setup_context=_keep, lib=_library)


def attend(layout: VarlenLayout, causal: bool, *projections: Tensor) -> Tensor:
    """Return attention [Tq, H E] of packed sentences; see `Kernels.attend`."""
    where = layout.cu_q, layout.cu_k, layout.q_sentences, layout.k_sentences
    out: Tensor = torch.ops.mt.attend(projections, *where, causal)[0]
    return out
