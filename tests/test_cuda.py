"""Tests that need a CUDA device. Without one, those that can run on the CPU do so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mt.config.settings import DecodeConfig, RunConfig
from mt.data.batch import assemble_tiles, assemble_varlen
from mt.data.packing import MicroBatchBudget, PlanState
from mt.decode.graphs import Graphs
from mt.decode.search import SearchRequest, search
from mt.loss import linear_label_smoothed_nll
from mt.model.cpu import training_kernels
from mt.system.device import choose_dtype, data_sheet_flops, peak_flops
from mt.tools import bench
from mt.training.engine import Engine, OutOfMemory
from tests.toys import V, attention, parallel, random_pairs, small_model, toy_config

CUDA = (
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
on_cuda = pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
# With flash attention, and with our own kernels.
on_each_attention = pytest.mark.parametrize(
    ("device", "is_packed"), [("cpu", False), *(pytest.param("cuda", is_own, marks=CUDA) for is_own in (False, True))]
)
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
VOCABULARY, LONGEST = 380, 64
CORPUS = bench.random_corpus(VOCABULARY, LONGEST, n_pairs=2_000)


@pytest.fixture(autouse=True)
def _free_the_memory_of_each_test() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def config_for(folder: Path, device: str, *, dropout: float = 0.0, **train: object) -> RunConfig:
    settings = {"batch_tokens": 2_048, "peak_lr": 2e-3, "precision": "auto", "compile": False, "ema_decay": None}
    config = toy_config(folder, **{**settings, "device": device, **train})
    return replace(config, model=replace(config.model, n_encoder_layers=2, n_decoder_layers=2, dropout=dropout))


def started_engine(config: RunConfig, corpus: Any = CORPUS) -> Engine:
    engine = Engine(config, corpus, VOCABULARY)
    engine.begin()
    return engine


def losses(engine: Engine, first_step: int, last_step: int, state: PlanState | None = None) -> list[float]:
    """Run updates, and return the loss of each in nats per token."""
    found = []
    with engine.prefetched_updates(state or PlanState(), first_step, last_step) as updates:
        for update in updates:
            outcome = engine.step(update, lr=2e-3)
            found.append((outcome.losses.sum() / update.n_tgt_tokens).item())
    return found


@torch.no_grad()
def distance(a: Engine, b: Engine) -> float:
    """Return the distance between the weights, relative to their size."""
    pairs = list(zip(a.model.parameters(), b.model.parameters(), strict=True))
    difference = torch.stack([(x - y).double().square().sum() for x, y in pairs]).sum().sqrt()
    return float(difference / torch.stack([x.double().square().sum() for x, _ in pairs]).sum().sqrt())


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm())


# --- Attention --------------------------------------------------------------------------------------------------------

PAIRS = random_pairs(60, longest=50, seed=3)
BUDGET = MicroBatchBudget(n_micro_batches=1, src_tokens=2_600, tgt_tokens=2_600, n_sentences=80)


@pytest.mark.usefixtures("flash_on_cpu")
@on_each_attention
@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_variable_length_attention_equals_attention_in_tiles_in_values_and_gradients(
    device: str, is_packed: bool, kind: str
) -> None:
    kernels = training_kernels(torch.device(device), torch.bfloat16, is_packed)
    corpus, order = parallel(PAIRS), np.arange(len(PAIRS))
    torch.manual_seed(0)
    sides = ("tgt" if kind != "encoder" else "src", "tgt" if kind == "decoder" else "src")
    q_rows, k_rows = (sum(len(pair[side == "tgt"]) + 1 for pair in PAIRS) for side in sides)
    content = [torch.randn(n, 4, 32) for n in (q_rows, k_rows, k_rows)]
    weight = torch.randn(q_rows, 4, 32)
    results = []
    for batch in (assemble_varlen(corpus, order, BUDGET, LONGEST), assemble_tiles(corpus, order, torch.bfloat16)):
        positions = {"src": batch.src_positions, "tgt": batch.tgt_positions}
        ids = {"src": batch.src_ids, "tgt": batch.tgt_outputs}
        rows = [_rows_by_sentence(corpus, ids[side], positions[side], side) for side in sides]
        inputs = [torch.zeros(len(ids[side]), 4, 32) for side in (sides[0], sides[1], sides[1])]
        for x, part, row in zip(inputs, content, (rows[0], rows[1], rows[1]), strict=True):
            x[row] = part
        leaves = [x.to(device, torch.bfloat16).requires_grad_() for x in inputs]
        layout = getattr(batch.to(torch.device(device)), f"{kind}_layout")
        out = attention(*leaves, layout, causal=kind == "decoder", kernels=kernels)[rows[0]]
        (out.float() * weight.to(device)).sum().backward()
        gradients = [leaf.grad[row] for leaf, row in zip(leaves, (rows[0], rows[1], rows[1]), strict=True)]
        results.append([out.detach(), *gradients])
    for varlen, tiled in zip(*results, strict=True):
        assert relative_error(varlen, tiled) < 2e-2


def _rows_by_sentence(corpus: Any, ids: Tensor, positions: Tensor, side: str) -> Tensor:
    """Return the rows of the real tokens in a packed batch, sentence by sentence in the order of the corpus."""
    sentences = getattr(corpus, side)
    starts = {}
    for start in np.flatnonzero(positions.numpy() == 0).tolist():
        for i in range(len(sentences)):
            if i not in starts and ids[start : start + len(sentences[i])].tolist() == sentences[i].tolist():
                starts[i] = start
                break
    return torch.cat([torch.arange(starts[i], starts[i] + len(sentences[i])) for i in range(len(sentences))])


@pytest.mark.usefixtures("flash_on_cpu")
@on_each_attention
@pytest.mark.parametrize("variant", [{}, {"n_kv_heads": 1, "positions": "rotary", "qk_norm": True}])
def test_both_packed_layouts_give_the_same_loss_and_gradient_in_bf16(
    device: str, is_packed: bool, variant: dict[str, Any]
) -> None:
    corpus, order = parallel(PAIRS), np.arange(len(PAIRS))
    results = []
    for batch in (assemble_varlen(corpus, order, BUDGET, LONGEST), assemble_tiles(corpus, order, torch.bfloat16)):
        model = small_model(dtype=torch.bfloat16, d_model=64, **variant).to(device)
        model.use(training_kernels(torch.device(device), torch.bfloat16, is_packed))
        placed = batch.to(torch.device(device))
        loss = linear_label_smoothed_nll(
            model.hidden(placed), model.output_weight, placed.tgt_outputs, placed.tgt_weights, 0.1
        )
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert relative_error(results[0][0], results[1][0]) < 2e-3
    assert relative_error(results[0][1], results[1][1]) < 3e-2


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), ("cpu", "bf16"), *(pytest.param("cuda", p, marks=CUDA) for p in ("fp32", "bf16", "fp16"))],
)
def test_training_learns_in_each_precision(tmp_path: Path, device: str, precision: str) -> None:
    engine = started_engine(config_for(tmp_path, device, dropout=0.1, precision=precision, batch_tokens=1_024))
    found = losses(engine, 1, 40)
    assert found[0] == pytest.approx(np.log(VOCABULARY), abs=0.6)
    # The model can learn only how frequent each piece is.
    assert np.mean(found[-5:]) < found[0] - 0.6
    # fp16 starts with a scale that may overflow, and halves it.
    assert (float(engine.optimizer.loss_scale) > 1) == (precision == "fp16")


def test_the_gpu_path_compiles_once() -> None:
    """The meta device has shapes but no values, so the GPU path can be traced without a GPU."""
    corpus, meta = parallel(PAIRS), torch.device("meta")
    model = small_model(dropout=0.1, dtype=torch.bfloat16, n_encoder_layers=6, n_decoder_layers=6).to(meta)
    model.use(training_kernels(meta))
    torch._dynamo.reset()
    for layer in (model.positions, *model.encoder, *model.decoder):
        layer.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    loss_function = torch.compile(linear_label_smoothed_nll, fullgraph=True, dynamic=False, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for order in (np.arange(30), np.arange(30, 60)):
            batch = assemble_varlen(corpus, order, BUDGET, LONGEST).to(meta)
            hidden = model.hidden(batch)
            loss = loss_function(hidden, model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.1)
            loss.backward()
            assert (hidden.dtype, hidden.shape) == (torch.bfloat16, (len(batch.tgt_inputs), 32))
            assert (loss.dtype, loss.shape) == (torch.float32, ())
    # One graph each for the inputs (all of one shape here), the encoder layers, the decoder layers and the loss.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@on_cuda
def test_compiled_training_equals_eager_training_and_compiles_once(tmp_path: Path, device: str) -> None:
    eager = started_engine(config_for(tmp_path, device))
    compiled = started_engine(config_for(tmp_path, device, compile=True))
    assert compiled.execution.note == "bf16, compiled"
    expected = losses(eager, 1, 3)
    state = list(eager.updates(PlanState(), 1, 3))[-1].next_state
    found = losses(compiled, 1, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += losses(compiled, 4, 6, state)
    expected += losses(eager, 4, 6, state)
    assert found == pytest.approx(expected, rel=5e-3)
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    # Validation and decoding use an uncompiled copy.
    sentences = [[5, 6, 7, 3], [9, 3]]
    assert (
        len(search(compiled.inference_model(), SearchRequest(sentences, DecodeConfig(beam_size=2, max_length=5)))) == 2
    )


@on_cuda
def test_training_with_cuda_graphs_equals_training_without(tmp_path: Path, device: str) -> None:
    found = []
    for cuda_graphs in (True, False):
        engine = started_engine(config_for(tmp_path, device, compile=True, cuda_graphs=cuda_graphs, dropout=0.1))
        found.append(losses(engine, 1, 6))
        state = list(engine.updates(PlanState(), 1, 6))[-1].next_state
        engine.inference_model()  # the pass is captured again after a validation
        found[-1] += losses(engine, 7, 9, state)
        assert engine.why_not_captured == (None if cuda_graphs else "train.cuda_graphs is false")
    assert found[0] == pytest.approx(found[1], rel=5e-3)


@on_each_device
def test_resumed_training_equals_uninterrupted_training_within_the_noise_of_the_device(
    tmp_path: Path, device: str
) -> None:
    config = config_for(tmp_path, device, dropout=0.1, ema_decay=0.9)
    whole, again, first = started_engine(config), started_engine(config), started_engine(config)
    losses(whole, 1, 8)
    losses(again, 1, 8)
    losses(first, 1, 4)
    state = list(first.updates(PlanState(), 1, 4))[-1].next_state
    resumed, without_moments = started_engine(config), started_engine(config)
    for engine in (resumed, without_moments):
        engine.model.load_state_dict(first.model.state_dict())
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    for engine in (resumed, without_moments):
        losses(engine, 5, 8, state)
    noise = distance(whole, again)
    assert noise == 0 or device == "cuda"
    assert distance(whole, resumed) <= 1.5 * noise
    # Adam divides by its moments: without them, the weights differ by more than noise in the gradients explains.
    assert distance(whole, without_moments) > max(2.5 * noise, 1e-2)


@on_cuda
def test_prefetched_batches_give_the_same_losses(tmp_path: Path, device: str) -> None:
    """A copy that is read before it is complete, or overwritten before it is read, changes a loss."""
    config = config_for(tmp_path, device, batch_tokens=4_096, micro_batch_tokens=512)
    engine = started_engine(config)
    direct = started_engine(config)
    for _ in range(2):
        ahead = losses(engine, 1, 25)
        one_by_one = []
        for update in direct.updates(PlanState(), 1, 25):
            outcome = direct.step(update, lr=2e-3)
            one_by_one.append((outcome.losses.sum() / update.n_tgt_tokens).item())
        assert ahead == pytest.approx(one_by_one, rel=2e-2)


@on_cuda
def test_an_update_that_runs_out_of_memory_is_undone_and_repeated_in_smaller_micro_batches(
    tmp_path: Path, device: str
) -> None:
    # The model is so wide that a large micro-batch takes hundreds of megabytes and a small one does not.
    config = config_for(tmp_path, device, batch_tokens=65_536, micro_batch_tokens=65_536)
    config = replace(config, model=replace(config.model, d_model=256, n_heads=4, d_ff=1024))
    engine, spared = started_engine(config), started_engine(config)
    spared.cut(2_048)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    (large,) = engine.updates(PlanState(), 1, 1)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400 * 2**20) / total)
    before = [p.detach().clone() for p in engine.model.parameters()]
    with pytest.raises(OutOfMemory):
        engine.step(large, lr=2e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))
    assert all(p.grad is None for p in engine.model.parameters())
    engine.cut(2_048)
    results = []
    for one in (engine, spared):
        (small,) = one.updates(PlanState(), 1, 1)
        assert small.n_tgt_tokens == large.n_tgt_tokens
        results.append((one.step(small, lr=2e-3).losses.sum() / small.n_tgt_tokens).item())
    assert results[0] == pytest.approx(results[1], rel=1e-3)


@on_cuda
@pytest.mark.parametrize("precision", ["auto", "fp32"])  # packed end to end, and in tiles
def test_automatically_chosen_micro_batches_fit_in_memory(
    tmp_path: Path, device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes, total = 4 * 2**30, torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(n_bytes / total)

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return n_bytes - torch.cuda.memory_reserved(), n_bytes

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    config = config_for(tmp_path, device, batch_tokens=500_000, dropout=0.1, precision=precision)
    config = replace(config, model=replace(config.model, d_model=512, n_heads=8, d_ff=2048))
    engine = Engine(config, bench.random_corpus(VOCABULARY, LONGEST, n_pairs=40_000), VOCABULARY)
    engine.begin()
    chosen = engine.micro_batch_tokens
    assert 2_048 < chosen < 131_072
    assert all(np.isfinite(losses(engine, 1, 2)))
    # At least half of the memory is used.
    assert torch.cuda.max_memory_allocated() > n_bytes / 2


# --- Decoding and measuring -------------------------------------------------------------------------------------------


@on_cuda
def test_a_gpu_finds_the_same_hypotheses_as_the_cpu_in_fp32(device: str) -> None:
    rng = np.random.default_rng(0)
    sentences = [[*rng.integers(4, V, rng.integers(1, 30)).tolist(), 3] for _ in range(40)]
    found = {}
    for where in ("cpu", device):
        model = small_model(d_model=64).to(where).for_inference(torch.float32)
        found[where] = search(model, SearchRequest(sentences, DecodeConfig(max_length=20)))
    same = sum(a[0].ids == b[0].ids for a, b in zip(found["cpu"], found[device], strict=True))
    assert same >= 38  # candidates may tie to rounding
    for a, b in zip(found["cpu"], found[device], strict=True):
        assert a[0].score == pytest.approx(b[0].score, abs=1e-3)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("settings", "n_best"),
    [({}, 2), ({"no_repeat_ngram_size": 2, "min_length": 3}, 1), ({"sample": True, "top_k": 9, "top_p": 0.9}, 3)],
    ids=["beam", "blocking", "sampling"],
)
def test_search_with_cuda_graphs_finds_the_same_as_eager_search(
    device: str, settings: dict[str, Any], n_best: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(0)
    model = small_model(d_model=64).to(device).for_inference(dtype)
    graphs = Graphs(model)
    decode = DecodeConfig(max_length=40, **settings)
    n_same = n_all = 0
    for n_sentences in (40, 7, 40, 64, 1):  # some shapes occur twice, the second time from their graphs
        sentences = [[*rng.integers(4, V, rng.integers(1, 30)).tolist(), 3] for _ in range(n_sentences)]
        eager = search(model, SearchRequest(sentences, decode, n_best=n_best))
        captured = graphs.search(SearchRequest(sentences, decode, n_best=n_best))
        assert graphs.capture_error is None
        n_same += sum([x.ids for x in a] == [x.ids for x in b] for a, b in zip(eager, captured, strict=True))
        n_all += n_sentences
    # Shapes round differently, and candidates may tie, often in bf16.
    assert n_same >= (0.97 if dtype == torch.float32 else 0.6) * n_all


@on_each_device
def test_bench_measures_each_part_of_a_step_and_its_memory(tmp_path: Path, device: str) -> None:
    size = 16_384 if device == "cuda" else 1_024
    config = config_for(tmp_path, device, batch_tokens=size)
    config = replace(config, model=replace(config.model, d_model=64))
    speed = bench.bench_training(config, 10, random_data=True)
    split = speed["split_seconds"]
    assert min(split["forward"], split["backward"], split["optimizer"]) > 0 <= split["input_stall"]
    assert speed["peak_memory_bytes"] > 4 * 3 * speed["n_parameters"]
    assert (speed["reserved_memory_bytes"] is None) == (device == "cpu")


@on_cuda
def test_the_peak_flops_of_a_gpu_come_from_its_data_sheet_or_are_measured(device: str) -> None:
    where = torch.device(device)
    dtype = choose_dtype("auto", where)
    by_data_sheet = data_sheet_flops(where, dtype)
    measured = peak_flops(where, torch.float32)  # not in any data sheet
    assert measured == peak_flops(where, torch.float32) > 0  # measured once
    assert peak_flops(where, dtype) == by_data_sheet or by_data_sheet is None
