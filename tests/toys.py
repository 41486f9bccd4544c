"""Small corpora, models and run configs that many tests use."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mt.checkpoint import ModelFolder
from mt.config.settings import ModelConfig, RunConfig
from mt.data.batch import MASKED, Layout, PackedBatch, VarlenLayout, assemble_tiles
from mt.model import Transformer
from mt.model.context import rows_of
from mt.model.cpu import training_kernels
from mt.model.kernels import Kernels
from mt.run_folder import RunFolder
from mt.text.corpus import ParallelIds, Sentences
from mt.text.tokenizer import EOS_ID, PAD_ID

V = 50
# A model unlike the default in most settings, with all kinds of dropout.
RICH: dict[str, Any] = {
    "norm": "pre",
    "norm_kind": "rms",
    "activation": "swiglu",
    "bias": False,
    "positions": "relative",
    "n_kv_heads": 1,
    "qk_norm": True,
    "tied_embeddings": "decoder",
    "init": "depth_scaled",
    "attention_dropout": 0.1,
    "layer_dropout": 0.2,
    "word_dropout": 0.1,
}


def sentences(lists: Sequence[Sequence[int]]) -> Sentences:
    """Return the lists of ids, each with EOS at the end."""
    lengths = np.array([len(ids) + 1 for ids in lists], dtype=np.int64)
    ids = np.concatenate([np.array([*ids, EOS_ID]) for ids in lists]).astype(np.uint16)
    return Sentences(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def parallel(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ParallelIds:
    return ParallelIds(sentences([src for src, _ in pairs]), sentences([tgt for _, tgt in pairs]))


def random_pairs(n: int, *, longest: int = 30, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(seed)

    def ids() -> list[int]:
        return [int(i) for i in rng.integers(4, V, rng.integers(1, longest))]

    return [(ids(), ids()) for _ in range(n)]


def small_model(
    *,
    norm: Any = "post",
    dropout: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = V,
    **changes: Any,
) -> Transformer:
    torch.manual_seed(seed)
    shape = {"d_model": 32, "n_heads": 2, "d_ff": 48, "n_encoder_layers": 2, "n_decoder_layers": 2} | changes
    config = ModelConfig(norm=norm, dropout=dropout, **shape)
    model = Transformer(config, vocab_size=vocab_size, pad_id=PAD_ID, dtype=dtype)
    return model.use(training_kernels(torch.device("cpu")))


def sharp_model(**changes: Any) -> Transformer:
    """Return a small model with large embeddings: its probabilities differ so much that rounding changes no choice."""
    model = small_model(**changes).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(4)
    return model


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    causal: bool,
    dropout: float = 0.0,
    kernels: Kernels | None = None,
) -> torch.Tensor:
    """Return the attention [Tq, H, E] of queries, keys and values [T, H, E]. The default kernels are the reference."""
    rows = rows_of(layout, dropout, is_causal=causal)
    return (kernels or Kernels()).attend(rows, q[:, None], k[:, None], v[:, None]).view(q.shape)


def one_sentence_at_a_time(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: VarlenLayout,
    is_causal: bool,
    bias: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the attention of packed sentences in the obvious way, one sentence after the other.

    Args:
        bias: [H, 2 longest + 1], added to the scores of each distance, key minus query.
        kept: [T, H, longest], the factor of each weight, such as a dropout mask: by query and position of the key.
    """
    out = []
    q_ends, k_ends = layout.cu_q.tolist(), layout.cu_k.tolist()
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    for i in range(len(q_ends) - 1):
        queries = q[q_ends[i] : q_ends[i + 1]].transpose(0, 1)  # [H, Wq, E]
        keys, values = (x[k_ends[i] : k_ends[i + 1]].transpose(0, 1) for x in (k, v))
        scores = queries @ keys.transpose(1, 2) * q.shape[2] ** -0.5
        distances = torch.arange(keys.shape[1]) - torch.arange(queries.shape[1])[:, None]
        if bias is not None:
            scores = scores + bias[:, layout.longest + distances]
        weights = scores.masked_fill(distances > 0, MASKED).softmax(-1) if is_causal else scores.softmax(-1)
        if kept is not None:
            weights = weights * kept[q_ends[i] : q_ends[i + 1], :, : keys.shape[1]].transpose(0, 1)
        out.append((weights @ values).transpose(0, 1))
    return torch.cat(out)


def tiles(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], dtype: torch.dtype = torch.float32) -> PackedBatch:
    return assemble_tiles(parallel(pairs), np.arange(len(pairs)), dtype)


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


WORDS = [
    f"{first}{second}" for first in ("ba", "de", "fi", "go", "ku", "la", "mo", "ne") for second in ("r", "st", "n", "l")
]


def toy_text(n: int, seed: int, *, reverse: bool = False) -> tuple[list[str], list[str]]:
    """Return sentences of made-up words. The target is the source in capitals, optionally with its words reversed."""
    rng = np.random.default_rng(seed)
    src = [" ".join(rng.choice(WORDS, rng.integers(3, 8))) for _ in range(n)]
    tgt = [" ".join(line.split()[::-1] if reverse else line.split()).upper() for line in src]
    return src, tgt


def toy_config(folder: Path, *, n_train: int = 400, reverse: bool = False, **train: object) -> RunConfig:
    """Return the config of a run on toy text, which is written to `folder`."""
    for name, n, seed in (("train", n_train, 1), ("valid", 20, 2), ("test", 20, 3)):
        src, tgt = toy_text(n, seed, reverse=reverse)
        write_lines(folder / f"{name}.en", src)
        write_lines(folder / f"{name}.de", tgt)

    def source(name: str) -> dict[str, str]:
        return {"src": str(folder / f"{name}.en"), "tgt": str(folder / f"{name}.de")}

    settings = {"batch_tokens": 256, "max_steps": 12, "warmup_steps": 10, "validate_every": 6, "checkpoint_every": 4}
    return RunConfig(
        name="toy",
        src_lang="en",
        tgt_lang="de",
        data={
            "train": [source("train")],
            "valid": source("valid"),
            "test": {"held_out": source("test")},
            "prepared_dir": str(folder / "prepared"),
            "max_tokens": 64,
        },
        tokenizer={"vocab_size": 380},
        model={"d_model": 32, "n_heads": 2, "d_ff": 64, "n_encoder_layers": 1, "n_decoder_layers": 1},
        train={**settings, "log_every": 2, "device": "cpu", "precision": "fp32", **train},
    )


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """Let writes beyond `n_bytes` of a file fail inside the block, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collect the messages that the package logs inside the block."""
    said: list[str] = []
    logger, handler = logging.getLogger("mt"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def weights_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint."""
    return ModelFolder.open(RunFolder(run_dir).checkpoint(step)).load_weights()


def measured(run_dir: Path, key: str) -> list[tuple[int, Any]]:
    """Return the steps at which a measurement was recorded, and its values."""
    entries = map(json.loads, RunFolder(run_dir).metrics.read_text("utf-8").splitlines())
    return [(entry["step"], entry[key]) for entry in entries if key in entry]
