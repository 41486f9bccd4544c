"""What the kernels of attention compute, by Triton's interpreter on the CPU, which comes with the null GPU's torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mt.data.batch import VarlenLayout, varlen_layout
from mt.model.kernels import separate
from tests.toys import one_sentence_at_a_time

SOURCE, TARGET = [3, 70, 1, 28, 130, 5, 64, 2], [5, 30, 2, 100, 64, 7, 1, 9]
# Lengths of queries and of keys, whether it is causal, heads, those of keys, features of a head.
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
    """As layers give them: in one tensor for self-attention, in two for cross-attention, in three for groups."""
    n_q, n_k = int(layout.cu_q[-1]), int(layout.cu_k[-1])
    if n_heads != n_groups:
        parts = [(n_q, 1, n_heads), (n_k, 1, n_groups), (n_k, 1, n_groups)]
    elif n_q == n_k:
        parts = [(n_q, 3, n_heads)]
    else:
        parts = [(n_q, 1, n_heads), (n_k, 2, n_heads)]
    return [torch.randn(*part, n_features, dtype=dtype, requires_grad=True) for part in parts]


def check_values() -> None:
    """Compare values and gradients with those of one sentence at a time in float64."""
    from mt.model.packed_attention import attend

    torch.manual_seed(0)
    for q_lengths, k_lengths, causal, *shape in CASES:
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.float16, 2e-3)):
            layout = layout_of(q_lengths, k_lengths)
            projections = projections_of(layout, *shape, dtype)
            out = attend(layout, causal, *projections)
            upstream = torch.randn_like(out)
            found = [out, *torch.autograd.grad(out, projections, upstream)]
            exact = [x.detach().double().requires_grad_() for x in projections]
            wanted_out = one_sentence_at_a_time(*separate(tuple(exact)), layout, causal).flatten(1)
            wanted = [wanted_out, *torch.autograd.grad(wanted_out, exact, upstream.double())]
            for x, y in zip(found, wanted, strict=True):
                assert x.dtype == dtype
                assert (x.double() - y).abs().max() <= tolerance * y.abs().max(), (causal, shape, dtype)


@pytest.mark.null_gpu
@pytest.mark.skipif(torch.__version__ < "2.13", reason="the interpreter of older Tritons does not run with this numpy")
def test_values_and_gradients_are_those_of_one_sentence_at_a_time() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    code = "from tests.null_gpu.test_packed_attention import check_values; check_values()"
    subprocess.run([sys.executable, "-c", code], env={**variables, "TRITON_INTERPRET": "1"}, check=True)
