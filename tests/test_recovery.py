"""Recovery of training from non-finite gradients and lack of memory, and the moving average."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mt.checkpoint import ModelFolder
from mt.data.batch import PackedBatch, assemble_tiles
from mt.data.packing import PlanState
from mt.errors import MTError
from mt.run_folder import RunFolder
from mt.system.distributed import SINGLE_PROCESS
from mt.text.prepare import prepare_corpus
from mt.training.engine import Engine, OutOfMemory, StepResult, Update, raising_out_of_memory, tokens_that_fit
from mt.training.loop import Trainer, train
from mt.training.progress import Progress, UpdateMeter
from tests.toys import measured, toy_config, weights_of

MicroBatchLoss = Callable[[Engine, int, int, PackedBatch], Tensor]


def inject(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[int, int, Tensor], Tensor]) -> None:
    """Apply a function of step, number and loss to the loss of each micro-batch before its backward pass."""
    micro_batch_loss: MicroBatchLoss = Engine.micro_batch_loss

    def spoiled(engine: Engine, step: int, number: int, batch: PackedBatch) -> Tensor:
        return spoil(step, number, micro_batch_loss(engine, step, number, batch))

    monkeypatch.setattr(Engine, "micro_batch_loss", spoiled)


def skipped_lines(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "skipped.jsonl").read_text("utf-8").splitlines()]


def losses(run_dir: Path) -> list[float]:
    return [loss for _, loss in measured(run_dir, "train_loss")]


# --- non-finite values


def test_a_skipped_update_is_logged_with_its_sentences_and_does_not_change_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path, max_steps=4, log_every=4, checkpoint_every=1, micro_batch_tokens=128)
    corpus = prepare_corpus(config)
    inject(monkeypatch, lambda step, number, loss: loss * math.inf if (step, number) == (2, 1) else loss)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.n_skipped, progress.n_skipped_in_row) == (4, 1, 0)
    first, second, third = (weights_of(tmp_path / "run", step) for step in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)
    assert (
        f"warning: step 2 was skipped because of NaN or infinite gradients; {tmp_path / 'run' / 'skipped.jsonl'} lists "
        "the sentences\n"
    ) in capsys.readouterr().err

    (record,) = skipped_lines(tmp_path / "run")
    engine = Engine(config, corpus.train, 380, corpus_sizes=corpus.corpus_sizes)
    engine.begin(progress.micro_batch_tokens)
    update = list(engine.updates(PlanState(), 1, 2))[1]
    assert record["step"] == 2
    assert record["micro_batch_losses"] == [pytest.approx(600, rel=0.5), None]
    assert record["sentences"] == [
        {
            "source": f"{tmp_path / 'train.en'} + {tmp_path / 'train.de'}",
            "lines": sorted(corpus.train_lines[update.sentences[1]].tolist()),
        }
    ]
    (loss,) = losses(tmp_path / "run")
    assert 5 < loss < 7  # log 380 is 5.9


def test_logged_line_numbers_are_those_of_the_original_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, max_steps=1, log_every=1)
    for side in ("en", "de"):  # cleaning removes the two empty lines
        path = tmp_path / f"train.{side}"
        path.write_text("\n\n" + path.read_text("utf-8"), "utf-8")
    corpus = prepare_corpus(config)
    inject(monkeypatch, lambda step, number, loss: loss * math.nan)
    train(config, corpus, tmp_path / "run")
    (record,) = skipped_lines(tmp_path / "run")
    (source,) = record["sentences"]  # type: ignore[misc]
    used = np.concatenate([next(iter(Engine(config, corpus.train, 380).plan.update_at(PlanState())))])
    assert source["lines"] == sorted((used + 3).tolist())


def test_after_several_skips_training_rolls_back_and_leaves_out_their_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path, n_train=2_000, max_steps=12, log_every=2, skips_before_rollback=3, validate_every=100)
    corpus = prepare_corpus(config)
    poisoned: set[int] = set()
    made: list[tuple[int, tuple[int, ...]]] = []
    step_of = Engine.step

    def watched(engine: Engine, update: Update, lr: float) -> object:
        made.append((update.step, tuple(np.concatenate(update.sentences).tolist())))
        return step_of(engine, update, lr)

    monkeypatch.setattr(Engine, "step", watched)
    # The sentences of updates 6, 7 and 8 always give NaN.
    plan = Engine(config, corpus.train, 380).plan
    state = PlanState()
    for step in range(1, 9):
        sentences, state = plan.update_at(state)
        if step >= 6:
            poisoned.update(sentences.tolist())
    inject(monkeypatch, lambda step, number, loss: loss * math.nan if poisoned.issuperset(made[-1][1]) else loss)
    progress = train(config, corpus, tmp_path / "run")
    # Training rolls back once, from step 8 to the checkpoint of step 4, and continues with the sentences after these.
    assert [step for step, _ in made] == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 9, 10, 11, 12]
    assert not any(poisoned & set(sentences) for _, sentences in made[8:])
    assert (progress.step, progress.n_skipped, progress.gone_back_to) == (12, 3, 4)
    assert (
        "warning: the 3 updates up to step 8 had NaN or infinite gradients. Training was rolled back to step 4 and "
        "leaves out the sentences of steps 5 to 8\n"
    ) in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in weights_of(tmp_path / "run", 12).values())


def test_if_a_rollback_does_not_help_training_stops_with_an_explanation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=30, log_every=2, skips_before_rollback=3, validate_every=100)
    corpus = prepare_corpus(config)
    inject(monkeypatch, lambda step, number, loss: loss * math.nan if step > 5 else loss)
    with pytest.raises(MTError) as caught:
        train(config, corpus, tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: the 3 updates up to step 8 had NaN or infinite gradients, and a rollback to step 4 "
        "without the sentences used since then did not help. Continue with --set train.precision=fp32, or start over "
        "with a lower train.peak_lr or with train.clip_norm; skipped.jsonl lists the sentences."
    )
    # The good checkpoint is kept, and the next start continues from it.
    assert RunFolder(tmp_path / "run").checkpoints() == [RunFolder(tmp_path / "run").checkpoint(4)]
    monkeypatch.undo()
    assert train(config, corpus, tmp_path / "run").step == 30


def test_before_the_first_checkpoint_a_rollback_goes_to_the_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=4, log_every=3, skips_before_rollback=2, validate_every=100)
    corpus = prepare_corpus(config)
    spoiled = iter([True, True, True])
    inject(monkeypatch, lambda step, number, loss: loss * math.nan if next(spoiled, False) else loss)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.gone_back_to, progress.n_skipped) == (4, 0, 3)
    # The initial weights were drawn from the seed again. Four updates follow, on the next sentences.
    monkeypatch.undo()
    engine = Engine(config, corpus.train, 380, corpus_sizes=corpus.corpus_sizes)
    engine.begin()
    state = PlanState()
    for _ in range(3):
        _, state = engine.plan.update_at(state)
    from mt.training.optimizer import learning_rate

    for update in engine.updates(state, 1, 4):
        engine.step(update, learning_rate(update.step, config.train, config.model.d_model))
    saved = weights_of(tmp_path / "run", 4)
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_the_checkpoint_for_a_rollback_is_not_pruned_while_updates_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"keep_last": 1, "average_last": 1, "checkpoint_every": 2, "skips_before_rollback": 3}
    config = toy_config(tmp_path, n_train=2_000, max_steps=12, log_every=4, validate_every=100, **settings)
    corpus = prepare_corpus(config)
    spoiled = {5, 6, 7, 8}  # a checkpoint is due in the middle of them, at step 6

    def spoil(step: int, number: int, loss: Tensor) -> Tensor:
        if step in spoiled:
            spoiled.remove(step)
            return loss * math.nan
        return loss

    inject(monkeypatch, spoil)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.gone_back_to) == (12, 4)
    assert RunFolder(tmp_path / "run").checkpoints() == [RunFolder(tmp_path / "run").checkpoint(12)]
    # Measurements of the steps that were rolled back are gone.
    assert [step for step, _ in measured(tmp_path / "run", "train_loss")] == [4, 8, 12]


def test_a_rollback_is_remembered_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, n_train=2_000, max_steps=12, log_every=1, skips_before_rollback=2, validate_every=100)
    corpus = prepare_corpus(config)

    class Killed(BaseException):
        pass

    spoiled = iter([False] * 5 + [True, True])

    def spoil(step: int, number: int, loss: Tensor) -> Tensor:
        bad = next(spoiled, None)
        if bad is None:
            raise Killed  # in the first update after the rollback
        return loss * math.nan if bad else loss

    inject(monkeypatch, spoil)
    with pytest.raises(Killed):
        train(config, corpus, tmp_path / "run")
    monkeypatch.undo()
    plan, state = Engine(config, corpus.train, 380).plan, PlanState()
    for _ in range(7):
        _, state = plan.update_at(state)
    resumed = Trainer(config, corpus, RunFolder(tmp_path / "run")).progress
    assert (resumed.step, resumed.plan_state, resumed.gone_back_to, resumed.n_skipped) == (4, state, 4, 2)


# --- memory


def test_out_of_memory_doubles_the_number_of_micro_batches_and_repeats_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path, max_steps=4, log_every=1, micro_batch_tokens=128)
    config = replace(config, model=replace(config.model, dropout=0.0))
    corpus = prepare_corpus(config)
    calm = train(config, corpus, tmp_path / "calm")

    full = iter([False] * 5 + [True])  # in the middle of the third update, after the first gradients

    def spoil(step: int, number: int, loss: Tensor) -> Tensor:
        if next(full, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    inject(monkeypatch, spoil)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.plan_state, progress.n_tgt_tokens) == (4, calm.plan_state, calm.n_tgt_tokens)
    assert (calm.micro_batch_tokens, progress.micro_batch_tokens) == (128, 64)
    assert (
        "warning: out of memory on cpu with micro-batches of 132 target tokens (CUDA out of memory. Tried to allocate "
        "2.00 GiB.). This update is repeated in 4 micro-batches of 64 tokens, and later updates use that size too. To "
        "start with it, add --set train.micro_batch_tokens=64\n"
    ) in capsys.readouterr().err
    # The updates are equal up to rounding: nothing of the first attempt remains.
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "calm"), rel=1e-4)


def test_micro_batches_of_one_sentence_that_do_not_fit_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=2)
    corpus = prepare_corpus(config)

    def spoil(step: int, number: int, loss: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory at all")

    inject(monkeypatch, spoil)
    with pytest.raises(MTError) as caught:
        train(config, corpus, tmp_path / "run")
    longest = int(corpus.train.tgt.lengths.max())
    assert str(caught.value) == (
        f"train.micro_batch_tokens: out of memory on cpu with micro-batches of {longest} target tokens (no memory at "
        "all), and no micro-batch can be smaller than the longest sentence. Set train.activation_checkpointing, lower "
        "data.max_tokens, or make the model smaller."
    )


def test_out_of_memory_during_batch_assembly_doubles_the_number_of_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=4, micro_batch_tokens=256)
    corpus = prepare_corpus(config)
    full = iter([False, True])

    def assemble(*arguments: object) -> PackedBatch:
        if next(full, False):
            raise torch.OutOfMemoryError("full")
        return assemble_tiles(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("mt.training.engine.assemble_tiles", assemble)
    progress = train(config, corpus, tmp_path / "run")
    assert (progress.step, progress.micro_batch_tokens) == (4, 128)


def test_out_of_memory_in_the_first_optimizer_step_leaves_its_state_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, max_steps=4, micro_batch_tokens=128)
    config = replace(config, model=replace(config.model, dropout=0.0))
    corpus = prepare_corpus(config)
    train(config, corpus, tmp_path / "calm")
    step, full = torch.optim.Adam.step, iter([True])

    def limited(optimizer: torch.optim.Adam, closure: None = None) -> None:
        if next(full, False):
            # Nothing needs to be allocated any more: moments and step counts exist.
            assert all(len(optimizer.state[p]) == 3 for group in optimizer.param_groups for p in group["params"])
            raise torch.OutOfMemoryError("full")
        step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", limited)
    train(config, corpus, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "calm"), rel=1e-4)


def test_real_allocation_errors_are_recognised_as_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="can't allocate memory"), raising_out_of_memory():
        torch.empty(2**60)
    with pytest.raises(OutOfMemory), raising_out_of_memory():
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with pytest.raises(RuntimeError, match="shapes"), raising_out_of_memory():
        raise RuntimeError("shapes do not match")


def test_the_size_of_a_micro_batch_is_a_linear_fit_of_measured_memory() -> None:
    # 1 GB, and 1 MB per token.
    measured = [(2_048, 3_048_000_000), (8_192, 9_192_000_000)]
    assert tokens_that_fit(measured, 21_000_000_000, 131_072) == 20_000
    assert tokens_that_fit(measured, 21_000_000_000, 16_000) == 16_000
    assert tokens_that_fit(measured, 500_000_000, 131_072) == 0
    # If the larger size did not fit, all bytes count as bytes of tokens.
    assert tokens_that_fit(measured[:1], 6_096_000_000, 131_072) == 4_096
    assert tokens_that_fit([], 6_096_000_000, 131_072) == 0


def test_a_model_that_cannot_fit_in_memory_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path)
    corpus = prepare_corpus(config)
    monkeypatch.setattr("mt.training.engine.memory_bytes", lambda device: 400_000)
    with pytest.raises(MTError) as caught:
        Engine(config, corpus.train, 380)
    assert str(caught.value) == (
        "model: training 33,536 parameters needs 0.5 MiB of memory, but cpu has 0.4 MiB. Reduce d_model, d_ff or the "
        "number of layers."
    )


# --- the moving average


def test_checkpoints_have_the_average_but_training_continues_from_the_weights(tmp_path: Path) -> None:
    config = toy_config(tmp_path, ema_decay=0.7, max_steps=8, checkpoint_every=1, keep_last=8)
    plain = replace(config, train=replace(config.train, ema_decay=None))
    corpus = prepare_corpus(config)
    train(plain, corpus, tmp_path / "plain")
    train(replace(config, train=replace(config.train, max_steps=5)), corpus, tmp_path / "run")
    train(config, corpus, tmp_path / "run")  # resumed
    initial = Engine(config, corpus.train, 380).model.state_dict()
    for name, average in initial.items():
        expected = average.double()
        for step in range(1, 9):
            decay = min(0.7, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * weights_of(tmp_path / "plain", step)[name].double()
        saved = weights_of(tmp_path / "run", 8)[name]
        torch.testing.assert_close(saved.double(), expected, rtol=1e-5, atol=1e-7, msg=name)
    # Training of the weights themselves was not affected.
    state = ModelFolder.open(RunFolder(tmp_path / "run").checkpoint(8)).load_training_state()
    for name, tensor in weights_of(tmp_path / "plain", 8).items():
        assert torch.equal(state["weights"][name], tensor), name


@pytest.mark.parametrize("number", [1, 3])
def test_a_resumed_run_keeps_reduced_micro_batches_until_the_setting_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = toy_config(tmp_path, max_steps=4, micro_batch_tokens=256)
    corpus = prepare_corpus(config)
    full = iter([False] * (number - 1) + [True])

    def spoil(step: int, number: int, loss: Tensor) -> Tensor:
        if next(full, False):
            raise torch.OutOfMemoryError("full")
        return loss

    inject(monkeypatch, spoil)
    assert train(config, corpus, tmp_path / "run").micro_batch_tokens == 128
    further = replace(config, train=replace(config.train, max_steps=6))
    assert train(further, corpus, tmp_path / "run").micro_batch_tokens == 128
    changed = replace(config, train=replace(config.train, max_steps=8, micro_batch_tokens=200))
    assert train(changed, corpus, tmp_path / "run").micro_batch_tokens == 200


def test_fp16_overflows_are_not_counted_until_the_scale_is_1() -> None:
    progress = Progress()
    meter = UpdateMeter(SINGLE_PROCESS, progress, True, lambda n_src, n_tgt: 0.0)
    sentences = (np.arange(3),)

    def add(norm: float) -> int:
        update = Update(1, sentences, {0: None}, 5, 6, PlanState())  # type: ignore[dict-item]
        meter.add(update, StepResult(torch.tensor([7.0]), torch.tensor(norm)))
        return len(meter.flush())

    assert [add(math.inf) for _ in range(15)] == [0] * 15
    assert add(1.0) == progress.n_skipped == 0
    # With a scale of 1, the gradient itself is infinite.
    assert [add(math.inf) for _ in range(25)] == [0] * 20 + [1] * 5
    assert (progress.n_skipped, progress.n_skipped_in_row) == (5, 5)
    assert progress.tokens_since_log == 41 * 6
