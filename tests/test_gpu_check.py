"""The parts of scripts/gpu_check.sh: what they measure, what they write down, and what they say when it goes wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


candidates = load_script("attention_candidates")
gpu_check = load_script("gpu_check")
CPU = torch.device("cpu")


def check(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


# --- Attention candidates ---------------------------------------------------------------------------------------------

EAGER = [one for one in candidates.CANDIDATES if one.on_cpu is None and not one.compiles]
COMPILED = [one for one in candidates.CANDIDATES if one.on_cpu is None and one.compiles]


def uncompiled(candidate: Any) -> Any:
    return candidates.Candidate(candidate.name, candidate.make, candidate.rows)


@pytest.mark.parametrize("kind", ["equal", "mixed"])
@pytest.mark.parametrize("candidate", [*EAGER, *map(uncompiled, COMPILED)], ids=lambda one: one.name)
def test_a_candidate_computes_attention_and_its_gradients(candidate: Any, kind: str) -> None:
    problem = candidates.make_problem(candidates.lengths_of(kind, 500), torch.float32, n_heads=2, n_features=16)
    figures = candidates.measure(candidate, problem, CPU, n_repeats=1)
    assert "error" not in figures
    assert figures["relative_error"] < 1e-5
    assert figures["forward_ms"] > 0
    n_tokens = problem.lengths.sum()
    assert figures["tokens_per_second"] == pytest.approx(1000 * n_tokens / figures["forward_and_backward_ms"])


def test_the_sentences_are_those_of_translation() -> None:
    equal, mixed = (candidates.lengths_of(kind, 65_536) for kind in ("equal", "mixed"))
    assert set(equal) == {28}
    assert equal.sum() == pytest.approx(65_536, abs=28)
    assert mixed.mean() == pytest.approx(28, rel=0.02)
    assert (mixed.min(), mixed.max()) == (4, 64)


def test_flex_attention_gets_the_blocks_that_hold_common_sentences() -> None:
    lengths = candidates.lengths_of("mixed", 3_000)
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    first, last = candidates.blocks_of_sentences(lengths)
    blocks = [set(sentence[start : start + 128]) for start in range(0, len(sentence), 128)]
    for i, block in enumerate(blocks):
        needed = [j for j, other in enumerate(blocks) if block & other]
        assert (first[i], last[i]) == (needed[0], needed[-1])


def test_a_candidate_that_computes_something_else_gets_no_figures() -> None:
    wrong = candidates.Candidate("wrong", lambda lengths, device, dtype: lambda q, k, v: q * 0 + k * 0 + v)
    problem = candidates.make_problem(candidates.lengths_of("equal", 300), torch.float32, n_heads=2, n_features=16)
    figures = candidates.measure(wrong, problem, CPU)
    assert figures["error"].startswith("its values are off by ")
    assert "tokens_per_second" not in figures


def test_a_candidate_that_cannot_run_says_why() -> None:
    def fail(lengths: Any, device: Any, dtype: Any) -> Any:
        raise RuntimeError("no kernel\nand many more lines")

    problem = candidates.make_problem(candidates.lengths_of("equal", 60), torch.float32, n_heads=1, n_features=8)
    assert candidates.measure(candidates.Candidate("fails", fail), problem, CPU) == {"error": "RuntimeError: no kernel"}
    flash = candidates.CANDIDATES[0]
    assert candidates.measure(flash, problem, CPU) == {"error": "needs CUDA"}


# --- Parts ------------------------------------------------------------------------------------------------------------


def setting_for(folder: Path, data: Path | None = None) -> Any:
    return gpu_check.Setting(data, folder, "cpu", True)


def test_the_list_names_every_part() -> None:
    done = check("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "tests",
        "bench-base",
        "attention",
        "decode",
        "train",
        "bench-big",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["speed"],
            "speed: no such part: there are tests, bench-base, attention, decode, train, bench-big; "
            "or all, list, report alone",
        ),
        (["--data", "nowhere", "train"], "--data nowhere: no such folder"),
        (["--device", "gpu", "train"], "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--out", "nothing", "report"], "nothing: has no results: run a part first"),
        *(
            (["--minutes", given, "all"], f"--minutes: expected a number above 0, such as 8, got '{given}'")
            for given in ("0", "-5", "8m", "nan", "")
        ),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(arguments: list[str], message: str) -> None:
    done = check(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_a_python_without_the_packages_is_named(tmp_path: Path) -> None:
    assert check("list", PYTHON="nopython").stderr == (
        "error: nopython: not found: set PYTHON to a Python that has torch\n"
    )
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    done = check("tests", PYTHON=str(bare))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {sys.executable} lacks torch, numpy, sentencepiece, sacrebleu, safetensors, tensorboard, typer, rich, "
        "yaml: set PYTHON to a Python that has them\n"
    )


# Stands in for the process of a part.
STAND_IN = """
import json, os, pathlib, sys, time
path = pathlib.Path(sys.argv[sys.argv.index("--inside") + 1])
def enter(**end):
    path.write_text(json.dumps({**json.loads(path.read_text()), **end}))
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (folder / "part.py").write_text(STAND_IN + code)
    monkeypatch.setattr(gpu_check, "__file__", str(folder / "part.py"))


def test_a_part_leaves_its_figures_and_what_it_ran_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "enter(outcome='done', error=None, figures={'passed': 3, 'limit': sys.argv[4]})")
    record = gpu_check.run_part("tests", setting_for(tmp_path), 90)
    assert json.loads((tmp_path / "tests.json").read_text("utf-8")) == record
    assert (record["part"], record["outcome"], record["error"]) == ("tests", "done", None)
    assert record["figures"] == {"passed": 3, "limit": "90"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["threads"] == torch.get_num_threads()


def test_a_part_that_dies_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "enter(figures={'a': 1}); os._exit(7)")
    record = gpu_check.run_part("attention", setting_for(tmp_path))
    assert (record["outcome"], record["error"], record["figures"]) == ("failed", "ended with status 7", {"a": 1})


def test_a_part_whose_time_is_up_keeps_the_figures_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_figures = tmp_path / "has_figures"

    class Process(subprocess.Popen[bytes]):
        """Its time is up when it has figures."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            while not has_figures.exists():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(gpu_check, "_basis", lambda device: {})
    monkeypatch.setattr(subprocess, "Popen", Process)
    code = f"enter(figures={{'a': 1}}); open({str(has_figures)!r}, 'w'); time.sleep(600)"
    stand_in(tmp_path, monkeypatch, code)
    record = gpu_check.run_part("attention", setting_for(tmp_path), 158.25)
    assert (record["outcome"], record["error"]) == ("cut short", "took longer than 158 s")
    assert json.loads((tmp_path / "attention.json").read_text("utf-8"))["figures"] == {"a": 1}


def test_what_a_part_finds_wrong_comes_with_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(setting: Any, keep: Any) -> None:
        keep({"a": 1})
        raise gpu_check.PartFailed("one of two failed")

    def broken(setting: Any, keep: Any) -> None:
        keep({"a": 1})
        keep({"a": 1 / 0})

    path = tmp_path / "result.json"
    for run, error in ((half, "one of two failed"), (broken, "ZeroDivisionError: division by zero")):
        monkeypatch.setitem(gpu_check.PARTS, "tests", gpu_check.Part("", run, seconds=2, least_seconds=1))
        path.write_text("{}")
        gpu_check.run_inside("tests", setting_for(tmp_path), path)
        assert json.loads(path.read_text("utf-8")) == {"outcome": "failed", "error": error, "figures": {"a": 1}}


def test_each_variant_of_a_bench_is_kept_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(command: list[str]) -> str:
        assert "--set=train.device=cuda:0" in command
        assert "--steps" in command  # fewer, for there is little time
        if "--set=train.compile=false" in command:
            raise gpu_check.PartFailed("boom")
        return json.dumps({"number": len(kept)})

    kept: list[str] = []
    monkeypatch.setattr(gpu_check, "_mt", bench)
    setting = gpu_check.Setting(None, tmp_path, "cuda:0", False, limit_seconds=100)
    with pytest.raises(gpu_check.PartFailed, match=r"^25,000, not compiled: boom$"):
        gpu_check.run_bench("base", setting, lambda figures: kept.append(json.dumps(figures)))
    results: list[dict[str, Any]] = [{"number": i} for i in range(6)]
    results[3] = {"error": "boom"}
    not_run = [{"error": "not run"}] * 6
    assert [list(json.loads(figures).values()) for figures in kept] == [
        results[: i + 1] + not_run[i + 1 :] for i in range(6)
    ]


def run_own_tests(folder: Path, code: str) -> dict[str, Any]:
    """The record of the part `tests`, in a copy of the repository that holds these tests alone."""
    for name in ("scripts", "tests"):
        (folder / name).mkdir()
    script = shutil.copy(ROOT / "scripts" / "gpu_check.py", folder / "scripts")
    (folder / "tests" / "test_cuda.py").write_text(code)
    (folder / "tests.json").write_text("{}")
    arguments = ["--inside", folder / "tests.json", "--device", "cpu", "tests"]
    subprocess.run([sys.executable, script, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    return dict(json.loads((folder / "tests.json").read_text("utf-8")))


def test_failing_tests_are_named(tmp_path: Path) -> None:
    code = (
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert 1 == 2, 'numbers differ'\n"
        "@pytest.mark.skip(reason='no device')\n"
        "def test_skips(): pass\n"
    )
    failed = {"test_fails": "AssertionError: numbers differ"}
    assert run_own_tests(tmp_path, code) == {
        "outcome": "failed",
        "error": "1 of 3 tests failed: test_fails",
        "figures": {"passed": 1, "failed": failed, "skipped": 1, "running": None},
    }


def test_tests_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    record = run_own_tests(tmp_path, "1 / 0")
    assert record["error"] == "1 of 1 tests failed: tests/test_cuda.py"
    assert record["figures"]["failed"] == {"tests/test_cuda.py": "ZeroDivisionError: division by zero"}


def test_a_test_that_kills_the_process_is_named(tmp_path: Path) -> None:
    record = run_own_tests(tmp_path, "import os\ndef test_passes(): pass\ndef test_dies(): os._exit(7)\n")
    assert record == {"figures": {"passed": 1, "failed": {}, "skipped": 0, "running": "test_dies"}}


# --- A budget ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The limits of the parts that were started; no process is."""
    given: dict[str, float] = {}

    def run_part(name: str, setting: Any, limit: float) -> dict[str, Any]:
        given[name] = limit
        record = {**gpu_check.new_record(name, setting), "outcome": "done", "error": None}
        gpu_check.write_record(setting.out / f"{name}.json", record)
        return record

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    return given


def run_within(folder: Path, names: list[str], seconds_left: list[float], quick: bool = False) -> list[str]:
    """Outcomes of parts before which these numbers of seconds are left."""
    setting = gpu_check.Setting(None, folder, "cpu", quick)
    records = gpu_check.run_parts(names, setting, iter(seconds_left).__next__)
    return [record["outcome"] for record in records]


def test_without_a_budget_every_part_gets_the_same_limit(tmp_path: Path, limits: dict[str, float]) -> None:
    assert run_within(tmp_path, list(gpu_check.PARTS), [math.inf] * 6) == ["done"] * 6
    assert limits == dict.fromkeys(gpu_check.PARTS, gpu_check.LIMIT_SECONDS)


def test_the_most_important_parts_come_first_and_the_tests_leave_time_to_the_others(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    outcomes = run_within(tmp_path, list(gpu_check.PARTS), [468, 330, 110, 12.3, -3, -3])
    assert outcomes == ["done", "done", "done", "left out", "left out", "left out"]
    assert limits == {"tests": 156, "bench-base": 330, "attention": 110}
    report = (tmp_path / "report.md").read_text("utf-8")
    assert report.endswith(
        "### decode: decoding speed of the base model by batch size\n\n"
        "**Left out**: 12 s were left for it, and it needs at least 20 s (about 60 s in full): give more --minutes\n\n"
        "### train: a real training run to a BLEU\n\n"
        "**Left out**: 0 s were left for it, and it needs at least 100 s (about 200 s in full): give more --minutes\n\n"
        "### bench-big: mt bench of the big model\n\n"
        "**Left out**: 0 s were left for it, and it needs at least 90 s (about 370 s in full): give more --minutes\n"
    )


def test_the_last_part_gets_all_that_is_left_up_to_the_limit(tmp_path: Path, limits: dict[str, float]) -> None:
    assert run_within(tmp_path, ["decode", "tests"], [900, 120]) == ["done", "done"]
    assert limits == {"decode": gpu_check.LIMIT_SECONDS, "tests": 120}


def test_small_sizes_need_less_time(tmp_path: Path, limits: dict[str, float]) -> None:
    assert run_within(tmp_path, ["train", "bench-big"], [12, 9], quick=True) == ["done", "left out"]


def test_a_part_that_is_left_out_keeps_the_result_of_an_earlier_run(tmp_path: Path, limits: dict[str, float]) -> None:
    run_within(tmp_path, ["decode"], [100])
    before = (tmp_path / "decode.json").read_text("utf-8")
    assert run_within(tmp_path, ["decode"], [5]) == ["left out"]
    assert (tmp_path / "decode.json").read_text("utf-8") == before


def test_a_budget_that_is_enough_for_nothing_fails(tmp_path: Path) -> None:
    done = check("--minutes", "0.01", "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"scripts/gpu_check.sh: left out: {', '.join(gpu_check.PARTS)}"
    assert done.stdout == (tmp_path / "report.md").read_text("utf-8")
    assert done.stdout.count("**Left out**: ") == len(gpu_check.PARTS)


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cuda:1", "", "1"), ("cuda:1", "4,GPU-5", "GPU-5"), ("cuda", "", "0"), ("cpu", "3", "3")],
)
def test_a_part_sees_its_gpu_alone(device: str, visible: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_check._environment(device)["CUDA_VISIBLE_DEVICES"] == expected


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_the_text_of_a_folder_becomes_settings(tmp_path: Path) -> None:
    for name in ("train.en.gz", "train.de.gz", "val.en", "val.de", "test_2016.en.gz", "test_2016.de.gz", "test_x.en"):
        (tmp_path / name).touch()

    def pair(src: str, tgt: str) -> str:
        return json.dumps({"src": str(tmp_path / src), "tgt": str(tmp_path / tgt)})

    assert gpu_check._text_settings(tmp_path) == [
        f"data.train=[{pair('train.en.gz', 'train.de.gz')}]",
        f"data.valid={pair('val.en', 'val.de')}",
        f'data.test={{"test_2016": {pair("test_2016.en.gz", "test_2016.de.gz")}}}',
    ]
    (tmp_path / "train.de.gz").unlink()
    with pytest.raises(gpu_check.PartFailed) as caught:
        gpu_check._text_settings(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected pairs of files train.en + train.de, val.en + val.de and test.en + test.de "
        "(or test_NAME.en + test_NAME.de), each plain or with .gz behind"
    )


def test_a_command_that_fails_gives_its_last_line() -> None:
    with pytest.raises(gpu_check.PartFailed) as caught:
        gpu_check._mt(["bench", "--config", "base", "--steps", "0"])
    assert str(caught.value) == "mt bench ended with status 2: error: --steps: expected at least 1, got 0"


# --- The report -------------------------------------------------------------------------------------------------------

BASIS = {
    "started_at": "2026-11-22T10:00:00+00:00",
    "quick": False,
    "hardware": {
        "cpu": "Some CPU",
        "threads": 16,
        "gpu": "NVIDIA H100 80GB HBM3",
        "gpu_memory_bytes": 80 * 2**30,
        "cuda": "13.0",
    },
    "versions": {"torch": "2.11.0", "python": "3.12.3"},
    "commit": "0123456789abcdef0123+changes",
}


def test_the_report_is_markdown_of_what_has_run(tmp_path: Path) -> None:
    training = {
        "tgt_tokens_per_second": 501_234.5,
        "share_of_peak": 0.1871,
        "peak_flops_per_second": 989e12,
        "peak_is_measured": False,
        "split_seconds": {"input_stall": 0.0001, "forward": 0.0149, "backward": 0.03, "optimizer": 0.005},
        "src_fill": 0.945,
        "tgt_fill": 0.991,
        "peak_memory_bytes": 30 * 2**30,
        "warm_up_seconds": 41.7,
    }
    timed = {"forward_ms": 0.25, "forward_and_backward_ms": 1.0, "tokens_per_second": 65.5e6, "relative_error": 0.003}
    attention = {
        "tokens": 65_536,
        "heads": 8,
        "features": 64,
        "lengths": {"equal": {"flash": timed, "flex": {"error": "no kernel"}}, "mixed": {"flash": timed}},
    }
    records = [
        {
            "part": "bench-base",
            "what": "speed",
            "error": "eager: boom",
            "seconds": 61.2,
            "figures": {"25,000": training},
        },
        {"part": "attention", "what": "attention alone", "error": None, "seconds": 30.0, "figures": attention},
    ]
    for record in records:
        (tmp_path / f"{record['part']}.json").write_text(json.dumps({**record, **BASIS}), "utf-8")
    assert gpu_check.write_report(tmp_path, show=False) == 0
    assert (tmp_path / "report.md").read_text("utf-8").splitlines() == [
        "2026-11-22: NVIDIA H100 80GB HBM3 (80 GiB, CUDA 13.0), Some CPU, 16 threads; torch 2.11.0, Python 3.12.3; "
        "commit 0123456789ab+changes",
        "",
        "### bench-base: speed",
        "",
        "**Failed**: eager: boom",
        "",
        "|  | tok/s | of the peak | input stall | forward, backward, optimizer | fill | memory | warm-up |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 25,000 | 501,234 | 18.7% of 989 TFLOP/s | 0.20% | 30%, 60%, 10% | 94.5%, 99.1% | 30.0 GiB | 42 s |",
        "",
        "61 s in all.",
        "",
        "### attention: attention alone",
        "",
        "65,536 tokens, 8 heads of 64, bf16. Milliseconds forward, forward and backward; tokens a second through both.",
        "",
        "|  | 28 tokens each | 4 to 64, mean 28 |",
        "| --- | --- | --- |",
        "| flash | 0.25 ms, 1 ms; 65.5 M tok/s | 0.25 ms, 1 ms; 65.5 M tok/s |",
        "| flex | no kernel | not run |",
        "",
        "30 s in all.",
    ]


def test_the_report_on_decoding_and_training_gives_speed_and_scores() -> None:
    decoding = {
        "beam_size": 4,
        "tokens_of_a_translation": 28,
        "batches": {
            "256": {"sentences_per_second": 3_700.4, "tgt_tokens_per_second": 103_612.0, "peak_memory_bytes": 2**30}
        },
    }
    training = {
        "config": "multi30k",
        "steps": 4_800,
        "train_seconds": 140.2,
        "seconds": 200.0,
        "tgt_tokens_per_second": 160_000.0,
        "test_sets": {"test_2016": {"scores": [{"name": "BLEU", "score": 39.941}, {"name": "chrF2", "score": 63.51}]}},
        "decoding": {"sentences_per_second": 900.0, "tgt_tokens_per_second": 12_345.0},
    }
    records = [
        {"part": name, "what": "", "error": None, "seconds": 1.0, "figures": figures, **BASIS}
        for name, figures in (("decode", decoding), ("train", training))
    ]
    lines = gpu_check.report(records).splitlines()
    assert "| 256 | 3,700 | 103,612 | 1.0 GiB |" in lines
    assert (
        "multi30k.yaml: 4,800 steps in 140 s of training, 160,000 tok/s (median of the log), 200 s from text to "
        "report. test_2016: 39.94 BLEU, 63.51 chrF2. Decoding: 900 sentences/s, 12,345 tok/s."
    ) in lines


@pytest.mark.slow
def test_every_part_runs_on_this_machine(tmp_path: Path) -> None:
    done = check("--quick", "--out", tmp_path, "all")
    assert done.returncode == 0, done.stderr
    records = [json.loads((tmp_path / f"{name}.json").read_text("utf-8")) for name in gpu_check.PARTS]
    assert [record["error"] for record in records] == [None] * len(records)
    assert (tmp_path / "report.md").read_text("utf-8") == done.stdout
