"""Overlap of training with validation and test sets, compared with a slow and obvious search."""

import json
import os
import pickle
import random
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.config.settings import TextFiles
from mt.text.corpora import SentencePair, reader_of
from mt.text.languages import n_words
from mt.text.overlap import HeldOut, NgramOverlap, folded, folded_all, n_in_training
from mt.text.prepare import prepare_corpus
from tests.toys import toy_config, toy_text

REAL_DATA = os.environ.get("MT_REAL_DATA")

Texts = list[str]


def pairs_of(srcs: Texts, tgts: Texts) -> list[SentencePair]:
    return [SentencePair(src, tgt, line) for line, (src, tgt) in enumerate(zip(srcs, tgts, strict=True), 1)]


# ---------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("Don't stop — it's 1,000.50 €…", "don t stop it s 1 000 50 €"),
        ("STRASSE, Straße: „groß“", "strasse strasse gross"),
        ("The += Operator (C#)", "the += operator c#"),  # must differ from /=
        ("snake_case <tag> a+b", "snake_case <tag> a+b"),
        ("Sil\u00adben\u00adtrennung", "silbentrennung"),
        ("zero\u200bwidth, no\u00a0break, tab\tand\nline", "zero width no break tab and line"),
        ("ภาษาไทยสวยงาม!", "ภาษาไทยสวยงาม"),  # vowels and tones are combining marks
        ("हिन्दी में, लिखो।", "हिन्दी में लिखो"),
        ("你好，世界！", "你好 世界"),
        ("ПРИВЕТ, Мир", "привет мир"),
        ("Ἀθῆναι ΣΟΦΌΣ", "ἀθῆναι σοφόσ"),
        ("u\u0308ber U\u0308BER", "über über"),  # composed
        ("👍🏽 ok 1\ufe0f\u20e3 ❤\ufe0f", "👍 ok 1 ❤"),
        ("5 µm ﬁne m²", "5 μm fine m²"),
        ("𝒜 𠀀 \U000e0067", "𝒜 𠀀"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_folding_keeps_words_and_digits_in_lower_case(text: str, expected: str) -> None:
    assert folded(text) == expected
    assert folded_all([text]) == [expected]


def test_folding_every_character_is_idempotent_and_independent_of_the_batch() -> None:
    codes = [*range(0x20100), *range(0xE0000, 0xE0200)]
    texts = [f" {chr(code)}{chr(code)}, {chr(code)}\u0301\u0345x{chr(code)} " for code in codes]
    once = folded_all(texts)
    assert once == [folded(text) for text in texts]
    assert folded_all(once) == once


def test_folding_keeps_the_letters_and_marks_of_every_script() -> None:
    lost = [
        hex(code)
        for code in range(0x20000)
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mc", "Nd", "Nl", "No")
        and not folded(chr(code))
    ]
    assert lost == []


@given(st.lists(st.text(), max_size=20))
@settings(max_examples=100)
def test_folding_is_idempotent_and_independent_of_the_batch(texts: Texts) -> None:
    once = [folded(text) for text in texts]
    assert folded_all(texts) == once
    assert folded_all(once) == once
    for text in once:
        assert text == " ".join(text.split())
        assert unicodedata.is_normalized("NFC", text)


def test_folding_long_texts_together_equals_folding_each() -> None:
    texts = ["Ab, c! " * 40_000, "x", "Ä" * 300_000, *["y."] * 700]
    assert folded_all(texts) == [folded(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("one two three", 3),
        ("über die straße", 3),
        ("你好世界", 2),
        ("你好 世界 iphone 手机", 4),  # 6 characters and a word
        ("ขอบคุณมาก", 2),  # 9 characters
        ("བཀྲ་ཤིས་བདེ་ལེགས", 4),  # 16
        ("привет мир", 2),
    ],
)
def test_in_scripts_without_spaces_words_are_counted_by_characters(text: str, expected: int) -> None:
    assert n_words(text) == expected


# ---------------------------------------------------------------------------------------------------- segments


@pytest.fixture
def held_out() -> HeldOut:
    return HeldOut(
        {
            "valid": pairs_of(["One two three, four!", "short one"], ["Eins zwei drei vier.", "kurz"]),
            "test": pairs_of(["one two three FOUR", "five six seven"], ["fünf sechs sieben acht", "kurz und gut"]),
        },
        min_words=3,
    )


@pytest.mark.parametrize(
    ("src", "tgt", "expected"),
    [
        ("one two three four", "something else", "valid"),  # in both sets: the first is returned
        ("something else", "eins zwei drei vier", "valid"),
        ("five six seven", "something else", "test"),
        ("five six seven", "eins zwei drei vier", "valid"),  # each side is in another set
        ("eins zwei drei vier", "one two three four", None),  # the sides are not confused
        ("short one", "kurz", None),  # fewer than three words
        ("one two three", "zwei drei vier", None),  # a part is not the whole
        ("", "", None),
    ],
)
def test_a_held_out_pair_is_found_by_either_side(held_out: HeldOut, src: str, tgt: str, expected: str | None) -> None:
    assert held_out.find(src, tgt) == expected
    assert pickle.loads(pickle.dumps(held_out)).find(src, tgt) == expected


def test_chinese_sides_are_found_only_if_they_have_at_least_six_words() -> None:
    held_out = HeldOut({"valid": pairs_of(["a", "b"], ["我们今天去公园散步吧！好", "我们今天去公园散步"])}, min_words=6)
    assert held_out.find("x", folded("我们今天去公园散步吧好")) is None  # without the mark, the text has no space there
    assert held_out.find("x", folded("我们今天去公园散步吧！好")) is None  # 11 characters are five words
    held_out = HeldOut({"valid": pairs_of(["a"], ["我们今天去公园散步吧！好的"])}, min_words=6)
    assert held_out.find("x", folded("我们今天去公园散步吧，好的。")) == "valid"


# ---------------------------------------------------------------------------------------------------- n-grams


def slow_ngrams(texts: Texts, n: int) -> set[str]:
    words = [text.split() for text in texts]
    return {" ".join(line[i : i + n]) for line in words for i in range(len(line) - n + 1)}


def slow_facts(sets: dict[str, tuple[Texts, Texts]], srcs: Texts, tgts: Texts, n: int) -> dict[str, object]:
    trained = {"src": slow_ngrams(srcs, n), "tgt": slow_ngrams(tgts, n)}
    return {
        name: {
            side: {
                "ngrams": len(slow_ngrams(texts, n)),
                "found": len(slow_ngrams(texts, n) & trained[side]),
            }
            for side, texts in zip(("src", "tgt"), sides, strict=True)
        }
        for name, sides in sets.items()
    }


LINE = st.lists(st.sampled_from(["a", "b", "ab", "ü", "ж", "1"]), max_size=7).map(" ".join)
SIDES = st.lists(st.tuples(LINE, LINE), max_size=8).map(
    lambda pairs: ([src for src, _ in pairs], [tgt for _, tgt in pairs])
)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(1, 4))
@settings(max_examples=150)
def test_ngrams_are_found_as_with_python_sets_and_results_of_shards_add_up(
    valid: tuple[Texts, Texts], test: tuple[Texts, Texts], one: tuple[Texts, Texts], two: tuple[Texts, Texts], n: int
) -> None:
    held_out = HeldOut({"valid": pairs_of(*valid), "test": pairs_of(*test)}, min_words=3, ngram_words=n)
    srcs, tgts = one[0] + two[0], one[1] + two[1]
    whole, parts = NgramOverlap(held_out), NgramOverlap(pickle.loads(pickle.dumps(held_out)))
    whole.merge(whole.found_in(srcs, tgts))
    assert whole.facts() == slow_facts({"valid": valid, "test": test}, srcs, tgts, n)

    worker = NgramOverlap(held_out)
    for shard in (one, two):
        parts.merge(json.loads(json.dumps(worker.found_in(*shard))))
    assert parts.facts() == whole.facts()


def test_a_repeated_ngram_counts_once() -> None:
    line = "the cat sat on the mat and it slept"  # 9 words: two n-grams of 8
    overlap = NgramOverlap(HeldOut({"test": pairs_of([line, line], ["x", "y"])}, min_words=6))
    overlap.merge(overlap.found_in(["Well the cat sat on the mat and it".lower()] * 3, ["x"] * 3))
    assert overlap.facts() == {"test": {"src": {"ngrams": 2, "found": 1}, "tgt": {"ngrams": 0, "found": 0}}}


def test_ngrams_do_not_cross_lines() -> None:
    overlap = NgramOverlap(HeldOut({"test": pairs_of(["a b c d", "e f g h"], ["", ""])}, min_words=6, ngram_words=4))
    overlap.merge(overlap.found_in(["a b", "c d", "", "e f g", "h"], [""] * 5))
    assert overlap.facts()["test"]["src"] == {"ngrams": 2, "found": 0}


def test_an_ngram_of_eight_words_has_sixteen_characters_in_chinese() -> None:
    line = "一二三四五六七八九十百千万亿兆京"
    overlap = NgramOverlap(HeldOut({"test": pairs_of(["hello"], [f"{line}甲 ok"])}, min_words=6))
    assert overlap.facts()["test"]["tgt"] == {"ngrams": 3, "found": 0}  # 17 characters and a word
    overlap.merge(overlap.found_in(["x"], [f"前{line}後"]))
    overlap.merge(overlap.found_in(["x"], ["二三四五六七八九十百千万亿兆京甲 後"]))
    assert overlap.facts()["test"]["tgt"] == {"ngrams": 3, "found": 2}


def test_ngrams_in_random_lines_are_found_as_with_python_sets() -> None:
    random.seed(3)
    vocabulary = [f"w{i}é" for i in range(12)]

    def lines(n: int) -> Texts:
        return [" ".join(random.choices(vocabulary, k=random.randrange(30))) for _ in range(n)]

    test, srcs, tgts = (lines(100), lines(100)), lines(3_000), lines(3_000)
    overlap = NgramOverlap(HeldOut({"test": pairs_of(*test)}, min_words=6, ngram_words=4))
    overlap.merge(overlap.found_in(srcs, tgts))
    facts = overlap.facts()
    assert facts == slow_facts({"test": test}, srcs, tgts, 4)
    assert facts["test"]["src"]["found"] > 100


@pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")
def test_ngrams_of_real_news_are_found_as_with_python_sets() -> None:
    def sides(path: str) -> tuple[Texts, Texts]:
        source = TextFiles(src=f"{REAL_DATA}/data/{path}.en.gz", tgt=f"{REAL_DATA}/data/{path}.de.gz")
        pairs = list(reader_of(source, ("en", "de"), "train").pairs())
        return [pair.src for pair in pairs], [pair.tgt for pair in pairs]

    news, test = sides("parallel/news2008-2012"), sides("newstest/newstest2013")
    held_out = HeldOut({"newstest2013": pairs_of(*test)}, min_words=6, ngram_words=5)
    overlap = NgramOverlap(held_out)
    srcs, tgts = folded_all(news[0]), folded_all(news[1])
    assert srcs[:500] == [folded(text) for text in news[0][:500]]
    found = overlap.found_in(srcs, tgts)
    overlap.merge(found)
    facts = overlap.facts()
    assert facts == slow_facts({"newstest2013": (folded_all(test[0]), folded_all(test[1]))}, srcs, tgts, 5)
    assert facts["newstest2013"]["src"]["found"] > 0
    assert sum(map(len, found.values())) < 5_000


# ---------------------------------------------------------------------------------------------------- later test sets


def test_pairs_of_a_later_test_set_are_found_in_the_prepared_text(tmp_path: Path) -> None:
    config = toy_config(tmp_path, n_train=60)
    tagged = replace(config.data.train[0], tag="<bt>")
    config = replace(config, data=replace(config.data, train=(tagged,)))
    corpus = prepare_corpus(config)
    src, tgt = toy_text(60, 1)
    long, short = ([i for i in range(60) if (len(src[i].split()) >= 6) == is_long] for is_long in (True, False))
    sets = {
        "source": pairs_of([f"{src[long[0]].title()}!", src[long[1]], "a b c d e f"], ["x", "y", "z"]),
        "target": pairs_of(["x", "y"], [tgt[long[0]].lower(), tgt[short[0]]]),
        "other": pairs_of(*toy_text(5, 9)),
    }
    # Sides of fewer than six words are the same by chance.
    langs = dict.fromkeys(sets, ("en", "de"))
    assert n_in_training(config, corpus, sets, langs) == {"source": 2, "target": 1, "other": 0}
