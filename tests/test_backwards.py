"""A training that begins with both directions: its pairs, when it ends, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mt.config.settings import RunConfig
from mt.data.backwards import half_backwards
from mt.data.batch import assemble_tiles, assemble_varlen
from mt.data.packing import MicroBatchBudget
from mt.errors import ConfigError
from mt.text.corpus import ParallelIds
from mt.text.prepare import prepare_corpus
from mt.training.engine import Engine
from mt.training.loop import train
from tests.test_training import interrupt_at_step_6
from tests.toys import measured, parallel, random_pairs, toy_config, weights_of


def lists(pairs: ParallelIds) -> list[tuple[list[int], list[int]]]:
    numbers = [np.array([i]) for i in range(len(pairs))]
    return [(pairs.src.take(i).tolist(), pairs.tgt.take(i).tolist()) for i in numbers]


def test_about_half_of_the_pairs_are_swapped_and_others_in_the_next_epoch() -> None:
    pairs = parallel(random_pairs(400))
    plain, mixed, other = lists(pairs), lists(half_backwards(pairs, 1, 0)), lists(half_backwards(pairs, 1, 1))
    n_swapped = 0
    for one, now in zip(plain, mixed, strict=True):
        assert now in (one, one[::-1])
        n_swapped += now != one
    assert 160 < n_swapped < 240
    assert 100 < sum(a != b for a, b in zip(mixed, other, strict=True)) < 300
    lengths = half_backwards(pairs, 1, 0)
    assert lengths.src.lengths.tolist() == [len(src) for src, _ in mixed]
    assert lengths.tgt.lengths.tolist() == [len(tgt) for _, tgt in mixed]


def test_batches_have_the_swapped_pairs() -> None:
    pairs = half_backwards(parallel(random_pairs(50)), 1, 0)
    written = [([*src[:-1]], [*tgt[:-1]]) for src, tgt in lists(pairs)]
    copied, some = parallel(written), np.array([3, 1, 40, 22, 7])
    budget = MicroBatchBudget(1, 400, 400, 10)
    makers: list[Callable[[ParallelIds], Any]] = [
        lambda data: assemble_tiles(data, some, torch.float32),
        lambda data: assemble_varlen(data, some, budget, 64),
    ]
    for assemble in makers:
        mixed, expected = assemble(pairs), assemble(copied)
        for name in ("src_ids", "tgt_inputs", "tgt_outputs", "tgt_weights"):
            assert torch.equal(getattr(mixed, name), getattr(expected, name)), name


def bidirectional(folder: Path, **settings: Any) -> RunConfig:
    return toy_config(folder, **{"max_steps": 12, "bidirectional_share": 0.5, "log_every": 1, **settings})


def test_both_directions_are_trained_up_to_the_share_and_then_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bidirectional(tmp_path)
    corpus = prepare_corpus(config)
    of_update: list[bool] = []
    assemble = Engine._assemble

    def recording(engine: Engine, pairs: ParallelIds, sentences: Any) -> Any:
        of_update.append(pairs is not engine.data)
        return assemble(engine, pairs, sentences)

    monkeypatch.setattr(Engine, "_assemble", recording)
    train(config, corpus, tmp_path / "both")
    assert of_update == [True] * 6 + [False] * 6
    train(replace(config, train=replace(config.train, bidirectional_share=0.0)), corpus, tmp_path / "one")
    both, one = (dict(measured(tmp_path / run, "train_loss")) for run in ("both", "one"))
    assert both[1] != one[1]


@pytest.mark.parametrize("subword_sampling", [None, 0.3])
def test_a_run_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subword_sampling: float | None
) -> None:
    # Update 6 is the last one before the border.
    config = bidirectional(tmp_path, subword_sampling=subword_sampling)
    corpus = prepare_corpus(config)
    train(config, corpus, tmp_path / "whole")
    interrupt_at_step_6(config, corpus, tmp_path / "resumed", monkeypatch)
    train(config, corpus, tmp_path / "resumed")
    whole, resumed = (weights_of(tmp_path / run, 12) for run in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        (
            {"tokenizer": {"joint": False}, "model": {"tied_embeddings": "decoder"}},
            "the vocabularies are separate (tokenizer.joint is false)",
        ),
        ({"data": {"target_language_piece": True}}, "source sentences begin with pieces of languages"),
        ({"tag": "<bt>"}, "source sentences begin with tags"),
        ({"both_directions": True}, "there are several directions"),
    ],
)
def test_a_config_whose_sides_cannot_be_swapped_is_refused(
    tmp_path: Path, changes: dict[str, Any], obstacle: str
) -> None:
    config = toy_config(tmp_path)
    corpus = {name: changes[name] for name in ("tag", "both_directions") if name in changes}
    (trained,) = config.data.train
    data = replace(config.data, train=(replace(trained, **corpus),), **changes.get("data", {}))
    sections = {name: replace(getattr(config, name), **changes.get(name, {})) for name in ("tokenizer", "model")}
    with pytest.raises(ConfigError) as caught:
        replace(config, data=data, **sections, train=replace(config.train, bidirectional_share=0.3))
    assert str(caught.value) == f"train.bidirectional_share is 0.3, but {obstacle}. Remove it."
