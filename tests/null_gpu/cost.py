"""Estimate the cost of a training update on an H100, by part, from the launches that the null GPU logs.

    scripts/null_gpu.sh --run python -m tests.null_gpu.cost [--config base] [--tokens 25000] [--kernels 40] [--set …]

A launch takes the longest of

- its arithmetic at 60% of the peak (attention: at 25%, in blocks with heads of 64),
- the bytes of its arguments, each read or written once, at 80% of the bandwidth,
- 2 µs, the minimum time between two launches.

The host takes 5 µs per launch. If its total is longer than that of the device, the update takes as long as the host.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.profiler import ProfilerActivity, profile

from mt.config.loading import load_config
from mt.data.packing import PlanState
from mt.tools import bench
from mt.training.engine import Engine, Update
from tests.null_gpu.device import NullGPU

PEAK, BANDWIDTH = 989e12, 3.35e12  # of an H100 SXM, from its data sheet: bf16 operations and bytes per second
PEAK_FRACTION, ATTENTION_PEAK_FRACTION, BANDWIDTH_FRACTION = 0.6, 0.25, 0.8
LAUNCH_SECONDS, HOST_SECONDS = 2e-6, 5e-6
FLASH_TILE = 128  # queries and keys per block of flash attention; a shorter sentence takes a whole block
CHUNK = 65_536  # elements per block of kernels that process lists of tensors
BYTES = {"c10::BFloat16": 2, "c10::Half": 2, "float": 4, "bool": 1, "unsigned char": 1, "int": 4, "long int": 8}

# A launch belongs to the first part whose pattern occurs in the names of its kernel and of the operators around it.
PARTS = {
    "matrix products": r"^matmul",
    "attention": r"flash|attn|attend|softmax",
    "loss": r"mt::losses|logsumexp|scatter|select_backward|gather_.*sub|arange_eq",
    "optimizer": r"adam|foreach|lpnorm|linalg|isfinite|Shape_cu",
    "embedding": r"[Ee]mbedding|aten::index|masked_scale|fused_dropout",
    "norms, dropout, residual": r"layer_norm|rms_norm|dropout",
    "activation and its gradient": r"relu|gelu|silu|threshold",
    "bias gradients": r"sum",
    "copies": r"stack|clone|cat|^copy|^memset|zero",
    "casts": r"_to_copy|copy_",
    "other": r"",
}
# Bytes per element of operators that process lists of tensors. Adam reads four float32 values and writes three.
OF_LISTS = {"aten::_fused_adam_": 28, "aten::_foreach_norm": 4, "aten::_foreach_copy_": 6, "aten::_foreach_mul_": 8}


@dataclass
class Launch:
    """One launch: a kernel, a matrix product, a copy within the device, or a memset."""

    kind: str
    kernel: str  # its name and sizes
    events: list[Any]  # the events of the profiler around it, the innermost last
    flops: float = 0.0
    n_bytes: float = 0.0

    @property
    def part(self) -> str:
        names = " ".join([self.kind, self.kernel, *(event.name() for event in reversed(self.events))])
        return next(part for part, pattern in PARTS.items() if re.search(pattern, names))

    @property
    def seconds(self) -> float:
        share = ATTENTION_PEAK_FRACTION if self.part == "attention" else PEAK_FRACTION
        return max(self.flops / (share * PEAK), self.n_bytes / (BANDWIDTH_FRACTION * BANDWIDTH), LAUNCH_SECONDS)


def launches_of(engine: Engine, update: Update) -> list[Launch]:
    """Run an update, and return its launches."""
    with tempfile.NamedTemporaryFile("r") as log:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as done, NullGPU().logging(Path(log.name)):
            engine.step(update, lr=1e-3)
        lines = log.read().splitlines()
    events = sorted(done.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    starts = [event.start_ns() for event in events]
    launches = []
    for line in lines:
        at, kind, kernel = line.split(maxsplit=2)
        if kind in ("kernel", "triton_kernel", "matmul", "memset") or "device to device" in kernel:
            around = [event for event in events[: bisect_right(starts, int(at))] if event.end_ns() >= int(at)]
            launches.append(Launch(kind, kernel, around))
    kernels = [launch for launch in launches if "kernel" in launch.kind and launch.events]
    n_of_event = Counter(id(launch.events[-1]) for launch in kernels)
    for launch in launches:
        _count(launch, n_of_event)
    _count_attention(launches, engine, update)
    return launches


def _is_packed_attention(launch: Launch) -> bool:
    return bool(launch.events) and launch.events[-1].name().startswith("mt::attend")


def _count(launch: Launch, n_of_event: Counter[int]) -> None:
    """Set the operations and bytes of a launch."""
    numbers = [int(number) for number in re.findall(r"\d+", launch.kernel)]
    event = launch.events[-1] if launch.events else None
    shapes = [] if event is None else list(zip(event.shapes(), event.dtypes(), strict=True))
    sizes = [prod(shape) * BYTES.get(dtype, 0) if shape else 0 for shape, dtype in shapes]
    if launch.kind == "matmul":
        m, n, k, batch = numbers
        launch.flops = 2.0 * m * n * k * batch
        launch.n_bytes = sum(sizes)
    elif launch.kind in ("memset", "copy"):
        launch.n_bytes = numbers[-1] * (2 if launch.kind == "copy" else 1)
    elif event is not None and event.name() in _WRITTEN_IN_PLACE:
        launch.n_bytes = sum(sizes) + sum(sizes[i] for i in _WRITTEN_IN_PLACE[event.name()])
    elif event is not None and event.name() in OF_LISTS:
        launch.n_bytes = numbers[0] * CHUNK * OF_LISTS[event.name()]
    elif event is not None and event.name() == "aten::gather":  # rows of an embedding are read and written
        launch.n_bytes = 2 * sizes[0] / shapes[0][0][0] * shapes[2][0][0]
    elif event is not None and "kernel" in launch.kind:
        # It reads its inputs and writes an output of the same size. Fills only write; sums only read.
        has_both = not re.search(r"fill_|sum|norm", event.name())
        launch.n_bytes = (sum(sizes) + has_both * max(sizes, default=0)) / n_of_event[id(event)]


def _count_attention(launches: list[Launch], engine: Engine, update: Update) -> None:
    """Set the operations of attention: it computes whole blocks, even if sentences do not fill them.

    The backward pass of flash attention sums the gradients of queries in float32, in as many rows as the blocks have:
    they are cleared, then read and written, then read.
    """
    ((number, batch),) = update.micro_batches.items()
    lengths = {
        len(rows): of_all.lengths[update.sentences[number]]
        for rows, of_all in ((batch.src_ids, engine.data.src), (batch.tgt_inputs, engine.data.tgt))
    }
    model = engine.config.model
    d, d_keys = model.d_model, model.d_model // model.n_heads * (model.n_kv_heads or model.n_heads)
    for launch in launches:
        shapes = launch.events[-1].shapes() if launch.events else []
        if _is_packed_attention(launch):
            n_q, n_k = (shape[0] for shape in [shape for shape in shapes if len(shape) == 1][-2:])
            # Products per block; tensors of the queries' shape and of the keys' shape that are read or written.
            n_products, of_queries, of_keys = {"_forward": (2, 2, 2), "_backward_of_queries": (3, 4, 2)}.get(
                launch.kernel.split()[-1], (4, 2, 4)
            )
            n_blocks = _blocks_of_64(lengths[n_q], lengths[n_k])
            launch.flops = 2.0 * n_products * 64**2 * d * n_blocks
            launch.n_bytes = 2 * (of_queries * n_q * d + of_keys * n_k * d_keys)
        elif "flash" in launch.kernel:
            is_backward = "bwd" in launch.kernel
            (n_q, *_), (n_k, *_) = [x for x in shapes if len(x) == 3][is_backward:][:2]
            q_blocks, k_blocks = (-(-lengths[n] // FLASH_TILE) for n in (n_q, n_k))
            if "flash_fwd_kernel" in launch.kernel or "dq_dk_dv" in launch.kernel:
                n_products = 5 if is_backward else 2
                launch.flops = 2.0 * n_products * d * FLASH_TILE**2 * int(np.dot(q_blocks, k_blocks))
            if is_backward:
                n_passes = 2 if "dq_dk_dv" in launch.kernel else 1
                launch.n_bytes += n_passes * 4 * int(q_blocks.sum()) * FLASH_TILE * d


def _blocks_of_64(q_lengths: Any, k_lengths: Any) -> int:
    """Return how many blocks of 64 × 64 scores are computed: a block of queries sees whole sentences of keys."""
    q_ends, k_ends = q_lengths.cumsum(), k_lengths.cumsum()
    first_rows = np.arange(0, q_ends[-1], 64)
    last_rows = np.minimum(first_rows + 63, q_ends[-1] - 1)
    first, last = (np.searchsorted(q_ends, rows, "right") for rows in (first_rows, last_rows))
    return int((-(-(k_ends[last] - (k_ends - k_lengths)[first]) // 64)).sum())


# Name of a Triton kernel → the numbers of its arguments that are both read and written.
_WRITTEN_IN_PLACE: dict[str, list[int]] = {}


def note_arguments() -> None:
    """Record the Triton kernels that run from now on in `_WRITTEN_IN_PLACE`."""
    run = CachingAutotuner.run

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        names = self.triton_meta["signature"]
        _WRITTEN_IN_PLACE[self.inductor_meta["kernel_name"]] = [
            i for i, name in enumerate(names) if name.startswith("in_out")
        ]
        return run(self, *arguments, **options)

    CachingAutotuner.run = noting


def table(launches: list[Launch], n_tokens: int) -> str:
    """Return the cost by part, in Markdown."""
    lines = ["| part | launches | GFLOP | GB | ms |", "|---|---|---|---|---|"]
    groups = [(part, [launch for launch in launches if launch.part == part]) for part in PARTS]
    for name, group in [*groups, ("all", launches)]:
        flops, n_bytes = sum(launch.flops for launch in group), sum(launch.n_bytes for launch in group)
        seconds = sum(launch.seconds for launch in group)
        lines.append(f"| {name} | {len(group)} | {flops / 1e9:,.0f} | {n_bytes / 1e9:.2f} | {seconds * 1e3:.2f} |")
    device, host = sum(launch.seconds for launch in launches), len(launches) * HOST_SECONDS
    speed = n_tokens / max(device, host) / 1e3
    lines.append(f"\n{n_tokens:,} target tokens: {speed:,.0f} k tok/s; the host needs {host * 1e3:.1f} ms.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="base")
    parser.add_argument("--tokens", type=int, default=25_000, help="target tokens per update")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--kernels", type=int, default=0, help="number of kernels to list, slowest first")
    parser.add_argument("--set", action="append", default=[], help="as for mt train")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    # Without CUDA graphs, because a captured graph is a single launch.
    config = replace(config, train=replace(config.train, batch_tokens=options.tokens, cuda_graphs=False))
    corpus = bench.random_corpus(options.vocabulary, config.data.max_tokens, n_pairs=max(8_000, options.tokens // 4))
    note_arguments()
    engine = Engine(config, corpus, options.vocabulary)
    engine.begin()
    with engine.prefetched_updates(PlanState(), 1, 3) as planned:
        for update in islice(planned, 2):
            engine.step(update, lr=1e-3)
        launches = launches_of(engine, next(iter(planned)))
    print(f"torch {torch.__version__}, {engine.execution.note}, {engine.budget}\n")
    print(table(launches, update.n_tgt_tokens))
    if options.kernels:
        by_kernel: dict[tuple[str, str, str], list[Launch]] = {}
        for launch in launches:
            event = launch.events[-1] if launch.events else None
            shapes = "" if event is None else str([shape for shape in event.shapes() if shape])
            name = event.name() if event is not None and launch.kind != "memset" else launch.kernel
            by_kernel.setdefault((launch.part, f"{launch.kind} {name}", shapes), []).append(launch)
        rows = sorted(by_kernel.items(), key=lambda item: -sum(launch.seconds for launch in item[1]))
        print("\n| part | kernel | shapes | launches | GB | ms |\n|---|---|---|---|---|---|")
        for (part, name, shapes), group in rows[: options.kernels]:
            n_bytes, seconds = sum(x.n_bytes for x in group) / 1e9, sum(x.seconds for x in group) * 1e3
            print(f"| {part} | {name[:80]} | {shapes[:120]} | {len(group)} | {n_bytes:.2f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
