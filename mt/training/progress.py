"""Progress of a run; losses, gradient norms and speed of its latest updates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mt.data.packing import PlanState
from mt.system.distributed import Ranks
from mt.training.budget import BudgetPlan, Costs
from mt.training.engine import StepResult, Update

# Overflows in a row with which fp16 adapts its loss scale: the halvings from FIRST_LOSS_SCALE to 1, and some more.
MAX_OVERFLOWS_IN_ROW = 20


@dataclass
class Progress:
    """Progress of a run; a checkpoint holds it together with the weights and the optimizer state."""

    step: int = 0  # updates done
    schedule_start: int = 0  # updates done when the schedule of the learning rate began
    plan_state: PlanState = field(default_factory=PlanState)
    budget_plan: BudgetPlan | None = None  # with train.budget
    train_seconds: float = 0.0  # wall time, over all starts
    n_src_tokens: int = 0  # source tokens trained on
    n_tgt_tokens: int = 0  # target tokens trained on
    n_src_positions: int = 0  # n_src_tokens and padding
    n_tgt_positions: int = 0  # n_tgt_tokens and padding
    best_step: int | None = None
    best_score: float = 0.0  # higher is better: for train.best_by loss, the negative loss
    best_chrf: float = 0.0  # decides between equal scores
    n_without_better: int = 0  # validations since the best one that patience counts
    bleu_tokenizer: str = "13a"  # of the scores so far
    old_bleu: float | None = None  # of the initial model, on the sets of train.max_loss_on_old
    validated_at: int = 0  # step of the last validation
    micro_batch_tokens: int = 0  # as chosen at the start, or reduced since when memory ran out; 0: not chosen yet
    micro_batch_setting: int | str = 0  # the setting it was chosen for; if that changes, it is chosen again
    loss_since_log: float = 0.0  # nats
    tokens_since_log: int = 0
    n_skipped: int = 0  # updates skipped because of NaN or infinite gradients
    n_skipped_in_row: int = 0  # skipped updates since the last good one
    n_overflows_in_row: int = 0  # overflows since the last good update, by which fp16 adapts its loss scale
    gone_back_to: int | None = None  # step of the checkpoint of the last rollback

    @classmethod
    def of_dict(cls, saved: dict[str, Any]) -> Progress:
        """Return the progress from `dataclasses.asdict`."""
        plan = saved.get("budget_plan")  # an earlier version did not write it
        if plan is not None:
            plan = BudgetPlan(**{**plan, "costs": Costs(**plan["costs"])})
        return cls(**{**saved, "plan_state": PlanState(**saved["plan_state"]), "budget_plan": plan})

    @property
    def packing_efficiency(self) -> str:
        """Fractions of positions that held tokens and not padding, for users."""
        src, tgt = self.n_src_tokens / self.n_src_positions, self.n_tgt_tokens / self.n_tgt_positions
        return f"packing efficiency {src:.1%} (source) and {tgt:.1%} (target)"


class UpdateMeter:
    """Losses, gradient norms and speed since the last reading. They stay on the device until `flush`.

    Args:
        progress: `flush` adds the results to it.
        scales_loss: true for fp16, whose gradients overflow now and then until the loss scale fits.
        peak_seconds: returns the time that a device at its peak speed needs for some source and target tokens.
    """

    def __init__(
        self, ranks: Ranks, progress: Progress, scales_loss: bool, peak_seconds: Callable[[int, int], float]
    ) -> None:
        self._ranks, self._progress, self._scales_loss = ranks, progress, scales_loss
        self._peak_seconds = peak_seconds
        self._pending: list[tuple[Update, StepResult]] = []
        self.grad_norm = math.nan  # of the last update that was flushed
        self._start_timing()

    def add(self, update: Update, result: StepResult) -> None:
        """Add an update, without waiting for its results."""
        self._pending.append((replace(update, micro_batches={}), result))  # the batches can be freed
        self._n_src_timed += update.n_src_tokens
        self._n_tgt_timed += update.n_tgt_tokens

    def flush(self) -> list[tuple[Update, list[float]]]:
        """Wait for the device and add the results to the progress. All ranks call it after the same update.

        Returns:
            The skipped updates, oldest first, with the loss of each micro-batch in nats. Overflows by which fp16
            adapts its loss scale are not among them.
        """
        if not self._pending:
            return []
        losses, norms = self._read()
        skipped: list[tuple[Update, list[float]]] = []
        progress = self._progress
        for (update, _), row, norm in zip(self._pending, losses, norms, strict=True):
            micro_batch_losses = row[
                : len(update.sentences)
            ]  # the row has room for the update with the most micro-batches
            loss = float(micro_batch_losses.sum())
            if math.isfinite(loss):
                progress.loss_since_log += loss
                progress.tokens_since_log += update.n_tgt_tokens
            if math.isfinite(norm):
                progress.n_skipped_in_row = progress.n_overflows_in_row = 0
            elif self._scales_loss and math.isfinite(loss) and progress.n_overflows_in_row < MAX_OVERFLOWS_IN_ROW:
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
        """Return loss, gradient norm and speed of the flushed updates, named as in `metrics.jsonl`."""
        progress, seconds = self._progress, time.monotonic() - self._timed_from
        n_tokens = progress.tokens_since_log
        return {
            "train_loss": progress.loss_since_log / n_tokens if n_tokens else math.nan,
            "grad_norm": self.grad_norm,
            "tgt_tokens_per_second": self._n_tgt_timed / seconds,
            "mfu": self._peak_seconds(self._n_src_timed, self._n_tgt_timed) / self._ranks.n / seconds,
        }

    def read(self) -> dict[str, float]:
        """Return the same, and start counting again."""
        values = self.peek()
        self._progress.loss_since_log, self._progress.tokens_since_log = 0.0, 0
        self._start_timing()
        return values

    def reset(self) -> None:
        """Drop the pending results: training was rolled back."""
        self._pending.clear()
        self._start_timing()

    def _start_timing(self) -> None:
        # Speed covers only this start, without pauses.
        self._n_src_timed = self._n_tgt_timed = 0
        self._timed_from = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of the speed: validation and checkpoints are not training."""
        paused_at = time.monotonic()
        yield
        self._timed_from += time.monotonic() - paused_at
