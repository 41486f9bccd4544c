"""Model folders and checkpoints: writing, checked reading, averaging.

A model folder has all that inference needs: `model.safetensors`, `config.yaml`, `tokenizer.model` (or, for separate
vocabularies, `tokenizer.src.model` and `tokenizer.tgt.model`), `manifest.json`. A checkpoint is a model folder with an
additional `training.pt`. Opening either one never runs code from it. The manifest has the SHA-256 of every other file,
and each file is compared with it before it is used.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mt.config.loading import CONFIG, dump_config, load_config
from mt.config.settings import ModelConfig, RunConfig, VocabSizes, of_both_sides
from mt.errors import CheckpointError, MTError
from mt.model import Transformer
from mt.system.files import WriteError, file_checksum, read_json, sync, whole_folder, write_json
from mt.text.tokenizer import PAD_ID, Tokenizers, tokenizer_paths
from mt.units import format_vocabulary, listed

MODEL_FORMAT_VERSION = 2  # 2: with checksums
WEIGHTS, MANIFEST, TRAINING = "model.safetensors", "manifest.json", "training.pt"
EXPORTED = "model.bin"  # the weights in an export for CTranslate2
CHECKSUMS = "sha256"  # key of the manifest: file name → 64 hexadecimal digits


Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
PieceCounts: TypeAlias = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]  # VocabSizes in JSON
# Types of the entries of a manifest that describe the origin of a model, as far as it is known.
ORIGIN: dict[str, Any] = {
    "step": Count,
    "schedule_start": Count,
    "n_tgt_tokens": Count,
    "train_seconds": Annotated[float, Field(ge=0, allow_inf_nan=False)],
    "averaged_steps": Annotated[list[Count], Field(min_length=1)],
    "commit": str,
    "corpus_fingerprint": str,
    "versions": dict[str, Any],
    "hardware": dict[str, Any],
}


def _check_manifest(manifest: dict[str, Any], types: dict[str, Any]) -> None:
    """Raise a KeyError or a TypeError if an entry is missing, or has another type."""
    known = {key: kind for key, kind in ORIGIN.items() if manifest.get(key) is not None}
    for key, kind in {**types, **known}.items():
        try:
            TypeAdapter(kind).validate_python(manifest[key], strict=True)
        except ValidationError:
            raise TypeError(f"{key} is {repr(manifest[key])[:80]}") from None


@dataclass(frozen=True)
class CheckedFolder:
    """A complete folder in a format that this version reads, with a manifest of checksums that detect damage."""

    path: Path
    config: RunConfig
    manifest: dict[str, Any]

    KIND: ClassVar[str]  # its name in error messages
    FILES: ClassVar[tuple[str, ...]]  # besides tokenizers and manifest
    FORMAT: ClassVar[dict[str, Any]]  # manifest entries that identify the format
    KEYS: ClassVar[dict[str, Any]]  # the types of other manifest entries
    HOW_TO_REPAIR: ClassVar[str]
    HOW_TO_READ: ClassVar[str]  # the fix if the format is another one

    @classmethod
    def names(cls, path: Path) -> tuple[str, ...]:
        """Return the names of the files that a folder at this path must have."""
        return (*cls.FILES, *(tokenizer.name for tokenizer in tokenizer_paths(path)), MANIFEST)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the small files of a folder.

        Raises:
            CheckpointError: a file is missing or damaged, or the format is of another version.
        """
        missing = [name for name in cls.names(path) if not (path / name).is_file()]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            problem = f"is not a complete {cls.KIND}: {listed(missing)} {verb} missing"
            raise CheckpointError(path, problem, cls.HOW_TO_REPAIR)
        try:
            manifest = read_json(path / MANIFEST)
            found = {key: manifest[key] for key in cls.FORMAT}
            if found == cls.FORMAT:
                _check_manifest(manifest, cls.KEYS)
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
        if config.tokenizer.joint != isinstance(size := manifest["vocab_size"], int):
            problem = f"is damaged: vocab_size is {size}, which contradicts tokenizer.joint in {CONFIG}"
            raise CheckpointError(path / MANIFEST, problem, cls.HOW_TO_REPAIR)
        return cls(path, config, manifest)

    @property
    def vocab_size(self) -> VocabSizes:
        """The number of pieces of the joint vocabulary, or of source's and target's."""
        size = self.manifest["vocab_size"]
        return size if isinstance(size, int) else (size[0], size[1])

    @property
    def tokenizer_paths(self) -> tuple[Path, ...]:
        """The paths from `mt.text.tokenizer.tokenizer_paths`; a damaged file raises a CheckpointError."""
        paths = tokenizer_paths(self.path)
        for path in paths:
            check_file(path, self.manifest, self.HOW_TO_REPAIR)
        return paths

    def load_tokenizers(self) -> Tokenizers:
        """Load the tokenizers that the model was trained with."""
        paths = self.tokenizer_paths
        tokenizers = Tokenizers.load(paths)
        if tokenizers.vocab_size != self.vocab_size:
            found, expected = map(format_vocabulary, (tokenizers.vocab_size, self.vocab_size))
            place = paths[0] if len(paths) == 1 else self.path
            problem = f"has {found}, but the model was trained with {expected.removesuffix(' pieces')}"
            raise CheckpointError(place, problem, "restore the original file")
        return tokenizers


class ModelFolder(CheckedFolder):
    """A model folder or a checkpoint."""

    KIND = "model folder"
    FILES = (WEIGHTS, CONFIG)
    FORMAT: ClassVar = {"format_version": MODEL_FORMAT_VERSION}
    KEYS: ClassVar = {"vocab_size": PieceCounts, CHECKSUMS: dict[str, str]}
    WHAT_TO_GIVE = "give a run folder, a checkpoint or a model folder"
    HOW_TO_REPAIR = "restore the original file, or delete the folder and run mt train again"
    HOW_TO_READ = f"use the version of mt that its {MANIFEST} names"

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read the small files of a model folder; see `CheckedFolder.open`."""
        if not any((path / name).is_file() for name in (*cls.names(path), EXPORTED)):
            problem = "is not a model folder" if path.is_dir() else "no such model folder"
            raise CheckpointError(path, problem, cls.WHAT_TO_GIVE)
        if (path / EXPORTED).is_file() and not (path / WEIGHTS).is_file():
            fix = "use it in mt translate with --backend ctranslate2; other commands need the original model"
            raise CheckpointError(path, "is an export for CTranslate2", fix)
        return super().open(path)

    def load_weights(self) -> dict[str, Tensor]:
        """Return all parameters by name, in float32; damage, NaN and infinity raise a CheckpointError."""
        check_file(self.path / WEIGHTS, self.manifest)
        try:
            weights = load_file(self.path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(self.path / WEIGHTS, f"cannot be read: {error}") from error
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise CheckpointError(self.path / WEIGHTS, f"is damaged: {name} has NaN or infinite values")
        return weights

    @property
    def n_parameters(self) -> int:
        """The number of trained parameters, computed from the config without loading the weights."""
        self.check_shapes()
        with torch.device("meta"):
            shape = Transformer(self.config.model, vocab_size=self.vocab_size, pad_id=PAD_ID)
        return shape.n_parameters

    def check_shapes(self) -> None:
        """Raise a CheckpointError if config and weights differ, before anything of their size is built."""
        try:
            with safe_open(self.path / WEIGHTS, framework="pt") as file:
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
                found = {name: tuple(header.get_shape()) for name, header in headers.items()}
                kinds = {header.get_dtype() for header in headers.values()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(self.path / WEIGHTS, f"cannot be read: {error}") from error
        n_values = sum(map(math.prod, found.values()))
        for name, size in {"vocab_size": max(of_both_sides(self.vocab_size)), **self.config.model.shape}.items():
            if isinstance(size, int) and size > n_values:
                problem = f"weights do not fit the model: there are {n_values:,} of them, but {name} is {size:,}"
                raise CheckpointError(self.path, problem)
        _require_shapes(_expected_shapes(self.config.model, self.vocab_size, len(found)), found, self.path)
        if kinds != {"F32"}:
            raise CheckpointError(self.path, f"weights are {listed(sorted(kinds))}, expected F32")

    def load_model(self, dtype: torch.dtype, device: torch.device) -> Transformer:
        """Return the model for inference, with all weights in the given type."""
        self.check_shapes()
        return self.with_weights(self.load_weights(), dtype, device)

    def with_weights(self, weights: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Transformer:
        """Return the model for inference with these weights in place of the stored ones."""
        model = Transformer(self.config.model, vocab_size=self.vocab_size, pad_id=PAD_ID, dtype=torch.float32)
        load_into(model, weights, self.path)
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


def load_into(model: Transformer, weights: dict[str, Tensor], origin: Path) -> None:
    """Copy weights into a model of the same shape.

    Raises:
        CheckpointError: names or shapes of parameters differ.
    """
    _require_shapes(_shapes(model.state_dict()), _shapes(weights), origin)
    model.load_state_dict(weights)


Shapes: TypeAlias = dict[str, tuple[int, ...]]


def _shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_shapes(expected: Shapes, found: Shapes, origin: Path) -> None:
    if expected != found:
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        told = [f"{n} is {found.get(n, 'missing')}, expected {expected.get(n, 'none')}" for n in names[:5]]
        more = f"; and {len(names) - 5:,} more" if len(names) > 5 else ""
        raise CheckpointError(origin, f"weights do not fit the model: {'; '.join(told)}{more}")


def _expected_shapes(config: ModelConfig, vocab_size: VocabSizes, most: int) -> Shapes:
    """Return the shape of each parameter; if there are more than `most`, only of some more than that.

    One layer of each side is built, without memory for its weights.
    """
    one_layer = replace(config, n_encoder_layers=1, n_decoder_layers=1)
    with torch.device("meta"):
        model = Transformer(one_layer, vocab_size=vocab_size, pad_id=PAD_ID)
    shapes = _shapes(model.state_dict())
    for side, n in (("encoder", config.n_encoder_layers), ("decoder", config.n_decoder_layers)):
        layer = {name: shape for name, shape in shapes.items() if name.startswith(f"{side}.0.")}
        for i in range(1, min(n, most // len(layer) + 2)):
            shapes |= {name.replace(".0.", f".{i}.", 1): shape for name, shape in layer.items()}
    return shapes


def save_model_folder(
    folder: Path,
    weights: dict[str, Tensor],
    config: RunConfig,
    tokenizers: Sequence[Path],
    manifest: dict[str, Any],
    training_state: dict[str, Any] | None = None,
) -> None:
    """Write a model folder under a temporary name, then rename it; replace an existing folder.

    Args:
        tokenizers: files, see `mt.text.tokenizer.tokenizer_paths`; they keep their names.
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
        for path in tokenizers:
            shutil.copyfile(path, building / path.name)
            finish(path.name)
        try:
            save_file(weights, building / WEIGHTS)
        except SafetensorError as error:
            raise WriteError(folder, error) from error
        shutil.copymode(building / CONFIG, building / WEIGHTS)  # safetensors lets only its owner read it
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
        if sums and _shapes(sums) != _shapes(weights):
            raise CheckpointError(folder, f"has other weights than {folders[0]}, so they cannot be averaged")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    return {name: (total / len(folders)).float() for name, total in sums.items()}
