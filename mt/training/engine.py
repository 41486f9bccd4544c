"""What computes: the model, its optimizer, and the updates that the plan gives them; and what that takes.

It reads and writes no files.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mt.capture import capture_stream, captured_pass
from mt.checkpoint import load_into
from mt.config.settings import ModelConfig, RunConfig, TrainConfig
from mt.data.batch import N_PREFETCHED, PackedBatch, assemble_tiles, assemble_varlen, prefetched
from mt.data.packing import Indices, MicroBatchBudget, PlanState, UpdatePlan, cut_into_micro_batches
from mt.dropout import seed_dropout
from mt.errors import ConfigError
from mt.loss import Loss, in_chunks, linear_label_smoothed_nll
from mt.model import Transformer
from mt.model.cpu import training_kernels
from mt.model.positions import POSITIONS
from mt.model.transformer import States
from mt.system.device import choose_device, choose_dtype, compile_blocker, memory_bytes, peak_flops
from mt.system.distributed import SINGLE_PROCESS, Ranks
from mt.text.corpus import ParallelIds
from mt.text.tokenizer import PAD_ID
from mt.training.optimizer import MovingAverage, Optimizer
from mt.units import format_bytes

_log = logging.getLogger(__name__)

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# What `auto` takes for micro_batch_tokens on a CPU: its caches like small ones.
CPU_MICRO_BATCH_TOKENS = 4_096
# On CUDA the largest that fits is taken; beyond this nothing is gained.
MAX_MICRO_BATCH_TOKENS = 131_072
# Updates of at most this many target tokens are captured: base computes them in the time the host needs to launch them.
MAX_CAPTURED_TOKENS = 12_288
SEVERAL = "updates have several micro-batches"
# Fraction of the free memory that the measured need may take: the workspaces of kernels do not grow evenly.
MEMORY_FRACTION = 0.9
UPDATES_ON_DEVICE = 1 + N_PREFETCHED  # the one that is computed, and those that wait or are being copied


@dataclass(frozen=True)
class Update:
    """One update's data: all of its micro-batches as the plan cuts them, and those of this rank, assembled."""

    step: int
    sentences: tuple[Indices, ...]  # of every micro-batch
    micro_batches: dict[int, PackedBatch]  # those of this rank, by number
    n_src_tokens: int  # real ones of all micro-batches
    n_tgt_tokens: int  # what the update's loss is divided by
    next_state: PlanState  # where the plan is after it
    ready: Any = None  # CUDA event after which its copies on the device are complete


@dataclass(frozen=True)
class StepResult:
    """What an update gave; the tensors stay on the device, so that nothing waits."""

    losses: Tensor  # [micro-batches of this rank] nats, summed over the tokens of each
    grad_norm: Tensor  # of the gradient per target token; not finite where the update was skipped


class OutOfMemory(Exception):
    """The device has no memory for a micro-batch of this size."""


@contextmanager
def naming_out_of_memory() -> Iterator[None]:
    """Raise OutOfMemory where memory is short, and free the tensors that the functions called in here still hold."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU, and from the libraries of CUDA, it is a plain RuntimeError.
        signs = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
        is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (is_named or any(sign in str(error) for sign in signs)):
            raise
        chained: BaseException | None = error
        while chained is not None:
            clear_frames(chained.__traceback__)
            chained = chained.__context__
        raise OutOfMemory(str(error).partition("\n")[0]) from None


@dataclass(frozen=True)
class Execution:
    """How a run computes on this machine."""

    device: torch.device
    dtype: torch.dtype
    attention: Literal["packed", "flash", "tiles"]  # by kernels of our own, by flash attention, or written out
    compiles: bool
    note: str  # for people


def choose_execution(train: TrainConfig, model: ModelConfig, ranks: Ranks = SINGLE_PROCESS) -> Execution:
    """Resolve device, precision and compilation.

    Raises:
        ConfigError: something is asked for that this machine cannot do.
    """
    if ranks.n > 1 and ":" in train.device:
        raise ConfigError("train.device", f"is {train.device}, but each of {ranks.n} ranks needs its own", "use auto")
    try:
        device = choose_device(train.device, ranks.local_rank if ranks.n > 1 else None)
        dtype = choose_dtype(train.precision, device)
    except ConfigError as error:
        raise error.under("train") from None
    attention, obstacle = _choose_attention(device, dtype, train, model)
    obstacle = obstacle or compile_blocker()  # one static shape is needed, and tiles do not have it
    if train.compile is True and obstacle:
        raise ConfigError("train.compile", f"cannot compile here: {obstacle}", "set it to auto")
    compiles = train.compile is not False and obstacle is None
    note = NAMES[dtype] + (", flash attention" if attention == "flash" else "")
    if device.type == "cuda":
        note += ", compiled" if compiles else f", not compiled ({obstacle or 'train.compile is false'})"
    return Execution(device, dtype, attention, compiles, note)


def _choose_attention(
    device: torch.device, dtype: torch.dtype, train: TrainConfig, model: ModelConfig
) -> tuple[Literal["packed", "flash", "tiles"], str | None]:
    """Return what computes attention, and what keeps sentences from being packed end to end, if anything does."""
    if device.type != "cuda":
        return "tiles", "the device is a CPU"
    if torch.version.hip:
        return "tiles", "ROCm is not tested"
    capability, n_features = torch.cuda.get_device_capability(device), model.d_model // model.n_heads
    sizes = [n for n in (16, 32, 64, 128) if n * dtype.itemsize <= 256]  # whose blocks fit into all shared memories
    known, blocker = ", ".join(map(str, sizes)), compile_blocker()
    against_packed = {
        "train.attention is flash": train.attention == "flash",
        str(blocker): blocker is not None,
        "our own attention needs compute capability 7.5": capability < (7, 5),
        f"our own attention in {NAMES[dtype]} needs model.d_model / model.n_heads of {known}": n_features not in sizes,
    }
    obstacle = _first_that_holds(against_packed)
    if obstacle is None:
        return "packed", None
    has = ".".join(map(str, capability))
    against_flash = {
        f"compute capability 8.0; this GPU has {has}": capability < (8, 0),
        "model.attention_dropout 0": model.attention_dropout > 0,
        f"model.positions other than {model.positions}": POSITIONS[model.positions].adds_to_scores,
        "bf16 or fp16": dtype == torch.float32,
        "model.d_model / model.n_heads up to 256": n_features > 256,
    }
    need = _first_that_holds(against_flash)
    return ("flash", None) if need is None else ("tiles", f"{obstacle}, and flash attention needs {need}")


def _first_that_holds(reasons: dict[str, bool]) -> str | None:
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(frozen=True)
class Footprint:
    """What training takes, whatever its batches, by the config and the size of the vocabulary."""

    n_parameters: int  # that are learned; rows that pad the vocabulary are not, and take memory all the same
    memory: dict[str, int]  # bytes by what holds them; activations and data come on top
    checkpoint_bytes: int
    n_checkpoints: int  # that are kept at one time, at most
    disk_bytes: int  # of these, and of the model at the end

    @classmethod
    def of(cls, config: RunConfig, vocab_size: int) -> Footprint:
        with torch.device("meta"):
            model = Transformer(config.model, vocab_size=vocab_size, pad_id=PAD_ID)
        train, n_bytes = config.train, 4 * sum(parameter.numel() for parameter in model.parameters())
        memory = {"weights": n_bytes, "gradients": n_bytes, "the moments of Adam": 2 * n_bytes}
        if train.ema_decay is not None:
            memory["the moving average"] = n_bytes
        checkpoint_bytes = sum(memory.values()) - memory["gradients"]  # with an average, the weights beside it
        n_kept = max(train.keep_last, train.average_last) + train.keep_best
        n_kept += 0 if train.keep_every is None else train.max_steps // train.keep_every
        n_checkpoints = min(n_kept, math.ceil(train.max_steps / train.checkpoint_every))
        disk_bytes = n_checkpoints * checkpoint_bytes + n_bytes
        return cls(model.n_parameters, memory, checkpoint_bytes, n_checkpoints, disk_bytes)

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


def check_memory(config: RunConfig, vocab_size: int, device: torch.device) -> None:
    """Refuse a model whose weights and optimizer alone do not fit the device.

    Raises:
        ConfigError: they do not.
    """
    footprint, available = Footprint.of(config, vocab_size), memory_bytes(device)
    if footprint.memory_bytes > available:
        taken = f"{footprint.n_parameters:,} parameters take {format_bytes(footprint.memory_bytes)} to train"
        problem = f"{taken}, {device} has {format_bytes(available)}"
        raise ConfigError("model", problem, "make d_model, d_ff or the number of layers smaller")


class Engine:
    """Model, optimizer and plan of one rank. After construction: load what there is to load, then `begin`.

    Args:
        data: training pairs, encoded.
        vocab_size: V.
        corpus_sizes: pairs of each corpus in `config.data.train`; None: the pairs are one corpus of weight 1.
        ranks: the processes that share each update.
    Raises:
        ConfigError: the device cannot do what is asked, or has no memory for the model.
    """

    def __init__(
        self,
        config: RunConfig,
        data: ParallelIds,
        vocab_size: int,
        *,
        corpus_sizes: tuple[int, ...] | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.config, self.data, self.ranks = config, data, ranks
        settings = config.train
        self.execution = choose_execution(settings, config.model, ranks)
        self.device, self.dtype = self.execution.device, self.execution.dtype
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        check_memory(config, vocab_size, self.device)
        torch.manual_seed(settings.seed)
        self.model = Transformer(
            config.model,
            vocab_size=vocab_size,
            pad_id=PAD_ID,
            dtype=self.dtype,
            activation_checkpointing=settings.activation_checkpointing,
        )
        self.model.to(self.device).use(training_kernels(self.device, self.dtype, self.execution.attention == "packed"))
        self.optimizer = Optimizer(self.model, settings, self.dtype)
        self.average = None if settings.ema_decay is None else MovingAverage(self.model, settings.ema_decay)
        self.plan = UpdatePlan(
            data.src.lengths,
            data.tgt.lengths,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            corpus_sizes=corpus_sizes,
            corpus_weights=None if corpus_sizes is None else [one.weight for one in config.data.train],
        )
        self.budget: MicroBatchBudget
        self.memory_note = ""  # how the size of a micro-batch was found, for people
        self._forward: Callable[[PackedBatch], States] = self.model
        self._loss: Loss = linear_label_smoothed_nll
        self._no_sync: Callable[[], Any] = nullcontext
        self._captured: Callable[[PackedBatch, Tensor], Tensor] | None = None
        self._has_run = False  # whether a micro-batch of this size has been computed
        self._copy_stream: Any = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.why_not_captured: str | None = "nothing has begun"

    def begin(self, micro_batch_tokens: int = 0) -> None:
        """Cut updates into micro-batches, compile, join the other ranks.

        Args:
            micro_batch_tokens: as an earlier start resolved it; 0: resolve it now.
        """
        loss: Loss = linear_label_smoothed_nll
        if self.execution.attention == "packed":
            from mt.model.fused import token_losses  # Triton comes with torch's builds for CUDA alone

            loss = partial(linear_label_smoothed_nll, of_tokens=token_losses)
        elif self.execution.compiles:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)
        n_chunks = self.config.train.loss_chunks if self.device.type == "cuda" else 1
        self._loss = in_chunks(loss, n_chunks) if n_chunks > 1 else loss
        if self.execution.compiles:
            from mt.model.fused import KeepSums

            # One static shape. Each layer by itself: a short warm-up, and names in the state dict stay.
            options = {"joint_custom_post_pass": KeepSums()}
            for layer in (self.model.positions, *self.model.encoder, *self.model.decoder):
                layer.compile(fullgraph=True, dynamic=False, options=options)
        setting = self.config.train.micro_batch_tokens
        self.cut(micro_batch_tokens or (self._fitting_micro_batch() if setting == "auto" else setting))
        if self.ranks.n > 1:
            joined = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
            self._forward, self._no_sync = joined, joined.no_sync

    def cut(self, micro_batch_tokens: int) -> None:
        """Cut updates into micro-batches of about this many target tokens from now on."""
        self.micro_batch_tokens = micro_batch_tokens
        self.budget = self.plan.micro_batch_budget(micro_batch_tokens, self.ranks.n)
        self._has_run, self._captured, self.why_not_captured = False, None, self._why_not_capture()

    def _why_not_capture(self) -> str | None:
        """Return why passes over micro-batches are not captured as CUDA graphs; None: they are, from the second on."""
        reasons = {
            "train.cuda_graphs is false": not self.config.train.cuda_graphs,
            "nothing is compiled": not self.execution.compiles,
            "there are several ranks": self.ranks.n > 1,
            "train.activation_checkpointing is true": self.config.train.activation_checkpointing,
            f"updates have more than {MAX_CAPTURED_TOKENS:,} target tokens": (
                self.plan.batch_tokens > MAX_CAPTURED_TOKENS
            ),
            SEVERAL: self.budget.n_micro_batches > 1,
        }
        return _first_that_holds(reasons)

    @property
    def note(self) -> str:
        """Say how it computes, for people."""
        return self.execution.note + (", captured" if self.why_not_captured is None else "")

    @contextmanager
    def _stream_of_passes(self) -> Iterator[None]:
        """Run passes that may be captured later on the stream of captures: torch binds gradients of leaves to one."""
        if self.why_not_captured not in (None, SEVERAL):
            yield
            return
        outer, own = torch.cuda.current_stream(self.device), capture_stream(self.device)
        own.wait_stream(outer)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            outer.wait_stream(own)

    def halve_micro_batches(self, error: OutOfMemory) -> str:
        """Cut updates into twice as many micro-batches, since memory is short, and return a sentence about it.

        Raises:
            ConfigError: micro-batches cannot be smaller, or other ranks wait in the middle of the update.
        """
        before, halved = self.budget, math.ceil(self.plan.batch_tokens / (2 * self.budget.n_micro_batches))
        self.cut(halved)
        found = f"out of memory on {self.device} with micro-batches of {before.tgt_tokens:,} target tokens ({error})"
        if self.budget.tgt_tokens >= before.tgt_tokens and self.budget.src_tokens >= before.src_tokens:
            fix = "set train.activation_checkpointing, lower data.max_tokens, or make the model smaller"
            raise ConfigError("train.micro_batch_tokens", f"{found}, which hold the longest sentence alone", fix)
        if self.ranks.n > 1:
            raise ConfigError("train.micro_batch_tokens", f"rank {self.ranks.rank} is {found}", f"set it to {halved}")
        if self.execution.compiles:
            torch.compiler.reset()  # the shapes of before count against the number that may be compiled
        return (
            f"{found}: the update is made again in {self.budget.n_micro_batches} micro-batches of {halved:,}, and so "
            f"are those after it; --set train.micro_batch_tokens={halved} begins with that"
        )

    def updates(self, state: PlanState, first_step: int, last_step: int) -> Generator[Update]:
        """Yield the updates from a place in the plan on, with the micro-batches of this rank assembled on its device.

        Raises:
            OutOfMemory: one does not fit beside what the device holds.
        """
        src, tgt = self.data.src.lengths, self.data.tgt.lengths
        for step in range(first_step, last_step + 1):
            sentences, state = self.plan.update_at(state)
            parts = cut_into_micro_batches(sentences, src, tgt, self.budget, self.ranks.n)
            mine = range(self.ranks.rank, len(parts), self.ranks.n)
            # Copies run on a stream of their own, beside the kernels of the update before.
            copying = nullcontext() if self._copy_stream is None else torch.cuda.stream(self._copy_stream)
            with copying, naming_out_of_memory():
                micro_batches = {number: self._assemble(parts[number]) for number in mine}
                ready = self._copy_stream and self._copy_stream.record_event()
            n_src, n_tgt = int(src[sentences].sum()), int(tgt[sentences].sum())
            yield Update(step, tuple(parts), micro_batches, n_src, n_tgt, state, ready)

    def prefetched_updates(self, state: PlanState, first_step: int, last_step: int) -> closing[Generator[Update]]:
        """Return the same as a context; for a GPU a thread makes them ahead."""
        updates = self.updates(state, first_step, last_step)
        # On a CPU the thread would take from the computation what it saves.
        return closing(updates if self.device.type == "cpu" else prefetched(updates))

    def step(self, update: Update, lr: float) -> StepResult:
        """Make an update: a pass forward and back for each micro-batch, then the optimizer. Nothing waits for the GPU.

        Raises:
            OutOfMemory: weights and optimizer are as they were.
        """
        if update.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(update.ready)
            for batch in update.micro_batches.values():
                batch.record_stream(stream)
        try:
            with naming_out_of_memory():
                result = StepResult(self._pass_over(update), self.optimizer.step(lr))
        except OutOfMemory:
            self._free_memory()
            raise
        if self.average is not None:
            self.average.follow(update.step, self.optimizer.was_skipped)
        return result

    def _free_memory(self) -> None:
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _pass_over(self, update: Update) -> Tensor:
        """Make the passes over each micro-batch of this rank; return their summed losses, in nats."""
        # Divide by the tokens of the whole update: per micro-batch, a short one would weigh as much as a long one.
        # DDP takes the mean over the ranks where the sum is wanted.
        share = self.optimizer.loss_scale * (self.ranks.n / update.n_tgt_tokens)
        last = max(update.micro_batches)
        self.model.kernels.begin_update()
        losses = []
        for number, batch in update.micro_batches.items():
            # Gradients of the ranks are added up once, during the last backward pass.
            with nullcontext() if number == last else self._no_sync():
                losses.append(self._pass_over_micro_batch(update.step, number, batch, share))
        return torch.stack(losses)

    def _pass_over_micro_batch(self, step: int, number: int, batch: PackedBatch, share: Tensor) -> Tensor:
        if self._captured is None and self._has_run and self.why_not_captured is None:
            self._capture(batch, share)
        if self._captured is not None:
            self._seed_dropout(step, number)
            return self._captured(batch, share)
        with self._stream_of_passes():
            loss = _backward(self.micro_batch_loss(step, number, batch), share)
        self._has_run = True
        return loss

    def _capture(self, batch: PackedBatch, share: Tensor) -> None:
        try:
            with naming_out_of_memory():
                self._captured = captured_pass(
                    lambda batch, share: _backward(self._loss_of(batch), share), self.optimizer.parameters, batch, share
                )
        except RuntimeError as error:
            self.why_not_captured = str(error).partition("\n")[0]
            self.optimizer.zero_grad()
            _log.warning(f"training without CUDA graphs, which is slower: {self.why_not_captured}")

    def micro_batch_loss(self, step: int, number: int, batch: PackedBatch) -> Tensor:
        """Return the summed loss of a micro-batch, in nats; its dropout depends on seed, step and micro-batch alone."""
        self._seed_dropout(step, number)
        return self._loss_of(batch)

    def _seed_dropout(self, step: int, number: int) -> None:
        seed_dropout(self.device, self.config.train.seed, step, number)

    def _loss_of(self, batch: PackedBatch) -> Tensor:
        hidden, more = self._forward(batch)
        smoothing = self.config.train.label_smoothing
        loss = self._loss(hidden, self.model.output_weight, batch.tgt_outputs, batch.tgt_weights, smoothing)
        return sum(more, loss)

    def peak_seconds(self, n_src_tokens: int, n_tgt_tokens: int) -> float:
        """Return how long the tokens would take if the device did nothing but matrix products, at its peak."""
        return self.model.training_flops(n_src_tokens, n_tgt_tokens) / peak_flops(self.device, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next update depends on besides the weights for use and the plan."""
        state = {"optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            state["weights"] = self.model.state_dict()
        return state

    @property
    def eval_weights(self) -> dict[str, Tensor]:
        """Return the weights to validate, save and translate with; with `train.ema_decay` their average."""
        return self.model.state_dict() if self.average is None else self.average.state_dict()

    def load(self, eval_weights: dict[str, Tensor], state: dict[str, Any] | None, origin: Path) -> None:
        """Continue from a checkpoint, or start with the weights of another model where there is no state.

        Raises:
            CheckpointError: the weights are of another shape.
        """
        load_into(self.model, eval_weights, origin)
        if self.average is not None:
            self.average.load_state_dict(eval_weights)
            if state is not None:
                load_into(self.model, state["weights"], origin)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    def restart(self) -> None:
        """Go back to the weights of the first step."""
        torch.manual_seed(self.config.train.seed)
        model = self.model
        fresh = Transformer(self.config.model, vocab_size=model.vocab_size, pad_id=PAD_ID, dtype=self.dtype)
        self.optimizer = Optimizer(model, self.config.train, self.dtype)
        self.load(fresh.state_dict(), None, Path())

    def inference_model(self) -> Transformer:
        """Return a copy for validation; with `train.ema_decay` of the averaged weights."""
        self._captured = None  # validation may need its memory
        return self.model.for_inference(self.dtype, self.eval_weights)

    def _assemble(self, sentences: Indices) -> PackedBatch:
        if self.execution.attention != "tiles":
            longest = -(-self.config.data.max_tokens // 128) * 128
            batch = assemble_varlen(self.data, sentences, self.budget, longest)
        else:
            batch = assemble_tiles(self.data, sentences, self.dtype)
        return batch if self.device.type == "cpu" else batch.pinned().to(self.device)

    def _fitting_micro_batch(self) -> int:
        if self.device.type == "cpu":
            return max(CPU_MICRO_BATCH_TOKENS, self.config.data.max_tokens)
        return self.ranks.smallest(self._largest_that_fits())

    def _largest_that_fits(self) -> int:
        """Measure the memory of micro-batches on the device, and extrapolate.

        Eager ones first, which costs no time. Compiled ones take about half, so that one more compilation is worth it
        where eager ones of the largest size would not fit.
        """
        largest = min(math.ceil(self.plan.batch_tokens / self.ranks.n), MAX_MICRO_BATCH_TOKENS)
        longest, at_rest = self.config.data.max_tokens, torch.cuda.memory_allocated(self.device)

        def free_bytes() -> int:
            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

        def fitting(measured: list[tuple[int, int]], data_bytes: int) -> int:
            available = int(free_bytes() * MEMORY_FRACTION) - data_bytes  # after the passes: libraries take memory, too
            return max(tokens_that_fit(measured, available, largest), longest)

        with torch.compiler.set_stance("force_eager"):
            measured, data_bytes = self._measure_memory(
                *sorted({max(longest, min(n, largest)) for n in (2_048, 8_192)})
            )
        chosen = fitting(measured, data_bytes)
        if self.execution.compiles and chosen < largest:
            compiled, data_bytes = self._measure_memory(chosen)
            if compiled:
                measured = compiled
                chosen = fitting([(0, at_rest), *compiled], data_bytes)  # gradients count as if they grew with tokens
            torch.compiler.reset()  # the shape that was measured counts against the number that may be compiled
        found = ", ".join(f"{format_bytes(n_bytes)} at {n_tokens:,} tokens" for n_tokens, n_bytes in measured)
        self.memory_note = f" (measured: {found or 'nothing fits'}; {format_bytes(free_bytes())} are free)"
        return chosen

    def _measure_memory(self, *sizes: int) -> tuple[list[tuple[int, int]], int]:
        """Make two forward and backward passes of micro-batches of each size.

        Returns:
            (target tokens, bytes) of each size that fits, with what the allocator loses to fragments; and the bytes of
            the updates that are on the device at one time.
        """
        measured: list[tuple[int, int]] = []
        data_bytes = 0
        for n_tokens in sizes:
            self.cut(n_tokens)
            sentences, _ = self.plan.update_at(PlanState())
            parts = cut_into_micro_batches(sentences, self.data.src.lengths, self.data.tgt.lengths, self.budget)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            try:
                with naming_out_of_memory():
                    batch = self._assemble(parts[0])
                    data_bytes = (torch.cuda.memory_allocated(self.device) - before) * len(parts) * UPDATES_ON_DEVICE
                    with self._stream_of_passes():
                        for _ in range(2):  # the second adds to the gradients of the first
                            self.micro_batch_loss(0, 0, batch).backward()  # type: ignore[no-untyped-call]
            except OutOfMemory:
                self._free_memory()
                break
            self.optimizer.zero_grad()
            del batch  # which the next size must not count
            n_rows = self.budget.tgt_tokens  # updates are cut into equal micro-batches, smaller than asked for
            if not measured or n_rows > measured[-1][0]:
                measured.append((n_rows, torch.cuda.max_memory_reserved(self.device)))
        return measured, data_bytes // self.ranks.n


def tokens_that_fit(measured: list[tuple[int, int]], available: int, largest: int) -> int:
    """Return how many target tokens of a micro-batch the line through the measured points keeps within the memory.

    Args:
        measured: (tokens, bytes at the peak), smallest first; with one point all of its bytes count as per token.
        available: bytes.
        largest: tokens, the most that are wanted.
    Returns:
        Tokens; 0 where nothing was measured or nothing fits.
    """
    if not measured:
        return 0
    n_tokens, n_bytes = measured[-1]
    first_tokens, first_bytes = measured[0] if len(measured) > 1 else (0, 0)
    per_token = (n_bytes - first_bytes) / (n_tokens - first_tokens)
    if per_token <= 0:
        return largest
    return max(0, min(largest, n_tokens + math.floor((available - n_bytes) / per_token)))


def _backward(loss: Tensor, share: Tensor) -> Tensor:
    """Make the gradients of a loss with its share in the update, and return the loss without its graph."""
    (loss * share).backward()  # type: ignore[no-untyped-call]
    return loss.detach()
