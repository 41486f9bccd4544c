"""CUDA graphs: one stream for all captures, recovery after a failed capture, captured training passes."""

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
    """Return the stream for all captures. torch has a pool of 32 streams, so a new one might be in use elsewhere."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> Iterator[None]:
    """Capture the kernels that are launched inside the block. Other threads may keep using the device.

    Args:
        pool: a memory pool; see `torch.cuda.graph_pool_handle`.
    Raises:
        RuntimeError: CUDA cannot capture them; streams, random numbers and memory are as before.
    """
    try:
        # The outer context restores the stream, because torch does not do so if a capture fails.
        with torch.cuda.stream(torch.cuda.current_stream(device)):
            stream = capture_stream(device)
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                yield
    except RuntimeError:
        # After a failure, torch 2.11 leaves the generator and the allocator in capture mode; later versions do not.
        fresh = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[device.index].graphsafe_set_state(fresh)
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
        raise


def captured_pass(
    run: Callable[[PackedBatch, Tensor], Tensor], parameters: list[nn.Parameter], batch: PackedBatch, scale: Tensor
) -> Callable[[PackedBatch, Tensor], Tensor]:
    """Capture a forward and a backward pass, for updates so small that launching takes longer than computing.

    Args:
        run: runs both passes over a micro-batch, with its loss multiplied by a scale, and returns the loss. It must
            have run before on `capture_stream`, so that all of it is compiled.
        parameters: all parameters of the model; none has a gradient.
        batch: an example of the shape to capture.
        scale: an example of the scale.
    Returns:
        A function that does the same for any micro-batch of this shape in one launch; it replaces the gradients.
    Raises:
        RuntimeError: CUDA cannot capture the passes.
    """
    batch, scale = batch.clone(), scale.clone()
    inputs, graph = [*batch.tensors(), scale], torch.cuda.CUDAGraph()
    with capturing(graph, scale.device, torch.cuda.graph_pool_handle()):
        loss = run(batch, scale)
    gradients = [(parameter, parameter.grad) for parameter in parameters]

    def replay(batch: PackedBatch, scale: Tensor) -> Tensor:
        for captured, given in zip(inputs, [*batch.tensors(), scale], strict=True):
            captured.copy_(given)
        graph.replay()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return loss.clone()

    return replay
