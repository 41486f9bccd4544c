"""Comparisons of several systems: letters by hand, p-values from the paired tests, and real training runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mt.cli import app
from mt.errors import ConfigError
from mt.evaluation.comparison import System, compare_systems, setting_differences, significance_groups
from mt.evaluation.findings import EvalOptions
from mt.evaluation.report_files import write_report
from mt.evaluation.runs import RunArtifacts
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.significance import compare
from mt.pipeline import train_run
from mt.report.evaluation import comparison_page
from mt.report.facts import ComparedMetric, PairedSystems, SystemComparison, TrainingCurves
from mt.report.markdown import markdown
from mt.report.terminal import comparison_text
from tests.test_page import HOSTILE, PageReader, assert_same_structure
from tests.toys import toy_config, write_lines

DEMO = Path(__file__).parent.parent / "data/demo"
REFERENCES = (DEMO / "test.de").read_text("utf-8").splitlines()[:120]
GOOD = [line.replace("ist", "war") for line in REFERENCES]
AS_GOOD = ["Eins.", *GOOD[1:]]
BAD = [line.replace("der", "die").replace("en", "") for line in REFERENCES]


def systems(**hypotheses: Sequence[str]) -> list[System]:
    return [System(name, {"demo": lines}) for name, lines in hypotheses.items()]


def facts_of(found: Sequence[System], **options: Any) -> SystemComparison:
    return compare_systems(found, {"demo": [REFERENCES]}, EvalOptions(**({"n_samples": 200} | options)))


def metrics_of(**hypotheses: Sequence[str]) -> list[ComparedMetric]:
    return facts_of(systems(**hypotheses)).test_sets["demo"].metrics


# --- letters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranking", "same", "expected"),
    [
        ([0, 1, 2], set(), [["a"], ["b"], ["c"]]),
        ([0, 1, 2], {(0, 1), (0, 2), (1, 2)}, [["a"], ["a"], ["a"]]),
        # The second does not differ from its neighbours, which differ from each other.
        ([0, 1, 2], {(0, 1), (1, 2)}, [["a"], ["a", "b"], ["b"]]),
        ([2, 0, 1], {(0, 2)}, [["a"], ["b"], ["a"]]),
        # The first and the last do not differ, although the one between them differs from both.
        ([0, 1, 2], {(0, 2)}, [["a"], ["b"], ["a"]]),
    ],
)
def test_systems_share_a_letter_exactly_if_they_do_not_differ(
    ranking: list[int], same: set[tuple[int, int]], expected: list[list[str]]
):
    assert significance_groups(ranking, {frozenset(pair) for pair in same}) == expected


def test_there_are_letters_for_thirty_systems():
    found = significance_groups(range(30), set())
    assert significance_groups(range(30), {frozenset(pair) for pair in combinations(range(30), 2)}) == [["a"]] * 30
    assert (found[0], found[25], found[26], found[29]) == (["a"], ["z"], ["a2"], ["d2"])


# --- facts ------------------------------------------------------------------------------------------------------------


def test_each_pair_has_the_p_value_of_the_paired_test():
    bleu, chrf = metrics_of(bad=BAD, good=GOOD, as_good=AS_GOOD)
    assert (bleu.name, chrf.name) == ("BLEU", "chrF2")
    # The better first.
    assert [(pair.first, pair.second) for pair in bleu.pairs] == [(1, 2), (1, 0), (2, 0)]
    sets = [TranslatedSet(None, lines, [REFERENCES], baseline=BAD) for lines in (GOOD, AS_GOOD)]
    against = [compare(one, ["bleu"], "randomisation", 200)[0] for one in sets]
    assert [pair.p for pair in bleu.pairs[1:]] == [one.p for one in against]
    assert bleu.test_signature == against[0].signature
    assert "|ar:200|seed:12345|" in bleu.test_signature
    assert [pair.verdict for pair in bleu.pairs] == ["no difference at p < 0.05", "better", "better"]
    assert bleu.ranking == [1, 2, 0]
    assert bleu.groups == [["b"], ["a"], ["a"]]
    assert bleu.verdict == "good has the best score, with no difference at p < 0.05 from as_good"


def test_the_order_of_the_systems_makes_no_difference():
    one, _ = metrics_of(bad=BAD, good=GOOD, as_good=AS_GOOD)
    other, _ = metrics_of(as_good=AS_GOOD, bad=BAD, good=GOOD)
    assert [pair.p for pair in one.pairs] == [pair.p for pair in other.pairs]
    assert (one.groups, one.verdict) == ([*other.groups[1:], other.groups[0]], other.verdict)


def test_a_system_does_not_differ_from_itself():
    bleu, _ = metrics_of(one=GOOD, other=list(GOOD))
    assert bleu.pairs == [PairedSystems(first=0, second=1, p=1.0, verdict="no difference at p < 0.05")]
    assert bleu.groups == [["a"], ["a"]]
    assert bleu.verdict == "No difference at p < 0.05 between one and other"


def test_a_lower_ter_is_better():
    (ter,) = facts_of(systems(bad=BAD, good=GOOD), metrics=["ter"]).test_sets["demo"].metrics
    assert ter.ranking == [1, 0]
    assert ter.scores[0].score > ter.scores[1].score
    assert ter.verdict == "good is better than bad"


def test_the_verdict_says_which_systems_the_best_one_differs_from():
    def verdict(**hypotheses: Sequence[str]) -> str:
        return metrics_of(**hypotheses)[0].verdict

    worse = [line.replace("e", "") for line in BAD]
    assert verdict(a=BAD, b=GOOD, c=worse) == "b is better than all others"
    assert verdict(a=GOOD, b=AS_GOOD, c=["Eins.", "Zwei.", *GOOD[2:]]) == (
        "No difference at p < 0.05 between a, which has the best score, and any other"
    )


def test_intervals_contain_their_scores():
    facts = facts_of(systems(bad=BAD, good=GOOD), has_confidence=True, n_samples=100)
    for score in facts.test_sets["demo"].metrics[0].scores:
        assert score.confidence is not None
        assert score.confidence.low < score.score < score.confidence.high


def test_settings_with_the_same_value_everywhere_are_left_out():
    assert setting_differences([{"a": 1, "b": 2, "c": None}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "d": [4]}]) == {
        "b": [2, 3, 2],
        "d": [None, None, [4]],
    }


def test_the_table_for_the_terminal_is_aligned():
    one, other = systems(**{"runs/bad": BAD, "runs/good": GOOD})
    figures = {"steps": 1_200, "n_tgt_tokens": 4_905_048, "train_seconds": 1155.2}
    one = replace(one, figures=figures, settings={"train.seed": 1, "name": "x"})
    text = comparison_text(facts_of([one, replace(other, settings={"train.seed": 2, "name": "x"})]))
    lines = text.splitlines()
    assert lines[0] == "demo (120 lines; paired tests, 200 shuffles)"
    assert lines[1].split() == ["system", "BLEU", "chrF2", "updates", "target", "tokens", "training", "time"]
    assert lines[2].split()[0] == "runs/good"
    assert lines[2].split()[2] == "a"
    assert lines[3].endswith(" b     1,200      4,905,048    19 min 15 s")
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[4:] == [
        "runs/good is better than runs/bad, by BLEU and chrF2.",
        "Systems that share a letter do not differ significantly (p < 0.05).",
        "Settings that differ",
        "  setting     runs/bad  runs/good",
        "  train.seed         1          2",
    ]


def test_long_names_are_replaced_by_numbers_in_the_table_of_settings():
    long, longer = "runs/" + "a" * 40, "runs/" + "b" * 40
    one, other = systems(**{long: BAD, longer: GOOD})
    text = comparison_text(facts_of([replace(one, settings={"a": None}), replace(other, settings={"a": "x"})]))
    assert text.splitlines()[-4:] == [f"  1: {long}", f"  2: {longer}", "  setting     1  2", "  a        null  x"]


# --- the report -------------------------------------------------------------------------------------------------------


def curves(*bleu: float) -> TrainingCurves:
    xs: list[int | float | None] = [100 * (i + 1) for i in range(len(bleu))]
    curve = {"step": xs, "n_tgt_tokens": xs, "train_minutes": xs, "valid_bleu": [*bleu]}
    return TrainingCurves(curves={"valid": curve}, samples=[])


def three_systems(name: str = "runs/bad") -> list[System]:
    found = systems(**{name: BAD, "good": GOOD, "as_good": AS_GOOD})
    return [
        replace(found[0], figures={"steps": 1_200, "train_seconds": 61.5}, settings={"a.b": 0.25, "c": name}),
        replace(found[1], training=curves(1.5, 20.25), settings={"a.b": 0.5}),
        replace(found[2], training=curves(1.5, 21.75), settings={"a.b": 0.5}),
    ]


def _report(found: Sequence[System]) -> tuple[str, str]:
    """Return the page and the Markdown of a comparison."""
    origin = {"kind": "comparison", "format_version": 1, "made_at": "2026-11-22T12:00:00+00:00", "command": "mt"}
    facts = SystemComparison.model_validate(dict(facts_of(found)) | origin | {"commit": None, "versions": {}})
    return comparison_page(facts), markdown("comparison.md.j2", facts)


def test_the_page_has_the_numbers_of_the_json(tmp_path: Path):
    write_report(facts_of(three_systems(), has_confidence=True), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    read = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert read["kind"] == "comparison"
    page = PageReader((tmp_path / "report.html").read_text("utf-8"))
    assert page.headings == ["demo", "Training", "Configs", "Provenance"]
    metrics = read["test_sets"]["demo"]["metrics"]
    scores = [metric["scores"][0] for metric in metrics]
    shown = [[one["score"], one["confidence"]["low"], one["confidence"]["high"]] for one in scores]
    cells = [[*(f"{number:.2f}" for number in numbers), "b"] for numbers in shown]
    assert ["runs/bad", *cells[0], *cells[1], "1,200", "1 min 02 s"] in page.rows
    p = [f"{pair['p']:.4f}" for pair in metrics[0]["pairs"] if 0 in (pair["first"], pair["second"])]
    assert ["3. runs/bad", *(f"{one} worse" for one in p), ""] in page.rows
    assert ["200", "20.2500", "21.7500"] in page.rows  # each run has its curve
    assert ["a.b", "0.25", "0.5", "0.5"] in page.rows
    assert "<figcaption>BLEU on the validation set against minutes" in (tmp_path / "report.html").read_text("utf-8")


def test_the_title_has_the_number_of_systems_if_there_are_many():
    many = systems(**{f"runs/{name}": GOOD for name in "abcd"})
    assert '<h1 dir="auto">Comparison of 4 systems</h1>' in _report(many)[0]
    assert "# Comparison of runs/a, runs/b and runs/c\n" in _report(many[:3])[1]


def test_comparisons_of_files_do_not_mention_configs():
    files = systems(a=GOOD, b=BAD)
    assert "config" not in comparison_text(facts_of(files)).lower()
    assert "Configs" not in "".join(_report(files))


def test_names_and_settings_are_never_markup():
    page, text = _report(three_systems(HOSTILE))
    assert_same_structure(page, _report(three_systems("words"))[0])
    assert "\\<script\\>" in text
    assert not re.search(r"(?<!\\)<script", re.sub("`[^`]*`", "", text))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two runs on the same text: `short`, and `long`, which learns it."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (("short", {"max_steps": 4}), ("long", {"max_steps": 120, "peak_lr": 1e-2, "keep_last": 99})):
        train_run(toy_config(folder / "text", validate_every=60, **changes), folder / name)
    return folder


def mt_compare(*arguments: str | Path, command: Sequence[str] = ("compare",)) -> int:
    with pytest.raises(SystemExit) as caught:
        app([*command, *map(str, arguments)], prog_name="mt")
    return int(caught.value.code or 0)


def test_runs_are_compared_by_their_saved_translations(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(runs)
    assert mt_compare("short", "long", "--samples", "200", "--report", "report") == 0
    out, err = capsys.readouterr()
    assert err == f"report: {Path('report/report.html')}\n"  # nothing was translated again
    lines = out.splitlines()
    assert lines[0] == "held_out (20 lines; paired tests, 200 shuffles)"
    assert [line.split()[0] for line in lines[2:4]] == ["long", "short"]
    assert lines[2].split()[5] == "120"  # updates
    assert lines[4] == "long is better than short, by BLEU and chrF2."
    assert re.search(r"^  train.max_steps +4 +120$", out, re.MULTILINE)
    report = json.loads(Path("report/report.json").read_text("utf-8"))
    kept = json.loads(Path("long/report.json").read_text("utf-8"))
    scores = report["test_sets"]["held_out"]["metrics"][0]["scores"]
    assert scores[1]["score"] == kept["test_sets"]["held_out"]["scores"][0]["score"]
    assert report["systems"][1]["n_parameters"] == kept["n_parameters"]
    assert report["systems"][1]["n_tgt_tokens"] == kept["n_tgt_tokens"]
    # A second comparison replaces the first only if asked.
    assert mt_compare("long", "long", "--samples", "200", "--report", "report", "--json") == 2
    assert "report contains report.html already" in capsys.readouterr().err
    assert mt_compare("long", "long", "--samples", "200", "--report", "report", "--json", "--overwrite") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["test_sets"]["held_out"]["metrics"][0]["pairs"][0]["p"] == 1.0
    assert printed["differences"] == {}
    assert "training" not in printed


def test_eval_with_the_option_compare_is_another_name_of_compare(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(runs)
    options = ("short", "long", "--samples", "200", "--metric", "bleu")
    assert mt_compare(*options) == 0
    printed = capsys.readouterr()
    assert mt_compare(*options, command=("eval", "--compare")) == 0
    assert capsys.readouterr() == printed


def test_files_are_compared_if_there_is_a_reference(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(runs)
    reference = "text/test.de"
    options = ("--samples", "200", "--metric", "bleu")
    assert mt_compare("long/translations/held_out.txt", "short", "long", "--ref", reference, *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "input (20 lines; paired tests, 200 shuffles)"
    assert {line.split()[0]: line.split()[2] for line in lines[2:5]} == {
        "long/translations/held_out.txt": "a",
        "long": "a",
        "short": "b",
    }
    # Both files and runs can have several references.
    assert mt_compare("short", "long", "--ref", reference, "--ref", reference, *options, "--json") == 0
    assert "nrefs:2|" in json.loads(capsys.readouterr().out)["test_sets"]["input"]["metrics"][0]["signature"]


def test_a_checkpoint_is_compared_by_translating_with_it(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(runs)
    first = "long/checkpoints/step-00000004"
    assert mt_compare(first, "long", "--samples", "200", "--test", "held_out") == 0
    out, err = capsys.readouterr()
    assert err == f"{first}: translating held_out with the model of step 4\n"
    assert f"long is better than {first}, by BLEU and chrF2." in out
    assert [line.split()[5] for line in out.splitlines()[2:4]] == ["120", "4"]
    assert out.endswith("The configs are the same.\n")


def test_changed_saved_translations_are_not_used(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "long", "copy")
    kept = Path("copy/translations/held_out.txt")
    kept.write_text("".join(sorted(kept.read_text("utf-8").splitlines(keepends=True))), encoding="utf-8")
    assert mt_compare("copy", runs / "long", "--samples", "200", "--metric", "bleu") == 0
    out, err = capsys.readouterr()
    assert err == "copy: translating held_out with the model of step 120\n"
    assert "No difference at p < 0.05 between copy and " in out


def test_a_metric_that_cannot_be_computed_is_refused_before_any_test(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sacremoses")
    monkeypatch.setattr("mt.evaluation.comparison.compare_rows", None)
    with pytest.raises(ConfigError, match=r"^tgt_lang is needed by bleu-2017"):
        facts_of(systems(good=GOOD, bad=BAD), metrics=["bleu", "bleu-2017"])


def test_models_must_have_the_same_test_set(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = toy_config(tmp_path / "text", max_steps=1)
    other_text = replace(config.data.test["held_out"], tgt=str(write_lines(tmp_path / "other.de", ["X"] * 20)))
    train_run(replace(config, data=replace(config.data, test={"held_out": other_text})), Path("other"))
    train_run(replace(config, data=replace(config.data, test={"wmt": other_text})), Path("wmt"))
    train_run(replace(config, data=replace(config.data, test={})), Path("none"))
    capsys.readouterr()
    long = runs / "long"

    def refused(*arguments: str | Path) -> str:
        assert mt_compare(*arguments) == 2
        return capsys.readouterr().err

    assert refused(long, "other") == (
        f"error: other: its test set held_out is not the same text as held_out of {long}. Compare models on the same "
        "text, or choose a test set with --test.\n"
    )
    assert refused(long, "wmt", "none") == (
        f"error: these models have no test set in common ({long} has held_out; wmt has wmt; none has none). "
        "Choose models with a common test set, or give other text, such as --src FILE --ref FILE.\n"
    )
    assert refused(long, "wmt", "--test", "wmt") == (f"error: --test: {long} has no test set wmt. It has held_out.\n")
    assert refused("none", long, "--test", "wmt") == (
        "error: --test: none has no test set wmt. Its config has none under data.test.\n"
    )


def test_a_tokenizer_that_was_given_does_not_differ_in_its_settings(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = toy_config(tmp_path / "text", max_steps=1, init_from=str(runs / "long"))
    train_run(config, Path("tuned"))
    capsys.readouterr()
    assert mt_compare(runs / "long", "tuned", "--samples", "200", "--metric", "bleu") == 0
    out = capsys.readouterr().out
    assert re.search(r"^  train.init_from +null +", out, re.MULTILINE)
    assert "tokenizer." not in out
    assert RunArtifacts.of(Path("tuned")).settings()["tokenizer.vocab_size"] == 380


USAGE = "Use mt compare A B, or mt compare --ref REF A B."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", f"RUN: expected at least two, got none. {USAGE}"),
        ("one", f"RUN: expected at least two, got 1. {USAGE}"),
        ("file file", "file is a file. Add --ref FILE to compare files of translations."),
        (
            "one two --ref file --test a",
            "--test cannot be combined with --ref, which compares files. Remove one of them.",
        ),
        ("one two --src file", "--src needs --ref. Add --ref FILE."),
        ("one two --file a.tsv --test a", "--test cannot be combined with --file. Remove one of them."),
        ("one two --ref text --sacrebleu wmt14", "--sacrebleu cannot be combined with --ref. Give one text."),
        (
            "text two --src text --ref text",
            "none of the systems is a model. Give only references to compare translations.",
        ),
        ("one file --ref text", "one does not exist (looked for in HERE)"),
        ("file text --ref text", "file has no lines to score"),
        ("text two --ref text", "two has 2 lines and text has 1, but both files need the same number of lines"),
        ("one two", "one: no such folder. Give a run folder, a checkpoint or a model folder."),
        (
            "unborn unborn",
            "unborn: this run has no checkpoint yet. Wait until training writes the first one.",
        ),
        ("one two --metric blue", "--metric: unknown metric blue. Did you mean bleu?"),
        ("one two --samples 5", "--samples: expected at least 100, got 5"),
        ("one two --report file", "--report: file is a file. Give a folder."),
    ],
)
def test_impossible_comparisons_are_refused_in_one_line(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("unborn/checkpoints").mkdir(parents=True)
    Path("file").touch()
    for name, lines in (("text", ["a"]), ("two", ["a", "b"])):
        if "--ref" in options:
            write_lines(Path(name), lines)
    assert mt_compare(*options.split()) == 2
    assert capsys.readouterr() == ("", f"error: {message.replace('HERE', str(tmp_path))}\n")
