"""scripts/gpu_check.sh: its parts, their records, the report, and errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_check
import numpy as np
import pytest
import torch
from gpu_check import PARTS, Part, PartFailed, Record, Setting
from plumbing import CommandFailed, run_mt

ROOT = Path(__file__).resolve().parent.parent


def check(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def setting_for(folder: Path, **changes: Any) -> Setting:
    return replace(Setting(None, folder, "cpu", quick=True), **changes)


# --- Parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[28] * 20, [4, 64, 9, 30]])
def test_attention_is_timed_and_compared_with_float32(lengths: list[int]) -> None:
    cpu = torch.device("cpu")
    *others, (padded, figures) = gpu_check.time_attention(np.array(lengths), cpu, n_repeats=1)
    assert [one for _, one in others] == [{"error": "needs CUDA"}] * 2
    assert padded == "padded scaled_dot_product_attention"
    assert 0 < figures["relative_error"] < gpu_check.TOLERANCE
    milliseconds = figures["forward_and_backward_ms"]
    assert 0 < figures["forward_ms"] < milliseconds
    assert figures["tokens_per_second"] == pytest.approx(1000 * sum(lengths) / milliseconds)


def test_the_result_of_each_bench_variant_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(*command: str) -> str:
        assert "--set=train.device=cuda:0" in command
        assert "--steps" in command  # fewer than by default, because there is little time
        if "--set=train.compile=false" in command:
            raise CommandFailed("boom")
        return json.dumps({"number": len(kept)})

    kept: list[str] = []
    monkeypatch.setattr(gpu_check, "run_mt", bench)
    setting = setting_for(tmp_path, device="cuda:0", quick=False, limit_seconds=100)
    with pytest.raises(PartFailed, match=r"^25,000, not compiled: boom$"):
        gpu_check.run_bench("base", setting, lambda figures: kept.append(json.dumps(figures)))
    results: list[dict[str, Any]] = [{"number": i} for i in range(6)]
    results[3] = {"error": "boom"}
    not_run = [{"error": "not run"}] * 6
    assert [list(json.loads(figures).values()) for figures in kept] == [
        results[: i + 1] + not_run[i + 1 :] for i in range(6)
    ]


def test_failing_and_broken_tests_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert 1 == 2, 'numbers differ'\n"
        "@pytest.mark.skip(reason='no device')\n"
        "def test_skips(): pass\n"
    )
    (tmp_path / "test_broken.py").write_text("1 / 0")
    running: list[str | None] = []
    recorder = gpu_check.Recorder(lambda figures: running.append(figures["running"]))
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", str(tmp_path)]
    pytest.main([*options, str(tmp_path)], plugins=[recorder])
    assert (recorder.figures["passed"], recorder.figures["skipped"]) == (1, 1)
    assert recorder.figures["failed"] == {
        "test_broken.py": "ZeroDivisionError: division by zero",
        "test_fails": "AssertionError: numbers differ",
    }
    # Recorded before each test ends, because a test may end the process.
    assert running == ["test_passes", "test_fails", "test_skips"]


def test_a_folder_of_text_becomes_settings(tmp_path: Path) -> None:
    for name in ("train.en.gz", "train.de.gz", "val.en", "val.de", "test_2016.en.gz", "test_2016.de.gz", "test_x.en"):
        (tmp_path / name).touch()

    def pair(src: str, tgt: str) -> str:
        return json.dumps({"src": str(tmp_path / src), "tgt": str(tmp_path / tgt)})

    assert gpu_check.text_settings(tmp_path) == [
        f"data.train=[{pair('train.en.gz', 'train.de.gz')}]",
        f"data.valid={pair('val.en', 'val.de')}",
        f'data.test={{"test_2016": {pair("test_2016.en.gz", "test_2016.de.gz")}}}',
    ]
    (tmp_path / "train.de.gz").unlink()
    with pytest.raises(PartFailed) as caught:
        gpu_check.text_settings(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected pairs of files train.en + train.de, val.en + val.de and test.en + test.de "
        "(or test_NAME.en + test_NAME.de), each plain or with .gz at the end"
    )


def test_the_error_of_a_failed_command_is_its_last_line() -> None:
    with pytest.raises(CommandFailed) as caught:
        run_mt("bench", "--config", "base", "--steps", "0")
    assert str(caught.value) == "mt bench ended with status 2: error: --steps: expected at least 1, got 0"


# --- Records ----------------------------------------------------------------------------------------------------------


def test_a_failed_part_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(setting: Setting, keep: Callable[[Any], None]) -> None:
        keep({"a": 1})
        raise PartFailed("one of two failed")

    def broken(setting: Setting, keep: Callable[[Any], None]) -> None:
        keep({"a": 1})
        keep({"a": 1 / 0})

    monkeypatch.chdir(tmp_path)
    path, setting = tmp_path / "tests.json", setting_for(tmp_path)
    for run, error in ((half, "one of two failed"), (broken, "ZeroDivisionError: division by zero")):
        monkeypatch.setitem(PARTS, "tests", Part("", run, gpu_check.tests_section, seconds=2, least_seconds=1))
        started = Record.begin("tests", setting).write(path)
        gpu_check.run_inside("tests", setting, path)
        assert Record.read(path) == replace(started, outcome="failed", error=error, figures={"a": 1})
        assert started.versions["torch"] == torch.__version__


def test_a_part_that_takes_too_long_is_recorded_as_cut_short(tmp_path: Path) -> None:
    """The limit is shorter than the imports of the process take."""
    record = gpu_check.run_part("tests", setting_for(tmp_path), limit=0.01)
    assert (record.outcome, record.error) == ("cut short", "took longer than 0 s")
    assert Record.read(tmp_path / "tests.json") == record


# --- A budget ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the limits of the parts that are run; no processes are started."""
    given: dict[str, float] = {}

    def run_part(name: str, setting: Setting, limit: float) -> Record:
        given[name] = limit
        record = replace(Record.begin(name, setting), outcome="done", error=None)
        return record.write(setting.out / f"{name}.json")

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    return given


def run_within(folder: Path, names: list[str], seconds_left: list[float], quick: bool = False) -> list[str]:
    """Run parts with these numbers of seconds left before each, and return their outcomes."""
    records = gpu_check.run_parts(names, setting_for(folder, quick=quick), iter(seconds_left).__next__)
    return [record.outcome for record in records]


def test_without_a_budget_every_part_gets_the_same_limit(tmp_path: Path, limits: dict[str, float]) -> None:
    assert run_within(tmp_path, list(PARTS), [math.inf] * 6) == ["done"] * 6
    assert limits == dict.fromkeys(PARTS, gpu_check.LIMIT_SECONDS)


def test_the_most_important_parts_run_first_and_the_tests_leave_time_for_the_others(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    outcomes = run_within(tmp_path, list(PARTS), [468, 330, 110, 12.3, -3, -3])
    assert outcomes == ["done", "done", "done", "left out", "left out", "left out"]
    assert limits == {"tests": 156, "bench-base": 330, "attention": 110}
    assert "**Left out**: it needs at least 20 s (about 60 s in full), and 12 s were left: increase --minutes" in (
        (tmp_path / "report.md").read_text("utf-8").splitlines()
    )


def test_the_last_part_gets_all_that_is_left_up_to_the_limit(tmp_path: Path, limits: dict[str, float]) -> None:
    assert run_within(tmp_path, ["decode", "tests"], [900, 120]) == ["done", "done"]
    assert limits == {"decode": gpu_check.LIMIT_SECONDS, "tests": 120}
    assert run_within(tmp_path, ["train", "bench-big"], [12, 9], quick=True) == ["done", "left out"]


def test_leaving_out_a_part_keeps_the_result_of_an_earlier_run(tmp_path: Path, limits: dict[str, float]) -> None:
    run_within(tmp_path, ["decode"], [100])
    before = (tmp_path / "decode.json").read_text("utf-8")
    assert run_within(tmp_path, ["decode"], [5]) == ["left out"]
    assert (tmp_path / "decode.json").read_text("utf-8") == before


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cuda:1", "", "1"), ("cuda:1", "4,GPU-5", "GPU-5"), ("cuda:0", "", "0"), ("cpu", "3", "3")],
)
def test_a_part_sees_only_its_gpu(device: str, visible: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_check.environment_for(device)["CUDA_VISIBLE_DEVICES"] == expected


# --- The report -------------------------------------------------------------------------------------------------------


def test_the_report_shows_the_parts_that_have_run_as_markdown(tmp_path: Path) -> None:
    timed = {"forward_ms": 0.25, "forward_and_backward_ms": 1.0, "tokens_per_second": 65.5e6, "relative_error": 0.003}
    columns = {"28 tokens each": {"ours": timed, "torch's": {"error": "no kernel"}}, "2 to 64": {"ours": timed}}
    gpu = {"gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_bytes": 80 * 2**30, "cuda": "13.0"}
    record = Record(
        "attention",
        started_at="2026-11-22T10:00:00+00:00",
        quick=False,
        command=[],
        hardware={"cpu": "Some CPU", "threads": 16, **gpu},
        versions={"torch": "2.11.0", "python": "3.12.3"},
        commit="0123456789abcdef0123+changes",
        outcome="failed",
        error="boom",
        seconds=30.0,
        figures={"tokens": 65_536, "heads": 8, "features": 64, "lengths": columns},
    )
    record.write(tmp_path / "attention.json")
    assert gpu_check.write_report(tmp_path) == (tmp_path / "report.md").read_text("utf-8")
    assert (tmp_path / "report.md").read_text("utf-8").splitlines() == [
        "### attention: implementations of attention, timed at 28-token sentences",
        "",
        "**Failed**: boom",
        "",
        "65,536 tokens, 8 heads of 64, bf16. Milliseconds of the forward pass, and of forward and backward; tokens per "
        "second of both.",
        "",
        "|  | 28 tokens each | 2 to 64 |",
        "| --- | --- | --- |",
        "| ours | 0.25 ms, 1 ms; 65.5 M tok/s | 0.25 ms, 1 ms; 65.5 M tok/s |",
        "| torch's | no kernel | not run |",
        "",
        "30 s in all.",
        "",
        "2026-11-22: NVIDIA H100 80GB HBM3 (80 GiB, CUDA 13.0), Some CPU, 16 threads; torch 2.11.0, Python 3.12.3; "
        "commit 0123456789ab+changes.",
    ]


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_list_names_every_part() -> None:
    done = check("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("speed", f"speed: unknown part: give parts ({', '.join(PARTS)}), or only all, list or report"),
        ("--data nowhere train", "--data nowhere: folder not found"),
        ("--device gpu train", "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--out nothing report", "nothing has no results: run a part first"),
        ("--minutes -5 all", "--minutes: expected a number above 0, such as 8, got -5"),
        ("--minutes nan all", "--minutes: expected a number above 0, such as 8, got nan"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(arguments: str, message: str) -> None:
    done = check(*arguments.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_a_missing_python_or_missing_packages_are_reported(tmp_path: Path) -> None:
    assert check("list", PYTHON="nopython").stderr == (
        "error: nopython was not found. Set PYTHON to a Python that has torch.\n"
    )
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    done = check("tests", PYTHON=str(bare))
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {sys.executable} lacks torch, numpy, sentencepiece, sacrebleu, safetensors, tensorboard, typer, rich, "
        "yaml: set PYTHON to a Python that has them\n",
    )


def test_a_budget_too_small_for_any_part_fails(tmp_path: Path) -> None:
    done = check("--minutes", "0.01", "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"scripts/gpu_check.sh: left out: {', '.join(PARTS)}"
    assert done.stdout == (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_every_part_runs_on_this_machine(tmp_path: Path) -> None:
    done = check("--quick", "--out", tmp_path, "all")
    assert done.returncode == 0, done.stderr
    assert [Record.read(tmp_path / f"{name}.json").error for name in PARTS] == [None] * len(PARTS)
    assert (tmp_path / "report.md").read_text("utf-8") == done.stdout
