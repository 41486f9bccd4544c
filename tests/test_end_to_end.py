"""End to end, through the command line, on text so small that training takes seconds."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt.config.loading import dump_config
from tests.forks import MT, run_mt
from tests.toys import toy_config, toy_text, write_lines


def shell(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, as from a shell."""
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def mt(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run `mt` as from a shell, without the time for imports."""
    done = run_mt(*arguments, stdin=text.encode())
    return subprocess.CompletedProcess(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    """Train a run through the command line."""
    (folder / "toy.yaml").write_text(dump_config(toy_config(folder / "text", max_steps=60, peak_lr=5e-3)), "utf-8")
    done = shell("-m", "mt", "train", "--config", folder / "toy.yaml", "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    assert "held_out (20 lines)" in done.stdout
    return folder / "run"


def test_translating_and_scoring_a_file_gives_the_scores_of_the_report(run_dir: Path, folder: Path) -> None:
    src, ref = folder / "text" / "test.en", folder / "text" / "test.de"
    command = ["translate", "--model", run_dir, "--input", src, "--output", folder / "out.de", "--precision", "fp32"]
    done = shell("-m", "mt", *command)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "" or re.fullmatch(r"\d+ of 20 lines were translated twice, .*\n", done.stderr)
    piped = mt("translate", "--model", run_dir / "model", "--precision", "fp32", text=src.read_text("utf-8"))
    assert piped.stdout == (folder / "out.de").read_text("utf-8")
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    by_model = json.loads(mt("eval", "--model", run_dir, "--json", "--precision", "fp32").stdout)
    by_file = json.loads(mt("eval", "--hyp", folder / "out.de", "--ref", ref, "--json").stdout)
    assert by_model["test_sets"]["held_out"] == by_file["test_sets"]["input"] == report["test_sets"]["held_out"]
    sacrebleu = shell("-m", "sacrebleu", ref, "-i", folder / "out.de", "-m", "bleu", "chrf", "-w", "10")
    theirs = {score["name"]: score["score"] for score in json.loads(sacrebleu.stdout)}
    for score in by_file["test_sets"]["input"]["scores"][:2]:
        assert round(score["score"], 10) == theirs[score["name"]]


def test_each_unusual_line_gives_one_output_line(run_dir: Path) -> None:
    text = "bar dest\n\n🙂\n" + "x" * 100_000 + "\nПривет\u2028мир\nno line feed at the end"
    done = mt("translate", "--model", run_dir, text=text)
    assert done.returncode == 0
    lines = done.stdout.split("\n")
    assert len(lines) == 7
    assert lines[1] == lines[6] == ""
    first, *_ = done.stderr.splitlines()
    assert first == "warning: 1 of 6 lines had more than 64 tokens and were translated in parts"


def test_n_best_as_jsonl_has_scores(run_dir: Path) -> None:
    done = mt("translate", "--model", run_dir, "--n-best", "2", "--format", "jsonl", text="bar dest fin\n\n")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["line"], first["src"], len(first["hypotheses"])) == (1, "bar dest fin", 2)
    assert first["hypotheses"][0]["score"] > first["hypotheses"][1]["score"]
    assert [hypothesis["text"] for hypothesis in second["hypotheses"]] == [""]


def test_ctrl_c_saves_and_says_how_to_continue(folder: Path) -> None:
    config = toy_config(folder / "text", max_steps=1_000_000, validate_every=1_000_000, checkpoint_every=1_000_000)
    (folder / "endless.yaml").write_text(dump_config(config), "utf-8")
    run_dir = folder / "interrupted"
    with MT("train", "--config", folder / "endless.yaml", "--run-dir", run_dir) as process:
        while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text("utf-8"):
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
    (checkpoint,) = (run_dir / "checkpoints").glob("step-*")
    step = int(checkpoint.name[5:])
    assert errors.decode().splitlines()[-1] == (
        f"stopped after step {step:,}; everything is saved in {run_dir}. Run the same command again to continue"
    )


@pytest.fixture(scope="module")
def hub_folder(folder: Path) -> Path:
    """Write a data set in the layout of wmt/wmt14 on the hub."""
    for split, n in (("train", 300), ("validation", 20), ("test", 20)):
        rows = [{"de": tgt, "en": src} for src, tgt in zip(*toy_text(n, n), strict=True)]
        path = folder / "hub" / "de-en" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"translation": rows}), path)
    card = "---\nconfigs:\n- config_name: de-en\n  data_files:\n"
    for split in ("train", "validation", "test"):
        card += f"  - split: {split}\n    path: de-en/{split}-*\n"
    (folder / "hub" / "README.md").write_text(card + "---\n", "utf-8")
    return folder / "hub"


@pytest.mark.parametrize("name", ["base.yaml", "big.yaml"])
def test_the_configs_for_wmt14_run_through_all_stages(folder: Path, hub_folder: Path, name: str) -> None:
    overrides = {
        "data.train.0.dataset": hub_folder,
        "data.valid.dataset": hub_folder,
        "data.test.newstest2014.dataset": hub_folder,
        "data.prepared_dir": folder / "prepared",
        "tokenizer.vocab_size": 380,
        "model": "{d_model: 32, n_heads: 2, d_ff: 64, n_encoder_layers: 2, n_decoder_layers: 2}",
        "train.batch_tokens": 256,
        "train.max_steps": 4,
        "train.checkpoint_every": 2,
    }
    settings = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    done = mt("train", "--config", name, "--run-dir", folder / name, *settings)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / name / "report.json").read_text("utf-8"))
    assert report["steps"] == 4
    assert report["test_sets"]["newstest2014"]["n_lines"] == 20


def failing(*arguments: str | Path, text: str = "") -> str:
    """Run a command that must fail, and return its error line."""
    done = mt(*arguments, text=text)
    assert (done.returncode, done.stdout) == (2, "")
    *_, last = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert last.startswith("error: ")
    return last.removeprefix("error: ")


def test_a_missing_file_is_reported_before_any_work(folder: Path) -> None:
    config = toy_config(folder / "other")
    (folder / "missing.yaml").write_text(dump_config(config), "utf-8")
    (folder / "other" / "test.de").unlink()
    message = failing("train", "--config", folder / "missing.yaml", "--run-dir", folder / "missing")
    assert message == f"{folder / 'other' / 'test.de'}: no such file"
    assert not (folder / "other" / "prepared").exists() or not list((folder / "other" / "prepared").iterdir())


def test_the_error_for_a_vocabulary_that_is_too_large_gives_the_maximum(folder: Path) -> None:
    config = toy_config(folder / "small")
    (folder / "vocab.yaml").write_text(dump_config(config), "utf-8")
    message = failing(
        "train", "--config", folder / "vocab.yaml", "--run-dir", folder / "v", "--set", "tokenizer.vocab_size=9000"
    )
    assert message.startswith("tokenizer.vocab_size: ")
    assert "9000" in message.replace(",", "")


def test_an_incomplete_model_folder_is_reported_in_one_line(run_dir: Path, folder: Path) -> None:
    incomplete = folder / "incomplete"
    incomplete.mkdir()
    (incomplete / "config.yaml").write_text("name: x\n", "utf-8")
    assert failing("translate", "--model", incomplete, text="bar\n") == (
        f"{incomplete} is not a complete model folder: model.safetensors, tokenizer.model and manifest.json are "
        "missing. Restore the original file, or delete the folder and run mt train again."
    )
    assert failing("eval", "--model", run_dir, "--test", "newstest2014") == (
        f"--test: {run_dir} has no test set newstest2014. It has held_out."
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_in_one_line(run_dir: Path, folder: Path) -> None:
    src = folder / "text" / "test.en"
    assert failing("translate", "--model", run_dir, "--input", src, "--output", "/dev/full") == (
        "/dev/full cannot be written: No space left on device. Free some space, then run the same command again."
    )
    done = run_mt("translate", "--model", run_dir, "--input", src, before=print_to_a_full_disk)
    assert (done.returncode, done.stderr) == (
        2,
        b"error: standard output cannot be written: No space left on device. Free some space, then run the same "
        b"command again.\n",
    )


def print_to_a_full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())


def test_compressed_input_is_translated_like_plain_text(run_dir: Path, folder: Path) -> None:
    src = folder / "text" / "test.en"
    packed, disguised = folder / "test.en.gz", folder / "disguised.en"
    packed.write_bytes(gzip.compress(src.read_bytes()))
    disguised.write_bytes(packed.read_bytes())
    plain = mt("translate", "--model", run_dir, "--input", src)
    assert mt("translate", "--model", run_dir, "--input", packed).stdout == plain.stdout
    assert failing("translate", "--model", run_dir, "--input", disguised) == (
        f"{disguised} is compressed with gzip. Unpack it, or add .gz to its name."
    )


def test_errors_of_translate_name_the_options(run_dir: Path) -> None:
    assert failing("translate", "--model", run_dir, "--n-best", "9", text="bar\n") == (
        "--n-best is 9, more than --beam-size (4). Raise --beam-size or lower --n-best."
    )
    assert failing("translate", "--model", run_dir, "--device", "gpu", text="bar\n") == (
        "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"
    )


def test_files_of_different_lengths_are_refused(folder: Path) -> None:
    hyp, ref = write_lines(folder / "hyp", ["a", "b"]), write_lines(folder / "ref", ["a"])
    assert failing("eval", "--hyp", hyp, "--ref", ref) == (
        f"{hyp} has 2 lines and {ref} has 1, but both files need the same number of lines"
    )
