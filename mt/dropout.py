"""Dropout whose masks depend only on the seed, the step and the micro-batch.

On CUDA the masks come from the device's generator, seeded before each micro-batch, so that compiled code can draw them.
On the CPU torch's generator draws one number at a time. There, masks are windows of a pool of random numbers that is
made once, and a numpy generator draws where they start.
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
    """Seed all masks that the next forward pass draws. Call it outside compiled code, before each micro-batch."""
    global _cpu_bits
    sequence = np.random.SeedSequence([seed, step, micro_batch_index])
    # Seed only this device's generator: torch.manual_seed seeds all devices and takes a hundred times as long.
    number = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
        _cpu_bits = np.random.Generator(np.random.SFC64(sequence))


def checkpoint_rng_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return two contexts for torch.utils.checkpoint: the second one draws the same CPU masks as the first one.

    For the generators of torch, torch itself does this.
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
            yield  # torch leaves the block by an exception when it has recomputed enough
        finally:
            _cpu_bits.bit_generator.state = now

    return first(), again()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return x with each element zeroed with probability p and the others scaled to keep the expectation."""
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
    """Autograd function for residual + x · mask, in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.addcmul(residual, x, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grads[0], grads[0] * mask, None


# A mask is a window of a pool of zeros and scales that starts at a row of the pool: one cache line in bf16.
_ROW = 32
_MIN_ROWS = 131_072


def _cpu_mask(x: Tensor, p: float) -> Tensor:
    """Return 0 or the scale for each element of x: a window of the pool, of which only the start is drawn."""
    n_rows = max(_MIN_ROWS, 1 << (-(-x.numel() // _ROW) - 1).bit_length())  # few pool sizes, all large enough
    start = int(_cpu_bits.integers(n_rows)) * _ROW
    return _pool(p, x.dtype, n_rows)[start : start + x.numel()].view(x.shape)


@lru_cache(maxsize=4)
def _pool(p: float, dtype: torch.dtype, n_rows: int) -> Tensor:
    """Return [2 · n_rows · _ROW]: the pool twice in a row, for windows that reach over its end.

    Each column has the same number of zeros. The scale is rounded to bf16, and the fraction of zeros is chosen to match
    it, so that the expectation of each element is 1 within 1 / n_rows: p = 0.1 drops 9.86% and scales by 1.1094. The
    columns are shuffled independently, so two elements of a mask have a correlation of only about 1 / √n_rows = 0.3%.
    Two masks are as independent as their starts.
    """
    scale = torch.tensor(1 / (1 - p), dtype=torch.bfloat16).item()
    column = np.arange(n_rows) < round(n_rows / scale)
    kept = np.random.default_rng(0).permuted(np.tile(column[:, None], _ROW), axis=0)
    return torch.from_numpy(kept).to(dtype).mul_(scale).flatten().repeat(2)
