"""Epochs whose text is segmented differently: the same on every machine and after every interruption."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from mt.config.settings import RunConfig
from mt.data.epochs import SampledEpochs, Sampling
from mt.errors import ConfigError
from mt.run_folder import RunFolder
from mt.text.corpus import ParallelIds, PreparedCorpus
from mt.text.prepare import prepare_corpus
from mt.text.tokenizer import Tokenizers
from mt.training.engine import StepResult, Update
from mt.training.loop import Trainer, train
from tests.test_ranks import arguments, train_with
from tests.toys import measured, toy_config, weights_of

KINDS = {"bpe": 0.3, "unigram": 0.1}


def sampled_config(folder: Path, kind: str = "unigram", **settings: Any) -> RunConfig:
    """Return a config whose epochs have about 3 updates."""
    values = {
        "subword_sampling": KINDS[kind],
        "max_steps": 12,
        "batch_tokens": 512,
        "checkpoint_every": 100,
        "validate_every": 100,
    }
    config = toy_config(folder, n_train=110, **{**values, "log_every": 1, **settings})
    return replace(config, tokenizer=replace(config.tokenizer, kind=kind, vocab_size=308))


@pytest.fixture(params=list(KINDS))
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> PreparedCorpus:
    return prepare_corpus(sampled_config(tmp_path / "text", request.param))


@pytest.fixture
def sampling(corpus: PreparedCorpus) -> Sampling:
    alpha = KINDS[Tokenizers.load(corpus.tokenizer_paths).src.kind]
    return Sampling(corpus.folder, corpus.manifest["ids_dtype"], corpus.tokenizer_paths, alpha, 1, 64)


def ids_of(pairs: ParallelIds) -> list[Any]:
    return [side.tolist() for one in (pairs.src, pairs.tgt) for side in (one.ids, one.offsets)]


def pair(pairs: ParallelIds, i: int) -> list[list[int]]:
    return [side[i].tolist() for side in (pairs.src, pairs.tgt)]


def epochs_of(
    corpus: PreparedCorpus, sampling: Sampling, folder: Path, numbers: Iterator[int] | range, n_workers: int = 1
) -> list[list[Any]]:
    with closing(SampledEpochs(corpus.train, sampling, folder, n_workers=n_workers, n_kept=2)) as epochs:
        return [ids_of(epochs.pairs(number)) for number in numbers]


def test_each_epoch_is_another_and_depends_only_on_seed_and_number(
    corpus: PreparedCorpus, sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = epochs_of(corpus, sampling, tmp_path / "first", range(4))
    assert first[0] == ids_of(corpus.train)
    assert all(a != b for i, a in enumerate(first) for b in first[:i])
    # Two kept, the current one, and the next one, which may not be complete yet.
    assert {path.name for path in (tmp_path / "first").glob("epoch-*")} <= {f"epoch-{n}" for n in (2, 3, 4)}
    assert epochs_of(corpus, sampling, tmp_path / "again", range(3, 4), n_workers=2) == first[3:]
    assert epochs_of(corpus, replace(sampling, seed=2), tmp_path / "other", range(1, 2)) != first[1:2]
    # An epoch that was removed is written again.
    back = epochs_of(corpus, sampling, tmp_path / "back", iter([3, 2, 1, 3]))
    assert back == [first[n] for n in (3, 2, 1, 3)]


def test_a_pair_that_would_be_too_long_keeps_its_plain_segmentation(
    corpus: PreparedCorpus, sampling: Sampling, tmp_path: Path
) -> None:
    plain = corpus.train
    limit = int(max(plain.src.lengths.max(), plain.tgt.lengths.max()))
    with closing(SampledEpochs(plain, replace(sampling, max_tokens=limit), tmp_path, n_workers=1, n_kept=2)) as epochs:
        new = epochs.pairs(1)
        assert max(new.src.lengths.max(), new.tgt.lengths.max()) <= limit
        kept = [i for i in range(len(plain)) if pair(new, i) == pair(plain, i)]
    free = np.array(epochs_of(corpus, sampling, tmp_path / "free", range(1, 2))[0][1])
    assert np.diff(free).max() > limit  # so the limit has an effect
    assert 0 < len(kept) < len(plain)


def killed_at(step: int, config: RunConfig, corpus: PreparedCorpus, run_dir: Path) -> None:
    """Train in a forked process that is killed right after the checkpoint of an update."""
    process = os.fork()
    if process == 0:
        save = Trainer.save_checkpoint

        def save_and_die(trainer: Trainer) -> None:
            save(trainer)
            os.kill(os.getpid(), signal.SIGKILL)

        Trainer.save_checkpoint = save_and_die  # type: ignore[method-assign]
        train(replace(config, train=replace(config.train, checkpoint_every=step)), corpus, run_dir)
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_training_that_was_killed_in_an_epoch_or_at_its_border_ends_with_the_same_weights(
    tmp_path: Path, kind: str
) -> None:
    config = sampled_config(tmp_path / "text", kind)
    corpus = prepare_corpus(config)
    epochs: dict[int, int] = {}
    record = Trainer.record_update

    def recording(trainer: Trainer, update: Update, result: StepResult) -> None:
        record(trainer, update, result)
        epochs[update.step] = update.next_state.epoch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "record_update", recording)
        train(config, corpus, tmp_path / "whole")
    assert not RunFolder(tmp_path / "whole").epochs.exists()
    border = next(step for step, epoch in epochs.items() if epoch == 2)  # the first update that ends in epoch 2
    inside = border + 1
    assert epochs[inside] == 2
    for step in (border - 1, border, inside):
        run_dir = tmp_path / f"killed-{step}"
        killed_at(step, config, corpus, run_dir)
        assert RunFolder(run_dir).epochs.is_dir()
        if step == inside:
            shutil.rmtree(RunFolder(run_dir).epochs)
        train(config, corpus, run_dir)
        whole, resumed = weights_of(tmp_path / "whole", 12), weights_of(run_dir, 12)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), step
    plain = replace(config, train=replace(config.train, subword_sampling=None))
    train(plain, corpus, tmp_path / "plain")
    losses, others = (dict(measured(tmp_path / run, "train_loss")) for run in ("whole", "plain"))
    first = next(step for step, epoch in epochs.items() if epoch == 1)
    assert [losses[step] == others[step] for step in (1, first, first + 1)] == [True, True, False]


def test_two_ranks_train_on_the_same_epochs_as_one(tmp_path: Path) -> None:
    config = sampled_config(tmp_path, micro_batch_tokens=128, peak_lr=1e-3)
    # Long samples may need another micro-batch, and then one for each rank, with other dropout.
    config = replace(config, model=replace(config.model, dropout=0.0))
    for n_ranks, name in ((1, "one"), (2, "two")):
        train_with(n_ranks, *arguments(config, tmp_path / name))
    one, two = (dict(measured(tmp_path / name, "train_loss")) for name in ("one", "two"))
    assert len(one) == 12
    assert two == pytest.approx(one, rel=1e-5)
    assert not RunFolder(tmp_path / "two").epochs.exists()


@pytest.mark.parametrize("kind", ["char", "word"])
def test_a_tokenizer_that_cannot_sample_is_refused(tmp_path: Path, kind: str) -> None:
    config = sampled_config(tmp_path)
    model = tmp_path / f"{kind}.model"
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "train.en", model_prefix=model.with_suffix(""), model_type=kind, vocab_size=25, minloglevel=2
    )
    given = replace(config, tokenizer=replace(config.tokenizer, model=str(model)))
    with pytest.raises(ConfigError) as caught:
        prepare_corpus(given)
    problem = f"train.subword_sampling needs a tokenizer of kind bpe or unigram, but {model} is of kind {kind}"
    assert str(caught.value) == f"{problem}. Remove it, or use another tokenizer."
    prepare_corpus(replace(given, train=replace(given.train, subword_sampling=None)))
