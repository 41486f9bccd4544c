"""The training procedure on one screen: `train`, and `train_step` for one update."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mt.checkpoint import (
    ModelFolder,
    checkpoint_path,
    checkpoints,
    enter_score,
    find_model_folder,
    load_into,
    prune_checkpoints,
    save_model_folder,
    set_aside,
)
from mt.config import ModelConfig, RunConfig, TrainConfig, parse_duration
from mt.data.batch import Ahead, PackedBatch, assemble_tiles, assemble_varlen
from mt.data.packing import PlanState, SliceBudget, UpdatePlan, cut_into_slices, slice_budget
from mt.dropout import seed_dropout
from mt.errors import CheckpointError, ConfigError
from mt.loss import linear_label_smoothed_nll
from mt.model import Transformer
from mt.runtime import (
    choose_device,
    choose_dtype,
    hardware,
    keep_large_blocks,
    source_commit,
    versions,
    why_not_compile,
)
from mt.text.corpus import PreparedCorpus
from mt.text.tokenizer import PAD_ID, Tokenizer
from mt.train.optimizer import Optimizer
from mt.train.schedule import learning_rate
from mt.train.tracker import Tracker, format_count, format_duration
from mt.train.validation import validate

# What `auto` takes for micro_batch_tokens: the CPU's caches like small ones, a GPU wants work.
CPU_MICRO_BATCH_TOKENS = 4_096
CUDA_MICRO_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class Update:
    """One update's data, assembled: its slices, and where the plan stands after it."""

    step: int
    slices: tuple[PackedBatch, ...]
    next_state: PlanState

    @property
    def n_tgt_tokens(self) -> int:
        """Real target tokens of the whole update: what its loss is divided by."""
        return sum(batch.n_tgt_tokens for batch in self.slices)


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it beside weights and optimizer."""

    step: int = 0  # updates done
    plan_state: PlanState = field(default_factory=PlanState)
    train_seconds: float = 0.0  # wall time, over all starts
    n_src_tokens: int = 0  # source tokens learned from
    n_tgt_tokens: int = 0  # target tokens learned from
    n_src_positions: int = 0  # the same with padding
    n_tgt_positions: int = 0
    best_step: int | None = None
    best_score: float = 0.0
    n_without_better: int = 0  # validations since the best one
    validated_at: int = 0  # update after which the validation set was measured last
    micro_batch_tokens: int = 0  # as resolved when the run began; 0: not yet
    loss_since_log: float = 0.0  # nats
    tokens_since_log: int = 0

    @property
    def fill(self) -> str:
        """How much of the computation went into real tokens."""
        src, tgt = self.n_src_tokens / self.n_src_positions, self.n_tgt_tokens / self.n_tgt_positions
        return f"fill {src:.1%} of source and {tgt:.1%} of target positions"


def train(config: RunConfig, corpus: PreparedCorpus, run_dir: Path) -> Progress:
    """Train until the steps or the time are up, from the last checkpoint if there is one.

    Raises:
        KeyboardInterrupt, SystemExit(143): interrupted or terminated; a checkpoint has been written.
    """
    keep_large_blocks()
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = config.train
    trainer = Trainer(config, corpus, run_dir)
    progress = trainer.progress
    if trainer.is_finished() and not trainer.validation_is_due():
        beyond = f", beyond train.max_steps ({settings.max_steps:,})" if progress.step > settings.max_steps else ""
        print(f"trained already: {progress.step:,} steps{beyond}", file=sys.stderr, flush=True)
        return progress
    with (
        closing(Tracker(run_dir, progress.step, settings.max_steps, trainer.seconds_left)) as tracker,
        trainer.updates_ahead() as updates,
        caught_signals() as received,
    ):
        tracker.say(trainer.description)
        meter = Meter(trainer.device, progress)
        if trainer.validation_is_due():  # a signal came before it
            trainer.validate(tracker)
            trainer.save_checkpoint(meter)
        for update in updates:
            lr = learning_rate(update.step, settings, config.model.d_model)
            loss, grad_norm = train_step(trainer.model, trainer.optimizer, update, settings, lr, trainer.loss)
            trainer.count(update)
            meter.add(loss, update.n_tgt_tokens)
            tracker.advance(update.step)
            if update.step % settings.log_every == 0:
                tracker.log(update.step, learning_rate=lr, grad_norm=grad_norm.item(), **meter.read())
                trainer.warn_of_skipped(tracker)
            with meter.paused():
                is_among_best = received.number is None and trainer.validation_is_due() and trainer.validate(tracker)
                ends = trainer.is_finished() or received.number is not None
                if ends or is_among_best or trainer.saves_at(update.step):
                    trainer.save_checkpoint(meter)
            if ends:
                break
        if received.number is not None:
            tracker.say(
                f"stopped after step {progress.step:,}, all of it saved in {run_dir}: "
                "the same command goes on from there"
            )
            raise KeyboardInterrupt if received.number == signal.SIGINT else SystemExit(128 + received.number)
        if progress.n_without_better and progress.n_without_better == settings.patience:
            tracker.say(
                f"{settings.patience} validations without a better score than that of step {progress.best_step:,}"
            )
        tracker.say(
            f"trained {progress.step:,} steps, {progress.n_tgt_tokens:,} target tokens, "
            f"in {format_duration(progress.train_seconds)}; {progress.fill}"
        )
    return progress


def train_step(
    model: Transformer, optimizer: Optimizer, update: Update, settings: TrainConfig, lr: float, loss_function: Any
) -> tuple[Tensor, Tensor]:
    """One update: a forward and a backward pass for each slice, then the optimizer. Nothing waits for the device.

    Returns:
        The summed loss of the update in nats, and the norm of its gradient per target token: scalars on the device.
    """
    total = torch.zeros((), device=optimizer.loss_scale.device)
    n_tgt_tokens = update.n_tgt_tokens
    for i, batch in enumerate(update.slices):
        seed_dropout(total.device, settings.seed, update.step, i)
        loss = loss_function(
            model(batch), model.output_weight, batch.tgt_outputs, batch.tgt_weights, settings.label_smoothing
        )
        # Divide by the tokens of the whole update: dividing per slice lets a short one weigh as much as a long one.
        (loss * (optimizer.loss_scale / n_tgt_tokens)).backward()
        total += loss.detach()
    return total, optimizer.step(lr)


@dataclass(frozen=True)
class Execution:
    """How a run computes on this machine."""

    device: torch.device
    dtype: torch.dtype
    packs_varlen: bool  # flash attention over variable lengths; else written-out attention over tiles
    compiles: bool
    note: str  # for people


def choose_execution(train: TrainConfig, model: ModelConfig) -> Execution:
    """Resolve device, precision and compilation.

    Raises:
        ConfigError: something is asked for that this machine cannot do.
    """
    device = choose_device(train.device)
    dtype = choose_dtype(train.precision, device)
    packs_varlen = (
        device.type == "cuda"
        and dtype != torch.float32
        and model.attention_dropout == 0
        and model.d_model // model.n_heads <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    obstacle = why_not_compile()
    if not packs_varlen:
        obstacle = (
            "it needs flash attention: CUDA of compute capability 8.0, bf16 or fp16, no attention dropout, "
            "d_model / n_heads up to 256"
        )
    if train.compile is True and obstacle:
        raise ConfigError(f"train.compile: cannot compile here: {obstacle}: set it to auto")
    compiles = train.compile is not False and obstacle is None
    note = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    if device.type == "cuda":
        note += ", compiled" if compiles else f", not compiled ({obstacle or 'train.compile is false'})"
    return Execution(device, dtype, packs_varlen, compiles, note)


class Trainer:
    """Everything that training holds: model, optimizer, plan, and how far it has come."""

    def __init__(self, config: RunConfig, corpus: PreparedCorpus, run_dir: Path) -> None:
        self.config, self.corpus, self.run_dir = config, corpus, run_dir
        settings = config.train
        self.execution = choose_execution(settings, config.model)
        self.device, self.dtype = self.execution.device, self.execution.dtype
        self.tokenizer = Tokenizer.load(corpus.tokenizer_path)
        torch.manual_seed(settings.seed)
        self.model = Transformer(
            config.model, vocab_size=self.tokenizer.vocab_size, pad_id=PAD_ID, dtype=self.dtype
        ).to(self.device)
        self.optimizer = Optimizer(self.model, settings, self.dtype)
        self.progress = self._resume()
        self.plan = UpdatePlan(
            corpus.train.src.lengths,
            corpus.train.tgt.lengths,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            source_sizes=corpus.source_sizes,
            source_weights=[source.weight for source in config.data.train],
        )
        self.budget = self._slice_budget()
        self.loss: Any = linear_label_smoothed_nll
        if self.execution.compiles:
            self._compile()
        self._n_skipped = int(self.optimizer.n_skipped)
        self._manifest = {
            "vocab_size": self.tokenizer.vocab_size,
            "corpus_fingerprint": corpus.fingerprint,
            "versions": versions(),
            "hardware": hardware(self.device),
            "commit": source_commit(),
        }
        self._began_at = time.monotonic() - self.progress.train_seconds

    @property
    def description(self) -> str:
        """What is about to run, in one line."""
        start = f"from {self.config.train.init_from}" if self.config.train.init_from else "from scratch"
        start = f"from step {self.progress.step:,}" if self.progress.step else start
        return (
            f"training {start}: {format_count(self.model.n_parameters)} parameters on {self.device} in "
            f"{self.execution.note}, {self.plan.batch_tokens:,} target tokens an update in {self.budget.n_slices} "
            f"slice{'s' if self.budget.n_slices > 1 else ''}, {self.plan.updates_per_epoch():,.0f} updates an epoch"
        )

    @contextmanager
    def updates_ahead(self) -> Iterator[Iterable[Update]]:
        """All updates that are left, made ahead of the device by a thread of its own."""
        if self.device.type == "cpu":
            # There the thread would take from the computation what it saves.
            yield self.updates()
            return
        with closing(Ahead(self.updates())) as ahead:
            yield ahead

    def updates(self) -> Iterator[Update]:
        """All updates that are left, assembled on the device."""
        if self.is_finished():  # the time may be up before the steps are
            return
        state = self.progress.plan_state
        for step in range(self.progress.step + 1, self.config.train.max_steps + 1):
            sentences, state = self.plan.update_at(state)
            src, tgt = self.corpus.train.src, self.corpus.train.tgt
            parts = cut_into_slices(sentences, src.lengths, tgt.lengths, self.budget)
            slices = tuple(self._assemble(part) for part in parts)
            yield Update(step, slices, state)

    def _assemble(self, sentences: Any) -> PackedBatch:
        if self.execution.packs_varlen:
            longest = -(-self.config.data.max_tokens // 128) * 128
            batch = assemble_varlen(self.corpus.train, sentences, self.budget, longest)
        else:
            batch = assemble_tiles(self.corpus.train, sentences, self.dtype)
        return batch if self.device.type == "cpu" else batch.pinned().to(self.device)

    def _slice_budget(self) -> SliceBudget:
        """Slices of the size set; `auto` is resolved when the run begins and stays, on whatever device it goes on."""
        setting = self.config.train.micro_batch_tokens
        if setting != "auto":
            self.progress.micro_batch_tokens = setting
        elif self.progress.micro_batch_tokens == 0:
            on_cpu = self.device.type == "cpu"
            self.progress.micro_batch_tokens = CPU_MICRO_BATCH_TOKENS if on_cpu else CUDA_MICRO_BATCH_TOKENS
        mean = float(self.corpus.train.tgt.lengths.mean())
        return slice_budget(self.plan, micro_batch_tokens=self.progress.micro_batch_tokens, mean_tgt_tokens=mean)

    def _compile(self) -> None:
        # One static shape. Layers apart from the loss: a short warm-up, and names in the state dict stay as they are.
        for layer in (*self.model.encoder, *self.model.decoder):
            layer.compile(fullgraph=True, dynamic=False)
        self.loss = torch.compile(linear_label_smoothed_nll, fullgraph=True, dynamic=False)

    def saves_at(self, step: int) -> bool:
        return step % self.config.train.checkpoint_every == 0

    def is_finished(self) -> bool:
        """Whether the steps, the time or the patience are up."""
        settings, progress = self.config.train, self.progress
        out_of_time = self.seconds_left is not None and self.seconds_left <= 0
        out_of_patience = settings.patience is not None and progress.n_without_better >= settings.patience
        return progress.step > 0 and (progress.step >= settings.max_steps or out_of_time or out_of_patience)

    @property
    def seconds_left(self) -> float | None:
        """Until `stop_after`, as of the last update; None without it."""
        limit = self.config.train.stop_after
        return None if limit is None else parse_duration(limit) - self.progress.train_seconds

    def count(self, update: Update) -> None:
        """Enter an update that has been made."""
        progress = self.progress
        progress.step, progress.plan_state = update.step, update.next_state
        progress.n_src_tokens += sum(batch.n_src_tokens for batch in update.slices)
        progress.n_tgt_tokens += update.n_tgt_tokens
        progress.n_src_positions += sum(len(batch.src_ids) for batch in update.slices)
        progress.n_tgt_positions += sum(len(batch.tgt_inputs) for batch in update.slices)
        progress.train_seconds = time.monotonic() - self._began_at

    def validation_is_due(self) -> bool:
        """Whether the validation set is to be measured after this update, and has not been."""
        step = self.progress.step
        is_due = step > 0 and (step % self.config.train.validate_every == 0 or self.is_finished())
        return is_due and self.progress.validated_at != step

    def validate(self, tracker: Tracker) -> bool:
        """Measure the validation set, tell the result, remember it; True where it is among the best that are kept."""
        decode = replace(self.config.decode, beam_size=self.config.train.validation_beam_size)
        result = validate(
            self.model,
            self.tokenizer,
            self.corpus.valid,
            self.corpus.valid_pairs,
            decode,
            self.config.data.max_tokens,
        )
        progress, settings = self.progress, self.config.train
        tracker.log(progress.step, **{f"valid_{name}": value for name, value in asdict(result).items()})
        progress.validated_at = progress.step
        by_bleu = settings.best_by == "bleu"
        score = result.bleu if by_bleu else -result.loss
        if not math.isfinite(score) or (progress.best_step is not None and score <= progress.best_score):
            progress.n_without_better += 1
        else:
            progress.best_step, progress.best_score, progress.n_without_better = progress.step, score, 0
        return enter_score(
            self.run_dir,
            progress.step,
            abs(score),
            by=settings.best_by,
            higher_is_better=by_bleu,
            n_best=settings.keep_best,
        ).is_among_best

    def warn_of_skipped(self, tracker: Tracker) -> None:
        """Say how many updates were skipped since this was asked last."""
        n_skipped = int(self.optimizer.n_skipped)
        if n_skipped > self._n_skipped:
            tracker.say(
                f"warning: {n_skipped - self._n_skipped:,} of the last updates were skipped up to step "
                f"{self.progress.step:,}: their gradients were not finite; {n_skipped:,} in all"
            )
        self._n_skipped = n_skipped

    def save_checkpoint(self, meter: Meter) -> None:
        """Write the checkpoint of this step, and remove those that are not needed."""
        settings = self.config.train
        self.progress.train_seconds = time.monotonic() - self._began_at
        self.progress.loss_since_log, self.progress.tokens_since_log = meter.loss_sum.item(), int(meter.n_tokens)
        save_model_folder(
            checkpoint_path(self.run_dir, self.progress.step),
            self.model.state_dict(),
            self.config,
            self.corpus.tokenizer_path,
            {**self._manifest, "step": self.progress.step},
            {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress)},
        )
        prune_checkpoints(
            self.run_dir,
            settings.checkpoint_every,
            keep_last=max(settings.keep_last, settings.average_last),
            keep_best=settings.keep_best,
            keep_every=settings.keep_every,
        )

    def _resume(self) -> Progress:
        """Go on from the last checkpoint that can be read; those after it are set aside.

        Raises:
            CheckpointError: there are checkpoints, but none can be read, or they are of another model.
        """
        damaged: list[tuple[Path, CheckpointError]] = []
        for folder in reversed(checkpoints(self.run_dir)):
            try:
                opened = ModelFolder.open(folder)
                weights, state = opened.load_weights(), opened.load_training_state()
            except CheckpointError as error:
                damaged.append((folder, error))
                continue
            load_into(self.model, weights, folder)
            self.optimizer.load_state_dict(state["optimizer"])
            for damaged_folder, problem in damaged:
                aside = set_aside(damaged_folder)
                print(
                    f"warning: {problem}: going back to the checkpoint before; it is now {aside}",
                    file=sys.stderr,
                    flush=True,
                )
            saved = dict(state["progress"])
            return Progress(**{**saved, "plan_state": PlanState(**saved["plan_state"])})
        if damaged:
            raise CheckpointError(
                f"{self.run_dir}: none of its checkpoints can be read; the last: {damaged[0][1]}: "
                "start anew with another --run-dir"
            )
        if self.config.train.init_from is not None:
            self._start_from(ModelFolder.open(find_model_folder(Path(self.config.train.init_from))))
        return Progress()

    def _start_from(self, folder: ModelFolder) -> None:
        """Take the weights of another model; optimizer and plan begin anew.

        Raises:
            ConfigError: it is of another shape.
        """
        theirs, ours = asdict(folder.config.model), asdict(self.config.model)
        # Dropout is no part of the shape: fine-tuning on little text may want more of it.
        for key in sorted(theirs.keys() - {"dropout", "attention_dropout"}):
            if theirs[key] != ours[key]:
                raise ConfigError(
                    f"model.{key}: is {ours[key]}, the model of train.init_from ({folder.path}) has {theirs[key]}: "
                    f"set it to {theirs[key]}"
                )
        load_into(self.model, folder.load_weights(), folder.path)


class Meter:
    """Loss and speed since the last log. The loss stays on the device until it is read."""

    def __init__(self, device: torch.device, progress: Progress) -> None:
        self.loss_sum = torch.full((), progress.loss_since_log, device=device)
        self.n_tokens = torch.full((), progress.tokens_since_log, dtype=torch.int64, device=device)
        self._n_timed, self._timed_from = 0, time.monotonic()  # of this start alone, pauses left out

    def add(self, loss: Tensor, n_tgt_tokens: int) -> None:
        """Enter an update: its summed loss and its target tokens. One that is not finite was skipped, and is here."""
        is_finite = torch.isfinite(loss)
        self.loss_sum += torch.where(is_finite, loss, 0.0)
        self.n_tokens += is_finite * n_tgt_tokens
        self._n_timed += n_tgt_tokens

    def read(self) -> dict[str, float]:
        """Nats per token and tokens per second, and begin anew."""
        # Reading waits for the device, so it comes before the clock.
        n_tokens = int(self.n_tokens)
        values = {
            "train_loss": self.loss_sum.item() / n_tokens if n_tokens else math.nan,
            "tgt_tokens_per_second": self._n_timed / (time.monotonic() - self._timed_from),
        }
        self.loss_sum.zero_()
        self.n_tokens.zero_()
        self._n_timed, self._timed_from = 0, time.monotonic()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Validation and checkpoints are not training: their time does not count."""
        paused_at = time.monotonic()
        yield
        self._timed_from += time.monotonic() - paused_at


@dataclass
class Received:
    """The signal that came, if one did."""

    number: int | None = None


@contextmanager
def caught_signals() -> Iterator[Received]:
    """Note SIGINT and SIGTERM, so that the loop can save and stop between two steps; a second one acts at once."""
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: FrameType | None) -> None:
        received.number = number
        name = signal.Signals(number).name
        print(f"{name}: stopping after this step, to save it; a second one stops at once", file=sys.stderr, flush=True)
        for each in numbers:
            signal.signal(each, before[each])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])
