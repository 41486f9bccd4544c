from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mt.config.settings import DecodeConfig, ModelConfig
from mt.decode.candidates import BLOCK, best_tokens, log_normaliser_and_maxima, sampled_tokens, uniform_numbers
from mt.decode.graphs import Graphs, _Captured, rounded_up
from mt.decode.search import LOOK_AHEAD, SearchRequest, SearchResult, SearchState, length_sorted_batches, search
from mt.model import Transformer
from mt.text.tokenizer import EOS_ID, PAD_ID
from tests.toys import random_pairs, small_model, tiles

SOURCES = [[*src, EOS_ID] for src, _ in random_pairs(12, longest=15, seed=8)]


def beam_search(
    model: Transformer,
    sources: list[list[int]],
    *,
    n_best: int = 1,
    prefixes: list[list[int]] | None = None,
    banned_ids: Sequence[int] = (),
    alpha: float = 0.0,
    **settings: Any,
) -> list[list[SearchResult]]:
    decode = DecodeConfig(length_penalty=alpha, **settings)
    return search(model, SearchRequest(sources, decode, n_best=n_best, prefixes=prefixes, banned_ids=banned_ids))


def model_of(vocab_size: int, *, sharpness: float = 4.0) -> Transformer:
    """Return a model with random weights. The larger the sharpness, the more probabilities differ."""
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, n_heads=2, d_ff=48, n_encoder_layers=1, n_decoder_layers=2)
    model = Transformer(config, vocab_size=vocab_size, pad_id=PAD_ID).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(sharpness)
    return model


def log_prob(model: Transformer, source: list[int], target: tuple[int, ...]) -> float:
    """Return the log-probability of a target with EOS, from the full forward pass."""
    batch = tiles([(source[:-1], list(target))])
    with torch.no_grad():
        log_probs = model.logits(model.hidden(batch)).log_softmax(-1)
    return float(sum(log_probs[i, token] for i, token in enumerate([*target, EOS_ID])))


def penalty(n_tokens: int, alpha: float) -> float:
    return ((5 + n_tokens) / 6) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_a_beam_as_wide_as_all_hypotheses_equals_brute_force(alpha: float) -> None:
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
    model: Transformer, source: list[int], decode: DecodeConfig, n_best: int, prefix: Sequence[int] = ()
) -> list[tuple[float, tuple[int, ...]]]:
    """Search in the obvious way: with lists, one sentence at a time, without a cache."""
    alpha, max_length = decode.length_penalty, decode.max_length
    assert max_length is not None

    def penalised(total: float, n_tokens: int) -> float:
        return total / (n_tokens**alpha if decode.length_penalty_form == "plain" else penalty(n_tokens, alpha))

    def is_allowed(ids: tuple[int, ...], token: int) -> bool:
        if len(ids) + 1 == max_length:
            return token == EOS_ID
        if len(ids) < len(prefix):
            return token == prefix[len(ids)]
        n = decode.no_repeat_ngram_size
        longer = (*ids, token)
        if n and longer[-n:] in [ids[i : i + n] for i in range(len(ids) - n + 1)]:
            return False
        return token != EOS_ID or len(ids) >= decode.min_length

    open_beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, max_length + 1):
        candidates = []
        for total, ids in open_beams:
            batch = tiles([(source[:-1], list(ids))])
            with torch.no_grad():
                log_probs = model.logits(model.hidden(batch)[len(ids)]).log_softmax(-1)
            allowed = [token for token in range(EOS_ID, model.vocab_size) if is_allowed(ids, token)]
            candidates += [(total + float(log_probs[token]), ids, token) for token in allowed]
        candidates.sort(key=lambda item: -item[0])
        best = candidates[: 2 * decode.beam_size]
        ends = [(total, ids) for total, ids, token in best[: decode.beam_size] if token == EOS_ID]
        finished += [(penalised(total, length), ids) for total, ids in ends]
        open_beams = [(total, (*ids, token)) for total, ids, token in best if token != EOS_ID][: decode.beam_size]
        finished = sorted(finished, reverse=True)[: decode.beam_size]
        if not open_beams:
            break
        if len(finished) >= n_best and finished[n_best - 1][0] >= penalised(
            open_beams[0][0], min(max_length, length + LOOK_AHEAD)
        ):
            break
    return finished[:n_best]


@pytest.mark.parametrize(
    ("settings", "n_best"),
    [
        ({"beam_size": 1, "length_penalty": 0.0}, 1),
        ({"beam_size": 3}, 1),
        ({"length_penalty": 1.0}, 4),
        ({"length_penalty": 1.0, "length_penalty_form": "plain"}, 2),
        ({"min_length": 6, "max_length": 9}, 2),
        ({"no_repeat_ngram_size": 1}, 2),
        ({"no_repeat_ngram_size": 2, "beam_size": 3}, 1),
        ({"no_repeat_ngram_size": 3, "min_length": 11}, 1),
    ],
)
def test_batched_search_equals_the_obvious_version(settings: dict[str, Any], n_best: int) -> None:
    model = model_of(50)
    decode = DecodeConfig(**{"max_length": 12, **settings})
    for source, results in zip(SOURCES, search(model, SearchRequest(SOURCES, decode, n_best=n_best)), strict=True):
        expected = plain_beam_search(model, source, decode, n_best)
        assert [result.ids for result in results] == [ids for _, ids in expected]
        assert [result.score for result in results] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_translations_start_with_their_prefix() -> None:
    model, decode = model_of(50), DecodeConfig(max_length=12)
    prefixes = [[int(i) for i in range(4 + n, 4 + 2 * n)] for n in range(len(SOURCES) - 1)]  # 0 to 10 tokens
    prefixes.append([7] * 11)  # the maximum length
    results = search(model, SearchRequest(SOURCES, decode, n_best=2, prefixes=prefixes))
    for source, prefix, found in zip(SOURCES, prefixes, results, strict=True):
        expected = plain_beam_search(model, source, decode, 2, prefix)
        assert [result.ids for result in found] == [ids for _, ids in expected]
        assert [result.log_prob for result in found] == pytest.approx(
            [log_prob(model, source, ids) for _, ids in expected], abs=1e-4
        )
        assert all(result.ids[: len(prefix)] == tuple(prefix) for result in found)
    assert results[-1][0].ids == (7,) * 11


def test_a_prefix_may_contain_banned_tokens_and_repetitions() -> None:
    decode = DecodeConfig(max_length=12, no_repeat_ngram_size=1, min_length=4)
    (found,) = search(model_of(50), SearchRequest(SOURCES[:1], decode, prefixes=[[9, 9]], banned_ids=[9]))
    assert found[0].ids[:2] == (9, 9)
    assert 9 not in found[0].ids[2:]
    assert len(set(found[0].ids[2:])) == len(found[0].ids) - 2 >= 2


CAPTURED = pytest.mark.parametrize(
    ("settings", "n_best"),
    [
        ({}, 2),
        ({"length_penalty": 1.0}, 2),
        ({"min_length": 6, "max_length": 9}, 1),
        ({"min_length": 6, "max_length": 40}, 1),
        ({"no_repeat_ngram_size": 2}, 1),
        ({"beam_size": 1, "length_penalty": 0.0}, 1),
        ({"sample": True, "top_k": 9}, 3),
    ],
)


@CAPTURED
@pytest.mark.parametrize("longest_prefix", [0, 4])
def test_static_steps_find_the_same_as_eager_steps(settings: dict[str, Any], n_best: int, longest_prefix: int) -> None:
    """Static steps are those that CUDA graphs capture: rounded shapes, padding, no information from the host."""
    model, decode = model_of(50), DecodeConfig(**settings)
    for n in (1, 5, len(SOURCES)):
        prefixes = [source[:longest_prefix][:-1] for source in SOURCES[:n]]
        eager = search(model, SearchRequest(SOURCES[:n], decode, n_best=n_best, prefixes=prefixes))
        static = Graphs(model).search(SearchRequest(SOURCES[:n], decode, n_best=n_best, prefixes=prefixes))
        assert [[r.ids for r in found] for found in static] == [[r.ids for r in found] for found in eager]
        assert [r.score for found in static for r in found] == pytest.approx(
            [r.score for found in eager for r in found], rel=1e-5
        )


class Replayed:
    """A fake CUDA graph: it repeats the captured step, with the state of the host at the time of the capture."""

    def __init__(self, state: SearchState) -> None:
        self.state = state
        self.n_replays = 0

    def replay(self) -> None:
        self.n_replays += 1
        stepped = self.state.copy()
        stepped.step()
        for (_, _, before), (_, _, after) in zip(self.state.tensors(), stepped.tensors(), strict=True):
            if after is not before:
                before.copy_(after)


@CAPTURED
@pytest.mark.parametrize("longest_prefix", [0, 4])
def test_replayed_steps_find_the_same_as_eager_steps(
    settings: dict[str, Any], n_best: int, longest_prefix: int
) -> None:
    captures: list[Replayed] = []

    def capture(state: SearchState, pool: object) -> _Captured:
        own = state.copy()
        for held, name, tensor in own.tensors():
            held[name] = tensor.clone()
        captures.append(Replayed(own))
        return _Captured(captures[-1], own)

    model, decode = model_of(50), DecodeConfig(**settings)
    graphs = Graphs(model, capture)
    for n in (12, 5, 12, 9, 1, 12, 1):
        prefixes = [source[:longest_prefix][:-1] for source in SOURCES[:n]]
        eager = search(model, SearchRequest(SOURCES[:n], decode, n_best=n_best, prefixes=prefixes))
        replayed = graphs.search(SearchRequest(SOURCES[:n], decode, n_best=n_best, prefixes=prefixes))
        assert [[r.ids for r in found] for found in replayed] == [[r.ids for r in found] for found in eager]
    assert graphs.capture_error is None
    assert sum(replayed.n_replays for replayed in captures) > len(captures) > 0  # not all steps were eager


def test_a_failed_capture_is_reported_and_the_search_continues(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(state: SearchState, pool: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model, decode = model_of(50), DecodeConfig()
    graphs = Graphs(model, failing)
    for _ in range(3):
        found = graphs.search(SearchRequest(SOURCES, decode))
        assert ids_of(found) == ids_of(search(model, SearchRequest(SOURCES, decode)))
    problem = "operation not permitted when stream is capturing"
    assert capsys.readouterr().err == f"warning: CUDA graphs cannot be used, so decoding is slower: {problem}\n"


def test_a_finished_sentence_does_not_change_while_others_continue() -> None:
    sources = [[*src, EOS_ID] for src, _ in random_pairs(24, longest=15, seed=8)]
    model, decode = model_of(50), DecodeConfig(length_penalty=1.5)
    together = search(model, SearchRequest(sources, decode))
    alone = [search(model, SearchRequest([source], decode))[0] for source in sources]
    assert ids_of(together) == ids_of(alone)
    assert ids_of(Graphs(model).search(SearchRequest(sources, decode))) == ids_of(alone)


def test_shapes_are_rounded_up_to_a_few_values() -> None:
    assert [rounded_up(n) for n in range(1, 10)] == [1, 2, 3, 4, 6, 6, 8, 8, 12]
    assert all(n <= rounded_up(n) < 1.5 * n + 1 for n in range(1, 2_000))
    assert len({rounded_up(n) for n in range(1, 1_025)}) == 20


# --- Sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [10, 20, 30, 40]),
        ({"temperature": 0.5}, [3, 14, 30, 53]),  # squares over their sum of 0.30: 3.3, 13.3, 30.0 and 53.3 per cent
        ({"top_k": 2}, [0, 0, 43, 57]),
        ({"top_p": 0.6}, [0, 0, 43, 57]),  # 0.4 is less than 0.6
        ({"top_p": 0.4}, [0, 0, 0, 100]),
        ({"top_k": 3, "top_p": 0.75}, [0, 0, 43, 57]),  # top_p applies to the tokens that top_k leaves
    ],
)
def test_samples_have_the_requested_probabilities(settings: dict[str, Any], expected: list[int]) -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(100, -1) + 5.0
    uniform = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    drawn, ids = sampled_tokens(scores, uniform, **{"temperature": 1.0, "top_k": None, "top_p": None, **settings})
    counts = [int((ids == token).sum()) for token in range(4)]
    assert counts == pytest.approx(expected, abs=1)
    assert torch.equal(drawn, scores.gather(1, ids))  # without the temperature


def test_forbidden_tokens_are_not_sampled() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    scores[0, [0, 3]] = -math.inf
    for uniform in (0.0, 0.39, 0.41, 1 - 2**-53):
        number = torch.tensor([uniform], dtype=torch.float64)
        _, ids = sampled_tokens(scores, number, temperature=1.0, top_k=None, top_p=None)
        assert ids.item() == (1 if uniform < 0.4 else 2)


def split_mix(x: int) -> int:
    """Return the SplitMix64 hash of x, on Python integers. Source: Steele et al. 2014."""
    bits = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & bits
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
    return x ^ (x >> 31)


def test_uniform_numbers_equal_those_of_the_published_generator() -> None:
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123_456_789])
    for position in (0, 3):
        states = [(key + position * 0x9E3779B97F4A7C15) & ((1 << 64) - 1) for key in keys.tolist()]
        expected = [(split_mix(state) >> 11) / 2**53 for state in states]
        assert uniform_numbers(keys, torch.tensor(position)).tolist() == expected


def test_samples_depend_only_on_the_sentence_and_the_seed() -> None:
    model, decode = model_of(50), DecodeConfig(sample=True, max_length=15)

    def drawn(sources: list[list[int]], seed: int = 1) -> list[list[tuple[int, ...]]]:
        results = search(model, SearchRequest(sources, replace(decode, seed=seed), n_best=3))
        return [[result.ids for result in found] for found in results]

    together = drawn(SOURCES)
    assert together == [drawn([source])[0] for source in SOURCES] == drawn(SOURCES[::-1])[::-1]
    assert all(len(set(found)) > 1 for found in together)
    assert together != drawn(SOURCES, seed=2)


def test_samples_have_the_scores_of_the_model_and_are_sorted() -> None:
    model = model_of(50, sharpness=2.0)
    decode = DecodeConfig(sample=True, temperature=2.0, top_k=20, max_length=10, length_penalty=0.6, min_length=2)
    for source, results in zip(SOURCES, search(model, SearchRequest(SOURCES, decode, n_best=5)), strict=True):
        assert len(results) == 5
        assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
        for result in results:
            assert 2 < result.n_tokens <= 10
            assert result.log_prob == pytest.approx(log_prob(model, source, result.ids), abs=1e-4)


# --- Properties of every search ---------------------------------------------------------------------------------------


def ids_of(results: list[list[SearchResult]]) -> list[tuple[int, ...]]:
    return [hypotheses[0].ids for hypotheses in results]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_translating_together_equals_translating_alone(beam_size: int) -> None:
    model = model_of(50)
    together = ids_of(beam_search(model, SOURCES, beam_size=beam_size, alpha=0.6))
    alone = [ids_of(beam_search(model, [source], beam_size=beam_size, alpha=0.6))[0] for source in SOURCES]
    backwards = ids_of(beam_search(model, SOURCES[::-1], beam_size=beam_size, alpha=0.6))[::-1]
    assert together == alone == backwards
    assert len(set(together)) > 6  # the translations differ


def test_every_hypothesis_ends_at_the_maximum_length() -> None:
    model = model_of(50)
    for results in beam_search(model, SOURCES, beam_size=3, alpha=0.6, max_length=2, n_best=3):
        assert all(result.n_tokens <= 2 for result in results)
        assert EOS_ID not in results[0].ids
    assert beam_search(model, SOURCES[:1], beam_size=3, alpha=0.6, max_length=1)[0][0].ids == ()


def test_the_default_maximum_length_is_that_of_the_source_plus_fifty() -> None:
    model = model_of(50, sharpness=1.0)
    with torch.no_grad():
        # EOS is almost impossible, because its embedding points away from every state.
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


@pytest.mark.parametrize(("n_vocab", "n_beams"), [(128, 1), (128, 3), (1_024, 3), (4_096, 2)])
def test_the_best_tokens_of_blocks_are_the_best_of_all(n_vocab: int, n_beams: int) -> None:
    torch.manual_seed(0)
    logits, offsets = torch.randn(20 * n_beams, n_vocab) * 3, torch.randn(20, n_beams)
    logits[:, [0, 5]] = -math.inf
    _, maxima = log_normaliser_and_maxima(logits, n_vocab // BLOCK)
    totals, ids, beams = best_tokens(logits, maxima, offsets, 6)
    everything = logits.view(20, n_beams, -1) + offsets[:, :, None]
    expected, places = everything.flatten(1).topk(6, 1)
    torch.testing.assert_close(totals, expected, rtol=0, atol=0)
    assert torch.equal(beams * n_vocab + ids, places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_normaliser_equals_that_of_a_softmax(dtype: torch.dtype) -> None:
    logits = (torch.randn(3, 256) * 9).to(dtype)
    before = logits.clone()
    normaliser, maxima = log_normaliser_and_maxima(logits, 4)
    torch.testing.assert_close(normaliser, logits.float().logsumexp(-1, keepdim=True))
    assert torch.equal(normaliser, log_normaliser_and_maxima(logits)[0])
    assert torch.equal(maxima, logits.float().view(3, 4, 64).amax(-1))
    assert torch.equal(logits, before)


def test_batches_are_sorted_by_length_and_fit_the_budget() -> None:
    lengths = [30, 100, 40, 100, 25, 1_000]
    assert length_sorted_batches(lengths, 200, n_beams=1) == [[5], [1, 3], [2, 0, 4]]
    # A wider beam needs more memory, and so do many short sentences: each counts as at least 16 tokens.
    assert length_sorted_batches(lengths, 200, n_beams=8) == [[5], [1], [3], [2, 0], [4]]
    assert [len(batch) for batch in length_sorted_batches([1] * 20, 160, n_beams=4)] == [10, 10]
    assert length_sorted_batches(lengths, 200, n_beams=1, batch_sentences=1) == [[5], [1], [3], [2], [0], [4]]


def test_a_model_that_returns_nan_gives_no_hypotheses() -> None:
    model = model_of(50)
    fine = beam_search(model, SOURCES[:1], beam_size=2, alpha=0.6)
    with torch.no_grad():
        model.embedding.weight[9] = float("nan")  # the output layer is tied to it, so that all logits are NaN
    assert len(fine[0]) == 1
    assert beam_search(model, SOURCES[:3], beam_size=2, alpha=0.6) == [[], [], []]


def test_decoding_does_not_change_the_mode_of_a_model_in_training() -> None:
    model = small_model(dropout=0.1)
    beam_search(model.for_inference(torch.float32), SOURCES[:2], beam_size=2, alpha=0.6)
    assert model.training
