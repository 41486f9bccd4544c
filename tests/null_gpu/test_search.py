"""Search with CUDA graphs on a null GPU. Because the host reads zeros, all searches reach the maximum length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mt.config.settings import DecodeConfig, ModelConfig
from mt.decode.graphs import SYNC_EVERY, Graphs
from mt.decode.search import SearchRequest, SearchState
from mt.decode.translator import OwnBackend
from mt.model import Transformer
from tests.null_gpu.device import NullGPU, note

SENTENCES = [[5 + i % 7] * (4 + i % 5) + [3] for i in range(60)]
LONGEST = 60


def graphs(**variant: Any) -> Graphs:
    shape = ModelConfig(n_encoder_layers=1, n_decoder_layers=1, **variant)
    return Graphs(Transformer(shape, vocab_size=32_000, pad_id=0).to("cuda:0").for_inference(torch.bfloat16))


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    ("what", "settings", "n_best"),
    [
        ("beam of 4", {}, 1),
        ("sampling", {"sample": True, "top_k": 9, "top_p": 0.9}, 3),
        ("blocking", {"no_repeat_ngram_size": 3, "min_length": 2}, 1),
    ],
)
def test_steps_are_captured_once_per_shape_and_then_replayed(what: str, settings: dict[str, Any], n_best: int) -> None:
    decode, search = DecodeConfig(max_length=LONGEST, **settings), graphs()
    found = []
    for _ in range(3):
        with NullGPU().counting() as counted:
            results = search.search(SearchRequest(SENTENCES, decode, n_best=n_best))
        assert [len(one) for one in results] == [n_best] * len(SENTENCES)
        found.append(counted)
    assert search.capture_error is None
    assert [one["forbidden"] for one in found] == [0, 0, 0]
    # The capacity for tokens grows twice before the maximum length, and each capacity is a shape.
    assert [one["capture"] for one in found] == [3, 0, 0]
    assert found[2]["replay"] >= LONGEST - 4
    # The host synchronises only every few steps. The other 16 waits start a search and read its results.
    assert found[2]["synchronize"] <= LONGEST / SYNC_EVERY + 16
    note(f"search, {what}, 60 sentences to 60 tokens, 1 + 1 layers", found[2])


@pytest.mark.null_gpu
@pytest.mark.parametrize(
    "variant",
    [
        {"positions": "rotary", "n_kv_heads": 2, "qk_norm": True, "norm": "pre", "norm_kind": "rms"},
        {"positions": "relative", "activation": "swiglu", "n_kv_heads": 1},
        {"positions": "learned", "tied_embeddings": "none", "bias": False},
        {"positions": "alibi", "norm": "deepnorm"},
    ],
)
def test_steps_of_model_variants_are_captured(variant: dict[str, Any]) -> None:
    decode, search = DecodeConfig(max_length=LONGEST), graphs(**variant)
    found = []
    for _ in range(2):
        with NullGPU().counting() as counted:
            search.search(SearchRequest(SENTENCES, decode))
        found.append(counted)
    assert search.capture_error is None
    assert [one["forbidden"] for one in found] == [0, 0]
    assert [one["capture"] for one in found] == [3, 0]
    note(f"search, {variant}, 60 sentences to 60 tokens, 1 + 1 layers", found[1])


@pytest.mark.null_gpu
@pytest.mark.parametrize("fails", ["at the start", "inside"])
def test_a_search_continues_without_graphs_if_a_capture_fails(
    fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode, search, step = DecodeConfig(max_length=LONGEST), graphs(), SearchState.step

    def waiting_step(state: SearchState) -> None:
        step(state)
        if torch.cuda.is_current_stream_capturing():
            state.cache.position.item()

    if fails == "inside":
        monkeypatch.setattr(SearchState, "step", waiting_step)
    else:
        monkeypatch.setenv("NULL_GPU_REFUSES_CAPTURE", "1")
    for _ in range(2):
        results = search.search(SearchRequest(SENTENCES, decode))
        assert all(results)
    assert search.capture_error is not None
    assert capsys.readouterr().err.count("warning: CUDA graphs cannot be used, so decoding is slower") == 1


@pytest.mark.null_gpu
@pytest.mark.parametrize("refuses_capture", ["0", "1"])
def test_a_search_that_runs_out_of_memory_is_repeated_in_halves(
    refuses_capture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NULL_GPU_REFUSES_CAPTURE", refuses_capture)
    backend = OwnBackend(graphs().model)
    device_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * 2**20) / device_bytes)
    results = backend.search(
        SearchRequest(
            SENTENCES * 20,
            DecodeConfig(max_length=LONGEST),
        )
    )
    assert [len(one) for one in results] == [1] * 20 * len(SENTENCES)
    assert capsys.readouterr().err.count("note: out of memory on cuda:0: batches are searched in two halves") == 1
