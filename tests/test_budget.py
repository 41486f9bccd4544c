"""A training that is given a time: its schedule, its end, and its exact continuation, on a clock of the test."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mt.training.budget
import mt.training.loop
from mt.config.loading import load_config
from mt.config.settings import RunConfig, TrainConfig
from mt.errors import ConfigError
from mt.run_folder import RunFolder
from mt.text.prepare import prepare_corpus
from mt.training.budget import BudgetPlan, Costs
from mt.training.engine import Engine
from mt.training.loop import Trainer, train
from mt.training.progress import Progress
from tests.clock import Clock
from tests.test_recovery import inject
from tests.toys import measured, toy_config, weights_of

COSTS = Costs(update=1.0, validation=4.0, save=2.0, evaluation=5.0)


def settings(**changes: Any) -> TrainConfig:
    defaults = {"budget": "10m", "validate_every": 50, "checkpoint_every": 25, "average_last": 0, "warmup_steps": 20}
    return TrainConfig(**{**defaults, **changes})


def test_updates_fit_into_a_time_with_their_validations_and_checkpoints_and_the_evaluation() -> None:
    train = settings()
    assert COSTS.after(train) == 4 + 2 + 5 * 4  # the last validation and checkpoint, and the evaluation
    assert COSTS.after(settings(average_last=3)) == 2 * 4 + 4 * 2 + 5 * 4  # reading three, and validating their average
    assert COSTS.n_updates(26, 0, train) == 0
    assert COSTS.n_updates(36, 0, train) == 10
    # After update 25 comes a checkpoint, after update 50 both: 60 updates, 2 checkpoints and a validation.
    assert COSTS.n_updates(26 + 60 + 2 * 2 + 4, 0, train) == 60
    assert COSTS.n_updates(26 + 60 + 2 * 2 + 4 - 1, 0, train) == 59
    assert (COSTS.n_updates(37, 45, train), COSTS.n_updates(38, 45, train)) == (5, 6)  # update 50 is or is not the last
    assert COSTS.n_updates(-5, 45, train) == 0


def test_the_learning_rate_rises_stays_and_falls_to_its_final_share_at_the_end() -> None:
    train, costs = settings(decay_share=0.5), replace(COSTS, validation=0.0, save=0.0)
    first = BudgetPlan(20, costs)
    assert (first.next_at, first.share_of_peak(5, 0.0)) == (5, 0.25)
    plan = first.laid_out(5, 195.0, costs, train)
    assert (plan.end, plan.warmup_steps, plan.decay_from, plan.next_at) == (200, 20, None, 7)
    plan = plan.laid_out(99, 101.0, costs, train)
    assert (plan.decay_from, plan.next_at) == (None, 100)  # where the decay begins
    plan = plan.laid_out(100, 100.0, costs, train)
    assert plan.decay_from == 100
    shares = [plan.share_of_peak(step, 0.25) for step in (100, 150, 200)]
    assert shares == [1.0, 0.625, 0.25]


def test_if_the_speed_changes_the_learning_rate_falls_from_its_value_to_another_end() -> None:
    train, costs = settings(decay_share=0.5), replace(COSTS, validation=0.0, save=0.0)
    plan = BudgetPlan(20, costs).laid_out(5, 195.0, costs, train).laid_out(100, 100.0, costs, train)
    assert plan.share_of_peak(150, 0.0) == 0.5
    slower = plan.laid_out(150, 50.0, replace(costs, update=2.0), train)
    assert (slower.end, slower.share_of_peak(150, 0.0), slower.share_of_peak(160, 0.0)) == (175, 0.5, 0.3)
    assert slower.share_of_peak(175, 0.0) == 0.0


def test_the_warm_up_is_at_most_a_third_of_the_updates() -> None:
    train, costs = settings(warmup_steps=4_000), replace(COSTS, validation=0.0, save=0.0)
    plan = BudgetPlan(4_000, costs).laid_out(5, 295.0, costs, train)
    assert (plan.end, plan.warmup_steps) == (300, 100)
    assert plan.laid_out(50, 10_000.0, costs, train).warmup_steps == 100  # fixed when it is laid out first


def run(
    config: RunConfig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    update_seconds: Callable[[int], float] = lambda step: 1.0,
    save_seconds: float = 2.0,
) -> tuple[Clock, Progress]:
    """Train on a clock with updates of 1 s, validations of 4 s, checkpoints of 2 s, and an evaluation of 20 s.

    Returns:
        The clock, which shows the time until the last checkpoint, and the progress.
    """
    clock, corpus = Clock(), prepare_corpus(config)
    with monkeypatch.context() as patch:
        for module in (mt.training.loop, mt.training.budget):
            patch.setattr(module, "time", clock)
        patch.setattr(mt.training.loop, "validation_costs", lambda *_: (4.0, 5.0))
        clock.slow(patch, Engine, "step", lambda _engine, update, _lr: update_seconds(update.step))
        clock.slow(patch, mt.training.loop, "validate", 4.0)
        clock.slow(patch, Trainer, "_write_checkpoint", save_seconds)
        started_at = clock.now
        progress = train(config, corpus, folder)
    clock.now -= started_at
    return clock, progress


def budget_config(folder: Path, **changes: Any) -> RunConfig:
    defaults = {"budget": "90s", "max_steps": 100_000, "validate_every": 20, "checkpoint_every": 10, "average_last": 0}
    return toy_config(folder, **{**defaults, "decay_share": 0.5, "log_every": 1, **changes})


def test_training_ends_when_the_rest_of_the_time_is_needed_for_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, progress = run(budget_config(tmp_path), tmp_path / "run", monkeypatch)
    # 49 updates, checkpoints after 10, 20, 30 and 40, validations after 20 and 40; then one each, and the evaluation.
    assert 49 + 4 * 2 + 2 * 4 + 4 + 2 + 20 == 91
    assert progress.step == 48
    assert clock.now == 48 + 4 * 2 + 2 * 4 + 4 + 2
    rates = dict(measured(tmp_path / "run", "learning_rate"))
    assert rates[48] == 0.0
    assert rates[24] == max(rates.values())
    assert 0 < rates[36] < rates[30] < rates[24]
    assert [step for step, _ in measured(tmp_path / "run", "valid_loss")] == [20, 40, 48]
    # A second start has nothing to do.
    _, again = run(budget_config(tmp_path), tmp_path / "run", monkeypatch)
    assert again.step == 48


@pytest.mark.parametrize("stop_at", [6, 30])
def test_a_killed_training_continues_exactly_as_its_checkpoint_laid_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    # A checkpoint cannot contain the time that writing it takes; here, that is none.
    config = budget_config(tmp_path, checkpoint_every=stop_at)
    run(config, tmp_path / "whole", monkeypatch, save_seconds=0.0)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for folder in RunFolder(tmp_path / "killed").checkpoints():
        if folder > RunFolder(tmp_path / "killed").checkpoint(stop_at):
            shutil.rmtree(folder)
    _, progress = run(config, tmp_path / "killed", monkeypatch, save_seconds=0.0)
    for key in ("learning_rate", "train_loss"):
        assert measured(tmp_path / "killed", key) == measured(tmp_path / "whole", key)
    whole, killed = (weights_of(tmp_path / name, progress.step) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_training_that_becomes_slow_still_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = run(budget_config(tmp_path), tmp_path / "run", monkeypatch, update_seconds=lambda n: 1 + (n > 25))
    assert 25 < progress.step < 48
    assert 90 - 20 - 3 < clock.now <= 90 - 20 + 2
    rates = dict(measured(tmp_path / "run", "learning_rate"))
    assert rates[progress.step] < 0.1 * max(rates.values())


@pytest.mark.parametrize("budget", ["20s", "33s"])
def test_a_budget_that_is_too_short_for_a_validation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(budget_config(tmp_path, budget=budget), tmp_path / "run", monkeypatch)
    assert str(caught.value) == (
        f"train.budget is {budget}, too short: an update takes 1 s, a validation about 4 s, and the final evaluation "
        "about 20 s. Give it at least 1 min 08 s, better much more."
    )
    assert RunFolder(tmp_path / "run").checkpoints() == []


def test_a_budget_excludes_what_it_replaces() -> None:
    for name, value in {"max_steps": 5, "stop_after": "1h", "schedule": "linear", "restart_schedule": True}.items():
        with pytest.raises(ConfigError) as caught:
            TrainConfig(budget="10m", **{name: value})
        problem = f"train.{name} is {value}, but train.budget (10m) replaces it"
        assert str(caught.value) == f"{problem}. Remove one of them."
    assert TrainConfig(budget="10m", schedule="warmup_stable_decay").last_step > 10**9


def test_an_overridden_budget_replaces_the_steps_of_the_file_and_overridden_steps_replace_its_budget() -> None:
    timed = load_config("demo", ["train.budget=10m"])
    assert (timed.train.budget, timed.train.max_steps) == ("10m", 100_000)
    assert load_config(timed, {"train.max_steps": 50}).train.budget is None
    assert load_config(timed, {"train.peak_lr": 1e-3}).train.budget == "10m"
    with pytest.raises(ConfigError, match=r"train\.max_steps is 50, but train\.budget"):
        load_config("demo", ["train.budget=10m", "train.max_steps=50"])


def test_a_rollback_keeps_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = iter([7, 8])  # after the plan is made, and before the first checkpoint
    inject(monkeypatch, lambda step, number, loss: loss * math.nan if step in (7, 8) and next(spoiled, 0) else loss)
    config = budget_config(tmp_path, skips_before_rollback=2)
    clock, progress = run(config, tmp_path / "run", monkeypatch)
    assert progress.gone_back_to == 0
    # A checkpoint and a validation more would not have fitted.
    assert (progress.step, clock.now) == (40, 90 - 20 - 6)
    assert dict(measured(tmp_path / "run", "learning_rate"))[progress.step] == 0.0
