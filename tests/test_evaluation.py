"""Evaluation: the choice of model and text, and when a report is written again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from images import curves_page

from mt.api import TrainedRun
from mt.config.settings import Direction, RunConfig
from mt.errors import ConfigError, DataError
from mt.evaluation.command import evaluate_files, evaluate_model
from mt.evaluation.findings import EvalOptions
from mt.evaluation.runs import RunArtifacts
from mt.pipeline import corpus_folder, train_run
from mt.run_folder import RunFolder, open_model
from mt.text.corpora import SentencePair
from mt.text.prepare import first_test_pairs
from mt.tools.doctor import examine
from tests.toys import messages, toy_config, toy_text, write_lines


def changed(config: RunConfig, **train: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **train))


def with_test(config: RunConfig, **test: Any) -> RunConfig:
    source = replace(config.data.test["held_out"], **test)
    return replace(config, data=replace(config.data, test={"held_out": source}))


def with_new(config: RunConfig, files: Sequence[Path], **options: Any) -> RunConfig:
    """Add the test set `new` before those of the config."""
    new = {"src": str(files[0]), "tgt": str(files[1]), **options}
    return replace(config, data=replace(config.data, test={"new": new, **config.data.test}))


def report_of(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text("utf-8"))
    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    folder = tmp_path_factory.mktemp("finished")
    config = toy_config(folder / "text", max_steps=60, peak_lr=1e-2, validate_every=30, checkpoint_every=20)
    train_run(config, folder / "run")
    return config, folder / "run"


@pytest.fixture
def run(finished: tuple[RunConfig, Path], tmp_path: Path) -> tuple[RunConfig, Path]:
    """Copy a finished run, so that a test can change it."""
    config, run_dir = finished
    shutil.copytree(run_dir, tmp_path / "run")
    return config, tmp_path / "run"


def test_the_images_of_the_readme_show_the_curves_of_a_run(finished: tuple[RunConfig, Path]):
    assert curves_page(RunFolder(finished[1])).count("<figure") == 2


def test_the_model_of_a_run_that_was_continued_is_its_best_checkpoint(run: tuple[RunConfig, Path]):
    _, run_dir = run
    assert open_model(run_dir).path == run_dir / "model"
    # Training continued, and was stopped.
    shutil.copytree(RunFolder(run_dir).checkpoint(60), RunFolder(run_dir).checkpoint(80))
    assert open_model(run_dir).path == RunFolder(run_dir).checkpoint(60)  # the best one
    assert RunArtifacts.of(run_dir).description == "the model of step 60"


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"kind": "evaluation", "format_version": 1}', ""])
def test_a_damaged_report_is_written_again(run: tuple[RunConfig, Path], content: str):
    config, run_dir = run
    before = report_of(run_dir)
    (run_dir / "report.json").write_text(content, encoding="utf-8")
    train_run(config, run_dir)
    after = report_of(run_dir)
    assert {key: after[key] for key in ("test_sets", "valid", "steps", "basis", "translations")} == {
        key: before[key] for key in ("test_sets", "valid", "steps", "basis", "translations")
    }
    assert "held_out (20 lines)" in str(TrainedRun(run_dir))


def test_a_complete_report_is_not_written_again(run: tuple[RunConfig, Path]):
    config, run_dir = run
    before = (run_dir / "report.json").stat().st_mtime_ns
    train_run(config, run_dir)
    assert (run_dir / "report.json").stat().st_mtime_ns == before
    (run_dir / "report.html").unlink()
    train_run(config, run_dir)
    assert (run_dir / "report.html").exists()
    report = report_of(run_dir)
    del report["src_fill"]
    (run_dir / "report.json").write_text(json.dumps(report), encoding="utf-8")
    train_run(config, run_dir)
    assert "src_fill" in report_of(run_dir)


def test_more_training_and_a_new_name_update_the_report_of_an_unchanged_model(tmp_path: Path):
    # The model learns nothing after the first step, so the first checkpoint stays the best.
    config = toy_config(tmp_path / "text", max_steps=4, average_last=0, validate_every=2, checkpoint_every=2)
    config = changed(config, peak_lr=1e-9)
    train_run(config, tmp_path / "run")
    first = report_of(tmp_path / "run")
    translated = (tmp_path / "run/translations/held_out.txt").stat().st_mtime_ns
    train_run(replace(changed(config, max_steps=8), name="other"), tmp_path / "run")
    second = report_of(tmp_path / "run")
    assert second["basis"] == first["basis"]
    assert (first["steps"], second["steps"]) == (4, 8)
    assert second["training"]["curves"]["valid"]["step"] == [2, 4, 6, 8]
    assert str(TrainedRun(tmp_path / "run")).startswith("other: 33,536 parameters, 8 steps")
    assert (tmp_path / "run/translations/held_out.txt").stat().st_mtime_ns == translated  # not translated again


def test_changed_translations_are_not_used_as_those_of_the_run(run: tuple[RunConfig, Path]):
    _, run_dir = run
    artifacts = RunArtifacts.of(run_dir)
    pairs, directions = artifacts.test_pairs(["held_out"]), artifacts.directions(["held_out"])
    kept = artifacts.kept_translations(pairs, directions)
    hypotheses = kept["held_out"].hypotheses
    assert hypotheses == (run_dir / "translations/held_out.txt").read_text("utf-8").splitlines()
    assert artifacts.kept_translations({"held_out": pairs["held_out"][1:]}, directions) == {}
    other_text = {"held_out": [pair._replace(tgt="x") for pair in pairs["held_out"]]}
    assert artifacts.kept_translations(other_text, directions) == {}
    write_lines(run_dir / "translations/held_out.txt", hypotheses[::-1])
    assert artifacts.kept_translations(pairs, directions) == {}


def test_a_translation_of_text_with_line_feeds_is_one_line(finished: tuple[RunConfig, Path]):
    artifacts, pair = RunArtifacts.of(finished[1]), SentencePair("bar\n\ndest", "BAR\n\nDEST", 1)
    how = {"new": Direction("en", "de")}, "cpu", "fp32"
    (line,) = artifacts.translate({"new": [pair]}, *how, n_processes=1)["new"].hypotheses
    assert " " in line
    assert "\n" not in line


def test_a_tag_is_given_to_the_model_but_not_to_the_evaluation(finished: tuple[RunConfig, Path], tmp_path: Path):
    config, _ = finished
    tagged = with_test(changed(config, max_steps=2), tag="<bt>")
    tagged = replace(tagged, tokenizer=replace(tagged.tokenizer, user_symbols=("<bt>",)))
    train_run(tagged, tmp_path / "run")
    artifacts = RunArtifacts.of(tmp_path / "run")
    translated = artifacts.translate(
        artifacts.test_pairs(["held_out"]), artifacts.directions(["held_out"]), "auto", "auto", n_processes=1
    )["held_out"]
    text = Path(str(tagged.data.test["held_out"].src)).read_text("utf-8").splitlines()
    assert list(translated.sources or ()) == text
    sentences = report_of(tmp_path / "run")["sentences"]["held_out"]
    assert [one["source"] for one in sentences] == text
    # A baseline that does not know the tag reads the text without it, and has stored translations of that.
    options = EvalOptions(["bleu"], baseline=finished[1], n_samples=100)
    with messages() as said:
        found = evaluate_model(tmp_path / "run", [], "auto", "auto", options)
    assert [line.split(" with ")[0] for line in said] == [f"{tmp_path / 'run'}: translating held_out"]
    assert found.comparison is not None
    expected = report_of(finished[1])["test_sets"]["held_out"]["scores"][0]["score"]
    assert found.comparison.test_sets["held_out"].scores[0].baseline_score == expected


def test_a_test_set_is_added_to_a_finished_run_and_removed_again(run: tuple[RunConfig, Path], tmp_path: Path):
    config, run_dir = run
    before, metrics = report_of(run_dir), (run_dir / "metrics.jsonl").read_bytes()
    translated_at = (run_dir / "translations/held_out.txt").stat().st_mtime_ns
    src, tgt = toy_text(5, 9)
    train_src = Path(str(config.data.train[0].files[0])).read_text("utf-8").splitlines()
    src[3] = next(line for line in train_src if len(line.split()) >= 6).capitalize() + "!"
    files = write_lines(tmp_path / "new.en", src), write_lines(tmp_path / "new.de", tgt)
    added = with_new(config, files)
    with messages() as said:
        train_run(added, run_dir)
    source = f"{files[0]} + {files[1]}"
    assert f"test set new added to the run: 5 pairs of {source}; 1 in the training text" in said
    assert not any("has changed" in line for line in said)
    report = report_of(run_dir)
    assert list(report["test_sets"]) == ["new", "held_out"]
    assert report["test_sets"]["held_out"] == before["test_sets"]["held_out"]
    assert (run_dir / "translations/held_out.txt").stat().st_mtime_ns == translated_at
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics  # nothing was trained
    problem = "1 of 5 segments are in the training text, because the test set was added after preparation"
    assert report["warnings"]["new"][0] == f"{problem}: the scores are too high"
    assert report["manifest"]["corpus"]["test"]["new"]["pairs"] == 5
    # The run has a copy of the text.
    for path in files:
        path.unlink()
    train_run(added, run_dir)
    assert report_of(run_dir) == report
    found = evaluate_model(run_dir, ["new"], "auto", "auto", EvalOptions(["bleu"]))
    assert found.test_sets["new"].scores[0].score == report["test_sets"]["new"]["scores"][0]["score"]
    assert found.warnings["new"][0].startswith(problem)
    copy = run_dir / "tests/new.jsonl"
    copy.write_text(copy.read_text("utf-8")[:-9], "utf-8")
    with pytest.raises(DataError, match=r"new.jsonl is damaged. Delete it, then run mt train again to copy the text"):
        evaluate_model(run_dir, ["new"], "auto", "auto", EvalOptions(["bleu"]))
    train_run(config, run_dir)
    assert report_of(run_dir)["test_sets"] == before["test_sets"]
    assert {path.name for path in (run_dir / "translations").iterdir()} == {"held_out.txt", "valid.txt"}


def test_a_started_run_keeps_its_test_sets_and_may_change_those_that_were_added(tmp_path: Path):
    config = toy_config(tmp_path / "text", max_steps=2)
    train_run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")  # as if training had been stopped
    src, tgt = toy_text(5, 9)
    files = write_lines(tmp_path / "new.en", src), write_lines(tmp_path / "new.de", tgt)
    added = with_new(changed(config, max_steps=4), files)
    train_run(added, tmp_path / "run")
    assert report_of(tmp_path / "run")["test_sets"]["new"]["n_lines"] == 5
    write_lines(tmp_path / "new.en", src[:3])
    write_lines(tmp_path / "new.de", tgt[:3])
    train_run(added, tmp_path / "run")
    report = report_of(tmp_path / "run")
    assert (report["steps"], report["test_sets"]["new"]["n_lines"]) == (4, 3)
    # The corpus is prepared again without the new test set.
    shutil.rmtree(tmp_path / "text/prepared")
    train_run(changed(added, max_steps=5), tmp_path / "run")
    assert [path.name for path in (tmp_path / "text/prepared").glob("*/test.*.jsonl")] == ["test.held_out.jsonl"]
    with pytest.raises(ConfigError) as caught:
        train_run(replace(config, data=replace(config.data, test={"new": added.data.test["new"]})), tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: this run was started with other settings (the test set held_out was removed). Change it "
        "back, or start a new run with another --run-dir."
    )
    with pytest.raises(ConfigError, match=r"data.test.held_out.src was .* and is now .*new.en"):
        train_run(with_test(config, src=str(files[0])), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^data.test.new.tag is <x>, which the tokenizer of this run does not know"):
        train_run(with_new(config, files, tag="<x>"), tmp_path / "run")
    write_lines(tmp_path / "text/test.en", src)
    write_lines(tmp_path / "text/test.de", tgt)
    with messages() as said:
        train_run(changed(added, max_steps=5), tmp_path / "run")
    problem = "data.test.held_out has changed; the run scores the text prepared then"
    assert f"note: {problem}. Add the new text as another test set." in said
    assert report_of(tmp_path / "run")["test_sets"]["held_out"]["n_lines"] == 20


def test_the_name_of_an_added_test_set_may_begin_with_that_of_another(run: tuple[RunConfig, Path], tmp_path: Path):
    config, run_dir = run
    for n in (3, 2):
        files = [
            str(write_lines(tmp_path / f"{n}.{lang}", text)) for lang, text in zip("ab", toy_text(n, 9), strict=True)
        ]
        tests = {**config.data.test, "held_out.2": {"src": files[0], "tgt": files[1]}}
        train_run(replace(config, data=replace(config.data, test=tests)), run_dir)
        assert report_of(run_dir)["test_sets"]["held_out.2"]["n_lines"] == n


def test_other_commands_know_an_added_test_set(finished: tuple[RunConfig, Path], tmp_path: Path):
    config, run_dir = finished
    files = write_lines(tmp_path / "a", ["x"]), write_lines(tmp_path / "b", ["y"])
    # A dry run and mt doctor find the prepared corpus.
    assert corpus_folder(with_new(config, files), RunFolder(run_dir)) == corpus_folder(config, RunFolder(run_dir))
    forecast = examine(with_new(config, files), run_dir).forecast
    assert forecast is not None
    assert forecast.prepared == str(corpus_folder(config, RunFolder(run_dir)))
    fingerprint = report_of(run_dir)["manifest"]["corpus"]["fingerprint"]
    assert first_test_pairs(with_new(config, files), fingerprint)[1] == [SentencePair("x", "y", 1)]
    assert len(first_test_pairs(config, fingerprint)[1]) == 20


def test_a_baseline_translates_another_text_and_files_must_fit(
    run: tuple[RunConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, run_dir = run
    other = with_test(changed(config, max_steps=2), tgt=str(write_lines(tmp_path / "other.de", ["X"] * 20)))
    train_run(other, tmp_path / "other")
    capsys.readouterr()
    options = EvalOptions(["bleu"], baseline=tmp_path / "other", n_samples=200)
    assert evaluate_model(run_dir, [], "auto", "auto", options).comparison is not None
    assert f"{tmp_path / 'other'}: translating held_out with the model of step 2\n" in capsys.readouterr().err
    write_lines(tmp_path / "short", ["a"])
    with pytest.raises(DataError) as caught:
        evaluate_model(run_dir, [], "auto", "auto", EvalOptions(["bleu"], baseline=tmp_path / "short"))
    assert str(caught.value) == (
        f"{tmp_path / 'short'} has 1 lines and the test set held_out has 20. Give translations of the same text."
    )
    assert capsys.readouterr().err == ""
    # For a file, the test set of the baseline run with the same references is used.
    hypotheses, reference = run_dir / "translations/held_out.txt", Path(str(config.data.test["held_out"].tgt))
    with pytest.raises(DataError) as caught:
        evaluate_files(hypotheses, [reference], None, options)
    assert str(caught.value) == (
        f"{tmp_path / 'other'}: none of its files translates the text of --ref (20 lines): held_out.txt (20), "
        "valid.txt (20). Give the right file instead of the run."
    )
    found = evaluate_files(hypotheses, [reference], None, EvalOptions(["bleu"], baseline=run_dir, n_samples=200))
    assert found.comparison is not None
    assert found.comparison.test_sets["input"].scores[0].p == 1.0
