"""Kernels for a CPU, and the choice of kernels for any device.

On a CPU each pass over memory takes time: hence the hand-written attention, and the weights that stay packed. Results
equal those of the reference up to rounding.

T rows; H heads, G heads of keys and values, E features of a head, n tiles, W tile width; in decoding B sentences, k
open beams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mt.data.batch import TileGroup, TileLayout
from mt.model.kernels import Activation, Inference, Kernels, NarrowCudaInference, Rows, concatenated, in_groups
from mt.model.training import CudaTraining, Training

# oneDNN's product with bias and ReLU in the same pass. It is private to torch, so it may be missing.
_linear_pointwise: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_reorder_linear_weight: Any = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
# It raises an error for bf16 if the CPU does not support it.
_is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
_has_bf16_product = _linear_pointwise is not None and _is_supported is not None and bool(_is_supported())
PACKED_ROWS = 128  # input rows for which packed weights are laid out; other numbers work too, mostly as fast


def _packed_product(x: Tensor, packed: Any, bias: Tensor | None, epilogue: str = "none") -> Tensor:
    y: Tensor = _linear_pointwise(x, packed, bias, epilogue, [], "")
    return y


def _product(x: Tensor, weight: Any, bias: Tensor | None, epilogue: str = "none") -> Tensor:
    if x.dtype == torch.bfloat16 and _has_bf16_product:
        return _packed_product(x, weight, bias, epilogue)
    y = functional.linear(x, weight, bias)
    return y.relu_() if epilogue == "relu" else y


def training_kernels(device: torch.device, dtype: torch.dtype = torch.float32, has_triton: bool = False) -> Kernels:
    """Return the kernels for training on a device, with matrix products of this type.

    Args:
        has_triton: whether to use our Triton kernels, such as attention over packed sentences.
    """
    if device.type == "cpu":
        return CpuTraining()
    if not has_triton:
        return CudaTraining(dtype)
    from mt.model.fused import TritonTraining  # only torch's CUDA builds include Triton

    return TritonTraining(dtype)


def inference_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """Return the kernels for inference on a device, with parameters of this type."""
    if device.type == "cpu":
        can_pack = _reorder_linear_weight is not None and _has_bf16_product and dtype == torch.bfloat16
        return PackedInference() if can_pack else CpuInference()
    return NarrowCudaInference() if device.type == "cuda" and dtype != torch.float32 else Inference()


class CpuInference(Inference):
    """Inference on a CPU. Layer norm does not convert its parameters; attention of a decoding step is one call."""

    def layer_norm(self, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        return functional.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)

    def attend_step(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # For a few queries, one call is faster than the five of the reference.
        n_heads, n_groups = q.shape[1], k.shape[1]
        if n_heads == n_groups:
            return functional.scaled_dot_product_attention(q, k, v, mask)
        # Query heads that share keys become query rows.
        if mask is not None and mask.shape[1:3] != (1, 1):
            mask = mask.expand(-1, max(mask.shape[1], n_heads // n_groups), -1, -1)
            mask = mask.reshape(len(mask), -1, n_heads // n_groups * mask.shape[2], mask.shape[3])
        grouped = q.reshape(*k.shape[:2], -1, q.shape[-1])  # [B, G, H/G k, E]
        return functional.scaled_dot_product_attention(grouped, k, v, mask).reshape(q.shape)


class PackedInference(CpuInference):
    """Inference on a CPU with weights in oneDNN's packed layout, which saves a copy of them in each product."""

    def packed(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        return _reorder_linear_weight(layer.weight, PACKED_ROWS), getattr(layer, "bias", None)

    def linear(self, x: Tensor, layer: Any) -> Tensor:
        return _packed_product(x, *layer.packed)

    def feed_forward(self, x: Tensor, inner: Any, activation: Activation, outer: Any) -> Tensor:
        weight, bias = inner.packed
        return self.linear(activation.forward(_packed_product(x, weight, bias, activation.epilogue)), outer)

    def logits(self, x: Tensor, output: Any) -> Tensor:
        return _packed_product(x, *output.packed)


class CpuTraining(Training, CpuInference):
    """Training on a CPU, with hand-written attention as well."""

    product = staticmethod(_product)
    scaled_sum = Kernels.scaled_sum

    def attend(self, rows: Rows, *projections: Tensor) -> Tensor:
        if isinstance(rows.layout, TileLayout) and rows.dropout == 0:
            return _TiledAttention.apply(rows.layout, len(rows.masks), *rows.masks, *projections)  # type: ignore[no-any-return, no-untyped-call]
        return super().attend(rows, *projections)


class _TiledAttention(torch.autograd.Function):
    """Attention in tiles with a hand-written backward pass.

    Each pass copies its inputs into heads once, and its results back once. In between, all operands are batches of
    contiguous matrices. Heads that share keys become rows of one query matrix.
    """

    @staticmethod
    def forward(ctx: Any, layout: TileLayout, n_masks: int, *tensors: Tensor) -> Tensor:
        ctx.layout, ctx.n_masks, saved, out = layout, n_masks, [], []
        projections = tensors[n_masks:]
        for group, mask in zip(layout.groups, tensors[:n_masks], strict=True):
            heads = [_into_heads(x, group) for x in projections]
            q, k, v = (part for x in heads for part in x)
            weights = q.new_empty(len(q), group.width, group.width)
            weights.view(group.n_tiles, -1, *weights.shape[1:]).copy_(mask)
            scores = weights.view(len(k), -1, group.width)  # [n G, H/G W, W]
            scores.baddbmm_(in_groups(q, k), k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
            torch.softmax(weights, -1, out=weights)
            out.append(_out_of_heads(torch.bmm(scores, v).view(1, *q.shape), group.n_tiles).flatten(1))
            saved += [weights, *heads]
        ctx.save_for_backward(*saved)
        return concatenated(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        n_projections = len(ctx.needs_input_grad) - 2 - ctx.n_masks
        per_group, grad_masks = [], []
        for group, wants_mask in zip(ctx.layout.groups, ctx.needs_input_grad[2:], strict=False):
            weights, heads = next(saved), [next(saved) for _ in range(n_projections)]
            q, k, v = (part for x in heads for part in x)
            scale, n_heads = q.shape[-1] ** -0.5, len(q) // group.n_tiles
            by_heads = grads[0].view(len(grads[0]), 1, n_heads, -1)
            (grad,) = _into_heads(by_heads, group)
            grad, by_group = in_groups(grad, k), weights.view(len(k), -1, group.width)
            grad_heads = [torch.empty_like(x) for x in heads]
            grad_q, grad_k, grad_v = (part for x in grad_heads for part in x)
            torch.bmm(by_group.transpose(1, 2), grad, out=grad_v)
            grad = torch.bmm(grad, v.transpose(1, 2))
            grad = torch._softmax_backward_data(grad, by_group, -1, grad.dtype)
            grad_masks.append(grad.view(group.n_tiles, n_heads, group.width, -1) if wants_mask else None)
            grad_q = in_groups(grad_q, k)
            torch.baddbmm(grad_q, grad, k, beta=0, alpha=scale, out=grad_q)
            torch.baddbmm(grad_k, grad.transpose(1, 2), in_groups(q, k), beta=0, alpha=scale, out=grad_k)
            per_group.append([_out_of_heads(x, group.n_tiles) for x in grad_heads])
        return None, None, *grad_masks, *(concatenated(list(parts)) for parts in zip(*per_group, strict=True))


def _into_heads(x: Tensor, group: TileGroup) -> Tensor:
    """Return the group's rows of x [T, k, H, E] as [k, n H, W, E], contiguous."""
    return group.tiles(x).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)


def _out_of_heads(x: Tensor, n_tiles: int) -> Tensor:
    """Return x [k, n H, W, E] as [n W, k, H, E], contiguous."""
    tiles = x.view(len(x), n_tiles, -1, *x.shape[2:])  # [k, n, H, W, E]
    return tiles.permute(1, 3, 0, 2, 4).contiguous().flatten(0, 1)
