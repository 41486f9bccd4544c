"""Which source words a translation came from, read from the cross-attention.

W tile width, n tiles, T target rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from mt.data.batch import PackedBatch, TileLayout, packed_pairs
from mt.model import Transformer
from mt.text.tokenizer import EOS_ID

ALIGNING_LAYER = 2  # counted from 0


@torch.inference_mode()
def align(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    layer: int | None = None,
    batch_tokens: int = 4_096,
) -> list[list[tuple[int, int]]]:
    """Return for each target token of each pair the source token that it is aligned to: the most attended one.

    It takes one pass over both sides, in which one layer's attention weights are averaged over its heads. The end of a
    source is never aligned to; a source that is nothing else has no alignment.

    Args:
        model: in evaluation mode.
        sources: ids, each ending with EOS.
        targets: ids without BOS and EOS, as `search` gives them.
        layer: of the decoder, counted from 0; the third unless given, or the last of fewer (docs/experiments.md).
        batch_tokens: source tokens, and target tokens, of one pass.
    Returns:
        (source position, target position), one for each target token, in their order.
    Source: Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models".
    """
    assert not model.training
    layer = min(ALIGNING_LAYER, len(model.decoder) - 1) if layer is None else layer
    with_ends = [[*target, EOS_ID] for target in targets]
    alignments: list[list[tuple[int, int]]] = [[] for _ in targets]
    for pairs, batch in packed_pairs(sources, with_ends, batch_tokens, model.dtype):
        aligned = _most_attended(model, batch.to(model.embedding.weight.device), layer)[batch.tgt_weights > 0]
        positions = iter(aligned.tolist())
        for i in pairs.tolist():
            *of_target, _ = islice(positions, len(with_ends[i]))
            if len(sources[i]) > 1:
                alignments[i] = [(position, t) for t, position in enumerate(of_target)]
    return alignments


def _most_attended(model: Transformer, batch: PackedBatch, layer: int) -> Tensor:
    """Return [T] int64 on the CPU: the position of the source token that each target row attends to most, EOS apart.

    Rows of padding, and of sources that are nothing but EOS, mean nothing.
    """
    assert isinstance(batch.cross_layout, TileLayout)
    best = []
    for group, weights in zip(batch.cross_layout.groups, model.cross_attention_weights(batch, layer), strict=True):
        rows = slice(group.k_start, group.k_start + group.n_tiles * group.k_width)
        is_end = (batch.src_ids[rows] == EOS_ID).view(group.n_tiles, 1, -1)  # [n, 1, W]
        is_other = group.bias[:, 0] < 0  # [n, W, W]
        places = weights.mean(1).masked_fill_(is_end | is_other, -1).argmax(-1)  # [n, W]
        positions = batch.src_positions[rows].view(group.n_tiles, -1)
        best.append(positions.gather(1, places).flatten())
    return torch.cat(best).cpu()
