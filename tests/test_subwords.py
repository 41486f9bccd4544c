"""Random segmentations of words: their text, their frequencies, and that only the seed decides about them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from mt.config.settings import TokenizerConfig
from mt.text.corpus import FlatIds, flat_ids
from mt.text.subwords import SubwordSampler
from mt.text.tokenizer import BOS_ID, EOS_ID, UNK_ID, Tokenizer, count_words, train_tokenizer
from tests.toys import toy_text

ALPHAS = {"bpe": 0.2, "unigram": 0.2}
TEXT = [*toy_text(200, seed=1)[0], *toy_text(200, seed=1)[1]]


@pytest.fixture(scope="module", params=list(ALPHAS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    config = TokenizerConfig(kind=request.param, vocab_size=305)
    train_tokenizer(count_words(TEXT), config, path, symbols=["<bt>"], controls=["<2de>"])
    return Tokenizer.load(path)


def encoded(tokenizer: Tokenizer) -> FlatIds:
    return flat_ids([[*ids, EOS_ID] for ids in tokenizer.encode_batch(TEXT)], "<u2")


def lists(sentences: FlatIds) -> list[list[int]]:
    ids, lengths = sentences
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_samples_have_other_pieces_and_the_same_text(tokenizer: Tokenizer) -> None:
    plain = encoded(tokenizer)
    before = lists(plain)
    new = lists(SubwordSampler(tokenizer, ALPHAS[tokenizer.kind]).sample(plain, seed=1))
    assert tokenizer.decode_batch(new) == TEXT
    assert all(ids[-1] == EOS_ID and EOS_ID not in ids[:-1] for ids in new)
    assert sum(a != b for a, b in zip(before, new, strict=True)) > 100
    assert max(map(max, new)) < tokenizer.vocab_size


def test_the_seed_alone_decides_about_samples_in_each_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sampler, plain = SubwordSampler(tokenizer, ALPHAS[tokenizer.kind]), encoded(tokenizer)
    first, other, again = (lists(sampler.sample(plain, seed)) for seed in (1, 2, 1))
    assert first == again != other
    (tmp_path / "a.model").write_bytes(tokenizer.model)
    np.savez(tmp_path / "plain.npz", ids=plain[0], lengths=plain[1])
    code = (
        "import sys, hashlib, numpy; from pathlib import Path; from mt.text.tokenizer import Tokenizer; "
        "from mt.text.subwords import SubwordSampler; folder = Path(sys.argv[1]); "
        "plain = numpy.load(folder / 'plain.npz'); sampler = SubwordSampler(Tokenizer.load(folder / 'a.model'), 0.2); "
        "print(hashlib.sha256(sampler.sample((plain['ids'], plain['lengths']), 1)[0].tobytes()).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert found.strip() == hashlib.sha256(sampler.sample(plain, 1)[0].tobytes()).hexdigest()


def test_special_pieces_bytes_and_symbols_stay_as_they_are(tokenizer: Tokenizer) -> None:
    (piece,) = tokenizer.ids_of(["<2de>"])
    word = tokenizer.encode(TEXT[0])
    kept = [[piece], tokenizer.encode("<bt>"), [UNK_ID], tokenizer.encode("€"), [EOS_ID]]
    sentences = [[piece, *tokenizer.encode("<bt>"), *word, EOS_ID], [UNK_ID, *word, EOS_ID], [EOS_ID], [BOS_ID, EOS_ID]]
    sentences.append([*tokenizer.encode("€"), *word, EOS_ID])
    assert all(len(ids) >= 1 for ids in kept)
    sampler = SubwordSampler(tokenizer, 0.5 if tokenizer.kind == "bpe" else 0.1)
    seen = set()
    for seed in range(20):
        first, second, third, fourth, fifth = lists(sampler.sample(flat_ids(sentences, "<u2"), seed))
        assert first[:2] == [piece, tokenizer.encode("<bt>")[0]]
        assert second[0] == UNK_ID
        assert (third, fourth) == ([EOS_ID], [BOS_ID, EOS_ID])
        assert fifth[: len(tokenizer.encode("€"))] == tokenizer.encode("€")
        assert tokenizer.decode(first) == tokenizer.decode(sentences[0])
        seen.add(tuple(first))
    assert len(seen) > 2


def test_without_dropout_all_merges_of_bpe_are_made(tokenizer: Tokenizer) -> None:
    if tokenizer.kind != "bpe":
        pytest.skip("a unigram model has no merges")
    plain = encoded(tokenizer)
    assert lists(SubwordSampler(tokenizer, 1e-12).sample(plain, 1)) == lists(plain)


def test_segmentations_of_unigram_have_their_probabilities_to_the_power_of_alpha() -> None:
    # abc = a|b|c, ab|c, a|bc or abc, with log-probabilities of -9, -5, -7 and -6.
    sampler = SubwordSampler.__new__(SubwordSampler)
    sampler._scores = {"a": -3.0, "b": -3.0, "c": -3.0, "ab": -2.0, "bc": -4.0, "abc": -6.0}
    sampler._alpha, sampler._longest = 0.5, 3
    drawn = Counter("|".join(pieces) for pieces in sampler._divided("abc", 20_000, Random(1)))
    weights = {name: np.exp(0.5 * score) for name, score in (("a|b|c", -9), ("ab|c", -5), ("a|bc", -7), ("abc", -6))}
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert drawn[name] / 20_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


def test_bpe_leaves_out_each_merge_with_the_given_probability() -> None:
    # Two merges in a row make abc; each is left out with 0.25, the first one at most once: then nothing is left.
    sampler = SubwordSampler.__new__(SubwordSampler)
    sampler._scores, sampler._alpha = {"ab": -1.0, "abc": -2.0}, 0.25
    drawn = Counter("|".join(pieces) for pieces in sampler._merged("abc", 20_000, Random(1)))
    for name, share in (("a|b|c", 0.25), ("ab|c", 0.75 * 0.25), ("abc", 0.75**2)):
        assert drawn[name] / 20_000 == pytest.approx(share, abs=0.015)
