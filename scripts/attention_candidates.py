"""Ways to compute the attention of many short sentences, timed forward and backward beside each other.

T rows of queries, keys and values [T, H, E], sentences end to end; N sentences, W the longest. Each candidate takes and
gives packed rows, as the model has them, and is checked against attention in float32. Which one is fastest at the
lengths of translation is open: PyTorch's kernels are made for long sequences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mt.data.batch import MASKED, TILE_WIDTH, Layout, assemble_tiles, varlen_layout
from mt.model.context import rows_of
from mt.model.kernels import Kernels, masked_attention
from mt.text.corpus import ParallelIds, Sentences

Lengths = npt.NDArray[np.int64]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
FLEX_BLOCK = 128
TOLERANCE = 0.02  # of a candidate's values in bf16 against float32, relative to their size


@dataclass(frozen=True)
class Candidate:
    """A way to compute attention.

    Attributes:
        make: from the lengths, the device and the type of the products to a function of packed rows.
        rows: where the sentences lie in its packed rows; None: end to end.
        on_cpu: why it cannot run on a CPU.
    """

    name: str
    make: Callable[[Lengths, torch.device, torch.dtype], Attend]
    rows: Callable[[Lengths], Tensor] | None = None
    compiles: bool = False
    on_cpu: str | None = None


def lengths_of(kind: str, n_tokens: int) -> Lengths:
    """Sentences of 28 tokens each, or of 4 to 64 with a mean of 28, as many as make about `n_tokens`."""
    n = max(2, n_tokens // 28)
    if kind == "equal":
        return np.full(n, 28, np.int64)
    drawn = np.random.default_rng(1).lognormal(math.log(28) - 0.5**2 / 2, 0.5, n)
    return np.clip(np.rint(drawn * 28 / drawn.clip(4, 64).mean()), 4, 64).astype(np.int64)


def reference(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Our own attention [T, H, E], of queries, keys and values [T, H, E]."""
    return Kernels().attend(rows_of(layout, 0.0), q[:, None], k[:, None], v[:, None]).view(q.shape)


# --- The candidates ---------------------------------------------------------------------------------------------------


def _cumulative(lengths: Lengths, device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)


def make_varlen(longest: int | None, lengths: Lengths, device: torch.device, dtype: torch.dtype) -> Attend:
    """Flash attention over variable lengths; its cost grows with the longest it is told of."""
    cu = _cumulative(lengths, device)
    longest = longest or int(lengths.max())
    layout = varlen_layout(cu, cu, longest)
    return lambda q, k, v: reference(q, k, v, layout)


def make_packed(lengths: Lengths, device: torch.device, dtype: torch.dtype) -> Attend:
    """Our own kernels over packed sentences, as the model uses them on CUDA."""
    from mt.model.packed_attention import attend

    cu = _cumulative(lengths, device)
    layout = varlen_layout(cu, cu, int(lengths.max()))
    return lambda q, k, v: attend(layout, False, q[:, None], k[:, None], v[:, None]).view(q.shape)


def _corpus(lengths: Lengths) -> ParallelIds:
    side = Sentences(np.zeros(int(lengths.sum()), np.uint16), np.concatenate([[0], np.cumsum(lengths)]))
    return ParallelIds(side, side)


def make_tiles(lengths: Lengths, device: torch.device, dtype: torch.dtype) -> Attend:
    """Attention written out over tiles of 64 rows that hold whole sentences, as the model uses it on a CPU."""
    batch = assemble_tiles(_corpus(lengths), np.arange(len(lengths)), dtype).to(device)
    return lambda q, k, v: reference(q, k, v, batch.encoder_layout)


def rows_in_tiles(lengths: Lengths) -> Tensor:
    """Where `assemble_tiles` puts the sentences."""
    corpus = _corpus(lengths)
    numbered = np.repeat(np.arange(len(lengths)), lengths)
    # Ids that say which sentence a row belongs to; uint32 holds them all.
    side = Sentences((numbered + 1).astype(np.uint32), corpus.src.offsets)
    batch = assemble_tiles(ParallelIds(side, side), np.arange(len(lengths)), torch.float32)
    (real,) = torch.where(batch.tgt_weights > 0)
    order = torch.argsort(batch.src_ids[real], stable=True)
    return real[order]


class _Padded(torch.autograd.Function):
    """x[index], with a backward pass that is a gather too: what lies in the padding does not matter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


class _Unpadded(torch.autograd.Function):
    """x[inverse], with a backward pass that is a gather too; the padding gets a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor, index: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(index, real)
        return x.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        index, real = ctx.saved_tensors
        spread = gradients[0].index_select(0, index)
        return spread * real.view(-1, 1, 1).to(spread.dtype), None, None, None


def _padded(
    lengths: Lengths, width: int, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    """[T, H, E] → [N, H, W, E], the way back, and which keys [N, W] are real."""
    columns = np.arange(width)
    real = columns < lengths[:, None]
    starts = np.cumsum(lengths) - lengths
    index = torch.from_numpy(np.where(real, starts[:, None] + columns, 0).reshape(-1)).to(device)
    inverse = torch.from_numpy(np.flatnonzero(real.reshape(-1))).to(device)
    is_real, n = torch.from_numpy(real).to(device), len(lengths)

    def pad(x: Tensor) -> Tensor:
        return _Padded.apply(x, index, inverse).view(n, width, *x.shape[1:]).transpose(1, 2)

    def unpad(x: Tensor) -> Tensor:
        return _Unpadded.apply(x.transpose(1, 2).flatten(0, 1), inverse, index, is_real)

    return pad, unpad, is_real


def make_padded_sdpa(lengths: Lengths, device: torch.device, dtype: torch.dtype) -> Attend:
    """PyTorch's attention over sentences padded to the longest, padding and unpadding included."""
    pad, unpad, real = _padded(lengths, int(lengths.max()), device)
    mask = None if bool(real.all()) else real[:, None, None, :]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return unpad(functional.scaled_dot_product_attention(pad(q), pad(k), pad(v), attn_mask=mask))

    return attend


def make_bmm(lengths: Lengths, device: torch.device, dtype: torch.dtype) -> Attend:
    """Matrix product, softmax, matrix product over sentences padded to 64."""
    assert lengths.max() <= TILE_WIDTH
    pad, unpad, real = _padded(lengths, TILE_WIDTH, device)
    bias = torch.zeros(real.shape, dtype=dtype, device=device).masked_fill_(~real, MASKED)[:, None, None, :]
    return lambda q, k, v: unpad(masked_attention(pad(q), pad(k), pad(v), bias))


def blocks_of_sentences(lengths: Lengths) -> tuple[Lengths, Lengths]:
    """First and last block of keys that each block of queries needs."""
    starts, n_rows = np.cumsum(lengths) - lengths, int(lengths.sum())
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    first_rows = np.arange(0, n_rows, FLEX_BLOCK)
    last_rows = np.minimum(first_rows + FLEX_BLOCK, n_rows) - 1
    return starts[sentence[first_rows]] // FLEX_BLOCK, (starts + lengths - 1)[sentence[last_rows]] // FLEX_BLOCK


def make_flex(lengths: Lengths, device: torch.device, dtype: torch.dtype) -> Attend:
    """Flex attention; its blocks come straight from the lengths, for looking at every pair of rows costs far more."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    n_rows = int(lengths.sum())
    first, last = blocks_of_sentences(lengths)
    needed = np.minimum(first[:, None] + np.arange(len(first)), len(first) - 1)
    counts, indices = (torch.from_numpy(x.astype(np.int32))[None, None].to(device) for x in (last - first + 1, needed))
    sentence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)

    def same_sentence(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sentence[q] == sentence[k]

    mask = BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=FLEX_BLOCK, mask_mod=same_sentence, seq_lengths=(n_rows, n_rows)
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, T, E]
        return flex_attention(q, k, v, block_mask=mask)[0].transpose(0, 1)

    return attend


CANDIDATES = (
    Candidate("our own, blocks of 64 rows", make_packed, on_cpu="needs CUDA"),
    Candidate("varlen flash, longest 256", partial(make_varlen, 256), on_cpu="needs CUDA"),
    Candidate("varlen flash, longest as it is", partial(make_varlen, None), on_cpu="needs CUDA"),
    Candidate("written out, tiles of 64", make_tiles, rows_in_tiles),
    Candidate("written out, tiles of 64, compiled", make_tiles, rows_in_tiles, compiles=True),
    Candidate("padded scaled_dot_product_attention", make_padded_sdpa),
    Candidate("padded scaled_dot_product_attention, compiled", make_padded_sdpa, compiles=True),
    Candidate("flex attention, compiled", make_flex, compiles=True, on_cpu="its backward pass needs CUDA"),
    Candidate("padded to 64, written out, compiled", make_bmm, compiles=True),
)


# --- Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Sentences, what lies in their rows, and the attention and its gradients as they should be."""

    lengths: Lengths
    content: list[Tensor]  # q, k, v and the gradient of the output, [T, H, E] each, on the CPU
    expected: list[Tensor]  # the output and the gradients of q, k and v, in float32


def make_problem(lengths: Lengths, dtype: torch.dtype, n_heads: int = 8, n_features: int = 64) -> Problem:
    """Random rows, and their attention one sentence after the other in float32."""
    torch.manual_seed(1)
    content = [torch.randn(int(lengths.sum()), n_heads, n_features).to(dtype) for _ in range(4)]
    exact = [x.float().requires_grad_() for x in content[:3]]
    out = []
    for q, k, v in zip(*(x.split(lengths.tolist()) for x in exact), strict=True):
        queries, keys, values = (x.transpose(0, 1) for x in (q, k, v))
        weights = functional.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(n_features), -1)
        out.append((weights @ values).transpose(0, 1))
    result = torch.cat(out)
    gradients = torch.autograd.grad(result, exact, content[3].float())
    return Problem(lengths, content, [result.detach(), *gradients])


def measure(candidate: Candidate, problem: Problem, device: torch.device, n_repeats: int = 20) -> dict[str, Any]:
    """Milliseconds forward, and forward and backward; tokens a second through both; how far off the values are.

    Errors do not pass on: `error` then says why there are no figures.
    """
    if device.type == "cpu" and candidate.on_cpu is not None:
        return {"error": candidate.on_cpu}
    try:
        attend = candidate.make(problem.lengths, device, problem.content[0].dtype)
        if candidate.compiles:
            torch._dynamo.reset()
            attend = torch.compile(attend, fullgraph=True, dynamic=False)
        rows = torch.arange(len(problem.content[0])) if candidate.rows is None else candidate.rows(problem.lengths)
        return _figures(attend, rows, problem, device, n_repeats)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return {"error": f"{type(error).__name__}: {reason}"[:300]}


def _figures(attend: Attend, rows: Tensor, problem: Problem, device: torch.device, n_repeats: int) -> dict[str, Any]:
    n_tokens = len(rows)
    n_rows = int(rows.max()) + 1
    if n_rows > n_tokens:  # tiles are whole
        n_rows = -(-n_rows // TILE_WIDTH) * TILE_WIDTH
    placed = []
    for x in problem.content:
        packed = torch.zeros(n_rows, *x.shape[1:], dtype=x.dtype)
        packed[rows] = x
        placed.append(packed.to(device))
    inputs, weight = [x.requires_grad_() for x in placed[:3]], placed[3]
    rows = rows.to(device)

    def forward_and_backward() -> tuple[Tensor, ...]:
        out = attend(*inputs)
        return out, *torch.autograd.grad(out, inputs, weight)

    found = [x.detach()[rows].float().cpu() for x in forward_and_backward()]
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, problem.expected, strict=True))
    if not error <= TOLERANCE:
        return {"error": f"its values are off by {error:.2g}", "relative_error": error}
    forward_ms = _milliseconds(lambda: attend(*inputs), device, n_repeats)
    both_ms = _milliseconds(forward_and_backward, device, n_repeats)
    return {
        "forward_ms": forward_ms,
        "forward_and_backward_ms": both_ms,
        "tokens_per_second": n_tokens / both_ms * 1000,
        "relative_error": error,
    }


def _milliseconds(function: Callable[[], Any], device: torch.device, n_repeats: int) -> float:
    """The median of some runs."""
    for _ in range(3):
        function()
    times = []
    for _ in range(n_repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize(device)
            times.append(begin.elapsed_time(end))
        else:
            started_at = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - started_at))
    return float(np.median(times))
