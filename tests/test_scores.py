from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mt.errors import DataError
from mt.evaluate.scores import Score, corpus_bleu, corpus_chrf, report_text, score_corpus, scored_test_set

HYPOTHESES = [
    "Die Katze sitzt auf der Matte.",
    "Er sagte: „Das kostet 1.000,50 €“ & ging.",
    "",
    "ein hund läuft\u2028durch den Schnee",
    "Zwei Männer spielen Schach im Park, während es regnet.",
]
REFERENCES = [
    "Die Katze saß auf der Matte.",
    "Er sagte: „Das kostet 1.000,50 €“ und ging.",
    "Nichts.",
    "Ein Hund läuft durch den Schnee.",
    "Zwei Männer spielen im Park Schach, während es regnet.",
]


def test_scores_agree_with_the_sacrebleu_command_to_the_last_digit(tmp_path: Path):
    for name, lines in (("hyp", HYPOTHESES), ("ref", REFERENCES)):
        (tmp_path / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "ref",
        "-i",
        "hyp",
        "-m",
        "bleu",
        "chrf",
        "--width",
        "14",
        "-f",
        "json",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "SACREBLEU_FORMAT"}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, text=True)
    theirs = json.loads(finished.stdout)
    ours = score_corpus(HYPOTHESES, REFERENCES)
    assert [score.name for score in ours] == ["BLEU", "chrF2"] == [entry["name"] for entry in theirs]
    assert [score.signature for score in ours] == [entry["signature"] for entry in theirs]
    assert [round(score.score, 14) for score in ours] == [entry["score"] for entry in theirs]


def test_a_perfect_translation_scores_100_and_an_unrelated_one_0():
    text = ["Zwei Männer spielen Schach im Park."]
    assert [score.score for score in score_corpus(text, text)] == pytest.approx([100, 100])
    assert corpus_bleu([""], text) == 0
    assert corpus_chrf(["qqq"], text) == 0


def test_bleu_is_the_one_of_the_paper():
    # 5 of 6 words match, 3 of 5 bigrams, 1 of 4 trigrams, 0 of 3 four-grams; 6 words against 7 cost exp(1 - 7/6).
    bleu = corpus_bleu(["the cat sat on the mat"], ["yesterday the cat sat under the mat"])
    matches = (5 / 6) * (3 / 5) * (1 / 4) * (0.5 / 3)  # sacreBLEU smooths a count of 0 to a half
    assert bleu == pytest.approx(100 * 2.718281828459045 ** (1 - 7 / 6) * matches**0.25)


def test_case_counts():
    assert corpus_bleu(["der Hund schläft im Garten"], ["Der Hund schläft im Garten"]) < 100


def test_the_single_scores_are_those_of_the_list():
    bleu, chrf = score_corpus(HYPOTHESES, REFERENCES)
    assert corpus_bleu(HYPOTHESES, REFERENCES) == bleu.score
    assert corpus_chrf(HYPOTHESES, REFERENCES) == chrf.score


def test_a_score_cannot_be_changed():
    score = Score("BLEU", 30.0, "nrefs:1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.score = 31.0  # type: ignore[misc]


@pytest.mark.parametrize("scorer", [score_corpus, corpus_bleu, corpus_chrf, scored_test_set])
def test_what_cannot_be_scored_is_refused(scorer):
    with pytest.raises(DataError) as caught:
        scorer(["a"] * 1014, ["a"] * 1000)
    assert str(caught.value) == "1,014 hypotheses and 1,000 references: scoring needs one line for each line"
    with pytest.raises(DataError) as caught:
        scorer([], [])
    assert str(caught.value) == "nothing to score: there are no lines"


def test_the_report_is_a_line_for_each_score():
    report = {"test_sets": {"flickr2016": scored_test_set(REFERENCES * 300, REFERENCES * 300)}}
    signatures = [score.signature for score in score_corpus(REFERENCES, REFERENCES)]
    assert report_text(report) == (
        f"flickr2016 (1,500 lines)\n  BLEU   100.00   {signatures[0]}\n  chrF2  100.00   {signatures[1]}"
    )
