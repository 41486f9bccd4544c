"""Dropout whose masks depend on the seed, the step and the slice alone.

On CUDA the masks come from the device's own generator, seeded before each slice, so that compiled code can make them.
On the CPU torch's generator makes one number at a time; here one numpy stream of raw bits serves, ten times faster.
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


def replayed() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Two contexts, for torch.utils.checkpoint: the second draws the CPU masks that the first has drawn, again.

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


# Elements of a mask that are drawn together, by one number of 16 bits.
_GROUP = 16
_N_PATTERNS = 65_536


def _cpu_mask(x: Tensor, p: float) -> Tensor:
    """0 or the scale for each element of x: groups of them are patterns from a table, not drawn one by one."""
    n = x.numel()
    n_words = -(-n // (4 * _GROUP))
    words = _cpu_bits.integers(0, 2**64, n_words, dtype=np.uint64)
    picks = torch.from_numpy(words.view(np.uint16).astype(np.int32))
    return _patterns(p, x.dtype).index_select(0, picks).view(-1)[:n].view(x.shape)


@lru_cache(maxsize=4)
def _patterns(p: float, dtype: torch.dtype) -> Tensor:
    """[patterns, group]: masks to pick from. Each column has the same number of zeros, each in an order of its own.

    The scale is what bf16 can hold, and the share of zeros is fitted to it, so that the expectation of each element is
    1 to the 16 bits of a pick: p = 0.1 drops 9.86% and scales by 1.1094. Two elements of a group are independent but
    for the chance in those orders: the correlation is of the order of 1 / sqrt(patterns) = 0.4%.
    """
    scale = torch.tensor(1 / (1 - p), dtype=torch.bfloat16).item()
    column = np.arange(_N_PATTERNS) < round(_N_PATTERNS / scale)
    kept = np.random.default_rng(0).permuted(np.tile(column[:, None], _GROUP), axis=0)
    return torch.from_numpy(kept).to(dtype).mul_(scale)
