"""Significance tests, compared with the sacrebleu command and with counts by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mt.errors import ConfigError
from mt.evaluation import significance
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.significance import verdict_text
from mt.report.facts import BETTER, NO_DIFFERENCE, WORSE, PairedScore
from tests.test_scores import sacrebleu_command

REFERENCES = (Path(__file__).parent.parent / "data/demo/test.de").read_text("utf-8").splitlines()[:300]


def with_words_dropped(lines: Sequence[str], share: float, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(word for word in line.split() if rng.random() >= share) for line in lines]


FEW_DROPPED = with_words_dropped(REFERENCES, 0.05, seed=1)
AS_FEW_DROPPED = with_words_dropped(REFERENCES, 0.05, seed=2)
MORE_DROPPED = with_words_dropped(REFERENCES, 0.1, seed=3)


def with_lines_spoilt(n: int, text: str = "Quatsch.") -> list[str]:
    return [text] * n + REFERENCES[n:]


def compare(
    system: Sequence[str],
    baseline: Sequence[str],
    metrics: Sequence[str] | None = None,
    test: str = "randomisation",
    n_samples: int = 200,
    references: Sequence[Sequence[str]] = (REFERENCES,),
) -> list[PairedScore]:
    return significance.compare(TranslatedSet(None, system, references, baseline=baseline), metrics, test, n_samples)


def verdicts(system: Sequence[str], baseline: Sequence[str], **options: Any) -> list[str]:
    return [one.verdict for one in compare(system, baseline, **options)]


@pytest.mark.parametrize(
    ("test", "options", "metrics"),
    [
        ("randomisation", ("--paired-ar", "--paired-ar-n", "150", "-m", "bleu", "chrf"), ["bleu", "chrf"]),
        # With the bootstrap and several metrics, the command fails to write its JSON.
        ("bootstrap", ("--paired-bs", "--paired-bs-n", "150", "-m", "bleu"), ["bleu"]),
    ],
)
def test_figures_equal_those_of_the_sacrebleu_command(
    tmp_path: Path, test: str, options: tuple[str, ...], metrics: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    systems = {"old": MORE_DROPPED, "new": FEW_DROPPED, "newer": AS_FEW_DROPPED}
    base, *theirs = sacrebleu_command(tmp_path, systems, [REFERENCES], *options)
    name = {"randomisation": "ar", "bootstrap": "bs"}[test]
    assert [entry["system"] for entry in theirs] == ["new", "newer"]
    for entry in theirs:
        for comparison in compare(systems[entry["system"]], MORE_DROPPED, metrics, test, n_samples=150):
            assert f"nrefs:1|{name}:150|seed:12345|" in comparison.signature
            figures = entry[comparison.name]
            assert comparison.score == figures["score"]
            assert comparison.baseline_score == base[comparison.name]["score"]
            assert comparison.p == figures["p_value"]
            assert comparison.mean == figures["mean"]
            if figures["mean"] is not None:
                assert comparison.low == figures["mean"] - figures["ci"]
                assert comparison.high == figures["mean"] + figures["ci"]


@pytest.mark.parametrize("test", ["randomisation", "bootstrap"])
def test_the_verdict_follows_the_direction_of_the_metric(test: str):
    metrics = ["bleu", "chrf", "ter"]
    assert verdicts(FEW_DROPPED, MORE_DROPPED, test=test, metrics=metrics) == [BETTER] * 3
    assert verdicts(MORE_DROPPED, FEW_DROPPED, test=test, metrics=metrics) == [WORSE] * 3
    assert verdicts(FEW_DROPPED, AS_FEW_DROPPED, test=test, metrics=metrics) == [NO_DIFFERENCE] * 3


@pytest.mark.parametrize("test", ["randomisation", "bootstrap"])
def test_a_system_does_not_differ_from_itself(test: str):
    (comparison,) = compare(FEW_DROPPED, FEW_DROPPED, ["bleu"], test)
    assert comparison.verdict == NO_DIFFERENCE == "no difference at p < 0.05"
    assert comparison.p == 1
    assert comparison.score == comparison.baseline_score


def test_case_makes_no_difference_for_lower_cased_bleu():
    lower = [line.lower() for line in FEW_DROPPED]
    assert verdicts(lower, FEW_DROPPED, metrics=["bleu", "bleu-lc"]) == [WORSE, NO_DIFFERENCE]


@pytest.mark.parametrize("test", ["randomisation", "bootstrap"])
def test_the_p_value_of_n_spoilt_lines_is_2_to_the_power_of_1_minus_n(test: str):
    # All n lines are worse: among the 2 ** n ways to swap them, two give a difference as large.
    for n, p in ((1, 1.0), (2, 0.5), (5, 1 / 16), (6, 1 / 32)):
        (comparison,) = compare(with_lines_spoilt(n), REFERENCES, ["bleu"], test)
        assert comparison.p == p
        assert comparison.verdict == (WORSE if n == 6 else NO_DIFFERENCE)


def test_better_and_worse_lines_cancel_out():
    baseline = with_lines_spoilt(4)
    system = [*REFERENCES[:4], *["Quatsch."] * 4, *REFERENCES[8:]]
    (comparison,) = compare(system, baseline, ["chrf"])
    assert comparison.p > 0.2
    assert comparison.verdict == NO_DIFFERENCE


def test_counted_and_sampled_swaps_give_similar_p_values():
    def spoilt(n: int) -> float:
        system = [*REFERENCES[:3], *["Quatsch."] * (n - 3), *REFERENCES[n:]]
        baseline = [*["Quatsch."] * 3, *REFERENCES[3:]]
        return compare(system, baseline, ["bleu"], n_samples=2_000)[0].p

    assert spoilt(13) == pytest.approx(spoilt(12), abs=0.1)


def test_significance_uses_all_references():
    (comparison,) = compare(FEW_DROPPED, MORE_DROPPED, ["bleu"], n_samples=100, references=[REFERENCES, MORE_DROPPED])
    assert comparison.baseline_score == pytest.approx(100)
    assert comparison.verdict == WORSE
    assert comparison.signature.startswith("nrefs:2|ar:100|seed:12345|")


def test_a_significance_test_prints_nothing(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with caplog.at_level("DEBUG"):
        compare(MORE_DROPPED, FEW_DROPPED, ["bleu"], n_samples=100)
    assert capsys.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name == "sacrebleu"] == []


def test_too_few_samples_are_refused():
    with pytest.raises(ConfigError) as refused:
        compare(FEW_DROPPED, MORE_DROPPED, n_samples=10)
    assert str(refused.value) == "samples: expected at least 100, got 10"


def test_the_verdict_is_given_in_words():
    def entry(name: str, verdict: str) -> PairedScore:
        given = {"score": 1.0, "baseline_score": 2.0, "difference": -1.0, "p": 0.01, "signature": "nrefs:1"}
        return PairedScore.model_validate(given | {"name": name, "verdict": verdict})

    three = [entry("BLEU", BETTER), entry("chrF2", BETTER), entry("chrF2++", BETTER)]
    assert verdict_text("new", "old", three) == "new is better than old by BLEU, chrF2 and chrF2++"
    mixed = [entry("BLEU", WORSE), entry("chrF2", NO_DIFFERENCE), entry("BLEU 2017 (tokenised)", NO_DIFFERENCE)]
    assert verdict_text("new", "old", mixed) == (
        "new is worse than old by BLEU; no difference at p < 0.05 by chrF2 and BLEU 2017"
    )
    assert (
        verdict_text("new", "old", [entry("BLEU", NO_DIFFERENCE)]) == "new and old: no difference at p < 0.05 by BLEU"
    )
