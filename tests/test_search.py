from __future__ import annotations

import itertools
import math

import pytest
import torch

from mt.config import ModelConfig
from mt.decode.search import SearchResult, beam_search, length_sorted_batches, top_log_probs
from mt.model import Transformer
from mt.text.tokenizer import EOS_ID, PAD_ID
from tests.toys import random_pairs, small_model, tiles

SOURCES = [[*src, EOS_ID] for src, _ in random_pairs(12, longest=15, seed=8)]


def model_of(vocab_size: int, *, sharpness: float = 4.0) -> Transformer:
    """Random weights; the larger the sharpness, the more the choices differ in probability."""
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, n_heads=2, d_ff=48, n_encoder_layers=1, n_decoder_layers=2)
    model = Transformer(config, vocab_size=vocab_size, pad_id=PAD_ID).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(sharpness)
    return model


def log_prob(model: Transformer, source: list[int], target: tuple[int, ...]) -> float:
    """Of a target with its EOS, from the full forward pass."""
    batch = tiles([(source[:-1], list(target))])
    with torch.no_grad():
        log_probs = model.logits(model(batch)).log_softmax(-1)
    return float(sum(log_probs[i, token] for i, token in enumerate([*target, EOS_ID])))


def penalty(n_tokens: int, alpha: float) -> float:
    return ((5 + n_tokens) / 6) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_a_beam_as_wide_as_all_hypotheses_finds_what_brute_force_finds(alpha: float) -> None:
    model = model_of(8, sharpness=1.5)
    for source in ([5, EOS_ID], [6, 4, 7, EOS_ID]):
        everything = [
            target for n in range(4) for target in itertools.product([4, 5, 6, 7], repeat=n)
        ]  # up to three tokens and EOS
        scored = sorted(
            ((log_prob(model, source, target) / penalty(len(target) + 1, alpha), target) for target in everything),
            reverse=True,
        )
        found = beam_search(model, [source], beam_size=64, alpha=alpha, max_length=4, n_best=10)[0]
        assert [result.ids for result in found] == [target for _, target in scored[:10]]
        assert [result.score for result in found] == pytest.approx([score for score, _ in scored[:10]], abs=1e-5)


def plain_beam_search(
    model: Transformer, source: list[int], beam_size: int, alpha: float, max_length: int, n_best: int
) -> list[tuple[float, tuple[int, ...]]]:
    """The obvious version: lists, one sentence, no cache."""
    open_beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, max_length + 1):
        candidates = []
        for total, ids in open_beams:
            batch = tiles([(source[:-1], list(ids))])
            with torch.no_grad():
                log_probs = model.logits(model(batch)[len(ids)]).log_softmax(-1)
            allowed = [EOS_ID] if length == max_length else range(EOS_ID, model.vocab_size)
            candidates += [(total + float(log_probs[token]), ids, token) for token in allowed]
        candidates.sort(key=lambda item: -item[0])
        best = candidates[: 2 * beam_size]
        finished += [(total / penalty(length, alpha), ids) for total, ids, token in best if token == EOS_ID]
        open_beams = [(total, (*ids, token)) for total, ids, token in best if token != EOS_ID][:beam_size]
        finished = sorted(finished, reverse=True)[:beam_size]
        if not open_beams:
            break
        within_reach = open_beams[0][0] / penalty(max_length, alpha)
        if len(finished) >= n_best and finished[n_best - 1][0] >= within_reach:
            break
    return finished[:n_best]


@pytest.mark.parametrize(("beam_size", "alpha", "n_best"), [(1, 0.0, 1), (3, 0.6, 1), (4, 1.0, 4)])
def test_batched_search_equals_the_obvious_one(beam_size: int, alpha: float, n_best: int) -> None:
    model = model_of(50)
    found = beam_search(model, SOURCES, beam_size=beam_size, alpha=alpha, max_length=12, n_best=n_best)
    for source, results in zip(SOURCES, found, strict=True):
        expected = plain_beam_search(model, source, beam_size, alpha, 12, n_best)
        assert [result.ids for result in results] == [ids for _, ids in expected]
        assert [result.score for result in results] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_scoring_a_hypothesis_gives_its_search_score() -> None:
    model = model_of(50)
    for source, results in zip(SOURCES, beam_search(model, SOURCES, beam_size=4, alpha=0.6, n_best=4), strict=True):
        assert len(results) == 4
        for result in results:
            assert result.log_prob == pytest.approx(log_prob(model, source, result.ids), abs=1e-4)
            assert result.score == pytest.approx(result.log_prob / penalty(result.n_tokens, 0.6), abs=1e-5)
        assert results == sorted(results, key=lambda result: -result.score)


def ids_of(results: list[list[SearchResult]]) -> list[tuple[int, ...]]:
    return [hypotheses[0].ids for hypotheses in results]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_translating_together_equals_translating_alone(beam_size: int) -> None:
    model = model_of(50)
    together = ids_of(beam_search(model, SOURCES, beam_size=beam_size, alpha=0.6))
    alone = [ids_of(beam_search(model, [source], beam_size=beam_size, alpha=0.6))[0] for source in SOURCES]
    backwards = ids_of(beam_search(model, SOURCES[::-1], beam_size=beam_size, alpha=0.6))[::-1]
    assert together == alone == backwards
    assert len(set(together)) > 6  # not one answer for all


def test_at_the_longest_length_every_hypothesis_ends() -> None:
    model = model_of(50)
    for results in beam_search(model, SOURCES, beam_size=3, alpha=0.6, max_length=2, n_best=3):
        assert all(result.n_tokens <= 2 for result in results)
        assert EOS_ID not in results[0].ids
    assert beam_search(model, SOURCES[:1], beam_size=3, alpha=0.6, max_length=1)[0][0].ids == ()


def test_without_a_length_it_is_the_sources_and_fifty() -> None:
    model = model_of(50, sharpness=1.0)
    with torch.no_grad():
        # EOS all but impossible: its embedding points away from every state.
        model.decoder[-1].feed_forward_residual.norm.bias.copy_(-100 * model.embedding.weight[EOS_ID])
    results = beam_search(model, [[5, 6, EOS_ID], [5] * 9 + [EOS_ID]], beam_size=2, alpha=0.0)
    assert [hypotheses[0].n_tokens for hypotheses in results] == [53, 60]


def test_banned_ids_are_never_produced_and_others_keep_their_probability() -> None:
    model = model_of(50)
    free = beam_search(model, SOURCES[:1], beam_size=1, alpha=0.0, max_length=8)[0][0]
    banned = free.ids[0]
    other = beam_search(model, SOURCES[:1], beam_size=1, alpha=0.0, max_length=8, banned_ids=[banned])[0][0]
    assert banned not in other.ids
    assert other.log_prob == pytest.approx(log_prob(model, SOURCES[0], other.ids), abs=1e-4)


@pytest.mark.parametrize("n_vocab", [7, 60, 1_000, 3_001])
def test_the_best_of_blocks_are_the_best_of_all(n_vocab: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, n_vocab) * 3
    log_probs, ids = top_log_probs(logits.clone(), 6, torch.tensor([0, 5]), torch.zeros(20, dtype=torch.bool))
    expected = logits.log_softmax(-1)
    expected[:, [0, 5]] = -math.inf
    best, best_ids = expected.topk(6, -1)
    torch.testing.assert_close(log_probs, best)
    finite = best > -math.inf
    assert torch.equal(ids[finite], best_ids[finite])


def test_a_row_that_must_end_may_only_end() -> None:
    logits = torch.randn(2, 50)
    log_probs, ids = top_log_probs(logits.clone(), 4, torch.tensor([0]), torch.tensor([False, True]))
    assert ids[1, 0] == EOS_ID
    assert log_probs[1, 0].item() == pytest.approx(logits.log_softmax(-1)[1, EOS_ID].item(), abs=1e-5)
    assert (log_probs[1, 1:] == -math.inf).all()
    assert (log_probs[0] > -math.inf).all()


def test_batches_are_sorted_by_length_and_within_the_budget() -> None:
    lengths = [30, 100, 40, 100, 25, 1_000]
    assert length_sorted_batches(lengths, 200, beam_size=1) == [[5], [1, 3], [2, 0, 4]]
    # A wider beam keeps more in memory, and so do many short sentences: each counts as 16 tokens at least.
    assert length_sorted_batches(lengths, 200, beam_size=8) == [[5], [1], [3], [2, 0], [4]]
    assert [len(batch) for batch in length_sorted_batches([1] * 20, 160, beam_size=4)] == [10, 10]


def test_a_model_that_gives_no_numbers_ends_without_hypotheses() -> None:
    model = model_of(50)
    fine = beam_search(model, SOURCES[:1], beam_size=2, alpha=0.6)
    with torch.no_grad():
        model.embedding.weight[9] = float("nan")  # the output layer is tied to it: no logits without it
    assert len(fine[0]) == 1
    assert beam_search(model, SOURCES[:3], beam_size=2, alpha=0.6) == [[], [], []]


def test_decoding_leaves_a_training_model_in_training() -> None:
    model = small_model(dropout=0.1)
    beam_search(model.for_inference(torch.float32), SOURCES[:2], beam_size=2, alpha=0.6)
    assert model.training
