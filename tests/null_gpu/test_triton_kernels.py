"""The values of our Triton kernels, computed by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mt.config.settings import ModelConfig
from mt.data.batch import VarlenLayout, varlen_layout
from mt.loss import token_losses
from mt.model.context import rows_of
from mt.model.kernels import Rows, activation, separate
from mt.model.positions import Relative
from tests.toys import one_sentence_at_a_time

SOURCE, TARGET = [3, 70, 1, 28, 130, 5, 64, 2], [5, 30, 2, 100, 64, 7, 1, 9]
# Lengths of queries, lengths of keys, is causal, query heads, key heads, features per head.
CASES = [
    (SOURCE, SOURCE, False, 2, 2, 16),
    (SOURCE, SOURCE, True, 2, 2, 16),
    (SOURCE, SOURCE, True, 4, 2, 64),
    (TARGET, SOURCE, False, 2, 2, 32),
    (TARGET, SOURCE, False, 4, 1, 16),
]


def layout_of(q_lengths: list[int], k_lengths: list[int]) -> VarlenLayout:
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (q_lengths, k_lengths))
    return varlen_layout(cu_q, cu_k, 256)


def projections_of(
    layout: VarlenLayout, n_heads: int, n_groups: int, n_features: int, dtype: torch.dtype
) -> list[Tensor]:
    """Return projections as layers do: one tensor for self-attention, two for cross-attention, three for groups."""
    n_q, n_k = int(layout.cu_q[-1]), int(layout.cu_k[-1])
    if n_heads != n_groups:
        parts = [(n_q, 1, n_heads), (n_k, 1, n_groups), (n_k, 1, n_groups)]
    elif n_q == n_k:
        parts = [(n_q, 3, n_heads)]
    else:
        parts = [(n_q, 1, n_heads), (n_k, 2, n_heads)]
    return [torch.randn(*part, n_features, dtype=dtype, requires_grad=True) for part in parts]


def compare(
    rows: Rows,
    projections: list[Tensor],
    tolerance: float,
    bias: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """Compare output and gradients with those of one sentence at a time in float64."""
    from mt.model.packed_attention import attend

    assert isinstance(rows.layout, VarlenLayout)
    inputs = projections if bias is None else [*projections, bias]
    out = attend(replace(rows, masks=() if bias is None else (bias,)), *projections)
    upstream = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, inputs, upstream)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    exact_bias = None if bias is None else exact[-1]
    parts = separate(tuple(exact[: len(projections)]))
    wanted_out = one_sentence_at_a_time(*parts, rows.layout, rows.is_causal, exact_bias, kept).flatten(1)
    wanted = [wanted_out, *torch.autograd.grad(wanted_out, exact, upstream.double())]
    for of_input, x, y in zip([out, *inputs], found, wanted, strict=True):
        assert x.dtype == of_input.dtype
        assert (x.double() - y).abs().max() <= tolerance * y.abs().max(), (rows.is_causal, out.dtype)


def check_values() -> None:
    torch.manual_seed(0)
    for q_lengths, k_lengths, causal, *shape in CASES:
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.float16, 2e-3)):
            layout = layout_of(q_lengths, k_lengths)
            compare(Rows(layout, (), causal, 0.0), projections_of(layout, *shape, dtype), tolerance)


def check_biases() -> None:
    torch.manual_seed(0)
    for causal, n_heads, n_groups, dtype, tolerance in (
        (True, 2, 2, torch.float32, 3e-6),
        (False, 4, 2, torch.float32, 3e-6),
        (False, 2, 2, torch.float16, 2e-3),
    ):
        layout = layout_of(SOURCE, SOURCE)
        projections = projections_of(layout, n_heads, n_groups, 16, dtype)
        positions = Relative(ModelConfig(positions="relative", n_heads=n_heads))
        rows = rows_of(layout, 0.0, positions, causal)
        compare(rows, projections, tolerance, rows.masks[0].detach().requires_grad_())


def check_dropout() -> None:
    """With equal weights, and rows of the unit matrix as values, the output is the dropout mask."""
    from mt.model.packed_attention import attend

    for q_lengths, k_lengths, causal in ((SOURCE, SOURCE, True), (TARGET, SOURCE, False)):
        layout, seed = layout_of(q_lengths, k_lengths), 3
        rows = Rows(layout, (), causal, 0.25)
        n_q, n_k = int(layout.cu_q[-1]), int(layout.cu_k[-1])
        starts, q_sentences, k_sentences = layout.cu_k.long(), layout.q_sentences.long(), layout.k_sentences.long()
        places = torch.arange(n_k) - starts[k_sentences]
        parts = []
        for first in range(0, max(k_lengths), 16):  # as many keys at a time as a head has features
            values = torch.zeros(n_k, 1, 2, 16)
            mine = (places >= first) & (places < first + 16)
            values[mine, 0, :, places[mine] - first] = 1.0
            torch.manual_seed(seed)
            parts.append(attend(rows, torch.zeros(n_q, 1, 2, 16), torch.zeros_like(values), values).view(n_q, 2, 16))
        n_seen = torch.tensor(k_lengths)[q_sentences]
        if causal:
            n_seen = torch.arange(n_q) - layout.cu_q.long()[q_sentences] + 1
        kept = torch.cat(parts, 2) * n_seen[:, None, None]
        seen = kept[torch.arange(kept.shape[2]).expand_as(kept) < n_seen[:, None, None].expand_as(kept)]
        assert ((seen - 4 / 3).abs().minimum(seen.abs()) < 1e-5).all()
        assert 0.23 < (seen == 0).float().mean() < 0.27
        assert (kept[:, 0] != kept[:, 1]).any()
        projections = projections_of(layout, 2, 2, 16, torch.float32)
        torch.manual_seed(seed)
        compare(rows, projections, 3e-6, kept=kept.double())


def check_relu() -> None:
    from mt.model.fused import TritonTraining

    torch.manual_seed(0)
    for n_rows, n_columns in ((1, 1), (64, 128), (131, 300)):
        grad, out = torch.randn(n_rows, n_columns), torch.randn(n_rows, n_columns).relu()
        found = TritonTraining(torch.float32).activation_gradients(activation("relu"), grad, out, torch.float32, True)
        wanted = grad * (out > 0)
        assert found[0].equal(wanted)
        torch.testing.assert_close(found[1], wanted.sum(0))


def check_loss() -> None:
    from mt.model import fused

    torch.manual_seed(0)
    for n_rows, n_columns in ((1, 2), (5, 4_096), (3, 9_001)):
        logits, weights = torch.randn(n_rows, n_columns) * 5, torch.rand(n_rows)
        targets = torch.randint(n_columns, (n_rows,))
        for with_gradient in (True, False):
            arguments = targets, weights, 0.1, with_gradient
            torch.testing.assert_close(
                fused.token_losses(logits.clone(), *arguments), token_losses(logits, *arguments), rtol=1e-5, atol=1e-7
            )


@pytest.mark.null_gpu
@pytest.mark.skipif(torch.__version__ < "2.13", reason="the interpreter of older Tritons does not run with this numpy")
@pytest.mark.parametrize("check", [check_values, check_biases, check_dropout, check_relu, check_loss])
def test_triton_kernels_give_the_values_and_gradients_of_plain_torch(check: Callable[[], None]) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    code = f"from tests.null_gpu.test_triton_kernels import {check.__name__} as check; check()"
    subprocess.run([sys.executable, "-c", code], env={**variables, "TRITON_INTERPRET": "1"}, check=True)
