"""Beam search on tensors. Greedy search is a beam of one. No tokenizer here.

B sentences, K beams, C candidates of a sentence, V vocabulary, t_max the longest translation allowed.

Source of the length penalty: Wu et al. 2016, equation 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mt.data.batch import assemble_sources
from mt.model import Transformer
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

NEVER = float("-inf")
# Sentences that are done leave the batch once they are this share of it; each departure copies the cache.
DONE_SHARE = 0.25
# Width of the blocks in which the best candidates are looked for: the maxima of blocks first.
BLOCK = 64
SHORTEST = 16
USUAL_BEAM = 4


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


def length_penalty(n_tokens: Tensor, alpha: float) -> Tensor:
    """((5 + n) / 6)^α, with n counting the end of sentence. Source: Wu et al. 2016, equation 14."""
    return ((5 + n_tokens.float()) / 6) ** alpha


@torch.inference_mode()
def beam_search(
    model: Transformer,
    sentences: Sequence[Sequence[int]],
    *,
    beam_size: int,
    alpha: float,
    max_length: int | None = None,
    n_best: int = 1,
    banned_ids: Sequence[int] = (),
) -> list[list[SearchResult]]:
    """The n_best translations of each sentence, best first; fewer, or none, where the model gives no numbers.

    A search goes on until no open beam can overtake the n-th best finished hypothesis any more. At the longest
    length allowed every open beam has to end.

    Args:
        sentences: source ids, each ending with EOS.
        alpha: exponent of the length penalty.
        max_length: tokens of a translation, EOS included; None: source length + 50 for each sentence.
        n_best: at most beam_size.
        banned_ids: never produced; their probability is not given to others.
    """
    assert 1 <= n_best <= beam_size
    device = model.embedding.weight.device
    sources = assemble_sources(sentences, model.dtype).to(device)
    limits = sources.lengths + 50 if max_length is None else torch.full_like(sources.lengths, max_length)
    cache = model.begin_decoding(sources, beam_size, int(limits.max()))
    beams = _Beams.begin(limits, beam_size, alpha, n_best)
    banned = torch.tensor(sorted({PAD_ID, UNK_ID, BOS_ID, *banned_ids}), device=device)
    results: list[list[SearchResult]] = [[] for _ in sentences]
    while True:
        logits = model.decode_step(beams.last_tokens, cache)
        parents = beams.advance(logits, banned)
        done = beams.done()
        n_done = int(done.sum())
        if n_done == len(done) or beams.length == cache.max_length:
            beams.collect(torch.arange(len(done), device=device), results)
            return results
        if n_done >= DONE_SHARE * len(done):
            beams.collect(done.nonzero()[:, 0], results)
            going_on = (~done).nonzero()[:, 0]
            cache.keep_sentences(going_on)
            beams = beams.kept(going_on)
            parents = parents[going_on]
        cache.choose(parents)


@dataclass
class _Beams:
    """Open beams and finished hypotheses of the sentences still in the batch."""

    rows: Tensor  # [B] place of each sentence in the caller's list
    limits: Tensor  # [B] tokens of a translation, EOS included
    open_log_probs: Tensor  # [B, K], best first; NEVER where there is no such beam
    open_ids: Tensor  # [B, K, t_max]
    finished_scores: Tensor  # [B, K], best first; NEVER where there is none yet
    finished_log_probs: Tensor  # [B, K]
    finished_lengths: Tensor  # [B, K], EOS included
    finished_ids: Tensor  # [B, K, t_max]
    alpha: float
    n_best: int
    length: int = 0  # tokens in each open beam

    @classmethod
    def begin(cls, limits: Tensor, n_beams: int, alpha: float, n_best: int) -> _Beams:
        n_sentences, device = len(limits), limits.device
        never = torch.full((n_sentences, n_beams), NEVER, device=device)
        open_log_probs = never.clone()
        open_log_probs[:, 0] = 0
        ids = torch.full((n_sentences, n_beams, int(limits.max())), PAD_ID, device=device)
        return cls(
            rows=torch.arange(n_sentences, device=device),
            limits=limits,
            open_log_probs=open_log_probs,
            open_ids=ids,
            finished_scores=never,
            finished_log_probs=never.clone(),
            finished_lengths=torch.zeros_like(ids[:, :, 0]),
            finished_ids=ids.clone(),
            alpha=alpha,
            n_best=n_best,
        )

    @property
    def last_tokens(self) -> Tensor:
        """[B K]: what each beam ended with."""
        if self.length == 0:
            return torch.full_like(self.open_ids[:, :, 0], BOS_ID).view(-1)
        return self.open_ids[:, :, self.length - 1].reshape(-1)

    def advance(self, logits: Tensor, banned: Tensor) -> Tensor:
        """Extend each beam by one token; hypotheses that end move to the finished ones.

        Args:
            logits: [B K, V].
            banned: [n] ids.
        Returns:
            The beam [B, K] that each open beam continues.
        """
        n_sentences, n_beams = self.open_log_probs.shape
        must_end = (self.limits == self.length + 1).repeat_interleave(n_beams, output_size=len(logits))
        log_probs, tokens = top_log_probs(logits, 2 * n_beams, banned, must_end)  # [B K, c]
        n_each = log_probs.shape[1]
        log_probs = (self.open_log_probs.view(-1, 1) + log_probs).view(n_sentences, -1)  # [B, K c]
        tokens = tokens.view(n_sentences, -1)
        # Of 2K candidates at most K end a hypothesis, so K go on at least.
        log_probs, best = log_probs.topk(min(2 * n_beams, log_probs.shape[1]), dim=1)  # [B, C]
        parents = best.div(n_each, rounding_mode="floor")
        tokens = tokens.gather(1, best)
        ends = tokens == EOS_ID
        self._finish(log_probs.masked_fill(~ends, NEVER), parents)
        log_probs = log_probs.masked_fill(ends, NEVER)
        if log_probs.shape[1] < n_beams:  # a vocabulary smaller than the beam
            missing = n_beams - log_probs.shape[1]
            log_probs = torch.nn.functional.pad(log_probs, (0, missing), value=NEVER)
            tokens, parents = (torch.nn.functional.pad(x, (0, missing)) for x in (tokens, parents))
        self.open_log_probs, chosen = log_probs.topk(n_beams, dim=1)  # [B, K]
        parents = parents.gather(1, chosen)
        used = self.open_ids[:, :, : self.length]
        self.open_ids[:, :, : self.length] = used.gather(1, parents[:, :, None].expand(used.shape))
        self.open_ids[:, :, self.length] = tokens.gather(1, chosen)
        self.length += 1
        return parents

    def _finish(self, log_probs: Tensor, parents: Tensor) -> None:
        """Merge candidates that end, [B, C] with NEVER for the others, with what is finished; keep the best K."""
        if not bool((log_probs > NEVER).any()):
            return
        n_beams = self.finished_scores.shape[1]
        n_tokens = torch.full_like(parents, self.length + 1)
        scores = torch.cat([self.finished_scores, log_probs / length_penalty(n_tokens, self.alpha)], 1)
        candidate_ids = self.open_ids.gather(1, parents[:, :, None].expand(-1, -1, self.open_ids.shape[2]))
        self.finished_scores, best = scores.topk(n_beams, dim=1)
        self.finished_log_probs = torch.cat([self.finished_log_probs, log_probs], 1).gather(1, best)
        self.finished_lengths = torch.cat([self.finished_lengths, n_tokens], 1).gather(1, best)
        ids = torch.cat([self.finished_ids, candidate_ids], 1)
        self.finished_ids = ids.gather(1, best[:, :, None].expand(-1, -1, ids.shape[2]))

    def done(self) -> Tensor:
        """[B]: whether no open beam can reach the n-th best finished score any more.

        Log-probabilities only fall and the penalty is largest at the longest length, so an open beam can reach at most
        its sum so far over the penalty there.
        """
        best_open = self.open_log_probs[:, 0] / length_penalty(self.limits, self.alpha)
        return (self.finished_scores[:, self.n_best - 1] >= best_open) | (best_open == NEVER)

    def collect(self, sentences: Tensor, results: list[list[SearchResult]]) -> None:
        """Write the n best finished hypotheses of these sentences [n] to their places in results."""
        columns = (self.rows, self.finished_scores, self.finished_log_probs, self.finished_lengths, self.finished_ids)
        for row, scores, log_probs, lengths, ids in zip(*(x[sentences].tolist() for x in columns), strict=True):
            results[row] = [
                SearchResult(tuple(ids[k][: lengths[k] - 1]), log_probs[k], scores[k])
                for k in range(self.n_best)
                if scores[k] > NEVER
            ]

    def kept(self, sentences: Tensor) -> _Beams:
        """The same search without the other sentences."""
        return _Beams(
            rows=self.rows[sentences],
            limits=self.limits[sentences],
            open_log_probs=self.open_log_probs[sentences],
            open_ids=self.open_ids[sentences],
            finished_scores=self.finished_scores[sentences],
            finished_log_probs=self.finished_log_probs[sentences],
            finished_lengths=self.finished_lengths[sentences],
            finished_ids=self.finished_ids[sentences],
            alpha=self.alpha,
            n_best=self.n_best,
            length=self.length,
        )


def top_log_probs(logits: Tensor, k: int, banned: Tensor, must_end: Tensor) -> tuple[Tensor, Tensor]:
    """The k most probable tokens of each row, and their log-probabilities in float32.

    log_softmax and top-k over a whole vocabulary take a quarter of the time on a CPU, so both are written out: one
    exponential, and the best of blocks before the best within the best blocks (exact: a token among the k best lies
    in one of the k blocks with the highest maxima).

    Args:
        logits: [N, V]; overwritten.
        banned: [n] ids that are left out; the others' probabilities stay as they are.
        must_end: [N] rows in which EOS alone is allowed.
    Returns:
        log-probabilities [N, min(k, V)], best first, and ids of the same shape; a row of logits that are not numbers
        has no candidates: all of them are NEVER.
    """
    scores = logits.float()
    n_rows, n_vocab = scores.shape
    k = min(k, n_vocab)
    highest = scores.amax(-1, keepdim=True)
    log_normaliser = highest + (scores - highest).exp_().sum(-1, keepdim=True).log()
    scores[:, banned] = NEVER
    eos_scores = scores[:, EOS_ID].clone()
    scores.masked_fill_(must_end[:, None], NEVER)
    scores[:, EOS_ID] = eos_scores
    if n_vocab < 2 * k * BLOCK:
        best, ids = scores.topk(k, dim=-1)
        return (best - log_normaliser).nan_to_num_(NEVER, neginf=NEVER), ids
    n_whole = n_vocab // BLOCK * BLOCK
    blocks = scores[:, :n_whole].view(n_rows, -1, BLOCK)
    best_blocks = blocks.amax(-1).topk(k, dim=-1, sorted=False).indices  # [N, k]
    candidates = blocks.gather(1, best_blocks[:, :, None].expand(-1, -1, BLOCK)).flatten(1)  # [N, k BLOCK]
    candidates = torch.cat([candidates, scores[:, n_whole:]], -1)
    best, places = candidates.topk(k, dim=-1)
    in_blocks = best_blocks.gather(1, places.div(BLOCK, rounding_mode="floor").clamp_(max=k - 1)) * BLOCK
    ids = torch.where(places < k * BLOCK, in_blocks + places % BLOCK, places - k * BLOCK + n_whole)
    return (best - log_normaliser).nan_to_num_(NEVER, neginf=NEVER), ids


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int, beam_size: int) -> list[list[int]]:
    """Indices of sentences that are translated together: sorted by length, padded source tokens within the budget.

    The cache grows with sentences and beams, not with source tokens alone: a sentence counts as SHORTEST tokens at
    least, and beams wider than USUAL_BEAM take their share of the budget.
    """
    budget = batch_tokens * USUAL_BEAM / max(beam_size, USUAL_BEAM)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first of a batch is its longest.
        if not batches or max(lengths[batches[-1][0]], SHORTEST) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches
