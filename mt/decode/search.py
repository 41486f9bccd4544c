"""Beam search and sampling on tensors of ids. Greedy search is a beam of one.

B sentences, K beams, k of them open, C candidates of a sentence, V vocabulary, t tokens that fit into the cache, P
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
    forbid_repetition,
    log_normaliser_and_maxima,
    sampled_tokens,
    uniform_numbers,
)
from mt.model import Transformer
from mt.model.context import Cache, StaticCache
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

# Finished sentences leave the batch when they are this fraction of it: removing them copies the cache.
DONE_FRACTION = 0.25
SHORTEST = 16  # tokens that a shorter sentence counts as in `length_sorted_batches`
USUAL_BEAM = 4  # wider beams reduce the budget there
# Tokens within which an open beam must be able to overtake the finished hypotheses. Without this limit a search takes a
# quarter more steps, and finds nothing better.
LOOK_AHEAD = 8
# Tokens by which a translation may be longer than its source by default. Source: Vaswani et al. 2017, section 6.1.
LONGER_THAN_SOURCE = 50


@dataclass(frozen=True)
class SearchResult:
    """One translation of one sentence, as ids."""

    ids: tuple[int, ...]  # without BOS and EOS
    log_prob: float  # sum over tokens, EOS included, in nats
    score: float  # log_prob divided by the length penalty; ranks the hypotheses

    @property
    def n_tokens(self) -> int:
        """Number of tokens that log_prob sums over, EOS included."""
        return len(self.ids) + 1


def length_penalty(n_tokens: Tensor, alpha: float, form: str = "wu") -> Tensor:
    """Return ((5 + n) / 6)^α, or n^α in the plain form; n includes the end of sentence.

    Source: Wu et al. 2016, equation 14.
    """
    return (n_tokens.float() if form == "plain" else (5 + n_tokens.float()) / 6) ** alpha


def longest_translation(n_src_tokens: int, decode: DecodeConfig, n_positions: int | None) -> int:
    """Return the most tokens that a translation may have. All numbers include the end of sentence.

    Args:
        n_positions: positions of the model; None: no limit.
    """
    longest = max(decode.max_length or n_src_tokens + LONGER_THAN_SOURCE, decode.min_length + 1)
    return min(longest, n_positions or longest)


@dataclass(frozen=True)
class SearchRequest:
    """A batch of sentences to translate, and the settings of the search."""

    sentences: Sequence[Sequence[int]]  # source ids, each ending with EOS
    decode: DecodeConfig  # beam search, or sampling of n_best translations
    n_best: int = 1  # translations of each sentence; at most beam_size unless sampled
    prefixes: Sequence[Sequence[int]] | None = None  # ids that translations start with, below the length limit
    banned_ids: Sequence[int] = ()  # never produced, except in prefixes

    @property
    def n_beams(self) -> int:
        return self.n_best if self.decode.sample else self.decode.beam_size

    def rows(self, rows: slice) -> SearchRequest:
        """Return the request for some of the sentences."""
        return replace(self, sentences=self.sentences[rows], prefixes=self.prefixes and self.prefixes[rows])

    def limits(self, n_positions: int | None) -> list[int]:
        """Return the `longest_translation` of each sentence, in tokens."""
        return [longest_translation(len(sentence), self.decode, n_positions) for sentence in self.sentences]


@torch.inference_mode()
def search(model: Transformer, request: SearchRequest) -> list[list[SearchResult]]:
    """Return the n_best translations of each sentence, best first; fewer or none if the model returns NaN.

    A search ends when no open beam can overtake the n-th best finished hypothesis within LOOK_AHEAD tokens. At the
    length limit every open beam must end. Forbidden tokens are left out; the probabilities of the other tokens do not
    change.
    """
    assert 1 <= request.n_best <= request.n_beams
    state = SearchState.begin(model, request)
    results: list[list[SearchResult]] = [[] for _ in request.sentences]
    while True:
        state.step()
        still_open, done = state.open_and_done()
        if not still_open:
            state.collect(done, results)
            return results
        if len(done) >= DONE_FRACTION * (len(still_open) + len(done)):
            state.collect(done, results)
            state.keep_sentences(still_open)


@dataclass
class SearchState:
    """A search between two steps: open beams and finished hypotheses of the sentences still in the batch."""

    model: Transformer
    cache: Cache  # keys and values of the open beams
    decode: DecodeConfig
    n_best: int
    shortest_prefix: int  # tokens of the shortest prefix
    shortest_limit: int  # the smallest of the limits
    longest_limit: int  # the largest of the limits
    banned: Tensor  # [n] ids that are never produced
    banned_or_end: Tensor  # [n + 1] these ids and EOS
    banned_blocks: Tensor  # the blocks of the vocabulary that contain them
    rows: list[int]  # [B] index of each sentence in the request
    limits: Tensor  # [B] most tokens of a translation, EOS included
    prefixes: Tensor  # [B, P], UNCONSTRAINED after the end of each
    keys: Tensor  # [B, K] int64 for sampling; they depend only on the sentence, the seed and the beam
    last_tokens: Tensor  # [B, K] last token of each beam
    open_log_probs: Tensor  # [B, K], best first; NEG_INF if the beam is closed
    open_ids: Tensor  # [B, K, t], PAD after the end
    finished_scores: Tensor  # [B, K], best first; NEG_INF if there is none yet
    finished_log_probs: Tensor  # [B, K]
    finished_lengths: Tensor  # [B, K], EOS included
    finished_ids: Tensor  # [B, K, t]
    is_static: bool = False  # steps can be captured: they do not depend on numbers that only the host has

    @classmethod
    def begin(cls, model: Transformer, request: SearchRequest, width_multiple: int = 1) -> SearchState:
        """Return the state before the first step; the source width is rounded up to a multiple of width_multiple."""
        device, n_positions = model.embedding.weight.device, model.positions.n_positions
        sentences, decode, n_beams = request.sentences, request.decode, request.n_beams
        sources = assemble_sources(sentences, model.dtype, width_multiple).to(device)
        assert sources.width <= (n_positions or sources.width), "a source has more tokens than the model has positions"
        limits, prefixes = request.limits(n_positions), request.prefixes or [()] * len(sentences)
        assert all(len(prefix) < limit for prefix, limit in zip(prefixes, limits, strict=True))
        longest_prefix = max(len(prefix) for prefix in prefixes)
        padded = [[*prefix, *[UNCONSTRAINED] * (longest_prefix - len(prefix))] for prefix in prefixes]
        neg_inf = torch.full((len(sentences), n_beams), NEG_INF, device=device)
        open_log_probs = torch.zeros_like(neg_inf)
        if not decode.sample:  # all beams are the same
            open_log_probs[:, 1:] = NEG_INF
        ids = torch.zeros((*neg_inf.shape, 0), dtype=torch.int64, device=device)
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
            keys=torch.tensor(
                [_sampling_keys(sentence, decode.seed, n_beams) for sentence in sentences], device=device
            ),
            last_tokens=torch.full_like(neg_inf, BOS_ID, dtype=torch.int64),
            open_log_probs=open_log_probs,
            open_ids=ids,
            finished_scores=neg_inf,
            finished_log_probs=neg_inf.clone(),
            finished_lengths=torch.zeros_like(neg_inf, dtype=torch.int64),
            finished_ids=ids,
        )

    @property
    def n_beams(self) -> int:
        return self.open_log_probs.shape[1]

    @property
    def n_open(self) -> int:
        """k: number of beams to extend. One is enough before the first selection, since all beams are the same."""
        return 1 if self.cache.length <= self.shortest_prefix and not self.decode.sample else self.n_beams

    def step(self) -> None:
        """Extend every open beam by one token."""
        logits = self.model.decode_step(self.last_tokens[:, : self.n_open].flatten(), self.cache)
        self._reserve()
        self.cache.select_beams(self._advance(logits))

    def make_static(self) -> None:
        """Make later steps capturable. All sentences must be past their prefixes and the minimum length."""
        self.cache, self.is_static = StaticCache(**vars(self.cache)), True

    def grow(self, n_positions: int) -> None:
        """Make room for n_positions more."""
        self.cache.grow(n_positions)
        self._reserve()

    def copy(self) -> SearchState:
        """Return another state with the same tensors."""
        return replace(self, cache=self.cache.copy())

    def tensors(self) -> list[tuple[dict[str, Any], str, Tensor]]:
        """Return all tensors of the state: the dictionary that holds each, its key there, and itself."""
        own = vars(self)
        return [*self.cache.tensors(), *((own, name, x) for name, x in own.items() if isinstance(x, Tensor))]

    def _reserve(self) -> None:
        """Extend the tensors of ids to the capacity of the cache."""
        missing = self.cache.capacity - self.open_ids.shape[2]
        if missing > 0:
            self.open_ids = functional.pad(self.open_ids, (0, missing), value=PAD_ID)
            self.finished_ids = functional.pad(self.finished_ids, (0, missing), value=PAD_ID)

    def _advance(self, logits: Tensor) -> Tensor:
        """Extend each beam by one token; hypotheses that end move to the finished ones.

        Args:
            logits: [B k, rows of the embedding], see `Transformer.decode_step`; they are overwritten.
        Returns:
            The beam [B, K] that each open beam continues.
        """
        totals, tokens, parents = self._candidates(logits)  # [B, C] each
        ends = tokens == EOS_ID
        # EOS counts only among the best K candidates, so that a beam of one is greedy search.
        first = slice(self.n_beams)
        self._finish(totals[:, first].masked_fill(~ends[:, first], NEG_INF), parents[:, first])
        totals = totals.masked_fill(ends, NEG_INF)
        if not self.decode.sample:
            # At most K of the 2K candidates are EOS, one per beam, so at least K continue.
            totals, chosen = totals.topk(self.n_beams, dim=1)  # [B, K]
            parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
            self.open_ids = _of_beams(self.open_ids, parents)
        self.open_log_probs, self.last_tokens = totals, tokens
        self.open_ids.index_copy_(2, self.cache.position, tokens[:, :, None])
        # Decided sentences stay closed. A later step could reopen them, but whether there is one depends on the other
        # sentences of the batch.
        self.open_log_probs = totals.masked_fill(self._is_decided()[:, None], NEG_INF)
        return parents

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums of log-probabilities [B, C], their last tokens, and the beams that these extend."""
        decode = self.decode
        normaliser, maxima = log_normaliser_and_maxima(logits, logits.shape[1] // BLOCK)
        # Normalised before tokens are forbidden, so that the probabilities of the others do not change.
        offsets = self.open_log_probs[:, : self.n_open] - normaliser.view(-1, self.n_open)  # [B, k]
        forced = self._forced_tokens()
        forced_totals = None if forced is None else offsets + _logits_of(logits, forced)
        self._forbid(logits, maxima)
        beams = torch.arange(self.n_open, device=logits.device).expand(offsets.shape)  # [B, k]
        if decode.sample:
            uniform = uniform_numbers(self.keys, self.cache.position).flatten()
            scores, ids = sampled_tokens(
                logits.float(), uniform, temperature=decode.temperature, top_k=decode.top_k, top_p=decode.top_p
            )
            totals, tokens, parents = scores.view_as(offsets) + offsets, ids.view_as(offsets), beams
        else:
            totals, tokens, parents = best_tokens(logits, maxima, offsets, 2 * self.n_beams)
        if forced is not None and forced_totals is not None:
            is_free = (forced == UNCONSTRAINED)[:, None]
            missing = (0, totals.shape[1] - self.n_open)
            totals = torch.where(is_free, totals, functional.pad(forced_totals, missing, value=NEG_INF))
            tokens = torch.where(is_free, tokens, forced[:, None])
            parents = torch.where(is_free, parents, functional.pad(beams, missing))
        # If the model returns NaN, there are no candidates.
        return totals.nan_to_num_(NEG_INF, neginf=NEG_INF), tokens, parents

    def _forbid(self, logits: Tensor, maxima: Tensor) -> None:
        """Set forbidden tokens to NEG_INF in the logits, and update the maxima of their blocks."""
        forbidden = self.banned if self.cache.length >= self.decode.min_length else self.banned_or_end
        logits.index_fill_(1, forbidden, NEG_INF)
        blocks = logits.view(len(logits), -1, BLOCK)
        if self.decode.no_repeat_ngram_size:
            ids = self.open_ids[:, : self.n_open].flatten(0, 1)
            forbid_repetition(logits, ids, self.cache.position, self.decode.no_repeat_ngram_size)
            maxima.copy_(blocks.amax(-1))
        else:
            maxima[:, self.banned_blocks] = blocks[:, self.banned_blocks].amax(-1).float()

    def _forced_tokens(self) -> Tensor | None:
        """Return [B]: the token that must follow in each sentence, or UNCONSTRAINED; None if no token is forced.

        At the length limit it is EOS, otherwise the next token of the prefix.
        """
        length, longest_prefix = self.cache.length, self.prefixes.shape[1]
        if length >= longest_prefix and length + 1 < self.shortest_limit and not self.is_static:
            return None
        forced = self.limits.new_full((len(self.limits),), UNCONSTRAINED)
        if length < longest_prefix:
            forced = self.prefixes[:, length]
        return forced.masked_fill(self.limits <= self.cache.position + 1, EOS_ID)

    def _finish(self, log_probs: Tensor, parents: Tensor) -> None:
        """Add candidates that end, [B, K] with NEG_INF for the others, to the finished hypotheses; keep the best K."""
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

    def open_and_done(self) -> tuple[list[int], list[int]]:
        """Return the indices of the sentences that have an open beam, and of those that have none.

        At the longest limit no sentence has one, and nothing is read from the device.
        """
        if self.cache.length >= self.longest_limit:
            return [], list(range(len(self.rows)))
        is_done = (self.open_log_probs.amax(1) == NEG_INF).tolist()
        return [i for i, done in enumerate(is_done) if not done], [i for i, done in enumerate(is_done) if done]

    def _is_decided(self) -> Tensor:
        """Return [B]: whether no open beam can still overtake the n-th best finished hypothesis.

        Log-probabilities only fall, so an open beam that ends within LOOK_AHEAD tokens scores at most its sum so far
        divided by the penalty there. Samples do not compete: each continues to its own end.
        """
        if self.decode.sample:
            return torch.zeros_like(self.limits, dtype=torch.bool)
        longest = torch.minimum(self.limits, self.cache.position + (1 + LOOK_AHEAD))
        return self.finished_scores[:, self.n_best - 1] >= self.open_log_probs[:, 0] / self._penalty(longest)

    def collect(self, sentences: Sequence[int], results: list[list[SearchResult]]) -> None:
        """Write the n best finished hypotheses of sentences, given by their indices in the batch, into the results."""
        indices = torch.tensor(sentences, device=self.limits.device)
        columns = (self.finished_scores, self.finished_log_probs, self.finished_lengths, self.finished_ids)
        for i, scores, log_probs, lengths, ids in zip(sentences, *(x[indices].tolist() for x in columns), strict=True):
            results[self.rows[i]] = [
                SearchResult(tuple(ids[k][: lengths[k] - 1]), log_probs[k], scores[k])
                for k in range(self.n_best)
                if scores[k] > NEG_INF
            ]

    def keep_sentences(self, sentences: Sequence[int]) -> None:
        """Keep only these sentences, given by their indices in the batch."""
        indices = torch.tensor(sentences, device=self.limits.device)
        self.cache.keep_sentences(indices)
        self.rows = [self.rows[i] for i in sentences]
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in ("banned", "banned_or_end", "banned_blocks"):
                setattr(self, name, value[indices])


def _of_beams(ids: Tensor, beams: Tensor) -> Tensor:
    """Return ids [B, n, t] of n beams [B, n], from ids [B, m, t]."""
    return ids.gather(1, beams[:, :, None].expand(-1, -1, ids.shape[2]))


def _logits_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Return [B, k] float32: the logits [B k, V] of one id for each sentence, ids [B]; any value if UNCONSTRAINED."""
    rows = logits.view(len(ids), -1, logits.shape[1])  # [B, k, V]
    index = ids.clamp(min=0)[:, None, None].expand(-1, rows.shape[1], -1)
    return rows.gather(2, index)[:, :, 0].float()


def _sampling_keys(sentence: Sequence[int], seed: int, n_beams: int) -> list[int]:
    """Return a key for each beam: a hash of the ids of the sentence, the seed and the beam."""
    text = np.asarray([seed, *sentence], np.int64).tobytes()
    return [
        int.from_bytes(hashlib.blake2b(text, digest_size=8, person=str(k).encode()).digest(), "little", signed=True)
        for k in range(n_beams)
    ]


def length_sorted_batches(
    lengths: Sequence[int], batch_tokens: int, n_beams: int, batch_sentences: int | None = None
) -> list[list[int]]:
    """Return batches of indices of sentences, sorted by length, whose padded source tokens are within the budget.

    The cache grows with sentences and beams, and not only with source tokens. Each sentence thus counts as at least
    SHORTEST tokens, and beams wider than USUAL_BEAM reduce the budget in proportion.
    """
    budget = batch_tokens * USUAL_BEAM / max(n_beams, USUAL_BEAM)
    most = batch_sentences or len(lengths)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first sentence of a batch is its longest.
        n_with_it = len(batches[-1]) + 1 if batches else 0
        if not batches or n_with_it > most or max(lengths[batches[-1][0]], SHORTEST) * n_with_it > budget:
            batches.append([])
        batches[-1].append(i)
    return batches
