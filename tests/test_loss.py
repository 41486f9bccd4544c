from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mt.dropout import add_dropped, dropout, seed_dropout
from mt.loss import Loss, _Loss, in_chunks, linear_label_smoothed_nll, token_losses

torch.manual_seed(0)
HIDDEN, WEIGHT = torch.randn(1_300, 16), torch.randn(70, 16) / 4
TARGETS = torch.randint(0, 70, (1_300,))
WEIGHTS = (torch.rand(1_300) > 0.2).float()
CPU = torch.device("cpu")


def label_smoothed_nll(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return token_losses(logits, targets, weights, smoothing, False)[0].sum()


def test_a_uniform_guess_costs_log_vocab_per_token() -> None:
    loss = label_smoothed_nll(torch.zeros(5, 70), TARGETS[:5], torch.ones(5), 0.1)
    assert loss.item() == pytest.approx(5 * math.log(70))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_label_smoothed_loss_equals_that_of_torch(smoothing: float) -> None:
    logits = HIDDEN @ WEIGHT.t()
    losses = torch.nn.functional.cross_entropy(logits, TARGETS, reduction="none", label_smoothing=smoothing)
    expected = (losses * WEIGHTS).sum()
    torch.testing.assert_close(label_smoothed_nll(logits, TARGETS, WEIGHTS, smoothing), expected)
    torch.testing.assert_close(linear_label_smoothed_nll(HIDDEN, WEIGHT, TARGETS, WEIGHTS, smoothing), expected)


def compiled(backend: str) -> Loss:
    return torch.compile(cuda_loss, fullgraph=True, dynamic=False, backend=backend)


def cuda_loss(*arguments: Any) -> Tensor:
    return _Loss.apply(token_losses, *arguments)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    return label_smoothed_nll(hidden @ weight.to(hidden.dtype).t(), targets, weights, smoothing)


def loss_and_gradients(loss: Loss, hidden: Tensor, weight: Tensor, smoothing: float) -> list[Tensor]:
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = loss(*inputs, TARGETS, WEIGHTS, smoothing)
    return [value.detach(), *torch.autograd.grad(value * 0.25, inputs)]


# With large weights, logits exceed 88, and exp(88) overflows in float32.
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", [linear_label_smoothed_nll, cuda_loss], ids=["cpu", "cuda"])
def test_hand_written_gradients_equal_those_of_autograd(loss: Loss, smoothing: float, scale: float) -> None:
    wanted = loss_and_gradients(plain, HIDDEN, WEIGHT * scale, smoothing)
    for by_hand, written_out in zip(loss_and_gradients(loss, HIDDEN, WEIGHT * scale, smoothing), wanted, strict=True):
        torch.testing.assert_close(by_hand, written_out, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiled_loss_equals_the_eager_loss(backend: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    wanted = loss_and_gradients(cuda_loss, HIDDEN.to(dtype), WEIGHT, 0.1)
    found = loss_and_gradients(compiled(backend), HIDDEN.to(dtype), WEIGHT, 0.1)
    assert [x.dtype for x in found] == [torch.float32, dtype, torch.float32]
    for of_compiled, of_eager in zip(found, wanted, strict=True):
        assert (of_compiled - of_eager).abs().max() <= (1e-5 if dtype == torch.float32 else 4e-3) * of_eager.abs().max()


def test_tokens_without_weight_have_no_loss_and_no_gradient() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    loss = linear_label_smoothed_nll(hidden, WEIGHT, TARGETS, WEIGHTS, 0.1)
    real = WEIGHTS > 0
    alone = linear_label_smoothed_nll(HIDDEN[real], WEIGHT, TARGETS[real], WEIGHTS[real], 0.1)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad[~real].abs().max() == 0


def test_the_fused_loss_in_bf16_is_close_to_the_exact_loss() -> None:
    exact = label_smoothed_nll(HIDDEN @ WEIGHT.t(), TARGETS, WEIGHTS, 0.1)
    loss = linear_label_smoothed_nll(HIDDEN.bfloat16(), WEIGHT, TARGETS, WEIGHTS, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.3])
def test_dropout_zeroes_a_fraction_p_and_preserves_the_mean(dtype: torch.dtype, p: float) -> None:
    seed_dropout(CPU, 1, 2, 3)
    dropped = dropout(torch.ones(1_000, 1_000, dtype=dtype), p, training=True).float()
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    # A million draws: the mean is off by 0.0005 at one standard deviation.
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.003)
    assert len(dropped.unique()) == 2


def test_dropout_masks_depend_only_on_seed_step_and_micro_batch() -> None:
    def mask(*numbers: int) -> torch.Tensor:
        seed_dropout(CPU, *numbers)
        return dropout(torch.ones(100), 0.5, training=True)

    assert torch.equal(mask(1, 2, 3), mask(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(mask(1, 2, 3), mask(*other))


def test_dropout_masks_and_their_elements_are_independent() -> None:
    seed_dropout(CPU, 1, 2, 3)
    first, second = (dropout(torch.ones(1_000, 1_000), 0.3, training=True) for _ in range(2))
    for a, b in ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])):
        # A million pairs: the correlation is off by 0.001 at one standard deviation.
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 0.004


def test_dropout_works_on_very_large_tensors() -> None:
    seed_dropout(CPU, 1, 2, 3)
    dropped = dropout(torch.ones(5_000, 1_000), 0.1, training=True)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)


def test_dropped_elements_pass_no_gradient() -> None:
    seed_dropout(CPU, 1, 1, 1)
    residual, x = torch.zeros(100, requires_grad=True), torch.ones(100, requires_grad=True)
    out = add_dropped(residual, x, 0.5, training=True)
    out.sum().backward()
    assert x.grad is not None
    assert residual.grad is not None
    assert torch.equal(x.grad, out.detach())
    assert (residual.grad == 1).all()


def test_without_training_dropout_does_nothing() -> None:
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(add_dropped(x, x, 0.5, training=False), 2 * x)


@pytest.mark.parametrize("n_chunks", [2, 3, 7])
def test_a_loss_in_chunks_equals_the_whole_loss(n_chunks: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets, weights = torch.randint(30, (20,)), (torch.rand(20) > 0.2).float()
    largest = 0

    def plain(h: Tensor, w: Tensor, t: Tensor, m: Tensor, smoothing: float) -> Tensor:
        nonlocal largest
        logits = h @ w.T
        largest = max(largest, len(logits))
        return label_smoothed_nll(logits, t, m, smoothing)

    whole = plain(hidden, weight, targets, weights, 0.1)
    expected = torch.autograd.grad(whole, (hidden, weight))
    largest = 0
    loss = in_chunks(plain, n_chunks)(hidden, weight, targets, weights, 0.1)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, whole)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert largest == -(-20 // n_chunks)
