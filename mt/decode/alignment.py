"""Alignments of tokens from cross-attention, and of the words that they belong to. Words are separated by spaces.

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

ALIGNING_LAYER = 2  # decoder layer, from 0; the last layer if there are fewer (docs/experiments.md)
_SPACE_BYTES = ("<0x09>", "<0x20>")

Pairs = list[tuple[int, int]]  # (index in the source, index in its translation)


@torch.inference_mode()
def align(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_tokens: int = 4_096,
    n_first: int = 0,
) -> list[Pairs]:
    """Align each target token of each pair to the source token that it attends to most.

    This takes one pass over both sides. The attention weights of one layer are averaged over its heads. No token is
    aligned to the end of the source, or to its first `n_first` tokens; a source of nothing else has no alignment.

    Args:
        model: in evaluation mode.
        sources: ids, each ending with EOS.
        targets: ids without BOS and EOS, as `search` returns them.
        batch_tokens: the most source tokens, and the most target tokens, of one pass.
        n_first: pieces of languages that each source begins with.
    Returns:
        For each pair, (source position, target position) of each target token, in order.
    Source: Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models".
    """
    assert not model.training
    with_ends = [[*target, EOS_ID] for target in targets]
    alignments: list[Pairs] = [[] for _ in targets]
    for pairs, batch in packed_pairs(sources, with_ends, batch_tokens, model.dtype):
        aligned = _most_attended(model, batch.to(model.embedding.weight.device), n_first)[batch.tgt_weights > 0]
        positions = iter(aligned.tolist())
        for i in pairs.tolist():
            *src_positions, _ = islice(positions, len(with_ends[i]))
            if len(sources[i]) > n_first + 1:
                alignments[i] = [(position, t) for t, position in enumerate(src_positions)]
    return alignments


def _most_attended(model: Transformer, batch: PackedBatch, n_first: int) -> Tensor:
    """Return [T] int64 on the CPU: the position of the source token that each target row attends to most.

    EOS and the first `n_first` tokens are left out. Results for rows of padding, and for sources of nothing else, have
    no meaning.
    """
    assert isinstance(batch.cross_layout, TileLayout)
    best = []
    weights_of_groups = model.cross_attention_weights(batch, min(ALIGNING_LAYER, len(model.decoder) - 1))
    for group, weights in zip(batch.cross_layout.groups, weights_of_groups, strict=True):
        is_end = (group.tiles(batch.src_ids) == EOS_ID)[:, None]  # [n, 1, W]
        is_first = (group.tiles(batch.src_positions) < n_first)[:, None]
        is_other = group.bias[:, 0] < 0  # [n, W, W]
        indices = weights.mean(1).masked_fill_(is_end | is_first | is_other, -1).argmax(-1)  # [n, W]
        best.append(group.tiles(batch.src_positions).gather(1, indices).flatten())
    return torch.cat(best).cpu()


def word_numbers(pieces: Iterable[str]) -> list[int]:
    """Return the number of the word of each piece, from 0. Spaces separate words.

    A piece that is only a space belongs to the word after it.
    """
    numbers = []
    word, is_new = -1, True
    for piece in pieces:
        content = "" if piece in _SPACE_BYTES else piece.lstrip(WORD_START)
        is_new |= content != piece
        if content and is_new:
            word, is_new = word + 1, False
        numbers.append(word + is_new)
    return [min(number, word) for number in numbers]  # a space at the end belongs to the last word


def word_alignment(
    src_pieces: Sequence[str], tgt_pieces: Sequence[str], token_pairs: Iterable[tuple[int, int]]
) -> Pairs:
    """Return the alignments of words that follow from alignments of tokens, sorted and without duplicates.

    Args:
        src_pieces: pieces of the vocabulary, without the end of sentence, which belongs to no word.
        tgt_pieces: likewise.
        token_pairs: (index in src_pieces, index in tgt_pieces).
    """
    src_words, tgt_words = word_numbers(src_pieces), word_numbers(tgt_pieces)
    pairs = {(src_words[i], tgt_words[j]) for i, j in token_pairs if i < len(src_words) and j < len(tgt_words)}
    return sorted(pair for pair in pairs if min(pair) >= 0)
