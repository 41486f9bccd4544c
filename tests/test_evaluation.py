"""Evaluation: the choice of model and text, and when a report is written again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from images import curves_page

from mt.api import TrainedRun
from mt.config.settings import RunConfig
from mt.errors import DataError
from mt.evaluation.command import evaluate_files, evaluate_model
from mt.evaluation.findings import EvalOptions
from mt.evaluation.runs import RunArtifacts
from mt.pipeline import train_run
from mt.run_folder import RunFolder, open_model
from tests.toys import toy_config, write_lines


def changed(config: RunConfig, **train: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **train))


def with_test(config: RunConfig, **test: Any) -> RunConfig:
    source = replace(config.data.test["held_out"], **test)
    return replace(config, data=replace(config.data, test={"held_out": source}))


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
    assert RunArtifacts.of(run_dir).description == "the average of 3 checkpoints up to step 60"
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
    pairs = artifacts.test_pairs(["held_out"])
    kept = artifacts.kept_translations(pairs)
    assert kept is not None
    hypotheses = kept["held_out"].hypotheses
    assert hypotheses == (run_dir / "translations/held_out.txt").read_text("utf-8").splitlines()
    assert artifacts.kept_translations({"held_out": pairs["held_out"][1:]}) is None
    write_lines(run_dir / "translations/held_out.txt", hypotheses[::-1])
    assert artifacts.kept_translations(pairs) is None


def test_a_tag_is_given_to_the_model_but_not_to_the_evaluation(finished: tuple[RunConfig, Path], tmp_path: Path):
    config, _ = finished
    tagged = with_test(changed(config, max_steps=2), tag="<bt>")
    tagged = replace(tagged, tokenizer=replace(tagged.tokenizer, user_symbols=("<bt>",)))
    train_run(tagged, tmp_path / "run")
    artifacts = RunArtifacts.of(tmp_path / "run")
    translated = artifacts.translate(artifacts.test_pairs(["held_out"]), "auto", "auto", n_processes=1)["held_out"]
    text = Path(str(tagged.data.test["held_out"].src)).read_text("utf-8").splitlines()
    assert list(translated.sources or ()) == text
    sentences = report_of(tmp_path / "run")["sentences"]["held_out"]
    assert [one["source"] for one in sentences] == text


def test_a_baseline_of_another_text_is_refused_before_translating(
    run: tuple[RunConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, run_dir = run
    other = with_test(changed(config, max_steps=2), tgt=str(write_lines(tmp_path / "other.de", ["X"] * 20)))
    train_run(other, tmp_path / "other")
    capsys.readouterr()
    options = EvalOptions(["bleu"], baseline=tmp_path / "other")
    with pytest.raises(DataError) as caught:
        evaluate_model(run_dir, [], "auto", "auto", options)
    assert str(caught.value) == (
        f"{tmp_path / 'other'}: its test set held_out is not the same text as held_out of {run_dir}. Compare models on "
        "the same text, or choose a test set with --test."
    )
    assert capsys.readouterr().err == ""
    write_lines(tmp_path / "short", ["a"])
    with pytest.raises(DataError) as caught:
        evaluate_model(run_dir, [], "auto", "auto", EvalOptions(["bleu"], baseline=tmp_path / "short"))
    assert str(caught.value) == (
        f"{tmp_path / 'short'} has 1 lines and the test set held_out has 20. Give a baseline that "
        "translates the same text."
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
