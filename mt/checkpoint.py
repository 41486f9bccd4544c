"""Model folders and checkpoints: writing, checked reading, averaging.

A model folder has all that inference needs: `model.safetensors`, `config.yaml`, `tokenizer.model`, `manifest.json`. A
checkpoint is a model folder with an additional `training.pt`. Opening either one never runs code from it. The manifest
has the SHA-256 of every other file, and each file is compared with it before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mt.config.loading import dump_config, load_config
from mt.config.settings import RunConfig
from mt.errors import CheckpointError, MTError
from mt.model import Transformer
from mt.system.files import WriteError, sync, whole_folder, write_json
from mt.text.tokenizer import PAD_ID, Tokenizer
from mt.units import listed

MODEL_FORMAT_VERSION = 2  # 2: with checksums
WEIGHTS, CONFIG, TOKENIZER, MANIFEST, TRAINING = (
    "model.safetensors",
    "config.yaml",
    "tokenizer.model",
    "manifest.json",
    "training.pt",
)
EXPORTED = "model.bin"  # the weights in an export for CTranslate2
CHECKSUMS = "sha256"  # key of the manifest: file name → 64 hexadecimal digits


@dataclass(frozen=True)
class CheckedFolder:
    """A complete folder in a format that this version reads, with a manifest of checksums that detect damage."""

    path: Path
    config: RunConfig
    manifest: dict[str, Any]

    KIND: ClassVar[str]  # its name in error messages
    FILES: ClassVar[tuple[str, ...]]
    FORMAT: ClassVar[dict[str, Any]]  # manifest entries that identify the format
    KEYS: ClassVar[dict[str, type]]  # the types of other manifest entries
    HOW_TO_REPAIR: ClassVar[str]
    HOW_TO_READ: ClassVar[str]  # the fix if the format is another one

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the small files of a folder.

        Raises:
            CheckpointError: a file is missing or damaged, or the format is of another version.
        """
        missing = [name for name in cls.FILES if not (path / name).is_file()]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            problem = f"is not a complete {cls.KIND}: {listed(missing)} {verb} missing"
            raise CheckpointError(path, problem, cls.HOW_TO_REPAIR)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            found = {key: manifest[key] for key in cls.FORMAT}
            for key, kind in cls.KEYS.items() if found == cls.FORMAT else ():
                if not isinstance(manifest[key], kind):
                    raise TypeError(f"{key} is {manifest[key]!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(path / MANIFEST, f"is damaged: {error!r}", cls.HOW_TO_REPAIR) from error
        if found != cls.FORMAT:
            theirs, ours = (" ".join(map(str, each.values())) for each in (found, cls.FORMAT))
            problem = f"was written in format {theirs}, but this version of mt reads format {ours}"
            raise CheckpointError(path, problem, cls.HOW_TO_READ)
        check_file(path / CONFIG, manifest, cls.HOW_TO_REPAIR)
        try:
            config = load_config(str(path / CONFIG), is_stored=True)
        except MTError as error:
            raise CheckpointError(
                path, f"its {CONFIG} cannot be loaded: {error.statement}", cls.HOW_TO_REPAIR
            ) from error
        return cls(path, config, manifest)

    @property
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer, whose checksum is verified.

        Raises:
            CheckpointError: the file is damaged.
        """
        check_file(self.path / TOKENIZER, self.manifest, self.HOW_TO_REPAIR)
        return self.path / TOKENIZER

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer that the model was trained with."""
        tokenizer = Tokenizer.load(self.tokenizer_path)
        if tokenizer.vocab_size != self.manifest["vocab_size"]:
            sizes = f"{tokenizer.vocab_size:,} pieces, but the model was trained with {self.manifest['vocab_size']:,}"
            raise CheckpointError(self.path / TOKENIZER, f"has {sizes}", "restore the original file")
        return tokenizer


class ModelFolder(CheckedFolder):
    """A model folder or a checkpoint."""

    KIND = "model folder"
    FILES = (WEIGHTS, CONFIG, TOKENIZER, MANIFEST)
    FORMAT: ClassVar = {"format_version": MODEL_FORMAT_VERSION}
    KEYS: ClassVar = {"vocab_size": int, CHECKSUMS: dict}
    WHAT_TO_GIVE = "give a run folder, a checkpoint or a model folder"
    HOW_TO_REPAIR = "restore the original file, or delete the folder and run mt train again"
    HOW_TO_READ = f"use the version of mt that its {MANIFEST} names"

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read the small files of a model folder; see `CheckedFolder.open`."""
        if not any((path / name).is_file() for name in (*cls.FILES, EXPORTED)):
            problem = "is not a model folder" if path.is_dir() else "no such model folder"
            raise CheckpointError(path, problem, cls.WHAT_TO_GIVE)
        if (path / EXPORTED).is_file() and not (path / WEIGHTS).is_file():
            fix = "use it in mt translate with --backend ctranslate2; other commands need the original model"
            raise CheckpointError(path, "is an export for CTranslate2", fix)
        return super().open(path)

    def load_weights(self) -> dict[str, Tensor]:
        """Return all parameters by name, in float32."""
        check_file(self.path / WEIGHTS, self.manifest)
        try:
            return load_file(self.path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(self.path / WEIGHTS, f"cannot be read: {error}") from error

    @property
    def n_parameters(self) -> int:
        """The number of trained parameters, computed from the config without loading the weights."""
        with torch.device("meta"):
            shape = Transformer(self.config.model, vocab_size=self.manifest["vocab_size"], pad_id=PAD_ID)
        return shape.n_parameters

    def load_model(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """Return the model for inference, with all weights in the given type."""
        model = Transformer(
            self.config.model, vocab_size=self.manifest["vocab_size"], pad_id=PAD_ID, dtype=torch.float32
        )
        load_into(model, self.load_weights(), self.path)
        return model.to(device).for_inference(dtype)

    def load_training_state(self) -> dict[str, Any]:
        """Return the state of training other than the weights, with tensors on the CPU."""
        if not (self.path / TRAINING).is_file():
            raise CheckpointError(self.path / TRAINING, "is missing, so training cannot continue from this folder")
        check_file(self.path / TRAINING, self.manifest)
        try:
            state: dict[str, Any] = torch.load(self.path / TRAINING, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises exceptions of many types for damaged files
            raise CheckpointError(self.path / TRAINING, f"cannot be read: {error}") from error
        return state


def check_file(path: Path, manifest: dict[str, Any], fix: str = ModelFolder.HOW_TO_REPAIR) -> None:
    """Raise a CheckpointError if a file's checksum is not the one in the manifest."""
    try:
        checksum = file_checksum(path)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if checksum != manifest[CHECKSUMS].get(path.name):
        problem = f"is damaged (its checksum differs from the one in {MANIFEST})"
        raise CheckpointError(path, problem, fix)


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_into(model: Transformer, weights: dict[str, Tensor], origin: Path) -> None:
    """Copy weights into a model of the same shape.

    Raises:
        CheckpointError: names or shapes of parameters differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        told = [f"{n} is {found.get(n, 'missing')}, expected {expected.get(n, 'none')}" for n in names[:5]]
        more = f"; and {len(names) - 5:,} more" if len(names) > 5 else ""
        raise CheckpointError(origin, f"weights do not fit the model: {'; '.join(told)}{more}")
    model.load_state_dict(weights)


def save_model_folder(
    folder: Path,
    weights: dict[str, Tensor],
    config: RunConfig,
    tokenizer_path: Path,
    manifest: dict[str, Any],
    training_state: dict[str, Any] | None = None,
) -> None:
    """Write a model folder under a temporary name, then rename it; replace an existing folder.

    Args:
        manifest: JSON with at least `vocab_size`. The format version and the checksums are added.
        training_state: makes the folder a checkpoint.
    Raises:
        WriteError: it cannot be written; an existing folder is unchanged, and no partial files remain.
    """
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
    # A sync waits for the disk, and a checksum takes a core. Both run while the next file is written, so checksums make
    # a save hardly longer.
    with whole_folder(folder, may_replace=True) as building, ThreadPoolExecutor() as pool:
        pending: dict[str, tuple[Future[None], Future[str]]] = {}

        def finish(name: str) -> None:
            pending[name] = pool.submit(sync, building / name), pool.submit(file_checksum, building / name)

        (building / CONFIG).write_text(dump_config(config), encoding="utf-8")
        finish(CONFIG)
        shutil.copyfile(tokenizer_path, building / TOKENIZER)
        finish(TOKENIZER)
        try:
            save_file(weights, building / WEIGHTS)
        except SafetensorError as error:
            raise WriteError(folder, error) from error
        finish(WEIGHTS)
        if training_state is not None:
            with (building / TRAINING).open("wb") as stream:  # with a path, torch's error would not name the reason
                torch.save(training_state, stream)
            finish(TRAINING)
        checksums = {}
        for name, (synced, checksum) in pending.items():
            synced.result()
            checksums[name] = checksum.result()
        write_json(building / MANIFEST, {**manifest, "format_version": MODEL_FORMAT_VERSION, CHECKSUMS: checksums})


def average_weights(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the weights of several model folders, summed in float64."""
    assert folders
    sums: dict[str, Tensor] = {}
    for folder in folders:
        weights = ModelFolder.open(folder).load_weights()
        if sums and sums.keys() != weights.keys():
            raise CheckpointError(folder, f"has other weights than {folders[0]}, so they cannot be averaged")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    return {name: (total / len(folders)).float() for name, total in sums.items()}
