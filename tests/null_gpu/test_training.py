"""Training updates on a null GPU: launches, waits, graphs, compilations, memory. Values have no meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from mt.config.settings import RunConfig
from mt.data.batch import PackedBatch
from mt.data.packing import PlanState
from mt.tools import bench
from mt.training.engine import Engine, OutOfMemory
from tests.null_gpu.device import NullGPU, note, waits
from tests.toys import toy_config

VOCABULARY, UPDATE = 32_000, 25_000
CORPUS = bench.random_corpus(VOCABULARY, 256, n_pairs=8_000)
# Two for the embeddings of source and target, one for all encoder layers, one for all decoder layers.
N_GRAPHS = 4
WIDE = {"ffn_sharing": "wide", "d_ff": 8_192, "activation": "relu2"}
BASE = {"d_model": 512, "n_heads": 8, "d_ff": 2048, "dropout": 0.1}


def config_for(
    folder: Path,
    *,
    n_layers: int = 1,
    attention_dropout: float = 0.0,
    variant: Mapping[str, Any] = MappingProxyType({}),
    **train: Any,
) -> RunConfig:
    """Return the config of the base model or a variant of it, with fewer layers by default."""
    config = toy_config(folder, **{"batch_tokens": UPDATE, "device": "auto", "precision": "auto", **train})
    shape = {**BASE, "n_encoder_layers": n_layers, "n_decoder_layers": n_layers, "attention_dropout": attention_dropout}
    shape |= variant
    return replace(config, model=replace(config.model, **shape), data=replace(config.data, max_tokens=256))


def started_engine(config: RunConfig) -> Engine:
    engine = Engine(config, CORPUS, VOCABULARY)
    engine.begin()
    return engine


def updates(engine: Engine, n: int) -> Iterator[dict[str, int]]:
    """Run updates, and yield the counts of each."""
    with engine.prefetched_updates(PlanState(), 1, n) as planned:
        while update := next(planned, None):
            with NullGPU().counting() as found:
                engine.step(update, lr=1e-3)
            del update  # free it before the thread assembles the next one, which may reuse its memory
            assert found["forbidden"] == 0
            yield found


def launches(found: dict[str, int]) -> int:
    return found["kernel"] + found["triton_kernel"] + found["matmul"]


def assert_steady(engine: Engine, what: str, most_launches: int, n_updates: int = 6) -> None:
    """Require that updates after the first do not wait or compile, and that later ones allocate no memory.

    Args:
        most_launches: maximum launches per micro-batch, including a fraction of those of the optimizer.
    """
    found: dict[str, int] = {}
    n_growing = 0
    with ExitStack() as after_the_first:
        for number, found in enumerate(updates(engine, n_updates)):
            if number == 0:
                after_the_first.enter_context(torch._dynamo.config.patch(error_on_recompile=engine.execution.compiles))
                continue
            assert waits(found) == {}
            n_growing += number >= 3 and found["device_malloc"] > 0
    # Prefetched updates allocate memory during the first updates, or a later one on a busy machine. Tile sizes vary.
    assert n_growing <= 1 or engine.execution.attention == "tiles"
    n = launches(found) / engine.budget.n_micro_batches
    peak = torch.cuda.max_memory_allocated() / 2**30
    note(what, found, f"{n:,.0f} launches a micro-batch, peak {peak:.1f} GiB")
    assert 100 < n <= most_launches


# --- The device -------------------------------------------------------------------------------------------------------


@pytest.mark.null_gpu
def test_an_eager_update_does_not_wait(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, compile=False))
    assert engine.device == torch.device("cuda", 0)
    assert engine.execution.note == "bf16, not compiled (train.compile is false)"
    assert engine.budget.n_micro_batches == 1
    assert_steady(engine, "base, 1 + 1 layers, eager", 320)


@pytest.mark.null_gpu
def test_a_compiled_update_of_base_does_not_wait_and_compiles_four_graphs(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, n_layers=6))
    assert engine.execution.note == "bf16, compiled"
    torch._dynamo.utils.counters.clear()
    next(updates(engine, 1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == N_GRAPHS
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_steady(engine, "base, compiled", 750)


@pytest.mark.null_gpu
def test_several_compiled_micro_batches_compile_once(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, micro_batch_tokens=8_192))
    assert engine.budget.n_micro_batches == 4
    torch._dynamo.utils.counters.clear()
    next(updates(engine, 1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == N_GRAPHS
    assert_steady(engine, "base, 1 + 1 layers, compiled, 4 micro-batches", 250)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    ("what", "settings", "most_launches"),
    [
        ("fp16, clipping, EMA", {"precision": "fp16", "clip_norm": 1.0, "ema_decay": 0.999}, 350),
        ("fp32", {"precision": "fp32"}, 500),
        ("activation checkpointing", {"activation_checkpointing": True}, 400),
        ("4 loss chunks", {"loss_chunks": 4}, 510),
        ("attention dropout", {"attention_dropout": 0.1}, 350),
    ],
)
def test_an_eager_update_with_other_settings_does_not_wait(
    tmp_path: Path, what: str, settings: dict[str, Any], most_launches: int
) -> None:
    engine = started_engine(config_for(tmp_path, **{"compile": False, **settings}))
    assert_steady(engine, f"base, 1 + 1 layers, eager, {what}", most_launches)


MODERN = {
    "norm": "pre",
    "norm_kind": "rms",
    "activation": "swiglu",
    "bias": False,
    "positions": "rotary",
    "n_kv_heads": 2,
    "qk_norm": True,
    "tied_embeddings": "none",
    "layer_dropout": 0.1,
    "word_dropout": 0.1,
    "zero_init_out": True,
}


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    ("what", "variant", "most_launches"),
    [
        ("modern", MODERN, 600),
        ("DeepNorm, learned positions, ReLU squared, wide", {**WIDE, "positions": "learned", "norm": "deepnorm"}, 400),
        ("relative positions", {"positions": "relative", "n_kv_heads": 4}, 400),
        ("ALiBi", {"positions": "alibi"}, 350),
    ],
)
def test_an_eager_update_of_a_variant_does_not_wait(
    tmp_path: Path, what: str, variant: dict[str, Any], most_launches: int
) -> None:
    engine = started_engine(config_for(tmp_path, compile=False, variant=variant))
    assert_steady(engine, f"base, 1 + 1 layers, eager, {what}", most_launches)


@pytest.mark.null_gpu
def test_a_compiled_update_of_a_modern_variant_compiles_four_graphs(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, n_layers=2, variant=MODERN))
    assert engine.execution.note == "bf16, compiled"
    torch._dynamo.utils.counters.clear()
    next(updates(engine, 1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == N_GRAPHS
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_steady(engine, "base, 2 + 2 layers, compiled, modern", 600)


@pytest.mark.null_gpu
def test_a_compiled_update_with_fp16_clipping_ema_checkpointing_and_loss_chunks_does_not_wait(
    tmp_path: Path,
) -> None:
    settings = {"activation_checkpointing": True, "loss_chunks": 4, "clip_norm": 1.0, "ema_decay": 0.999}
    engine = started_engine(config_for(tmp_path, precision="fp16", **settings))
    assert engine.execution.note == "fp16, compiled"
    assert_steady(engine, "base, 1 + 1 layers, compiled, fp16, all settings", 400)


@pytest.mark.null_gpu
def test_the_moving_average_needs_few_launches_and_no_memory(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, n_layers=6, compile=False, ema_decay=0.999))
    n_allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
    with NullGPU().counting() as found:
        engine.average.update(1, engine.optimizer.was_skipped)
    note("moving average of base", found)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == n_allocations
    assert waits(found) == {}
    assert 0 < launches(found) <= 10


# --- Captured passes --------------------------------------------------------------------------------------------------

SMALL = 5_000  # target tokens


def peak_of_captured(engine: Engine, what: str, n_updates: int = 4) -> int:
    """Run updates whose passes are captured in the second. Return the peak memory in bytes of the later ones."""
    found: list[dict[str, int]] = []
    with ExitStack() as after_the_first:
        for counted in updates(engine, n_updates):
            found.append(counted)
            if len(found) == 1:
                after_the_first.enter_context(torch._dynamo.config.patch(error_on_recompile=True))
            if len(found) == 2:
                torch.cuda.reset_peak_memory_stats()
    assert engine.why_not_captured is None
    assert [one["capture"] for one in found] == [0, 1, *[0] * (n_updates - 2)]
    assert [one["replay"] for one in found] == [0, *[1] * (n_updates - 1)]
    assert all(waits(one) == {} and one["device_malloc"] == 0 and launches(one) < 90 for one in found[2:])
    note(what, found[-1])
    return torch.cuda.max_memory_allocated()


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention_dropout": 0.1, "variant": {"positions": "relative"}},
        pytest.param(
            {"precision": "fp16", "clip_norm": 1.0, "ema_decay": 0.999, "loss_chunks": 2}, marks=pytest.mark.slow
        ),
        pytest.param({"variant": MODERN}, marks=pytest.mark.slow),
    ],
)
def test_a_small_update_is_captured(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = config_for(tmp_path, batch_tokens=SMALL, **settings)
    eager = started_engine(replace(config, train=replace(config.train, cuda_graphs=False)))
    assert eager.why_not_captured == "train.cuda_graphs is false"
    at_rest = torch.cuda.memory_allocated()
    list(updates(eager, 2))
    of_eager = torch.cuda.max_memory_allocated() - at_rest
    del eager
    torch.compiler.reset()
    engine = started_engine(config)
    at_rest = torch.cuda.memory_allocated()
    peak = peak_of_captured(engine, f"base, 1 + 1 layers, captured, {SMALL:,} tokens, {settings}")
    assert peak - at_rest < 1.05 * of_eager + 2**20


@pytest.mark.null_gpu
@pytest.mark.parametrize("fails", ["at the start", "inside"])
def test_training_continues_without_graphs_if_a_capture_fails(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, loss_of = started_engine(config_for(tmp_path, batch_tokens=SMALL)), Engine._loss_of

    def waiting_loss(engine: Engine, batch: PackedBatch) -> torch.Tensor:
        loss = loss_of(engine, batch)
        if torch.cuda.is_current_stream_capturing():
            loss.item()
        return loss

    if fails == "inside":
        monkeypatch.setattr(Engine, "_loss_of", waiting_loss)
    else:
        monkeypatch.setenv("NULL_GPU_REFUSES_CAPTURE", "1")
    with engine.prefetched_updates(PlanState(), 1, 3) as planned:
        n_launched = []
        for update in planned:
            with NullGPU().counting() as found:
                engine.step(update, lr=1e-3)
            n_launched.append(launches(found))
    assert engine.why_not_captured
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert n_launched[2] > 100
    assert capsys.readouterr().err.count("warning: CUDA graphs cannot be used, so training is slower") == 1


@pytest.mark.null_gpu
def test_validation_can_use_the_memory_of_a_captured_pass(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, batch_tokens=SMALL))
    list(updates(engine, 3))
    before = torch.cuda.memory_allocated()
    engine.inference_model()
    assert torch.cuda.memory_allocated() < before - 50 * 2**20
    assert [one["capture"] for one in updates(engine, 2)] == [1, 0]


# --- Cards ------------------------------------------------------------------------------------------------------------


@pytest.mark.null_gpu(gib=12)
def test_auto_measures_the_compiled_code_that_will_run(tmp_path: Path) -> None:
    """With flash attention, the whole update fits this card as one micro-batch if compiled, but not if eager."""
    eager = started_engine(config_for(tmp_path, attention="flash", compile=False))
    assert eager.budget.n_micro_batches > 1
    del eager
    torch.cuda.empty_cache()
    torch._dynamo.utils.counters.clear()
    engine = started_engine(config_for(tmp_path, attention="flash"))
    assert engine.budget.n_micro_batches == 1
    assert_steady(engine, "base, 1 + 1 layers, compiled, flash, 12 GB card", 250)
    # Graphs of one measurement and of the chosen size. With flash attention, the loss is a graph, too.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * (N_GRAPHS + 1)
    assert torch.cuda.max_memory_reserved() < 12 * 2**30


@pytest.mark.null_gpu(gib=79.1)
def test_auto_compiles_once_if_eager_micro_batches_fit(tmp_path: Path) -> None:
    torch._dynamo.utils.counters.clear()
    engine = started_engine(config_for(tmp_path))
    next(updates(engine, 1))
    assert engine.budget.n_micro_batches == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == N_GRAPHS


@pytest.mark.slow
@pytest.mark.null_gpu(gib=23.5)
def test_base_trains_in_one_micro_batch_on_24_gb(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, n_layers=6))
    assert engine.budget.n_micro_batches == 1
    assert_steady(engine, "base, compiled, 24 GB card", 1_100)


@pytest.mark.null_gpu(capability=75, gib=15.6, name="Tesla T4")
def test_a_turing_card_trains_in_fp16_and_compiles(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path))
    assert engine.execution.note == "fp16, compiled"
    assert_steady(engine, f"base, 1 + 1 layers, sm_75, {engine.budget.n_micro_batches} micro-batches", 250)


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp32"},
        {"attention": "flash"},
        {"attention_dropout": 0.1, "variant": {"positions": "relative", "n_kv_heads": 4}},
        pytest.param({"variant": {"positions": "alibi", "activation": "gelu", "norm": "pre"}}, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_update_with_other_settings_does_not_wait(tmp_path: Path, settings: dict[str, Any]) -> None:
    engine = started_engine(config_for(tmp_path, **settings))
    assert engine.execution.compiles
    assert engine.execution.attention == settings.get("attention", "packed")
    assert_steady(engine, f"base, 1 + 1 layers, compiled, {settings}", 300)


RELATIVE = {"positions": "relative", "attention_dropout": 0.1}


@pytest.mark.null_gpu(capability=86, gib=24)
@pytest.mark.parametrize(
    ("precision", "variant"),
    [("fp32", {}), ("bf16", {"n_heads": 4}), ("fp32", {"n_heads": 32}), ("bf16", RELATIVE), ("fp32", RELATIVE)],
)
def test_attention_fits_into_the_shared_memory_of_small_cards(
    tmp_path: Path, precision: str, variant: dict[str, Any]
) -> None:
    engine = started_engine(config_for(tmp_path, precision=precision, compile=False, variant=variant))
    assert engine.execution.attention == "packed"
    assert len(list(updates(engine, 1))) == 1


@pytest.mark.null_gpu(capability=75, gib=15.6)
@pytest.mark.parametrize(("precision", "variant"), [("fp16", {"n_heads": 4}), ("fp32", {}), ("fp16", RELATIVE)])
def test_attention_fits_into_the_shared_memory_of_turing_cards(
    tmp_path: Path, precision: str, variant: dict[str, Any]
) -> None:
    engine = started_engine(config_for(tmp_path, precision=precision, compile=False, variant=variant))
    assert engine.execution.attention == "packed"
    assert len(list(updates(engine, 1))) == 1


@pytest.mark.null_gpu(gib=4)
def test_a_small_card_trains_base_in_small_micro_batches(tmp_path: Path) -> None:
    engine = started_engine(config_for(tmp_path, n_layers=6, compile=False))
    assert engine.budget.n_micro_batches > 4
    assert len(list(updates(engine, 2))) == 2
    assert torch.cuda.max_memory_allocated() > 2 * 2**30


@pytest.mark.null_gpu(gib=1.8)
def test_out_of_memory_does_not_change_the_weights_and_smaller_micro_batches_make_the_same_update(
    tmp_path: Path,
) -> None:
    engine = started_engine(config_for(tmp_path, micro_batch_tokens=UPDATE))
    (update,) = engine.updates(PlanState(), 1, 1)
    log = tmp_path / "log"
    with NullGPU().logging(log), pytest.raises(OutOfMemory) as caught:
        engine.step(update, lr=1e-3)
    assert "kernel" in log.read_text()
    assert "adam" not in log.read_text().lower()
    while True:
        engine.halve_micro_batches(caught.value)
        (smaller,) = engine.updates(PlanState(), 1, 1)
        try:
            with NullGPU().logging(log):
                engine.step(smaller, lr=1e-3)
            break
        except OutOfMemory:
            assert engine.micro_batch_tokens > 256
    assert "adam" in log.read_text().lower()
    assert (smaller.n_tgt_tokens, smaller.next_state) == (update.n_tgt_tokens, update.next_state)
