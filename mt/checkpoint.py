"""Model folders and checkpoints: written whole, read with care, kept as long as they are needed, averaged.

A model folder stands alone: `model.safetensors`, `config.yaml`, `tokenizer.model`, `manifest.json`. A checkpoint is a
model folder with `training.pt` beside the weights. Neither can run code when it is opened.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mt.config import RunConfig
from mt.configfile import dump_config, load_config
from mt.errors import CheckpointError, MTError
from mt.model import Transformer
from mt.text.tokenizer import PAD_ID, Tokenizer

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TOKENIZER, MANIFEST, TRAINING = (
    "model.safetensors",
    "config.yaml",
    "tokenizer.model",
    "manifest.json",
    "training.pt",
)
BEST = "best.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that has all its files and is of our version."""

    path: Path
    config: RunConfig
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read the small files of a model folder.

        Raises:
            CheckpointError: something is missing, damaged, or of another version.
        """
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such model folder")
        missing = [name for name in (WEIGHTS, CONFIG, TOKENIZER, MANIFEST) if not (path / name).is_file()]
        if missing:
            raise CheckpointError(f"{path}: is no complete model folder: {', '.join(missing)} missing")
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version, vocab_size = manifest["format_version"], manifest["vocab_size"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path / MANIFEST}: is damaged: {error!r}") from error
        if version != FORMAT_VERSION or not isinstance(vocab_size, int):
            raise CheckpointError(
                f"{path}: was written in format {version}, this version of mt reads format {FORMAT_VERSION}: "
                "use the version of mt that its manifest.json names"
            )
        try:
            config = load_config(str(path / CONFIG))
        except MTError as error:
            raise CheckpointError(f"{path}: its {CONFIG} does not load: {error}") from error
        return cls(path, config, manifest)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        if tokenizer.vocab_size != self.manifest["vocab_size"]:
            raise CheckpointError(
                f"{self.path / TOKENIZER}: has {tokenizer.vocab_size:,} pieces, the model was trained with "
                f"{self.manifest['vocab_size']:,}: put the original file back"
            )
        return tokenizer

    def load_weights(self) -> dict[str, Tensor]:
        """All parameters by name, float32."""
        try:
            return load_file(self.path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path / WEIGHTS}: is damaged: {error}") from error

    def load_model(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """The model for inference, all of it in one type."""
        model = Transformer(
            self.config.model, vocab_size=self.manifest["vocab_size"], pad_id=PAD_ID, dtype=torch.float32
        )
        load_into(model, self.load_weights(), self.path)
        return model.to(device).for_inference(dtype)

    def load_training_state(self) -> dict[str, Any]:
        """What training needs besides the weights, tensors on the CPU."""
        try:
            state: dict[str, Any] = torch.load(self.path / TRAINING, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the damage leads to
            raise CheckpointError(f"{self.path / TRAINING}: is missing or damaged: {error}") from error
        return state


def load_into(model: Transformer, weights: dict[str, Tensor], origin: Path) -> None:
    """Copy weights into a model of the same shape.

    Raises:
        CheckpointError: names or shapes differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = differing[0]
        raise CheckpointError(
            f"{origin}: weights do not fit the model: {name} is {found.get(name, 'missing')}, "
            f"the config needs {expected.get(name, 'none')}"
        )
    model.load_state_dict(weights)


def save_model_folder(
    folder: Path,
    weights: dict[str, Tensor],
    config: RunConfig,
    tokenizer_path: Path,
    manifest: dict[str, Any],
    training_state: dict[str, Any] | None = None,
) -> None:
    """Write a model folder, with a training state a checkpoint, beside its place, then rename it there.

    A folder that stands there already is replaced.

    Args:
        manifest: JSON; must hold `vocab_size`. The format's version is added.
    """
    building = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, building / WEIGHTS)
        (building / CONFIG).write_text(dump_config(config), encoding="utf-8")
        shutil.copyfile(tokenizer_path, building / TOKENIZER)
        write_json(building / MANIFEST, {"format_version": FORMAT_VERSION, **manifest})
        if training_state is not None:
            torch.save(training_state, building / TRAINING)
        for path in building.iterdir():
            _sync(path)
        _sync(building)
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        building.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last two are how the libraries report a full disk
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{folder}: cannot be written: {reason}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place, then rename it there."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _sync(path: Path) -> None:
    if os.name == "nt":  # there a folder cannot be opened, nor a file that is read only be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of an update lies."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The update after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the best validation score so far, None before the first validation."""
    try:
        step = json.loads((run_dir / "checkpoints" / BEST).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError):
        return None
    folder = checkpoint_path(run_dir, step)
    return folder if folder.is_dir() else None


def last_due(run_dir: Path, n: int, every: int) -> list[Path]:
    """The last n checkpoints that were due (0: all), oldest first: those of every so many updates, and the last one.

    A checkpoint between them was written because it was the best at its time.
    """
    folders = checkpoints(run_dir)
    return [folder for folder in folders if checkpoint_step(folder) % every == 0 or folder == folders[-1]][-n:]


def prune_checkpoints(run_dir: Path, n_kept: int, every: int) -> None:
    """Keep the best checkpoint and the last n of those that were due; remove the others."""
    kept = {*last_due(run_dir, n_kept, every), best_checkpoint(run_dir)}
    for folder in checkpoints(run_dir):
        if folder not in kept:
            remove_checkpoint(folder)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; renamed first, for a folder half removed must not look like one."""
    doomed = folder.with_name(f".{folder.name}.removed")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that cannot be read, so that it counts no more; its new place."""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def sweep(run_dir: Path) -> None:
    """Remove what writes that were killed have left. Only whoever holds the run folder may do so."""
    for folder in (run_dir, run_dir / "checkpoints"):
        # Killed between the two renames that replace a folder: the old one is whole.
        for replaced in folder.glob(".*.replaced"):
            place = folder / replaced.name.removeprefix(".").removesuffix(".replaced")
            if not place.exists():
                replaced.rename(place)
        for suffix in ("writing", "replaced", "removed"):
            for leftover in folder.glob(f".*.{suffix}"):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)


def find_model_folder(path: Path) -> Path:
    """The model folder that `--model` means: a model folder, a checkpoint, or of a run its result or best so far.

    Raises:
        CheckpointError: there is none.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder: give a run folder, a checkpoint or a model folder")
    if path.is_file():
        raise CheckpointError(f"{path}: is a file: give the folder that it lies in, {path.parent}")
    if (path / "model").is_dir():
        return path / "model"
    if (path / "checkpoints").is_dir():
        best = best_checkpoint(path) or next(reversed(checkpoints(path)), None)
        if best is None:
            raise CheckpointError(f"{path}: this run has no checkpoint yet: wait for the first one")
        return best
    return path


def average_weights(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the weights of several model folders, summed in float64."""
    assert folders
    sums: dict[str, Tensor] = {}
    for folder in folders:
        weights = ModelFolder.open(folder).load_weights()
        if sums and sums.keys() != weights.keys():
            raise CheckpointError(f"{folder}: holds other weights than {folders[0]}: they cannot be averaged")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    return {name: (total / len(folders)).float() for name, total in sums.items()}
