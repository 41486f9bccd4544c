"""Triton kernels for training on CUDA: operations that the compiler does not compute in one pass.

T rows, F features of the hidden layer of a feed-forward network, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

from mt.data.batch import VarlenLayout
from mt.model.kernels import Activation, Rows
from mt.model.packed_attention import attend
from mt.model.training import CudaTraining

ROWS, COLUMNS = 64, 128  # of a block


class TritonTraining(CudaTraining):
    """Training on CUDA with our attention over packed sentences; gradients of ReLU and its bias take one pass."""

    def attend(self, rows: Rows, *projections: Tensor) -> Tensor:
        if isinstance(rows.layout, VarlenLayout):
            return attend(rows, *projections)
        return super().attend(rows, *projections)

    def activation_gradients(
        self, activation: Activation, grad: Tensor, before: Tensor, dtype: torch.dtype, has_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        if activation.name == "relu" and has_bias:
            grad_input, sums = torch.ops.mt.relu_backward(grad, before)
            return grad_input, sums.sum(0).to(dtype)
        return super().activation_gradients(activation, grad, before, dtype, has_bias)


class SaveNormInputs(CustomGraphPass):
    """A compiler pass that saves the inputs of layer norms, which are residual sums, for the backward pass.

    By default the compiler saves the output of the sub-layer instead. That takes as much memory, and the sum is
    computed again in the backward pass.
    """

    def __call__(self, graph: Graph) -> None:
        for norm in graph.find_nodes(op="call_function", target=torch.ops.aten.var_mean.correction):
            node = norm.args[0]
            while node.target == torch.ops.prims.convert_element_type.default:
                node = node.args[0]
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


@triton.jit
def _relu_backward(GRAD, OUT, GRAD_INPUT, SUMS, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute the gradient of a block, and the sums of its columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    grad = tl.load(GRAD + places, mask=inside, other=0.0)
    grad = tl.where(tl.load(OUT + places, mask=inside, other=0.0) > 0, grad, 0.0)
    tl.store(GRAD_INPUT + places, grad, mask=inside)
    sums = tl.sum(grad.to(tl.float32), 0)
    tl.store(SUMS + tl.program_id(0) * n_columns + columns, sums, mask=columns < n_columns)


@triton.jit
def _losses(
    LOGITS, TARGETS, WEIGHTS, LOSSES, n_columns, smoothing, WITH_GRADIENT: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Compute the loss of a row of logits, and overwrite the logits with its gradient while they are in the cache."""
    row = tl.program_id(0).to(tl.int64)
    logits = LOGITS + row * n_columns
    target, weight = tl.load(TARGETS + row), tl.load(WEIGHTS + row)
    at_target = tl.load(logits + target).to(tl.float32)  # before another thread writes its gradient there
    highest, total, sum_of_logits = -float("inf"), 0.0, 0.0
    for at in range(0, n_columns, COLUMNS):
        columns = at + tl.arange(0, COLUMNS)
        inside = columns < n_columns
        x = tl.load(logits + columns, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        sum_of_logits += tl.sum(tl.where(inside, x, 0.0), 0)
        highest = higher
    normaliser = highest + tl.log(total)
    loss = normaliser - (1 - smoothing) * at_target - smoothing * sum_of_logits / n_columns
    tl.store(LOSSES + row, loss * weight)
    if WITH_GRADIENT:
        for at in range(0, n_columns, COLUMNS):
            columns = at + tl.arange(0, COLUMNS)
            inside = columns < n_columns
            x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
            grad = tl.exp(x - normaliser) - smoothing / n_columns
            grad = tl.where(columns == target, grad - (1 - smoothing), grad) * weight
            tl.store(logits + columns, grad.to(LOGITS.dtype.element_ty), mask=inside)


_library = torch.library.Library("mt", "FRAGMENT")
_library.define("relu_backward(Tensor grad, Tensor out) -> (Tensor, Tensor)")
_library.define(
    "losses_(Tensor(a!) logits, Tensor targets, Tensor weights, float smoothing, bool with_gradient) -> Tensor"
)


def token_losses(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Compute `mt.loss.token_losses`; the gradient overwrites the logits."""
    return torch.ops.mt.losses_(logits, targets, weights, smoothing, with_gradient), logits


def _losses_(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, with_gradient: bool) -> Tensor:
    losses, (n_rows, n_columns) = torch.empty_like(weights), logits.shape
    assert logits.is_contiguous()
    _losses[n_rows,](logits, targets, weights, losses, n_columns, smoothing, with_gradient, 4_096, num_warps=8)
    return losses


def _relu_gradients(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient [T, F] of the input of ReLU, and its sums [blocks of rows, F] in float32."""
    n_rows, n_columns = grad.shape
    blocks = triton.cdiv(n_rows, ROWS), triton.cdiv(n_columns, COLUMNS)
    grad, grad_input = grad.contiguous(), torch.empty_like(out)
    sums = grad.new_empty(blocks[0], n_columns, dtype=torch.float32)
    if not grad.is_meta:
        _relu_backward[blocks](grad, out, grad_input, sums, n_rows, n_columns, ROWS, COLUMNS)
    return grad_input, sums


for _key in ("CUDA", "CPU", "Meta"):  # on a CPU only with Triton's interpreter
    _library.impl("relu_backward", _relu_gradients, _key)
    if _key != "Meta":  # the loss is not compiled, so it needs no Meta version
        _library.impl("losses_", _losses_, _key)
