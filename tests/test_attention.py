from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mt.data.batch import PackedBatch, TileLayout, assemble_varlen
from mt.data.packing import MicroBatchBudget
from tests.toys import attention, parallel, random_pairs, tiles

pytestmark = pytest.mark.usefixtures("flash_on_cpu")
PAIRS = random_pairs(30, longest=90, seed=3)
BUDGET = MicroBatchBudget(n_micro_batches=1, src_tokens=2_000, tgt_tokens=2_000, n_sentences=40)


def batches() -> tuple[PackedBatch, PackedBatch]:
    corpus = parallel(PAIRS)
    return tiles(PAIRS), assemble_varlen(corpus, np.arange(len(PAIRS)), BUDGET, max_tokens=128)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_attention_over_tiles_equals_attention_over_one_sentence_at_a_time(kind: str) -> None:
    tiled, _ = batches()
    layout = getattr(tiled, f"{kind}_layout")
    n_q, n_k = len(tiled.tgt_inputs if kind != "encoder" else tiled.src_ids), len(tiled.src_ids)
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 2, 16, dtype=torch.float64) for n in (n_q, n_k, n_k))
    layout = TileLayout(tuple(replace(group, bias=group.bias.double()) for group in layout.groups))
    out = attention(q, k, v, layout, causal=kind == "decoder")
    assert out.shape == (n_q, 2, 16)
    q_sentences = _sentence_rows(tiled, "src" if kind == "encoder" else "tgt")
    k_sentences = _sentence_rows(tiled, "tgt" if kind == "decoder" else "src")
    for q_rows, k_rows in zip(q_sentences, k_sentences, strict=True):
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[q_rows].transpose(0, 1), k[k_rows].transpose(0, 1), v[k_rows].transpose(0, 1), is_causal=kind == "decoder"
        ).transpose(0, 1)
        torch.testing.assert_close(out[q_rows], expected)


def _sentence_rows(batch: PackedBatch, side: str) -> list[list[int]]:
    """Return the rows of each sentence of a batch of tiles, in the order of the batch."""
    positions = getattr(batch, f"{side}_positions").tolist()
    real = (batch.tgt_weights > 0).tolist() if side == "tgt" else (batch.src_ids != 0).tolist()
    rows: list[list[int]] = []
    for row, (position, is_real) in enumerate(zip(positions, real, strict=True)):
        if is_real:
            if position == 0:
                rows.append([])
            rows[-1].append(row)
    return rows


def test_other_sentences_in_a_tile_change_nothing() -> None:
    batch = tiles(PAIRS)
    rows = _sentence_rows(batch, "src")
    torch.manual_seed(0)
    q, k, v = (torch.randn(len(batch.src_ids), 2, 16) for _ in range(3))
    out = attention(q, k, v, batch.encoder_layout, causal=False)
    others = torch.ones(len(batch.src_ids), dtype=torch.bool)
    others[rows[4]] = False
    changed = [torch.where(others[:, None, None], torch.randn_like(x), x) for x in (q, k, v)]
    assert torch.equal(out[rows[4]], attention(*changed, batch.encoder_layout, causal=False)[rows[4]])


def test_padding_rows_have_finite_values_and_gradients() -> None:
    for batch in batches():
        q = torch.randn(len(batch.tgt_inputs), 2, 16, requires_grad=True)
        k = torch.randn(len(batch.src_ids), 2, 16, requires_grad=True)
        out = attention(q, k, k, batch.cross_layout, causal=False)
        out.square().sum().backward()
        assert torch.isfinite(out).all()
        assert q.grad is not None
        assert torch.isfinite(q.grad).all()


def test_attention_dropout_drops_weights_and_preserves_the_mean() -> None:
    batch = tiles([([5] * 63, [5] * 63)])
    q = torch.zeros(64, 1, 8)
    v = torch.ones(64, 1, 8)
    torch.manual_seed(0)
    out = torch.stack([attention(q, q, v, batch.encoder_layout, False, dropout=0.5) for _ in range(200)])
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    # Each output is the mean of 64 weights that are 0 or 2: its deviation is 1 / √64.
    assert out[:, :, 0, 0].std().item() == pytest.approx(0.125, rel=0.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_flash_attention_agrees_with_the_obvious_version(kind: str) -> None:
    _, packed = batches()
    torch.manual_seed(0)
    n_q, n_k = len(packed.tgt_inputs if kind != "encoder" else packed.src_ids), len(packed.src_ids)
    if kind == "decoder":
        n_k = n_q
    inputs = [torch.randn(n, 2, 32, dtype=torch.bfloat16) for n in (n_q, n_k, n_k)]
    weight = torch.randn(n_q, 2, 32)
    results = []
    for device in ("cpu", "cuda"):
        q, k, v = (x.to(device).float() if device == "cpu" else x.to(device) for x in inputs)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        layout = getattr(packed.to(torch.device(device)), f"{kind}_layout")
        out = attention(*leaves, layout, causal=kind == "decoder")
        (out.float() * weight.to(device)).sum().backward()
        results.append([x.float().cpu() for x in (out.detach(), *(leaf.grad for leaf in leaves))])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, atol=3e-2, rtol=3e-2)
