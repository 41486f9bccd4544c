"""Tests on real captions, for properties that toy text does not show. They need the folder named by MT_REAL_DATA."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mt.config.loading import load_config
from mt.config.settings import DecodeConfig, RunConfig
from mt.data.batch import assemble_tiles, assemble_varlen
from mt.data.packing import PlanState, UpdatePlan, cut_into_micro_batches
from mt.decode.translator import Translator
from mt.pipeline import train_run
from mt.text.corpus import PreparedCorpus
from mt.text.prepare import prepare_corpus

REAL = os.environ.get("MT_REAL_DATA")
pytestmark = pytest.mark.skipif(REAL is None, reason="MT_REAL_DATA does not name a folder of real text")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return multi30k.yaml with files instead of the hub, as its header describes."""
    folder = Path(str(REAL)) / "data" / "multi30k"

    def files(name: str) -> str:
        return f"{{src: {folder}/{name}.en.gz, tgt: {folder}/{name}.de.gz}}"

    return load_config(
        "multi30k.yaml",
        [
            f"data.train=[{files('train')}]",
            f"data.valid={files('val')}",
            f"data.test={{flickr2016: {files('test_2016_flickr')}}}",
            f"data.prepared_dir={tmp_path_factory.mktemp('prepared')}",
        ],
    )


@pytest.fixture(scope="module")
def corpus(config: RunConfig) -> PreparedCorpus:
    return prepare_corpus(config)


@pytest.mark.parametrize("batch_tokens", [4_096, 25_000])
def test_packed_captions_leave_little_padding(corpus: PreparedCorpus, batch_tokens: int) -> None:
    src, tgt = corpus.train.src.lengths, corpus.train.tgt.lengths
    plan = UpdatePlan(src, tgt, batch_tokens=batch_tokens, seed=1)
    on_cpu = plan.micro_batch_budget(4_096)
    on_cuda = plan.micro_batch_budget(batch_tokens)
    filled = {"tiles": np.zeros(4), "varlen": np.zeros(4)}
    state = PlanState()
    for _ in range(5):
        sentences, state = plan.update_at(state)
        micro_batches = cut_into_micro_batches(sentences, src, tgt, on_cpu)
        assert len(micro_batches) == on_cpu.n_micro_batches
        batches = [("tiles", assemble_tiles(corpus.train, part, torch.bfloat16)) for part in micro_batches]
        (part,) = cut_into_micro_batches(sentences, src, tgt, on_cuda)
        batches.append(("varlen", assemble_varlen(corpus.train, part, on_cuda, max_tokens=256)))
        for kind, batch in batches:
            filled[kind] += [batch.n_src_tokens, len(batch.src_ids), batch.n_tgt_tokens, len(batch.tgt_inputs)]
    for n_src_tokens, n_src_positions, n_tgt_tokens, n_tgt_positions in filled.values():
        assert n_src_tokens / n_src_positions > 0.91
        assert n_tgt_tokens / n_tgt_positions > 0.94


@pytest.fixture(scope="module")
def run_dir(config: RunConfig, corpus: PreparedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model for 40 updates."""
    settings = replace(
        config.train, max_steps=40, warmup_steps=40, validate_every=40, checkpoint_every=20, log_every=10
    )
    small = replace(config.model, d_model=128, d_ff=256, n_encoder_layers=1, n_decoder_layers=1, dropout=0.0)
    folder = tmp_path_factory.mktemp("runs") / "run"
    short = replace(config.decode, max_length=24)
    train_run(replace(config, train=settings, model=small, decode=short), folder)
    return folder


def test_the_loss_on_captions_falls_within_40_updates(run_dir: Path) -> None:
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [entry["train_loss"] for entry in map(json.loads, lines) if "train_loss" in entry]
    assert losses[0] > 7.5  # near log 8,000 = 9.0
    assert losses[-1] < 6.3
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert report["test_sets"]["flickr2016"]["n_lines"] == 1_000
    assert report["tgt_fill"] > 0.94
    assert len((run_dir / "translations" / "flickr2016.txt").read_bytes().split(b"\n")) == 1_001


def test_a_line_is_translated_the_same_in_any_batch(run_dir: Path, corpus: PreparedCorpus) -> None:
    """In fp32, translations do not depend on the batch size, the order of lines, or other lines."""
    translator = Translator.load(run_dir, device="cpu", precision="fp32")
    lines = [pair.src for pair in corpus.test_pairs["flickr2016"]][::8]
    assert len(lines) == 125
    decode = translator.decode

    def translated(lines: list[str], decode: DecodeConfig) -> list[list[str]]:
        return [[one.text for one in best] for best in translator.translate_lines(lines, decode, n_best=4)]

    together = translated(lines, decode)
    assert len({*map(tuple, together)}) > 50
    for n_sentences in (1, 7, 64):
        assert translated(lines, replace(decode, batch_sentences=n_sentences)) == together
    assert translated(lines[::-1], decode) == together[::-1]
    assert translated(lines[::10], decode) == together[::10]
