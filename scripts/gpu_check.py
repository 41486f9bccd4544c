"""The parts of scripts/gpu_check.sh, and the report on them. Their purpose is explained in docs/gpu.md.

Each part runs in its own process and updates one JSON file whenever it has new figures. `report.md` joins all parts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from plumbing import ROOT, CommandFailed, refuse, run_mt, say, table

LIMIT_SECONDS = 530  # maximum time of any part
QUICK_LEAST_SECONDS = 10  # with --quick, a part is not started with less time
REPORT_SECONDS = 5  # part of --minutes, reserved for ending a part and for the report
NEEDED = ("torch", "numpy", "sentencepiece", "sacrebleu", "safetensors", "tensorboard", "typer", "rich", "yaml")
# Decoding speed is measured on translations of this many tokens, because random weights give arbitrary lengths.
FORCED_TOKENS = 28
TOLERANCE = 0.02  # relative error of attention in bf16, compared with float32
# A part calls this with all its figures whenever there are new ones, so that they survive if the part is killed.
Keep = Callable[[dict[str, Any]], None]


class PartFailed(Exception):
    """A part found something wrong."""


@dataclass(frozen=True)
class Setting:
    """Settings of all parts."""

    data: Path | None  # folder of text for the training run; None: the demo corpus
    out: Path
    device: str  # cpu or cuda:N
    quick: bool  # small sizes, to show that the code runs
    limit_seconds: float = LIMIT_SECONDS  # in a part's process: the time after which it is killed


@dataclass(frozen=True)
class Part:
    """One check."""

    what: str
    run: Callable[[Setting, Keep], None]
    section: Callable[[dict[str, Any]], list[str]]  # turns its figures into Markdown
    seconds: int  # estimate for a GPU
    least_seconds: int  # it is not started with less time
    largest_fraction: float = 1.0  # of the time left, while other parts wait


@dataclass(frozen=True)
class Record:
    """The result of a part: one JSON file."""

    part: str
    started_at: str
    quick: bool
    command: list[str]
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    outcome: str = "cut short"
    error: str | None = "gpu_check.sh was stopped before this part ended"
    seconds: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, name: str, setting: Setting) -> Record:
        """Return the record of a part that is about to run."""
        import torch

        from mt.tools.bench import provenance

        return cls(
            part=name,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=setting.quick,
            command=sys.argv,
            **provenance(torch.device(setting.device)),
        )

    @classmethod
    def read(cls, path: Path) -> Record:
        return cls(**json.loads(path.read_text("utf-8")))

    def write(self, path: Path) -> Record:
        """Write or replace the file. If the process is killed meanwhile, the previous file remains."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(new, path)
        return self


# --- Tests ------------------------------------------------------------------------------------------------------------


def run_tests(setting: Setting, keep: Keep) -> None:
    """Run the tests marked `cuda`; without CUDA, those of them that run on a CPU."""
    if importlib.util.find_spec("pytest") is None:
        raise PartFailed(f"{sys.executable} lacks pytest: install it, or set PYTHON to a Python that has it")
    import pytest

    # Not all of tests/, because some files need packages that a machine with a GPU may lack.
    marked = [str(path) for path in (ROOT / "tests").glob("*.py") if "mark.cuda" in path.read_text("utf-8")]
    which = ["-m", "cuda", *sorted(marked)] if setting.device != "cpu" else ["tests/test_cuda.py"]
    recorder = Recorder(keep)
    status = pytest.main(["-p", "no:cacheprovider", *which], plugins=[recorder])
    keep(recorder.figures | {"running": None})
    passed, failed, skipped = (recorder.figures[outcome] for outcome in ("passed", "failed", "skipped"))
    if failed:
        raise PartFailed(f"{len(failed)} of {passed + len(failed) + skipped} tests failed: {', '.join(failed)}")
    if status or not passed:
        raise PartFailed(f"pytest ended with status {int(status)}, {passed} tests passed")


class Recorder:
    """A pytest plugin that counts the tests that have ended and remembers the one started last."""

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


def tests_section(figures: dict[str, Any]) -> list[str]:
    lines = [f"{figures['passed']} passed, {len(figures['failed'])} failed, {figures['skipped']} skipped."]
    lines += [f"- `{name}`: {message}" for name, message in figures["failed"].items()]
    return lines + ([f"- `{figures['running']}`: did not end"] if figures.get("running") else [])


# --- Attention --------------------------------------------------------------------------------------------------------


def run_attention(setting: Setting, keep: Keep) -> None:
    """Time attention by itself, at the lengths of sentences, with the heads of the base model."""
    import numpy as np
    import torch

    from mt.tools.bench import random_corpus

    n_tokens, n_repeats = (2_048, 5) if setting.quick else (65_536, 20)
    n_sentences = n_tokens // 28
    mixed = random_corpus(8, 64, n_pairs=n_sentences).tgt.lengths
    names = "28 tokens each", f"{mixed.min()} to {mixed.max()}, mean {mixed.mean():.0f}"
    figures: dict[str, Any] = {"tokens": n_tokens, "heads": 8, "features": 64, "lengths": {}}
    for name, lengths in zip(names, (np.full(n_sentences, 28), mixed), strict=True):
        found = figures["lengths"][name] = {}
        for path, one in time_attention(lengths, torch.device(setting.device), n_repeats):
            found[path] = one
            keep(figures)
            say(f"{name:<22} {path:<36} {attention_cell(one)}")
    if all("error" in one for found in figures["lengths"].values() for one in found.values()):
        raise PartFailed("none of the implementations of attention could run")


def time_attention(lengths: Any, device: Any, n_repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the implementations of attention in bf16, each with its figures, or with the `error` that it raised.

    Queries, keys and values are [T, H, E]: T rows from N sentences of at most W rows each. Values and gradients are
    compared with padded attention in float32 on the CPU.
    """
    import numpy as np
    import torch
    from torch import Tensor
    from torch.nn.functional import scaled_dot_product_attention

    from mt.data.batch import varlen_layout
    from mt.model.context import rows_of
    from mt.model.kernels import Kernels
    from mt.tools.bench import StepTimer

    cu = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)
    packed_rows = rows_of(varlen_layout(cu, cu, int(lengths.max())), dropout=0.0)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from mt.model.packed_attention import attend  # imports Triton, which CUDA builds of torch include

        return attend(packed_rows, q[:, None], k[:, None], v[:, None]).view(q.shape)

    def of_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Kernels().attend(packed_rows, q[:, None], k[:, None], v[:, None]).view(q.shape)

    def padded_on(device: torch.device) -> Callable[..., Tensor]:
        is_real = np.arange(lengths.max()) < lengths[:, None]  # [N, W]
        rows = torch.from_numpy(np.flatnonzero(is_real)).to(device)
        mask = None if is_real.all() else torch.from_numpy(is_real).to(device)[:, None, None]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            empty = torch.zeros(is_real.size, *q.shape[1:], dtype=q.dtype, device=device)
            padded = (empty.index_copy(0, rows, x).unflatten(0, is_real.shape).transpose(1, 2) for x in (q, k, v))
            out = scaled_dot_product_attention(*padded, attn_mask=mask)  # [N, H, W, E]
            return out.transpose(1, 2).flatten(0, 1).index_select(0, rows)

        return attend

    def run(path: Callable[..., Tensor], content: Tensor, timer: StepTimer) -> list[Tensor]:
        """Return the output and its gradients."""
        inputs = [x.requires_grad_() for x in content[:3].clone()]
        timer.end("other")
        out = path(*inputs)
        timer.end("forward")
        gradients = torch.autograd.grad(out, inputs, content[3])
        timer.end("backward")
        return [out.detach(), *gradients]

    def figures_of(path: Callable[..., Tensor]) -> dict[str, Any]:
        for _ in range(3):  # to warm up
            found = run(path, content, StepTimer(device))
        off = max(float((a.cpu().float() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        if not off <= TOLERANCE:
            return {"error": f"its values have a relative error of {off:.2g}", "relative_error": off}
        timer = StepTimer(device)
        for _ in range(n_repeats):
            run(path, content, timer)
        forward, backward = (1000 * timer.seconds(part) / n_repeats for part in ("forward", "backward"))
        speed = 1000 * content.shape[1] / (forward + backward)
        times = {"forward_ms": forward, "forward_and_backward_ms": forward + backward, "tokens_per_second": speed}
        return times | {"relative_error": off}

    torch.manual_seed(1)
    content = torch.randn(4, int(lengths.sum()), 8, 64).bfloat16()  # q, k, v, gradient of the output
    expected = run(padded_on(content.device), content.float(), StepTimer(content.device))
    content = content.to(device)
    padded = padded_on(device)
    paths = {"our kernels": ours, "torch's varlen_attn": of_torch, "padded scaled_dot_product_attention": padded}
    for name, path in paths.items():
        try:
            needs_cuda = device.type == "cpu" and path is not padded
            yield name, {"error": "needs CUDA"} if needs_cuda else figures_of(path)
        except Exception as error:
            yield name, {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]}


def attention_section(figures: dict[str, Any]) -> list[str]:
    about = (
        f"{figures['tokens']:,} tokens, {figures['heads']} heads of {figures['features']}, bf16. Milliseconds of the "
        "forward pass, and of forward and backward; tokens per second of both."
    )
    columns = figures["lengths"]
    paths = next(iter(columns.values()))
    rows = (
        [path, *(attention_cell(column.get(path, {"error": "not run"})) for column in columns.values())]
        for path in paths
    )
    return [about, "", *table(["", *columns], rows)]


def attention_cell(one: dict[str, Any]) -> str:
    if one.get("error"):
        return str(one["error"])
    return (
        f"{one['forward_ms']:.3g} ms, {one['forward_and_backward_ms']:.3g} ms; "
        f"{one['tokens_per_second'] / 1e6:.3g} M tok/s"
    )


# --- Speed of training ------------------------------------------------------------------------------------------------


def run_bench(config: str, setting: Setting, keep: Keep) -> None:
    """Run `mt bench` on sentences of WMT14's lengths."""
    large = {"base": 131_072, "big": 65_536}[config]
    variants = {
        "25,000 target tokens per update": ["train.batch_tokens=25000"],
        "25,000, torch's flash attention": ["train.batch_tokens=25000", "train.attention=flash"],
        f"{large:,} target tokens per update": [f"train.batch_tokens={large}"],
        "25,000, not compiled": ["train.batch_tokens=25000", "train.compile=false"],
    }
    if config == "base":  # it is small enough that the GPU waits for the host
        variants |= {
            "5,000, captured": ["train.batch_tokens=5000"],
            "5,000, not captured": ["train.batch_tokens=5000", "train.cuda_graphs=false"],
        }
    options = ["--random-data", "--json"]
    if setting.quick:
        variants = {"512 target tokens per update": ["train.batch_tokens=512"]}
        options += ["--steps", "2"]
    elif setting.limit_seconds < PARTS[f"bench-{config}"].seconds:
        options += ["--steps", "100"]  # instead of 20 s
    figures: dict[str, Any] = {name: {"error": "not run"} for name in variants}
    for name, changes in variants.items():
        changes = [f"--set={change}" for change in (f"train.device={setting.device}", *changes)]
        try:
            figures[name] = json.loads(run_mt("bench", "--config", config, *options, *changes))
        except CommandFailed as problem:
            figures[name] = {"error": str(problem)}
        keep(figures)
    if problems := [f"{name}: {one['error']}" for name, one in figures.items() if "error" in one]:
        raise PartFailed("; ".join(problems))


def bench_section(figures: dict[str, Any]) -> list[str]:
    from mt.tools.bench import format_bench

    return code("\n\n".join(f"{name}\n{one.get('error') or format_bench(one)}" for name, one in figures.items()))


def code(text: str) -> list[str]:
    return ["```", *text.splitlines(), "```"]


# --- Speed of decoding ------------------------------------------------------------------------------------------------


def run_decode(setting: Setting, keep: Keep) -> None:
    """Time beam search with a base model of random weights, batch by batch, with all translations equally long."""
    import torch

    from mt.config.settings import DecodeConfig, ModelConfig
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
    decode = DecodeConfig(max_length=n_tokens, min_length=n_tokens - 1)
    source = random_corpus(vocab_size, 256, n_pairs=8_192).src
    figures: dict[str, Any] = {"beam_size": 4, "tokens_of_a_translation": n_tokens, "batches": {}}
    for n_sentences in (8, 32) if setting.quick else (32, 128, 256, 512, 1_024):
        n_batches = 1 if setting.quick else 4
        sentences = sorted((source[i].tolist() for i in range(n_batches * n_sentences)), key=len, reverse=True)
        batches = [sentences[start : start + n_sentences] for start in range(0, len(sentences), n_sentences)]
        if setting.device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        requests = [SearchRequest(batch, decode) for batch in batches]
        backend.search(requests[0])  # to warm up
        started_at = time.perf_counter()
        n_produced = sum(found[0].n_tokens for request in requests for found in backend.search(request))
        seconds = time.perf_counter() - started_at
        figures["batches"][n_sentences] = {
            "sentences_per_second": n_batches * n_sentences / seconds,
            "tgt_tokens_per_second": n_produced / seconds,
            "peak_memory_bytes": peak_memory_bytes(device),
        }
        figures["capture_error"] = backend.capture_error
        keep(figures)
        say(f"batch {n_sentences}: {n_produced / seconds:,.0f} tok/s")


def decode_section(figures: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{int(n):,}",
            f"{one['sentences_per_second']:,.0f}",
            f"{one['tgt_tokens_per_second']:,.0f}",
            f"{one['peak_memory_bytes'] / 2**30:.1f} GiB",
        ]
        for n, one in figures["batches"].items()
    ]
    lines = [
        f"Base model of random weights, beam of {figures['beam_size']}, translations of "
        f"{figures['tokens_of_a_translation']} tokens.",
        "",
        *table(["sentences together", "sentences/s", "tok/s", "memory"], rows),
    ]
    if problem := figures.get("capture_error"):
        lines += ["", f"Without CUDA graphs: {problem}."]
    return lines


# --- A training run ---------------------------------------------------------------------------------------------------


def run_training(setting: Setting, keep: Keep) -> None:
    """Run `mt train` from text to a report, then measure the decoding speed of the trained model."""
    config = "demo" if setting.data is None else "multi30k"
    changes = [] if setting.data is None else text_settings(setting.data)
    # The remaining time is for preparation, averaging, the test sets and the decoding speed.
    train_seconds = min(300, 0.6 * setting.limit_seconds)
    changes += [f"train.device={setting.device}", "train.log_every=20", f"train.stop_after={train_seconds:.0f}s"]
    if setting.quick:
        n_steps = 300 if setting.data is None else 100
        changes += [f"train.max_steps={n_steps}", "train.warmup_steps=100"]
        changes += [f"train.validate_every={n_steps}", f"train.checkpoint_every={n_steps // 2}"]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        changes.append(f"data.prepared_dir={json.dumps(str(Path(folder) / 'prepared'))}")
        started_at = time.perf_counter()
        options = ["--config", config, "--run-dir", str(run_dir), *(f"--set={change}" for change in changes)]
        figures: dict[str, Any] = {"config": config, "told": run_mt("train", *options)}
        figures["seconds"] = time.perf_counter() - started_at
        figures["report"] = json.loads((run_dir / "report.json").read_text("utf-8"))
        lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
        figures["metrics"] = [json.loads(line) for line in lines]
        keep(figures)
        decoding = json.loads(run_mt("bench", "--model", str(run_dir), "--device", setting.device, "--json"))
        keep(figures | {"decoding": decoding})


def text_settings(folder: Path) -> list[str]:
    """Return `--set` values for the text in a folder: train, val or valid, test sets; each X.en and X.de, maybe .gz."""
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
            "(or test_NAME.en + test_NAME.de), each plain or with .gz at the end"
        )
    # JSON is valid YAML, whatever characters a path contains.
    values = {"data.train": [train], "data.valid": valid, "data.test": tests}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def training_section(figures: dict[str, Any]) -> list[str]:
    from mt.tools.bench import format_bench

    lines = [f"{figures['config']}.yaml, {figures['seconds']:.0f} s from text to report:", "", *code(figures["told"])]
    return [*lines, "", *code(format_bench(figures["decoding"]))] if "decoding" in figures else lines


# The most valuable first, for someone with little time on a GPU. The seconds are estimates, not yet measured on a GPU.
PARTS = {
    "tests": Part(
        "the tests marked cuda: attention, compilation, precisions, resume, memory, copies",
        run_tests,
        tests_section,
        seconds=150,
        least_seconds=30,
        largest_fraction=1 / 3,
    ),
    "bench-base": Part("mt bench of the base model", partial(run_bench, "base"), bench_section, 430, 75),
    "attention": Part(
        "implementations of attention, timed at 28-token sentences", run_attention, attention_section, 60, 20
    ),
    "decode": Part("decoding speed of the base model by batch size", run_decode, decode_section, 60, 20),
    "train": Part("a real training run with a BLEU score", run_training, training_section, 200, 100),
    "bench-big": Part("mt bench of the big model", partial(run_bench, "big"), bench_section, 370, 90),
}


# --- One part after the other -----------------------------------------------------------------------------------------


def run_parts(names: Sequence[str], setting: Setting, seconds_left: Callable[[], float]) -> list[Record]:
    """Run each part that the remaining time is enough for, and return the record of every part.

    Args:
        seconds_left: returns infinity if there is no budget.
    """
    records = []
    for i, name in enumerate(names):
        part, left = PARTS[name], max(0.0, seconds_left())
        limit = min(LIMIT_SECONDS, left if i == len(names) - 1 else left * part.largest_fraction)
        least = QUICK_LEAST_SECONDS if setting.quick else part.least_seconds
        if limit >= least:
            records.append(run_part(name, setting, limit))
        else:
            in_full = "" if setting.quick else f" (about {part.seconds} s in full)"
            reason = f"it needs at least {least} s{in_full}, and {int(limit)} s were left: increase --minutes"
            records.append(leave_out(name, setting, reason))
        write_report(setting.out)
    return records


def leave_out(name: str, setting: Setting, reason: str) -> Record:
    """Record why a part is not run, without replacing the result of an earlier run."""
    record = replace(Record.begin(name, setting), outcome="left out", error=reason)
    if not (path := setting.out / f"{name}.json").exists():
        record.write(path)
    say(f"== {name}: left out: {record.error}")
    return record


def run_part(name: str, setting: Setting, limit: float = LIMIT_SECONDS) -> Record:
    """Run a part in its own process, write its record, and return it."""
    say(f"== {name}: {PARTS[name].what}, {limit:.0f} s at most")
    started_at, path = time.perf_counter(), setting.out / f"{name}.json"
    Record.begin(name, setting).write(path)
    command = [sys.executable, __file__, "--inside", str(path), "--limit", str(limit)]
    command += ["--device", "cuda:0" if setting.device != "cpu" else setting.device]
    command += ["--quick" if setting.quick else "--full", name]
    if setting.data is not None:
        command += ["--data", str(setting.data)]
    process = subprocess.Popen(command, env=environment_for(setting.device), start_new_session=True, stdout=sys.stderr)
    try:
        ended = {"outcome": "failed", "error": f"ended with status {process.wait(limit)}"}
    except BaseException as interruption:
        os.killpg(process.pid, signal.SIGKILL)  # and all processes that it has started
        process.wait()
        if not isinstance(interruption, subprocess.TimeoutExpired):
            raise
        ended = {"error": f"took longer than {limit:.0f} s"}
    record = replace(Record.read(path), seconds=time.perf_counter() - started_at)
    if record.outcome == "cut short":  # it did not record its own end
        record = replace(record, **ended)
    say(f"== {name}: {record.error or 'done'}, {record.seconds:.0f} s")
    return record.write(path)


def environment_for(device: str) -> dict[str, str]:
    """Return an environment that shows only the part's GPU, as cuda:0: tests and timers use the current device."""
    if device == "cpu":
        return dict(os.environ)
    index = int(device.partition(":")[2] or 0)
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return {**os.environ, "CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index)}


def run_inside(name: str, setting: Setting, path: Path) -> None:
    """Run the part in this process, and write the result to its record."""
    os.chdir(ROOT)  # configs/demo.yaml has relative paths

    def keep(figures: dict[str, Any]) -> None:
        replace(Record.read(path), figures=figures).write(path)

    ended: dict[str, Any] = {"outcome": "failed"}
    try:
        PARTS[name].run(setting, keep)
        ended = {"outcome": "done", "error": None}
    except (PartFailed, CommandFailed) as problem:
        ended["error"] = str(problem)
    except Exception as problem:
        traceback.print_exc()
        ended["error"] = f"{type(problem).__name__}: {problem}"[:1_000]
    replace(Record.read(path), **ended).write(path)


# --- The report -------------------------------------------------------------------------------------------------------


def report(records: Sequence[Record]) -> str:
    """Return the Markdown of the parts that have run."""
    blocks = []
    for record in records:
        blocks += [
            f"### {record.part}: {PARTS[record.part].what}",
            f"**{record.outcome.capitalize()}**: {record.error}" if record.error else "",
            "\n".join(PARTS[record.part].section(record.figures) if record.figures else []),
            f"{record.seconds:.0f} s in all{', small sizes' * record.quick}." if record.seconds is not None else "",
            f"{record.started_at[:10]}: {basis_of(record)}.",
        ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def basis_of(record: Record) -> str:
    """Return the hardware, versions and commit of a part."""
    hardware, versions = record.hardware, record.versions
    where = f"{hardware['cpu']}, {hardware['threads']} threads"
    if "gpu" in hardware:
        gib = hardware["gpu_memory_bytes"] / 2**30
        where = f"{hardware['gpu']} ({gib:.0f} GiB, CUDA {hardware['cuda']}), {where}"
    commit, plus, changes = (record.commit or "not known").partition("+")
    return f"{where}; torch {versions['torch']}, Python {versions['python']}; commit {commit[:12]}{plus}{changes}"


def write_report(out: Path) -> str | None:
    """Write and return `report.md` on all parts that have results in the folder. Return None if there are none."""
    paths = [out / f"{name}.json" for name in PARTS]
    records = [Record.read(path) for path in paths if path.exists()]
    if not records:
        return None
    text = report(records)
    (out / "report.md").write_text(text, "utf-8")
    return text


# --- The command ------------------------------------------------------------------------------------------------------


def arguments_of_the_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh", description="Check everything that needs a GPU, in parts."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)}; or all, list, report"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        metavar="M",
        help="total time: parts that do not fit are left out",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="text for the training run: train.en, train.de, val.…")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=ROOT / "runs" / "gpu-check", help="folder for the results"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", default=None, help="small sizes, the default on a CPU")
    parser.add_argument("--full", action="store_false", dest="quick", help="full sizes, even on a CPU")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.parts and arguments.minutes == math.inf:
        parser.error("the following arguments are required: PART or --minutes")
    return arguments


def main() -> int:
    started_at, arguments = time.monotonic(), arguments_of_the_command()
    if not arguments.minutes > 0:
        return refuse(f"--minutes: expected a number above 0, such as 8, got {arguments.minutes:g}")
    if arguments.parts == ["list"]:
        print("\n".join(f"{name:<12}{part.what} (estimate: {part.seconds} s)" for name, part in PARTS.items()))
        return 0
    if arguments.parts == ["report"]:
        if (text := write_report(arguments.out)) is None:
            return refuse(f"{arguments.out} has no results: run a part first")
        print(text, end="")
        return 0
    names = list(PARTS) if arguments.parts in ([], ["all"]) else arguments.parts
    if unknown := [name for name in names if name not in PARTS]:
        return refuse(f"{unknown[0]}: unknown part: give parts ({', '.join(PARTS)}), or only all, list or report")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return refuse(f"{sys.executable} lacks {', '.join(missing)}: set PYTHON to a Python that has them")
    if arguments.data is not None and not arguments.data.is_dir():
        return refuse(f"--data {arguments.data}: folder not found")
    from mt.errors import ConfigError
    from mt.system.device import choose_device

    try:
        device = choose_device(arguments.device)
    except ConfigError as error:
        return refuse(str(error.renamed(lambda key: f"--{key}")))
    quick = device.type == "cpu" if arguments.quick is None else arguments.quick
    data = None if arguments.data is None else arguments.data.resolve()
    setting = Setting(data, arguments.out.resolve(), str(device), quick, arguments.limit)
    if arguments.inside is not None:
        run_inside(names[0], setting, arguments.inside)
        return 0
    setting.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part in progress is killed too
    ends_at = started_at + 60 * arguments.minutes - REPORT_SECONDS
    records = run_parts(names, setting, lambda: ends_at - time.monotonic())
    print((setting.out / "report.md").read_text("utf-8"), end="")
    for outcome in ("left out", "cut short", "failed"):
        if found := [record.part for record in records if record.outcome == outcome]:
            say(f"scripts/gpu_check.sh: {outcome}: {', '.join(found)}")
    outcomes = {record.outcome for record in records}
    return 0 if "done" in outcomes and outcomes <= {"done", "left out"} else 1


if __name__ == "__main__":
    sys.exit(main())
