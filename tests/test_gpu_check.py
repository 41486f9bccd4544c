"""The parts of scripts/gpu_check.sh: what they measure, what they write down, and what they say when it goes wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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
        "attention",
        "bench-base",
        "bench-big",
        "decode",
        "train",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["speed"],
            "speed: no such part: there are tests, attention, bench-base, bench-big, decode, train; "
            "or all, list, report alone",
        ),
        (["--data", "nowhere", "train"], "--data nowhere: no such folder"),
        (["--device", "gpu", "train"], "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--out", "nothing", "report"], "nothing: has no results: run a part first"),
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


def test_a_part_leaves_its_figures_and_what_it_ran_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process of the part stands in for the real one.
    script = tmp_path / "part.py"
    script.write_text(
        "import json, sys\n"
        "result = {'error': None, 'figures': {'passed': 3, 'failed': {}, 'skipped': 1}}\n"
        "open(sys.argv[sys.argv.index('--inside') + 1], 'w').write(json.dumps(result))\n"
    )
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    record = gpu_check.run_part("tests", setting_for(tmp_path))
    assert json.loads((tmp_path / "tests.json").read_text("utf-8")) == record
    assert (record["part"], record["error"], record["figures"]["passed"]) == ("tests", None, 3)
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["threads"] == torch.get_num_threads()


def test_a_part_that_dies_or_takes_too_long_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "part.py"
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    script.write_text("import os; os._exit(7)")
    assert gpu_check.run_part("attention", setting_for(tmp_path))["error"] == "ended with status 7"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu_check, "LIMIT_SECONDS", 0.2)
    record = gpu_check.run_part("attention", setting_for(tmp_path))
    assert record["error"] == "took longer than 0.2 s"
    assert record["seconds"] < 10
    assert json.loads((tmp_path / "attention.json").read_text("utf-8"))["figures"] == {}


def test_what_a_part_finds_wrong_comes_with_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(setting: Any) -> dict[str, Any]:
        raise gpu_check.PartFailed("one of two failed", {"a": 1})

    def broken(setting: Any) -> dict[str, Any]:
        return {"a": 1 / 0}

    results = []
    for run in (half, broken):
        monkeypatch.setitem(gpu_check.PARTS, "tests", gpu_check.Part("", run))
        gpu_check.run_inside("tests", setting_for(tmp_path), tmp_path / "result.json")
        results.append(json.loads((tmp_path / "result.json").read_text("utf-8")))
    assert results == [
        {"error": "one of two failed", "figures": {"a": 1}},
        {"error": "ZeroDivisionError: division by zero", "figures": {}},
    ]


def test_failing_tests_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_cuda.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert 1 == 2, 'numbers differ'\n"
        "@pytest.mark.skip(reason='no device')\n"
        "def test_skips(): pass\n"
    )
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    with pytest.raises(gpu_check.PartFailed) as caught:
        gpu_check.run_tests(setting_for(tmp_path))
    assert str(caught.value) == "1 of 3 tests failed: test_fails"
    assert caught.value.figures == {
        "passed": 1,
        "failed": {"test_fails": "AssertionError: numbers differ"},
        "skipped": 1,
    }


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
