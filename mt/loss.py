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
    """The loss on a CPU: a few rows at a time, and the gradient made in the forward pass, while the logits are warm.

    Softmax, its logarithm and logsumexp are written out: over rows as long as a vocabulary torch's own are several
    times slower on the CPU. The smoothing's part of the gradient has a closed form and never touches [T, V].
    """

    rows_at_a_time = 512

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, output_weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        with_gradient = any(ctx.needs_input_grad[:2])
        weight = output_weight.to(hidden.dtype)
        n_vocab = weight.shape[0]
        share = smoothing / n_vocab
        weight_sum = output_weight.float().sum(0)  # [D]
        total = torch.zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = torch.zeros_like(output_weight, dtype=torch.float32) if with_gradient else None
        rows = _ChunkedLoss.rows_at_a_time
        for start in range(0, hidden.shape[0], rows):
            x, target = hidden[start : start + rows], targets[start : start + rows, None]
            row_weight = weights[start : start + rows]
            logits = functional.linear(x, weight)
            p = logits.float()  # [rows, V]
            at_target = p.gather(1, target)[:, 0]
            highest = p.amax(-1)
            p.sub_(highest[:, None]).exp_()
            normaliser = p.sum(-1)
            log_normaliser = highest + normaliser.log()
            smooth = share * (x.float() @ weight_sum)
            total += ((log_normaliser - (1 - smoothing) * at_target - smooth) * row_weight).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            p.mul_((row_weight / normaliser)[:, None])
            p.scatter_add_(1, target, (-(1 - smoothing) * row_weight)[:, None])
            grad_logits = logits.copy_(p)  # back in the type of the products, without a new block
            torch.mm(grad_logits, weight, out=grad_hidden[start : start + rows])
            grad_weight += grad_logits.t() @ x
        if grad_hidden is not None and grad_weight is not None:
            grad_hidden -= (weights[:, None] * (share * weight_sum)).to(hidden.dtype)
            grad_weight -= share * (weights @ hidden.float())
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_weight * grads[0], None, None, None
