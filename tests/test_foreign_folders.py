"""Folders of strangers, and damaged ones: one line of error, before anything of their size is built."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mt.checkpoint
from mt.checkpoint import ModelFolder
from mt.errors import CheckpointError
from mt.run_folder import RunFolder
from mt.system.files import parse_json, read_json
from tests.conftest import Run

Change = Callable[[bytes], bytes]


def forged(model: Path, to: Path, name: str, change: Change) -> Path:
    """Return a copy of a model folder with one file changed, and a checksum that fits."""
    shutil.copytree(model, to)
    (to / name).write_bytes(change((to / name).read_bytes()))
    manifest = json.loads((to / "manifest.json").read_text("utf-8")) if name != "manifest.json" else None
    if manifest is not None:
        manifest["sha256"][name] = hashlib.sha256((to / name).read_bytes()).hexdigest()
        (to / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return to


def setting(key: str, value: object) -> Change:
    """Return a change of a setting that config.yaml has once."""

    def change(config: bytes) -> bytes:
        lines = config.decode().split("\n")
        (place,) = (i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        lines[place] = f"{lines[place].partition(':')[0]}: {value}"
        return "\n".join(lines).encode()

    return change


def entry(key: str, value: object) -> Change:
    """Return a change of an entry of the manifest."""
    return lambda manifest: json.dumps({**json.loads(manifest), key: value}).encode()


def header(change: Callable[[dict[str, Any]], None]) -> Change:
    """Return a change of the header of the weights."""

    def changed(weights: bytes) -> bytes:
        (size,) = struct.unpack("<Q", weights[:8])
        tensors = {name: one for name, one in json.loads(weights[8 : 8 + size]).items() if name != "__metadata__"}
        change(tensors)
        text = json.dumps(tensors).encode()
        return struct.pack("<Q", len(text)) + text + weights[8 + size :]

    return changed


def one_more_dimension(tensors: dict[str, Any]) -> None:
    tensors["embedding.weight"]["shape"].insert(0, 1)


def integers(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor["dtype"] = "I32"


def not_a_number(weights: bytes) -> bytes:
    return weights[:-4] + struct.pack("<f", float("nan"))


REPAIR = "Restore the original file, or delete the folder and run mt train again."
UNFIT = "weights do not fit the model: "


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", lambda _: b"[" * 200_000, "is damaged: ValueError('it is nested too deeply')"),
        (
            "manifest.json",
            lambda _: b'{"format_version": ' + b"9" * 5_000 + b"}",
            "is damaged: ValueError('Exceeds the",
        ),
        ("manifest.json", lambda _: b"[1]", "is damaged: TypeError("),
        ("manifest.json", entry("vocab_size", -5), "is damaged: TypeError('vocab_size is -5')"),
        ("manifest.json", entry("vocab_size", True), "is damaged: TypeError('vocab_size is True')"),
        ("manifest.json", entry("averaged_steps", "<b>"), "is damaged: TypeError(\"averaged_steps is '<b>'\")"),
        ("manifest.json", entry("train_seconds", 1e999), "is damaged: TypeError('train_seconds is inf')"),
        (
            "manifest.json",
            entry("vocab_size", 10**13),
            f"{UNFIT}there are 33,664 of them, but vocab_size is 10,000,000",
        ),
        ("config.yaml", setting("d_model", 65_536_000), f"{UNFIT}there are 33,664 of them, but model.d_model is 65,5"),
        ("config.yaml", setting("n_encoder_layers", 10**8), f"{UNFIT}there are 33,664 of them, but model.n_encoder_"),
        ("config.yaml", setting("n_decoder_layers", 20_000), f"{UNFIT}decoder.1.cross_attention.kv.bias is missing"),
        ("config.yaml", setting("d_ff", 72), f"{UNFIT}decoder.0.feed_forward.inner.bias is (64,), expected (72,)"),
        ("config.yaml", setting("name", "0x" + "f" * 9_000), "is not valid YAML: the number has too many digits"),
        (
            "config.yaml",
            setting("d_model", "1.0e+300"),
            "d_model: expected an integer up to 9223372036854775807, got a",
        ),
        ("config.yaml", setting("min_length", 10**12), "min_length: expected an integer from 0 to 10,000, got 1000000"),
        ("config.yaml", lambda config: config + b"#" * (1 << 20), "characters, expected 1,048,576 at most"),
        (
            "model.safetensors",
            header(one_more_dimension),
            f"{UNFIT}embedding.weight is (1, 384, 32), expected (384, 32)",
        ),
        ("model.safetensors", header(integers), "weights are I32, expected F32"),
        ("model.safetensors", not_a_number, "is damaged: encoder.0.self_residual.norm.weight has NaN or infinite"),
        ("model.safetensors", lambda weights: weights[:-1000], "cannot be read: Error while deserializing header"),
        ("model.safetensors", lambda _: (2**62).to_bytes(8, "little") + b"{}", "header too large"),
    ],
)
def test_a_forged_model_ends_in_one_line_before_it_is_built(
    toy_model: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Change,
    message: str,
) -> None:
    folder = forged(toy_model, tmp_path / "forged", name, change)
    if UNFIT in message:  # compared with the header alone
        monkeypatch.setattr(mt.checkpoint, "load_file", None)
    status, out, err = run("translate", "--model", folder, "--device", "cpu", stdin=b"bar\n")
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1_000


def test_the_number_of_parameters_of_a_forged_model_is_not_computed(toy_model: Path, tmp_path: Path) -> None:
    folder = ModelFolder.open(forged(toy_model, tmp_path / "forged", "config.yaml", setting("n_encoder_layers", 10**8)))
    with pytest.raises(CheckpointError, match=UNFIT):
        _ = folder.n_parameters


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "model.safetensors", "tokenizer.model"])
def test_a_named_pipe_in_place_of_a_file_of_a_model_is_a_missing_file(
    toy_model: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(toy_model, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    os.mkfifo(tmp_path / "model" / name)
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(tmp_path / "model")
    assert str(caught.value) == f"{tmp_path / 'model'} is not a complete model folder: {name} is missing. {REPAIR}"


def test_control_characters_of_a_foreign_folder_do_not_reach_the_terminal(
    toy_model: Path, tmp_path: Path, run: Run
) -> None:
    evil = entry("format_version", "\x1b[31mRED\x1b]0;title\x07\x9b\u202e")
    folder = forged(toy_model, tmp_path / "forged", "manifest.json", evil)
    status, _, err = run("translate", "--model", folder, stdin=b"bar\n")
    assert status == 2
    assert r"format \u001b[31mRED\u001b]0;title\u0007\u009b\u202e, but" in err
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "it is nested too deeply"),
        (b"[]", "unexpected content"),
        (b'{"starts": []}', "unexpected corpus_fingerprint"),
        (b'{"corpus_fingerprint": "a", "starts": ["<b>"]}', "unexpected starts.0"),
        (b'{"corpus_fingerprint": "a", "starts": [{"command": "x"}]}', "unexpected starts.0.command"),
    ],
)
def test_a_record_of_another_shape_is_damaged(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        RunFolder(tmp_path).read_record()
    assert str(caught.value) == (
        f"{tmp_path / 'run.json'} is damaged ({reason}). Restore it from a copy, or start over with another --run-dir."
    )


@pytest.mark.parametrize(
    "content", [b'{"ranking": [{"step": 1e999, "score": 1}]}', b'{"ranking": [[]]}', b"[" * 200_000]
)
def test_a_ranking_of_another_shape_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    run = RunFolder(tmp_path)
    run.checkpoint(3).mkdir(parents=True)
    run.scores.write_bytes(content)
    assert run.best_checkpoint() is None


def test_json_is_read_only_from_a_file_of_a_size_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [1]}', "utf-8")
    assert read_json(path) == {"a": [1]}
    monkeypatch.setattr("mt.system.files.MOST_JSON_BYTES", 9)
    with pytest.raises(ValueError, match="it has 10 bytes"):
        read_json(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_json(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="it is not a regular file"):
        read_json(path)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000)
