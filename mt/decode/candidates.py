"""From logits to the tokens that may follow: what is allowed, and the best or the drawn of it.

N rows (beams of sentences), V vocabulary, t positions, k candidates of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mt.text.tokenizer import PAD_ID

NEVER = float("-inf")
# Width of the blocks in which the best candidates are looked for: the maxima of blocks first.
BLOCK = 64
FREE = -1  # in place of the one token that a row has to take
_LOWEST_53_BITS = (1 << 53) - 1


def log_normaliser(scores: Tensor, highest: Tensor | None = None) -> Tensor:
    """[N, 1]: log of the sum of the exponentials of scores [N, V] in float32.

    Written out: `torch.logsumexp` takes several times as long on a CPU.

    Args:
        highest: [N, 1], no less than the scores; with it they are overwritten, which saves a pass over memory.
    """
    if highest is not None:
        return highest + scores.sub_(highest).exp_().sum(-1, keepdim=True).log_()
    highest = scores.amax(-1, keepdim=True)
    return highest + (scores - highest).exp_().sum(-1, keepdim=True).log_()


def forbid_repetition(scores: Tensor, ids: Tensor, position: Tensor, size: int) -> None:
    """Forbid, in place, each token that would complete a sequence of `size` tokens which the row has already.

    Args:
        scores: [N, V].
        ids: [N, t], PAD from `position` on.
        position: [] or [1]: tokens in each row so far.
    """
    if ids.shape[1] < size:
        return
    sequences = ids.unfold(1, size, 1)  # [N, t - size + 1, size]
    offsets = torch.arange(1 - size, 0, device=ids.device)
    last = ids.index_select(1, (position + offsets).clamp_(min=0))  # [N, size - 1]
    is_repeated = (sequences[:, :, :-1] == last[:, None]).all(-1) & (position >= size - 1)
    # PAD, which is never produced, stands for no token.
    scores.scatter_(1, sequences[:, :, -1].masked_fill(~is_repeated, PAD_ID), NEVER)


def best_tokens(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, [N, min(k, V)], best first, and their ids.

    Top-k over a whole vocabulary takes several times as long on a CPU as the maxima of its blocks, and then the best
    within the best blocks. That is exact: a token among the k best lies in one of the k blocks with the highest maxima.

    Args:
        scores: [N, V] float32.
    """
    n_rows, n_vocab = scores.shape
    k = min(k, n_vocab)
    if n_vocab < 2 * k * BLOCK:
        best, ids = scores.topk(k, dim=-1)
        return best, ids
    n_whole = n_vocab // BLOCK * BLOCK
    blocks = scores[:, :n_whole].view(n_rows, -1, BLOCK)
    best_blocks = blocks.amax(-1).topk(k, dim=-1, sorted=False).indices  # [N, k]
    candidates = blocks.gather(1, best_blocks[:, :, None].expand(-1, -1, BLOCK)).flatten(1)  # [N, k BLOCK]
    if n_whole == n_vocab:
        best, places = candidates.topk(k, dim=-1)
        return best, best_blocks.gather(1, places.div(BLOCK, rounding_mode="floor")) * BLOCK + places % BLOCK
    candidates = torch.cat([candidates, scores[:, n_whole:]], -1)
    best, places = candidates.topk(k, dim=-1)
    in_blocks = best_blocks.gather(1, places.div(BLOCK, rounding_mode="floor").clamp_(max=k - 1)) * BLOCK
    ids = torch.where(places < k * BLOCK, in_blocks + places % BLOCK, places - k * BLOCK + n_whole)
    return best, ids


def drawn_tokens(
    scores: Tensor, uniform: Tensor, *, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """One token of each row, drawn: its score [N, 1], and its id.

    Args:
        scores: [N, V] float32, NEVER where a token must not come.
        uniform: [N] float64 from 0 to 1, 1 excluded; the draw is a function of it.
    Source of top-k: Fan et al. 2018, section 5.1; of top-p: Holtzman et al. 2020, section 3.1.
    """
    sharpened = scores / temperature
    if top_k is not None and top_k < scores.shape[1]:
        lowest = sharpened.topk(top_k, dim=-1).values[:, -1:]
        sharpened = sharpened.masked_fill(sharpened < lowest, NEVER)
    if top_p is not None and top_p < 1:
        ordered, ids = sharpened.sort(dim=-1, descending=True, stable=True)
        probs = functional.softmax(ordered, -1)
        is_cut = probs.cumsum(-1) - probs >= top_p
        sharpened = sharpened.scatter(1, ids, ordered.masked_fill(is_cut, NEVER))
    cumulative = functional.softmax(sharpened, -1).double().cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    # The first token beyond the threshold: one that has a probability.
    ids = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=scores.shape[1] - 1)
    return scores.gather(1, ids), ids


def forced(log_probs: Tensor, ids: Tensor, only: Tensor, only_log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates, log_probs and ids [N, c], but in rows that have to take one token that one alone.

    Args:
        only: [N] the one token, or FREE.
        only_log_probs: [N, 1], of that token.
    """
    is_free = (only == FREE)[:, None]
    alone = functional.pad(only_log_probs, (0, log_probs.shape[1] - 1), value=NEVER)
    return torch.where(is_free, log_probs, alone), torch.where(is_free, ids, only[:, None])


def uniform_numbers(keys: Tensor, position: Tensor) -> Tensor:
    """Numbers from 0 to 1 (excluded) in float64, one for each of the keys: a hash of the key and the position.

    A generator that many lines share would make a line depend on its neighbours; a hash does not.

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
    """x as 64 bits without a sign, shifted to the right."""
    return (x >> n_bits) & ((1 << (64 - n_bits)) - 1)
