"""Validation: the loss, and the scores of translations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import fmean
from typing import TypeAlias

import numpy as np
import torch

from mt.config.settings import DecodeConfig, Direction, RunConfig
from mt.data.batch import PackedBatch, assemble_tiles
from mt.data.packing import Indices
from mt.decode.translator import OwnBackend, Translator
from mt.evaluation.scores import TranslatedSet, score_corpus
from mt.evaluation.tokenization import chosen_tokenizer
from mt.evaluation.warnings import check_scores
from mt.loss import linear_label_smoothed_nll
from mt.model import Transformer
from mt.report.facts import MetricScore
from mt.text.corpus import ParallelIds, PreparedCorpus
from mt.text.reader import SentencePair
from mt.text.sentences import UsualLines
from mt.text.tokenizer import Tokenizers

# Target tokens of one forward pass. Small, because its logits are all in memory.
VALIDATION_TOKENS = 4_096
TARGET_LENGTHS = (10, 20, 40, 80)  # upper ends of the length ranges of `loss_by_length`, in target tokens
OldSets: TypeAlias = Mapping[str, tuple[Direction, list[SentencePair]]]  # by name, with their directions

N_TIMED_LINES = 64  # lines of a validation set that are translated to estimate its time
N_SAMPLE_TRANSLATIONS = 5  # translations that are recorded for users to read


@dataclass(frozen=True)
class ValidationResult:
    """The scores of a model on a validation set, or the means of its scores on several."""

    loss: float  # unsmoothed cross-entropy, nats per target token, end of sentence included
    bleu: float
    chrf: float
    loss_by_length: dict[str, float]  # the loss by range of target tokens, such as "11-20"
    samples: list[tuple[str, str, str]]  # source, translation and reference of the first few lines
    warnings: list[str] = field(default_factory=list)  # about the scores
    sets: dict[str, ValidationResult] = field(default_factory=dict)  # the results on each of several sets
    loss_on_old: float | None = None  # BLEU lost on the sets of `train.max_loss_on_old`


def validate(
    inference: Transformer,
    tokenizers: Tokenizers,
    corpus: PreparedCorpus,
    config: RunConfig,
    usual_lines: UsualLines | None,
    old_sets: OldSets | None = None,
    old_bleu: float = 0.0,
) -> ValidationResult:
    """Score a model in evaluation mode on all validation sets, in a fixed order.

    Args:
        usual_lines: of training; lines are split at ends of sentences as for users of the model.
        old_sets, old_bleu: the sets of `train.max_loss_on_old`, and the BLEU of the initial model on them.
    """
    decode = replace(config.decode, beam_size=config.train.validation_beam_size)
    # No retries: early in training nearly every sentence would be searched twice.
    translator = Translator(
        OwnBackend(inference),
        tokenizers,
        decode,
        config.data.max_tokens,
        retries=False,
        usual_lines=usual_lines,
        config=config,
    )
    results = {}
    for name, ids in corpus.valid_ids():
        direction = config.valid_sets[name].direction
        results[name] = _on_one_set(
            translator.in_direction(direction), corpus.valid_sets[name], ids, direction.tgt, config.eval.bleu_tokenize
        )
    result = _mean(results) if len(results) > 1 else next(iter(results.values()))
    return replace(result, loss_on_old=old_bleu - mean_bleu(translator, old_sets, config)) if old_sets else result


def validation_costs(
    inference: Transformer, tokenizers: Tokenizers, corpus: PreparedCorpus, config: RunConfig
) -> tuple[float, float]:
    """Estimate the time of a validation, and that of the evaluation after training, before the model can translate.

    Some lines of each validation set are translated, all at the mean length of their references.

    Returns:
        The seconds of a validation, and how many times longer the evaluation takes.
    """

    def seconds(decode: DecodeConfig) -> float:
        total = 0.0
        for name, ids in corpus.valid_ids():
            pairs, n_tokens = corpus.valid_sets[name], max(2, round(float(ids.tgt.lengths.mean())))
            some = [pairs[i].src for i in np.linspace(0, len(pairs) - 1, min(N_TIMED_LINES, len(pairs))).astype(int)]
            length = replace(decode, min_length=n_tokens - 1, max_length=n_tokens)
            backend, most = OwnBackend(inference), config.data.max_tokens
            translator = Translator(backend, tokenizers, length, most, retries=False, config=config)
            translator = translator.in_direction(config.valid_sets[name].direction)
            translator.translate(some[:8])  # a GPU captures its graphs
            started_at = time.monotonic()
            translator.translate(some)
            total += (time.monotonic() - started_at) * len(pairs) / len(some)
        return total

    n_chars = {name: sum(len(pair.src) for pair in pairs) for name, pairs in corpus.held_out.items()}
    n_valid = sum(n_chars[name] for name in corpus.valid_sets)
    greedy = seconds(replace(config.decode, beam_size=config.train.validation_beam_size))
    return greedy, seconds(config.decode) / greedy * sum(n_chars.values()) / n_valid


def mean_bleu(translator: Translator, sets: OldSets, config: RunConfig) -> float:
    """Return the mean BLEU of a model on some sets."""
    translators = {direction: translator.in_direction(direction) for direction, _ in sets.values()}
    return fmean(
        _translated(translators[direction], pairs, direction.tgt, config.eval.bleu_tokenize)[1][0].score
        for direction, pairs in sets.values()
    )


def _mean(results: Mapping[str, ValidationResult]) -> ValidationResult:
    """Return the means of the scores on several sets, and the first samples of each."""
    each, n_samples = [*results.values()], max(1, N_SAMPLE_TRANSLATIONS // len(results))
    lengths = dict.fromkeys(chain.from_iterable(one.loss_by_length for one in each))
    return ValidationResult(
        loss=fmean(one.loss for one in each),
        bleu=fmean(one.bleu for one in each),
        chrf=fmean(one.chrf for one in each),
        loss_by_length={
            length: fmean(one.loss_by_length[length] for one in each if length in one.loss_by_length)
            for length in lengths
        },
        samples=[sample for one in each for sample in one.samples[:n_samples]],
        warnings=[f"{name}: {warning}" for name, one in results.items() for warning in one.warnings],
        sets=dict(results),
    )


def _on_one_set(
    translator: Translator, pairs: Sequence[SentencePair], ids: ParallelIds, tgt_lang: str, tokenize: str
) -> ValidationResult:
    translated, scores = _translated(translator, pairs, tgt_lang, tokenize)
    loss, loss_by_length = validation_loss(translator.model, ids)
    first = list(zip(pairs, translated.hypotheses, strict=True))[:N_SAMPLE_TRANSLATIONS]
    return ValidationResult(
        loss=loss,
        bleu=scores[0].score,
        chrf=scores[1].score,
        loss_by_length=loss_by_length,
        samples=[(pair.src, hypothesis, pair.tgt) for pair, hypothesis in first],
        warnings=check_scores(translated, scores),
    )


def _translated(
    translator: Translator, pairs: Sequence[SentencePair], tgt_lang: str, tokenize: str
) -> tuple[TranslatedSet, list[MetricScore]]:
    """Translate a set; return it with its BLEU and chrF2."""
    hypotheses = translator.translate([pair.src for pair in pairs])
    references, tokenizer = [[pair.tgt for pair in pairs]], chosen_tokenizer(tokenize, tgt_lang)
    translated = TranslatedSet(None, hypotheses, references, tgt_lang, tokenize=tokenizer)
    return translated, score_corpus(translated, ["bleu", "chrf"]).scores


@torch.inference_mode()
def validation_loss(model: Transformer, corpus: ParallelIds) -> tuple[float, dict[str, float]]:
    """Return the unsmoothed cross-entropy in nats per target token: of all sentences, and by range of lengths.

    The model must be in evaluation mode.
    """
    assert not model.training
    device = model.embedding.weight.device
    sums: dict[str, list[float]] = {}  # nats, tokens
    for name, sentences in _by_length(corpus):
        batch: PackedBatch = assemble_tiles(corpus, sentences, model.dtype).to(device)
        hidden = model.hidden(batch)
        loss = linear_label_smoothed_nll(hidden, model.output_weight, batch.tgt_outputs, batch.tgt_weights, 0.0)
        entry = sums.setdefault(name, [0.0, 0.0])
        entry[0] += loss.item()
        entry[1] += batch.n_tgt_tokens
    nats, n_tokens = (sum(column) for column in zip(*sums.values(), strict=True))
    return nats / n_tokens, {name: total / n for name, (total, n) in sums.items()}


def _by_length(corpus: ParallelIds) -> Iterator[tuple[str, Indices]]:
    """Yield the name of a length range and a batch of its sentences, shortest targets first."""
    order = np.argsort(corpus.tgt.lengths, kind="stable")
    lengths = corpus.tgt.lengths[order]
    shortest = 1
    for longest in (*TARGET_LENGTHS, int(lengths[-1])):
        inside = order[(lengths >= shortest) & (lengths <= longest)]
        batch_numbers = np.cumsum(corpus.tgt.lengths[inside]) // VALIDATION_TOKENS
        for batch in np.split(inside, np.flatnonzero(np.diff(batch_numbers)) + 1):
            if len(batch):
                yield f"{shortest}-{longest}" if longest in TARGET_LENGTHS else f"{shortest}-", batch
        shortest = max(shortest, longest + 1)
