"""The training engine: it runs the model and the optimizer on planned updates, within the memory of the device.

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
from mt.config.settings import ModelConfig, RunConfig, TrainConfig, VocabSizes
from mt.data.backwards import half_backwards
from mt.data.batch import N_PREFETCHED, PackedBatch, assemble_tiles, assemble_varlen, prefetched
from mt.data.packing import Indices, MicroBatchBudget, PlanState, UpdatePlan, cut_into_micro_batches
from mt.dropout import seed_dropout
from mt.errors import ConfigError
from mt.loss import Loss, in_chunks, linear_label_smoothed_nll
from mt.model import Transformer
from mt.model.cpu import training_kernels
from mt.model.positions import POSITIONS
from mt.model.transformer import ModelOutput
from mt.system.device import choose_device, choose_dtype, compile_blocker, memory_bytes, peak_flops
from mt.system.distributed import SINGLE_PROCESS, Ranks
from mt.text.corpus import ParallelIds
from mt.text.tokenizer import PAD_ID
from mt.training.optimizer import MovingAverage, Optimizer, matrices_of
from mt.units import format_bytes

_log = logging.getLogger(__name__)

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# micro_batch_tokens that `auto` chooses on a CPU: small micro-batches stay in its caches.
CPU_MICRO_BATCH_TOKENS = 4_096
# On CUDA, `auto` chooses the largest micro-batch that fits into memory, up to this: larger ones are not faster.
MAX_MICRO_BATCH_TOKENS = 131_072
# Updates of up to this many target tokens are captured as CUDA graphs. The GPU computes them, with the base model, in
# the time that the host would need to launch their kernels.
MAX_CAPTURED_TOKENS = 12_288
SEVERAL_MICRO_BATCHES = "updates have several micro-batches"
# Fraction of the free memory that is used. The rest is a margin: the workspaces of kernels do not grow linearly.
MEMORY_FRACTION = 0.9
UPDATES_ON_DEVICE = 1 + N_PREFETCHED  # the current one and the prefetched ones


@dataclass(frozen=True)
class Update:
    """The data of an update: the sentences of all its micro-batches, and the assembled micro-batches of this rank."""

    step: int
    sentences: tuple[Indices, ...]  # of each micro-batch
    micro_batches: dict[int, PackedBatch]  # those of this rank, by number
    n_src_tokens: int  # of all micro-batches, without padding
    n_tgt_tokens: int  # likewise; the loss of the update is divided by it
    next_state: PlanState  # place in the plan after this update
    ready: Any = None  # CUDA event: the copies to the device are complete


@dataclass(frozen=True)
class StepResult:
    """Losses and gradient norm of an update. They stay on the device, so that the host does not wait."""

    losses: Tensor  # [micro-batches of this rank] nats, summed over the tokens of each
    grad_norm: Tensor  # of the gradient per target token; NaN or infinite if the update was skipped


class OutOfMemory(Exception):
    """The device does not have enough memory for a micro-batch of this size."""


@contextmanager
def raising_out_of_memory() -> Iterator[None]:
    """Raise OutOfMemory for every error that means it, and free the tensors that called functions still hold."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Allocations on a CPU and the CUDA libraries raise a plain RuntimeError.
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
    """The device, precision, attention and compilation of a run on this machine."""

    device: torch.device
    dtype: torch.dtype
    attention: Literal["packed", "flash", "tiles"]  # our kernels, flash attention, or plain matrix products
    compiles: bool
    note: str  # the same in words, for users


def choose_execution(train: TrainConfig, model: ModelConfig, ranks: Ranks = SINGLE_PROCESS) -> Execution:
    """Return device, precision, attention and compilation for these settings on this machine.

    Raises:
        ConfigError: a setting asks for something that this machine cannot do.
    """
    if ranks.n > 1 and ":" in train.device:
        problem = f"is {train.device}, but each of the {ranks.n} ranks needs its own device"
        raise ConfigError("train.device", problem, "use auto")
    try:
        device = choose_device(train.device, ranks.local_rank if ranks.n > 1 else None)
        dtype = choose_dtype(train.precision, device)
    except ConfigError as error:
        raise error.under("train") from None
    attention, obstacle = _choose_attention(device, dtype, train, model)
    obstacle = obstacle or compile_blocker()  # compiling needs one static shape, and tiles have several
    if train.compile is True and obstacle:
        raise ConfigError("train.compile", f"compilation is not possible here: {obstacle}", "set it to auto")
    compiles = train.compile is not False and obstacle is None
    note = DTYPE_NAMES[dtype] + (", flash attention" if attention == "flash" else "")
    if device.type == "cuda":
        note += ", compiled" if compiles else f", not compiled ({obstacle or 'train.compile is false'})"
    return Execution(device, dtype, attention, compiles, note)


def _choose_attention(
    device: torch.device, dtype: torch.dtype, train: TrainConfig, model: ModelConfig
) -> tuple[Literal["packed", "flash", "tiles"], str | None]:
    """Return the kind of attention and, for tiles, why sentences cannot be packed end to end."""
    if device.type != "cuda":
        return "tiles", "the device is a CPU"
    if torch.version.hip:
        return "tiles", "ROCm is not tested"
    capability, n_features = torch.cuda.get_device_capability(device), model.d_model // model.n_heads
    sizes = [
        n for n in (16, 32, 64, 128) if n * dtype.itemsize <= 256
    ]  # head sizes whose blocks fit into the shared memory of all GPUs
    known, blocker = ", ".join(map(str, sizes)), compile_blocker()
    against_packed = {
        "train.attention is flash": train.attention == "flash",
        str(blocker): blocker is not None,
        "our own attention needs compute capability 7.5": capability < (7, 5),
        f"our own attention in {DTYPE_NAMES[dtype]} needs model.d_model / model.n_heads of {known}": n_features
        not in sizes,
    }
    obstacle = _first_true(against_packed)
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
    need = _first_true(against_flash)
    return ("flash", None) if need is None else ("tiles", f"{obstacle}, and flash attention needs {need}")


def _first_true(reasons: dict[str, bool]) -> str | None:
    return next((reason for reason, is_true in reasons.items() if is_true), None)


@dataclass(frozen=True)
class Footprint:
    """Memory and disk space that training needs whatever its batches, from the config and the vocabulary size."""

    n_parameters: int  # without the rows that pad the vocabulary, which take memory too
    memory: dict[str, int]  # bytes by use; activations and data need more
    checkpoint_bytes: int
    n_checkpoints: int  # the most that exist at one time
    disk_bytes: int  # of these checkpoints and the final model

    @classmethod
    def of(cls, config: RunConfig, vocab_size: VocabSizes) -> Footprint:
        with torch.device("meta"):
            model = Transformer(config.model, vocab_size=vocab_size, pad_id=PAD_ID)
        train, n_bytes = config.train, 4 * sum(parameter.numel() for parameter in model.parameters())
        memory = {"weights": n_bytes, "gradients": n_bytes}
        if train.optimizer == "muon":
            memory["the averages of Adam and Muon"] = 2 * n_bytes - 4 * sum(map(torch.numel, matrices_of(model)))
        else:
            memory["the moments of Adam"] = 2 * n_bytes
        if train.ema_decay is not None:
            memory["the moving average"] = n_bytes
        checkpoint_bytes = sum(memory.values()) - memory["gradients"]  # with an average: the average and the weights
        n_kept = max(train.keep_last, train.average_last) + train.keep_best
        # With a budget, the number of updates is not known: those of keep_every are not counted.
        n_kept += 0 if train.keep_every is None or train.budget else train.max_steps // train.keep_every
        n_checkpoints = min(n_kept, math.ceil(train.last_step / train.checkpoint_every))
        disk_bytes = n_checkpoints * checkpoint_bytes + n_bytes
        return cls(model.n_parameters, memory, checkpoint_bytes, n_checkpoints, disk_bytes)

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


def check_memory(config: RunConfig, vocab_size: VocabSizes, device: torch.device) -> None:
    """Raise a ConfigError if the weights and the optimizer alone do not fit into the memory of the device."""
    footprint, available = Footprint.of(config, vocab_size), memory_bytes(device)
    if footprint.memory_bytes > available:
        needed = f"training {footprint.n_parameters:,} parameters needs {format_bytes(footprint.memory_bytes)}"
        problem = f"{needed} of memory, but {device} has {format_bytes(available)}"
        raise ConfigError("model", problem, "reduce d_model, d_ff or the number of layers")


class Engine:
    """Model, optimizer and update plan of one rank. Call `load` if there are weights to load, then `begin`.

    Args:
        data: training pairs, encoded.
        vocab_size: as for `Transformer`.
        corpus_sizes: pairs of each corpus in `config.training`; None: all pairs are one corpus of weight 1.
        ranks: the processes that share each update.
    Raises:
        ConfigError: the device does not support the settings, or has too little memory for the model.
    """

    def __init__(
        self,
        config: RunConfig,
        data: ParallelIds,
        vocab_size: VocabSizes,
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
            corpus_weights=None if corpus_sizes is None else config.weights(corpus_sizes),
            longest=config.data.max_tokens if settings.subword_sampling or settings.bidirectional_share else None,
        )
        self.pairs_of: Callable[[int], ParallelIds] = lambda epoch: data  # the encoded pairs of an epoch
        self.n_bidirectional: Callable[[], float] = lambda: 0  # updates with both directions
        self.budget: MicroBatchBudget
        self.memory_note = ""  # how the micro-batch size was found, for users
        self._forward: Callable[[PackedBatch], ModelOutput] = self.model
        self._loss: Loss = linear_label_smoothed_nll
        self._no_sync: Callable[[], Any] = nullcontext
        self._captured: Callable[[PackedBatch, Tensor], Tensor] | None = None
        self._has_run = False  # whether a micro-batch of this size has been computed
        self._copy_stream: Any = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.why_not_captured: str | None = "training has not started"

    def begin(self, micro_batch_tokens: int = 0) -> None:
        """Choose the micro-batch size, compile the model, and connect to the other ranks.

        Args:
            micro_batch_tokens: the size that an earlier start chose; 0: choose it now.
        """
        loss: Loss = linear_label_smoothed_nll
        if self.execution.attention == "packed":
            from mt.model.fused import token_losses  # only torch's CUDA builds include Triton

            loss = partial(linear_label_smoothed_nll, of_tokens=token_losses)
        elif self.execution.compiles:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)
        n_chunks = self.config.train.loss_chunks if self.device.type == "cuda" else 1
        self._loss = in_chunks(loss, n_chunks) if n_chunks > 1 else loss
        if self.execution.compiles:
            from mt.model.fused import SaveNormInputs

            # One static shape. Compiling each layer alone keeps the warm-up short and the names in the state dict.
            options = {"joint_custom_post_pass": SaveNormInputs()}
            for layer in (self.model.positions, *self.model.encoder, *self.model.decoder):
                layer.compile(fullgraph=True, dynamic=False, options=options)
        setting = self.config.train.micro_batch_tokens
        self.cut(micro_batch_tokens or (self._fitting_micro_batch() if setting == "auto" else setting))
        if self.ranks.n > 1:
            ddp = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
            self._forward, self._no_sync = ddp, ddp.no_sync

    def cut(self, micro_batch_tokens: int) -> None:
        """Cut updates into micro-batches of about this many target tokens from now on."""
        self.micro_batch_tokens = micro_batch_tokens
        self.budget = self.plan.micro_batch_budget(micro_batch_tokens, self.ranks.n)
        self._has_run, self._captured, self.why_not_captured = False, None, self._why_not_capture()

    def _why_not_capture(self) -> str | None:
        """Return why forward and backward passes are not captured as CUDA graphs; None: all but the first are."""
        reasons = {
            "train.cuda_graphs is false": not self.config.train.cuda_graphs,
            "nothing is compiled": not self.execution.compiles,
            "there are several ranks": self.ranks.n > 1,
            "train.activation_checkpointing is true": self.config.train.activation_checkpointing,
            f"updates have more than {MAX_CAPTURED_TOKENS:,} target tokens": (
                self.plan.batch_tokens > MAX_CAPTURED_TOKENS
            ),
            SEVERAL_MICRO_BATCHES: self.budget.n_micro_batches > 1,
        }
        return _first_true(reasons)

    @property
    def note(self) -> str:
        """Precision, attention and compilation in words, for users."""
        return self.execution.note + (", with CUDA graphs" if self.why_not_captured is None else "")

    @contextmanager
    def _stream_of_passes(self) -> Iterator[None]:
        """Run passes that may be captured later on the capture stream: torch ties gradients of leaves to one stream."""
        if self.why_not_captured not in (None, SEVERAL_MICRO_BATCHES):
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
        """Cut updates into twice as many micro-batches after running out of memory, and return a message about it.

        Raises:
            ConfigError: micro-batches cannot be smaller, or other ranks wait in the middle of the update.
        """
        before, halved = self.budget, math.ceil(self.plan.batch_tokens / (2 * self.budget.n_micro_batches))
        self.cut(halved)
        found = f"out of memory on {self.device} with micro-batches of {before.tgt_tokens:,} target tokens ({error})"
        if self.budget.tgt_tokens >= before.tgt_tokens and self.budget.src_tokens >= before.src_tokens:
            reason = "and no micro-batch can be smaller than the longest sentence"
            fix = "set train.activation_checkpointing, lower data.max_tokens, or make the model smaller"
            raise ConfigError("train.micro_batch_tokens", f"{found}, {reason}", fix)
        if self.ranks.n > 1:
            advised = max(halved, self.config.data.max_tokens)  # which is the fewest that a config may have
            raise ConfigError("train.micro_batch_tokens", f"rank {self.ranks.rank} is {found}", f"set it to {advised}")
        if self.execution.compiles:
            torch.compiler.reset()  # torch limits the number of compiled shapes, and the old ones would count
        return (
            f"{found}. This update is repeated in {self.budget.n_micro_batches} micro-batches of {halved:,} tokens, "
            f"and later updates use that size too. To start with it, add --set train.micro_batch_tokens={halved}"
        )

    def updates(self, state: PlanState, first_step: int, last_step: int) -> Generator[Update]:
        """Yield the updates from a place in the plan on, with the micro-batches of this rank assembled on its device.

        Raises:
            OutOfMemory: an update does not fit into the free memory of the device.
        """
        for step in range(first_step, last_step + 1):
            pairs = self.pairs_of(state.epoch)  # also for the sentences of the next epoch that fill the update
            if step <= self.n_bidirectional():
                pairs = half_backwards(pairs, self.config.train.seed, state.epoch)
            src, tgt = pairs.src.lengths, pairs.tgt.lengths
            sentences, state = self.plan.update_at(state, (src, tgt))
            parts = cut_into_micro_batches(sentences, src, tgt, self.budget, self.ranks.n)
            mine = range(self.ranks.rank, len(parts), self.ranks.n)
            # Copies run on a separate stream, in parallel with the kernels of the previous update.
            copying = nullcontext() if self._copy_stream is None else torch.cuda.stream(self._copy_stream)
            with copying, raising_out_of_memory():
                micro_batches = {number: self._assemble(pairs, parts[number]) for number in mine}
                ready = self._copy_stream and self._copy_stream.record_event()
            n_src, n_tgt = int(src[sentences].sum()), int(tgt[sentences].sum())
            yield Update(step, tuple(parts), micro_batches, n_src, n_tgt, state, ready)

    def prefetched_updates(self, state: PlanState, first_step: int, last_step: int) -> closing[Generator[Update]]:
        """Return a context manager that yields `updates`; for a GPU, a thread prepares them ahead."""
        updates = self.updates(state, first_step, last_step)
        # On a CPU the thread would slow down the computation by as much as it saves.
        return closing(updates if self.device.type == "cpu" else prefetched(updates))

    def step(self, update: Update, lr: float) -> StepResult:
        """Run forward and backward for each micro-batch, then the optimizer. The host does not wait for the GPU.

        Raises:
            OutOfMemory: there is too little memory; weights and optimizer have not changed.
        """
        if update.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(update.ready)
            for batch in update.micro_batches.values():
                batch.record_stream(stream)
        try:
            with raising_out_of_memory():
                result = StepResult(self._forward_backward(update), self.optimizer.step(lr))
        except OutOfMemory:
            self._free_memory()
            raise
        if self.average is not None:
            self.average.update(update.step, self.optimizer.was_skipped)
        return result

    def _free_memory(self) -> None:
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward_backward(self, update: Update) -> Tensor:
        """Run forward and backward for each micro-batch of this rank; return their summed losses, in nats."""
        # Divide by the tokens of the whole update: dividing per micro-batch would let a short one weigh as much as a
        # long one. DDP averages over the ranks, but the sum is needed: hence the number of ranks.
        scale = self.optimizer.loss_scale * (self.ranks.n / update.n_tgt_tokens)
        last = max(update.micro_batches)
        self.model.kernels.begin_update()
        losses = []
        for number, batch in update.micro_batches.items():
            # The ranks add up their gradients once, during the last backward pass.
            with nullcontext() if number == last else self._no_sync():
                losses.append(self._forward_backward_micro_batch(update.step, number, batch, scale))
        return torch.stack(losses)

    def _forward_backward_micro_batch(self, step: int, number: int, batch: PackedBatch, scale: Tensor) -> Tensor:
        if self._captured is None and self._has_run and self.why_not_captured is None:
            self._capture(batch, scale)
        if self._captured is not None:
            self._seed_dropout(step, number)
            return self._captured(batch, scale)
        with self._stream_of_passes():
            loss = _backward(self.micro_batch_loss(step, number, batch), scale)
        self._has_run = True
        return loss

    def _capture(self, batch: PackedBatch, scale: Tensor) -> None:
        try:
            with raising_out_of_memory():
                self._captured = captured_pass(
                    lambda batch, scale: _backward(self._loss_of(batch), scale), self.optimizer.parameters, batch, scale
                )
        except RuntimeError as error:
            self.why_not_captured = str(error).partition("\n")[0]
            self.optimizer.zero_grad()
            _log.warning(f"CUDA graphs cannot be used, so training is slower: {self.why_not_captured}")

    def micro_batch_loss(self, step: int, number: int, batch: PackedBatch) -> Tensor:
        """Return the summed loss of a micro-batch, in nats; dropout depends only on seed, step and micro-batch."""
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
        """Return how long the tokens would take if the device did only matrix products, at its peak speed."""
        return self.model.training_flops(n_src_tokens, n_tgt_tokens) / peak_flops(self.device, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next update depends on, except `eval_weights` and the place in the plan."""
        state = {"optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            state["weights"] = self.model.state_dict()
        return state

    @property
    def eval_weights(self) -> dict[str, Tensor]:
        """The weights to validate, save and translate with: with `train.ema_decay`, the moving average."""
        return self.model.state_dict() if self.average is None else self.average.state_dict()

    def load(self, eval_weights: dict[str, Tensor], state: dict[str, Any] | None, origin: Path) -> None:
        """Load the weights and the state of a checkpoint, or only the weights of another model if there is no state.

        Raises:
            CheckpointError: the weights have other shapes than those of this model.
        """
        load_into(self.model, eval_weights, origin)
        if self.average is not None:
            self.average.load_state_dict(eval_weights)
            if state is not None:
                load_into(self.model, state["weights"], origin)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    def restart(self) -> None:
        """Reset the weights and the optimizer to those before the first step."""
        torch.manual_seed(self.config.train.seed)
        model = self.model
        fresh = Transformer(self.config.model, vocab_size=model.vocab_sizes, pad_id=PAD_ID, dtype=self.dtype)
        self.optimizer = Optimizer(model, self.config.train, self.dtype)
        self.load(fresh.state_dict(), None, Path())

    def inference_model(self) -> Transformer:
        """Return a copy of the model with `eval_weights`, for validation."""
        self._captured = None  # validation may need the memory of the graph
        return self.model.for_inference(self.dtype, self.eval_weights)

    def _assemble(self, pairs: ParallelIds, sentences: Indices) -> PackedBatch:
        if self.execution.attention != "tiles":
            longest = -(-self.config.data.max_tokens // 128) * 128
            batch = assemble_varlen(pairs, sentences, self.budget, longest)
        else:
            batch = assemble_tiles(pairs, sentences, self.dtype)
        return batch if self.device.type == "cpu" else batch.pinned().to(self.device)

    def _fitting_micro_batch(self) -> int:
        if self.device.type == "cpu":
            return max(CPU_MICRO_BATCH_TOKENS, self.config.data.max_tokens)
        return self.ranks.smallest(self._largest_that_fits())

    def _largest_that_fits(self) -> int:
        """Measure the memory that micro-batches need on the device, and extrapolate.

        Eager passes are measured first, since that takes no time. Compiled ones need about half the memory. One more
        compilation, to measure it, is therefore worth its time if eager passes of the largest size would not fit.
        """
        largest = min(math.ceil(self.plan.batch_tokens / self.ranks.n), MAX_MICRO_BATCH_TOKENS)
        longest, at_rest = self.config.data.max_tokens, torch.cuda.memory_allocated(self.device)

        def free_bytes() -> int:
            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

        def fitting(measured: list[tuple[int, int]], data_bytes: int) -> int:
            # Called after the passes, when libraries have allocated their memory.
            available = int(free_bytes() * MEMORY_FRACTION) - data_bytes
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
                chosen = fitting([(0, at_rest), *compiled], data_bytes)  # as if gradients grew with the tokens
            torch.compiler.reset()  # torch limits the number of compiled shapes, and this one would count
        found = ", ".join(f"{format_bytes(n_bytes)} at {n_tokens:,} tokens" for n_tokens, n_bytes in measured)
        self.memory_note = f" (measured: {found or 'nothing fits'}; {format_bytes(free_bytes())} are free)"
        return chosen

    def _measure_memory(self, *sizes: int) -> tuple[list[tuple[int, int]], int]:
        """Run forward and backward twice for a micro-batch of each size.

        Returns:
            (target tokens, peak bytes) of each size that fits, with fragmentation; and the bytes of all updates that
            are on the device at one time.
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
                with raising_out_of_memory():
                    batch = self._assemble(self.data, parts[0])
                    data_bytes = (torch.cuda.memory_allocated(self.device) - before) * len(parts) * UPDATES_ON_DEVICE
                    with self._stream_of_passes():
                        for _ in range(2):  # the second adds to the gradients of the first
                            self.micro_batch_loss(0, 0, batch).backward()  # type: ignore[no-untyped-call]
            except OutOfMemory:
                self._free_memory()
                break
            self.optimizer.zero_grad()
            del batch  # it must not count for the next size
            n_rows = self.budget.tgt_tokens  # micro-batches are equal, so they can be smaller than n_tokens
            if not measured or n_rows > measured[-1][0]:
                measured.append((n_rows, torch.cuda.max_memory_reserved(self.device)))
        return measured, data_bytes // self.ranks.n


def tokens_that_fit(measured: list[tuple[int, int]], available: int, largest: int) -> int:
    """Return how many target tokens of a micro-batch fit into memory, by a line through the measured points.

    Args:
        measured: (tokens, peak bytes), smallest first; with one point, the line starts at (0, 0).
        available: bytes.
        largest: upper limit of the result.
    Returns:
        Tokens; 0 if nothing was measured or nothing fits.
    """
    if not measured:
        return 0
    n_tokens, n_bytes = measured[-1]
    first_tokens, first_bytes = measured[0] if len(measured) > 1 else (0, 0)
    per_token = (n_bytes - first_bytes) / (n_tokens - first_tokens)
    if per_token <= 0:
        return largest
    return max(0, min(largest, n_tokens + math.floor((available - n_bytes) / per_token)))


def _backward(loss: Tensor, scale: Tensor) -> Tensor:
    """Compute the gradients of loss × scale, and return the loss without its graph."""
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    return loss.detach()
