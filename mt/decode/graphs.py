"""Search on CUDA with captured graphs, since launching the kernels of a step one by one takes longer than the step.

A graph is one step for one shape: a number of sentences, beams, source positions and positions in the cache. Sizes are
rounded up so that there are few shapes; the sentences added for that are finished from the first step. A step that can
be captured computes the same as an eager one, but uses no numbers that only the host has (`is_static`).
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mt.capture import capture_stream, capturing
from mt.decode.search import SearchRequest, SearchResult, SearchState
from mt.model import Transformer
from mt.system.device import memory_bytes
from mt.text.tokenizer import EOS_ID

_log = logging.getLogger(__name__)

# Steps after which the host reads from the device which sentences are finished.
SYNC_EVERY = 4
# Positions by which a cache grows. Large, so that there are few shapes; a multiple of SYNC_EVERY.
CACHE_GROWTH = 32
SOURCE_WIDTH_MULTIPLE = 16
WARM_UP_STEPS = 2  # before a capture: libraries initialise themselves in the first steps
# When the tensors of graphs take more of the device's memory, the least recently used graphs are dropped.
GRAPHS_MEMORY_FRACTION = 0.3


class Graphs:
    """Captured steps of one model, kept from batch to batch.

    Args:
        capture: returns a graph of a step, from a state and a memory pool; by default a CUDA graph.
    """

    def __init__(self, model: Transformer, capture: Callable[[SearchState, Any], _Captured] | None = None) -> None:
        self.model = model
        self._capture = capture or _Captured.of
        self.capture_error: str | None = None  # why no step is captured; None: steps are captured
        self._device = model.embedding.weight.device
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._seen: set[Any] = set()  # shapes; a shape that occurs only once is not worth a capture
        self._pool: Any = None
        if torch.version.hip:
            self.capture_error = "ROCm is not tested"
        if self._device.type != "cuda" and capture is None:
            self.capture_error = "no CUDA device"

    @torch.inference_mode()
    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        """Search as `mt.decode.search.search` does."""
        # Streams and captures belong to the current device.
        with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
            return self._search(request)

    def _search(self, request: SearchRequest) -> list[list[SearchResult]]:
        n = len(request.sentences)
        n_fillers = rounded_up(n) - n
        prefixes = [*(request.prefixes or [()] * n), *[()] * n_fillers]
        padded = replace(request, sentences=[*request.sentences, *[[EOS_ID]] * n_fillers], prefixes=prefixes)
        state = SearchState.begin(self.model, padded, width_multiple=SOURCE_WIDTH_MULTIPLE)
        state.limits[n:] = 1
        # The first steps are not captured. They differ: only one beam, prefixes, a minimum length.
        for _ in range(max([request.decode.min_length, *(len(prefix) + 1 for prefix in prefixes)])):
            state.step()
        state.make_static()
        results: list[list[SearchResult]] = [[] for _ in padded.sentences]
        while True:
            still_open, done = state.open_and_done()
            if not still_open:
                state.collect(done, results)
                return results[:n]
            if (n_kept := rounded_up(len(still_open))) < len(still_open) + len(done):
                state.collect(done, results)
                # Unfinished sentences, and finished ones to fill the shape: their results no longer change.
                state.keep_sentences([*still_open, *done][:n_kept])
            self._advance(state)

    def _advance(self, state: SearchState) -> None:
        """Run some steps without reading from the device."""
        cache = state.cache
        if cache.length == cache.capacity:
            state.grow(CACHE_GROWTH - cache.capacity % CACHE_GROWTH)
        n_steps = min(SYNC_EVERY, cache.capacity - cache.length)
        captured = self._captured_for(state) if self.capture_error is None else None
        for _ in range(n_steps):
            if captured is None:
                state.step()
            else:
                captured.graph.replay()
                cache.length += 1  # the graph has counted on the device

    def _captured_for(self, state: SearchState) -> _Captured | None:
        """Return the graph for this shape, whose tensors the state uses from now on; None if there is none."""
        shapes = tuple((name, tuple(tensor.shape)) for _, name, tensor in state.tensors())
        key = (state.decode, state.n_best, shapes)
        captured = self._captured.get(key)
        if captured is None:
            if key not in self._seen:
                self._seen.add(key)
                return None
            try:
                if self._pool is None and self._device.type == "cuda":
                    self._pool = torch.cuda.graph_pool_handle()
                captured = self._capture(state, self._pool)
            except RuntimeError as error:
                self._captured.clear()
                self.capture_error = str(error).partition("\n")[0]
                _log.warning(f"CUDA graphs cannot be used, so decoding is slower: {self.capture_error}")
                return None
            self._captured[key] = captured
            self._evict_oldest()
        self._captured.move_to_end(key)
        captured.adopt(state)
        return captured

    def clear(self) -> None:
        """Free the memory of all captured steps."""
        self._captured.clear()
        self._pool = None

    def _evict_oldest(self) -> None:
        limit = GRAPHS_MEMORY_FRACTION * memory_bytes(self._device)
        while len(self._captured) > 1 and sum(captured.n_bytes for captured in self._captured.values()) > limit:
            self._captured.popitem(last=False)


@dataclass
class _Captured:
    """One step as a graph, and the state whose tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    state: SearchState

    @classmethod
    def of(cls, state: SearchState, pool: Any) -> _Captured:
        """Capture a step of a static state whose cache has capacity for it. The state itself does not change.

        Args:
            pool: memory pool, shared by all graphs, since they are never replayed at the same time.
        Raises:
            RuntimeError: CUDA cannot capture it.
        """
        own = state.copy()
        for held, name, tensor in own.tensors():
            held[name] = tensor.clone()
        device = state.model.embedding.weight.device
        stream = capture_stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                own.copy().step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, device, pool):
            stepped = own.copy()
            stepped.step()
            for (_, _, before), (_, _, after) in zip(own.tensors(), stepped.tensors(), strict=True):
                if after is not before:
                    before.copy_(after)
        return cls(graph, own)

    def adopt(self, state: SearchState) -> None:
        """Copy the tensors of a state into those of the graph, and let the state use these."""
        for (_, _, own), (held, name, tensor) in zip(self.state.tensors(), state.tensors(), strict=True):
            if tensor is not own:
                own.copy_(tensor)
                held[name] = own

    @property
    def n_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, _, tensor in self.state.tensors())


def rounded_up(n: int) -> int:
    """Return n rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, …: at most a third of it is padding."""
    power = 1 << (n - 1).bit_length()
    return 3 * power // 4 if power >= 4 and n <= 3 * power // 4 else power
