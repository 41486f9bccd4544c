"""Hand-written backward passes, compared with those of torch's operators and with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mt.data.batch import TileGroup, TileLayout
from mt.model.context import rows_of
from mt.model.cpu import CpuTraining, _TiledAttention
from mt.model.kernels import ACTIVATIONS, Kernels
from mt.model.training import _FeedForward, _Linear


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def require_same(
    fused: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], tolerance: float = 1e-10
) -> None:
    """Compare the values, and the gradients of all inputs."""
    outs = [function(*inputs) for function in (fused, plain)]
    assert outs[0].shape == outs[1].shape
    upstream = torch.randn_like(outs[0])
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in outs]
    for a, b in zip((outs[0], *gradients[0]), (outs[1], *gradients[1]), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(CpuTraining(), x, weight, bias, None, None)


def feed_forward(x: Tensor, *parameters: Tensor | None, activation: str = "relu") -> Tensor:
    w1, b1, w2, b2 = parameters
    return _FeedForward.apply(CpuTraining(), ACTIVATIONS[activation], x, w1, b1, None, None, w2, b2, None, None)


def plain_feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return functional.linear(functional.relu(functional.linear(x, w1, b1)), w2, b2)


def two_widths() -> TileLayout:
    """Return one tile of 8 rows with a causal mask, and two of 4 rows with one sentence of 3 rows each."""
    causal = torch.zeros(8, 8, dtype=torch.float64).masked_fill_(torch.ones(8, 8).triu(1) > 0, -1e4)
    padded = torch.zeros(4, 4, dtype=torch.float64)
    padded[:, 3] = -1e4
    return TileLayout(
        (
            TileGroup(1, 0, 8, causal.view(1, 1, 8, 8)),
            TileGroup(2, 8, 4, padded.expand(2, 1, 4, 4)),
        )
    )


def test_a_linear_layer_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    inputs = [random(7, 6), random(5, 6), random(5)]
    for n in (2, 3):  # without a bias and with one
        require_same(linear, functional.linear, inputs[:n])
        assert torch.autograd.gradcheck(linear, inputs[:n])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_feed_forward_layer_equals_plain_operators(activation: str, has_bias: bool) -> None:
    torch.manual_seed(0)
    chosen = ACTIVATIONS[activation]
    n = 9 * chosen.n_inputs
    weights, biases = [random(n, 6), random(6, 9)], [random(n), random(6)]
    x, present = random(7, 6), biases if has_bias else []

    def fused(x: Tensor, w1: Tensor, w2: Tensor, *b: Tensor) -> Tensor:
        b1, b2 = b or (None, None)
        return feed_forward(x, w1, b1, w2, b2, activation=activation)

    def plain(x: Tensor, w1: Tensor, w2: Tensor, *b: Tensor) -> Tensor:
        b1, b2 = b or (None, None)
        return functional.linear(chosen(functional.linear(x, w1, b1)), w2, b2)

    require_same(fused, plain, [x, *weights, *present])
    assert torch.autograd.gradcheck(fused, [x, *weights, *present])


def test_activations_equal_the_formulas_of_their_papers() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    half = functional.silu(x[:2]) * x[2:], functional.gelu(x[:2]) * x[2:]
    wanted = {"relu": x.clamp(min=0), "relu2": x.clamp(min=0) ** 2, "gelu": functional.gelu(x), "swiglu": half[0]}
    wanted |= {"silu": x * torch.sigmoid(x), "geglu": half[1]}
    assert wanted.keys() == ACTIVATIONS.keys()
    for name, expected in wanted.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), expected)


@pytest.mark.parametrize("n_groups", [4, 2, 1])
@pytest.mark.parametrize("kind", ["one projection", "queries apart", "all apart", "with a bias"])
def test_attention_in_tiles_equals_plain_operators(kind: str, n_groups: int) -> None:
    if kind == "one projection" and n_groups != 4:
        pytest.skip("one projection has as many heads of keys as of queries")
    torch.manual_seed(0)
    layout = two_widths()
    shapes = {"one projection": [(3, 4)], "queries apart": [(1, 4), (2, n_groups)]}
    inputs = [random(16, *shape, 3) for shape in shapes.get(kind, [(1, 4), (1, n_groups), (1, n_groups)])]
    if kind == "with a bias":  # learned, for each head
        inputs += [random(4, 8, 8), random(4, 4, 4)]
    n = 3 if kind == "with a bias" else len(inputs)

    def attend(attention: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        masks = rows_of(layout, 0.0).masks
        if inputs[n:]:
            masks = tuple(mask + bias for mask, bias in zip(masks, inputs[n:], strict=True))
        return attention(masks, *inputs[:n])

    def fused(*inputs: Tensor) -> Tensor:
        return attend(lambda masks, *x: _TiledAttention.apply(layout, len(masks), *masks, *x), *inputs)

    def plain(*inputs: Tensor) -> Tensor:
        return attend(lambda masks, *x: Kernels().attend(replace(rows_of(layout, 0.0), masks=masks), *x), *inputs)

    require_same(fused, plain, inputs)
    assert torch.autograd.gradcheck(fused, inputs, fast_mode=True)


def test_bf16_gradients_are_as_exact_as_those_of_plain_operators() -> None:
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
