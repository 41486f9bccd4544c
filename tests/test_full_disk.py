"""Training through the command line on a disk that is too small: a real file system of a few megabytes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mt.checkpoint import ModelFolder
from mt.config.loading import dump_config
from mt.config.settings import RunConfig
from mt.run_folder import RunFolder
from tests.toys import toy_config

REMEDY = "No space left on device. Free some space, then run the same command again."


def in_a_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount file systems. Its mounts disappear when it ends."""
    try:
        command = ["unshare", "--map-root-user", "--mount", "bash", "-eu", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, timeout=110)
    except FileNotFoundError:
        pytest.skip("needs unshare")


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Return a mount point for a small disk. Skip the test if mounting is not possible."""
    disk = tmp_path / "disk"
    disk.mkdir()
    tried = in_a_namespace(f"mount -t tmpfs -o size=64k tmpfs {disk}")
    if tried.returncode != 0:
        pytest.skip(f"cannot mount a file system: {tried.stderr.strip()}")
    return disk


def write_config(path: Path, config: RunConfig) -> Path:
    path.write_text(dump_config(config), "utf-8")
    return path


def mt_train(config: Path, run_dir: Path) -> str:
    return shlex.join([sys.executable, "-m", "mt", "train", "--config", str(config), "--run-dir", str(run_dir)])


def test_a_full_disk_stops_training_and_the_same_command_continues(tmp_path: Path, small_disk: Path) -> None:
    config = write_config(tmp_path / "toy.yaml", toy_config(tmp_path, max_steps=24, average_last=1, keep_last=9))
    run_dir, seen = small_disk / "run", tmp_path / "seen"
    command = mt_train(config, run_dir)
    done = in_a_namespace(f"""
        mount -t tmpfs -o size=3m tmpfs {small_disk}
        status=0; {command} 2> {tmp_path}/first.err || status=$?
        test $status = 2; cp -a {run_dir} {seen}-first
        cat /dev/zero > {small_disk}/filler || true
        status=0; {command} 2> {tmp_path}/second.err || status=$?
        test $status = 2; cp -a {run_dir} {seen}-second
        mount -o remount,size=64m {small_disk}
        {command} 2> {tmp_path}/third.err; cp -a {run_dir} {seen}-third
    """)
    assert done.returncode == 0, done.stderr + (tmp_path / "first.err").read_text("utf-8")
    *_, last = RunFolder(tmp_path / "seen-first").checkpoints()
    step = int(last.name[5:])
    assert 4 <= step < 24

    *_, error = (tmp_path / "first.err").read_text("utf-8").splitlines()
    assert error == f"error: {RunFolder(run_dir).checkpoint(step + 4)} cannot be written: {REMEDY}"
    ModelFolder.open(last).load_weights()
    ModelFolder.open(last).load_training_state()
    assert [path.name for path in (tmp_path / "seen-first").rglob(".*")] == []

    # The disk is completely full: not even the config of another start fits.
    *_, error = (tmp_path / "second.err").read_text("utf-8").splitlines()
    assert error == f"error: {run_dir / 'config.yaml'} cannot be written: {REMEDY}"
    assert RunFolder(tmp_path / "seen-second").checkpoints()[-1].name == last.name

    assert f"training from step {step}" in (tmp_path / "third.err").read_text("utf-8")
    assert ModelFolder.open(tmp_path / "seen-third" / "model").manifest["averaged_steps"] == [24]


def test_a_disk_too_full_for_metrics_stops_training_with_one_line(tmp_path: Path, small_disk: Path) -> None:
    endless = toy_config(tmp_path, max_steps=10_000, log_every=1, validate_every=10_000, checkpoint_every=10_000)
    config = write_config(tmp_path / "toy.yaml", endless)
    done = in_a_namespace(f"mount -t tmpfs -o size=64k tmpfs {small_disk}; {mt_train(config, small_disk / 'run')}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    *_, error = done.stderr.splitlines()
    metrics, events = (f"error: {small_disk / 'run'}/{name}" for name in ("metrics.jsonl", "tensorboard/events.out."))
    assert error.startswith((metrics, events))
    assert error.endswith(f"cannot be written: {REMEDY}")
