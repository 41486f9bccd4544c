from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mt.checkpoint import ModelFolder, save_model_folder
from mt.config.loading import dump_config
from mt.config.settings import DecodeConfig, ModelConfig, RunConfig
from mt.data.packing import PlanState
from mt.decode.translator import Translator
from mt.errors import ConfigError, DataError
from mt.model import Transformer
from mt.system import device
from mt.system.device import _measured_flops, data_sheet_flops, peak_flops, peak_memory_bytes
from mt.text.prepare import first_test_pairs, prepare_corpus
from mt.text.tokenizer import EOS_ID, PAD_ID
from mt.tools import bench
from mt.training.engine import Engine, OutOfMemory, Update
from tests.clock import Clock
from tests.conftest import Run
from tests.toys import small_model, toy_config, write_lines

CPU = torch.device("cpu")


def toy(tmp_path: Path, **train: object) -> RunConfig:
    config = toy_config(tmp_path, **{"batch_tokens": 200, **train})
    return replace(config, model=replace(config.model, dropout=0.1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the bench. Computations take no time unless a test says so."""
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def engine_of(config: RunConfig) -> Engine:
    engine = bench.engine_over(config, None)
    engine.begin()
    return engine


# --- FLOPs of the model, peak FLOP/s of the device --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gflop"),
    [(ModelConfig(), 0.365), (ModelConfig(d_model=1024, n_heads=16, d_ff=4096), 1.26)],
    ids=["base", "big"],
)
def test_the_flops_per_target_token_of_the_models_of_the_paper_equal_the_formula(
    config: ModelConfig, gflop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transformer, "reset_parameters", lambda model: None)  # drawing 200 M numbers takes seconds
    with torch.device("meta"):
        model = Transformer(config, vocab_size=32_768, pad_id=PAD_ID)
    d, f = config.d_model, config.d_ff
    encoder, decoder = 4 * d * d + 2 * d * f, 8 * d * d + 2 * d * f
    assert model.training_flops(1, 1) == 6 * (6 * encoder + 6 * decoder + 32_768 * d)
    assert model.training_flops(1_000, 1_000) / 1_000 / 1e9 == pytest.approx(gflop, rel=3e-3)


def test_source_tokens_cost_the_encoder_and_the_cross_attention_keys_and_values() -> None:
    model = small_model()  # d_model 32, d_ff 48, 2 + 2 layers, 50 pieces
    encoder, keys_and_values = 4 * 32 * 32 + 2 * 32 * 48, 2 * 32 * 32
    assert model.training_flops(10, 0) == 6 * 10 * 2 * (encoder + keys_and_values)
    assert model.training_flops(0, 10) == 6 * 10 * (2 * (6 * 32 * 32 + 2 * 32 * 48) + 50 * 32)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA B200", 2_250),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_data_sheet_is_found_by_the_name_of_the_device(
    name: str, tflops: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    found = data_sheet_flops(torch.device("cuda"), torch.bfloat16)
    assert (None if found is None else found / 1e12) == tflops
    assert data_sheet_flops(torch.device("cuda"), torch.float32) is None


def test_bf16_that_a_gpu_emulates_is_not_on_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert data_sheet_flops(torch.device("cuda"), torch.float16) == 125e12
    assert data_sheet_flops(torch.device("cuda"), torch.bfloat16) is None


def test_the_peak_flops_of_a_cpu_are_measured_once_with_short_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, sizes = Clock(), list[int]()
    monkeypatch.setattr(device, "time", clock)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a))
        is_fastest = len(sizes) == 9
        clock.now += {512: 1 / 512, 1024: 1 / 128 if is_fastest else 1 / 64}[len(a)]
        return a

    monkeypatch.setattr(torch, "mm", product)
    assert data_sheet_flops(CPU, torch.float32) is None
    _measured_flops.cache_clear()
    try:
        # 2 * 1024^3 operations in 1/128 s; five products of 2048 would take over a tenth of a second.
        assert [peak_flops(CPU, torch.float32) for _ in range(2)] == [2**31 * 128] * 2
    finally:
        _measured_flops.cache_clear()
    assert sizes == [512] * 6 + [1024] * 6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status of Linux")
def test_peak_memory_equals_the_count_of_the_system() -> None:
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    (high_water,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    assert peak_memory_bytes(CPU) == pytest.approx(1024 * high_water, rel=0.02)


# --- Made-up sentences ------------------------------------------------------------------------------------------------


def test_random_sentences_have_the_lengths_of_real_ones() -> None:
    corpus = bench.random_corpus(1_000, 256, n_pairs=20_000)
    src, tgt = corpus.src.lengths, corpus.tgt.lengths
    assert tgt.mean() == pytest.approx(28, rel=0.02)
    assert src.sum() / tgt.sum() == pytest.approx(0.95, rel=0.01)
    assert np.corrcoef(src, tgt)[0, 1] > 0.9
    assert (src.min(), tgt.min()) >= (2, 2)
    assert max(src.max(), tgt.max()) <= 256
    for side in (corpus.src, corpus.tgt):
        assert all(side[i][-1] == EOS_ID and (side[i][:-1] > EOS_ID).all() for i in range(1_000))
        assert side.ids.max() < 1_000
        # Rank r has a probability in proportion to 1 / r: the first 31 of 996 ranks are half of all tokens.
        inside = side.ids[side.ids > EOS_ID]
        assert np.mean(inside < 4 + 31) == pytest.approx(0.5, abs=0.01)
    assert bench.random_corpus(1_000, 20, n_pairs=1_000).src.lengths.max() == 20


# --- Training ---------------------------------------------------------------------------------------------------------


def test_an_update_measured_in_parts_equals_that_of_the_engine(tmp_path: Path) -> None:
    config = toy(tmp_path, micro_batch_tokens=100, ema_decay=0.9)
    whole, parts = engine_of(config), engine_of(config)
    timer = bench.StepTimer(CPU)
    for update in whole.updates(PlanState(), 1, 3):
        whole.step(update, bench._lr(whole, update))
        bench.step_in_parts(parts, update, timer)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, parts.model.get_parameter(name)), name
    assert whole.average is not None
    assert parts.average is not None
    averages = parts.average.state_dict()
    assert all(torch.equal(average, averages[name]) for name, average in whole.average.state_dict().items())


def test_the_times_of_the_parts_add_up_to_the_time_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    clock.slow(monkeypatch, Engine, "_assemble", 0.5)
    clock.slow(monkeypatch, Engine, "micro_batch_loss", 1)
    clock.slow(monkeypatch, torch.Tensor, "backward", 2)
    clock.slow(monkeypatch, torch.optim.Adam, "step", 4)
    speed = bench.bench_training(toy(tmp_path), 3, random_data=True)
    assert speed["split_seconds"] == {"input_stall": 0.5, "forward": 1, "backward": 2, "optimizer": 4}
    assert speed["step_seconds"] == 7.5
    # The second step of the warm-up takes as long as the first, which ends the warm-up.
    assert (speed["warm_up_steps"], speed["warm_up_seconds"]) == (2, 15)


def test_the_figures_cover_only_the_timed_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    config = toy(tmp_path, micro_batch_tokens=100)
    clock.slow(monkeypatch, Engine, "step", 0.25)
    monkeypatch.setattr(bench, "peak_flops", lambda device, dtype: 1e9)
    speed = bench.bench_training(config, 4, random_data=True)
    engine = engine_of(config)
    timed = list(engine.updates(PlanState(), 1, speed["warm_up_steps"] + 4))[speed["warm_up_steps"] :]
    n_src, n_tgt = sum(u.n_src_tokens for u in timed), sum(u.n_tgt_tokens for u in timed)
    assert (speed["n_steps"], speed["n_micro_batches"], speed["step_seconds"]) == (4, 2, 0.25)
    # Four updates take one second.
    assert (speed["tgt_tokens_per_second"], speed["src_tokens_per_second"]) == (n_tgt, n_src)
    positions = sum(len(batch.tgt_inputs) for update in timed for batch in update.micro_batches.values())
    assert speed["tgt_fill"] == pytest.approx(n_tgt / positions)
    flops = engine.model.training_flops(n_src, n_tgt)
    assert speed["flops_per_tgt_token"] == pytest.approx(flops / n_tgt)
    assert (speed["flops_per_second"], speed["mfu"]) == (flops, flops / 1e9)
    assert (speed["device"], speed["execution"], speed["peak_is_measured"]) == ("cpu", "fp32", True)


@pytest.mark.parametrize(("timed_seconds", "n_steps"), [(9.0, 5), (0.0, 3)])
def test_without_steps_the_number_of_timed_updates_depends_on_their_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, timed_seconds: float, n_steps: int
) -> None:
    monkeypatch.setattr(bench, "TIMED_SECONDS", timed_seconds)
    monkeypatch.setattr(bench, "FEWEST_STEPS", 3)
    # The first steps are slow. The fourth, of two seconds, is hardly faster than the third; it determines the number.
    clock.slow(monkeypatch, Engine, "step", lambda engine, update, lr: {1: 16, 2: 8, 3: 2.25}.get(update.step, 2))
    speed = bench.bench_training(toy(tmp_path), random_data=True)
    assert (speed["warm_up_steps"], speed["n_steps"], speed["step_seconds"]) == (4, n_steps, 2)


def test_out_of_memory_names_the_setting_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(engine: Engine, update: Update, lr: float) -> Any:
        raise OutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(ConfigError) as caught:
        bench.bench_training(toy(tmp_path, micro_batch_tokens=100), random_data=True)
    assert str(caught.value) == (
        "train.micro_batch_tokens: micro-batches of 100 target tokens do not fit into the memory of cpu (CUDA out of "
        "memory. Tried to allocate 2.00 GiB.). Set it to 64."  # half of it is less than data.max_tokens
    )


# --- Decoding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with random weights; its text is next to it."""
    folder = tmp_path_factory.mktemp("bench")
    config = toy_config(folder / "text")
    config = replace(config, decode=replace(config.decode, max_length=6))
    corpus = prepare_corpus(config)
    vocab_size = corpus.manifest["tokenizer"]["vocab_size"]
    model = Transformer(config.model, vocab_size=vocab_size, pad_id=PAD_ID)
    manifest = {"vocab_size": vocab_size, "corpus_fingerprint": corpus.fingerprint}
    save_model_folder(folder / "model", model.state_dict(), config, corpus.tokenizer_paths, manifest)
    return folder / "model"


def take_a_quarter_of_a_second_per_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(translator: Translator, lines: Sequence[str], decode: DecodeConfig, **options: Any) -> float:
        return len(lines) / 4

    clock.slow(monkeypatch, Translator, "translate_lines", seconds)


def test_a_model_translates_its_own_test_set_by_default(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    take_a_quarter_of_a_second_per_line(clock, monkeypatch)
    figures = bench.bench_decoding(model_folder, precision="fp32", changes={"beam_size": 2}, n_rounds=3)
    assert figures["what"] == "decoding"
    assert figures["data"].startswith("held_out: ")
    assert figures["n_lines"] == 3 * 20
    # With random weights, translations rarely end before the maximum length.
    assert 3 * 20 * 5 < figures["n_tgt_tokens"] <= 3 * 20 * 6
    assert (figures["seconds"], figures["sentences_per_second"]) == (15, 4)
    assert figures["tgt_tokens_per_second"] == figures["n_tgt_tokens"] / 15
    assert (figures["beam_size"], figures["batch_tokens"], figures["execution"]) == (2, 4_096, "fp32")
    assert figures["latency_seconds"] == {"p50": 0.25, "p95": 0.25, "n": 20}


def test_latency_is_measured_on_as_many_lines_as_the_time_allows(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    take_a_quarter_of_a_second_per_line(clock, monkeypatch)
    monkeypatch.setattr(bench, "LATENCY_SECONDS", 1.0)
    # The fifth line ends after more than one second.
    assert bench.bench_decoding(model_folder)["latency_seconds"] == {"p50": 0.25, "p95": 0.25, "n": 5}


def test_without_the_prepared_corpus_the_original_text_is_read(model_folder: Path) -> None:
    prepared, aside = model_folder.parent / "text" / "prepared", model_folder.parent / "aside"
    folder = ModelFolder.open(model_folder)
    of_model = folder.config, folder.manifest["corpus_fingerprint"]
    with_it = first_test_pairs(*of_model)
    prepared.rename(aside)
    try:
        assert first_test_pairs(*of_model) == with_it
    finally:
        aside.rename(prepared)
    assert [pair.src for pair in with_it[1]] == (prepared.parent / "test.en").read_text("utf-8").splitlines()


def test_bench_can_translate_a_given_file(model_folder: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "text.en", ["bar dest", "", "fin gost kun"])
    figures = bench.bench_decoding(model_folder, path, precision="fp32")
    assert (figures["data"], figures["n_lines"]) == (str(path), 3)
    with pytest.raises(DataError) as caught:
        bench.bench_decoding(model_folder, write_lines(tmp_path / "blank", ["", " "]))
    assert str(caught.value) == f"{tmp_path / 'blank'} has no text to translate"


# --- The command ------------------------------------------------------------------------------------------------------


def test_with_json_standard_output_has_only_json(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(dump_config(toy(tmp_path)), "utf-8")
    command = [sys.executable, "-m", "mt", "bench", "--config", tmp_path / "toy.yaml", "--steps", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["what"], figures["name"], figures["n_steps"]) == ("training", "toy", 2)
    assert figures["data"].startswith(str(tmp_path / "prepared"))
    assert "timing 2 updates" in done.stderr


def test_options_reach_the_measuring_functions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(bench, "bench_training", lambda *arguments: calls.append(arguments) or {"a": 1})
    monkeypatch.setattr(bench, "bench_decoding", lambda *a, **options: calls.append((a, options)) or {"a": 1})
    training = run("bench", "--config", "base", "--set", "train.seed=7", "--steps", "3", "--random-data", "--json")
    assert training == (0, '{"a": 1}\n', "")
    (config, n_steps, is_random) = calls.pop()
    assert (config.name, config.train.seed, n_steps, is_random) == ("base", 7, 3, True)
    decoding = run("bench", "--model", "m", "--input", "i", "--beam-size", "5", "--precision", "fp32", "--json")
    assert decoding == (0, '{"a": 1}\n', "")
    options = {"n_rounds": None, "changes": {"beam_size": 5}, "device": "auto", "precision": "fp32"}
    assert calls == [((Path("m"), Path("i")), options)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--config measures training and --model measures decoding. Give exactly one of them."),
        (
            "--config base --model m",
            "--config measures training and --model measures decoding. Give exactly one of them.",
        ),
        ("--config base --steps 0", "--steps: expected at least 1, got 0"),
        ("--config base --input x", "--input is for decoding. Use it with --model."),
        ("--config base --device cpu", "--device is for decoding. Use it with --model."),
        ("--model m --random-data", "--random-data is for training. Use it with --config."),
        ("--model m --set train.seed=1", "--set is for training. Use it with --config."),
        ("--model m --beam-size 0", "--beam-size: expected an integer from 1 to 64, got 0"),
        ("--model m --device gpu", "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--model nowhere", "nowhere: no such folder. Give a run folder, a checkpoint or a model folder."),
    ],
)
def test_incompatible_options_are_refused(run: Run, options: str, message: str, model_folder: Path) -> None:
    arguments = [str(model_folder) if option == "m" else option for option in options.split()]
    assert run("bench", *arguments) == (2, "", f"error: {message}\n")


def test_the_table_of_training_shows_all_figures() -> None:
    figures = {
        "what": "training",
        "name": "base",
        "data": "random sentences with WMT14's lengths",
        "device": "cuda:0",
        "execution": "bf16, compiled",
        "n_parameters": 63_081_472,
        "batch_tokens": 25_000,
        "n_micro_batches": 1,
        "warm_up_steps": 3,
        "warm_up_seconds": 42.25,
        "n_steps": 400,
        "step_seconds": 0.04882,
        "tgt_tokens_per_second": 504_123.4,
        "src_tokens_per_second": 480_001.2,
        "split_seconds": {"input_stall": 0.0001, "forward": 0.0149, "backward": 0.03, "optimizer": 0.005},
        "src_fill": 0.945,
        "tgt_fill": 0.9912,
        "peak_memory_bytes": 30 * 2**30,
        "reserved_memory_bytes": 31 * 2**30,
        "flops_per_tgt_token": 0.3721e9,
        "flops_per_second": 187.4e12,
        "peak_flops_per_second": 989e12,
        "peak_is_measured": False,
        "mfu": 0.1895,
        "hardware": {"gpu": "NVIDIA H100 80GB HBM3"},
    }
    assert bench.format_bench(figures).splitlines() == [
        "model         base, 63.1 M parameters",
        "device        cuda:0 (NVIDIA H100 80GB HBM3) in bf16, compiled",
        "data          random sentences with WMT14's lengths",
        "speed         504,123 target tokens/s, 480,001 source",
        "update        48.8 ms for up to 25,000 target tokens in 1 micro-batch; mean of 400",
        "  input stall       0.1 ms    0.2%",
        "  forward          14.9 ms   29.8%",
        "  backward         30.0 ms   60.0%",
        "  optimizer         5.0 ms   10.0%",
        "packing       94.5% of source and 99.1% of target positions hold tokens",
        "work          0.372 GFLOP per target token: 187.4 TFLOP/s, 18.9% of the device's 989 TFLOP/s (data sheet)",
        "warm-up       42.2 s, 3 updates",
        "memory        peak of 30.00 GiB, 31.00 GiB reserved",
    ]


def test_the_table_of_decoding_shows_all_figures() -> None:
    figures = {
        "what": "decoding",
        "model": "runs/base",
        "data": "newstest2014: sacrebleu:wmt14/full",
        "device": "cpu",
        "execution": "bf16",
        "n_parameters": 63_081_472,
        "beam_size": 4,
        "batch_tokens": 4_096,
        "n_lines": 3_003,
        "n_tgt_tokens": 90_123,
        "load_seconds": 1.2,
        "seconds": 100.0,
        "sentences_per_second": 30.03,
        "tgt_tokens_per_second": 901.23,
        "latency_seconds": {"p50": 0.25, "p95": 0.5, "n": 80},
        "peak_memory_bytes": 2**30,
        "hardware": {"cpu": "Some CPU", "threads": 2},
    }
    assert bench.format_bench(figures).splitlines() == [
        "model         runs/base, 63.1 M parameters",
        "device        cpu (Some CPU, 2 threads) in bf16",
        "data          newstest2014: sacrebleu:wmt14/full",
        "load          1.2 s",
        "speed         30.0 sentences/s, 901 target tokens/s",
        "search        beam size 4, batches of 4,096 source tokens",
        "text          3,003 lines, 90,123 target tokens, 100.0 s",
        "latency       median 250.0 ms per line, one at a time; 95% of 80 lines take up to 500.0 ms",
        "memory        peak of 1.00 GiB (the whole process)",
    ]
