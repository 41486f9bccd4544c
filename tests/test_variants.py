"""Every variant of the model, compared with the reference kernels: packed, cached, one sentence at a time.

The tests run on rows of settings that together contain each pair of values of two settings.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from mt.config.settings import ModelConfig
from mt.data.batch import PackedBatch, assemble_sources
from mt.dropout import seed_dropout
from mt.model import Transformer
from mt.model.cpu import training_kernels
from mt.model.kernels import Kernels
from mt.model.layers import run_checkpointed
from mt.model.training import CudaTraining
from mt.text.tokenizer import BOS_ID, EOS_ID
from tests.toys import V, random_pairs, tiles

CPU = torch.device("cpu")
SHAPE = {"d_model": 32, "n_heads": 4, "d_ff": 24, "n_encoder_layers": 2, "n_decoder_layers": 2, "n_positions": 128}
# Settings whose types do not list their values.
NUMBERS: dict[str, list[Any]] = {
    "n_kv_heads": [None, 2, 1],
    "dropout": [0.0, 0.2],
    "attention_dropout": [0.0, 0.2],
    "layer_dropout": [0.0, 0.2],
    "word_dropout": [0.0, 0.2],
}
OWN_PARAMETERS = {"learned": 128 * 32, "relative": 2 * 32 * 4}  # of position schemes, with the shape above
N_STEPS = 40
STEPPED = [(src, tgt[:60]) for src, tgt in random_pairs(200, longest=70, seed=8) if len(tgt) >= N_STEPS][:3]
PAIRS = [*random_pairs(9, longest=20, seed=2), ([5] * 80, [6, 7, 8] * 25)]  # the last pair needs a wider tile


def listed_values() -> dict[str, list[Any]]:
    """Return the values of each setting whose type lists them."""
    found = {}
    for name, kind in typing.get_type_hints(ModelConfig).items():
        if kind is bool:
            found[name] = [True, False]
        elif typing.get_origin(kind) is typing.Literal:
            found[name] = list(typing.get_args(kind))
    return found


SETTINGS = listed_values() | NUMBERS


def covering_rows() -> list[dict[str, Any]]:
    """Return rows that contain each pair of values of two settings; each row covers as many new pairs as it can."""
    names = sorted(SETTINGS, key=lambda name: -len(SETTINGS[name]))
    missing = {
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(names, 2)
        for x in SETTINGS[a]
        for y in SETTINGS[b]
    }
    rows: list[dict[str, Any]] = []
    while missing:
        row: dict[str, Any] = dict(min(missing, key=lambda pair: sorted(map(repr, pair))))
        for name in names:
            if name not in row:
                row[name] = max(
                    SETTINGS[name],
                    key=lambda value: sum(frozenset(((name, value), item)) in missing for item in row.items()),
                )
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(row)
    return rows


ROWS = covering_rows()
on_each_row = pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: "-".join(str(row[n]) for n in sorted(listed_values()))
)


def test_each_value_of_each_setting_is_in_a_row() -> None:
    assert {field.name for field in fields(ModelConfig)} == SETTINGS.keys() | SHAPE.keys()
    for name, values in SETTINGS.items():
        assert {row[name] for row in ROWS} == set(values)
    assert len(ROWS) <= 60


def model_of(row: dict[str, Any], dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
    """Return a model whose parameters all differ from their initial values, so that each of them matters."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE, **row | changes), vocab_size=V, pad_id=0, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def batch_of(pairs: Sequence[tuple[list[int], list[int]]], dtype: torch.dtype = torch.float64) -> PackedBatch:
    return tiles(pairs, dtype)


def values_and_gradients(model: Transformer, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the states of real rows, and the gradients of the product of their logits with random numbers."""
    seed_dropout(CPU, 1, 2, 3)
    hidden = model.hidden(batch)[batch.tgt_weights > 0]
    logits = model.logits(hidden)
    model.zero_grad()
    (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4), dtype=logits.dtype)
    ).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, what: str = "") -> None:
    assert (found - wanted).detach().abs().max() <= tolerance * max(1.0, float(wanted.detach().abs().max())), what


@pytest.mark.parametrize("kernels", [training_kernels(CPU), CudaTraining(torch.float64)], ids=["cpu", "cuda"])
@on_each_row
def test_hand_written_backward_passes_equal_the_reference(row: dict[str, Any], kernels: Kernels) -> None:
    """Dropout is on: its masks must be the same, even if activations are computed again."""
    model, batch = model_of(row), batch_of(PAIRS)
    wanted, wanted_gradients = values_and_gradients(model.use(Kernels()), batch)
    found, gradients = values_and_gradients(model.use(kernels), batch)
    assert gradients.keys() == wanted_gradients.keys() == dict(model.named_parameters()).keys()
    assert_near(found, wanted, 1e-9)
    for name, gradient in gradients.items():
        assert_near(gradient, wanted_gradients[name], 1e-9, name)
    model.encoder.run = model.decoder.run = run_checkpointed
    again, gradients_again = values_and_gradients(model, batch)
    assert torch.equal(again, found)
    assert all(torch.equal(gradients_again[name], gradient) for name, gradient in gradients.items())


@on_each_row
def test_a_single_sentence_gives_the_same_as_in_a_batch(row: dict[str, Any]) -> None:
    model, batch = model_of(row).eval(), batch_of(PAIRS)
    together, starts = model.hidden(batch), (batch.tgt_inputs == BOS_ID).nonzero()[:, 0].tolist()
    found = 0
    for src, tgt in PAIRS:
        ids = [*tgt, EOS_ID]
        (start,) = (i for i in starts if batch.tgt_outputs[i : i + len(ids)].tolist() == ids)
        assert_near(model.hidden(batch_of([(src, tgt)]))[: len(ids)], together[start : start + len(ids)], 1e-6)
        found += 1
    assert found == len(PAIRS)


def stepped(model: Transformer, dtype: torch.dtype) -> Tensor:
    """Return logits [t, B, 2, V], step by step. The second beam starts differently, and copies the first half-way."""
    with torch.inference_mode():
        sources = assemble_sources([[*src, EOS_ID] for src, _ in STEPPED], dtype)
        cache = model.init_cache(sources, 2)
        found = []
        for t in range(N_STEPS):
            tokens = [([BOS_ID, *tgt][t], [BOS_ID, *tgt][t] if t > N_STEPS // 2 else 9) for _, tgt in STEPPED]
            found.append(model.decode_step(torch.tensor(tokens).flatten(), cache).view(len(STEPPED), 2, -1)[:, :, :V])
            cache.select_beams(torch.tensor([[0, 0 if t == N_STEPS // 2 else 1]] * len(STEPPED)))
    return torch.stack(found)


def whole(model: Transformer) -> Tensor:
    """Return the same logits [t, B, V], from one pass per sentence."""
    return torch.stack([model.logits(model.hidden(batch_of([pair])))[:N_STEPS].detach() for pair in STEPPED], 1)


@on_each_row
def test_decoding_step_by_step_equals_one_pass(row: dict[str, Any]) -> None:
    model = model_of(row).eval()
    found, wanted = stepped(model.for_inference(torch.float64), torch.float64), whole(model)
    assert_near(found[:, :, 0], wanted, 1e-5)
    after = N_STEPS // 2 + 1  # from here on, the second beam has the history of the first
    assert_near(found[after:, :, 1], wanted[after:], 1e-5)
    assert (found[after - 1, :, 1] - wanted[after - 1]).abs().max() > 1e-3


@on_each_row
def test_bf16_inference_is_as_exact_as_that_of_torch(row: dict[str, Any]) -> None:
    batch = batch_of(PAIRS, torch.bfloat16)
    real = batch.tgt_weights > 0
    exact_model, ours = model_of(row).eval(), model_of(row).eval().for_inference(torch.bfloat16)
    with torch.no_grad():  # both have rounded weights
        for parameter, rounded in zip(exact_model.parameters(), ours.parameters(), strict=True):
            parameter.copy_(rounded)
        exact, exact_steps = exact_model.hidden(batch_of(PAIRS))[real], whole(exact_model)
        errors = [
            (
                float((ours.use(kernels).hidden(batch)[real].double() - exact).norm()),
                float((stepped(ours, torch.bfloat16)[:, :, 0].double() - exact_steps).norm()),
            )
            for kernels in (ours.kernels, Kernels())
        ]
    assert errors[0][0] <= 1.1 * errors[1][0]
    assert errors[0][1] <= 1.1 * errors[1][1]


def compiled_and_eager(row: dict[str, Any], backend: str) -> None:
    """Compare compiled layers with the reference, without dropout. They are compiled as on CUDA, but with tiles."""
    off = dict.fromkeys(("dropout", "attention_dropout", "layer_dropout", "word_dropout"), 0.0)
    model, batch = model_of(row, **off), batch_of(PAIRS[:6])
    wanted, wanted_gradients = values_and_gradients(model.use(Kernels()), batch)
    model.use(CudaTraining(torch.float64))
    torch._dynamo.reset()
    for layer in (*model.encoder, *model.decoder):
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            found, gradients = values_and_gradients(model, batch)
    assert_near(found, wanted, 1e-8)
    for name, gradient in gradients.items():
        assert_near(gradient, wanted_gradients[name], 1e-8, name)


def rows_with_each_value() -> list[int]:
    """Return the numbers of a few rows that contain each value of each setting."""
    missing, chosen = {item for row in ROWS for item in row.items()}, []
    while missing:
        chosen.append(max(range(len(ROWS)), key=lambda i: len(missing & set(ROWS[i].items()))))
        missing -= set(ROWS[chosen[-1]].items())
    return chosen


@pytest.mark.parametrize("number", rows_with_each_value())
def test_compiled_layers_equal_eager_layers(number: int) -> None:
    compiled_and_eager(ROWS[number], "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@on_each_row
def test_compiled_layers_equal_eager_layers_in_all_rows(row: dict[str, Any], backend: str) -> None:
    compiled_and_eager(row, backend)


@on_each_row
def test_parameters_are_counted_once_but_flops_for_each_use(row: dict[str, Any]) -> None:
    d, n_products = 32, 3 if row["activation"].endswith("glu") else 2
    d_keys = 8 * (row["n_kv_heads"] or 4)
    attention, network, of_memory = 2 * d * d + 2 * d * d_keys, n_products * d * 24, 2 * d * d_keys
    n_networks = 2 if row["ffn_sharing"] == "none" else 0  # of the decoder
    model = model_of(row)
    of_target = 2 * (2 * attention - of_memory) + n_networks * network + V * d
    assert model.training_flops(10, 0) == 60 * (2 * (attention + network) + 2 * of_memory)
    assert model.training_flops(0, 10) == 60 * of_target
    of_a_norm = d * (2 if row["norm_kind"] == "layer" and row["bias"] else 1)
    n_norms = 4 + (6 if n_networks else 4) + (2 if row["norm"] == "pre" else 0)
    biases = row["bias"] * (
        6 * (2 * d + 2 * d_keys) + ((n_products - 1) * 24 + d) * (2 + n_networks if n_networks else 1)
    )
    expected = (
        {"all": 1, "decoder": 2, "none": 3}[row["tied_embeddings"]] * V * d
        + 6 * attention
        + (4 if n_networks else 1) * network
        + biases
        + n_norms * of_a_norm
        + (6 * 2 * 8 if row["qk_norm"] else 0)
        + OWN_PARAMETERS.get(row["positions"], 0)
    )
    assert model.n_parameters == expected
