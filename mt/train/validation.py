"""Loss and translated score on the validation set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mt.config import DecodeConfig
from mt.data.batch import PackedBatch, assemble_tiles
from mt.data.packing import Indices
from mt.decode.translator import Translator
from mt.evaluate.scores import corpus_bleu, corpus_chrf
from mt.loss import linear_label_smoothed_nll
from mt.model import Transformer
from mt.text.corpus import ParallelIds
from mt.text.sources import SentencePair
from mt.text.tokenizer import Tokenizer

# Target tokens of one forward pass; small, for its logits are kept.
VALIDATION_TOKENS = 4_096


@dataclass(frozen=True)
class ValidationResult:
    """How well the model does on text it does not learn from."""

    loss: float  # unsmoothed cross-entropy, nats per target token, end of sentence included
    bleu: float
    chrf: float


def validate(
    model: Transformer,
    tokenizer: Tokenizer,
    corpus: ParallelIds,
    pairs: list[SentencePair],
    decode: DecodeConfig,
    max_source_tokens: int,
) -> ValidationResult:
    """Measure the whole set in fixed order, without dropout.

    Args:
        corpus: the pairs, encoded.
        pairs: the pairs as text; references are scored as they are.
        decode: beam size and the rest.
    """
    inference = model.for_inference(model.dtype)
    translator = Translator(inference, tokenizer, decode, max_source_tokens=max_source_tokens)
    hypotheses = translator.translate([pair.src for pair in pairs])
    references = [pair.tgt for pair in pairs]
    return ValidationResult(
        loss=validation_loss(inference, corpus),
        bleu=corpus_bleu(hypotheses, references),
        chrf=corpus_chrf(hypotheses, references),
    )


@torch.inference_mode()
def validation_loss(model: Transformer, corpus: ParallelIds) -> float:
    """Unsmoothed cross-entropy in nats per target token; the model must be in evaluation mode."""
    assert not model.training
    device = model.embedding.weight.device
    total, n_tokens = 0.0, 0
    for sentences in _in_order(corpus):
        batch: PackedBatch = assemble_tiles(corpus, sentences, model.dtype).to(device)
        hidden = model(batch)
        loss = linear_label_smoothed_nll(hidden, model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.0)
        total += loss.item()
        n_tokens += batch.n_tgt_tokens
    return total / n_tokens


def _in_order(corpus: ParallelIds) -> list[Indices]:
    """All sentences, sorted by length, cut where a batch holds enough target tokens."""
    order = np.argsort(corpus.tgt.lengths, kind="stable")
    batch_numbers = np.cumsum(corpus.tgt.lengths[order]) // VALIDATION_TOKENS
    return np.split(order, np.flatnonzero(np.diff(batch_numbers)) + 1)
