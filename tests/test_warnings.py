"""Warnings about scored files: none for good text, one line for each mistake."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mt.evaluation import warnings
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.warnings import unrelated_baseline

DEMO = Path(__file__).parent.parent / "data/demo"
SOURCES, REFERENCES = ((DEMO / f"test.{lang}").read_text("utf-8").splitlines()[:400] for lang in ("en", "de"))
GOOD = [" ".join(line.split()[:-1]) + " gut." for line in REFERENCES]


def check(
    hypotheses: list[str],
    references: list[str] | list[list[str]],
    sources: list[str] | None = None,
    baseline: list[str] | None = None,
) -> list[str]:
    sets = [references] if isinstance(references[0], str) else references
    return warnings.check(TranslatedSet(sources, hypotheses, sets, baseline=baseline))


def test_good_text_gives_no_warnings():
    assert check(GOOD, REFERENCES, SOURCES, [*GOOD[:-1], "Anders."]) == []
    assert check(GOOD, [REFERENCES, SOURCES]) == []
    assert check(["Ja."], ["Nein."], ["Yes."]) == []


def test_tokenised_hypotheses_with_tokenised_references_give_no_warning():
    assert check(["Ein Hund .", "Zwei Hunde ."], ["Ein Mann .", "Zwei Männer ."]) == []


def test_hypotheses_that_equal_any_references_give_a_warning():
    said = "the hypotheses are identical to the references: a score of 100.0 says nothing about a system"
    assert check(REFERENCES, REFERENCES) == [said]
    several = said.replace("the references", "one of the sets of references")
    assert check([f" {line} " for line in REFERENCES], [GOOD, REFERENCES]) == [several]


def test_untranslated_text_gives_a_warning():
    assert check(SOURCES, REFERENCES, SOURCES) == [
        "the hypotheses are identical to the source text: nothing was translated"
    ]
    assert check([*SOURCES[:40], *GOOD[40:]], REFERENCES, SOURCES) == [
        "40 of 400 hypotheses copy the source, but the references do not"
    ]
    assert check([*SOURCES[:39], *GOOD[39:]], REFERENCES, SOURCES) == []
    # Names and numbers may stay the same.
    assert (
        check(
            ["Jan Novák", "1.5", "Berlin", "Gut"],
            ["Jan Novák", "1,5", "Berlin", "Fein"],
            ["Jan Novák", "1.5", "Berlin", "Good"],
        )
        == []
    )


def test_a_baseline_that_equals_the_system_gives_a_warning():
    assert check(GOOD, REFERENCES, SOURCES, GOOD) == [
        "the hypotheses are identical to those of the baseline: was the same file given twice?"
    ]


def test_empty_lines_are_counted():
    assert check([*GOOD[:6], "", *GOOD[7:]], REFERENCES) == ["hypothesis 7 is empty"]
    assert check([*GOOD[:6], "", " ", *GOOD[8:]], REFERENCES) == ["2 hypotheses are empty, the first of them in line 7"]
    assert check([""] * 2, ["a", "b"]) == ["2 hypotheses are empty, the first of them in line 1"]
    assert check(GOOD, [*REFERENCES[:2], "", *REFERENCES[3:]]) == [
        "reference 3 is empty: any translation counts as wrong there"
    ]
    assert check(GOOD, [REFERENCES, [*REFERENCES[:-2], "", ""]]) == [
        "2 references are empty, the first of them in line 399: any translation counts as wrong there"
    ]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda line: line.replace(".", " ."), "spaces before full stops or commas"),
        (lambda line: line.replace("e", "e @-@ ", 1), "@-@"),
        (lambda line: line.replace("e", "&apos;", 1), "escapes such as &apos;"),
        (lambda line: "▁" + line.replace(" ", " ▁"), "▁"),
        (lambda line: line.replace("e", "e@@ ", 1), "@@"),
    ],
)
def test_tokenised_text_on_one_side_gives_a_warning(spoil: Callable[[str], str], what: str):
    spoilt = [spoil(line) for line in GOOD]
    n = sum(line != other for line, other in zip(spoilt, GOOD, strict=True))
    assert n > 350
    advice = f"({n} of 400 lines with {what}): give both as plain text, otherwise the scores mean little"
    assert check(spoilt, REFERENCES) == [f"the hypotheses look tokenised and the references do not {advice}"]
    assert check(REFERENCES, spoilt) == [f"the references look tokenised and the hypotheses do not {advice}"]


def test_lower_cased_hypotheses_give_a_warning_if_the_references_have_case():
    lower = [line.lower() for line in GOOD]
    assert check(lower, REFERENCES) == [
        "the hypotheses look lower-cased and the references do not: case-sensitive scores are too low"
    ]
    assert check(lower, [line.lower() for line in REFERENCES]) == []


def test_another_script_gives_a_warning():
    russian = ["Это хороший перевод предложения.", "Собака бежит по снегу."]
    german = ["Das ist eine gute Übersetzung.", "Der Hund läuft durch den Schnee."]
    assert check(russian, german) == [
        "the hypotheses are mostly in Cyrillic script and the references in Latin: are they in another language?"
    ]
    assert check(["これはペンです。東京タワーは高い。"] * 2, ["東京タワーの下で、これはいいペンだ。" * 2] * 2) == []


def test_the_same_hypothesis_for_many_references_gives_a_warning():
    assert check([*["Ich weiß nicht."] * 20, *GOOD[20:]], REFERENCES) == [
        f"20 hypotheses are the same line, for {len(set(REFERENCES[:20]))} different references: Ich weiß nicht."
    ]
    assert check([*["Ich weiß nicht."] * 9, *GOOD[9:]], REFERENCES) == []


def test_shifted_lines_in_either_half_give_a_warning():
    def shifted(side: str, half: str) -> list[str]:
        return [
            f"in the {half} half of the lines, hypotheses share more words with the {side} reference than with their "
            "own: is a line missing?"
        ]

    # A line is missing, and the file ends with an extra line, so half of the lines, or all, are shifted.
    assert check([*GOOD[:210], *GOOD[211:], "Ende."], REFERENCES) == shifted("next", "second")
    assert check([*GOOD[1:], "Ende."], REFERENCES) == shifted("next", "first")
    assert check(["Anfang.", *GOOD[:-1]], REFERENCES) == shifted("previous", "first")
    assert check([*GOOD[1:30], "Ende."], REFERENCES[:30]) == []  # too little text to tell


def test_a_baseline_of_another_text_gives_a_warning():
    assert unrelated_baseline(27.1, 0.31) == (
        "the baseline has 0.3 BLEU and the other system 27.1: is it a translation of another text?"
    )
    assert unrelated_baseline(0.31, 27.1) == (
        "the hypotheses have 0.3 BLEU and the other system 27.1: is it a translation of another text?"
    )
    assert unrelated_baseline(27.1, 1.2) is None  # early in training
    assert unrelated_baseline(3.0, 0.4) is None


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="MT_REAL_DATA names no folder of real text")
@pytest.mark.parametrize("name", ["newstest/newstest2014", "multi30k/val", "parallel/news2008-2012"])
@pytest.mark.parametrize("sides", ["en-de", "de-en"])
def test_real_text_with_dropped_words_gives_no_warnings(name: str, sides: str):
    folder = Path(os.environ["MT_REAL_DATA"]) / "data"
    sources, references = (
        gzip.decompress((folder / f"{name}.{lang}.gz").read_bytes()).decode().split("\n")[:-1]
        for lang in sides.split("-")
    )
    rng = random.Random(0)
    hypotheses = [
        " ".join(word for number, word in enumerate(line.split()) if number == 0 or rng.random() > 0.05)
        for line in references
    ]
    assert check(hypotheses, references, sources) == []
    for start in range(0, len(references), 100):
        part = slice(start, start + 100)
        assert check(hypotheses[part], references[part], sources[part]) == []


def test_shifted_lines_without_spaces_are_found() -> None:
    letters = [chr(0x4E00 + i) for i in range(400)]
    rng = random.Random(1)
    references = ["".join(rng.choices(letters, k=12)) + "。" for _ in range(60)]
    shifted = [*references[1:], "终"]
    assert any("is a line missing?" in line for line in warnings.check(TranslatedSet(None, shifted, [references])))
    assert warnings.check(TranslatedSet(None, [line[:-3] for line in references], [references])) == []
