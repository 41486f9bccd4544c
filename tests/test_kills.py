"""kill -9 at any moment: the run that is resumed gives the same result as one without kills."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mt.checkpoint import ModelFolder
from mt.config.loading import dump_config
from mt.config.settings import RunConfig
from mt.pipeline import train_run
from mt.run_folder import RunFolder
from mt.tools.verify import Kill, compare_runs, reaches, read_progress
from mt.training.engine import Engine, StepResult, Update
from tests.forks import MT, Fork
from tests.toys import toy_config


def assert_same_run(whole: Path, parts: Path, n_updates: int) -> None:
    """Compare checkpoints, measurements and result to the last bit. Require that no partial or damaged files remain."""
    for folder in ("model", RunFolder(Path()).checkpoint(n_updates)):
        weights, resumed = (ModelFolder.open(run_dir / folder).load_weights() for run_dir in (whole, parts))
        assert weights.keys() == resumed.keys()
        for name, tensor in weights.items():
            assert torch.equal(tensor, resumed[name]), name
    assert compare_runs(whole, parts, n_updates).is_none
    steps = [ModelFolder.open(run_dir / "model").manifest["averaged_steps"] for run_dir in (whole, parts)]
    assert steps[0] == steps[1]
    kept = [[path.name for path in RunFolder(run_dir).checkpoints()] for run_dir in (whole, parts)]
    assert kept[0] == kept[1]
    for run_dir in (whole, parts):
        assert [path.name for path in run_dir.rglob(".*")] == []
        assert list(run_dir.rglob("*.damaged")) == []


def kill_at(child: Fork, run_dir: Path, step: int, in_save: bool, delay: float) -> Kill:
    assert reaches(step, run_dir, lambda: child.poll() is not None, in_save=in_save)
    time.sleep(delay)
    child.kill()
    assert child.wait() < 0
    return Kill(*read_progress(run_dir))


def never_finish_saving_step_15() -> None:
    """Make sure that the kill happens during that save, even if it is late."""
    rename = Path.rename

    def endless(path: Path, target: Path) -> Path:
        if path.name == ".step-00000015.writing":
            time.sleep(1_000)
        return rename(path, target)

    Path.rename = endless  # type: ignore[method-assign]


def never_finish_step_33() -> None:
    """Make sure that the kill happens before the save of step 35, even if it is late."""
    step = Engine.step

    def endless(engine: Engine, update: Update, lr: float) -> StepResult:
        if update.step == 33:
            time.sleep(1_000)
        return step(engine, update, lr)

    Engine.step = endless  # type: ignore[method-assign]


def test_a_killed_training_continues_to_the_same_result(tmp_path: Path) -> None:
    """The kills happen once during a save and once after an update."""
    config = toy_config(tmp_path, max_steps=60, checkpoint_every=5, validate_every=20, log_every=1, average_last=2)
    (tmp_path / "toy.yaml").write_text(dump_config(config), "utf-8")

    def start(run_dir: Path, before: Callable[[], None] | None = None) -> MT:
        return MT("train", "--config", tmp_path / "toy.yaml", "--run-dir", run_dir, before=before)

    assert start(tmp_path / "whole").wait() == 0
    parts = tmp_path / "parts"
    assert kill_at(start(parts, never_finish_saving_step_15), parts, step=12, in_save=True, delay=0) == Kill(15, True)
    kill = kill_at(start(parts, never_finish_step_33), parts, step=31, in_save=False, delay=0.003)
    assert kill in (Kill(31, False), Kill(32, False))
    last = start(parts)
    _, told = last.communicate(timeout=100)
    assert last.returncode == 0, told
    assert "training from step 30:" in told.decode()
    assert_same_run(tmp_path / "whole", parts, 60)


N_UPDATES, N_KILLS = 400, 50


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path,
        max_steps=N_UPDATES,
        log_every=1,
        checkpoint_every=8,
        validate_every=25,
        peak_lr=2e-3,
        keep_last=3,
        keep_best=2,
        keep_every=80,
        average_last=3,
    )
    started_at = time.monotonic()
    assert start(config, tmp_path / "whole").wait() == 0
    straight_seconds = time.monotonic() - started_at
    kinds = kill_often(config, tmp_path / "parts")
    assert start(config, tmp_path / "parts").wait() == 0, (tmp_path / "parts.log").read_text("utf-8")
    seconds = time.monotonic() - started_at - straight_seconds
    print(f"in one go {straight_seconds:.1f} s, with {sum(kinds.values())} kills {seconds:.1f} s: {dict(kinds)}")
    assert kinds.total() == N_KILLS
    assert kinds["starting"] == 10
    assert min(kinds["updating"], kinds["saving"]) >= 5  # the other kills hit one of these by chance
    assert_same_run(tmp_path / "whole", tmp_path / "parts", N_UPDATES)
    assert [path.name for path in RunFolder(tmp_path / "whole").best_checkpoints(2)] == [
        path.name for path in RunFolder(tmp_path / "parts").best_checkpoints(2)
    ]


def start(config: RunConfig, run_dir: Path) -> Fork:
    return Fork(run_dir.with_suffix(".log"), train_run, config, run_dir)


def kill_often(config: RunConfig, run_dir: Path) -> Counter[str]:
    """Start and kill training, at moments spread over the run. Return the number of kills by kind of moment."""
    chance, kinds, done = random.Random(1), Counter[str](), 0
    moments = ["starting"] * 10 + ["updating"] * 20 + ["saving"] * 20
    chance.shuffle(moments)
    for i, kind in enumerate(moments):
        child = start(config, run_dir)
        if kind == "starting":
            time.sleep(chance.uniform(0, 0.25))  # imports are done: this is between the lock and the first updates
            child.kill()
            assert child.wait() < 0
            kinds[kind] += 1
            continue
        first, last = (1 + n * (N_UPDATES - 1) // N_KILLS for n in (i, i + 1))
        step = max(chance.randrange(first, last), done + 1)
        # A save takes about 20 ms here, an update about 5 ms.
        delay = chance.uniform(0, 0.015 if kind == "saving" else 0.005)
        kill = kill_at(child, run_dir, step, kind == "saving", delay)
        kinds["saving" if kill.while_saving else "updating"] += 1
        done = kill.step
    return kinds
