"""Several processes that train together, started by torchrun, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mt.checkpoint import checkpoint_step, checkpoints
from mt.config import RunConfig
from mt.configfile import dump_config
from mt.errors import MTError
from mt.runtime import Ranks
from tests.toys import toy_config

REPOSITORY = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def command(n_ranks: int, config: RunConfig, run_dir: Path, *settings: str) -> list[str]:
    path = run_dir.with_suffix(".yaml")
    path.write_text(dump_config(config), "utf-8")
    start = [sys.executable] if n_ranks == 1 else [*TORCHRUN, str(n_ranks)]
    options = [option for setting in settings for option in ("--set", setting)]
    return [*start, "-m", "mt", "train", "--config", str(path), "--run-dir", str(run_dir), *options]


def train_with(n_ranks: int, config: RunConfig, run_dir: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(n_ranks, config, run_dir, *settings), env=environment(), capture_output=True, text=True, timeout=120
    )


def losses(run_dir: Path, key: str) -> list[float]:
    entries = map(json.loads, (run_dir / "metrics.jsonl").read_text("utf-8").splitlines())
    return [entry[key] for entry in entries if key in entry]


def test_two_ranks_make_the_updates_of_one_and_their_number_may_change_on_the_way(tmp_path: Path) -> None:
    # Dropout is on: it depends on the slice, not on the rank that computes it.
    config = toy_config(tmp_path, micro_batch_tokens=64, max_steps=12, log_every=1, validate_every=4)
    assert config.model.dropout > 0
    assert train_with(1, config, tmp_path / "one").returncode == 0
    for n_ranks, max_steps in ((2, 6), (1, 9), (2, 12)):
        done = train_with(n_ranks, config, tmp_path / "changing", f"train.max_steps={max_steps}")
        assert done.returncode == 0, done.stderr
    assert "on 2 ranks (cpu) in fp32, 256 target tokens an update in 4 slices" in done.stderr
    # What is said is said once, and so is the report.
    assert done.stderr.count("training from step 9") == done.stdout.count("held_out (20 lines)") == 1
    assert len(losses(tmp_path / "one", "train_loss")) == 12
    for key in ("train_loss", "grad_norm"):
        assert losses(tmp_path / "changing", key) == pytest.approx(losses(tmp_path / "one", key), rel=1e-5), key
    reports = [json.loads((tmp_path / run / "report.json").read_text("utf-8")) for run in ("one", "changing")]
    for key in ("steps", "n_src_tokens", "n_tgt_tokens"):
        assert reports[0][key] == reports[1][key], key


def test_a_rank_that_dies_ends_the_job_with_a_message(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=1_000_000, validate_every=1_000_000, checkpoint_every=20)
    with running(config, tmp_path / "run") as (job, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        _, messages = job.communicate(timeout=30)
    assert job.returncode != 0
    assert "exitcode  : -9" in messages
    message = re.search(r"^error: rank 0: .*$", messages, re.MULTILINE)
    assert message is not None
    assert re.fullmatch(
        r"error: rank 0: lost another rank \((connection (closed|reset) by peer|broken pipe)\): see that rank's "
        "message or torchrun's; the same command goes on from the last checkpoint",
        message[0],
    )
    assert checkpoints(tmp_path / "run")


@pytest.mark.parametrize("whom", ["rank 0 alone", "every process of the job"])
def test_a_signal_saves_and_ends_all_ranks_whoever_gets_it(tmp_path: Path, whom: str) -> None:
    config = toy_config(tmp_path, max_steps=1_000_000, validate_every=1_000_000, checkpoint_every=20)
    with running(config, tmp_path / "run") as (job, ranks):
        for process in [ranks[0]] if whom == "rank 0 alone" else [job.pid, *ranks]:
            os.kill(process, signal.SIGTERM)
        _, messages = job.communicate(timeout=30)
    stopped = re.search(r"^stopped after step ([\d,]+), all of it saved in ", messages, re.MULTILINE)
    assert stopped is not None, messages
    assert checkpoint_step(checkpoints(tmp_path / "run")[-1]) == int(stopped[1].replace(",", ""))


@contextmanager
def running(config: RunConfig, run_dir: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Two ranks in the middle of a training, and their processes."""
    # torchrun looks after its processes less often, so that they have the time to speak for themselves.
    started = [*TORCHRUN[:-1], "--monitor-interval", "3", TORCHRUN[-1]]
    arguments = [*started, *command(2, config, run_dir)[len(TORCHRUN) :]]
    with subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as job:
        try:
            while len(checkpoints(run_dir)) < 2:
                assert job.poll() is None
                time.sleep(0.05)
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text("ascii").split()
            ranks = {rank_of(int(child)): int(child) for child in children}
            yield job, [ranks["0"], ranks["1"]]
        except BaseException:
            job.kill()
            raise


def rank_of(process: int) -> str:
    settings = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return next((setting[5:] for setting in settings if setting.startswith("RANK=")), "")


def test_when_rank_0_cannot_prepare_all_end_and_the_reason_is_told_once(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "train.de").unlink()
    done = train_with(2, config, tmp_path / "run")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (reason,) = (line for line in told if "rank 1" not in line)
    assert reason.startswith(f"error: {tmp_path / 'train.de'}: no such file")
    # torchrun may end rank 1 before it can say anything.
    assert {*told} - {reason} <= {"error: rank 1: rank 0 could not begin: see its message"}


def test_ranks_are_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(MTError) as caught:
        Ranks.from_environment()
    assert str(caught.value) == (
        "WORLD_SIZE is 8, but RANK or LOCAL_RANK is missing or no number ('RANK'): start several processes with "
        "torchrun, or unset WORLD_SIZE"
    )
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Ranks.from_environment() == Ranks(5, 8, 1)
    assert not Ranks.from_environment().is_first
