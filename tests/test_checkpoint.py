from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mt.checkpoint import ModelFolder, average_weights, save_model_folder
from mt.config.settings import RunConfig, TokenizerConfig, TrainConfig
from mt.errors import CheckpointError
from mt.model import Transformer
from mt.run_folder import RunFolder, checkpoint_step, open_model, quarantine_checkpoint
from mt.system.files import WriteError, write_json
from mt.text.tokenizer import PAD_ID, count_words, train_tokenizer
from tests.toys import files_up_to, toy_config, toy_text

REPAIR = "Restore the original file, or delete the folder and run mt train again."


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return toy_config(tmp_path / "text")


def save(folder: Path, config: RunConfig, tokenizer_path: Path, fill: float = 0.5) -> Transformer:
    model = Transformer(config.model, vocab_size=380, pad_id=PAD_ID)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    save_model_folder(folder, model.state_dict(), config, [tokenizer_path], {"vocab_size": 380}, {"step": 3})
    return model


def test_loading_a_model_folder_returns_the_saved_values(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_of_a_model_have_the_mode_that_the_umask_gives(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path / "model", config, tokenizer_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, mode)


def test_a_failed_write_leaves_only_the_old_folder(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    # Each limit stops a different writer: Python at the config, shutil at the tokenizer, safetensors, torch.
    sizes = {"config.yaml": 1_000, "tokenizer.model": 100_000, "model.safetensors": 500_000, "training.pt": 2_000_000}
    manifest = {"vocab_size": 380}
    big_tokenizer = tmp_path / "big/tokenizer.model"
    big_tokenizer.parent.mkdir()
    big_tokenizer.write_bytes(bytes(200_000))
    save_model_folder(folder, {"w": torch.zeros(1)}, config, [tokenizer_path], manifest, {"step": 3})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for limit in sizes.values():
        with files_up_to(limit), pytest.raises(WriteError) as caught:
            save_model_folder(
                folder,
                {"w": torch.ones(250_000)},  # 1 MB
                config,
                [big_tokenizer],
                manifest,
                {"moments": torch.ones(1_000_000)},  # 4 MB
            )
        assert str(caught.value) == (
            f"{folder} cannot be written: File too large. Raise the limit on the size of files (ulimit -f), then run "
            "the same command again."
        )
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "model", "text"]


def test_an_error_that_is_not_from_the_disk_is_raised_unchanged(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    class OnABrokenDevice:
        def __reduce__(self) -> str:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    folder, state = tmp_path / "model", {"moments": OnABrokenDevice()}
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        save_model_folder(folder, {"w": torch.ones(1)}, config, [tokenizer_path], {"vocab_size": 380}, state)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def entries(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return manifest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Change a file and its checksum in the manifest, as for a deliberate change."""
    path.write_bytes(content)
    manifest = entries(path.parent)
    manifest["sha256"][path.name] = sha256(path)
    write_json(path.parent / "manifest.json", manifest)


def test_the_manifest_has_the_checksum_of_every_other_file(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    assert entries(folder)["sha256"] == {
        name: sha256(folder / name) for name in ("config.yaml", "tokenizer.model", "model.safetensors", "training.pt")
    }
    # A folder that is made from another has its own checksums, not those of the other.
    save_model_folder(tmp_path / "next", {"w": torch.ones(1)}, config, [folder / "tokenizer.model"], entries(folder))
    assert entries(tmp_path / "next")["sha256"] == {
        name: sha256(tmp_path / "next" / name) for name in ("config.yaml", "tokenizer.model", "model.safetensors")
    }


def use(folder: Path, name: str) -> object:
    """Read a file of a model folder as training and translation do."""
    opened = ModelFolder.open(folder)
    if name == "model.safetensors":
        return opened.load_weights()
    if name == "training.pt":
        return opened.load_training_state()
    if name == "tokenizer.model":
        return opened.load_tokenizers()
    return opened.config


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.model", "model.safetensors", "training.pt"])
def test_one_flipped_bit_is_found_anywhere_in_a_file(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path, name: str
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    content = (folder / name).read_bytes()
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 1):
        for bit in (0, 7):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (folder / name).write_bytes(flipped)
            with pytest.raises(CheckpointError) as caught:
                use(folder, name)
            assert str(caught.value) == (
                f"{folder / name} is damaged (its checksum differs from the one in manifest.json). {REPAIR}"
            )
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        use(folder, name)
    (folder / name).write_bytes(content)
    use(folder, name)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    save(tmp_path / "model", config, tokenizer_path)
    src, tgt = toy_text(300, 7)
    train_tokenizer(count_words([*src, *tgt]), TokenizerConfig(vocab_size=370), tmp_path / "other.model")
    replace_file(tmp_path / "model" / "tokenizer.model", (tmp_path / "other.model").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(tmp_path / "model").load_tokenizers()
    assert str(caught.value) == (
        f"{tmp_path / 'model' / 'tokenizer.model'} has 370 pieces, but the model was trained with 380. "
        "Restore the original file."
    )


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    RunFolder(tmp_path).checkpoint(3).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000004.writing").mkdir()
    (tmp_path / "checkpoints" / ".step-00000001.removed").mkdir()
    (tmp_path / "checkpoints" / ".step-00000003.replaced").mkdir()
    (tmp_path / "checkpoints" / ".step-00000002.replaced").mkdir()  # its successor was never renamed
    (tmp_path / ".run.json.writing").write_text("{")
    (tmp_path / ".lock").write_text("")
    RunFolder(tmp_path).remove_leftovers()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        ".lock",
        "checkpoints",
        "step-00000002",
        "step-00000003",
    ]


def test_the_error_for_an_incomplete_folder_names_the_missing_files(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    (folder / "tokenizer.model").unlink()
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder)
    assert str(caught.value) == (
        f"{folder} is not a complete model folder: tokenizer.model and manifest.json are missing. {REPAIR}"
    )


def test_a_folder_of_another_version_is_refused(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    for version in (1, 99):  # the first had no checksums
        write_json(folder / "manifest.json", {"format_version": version})
        with pytest.raises(CheckpointError) as caught:
            ModelFolder.open(folder)
        assert str(caught.value) == (
            f"{folder} was written in format {version}, but this version of mt reads format 2. "
            "Use the version of mt that its manifest.json names."
        )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "JSONDecodeError('Expecting value: line 1 column 1 (char 0)')"),
        ("[]", "TypeError('list indices must be integers or slices, not str')"),
        ('{"vocab_size": 380}', "KeyError('format_version')"),
        ('{"format_version": 2, "vocab_size": "many", "sha256": {}}', """TypeError("vocab_size is 'many'")"""),
        ('{"format_version": 2, "vocab_size": 380}', "KeyError('sha256')"),
        ('{"format_version": 2, "vocab_size": 380, "sha256": null}', "TypeError('sha256 is None')"),
    ],
)
def test_a_damaged_manifest_is_reported_in_one_line(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path, content: str, problem: str
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    (folder / "manifest.json").write_text(content, "utf-8")
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder)
    assert str(caught.value) == (f"{folder / 'manifest.json'} is damaged: {problem}. {REPAIR}")


def test_a_model_folder_without_training_state_cannot_be_resumed(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    (folder / "training.pt").unlink()
    ModelFolder.open(folder).load_weights()
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder).load_training_state()
    assert str(caught.value) == f"{folder / 'training.pt'} is missing, so training cannot continue from this folder"


def test_weights_of_another_shape_are_refused(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    write_json(folder / "manifest.json", {**entries(folder), "vocab_size": 900})
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder).load_model(torch.float32, torch.device("cpu"))
    assert str(caught.value) == (
        f"{folder}: weights do not fit the model: embedding.weight is (384, 32), expected (1024, 32)"
    )


def test_loading_training_state_runs_no_code_from_the_file(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    folder = tmp_path / "model"
    save(folder, config, tokenizer_path)
    torch.save({"step": Path("evil")}, tmp_path / "evil.pt")
    replace_file(folder / "training.pt", (tmp_path / "evil.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"training\.pt cannot be read: Weights only load failed"):
        ModelFolder.open(folder).load_training_state()


def test_the_average_is_the_mean_of_each_weight(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, fill in zip(folders, (0.1, 0.2, 0.6), strict=True):
        save(folder, config, tokenizer_path, fill)
    for tensor in average_weights(folders).values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.3))
        assert tensor.dtype == torch.float32


def make_checkpoints(run_dir: Path, *steps: int) -> None:
    for step in steps:
        RunFolder(run_dir).checkpoint(step).mkdir(parents=True)


def enter(
    run_dir: Path,
    step: int,
    score: float,
    n_best: int = 1,
    by: Literal["bleu", "chrf", "loss"] = "bleu",
    chrf: float = 0.0,
) -> int | None:
    """Record a score and return its rank. Like training, write the checkpoint if it is one of the best."""
    rank = RunFolder(run_dir).record_score(step, score, by, chrf)
    if rank is not None and rank < n_best:
        RunFolder(run_dir).checkpoint(step).mkdir(parents=True, exist_ok=True)
    return rank


def kept_after_pruning(run_dir: Path, due_every: int, **keep: int | None) -> list[int]:
    settings = TrainConfig(checkpoint_every=due_every, **{"average_last": 0, "keep_last": 1, "keep_best": 1, **keep})
    RunFolder(run_dir).prune_checkpoints(settings)
    return [checkpoint_step(folder) for folder in RunFolder(run_dir).checkpoints()]


def test_the_last_scheduled_the_best_and_every_nth_checkpoint_are_kept(tmp_path: Path) -> None:
    steps = (10, 20, 25, 27, 30, 40, 50, 60, 63)
    scores = {10: 9.0, 20: 1.0, 25: 8.0, 27: 7.0, 30: 2.0}
    for name, keep, kept in (
        ("last", {"keep_last": 2}, [10, 60, 63]),
        ("best", {"keep_best": 3}, [10, 25, 27, 63]),
        ("every", {"keep_every": 20}, [10, 20, 40, 60, 63]),
        ("all", {"keep_last": 3, "keep_best": 2, "keep_every": 20}, [10, 20, 25, 40, 50, 60, 63]),
    ):
        run = RunFolder(tmp_path / name)
        make_checkpoints(run.path, *steps)
        for step, score in scores.items():
            enter(run.path, step, score)
        assert kept_after_pruning(run.path, 10, **keep) == kept
        assert run.best_checkpoint() == run.checkpoint(10)
        scheduled = [run.checkpoint(step) for step in kept if step % 10 == 0 or step == 63]
        assert run.scheduled_checkpoints(10)[-2:] == scheduled[-2:]


def test_scores_are_ranked_and_the_ranking_is_saved(tmp_path: Path) -> None:
    assert enter(tmp_path, 10, 20.0, n_best=2) == 0
    assert enter(tmp_path, 20, 19.0, n_best=2) == 1
    assert enter(tmp_path, 30, 18.0, n_best=2) == 2
    assert enter(tmp_path, 40, 19.0, n_best=2) == 2  # the earlier one wins
    assert enter(tmp_path, 50, 21.5, n_best=2) == 0
    assert enter(tmp_path, 60, float("nan"), n_best=2) is None
    best = [(50, 21.5), (10, 20.0), (20, 19.0)]
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text("utf-8")) == {
        "by": "bleu",
        "higher_is_better": True,
        "ranking": [{"step": step, "score": score, "chrf": 0.0} for step, score in best],
    }
    assert [checkpoint_step(folder) for folder in RunFolder(tmp_path).best_checkpoints(9)] == [50, 10, 20]
    assert kept_after_pruning(tmp_path, 100, keep_best=2) == [10, 50]


def test_the_lowest_loss_is_the_best(tmp_path: Path) -> None:
    assert enter(tmp_path, 10, 3.5, by="loss") == 0
    assert enter(tmp_path, 20, 3.6, by="loss") == 1
    assert enter(tmp_path, 30, float("inf"), by="loss") is None
    assert enter(tmp_path, 40, 3.4, by="loss") == 0
    assert RunFolder(tmp_path).best_checkpoint() == RunFolder(tmp_path).checkpoint(40)


def test_chrf_ranks_equal_scores_such_as_a_bleu_of_zero(tmp_path: Path) -> None:
    ranks = [enter(tmp_path, step, 0.0, chrf=chrf) for step, chrf in ((10, 15.7), (20, 82.8), (30, 80.0), (40, 82.8))]
    assert ranks == [0, 0, 1, 1]  # of equal ones, the earlier is better
    assert RunFolder(tmp_path).best_checkpoint() == RunFolder(tmp_path).checkpoint(20)
    assert enter(tmp_path, 50, 0.1, chrf=3.0) == 0


def test_a_ranking_that_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 10)
    write_json(RunFolder(tmp_path).scores, {"by": "bleu", "ranking": [{"step": 10, "score": 20.0}]})
    assert enter(tmp_path, 20, 19.0, chrf=50.0) == 1


def test_a_score_whose_checkpoint_was_never_written_is_ignored(tmp_path: Path) -> None:
    enter(tmp_path, 10, 20.0)
    # Killed between validation and checkpoint: the previous checkpoint is still the best, and is kept.
    RunFolder(tmp_path).record_score(20, 30.0, "bleu", 50.0)
    assert RunFolder(tmp_path).best_checkpoint() == RunFolder(tmp_path).checkpoint(10)
    make_checkpoints(tmp_path, 15)
    assert kept_after_pruning(tmp_path, 5) == [10, 15]
    # Training continued from there, and validated at another step than before.
    assert enter(tmp_path, 19, 21.0) == 0
    # A second score of the same update replaces the first.
    assert enter(tmp_path, 19, 20.5) == 0
    assert enter(tmp_path, 19, 19.5) == 1


def test_if_the_best_checkpoint_is_gone_the_next_best_replaces_it(tmp_path: Path) -> None:
    for step, score in ((10, 20.0), (20, 19.0), (30, 18.0)):
        enter(tmp_path, step, score, n_best=3)
    quarantine_checkpoint(RunFolder(tmp_path).checkpoint(10))
    assert RunFolder(tmp_path).best_checkpoint() == RunFolder(tmp_path).checkpoint(20)
    assert enter(tmp_path, 40, 18.5, n_best=2) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"step": 25, "bleu": 3.0}', '{"ranking": [{"step": "x"}]}'])
def test_an_unreadable_ranking_is_ignored(tmp_path: Path, content: str) -> None:
    make_checkpoints(tmp_path, 10)
    (tmp_path / "checkpoints" / "best.json").write_text(content, "utf-8")
    assert RunFolder(tmp_path).best_checkpoint() is None
    assert enter(tmp_path, 20, 1.0) == 0


def test_a_model_is_found_in_a_run_a_checkpoint_or_a_model_folder(
    tmp_path: Path, config: RunConfig, tokenizer_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError) as caught:
        open_model(run)
    assert str(caught.value) == f"{run}: no such folder. Give a run folder, a checkpoint or a model folder."
    not_yet = f"{run}: this run has no checkpoint yet. Wait until training writes the first one."
    with RunFolder(run).held(), pytest.raises(CheckpointError) as caught:  # its data is being prepared
        open_model(run)
    assert str(caught.value) == not_yet
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        open_model(run)
    assert str(caught.value) == not_yet
    for step in (1, 2, 3):
        save(RunFolder(run).checkpoint(step), config, tokenizer_path)
    assert open_model(run).path == RunFolder(run).checkpoint(3)
    enter(run, 2, 30.0)
    assert open_model(run).path == RunFolder(run).checkpoint(2)
    assert open_model(RunFolder(run).checkpoint(1)).path == RunFolder(run).checkpoint(1)
    save(run / "model", config, tokenizer_path)
    assert open_model(run).path == run / "model"
    # A damaged model folder is an error, not a reason to use another model without a message.
    (run / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{run}/model is not a complete model folder"):
        open_model(run)
    weights = RunFolder(run).checkpoint(1) / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        open_model(weights)
    assert str(caught.value) == (
        f"{weights} is a file, expected a folder. Give the folder that contains it ({weights.parent})."
    )


def test_the_error_for_a_folder_of_models_lists_them(tmp_path: Path, config: RunConfig, tokenizer_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_model(run)
    assert str(caught.value) == f"{run}: this run has no checkpoint yet. Wait until training writes the first one."
    for step in (1, 2):
        save(RunFolder(run).checkpoint(step), config, tokenizer_path)
    for folder, inside in (
        (tmp_path, [run]),
        (run / "checkpoints", [RunFolder(run).checkpoint(step) for step in (1, 2)]),
    ):
        with pytest.raises(CheckpointError) as caught:
            open_model(folder)
        choice = ", ".join(map(str, inside))
        assert str(caught.value) == f"{folder} is not a model folder, but contains models. Give one of {choice}."


def test_an_export_given_as_a_model_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is an export for CTranslate2. Use it in mt translate with --backend ctranslate2; other "
        "commands need the original model."
    )
