from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mt.data.packing import (
    MicroBatchBudget,
    PlanState,
    UpdatePlan,
    cut_into_micro_batches,
    fit_into_tiles,
)

RNG = np.random.default_rng(5)
SRC = RNG.integers(2, 40, 3_000)
TGT = np.clip(SRC + RNG.integers(-5, 6, 3_000), 2, None)


def plan(batch_tokens: int = 500, seed: int = 1, **kwargs: Any) -> UpdatePlan:
    return UpdatePlan(SRC, TGT, batch_tokens=batch_tokens, seed=seed, **kwargs)


def first_updates(the_plan: UpdatePlan, n: int) -> list[np.ndarray]:
    updates, state = [], PlanState()
    for _ in range(n):
        sentences, state = the_plan.update_at(state)
        updates.append(sentences)
    return updates


def test_an_epoch_contains_each_pair_once_and_updates_follow_its_order() -> None:
    the_plan = plan()
    order = the_plan.epoch_order(0)
    assert sorted(order) == list(range(3_000))
    stream = np.concatenate(first_updates(the_plan, 20))
    assert (stream == order[: len(stream)]).all()


def test_an_update_contains_as_many_sentences_as_fit() -> None:
    the_plan = plan()
    order, position = the_plan.epoch_order(0), 0
    for sentences in first_updates(the_plan, 20):
        assert TGT[sentences].sum() <= 500
        assert SRC[sentences].sum() <= the_plan.max_src_tokens
        position += len(sentences)
        following = order[position]
        assert (
            TGT[sentences].sum() + TGT[following] > 500
            or SRC[sentences].sum() + SRC[following] > the_plan.max_src_tokens
        )


def test_the_source_limit_of_an_update_follows_the_length_ratio_of_the_corpus() -> None:
    assert plan().max_src_tokens == int(500 * SRC.sum() / TGT.sum() * 1.05)


def test_updates_continue_across_epochs_so_that_none_is_short() -> None:
    the_plan = UpdatePlan(SRC[:50], TGT[:50], batch_tokens=400, seed=3)
    state = PlanState()
    crossed = 0
    for _ in range(40):
        sentences, following = the_plan.update_at(state)
        crossed += following.epoch > state.epoch and following.position > 0
        assert TGT[:50][sentences].sum() > 400 - 45
        state = following
    assert crossed > 10
    assert state.epoch > 10


def test_an_update_larger_than_an_epoch_repeats_the_corpus() -> None:
    the_plan = UpdatePlan(np.array([3, 3]), np.array([4, 4]), batch_tokens=40, seed=1)
    sentences, state = the_plan.update_at(PlanState())
    assert sorted(sentences) == [0] * 5 + [1] * 5
    assert state == PlanState(epoch=5, position=0)


def test_the_plan_continues_from_any_state_with_the_same_updates() -> None:
    the_plan, state = plan(), PlanState()
    states = []
    for _ in range(300):
        states.append(state)
        sentences, state = the_plan.update_at(state)
    again, _ = plan().update_at(states[-1])
    assert states[-1].epoch > 0
    assert (again == sentences).all()


def test_each_seed_and_each_epoch_has_its_own_order() -> None:
    assert (plan(seed=1).epoch_order(0) != plan(seed=2).epoch_order(0)).any()
    assert (plan().epoch_order(0) != plan().epoch_order(1)).any()


def test_a_weight_gives_whole_copies_and_a_random_draw_for_the_fraction() -> None:
    weighted = plan(corpus_sizes=[1_000, 2_000], corpus_weights=[2.0, 0.25])
    counts = np.bincount(weighted.epoch_order(0), minlength=3_000)
    assert (counts[:1_000] == 2).all()
    assert set(counts[1_000:]) == {0, 1}
    assert counts[1_000:].sum() == pytest.approx(500, abs=80)
    assert (
        weighted.epoch_order(0) == plan(corpus_sizes=[1_000, 2_000], corpus_weights=[2.0, 0.25]).epoch_order(0)
    ).all()
    drawn_again = np.bincount(weighted.epoch_order(1), minlength=3_000)
    assert (counts != drawn_again).any()


@pytest.mark.parametrize("n_ranks", [1, 2, 8])
def test_the_sentences_of_an_update_do_not_depend_on_micro_batches_or_ranks(n_ranks: int) -> None:
    the_plan = plan(batch_tokens=2_000)
    budget = the_plan.micro_batch_budget(300, n_ranks=n_ranks)
    assert budget.n_micro_batches % n_ranks == 0
    for sentences in first_updates(the_plan, 30):
        micro_batches = cut_into_micro_batches(sentences, SRC, TGT, budget, n_ranks)
        assert len(micro_batches) % n_ranks == 0
        assert sorted(np.concatenate(micro_batches)) == sorted(sentences)


def test_an_update_is_cut_into_the_planned_number_of_micro_batches() -> None:
    the_plan = plan(batch_tokens=6_000)
    budget = the_plan.micro_batch_budget(1_000)
    assert budget.n_micro_batches == 6
    for sentences in first_updates(the_plan, 30):
        micro_batches = cut_into_micro_batches(sentences, SRC, TGT, budget)
        assert len(micro_batches) == 6
        for part in micro_batches:
            assert TGT[part].sum() <= budget.tgt_tokens <= 1_031
            assert SRC[part].sum() <= budget.src_tokens
            assert len(part) <= budget.n_sentences


def test_sentences_that_do_not_fit_add_a_micro_batch_on_every_rank() -> None:
    lengths = np.array([60, 60, 60])
    budget = MicroBatchBudget(n_micro_batches=2, src_tokens=100, tgt_tokens=100, n_sentences=10)
    micro_batches = cut_into_micro_batches(np.arange(3), lengths, lengths, budget, n_ranks=2)
    assert [len(part) for part in micro_batches] == [1, 1, 1, 0]
    few = MicroBatchBudget(n_micro_batches=1, src_tokens=1_000, tgt_tokens=1_000, n_sentences=2)
    assert [len(part) for part in cut_into_micro_batches(np.arange(3), lengths, lengths, few)] == [2, 1]


def test_tiles_contain_whole_pairs_and_little_padding() -> None:
    # Tiles of 64, because these pairs have at most 40 tokens per side.
    widths, tile_of = fit_into_tiles(SRC[:600], TGT[:600], 64)
    assert set(widths) == {64}
    for lengths in (SRC[:600], TGT[:600]):
        filled = np.bincount(tile_of, weights=lengths)
        assert filled.max() <= 64
        assert filled.sum() / (64 * len(widths)) > 0.9


def test_a_pair_longer_than_a_tile_gets_a_wider_one() -> None:
    widths, tile_of = fit_into_tiles(np.array([10, 65, 3]), np.array([9, 60, 200]), 64)
    assert widths == [256, 128]
    assert tile_of.tolist() == [0, 1, 0]
