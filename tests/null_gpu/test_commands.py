"""The commands on a null GPU, from end to end. Their numbers have no meaning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, status: int = 0, **variables: str) -> str:
    """Run Python with these arguments; return its standard output and standard error together."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def mt(*arguments: str, status: int = 0, **variables: str) -> str:
    return run("-m", "mt", *arguments, status=status, **variables)


def short(folder: Path, *more: str) -> list[str]:
    settings = ["train.max_steps=5", "train.warmup_steps=2", "train.validate_every=3", "train.checkpoint_every=2"]
    settings += [f"data.prepared_dir={json.dumps(str(folder / 'prepared'))}", *more]
    return ["--config", "demo", *(f"--set={setting}" for setting in settings)]


@pytest.mark.null_gpu
def test_the_demo_trains_and_translates(tmp_path: Path) -> None:
    told = mt("train", *short(tmp_path), "--run-dir", str(tmp_path / "run"))
    assert "on cuda:0 in bf16, compiled" in told
    assert (tmp_path / "run" / "report.html").is_file()
    (tmp_path / "in.en").write_text("A dog plays.\n\nTwo cats sleep.\n")
    model = ("--model", str(tmp_path / "run"))
    mt("translate", *model, "--input", str(tmp_path / "in.en"), "--output", str(tmp_path / "out.de"))
    assert (tmp_path / "out.de").read_text().count("\n") == 3
    assert "cuda:0 (NVIDIA H100) in bf16" in mt("bench", *model, "--input", str(tmp_path / "in.en"))


@pytest.mark.null_gpu
def test_bench_dry_run_and_doctor_use_the_card(tmp_path: Path) -> None:
    mt("prepare", *short(tmp_path))
    assert "cuda:0 (NVIDIA H100) in bf16, compiled" in mt("bench", *short(tmp_path), "--steps", "3")
    assert "cuda:0" in mt("train", *short(tmp_path), "--dry-run", "--run-dir", str(tmp_path / "run"))
    assert "cuda:0" in mt("doctor", *short(tmp_path))


@pytest.mark.null_gpu(gib=1.6)
def test_a_training_that_runs_out_of_memory_ends_with_the_same_updates(tmp_path: Path) -> None:
    settings = ["train.batch_tokens=60000", "train.micro_batch_tokens=60000", "train.compile=false"]
    told = mt("train", *short(tmp_path, *settings), "--run-dir", str(tmp_path / "run"))
    assert "out of memory on cuda:0" in told
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 5


@pytest.mark.null_gpu(n_devices=2)
def test_two_ranks_train_on_two_devices(tmp_path: Path) -> None:
    """The fake NCCL counts sums over ranks but exchanges nothing. The host communicates over gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tests/null_gpu/rank.py", "train"]
    told = run(*launcher, *short(tmp_path, "train.compile=false"), "--run-dir", str(tmp_path / "run"))
    assert "on 2 ranks (cuda) in bf16" in told
    # Each rank sums its gradients in each update; DDP also communicates when it starts.
    assert all(int(n) > 5 for n in re.findall(r"collectives: (\d+)", told))
    assert told.count("collectives: ") == 2
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 5


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    ("settings", "variables", "problem"),
    [
        (["train.device=cuda:9"], {}, "error: train.device: cuda:9 was requested, but the last CUDA device is cuda:0"),
        (
            ["train.device=cuda:0"],
            {"NULL_GPU_CAPABILITY": "70", "NULL_GPU_NAME": "Tesla V100"},
            "no code for Tesla V100 (compute capability 7.0; it has sm_75",
        ),
        ([], {"NULL_GPU_GIB": "0.01"}, "parameters needs 18.1 MiB of memory, but cuda:0 has 10.0 MiB. Reduce"),
    ],
    ids=["cuda:9", "too old", "too small"],
)
def test_unsupported_cards_and_devices_are_reported_in_one_line(
    tmp_path: Path, settings: list[str], variables: dict[str, str], problem: str
) -> None:
    told = mt("train", *short(tmp_path, *settings), "--run-dir", str(tmp_path / "run"), status=2, **variables)
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert problem in line
    assert "Warning" not in told
    assert not (tmp_path / "prepared").exists()  # the error comes before the data is prepared, which may take hours


@pytest.mark.null_gpu
@pytest.mark.parametrize("capability", ["61", "70"])  # torch has a different warning for each
def test_auto_uses_the_cpu_with_a_note_if_torch_has_no_code_for_the_card(capability: str) -> None:
    program = (
        "from mt.system.console import show_messages; from mt.system.device import choose_device; show_messages(); "
        "print(choose_device('auto'), choose_device('auto'))"
    )
    told = run("-c", program, NULL_GPU_CAPABILITY=capability)
    assert told.endswith("cpu cpu\n")
    assert told.count("note: running on the CPU: torch") == 1
    assert "Warning" not in told


@pytest.mark.slow
@pytest.mark.null_gpu
def test_gpu_check_runs_all_parts(tmp_path: Path) -> None:
    """The parts that compare values fail here, as they should. The others give figures."""
    out = tmp_path / "out"
    run("scripts/gpu_check.py", "--quick", "--out", str(out), "all", status=1)
    failed = {path.stem for path in out.glob("*.json") if json.loads(path.read_text())["error"]}
    assert failed <= {"tests", "attention"}
    assert {path.stem for path in out.glob("*.json")} == {
        "tests",
        "attention",
        "bench-base",
        "bench-big",
        "decode",
        "train",
    }
