"""The next tokens of a search, from logits: forbidding tokens, finding the best tokens, and sampling.

N rows (beams of sentences), V vocabulary, t positions, k candidates of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mt.text.tokenizer import PAD_ID

NEG_INF = float("-inf")
# Tokens of a block. Top-k looks at the maxima of blocks first. The number of rows of an embedding is a multiple of it.
BLOCK = 64
CACHED_ELEMENTS = 1 << 18  # in float32: less than the second-level cache of a core
UNCONSTRAINED = -1  # instead of a token id: no token is forced
_LOWEST_53_BITS = (1 << 53) - 1


def log_normaliser_and_maxima(logits: Tensor, n_blocks: int = 1) -> tuple[Tensor, Tensor]:
    """Return the logsumexp [N, 1] of logits [N, V], and the maxima [N, n_blocks] of their blocks, both in float32.

    The maxima need no additional pass. `torch.logsumexp` is not used: it takes several times as long on a CPU. There,
    a few rows are processed at a time, so that they stay in the cache between passes.
    """
    n_rows = len(logits) if logits.is_cuda else max(1, CACHED_ELEMENTS // logits.shape[1])
    normalisers, maxima = [], []
    for rows in torch.split(logits, n_rows):
        scores = rows.float()
        maxima.append(scores.view(len(rows), n_blocks, -1).amax(-1))
        highest = maxima[-1].amax(-1, keepdim=True)
        # A converted copy can be overwritten.
        shifted = scores - highest if scores is rows else scores.sub_(highest)
        normalisers.append(highest + shifted.exp_().sum(-1, keepdim=True).log_())
    return torch.cat(normalisers), torch.cat(maxima)


def forbid_repetition(scores: Tensor, ids: Tensor, position: Tensor, size: int) -> None:
    """Forbid, in place, each token that would complete an n-gram of `size` tokens that the row already has.

    Args:
        scores: [N, V].
        ids: [N, t], PAD from `position` on.
        position: [] or [1]: number of tokens in each row so far.
    """
    if ids.shape[1] < size:
        return
    sequences = ids.unfold(1, size, 1)  # [N, t - size + 1, size]
    offsets = torch.arange(1 - size, 0, device=ids.device)
    last = ids.index_select(1, (position + offsets).clamp_(min=0))  # [N, size - 1]
    is_repeated = (sequences[:, :, :-1] == last[:, None]).all(-1) & (position >= size - 1)
    # PAD is never produced, so forbidding it has no effect.
    scores.scatter_(1, sequences[:, :, -1].masked_fill(~is_repeated, PAD_ID), NEG_INF)


def best_tokens(logits: Tensor, maxima: Tensor, offsets: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the n best next tokens of each sentence, of all its beams together, best first.

    On a CPU, top-k over whole vocabularies takes several times as long as top-k over the maxima of blocks and then in
    the best blocks. This is exact: each of the n best tokens is in one of the n blocks with the highest maxima.

    Args:
        logits: [B k, V], -inf for forbidden tokens.
        maxima: [B k, V / BLOCK] of the logits' blocks.
        offsets: [B, k] float32, added to the logits of a beam.
        n: number of tokens.
    Returns:
        Sums of logits and offsets [B, n], ids of the tokens [B, n], and the beams [B, n] that they extend.
    """
    n_sentences, n_beams = offsets.shape
    n_blocks = maxima.shape[1]
    sums = (maxima.view(n_sentences, n_beams, n_blocks) + offsets[:, :, None]).flatten(1)  # [B, k V / BLOCK]
    best_blocks = sums.topk(min(n, sums.shape[1]), dim=1, sorted=False).indices  # [B, m]
    beams = best_blocks.div(n_blocks, rounding_mode="floor")
    blocks = logits.view(n_sentences, -1, BLOCK)
    candidates = blocks.gather(1, best_blocks[:, :, None].expand(-1, -1, BLOCK)).float()  # [B, m, BLOCK]
    candidates += offsets.gather(1, beams)[:, :, None]
    totals, places = candidates.flatten(1).topk(n, dim=1)
    which = places.div(BLOCK, rounding_mode="floor")
    return totals, best_blocks.gather(1, which) % n_blocks * BLOCK + places % BLOCK, beams.gather(1, which)


def sampled_tokens(
    scores: Tensor, uniform: Tensor, *, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """Sample one token of each row; return its score [N, 1] and its id [N, 1].

    Args:
        scores: [N, V] float32, NEG_INF for forbidden tokens.
        uniform: [N] float64 from 0 to 1, 1 excluded; it determines the token.
    Source of top-k: Fan et al. 2018, section 5.1; of top-p: Holtzman et al. 2020, section 3.1.
    """
    sharpened = scores / temperature
    if top_k is not None and top_k < scores.shape[1]:
        lowest = sharpened.topk(top_k, dim=-1).values[:, -1:]
        sharpened = sharpened.masked_fill(sharpened < lowest, NEG_INF)
    if top_p is not None and top_p < 1:
        ordered, ids = sharpened.sort(dim=-1, descending=True, stable=True)
        probs = functional.softmax(ordered, -1)
        is_cut = probs.cumsum(-1) - probs >= top_p
        sharpened = sharpened.scatter(1, ids, ordered.masked_fill(is_cut, NEG_INF))
    cumulative = functional.softmax(sharpened, -1).double().cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    # The first token beyond the threshold: its probability is not zero.
    ids = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=scores.shape[1] - 1)
    return scores.gather(1, ids), ids


def uniform_numbers(keys: Tensor, position: Tensor) -> Tensor:
    """Return a float64 number from 0 to 1, 1 excluded, for each key: a hash of the key and the position.

    With a random generator that lines share, a line would depend on the lines around it. With a hash it does not.

    Args:
        keys: int64 of any shape.
        position: [] or [1] int64.
    Source of the mixing function: Steele et al. 2014, figure 15 (SplitMix64).
    """
    x = keys + (position + 1) * -0x61C8864680B583EB  # the golden ratio; int64 wraps around
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    x = x ^ _shifted(x, 31)
    return (_shifted(x, 11) & _LOWEST_53_BITS).double() / (1 << 53)


def _shifted(x: Tensor, n_bits: int) -> Tensor:
    """Return x, as 64 bits without a sign, shifted to the right."""
    return (x >> n_bits) & ((1 << (64 - n_bits)) - 1)
