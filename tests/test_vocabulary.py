"""Facts about a vocabulary, computed from word counts and compared with those of the running text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mt.config.settings import TokenizerConfig
from mt.text.tokenizer import Tokenizer, Tokenizers, count_words, train_tokenizer, vocabulary_facts
from tests.toys import toy_text

# The vocabulary has 16 letters, so "bar" and "dest" are pieces, and other words become letters and bytes.
LINES = ["bar dest", "bar bar", "dest bar", "漢 bar"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(count_words(toy_text(300, 1)[0]), TokenizerConfig(vocab_size=340), path, ["<bt>"])
    return Tokenizer.load(path)


def test_the_facts_of_a_few_words_equal_a_computation_by_hand(tokenizer: Tokenizer) -> None:
    assert [tokenizer.pieces(tokenizer.encode(word)) for word in ("bar", "漢")] == [
        ["▁bar"],
        ["▁", "<0xE6>", "<0xBC>", "<0xA2>"],
    ]
    assert vocabulary_facts(Tokenizers.of([tokenizer]), {"bar": 6, "漢": 2}, {})["src"] == {
        "words": 8,
        "distinct_words": 2,
        "tokens": 14,  # 6 × 1 + 2 × 4
        "fertility": 14 / 8,
        "split_word_share": 2 / 8,
        "byte_share": 6 / 14,
        "unknown_share": 0.0,
        "characters_a_token": (6 * 3 + 2 * 1) / 14,
        "longest_pieces": [{"piece": "▁bar", "count": 6}, {"piece": "▁", "count": 2}],
    }


def test_facts_from_counts_equal_those_of_the_running_text(tokenizer: Tokenizer) -> None:
    lines = [*toy_text(200, 5)[0], *LINES, "<bt> bar<bt>x unbarred."]
    facts = vocabulary_facts(Tokenizers.of([tokenizer]), {}, count_words(lines))["tgt"]
    tokens = [id_ for line in lines for id_ in tokenizer.encode(line)]
    uses = Counter(tokenizer.pieces(tokens))
    assert facts["tokens"] == len(tokens)
    assert facts["words"] == sum(len(line.split(" ")) for line in lines)
    assert facts["byte_share"] == sum(id_ in tokenizer.byte_ids for id_ in tokens) / len(tokens)
    assert len(facts["longest_pieces"]) == 10
    assert all(uses[longest["piece"]] == longest["count"] for longest in facts["longest_pieces"])
    lengths = [len(longest["piece"].removeprefix("▁")) for longest in facts["longest_pieces"]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(len(piece.removeprefix("▁")) for piece in uses if not piece.startswith("<0x"))


def test_separate_vocabularies_have_unused_pieces_instead_of_shared_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    train_tokenizer(count_words(toy_text(300, 1)[1]), TokenizerConfig(vocab_size=330), tmp_path / "tgt.model")
    tgt = Tokenizer.load(tmp_path / "tgt.model")
    facts = vocabulary_facts(Tokenizers(tokenizer, tgt), {"bar": 1}, {"BAR": 2, "漢": 1})
    assert "pieces" not in facts
    for side, one, text in (("src", tokenizer, "bar"), ("tgt", tgt, "BAR")):
        n_pieces = one.vocab_size - 4 - 256
        assert facts[side]["vocab_size"] == one.vocab_size
        # The space before a Chinese character is a piece.
        assert facts[side]["unused_pieces"] == n_pieces - len(
            {*one.encode(text), *(one.encode("漢")[:1] if side == "tgt" else [])}
        )


def test_a_text_without_words_has_facts(tokenizer: Tokenizer) -> None:
    facts = vocabulary_facts(Tokenizers.of([tokenizer]), {"": 3}, {})["src"]
    assert (facts["words"], facts["tokens"], facts["fertility"], facts["longest_pieces"]) == (0, 0, 0.0, [])


def test_pieces_are_counted_by_the_sides_that_use_them(tokenizer: Tokenizer) -> None:
    facts = vocabulary_facts(Tokenizers.of([tokenizer]), {"bar": 1, "漢": 1}, {"bar": 2, "dest": 1})
    n_dest = len(set(tokenizer.encode("dest")) - set(tokenizer.encode("bar")))
    n_pieces = 340 - 4 - 256
    assert facts["pieces"] == {
        "src": 1,  # the space before 漢
        "tgt": n_dest,
        "both": 1,
        "neither": n_pieces - 2 - n_dest,
    }
