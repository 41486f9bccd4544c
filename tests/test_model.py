from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mt.config.settings import DecodeConfig, ModelConfig
from mt.data.batch import TILE_WIDTH, PackedBatch, assemble_sources, assemble_varlen
from mt.data.packing import MicroBatchBudget
from mt.decode.search import SearchRequest, search
from mt.dropout import dropout, seed_dropout
from mt.loss import linear_label_smoothed_nll, token_losses
from mt.model import Transformer
from mt.model.kernels import Kernels
from mt.model.layers import RESIDUALS, EncoderLayer, LayerSpec, run_checkpointed
from mt.model.positions import Alibi, Rotary, relative_buckets, rotated, sinusoidal_positions
from mt.model.training import CudaTraining
from mt.model.transformer import VOCAB_MULTIPLE
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.toys import V, parallel, random_pairs, small_model, tiles

PAIRS = random_pairs(25, longest=40, seed=1)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("variant", [{}, {"n_kv_heads": 1, "positions": "rotary", "qk_norm": True}])
def test_both_packed_layouts_give_the_same_loss_and_gradient(variant: dict[str, Any]) -> None:
    corpus = parallel(PAIRS)
    budget = MicroBatchBudget(n_micro_batches=1, src_tokens=1_200, tgt_tokens=1_200, n_sentences=40)
    results = []
    for batch in (tiles(PAIRS), assemble_varlen(corpus, np.arange(len(PAIRS)), budget, max_tokens=64)):
        model = small_model(**variant)
        loss = linear_label_smoothed_nll(
            model.hidden(batch), model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.1
        )
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=2e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_target_token_does_not_see_later_tokens(norm: str) -> None:
    model = small_model(norm=norm).eval()
    src, tgt = [5, 6, 7], [10, 11, 12, 13, 14]
    with torch.no_grad():
        before = model.hidden(tiles([(src, tgt)]))
        after = model.hidden(tiles([(src, [10, 11, 30, 31, 32])]))
    # Inputs are BOS 10 11 12 …: the first three positions have seen only 10 and 11.
    assert torch.equal(before[:3], after[:3])
    assert (before[3] - after[3]).abs().max() > 1e-3


def test_the_encoder_depends_on_later_tokens_and_on_positions() -> None:
    model = small_model().eval()
    with torch.no_grad():
        first, reordered = (model.hidden(tiles([(src, [10])]))[0] for src in ([5, 6, 7], [7, 6, 5]))
    assert (first - reordered).abs().max() > 1e-3


def test_a_beam_that_continues_another_has_its_history() -> None:
    model = small_model().eval()
    source = [[5, 6, 7, EOS_ID]]
    # Two beams: after the second token, both continue the second beam; then they differ.
    tokens = [[BOS_ID, BOS_ID], [10, 20], [11, 21], [12, 22], [13, 23]]
    parents = [[0, 0], [1, 1], [0, 1], [1, 0], [0, 1]]
    histories: list[list[int]] = [[], []]
    with torch.no_grad():
        cache = model.init_cache(assemble_sources(source, torch.float32), 2)
        for step_tokens, step_parents in zip(tokens, parents, strict=True):
            histories = [[*history, token] for history, token in zip(histories, step_tokens, strict=True)]
            logits = model.decode_step(torch.tensor(step_tokens), cache)
            assert logits.shape == (2, VOCAB_MULTIPLE)
            assert (logits[:, V:] == -math.inf).all()
            for beam, history in enumerate(histories):
                hidden = model.hidden(tiles([(source[0][:-1], history[1:])]))[len(history) - 1]
                torch.testing.assert_close(logits[beam, :V], model.logits(hidden), atol=2e-5, rtol=1e-4)
            cache.select_beams(torch.tensor([step_parents]))
            histories = [histories[parent] for parent in step_parents]


@pytest.mark.parametrize(("d_model", "n_heads", "d_ff", "millions"), [(512, 8, 2048, 63.1), (1024, 16, 4096, 214.2)])
def test_the_models_of_the_paper_have_as_many_parameters_as_the_formula(
    d_model: int, n_heads: int, d_ff: int, millions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing 200 M numbers takes seconds, and their values do not matter here.
    monkeypatch.setattr(Transformer, "reset_parameters", lambda model: None)
    vocab_size, d, f = 37_000, d_model, d_ff
    attention, ffn, norm = 4 * (d * d + d), d * f + f + f * d + d, 2 * d
    by_formula = vocab_size * d + 6 * (attention + ffn + 2 * norm) + 6 * (2 * attention + ffn + 3 * norm)
    with torch.device("meta"):
        config = ModelConfig(d_model=d, n_heads=n_heads, d_ff=f)
        model = Transformer(config, vocab_size=vocab_size, pad_id=PAD_ID)
    assert model.n_parameters == by_formula
    assert round(by_formula / 1e6, 1) == millions
    assert model.embedding.num_embeddings == 37_120


def largest(weight: torch.Tensor, n_parts: int) -> list[float]:
    """Return the largest weight of each part, relative to the bound of its Xavier uniform initialisation."""
    parts = weight.detach().chunk(n_parts)
    return [float(part.abs().max() / math.sqrt(6 / sum(part.shape))) for part in parts]


def test_initial_weights_have_the_scale_of_the_paper() -> None:
    model = small_model(d_model=128, n_heads=4, d_ff=256)
    assert model.embedding.weight.std().item() == pytest.approx(128**-0.5, rel=0.03)
    layer = model.decoder[0]
    # The square matrices inside fused projections are initialised separately.
    assert largest(layer.self_attention.qkv.weight, 3) == pytest.approx([1, 1, 1], rel=0.01)
    assert largest(layer.cross_attention.kv.weight, 2) == pytest.approx([1, 1], rel=0.01)
    assert largest(layer.feed_forward.outer.weight, 1) == pytest.approx([1], rel=0.01)
    assert layer.feed_forward.inner.bias.abs().max() == 0


def test_deepnorm_starts_with_smaller_values_and_outputs() -> None:
    model = small_model(norm="deepnorm", d_model=128, n_heads=4, d_ff=256, n_decoder_layers=3)
    for layer, beta in ((model.encoder[1], 0.87 * (2**4 * 3) ** (-1 / 16)), (model.decoder[1], 36**-0.25)):
        assert largest(layer.self_attention.qkv.weight, 3) == pytest.approx([1, 1, beta], rel=0.01)
        for linear in (layer.self_attention.out, layer.feed_forward.inner, layer.feed_forward.outer):
            assert largest(linear.weight, 1) == pytest.approx([beta], rel=0.01)
    assert largest(layer.cross_attention.kv.weight, 2) == pytest.approx([1, beta], rel=0.01)


def test_gated_and_grouped_projections_are_initialised_separately() -> None:
    model = small_model(activation="swiglu", d_model=128, n_heads=4, d_ff=256, n_kv_heads=2, init="depth_scaled")
    second = model.encoder[1]
    assert largest(second.feed_forward.inner.weight, 2) == pytest.approx([0.5**0.5] * 2, rel=0.01)
    q, k, v = torch.split(second.self_attention.qkv.weight, (128, 64, 64))
    assert [largest(part, 1)[0] for part in (q, k, v)] == pytest.approx([0.5**0.5] * 3, rel=0.02)


def test_positions_are_sines_and_cosines() -> None:
    table = sinusoidal_positions(50, 8)
    assert table.shape == (50, 8)
    assert table[7, 0].item() == pytest.approx(math.sin(7))
    assert table[7, 1].item() == pytest.approx(math.cos(7))
    assert table[7, 5].item() == pytest.approx(math.cos(7 / 10_000 ** (4 / 8)), rel=1e-5)


def test_in_bf16_activations_are_bf16_but_parameters_are_float32() -> None:
    model = small_model(dtype=torch.bfloat16)
    batch = tiles(PAIRS, torch.bfloat16)
    hidden = model.hidden(batch)
    assert hidden.dtype == torch.bfloat16
    linear_label_smoothed_nll(hidden, model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.1).backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    exact = small_model()
    exact_hidden = exact.hidden(tiles(PAIRS))
    real = batch.tgt_weights > 0
    assert (hidden[real].float() - exact_hidden[real]).abs().mean() < 0.03


def test_two_micro_batches_give_the_gradient_of_one_big_batch() -> None:
    def gradients(parts: list[list[tuple[list[int], list[int]]]]) -> dict[str, torch.Tensor]:
        model = small_model()
        batches = [tiles(part) for part in parts]
        n_tokens = sum(batch.n_tgt_tokens for batch in batches)
        for batch in batches:
            loss = linear_label_smoothed_nll(
                model.hidden(batch), model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.1
            )
            (loss / n_tokens).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole, halves = gradients([PAIRS]), gradients([PAIRS[:7], PAIRS[7:]])
    assert whole.keys() == halves.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], halves[name], atol=1e-6, rtol=1e-4, msg=name)


def test_every_parameter_has_a_gradient_except_padding_rows() -> None:
    model = small_model()
    batch = tiles(PAIRS)
    hidden = model.hidden(batch)
    linear_label_smoothed_nll(hidden, model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.1).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad[V:].abs().max() == 0


def test_layers_and_loss_compile_to_one_graph_each_without_recompiling() -> None:
    """The CPU has no flash attention, so the test uses tiles, whose shape is static."""
    model = small_model()
    batches = [tiles([([i] * (TILE_WIDTH - 1), [i + 1] * (TILE_WIDTH - 1))] * 4) for i in (5, 7)]

    def loss_of(batch: PackedBatch, of_tokens: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        logits = model.logits(model.hidden(batch))
        return of_tokens(logits, batch.tgt_outputs, batch.tgt_weights, 0.1, True)[0].sum().detach()

    eager = [loss_of(batch, token_losses) for batch in batches]
    torch._dynamo.reset()
    for layer in (*model.encoder, *model.decoder):
        layer.compile(fullgraph=True, dynamic=False, backend="eager")
    compiled = torch.compile(token_losses, fullgraph=True, dynamic=False, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, loss in zip(batches, eager, strict=True):
            torch.testing.assert_close(loss_of(batch, compiled), loss)
    assert list(model.state_dict()) == list(small_model().state_dict())


@pytest.mark.parametrize("bias", [True, False])
def test_bf16_copies_of_weights_are_made_once_per_update(bias: bool) -> None:
    """The copies change no value of the forward pass, and gradients go to the original weights."""
    model, batch = small_model(dtype=torch.bfloat16, bias=bias), tiles(PAIRS, torch.bfloat16)
    wanted = model.use(Kernels()).hidden(batch)
    upstream = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, list(model.parameters()), upstream)
    found = model.use(CudaTraining(torch.bfloat16)).hidden(batch)
    close = partial(torch.testing.assert_close, rtol=0.02, atol=0.02)  # norms are computed in float32
    close(found, wanted)
    ours_of_all = torch.autograd.grad(found, list(model.parameters()), upstream)
    for ours, reference in zip(ours_of_all, gradients, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - reference).norm() < 0.06 * reference.norm()
    with torch.no_grad():
        model.encoder[0].feed_forward.inner.weight.mul_(1.5)
    assert torch.equal(model.hidden(batch), found)  # still the weights of the previous update
    model.kernels.begin_update()
    changed = model.hidden(batch)
    assert (changed - found).norm() > 0.05 * found.norm()
    close(changed, model.use(Kernels()).hidden(batch))


def test_an_inference_copy_has_one_type_and_does_not_change_the_model() -> None:
    model = small_model(dropout=0.1)
    copied = model.for_inference(torch.bfloat16)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in copied.parameters())
    assert (copied.training, model.training) == (False, True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert replace(copied.config) == model.config


def test_an_inference_copy_with_other_weights_uses_only_those() -> None:
    """A CPU multiplies packed copies of the weights. They must be copies of the new weights."""
    other = small_model(seed=5)
    batch = tiles(PAIRS, torch.bfloat16)
    with torch.inference_mode():
        expected = other.for_inference(torch.bfloat16).hidden(batch)
        assert torch.equal(small_model().for_inference(torch.bfloat16, other.state_dict()).hidden(batch), expected)
        assert not torch.equal(small_model().for_inference(torch.bfloat16).hidden(batch), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_gives_the_same_gradients(dtype: torch.dtype) -> None:
    batch = tiles(random_pairs(12), dtype)
    found = []
    for activation_checkpointing in (False, True):
        model = small_model(dropout=0.3, dtype=dtype)
        model.encoder.run = model.decoder.run = run_checkpointed if activation_checkpointing else model.encoder.run
        n_saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal n_saved
            n_saved += tensor.numel()
            return tensor

        seed_dropout(torch.device("cpu"), 1, 2, 3)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            hidden = model.hidden(batch)
        loss = linear_label_smoothed_nll(hidden, model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.1)
        after_forward = dropout(torch.ones(1_000), 0.5, True)
        loss.backward()
        after_backward = dropout(torch.ones(1_000), 0.5, True)
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append((n_saved, [loss, after_forward, after_backward, *gradients]))
    # Dropout draws the same masks in the second pass, and the generator then continues as without one.
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert found[1][0] < found[0][0] / 4


def reachable_tensors(held: object) -> list[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        return [held]
    parts = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ()
    parts = vars(held).values() if hasattr(held, "__dict__") else parts
    return [tensor for part in parts for tensor in reachable_tensors(part)]


def test_a_cache_lists_every_tensor_that_is_kept_between_steps() -> None:
    """Captured graphs need all of them. Each step creates the other tensors of the cache before it reads them."""
    model = small_model(positions="rotary", dropout=0.0).eval()
    with torch.no_grad():
        cache = model.init_cache(assemble_sources([[5, 6, EOS_ID], [7, EOS_ID]], torch.float32), 2)
        cache.states["counts"] = torch.zeros(2, 2, 5)
        model.decode_step(torch.full((4,), BOS_ID), cache)
    of_a_step = {id(cache.ancestry_mask), id(cache.angles)}
    named = [tensor for _, _, tensor in cache.tensors()]
    assert {id(tensor) for tensor in named} == {id(tensor) for tensor in reachable_tensors(cache)} - of_a_step
    assert all(held[name] is tensor for held, name, tensor in cache.tensors())
    copied = cache.copy()
    copied.states["counts"] = torch.ones(2, 2, 5)
    assert cache.states["counts"].sum() == 0


def test_decoding_states_follow_their_beams_and_sentences() -> None:
    model = small_model().eval()
    with torch.no_grad():
        cache = model.init_cache(assemble_sources([[5, 6, EOS_ID], [7, EOS_ID], [8, EOS_ID]], torch.float32), 2)
    cache.states["counts"] = torch.arange(12).view(3, 2, 2)
    cache.select_beams(torch.tensor([[1, 0], [1, 1], [0, 0]]))
    assert cache.states["counts"].tolist() == [[[2, 3], [0, 1]], [[6, 7], [6, 7]], [[8, 9], [8, 9]]]
    cache.keep_sentences(torch.tensor([2, 0]))
    assert cache.states["counts"].tolist() == [[[8, 9], [8, 9]], [[2, 3], [0, 1]]]


def test_without_positions_the_encoder_ignores_the_order() -> None:
    ids = [5, 6, 7, 8, 9]
    for positions in ("none", "sinusoidal"):
        model = small_model(positions=positions).eval()
        with torch.no_grad():
            first, turned = (
                model.encode(sources.ids, sources.positions, sources.layout, sources.width)[0]
                for sources in (assemble_sources([order], torch.float32) for order in (ids, ids[::-1]))
            )
        assert torch.allclose(first, turned.flip(0), atol=1e-5) == (positions == "none")


def test_the_auxiliary_loss_of_a_layer_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, batch = EncoderLayer.forward, tiles(PAIRS)

    def with_loss(layer: EncoderLayer, x: torch.Tensor, context: Any) -> Any:
        x, _ = forward(layer, x, context)
        return x, x.square().sum() * 1e-3 + x.sum()

    monkeypatch.setattr(EncoderLayer, "forward", with_loss)
    found = []
    for run in (torch.nn.Module.__call__, run_checkpointed):  # activation checkpointing runs it twice
        model = small_model()
        model.encoder.run = run
        hidden, losses = model(batch)
        assert [loss.shape for loss in losses] == [(), ()]
        sum(losses, hidden.sum()).backward()
        found.append((sum(losses), [parameter.grad for parameter in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_dropped_layers_are_skipped() -> None:
    model = small_model(layer_dropout=0.5, n_encoder_layers=4)
    sources = assemble_sources([[5, 6, 7, EOS_ID]], torch.float32)
    inputs = sources.ids, sources.positions, sources.layout, sources.width
    outputs = []
    for step in (1, 1, 2, 3):
        seed_dropout(torch.device("cpu"), 1, step, 0)
        outputs.append(model.encode(*inputs)[0].detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not all(torch.equal(outputs[0], other) for other in outputs[2:])
    model.encoder.layer_dropout = 1 - 1e-6  # all of them
    embedded = model.eval()._embed(0, *inputs[:2], sources.width)
    model.train()
    seed_dropout(torch.device("cpu"), 1, 4, 0)
    assert torch.equal(model.encode(*inputs)[0], embedded)
    whole = small_model(n_encoder_layers=4).eval()
    assert torch.equal(model.eval().encode(*inputs)[0], whole.encode(*inputs)[0])


@pytest.mark.parametrize(("tied", "groups"), [("all", (0, 0, 0)), ("decoder", (0, 1, 1)), ("none", (0, 1, 2))])
def test_the_setting_decides_which_embeddings_are_tied(tied: str, groups: tuple[int, ...]) -> None:
    model, batch = small_model(tied_embeddings=tied).eval(), tiles(PAIRS)
    tables = list(dict.fromkeys(model.embeddings))
    assert tuple(tables.index(table) for table in model.embeddings) == groups  # of source, target and output

    def read() -> list[torch.Tensor]:
        memory, _ = model.encode(batch.src_ids, batch.src_positions, batch.encoder_layout, batch.max_positions)
        target = model._embed(1, batch.tgt_inputs, batch.tgt_positions, batch.max_positions)
        return [memory, target, model.logits(torch.ones(32))]

    with torch.no_grad():
        before = read()
        for i, table in enumerate(tables):
            saved = table.weight.clone()
            table.weight.mul_(1.5)
            changed = [not torch.equal(a, b) for a, b in zip(before, read(), strict=True)]
            assert changed == [group == i for group in groups]
            table.weight.copy_(saved)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_residual_sums_equal_the_formulas_of_their_papers(kind: str) -> None:
    torch.manual_seed(0)
    spec = LayerSpec(ModelConfig(d_model=32, n_heads=2, norm=kind, dropout=0.0), is_decoder=True, index=0)
    x, residual = torch.randn(5, 32), RESIDUALS[kind](spec)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (32,))

    def sublayer(x: torch.Tensor) -> torch.Tensor:
        return x.flip(1).square()

    # Six layers of three sums: α is the fourth root of 18.
    expected = {
        "post": norm(x + sublayer(x)),
        "pre": x + sublayer(norm(x)),
        "deepnorm": norm(18**0.25 * x + sublayer(x)),
    }
    torch.testing.assert_close(residual(x, sublayer), expected[kind])


def test_deepnorm_has_the_factors_of_its_paper() -> None:
    specs = [LayerSpec(ModelConfig(norm="deepnorm"), is_decoder, 0) for is_decoder in (False, True)]
    assert [spec.alpha for spec in specs] == pytest.approx([0.81 * (6**5) ** (1 / 16), 18**0.25])
    betas = 0.87 * (6**5) ** (-1 / 16), 72**-0.25
    for spec, beta in zip(specs, betas, strict=True):
        assert spec.gains("query", "key", "value", "inner", "out") == pytest.approx([1, 1, beta, beta, beta])


def test_initial_weights_are_scaled_by_their_settings() -> None:
    config = ModelConfig(n_encoder_layers=2, n_decoder_layers=3)
    gains = {
        init: LayerSpec(replace(config, init=init), True, 2).gains("value", "out")
        for init in ("xavier", "scaled", "depth_scaled")
    }
    assert gains["xavier"] == [1, 1]
    assert gains["scaled"] == pytest.approx([1, 1 / 3])  # nine residual sums
    assert LayerSpec(replace(config, init="scaled", ffn_sharing="wide"), True, 2).gains("out") == pytest.approx(
        [6**-0.5]
    )
    assert gains["depth_scaled"] == pytest.approx([3**-0.5, 3**-0.5])  # the third layer
    assert LayerSpec(replace(config, zero_init_out=True), False, 0).gains("inner", "out") == [1, 0]


@pytest.mark.parametrize("norm", ["post", "pre", "deepnorm"])
def test_with_zero_init_out_a_new_model_only_applies_its_norms(norm: str) -> None:
    model = small_model(norm=norm, zero_init_out=True).eval()
    batch = tiles(PAIRS)
    with torch.no_grad():
        x = model._embed(1, batch.tgt_inputs, batch.tgt_positions, batch.max_positions)
        normed = torch.nn.functional.layer_norm(x, (32,))
        torch.testing.assert_close(model.hidden(batch), normed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("distance", "causal", "bucket"), [(0, True, 0), (-1, True, 1), (-15, True, 15), (3, True, 0)])
def test_each_small_distance_has_its_own_bucket(distance: int, causal: bool, bucket: int) -> None:
    assert relative_buckets(torch.tensor(distance), causal).item() == bucket


def test_large_distances_share_buckets_as_in_t5() -> None:
    # Computed with T5's own function (Raffel et al. 2020), with 32 buckets and a maximum distance of 128.
    distances = torch.tensor([-1_000, -128, -127, -64, -16, -8, -7, 7, 8, 16, 64, 127, 128, 1_000])
    both = [15, 15, 15, 14, 10, 8, 7, 23, 24, 26, 30, 31, 31, 31]
    assert relative_buckets(distances, causal=False).tolist() == both
    assert relative_buckets(distances[:7], causal=True).tolist() == [31, 31, 31, 26, 16, 8, 7]


def test_alibi_slopes_are_powers_of_two() -> None:
    scheme = Alibi(ModelConfig(d_model=64, n_heads=8))
    bias = scheme.bias(torch.tensor([5]), torch.arange(8), causal=True)
    assert bias[:, 0, 5].tolist() == [0] * 8
    assert bias[:, 0, 3].tolist() == pytest.approx([-2 * 2.0**-i for i in range(1, 9)])


def test_rotary_scores_depend_only_on_the_distance() -> None:
    torch.manual_seed(0)
    scheme, x = Rotary(ModelConfig(d_model=32, n_heads=2)), torch.randn(1, 2, 1, 2, 16)
    scores = []
    for first, second in ((0, 3), (10, 13), (500, 503)):
        q, k = (
            rotated(part, scheme.angles(torch.tensor([i]), 600)) for part, i in zip(x[0], (first, second), strict=True)
        )
        scores.append((q * k).sum(-1))
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[0], (x[:, 0] * x[:, 1]).sum(-1))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "relative", "alibi", "none"])
def test_positions_without_a_maximum_accept_very_long_sentences(positions: str) -> None:
    model = small_model(positions=positions).eval()
    with torch.no_grad():
        assert torch.isfinite(model.hidden(tiles([([5] * 1_500, [6] * 1_500)]))).all()
    assert model.positions.n_positions is None


def test_learned_positions_limit_the_length_of_sentences() -> None:
    model = small_model(positions="learned", n_positions=12).eval()
    assert model.positions.n_positions == 12
    sources = [[5, 6, 7, EOS_ID], [8] * 11 + [EOS_ID]]
    (first,), (second,) = search(
        model, SearchRequest(sources, DecodeConfig(beam_size=1, length_penalty=0, min_length=30))
    )
    assert (first.n_tokens, second.n_tokens) == (12, 12)
    with pytest.raises(AssertionError, match="a source has more tokens than the model has positions"):
        search(model, SearchRequest([[8] * 12 + [EOS_ID]], DecodeConfig()))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_a_model_can_be_pickled(activation: str) -> None:
    model = small_model(activation=activation)
    assert torch.equal(pickle.loads(pickle.dumps(model)).hidden(tiles(PAIRS)), model.hidden(tiles(PAIRS)))
