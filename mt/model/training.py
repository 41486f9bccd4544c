"""Linear and feed-forward layers with hand-written backward passes, which pass over memory less than autograd.

T rows, D features in, F features out or d_ff.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mt.loss import product_in
from mt.model.kernels import Activation, Kernels, in_type_of

# Returns x Wᵀ + b or its ReLU, from x [T, D], weight [F, D], bias, and "none" or "relu"; all tensors have one type.
Product = Callable[[Tensor, Tensor, Tensor | None, str], Tensor]


class Training(Kernels):
    """Kernels with hand-written backward passes. Gradients have the type of their parameters."""

    product: Product

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return _Linear.apply(self, x, *_parameters(layer))  # type: ignore[no-any-return, no-untyped-call]

    def feed_forward(self, x: Tensor, inner: nn.Linear, activation: Activation, outer: nn.Linear) -> Tensor:
        return _FeedForward.apply(self, activation, x, *_parameters(inner), *_parameters(outer))  # type: ignore[no-any-return, no-untyped-call]

    def activation_gradients(
        self, activation: Activation, grad: Tensor, before: Tensor, dtype: torch.dtype, has_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of the input of an activation, `before`, and of the bias in that input."""
        grad = activation.backward(grad, before)
        return grad, _bias_gradient(grad, dtype) if has_bias else None


class CudaTraining(Training):
    """Training on CUDA with copies of the weights in the type of the matrix products, made once per update.

    Args:
        dtype: type of the matrix products.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._copied: list[Tensor] = []
        self._copies: list[Tensor] = []

    def packed(self, layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
        if not isinstance(layer, nn.Linear) or layer.weight.dtype == self.dtype:
            return None
        parameters = [p.detach() for p in (layer.weight, layer.bias) if p is not None]
        copies = [p.to(self.dtype) for p in parameters]
        self._copied += parameters
        self._copies += copies
        return copies[0], copies[1] if len(copies) > 1 else None

    def begin_update(self) -> None:
        if self._copies:
            torch._foreach_copy_(self._copies, self._copied)

    def layer_norm(self, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        # The compiler turns this into one pass, in which parameters are not rounded.
        wide = x.to(layer.weight.dtype)
        return functional.layer_norm(wide, layer.normalized_shape, layer.weight, layer.bias, layer.eps).to(x.dtype)

    def rms_norm(self, x: Tensor, layer: nn.RMSNorm) -> Tensor:
        wide = x.to(layer.weight.dtype)
        return functional.rms_norm(wide, layer.normalized_shape, layer.weight, layer.eps).to(x.dtype)

    @staticmethod
    def product(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: str) -> Tensor:
        if epilogue == "relu" and bias is not None:
            return torch._addmm_activation(bias, x, weight.t())
        y = functional.linear(x, weight, bias)
        return functional.relu(y) if epilogue == "relu" else y


def _parameters(layer: Any) -> tuple[Tensor | None, ...]:
    """Return weight and bias, and their packed forms if there are any; see `Kernels.packed`."""
    return layer.weight, layer.bias, *(layer.packed or (None, None))


def _bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    wide = dtype if grad.is_cuda else None  # on a CPU a sum in another type is slow
    return grad.sum(0, dtype=wide).to(dtype)


def _gradients(grad: Tensor, x: Tensor, dtype: torch.dtype, has_bias: bool) -> tuple[Tensor | None, ...]:
    """Return the gradients of `_parameters`, from grad [T, F], that of x Wᵀ + b, and x [T, D]."""
    return product_in(grad.t(), x, dtype), _bias_gradient(grad, dtype) if has_bias else None, None, None


def _narrow(x: Tensor, weight: Tensor, bias: Tensor | None, *packed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of `_parameters` in the type of x."""
    narrow, narrow_bias = (in_type_of(x, p) if n is None else n for n, p in zip(packed, (weight, bias), strict=True))
    assert narrow is not None
    return narrow, narrow_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Training, x: Tensor, *parameters: Any) -> Tensor:
        ctx.dtype, ctx.has_bias = parameters[0].dtype, parameters[1] is not None
        weight, bias = _narrow(x, *parameters)
        ctx.save_for_backward(x, weight)
        return kernels.product(x, weight, bias, "none")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return None, grads[0] @ weight, *_gradients(grads[0], x, ctx.dtype, ctx.has_bias)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Training, activation: Activation, x: Tensor, *parameters: Any) -> Tensor:
        ctx.kernels, ctx.activation = kernels, activation
        ctx.dtype, ctx.has_bias = parameters[0].dtype, parameters[1] is not None
        (w1, b1), (w2, b2) = _narrow(x, *parameters[:4]), _narrow(x, *parameters[4:])
        before = kernels.product(x, w1, b1, activation.epilogue)
        hidden = activation.forward(before)
        ctx.save_for_backward(x, before, hidden, w1, w2)
        return kernels.product(hidden, w2, b2, "none")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, before, hidden, w1, w2 = ctx.saved_tensors
        outer_gradients = _gradients(grads[0], hidden, ctx.dtype, ctx.has_bias)
        grad, grad_bias = ctx.kernels.activation_gradients(
            ctx.activation, grads[0] @ w2, before, ctx.dtype, ctx.has_bias
        )
        return None, None, grad @ w1, product_in(grad.t(), x, ctx.dtype), grad_bias, None, None, *outer_gradients
