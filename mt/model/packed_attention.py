"""Triton kernels for attention over packed sentences that are shorter than the blocks of flash attention.

Flash attention gives each sentence separate blocks of 128 × 128, of which a sentence of 28 tokens fills 5%. Here a
block is 64 rows, of any sentences, and goes over the keys from the start of its first sentence to the end of its last
one. The backward pass has no atomic additions, so its results are deterministic.

T rows, H heads, G heads of keys and values, E features of a head, L tokens of the longest sentence.
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
from mt.model.kernels import Rows, separate

LN_2 = tl.constexpr(math.log(2))  # exponentials have base 2, as in the device's instruction


@triton.jit
def _rows_of_other(SENTENCES, CU_OTHER, block, n_rows, BLOCK: tl.constexpr):
    """Return the first row, and the last one + 1, of the other side of the sentences in a block of rows."""
    first = tl.load(SENTENCES + block * BLOCK)
    last = tl.load(SENTENCES + tl.minimum(block * BLOCK + BLOCK, n_rows) - 1)
    return tl.load(CU_OTHER + first), tl.load(CU_OTHER + last + 1)


@triton.jit
def _keys_of(SENTENCES, CU_K, block, n_q, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """Return the rows of a block of queries, which of them exist, their sentences, and the range of their keys."""
    rows = block * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_q
    start, end = _rows_of_other(SENTENCES, CU_K, block, n_q, BLOCK)
    if CAUSAL:
        end = tl.minimum(end, block * BLOCK + BLOCK)
    return rows, inside, tl.load(SENTENCES + rows, mask=inside, other=-1), start, end


@triton.jit
def _load_rows(X, rows, inside, stride, head, E: tl.constexpr):
    """Load rows of one head [B, E]; rows outside are zero."""
    features = tl.arange(0, E)
    return tl.load(
        X + rows[:, None].to(tl.int64) * stride + head * E + features[None, :], mask=inside[:, None], other=0.0
    )


@triton.jit
def _store_rows(X, values, rows, inside, stride, head, E: tl.constexpr):
    features = tl.arange(0, E)
    places = X + rows[:, None].to(tl.int64) * stride + head * E + features[None, :]
    tl.store(places, values.to(X.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _scores(
    q, k, BIAS, q_rows, k_rows, q_sentences, k_sentences, head, scale, CAUSAL: tl.constexpr, LONGEST: tl.constexpr
):  # fmt: skip
    """Return scores [Bq, Bk] for exponentials of base 2; -1e30 where a query must not attend to a key."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    distances = k_rows[None, :] - q_rows[:, None]
    keep = q_sentences[:, None] == k_sentences[None, :]
    if CAUSAL:
        keep = keep & (distances <= 0)
    if BIAS is not None:
        bias = tl.load(BIAS + head * (2 * LONGEST + 1) + LONGEST + distances, mask=keep, other=0.0)
        scores += bias / LN_2
    return tl.where(keep, scores, -1e30)


@triton.jit
def _dropout(x, SEED, q_rows, k_rows, head, n_heads, DROPOUT: tl.constexpr, LONGEST: tl.constexpr):
    """Return x [Bq, Bk] after dropout. With the same seed, all kernels drop the same elements."""
    if SEED is not None:
        # No sentence has more than LONGEST keys, so each pair of a query and a key has a different number.
        pairs = (q_rows[:, None] * n_heads + head) * LONGEST + k_rows[None, :] % LONGEST
        x = tl.where(tl.rand(tl.load(SEED), pairs) >= DROPOUT, x / (1 - DROPOUT), 0.0)
    return x


@triton.jit
def _sums_by_distance(x, BLOCK: tl.constexpr):
    """Return sums of x [B, B] over pairs of equal distance, column minus row: distances from 0, and from -B."""
    row, distance = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    diagonals = tl.gather(x, (row + distance) % BLOCK, 1)
    is_positive = row + distance < BLOCK
    return tl.sum(tl.where(is_positive, diagonals, 0.0), 0), tl.sum(tl.where(is_positive, 0.0, diagonals), 0)


@triton.jit
def _store_distances(GRAD_BIAS, sums, first, block, head, n_heads, LONGEST: tl.constexpr, BLOCK: tl.constexpr):
    places = LONGEST + first + tl.arange(0, BLOCK)
    start = (block * n_heads + head).to(tl.int64) * (2 * LONGEST + 1)
    tl.store(GRAD_BIAS + start + places, sums, mask=(places >= 0) & (places <= 2 * LONGEST))


@triton.jit
def _forward(
    Q, K, V, BIAS, SEED, OUT, LSE, CU_K, Q_SENTENCES, K_SENTENCES, n_q, q_stride, k_stride, v_stride, out_stride, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    """Compute the attention of a block of queries, and the base-2 logarithms of the softmax denominators."""
    block, head = tl.program_id(0), tl.program_id(1)
    rows, inside, sentences, start, end = _keys_of(Q_SENTENCES, CU_K, block, n_q, CAUSAL, BLOCK)
    q = _load_rows(Q, rows, inside, q_stride, head, E)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, E], tl.float32)
    for at in range(start, end, BLOCK):
        keys = at + tl.arange(0, BLOCK)
        present = keys < end
        k = _load_rows(K, keys, present, k_stride, head // GROUP, E)
        v = _load_rows(V, keys, present, v_stride, head // GROUP, E)
        k_sentences = tl.load(K_SENTENCES + keys, mask=present, other=-2)
        scores = _scores(q, k, BIAS, rows, keys, sentences, k_sentences, head, scale, CAUSAL, LONGEST)
        # Until a row meets its first key, its sums are meaningless; that key then multiplies them by zero.
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        rescale = tl.exp2(highest - higher)
        total = total * rescale + tl.sum(weights, 1)
        weights = _dropout(weights, SEED, rows, keys, head, tl.num_programs(1), DROPOUT, LONGEST)
        out = out * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = higher
    _store_rows(OUT, out / total[:, None], rows, inside, out_stride, head, E)
    tl.store(LSE + head * n_q + rows, highest + tl.log2(total), mask=inside)


@triton.jit
def _backward_of_queries(
    Q, K, V, BIAS, SEED, OUT, GRAD, LSE, DELTA, GRAD_Q, GRAD_BIAS, CU_K, Q_SENTENCES, K_SENTENCES, n_q,
    q_stride, k_stride, v_stride, out_stride, grad_q_stride, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a block of queries, and for each query the dot product of the output and its gradient.

    Also compute the block's part of the gradient of the bias, for all distances in the block.
    """
    block, head, n_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    rows, inside, sentences, start, end = _keys_of(Q_SENTENCES, CU_K, block, n_q, CAUSAL, BLOCK)
    q = _load_rows(Q, rows, inside, q_stride, head, E)
    grad = _load_rows(GRAD, rows, inside, out_stride, head, E)
    out = _load_rows(OUT, rows, inside, out_stride, head, E)
    lse = tl.load(LSE + head * n_q + rows, mask=inside, other=0.0)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(DELTA + head * n_q + rows, delta, mask=inside)
    grad_q = tl.zeros([BLOCK, E], tl.float32)
    grad_distances = tl.zeros([BLOCK], tl.float32)  # sums from the previous block of keys, to which this one adds
    for at in range(start, end, BLOCK):
        keys = at + tl.arange(0, BLOCK)
        present = keys < end
        k = _load_rows(K, keys, present, k_stride, head // GROUP, E)
        v = _load_rows(V, keys, present, v_stride, head // GROUP, E)
        k_sentences = tl.load(K_SENTENCES + keys, mask=present, other=-2)
        scores = _scores(q, k, BIAS, rows, keys, sentences, k_sentences, head, scale, CAUSAL, LONGEST)
        weights = tl.exp2(scores - lse[:, None])
        grad_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        grad_weights = _dropout(grad_weights, SEED, rows, keys, head, n_heads, DROPOUT, LONGEST)
        grad_scores = weights * (grad_weights - delta[:, None])
        if GRAD_BIAS is not None:
            here, before = _sums_by_distance(grad_scores, BLOCK)
            first = at - block * BLOCK - BLOCK
            _store_distances(GRAD_BIAS, grad_distances + before, first, block, head, n_heads, LONGEST, BLOCK)
            grad_distances = here
        grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision="ieee")
    _store_rows(GRAD_Q, grad_q * (scale * LN_2), rows, inside, grad_q_stride, head, E)
    if GRAD_BIAS is not None:
        first = tl.cdiv(end - start, BLOCK) * BLOCK + start - block * BLOCK - BLOCK
        _store_distances(GRAD_BIAS, grad_distances, first, block, head, n_heads, LONGEST, BLOCK)


@triton.jit
def _backward_of_keys(
    Q, K, V, BIAS, SEED, GRAD, LSE, DELTA, GRAD_K, GRAD_V, CU_Q, Q_SENTENCES, K_SENTENCES, n_q, n_k,
    q_stride, k_stride, v_stride, out_stride, grad_k_stride, grad_v_stride, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of keys and values, summed over the heads that share them."""
    block, group, n_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1) * GROUP
    keys = block * BLOCK + tl.arange(0, BLOCK)
    present = keys < n_k
    k_sentences = tl.load(K_SENTENCES + keys, mask=present, other=-2)
    start, end = _rows_of_other(K_SENTENCES, CU_Q, block, n_k, BLOCK)
    if CAUSAL:
        start = tl.maximum(start, block * BLOCK)
    k = _load_rows(K, keys, present, k_stride, group, E)
    v = _load_rows(V, keys, present, v_stride, group, E)
    grad_k = tl.zeros([BLOCK, E], tl.float32)
    grad_v = tl.zeros([BLOCK, E], tl.float32)
    for head in range(group * GROUP, group * GROUP + GROUP):
        for at in range(start, end, BLOCK):
            rows = at + tl.arange(0, BLOCK)
            inside = rows < end
            sentences = tl.load(Q_SENTENCES + rows, mask=inside, other=-1)
            q = _load_rows(Q, rows, inside, q_stride, head, E)
            grad = _load_rows(GRAD, rows, inside, out_stride, head, E)
            lse = tl.load(LSE + head * n_q + rows, mask=inside, other=0.0)
            delta = tl.load(DELTA + head * n_q + rows, mask=inside, other=0.0)
            scores = _scores(q, k, BIAS, rows, keys, sentences, k_sentences, head, scale, CAUSAL, LONGEST)
            weights = tl.exp2(scores - lse[:, None])
            dropped = _dropout(weights, SEED, rows, keys, head, n_heads, DROPOUT, LONGEST)
            grad_v += tl.dot(tl.trans(dropped.to(grad.dtype)), grad, input_precision="ieee")
            grad_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
            grad_weights = _dropout(grad_weights, SEED, rows, keys, head, n_heads, DROPOUT, LONGEST)
            grad_scores = weights * (grad_weights - delta[:, None])
            grad_k += tl.dot(tl.trans(grad_scores.to(q.dtype)), q, input_precision="ieee")
    _store_rows(GRAD_K, grad_k * (scale * LN_2), keys, present, grad_k_stride, group, E)
    _store_rows(GRAD_V, grad_v, keys, present, grad_v_stride, group, E)


# Operators that the compiler does not look into: their results are written once, into one tensor if the projections are
# in one tensor.
_library = torch.library.Library("mt", "DEF")
_WHERE = (
    "Tensor[] projections, Tensor cu_q, Tensor cu_k, Tensor q_sentences, Tensor k_sentences, Tensor? bias, "
    "Tensor? seed, float dropout, int longest, bool causal"
)
_library.define(f"attend({_WHERE}) -> (Tensor, Tensor)")
_library.define(f"attend_backward(Tensor grad, Tensor out, Tensor lse, bool with_bias, {_WHERE}) -> Tensor[]")


def _attend(
    projections: list[Tensor], cu_q: Tensor, cu_k: Tensor, q_sentences: Tensor, k_sentences: Tensor,
    bias: Tensor | None, seed: Tensor | None, dropout: float, longest: int, causal: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = separate(tuple(projections))
    out, lse = _outputs(projections)
    assert all(x.stride()[1:] == (x.shape[2], 1) for x in (q, k, v)), "heads must be contiguous"
    assert bias is None or bias.is_contiguous()
    if not out.is_meta:
        block = _block(q)
        _forward[-(-len(q) // block), q.shape[1]](
            q, k, v, bias, seed, out, lse, cu_k, q_sentences, k_sentences, len(q), q.stride(0), k.stride(0),
            v.stride(0), out.stride(0), _scale(q), q.shape[1] // k.shape[1], causal, q.shape[2], block, dropout,
            longest,
        )  # fmt: skip
    return out, lse


def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, with_bias: bool, projections: list[Tensor], cu_q: Tensor, cu_k: Tensor,
    q_sentences: Tensor, k_sentences: Tensor, bias: Tensor | None, seed: Tensor | None, dropout: float, longest: int,
    causal: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the projections, followed by that of the bias if `with_bias` is true."""
    q, k, v = separate(tuple(projections))
    gradients = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in projections]
    block = _block(q)
    # One row for each block of queries; they are summed in a fixed order.
    grad_bias = lse.new_zeros(-(-len(q) // block), q.shape[1], 2 * longest + 1) if with_bias else None
    if not out.is_meta:
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        grad_q, grad_k, grad_v = separate(tuple(gradients))
        constants = q.shape[1] // k.shape[1], causal, q.shape[2], block, dropout, longest
        _backward_of_queries[-(-len(q) // block), q.shape[1]](
            q, k, v, bias, seed, out, grad, lse, delta, grad_q, grad_bias, cu_k, q_sentences, k_sentences, len(q),
            q.stride(0), k.stride(0), v.stride(0), out.stride(0), grad_q.stride(0), _scale(q), *constants,
        )  # fmt: skip
        _backward_of_keys[-(-len(k) // block), k.shape[1]](
            q, k, v, bias, seed, grad, lse, delta, grad_k, grad_v, cu_q, q_sentences, k_sentences, len(q), len(k),
            q.stride(0), k.stride(0), v.stride(0), out.stride(0), grad_k.stride(0), grad_v.stride(0), _scale(q),
            *constants,
        )  # fmt: skip
    return gradients if grad_bias is None else [*gradients, grad_bias.sum(0)]


def _outputs(projections: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return empty tensors for the output [T, H E] and the logarithms of the softmax denominators [H, T]."""
    n_rows, _, n_heads, n_features = projections[0].shape
    out = projections[0].new_empty(n_rows, n_heads * n_features)
    return out, out.new_empty(n_heads, n_rows, dtype=torch.float32)


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Return whether Triton uses the tensor cores of this device for narrow types."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _block(q: Tensor) -> int:
    """Return the rows of a block: as many as fit into shared memory and, without tensor cores, into registers."""
    fits = q.element_size() == 2 and q.shape[2] <= 64 and _has_tensor_cores(q.device)
    return 64 if fits else 32


def _scale(q: Tensor) -> float:
    return float(q.shape[2] ** -0.5 / math.log(2))


for _key in ("CUDA", "CPU", "Meta"):  # on a CPU only with Triton's interpreter
    _library.impl("attend", _attend, _key)
    _library.impl("attend_backward", _attend_backward, _key)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projections, *where, ctx.dropout, ctx.longest, ctx.causal = inputs
    ctx.set_materialize_grads(False)  # the logarithms have no gradient
    ctx.save_for_backward(*output, *where, *projections)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    out, lse, *rest = ctx.saved_tensors
    where, projections, with_bias = rest[:6], rest[6:], ctx.needs_input_grad[5]
    gradients = torch.ops.mt.attend_backward(
        grad, out, lse, with_bias, projections, *where, ctx.dropout, ctx.longest, ctx.causal
    )
    n = len(projections)
    return gradients[:n], None, None, None, None, gradients[n] if with_bias else None, None, None, None, None


torch.library.register_autograd("mt::attend", _gradients, setup_context=_save_for_backward, lib=_library)


def attend(rows: Rows, *projections: Tensor) -> Tensor:
    """Return attention [Tq, H E] of packed sentences; see `Kernels.attend`."""
    layout = rows.layout
    assert isinstance(layout, VarlenLayout)
    where = layout.cu_q, layout.cu_k, layout.q_sentences, layout.k_sentences
    (bias,) = rows.masks or (None,)
    seed = torch.randint(2**31, (), device=layout.cu_q.device) if rows.dropout else None
    out: Tensor = torch.ops.mt.attend(projections, *where, bias, seed, rows.dropout, layout.longest, rows.is_causal)[0]
    return out
