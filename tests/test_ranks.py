"""Several processes that train together, with gloo on the CPU, started by torchrun or like it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mt.system.distributed
import mt.system.signals
from mt.checkpoint import ModelFolder
from mt.config.loading import dump_config
from mt.config.settings import RunConfig
from mt.errors import MTError
from mt.run_folder import RunFolder, checkpoint_step
from mt.system.distributed import Ranks
from tests.clock import comes_true
from tests.forks import MT, Fork
from tests.toys import RICH, measured, toy_config

REPOSITORY = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def arguments(config: RunConfig, run_dir: Path, *settings: str) -> list[str | Path]:
    path = run_dir.with_suffix(".yaml")
    path.write_text(dump_config(config), "utf-8")
    options = [option for setting in settings for option in ("--set", setting)]
    return ["train", "--config", path, "--run-dir", run_dir, *options]


@contextmanager
def ranks(n: int, *words: object, before: Callable[[], None] | None = None) -> Iterator[list[MT]]:
    """Start `n` ranks like torchrun, but without a supervisor: if one ends, nothing ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "OMP_NUM_THREADS": "1"}
    with ExitStack() as held:
        yield [
            held.enter_context(
                MT(*words, environment={**told, "RANK": str(rank), "LOCAL_RANK": str(rank)}, before=before)
            )
            for rank in range(n)
        ]


def train_with(n_ranks: int, *words: object) -> tuple[str, str]:
    """Train to the end, and return the standard output and the standard error of all ranks."""
    with ranks(n_ranks, *words) as started:
        said = [rank.communicate(timeout=120) for rank in started]
        assert [rank.returncode for rank in started] == [0] * n_ranks, said
    return b"".join(out for out, _ in said).decode(), b"".join(errors for _, errors in said).decode()


@pytest.mark.parametrize("variant", [{}, RICH], ids=["default", "rich"])
def test_two_ranks_make_the_same_updates_as_one_and_their_number_may_change(
    tmp_path: Path, variant: dict[str, Any]
) -> None:
    # Dropout is on: it depends on the micro-batch, not on the rank that computes it.
    config = toy_config(tmp_path, micro_batch_tokens=64, max_steps=12, log_every=1, validate_every=4)
    config = replace(config, model=replace(config.model, **variant))
    config = replace(config, train=replace(config.train, optimizer="muon" if variant else "adam"))
    assert config.model.dropout > 0
    train_with(1, *arguments(config, tmp_path / "one"))
    for n_ranks, max_steps in ((2, 6), (1, 9), (2, 12)):
        out, told = train_with(n_ranks, *arguments(config, tmp_path / "changing", f"train.max_steps={max_steps}"))
    assert "on 2 ranks (cpu) in fp32, 256 target tokens per update in 4 micro-batches" in told
    # Messages and the report are printed by one rank only.
    assert told.count("training from step 9") == out.count("held_out (20 lines)") == 1
    assert len(measured(tmp_path / "one", "train_loss")) == 12
    for key in ("train_loss", "grad_norm"):
        changing, one = (dict(measured(tmp_path / run, key)) for run in ("changing", "one"))
        assert changing == pytest.approx(one, rel=1e-5), key
    reports = [json.loads((tmp_path / run / "report.json").read_text("utf-8")) for run in ("one", "changing")]
    for key in ("steps", "n_src_tokens", "n_tgt_tokens"):
        assert reports[0][key] == reports[1][key], key


LOST = (
    r"error: rank 0: lost another rank \((connection (closed|reset) by peer|broken pipe)\)\. See the message of that "
    r"rank or of torchrun; the same command continues from the last checkpoint\."
)

STUCK = (
    "error: rank 0: still running [0-9.]+ s after SIGTERM, because another rank was lost or a step or save is slow: "
    "see torchrun's message; the same command continues from the last checkpoint"
)


def be_terminated_before_reporting() -> None:
    """Let torchrun's SIGTERM arrive when the rank has noticed the loss of another rank but not yet reported it."""
    why = mt.system.distributed._lost_rank_reason

    def terminated(error: RuntimeError) -> str | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return why(error)

    mt.system.distributed._lost_rank_reason = terminated


@pytest.mark.parametrize("before", [None, be_terminated_before_reporting])
def test_if_a_rank_dies_the_others_end_with_a_message(tmp_path: Path, before: Callable[[], None] | None) -> None:
    run_dir = tmp_path / "run"
    with ranks(2, *arguments(endless(tmp_path), run_dir), before=before) as (first, second):
        wait_for_checkpoints(run_dir, first)
        second.kill()
        _, told = first.communicate(timeout=60)
        assert first.returncode == 2
    assert re.fullmatch(LOST, told.decode().splitlines()[-1])
    assert_complete(run_dir)


@pytest.mark.slow
def test_a_rank_reports_a_dead_rank_even_if_torchrun_notices_first(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with torchrun(endless(tmp_path), run_dir) as (job, (first, second)):
        os.kill(first, signal.SIGSTOP)  # so that it does not notice
        os.kill(second, signal.SIGKILL)
        while not is_pending(signal.SIGTERM, first):
            time.sleep(0.01)
        os.kill(first, signal.SIGCONT)
        _, messages = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "exitcode  : -9" in messages
    # A gloo operation with a lost rank sometimes hangs.
    assert [line for line in messages.splitlines() if re.fullmatch(f"{LOST}|{STUCK}", line)], messages
    assert_complete(run_dir)


def test_a_signal_to_one_rank_saves_and_ends_the_whole_job(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with ranks(2, *arguments(endless(tmp_path), run_dir)) as (first, second):
        wait_for_checkpoints(run_dir, first)
        os.kill(second.pid, signal.SIGTERM)
        _, told = first.communicate(timeout=60)
        second.wait(60)
        assert (first.returncode, second.returncode) == (143, 143)
    assert_all_is_saved(run_dir, told.decode())


def test_a_signal_to_every_process_saves_and_ends_the_whole_job(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with torchrun(endless(tmp_path), run_dir) as (job, processes):
        for process in [job.pid, *processes]:
            os.kill(process, signal.SIGTERM)
        _, messages = job.communicate(timeout=120)
    assert job.returncode != 0
    assert_all_is_saved(run_dir, messages)


def endless(folder: Path) -> RunConfig:
    return toy_config(folder, max_steps=1_000_000, validate_every=1_000_000, checkpoint_every=20)


def assert_all_is_saved(run_dir: Path, told: str) -> None:
    stopped = re.search(r"^stopped after step ([\d,]+); everything is saved in ", told, re.MULTILINE)
    assert stopped is not None, told
    assert checkpoint_step(RunFolder(run_dir).checkpoints()[-1]) == int(stopped[1].replace(",", ""))
    assert_complete(run_dir)


def assert_complete(run_dir: Path) -> None:
    assert [path.name for path in run_dir.rglob(".*")] == []  # no partial files
    ModelFolder.open(RunFolder(run_dir).checkpoints()[-1]).load_training_state()


def wait_for_checkpoints(run_dir: Path, process: MT | subprocess.Popen[str]) -> None:
    while len(RunFolder(run_dir).checkpoints()) < 2:
        assert process.poll() is None
        time.sleep(0.05)


@contextmanager
def torchrun(config: RunConfig, run_dir: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a training of two ranks. Yield the job and the processes of the ranks when it has checkpoints."""
    command = [*TORCHRUN, "-m", "mt", *map(str, arguments(config, run_dir))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as job:
        try:
            wait_for_checkpoints(run_dir, job)
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text("ascii").split()
            processes = {rank_of(int(child)): int(child) for child in children}
            yield job, [processes["0"], processes["1"]]
        except BaseException:
            job.kill()
            raise


def is_pending(number: int, process: int) -> bool:
    """Return whether a signal has been sent to a stopped process."""
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{process}/status").read_text("ascii"), re.MULTILINE)
    return bool(int(pending, 16) >> (number - 1) & 1)


def rank_of(process: int) -> str:
    settings = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return next((setting[5:] for setting in settings if setting.startswith("RANK=")), "")


def test_if_rank_0_cannot_prepare_all_ranks_end_and_the_reason_is_printed_once(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    (tmp_path / "train.de").unlink()
    with ranks(2, *arguments(config, tmp_path / "run"), before=wait_for_rank_0_briefly) as (first, second):
        _, reason = first.communicate(timeout=60)
        _, pointer = second.communicate(timeout=60)
        assert (first.returncode, second.returncode) == (2, 2)
    assert reason.decode().startswith(f"error: {tmp_path / 'train.de'}: no such file")
    assert pointer == b"error: rank 1: rank 0 could not start. See its message.\n"


def wait_for_rank_0_briefly() -> None:
    mt.system.distributed.RANK_0_EXIT_SECONDS = 0.1


def test_a_terminated_rank_has_limited_time_for_its_error_message(tmp_path: Path) -> None:
    for words, status, said in (("", 143, ""), ("words", 7, "words\n")):
        fork = Fork(tmp_path / f"log{status}", be_terminated, words)
        assert fork.wait(60) == status
        assert (tmp_path / f"log{status}").read_text("utf-8") == said


def be_terminated(words: str) -> None:
    mt.system.signals.SIGTERM_GRACE_SECONDS = 60 if words else 0.2
    with suppress(RuntimeError), mt.system.signals.sigterm_grace_period(0):
        raise RuntimeError
    os.kill(os.getpid(), signal.SIGTERM)
    if not words:
        time.sleep(100)
    print(words, flush=True)
    raise SystemExit(7)


def test_a_stuck_rank_prints_a_message_before_torchrun_kills_it(tmp_path: Path) -> None:
    fork = Fork(tmp_path / "log", be_stuck)
    assert fork.wait(60) == 2
    assert re.fullmatch(STUCK, (tmp_path / "log").read_text("utf-8").removesuffix("\n"))


def be_stuck() -> None:
    """Block where Python runs no signal handlers, as in a network operation that does not end."""
    os.environ["TORCHELASTIC_RUN_ID"] = "any"
    mt.system.signals.STUCK_AFTER_SIGTERM_SECONDS = 0.2
    with mt.system.signals.sigterm_grace_period(0):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)


def test_a_rank_that_has_finished_is_not_reported_as_stuck(tmp_path: Path) -> None:
    fork = Fork(tmp_path / "log", be_terminated_at_the_end)
    assert fork.wait(120) == 0
    assert (tmp_path / "log").read_text("utf-8") == "on\n"


def be_terminated_at_the_end() -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "any"
    n_threads, before = threading.active_count(), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with mt.system.signals.sigterm_grace_period(0):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as in training, which then stops at the next update
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.signal(signal.SIGTERM, before)
    if comes_true(lambda: threading.active_count() == n_threads):  # the thread that would end the process is gone
        print("on", flush=True)


def test_ranks_are_read_from_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(MTError) as caught:
        Ranks.from_environment()
    assert str(caught.value) == (
        "WORLD_SIZE is 8, but RANK or LOCAL_RANK is missing or not a number ('RANK'). Start several processes with "
        "torchrun, or unset WORLD_SIZE."
    )
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Ranks.from_environment() == Ranks(5, 8, 1)
    assert not Ranks.from_environment().is_first
