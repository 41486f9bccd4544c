"""Backward passes written by hand against those of torch's own operators, and against differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mt.attention import attention
from mt.data.batch import TileGroup, TileLayout
from mt.fused import feed_forward, linear, tiled_attention


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def require_same(
    fused: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], tolerance: float = 1e-10
) -> None:
    """Values and the gradients of all inputs."""
    outs = [function(*inputs) for function in (fused, plain)]
    assert outs[0].shape == outs[1].shape
    upstream = torch.randn_like(outs[0])
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in outs]
    for a, b in zip((outs[0], *gradients[0]), (outs[1], *gradients[1]), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def plain_feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return functional.linear(functional.relu(functional.linear(x, w1, b1)), w2, b2)


def two_widths() -> TileLayout:
    """One tile of 8 rows and two of 4; the first with a causal mask, the others with one sentence of 3 rows each."""
    causal = torch.zeros(8, 8, dtype=torch.float64).masked_fill_(torch.ones(8, 8).triu(1) > 0, -1e4)
    padded = torch.zeros(4, 4, dtype=torch.float64)
    padded[:, 3] = -1e4
    return TileLayout(
        (
            TileGroup(1, 0, 8, 0, 8, causal.view(1, 1, 8, 8)),
            TileGroup(2, 8, 4, 8, 4, padded.expand(2, 1, 4, 4)),
        )
    )


def test_a_linear_layer_is_torchs() -> None:
    torch.manual_seed(0)
    inputs = [random(7, 6), random(5, 6), random(5)]
    require_same(linear, functional.linear, inputs)
    assert torch.autograd.gradcheck(linear, inputs)


def test_a_feed_forward_layer_is_torchs() -> None:
    torch.manual_seed(0)
    inputs = [random(7, 6), random(9, 6), random(9), random(6, 9), random(6)]
    require_same(feed_forward, plain_feed_forward, inputs)
    assert torch.autograd.gradcheck(feed_forward, inputs)


@pytest.mark.parametrize("is_cross", [False, True])
def test_attention_in_tiles_is_that_of_plain_operators(is_cross: bool) -> None:
    torch.manual_seed(0)
    layout = two_widths()
    inputs = [random(16, 1, 2, 3), random(16, 2, 2, 3)] if is_cross else [random(16, 3, 2, 3)]

    def fused(*projections: Tensor) -> Tensor:
        return tiled_attention(layout, *projections)

    def plain(*projections: Tensor) -> Tensor:
        q, k, v = (x for projection in projections for x in projection.unbind(1))
        return attention(q, k, v, layout, causal=False).flatten(1)

    require_same(fused, plain, inputs)
    assert torch.autograd.gradcheck(fused, inputs)


def test_in_bf16_gradients_are_as_near_the_exact_ones_as_those_of_plain_operators() -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(200, 64), torch.randn(200, 64)
    parameters = [random(*shape, dtype=torch.float32) for shape in ((96, 64), (96,), (64, 96), (64,))]

    def gradients(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.to(dtype).requires_grad_(), *parameters]
        out = function(*inputs)
        assert out.dtype == dtype
        return torch.autograd.grad(out, inputs, upstream.to(dtype))

    def plain_bf16(x: Tensor, *parameters: Tensor) -> Tensor:
        return plain_feed_forward(x, *(parameter.to(x.dtype) for parameter in parameters))

    exact = gradients(plain_feed_forward, torch.float32)
    ours, plain = gradients(feed_forward, torch.bfloat16), gradients(plain_bf16, torch.bfloat16)
    assert [gradient.dtype for gradient in ours] == [torch.bfloat16, *[torch.float32] * 4]
    for wanted, found, usual in zip(exact, ours, plain, strict=True):
        assert (found - wanted).norm() <= 1.1 * (usual - wanted).norm()
