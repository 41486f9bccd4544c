"""What training a model takes, whatever its batches: memory of the device, and space on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from mt.config.settings import RunConfig
from mt.model import Transformer
from mt.text.tokenizer import PAD_ID


@dataclass(frozen=True)
class Footprint:
    """Bytes that follow from the config and the size of the vocabulary."""

    n_parameters: int  # that are learned; rows that pad the vocabulary are not, and take memory all the same
    memory: dict[str, int]  # by what holds them; activations and data come on top
    checkpoint_bytes: int
    n_checkpoints: int  # that are kept at one time, at most
    model_bytes: int  # of the finished model

    @classmethod
    def of(cls, config: RunConfig, vocab_size: int) -> Footprint:
        with torch.device("meta"):
            model = Transformer(config.model, vocab_size=vocab_size, pad_id=PAD_ID)
        train, n_bytes = config.train, 4 * sum(parameter.numel() for parameter in model.parameters())
        memory = {"weights": n_bytes, "gradients": n_bytes, "the moments of Adam": 2 * n_bytes}
        if train.ema_decay is not None:
            memory["the moving average"] = n_bytes
        n_kept = max(train.keep_last, train.average_last) + train.keep_best
        n_kept += 0 if train.keep_every is None else train.max_steps // train.keep_every
        return cls(
            n_parameters=model.n_parameters,
            memory=memory,
            checkpoint_bytes=sum(memory.values()) - memory["gradients"],  # with an average, the weights beside it
            n_checkpoints=min(n_kept, math.ceil(train.max_steps / train.checkpoint_every)),
            model_bytes=n_bytes,
        )

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> int:
        """Return the bytes of all checkpoints that are kept at one time, and of the model at the end."""
        return self.n_checkpoints * self.checkpoint_bytes + self.model_bytes


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
