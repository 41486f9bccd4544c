"""The limit on what a fine-tuned model may lose on the validation text of the run that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mt.checkpoint import ModelFolder
from mt.config.loading import load_config
from mt.config.settings import RunConfig
from mt.errors import ConfigError
from mt.evaluation.report_files import read_evaluation
from mt.pipeline import prepare, train_run
from mt.run_folder import RunFolder
from mt.training import loop, validation
from tests.toys import measured, toy_config


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on toy text that has learned it in part."""
    folder = tmp_path_factory.mktemp("old")
    settings = {"max_steps": 300, "validate_every": 300, "checkpoint_every": 300, "peak_lr": 0.01}
    train_run(toy_config(folder / "text", average_last=0, **settings), folder / "run")
    return folder / "run"


def tuned(folder: Path, run: Path, limit: float = 1.0, **train: Any) -> RunConfig:
    """Return the config of a run that starts from another one and learns to reverse the words."""
    config = toy_config(folder, n_train=100, reverse=True, validate_every=2, **train)
    return load_config(config, {"train.init_from": str(run), "train.max_loss_on_old": limit})


def scored(monkeypatch: pytest.MonkeyPatch, initial: float, later: Sequence[float], new: Sequence[float]) -> list[str]:
    """Let the models have these scores on the old sets and on the new one; return the list of what was scored."""
    of_later, of_new, calls = iter(later), iter(new), list[str]()

    def of_initial_model(*_: object) -> float:
        calls.append("initial")
        return initial

    def of_model(*_: object) -> float:
        calls.append("later")
        return next(of_later)

    one_set = validation._on_one_set
    monkeypatch.setattr(loop, "mean_bleu", of_initial_model)
    monkeypatch.setattr(validation, "mean_bleu", of_model)
    monkeypatch.setattr(validation, "_on_one_set", lambda *given: replace(one_set(*given), bleu=next(of_new)))
    return calls


def test_the_initial_model_and_each_validated_one_are_scored_on_the_old_validation_text(old: Path, tmp_path: Path):
    progress = loop.train(config := tuned(tmp_path, old, max_steps=4, peak_lr=1e-9), prepare(config), tmp_path / "run")
    (_, bleu), *_ = measured(old, "valid_bleu")
    assert bleu > 5
    assert progress.old_bleu == bleu
    assert measured(tmp_path / "run", "valid_loss_on_old") == [(2, 0.0), (4, 0.0)]  # nearly nothing was learned


def test_the_model_is_the_best_checkpoint_within_the_limit_also_after_an_interruption(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = scored(monkeypatch, 30.0, [29.9, 29.0, 28.9, 29.5], [1.0, 5.0, 9.0, 3.0])
    config, run = tuned(tmp_path, old, max_steps=8), RunFolder(tmp_path / "run")
    train_run(replace(config, train=replace(config.train, max_steps=4)), run.path)
    train_run(config, run.path)
    assert calls == ["initial", *["later"] * 4]
    assert ModelFolder.open(run.model).manifest["averaged_steps"] == [4]
    assert run.best_checkpoints(9) == [run.checkpoint(4), run.checkpoint(8)]
    report = read_evaluation(run.path)
    assert report is not None
    assert report.best == {"step": 4, "bleu": 5.0}
    assert report.notes == []


def test_if_no_checkpoint_is_within_the_limit_the_report_says_so(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scored(monkeypatch, 30.0, [28.0, 27.0], [1.0, 5.0])
    config, run = tuned(tmp_path, old, 0.5, max_steps=4), RunFolder(tmp_path / "run")
    train_run(config, run.path)
    assert ModelFolder.open(run.model).manifest["averaged_steps"] == [4]
    report = read_evaluation(run.path)
    assert report is not None
    assert report.best is None
    assert report.notes == [
        f"each checkpoint lost more than 0.5 BLEU on the validation text of {old} (train.max_loss_on_old), so this "
        "model is the last one: lower train.peak_lr, validate more often, or add {run: DIR} to data.train"
    ]


def test_a_limit_without_old_validation_text_is_refused_before_training(old: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"train\.max_loss_on_old is 1\.0, but training does not start from a model"):
        load_config(toy_config(tmp_path), {"train.max_loss_on_old": 1.0})
    config = tuned(tmp_path, old)
    with pytest.raises(ConfigError, match=r"needs validation text of .* in a direction of this run; it has only en"):
        prepare(load_config(config, {"tgt_lang": "fr"}))
    (prepared,) = [path.parent for path in (old.parent / "text/prepared").glob("*/manifest.json")]
    aside = prepared.rename(tmp_path / "aside")
    with pytest.raises(ConfigError, match=r"needs the validation text of .*, but its prepared corpus is gone"):
        prepare(config)
    aside.rename(prepared)
