"""The parts of scripts/gpu_check.sh, and the report on them; docs/gpu.md says what they are for.

Each part runs in its own process and writes one JSON file as its figures come; `report.md` joins them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 530  # of any part
QUICK_LEAST_SECONDS = 10  # with --quick, a part isn't started with less
REPORT_SECONDS = 5  # of --minutes, kept back for ending a part and for the report
NEEDED = ("torch", "numpy", "sentencepiece", "sacrebleu", "safetensors", "tensorboard", "typer", "rich", "yaml")
# Decoding speed is measured on translations of this many tokens, whatever the random weights would say.
FORCED_TOKENS = 28
# A part calls it with its figures each time there are more, so that those it has outlive it if it is killed.
Keep = Callable[[dict[str, Any]], None]


class PartFailed(Exception):
    """What a part found wrong."""


@dataclass(frozen=True)
class Setting:
    """What all parts go by."""

    data: Path | None  # folder of text for the training run; None: the demo corpus
    out: Path
    device: str
    quick: bool  # small, to show that the code runs
    limit_seconds: float = LIMIT_SECONDS  # in a part's process: when it is killed

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Part:
    """One thing to prove."""

    what: str
    run: Callable[[Setting, Keep], None]
    seconds: int  # estimate for a GPU
    least_seconds: int  # it isn't started with less
    largest_fraction: float = 1.0  # of the time left, while other parts wait


# --- The parts --------------------------------------------------------------------------------------------------------


def run_tests(setting: Setting, keep: Keep) -> None:
    """Run the tests marked `cuda`; without CUDA the same tests as far as they run on a CPU."""
    if importlib.util.find_spec("pytest") is None:
        raise PartFailed(f"{sys.executable} lacks pytest: install it, or set PYTHON to a Python that has it")
    import pytest

    # Not all of tests/: some files need packages that a machine with a GPU may lack.
    marked = [str(path) for path in (ROOT / "tests").glob("*.py") if "mark.cuda" in path.read_text("utf-8")]
    which = ["-m", "cuda", *sorted(marked)] if setting.on_cuda else ["tests/test_cuda.py"]
    os.chdir(ROOT)
    recorder = Recorder(keep)
    status = pytest.main(["-p", "no:cacheprovider", *which], plugins=[recorder])
    keep(recorder.figures | {"running": None})
    passed, failed, skipped = (recorder.figures[outcome] for outcome in ("passed", "failed", "skipped"))
    if failed:
        raise PartFailed(f"{len(failed)} of {passed + len(failed) + skipped} tests failed: {', '.join(failed)}")
    if not passed:
        raise PartFailed("no test was run")
    if status:
        raise PartFailed(f"pytest ended with status {int(status)}")


class Recorder:
    """Count the tests as they end, and name the one that was started last. pytest calls the hooks."""

    def __init__(self, keep: Keep) -> None:
        self.figures: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": 0, "running": None}
        self._keep = keep

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.figures["running"] = nodeid.rpartition("::")[2]
        self._keep(self.figures)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else report.longreprtext).strip().partition("\n")[0]
            self.figures["failed"][report.nodeid.rpartition("::")[2]] = reason[:300]
        elif report.skipped:
            self.figures["skipped"] += 1
        elif report.when == "call":
            self.figures["passed"] += 1

    pytest_collectreport = pytest_runtest_logreport


def run_attention(setting: Setting, keep: Keep) -> None:
    """Time attention alone at the lengths of sentences, with the heads of the base model."""
    import torch
    from attention_candidates import CANDIDATES, lengths_of, make_problem, measure

    device = torch.device(setting.device)
    n_tokens = 2_048 if setting.quick else 65_536
    figures: dict[str, Any] = {"tokens": n_tokens, "heads": 8, "features": 64, "lengths": {}}
    for kind in ("equal", "mixed"):
        problem = make_problem(lengths_of(kind, n_tokens), torch.bfloat16)
        found = figures["lengths"][kind] = {}
        for candidate in CANDIDATES:
            found[candidate.name] = measure(candidate, problem, device, 5 if setting.quick else 20)
            keep(figures)
            print(
                f"{kind:<6} {candidate.name:<46} {_attention_cell(found[candidate.name])}", file=sys.stderr, flush=True
            )
    if not any("tokens_per_second" in one for one in figures["lengths"]["equal"].values()):
        raise PartFailed("no candidate could run")


def run_bench(config: str, setting: Setting, keep: Keep) -> None:
    """Run `mt bench` on sentences of WMT14's lengths."""
    large = {"base": 131_072, "big": 65_536}[config]
    variants = {
        "25,000 target tokens an update": ["train.batch_tokens=25000"],
        "25,000, torch's flash attention": ["train.batch_tokens=25000", "train.attention=flash"],
        f"{large:,} target tokens an update": [f"train.batch_tokens={large}"],
        "25,000, not compiled": ["train.batch_tokens=25000", "train.compile=false"],
    }
    if config == "base":  # which is small enough to wait for the host
        variants |= {
            "5,000, captured": ["train.batch_tokens=5000"],
            "5,000, not captured": ["train.batch_tokens=5000", "train.cuda_graphs=false"],
        }
    options = ["--random-data", "--json"]
    if setting.quick:
        variants = {"512 target tokens an update": ["train.batch_tokens=512"]}
        options += ["--steps", "2"]
    elif setting.limit_seconds < PARTS[f"bench-{config}"].seconds:
        options += ["--steps", "100"]  # instead of 20 s of them
    figures: dict[str, Any] = {name: {"error": "not run"} for name in variants}
    problems = []
    for name, overrides in variants.items():
        overrides = [f"train.device={setting.device}", *overrides]
        try:
            command = ["bench", "--config", config, *options, *(f"--set={override}" for override in overrides)]
            figures[name] = json.loads(_mt(command))
        except PartFailed as problem:
            figures[name] = {"error": str(problem)}
            problems.append(f"{name}: {problem}")
        keep(figures)
    if problems:
        raise PartFailed("; ".join(problems))


def run_decode(setting: Setting, keep: Keep) -> None:
    """Time beam search with a base model of random weights, batch by batch, every translation equally long."""
    import torch

    from mt.config import DecodeConfig, ModelConfig
    from mt.decode.search import SearchRequest
    from mt.decode.translator import OwnBackend
    from mt.model import Transformer
    from mt.system.device import choose_dtype, peak_memory_bytes
    from mt.system.malloc import tune_malloc
    from mt.tools.bench import random_corpus

    tune_malloc()
    device, vocab_size = torch.device(setting.device), 32_000
    dtype = choose_dtype("auto", device)
    torch.manual_seed(1)
    model = Transformer(ModelConfig(), vocab_size=vocab_size, pad_id=0).to(device).for_inference(dtype)
    backend = OwnBackend(model)
    n_tokens = 8 if setting.quick else FORCED_TOKENS
    source = random_corpus(vocab_size, 256, n_pairs=8_192).src
    figures: dict[str, Any] = {"beam_size": 4, "tokens_of_a_translation": n_tokens, "batches": {}}
    for n_sentences in (8, 32) if setting.quick else (32, 128, 256, 512, 1_024):
        n_batches = 1 if setting.quick else 4
        longest_first = sorted(range(n_batches * n_sentences), key=lambda i: -len(source[i]))
        batches = [
            [source[i].tolist() for i in longest_first[start : start + n_sentences]]
            for start in range(0, len(longest_first), n_sentences)
        ]
        if setting.on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        n_produced, started_at = 0, 0.0
        for batch in [batches[0], *batches]:  # the first for warm-up
            decode = DecodeConfig(max_length=n_tokens, min_length=n_tokens - 1)
            results = backend.search(SearchRequest(batch, decode))
            if started_at:
                n_produced += sum(found[0].n_tokens for found in results)
            else:
                started_at = time.perf_counter()
        seconds = time.perf_counter() - started_at
        figures["batches"][n_sentences] = {
            "sentences_per_second": n_batches * n_sentences / seconds,
            "tgt_tokens_per_second": n_produced / seconds,
            "peak_memory_bytes": peak_memory_bytes(device),
        }
        figures["why_no_graphs"] = backend.why_no_graphs
        keep(figures)
        print(f"batch {n_sentences}: {n_produced / seconds:,.0f} tok/s", file=sys.stderr, flush=True)
    figures["transformers_at_32"] = _generate_speed(device, dtype, vocab_size, 8 if setting.quick else 32, n_tokens)
    keep(figures)


def _generate_speed(
    device: Any, dtype: Any, vocab_size: int, n_sentences: int, n_tokens: int
) -> dict[str, float] | None:
    """Target tokens a second of `transformers`' generate with a model of the same shape; None where it is missing."""
    try:
        import transformers
    except ImportError:
        return None
    import torch

    shape = {
        "d_model": 512,
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "forced_eos_token_id": None,
    }
    for side in ("encoder", "decoder"):
        shape |= {f"{side}_layers": 6, f"{side}_attention_heads": 8, f"{side}_ffn_dim": 2_048}
    model = transformers.MarianMTModel(transformers.MarianConfig(**shape, decoder_start_token_id=0))
    model = model.to(device=device, dtype=dtype).eval()
    ids = torch.randint(4, vocab_size, (n_sentences, 28), device=device)
    wanted = {"num_beams": 4, "do_sample": False, "min_new_tokens": n_tokens, "max_new_tokens": n_tokens}
    seconds = []
    for _ in range(3):  # the first for warm-up
        started_at = time.perf_counter()
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **wanted)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started_at)
    return {"n_sentences": n_sentences, "tgt_tokens_per_second": n_sentences * n_tokens / min(seconds[1:])}


def run_training(setting: Setting, keep: Keep) -> None:
    """Run `mt train` from text to a report, then measure the decoding speed of the model it made."""
    config = "demo" if setting.data is None else "multi30k"
    overrides = [] if setting.data is None else _text_settings(setting.data)
    # The rest is for preparation, averaging, the test sets and the decoding speed.
    train_seconds = min(300, 0.6 * setting.limit_seconds)
    overrides += [f"train.device={setting.device}", "train.log_every=20", f"train.stop_after={train_seconds:.0f}s"]
    if setting.quick:
        n_steps = 300 if setting.data is None else 100
        overrides += [f"train.max_steps={n_steps}", "train.warmup_steps=100"]
        overrides += [f"train.validate_every={n_steps}", f"train.checkpoint_every={n_steps // 2}"]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        overrides.append(f"data.prepared_dir={json.dumps(str(Path(folder) / 'prepared'))}")
        started_at = time.perf_counter()
        _mt(["train", "--config", config, "--run-dir", str(run_dir), *(f"--set={override}" for override in overrides)])
        seconds = time.perf_counter() - started_at
        report = json.loads((run_dir / "report.json").read_text("utf-8"))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
        speeds = [line["tgt_tokens_per_second"] for line in lines if "tgt_tokens_per_second" in line]
        valid = [
            {key: value for key, value in line.items() if value is not None} for line in lines if "valid_loss" in line
        ]
        figures = {
            "config": config,
            "seconds": seconds,
            "train_seconds": report["train_seconds"],
            "steps": report["steps"],
            "n_parameters": report["n_parameters"],
            "tgt_tokens_per_second": statistics.median(speeds) if speeds else None,
            "validations": valid,
            "test_sets": report["test_sets"],
        }
        keep(figures)
        decoding = json.loads(_mt(["bench", "--model", str(run_dir), "--device", setting.device, "--json"]))
        keep({**figures, "decoding": decoding})


def _text_settings(folder: Path) -> list[str]:
    """`--set` values for the text in a folder: train, val or valid, test sets; each X.en and X.de, maybe with .gz."""
    sources: dict[str, dict[str, str]] = {}
    for src in sorted(folder.glob("*.en")) + sorted(folder.glob("*.en.gz")):
        name, _, ending = src.name.partition(".en")
        tgt = folder / f"{name}.de{ending}"
        if tgt.exists():
            sources[name] = {"src": str(src), "tgt": str(tgt)}
    valid = sources.pop("val", sources.pop("valid", None))
    train = sources.pop("train", None)
    tests = {name: source for name, source in sources.items() if name.startswith("test")}
    if train is None or valid is None or not tests:
        raise PartFailed(
            f"{folder}: expected pairs of files train.en + train.de, val.en + val.de and test.en + test.de "
            "(or test_NAME.en + test_NAME.de), each plain or with .gz behind"
        )
    # JSON is YAML, whatever stands in a path.
    values = {"data.train": [train], "data.valid": valid, "data.test": tests}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _mt(arguments: Sequence[str]) -> str:
    """What an `mt` command prints."""
    done = subprocess.run([sys.executable, "-m", "mt", *arguments], cwd=ROOT, capture_output=True, text=True)
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing on standard error"]
        raise PartFailed(f"mt {arguments[0]} ended with status {done.returncode}: {told[-1]}")
    return done.stdout


# In the order of their worth to someone whose time on a GPU is short. The seconds were not measured on one yet.
PARTS = {
    "tests": Part(
        "the tests marked cuda: attention, compilation, precisions, resume, memory, copies",
        run_tests,
        seconds=150,
        least_seconds=30,
        largest_fraction=1 / 3,
    ),
    "bench-base": Part("mt bench of the base model", partial(run_bench, "base"), seconds=430, least_seconds=75),
    "attention": Part(
        "ways to compute attention, timed at 28-token sentences", run_attention, seconds=60, least_seconds=20
    ),
    "decode": Part("decoding speed of the base model by batch size", run_decode, seconds=60, least_seconds=20),
    "train": Part("a real training run to a BLEU", run_training, seconds=200, least_seconds=100),
    "bench-big": Part("mt bench of the big model", partial(run_bench, "big"), seconds=370, least_seconds=90),
}


# --- One part after the other -----------------------------------------------------------------------------------------


def run_parts(names: Sequence[str], setting: Setting, seconds_left: Callable[[], float]) -> list[dict[str, Any]]:
    """Run the parts that the time left is enough for, and return the record of each part.

    Args:
        seconds_left: infinite without a budget.
    """
    records = []
    for i, name in enumerate(names):
        part, left = PARTS[name], max(0.0, seconds_left())
        limit = min(LIMIT_SECONDS, left if i == len(names) - 1 else left * part.largest_fraction)
        least = QUICK_LEAST_SECONDS if setting.quick else part.least_seconds
        if limit < least:
            records.append(
                leave_out(name, setting, f"{int(limit)} s were left for it, and it needs at least {least} s")
            )
        else:
            records.append(run_part(name, setting, limit))
        write_report(setting.out, show=False)
    return records


def leave_out(name: str, setting: Setting, reason: str) -> dict[str, Any]:
    """Record why a part isn't run, without replacing the result of an earlier run."""
    if not setting.quick:
        reason += f" (about {PARTS[name].seconds} s in full)"
    record = new_record(name, setting) | {"outcome": "left out", "error": f"{reason}: give more --minutes"}
    if not (path := setting.out / f"{name}.json").exists():
        write_record(path, record)
    print(f"== {name}: left out: {record['error']}", file=sys.stderr, flush=True)
    return record


def run_part(name: str, setting: Setting, limit: float = LIMIT_SECONDS) -> dict[str, Any]:
    """Run a part in its own process, and return its record, which is also a file."""
    print(f"== {name}: {PARTS[name].what}, {limit:.0f} s at most", file=sys.stderr, flush=True)
    started_at, path = time.perf_counter(), setting.out / f"{name}.json"
    write_record(path, new_record(name, setting))
    command = [sys.executable, __file__, "--inside", str(path), "--limit", str(limit)]
    command += ["--device", "cuda:0" if setting.on_cuda else setting.device]
    command += ["--quick" if setting.quick else "--full", name]
    if setting.data is not None:
        command += ["--data", str(setting.data)]
    process = subprocess.Popen(command, env=_environment(setting.device), start_new_session=True, stdout=sys.stderr)
    try:
        ended = {"outcome": "failed", "error": f"ended with status {process.wait(limit)}"}
    except BaseException as interruption:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        process.wait()
        if not isinstance(interruption, subprocess.TimeoutExpired):
            raise
        ended = {"outcome": "cut short", "error": f"took longer than {limit:.0f} s"}
    record = json.loads(path.read_text("utf-8")) | {"seconds": time.perf_counter() - started_at}
    if record["outcome"] == "cut short":  # it didn't come to entering its own end
        record |= ended
    write_record(path, record)
    print(f"== {name}: {record['error'] or 'done'}, {record['seconds']:.0f} s", file=sys.stderr, flush=True)
    return record


def _environment(device: str) -> dict[str, str]:
    """Show a part its GPU alone, as cuda:0, for tests and timers use the current device."""
    if not device.startswith("cuda"):
        return dict(os.environ)
    index = int(device.partition(":")[2] or 0)
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return {**os.environ, "CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index)}


def run_inside(name: str, setting: Setting, path: Path) -> None:
    """Run the part itself, in its process, and enter what comes of it into its record."""
    record = json.loads(path.read_text("utf-8"))

    def keep(figures: dict[str, Any]) -> None:
        record["figures"] = figures
        write_record(path, record)

    ended: dict[str, Any] = {"outcome": "failed"}
    try:
        PARTS[name].run(setting, keep)
        ended = {"outcome": "done", "error": None}
    except PartFailed as problem:
        ended["error"] = str(problem)
    except Exception as problem:
        traceback.print_exc()
        ended["error"] = f"{type(problem).__name__}: {problem}"[:1_000]
    write_record(path, record | ended)


def new_record(name: str, setting: Setting) -> dict[str, Any]:
    """Return the record of a part that is about to run."""
    return {
        "part": name,
        "what": PARTS[name].what,
        "outcome": "cut short",
        "error": "gpu_check.sh was stopped before this part ended",
        "seconds": None,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": setting.device,
        "quick": setting.quick,
        "data": "demo corpus" if setting.data is None else setting.data.name,
        **_basis(setting.device),
        "figures": {},
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write or replace a record; a process killed meanwhile leaves the one before."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(beside, path)


def _basis(device: str) -> dict[str, Any]:
    import torch

    from mt.system.device import hardware
    from mt.system.provenance import source_commit, versions

    return {"hardware": hardware(torch.device(device)), "versions": versions(), "commit": source_commit()}


# --- The report -------------------------------------------------------------------------------------------------------


def report(records: Sequence[dict[str, Any]]) -> str:
    """Markdown of the parts that have run, in the order of PARTS."""
    by_name = {record["part"]: record for record in records}
    records = [by_name[name] for name in PARTS if name in by_name]
    sections = {
        "tests": _tests_section,
        "attention": _attention_section,
        "bench-base": _bench_section,
        "bench-big": _bench_section,
        "decode": _decode_section,
        "train": _training_section,
    }
    lines = [*_basis_lines(records)]
    for record in records:
        figures, seconds = record["figures"], record["seconds"]
        blocks = [
            [f"### {record['part']}: {record['what']}"],
            [f"**{record.get('outcome', 'failed').capitalize()}**: {record['error']}"] if record["error"] else [],
            sections[record["part"]](figures) if figures else [],
            [] if seconds is None else [f"{seconds:.0f} s in all{', small sizes' if record['quick'] else ''}."],
        ]
        lines += [line for block in blocks if block for line in ("", *block)]
    return "\n".join(lines) + "\n"


def _basis_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """What the parts ran on; parts of several machines get a line each."""
    found: dict[str, list[str]] = {}
    for record in records:
        hardware, versions = record["hardware"], record["versions"]
        where = f"{hardware['cpu']}, {hardware['threads']} threads"
        if "gpu" in hardware:
            where = (
                f"{hardware['gpu']} ({hardware['gpu_memory_bytes'] / 2**30:.0f} GiB, CUDA {hardware['cuda']}), {where}"
            )
        commit = (record["commit"] or "not known")[:12] + ("+changes" if "+" in (record["commit"] or "") else "")
        basis = f"{where}; torch {versions['torch']}, Python {versions['python']}; commit {commit}"
        found.setdefault(f"{record['started_at'][:10]}: {basis}", []).append(record["part"])
    if len(found) == 1:
        return list(found)
    return [f"- {', '.join(parts)}: {basis}" for basis, parts in found.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _tests_section(figures: dict[str, Any]) -> list[str]:
    lines = [f"{figures['passed']} passed, {len(figures['failed'])} failed, {figures['skipped']} skipped."]
    lines += [f"- `{name}`: {message}" for name, message in figures["failed"].items()]
    return lines + ([f"- `{figures['running']}`: did not end"] if figures.get("running") else [])


def _attention_section(figures: dict[str, Any]) -> list[str]:
    kinds = figures["lengths"]
    names = {"equal": "28 tokens each", "mixed": "4 to 64, mean 28"}
    rows = [
        [candidate, *(_attention_cell(kinds[kind].get(candidate, {"error": "not run"})) for kind in kinds)]
        for candidate in kinds["equal"]
    ]
    about = (
        f"{figures['tokens']:,} tokens, {figures['heads']} heads of {figures['features']}, bf16. Milliseconds forward, "
        "forward and backward; tokens a second through both."
    )
    return [about, "", *_table(["", *(names[kind] for kind in kinds)], rows)]


def _attention_cell(one: dict[str, Any]) -> str:
    if one.get("error"):
        return str(one["error"])
    return (
        f"{one['forward_ms']:.3g} ms, {one['forward_and_backward_ms']:.3g} ms; "
        f"{one['tokens_per_second'] / 1e6:.3g} M tok/s"
    )


def _bench_section(figures: dict[str, Any]) -> list[str]:
    head = ["", "tok/s", "of the peak", "input stall", "forward, backward, optimizer", "fill", "memory", "warm-up"]
    return _table(head, [[name, *_bench_cells(one)] for name, one in figures.items()])


def _bench_cells(one: dict[str, Any]) -> list[str]:
    if "error" in one:
        return [one["error"], *[""] * 6]
    split = one["split_seconds"]
    total = sum(split.values())
    parts = ", ".join(f"{split[part] / total:.0%}" for part in ("forward", "backward", "optimizer"))
    peak = f"{one['peak_flops_per_second'] / 1e12:.4g} TFLOP/s{' measured' if one['peak_is_measured'] else ''}"
    return [
        f"{one['tgt_tokens_per_second']:,.0f}",
        f"{one['share_of_peak']:.1%} of {peak}",
        f"{split['input_stall'] / total:.2%}",
        parts,
        f"{one['src_fill']:.1%}, {one['tgt_fill']:.1%}",
        f"{one['peak_memory_bytes'] / 2**30:.1f} GiB",
        f"{one['warm_up_seconds']:.0f} s",
    ]


def _decode_section(figures: dict[str, Any]) -> list[str]:
    about = (
        f"Base model of random weights, beam of {figures['beam_size']}, translations of "
        f"{figures['tokens_of_a_translation']} tokens."
    )
    rows = [
        [
            f"{int(n):,}",
            f"{one['sentences_per_second']:,.0f}",
            f"{one['tgt_tokens_per_second']:,.0f}",
            f"{one['peak_memory_bytes'] / 2**30:.1f} GiB",
        ]
        for n, one in figures["batches"].items()
    ]
    table = _table(["sentences together", "sentences/s", "tok/s", "memory"], rows)
    if peer := figures.get("transformers_at_32"):
        speed = f"{peer['tgt_tokens_per_second']:,.0f} tok/s with {peer['n_sentences']} sentences together"
        table += [
            "",
            f"`transformers` generate with a model of the same shape and translations of that length: {speed}.",
        ]
    if problem := figures.get("why_no_graphs"):
        table += ["", f"Without CUDA graphs: {problem}."]
    return [about, "", *table]


def _training_section(figures: dict[str, Any]) -> list[str]:
    scores = []
    for name, one in figures["test_sets"].items():
        told = ", ".join(f"{score['score']:.2f} {score['name']}" for score in one["scores"])
        scores.append(f"{name}: {told}")
    speed = figures["tgt_tokens_per_second"]
    text = (
        f"{figures['config']}.yaml: {figures['steps']:,} steps in {figures['train_seconds']:.0f} s of training, "
        f"{'too few steps for a speed' if speed is None else f'{speed:,.0f} tok/s (median of the log)'}, "
        f"{figures['seconds']:.0f} s from text to report. {'; '.join(scores)}."
    )
    if decoding := figures.get("decoding"):
        text += (
            f" Decoding: {decoding['sentences_per_second']:,.0f} sentences/s, "
            f"{decoding['tgt_tokens_per_second']:,.0f} tok/s."
        )
    return [text]


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    started_at = time.monotonic()
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description="What only a GPU can prove, in parts.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all, list, report")
    parser.add_argument("--minutes", metavar="M", help="for everything: parts that no longer fit are left out")
    parser.add_argument("--data", type=Path, metavar="DIR", help="text for the training run: train.en, train.de, val.…")
    parser.add_argument("--out", type=Path, metavar="DIR", default=ROOT / "runs" / "gpu-check", help="for the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", default=None, help="small sizes, as always on a CPU")
    size.add_argument("--full", action="store_false", dest="quick", help="full sizes, on a CPU too")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        minutes = math.inf if arguments.minutes is None else float(arguments.minutes)
    except ValueError:
        minutes = math.nan
    if not minutes > 0:
        return refuse(f"--minutes: expected a number above 0, such as 8, got {arguments.minutes!r}")
    if not arguments.parts and arguments.minutes is None:
        parser.error("the following arguments are required: PART or --minutes")
    if arguments.parts == ["list"]:
        print("\n".join(f"{name:<12}{part.what} (estimate: {part.seconds} s)" for name, part in PARTS.items()))
        return 0
    if arguments.parts == ["report"]:
        return write_report(arguments.out, show=True)
    names = list(PARTS) if arguments.parts in ([], ["all"]) else arguments.parts
    if unknown := [name for name in names if name not in PARTS]:
        return refuse(f"{unknown[0]}: no such part: there are {', '.join(PARTS)}; or all, list, report alone")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return refuse(f"{sys.executable} lacks {', '.join(missing)}: set PYTHON to a Python that has them")
    if arguments.data is not None and not arguments.data.is_dir():
        return refuse(f"--data {arguments.data}: no such folder")
    from mt.errors import ConfigError
    from mt.system.device import choose_device

    try:
        device = choose_device(arguments.device)
    except ConfigError as error:
        return refuse(f"--{error}")
    quick = device.type == "cpu" if arguments.quick is None else arguments.quick
    data = None if arguments.data is None else arguments.data.resolve()
    setting = Setting(data, arguments.out.resolve(), str(device), quick, arguments.limit)
    if arguments.inside is not None:
        run_inside(names[0], setting, arguments.inside)
        return 0
    setting.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part in progress is ended too
    ends_at = started_at + 60 * minutes - REPORT_SECONDS
    records = run_parts(names, setting, lambda: ends_at - time.monotonic())
    print((setting.out / "report.md").read_text("utf-8"), end="")
    for outcome in ("left out", "cut short", "failed"):
        if found := [record["part"] for record in records if record["outcome"] == outcome]:
            print(f"scripts/gpu_check.sh: {outcome}: {', '.join(found)}", file=sys.stderr)
    outcomes = {record["outcome"] for record in records}
    return 0 if "done" in outcomes and outcomes <= {"done", "left out"} else 1


def refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def write_report(out: Path, show: bool) -> int:
    """`report.md` of all parts whose results lie in the folder."""
    paths = [out / f"{name}.json" for name in PARTS]
    records = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
    if not records:
        return refuse(f"{out}: has no results: run a part first")
    text = report(records)
    (out / "report.md").write_text(text, "utf-8")
    if show:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
