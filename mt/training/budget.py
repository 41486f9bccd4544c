"""The schedule of a training that is given a time: how many updates fit into it, and when the learning rate falls."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from mt.config.settings import TrainConfig, parse_duration
from mt.errors import ConfigError
from mt.units import format_duration

FIRST_STEP = 5  # the update after which the training is laid out for the first time
LONGEST_WARM_UP = 1 / 3  # of all updates
STEP_SHARE = 0.01  # of all updates, after which the rest is laid out again


@dataclass(frozen=True)
class Costs:
    """Measured times in seconds."""

    update: float
    validation: float
    save: float  # of a checkpoint
    evaluation: float  # of the final model on validation and test sets, in validations

    def after(self, train: TrainConfig) -> float:
        """Return the time from the last update to the report, in seconds."""
        n_validations = 1 + self.evaluation + (1 if train.n_averaged else 0)
        return n_validations * self.validation + self.save * (1 + train.n_averaged)

    def n_updates(self, seconds: float, step: int, train: TrainConfig) -> int:
        """Return how many updates after `step` fit into a time, with all that belongs to them and comes after."""

        def needed(n: int) -> float:
            n_validations, n_saves = (
                max(step + n - 1, step) // every - step // every
                for every in (train.validate_every, train.checkpoint_every)
            )
            return n * self.update + n_validations * self.validation + n_saves * self.save + self.after(train)

        return max(0, bisect_right(range(int(max(seconds, 0) / self.update) + 1), seconds, key=needed) - 1)


@dataclass(frozen=True)
class BudgetPlan:
    """The learning rate of all updates, as laid out so far. Checkpoints store it, so that a run continues exactly."""

    warmup_steps: int
    costs: Costs
    end: int | None = None  # the last update, as far as known; None: not laid out yet
    first_end: int | None = None  # the same as it was laid out first
    decay_from: int | None = None  # the update from which the learning rate falls, in a line to `end`
    share: float = 1.0  # of the peak, at `decay_from`
    next_at: int = FIRST_STEP  # the update after which the rest is laid out again

    def share_of_peak(self, step: int, final_share: float) -> float:
        """Return the learning rate of an update, as a fraction of the peak."""
        if self.end is not None and self.decay_from is not None and step >= self.decay_from:
            progress = min((step - self.decay_from) / max(self.end - self.decay_from, 1), 1.0)
            return self.share + (final_share - self.share) * progress
        return min(step / self.warmup_steps, 1.0)

    def laid_out(self, step: int, seconds_left: float, costs: Costs, train: TrainConfig) -> BudgetPlan:
        """Return the plan for the updates after `step`, from the time that is left and from newer costs.

        Raises:
            ConfigError: the budget is too short for a few updates, a validation and the evaluation.
        """
        n = costs.n_updates(seconds_left, step, train)
        end, warmup_steps = step + n, self.warmup_steps
        if self.end is None:
            if n < FIRST_STEP:
                raise _too_short(costs, train)
            warmup_steps = min(warmup_steps, max(step, round(end * LONGEST_WARM_UP)))
        plan = replace(
            self,
            warmup_steps=warmup_steps,
            costs=costs,
            end=end,
            first_end=self.first_end or end,
            next_at=step + max(1, round(end * STEP_SHARE)),
        )
        decay_at = end - round(end * train.decay_share)
        if self.decay_from is not None or step >= decay_at:
            return replace(plan, decay_from=step, share=self.share_of_peak(step, train.final_lr_share))
        return replace(plan, next_at=min(plan.next_at, decay_at))


def _too_short(costs: Costs, train: TrainConfig) -> ConfigError:
    assert train.budget is not None
    times = f"an update takes {costs.update:.2g} s, a validation about {costs.validation:.2g} s"
    rest = costs.after(train) - costs.validation
    least = 2 * (2 * FIRST_STEP * costs.update + costs.after(train))
    problem = f"is {train.budget}, too short: {times}, and the final evaluation about {rest:.2g} s"
    return ConfigError("train.budget", problem, f"give it at least {format_duration(least)}, better much more")


def budget_seconds(train: TrainConfig) -> float:
    """Return `train.budget` in seconds; infinity if it is not set."""
    return math.inf if train.budget is None else parse_duration(train.budget)


class Stopwatch:
    """The costs of a training, measured since the first update of this start, whose compilation does not count."""

    def __init__(self) -> None:
        self._from: tuple[int, float] | None = None  # step and time; pauses are added to the time
        self._pauses: dict[str, float] = {}  # the latest of each kind

    def begin_after(self, step: int) -> None:
        """Start measuring, at the first call."""
        self._from = self._from or (step, time.monotonic())

    @contextmanager
    def timing(self, kind: Literal["validation", "save"]) -> Iterator[None]:
        """Measure a pause between updates."""
        started_at = time.monotonic()
        yield
        self._pauses[kind] = time.monotonic() - started_at
        if self._from is not None:
            self._from = self._from[0], self._from[1] + self._pauses[kind]

    def costs(self, step: int, known: Costs) -> Costs:
        """Return the costs after an update, as far as they have been measured since they were known."""
        if self._from is not None and step > self._from[0]:
            known = replace(known, update=(time.monotonic() - self._from[1]) / (step - self._from[0]))
        return replace(known, **self._pauses)
