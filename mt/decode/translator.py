"""Sentences in, hypotheses out, order kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from mt.checkpoint import ModelFolder, find_model_folder
from mt.config import MAX_BEAM_SIZE, DecodeConfig
from mt.decode.graphs import Graphs
from mt.decode.search import LONGER_THAN_SOURCE, SearchResult, length_sorted_batches, search
from mt.errors import CheckpointError, ConfigError, DataError
from mt.model import Transformer
from mt.runtime import choose_device, choose_dtype, keep_large_blocks
from mt.text.clean import normalise
from mt.text.tokenizer import Tokenizer

# Lines that are read before the first is translated, so that sentences of equal length can go together.
LINES_AT_A_TIME = 4_096
# A source that is too long is cut behind one of these if there is one in the last half of what fits.
SENTENCE_ENDS = (".", "!", "?", ";", ":", "。", "！", "？")
WORD_START = "▁"


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one line."""

    text: str
    score: float  # log_prob over the length penalty; hypotheses are ranked by it
    log_prob: float  # sum over tokens, the end of sentence included, in nats
    n_tokens: int  # the end of sentence included


EMPTY = Hypothesis("", 0.0, 0.0, 0)


class Backend(Protocol):
    """What finds translations of one batch of sentences: our own search, or another program's."""

    def search(
        self,
        sentences: Sequence[Sequence[int]],
        decode: DecodeConfig,
        *,
        n_best: int,
        prefixes: Sequence[Sequence[int]] | None,
        banned_ids: Sequence[int],
    ) -> list[list[SearchResult]]:
        """See `mt.decode.search.search`."""


class OwnBackend:
    """`mt.decode.search.search` with a model made for inference; on CUDA as captured graphs."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._graphs = Graphs(model) if model.embedding.weight.device.type == "cuda" else None

    def search(
        self,
        sentences: Sequence[Sequence[int]],
        decode: DecodeConfig,
        *,
        n_best: int,
        prefixes: Sequence[Sequence[int]] | None,
        banned_ids: Sequence[int],
    ) -> list[list[SearchResult]]:
        if self._graphs is not None:
            return self._graphs.search(sentences, decode, n_best=n_best, prefixes=prefixes, banned_ids=banned_ids)
        return search(self.model, sentences, decode, n_best=n_best, prefixes=prefixes, banned_ids=banned_ids)


class Translator:
    """A model with its tokenizer, ready to translate.

    Args:
        backend: what searches; a model for inference (see `Transformer.for_inference`) stands for our own.
        decode: the settings that `translate` goes by unless told otherwise.
        max_source_tokens: longer lines are translated in parts, for the model has not seen longer ones in training.
    """

    def __init__(
        self, backend: Backend | Transformer, tokenizer: Tokenizer, decode: DecodeConfig, *, max_source_tokens: int
    ) -> None:
        self.backend = OwnBackend(backend) if isinstance(backend, Transformer) else backend
        self.tokenizer = tokenizer
        self.decode = decode
        self.max_source_tokens = max_source_tokens
        self.n_lines_in_parts = 0  # lines so far that were too long to translate in one piece

    @property
    def model(self) -> Transformer:
        """The model of our own search; another backend has none."""
        assert isinstance(self.backend, OwnBackend)
        return self.backend.model

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", precision: str = "auto") -> Translator:
        """The translator in a run folder (while it runs, its best so far), a checkpoint or a model folder.

        Raises:
            CheckpointError: there is no complete model of this version there.
            ConfigError: no such device or precision.
        """
        keep_large_blocks()
        chosen_device = choose_device(device)
        dtype = choose_dtype(precision, chosen_device)
        folder = ModelFolder.open(find_model_folder(Path(path)))
        return cls(
            folder.load_model(dtype, chosen_device),
            folder.load_tokenizer(),
            folder.config.decode,
            max_source_tokens=folder.config.data.max_tokens,
        )

    def translate(
        self, lines: Iterable[str], decode: DecodeConfig | None = None, *, prefixes: Iterable[str] | None = None
    ) -> list[str]:
        """The best translation of each line; a blank line gives an empty one. See `translate_lines`.

        Raises:
            TypeError: a bare string is given instead of a list of them.
        """
        return [best[0].text for best in self.translate_lines(lines, decode, prefixes=prefixes)]

    def translate_lines(
        self,
        lines: Iterable[str],
        decode: DecodeConfig | None = None,
        *,
        n_best: int = 1,
        prefixes: Iterable[str] | None = None,
    ) -> Iterator[list[Hypothesis]]:
        """The n best translations of each line, best first, as they are made and in the order of the lines.

        Args:
            decode: the model's own settings unless given; `dataclasses.replace(translator.decode, beam_size=1)`.
            n_best: up to the beam size, or any number of draws.
            prefixes: for each line the text that its translations begin with; may be empty.
        Raises:
            ConfigError: n_best is larger than the beam size.
            DataError: a prefix is too long for the longest translation.
        """
        if isinstance(lines, str):
            raise TypeError("lines: expected a list of str, got a str: write [text]")
        decode = decode or self.decode
        most = MAX_BEAM_SIZE if decode.sample else decode.beam_size
        if not 1 <= n_best <= most:
            limit, remedy = str(most), "ask for fewer"
            if not decode.sample:
                limit, remedy = (
                    f"the beam size ({most})",
                    f"raise the beam size (up to {MAX_BEAM_SIZE}) or ask for fewer",
                )
            raise ConfigError(f"n_best: expected 1 to {limit}, got {n_best}: {remedy}")
        return self._translate_lines(iter(lines), decode, n_best, None if prefixes is None else iter(prefixes))

    def _translate_lines(
        self, lines: Iterator[str], decode: DecodeConfig, n_best: int, prefixes: Iterator[str] | None
    ) -> Iterator[list[Hypothesis]]:
        while chunk := list(islice(lines, LINES_AT_A_TIME)):
            begun = None if prefixes is None else list(islice(prefixes, len(chunk)))
            assert begun is None or len(begun) == len(chunk), "fewer prefixes than lines"
            yield from self._translate_chunk(chunk, decode, n_best, begun)

    def _translate_chunk(
        self, lines: Sequence[str], decode: DecodeConfig, n_best: int, prefixes: Sequence[str] | None
    ) -> list[list[Hypothesis]]:
        encoded = self.tokenizer.encode_batch([normalise(line) for line in lines])
        parts: list[list[int]] = []  # source ids, EOS included, of all parts of all lines
        line_parts: list[range] = []
        for ids in encoded:
            first = len(parts)
            if ids:
                parts += self._split(ids)
            line_parts.append(range(first, len(parts)))
            self.n_lines_in_parts += len(parts) - first > 1
        part_prefixes: list[list[int]] | None = None
        if prefixes is not None:
            part_prefixes = [[] for _ in parts]
            begun = self.tokenizer.encode_batch([normalise(prefix) for prefix in prefixes])
            for which, prefix in zip(line_parts, begun, strict=True):
                if which:  # a translation begins in its first part
                    part_prefixes[which[0]] = self._checked_prefix(prefix, len(parts[which[0]]), decode)
        results = self._search(parts, decode, n_best, part_prefixes)
        return [self._line_hypotheses(parts, results, which) for which in line_parts]

    def _checked_prefix(self, prefix: list[int], n_source_tokens: int, decode: DecodeConfig) -> list[int]:
        longest = decode.max_length or n_source_tokens + LONGER_THAN_SOURCE
        if len(prefix) >= longest:
            raise DataError(
                f"the prefix {self.tokenizer.decode(prefix)[:80]!r} has {len(prefix):,} tokens, and a translation may "
                f"have {longest:,} with its end: shorten it"
            )
        return prefix

    def _search(
        self, parts: list[list[int]], decode: DecodeConfig, n_best: int, prefixes: list[list[int]] | None
    ) -> list[list[SearchResult]]:
        results: list[list[SearchResult]] = [[] for _ in parts]
        banned = sorted(self.tokenizer.line_breaking_ids)
        lengths = [len(part) for part in parts]
        n_beams = n_best if decode.sample else decode.beam_size
        for batch in length_sorted_batches(lengths, decode.batch_tokens, n_beams, decode.batch_sentences):
            found = self.backend.search(
                [parts[i] for i in batch],
                decode,
                n_best=n_best,
                prefixes=None if prefixes is None else [prefixes[i] for i in batch],
                banned_ids=banned,
            )
            for i, hypotheses in zip(batch, found, strict=True):
                if not hypotheses:
                    raise CheckpointError(
                        f"the model gives no numbers for {self.tokenizer.decode(parts[i])[:80]!r}: "
                        "try --precision fp32; if that does not help, its weights are damaged"
                    )
                results[i] = hypotheses
        return results

    def _line_hypotheses(
        self, parts: list[list[int]], results: list[list[SearchResult]], which: range
    ) -> list[Hypothesis]:
        if not which:
            return [EMPTY]
        hypotheses = []
        for k in range(min(len(results[i]) for i in which)):
            text = ""
            for i in which:
                # A part that continues a word is joined to it.
                starts_word = self.tokenizer.pieces(parts[i][:1])[0].startswith(WORD_START)
                text += (" " if text and starts_word else "") + self.tokenizer.decode(results[i][k].ids)
            chosen = [results[i][k] for i in which]
            hypotheses.append(
                Hypothesis(
                    text=text,
                    score=sum(result.score for result in chosen),
                    log_prob=sum(result.log_prob for result in chosen),
                    n_tokens=sum(result.n_tokens for result in chosen),
                )
            )
        return hypotheses

    def _split(self, ids: list[int]) -> list[list[int]]:
        """Parts of at most max_source_tokens, EOS included: cut behind sentences, or else words, or else anywhere."""
        room = max(self.max_source_tokens - 1, 1)
        if len(ids) <= room:
            return [[*ids, self.tokenizer.eos_id]]
        pieces = self.tokenizer.pieces(ids)
        parts, start = [], 0
        while start < len(ids):
            stop = min(start + room, len(ids))
            if stop < len(ids):
                words = [i for i in range(start + max(room // 2, 1), stop + 1) if pieces[i].startswith(WORD_START)]
                sentences = [i for i in words if pieces[i - 1].endswith(SENTENCE_ENDS)]
                stop = (sentences or words or [stop])[-1]
            parts.append([*ids[start:stop], self.tokenizer.eos_id])
            start = stop
        return parts
