"""The analysis of where a system is good or bad, compared with sacreBLEU on the same lines and with counts by hand."""

from __future__ import annotations

import gzip
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from mt.evaluation.analysis import analyse
from mt.evaluation.scores import TranslatedSet, bleu_and_chrf
from mt.evaluation.significance import compare
from mt.text.languages import words_of

DEMO = Path(__file__).parent.parent / "data/demo"
SOURCES, REFERENCES = ((DEMO / f"test.{lang}").read_text("utf-8").splitlines()[:100] for lang in ("en", "de"))
HYPOTHESES = [line.replace("der ", "die ").replace("ist", "war") for line in REFERENCES]


def analysis_of(
    hypotheses: list[str],
    references: list[str],
    sources: list[str] | None = None,
    word_counts: Mapping[str, int] | None = None,
    baseline: list[str] | None = None,
) -> dict[str, Any]:
    """Return an analysis as in report.json, with its sentences."""
    one = TranslatedSet(sources, hypotheses, [references], baseline=baseline)
    analysis, sentences = analyse(one, word_counts)
    return analysis.written() | {"sentences": [one.written() for one in sentences]}


def test_the_scores_of_a_length_bucket_are_those_of_its_lines():
    sources = [*(" ".join(["word"] * n) for n in (9, 10, 79, 80, 500)), *SOURCES[5:]]
    buckets = analysis_of(HYPOTHESES, REFERENCES, sources)["by_length"]
    short = [number for number, line in enumerate(sources) if len(line.split()) < 10]
    assert [bucket["bucket"] for bucket in buckets] == ["0–9", "10–19", "20–29", "70–79", "80+"]
    assert sum(bucket["n_lines"] for bucket in buckets) == 100
    assert buckets[-1]["n_lines"] == 2
    first = buckets[0]
    assert first["n_lines"] == len(short) > 50
    lines = [[side[number] for number in short] for side in (HYPOTHESES, REFERENCES)]
    assert (first["bleu"], first["chrf"]) == pytest.approx(bleu_and_chrf(*lines), abs=1e-9)


def test_a_line_is_in_the_bucket_of_its_rarest_word():
    counts = {"common": 1_000, "known": 999, "some": 99, "few": 9, "four": 4, "two": 2, "once": 1}
    sources = ["common", "common known", "some.", "“few” some", "common four", "two four", "once", "new once", "12 %"]
    buckets = analysis_of(["a"] * 9, ["a"] * 9, sources, counts)["by_rarest_word"]
    assert {bucket["bucket"]: bucket["n_lines"] for bucket in buckets} == {
        "0": 1,
        "1": 1,
        "2–4": 2,
        "5–9": 1,
        "10–99": 1,
        "100–999": 1,
        "1,000+": 1,
    }
    assert "by_rarest_word" not in analysis_of(["a"], ["a"], ["a"])


def test_words_are_sequences_of_letters():
    assert words_of("Der Hund, der Hund (12) läuft: E-Mail") == ["Der", "Hund", "der", "Hund", "läuft", "E", "Mail"]


def test_oddities_have_the_numbers_of_their_lines():
    sources = [
        "A dog runs.",
        "Good morning.",
        "He says no.",
        "word " * 30,
        "One two three.",
        "Berlin",
        "",
        "no no no no no no",
    ]
    hypotheses = [
        "",
        "Good morning.",
        "nein nein nein nein nein nein",
        "Wort",
        "zu " + "lang und breit " * 8,
        "Berlin",
        "",
        "nein nein nein nein nein nein",
    ]
    references = [
        "Ein Hund läuft.",
        "Guten Morgen.",
        "Er sagt nein.",
        "Wort " * 30,
        "Eins zwei drei.",
        "Berlin",
        "",
        "nein",
    ]
    oddities = analysis_of(hypotheses, references, sources)["oddities"]
    assert {name: entry["lines"] for name, entry in oddities.items()} == {
        "empty": [1],
        "copies": [2],
        "repetitions": [3, 5],
        "too_short": [4],
        "too_long": [5],
    }
    assert oddities["repetitions"]["n_lines"] == 2


def test_numbers_with_other_separators_count_as_kept():
    sources = ["It costs 1,337.50 and 20.", "In 1999 or 2000.", "No number.", "7 of 12"]
    references = ["Es kostet 1.337,50 und 20.", "1999 oder 2000.", "Keine Zahl.", "sieben von 12"]
    hypotheses = ["Es kostet 1.337,50 und 20.", "1999 oder 2001.", "Keine 5.", "sieben von 12"]
    # 1337.50, 20, 1999, 2000 and 12 are expected; 7 is not in the reference. 2001 and 5 are in neither.
    numbers = analysis_of(hypotheses, references, sources)["numbers"]
    assert [(one["line"], one["hypothesis"]) for one in numbers.pop("examples")] == [
        (2, "1999 oder 2001."),
        (3, "Keine 5."),
    ]
    assert numbers == {
        "n": 5,
        "n_kept": 4,
        "kept_share": 0.8,
        "n_lines": 1,
        "lines": [2],
        "n_added": 2,
        "n_added_lines": 2,
        "added_lines": [2, 3],
    }


def test_a_number_of_the_source_or_the_reference_is_not_added():
    sources, references = (
        ["In 1999 with 3 dogs", "2 cats", "5 and 5"],
        ["1999 mit drei Hunden", "zwei Katzen", "5 und 5"],
    )
    baseline = ["1999 mit 33 Hunden", "2 Katzen", "5"]
    numbers = analysis_of(["1999 mit 3 Hunden", "2 Katzen", "5, 5 und 5"], references, sources, baseline=baseline)[
        "numbers"
    ]
    assert (numbers["n_added"], numbers["added_lines"], numbers["baseline_n_added"]) == (1, [3], 1)
    assert (numbers["n_kept"], numbers["baseline_n_kept"]) == (3, 2)


def test_without_sources_all_numbers_of_the_reference_are_expected():
    numbers = analysis_of(["8 und 10", "Keine 3"], ["8 und 9", "Keine"])["numbers"]
    assert (numbers["n"], numbers["n_kept"], numbers["n_added"], numbers["added_lines"]) == (2, 1, 2, [1, 2])


@pytest.mark.parametrize(
    ("source", "reference", "hypothesis", "n_kept"),
    [
        ("1.5 euros", "1,5 Euro", "15 Euro", 0),
        ("1.5 euros", "1,5 Euro", "1.5 Euro", 1),
        ("In 2012 100 people", "2012 lebten dort 100", "2012 waren 100", 2),
        ("10,000 or 1,000,000", "10 000 oder 1 000 000", "10.000 oder 1'000'000", 2),
        ("at 12:30", "um 12.30", "um 12.30", 0),  # a clock time is not a decimal: 12 and 30 are not 12.30
        ("page 7.", "Seite 7.", "Seite 7", 1),
        (
            "12,345.6 euros",
            "\u0661\u0662\u066c\u0663\u0664\u0665\u066b\u0666",
            "12.345,6",
            1,
        ),  # Arabic digits and separators
        ("page 1234.5", "पृष्ठ १२३४.५", "１２３４.５", 1),
        ("no", "8", "8", 0),
    ],
)
def test_numbers_are_compared_by_value(source: str, reference: str, hypothesis: str, n_kept: int):
    assert analysis_of([hypothesis], [reference], [source])["numbers"]["n_kept"] == n_kept


def test_blank_lines_are_neither_the_best_nor_the_worst():
    hypotheses, references, sources = (["", *side[:3]] for side in (HYPOTHESES, REFERENCES, SOURCES))
    analysis = analysis_of(hypotheses, references, sources)
    for kind in ("worst", "best"):
        assert sorted(entry["line"] for entry in analysis[kind]) == [2, 3, 4]
    assert sum(bucket["n_lines"] for bucket in analysis["by_length"]) == 3
    assert len(analysis["sentences"]) == 4


def test_sentences_are_ranked_by_the_chrf_of_sacrebleu():
    hypotheses = ["Quatsch", *HYPOTHESES[1:]]
    analysis = analysis_of(hypotheses, REFERENCES, SOURCES)
    worst, best = analysis["worst"], analysis["best"]
    assert (len(worst), len(best)) == (10, 10)
    assert worst[0]["line"] == 1
    assert worst[0]["chrf"] <= worst[1]["chrf"] <= worst[2]["chrf"] < best[0]["chrf"] == pytest.approx(100)
    entry = worst[1]
    assert entry["chrf"] == pytest.approx(sacrebleu.sentence_chrf(entry["hypothesis"], [entry["reference"]]).score)
    assert entry["bleu"] == pytest.approx(sacrebleu.sentence_bleu(entry["hypothesis"], [entry["reference"]]).score)
    # Among perfect translations, the longest come first.
    assert len(best[0]["reference"]) >= len(best[1]["reference"])


def test_the_sentences_with_the_largest_differences_between_two_systems_are_shown():
    hypotheses = [*HYPOTHESES[:20], "Unsinn", *HYPOTHESES[21:]]
    baseline = [*HYPOTHESES[:7], "Quatsch", HYPOTHESES[8], HYPOTHESES[9] + " Ja.", *HYPOTHESES[10:]]
    analysis = analysis_of(hypotheses, REFERENCES, SOURCES, baseline=baseline)
    gained, lost = analysis["gained"], analysis["lost"]
    assert ([entry["line"] for entry in gained], [entry["line"] for entry in lost]) == ([8, 10], [21])
    assert gained[0]["baseline"] == "Quatsch"
    assert gained[0]["baseline_chrf"] < 20 < gained[0]["chrf"]


def test_a_baseline_is_measured_like_the_system():
    baseline = ["", "nein nein nein nein nein nein", *(line.replace("7", "") for line in REFERENCES[2:])]
    ours, theirs = (analysis_of(lines, REFERENCES, SOURCES) for lines in (HYPOTHESES, baseline))
    both = analysis_of(HYPOTHESES, REFERENCES, SOURCES, baseline=baseline)
    for one, other in zip(both["by_length"], theirs["by_length"], strict=True):
        assert (one["baseline_bleu"], one["baseline_chrf"]) == (other["bleu"], other["chrf"])
    assert {name: entry["baseline_n_lines"] for name, entry in both["oddities"].items()} == {
        name: entry["n_lines"] for name, entry in theirs["oddities"].items()
    }
    assert both["oddities"]["empty"] == {"n_lines": 0, "lines": [], "baseline_n_lines": 1}
    assert both["numbers"]["baseline_n_kept"] == theirs["numbers"]["n_kept"]
    assert both["baseline_length_ratio"] == theirs["length_ratio"] < both["length_ratio"] == ours["length_ratio"]


def test_without_a_source_the_reference_is_used():
    analysis = analysis_of(["nein nein nein nein nein nein", "7 Hunde"], ["nein", "8 Hunde"])
    assert analysis["beside"] == "reference"
    assert analysis["by_length"][0]["n_lines"] == 2
    assert analysis["oddities"]["repetitions"]["lines"] == [1]
    assert "copies" not in analysis["oddities"]
    numbers = analysis["numbers"]
    assert [one["line"] for one in numbers.pop("examples")] == [2]
    missing = {"n": 1, "n_kept": 0, "kept_share": 0.0, "n_lines": 1, "lines": [2]}
    assert numbers == missing | {"n_added": 1, "n_added_lines": 1, "added_lines": [2]}
    assert "source" not in analysis["worst"][0]


def test_each_sentence_lists_its_oddities():
    analysis = analysis_of(["zu " + "lang und breit " * 8, "gut"], ["Eins zwei.", "gut"], ["One two.", "good"])
    assert [entry["oddities"] for entry in analysis["sentences"]] == [["repetitions", "too_long"], []]


def test_the_length_ratio_counts_words():
    assert analysis_of(["a b c"], ["a b"], ["x"])["length_ratio"] == 1.5


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="MT_REAL_DATA names no folder of real text")
def test_verdicts_on_a_real_test_set_are_correct():
    folder = Path(os.environ["MT_REAL_DATA"]) / "data/newstest"
    sources, references = (
        gzip.decompress((folder / f"newstest2014.{lang}.gz").read_bytes()).decode().split("\n")[:-1]
        for lang in ("en", "de")
    )
    rng = random.Random(0)
    dropped = [" ".join(word for word in line.split() if rng.random() > 0.05) for line in references]
    two_changed = ["Eins.", "Zwei.", *references[2:]]
    analysis = analysis_of(dropped, references, sources, Counter(words_of(" ".join(sources))), two_changed)
    assert sum(bucket["n_lines"] for bucket in analysis["by_length"]) == 3_003
    for system, verdict in ((dropped, "worse"), (two_changed, "no difference at p < 0.05")):
        one = TranslatedSet(None, system, [references], baseline=references)
        (compared,) = compare(one, ["bleu"], "randomisation", 200)
        assert compared.verdict == verdict


def test_text_without_spaces_is_counted_by_characters() -> None:
    sources, references = (
        ["猫が好きです。", "昨日は雨が降りましたから、駅まで歩きました。"],
        ["I like cats.", "It rained yesterday, so I walked."],
    )
    counts = Counter(words_of("猫が好きです。昨日は雨が降りました")) + Counter(words_of("雨が降る"))
    found = analysis_of(references, references, sources, counts)
    assert (found["unit"], found.get("tgt_unit", "words")) == ("characters", "words")
    assert [bucket["bucket"] for bucket in found["by_length"]] == ["0–19", "20–39"]  # 7 and 22 characters
    assert [(one["bucket"], one["n_lines"]) for one in found["by_rarest_word"]] == [("0", 1), ("1", 1)]
    assert all(one["n_lines"] == 0 for one in found["oddities"].values())
    back = analysis_of([sources[0], sources[1][:11]], sources, references)
    assert (back.get("unit", "words"), back["tgt_unit"], back["length_ratio"]) == ("words", "characters", 18 / 29)
    assert all(one["n_lines"] == 0 for one in back["oddities"].values())
    flagged = analysis_of(["猫猫猫猫猫猫", "雨"], sources, references)["oddities"]
    assert (flagged["repetitions"]["lines"], flagged["too_short"]["lines"]) == ([1], [])


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="needs the real data")
def test_human_translations_without_spaces_have_no_quality_flags() -> None:
    folder = Path(os.environ["MT_REAL_DATA"]) / "data" / "enja"
    packed = [(folder / f"dev.{lang}.gz").read_bytes() for lang in ("en", "ja")]
    sides = [gzip.decompress(one).decode().splitlines() for one in packed]
    for src, tgt in (sides, sides[::-1]):
        assert all(one["n_lines"] == 0 for one in analysis_of(tgt, tgt, src)["oddities"].values())
