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
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Of hidden, output weight, targets, weights and smoothing.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

ROWS, SOFTMAX_ROWS = 1024, 64


def label_smoothed_nll(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Label-smoothed cross-entropy of each token, weighted and summed.

    Args:
        logits: [T, V], any float type; the sum is taken in float32.
        targets: [T] ids.
        weights: [T]: 1 for real tokens, 0 for padding.
    Returns:
        Scalar. Divide by the number of real tokens of the whole update, not of this batch.
    """
    logits = logits.float()
    at_target = logits.gather(-1, targets[:, None])[:, 0]
    losses = logits.logsumexp(-1) - (1 - smoothing) * at_target - smoothing * logits.mean(-1)
    return (losses * weights).sum()


def linear_label_smoothed_nll(
    hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
) -> Tensor:
    """The loss of `hidden @ output_weight.T`, without keeping the logits where that pays.

    Args:
        hidden: [T, D], in the type of the matrix products.
        output_weight: [V, D].
        targets: [T] ids below V.
        weights: [T].
    Returns:
        Scalar, float32, as `label_smoothed_nll`.
    """
    if hidden.device.type == "cpu":
        return _ChunkedLoss.apply(hidden, output_weight, targets, weights, smoothing)  # type: ignore[no-any-return, no-untyped-call]
    return _compilable_loss(hidden, output_weight, targets, weights, smoothing)


def in_chunks(loss: Loss, n_chunks: int) -> Loss:
    """The same loss, of so many parts of the rows one after the other: the logits of one part exist at a time.

    They are made once more in the backward pass.
    """

    def chunked(hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        rows = zip(*(torch.tensor_split(x, n_chunks) for x in (hidden, targets, weights)), strict=True)
        losses = [
            checkpoint(loss, h, output_weight, t, w, smoothing, use_reentrant=False, preserve_rng_state=False)
            for h, t, w in rows
        ]
        return torch.stack(losses).sum()

    return chunked


def _compilable_loss(
    hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
) -> Tensor:
    logits = functional.linear(hidden, output_weight.to(hidden.dtype))
    return label_smoothed_nll(logits, targets, weights, smoothing)


class _ChunkedLoss(torch.autograd.Function):
    """The loss on a CPU: some rows at a time, and the gradient made in the forward pass, while the logits are warm.

    Matrix products take about `ROWS` rows, enough that adding up the gradient of the weight does not dominate. What
    lies between them takes `SOFTMAX_ROWS`, few enough to stay in the cache. The smoothing's part of the gradient has a
    closed form and never touches [T, V].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        weight = output_weight.to(hidden.dtype)
        n_vocab = len(weight)
        share = smoothing / n_vocab
        sum_of_hidden = weights @ hidden.float()  # [D]
        sum_of_weight = output_weight.float().sum(0)  # [D]
        loss = -share * sum_of_hidden.dot(sum_of_weight)
        with_gradient = any(ctx.needs_input_grad[:2])
        grad_hidden = (weights[:, None] * (-share * sum_of_weight)).to(hidden.dtype)
        grad_weight = (-share * sum_of_hidden).repeat(n_vocab if with_gradient else 0, 1)
        # Chunks of one size: a short last one would cost as much time as a whole one.
        n_chunks = max(1, round(len(hidden) / ROWS))
        buffer = hidden.new_empty(
            -(-len(hidden) // n_chunks), n_vocab
        )  # the same memory for all: it stays in the cache
        for x, labels, row_weights, grad_x in zip(
            *(t.tensor_split(n_chunks) for t in (hidden, targets, weights, grad_hidden)), strict=True
        ):
            logits = torch.mm(x, weight.t(), out=buffer[: len(x)])  # [R, V]; turned into their gradient in place
            label_places = torch.arange(len(x)), labels
            at_label = logits[label_places].float()
            lse = _softmax_(logits, row_weights)
            loss += ((lse - (1 - smoothing) * at_label) * row_weights).sum()
            if with_gradient:
                grad_at_label = ((at_label - lse).exp() - (1 - smoothing)) * row_weights
                logits[label_places] = grad_at_label.to(logits.dtype)
                grad_x.addmm_(logits, weight)
                grad_weight += logits.t() @ x
        ctx.gradients = grad_hidden, grad_weight
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.gradients
        del ctx.gradients  # scaled in place
        return grad_hidden.mul_(grads[0]), grad_weight.mul_(grads[0]), None, None, None


def _softmax_(logits: Tensor, weights: Tensor) -> Tensor:
    """Turn logits [R, V] into probabilities times weights [R], and return their logsumexp [R] in float32.

    Written out: over rows as long as a vocabulary torch's own softmax and logsumexp are several times slower on a CPU,
    and so is an operator that reads one type and writes another.
    """
    lse = torch.empty(len(logits), dtype=torch.float32)
    buffer = torch.empty(SOFTMAX_ROWS, logits.shape[1], dtype=torch.float32)
    for rows, row_weights, row_lse in zip(*(torch.split(t, SOFTMAX_ROWS) for t in (logits, weights, lse)), strict=True):
        p = buffer[: len(rows)].copy_(rows)
        highest = p.amax(-1, keepdim=True)
        p.sub_(highest).exp_()
        normaliser = p.sum(-1)
        torch.add(highest[:, 0], normaliser.log(), out=row_lse)
        p.mul_((row_weights / normaliser)[:, None])
        rows.copy_(p)
    return lse
