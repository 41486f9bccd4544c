"""Dropout whose masks depend on the seed, the step and the micro-batch alone.

On CUDA the masks come from the device's generator, seeded before each micro-batch, so that compiled code can make them.
On the CPU torch's generator makes one number at a time; here masks are windows of a pool that is made once, and one
numpy stream says where they begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_cpu_bits = np.random.Generator(np.random.SFC64(0))


def seed_dropout(device: torch.device, seed: int, step: int, micro_batch_index: int) -> None:
    """Fix all masks that the next forward pass draws. Call it outside compiled code, before each micro-batch."""
    global _cpu_bits
    sequence = np.random.SeedSequence([seed, step, micro_batch_index])
    # The generator object itself: torch.manual_seed reseeds all devices and takes a hundred times as long.
    number = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
        _cpu_bits = np.random.Generator(np.random.SFC64(sequence))


def checkpoint_rng_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return two contexts for torch.utils.checkpoint: the second draws the CPU masks that the first has drawn, again.

    torch itself looks after the masks of its own generators.
    """
    drawn: dict[str, Any] = {}

    @contextmanager
    def first() -> Iterator[None]:
        drawn["state"] = _cpu_bits.bit_generator.state
        yield

    @contextmanager
    def again() -> Iterator[None]:
        now = _cpu_bits.bit_generator.state
        _cpu_bits.bit_generator.state = drawn["state"]
        try:
            yield  # torch leaves by an exception once it has what it needs
        finally:
            _cpu_bits.bit_generator.state = now

    return first(), again()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return x with each element zeroed with probability p and the others scaled so that the expectation stays."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, p)
    return x * _cpu_mask(x, p)


def add_dropped(residual: Tensor, x: Tensor, p: float, training: bool) -> Tensor:
    """Return residual + dropout(x)."""
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


# Masks are windows of a pool of zeros and scales, and begin at one of its rows: that is a cache line in bf16.
_ROW = 32
_MIN_ROWS = 131_072


def _cpu_mask(x: Tensor, p: float) -> Tensor:
    """0 or the scale for each element of x: a window of the pool, so that nothing is drawn but its place."""
    n_rows = max(_MIN_ROWS, 1 << (-(-x.numel() // _ROW) - 1).bit_length())  # few sizes of pool, and none too small
    start = int(_cpu_bits.integers(n_rows)) * _ROW
    return _pool(p, x.dtype, n_rows)[start : start + x.numel()].view(x.shape)


@lru_cache(maxsize=4)
def _pool(p: float, dtype: torch.dtype, n_rows: int) -> Tensor:
    """[2 · rows · row], twice the same, for windows that go past the end. Each column has the same number of zeros.

    The scale is what bf16 can hold, and the share of zeros is fitted to it, so that the expectation of each element is
    1 to one part in the rows: p = 0.1 drops 9.86% and scales by 1.1094. Each column's order is its own: two elements of
    a mask are independent but for the chance in these orders, a correlation of the order of 1 / sqrt(rows) = 0.3%. Two
    masks are as independent as the places where they begin.
    """
    scale = torch.tensor(1 / (1 - p), dtype=torch.bfloat16).item()
    column = np.arange(n_rows) < round(n_rows / scale)
    kept = np.random.default_rng(0).permuted(np.tile(column[:, None], _ROW), axis=0)
    return torch.from_numpy(kept).to(dtype).mul_(scale).flatten().repeat(2)
