"""Dropout whose masks depend on the seed, the step and the slice alone.

On CUDA the masks come from the device's own generator, seeded before each slice, so that compiled code can make them.
On the CPU torch's generator makes one number at a time; here one numpy stream of raw bits serves, ten times faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_cpu_bits = np.random.Generator(np.random.SFC64(0))


def seed_dropout(device: torch.device, seed: int, step: int, slice_index: int) -> None:
    """Fix all masks that the next forward pass draws. Call it outside compiled code, before each slice."""
    global _cpu_bits
    sequence = np.random.SeedSequence([seed, step, slice_index])
    # The generator object itself: torch.manual_seed reseeds all devices and takes a hundred times as long.
    number = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
        _cpu_bits = np.random.Generator(np.random.SFC64(sequence))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x with each element zeroed with probability p and the others scaled so that the expectation stays."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, p)
    return x * _cpu_mask(x, p)


def add_dropped(residual: Tensor, x: Tensor, p: float, training: bool) -> Tensor:
    """residual + dropout(x)."""
    if not training or p == 0:
        return residual + x
    if x.device.type != "cpu":
        return residual + functional.dropout(x, p)
    return _AddMasked.apply(residual, x, _cpu_mask(x, p))  # type: ignore[no-any-return, no-untyped-call]


class _AddMasked(torch.autograd.Function):
    """residual + x · mask, in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.addcmul(residual, x, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grads[0], grads[0] * mask, None


def _cpu_mask(x: Tensor, p: float) -> Tensor:
    """0 or 1 / (1 - p) for each element of x.

    The scale is what bf16 can hold, and the share of zeros is fitted to it, so that the expectation is 1 exactly to
    the 15 bits of a number: p = 0.1 drops 9.86% and scales by 1.1094.
    """
    scale = torch.tensor(1 / (1 - p), dtype=torch.bfloat16)
    n_dropped_of_32768 = round((1 - 1 / scale.item()) * 32768)
    n = x.numel()
    words = _cpu_bits.integers(0, 2**64, -(-n // 4), dtype=np.uint64)
    bits = torch.from_numpy(words.view(np.int16))[:n].view(x.shape)
    kept = (bits >> 1).sub_(n_dropped_of_32768 - 16384 - 1).clamp_(0, 1)
    if x.dtype == torch.bfloat16:
        return kept.mul_(scale.view(torch.int16)).view(torch.bfloat16)
    return kept.to(x.dtype).mul_(scale.item())
