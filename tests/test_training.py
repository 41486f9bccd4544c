from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml

from mt import api
from mt.api import TrainedRun
from mt.checkpoint import ModelFolder, average_weights
from mt.config.loading import dump_config
from mt.config.settings import RunConfig, TextFiles, TrainConfig
from mt.data.packing import PlanState
from mt.errors import DataError, MTError, TrainingError
from mt.evaluation.command import evaluate_model
from mt.evaluation.findings import EvalOptions
from mt.pipeline import average_run, format_report, train_run
from mt.report.facts import Evaluation, MetricScore, ScoredSet
from mt.run_folder import RunFolder
from mt.system import signals
from mt.system.signals import caught_signals
from mt.text.corpus import PreparedCorpus
from mt.text.prepare import corpus_fingerprint, prepare_corpus
from mt.training.engine import Engine, StepResult, Update
from mt.training.loop import Trainer, train
from mt.training.optimizer import MovingAverage, Optimizer, learning_rate
from mt.training.progress import Progress
from mt.training.tracker import Tracker
from mt.training.validation import ValidationResult, validation_loss
from tests.clock import Clock
from tests.toys import RICH, measured, parallel, small_model, toy_config, weights_of


def with_train(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


@pytest.mark.parametrize(("precision", "variant"), [("fp32", {}), ("bf16", {}), ("bf16", RICH)])
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(
    tmp_path: Path, precision: str, variant: dict[str, Any]
) -> None:
    config = with_train(toy_config(tmp_path, precision=precision, batch_tokens=200), micro_batch_tokens=100)
    config = replace(config, model=replace(config.model, **variant))
    config = with_train(config, activation_checkpointing=bool(variant), ema_decay=0.9 if variant else None)
    corpus = prepare_corpus(config)
    train(config, corpus, tmp_path / "whole")
    train(with_train(config, max_steps=8), corpus, tmp_path / "parts")
    # As after a kill, only the checkpoint of step 4 remains.
    shutil.rmtree(RunFolder(tmp_path / "parts").checkpoint(8))
    shutil.rmtree(RunFolder(tmp_path / "parts").checkpoint(6), ignore_errors=True)
    assert RunFolder(tmp_path / "parts").checkpoints() == [RunFolder(tmp_path / "parts").checkpoint(4)]
    train(config, corpus, tmp_path / "parts")
    whole, parts = weights_of(tmp_path / "whole", 12), weights_of(tmp_path / "parts", 12)
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    assert measured(tmp_path / "whole", "train_loss") == measured(tmp_path / "parts", "train_loss")
    assert [step for step, _ in measured(tmp_path / "whole", "train_loss")] == [2, 4, 6, 8, 10, 12]


def test_a_damaged_last_checkpoint_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy_config(tmp_path)
    corpus = prepare_corpus(config)
    train(with_train(config, max_steps=8), corpus, tmp_path / "run")
    (RunFolder(tmp_path / "run").checkpoint(8) / "model.safetensors").write_bytes(b"torn")
    damaged = RunFolder(tmp_path / "run").checkpoint(8)
    last_good = RunFolder(tmp_path / "run").checkpoints()[-2]
    trainer = Trainer(config, corpus, RunFolder(tmp_path / "run"))
    assert trainer.progress.step == int(last_good.name[5:])
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith(f"warning: {damaged / 'model.safetensors'} is damaged (")
    moved = f"The checkpoint was moved to {damaged}.damaged; training continues from an earlier one"
    assert warning.endswith(f"). {moved}")
    # It must not count as the newest any more.
    assert RunFolder(tmp_path / "run").checkpoints()[-1] == last_good


def test_if_no_checkpoint_can_be_read_training_does_not_start_over(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=4)
    corpus = prepare_corpus(config)
    train(config, corpus, tmp_path / "run")
    (folder,) = RunFolder(tmp_path / "run").checkpoints()
    (folder / "manifest.json").unlink()
    with pytest.raises(MTError) as caught:
        train(config, corpus, tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'} has no readable checkpoint to continue from. The latest: {folder} is not a complete model "
        "folder: manifest.json is missing. Restore it, or start over with another --run-dir."
    )
    assert RunFolder(tmp_path / "run").checkpoints() == [folder]


def interrupt_at_step_6(
    config: RunConfig, corpus: PreparedCorpus, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_update = Trainer.record_update

    def record_and_interrupt(trainer: Trainer, update: Update, outcome: StepResult) -> None:
        record_update(trainer, update, outcome)
        if update.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "record_update", record_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, run_dir)


def test_a_validation_that_a_signal_prevented_runs_after_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=12, validate_every=6)
    corpus = prepare_corpus(config)
    interrupt_at_step_6(config, corpus, tmp_path / "run", monkeypatch)
    assert measured(tmp_path / "run", "valid_loss") == []
    train(config, corpus, tmp_path / "run")
    assert [step for step, _ in measured(tmp_path / "run", "valid_loss")] == [6, 12]


def test_a_signal_during_the_last_save_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, max_steps=4)
    corpus = prepare_corpus(config)
    save = Trainer.save_checkpoint

    def save_and_terminate(trainer: Trainer) -> None:
        save(trainer)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_and_terminate)
    with pytest.raises(SystemExit) as caught:
        train(config, corpus, tmp_path / "run")
    assert caught.value.code == 143


def test_signals_in_quick_succession_count_as_one_and_a_later_one_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(signals, "time", clock)
    before = signal.getsignal(signal.SIGTERM)
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with caught_signals() as received:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert (received.number, told) == (signal.SIGTERM, [])
            clock.now += signals.REPEAT_SECONDS
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == []
            clock.now += 0.25
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_an_error_in_an_interruptible_block_signals_are_only_noted() -> None:
    with caught_signals() as received:
        with pytest.raises(ZeroDivisionError), received.interrupting():
            _ = 1 / 0
        os.kill(os.getpid(), signal.SIGTERM)  # noted, but not raised
        assert received.number == signal.SIGTERM


def test_a_closed_pipe_for_messages_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        tracker = Tracker(RunFolder(tmp_path), Progress(), 10, updates_per_epoch=40)
        tracker.say("nobody is there")
        tracker.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # discard the rest of the buffer


def test_a_signal_during_a_validation_interrupts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, max_steps=12, validate_every=6)
    corpus = prepare_corpus(config)
    ended = []

    def endless(*_: object) -> None:
        ends_at = time.monotonic() + 60
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while time.monotonic() < ends_at:
            torch.ones(100).sum()
        ended.append("a validation")

    monkeypatch.setattr("mt.training.loop.validate", endless)
    with pytest.raises(SystemExit) as caught:
        train(config, corpus, tmp_path / "run")
    assert caught.value.code == 143
    assert ended == []
    assert RunFolder(tmp_path / "run").checkpoints()[-1] == RunFolder(tmp_path / "run").checkpoint(6)
    monkeypatch.undo()
    train(config, corpus, tmp_path / "run")
    assert [step for step, _ in measured(tmp_path / "run", "valid_loss")] == [6, 12]


def test_micro_batches_change_the_update_only_by_rounding(tmp_path: Path) -> None:
    results = []
    for micro_batch_tokens in (256, 64):
        config = with_train(
            toy_config(tmp_path), micro_batch_tokens=micro_batch_tokens, max_steps=5, label_smoothing=0.1
        )
        config = replace(config, model=replace(config.model, dropout=0.0))
        corpus = prepare_corpus(config)
        engine = Engine(config, corpus.train, corpus.manifest["tokenizer"]["vocab_size"])
        engine.begin()
        values, n_micro_batches = [], 0
        for update in engine.updates(PlanState(), 1, 5):
            outcome = engine.step(update, 1e-3)
            values += [outcome.losses.sum().item() / update.n_tgt_tokens, outcome.grad_norm.item()]
            n_micro_batches = len(update.micro_batches)
        results.append((values, n_micro_batches))
    assert [n for _, n in results] == [1, 4]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)


def gradient_step(scale: float, clip_norm: float | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = small_model()
    optimizer = Optimizer(model, TrainConfig(clip_norm=clip_norm), torch.float32)
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * scale
    norm = optimizer.step(1e-3)
    return norm, {name: p.detach() for name, p in model.named_parameters()}


def test_an_update_equals_adam_and_gradient_clipping_of_torch() -> None:
    norm, parameters = gradient_step(0.5, clip_norm=1.0)
    model = small_model()
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 0.5
    expected_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9).step()
    torch.testing.assert_close(norm, expected_norm)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameters[name], parameter.detach(), atol=1e-6, rtol=1e-5, msg=name)


def test_non_finite_gradients_do_not_change_the_weights() -> None:
    norm, parameters = gradient_step(float("inf"), clip_norm=1.0)
    assert not torch.isfinite(norm)
    for name, parameter in small_model().named_parameters():
        assert torch.equal(parameters[name], parameter), name


def test_fp16_halves_the_loss_scale_at_an_overflow_and_reports_the_unscaled_norm() -> None:
    model = small_model()
    optimizer = Optimizer(model, TrainConfig(), torch.float16)
    assert optimizer.loss_scale.item() == 32_768

    def step(scale: float) -> float:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) * scale * optimizer.loss_scale
        return optimizer.step(1e-3).item()

    n = sum(p.numel() for p in model.parameters())
    assert step(0.5) == pytest.approx(0.5 * n**0.5, rel=1e-4)
    step(float("nan"))
    assert optimizer.loss_scale.item() == 16_384
    state = optimizer.state_dict()
    again = Optimizer(model, TrainConfig(), torch.float16)
    again.load_state_dict(state)
    assert again.loss_scale.item() == 16_384
    # A run that started without a scale and continues in fp16 starts with the usual scale.
    unscaled = Optimizer(model, TrainConfig(), torch.bfloat16).state_dict()
    fresh = Optimizer(model, TrainConfig(), torch.float16)
    fresh.load_state_dict(unscaled)
    assert fresh.loss_scale.item() == 32_768


def test_the_learning_rate_follows_the_formula_of_the_paper() -> None:
    settings = TrainConfig(warmup_steps=4_000)
    for step in (1, 100, 4_000, 10_000, 100_000):
        paper = 512**-0.5 * min(step**-0.5, step * 4_000**-1.5)
        assert learning_rate(step, settings, 512) == pytest.approx(paper)
    peaked = TrainConfig(warmup_steps=400, peak_lr=2e-3)
    assert learning_rate(200, peaked, 256) == pytest.approx(1e-3)
    assert learning_rate(400, peaked, 256) == pytest.approx(2e-3)
    assert learning_rate(1_600, peaked, 256) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
        ("linear", {5: 0.5, 10: 1.0, 60: 0.55, 110: 0.1, 200: 0.1}),
        ("cosine", {5: 0.5, 10: 1.0, 35: 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 60: 0.55, 110: 0.1}),
        ("warmup_stable_decay", {5: 0.5, 10: 1.0, 88: 1.0, 99: 0.55, 110: 0.1}),
    ],
)
def test_other_schedules_have_the_expected_values(schedule: Any, shares: dict[int, float]) -> None:
    settings = TrainConfig(
        schedule=schedule,
        peak_lr=2.0,
        warmup_steps=10,
        max_steps=110,
        final_lr_share=0.1,
        decay_share=0.2,
    )
    for step, share in shares.items():
        assert learning_rate(step, settings, 512) == pytest.approx(2.0 * share), step


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_weight_decay_equals_that_of_adamw_and_applies_only_to_the_matrices_of_layers(optimizer_name: Any) -> None:
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, TrainConfig(optimizer=optimizer_name, weight_decay=0.1), torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5)
    for name, parameter in model.named_parameters():
        kept = 1 - 0.5 * 0.1 if parameter.ndim >= 2 and "embedding" not in name else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, msg=name)
    with pytest.raises(MTError) as caught:
        TrainConfig(weight_decay=0.1)
    problem = "train.weight_decay is 0.1, but adam has no weight decay"
    assert str(caught.value) == f"{problem}. Set train.optimizer to adamw or muon."


def test_patience_ends_a_training_that_does_not_improve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # At this learning rate the model learns nothing, so no validation is better than the first.
    settings: dict[str, Any] = {"validate_every": 3, "patience": 2, "peak_lr": 1e-30, "warmup_steps": 3}
    config = toy_config(tmp_path, max_steps=50, best_by="loss", **settings)
    corpus = prepare_corpus(config)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.best_step) == (9, 3)
    assert "stopped early: the last 2 validations did not improve on the score of step 3" in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").checkpoints()[-1] == RunFolder(tmp_path / "run").checkpoint(9)
    assert train(config, corpus, tmp_path / "run").step == 9
    assert train(with_train(config, patience=3), corpus, tmp_path / "run").step == 12


def test_patience_ends_a_training_whose_validation_loss_is_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ValidationResult(float("nan"), 0.0, 0.0, {}, [])
    monkeypatch.setattr("mt.training.loop.validate", lambda *_: nothing)
    config = toy_config(tmp_path, max_steps=50, validate_every=3, patience=2, best_by="loss", warmup_steps=1)
    assert train(config, prepare_corpus(config), tmp_path / "run").step == 6
    assert "\nstopped early: the last 2 validations gave no finite score\n" in capsys.readouterr().err


Scores = Callable[[int], tuple[float, float]]


def trained_with(scores: Scores, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Progress:
    """Train at most 20 updates and validate after each other one; `scores` gives BLEU and chrF2 of each validation."""
    numbers = itertools.count(1)
    monkeypatch.setattr("mt.training.loop.validate", lambda *_: ValidationResult(1.0, *scores(next(numbers)), {}, []))
    defaults = {"max_steps": 20, "validate_every": 2, "warmup_steps": 1, "patience": 2}
    config = toy_config(folder, **(defaults | settings))
    return train(config, prepare_corpus(config), folder / "run")


def test_patience_counts_no_validation_of_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = trained_with(lambda number: (10.0 - number, 50.0), tmp_path, monkeypatch, warmup_steps=8)
    assert (progress.step, progress.best_step) == (12, 2)  # 10 and 12 are the two after the warm-up


def test_a_bleu_that_is_still_zero_ends_no_training_and_chrf_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chrf = [0.0, 9.0, 8.0, 7.0, 30.0, 29.0, 28.0, 27.0, 26.0, 25.0, 24.0]
    progress = trained_with(lambda number: (0.004, chrf[number]), tmp_path, monkeypatch)
    assert (progress.step, progress.best_step, progress.best_score) == (20, 8, 0.0)
    assert RunFolder(tmp_path / "run").best_checkpoint() == RunFolder(tmp_path / "run").checkpoint(8)


def test_patience_counts_from_the_first_bleu_above_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = trained_with(lambda number: (0.5 if number == 5 else 0.0, 50.0), tmp_path, monkeypatch)
    assert (progress.step, progress.best_step) == (14, 10)


def test_the_best_checkpoint_may_be_chosen_by_chrf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chrf = [0.0, 9.0, 30.0, 29.0, 28.0]
    progress = trained_with(lambda number: (float(number), chrf[number]), tmp_path, monkeypatch, best_by="chrf")
    assert (progress.step, progress.best_step, progress.best_score) == (8, 4, 30.0)
    written = json.loads(RunFolder(tmp_path / "run").scores.read_text("utf-8"))
    assert (written["by"], written["higher_is_better"]) == ("chrf", True)
    assert written["ranking"][0] == {"step": 4, "score": 30.0, "chrf": 30.0}


def test_a_report_has_the_exact_loss_of_the_best_checkpoint(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=4, validate_every=4, best_by="loss")
    train_run(config, tmp_path / "run")
    ((_, loss),) = measured(tmp_path / "run", "valid_loss")
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["best"] == {"step": 4, "loss": loss}
    assert loss > 0


def test_the_validation_loss_of_a_uniform_guess_is_log_vocab(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    trainer = Trainer(config, prepare_corpus(config), RunFolder(tmp_path / "run"))
    with torch.no_grad():
        trainer.engine.model.embedding.weight.zero_()
    loss, by_length = validation_loss(trainer.engine.inference_model(), trainer.corpus.valid)
    log_vocab = pytest.approx(torch.tensor(380.0).log().item(), rel=1e-5)
    assert loss == log_vocab
    assert by_length == {"1-10": log_vocab}  # the toy's sentences have 3 to 7 words


def test_the_validation_loss_is_reported_by_length() -> None:
    pairs = [([5] * 3, [6] * n) for n in (80, 3, 10, 9, 200, 19, 79)]
    model = small_model().eval()
    loss, by_length = validation_loss(model, parallel(pairs))
    alone = {n: validation_loss(model, parallel([pair]))[0] for n, pair in enumerate(pairs)}

    def mean(*numbers: int) -> object:
        n_tokens = [len(pairs[n][1]) + 1 for n in numbers]
        return pytest.approx(sum(alone[n] * m for n, m in zip(numbers, n_tokens, strict=True)) / sum(n_tokens))

    # 81, 4, 11, 10, 201, 20 and 80 tokens with EOS.
    assert by_length == {"1-10": mean(1, 3), "11-20": mean(2, 5), "41-80": mean(6), "81-": mean(0, 4)}
    assert loss == mean(*range(7))


def test_stop_after_saves_and_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr("mt.training.loop.time", clock)
    clock.slow(monkeypatch, Engine, "step", 0.25)
    config = toy_config(tmp_path, max_steps=100_000, stop_after="2s", validate_every=100_000)
    corpus = prepare_corpus(config)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.train_seconds) == (8, 2)
    assert RunFolder(tmp_path / "run").checkpoints()[-1] == RunFolder(tmp_path / "run").checkpoint(8)
    with caplog.at_level("INFO"):
        assert train(config, corpus, tmp_path / "run").step == 8
    note = "8 steps of 100,000, because of train.stop_after (2s): raise it to continue"
    assert f"training is already complete: {note}" in caplog.messages


def test_the_logged_speed_does_not_count_validations_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("mt.training.progress.time", clock)
    clock.slow(monkeypatch, Engine, "step", 0.25)
    clock.slow(monkeypatch, Trainer, "validate", 64)
    clock.slow(monkeypatch, Trainer, "save_checkpoint", 32)
    # At its peak, the device takes one second for 4,096 target tokens.
    monkeypatch.setattr(Engine, "peak_seconds", lambda engine, n_src_tokens, n_tgt_tokens: n_tgt_tokens / 4_096)
    config = toy_config(tmp_path, max_steps=4, log_every=2, checkpoint_every=1, validate_every=3)
    train(config, prepare_corpus(config), tmp_path / "run")
    entries = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines())
    first, second = (entry for entry in entries if "train_loss" in entry)
    n_first, n_second = first["n_tgt_tokens"], second["n_tgt_tokens"] - first["n_tgt_tokens"]
    for entry, n_tgt_tokens in ((first, n_first), (second, n_second)):
        assert entry["tgt_tokens_per_second"] == 2 * n_tgt_tokens  # two updates take half a second
        assert entry["mfu"] == 2 * n_tgt_tokens / 4_096


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_reports_it_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, status: type[BaseException]
) -> None:
    config = toy_config(tmp_path, max_steps=100_000, validate_every=100_000, checkpoint_every=100_000)
    corpus = prepare_corpus(config)

    def send_when_training() -> None:
        path = tmp_path / "run" / "metrics.jsonl"
        while not path.exists() or path.stat().st_size == 0:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send_when_training)
    thread.start()
    with pytest.raises(status) as caught:
        train(config, corpus, tmp_path / "run")
    thread.join()
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 143
    (folder,) = RunFolder(tmp_path / "run").checkpoints()
    step = int(folder.name[5:])
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped after step {step:,}; everything is saved in {tmp_path / 'run'}. Run the same command again to "
        "continue"
    )
    assert Trainer(config, corpus, RunFolder(tmp_path / "run")).progress.step == step


def test_a_run_writes_the_documented_files_and_a_second_start_does_nothing(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    run_dir = tmp_path / "run"
    train_run(config, run_dir)
    first = str(TrainedRun(run_dir))
    names = sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
    folders = ["checkpoints", "model", "tensorboard", "translations"]
    records = ["config.yaml", "metrics.jsonl", "run.json", "samples.jsonl"]
    assert names == sorted([*folders, *records, "report.html", "report.json", "report.md"])
    assert list((run_dir / "tensorboard").iterdir())
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert report["steps"] == 12
    assert report["basis"]["averaged_steps"] == [4, 8, 12]
    assert report["test_sets"]["held_out"]["n_lines"] == 20
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    reached, validated = {"step", "n_tgt_tokens", "train_seconds"}, {"valid_loss", "valid_bleu", "valid_chrf"}
    trained = {"train_loss", "learning_rate", "grad_norm", "tgt_tokens_per_second", "mfu"}
    keys = {key for entry in logged for key in entry}
    assert keys == {*reached, *trained, *validated, "valid_loss_by_length"}
    assert [step for step, _ in measured(run_dir, "valid_bleu")] == [6, 12]
    written = (run_dir / "model" / "model.safetensors").stat().st_mtime_ns
    train_run(config, run_dir)
    assert str(TrainedRun(run_dir)) == first
    assert (run_dir / "model" / "model.safetensors").stat().st_mtime_ns == written

    evaluated = evaluate_model(run_dir, [], "auto", "auto", EvalOptions())
    assert evaluated.written() == {"system": str(run_dir)} | {key: report[key] for key in ("test_sets", "warnings")}
    with pytest.raises(MTError) as caught:
        evaluate_model(run_dir, ["newstest"], "auto", "auto", EvalOptions())
    assert str(caught.value) == f"test: {run_dir} has no test set newstest. It has held_out."

    assert average_run(run_dir, 2) == run_dir / "averages" / "last-2"
    assert ModelFolder.open(run_dir / "averages" / "last-2").manifest["averaged_steps"] == [8, 12]
    assert ModelFolder.open(run_dir / "model").manifest["averaged_steps"] == [4, 8, 12]
    with pytest.raises(MTError) as caught:
        average_run(run_dir, 9)
    assert str(caught.value) == f"{run_dir} has 3 checkpoints to average. Give --last 1 to 3, not 9."


def test_fine_tuning_starts_from_the_weights_and_the_tokenizer_of_a_model(tmp_path: Path) -> None:
    general = toy_config(tmp_path / "general", max_steps=60, peak_lr=5e-3)
    train_run(general, tmp_path / "first")
    start = tmp_path / "first" / "model"
    # Other text, from which a new tokenizer would differ. At this learning rate the weights do not change.
    special = toy_config(tmp_path / "special", n_train=300, max_steps=1, peak_lr=1e-30, average_last=1)
    for side in ("en", "de"):
        path = tmp_path / "special" / f"train.{side}"
        path.write_text(path.read_text("utf-8").replace("ba", "zu"), "utf-8")
    special = with_train(special, init_from=str(tmp_path / "first"))
    train_run(special, tmp_path / "second")
    tuned = tmp_path / "second" / "model"
    assert (tuned / "tokenizer.model").read_bytes() == (start / "tokenizer.model").read_bytes()
    before, after = ModelFolder.open(start).load_weights(), ModelFolder.open(tuned).load_weights()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, msg=name)
    # A run that has started no longer needs the first run.
    shutil.rmtree(tmp_path / "first")
    train_run(with_train(special, max_steps=2), tmp_path / "second")
    assert RunFolder(tmp_path / "second").checkpoints()[-1] == RunFolder(tmp_path / "second").checkpoint(2)
    # Neither does it need the text, nor a config that gives the shape of the model.
    config = tmp_path / "special" / "config.yaml"
    tree = yaml.safe_load(dump_config(with_train(special, max_steps=3)))
    del tree["model"]
    config.write_text(yaml.safe_dump(tree), "utf-8")
    (tmp_path / "special" / "train.en").unlink()
    api.train(config, run_dir=tmp_path / "second")
    assert RunFolder(tmp_path / "second").checkpoints()[-1] == RunFolder(tmp_path / "second").checkpoint(3)


def test_fine_tuning_needs_a_model_of_the_same_shape(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=2)
    train_run(config, tmp_path / "first")
    other = replace(config, model=replace(config.model, d_ff=96, activation="gelu", dropout=0.3, init="scaled"))
    with pytest.raises(MTError) as caught:
        train_run(with_train(other, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert str(caught.value) == (
        f"train.init_from: the model in {tmp_path / 'first' / 'model'} needs model.d_ff: 64 (here 96), "
        "model.activation: relu (here gelu). Remove them from the config: what it lacks is taken from that model."
    )
    # Nothing was trained, so the same command with the right shape starts the run.
    assert not (tmp_path / "second" / "run.json").exists()
    with pytest.raises(MTError) as caught:
        train_run(with_train(config, init_from=str(tmp_path / "nowhere")), tmp_path / "third")
    assert str(caught.value) == (
        f"{tmp_path / 'nowhere'}: no such folder. Give a run folder, a checkpoint or a model folder."
    )


def test_a_model_folder_works_without_its_run_and_text(tmp_path: Path) -> None:
    from mt import Translator

    config = toy_config(tmp_path / "text", max_steps=2)
    train_run(config, tmp_path / "run")
    shutil.move(tmp_path / "run" / "model", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "text")
    shutil.rmtree(tmp_path / "run")
    translator = Translator.load(tmp_path / "elsewhere")
    assert len(translator.translate(["bar dest", ""])) == 2
    # The length of training's lines is there too, so that longer ones can be split.
    assert translator.usual_lines is not None
    assert (translator.usual_lines.sentences, translator.split_sentences) == (1, "auto")


def test_a_changed_setting_is_refused_unless_it_is_changeable(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=2)
    run_dir = tmp_path / "run"
    train_run(config, run_dir)
    with pytest.raises(MTError) as caught:
        train_run(replace(config, model=replace(config.model, d_ff=72)), run_dir)
    assert str(caught.value) == (
        f"{run_dir}: this run was started with other settings (model.d_ff was 64 and is now 72). Change it back, or "
        "start a new run with another --run-dir."
    )
    with pytest.raises(MTError) as caught:  # all differences are reported at once
        train_run(replace(config, model=replace(config.model, d_ff=72, positions="rotary")), run_dir)
    assert str(caught.value) == (
        f"{run_dir}: this run was started with other settings (model.d_ff was 64 and is now 72; model.positions was "
        "sinusoidal and is now rotary). Change them back, or start a new run with another --run-dir."
    )
    train_run(with_train(config, max_steps=3, validate_every=2), run_dir)
    assert RunFolder(run_dir).checkpoints()[-1] == RunFolder(run_dir).checkpoint(3)


def test_a_started_run_finds_its_text_under_other_paths(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=2)
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    train_run(config, run_dir)
    moved.mkdir()
    corpus = config.data.train[0]
    assert isinstance(corpus, TextFiles)
    for side, name in ((corpus.src, "a-1.src"), (corpus.tgt, "a-1.tgt")):
        shutil.copyfile(str(side), moved / name)
    patterns = TextFiles(src=str(moved / "a-*.src"), tgt=str(moved / "a-*.tgt"))
    elsewhere = with_data_of(config, patterns)
    train_run(with_train(elsewhere, max_steps=3), run_dir)
    assert RunFolder(run_dir).checkpoints()[-1] == RunFolder(run_dir).checkpoint(3)
    for name in ("a-2.src", "a-2.tgt"):
        (moved / name).write_text("new\n")
    other = with_data_of(elsewhere, TextFiles(src=str(moved / "a-2.src"), tgt=str(moved / "a-2.tgt")))
    with pytest.raises(MTError) as caught:  # the paths differ, and so does the text
        train_run(other, run_dir)
    assert "this run was started with other settings (data.train.0.src was " in str(caught.value)


def with_data_of(config: RunConfig, corpus: TextFiles) -> RunConfig:
    return replace(config, data=replace(config.data, train=(corpus,)))


def test_a_run_without_a_checkpoint_may_change_all_settings_and_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=2)
    with monkeypatch.context() as context:
        context.setattr("mt.pipeline.train", Mock(side_effect=TrainingError("no memory")))
        with pytest.raises(TrainingError):
            train_run(config, tmp_path / "run")
    other = replace(config, model=replace(config.model, d_ff=72), data=replace(config.data, max_tokens=48))
    train_run(other, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert len(record["starts"]) == 2
    assert record["corpus_fingerprint"] == corpus_fingerprint(other)
    assert ModelFolder.open(tmp_path / "run" / "model").config.model.d_ff == 72
    train_run(with_train(other, max_steps=3), tmp_path / "run")


def test_a_run_without_a_checkpoint_continues_without_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, max_steps=2)
    with monkeypatch.context() as context:
        context.setattr("mt.pipeline.train", Mock(side_effect=TrainingError("no memory")))
        with pytest.raises(TrainingError):
            train_run(config, tmp_path / "run")
    for name in config.data.train[0].files:
        Path(name).unlink()
    other = replace(config, model=replace(config.model, d_ff=72))
    with pytest.raises(DataError, match="no such file"):
        train_run(other, tmp_path / "run")
    train_run(config, tmp_path / "run")
    assert RunFolder(tmp_path / "run").has_work


def test_a_new_beam_size_updates_the_report_and_the_model_folder(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=2)
    run_dir = tmp_path / "run"
    train_run(config, run_dir)
    train_run(replace(config, decode=replace(config.decode, beam_size=2)), run_dir)
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert report["basis"]["decode"]["beam_size"] == 2
    assert ModelFolder.open(run_dir / "model").config.decode.beam_size == 2


def test_unsupported_settings_are_refused_before_the_data_is_prepared(tmp_path: Path) -> None:
    config = toy_config(tmp_path, compile=True)
    with pytest.raises(MTError) as caught:
        train_run(config, tmp_path / "run")
    assert str(caught.value) == "train.compile: compilation is not possible here: the device is a CPU. Set it to auto."
    assert not (tmp_path / "prepared").exists()


def test_a_run_keeps_the_corpus_that_it_started_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy_config(tmp_path / "text", max_steps=2)
    run_dir = tmp_path / "run"
    train_run(config, run_dir)
    with (tmp_path / "text" / "train.en").open("a") as src, (tmp_path / "text" / "train.de").open("a") as tgt:
        src.write("bar\n")
        tgt.write("BAR\n")
    train_run(with_train(config, max_steps=3), run_dir)
    (prepared_dir,) = (tmp_path / "text" / "prepared").iterdir()
    assert (
        "note: the text has changed since this run was started; it continues with the corpus prepared then "
        f"({prepared_dir})\n" in capsys.readouterr().err
    )
    fingerprint = json.loads((run_dir / "run.json").read_text("utf-8"))["corpus_fingerprint"]
    shutil.rmtree(tmp_path / "text" / "prepared")
    with pytest.raises(MTError) as caught:
        train_run(with_train(config, max_steps=4), run_dir)
    assert str(caught.value) == (
        f"{run_dir}: the run's prepared corpus {tmp_path / 'text' / 'prepared' / fingerprint} does not exist any more, "
        "and its text or mt itself has changed. Restore one of them, or start over with another --run-dir."
    )


def test_a_run_says_what_of_its_corpus_another_version_would_prepare_differently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path / "text", max_steps=2)
    run_dir = tmp_path / "run"
    train_run(config, run_dir)
    (prepared_dir,) = (tmp_path / "text" / "prepared").iterdir()
    rest = f"changed since this run was started; it continues with the corpus prepared then ({prepared_dir})\n"
    monkeypatch.setattr("mt.text.prepare.NORMALISER_VERSION", 99)
    train_run(with_train(config, max_steps=3), run_dir)
    assert f"note: mt's cleaning has {rest}" in capsys.readouterr().err
    monkeypatch.setattr("mt.text.prepare._tokenizer_fingerprint", lambda *_: "of another version")
    with (tmp_path / "text" / "train.en").open("a") as src, (tmp_path / "text" / "train.de").open("a") as tgt:
        src.write("bar\n")
        tgt.write("BAR\n")
    train_run(with_train(config, max_steps=4), run_dir)
    assert (
        f"note: the text, the tokenizer (its file, or mt's defaults) and mt's cleaning have {rest}"
    ) in capsys.readouterr().err
    manifest = prepared_dir / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"format_version": 3', '"format_version": 2'), "utf-8")
    with pytest.raises(DataError, match="was prepared in format 2, but this version of mt reads format 3"):
        train_run(with_train(config, max_steps=5), run_dir)
    assert "changed" not in capsys.readouterr().err


def test_the_error_for_a_damaged_run_record_says_what_to_do(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text", max_steps=2)
    run_dir = tmp_path / "run"
    train_run(config, run_dir)
    (run_dir / "config.yaml").unlink()
    with pytest.raises(MTError) as caught:
        train_run(config, run_dir)
    assert str(caught.value) == (
        f"{run_dir / 'config.yaml'} is missing, so the settings of this run are not known. Restore it (each "
        "checkpoint has a copy), or start over with another --run-dir."
    )
    (run_dir / "run.json").write_text("", "utf-8")
    with pytest.raises(MTError) as caught:
        train_run(config, run_dir)
    assert str(caught.value) == (
        f"{run_dir / 'run.json'} is damaged (Expecting value: line 1 column 1 (char 0)). Restore it from a copy, or "
        "start over with another --run-dir."
    )


def test_the_report_names_the_steps_that_the_model_is_made_of() -> None:
    report = Evaluation(
        system="x",
        name="x",
        n_parameters=33_536,
        steps=1_200,
        n_tgt_tokens=5_000,
        train_seconds=65.0,
        basis={"averaged_steps": [1_000, 1_200]},
        valid=ScoredSet(n_lines=3, n_references=1, scores=[MetricScore(name="BLEU", score=30.0, signature="sig")]),
        test_sets={},
    )
    assert format_report(report).splitlines() == [
        "x: 33,536 parameters, 1,200 steps, 5,000 target tokens in 1 min 05 s",
        "model: average of steps 1,000, 1,200",
        "valid (3 lines)",
        "  BLEU    30.00   sig",
    ]


@pytest.mark.parametrize(
    ("by", "of_average", "steps"),
    [("bleu", 31.5, [4, 6]), ("bleu", 31.4, [2]), ("chrf", 60.0, [4, 6]), ("loss", 1.5, [4, 6]), ("loss", 1.6, [2])],
)
def test_the_model_is_the_average_unless_the_best_checkpoint_has_a_better_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any, of_average: float, steps: list[int]
) -> None:
    def result(value: float) -> ValidationResult:
        return ValidationResult(**{"loss": 9.0, "bleu": 1.0, "chrf": 1.0, by: value}, loss_by_length={}, samples=[])

    best, worse = (1.5, 2.0) if by == "loss" else (31.5, 30.0)
    results = iter([best, worse, worse])
    monkeypatch.setattr("mt.training.loop.validate", lambda *_: result(next(results)))
    validated = []

    def validate_average(model: torch.nn.Module, *_: object) -> ValidationResult:
        validated.append(model)
        return result(of_average)

    monkeypatch.setattr("mt.pipeline.validate", validate_average)
    settings = {"max_steps": 6, "validate_every": 2, "checkpoint_every": 2, "average_last": 2, "best_by": by}
    config = toy_config(tmp_path, **settings)
    for _ in range(2):  # a second start keeps the model, and validates nothing
        train_run(config, tmp_path / "run")
        model = ModelFolder.open(tmp_path / "run" / "model")
        assert model.manifest["averaged_steps"] == steps
        assert len(validated) == 1
    average = average_weights([RunFolder(tmp_path / "run").checkpoint(step) for step in (4, 6)])
    expected = average if len(steps) > 1 else weights_of(tmp_path / "run", 2)
    assert all(torch.equal(value, expected[name]) for name, value in model.load_weights().items())
    (of_validated,) = validated
    assert all(torch.equal(value, average[name]) for name, value in of_validated.named_parameters())


def test_starting_a_finished_training_logs_that_it_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path, max_steps=6)
    corpus = prepare_corpus(config)
    train(config, corpus, tmp_path / "run")
    capsys.readouterr()
    train(with_train(config, max_steps=5), corpus, tmp_path / "run")
    assert capsys.readouterr().err == (
        "warning: training is already complete: 6 steps, more than train.max_steps (5). Raise train.max_steps to train "
        "further.\n"
    )


def test_a_stopped_training_that_has_passed_max_steps_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path, max_steps=12, validate_every=6)
    corpus = prepare_corpus(config)
    interrupt_at_step_6(config, corpus, tmp_path / "run", monkeypatch)
    capsys.readouterr()
    train(with_train(config, max_steps=5), corpus, tmp_path / "run")
    assert "trained 6 steps, more than train.max_steps (5), with " in capsys.readouterr().err


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    import fcntl

    config = toy_config(tmp_path, max_steps=2)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MTError) as caught:
            train_run(config, tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: another training is running in this folder. Wait for it, or use another --run-dir."
    )


@pytest.mark.parametrize(("reverse", "n_layers", "n_steps"), [(False, 2, 250), (True, 1, 750)])
def test_a_model_learns_to_copy_and_to_reverse(tmp_path: Path, reverse: bool, n_layers: int, n_steps: int) -> None:
    config = toy_config(
        tmp_path,
        n_train=3_000,
        reverse=reverse,
        batch_tokens=512,
        max_steps=n_steps,
        warmup_steps=60,
        peak_lr=5e-3 if reverse else 4e-3,
        validate_every=1_000,
        checkpoint_every=1_000,
        average_last=0,
        log_every=100,
        precision="auto",
    )
    layers = {"n_encoder_layers": n_layers, "n_decoder_layers": n_layers}
    shape = replace(config.model, d_model=64, d_ff=128, dropout=0.0, **layers)
    # Enough pieces for whole words.
    config = replace(config, model=shape, tokenizer=replace(config.tokenizer, vocab_size=420))
    train_run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["test_sets"]["held_out"]["scores"][0]["score"] > 95


def test_the_moving_average_follows_the_weights_except_after_skipped_updates() -> None:
    model = small_model()
    average, steps = MovingAverage(model, decay=0.999), {1: 0.0, 2: 1.0, 3: 0.0}
    expected = {name: weight.clone() for name, weight in model.named_parameters()}
    for step, was_skipped in steps.items():
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.add_(torch.randn_like(weight))
                if not was_skipped:  # average + f · (weights - average), where f is 9 / (10 + step) at first
                    expected[name].lerp_(weight, 9 / (10 + step))
        average.update(step, torch.tensor(was_skipped))
    for name, weight in average.state_dict().items():
        torch.testing.assert_close(weight, expected[name])
