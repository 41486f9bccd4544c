"""How far a run has come, and what its latest updates gave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from mt.data.packing import PlanState
from mt.system.distributed import Ranks
from mt.training.engine import StepResult, Update

# Halvings that take the loss scale of fp16 from where it begins to 1, and some more.
MOST_OVERFLOWS = 20


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
    micro_batch_tokens: int = 0  # as resolved when the run began, or as memory has forced since; 0: not yet
    micro_batch_setting: int | str = 0  # what it was resolved from; another setting resolves it again
    loss_since_log: float = 0.0  # nats
    tokens_since_log: int = 0
    n_skipped: int = 0  # updates whose gradients were not finite
    n_skipped_in_row: int = 0  # of these the last ones, without a good one between
    n_overflows_in_row: int = 0  # the last updates that only found out the loss scale of fp16
    gone_back_to: int | None = None  # step of the checkpoint that training went back to after such a row

    @property
    def packing_efficiency(self) -> str:
        """Say how much of the computation went into real tokens, for people."""
        src, tgt = self.n_src_tokens / self.n_src_positions, self.n_tgt_tokens / self.n_tgt_positions
        return f"packing efficiency {src:.1%} of source and {tgt:.1%} of target positions"


class UpdateMeter:
    """Losses, gradient norms and speed since the last time. They stay on the device until they are read.

    Args:
        progress: what is read is entered here.
        scales_loss: fp16 with a loss scale, where gradients overflow now and then until the scale fits.
        peak_seconds: of a device at its peak for a number of source and of target tokens.
    """

    def __init__(
        self, ranks: Ranks, progress: Progress, scales_loss: bool, peak_seconds: Callable[[int, int], float]
    ) -> None:
        self._ranks, self._progress, self._scales_loss = ranks, progress, scales_loss
        self._peak_seconds = peak_seconds
        self._pending: list[tuple[Update, StepResult]] = []
        self.grad_norm = math.nan  # of the last update that was read
        self._begin_to_time()

    def add(self, update: Update, result: StepResult) -> None:
        """Enter an update; nothing waits for it."""
        self._pending.append((replace(update, micro_batches={}), result))  # whose memory is free again
        self._n_src_timed += update.n_src_tokens
        self._n_tgt_timed += update.n_tgt_tokens

    def settle(self) -> list[tuple[Update, list[float]]]:
        """Wait for the device and enter into the progress what the updates gave. All ranks call it after the same one.

        Returns:
            The updates that were skipped, oldest first, with the nats of each micro-batch. Updates that only found out
            the loss scale of fp16 are not among them.
        """
        if not self._pending:
            return []
        losses, norms = self._read()
        skipped: list[tuple[Update, list[float]]] = []
        progress = self._progress
        for (update, _), row, norm in zip(self._pending, losses, norms, strict=True):
            micro_batch_losses = row[: len(update.sentences)]  # another update may have had more
            loss = float(micro_batch_losses.sum())
            if math.isfinite(loss):
                progress.loss_since_log += loss
                progress.tokens_since_log += update.n_tgt_tokens
            if math.isfinite(norm):
                progress.n_skipped_in_row = progress.n_overflows_in_row = 0
            elif self._scales_loss and math.isfinite(loss) and progress.n_overflows_in_row < MOST_OVERFLOWS:
                progress.n_overflows_in_row += 1
            else:
                progress.n_skipped += 1
                progress.n_skipped_in_row += 1
                skipped.append((update, micro_batch_losses.tolist()))
        self.grad_norm = norms[-1]
        self._pending.clear()
        return skipped

    def _read(self) -> tuple[npt.NDArray[np.float64], list[float]]:
        """Return losses [updates, micro-batches] of all ranks, and norms [updates]; one copy from the device."""
        updates, results = zip(*self._pending, strict=True)
        together = torch.cat([*(result.losses for result in results), *(result.grad_norm[None] for result in results)])
        ends = np.cumsum([len(result.losses) for result in results])
        *losses, norms = np.split(together.double().cpu().numpy(), ends)
        table = np.zeros((len(updates), max(len(update.sentences) for update in updates)))
        for row, update, values in zip(table, updates, losses, strict=True):
            row[self._ranks.rank : len(update.sentences) : self._ranks.n] = values
        return self._ranks.summed(torch.from_numpy(table)).numpy(), norms.tolist()

    def peek(self) -> dict[str, float]:
        """Return loss, gradient norm and speed of what has settled, as `metrics.jsonl` names them."""
        progress, seconds = self._progress, time.monotonic() - self._timed_from
        n_tokens = progress.tokens_since_log
        return {
            "train_loss": progress.loss_since_log / n_tokens if n_tokens else math.nan,
            "grad_norm": self.grad_norm,
            "tgt_tokens_per_second": self._n_tgt_timed / seconds,
            "mfu": self._peak_seconds(self._n_src_timed, self._n_tgt_timed) / self._ranks.n / seconds,
        }

    def read(self) -> dict[str, float]:
        """Return the same, and count from here on."""
        values = self.peek()
        self._progress.loss_since_log, self._progress.tokens_since_log = 0.0, 0
        self._begin_to_time()
        return values

    def reset(self) -> None:
        """Drop what is pending: training continues from elsewhere."""
        self._pending.clear()
        self._begin_to_time()

    def _begin_to_time(self) -> None:
        # Of this start alone, pauses left out.
        self._n_src_timed = self._n_tgt_timed = 0
        self._timed_from = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block: validation and checkpoints are not training."""
        paused_at = time.monotonic()
        yield
        self._timed_from += time.monotonic() - paused_at
