from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from mt.errors import ConfigError, DataError
from mt.evaluation import metrics
from mt.evaluation.scores import TranslatedSet, bleu_and_chrf, score_corpus
from mt.report.facts import Interval, MetricScore, ScoredSet
from mt.report.terminal import scores_text

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


OTHER_REFERENCES = [
    "Auf der Matte sitzt die Katze.",
    "„Das kostet 1.000,50 €“, sagte er und ging.",
    "",
    "Durch den Schnee läuft ein Hund.",
    "Im Park spielen zwei Männer Schach, obwohl es regnet.",
]


def scores_of(
    hypotheses: list[str], references: list[str], metrics: list[str] | None = None, n_samples: int = 0
) -> list[MetricScore]:
    return score_corpus(TranslatedSet(None, hypotheses, [references], "de"), metrics, n_samples).scores


def scores_of_two(metrics: list[str], n_samples: int = 0) -> ScoredSet:
    return score_corpus(TranslatedSet(None, HYPOTHESES, [REFERENCES, OTHER_REFERENCES]), metrics, n_samples)


def sacrebleu_command(
    folder: Path, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], *options: str
) -> list[dict[str, Any]]:
    """Return the scores of systems by the `sacrebleu` command, with 14 digits."""
    names = [f"ref{number}" for number, _ in enumerate(references)]
    for name, lines in (*systems.items(), *zip(names, references, strict=True)):
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    command = [sys.executable, "-m", "sacrebleu", *names, "-i", *systems, "-w", "14", "-f", "json", "-q", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SACREBLEU_")}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True, text=True)
    found = json.loads(finished.stdout)
    return found if isinstance(found, list) else [found]


def test_scores_agree_with_the_sacrebleu_command_to_the_last_digit(tmp_path: Path):
    options = ("-m", "bleu", "chrf", "ter", "--confidence", "--confidence-n", "200")
    theirs = sacrebleu_command(tmp_path, {"hyp": HYPOTHESES}, [REFERENCES], *options)
    ours = scores_of(HYPOTHESES, REFERENCES, ["bleu", "chrf", "ter"], n_samples=200)
    assert [score.name for score in ours] == ["BLEU", "chrF2", "TER"] == [entry["name"] for entry in theirs]
    assert [score.signature for score in ours] == [entry["signature"] for entry in theirs]
    assert "|bs:200|seed:12345|" in ours[0].signature
    assert [round(score.score, 14) for score in ours] == [entry["score"] for entry in theirs]
    for score, entry in zip(ours, theirs, strict=True):
        assert score.confidence is not None
        assert score.confidence.n_samples == 200
        assert score.confidence.mean == pytest.approx(entry["confidence_mean"], abs=1e-13)
        assert score.confidence.high - score.confidence.mean == pytest.approx(entry["confidence_var"], abs=1e-13)


def test_scores_against_two_references_agree_with_the_command(tmp_path: Path):
    options = ("-m", "bleu", "chrf", "--lowercase", "--chrf-word-order", "2")
    theirs = sacrebleu_command(tmp_path, {"hyp": HYPOTHESES}, [REFERENCES, OTHER_REFERENCES], *options)
    ours = scores_of_two(["bleu-lc", "chrf++"]).scores
    chrf, bleu = ours
    assert (chrf.name, bleu.name) == ("chrF2++", "BLEU-lc")
    assert {score.signature for score in ours} == {entry["signature"] for entry in theirs}
    assert {round(score.score, 14) for score in ours} == {entry["score"] for entry in theirs}
    assert all(score.signature.startswith("nrefs:2|case:") for score in ours)


def test_metrics_have_a_fixed_order_without_repetitions_and_four_are_default():
    assert [score.name for score in scores_of(HYPOTHESES, REFERENCES)] == ["BLEU", "chrF2", "chrF2++", "BLEU-lc"]
    names = ["ter", "bleu", "chrf", "bleu"]
    assert [score.name for score in scores_of(HYPOTHESES, REFERENCES, names)] == ["BLEU", "chrF2", "TER"]


def test_a_perfect_translation_scores_100_and_an_unrelated_one_0():
    text = ["Zwei Männer spielen Schach im Park."]
    assert [score.score for score in scores_of(text, text)] == pytest.approx([100, 100, 100, 100])
    assert scores_of(text, text, ["ter"])[0].score == 0
    assert bleu_and_chrf([""], text)[0] == 0
    assert bleu_and_chrf(["qqq"], text)[1] == 0


def test_only_the_lower_cased_bleu_ignores_case():
    text, lower = ["Der Hund schläft im Garten"], ["der hund schläft im garten"]
    cased, lower_cased = scores_of(lower, text, ["bleu", "bleu-lc"])
    assert cased.score < 50
    assert lower_cased.score == pytest.approx(100)
    assert "|case:lc|" in lower_cased.signature


def test_the_bleu_of_2017_is_computed_on_tokens_with_split_compounds():
    sacremoses = pytest.importorskip("sacremoses")
    hypothesis, reference = ["Der Ost-West-Konflikt, 3-mal."], ["Der Ost-West-Handel, 3-mal."]
    score = scores_of(hypothesis, reference, ["bleu-2017"])[0]
    assert score.name == "BLEU 2017 (tokenised, compounds split; not comparable with the others)"
    assert score.signature == (
        f"nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|version:{sacrebleu.__version__}"
        f"|before:moses-de,##AT##|sacremoses:{sacremoses.__version__}"
    )
    split = [
        f"Der Ost ##AT##-##AT## West ##AT##-##AT## {word} , 3 ##AT##-##AT## mal ." for word in ("Konflikt", "Handel")
    ]
    by_hand = sacrebleu.corpus_bleu([split[0]], [[split[1]]], tokenize="none", force=True).score
    assert score.score == pytest.approx(by_hand, abs=1e-12)
    assert score.score > scores_of(hypothesis, reference, ["bleu"])[0].score


def test_all_selects_every_metric_that_can_be_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "_has_sacremoses", lambda: False)
    assert metrics.metric_keys(["all"]) == ["bleu", "chrf", "chrf++", "bleu-lc", "ter"]
    with pytest.raises(ConfigError) as caught:
        metrics.metric_keys(["bleu-2017"])
    assert str(caught.value) == (
        "metric: bleu-2017 needs the package sacremoses, which is not installed. Run pip install sacremoses."
    )
    monkeypatch.setattr(metrics, "_has_sacremoses", lambda: True)
    assert metrics.metric_keys(["all"]) == list(metrics.METRICS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["blue"]}, "metric: unknown metric blue. Did you mean bleu?"),
        ({"metrics": ["CHRF"]}, "metric: unknown metric CHRF. Did you mean chrf?"),
        (
            {"metrics": ["comet"]},
            "metric: unknown metric comet. Choose from bleu, chrf, chrf++, bleu-lc, ter, bleu-2017, all.",
        ),
        ({"n_samples": 99}, "samples: expected at least 100, got 99"),
        ({"n_samples": -1}, "samples: expected at least 100, got -1"),
        (
            {"n_samples": 100_000_000},
            "samples: 100,000,000 samples of 5 lines need 24 GB of memory. Give 35791394 or fewer.",
        ),
    ],
)
def test_unknown_metrics_and_invalid_sample_sizes_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        scores_of(HYPOTHESES, REFERENCES, **arguments)
    assert str(caught.value) == message


def test_the_interval_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch):
    before = scores_of(HYPOTHESES, REFERENCES, ["bleu"], n_samples=100)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    assert scores_of(HYPOTHESES, REFERENCES, ["bleu"], n_samples=100) == before
    assert os.environ["SACREBLEU_SEED"] == "7"


def test_scoring_tokenised_text_prints_no_warning(capsys: pytest.CaptureFixture[str]):
    scores_of(["Ein Hund ."] * 200, ["Ein Hund."] * 200)
    assert capsys.readouterr() == ("", "")


def test_scores_have_intervals_only_on_request():
    entry = scores_of_two(["bleu"], n_samples=100)
    assert (entry.n_lines, entry.n_references) == (5, 2)
    (score,) = entry.scores
    assert score.confidence is not None
    assert score.confidence.low < score.confidence.mean < score.confidence.high
    written = [set(one.written()) for one in (score, *scores_of(HYPOTHESES, REFERENCES, ["bleu"]))]
    assert written == [{"name", "score", "signature", "confidence"}, {"name", "score", "signature"}]


def test_bleu_equals_a_computation_by_hand():
    # 5 of 6 words, 3 of 5 bigrams, 1 of 4 trigrams and 0 of 3 four-grams match. The brevity penalty is exp(1 - 7/6).
    bleu, _ = bleu_and_chrf(["the cat sat on the mat"], ["yesterday the cat sat under the mat"])
    matches = (5 / 6) * (3 / 5) * (1 / 4) * (0.5 / 3)  # sacreBLEU smooths a count of 0 to 0.5
    assert bleu == pytest.approx(100 * 2.718281828459045 ** (1 - 7 / 6) * matches**0.25)


def test_the_single_scores_equal_those_of_the_list():
    bleu, chrf = scores_of(HYPOTHESES, REFERENCES)[:2]
    assert bleu_and_chrf(HYPOTHESES, REFERENCES) == (bleu.score, chrf.score)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((None, ["a"] * 1014, [["a"] * 1000]), "1,014 hypotheses and 1,000 references"),
        ((None, ["a", "b"], [["a", "b"], ["a"]]), "2 hypotheses and 1 references"),
        ((["a", "b"], ["a"], [["a"]]), "1 hypotheses and 2 sources"),
        ((None, ["a"], [["a"]], "de", []), "1 hypotheses and 0 lines of the baseline"),
    ],
)
def test_lists_that_are_not_parallel_are_refused(lines: Any, message: str):
    with pytest.raises(DataError) as caught:
        TranslatedSet(*lines)
    assert str(caught.value) == f"{message}: scoring needs the same number of lines"


def test_scoring_no_lines_is_refused():
    with pytest.raises(DataError) as caught:
        bleu_and_chrf([], [])
    assert str(caught.value) == "nothing to score: there are no lines"


def test_the_text_has_one_line_per_score():
    signatures = [score.signature for score in scores_of(REFERENCES, REFERENCES)]
    long = score_corpus(TranslatedSet(None, REFERENCES * 300, [REFERENCES * 300]))
    assert scores_text({"flickr2016": long}) == (
        "flickr2016 (1,500 lines)\n"
        f"  BLEU     100.00   {signatures[0]}\n"
        f"  chrF2    100.00   {signatures[1]}\n"
        f"  chrF2++  100.00   {signatures[2]}\n"
        f"  BLEU-lc  100.00   {signatures[3]}"
    )


def test_the_text_has_intervals_references_and_remarks():
    confidence = Interval(mean=30.2, low=29.5, high=30.9, n_samples=1_000)
    scores = [
        MetricScore(name="BLEU", score=30.123, signature="nrefs:2", confidence=confidence),
        MetricScore(name="BLEU 2017 (tokenised)", score=31.5, signature="tok:none", confidence=confidence),
    ]
    assert scores_text({"wmt": ScoredSet(n_lines=3_003, n_references=2, scores=scores)}) == (
        "wmt (3,003 lines, 2 references)\n"
        "  BLEU        30.12 ± 0.70   nrefs:2\n"
        "  BLEU 2017   31.50 ± 0.70   tok:none (tokenised)"
    )


def test_scores_do_not_depend_on_the_size_of_counted_parts(monkeypatch: pytest.MonkeyPatch):
    hypotheses = [line.replace("e", "a") for line in REFERENCES] * 40
    long = TranslatedSet(None, hypotheses, [REFERENCES * 40, hypotheses[::-1]], "de")
    at_once = score_corpus(long, ["all"], n_samples=100)
    monkeypatch.setattr("mt.evaluation.metrics._LINES_AT_ONCE", 7)
    assert score_corpus(long, ["all"], n_samples=100) == at_once
