from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mt.decode.alignment import align, word_alignment, word_numbers
from mt.model import Transformer
from mt.model.layers import DecoderLayer
from mt.text.tokenizer import EOS_ID
from tests.toys import random_pairs, sharp_model, tiles

PAIRS = random_pairs(40, longest=30, seed=5) + random_pairs(3, longest=150, seed=6)
SOURCES = [[*src, EOS_ID] for src, _ in PAIRS]
TARGETS = [tgt for _, tgt in PAIRS]


def slow_weights(model: Transformer, source: list[int], target: list[int], layer: int) -> Tensor:
    """Return softmax(q kᵀ / √E) [H, T, S] of one pair, from the inputs of the cross-attention in a forward pass."""
    decoder_layer = model.decoder[layer]
    assert isinstance(decoder_layer, DecoderLayer)
    module = decoder_layer.cross_attention
    given: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: given.extend((inputs[0], inputs[1].memory)))
    with torch.no_grad():
        model.hidden(tiles([(source[:-1], target)]))
        handle.remove()
        x, memory = given[0][: len(target) + 1], given[1][: len(source)]
        d_model = x.shape[1]
        queries = x @ module.q.weight.T + module.q.bias
        keys = memory @ module.kv.weight[:d_model].T + module.kv.bias[:d_model]
        heads = []
        n_heads = model.config.n_heads
        for h in range(n_heads):
            part = slice(h * d_model // n_heads, (h + 1) * d_model // n_heads)
            scores = queries[:, part] @ keys[:, part].T / (d_model / n_heads) ** 0.5
            heads.append(scores.exp() / scores.exp().sum(1, keepdim=True))
    return torch.stack(heads)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_weights_are_the_softmax_of_queries_and_keys(norm: str) -> None:
    model = sharp_model(norm=norm)
    source, target = SOURCES[0], TARGETS[0]
    n_src, n_tgt = len(source), len(target) + 1
    batch = tiles([(source[:-1], target)])
    for layer in range(2):
        with torch.no_grad():
            (weights,) = model.cross_attention_weights(batch, layer)
        assert weights.shape == (1, 2, 64, 64)
        assert weights.dtype == torch.float32
        expected = slow_weights(model, source, target, layer)
        torch.testing.assert_close(weights[0, :, :n_tgt, :n_src], expected, atol=1e-5, rtol=1e-4)
        assert float(weights[0, :, :n_tgt, n_src:].abs().max()) == 0  # padding has no weight


def test_alignments_equal_those_of_the_slow_reference() -> None:
    model = sharp_model()
    found = align(model, SOURCES, TARGETS)
    for source, target, pairs in zip(SOURCES, TARGETS, found, strict=True):
        weights = slow_weights(model, source, target, 1).mean(0)[:, :-1]  # no EOS of the source
        assert pairs == [(int(row.argmax()), t) for t, row in enumerate(weights[:-1])]


def test_the_alignment_of_a_token_comes_from_the_position_that_predicts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    #         source: a    b    EOS
    rows = [
        [0.2, 0.7, 0.1],  # predicts x
        [0.3, 0.1, 0.6],  # x is the input, predicts y; EOS, most attended, is not aligned to
        [0.1, 0.5, 0.4],  # y is the input, predicts EOS
    ]
    two_heads = torch.zeros(1, 2, 64, 64)
    two_heads[0, 0, :3, :3] = 2 * torch.tensor(rows)  # the other head is 0, so that the average is as above
    monkeypatch.setattr(Transformer, "cross_attention_weights", lambda self, batch, layer: [two_heads.clone()])
    model = sharp_model()
    assert align(model, [[10, 11, EOS_ID]], [[20, 21]]) == [[(1, 0), (0, 1)]]


@pytest.mark.parametrize(("n_layers", "expected"), [(1, 0), (2, 1), (3, 2), (6, 2)])
def test_alignments_come_from_the_third_layer_or_the_last_if_there_are_fewer(
    monkeypatch: pytest.MonkeyPatch, n_layers: int, expected: int
) -> None:
    model, read = sharp_model(n_decoder_layers=n_layers), []
    original = Transformer.cross_attention_weights

    def noted(self: Transformer, batch: Any, layer: int) -> list[Tensor]:
        read.append(layer)
        return original(self, batch, layer)

    monkeypatch.setattr(Transformer, "cross_attention_weights", noted)
    align(model, SOURCES[:1], TARGETS[:1])
    assert read == [expected]


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_alignments_do_not_depend_on_the_batch(batch_tokens: int) -> None:
    model = sharp_model()
    alone = [align(model, [src], [tgt])[0] for src, tgt in zip(SOURCES, TARGETS, strict=True)]
    assert align(model, SOURCES, TARGETS, batch_tokens) == alone


def test_blank_sentences_have_no_alignment_and_do_not_affect_others() -> None:
    model = sharp_model()
    sources, targets = [[EOS_ID], SOURCES[0], SOURCES[1], [EOS_ID]], [TARGETS[0], TARGETS[0], [], []]
    assert align(model, sources, targets) == [[], align(model, SOURCES[:1], TARGETS[:1])[0], [], []]
    assert align(model, [], []) == []


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "numbers"),
    [
        ("▁Ein ▁klein er ▁Hund .", [0, 1, 1, 2, 2]),
        ("▁ <0xF0> <0x9F> ▁a", [0, 0, 0, 1]),
        ("▁a ▁ ▁b", [0, 1, 1]),
        ("▁a <0x20> b", [0, 1, 1]),
        ("a b ▁c ▁", [0, 0, 1, 1]),
        ("▁", [-1]),
        ("", []),
    ],
)
def test_words_are_separated_by_spaces(pieces: str, numbers: list[int]):
    assert word_numbers(pieces.split()) == numbers


SPACES = "▁ x ▁y ▁ ▁z ▁"  # x y  z: a space by itself belongs to the next word


@pytest.mark.parametrize(
    ("src", "tgt", "of_tokens", "of_words"),
    [
        (
            "▁Two ▁snow mob ile s ▁wait",
            "▁Zwei ▁Schnee mobile ▁warten",
            [(0, 0), (1, 1), (3, 2), (4, 2), (5, 3), (0, 3)],
            [(0, 0), (0, 2), (1, 1), (2, 2)],
        ),
        ("a b ▁c", "<0xC3> <0xA4> ▁d", [(1, 1), (2, 2)], [(0, 0), (1, 1)]),  # a first piece begins a word
        (SPACES, "▁a", [(0, 0)], [(0, 0)]),
        (SPACES, "▁a ▁b", [(3, 0), (5, 1)], [(2, 0), (2, 1)]),
        ("▁", "▁a", [(0, 0)], []),
        ("▁a ▁b", "▁a", [(0, 0), (2, 0), (1, 1)], [(0, 0)]),  # EOS is not in a word
    ],
)
def test_words_are_aligned_if_their_tokens_are(src: str, tgt: str, of_tokens: Any, of_words: Any) -> None:
    assert word_alignment(src.split(), tgt.split(), of_tokens) == of_words
