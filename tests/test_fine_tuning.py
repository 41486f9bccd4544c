"""A training that starts from a model, a schedule that restarts, and starts that fail before the first update."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mt.checkpoint import ModelFolder, save_model_folder
from mt.config.loading import dump_config, load_config
from mt.config.settings import RunConfig, TokenizerConfig, TrainConfig
from mt.errors import CheckpointError, ConfigError
from mt.pipeline import prepare, train_run
from mt.run_folder import RunFolder, initial_model
from mt.tools import dry_run as dry_run_module
from mt.tools.doctor import examine
from mt.tools.dry_run import dry_run
from mt.training.engine import Engine, StepResult, Update
from mt.training.loop import train
from mt.training.optimizer import learning_rate
from tests.toys import measured, messages, toy_config, weights_of

TREE = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with text, and a run `general` with a checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("tuning")
    train_run(toy_config(folder, max_steps=2), folder / "general")
    return folder


@pytest.fixture
def tree(folder: Path) -> TREE:
    """Return a config as a user writes it, which starts from the run `general`, without the sizes of its model."""
    tree: TREE = yaml.safe_load(dump_config(toy_config(folder, max_steps=1, init_from=str(folder / "general"))))
    return {**tree, "model": {}, "tokenizer": {}}


def with_train(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


# --- settings that contradict the model


def test_all_contradictions_are_named_in_one_error_by_each_command(
    folder: Path, tree: TREE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run_module, "MEASURED_SECONDS", 0.0)
    changes = {
        "model.d_ff": 96,
        "tokenizer.kind": "unigram",
        "tokenizer.vocab_size": 16_000,
        "tokenizer.split_digits": False,
        "tokenizer.character_coverage": 0.99,
        "tokenizer.user_symbols": ["<x>"],
        "tokenizer.model": "other.model",
        "data.train.0.tag": "<bt>",
    }
    config, run_dir = load_config(tree, changes), tmp_path / "run"
    expected = (
        f"train.init_from: the model in {folder / 'general' / 'model'} needs model.d_ff: 64 (here 96), "
        "tokenizer.kind: bpe (here unigram), tokenizer.vocab_size: 380 (here 16000), "
        "tokenizer.split_digits: true (here false), tokenizer.character_coverage: 0.9999 (here 0.99), "
        "tokenizer.user_symbols: [] (here [<x>]), tokenizer.model: null (here other.model), "
        "data.train.0.tag: null (here <bt>); its tokenizer does not have <bt> and <x>. "
        "Remove them from the config: what it lacks is taken from that model, or set train.grow_vocab to add what its "
        "tokenizer lacks."
    )
    commands: list[Callable[[], object]] = [
        lambda: prepare(config),
        lambda: dry_run(config, run_dir),
        lambda: train_run(config, run_dir),
    ]
    for command in commands:
        with pytest.raises(ConfigError) as caught:
            command()
        assert str(caught.value) == expected
    diagnosis = examine(config, run_dir)
    assert [str(found) for found in diagnosis.findings if found.level == "error"] == [expected]
    assert [found.key for found in diagnosis.findings if found.check == "preparing"] == ["train.init_from"]
    assert not run_dir.exists()


def test_doctor_finds_the_contradictions_also_if_the_text_is_missing(tree: TREE, tmp_path: Path) -> None:
    tree["data"]["train"][0]["src"] = str(tmp_path / "nowhere")
    diagnosis = examine(load_config(tree, {"model.d_ff": 96}), tmp_path / "run")
    errors = {found.key: found.problem for found in diagnosis.findings if found.level == "error"}
    assert list(errors) == ["data.train.0", "train.init_from"]
    assert "needs model.d_ff: 64 (here 96)" in errors["train.init_from"]


def test_settings_that_agree_with_the_model_or_have_no_effect_pass(folder: Path, tree: TREE) -> None:
    same = {"model.d_ff": 64, "tokenizer.joint": True, "tokenizer.vocab_size": 380, "tokenizer.kind": "bpe"}
    config = load_config(tree, {**same, "tokenizer.sample_lines": 50, "model.dropout": 0.3, "data.max_tokens": 32})
    model = initial_model(config)
    assert model is not None
    assert config.model == replace(model.config.model, dropout=0.3)
    assert config.tokenizer == replace(model.config.tokenizer, sample_lines=50)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer.joint": False}, "tokenizer.joint: true (here false)"),
        (
            {"tokenizer.joint": False, "tokenizer.tgt_vocab_size": 400},
            "tokenizer.joint: true (here false), tokenizer.tgt_vocab_size: 380 (here 400)",
        ),
        # The width of the model, 32, is a multiple of 8 × 2 heads, but not of 8 × 8 heads.
        ({"model.d_model": 48}, "model.d_model: 32 (here 48)"),
        ({"model.n_heads": 8}, "model.d_model: 32 (here 512), model.n_heads: 2 (here 8), "),
    ],
)
def test_settings_that_would_be_invalid_with_those_of_the_model_are_contradictions(
    tree: TREE, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        initial_model(load_config(tree, changes))
    assert f" needs {expected}" in str(caught.value)


def test_if_the_tokenizer_of_the_model_was_given_only_its_number_of_pieces_matters(
    folder: Path, tree: TREE, tmp_path: Path
) -> None:
    general, given = ModelFolder.open(folder / "general" / "model"), tmp_path / "given"
    config = replace(general.config, tokenizer=TokenizerConfig(model="spm.model"))  # vocab_size has no effect
    save_model_folder(given, general.load_weights(), config, general.tokenizer_paths, {"vocab_size": 380})
    for size in (380, 32_000):
        start = {"train.init_from": str(given), "tokenizer.vocab_size": size, "tokenizer.kind": "unigram"}
        assert initial_model(load_config(tree, start)) is not None
    with pytest.raises(ConfigError, match=r"needs tokenizer\.vocab_size: 380 \(here 16000\)\. Remove it"):
        initial_model(load_config(tree, {**start, "tokenizer.vocab_size": 16_000}))


def test_a_fine_tuning_that_took_defaults_for_the_tokenizer_can_continue(tree: TREE, tmp_path: Path) -> None:
    """An earlier version did not take the settings of the tokenizer from the model, and stored the defaults."""
    config, run = load_config(tree), RunFolder(tmp_path / "run")
    train_run(config, run.path)
    earlier = replace(config, tokenizer=replace(config.tokenizer, vocab_size=32_000))
    run.config.write_text(dump_config(earlier), "utf-8")
    train_run(with_train(config, max_steps=2), run.path)
    assert run.n_updates == 2


# --- starts that fail before the first update


def test_a_refused_start_leaves_nothing_and_the_next_one_may_differ(folder: Path, tree: TREE, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for changes in ({"model.d_ff": 96}, {"train.init_from": str(tmp_path / "nowhere")}):
        with pytest.raises((ConfigError, CheckpointError)):
            train_run(load_config(tree, changes), run_dir)
        assert list(tmp_path.iterdir()) == []
    train_run(load_config(tree), run_dir)
    assert RunFolder(run_dir).n_updates == 1


@pytest.mark.parametrize("names", [[], ["notes.txt"]])
def test_a_refused_start_removes_nothing_that_was_there_before(tree: TREE, tmp_path: Path, names: list[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in names:
        (run_dir / name).write_text("mine")
    with pytest.raises(ConfigError):
        train_run(load_config(tree, {"model.d_ff": 96}), run_dir)
    assert [path.name for path in run_dir.iterdir()] == names


def test_after_a_start_without_memory_all_settings_may_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = toy_config(folder, max_steps=1), RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "begin", refuse_to_begin)
        with pytest.raises(ConfigError, match=r"too large\. Lower it\."):
            train_run(config, run.path)
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "run.json"}
    model = replace(config.model, d_ff=72)
    train_run(replace(with_train(config, peak_lr=1e-3, seed=2), model=model), run.path)
    assert ModelFolder.open(run.model).config.model.d_ff == 72


def refuse_to_begin(engine: Engine, micro_batch_tokens: int = 0) -> None:
    raise ConfigError("train.micro_batch_tokens", "is too large", "lower it")


# --- a schedule that restarts


def test_a_restarted_schedule_begins_with_its_warm_up_and_ends_at_max_steps() -> None:
    shares = {
        "linear": {101: 0.1, 110: 1.0, 160: 0.5, 210: 0.0},
        "cosine": {105: 0.5, 110: 1.0, 160: 0.5, 210: 0.0},
        "warmup_stable_decay": {110: 1.0, 188: 1.0, 199: 0.5, 210: 0.0},  # the last fifth of 110 updates
        "inverse_sqrt": {105: 0.5, 110: 1.0, 140: 0.5},
        "constant": {105: 0.5, 110: 1.0, 210: 1.0},
    }
    for schedule, by_step in shares.items():
        settings = TrainConfig(schedule=schedule, peak_lr=3.0, warmup_steps=10, max_steps=210)
        for step, share in by_step.items():
            assert learning_rate(step, settings, 512, start=100) == pytest.approx(3 * share), (schedule, step)


def rates(run_dir: Path) -> list[float]:
    return [rate for _, rate in measured(run_dir, "learning_rate")]


def test_a_restarted_schedule_continues_exactly_after_an_interruption(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = toy_config(folder, max_steps=4, log_every=1, checkpoint_every=2, validate_every=100)
    corpus, first = prepare(before), tmp_path / "first"
    train(before, corpus, first)
    after = with_train(before, schedule="linear", peak_lr=0.01, warmup_steps=2, max_steps=10, restart_schedule=True)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    with messages() as said:
        train(after, corpus, first)
    assert "training from step 4, where the learning rate schedule restarts: " in said[0]
    new = [0.005, 0.01, 0.0075, 0.005, 0.0025, 0.0]
    assert rates(first) == pytest.approx([learning_rate(step, before.train, 32) for step in range(1, 5)] + new)

    engine_step = Engine.step
    for stops_at in (5, 8, 9):  # before the first checkpoint of the new schedule, and twice after it

        def step(engine: Engine, update: Update, lr: float, stops_at: int = stops_at) -> StepResult:
            if update.step == stops_at:
                raise RuntimeError("interrupted")
            return engine_step(engine, update, lr)

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", step)
            with pytest.raises(RuntimeError, match="interrupted"):
                train(after, corpus, second)
    train(with_train(after, restart_schedule=False), corpus, second)  # it was restarted already
    assert rates(second) == rates(first)
    for name, tensor in weights_of(first, 10).items():
        assert torch.equal(weights_of(second, 10)[name], tensor), name


def test_the_schedule_of_a_run_changes_only_with_restart_schedule(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "general", run.path)
    config = toy_config(folder, max_steps=3)
    changed = with_train(config, peak_lr=1e-3, warmup_steps=5)
    with pytest.raises(ConfigError) as caught:
        train_run(changed, run.path)
    assert str(caught.value) == (
        f"{run.path}: this run was started with other settings (train.peak_lr was null and is now 0.001; "
        "train.warmup_steps was 10 and is now 5). Change them back, or start a new run with another --run-dir. To "
        "restart the schedule with another train.peak_lr and train.warmup_steps, set train.restart_schedule to true."
    )
    with pytest.raises(ConfigError) as caught:
        train_run(with_train(replace(changed, model=replace(config.model, d_ff=72)), restart_schedule=True), run.path)
    assert str(caught.value) == (
        f"{run.path}: this run was started with other settings (model.d_ff was 64 and is now 72). Change it back, or "
        "start a new run with another --run-dir."
    )
    train_run(with_train(changed, restart_schedule=True), run.path)
    checkpoint = ModelFolder.open(run.checkpoint(3))
    assert (checkpoint.manifest["schedule_start"], checkpoint.config.train.peak_lr) == (2, 1e-3)
    train_run(with_train(changed, max_steps=4), run.path)  # a later start need not repeat it
    assert ModelFolder.open(run.checkpoint(4)).manifest["schedule_start"] == 2
    with pytest.raises(ConfigError, match=r"train\.peak_lr was 0\.001 and is now null"):
        train_run(with_train(config, max_steps=4), run.path)


def test_a_restart_that_makes_no_update_can_be_taken_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "general", run.path)
    config = toy_config(folder, max_steps=3)
    restarted = with_train(config, peak_lr=1e-3, restart_schedule=True)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "begin", refuse_to_begin)
        with pytest.raises(ConfigError, match="too large"):
            train_run(restarted, run.path)
    with pytest.raises(ConfigError, match=r"set train\.restart_schedule to true"):
        train_run(with_train(restarted, restart_schedule=False), run.path)
    train_run(config, run.path)
    assert ModelFolder.open(run.checkpoint(3)).manifest["schedule_start"] == 0


def test_a_dry_run_shows_the_restarted_schedule(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run_module, "MEASURED_SECONDS", 0.0)
    config = toy_config(folder, max_steps=12, peak_lr=0.01, warmup_steps=4, schedule="linear", restart_schedule=True)
    lines = dry_run(config, folder / "general").splitlines()
    assert "          restarted after step 2" in lines
    assert "          linear: learning rate 0.01 at step 6, 0 at the end (step 12)" in lines
    (labels,) = (line for line in lines if "↑" in line)
    assert labels.split() == ["3", "↑", "6", "step", "12"]


# --- more updates than max_steps


def test_each_command_says_that_a_run_has_more_updates_than_max_steps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run_module, "MEASURED_SECONDS", 0.0)
    run_dir = tmp_path / "run"
    shutil.copytree(folder / "general", run_dir)
    warning = (
        "training is already complete: 2 steps, more than train.max_steps (1). Raise train.max_steps to train further."
    )
    config = toy_config(folder, max_steps=1)
    assert f"warning: {warning}" in dry_run(config, run_dir).splitlines()
    found = [one for one in examine(config, run_dir).findings if one.key == "train.max_steps"]
    assert [(one.level, str(one)) for one in found if one.check == "complete"] == [("warning", warning)]
    with messages() as said:
        train_run(config, run_dir)
    assert warning in said

    enough = toy_config(folder, max_steps=2)
    assert "already complete" not in dry_run(enough, run_dir)
    assert not [one for one in examine(enough, run_dir).findings if one.check == "complete"]
