"""Label-smoothed cross-entropy, summed over real tokens, in nats.

T positions, V vocabulary, D d_model.
Source: Szegedy et al. 2016, section 7. With smoothing ε the target distribution is 1 - ε on the label and ε / V on all:
loss = logsumexp(x) - (1 - ε) x[label] - ε mean(x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS, SOFTMAX_ROWS = 512, 64


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


def _compilable_loss(
    hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
) -> Tensor:
    logits = functional.linear(hidden, output_weight.to(hidden.dtype))
    return label_smoothed_nll(logits, targets, weights, smoothing)


class _ChunkedLoss(torch.autograd.Function):
    """The loss on a CPU: some rows at a time, and the gradient made in the forward pass, while the logits are warm.

    Matrix products take `ROWS` rows, enough that adding up the gradient of the weight does not dominate. What lies
    between them takes `SOFTMAX_ROWS`, few enough to stay in the cache; softmax, its logarithm and logsumexp are written
    out, for over rows as long as a vocabulary torch's own are several times slower on the CPU. The smoothing's part of
    the gradient has a closed form and never touches [T, V].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        weight = output_weight.to(hidden.dtype)
        n_rows, n_vocab = hidden.shape[0], weight.shape[0]
        share = smoothing / n_vocab
        weight_sum = output_weight.float().sum(0)  # [D]
        losses = torch.empty(n_rows, dtype=torch.float32)
        buffer = torch.empty(SOFTMAX_ROWS, n_vocab, dtype=torch.float32)
        with_gradient = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if with_gradient else hidden
        grad_weight = torch.zeros_like(output_weight, dtype=torch.float32)
        for start in range(0, n_rows, ROWS):
            x = hidden[start : start + ROWS]
            logits = functional.linear(x, weight)  # [ROWS, V]; turned into their gradient in place
            for first in range(start, start + len(x), SOFTMAX_ROWS):
                rows = slice(first, min(first + SOFTMAX_ROWS, start + len(x)))
                losses[rows] = _softmax_rows(
                    logits[rows.start - start : rows.stop - start],
                    targets[rows, None],
                    weights[rows],
                    smoothing,
                    buffer[: rows.stop - rows.start],
                    with_gradient,
                )
            if with_gradient:
                torch.mm(logits, weight, out=grad_hidden[start : start + ROWS])
                grad_weight += logits.t() @ x
        total = (losses - share * (hidden.float() @ weight_sum) * weights).sum()
        if with_gradient:
            grad_hidden -= (weights[:, None] * (share * weight_sum)).to(hidden.dtype)
            grad_weight -= share * (weights @ hidden.float())
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_weight * grads[0], None, None, None


def _softmax_rows(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, p: Tensor, with_gradient: bool
) -> Tensor:
    """logsumexp(x) - (1 - ε) x[label] of each row, weighted; its gradient replaces the logits if asked for.

    Args:
        logits: [R, V].
        targets: [R, 1].
        weights: [R].
        p: [R, V] float32, scratch.
    """
    at_target = logits.gather(1, targets)[:, 0].float()
    highest = logits.amax(-1, keepdim=True).float()  # float32, so that the difference is
    torch.sub(logits, highest, out=p).exp_()
    normaliser = p.sum(-1)
    losses = (highest[:, 0] + normaliser.log() - (1 - smoothing) * at_target) * weights
    if with_gradient:
        p.mul_((weights / normaliser)[:, None])
        p.scatter_add_(1, targets, (-(1 - smoothing) * weights)[:, None])
        logits.copy_(p)
    return losses
