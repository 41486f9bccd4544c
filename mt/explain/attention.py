"""Where a model looks when it translates, read from the cross-attention: alignments, and a page of maps.

n tiles, W their width, T target rows; of one pair S source tokens, T target tokens, both with EOS; L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mt.data.batch import PackedBatch, TileLayout, packed_pairs
from mt.decode.translator import Translator
from mt.errors import ConfigError
from mt.model import Transformer
from mt.report.page import page
from mt.text.tokenizer import EOS_ID

ALIGNING_LAYER = 2  # of the decoder, from 0, or the last of fewer (docs/experiments.md)
BATCH_TOKENS = 4_096  # source tokens, and target tokens, of one pass
LONGEST = 200  # tokens of a side of a map; a page of more could not be read


@torch.inference_mode()
def align(
    model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[list[tuple[int, int]]]:
    """Return for each target token of each pair the source token that it is aligned to: the most attended one.

    It takes one pass over both sides, in which one layer's attention weights are averaged over its heads. The end of a
    source is never aligned to; a source that is nothing else has no alignment.

    Args:
        model: in evaluation mode.
        sources: ids, each ending with EOS.
        targets: ids without BOS and EOS, as `search` gives them.
    Returns:
        (source position, target position), one for each target token, in their order.
    Source: Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models".
    """
    assert not model.training
    with_ends = [[*target, EOS_ID] for target in targets]
    alignments: list[list[tuple[int, int]]] = [[] for _ in targets]
    for pairs, batch in packed_pairs(sources, with_ends, BATCH_TOKENS, model.dtype):
        aligned = _most_attended(model, batch.to(model.embedding.weight.device))[batch.tgt_weights > 0]
        positions = iter(aligned.tolist())
        for i in pairs.tolist():
            *of_target, _ = islice(positions, len(with_ends[i]))
            if len(sources[i]) > 1:
                alignments[i] = [(position, t) for t, position in enumerate(of_target)]
    return alignments


def _most_attended(model: Transformer, batch: PackedBatch) -> Tensor:
    """Return [T] int64 on the CPU: the position of the source token that each target row attends to most, EOS apart.

    Rows of padding, and of sources that are nothing but EOS, mean nothing.
    """
    assert isinstance(batch.cross_layout, TileLayout)
    best = []
    weights_of_groups = model.cross_attention_weights(batch, min(ALIGNING_LAYER, len(model.decoder) - 1))
    for group, weights in zip(batch.cross_layout.groups, weights_of_groups, strict=True):
        rows = slice(group.k_start, group.k_start + group.n_tiles * group.k_width)
        is_end = (batch.src_ids[rows] == EOS_ID).view(group.n_tiles, 1, -1)  # [n, 1, W]
        is_other = group.bias[:, 0] < 0  # [n, W, W]
        places = weights.mean(1).masked_fill_(is_end | is_other, -1).argmax(-1)  # [n, W]
        positions = batch.src_positions[rows].view(group.n_tiles, -1)
        best.append(positions.gather(1, places).flatten())
    return torch.cat(best).cpu()


def explained_page(model: str | Path, src: str, tgt: str | None, device: str = "auto", precision: str = "auto") -> str:
    """Return an HTML page in one file: the maps of a sentence and its translation.

    Args:
        model: a run folder, a checkpoint or a model folder.
        tgt: the model's own translation where it is None.
    Raises:
        CheckpointError: there is no complete model of this version there.
        ConfigError: a text is blank or too long; no such device or precision.
    """
    translator = Translator.load(model, device=device, precision=precision)
    normalisers, tokenizer = translator.normalisers, translator.tokenizer
    longest = min(LONGEST, translator.model.positions.n_positions or LONGEST)

    def ids_of(key: str, text: str) -> list[int]:
        ids = [*tokenizer.encode(text), EOS_ID]
        if len(ids) > longest:
            raise ConfigError(key, f"has {len(ids):,} tokens, and a map can show {longest}", "give one sentence")
        return ids

    src, tgt = normalisers.src(src), None if tgt is None else normalisers.tgt(tgt)
    for key, text in (("src", src), ("tgt", tgt)):
        if text == "":
            raise ConfigError(key, "is blank", "give a sentence")
    source = ids_of("src", src)
    if tgt is None:
        (tgt,) = translator.translate([src])
    target = ids_of("tgt", tgt)
    return page(
        "attention.html.j2",
        title=src,
        tgt=tgt,
        src_pieces=tokenizer.pieces(source),
        tgt_pieces=tokenizer.pieces(target),
        maps=attention_maps(translator.model, source, target).tolist(),
        n_heads=translator.model.config.n_heads,
    )


@torch.inference_mode()
def attention_maps(model: Transformer, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return [L, T, S] on the CPU: how much each target token's prediction attends to each source token.

    Args:
        source: ids, ending with EOS.
        target: ids, ending with EOS.
    """
    ((_, batch),) = packed_pairs([source], [target], 1, model.dtype)
    batch = batch.to(model.embedding.weight.device)
    layers = []
    for layer in range(len(model.decoder)):
        (weights,) = model.cross_attention_weights(batch, layer)  # [1, H, W, W]: one pair, one tile
        layers.append(weights[0, :, : len(target), : len(source)].mean(0))
    return torch.stack(layers).cpu()
