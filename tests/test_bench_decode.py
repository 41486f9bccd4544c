"""scripts/bench_decode.py: each engine gets the same model, and the table shows the measurements."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

import bench_decode
import pytest
import torch
from bench_decode import Measured

from mt.config.settings import DecodeConfig
from mt.decode.search import SearchRequest, search
from mt.text.tokenizer import EOS_ID, Tokenizer
from tests.toys import toy_text, write_lines


@pytest.fixture
def model_folder(toy_model: Path) -> Path:
    return toy_model


def test_ctranslate2_and_our_search_are_measured_on_the_same_text(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    src, tgt = toy_text(7, 4)
    files = ["--input", write_lines(tmp_path / "src", src), "--reference", write_lines(tmp_path / "tgt", tgt)]
    engines = ["--engine", "mt fp32", "--engine", "ctranslate2 float32"]
    sizes = ["--batch-sentences", "3", "--beam-size", "1", "--threads", "1", "--rounds", "2", "--latency-lines", "2"]
    command = [sys.executable, bench_decode.__file__, "--model", model_folder, *files, *engines, *sizes, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["n_lines"], figures["absent"]) == (7, {})
    ours, theirs = figures["engines"]
    assert (ours["engine"], theirs["engine"]) == ("mt fp32", "ctranslate2 float32")
    assert (ours["n_equal"], theirs["ratio"]) == (7, None)
    for row in (ours, theirs):
        seconds = figures["seconds"][row["engine"]]
        assert len(seconds) == 2
        assert row["sentences_per_second"] == 7 / statistics.median(seconds)
        n_tokens = 7 * row["tokens_per_sentence"]
        assert row["tgt_tokens_per_second"] == pytest.approx(statistics.median(n_tokens / each for each in seconds))
        assert 0 < row["latency_p50"] <= row["latency_p95"]


def test_transformers_gets_the_same_model(model_folder: Path) -> None:
    pytest.importorskip("transformers")
    setting = bench_decode.Setting(model_folder, Path(), beam_size=1, length_penalty=0.0, threads=1, device="cpu")
    tokenizer = Tokenizer.load(model_folder / "tokenizer.model")
    sentences = [[*ids, EOS_ID] for ids in tokenizer.encode_batch(toy_text(5, 4)[0])]
    model = bench_decode.open_folder(model_folder).load_model(torch.float32, torch.device("cpu"))
    decode = DecodeConfig(beam_size=1, length_penalty=0.0)
    ours = search(model, SearchRequest(sentences, decode, banned_ids=sorted(tokenizer.line_breaking_ids)))
    (theirs,) = bench_decode.load_transformers("fp32", setting)([sentences])
    for (one,), other in zip(ours, theirs, strict=True):
        assert list(one.ids)[:20] == other[:20]


def test_each_row_summarises_the_rounds_of_an_engine(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder / "tokenizer.model")
    bar, dest = tokenizer.encode("BAR"), tokenizer.encode("DEST")
    n_tokens = 2 * (len(bar) + 1) + len(dest) + 1
    measured = {
        "mt fp32": Measured([1.0, 2.0, 4.0], [[dest], [bar, bar]], [0.1, 0.3, 0.2]),
        "ctranslate2 int8": Measured([2.0, 2.0, 2.0], [[bar], [bar, bar]]),
    }
    ours, theirs = bench_decode.rows_of(measured, [1, 0, 2], tokenizer, ["BAR", "DEST", "BAR"])
    assert ours.tgt_tokens_per_second == n_tokens / 2
    assert ours.slowest_and_fastest == (n_tokens / 4, n_tokens)
    assert (ours.sentences_per_second, ours.tokens_per_sentence) == (1.5, n_tokens / 3)
    assert (ours.ratio, ours.n_equal, ours.latency_p50, ours.latency_p95) == (1.0, 3, 0.2, 0.3)
    assert (theirs.ratio, theirs.n_equal, theirs.latency_p50) == (1.0, 2, None)
    assert bench_decode.markdown([ours, theirs]).splitlines()[2].endswith(" | 3 | 200 / 300 ms |")


def test_an_engine_that_is_not_installed_is_left_out_with_the_reason(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench_decode.why_not("mt bf16", model_folder) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for engine, package in (("ctranslate2 int8", "'mt-train[ctranslate2]'"), ("transformers fp32", "transformers")):
        reason = f"{engine.split()[0]} is not installed: pip install {package}"
        assert bench_decode.why_not(engine, model_folder) == reason


def test_an_unknown_engine_is_refused(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench_decode.main(["--model", str(model_folder), "--input", "x", "--reference", "x", "--engine", "mt int8"])
    assert caught.value.code == 2
    assert "argument --engine: invalid choice: 'mt int8' (choose from " in capsys.readouterr().err
