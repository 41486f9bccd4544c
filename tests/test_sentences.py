from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from mt.text.corpus import ParallelIds, flat_ids, write_parallel_ids
from mt.text.sentences import UsualLines, count_sentences, sentence_ends
from mt.text.tokenizer import EOS_ID, Tokenizer


def sentences(text: str, lang: str) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sentence_ends(text, lang)])]


@pytest.mark.parametrize(
    ("lang", "parts"),
    [
        ("en", ["Two old women read a book. ", "A dog runs."]),
        ("en", ["Mr. Smith saw Dr. Jones at 5 p.m. and left.  ", "Why?! ", "He left."]),
        ("en", ["I live in the U.S. ", "It is big. ", "J. Smith lives there too."]),
        ("en", ["The .NET Framework runs on ASP.NET Core. ", "See www.example.com or 3.14."]),
        ("en", ['"Why?" she asked. ', "Nobody knows."]),
        ("en", ["no capitals here. ", "another one."]),
        ("de", ["Das gilt z. B. am 3. Mai. ", "Der 2. Weltkrieg begann 1939."]),
        ("de", ["Wir sahen usw. und so weiter."]),
        ("fr", ["M. Dupont est là. ", "Il dort."]),
        ("tlh", ["Two dogs. ", "One cat!"]),
        ("", ["Two dogs. ", "One cat!"]),
        ("zh", ["今天天气很好。", "我们去公园吧！", "他说：“好。”", "然后走了。"]),
        ("zh_Hant", ["他来了。", "他看见了。"]),
        ("ja", ["今日は天気がいい。", "「はい。」", "いいですか？"]),
        ("hi", ["आज मौसम अच्छा है। ", "ठीक है?"]),
        ("km", ["សួស្តី។ ", "អ្នកសុខសប្បាយទេ?"]),
        ("th", ["วันนี้อากาศดี ไปสวนกันเถอะ"]),
        ("en", ["Two dogs.\u00a0", "One\u202fcat.\t", "End."]),
    ],
)
def test_sentences_end_where_a_reader_would_say_so(lang: str, parts: list[str]):
    assert sentences("".join(parts), lang) == parts


def test_any_text_is_divided_without_losing_a_character():
    rng = random.Random(1)
    alphabet = 'ab.,!? 。，「」()–漢🙂é\u0301"“”\n\t\u2028\u00a0؟।.A1\x00\u3000[]/:@\u202f'
    for lang in ("en", "de", "zh", "ja", "fr", "xx"):
        for _ in range(300):
            text = "".join(rng.choices(alphabet, k=rng.randrange(1, 60)))
            ends = sentence_ends(text, lang)
            assert ends == sorted(set(ends))
            assert ends[-1] == len(text)
    assert sentence_ends("", "en") == []


def test_long_and_hostile_text_is_divided_in_windows():
    assert sentences("他来了。" * 5_000, "zh") == ["他来了。"] * 5_000
    assert sentences("He came. " * 5_000, "en") == ["He came. "] * 5_000
    assert count_sentences("a" * 100_000, "en") == 1
    assert sentence_ends("“a. " * 10_000, "en")[-1] == 40_000  # takes half a second if it is not cut into windows


def usual_of(folder: Path, tokenizer: Tokenizer, *corpora: list[str], weights: Sequence[float] = (1.0,)) -> UsualLines:
    sizes = [len(lines) for lines in corpora]
    side = flat_ids([[*tokenizer.encode(line), EOS_ID] for lines in corpora for line in lines], "<u2")
    write_parallel_ids(folder, "train", [(side, side)])
    return UsualLines.of_corpus(
        ParallelIds.open(folder, "train", "<u2"), sizes, weights, tokenizer, ["de"] * len(sizes)
    )


@pytest.mark.parametrize(
    ("n_with_two", "n_with_three", "usual"), [(0, 0, 1), (49, 0, 1), (50, 0, 2), (30, 20, 2), (0, 50, 3), (1, 49, 2)]
)
def test_a_number_of_sentences_is_usual_if_a_twentieth_of_the_lines_has_it(
    tmp_path: Path, tokenizer: Tokenizer, n_with_two: int, n_with_three: int, usual: int
):
    lines = ["Bar bast."] * (1_000 - n_with_two - n_with_three)
    lines += ["Bar bast. Dest den."] * n_with_two + ["Bar. Bast. Den."] * n_with_three
    assert usual_of(tmp_path, tokenizer, lines).sentences == usual


def test_the_usual_length_is_that_of_all_but_a_thousandth_of_the_lines(tmp_path: Path, tokenizer: Tokenizer):
    lines = ["bar"] * 3_000 + ["bar bar"] * 20 + ["bar" * 50] * 2
    assert usual_of(tmp_path, tokenizer, lines) == UsualLines(1, len(tokenizer.encode("bar bar")) + 1)
    lines += ["bar" * 50] * 2
    assert usual_of(tmp_path, tokenizer, lines) == UsualLines(1, len(tokenizer.encode("bar" * 50)) + 1)


@pytest.mark.parametrize(
    ("n_with_two", "weight", "sentences"), [(100, 1.0, 2), (100, 0.1, 1), (40, 1.0, 1), (40, 2.0, 2)]
)
def test_a_line_counts_as_often_as_training_sees_it(
    tmp_path: Path, tokenizer: Tokenizer, n_with_two: int, weight: float, sentences: int
):
    corpora = ["Bar bast."] * (1_000 - n_with_two), ["Bar bast. Dest den."] * n_with_two
    assert usual_of(tmp_path, tokenizer, *corpora, weights=(1.0, weight)).sentences == sentences
    assert usual_of(tmp_path, tokenizer, *reversed(corpora), weights=(weight, 1.0)).sentences == sentences
    short = len(tokenizer.encode("Bar bast.")) + 1
    assert usual_of(tmp_path, tokenizer, *corpora, weights=(1.0, 0.001)) == UsualLines(1, short)


@pytest.mark.parametrize(
    ("value", "usual"),
    [
        ({"sentences": 2, "src_tokens": 40}, UsualLines(2, 40)),
        ({"sentences": 0, "src_tokens": -1}, UsualLines(1, 1)),
        ({"sentences": 2}, None),
        ({"sentences": "2", "src_tokens": 40}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_manifest_of_a_model_may_have_the_figures(value: object, usual: UsualLines | None):
    assert UsualLines.of_manifest({"usual_lines": value}) == usual
    assert UsualLines.of_manifest({}) is None
