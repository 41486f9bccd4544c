"""Label-smoothed cross-entropy, summed over real tokens, in nats.

T positions, V vocabulary, D d_model.
Source: Szegedy et al. 2016, section 7. With smoothing ε the target distribution is 1 - ε on the label and ε / V on all:
loss = logsumexp(x) - (1 - ε) x[label] - ε mean(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# A loss as a function of hidden states, output weight, targets, weights and smoothing.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

LOGIT_POSITIONS, EXP_ROWS = 1024, 128
# A million times exp(70), times a weight, is far below the largest number of float32 and bfloat16.
SAFE_LOGIT = 70.0


def token_losses(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the weighted, label-smoothed cross-entropy of each token.

    Args:
        logits: [T, V], any float type; sums are taken in float32.
        targets: [T] ids.
        weights: [T]: 1 for real tokens, 0 for padding.
    Returns:
        The losses [T] in float32, and the gradient of their sum [T, V]; without `with_gradient`, the logits instead.
    """
    wide = logits.float()
    normaliser = wide.logsumexp(-1)
    at_target = wide.gather(-1, targets[:, None])[:, 0]
    losses = normaliser - (1 - smoothing) * at_target - smoothing * wide.mean(-1)
    if not with_gradient:
        return losses * weights, logits
    grad = (wide - normaliser[:, None]).exp() - smoothing / logits.shape[1]
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    grad = torch.where(is_target, grad - (1 - smoothing), grad) * weights[:, None]
    return losses * weights, grad.to(logits.dtype)


def linear_label_smoothed_nll(
    hidden: Tensor,
    output_weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    smoothing: float,
    of_tokens: Callable[..., tuple[Tensor, Tensor]] = token_losses,
) -> Tensor:
    """Return the loss of the logits `hidden @ output_weight.T`; on a CPU without keeping all logits in memory.

    Args:
        hidden: [T, D], in the type of the matrix products.
        output_weight: [V, D].
        targets: [T] ids below V.
        weights: [T].
        of_tokens: a function to use in place of `token_losses`, such as a compiled one; not used on a CPU.
    Returns:
        Scalar, float32. Divide by the number of real tokens of the whole update, not of this batch.
    """
    if hidden.device.type == "cpu":
        return _ChunkedLoss.apply(hidden, output_weight, targets, weights, smoothing)  # type: ignore[no-any-return, no-untyped-call]
    return _Loss.apply(of_tokens, hidden, output_weight, targets, weights, smoothing)  # type: ignore[no-any-return, no-untyped-call]


def in_chunks(loss: Loss, n_chunks: int) -> Loss:
    """Return the same loss, computed on n_chunks parts of the rows, so that the logits of only one exist at a time.

    The backward pass computes them again.
    """

    def chunked(hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        rows = zip(*(torch.tensor_split(x, n_chunks) for x in (hidden, targets, weights)), strict=True)
        losses = [
            checkpoint(loss, h, output_weight, t, w, smoothing, use_reentrant=False, preserve_rng_state=False)
            for h, t, w in rows
        ]
        return torch.stack(losses).sum()

    return chunked


class _Loss(torch.autograd.Function):
    """The loss of all positions at once. The forward pass also computes the gradient."""

    @staticmethod
    def forward(ctx: Any, of_tokens: Any, hidden: Tensor, output_weight: Tensor, *of_rows: Any) -> Tensor:
        weight = output_weight.to(hidden.dtype)
        losses, grad = of_tokens(hidden @ weight.t(), *of_rows, any(ctx.needs_input_grad))
        ctx.save_for_backward(hidden, weight, grad)
        ctx.dtype = output_weight.dtype
        total: Tensor = losses.sum()
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, grad = ctx.saved_tensors
        # Multiply in the parameters' type: rounding the factor to bfloat16 would put the same error on all parameters.
        of_hidden, of_weight = (product_in(*x, ctx.dtype).mul_(grads[0]) for x in ((grad, weight), (grad.t(), hidden)))
        return None, of_hidden.to(hidden.dtype), of_weight, None, None, None


def product_in(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b in the given type; on CUDA the matrix product itself writes float32."""
    if a.is_cuda and a.dtype != dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


class _ChunkedLoss(torch.autograd.Function):
    """The loss on a CPU, in chunks of R positions; their gradient is computed while the logits are in the cache.

    Logits are transposed, [V, R], so that no matrix product has to transpose a large operand first, which would take as
    long as the product. They become exponentials in place. These are not divided by their normaliser; the smaller
    operand of each product is scaled instead. The part of the gradient that comes from smoothing has a closed form and
    needs no pass over [V, R] either.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        weight = output_weight.to(hidden.dtype)
        weight_t = weight.t().contiguous()  # [D, V]
        n_vocab = len(weight)
        per_label = smoothing / n_vocab  # probability that smoothing gives to each label
        sum_of_hidden = weights @ hidden.float()  # [D]
        sum_of_weight = output_weight.float().sum(0)  # [D]
        loss = -per_label * sum_of_hidden.dot(sum_of_weight)
        with_gradient = any(ctx.needs_input_grad[:2])
        grad_hidden = (weights[:, None] * (-per_label * sum_of_weight)).to(hidden.dtype)
        grad_weight = (-per_label * sum_of_hidden).repeat(n_vocab if with_gradient else 0, 1)
        # No logit exceeds the product of the two norms. If that is small, the maximum need not be subtracted.
        is_safe = bool(_largest_norm(hidden) * _largest_norm(output_weight) < SAFE_LOGIT)
        # Chunks of equal size, because a short last chunk would take as much time as a full one.
        n_chunks = max(1, round(len(hidden) / LOGIT_POSITIONS))
        buffer = hidden.new_empty(n_vocab * -(-len(hidden) // n_chunks))  # one buffer for all chunks stays in the cache
        for x, labels, x_weights, grad_x in zip(
            *(t.tensor_split(n_chunks) for t in (hidden, targets, weights, grad_hidden)), strict=True
        ):
            logits = torch.mm(weight, x.t(), out=buffer[: n_vocab * len(x)].view(n_vocab, len(x)))  # [V, R]
            label_places = labels, torch.arange(len(x))
            at_label = logits[label_places].float()
            highest = torch.zeros(len(x)) if is_safe else logits.amax(0).float()
            normaliser = _exponentials_(logits, None if is_safe else highest)
            loss += ((highest + normaliser.log() - (1 - smoothing) * at_label) * x_weights).sum()
            if with_gradient:
                grad_at_label = (at_label - highest).exp() - (1 - smoothing) * normaliser
                logits[label_places] = grad_at_label.to(logits.dtype)
                scale = (x_weights / normaliser)[:, None]
                grad_x += (weight_t @ logits).t() * scale
                grad_weight += logits @ (x * scale).to(x.dtype)
        ctx.gradients = grad_hidden, grad_weight
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.gradients
        del ctx.gradients  # scaled in place
        return grad_hidden.mul_(grads[0]), grad_weight.mul_(grads[0]), None, None, None


def _largest_norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return norms.amax()


def _exponentials_(logits: Tensor, highest: Tensor | None) -> Tensor:
    """Replace logits [V, R] by exp(logits - highest [R]), and return their sums [R] in float32.

    A few rows at a time stay in the cache. The exponential is computed in float32, where it is faster than in bfloat16.
    """
    sums = torch.zeros(logits.shape[1], dtype=torch.float32)
    buffer = torch.empty(EXP_ROWS, logits.shape[1], dtype=torch.float32)
    for rows in torch.split(logits, EXP_ROWS):
        exponentials = buffer[: len(rows)].copy_(rows)
        if highest is not None:
            exponentials.sub_(highest)
        sums += exponentials.exp_().sum(0)
        rows.copy_(exponentials)
    return sums
