from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import mt.decode.candidates
import mt.decode.scorer
from mt.config.settings import DecodeConfig
from mt.data.batch import packed_pairs
from mt.decode.scorer import PairScore, Scorer, score_pairs, token_log_probs
from mt.decode.search import SearchRequest, search
from mt.decode.translator import OwnBackend, Translator
from mt.errors import CheckpointError
from mt.model import Transformer
from mt.text.corpora import SentencePair
from mt.text.tokenizer import EOS_ID, PAD_ID, Tokenizer, Tokenizers
from tests.toys import random_pairs, sharp_model, tiles, toy_text

PAIRS = random_pairs(40, longest=30, seed=5) + random_pairs(3, longest=150, seed=6)
SOURCES = [[*src, EOS_ID] for src, _ in PAIRS]
TARGETS = [tgt for _, tgt in PAIRS]
MAX_TOKENS = 24


def full_log_probs(model: Transformer, source: Sequence[int], target: Sequence[int]) -> list[float]:
    """Return log-probabilities from the log-softmax of all logits of one pair."""
    labels = [*target, EOS_ID]
    with torch.no_grad():
        rows = model.logits(model.hidden(tiles([(source[:-1], target)]))).log_softmax(-1)
    return [float(rows[i, label]) for i, label in enumerate(labels)]


def test_a_uniform_model_gives_each_token_minus_log_vocab() -> None:
    hidden, weight = torch.zeros(3, 4), torch.randn(20, 4)
    assert token_log_probs(hidden, weight, torch.tensor([0, 7, 19])).tolist() == pytest.approx([-math.log(20)] * 3)


def test_the_chunk_size_does_not_change_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(50, 8), torch.randn(30, 8), torch.randint(0, 30, (50,))
    expected = (hidden @ weight.t()).log_softmax(-1)[torch.arange(50), labels]
    for rows, cached_elements in ((512, 1 << 18), (50, 1_500), (7, 90), (1, 1)):
        monkeypatch.setattr(mt.decode.scorer, "SCORED_ROWS", rows)
        monkeypatch.setattr(mt.decode.candidates, "CACHED_ELEMENTS", cached_elements)
        torch.testing.assert_close(token_log_probs(hidden, weight, labels), expected)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_scores_equal_those_of_the_full_log_softmax(norm: str) -> None:
    model = sharp_model(norm=norm, n_encoder_layers=1)
    for source, target, found in zip(SOURCES, TARGETS, score_pairs(model, SOURCES, TARGETS), strict=True):
        assert found == pytest.approx(full_log_probs(model, source, target), abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_scores_do_not_depend_on_the_batch(batch_tokens: int) -> None:
    model = sharp_model(n_encoder_layers=1)
    alone = [score_pairs(model, [src], [tgt])[0] for src, tgt in zip(SOURCES, TARGETS, strict=True)]
    together = score_pairs(model, SOURCES, TARGETS, batch_tokens=batch_tokens)
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_the_score_of_a_translation_equals_that_of_the_search() -> None:
    model = sharp_model(n_encoder_layers=1)
    found = search(model, SearchRequest(SOURCES, DecodeConfig(max_length=20), n_best=4))
    for k in range(4):
        scores = score_pairs(model, SOURCES, [results[k].ids for results in found])
        assert [sum(score) for score in scores] == pytest.approx([results[k].log_prob for results in found], abs=1e-4)


def test_an_empty_target_has_the_probability_of_an_immediate_eos() -> None:
    model = sharp_model(n_encoder_layers=1)
    (score,) = score_pairs(model, SOURCES[:1], [[]])
    assert score == pytest.approx(full_log_probs(model, SOURCES[0], []))
    assert score_pairs(model, [], []) == []


def test_packed_batches_contain_each_pair_once_and_give_their_order() -> None:
    targets = [[*target, EOS_ID] for target in TARGETS]
    seen: list[int] = []
    for pairs, batch in packed_pairs(SOURCES, targets, 200, torch.float32):
        for ids, expected in (
            (batch.tgt_outputs[batch.tgt_weights > 0], [targets[i] for i in pairs]),
            (batch.src_ids[batch.src_ids != PAD_ID], [SOURCES[i] for i in pairs]),
        ):
            assert ids.tolist() == [token for sentence in expected for token in sentence]
        assert max(batch.n_src_tokens, batch.n_tgt_tokens) <= 200 or len(pairs) == 1
        seen += pairs.tolist()
    assert sorted(seen) == list(range(len(SOURCES)))


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scorer(tokenizer: Tokenizer) -> Scorer:
    model = sharp_model(n_encoder_layers=1, vocab_size=tokenizer.vocab_size)
    decode = DecodeConfig(beam_size=2, length_penalty=0.6, max_length=10)
    return Scorer(
        Translator(OwnBackend(model.for_inference(torch.float32)), Tokenizers.of([tokenizer]), decode, MAX_TOKENS)
    )


def pairs_of(sources: Sequence[str], targets: Sequence[str]) -> list[SentencePair]:
    return [SentencePair(src, tgt, line) for line, (src, tgt) in enumerate(zip(sources, targets, strict=True), start=1)]


SRC, TGT = toy_text(30, 9)


def test_lines_are_scored_in_order_and_independently_of_the_batch(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_of(SRC, TGT)
    together = list(scorer.score(pairs))
    assert [score.pair for score in together] == pairs
    monkeypatch.setattr(mt.decode.scorer, "PAIRS_AT_A_TIME", 7)
    for score, pair in zip(scorer.score(iter(pairs)), pairs, strict=True):
        (alone,) = scorer.score([pair], replace(scorer.decode, batch_tokens=1))
        assert score.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
        assert score.score == pytest.approx(together[pair.line - 1].score, abs=1e-4)
    assert scorer.n_pairs == 3 * len(pairs)


def test_the_figures_of_a_line_are_consistent(scorer: Scorer) -> None:
    (score,) = scorer.score(pairs_of(["bar  ku"], ["BAR KU"]))
    ids = scorer.translator.tokenizers.src.encode("BAR KU")
    assert score.pieces == (*scorer.translator.tokenizers.src.pieces(ids), "</s>")
    assert score.n_tokens == len(score.token_log_probs) == len(ids) + 1
    assert score.log_prob == pytest.approx(sum(score.token_log_probs))
    assert score.mean_log_prob == pytest.approx(score.log_prob / (len(ids) + 1))
    assert score.score == pytest.approx(score.log_prob / ((5 + len(ids) + 1) / 6) ** 0.6)
    plain = replace(scorer.decode, length_penalty=1.0, length_penalty_form="plain")
    (by_plain_penalty,) = scorer.score([score.pair], plain)
    assert by_plain_penalty.score == pytest.approx(score.mean_log_prob)


def test_blank_lines_are_scored_as_empty_text(scorer: Scorer) -> None:
    pairs = pairs_of(["", "bar", " \t", SRC[0]], ["\u200b", "  ", "BAR", TGT[0]])
    both, no_target, no_source, neither = scorer.score(pairs)
    assert both == PairScore(pairs[0], 0.0, 0.0, 0, (), ())
    assert both.mean_log_prob == 0
    assert (no_target.n_tokens, no_target.pieces) == (1, ("</s>",))
    assert no_target.log_prob == pytest.approx(
        full_log_probs(scorer.translator.model, [*scorer.translator.tokenizers.src.encode("bar"), EOS_ID], [])[0],
        abs=1e-5,
    )
    assert no_source.log_prob == pytest.approx(
        sum(full_log_probs(scorer.translator.model, [EOS_ID], scorer.translator.tokenizers.src.encode("BAR"))), abs=1e-4
    )
    assert neither.log_prob == pytest.approx(next(iter(scorer.score(pairs[3:]))).log_prob, abs=1e-4)


def test_long_pairs_are_scored_and_counted_but_too_long_pairs_are_not_scored(scorer: Scorer) -> None:
    long, too_long = "BAR " * 200, "ku " * 2_000
    pairs = pairs_of([SRC[0], "bar", too_long, "bar"], [TGT[0], long, "BAR", too_long])
    scores = list(scorer.score(pairs))
    assert [math.isfinite(score.log_prob) for score in scores] == [True, True, False, False]
    n_too_long = len(scorer.translator.tokenizers.src.encode(too_long.strip())) + 1
    assert n_too_long > scorer.longest
    assert scores[2] == PairScore(
        pairs[2], -math.inf, -math.inf, len(scorer.translator.tokenizers.src.encode("BAR")) + 1, (), ()
    )
    assert scores[3] == PairScore(pairs[3], -math.inf, -math.inf, n_too_long, (), ())
    assert scores[3].mean_log_prob == -math.inf
    assert (scorer.n_pairs, scorer.n_long, scorer.n_too_long) == (4, 3, 2)


def test_a_model_trained_on_long_pairs_scores_pairs_of_that_length(scorer: Scorer) -> None:
    assert scorer.longest == 1_024
    scorer.translator.max_source_tokens = 3_000
    assert scorer.longest == 3_000


def test_the_error_for_nan_scores_says_where_and_what_to_try(scorer: Scorer) -> None:
    scorer.translator.model.embedding.weight[scorer.translator.tokenizers.src.encode("bar")[0]] = math.nan
    with pytest.raises(CheckpointError) as caught:
        list(scorer.score(pairs_of(["ku", "bar"], ["KU", "BAR"])))
    assert str(caught.value) == (
        "the model returns NaN for line 1, 'ku'. Try --precision fp32; if that does not help, its weights are damaged."
    )
