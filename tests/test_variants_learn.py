"""Every variant of the model learns to copy and to reverse sequences. Takes minutes: scripts/test.sh -m slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mt.config.settings import DecodeConfig, ModelConfig
from mt.decode.search import SearchRequest, search
from mt.dropout import seed_dropout
from mt.loss import linear_label_smoothed_nll
from mt.model import Transformer
from mt.model.cpu import training_kernels
from mt.text.tokenizer import EOS_ID
from tests.test_variants import SETTINGS
from tests.toys import tiles

CPU = torch.device("cpu")
COPY, REVERSE, FIRST, N_SYMBOLS = 4, 5, 6, 20
SHAPE = {"d_model": 64, "n_heads": 4, "d_ff": 128, "n_encoder_layers": 2, "n_decoder_layers": 2, "n_positions": 64}
VARIANTS = [
    (name, value) for name, values in SETTINGS.items() for value in values if value != "none" or name != "positions"
]


def drawn_pairs(rng: np.random.Generator, n: int) -> list[tuple[list[int], list[int]]]:
    """Return random sequences of symbols. The first symbol says whether to copy or to reverse the others."""
    pairs = []
    for task in rng.integers(COPY, REVERSE + 1, n):
        symbols = rng.integers(FIRST, FIRST + N_SYMBOLS, rng.integers(2, 9)).tolist()
        pairs.append(([int(task), *symbols], symbols if task == COPY else symbols[::-1]))
    return pairs


def fraction_correct(model: Transformer) -> float:
    pairs = drawn_pairs(np.random.default_rng(99), 200)
    found = search(
        model.for_inference(torch.float32),
        SearchRequest([[*src, EOS_ID] for src, _ in pairs], DecodeConfig(beam_size=1)),
    )
    return float(np.mean([list(results[0].ids) == tgt for results, (_, tgt) in zip(found, pairs, strict=True)]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), VARIANTS)
def test_a_variant_learns_to_copy_and_to_reverse(name: str, value: Any) -> None:
    settings = {"dropout": 0.0, name: value}
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**SHAPE, **settings), vocab_size=FIRST + N_SYMBOLS, pad_id=0)
    model.use(training_kernels(CPU))
    rng, most_steps = np.random.default_rng(5), 2_400
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    for step in range(most_steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 100) * min(1, 2 * (1 - step / most_steps))
        batch = tiles(drawn_pairs(rng, 64))
        seed_dropout(CPU, 1, step, 0)
        loss = linear_label_smoothed_nll(
            model.hidden(batch), model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.0
        )
        optimizer.zero_grad()
        (loss / batch.n_tgt_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0 and fraction_correct(model) == 1.0:
            return
    assert fraction_correct(model) >= 0.98
