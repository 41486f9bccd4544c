from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mt.data.batch import TileLayout, VarlenLayout, assemble_sources, assemble_tiles, assemble_varlen, prefetched
from mt.data.packing import MicroBatchBudget
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.toys import parallel, random_pairs

PAIRS = random_pairs(40)
BUDGET = MicroBatchBudget(n_micro_batches=1, src_tokens=700, tgt_tokens=800, n_sentences=60)


def unpacked(ids: torch.Tensor, positions: torch.Tensor, real: torch.Tensor) -> list[tuple[int, ...]]:
    sentences: list[list[int]] = []
    for token, position, is_real in zip(ids.tolist(), positions.tolist(), real.tolist(), strict=True):
        if is_real:
            if position == 0:
                sentences.append([])
            assert len(sentences[-1]) == position
            sentences[-1].append(token)
    return sorted(tuple(sentence) for sentence in sentences)


@pytest.mark.parametrize("kind", ["tiles", "varlen"])
def test_a_batch_contains_each_sentence_completely_and_once(kind: str) -> None:
    corpus = parallel(PAIRS)
    which = np.arange(5, 40)
    batch = (
        assemble_tiles(corpus, which, torch.float32)
        if kind == "tiles"
        else assemble_varlen(corpus, which, BUDGET, max_tokens=64)
    )
    wanted = [PAIRS[i] for i in which]
    real = batch.tgt_weights > 0
    assert unpacked(batch.tgt_outputs, batch.tgt_positions, real) == sorted((*tgt, EOS_ID) for _, tgt in wanted)
    assert unpacked(batch.tgt_inputs, batch.tgt_positions, real) == sorted((BOS_ID, *tgt) for _, tgt in wanted)
    src_real = batch.src_ids != PAD_ID
    assert unpacked(batch.src_ids, batch.src_positions, src_real) == sorted((*src, EOS_ID) for src, _ in wanted)
    assert batch.n_tgt_tokens == int(batch.tgt_weights.sum()) == sum(len(tgt) + 1 for _, tgt in wanted)
    assert batch.n_src_tokens == int(src_real.sum())
    assert (batch.tgt_outputs[~real] == PAD_ID).all()
    assert (batch.tgt_inputs[~real] == PAD_ID).all()


def test_all_varlen_batches_have_the_same_shape_and_cover_all_their_rows() -> None:
    corpus = parallel(PAIRS)
    shapes = set()
    for which in (np.arange(0), np.arange(1), np.arange(20), np.arange(40)):
        batch = assemble_varlen(corpus, which, BUDGET, max_tokens=64)
        cross = batch.cross_layout
        assert isinstance(cross, VarlenLayout)
        shapes.add((len(batch.src_ids), len(batch.tgt_inputs), len(cross.cu_q), len(cross.cu_k)))
        for cu, rows in ((cross.cu_q, len(batch.tgt_inputs)), (cross.cu_k, len(batch.src_ids))):
            assert cu.dtype == torch.int32
            assert cu[0] == 0
            assert cu[-1] == rows
            assert 0 <= int(cu.diff().min()) <= int(cu.diff().max()) <= 64
        # A segment has either both queries and keys or neither: softmax over nothing is NaN.
        assert ((cross.cu_q.diff() > 0) == (cross.cu_k.diff() > 0)).all()
        assert batch.max_positions == 64
    assert len(shapes) == 1


def test_a_full_varlen_batch_fits() -> None:
    corpus = parallel([([5] * 63, [6] * 63)] * 12)
    full = MicroBatchBudget(n_micro_batches=1, src_tokens=64 * 12, tgt_tokens=64 * 12, n_sentences=12)
    batch = assemble_varlen(corpus, np.arange(12), full, max_tokens=64)
    assert batch.n_tgt_tokens == 768
    assert isinstance(batch.cross_layout, VarlenLayout)
    assert batch.cross_layout.cu_q[-1] == len(batch.tgt_inputs)


def test_an_empty_micro_batch_has_no_weight() -> None:
    batch = assemble_tiles(parallel(PAIRS), np.arange(0), torch.float32)
    assert batch.n_tgt_tokens == 0
    assert batch.tgt_weights.sum() == 0
    assert len(batch.tgt_inputs) == 64


def test_the_source_and_target_of_a_pair_are_in_the_same_tile() -> None:
    batch = assemble_tiles(parallel([([5] * 100, [6]), ([7], [8] * 30)]), np.arange(2), torch.float32)
    assert isinstance(batch.cross_layout, TileLayout)
    (group,) = batch.cross_layout.groups
    assert (group.n_tiles, group.width) == (1, 128)
    allowed = group.bias[0, 0] == 0
    queries, keys = batch.tgt_inputs == BOS_ID, batch.src_ids == EOS_ID
    # Each first target position sees the last source position of only its own sentence.
    assert allowed[queries][:, keys].sum(1).tolist() == [1, 1]


def test_sources_for_decoding_are_padded_and_masked() -> None:
    batch = assemble_sources([[5, EOS_ID], [6, 7, 8, EOS_ID]], torch.float32)
    assert batch.width == 4
    assert batch.ids.view(2, 4).tolist() == [[5, EOS_ID, PAD_ID, PAD_ID], [6, 7, 8, EOS_ID]]
    assert (batch.layout.groups[0].bias[:, 0, 0] == 0).tolist() == [[True, True, False, False], [True] * 4]


def test_prefetching_keeps_the_order_and_passes_errors_on() -> None:
    assert list(prefetched(iter(range(20)))) == list(range(20))

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("the disk is on fire")

    items = prefetched(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="the disk is on fire"):
        next(items)


def test_closing_a_prefetcher_early_stops_its_thread() -> None:
    before = threading.active_count()
    ahead = prefetched(itertools.count(1))
    assert next(ahead) == 1
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
