"""The estimated cost of an update, compared with known numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mt.data.packing import PlanState
from tests.null_gpu import cost
from tests.null_gpu.test_training import config_for, started_engine


@pytest.mark.null_gpu
def test_the_cost_of_an_update_agrees_with_known_numbers(tmp_path: Path) -> None:
    cost.note_arguments()
    engine = started_engine(config_for(tmp_path))
    updates = list(engine.updates(PlanState(), 1, 3))
    for update in updates[:2]:
        engine.step(update, lr=1e-3)
    launches = cost.launches_of(engine, updates[2])
    by_part = {part: [launch for launch in launches if launch.part == part] for part in cost.PARTS}
    (batch,) = updates[2].micro_batches.values()
    n_rows = len(batch.src_ids), len(batch.tgt_inputs)
    assert sum(launch.flops for launch in by_part["matrix products"]) == engine.model.training_flops(*n_rows)
    # Forward, gradient of queries, gradient of keys and values; for encoder, decoder and cross-attention.
    assert len(by_part["attention"]) == 3 * 3
    # At least all pairs of tokens within sentences, and less than a third of the operations of flash attention.
    src, tgt = (side.lengths[batch.sentences] for side in (engine.data.src, engine.data.tgt))
    d, n_pairs = engine.config.model.d_model, int((src**2 + tgt**2 + src * tgt).sum())
    flops = sum(launch.flops for launch in by_part["attention"])
    assert 2 * 9 * d * n_pairs < flops < 2 * 7 * d * 3 * cost.FLASH_TILE**2 * len(src) / 3
    logits_bytes = 2 * n_rows[1] * engine.model.vocab_size
    assert 2 * logits_bytes <= sum(launch.n_bytes for launch in by_part["loss"]) < 2.1 * logits_bytes
    adam = sum(launch.n_bytes for launch in by_part["optimizer"] if "fused_adam" in launch.kernel)
    assert 28 * engine.model.n_parameters <= adam < 1.1 * 28 * engine.model.n_parameters
    assert sum(launch.seconds for launch in by_part["other"]) < 0.05 * sum(launch.seconds for launch in launches)
    last = cost.table(launches, batch.n_tgt_tokens).splitlines()[-3]
    assert last.startswith(f"| all | {len(launches)} |")
