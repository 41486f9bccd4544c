from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import mt.checkpoint
from mt.checkpoint import (
    ModelFolder,
    average_weights,
    best_checkpoint,
    checkpoint_path,
    checkpoints,
    find_model_folder,
    prune_checkpoints,
    save_model_folder,
    sweep,
    write_json,
)
from mt.config import RunConfig, TokenizerConfig
from mt.errors import CheckpointError
from mt.model import Transformer
from mt.text.tokenizer import PAD_ID, train_tokenizer
from tests.toys import toy_config, toy_text


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    src, tgt = toy_text(200, 1)
    train_tokenizer([*src, *tgt], TokenizerConfig(vocab_size=380), path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return toy_config(tmp_path / "text")


def save(folder: Path, config: RunConfig, tokenizer_path: Path, fill: float = 0.5) -> Transformer:
    model = Transformer(config.model, vocab_size=380, pad_id=PAD_ID)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    save_model_folder(folder, model.state_dict(), config, tokenizer_path, {"vocab_size": 380}, {"step": 3})
    return model


def test_a_model_folder_gives_back_what_was_saved(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    saved = save(tmp_path / "model", config, tokenizer_path)
    folder = ModelFolder.open(tmp_path / "model")
    assert folder.config == config
    assert folder.load_training_state() == {"step": 3}
    loaded = folder.load_model(torch.float32, torch.device("cpu"))
    assert not loaded.training
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.yaml",
        "manifest.json",
        "model.safetensors",
        "tokenizer.model",
        "training.pt",
    ]


def test_a_failed_write_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", config, tokenizer_path, fill=0.25)

    # Each library reports a full disk in its own way.
    for error, reason in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (SafetensorError("I/O error: no space"), "I/O error: no space"),
        (RuntimeError("PytorchStreamWriter failed writing file"), "PytorchStreamWriter failed writing file"),
    ):

        def full(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(mt.checkpoint, "save_file", full)
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path / "model", config, tokenizer_path, fill=0.75)
        assert str(caught.value) == f"{tmp_path / 'model'}: cannot be written: {reason}"
        assert ModelFolder.open(tmp_path / "model").load_weights()["embedding.weight"][0, 0] == 0.25
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    save(tmp_path / "model", config, tokenizer_path)
    src, tgt = toy_text(300, 7)
    train_tokenizer([*src, *tgt], TokenizerConfig(vocab_size=370), tmp_path / "model" / "tokenizer.model")
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(tmp_path / "model").load_tokenizer()
    assert str(caught.value) == (
        f"{tmp_path / 'model' / 'tokenizer.model'}: has 370 pieces, the model was trained with 380: "
        "put the original file back"
    )


def test_what_killed_writes_left_is_swept(tmp_path: Path) -> None:
    checkpoint_path(tmp_path, 3).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000004.writing").mkdir()
    (tmp_path / "checkpoints" / ".step-00000001.removed").mkdir()
    (tmp_path / "checkpoints" / ".step-00000003.replaced").mkdir()
    (tmp_path / "checkpoints" / ".step-00000002.replaced").mkdir()  # its successor was never renamed to its place
    (tmp_path / ".run.json.writing").write_text("{")
    (tmp_path / ".lock").write_text("")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        ".lock",
        "checkpoints",
        "step-00000002",
        "step-00000003",
    ]


def test_an_incomplete_folder_is_named_with_what_it_lacks(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    (folder / "tokenizer.model").unlink()
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder)
    assert str(caught.value) == f"{folder}: is no complete model folder: tokenizer.model, manifest.json missing"


def test_a_folder_of_another_version_is_refused(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    write_json(folder / "manifest.json", {**manifest, "format_version": 99})
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder)
    assert str(caught.value) == (
        f"{folder}: was written in format 99, this version of mt reads format 1: "
        "use the version of mt that its manifest.json names"
    )


def test_damaged_weights_are_one_line(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder).load_weights()
    assert str(caught.value).startswith(f"{folder / 'model.safetensors'}: is damaged: ")
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    write_json(folder / "manifest.json", {**manifest, "vocab_size": 900})
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder).load_model(torch.float32, torch.device("cpu"))
    assert str(caught.value) == (
        f"{folder}: weights do not fit the model: embedding.weight is (384, 32), the config needs (1024, 32)"
    )


def test_opening_a_folder_runs_no_code(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    torch.save({"step": Path("evil")}, folder / "training.pt")
    with pytest.raises(CheckpointError, match=r"training\.pt: is missing or damaged: Weights only load failed"):
        ModelFolder.open(folder).load_training_state()


def test_the_average_is_the_mean_of_each_weight(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, fill in zip(folders, (0.1, 0.2, 0.6), strict=True):
        save(folder, config, tokenizer_path, fill)
    for tensor in average_weights(folders).values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.3))
        assert tensor.dtype == torch.float32


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30, 40, 47):
        checkpoint_path(tmp_path, step).mkdir(parents=True)
    write_json(tmp_path / "checkpoints" / "best.json", {"step": 25})
    prune_checkpoints(tmp_path, 2, every=10)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000025", "step-00000040", "step-00000047"]
    assert best_checkpoint(tmp_path) == checkpoint_path(tmp_path, 25)


def test_a_model_is_found_in_a_run_a_checkpoint_and_a_folder(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError) as caught:
        find_model_folder(run)
    assert str(caught.value) == f"{run}: no such folder: give a run folder, a checkpoint or a model folder"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        find_model_folder(run)
    assert str(caught.value) == f"{run}: this run has no checkpoint yet: wait for the first one"
    for step in (1, 2, 3):
        save(checkpoint_path(run, step), config, tokenizer_path)
    assert find_model_folder(run) == checkpoint_path(run, 3)
    write_json(run / "checkpoints" / "best.json", {"step": 2})
    assert find_model_folder(run) == checkpoint_path(run, 2)
    assert find_model_folder(checkpoint_path(run, 1)) == checkpoint_path(run, 1)
    save(run / "model", config, tokenizer_path)
    assert find_model_folder(run) == run / "model"
    # A damaged result is an error, not a reason to take another model in silence.
    (run / "model" / "model.safetensors").unlink()
    assert find_model_folder(run) == run / "model"
    weights = checkpoint_path(run, 1) / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        find_model_folder(weights)
    assert str(caught.value) == f"{weights}: is a file: give the folder that it lies in, {weights.parent}"
