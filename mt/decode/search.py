"""Beam search and sampling on tensors. Greedy search is a beam of one. No tokenizer here.

B sentences, K beams, k of them open, C candidates of a sentence, V vocabulary, t tokens that there is room for, P
tokens of the longest prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mt.config.settings import DecodeConfig
from mt.data.batch import assemble_sources
from mt.decode.candidates import (
    BLOCK,
    NEG_INF,
    UNCONSTRAINED,
    best_tokens,
    drawn_tokens,
    forbid_repetition,
    log_normaliser_and_maxima,
    uniform_numbers,
)
from mt.model import Transformer
from mt.model.context import Cache, StaticCache
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

# Sentences that are done leave the batch once they are this share of it; each departure copies the cache.
DONE_FRACTION = 0.25
SHORTEST = 16
USUAL_BEAM = 4
# An open beam that lies behind what is finished is given so many tokens to catch up. With no end to that a search takes
# a quarter more steps, and finds nothing better.
LOOK_AHEAD = 8
# So many tokens longer than its source may a translation be by default. Source: Vaswani et al. 2017, section 6.1.
LONGER_THAN_SOURCE = 50


@dataclass(frozen=True)
class SearchResult:
    """One translation of one sentence, as ids."""

    ids: tuple[int, ...]  # without BOS and EOS
    log_prob: float  # sum over tokens, EOS included, in nats
    score: float  # log_prob over the length penalty; what hypotheses are ranked by

    @property
    def n_tokens(self) -> int:
        """Tokens that log_prob sums over: EOS counts."""
        return len(self.ids) + 1


def length_penalty(n_tokens: Tensor, alpha: float, form: str = "wu") -> Tensor:
    """((5 + n) / 6)^α, or n^α in the plain form, with n counting the end of sentence.

    Source: Wu et al. 2016, equation 14.
    """
    return (n_tokens.float() if form == "plain" else (5 + n_tokens.float()) / 6) ** alpha


def longest_translation(n_src_tokens: int, decode: DecodeConfig, n_positions: int | None) -> int:
    """Return how many tokens a translation may have, ends of sentence included in all numbers.

    Args:
        n_positions: that the model has; None: any number.
    """
    longest = max(decode.max_length or n_src_tokens + LONGER_THAN_SOURCE, decode.min_length + 1)
    return min(longest, n_positions or longest)


@dataclass(frozen=True)
class SearchRequest:
    """A batch of sentences, and how their translations are searched for."""

    sentences: Sequence[Sequence[int]]  # source ids, each ending with EOS
    decode: DecodeConfig  # how to search, or that n_best translations are drawn
    n_best: int = 1  # translations of each sentence; at most beam_size unless they are drawn
    prefixes: Sequence[Sequence[int]] | None = None  # ids that translations begin with, shorter than the longest length
    banned_ids: Sequence[int] = ()  # never produced, except in prefixes

    @property
    def n_beams(self) -> int:
        return self.n_best if self.decode.sample else self.decode.beam_size

    def rows(self, rows: slice) -> SearchRequest:
        """Return the request for some of the sentences."""
        return replace(self, sentences=self.sentences[rows], prefixes=self.prefixes and self.prefixes[rows])

    def limits(self, n_positions: int | None) -> list[int]:
        """Return the longest translation of each sentence, in tokens, see `longest_translation`."""
        return [longest_translation(len(sentence), self.decode, n_positions) for sentence in self.sentences]


@torch.inference_mode()
def search(model: Transformer, request: SearchRequest) -> list[list[SearchResult]]:
    """Return the n_best translations of each sentence, best first; fewer, or none, where the model returns NaN.

    A search ends when no open beam can overtake the n-th best finished hypothesis within LOOK_AHEAD tokens. At the
    longest length allowed every open beam has to end. What must not come is left out; its probability is not given to
    others.
    """
    assert 1 <= request.n_best <= request.n_beams
    state = SearchState.begin(model, request)
    results: list[list[SearchResult]] = [[] for _ in request.sentences]
    while True:
        state.step()
        left, done = state.left_and_done()
        if not left:
            state.collect(done, results)
            return results
        if len(done) >= DONE_FRACTION * (len(left) + len(done)):
            state.collect(done, results)
            state.keep_sentences(left)


@dataclass
class SearchState:
    """A search between two steps: open beams and finished hypotheses of the sentences still in the batch."""

    model: Transformer
    cache: Cache  # what the model keeps of them
    decode: DecodeConfig
    n_best: int
    shortest_prefix: int  # none of the sentences has a shorter one
    shortest_limit: int  # nor a smaller limit
    longest_limit: int  # the largest of all sentences
    banned: Tensor  # [n] ids that never come
    banned_or_end: Tensor  # [n + 1] and EOS
    banned_blocks: Tensor  # the blocks of the vocabulary that they lie in
    rows: list[int]  # [B] place of each sentence in the request
    limits: Tensor  # [B] tokens of a translation, EOS included
    prefixes: Tensor  # [B, P], UNCONSTRAINED behind the end of each
    keys: Tensor  # [B, K] int64 for the numbers that a draw is made of; of the sentence, the seed and the beam alone
    last_tokens: Tensor  # [B, K] what each beam ends with
    open_log_probs: Tensor  # [B, K], best first; NEG_INF where there is no such beam
    open_ids: Tensor  # [B, K, t], PAD behind the end
    finished_scores: Tensor  # [B, K], best first; NEG_INF where there is none yet
    finished_log_probs: Tensor  # [B, K]
    finished_lengths: Tensor  # [B, K], EOS included
    finished_ids: Tensor  # [B, K, t]
    is_static: bool = False  # the host's knowledge stays out of what the device does, so that a step can be captured

    @classmethod
    def begin(cls, model: Transformer, request: SearchRequest, width_multiple: int = 1) -> SearchState:
        """See `search`; sources are as wide as the next multiple of width_multiple."""
        device, n_positions = model.embedding.weight.device, model.positions.n_positions
        sentences, decode, n_beams = request.sentences, request.decode, request.n_beams
        sources = assemble_sources(sentences, model.dtype, width_multiple).to(device)
        assert sources.width <= (n_positions or sources.width), "a source is longer than the positions"
        limits, prefixes = request.limits(n_positions), request.prefixes or [()] * len(sentences)
        assert all(len(prefix) < limit for prefix, limit in zip(prefixes, limits, strict=True))
        longest_prefix = max(len(prefix) for prefix in prefixes)
        padded = [[*prefix, *[UNCONSTRAINED] * (longest_prefix - len(prefix))] for prefix in prefixes]
        never = torch.full((len(sentences), n_beams), NEG_INF, device=device)
        open_log_probs = torch.zeros_like(never)
        if not decode.sample:  # all beams are the same one
            open_log_probs[:, 1:] = NEG_INF
        ids = torch.zeros((*never.shape, 0), dtype=torch.int64, device=device)
        banned = {PAD_ID, UNK_ID, BOS_ID, *request.banned_ids}
        return cls(
            model=model,
            cache=model.init_cache(sources, n_beams),
            decode=decode,
            n_best=request.n_best,
            shortest_prefix=min(len(prefix) for prefix in prefixes),
            shortest_limit=min(limits),
            longest_limit=max(limits),
            banned=torch.tensor(sorted(banned), device=device),
            banned_or_end=torch.tensor(sorted(banned | {EOS_ID}), device=device),
            banned_blocks=torch.tensor(sorted({i // BLOCK for i in banned | {EOS_ID}}), device=device),
            rows=list(range(len(sentences))),
            limits=torch.tensor(limits, device=device),
            prefixes=torch.tensor(padded, dtype=torch.int64, device=device),
            keys=torch.tensor([_draw_keys(sentence, decode.seed, n_beams) for sentence in sentences], device=device),
            last_tokens=torch.full_like(never, BOS_ID, dtype=torch.int64),
            open_log_probs=open_log_probs,
            open_ids=ids,
            finished_scores=never,
            finished_log_probs=never.clone(),
            finished_lengths=torch.zeros_like(never, dtype=torch.int64),
            finished_ids=ids,
        )

    @property
    def n_beams(self) -> int:
        return self.open_log_probs.shape[1]

    @property
    def n_open(self) -> int:
        """k: beams to go on with. While nothing has been chosen, all beams of a search are the same one."""
        return 1 if self.cache.length <= self.shortest_prefix and not self.decode.sample else self.n_beams

    def step(self) -> None:
        """Extend every open beam by one token."""
        logits = self.model.decode_step(self.last_tokens[:, : self.n_open].flatten(), self.cache)
        self._reserve()
        self.cache.select_beams(self._advance(logits))

    def make_static(self) -> None:
        """From now on a step can be captured: no prefix and no shortest length is left, and there is room for it."""
        self.cache, self.is_static = StaticCache(**vars(self.cache)), True

    def grow(self, n_positions: int) -> None:
        """Make room for some more positions."""
        self.cache.grow(n_positions)
        self._reserve()

    def copy(self) -> SearchState:
        """Return another state over the same tensors."""
        return replace(self, cache=self.cache.copy())

    def tensors(self) -> list[tuple[dict[str, Any], str, Tensor]]:
        """Return all tensors of the state: the dictionary that holds each, its key there, and itself."""
        own = vars(self)
        return [*self.cache.tensors(), *((own, name, x) for name, x in own.items() if isinstance(x, Tensor))]

    def _reserve(self) -> None:
        """Make as much room for tokens as the cache has."""
        missing = self.cache.capacity - self.open_ids.shape[2]
        if missing > 0:
            self.open_ids = functional.pad(self.open_ids, (0, missing), value=PAD_ID)
            self.finished_ids = functional.pad(self.finished_ids, (0, missing), value=PAD_ID)

    def _advance(self, logits: Tensor) -> Tensor:
        """Extend each beam by one token; hypotheses that end move to the finished ones.

        Args:
            logits: [B k, rows of the embedding], see `Transformer.decode_step`; used up.
        Returns:
            The beam [B, K] that each open beam continues.
        """
        totals, tokens, parents = self._candidates(logits)  # [B, C] each
        ends = tokens == EOS_ID
        # An end counts among the best K, where a token would go on: so that a beam of one is greedy.
        first = slice(self.n_beams)
        self._finish(totals[:, first].masked_fill(~ends[:, first], NEG_INF), parents[:, first])
        totals = totals.masked_fill(ends, NEG_INF)
        if not self.decode.sample:
            # Of 2K candidates at most K end a hypothesis, so K go on at least.
            totals, chosen = totals.topk(self.n_beams, dim=1)  # [B, K]
            parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
            self.open_ids = _of_beams(self.open_ids, parents)
        self.open_log_probs, self.last_tokens = totals, tokens
        self.open_ids.index_copy_(2, self.cache.position, tokens[:, :, None])
        # For good: whether there is a later step, in which more may come within reach, depends on other sentences.
        self.open_log_probs = totals.masked_fill(self._is_decided()[:, None], NEG_INF)
        return parents

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of log-probabilities [B, C], the tokens behind them, and the beams that these follow."""
        decode = self.decode
        normaliser, maxima = log_normaliser_and_maxima(logits, logits.shape[1] // BLOCK)
        # Before anything is forbidden: what must not come keeps its share of the probability.
        offsets = self.open_log_probs[:, : self.n_open] - normaliser.view(-1, self.n_open)  # [B, k]
        only = self._only_tokens()
        only_totals = None if only is None else offsets + _of_rows(logits, only)
        self._forbid(logits, maxima)
        beams = torch.arange(self.n_open, device=logits.device).expand(offsets.shape)  # [B, k]
        if decode.sample:
            uniform = uniform_numbers(self.keys, self.cache.position).flatten()
            scores, ids = drawn_tokens(
                logits.float(), uniform, temperature=decode.temperature, top_k=decode.top_k, top_p=decode.top_p
            )
            totals, tokens, parents = scores.view_as(offsets) + offsets, ids.view_as(offsets), beams
        else:
            totals, tokens, parents = best_tokens(logits, maxima, offsets, 2 * self.n_beams)
        if only is not None and only_totals is not None:
            is_free = (only == UNCONSTRAINED)[:, None]
            missing = (0, totals.shape[1] - self.n_open)
            totals = torch.where(is_free, totals, functional.pad(only_totals, missing, value=NEG_INF))
            tokens = torch.where(is_free, tokens, only[:, None])
            parents = torch.where(is_free, parents, functional.pad(beams, missing))
        # Where the model returns NaN there are no candidates.
        return totals.nan_to_num_(NEG_INF, neginf=NEG_INF), tokens, parents

    def _forbid(self, logits: Tensor, maxima: Tensor) -> None:
        """Make what must not come impossible, in the logits and in the maxima of their blocks."""
        forbidden = self.banned if self.cache.length >= self.decode.min_length else self.banned_or_end
        logits.index_fill_(1, forbidden, NEG_INF)
        blocks = logits.view(len(logits), -1, BLOCK)
        if self.decode.no_repeat_ngram_size:
            ids = self.open_ids[:, : self.n_open].flatten(0, 1)
            forbid_repetition(logits, ids, self.cache.position, self.decode.no_repeat_ngram_size)
            maxima.copy_(blocks.amax(-1))
        else:
            maxima[:, self.banned_blocks] = blocks[:, self.banned_blocks].amax(-1).float()

    def _only_tokens(self) -> Tensor | None:
        """Return [B]: the one token that may follow the beams of a sentence, or UNCONSTRAINED; None where all are free.

        It is EOS at the longest length, else the prefix's.
        """
        length, longest_prefix = self.cache.length, self.prefixes.shape[1]
        if length >= longest_prefix and length + 1 < self.shortest_limit and not self.is_static:
            return None
        only = self.limits.new_full((len(self.limits),), UNCONSTRAINED)
        if length < longest_prefix:
            only = self.prefixes[:, length]
        return only.masked_fill(self.limits <= self.cache.position + 1, EOS_ID)

    def _finish(self, log_probs: Tensor, parents: Tensor) -> None:
        """Merge candidates that end, [B, K] with NEG_INF for the others, with what is finished; keep the best K."""
        if not self.is_static and not bool((log_probs > NEG_INF).any()):
            return
        n_tokens = (self.cache.position + 1).expand(parents.shape)
        scores = torch.cat([self.finished_scores, log_probs / self._penalty(n_tokens)], 1)
        self.finished_scores, best = scores.topk(self.n_beams, dim=1)
        self.finished_log_probs = torch.cat([self.finished_log_probs, log_probs], 1).gather(1, best)
        self.finished_lengths = torch.cat([self.finished_lengths, n_tokens], 1).gather(1, best)
        self.finished_ids = _of_beams(torch.cat([self.finished_ids, _of_beams(self.open_ids, parents)], 1), best)

    def _penalty(self, n_tokens: Tensor) -> Tensor:
        return length_penalty(n_tokens, self.decode.length_penalty, self.decode.length_penalty_form)

    def left_and_done(self) -> tuple[list[int], list[int]]:
        """Return the places of the sentences that have an open beam, and of those that have none.

        At the longest limit none has, and the device is not asked.
        """
        if self.cache.length >= self.longest_limit:
            return [], list(range(len(self.rows)))
        is_done = (self.open_log_probs.amax(1) == NEG_INF).tolist()
        return [i for i, done in enumerate(is_done) if not done], [i for i, done in enumerate(is_done) if done]

    def _is_decided(self) -> Tensor:
        """[B]: whether no open beam can reach the n-th best finished score any more.

        Log-probabilities only fall, so an open beam that ends within LOOK_AHEAD tokens reaches at most its sum so far
        over the penalty there. Of draws each ends by itself, whatever the others are worth.
        """
        if self.decode.sample:
            return torch.zeros_like(self.limits, dtype=torch.bool)
        longest = torch.minimum(self.limits, self.cache.position + (1 + LOOK_AHEAD))
        return self.finished_scores[:, self.n_best - 1] >= self.open_log_probs[:, 0] / self._penalty(longest)

    def collect(self, sentences: Sequence[int], results: list[list[SearchResult]]) -> None:
        """Write the n best finished hypotheses of the sentences at these places in the batch to theirs in results."""
        places = torch.tensor(sentences, device=self.limits.device)
        columns = (self.finished_scores, self.finished_log_probs, self.finished_lengths, self.finished_ids)
        for i, scores, log_probs, lengths, ids in zip(sentences, *(x[places].tolist() for x in columns), strict=True):
            results[self.rows[i]] = [
                SearchResult(tuple(ids[k][: lengths[k] - 1]), log_probs[k], scores[k])
                for k in range(self.n_best)
                if scores[k] > NEG_INF
            ]

    def keep_sentences(self, sentences: Sequence[int]) -> None:
        """Keep only these sentences, given by their places in the batch."""
        places = torch.tensor(sentences, device=self.limits.device)
        self.cache.keep_sentences(places)
        self.rows = [self.rows[i] for i in sentences]
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in ("banned", "banned_or_end", "banned_blocks"):
                setattr(self, name, value[places])


def _of_beams(ids: Tensor, beams: Tensor) -> Tensor:
    """[B, n, t]: of ids [B, m, t] those of n beams [B, n]."""
    return ids.gather(1, beams[:, :, None].expand(-1, -1, ids.shape[2]))


def _of_rows(logits: Tensor, ids: Tensor) -> Tensor:
    """Return [B, k] float32: of logits [B k, V] those of an id for each sentence, ids [B], or any if UNCONSTRAINED."""
    rows = logits.view(len(ids), -1, logits.shape[1])  # [B, k, V]
    index = ids.clamp(min=0)[:, None, None].expand(-1, rows.shape[1], -1)
    return rows.gather(2, index)[:, :, 0].float()


def _draw_keys(sentence: Sequence[int], seed: int, n_beams: int) -> list[int]:
    """A number for each beam, made of nothing but the ids of the sentence, the seed and the beam."""
    text = np.asarray([seed, *sentence], np.int64).tobytes()
    return [
        int.from_bytes(hashlib.blake2b(text, digest_size=8, person=str(k).encode()).digest(), "little", signed=True)
        for k in range(n_beams)
    ]


def length_sorted_batches(
    lengths: Sequence[int], batch_tokens: int, n_beams: int, batch_sentences: int | None = None
) -> list[list[int]]:
    """Indices of sentences that are translated together: sorted by length, padded source tokens within the budget.

    The cache grows with sentences and beams, not with source tokens alone: a sentence counts as SHORTEST tokens at
    least, and beams wider than USUAL_BEAM take their share of the budget.
    """
    budget = batch_tokens * USUAL_BEAM / max(n_beams, USUAL_BEAM)
    most = batch_sentences or len(lengths)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first of a batch is its longest.
        n_with_it = len(batches[-1]) + 1 if batches else 0
        if not batches or n_with_it > most or max(lengths[batches[-1][0]], SHORTEST) * n_with_it > budget:
            batches.append([])
        batches[-1].append(i)
    return batches
