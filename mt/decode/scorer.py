"""Scoring given translations, with one pass over both sides and without a search.

T target rows, R rows of a chunk, D d_model, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional

from mt.config.settings import DecodeChanges, DecodeConfig
from mt.data.batch import packed_pairs
from mt.decode.candidates import log_normaliser_and_maxima
from mt.decode.search import length_penalty
from mt.decode.translator import Translator, nan_error
from mt.model import Transformer
from mt.system.malloc import trim_heap
from mt.text.reader import SentencePair
from mt.text.tokenizer import EOS_ID
from mt.units import finite

# Pairs that are read before the first is scored, so that pairs of equal length can share a batch.
PAIRS_AT_A_TIME = 4_096
# Attention memory grows with the square of the length: longer pairs are not scored, unless training had such a pair.
LONGEST_SCORED = 1_024
SCORED_ROWS = 512  # rows whose logits are in memory at one time


@torch.inference_mode()
def score_pairs(
    model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, batch_tokens: int = 4_096
) -> list[list[float]]:
    """Return the log-probabilities of the tokens of each target and of the EOS after them, in nats.

    Args:
        model: in evaluation mode.
        sources: ids, each ending with EOS.
        targets: ids without BOS and EOS, as `search` returns them.
        batch_tokens: the most source tokens, and the most target tokens, of one pass; scores do not depend on it.
    """
    assert not model.training
    device = model.embedding.weight.device
    with_ends = [[*target, EOS_ID] for target in targets]
    results: list[list[float]] = [[] for _ in targets]
    for pairs, batch in packed_pairs(sources, with_ends, batch_tokens, model.dtype):
        is_real = batch.tgt_weights > 0
        labels = batch.tgt_outputs[is_real]
        hidden = model.hidden(batch.to(device))[is_real.to(device)]
        log_probs = iter(token_log_probs(hidden, model.output_weight, labels.to(device)).tolist())
        for i in pairs.tolist():
            results[i] = list(islice(log_probs, len(with_ends[i])))
    return results


def token_log_probs(hidden: Tensor, output_weight: Tensor, labels: Tensor) -> Tensor:
    """Return [T] float32: log-probability of each label under the softmax of its row of `hidden @ output_weight.T`.

    Args:
        hidden: [T, D], in the type of the matrix products.
        output_weight: [V, D].
        labels: [T] ids below V.
    """
    weight = output_weight.to(hidden.dtype)
    parts = []
    for rows, row_labels in zip(torch.split(hidden, SCORED_ROWS), torch.split(labels, SCORED_ROWS), strict=True):
        logits = functional.linear(rows, weight)  # [R, V]
        normaliser, _ = log_normaliser_and_maxima(logits)
        parts.append((logits.gather(1, row_labels[:, None]).float() - normaliser)[:, 0])
    return torch.cat(parts)


@dataclass(frozen=True)
class PairScore:
    """The score of a pair: how probable its target is as the translation of its source, by a model."""

    pair: SentencePair
    log_prob: float  # sum over tokens, the end of sentence included, in nats; -inf for a pair that is too long
    score: float  # log_prob divided by the length penalty, by which a search ranks translations
    n_tokens: int  # of the translation, the end of sentence included; 0 if both lines are blank
    pieces: tuple[str, ...]  # the tokens; empty for a pair that was not scored
    token_log_probs: tuple[float, ...]  # one for each piece

    @property
    def mean_log_prob(self) -> float:
        """Return nats per token."""
        return self.log_prob / max(self.n_tokens, 1)

    def text_line(self) -> str:
        """Return log-probability, its mean, score and number of tokens, with tabs between them."""
        # Adding zero turns -0.0 into 0.0.
        figures = [f"{round(f, 4) + 0.0:.4f}" for f in (self.log_prob, self.mean_log_prob, self.score)]
        return "\t".join([*figures, str(self.n_tokens)])

    def json_line(self) -> str:
        """Return everything as JSON. JSON has no infinity: the figures of a pair that was not scored are null."""
        figures = {"log_prob": self.log_prob, "mean_log_prob": self.mean_log_prob, "score": self.score}
        entry = {
            "line": self.pair.line,
            "src": self.pair.src,
            "tgt": self.pair.tgt,
            **finite(figures),
            "n_tokens": self.n_tokens,
            "pieces": self.pieces,
            "token_log_probs": [round(log_prob, 6) for log_prob in self.token_log_probs],
        }
        return json.dumps(entry, ensure_ascii=False)


@dataclass
class Scorer:
    """Scores translations that are given, with the model of a translator.

    Of its settings, the length penalty and the size of batches matter.
    """

    translator: Translator
    n_pairs: int = 0  # so far
    n_long: int = 0  # pairs so far with a side of more than max_tokens
    n_too_long: int = 0  # of these, pairs with a side of more than `longest`: not scored

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        device: str = "auto",
        precision: str = "auto",
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> Scorer:
        """Load the scorer of the model in a folder; see `Translator.load`."""
        return cls(Translator.load(path, device, precision, src_lang=src_lang, tgt_lang=tgt_lang))

    @property
    def decode(self) -> DecodeConfig:
        return self.translator.decode

    @property
    def max_tokens(self) -> int:
        """Return how many tokens a side had in training; longer pairs are scored, and counted."""
        return self.translator.max_source_tokens

    @property
    def longest(self) -> float:
        """Return how many tokens a side may have to be scored."""
        return min(max(LONGEST_SCORED, self.max_tokens), self.translator.model.positions.n_positions or math.inf)

    def score(
        self,
        pairs: Iterable[SentencePair | tuple[str, str]],
        decode: DecodeConfig | None = None,
        **changes: Unpack[DecodeChanges],
    ) -> Iterator[PairScore]:
        """Yield the score of each pair, in order; the pairs are read some thousands at a time.

        The two lines are normalised as for training. Two blank lines score 0; a blank translation of a line has the
        probability of ending at once, and a blank source is an empty sentence.

        Args:
            pairs: source and translation of each.
            decode: the settings, of which length penalty and size of batches matter; the model's own unless given.
            changes: settings that differ from `decode`, such as `length_penalty=1.0`.
        Raises:
            CheckpointError: the model returns NaN.
            ConfigError: a setting is unknown, or has a wrong value.
        """
        self.translator.require_direction()
        return self._score((decode or self.decode).changed(changes), pairs)

    def _score(self, decode: DecodeConfig, pairs: Iterable[SentencePair | tuple[str, str]]) -> Iterator[PairScore]:
        numbered = (pair if len(pair) == 3 else SentencePair(*pair, line) for line, pair in enumerate(pairs, start=1))
        while chunk := list(islice(numbered, PAIRS_AT_A_TIME)):
            yield from self._score_chunk(chunk, decode)
            trim_heap()  # batches of many sizes leave blocks of many sizes

    def warnings(self) -> list[str]:
        """Return warnings about the pairs scored so far, one line each."""
        found = []
        if n_scored := self.n_long - self.n_too_long:
            problem = f"had a side of more than {self.max_tokens:,} tokens, longer than any in training"
            found.append(f"{n_scored:,} of {self.n_pairs:,} pairs {problem}: their scores are less reliable")
        if self.n_too_long:
            problem = (
                f"had a side of more than {self.longest:,} tokens and were not scored: they get -inf (jsonl: null)"
            )
            found.append(f"{self.n_too_long:,} of {self.n_pairs:,} pairs {problem}")
        return found

    def _score_chunk(self, pairs: Sequence[SentencePair], decode: DecodeConfig) -> Iterator[PairScore]:
        tokenizers, normalised = self.translator.tokenizers, self.translator.normalisers.pairs(pairs)
        first, texts = self.translator.first_ids, [pair.src for pair in normalised]
        sources = [[*first, *ids, EOS_ID] for ids in tokenizers.src.encode_batch(texts)]
        targets = tokenizers.tgt.encode_batch([pair.tgt for pair in normalised])
        lengths = [max(len(source), len(target) + 1) for source, target in zip(sources, targets, strict=True)]
        self.n_pairs += len(pairs)
        self.n_long += sum(length > self.max_tokens for length in lengths)
        self.n_too_long += sum(length > self.longest for length in lengths)
        blank = [len(source) == len(first) + 1 and not target for source, target in zip(sources, targets, strict=True)]
        chosen = [i for i, length in enumerate(lengths) if not blank[i] and length <= self.longest]
        of_chosen = [sources[i] for i in chosen], [targets[i] for i in chosen]
        log_probs = iter(score_pairs(self.translator.model, *of_chosen, batch_tokens=decode.batch_tokens))
        n_tokens = torch.tensor([len(target) + 1 for target in targets])
        penalties = length_penalty(n_tokens, decode.length_penalty, decode.length_penalty_form).tolist()
        for pair, target, length, penalty, is_blank in zip(pairs, targets, lengths, penalties, blank, strict=True):
            if is_blank:
                yield PairScore(pair, 0.0, 0.0, 0, (), ())  # two blank lines
            elif length > self.longest:
                yield PairScore(pair, -math.inf, -math.inf, len(target) + 1, (), ())
            else:
                yield self._pair_score(pair, [*target, EOS_ID], next(log_probs), penalty)

    def _pair_score(self, pair: SentencePair, tokens: list[int], log_probs: list[float], penalty: float) -> PairScore:
        log_prob = math.fsum(log_probs)
        if math.isnan(log_prob):
            raise nan_error(f"line {pair.line:,}, {pair.src[:80]!r}")
        pieces = tuple(self.translator.tokenizers.tgt.pieces(tokens))
        return PairScore(pair, log_prob, log_prob / penalty, len(log_probs), pieces, tuple(log_probs))
