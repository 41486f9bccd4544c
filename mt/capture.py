"""CUDA graphs: one stream for all captures, recovery of the device when a capture fails, passes of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mt.data.batch import PackedBatch


@cache
def capture_stream(device: torch.device) -> Any:
    """Return the stream of all captures. torch has 32 streams, and gives each out again: another might be in use."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> Iterator[None]:
    """Capture what is launched in here. Other threads may keep using the device.

    Args:
        pool: of memory; see `torch.cuda.graph_pool_handle`.
    Raises:
        RuntimeError: CUDA cannot capture it; streams, random numbers and memory are as before.
    """
    try:
        # The outer context restores the stream, which torch does not where a capture fails.
        with torch.cuda.stream(torch.cuda.current_stream(device)):
            stream = capture_stream(device)
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                yield
    except RuntimeError:
        # torch 2.11 leaves the generator and the allocator as they are in a capture; later versions do not.
        fresh = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[device.index].graphsafe_set_state(fresh)
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
        raise


def captured_pass(
    run: Callable[[PackedBatch, Tensor], Tensor], parameters: list[nn.Parameter], batch: PackedBatch, share: Tensor
) -> Callable[[PackedBatch, Tensor], Tensor]:
    """Capture a forward and a backward pass, for updates so small that launching takes longer than computing.

    Args:
        run: makes the pass over a micro-batch whose gradients have a share in the update, and returns its loss. It
            has been run before, on `capture_stream`, so that all of it is compiled.
        parameters: all of them; none has a gradient.
    Returns:
        The same for any micro-batch of this shape, in one launch; it replaces the gradients.
    Raises:
        RuntimeError: CUDA cannot capture it.
    """
    batch, share = batch.clone(), share.clone()
    inputs, graph = [*batch.tensors(), share], torch.cuda.CUDAGraph()
    with capturing(graph, share.device, torch.cuda.graph_pool_handle()):
        loss = run(batch, share)
    gradients = [(parameter, parameter.grad) for parameter in parameters]

    def replay(batch: PackedBatch, share: Tensor) -> Tensor:
        for captured, given in zip(inputs, [*batch.tensors(), share], strict=True):
            captured.copy_(given)
        graph.replay()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return loss.clone()

    return replay
