"""A forward and a backward pass as a CUDA graph, for updates so small that launching takes longer than computing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mt.capture import capturing
from mt.data.batch import PackedBatch


class CapturedPass:
    """A pass over a micro-batch of one shape, which the host launches in one call. It replaces the gradients.

    Args:
        run: makes the pass over a micro-batch whose gradients have a share in the update, and returns its loss. It
            has been run before, on `capture_stream`, so that all of it is compiled.
        parameters: all of them; none has a gradient.
    Raises:
        RuntimeError: CUDA cannot capture it.
    """

    def __init__(
        self,
        run: Callable[[PackedBatch, Tensor], Tensor],
        parameters: list[nn.Parameter],
        batch: PackedBatch,
        share: Tensor,
    ) -> None:
        own, self._share = batch.clone(), share.clone()
        self._inputs = own.tensors()
        self._graph = torch.cuda.CUDAGraph()
        with capturing(self._graph, share.device, torch.cuda.graph_pool_handle()):
            self._loss = run(own, self._share)
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]

    def __call__(self, batch: PackedBatch, share: Tensor) -> Tensor:
        """Return the loss of a micro-batch of the same shape; parameters have their gradients from it alone."""
        for own, tensor in zip(self._inputs, batch.tensors(), strict=True):
            own.copy_(tensor)
        self._share.copy_(share)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss.clone()
