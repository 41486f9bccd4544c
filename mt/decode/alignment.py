"""Which source words a translation came from, read from the cross-attention; words as those who use them count.

W tile width, n tiles, T target rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from mt.data.batch import PackedBatch, TileLayout, packed_pairs
from mt.model import Transformer
from mt.text.tokenizer import EOS_ID, WORD_START

ALIGNING_LAYER = 2  # of the decoder, from 0, or the last of fewer (docs/experiments.md)
_SPACE_BYTES = ("<0x09>", "<0x20>")

Pairs = list[tuple[int, int]]  # of places in a source and in its translation


@torch.inference_mode()
def align(
    model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_tokens: int = 4_096
) -> list[Pairs]:
    """Return for each target token of each pair the source token that it is aligned to: the most attended one.

    It takes one pass over both sides, in which one layer's attention weights are averaged over its heads. The end of a
    source is never aligned to; a source that is nothing else has no alignment.

    Args:
        model: in evaluation mode.
        sources: ids, each ending with EOS.
        targets: ids without BOS and EOS, as `search` gives them.
        batch_tokens: source tokens, and target tokens, of one pass.
    Returns:
        (source position, target position), one for each target token, in their order.
    Source: Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models".
    """
    assert not model.training
    with_ends = [[*target, EOS_ID] for target in targets]
    alignments: list[Pairs] = [[] for _ in targets]
    for pairs, batch in packed_pairs(sources, with_ends, batch_tokens, model.dtype):
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
        is_end = (group.tiles(batch.src_ids) == EOS_ID)[:, None]  # [n, 1, W]
        is_other = group.bias[:, 0] < 0  # [n, W, W]
        places = weights.mean(1).masked_fill_(is_end | is_other, -1).argmax(-1)  # [n, W]
        best.append(group.tiles(batch.src_positions).gather(1, places).flatten())
    return torch.cat(best).cpu()


def word_numbers(pieces: Iterable[str]) -> list[int]:
    """Return for each piece the number of its word, from 0; words are what spaces separate.

    A space that is a piece by itself belongs to the word behind it.
    """
    numbers = []
    word, is_new = -1, True
    for piece in pieces:
        content = "" if piece in _SPACE_BYTES else piece.lstrip(WORD_START)
        is_new |= content != piece
        if content and is_new:
            word, is_new = word + 1, False
        numbers.append(word + is_new)
    return [min(number, word) for number in numbers]  # a space at the end


def word_alignment(
    src_pieces: Sequence[str], tgt_pieces: Sequence[str], token_pairs: Iterable[tuple[int, int]]
) -> Pairs:
    """Turn alignments of tokens into alignments of their words, without repetition and in order.

    Args:
        src_pieces: as in the vocabulary, without the end of sentence, which is in no word.
        tgt_pieces: likewise.
        token_pairs: (place in src_pieces, place in tgt_pieces).
    """
    src_words, tgt_words = word_numbers(src_pieces), word_numbers(tgt_pieces)
    pairs = {(src_words[i], tgt_words[j]) for i, j in token_pairs if i < len(src_words) and j < len(tgt_words)}
    return sorted(pair for pair in pairs if min(pair) >= 0)
